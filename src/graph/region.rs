//! Which parts of a graph become one operator: the largest that are linear, exact, and no dearer than what they replace.
//!
//! Values are looked at twice. Forwards, each learns of which sources it is a linear map. Backwards, from what the network has to
//! give, each value that is wanted takes the farthest source that pays, and from then on only that source is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::cost::{Cost, cost_of, cost_of_one};
use super::form::{Form, Forms, rank};
use super::lanes::Lanes;
use super::model::{Dim, Graph, NodeId, Op, Value, ValueId, same_shape};
use super::tree::tree;
pub use super::walk::{Step, Walk};
use crate::algebra::shape::{resolve, resolve_over};
use crate::algebra::{Expr, Resolved};
use crate::tensor::Tensor;

/// A part of a graph that one operator computes as well.
#[derive(Debug)]
pub struct Region {
    /// What the operator reads.
    pub source: ValueId,
    /// What it computes.
    pub value: ValueId,
    /// The nodes that compute it now, in their order. Some of them may be wanted by others too.
    pub nodes: Vec<NodeId>,
    /// What they compute.
    pub expr: Resolved<Tensor>,
    /// How the one operator walks over its input.
    pub walk: Walk,
    /// What is written behind the operator, where its axes are not those of the value.
    pub behind: Option<Behind>,
}

/// How the output of a region's operator becomes the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The output of a linear layer is given this shape; −1 for an axis that follows from the others.
    Reshape(Vec<i64>),
    /// Axis `i` of the value is axis `order[i]` of the output.
    Transpose(Vec<usize>),
}

/// What is folded, and what stays although it nearly could be.
#[derive(Debug, Default)]
pub struct Regions {
    /// What is folded, in the order of the nodes.
    pub folded: Vec<Region>,
    /// Whether each node stays.
    pub stays: Vec<bool>,
    /// Nodes that stay, and what stopped each.
    pub left: Vec<(NodeId, String)>,
    /// Values that are not computed any more, and what is read instead by the nodes that stay: each of the regions behind these does
    /// itself what is missing.
    pub bypassed: BTreeMap<ValueId, ValueId>,
}

impl Regions {
    /// Says why nodes stay of which that is not known yet.
    pub(super) fn say(&mut self, why: BTreeMap<NodeId, String>) {
        let known: BTreeSet<NodeId> = self.left.iter().map(|(id, _)| *id).collect();
        let stays = &self.stays;
        let new = why.into_iter();
        let new = new.filter(|(id, _)| stays[id.0] && !known.contains(id));
        self.left.extend(new);
        self.left.sort();
    }
}

/// A value remembers no more sources than this: the nearest ones.
const MOST_SOURCES: usize = 16;

/// What the operators of a file format can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Whether a conv can pad one side more than the other; else a node of its own does it.
    pub uneven_pads: bool,
    /// Whether a linear layer over more than two axes has a bias of its own; else a sum of its own adds it.
    pub linear_bias: bool,
    /// Whether an operator may be followed by a [`Behind`] of its own.
    pub goes_behind: bool,
}

/// Finds what to fold. `takes` says whether the user wants a region; `even_if_dearer` folds what costs more than it saves. `copies`
/// says how often each node stands in the graph that is once in the network: none where each does so once.
pub fn regions(
    graph: &Graph,
    copies: &[usize],
    dialect: Dialect,
    even_if_dearer: bool,
    takes: &mut dyn FnMut(&Region) -> bool,
) -> Regions {
    let mut search = Search::new(graph, copies, dialect);
    search.forwards();
    // What one choice makes superfluous another one need not count with: until no choice changes.
    let mut found = search.backwards(even_if_dearer, takes);
    for _ in 0..MOST_ROUNDS {
        let before = search.reads.clone();
        found = search.backwards(even_if_dearer, takes);
        if search.reads == before {
            break;
        }
    }
    found.left = search.left(&found.stays);
    found
}

/// Choices are made anew no more often than this.
const MOST_ROUNDS: usize = 16;

/// What a node reads once the regions that are chosen so far are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// What it reads now.
    Inputs,
    /// The source of the region that takes its place.
    Source(ValueId),
    /// Nothing: it is gone.
    Nothing,
}

impl Reads {
    /// Whether a node that reads a value now does not read it any more.
    fn no_more(self, value: ValueId) -> bool {
        match self {
            Reads::Inputs => false,
            Reads::Source(source) => source != value,
            Reads::Nothing => true,
        }
    }
}

struct Search<'a> {
    graph: &'a Graph,
    forms: Forms,
    /// For each node, what kept it from joining what stands before it.
    stopped: HashMap<NodeId, String>,
    /// What each node reads as far as is known.
    reads: Vec<Reads>,
    /// The last nodes of the regions that read a value as far as is known.
    read_by: HashMap<ValueId, BTreeSet<NodeId>>,
    dialect: Dialect,
    /// How often each node is there that is once in the network; none where each is.
    copies: &'a [usize],
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph, copies: &'a [usize], dialect: Dialect) -> Search<'a> {
        Search {
            graph,
            copies,
            dialect,
            forms: vec![Vec::new(); graph.values().len()],
            stopped: HashMap::new(),
            reads: vec![Reads::Inputs; graph.nodes().len()],
            read_by: HashMap::new(),
        }
    }

    /// Notes what a node reads from now on.
    fn note(&mut self, id: NodeId, reads: Reads) {
        if let Reads::Source(source) = std::mem::replace(&mut self.reads[id.0], reads)
            && let Some(readers) = self.read_by.get_mut(&source)
        {
            readers.remove(&id);
        }
        if let Reads::Source(source) = reads {
            self.read_by.entry(source).or_default().insert(id);
        }
    }

    fn forwards(&mut self) {
        for (i, node) in self.graph.nodes().iter().enumerate() {
            let id = NodeId(i);
            if let Op::Opaque(Some(why)) = &node.op {
                self.stopped.insert(id, why.clone());
            }
            let (Some(&input), [first, more @ ..]) = (node.inputs.first(), &node.outputs[..])
            else {
                continue;
            };
            let found = match &node.op {
                Op::Opaque(_)
                | Op::Shape
                | Op::Mean { .. }
                | Op::Total { .. }
                | Op::Stack(_)
                | Op::Resample => {
                    continue;
                }
                op @ Op::Slice { .. } => {
                    for (number, output) in node.outputs.iter().enumerate() {
                        let found = self.joined(id, op, input, (*output, number));
                        self.forms[output.0] = nearest(self.farther(found));
                    }
                    continue;
                }
                _ if !more.is_empty() => continue,
                Op::Sum(factors) => self.sums(id, &node.inputs[..factors.len()]),
                Op::Concat(axis) => self.stacks(id, *axis, &node.inputs),
                op => self.joined(id, op, input, (*first, 0)),
            };
            self.forms[first.0] = nearest(self.farther(found));
        }
    }

    /// The value's forms, and the value as a source of its own.
    fn all(&self, value: ValueId) -> impl Iterator<Item = (ValueId, Form)> {
        let own = (value, Form::identity());
        std::iter::once(own).chain(self.forms[value.0].iter().cloned())
    }

    /// Without the sources that give nothing which a farther one does not: what only a diagonal operator makes of that, and nobody else reads.
    fn farther(&self, found: Vec<(ValueId, Form)>) -> Vec<(ValueId, Form)> {
        // One whose axes are not there again, or lie in another order, may never have them so again, where a nearer one does.
        let has_axes = |form: &Form| {
            form.turned.is_none() && !matches!(form.lanes, Lanes::Rows { reshaped: true })
        };
        let whole = found.iter().filter(|(_, form)| has_axes(form));
        let sources: BTreeSet<ValueId> = whole.map(|(source, _)| *source).collect();
        let made_of = |value: ValueId| {
            let value = self.graph.value(value);
            let node = self.graph.node(value.producer()?);
            let alone = value.users().len() == 1 && !value.is_output;
            (alone && is_diagonal(&node.op)).then(|| node.inputs.first().copied())?
        };
        let reaches = |(source, _): &(ValueId, Form)| {
            let mut steps = std::iter::successors(Some(*source), |value| made_of(*value));
            !steps.by_ref().skip(1).any(|value| sources.contains(&value))
        };
        found.into_iter().filter(reaches).collect()
    }

    fn joined(
        &mut self,
        id: NodeId,
        op: &Op,
        input: ValueId,
        (output, number): (ValueId, usize),
    ) -> Vec<(ValueId, Form)> {
        let [from, to] = [input, output].map(|value| self.graph.value(value));
        let mut found = Vec::new();
        let mut all: Vec<(ValueId, Form)> = self.all(input).collect();
        if let Op::Border { sources, .. } = op {
            all.retain(|(source, _)| sources.contains(source));
            if all.is_empty() {
                let why = "what is around it is not what the layers before it make of zeros";
                self.stopped.entry(id).or_insert_with(|| why.to_owned());
            }
        }
        for (source, form) in all {
            match form.then(op, from, to, number) {
                Ok(form) => found.push((source, self.settled(form, source, output))),
                // The nearest trouble is the one to tell.
                Err(why) => drop(self.stopped.entry(id).or_insert(why)),
            }
        }
        found
    }

    /// A form whose value has got the axes of its source again.
    fn settled(&self, form: Form, source: ValueId, value: ValueId) -> Form {
        match form.lanes {
            Lanes::Rows { reshaped: true } if self.same_axes(source, value, 1) => Form {
                lanes: Lanes::Rows { reshaped: false },
                ..form
            },
            _ => form,
        }
    }

    /// Whether two values have the same axes, but for so many at the end.
    fn same_axes(&self, a: ValueId, b: ValueId, but: usize) -> bool {
        let [a, b] = [a, b].map(|id| self.graph.value(id).shape.as_ref());
        let (Some(a), Some(b)) = (a, b) else {
            return false;
        };
        let first = a.len().saturating_sub(but);
        a.len() == b.len() && same_shape(&a[..first], &b[..first])
    }

    fn sums(&mut self, id: NodeId, inputs: &[ValueId]) -> Vec<(ValueId, Form)> {
        let Some((first, more)) = inputs.split_first() else {
            return Vec::new();
        };
        let mut found: Vec<(ValueId, Form)> = self.all(*first).collect();
        for input in more {
            let others: HashMap<ValueId, Form> = self.all(*input).collect();
            found = found
                .into_iter()
                .filter_map(|(source, form)| match form.plus(others.get(&source)?) {
                    Ok(form) => Some((source, form)),
                    Err(why) => {
                        self.stopped.entry(id).or_insert(why);
                        None
                    }
                })
                .collect();
        }
        found
    }

    fn stacks(&mut self, id: NodeId, axis: usize, inputs: &[ValueId]) -> Vec<(ValueId, Form)> {
        let Some((first, more)) = inputs.split_first() else {
            return Vec::new();
        };
        let others: Vec<HashMap<ValueId, Form>> = more
            .iter()
            .map(|input| self.all(*input).collect())
            .collect();
        let mut found = Vec::new();
        for (source, form) in self.all(*first).collect::<Vec<_>>() {
            let rest: Option<Vec<&Form>> = others.iter().map(|of| of.get(&source)).collect();
            let Some(rest) = rest else {
                continue;
            };
            let values = inputs.iter().map(|input| self.graph.value(*input));
            let all: Vec<(&Form, &Value)> =
                std::iter::once(&form).chain(rest).zip(values).collect();
            match Form::stacked(&all, axis) {
                Ok(form) => found.push((source, form)),
                Err(why) => drop(self.stopped.entry(id).or_insert(why)),
            }
        }
        found
    }

    fn backwards(
        &mut self,
        even_if_dearer: bool,
        takes: &mut dyn FnMut(&Region) -> bool,
    ) -> Regions {
        let graph = self.graph;
        let mut wanted: Vec<bool> = graph
            .values()
            .iter()
            .map(|value| value.is_output || value.users().is_empty())
            .collect();
        let mut stays = vec![false; graph.nodes().len()];
        let mut folded = Vec::new();
        for (i, node) in graph.nodes().iter().enumerate().rev() {
            if !node.outputs.is_empty() && !node.outputs.iter().any(|output| wanted[output.0]) {
                self.note(NodeId(i), Reads::Nothing);
                continue;
            }
            let region = match node.outputs[..] {
                [value] => self.best(value, &wanted, even_if_dearer, takes),
                _ => None,
            };
            match region {
                Some(region) => {
                    wanted[region.source.0] = true;
                    self.note(NodeId(i), Reads::Source(region.source));
                    folded.push(region);
                }
                None => {
                    stays[i] = true;
                    self.note(NodeId(i), Reads::Inputs);
                    node.inputs.iter().for_each(|input| wanted[input.0] = true);
                }
            }
        }
        folded.reverse();
        Regions {
            folded,
            stays,
            ..Regions::default()
        }
    }

    /// What stays although it nearly could be folded.
    fn left(self, stays: &[bool]) -> Vec<(NodeId, String)> {
        let all = self.stopped.into_iter();
        let mut left: Vec<(NodeId, String)> = all.filter(|(node, _)| stays[node.0]).collect();
        left.sort();
        left
    }

    /// The largest region that ends in a value, is exact, and pays.
    fn best(
        &mut self,
        value: ValueId,
        wanted: &[bool],
        even_if_dearer: bool,
        takes: &mut dyn FnMut(&Region) -> bool,
    ) -> Option<Region> {
        let producer = self.graph.value(value).producer()?;
        let mut best: Option<(usize, u64, Region)> = None;
        // The nearest source first: a farther one must make more operators superfluous, or as many and more parameters.
        for (source, form) in &self.forms[value.0] {
            if form.depth == 0 || form.turned.is_some() && !computes(&self.graph.node(producer).op)
            {
                continue;
            }
            let Some(behind) = self.behind(*source, value, form) else {
                if form.turned.is_some() {
                    let why = "its axes are in another order than where the conv or linear layer before it is computed";
                    self.stopped
                        .entry(producer)
                        .or_insert_with(|| why.to_owned());
                }
                continue;
            };
            let nodes = between(self.graph, *source, value);
            let saved = self.saved(&nodes, (producer, value), wanted);
            let computing = |id: &&NodeId| computes(&self.graph.node(**id).op);
            let count = saved.iter().filter(computing).count();
            let is_layer = |id: &&NodeId| {
                let op = &self.graph.node(**id).op;
                matches!(op, Op::Conv(_) | Op::Linear(_) | Op::AvgPool(_))
            };
            // No layer becomes superfluous: one more would be computed, however few numbers it has.
            let count = match saved.iter().any(|id| is_layer(&id)) {
                true => count,
                false => 0,
            };
            if count < 2 && nodes.iter().filter(computing).count() >= 2 {
                let why = "what stands before it is read by something else, too";
                self.stopped
                    .entry(producer)
                    .or_insert_with(|| why.to_owned());
            }
            if count < 2 || best.as_ref().is_some_and(|(fewer, ..)| count <= *fewer) {
                continue;
            }
            let stopped = match self.region(*source, value, form, nodes) {
                Ok(region) => {
                    let region = Region { behind, ..region };
                    let new = cost_of_one(&region.expr, region.expr.root().constant().is_some());
                    let old = cost_of(
                        self.graph,
                        &self.forms,
                        *source,
                        value,
                        (&saved, self.copies),
                    );
                    // A matrix product and a sum may be that already.
                    let fewer = count.saturating_sub(self.becomes(&region));
                    if fewer == 0 && new.parameters >= old.parameters {
                        continue;
                    }
                    let spared = old.parameters.saturating_sub(new.parameters);
                    let worse = |(most, spares, _): &(usize, u64, Region)| {
                        (fewer, spared) <= (*most, *spares)
                    };
                    if best.as_ref().is_some_and(worse) {
                        continue;
                    }
                    if even_if_dearer || new.no_more_than(&old) {
                        best = Some((fewer, spared, region));
                        continue;
                    }
                    dearer(&new, &old)
                }
                Err(why) => why,
            };
            self.stopped.insert(producer, stopped);
        }
        best.map(|(.., region)| region).filter(takes)
    }

    /// The nodes that a region alone makes superfluous: the last one, and those that such nodes read and nothing else does. What
    /// another region makes superfluous is not saved once more, and what another one reads is not saved at all.
    fn saved(
        &self,
        nodes: &BTreeSet<NodeId>,
        (producer, value): (NodeId, ValueId),
        wanted: &[bool],
    ) -> BTreeSet<NodeId> {
        let graph = self.graph;
        let mut saved = BTreeSet::new();
        for id in nodes.iter().rev() {
            let unread = |output: &ValueId| {
                let read = graph.value(*output);
                let gone =
                    |user: &NodeId| saved.contains(user) || self.reads[user.0].no_more(*output);
                let regions = self.read_by.get(output);
                let mut others = regions.into_iter().flatten();
                *output == value
                    || !wanted[output.0]
                        && !read.is_output
                        && read.users().iter().all(gone)
                        && others.all(|other| *other == producer || saved.contains(other))
            };
            let read_here = |output: &ValueId| {
                *output == value
                    || (graph.value(*output).users().iter()).any(|user| saved.contains(user))
            };
            let outputs = &graph.node(*id).outputs;
            if outputs.iter().all(unread) && outputs.iter().any(read_here) {
                saved.insert(*id);
            }
        }
        saved
    }

    /// How many operators a region becomes: a matrix product has no bias of its own, but for two axes, and some formats pad apart. A
    /// transposition behind it counts, or one before a matrix would be put behind it for nothing.
    fn becomes(&self, region: &Region) -> usize {
        let rank = rank(self.graph.value(region.source));
        let root = region.expr.root();
        let apart = match &region.walk {
            Walk::Linear => {
                !self.dialect.linear_bias && rank != Some(2) && root.constant().is_some()
            }
            walk => !self.dialect.uneven_pads && walk.is_uneven(),
        };
        let turned = matches!(region.behind, Some(Behind::Transpose(_)));
        1 + usize::from(apart) + usize::from(turned)
    }

    fn region(
        &self,
        source: ValueId,
        value: ValueId,
        form: &Form,
        nodes: BTreeSet<NodeId>,
    ) -> Result<Region, String> {
        let walk = Walk::of(&form.lanes).ok_or("nothing in it is a conv")?;
        let resolved = |turned: bool| {
            let graph = (self.graph, &self.forms);
            let expr: Expr<Tensor> = tree(graph, (source, value), &walk, turned)?;
            let expr = match form.inputs {
                Some(inputs) => resolve_over(expr, inputs),
                None => resolve(expr),
            };
            expr.map_err(|error| error.to_string())
        };
        // Behind something else, and beside a conv, a matrix with its inputs first is read across.
        let is_conv = matches!(walk, Walk::Conv(_));
        let expr = match resolved(false) {
            Ok(expr) if !is_conv || !expr.geometry().transposed() => expr,
            _ => resolved(true)?,
        };
        if let Walk::Conv(steps) = &walk
            && expr.geometry().weight_shape().len() != steps.len() + 2
        {
            return Err("it has another number of spatial axes".to_owned());
        }
        if !self.dialect.uneven_pads && walk.is_uneven() && !self.is_sized(source) {
            return Err(
                "its paddings differ, and how large its input is is not known before it runs"
                    .to_owned(),
            );
        }
        Ok(Region {
            source,
            value,
            nodes: nodes.into_iter().collect(),
            expr,
            walk,
            behind: None,
        })
    }

    /// Whether all axes of a value but the first one are known.
    fn is_sized(&self, value: ValueId) -> bool {
        let shape = self.graph.value(value).shape.as_ref();
        shape.is_some_and(|shape| shape.iter().skip(1).all(|dim| dim.known().is_some()))
    }

    /// What must be written behind a region's operator: nothing where its axes are those of the value. No answer where more than one axis of
    /// a new shape is unknown, or the format does not write it.
    fn behind(&self, source: ValueId, value: ValueId, form: &Form) -> Option<Option<Behind>> {
        if let Some(order) = &form.turned {
            let turned = Some(Behind::Transpose(order.clone()));
            return self.dialect.goes_behind.then_some(turned);
        }
        if form.lanes != (Lanes::Rows { reshaped: true }) || self.same_axes(source, value, 1) {
            return Some(None);
        }
        let shape = self.graph.value(value).shape.as_ref()?;
        let axes = shape.iter().map(|dim| match dim {
            Dim::Known(n) => i64::try_from(*n).ok().filter(|n| *n > 0),
            Dim::Named(_) | Dim::Any => Some(-1),
        });
        let axes: Vec<i64> = axes.collect::<Option<_>>()?;
        let open = axes.iter().filter(|axis| **axis < 0).count();
        let channels = form.channels.and_then(|n| i64::try_from(n).ok());
        (self.dialect.goes_behind && open <= 1 && axes.last() == channels.as_ref())
            .then_some(Some(Behind::Reshape(axes)))
    }
}

/// The nearest sources are those that were computed last.
fn nearest(mut found: Vec<(ValueId, Form)>) -> Vec<(ValueId, Form)> {
    found.sort_by_key(|(source, _)| std::cmp::Reverse(*source));
    found.truncate(MOST_SOURCES);
    found
}

fn dearer(new: &Cost, old: &Cost) -> String {
    format!(
        "one conv would be dearer: {} parameters for {}, {} multiply-adds per output for {}",
        new.factors(),
        old.factors(),
        new.macs,
        old.macs
    )
}

/// Whether an operator maps every channel by itself, or moves numbers: the conv behind it takes it over for nothing.
fn is_diagonal(op: &Op) -> bool {
    matches!(
        op,
        Op::Norm(_)
            | Op::WithConstant(..)
            | Op::Neg
            | Op::Identity
            | Op::Reshape
            | Op::Transpose(_)
    )
}

/// Whether an operator does anything to numbers, or has a kernel take over what it does.
fn computes(op: &Op) -> bool {
    !matches!(
        op,
        Op::Identity
            | Op::Shape
            | Op::Reshape
            | Op::Transpose(_)
            | Op::Mean { .. }
            | Op::Total { .. }
            | Op::Stack(_)
            | Op::Resample
            | Op::Opaque(_)
    )
}

/// The nodes on the way from a source to a value, and those that only tell them shapes.
fn between(graph: &Graph, source: ValueId, value: ValueId) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let producer = graph.value(value).producer().filter(|_| value != source);
        let Some(id) = producer.filter(|id| nodes.insert(*id)) else {
            continue;
        };
        let node = graph.node(id);
        match node.op {
            Op::Sum(ref factors) => open.extend(&node.inputs[..factors.len()]),
            Op::Concat(_) => open.extend(&node.inputs),
            _ => open.extend(node.inputs.first()),
        }
    }
    // From the last to the first: what only these read.
    let mut helpers: BTreeSet<NodeId> = nodes
        .iter()
        .flat_map(|id| graph.node(*id).inputs.iter().skip(1))
        .filter(|input| **input != source)
        .filter_map(|input| graph.value(*input).producer())
        .filter(|id| !nodes.contains(id))
        .collect();
    while let Some(id) = helpers.pop_last() {
        let node = graph.node(id);
        let only_here = |output: &ValueId| {
            let value = graph.value(*output);
            !value.is_output && value.users().iter().all(|user| nodes.contains(user))
        };
        if node.outputs.iter().all(only_here) && !node.inputs.is_empty() {
            nodes.insert(id);
            let before = node.inputs.iter().filter(|input| **input != source);
            let producers = before.filter_map(|input| graph.value(*input).producer());
            helpers.extend(producers.filter(|id| !nodes.contains(id)));
        }
    }
    nodes
}
