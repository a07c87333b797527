//! The graph of a program, put together from its text.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::alias::{self, Step, effect};
use super::call::{Call, Context, Input, Opaque};
use super::error::Error;
use super::json::{Members, Raw, Tagged, read};
use super::schema::{self, NodeText, StoredSpec, TensorMeta, WrittenBackSpec, names};
use super::{computed, fills, ops, views};
use crate::graph::border::{Around, Fills};
use crate::graph::constants::Budget;
use crate::graph::model::{self, Dim, Graph, Node, Op, Value, ValueId};
use crate::graph::wanted::{self, Flow};
use crate::graph::{masks, stacks};
use crate::tensor::{Checkpoint, Dtype, Tensor, quoted};

/// What is read of the text of a graph.
pub(super) struct Built {
    pub(super) graph: Graph,
    /// For each node of the graph, its number among the nodes of the file.
    pub(super) positions: Vec<usize>,
    /// Nodes of the file whose results nobody reads.
    pub(super) dead: HashSet<usize>,
    /// Nodes of the file that are part of a later one.
    pub(super) part_of: HashMap<usize, usize>,
    /// The element types of the values.
    pub(super) dtypes: HashMap<String, Dtype>,
    /// Constants that are computed here, and of what.
    pub(super) computed: HashMap<String, Vec<Tensor>>,
}

/// Puts the graph together.
pub(super) fn built(
    path: &Path,
    text: &str,
    checkpoint: &Checkpoint,
    (unread, storages): (&HashMap<String, String>, &HashMap<String, u64>),
) -> Result<Built, Error> {
    let wrong = |reason: String| invalid(path, &reason);
    let program: schema::Program<'_> =
        serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let module = program.graph_module;
    let nodes: Vec<NodeText<'_>> = read(module.graph.nodes).map_err(|e| wrong(e.to_string()))?;
    let metas: Members<'_, TensorMeta<'_>> =
        read(module.graph.tensor_values).map_err(|e| wrong(e.to_string()))?;
    let mut context = Context {
        metas: metas
            .0
            .into_iter()
            .map(|(name, meta)| (name.into_owned(), meta))
            .collect(),
        ..Context::default()
    };
    let inputs: Vec<Tagged<'_>> = read(module.graph.inputs).map_err(|e| wrong(e.to_string()))?;
    let specs: Vec<Tagged<'_>> =
        read(module.signature.input_specs).map_err(|e| wrong(e.to_string()))?;
    if inputs.len() != specs.len() {
        return Err(wrong(format!(
            "it has {} inputs, and its signature describes {}",
            inputs.len(),
            specs.len()
        )));
    }
    // The names of all inputs of the graph: weights first, then what the user gives.
    let placeholders: Vec<String> = inputs.iter().flat_map(names).collect();
    let outputs: Vec<String> = module.graph.outputs.iter().flat_map(names).collect();
    let mut steps: Vec<Step> = nodes.iter().map(|node| step(node)).collect();
    let known: HashSet<&str> = placeholders.iter().map(String::as_str).collect();
    check_steps(&nodes, &steps, known).map_err(wrong)?;
    let in_place = fills::joined(&nodes, &mut steps, &outputs);
    let part_of: HashMap<usize, usize> = (in_place.iter())
        .flat_map(|(last, one)| one.nodes().map(|node| (node, *last)))
        .filter(|(node, last)| node != last)
        .collect();
    let all: HashSet<String> = placeholders.iter().cloned().collect();
    let changed = alias::changed(&steps, &all, &outputs);
    let written_back = written_back(module.signature.output_specs).map_err(wrong)?;
    let Stored {
        stored,
        changing,
        lies,
    } = stored(specs, checkpoint, (unread, &written_back), &mut context).map_err(wrong)?;
    if let Some(name) = stored.difference(&all).min() {
        return Err(wrong(format!(
            "its signature describes {}, which is no input of it",
            quoted(name)
        )));
    }
    let storage = |name: &String| storages.get(lies.get(name)?);
    let all_changing = changed.stored.intersection(&stored).chain(&changing);
    let in_these: HashSet<&u64> = all_changing.clone().filter_map(storage).collect();
    // What shares its memory with something that is changed is changed, too.
    let shares = |name: &&String| storage(name).is_some_and(|at| in_these.contains(at));
    for name in all_changing.chain(stored.iter().filter(shares)) {
        context.constants.remove(name);
        let why = format!("{} is changed when the network runs", quoted(name));
        context.unread.insert(name.clone(), why);
    }
    check_evaluates(path, &nodes, &context)?;
    let wanted = wanted::wanted(&flows(&nodes, &steps), stored.iter().map(String::as_str));
    let mut builder = Builder {
        context,
        wanted: wanted.into_iter().map(str::to_owned).collect(),
        ..Builder::default()
    };
    for name in placeholders
        .into_iter()
        .filter(|name| !stored.contains(name))
    {
        builder.value(name);
    }
    builder.read = steps
        .iter()
        .flat_map(|step| step.reads.clone())
        .chain(outputs.clone())
        .collect();
    let all = nodes.iter().zip(&steps).enumerate();
    let is_whole = |i: &usize| changed.live[*i] && !part_of.contains_key(i);
    for (position, (node, step)) in all.filter(|(i, _)| is_whole(i)) {
        let is_stale = step
            .reads
            .iter()
            .chain(&step.writes)
            .any(|name| changed.stale.contains(name));
        match in_place.get(&position) {
            Some(one) => {
                let texts = (one, &nodes[..]);
                builder.filled(checkpoint, position, texts, step, is_stale);
            }
            None => builder.node(checkpoint, position, node, step, is_stale),
        }
    }
    std::mem::take(&mut builder.fills).settle(&mut builder.nodes, checkpoint);
    stacks::as_sums(&mut builder.nodes, &builder.values);
    masks::leave(&mut builder.nodes, checkpoint);
    for value in &mut builder.values {
        value.changes_later = changed.later.contains(&value.name);
        value.layout = builder.context.strides(&value.name);
    }
    for name in &outputs {
        if let Some(id) = builder.ids.get(name) {
            builder.values[id.0].is_output = true;
        } else if !stored.contains(name) && !builder.context.constants.contains_key(name) {
            return Err(wrong(format!(
                "it gives {}, which nothing computes",
                quoted(name)
            )));
        }
    }
    let whole = |i: usize| part_of.get(&i).copied().unwrap_or(i);
    let dead = (0..nodes.len()).filter(|i| !changed.live[whole(*i)]);
    builder
        .finish(dead.collect(), part_of)
        .map_err(|source| Error::Graph {
            path: path.to_owned(),
            source,
        })
}

pub(super) fn invalid(path: &Path, reason: &str) -> Error {
    Error::Format {
        path: path.to_owned(),
        reason: crate::tensor::plain(&format!("its graph is not valid: {reason}")),
    }
}

/// Whether every node, also one whose results nobody reads, reads what is there and computes something new. `known` are the inputs.
fn check_steps<'s>(
    nodes: &[NodeText<'_>],
    steps: &'s [Step],
    known: HashSet<&'s str>,
) -> Result<(), String> {
    let mut there = known.clone();
    for (node, step) in nodes.iter().zip(steps) {
        if let Some(name) = step.reads.iter().find(|name| !there.contains(&***name)) {
            return Err(format!(
                "node {} reads {}, which is not there",
                quoted(node.shown()),
                quoted(name)
            ));
        }
        if let Some(name) = step.writes.iter().find(|name| known.contains(&***name)) {
            return Err(format!(
                "node {} computes {}, which is an input or a weight",
                quoted(node.shown()),
                quoted(name)
            ));
        }
        there.extend(step.writes.iter().map(String::as_str));
    }
    Ok(())
}

/// What flows through the nodes. A node that changes what it reads writes that, too.
fn flows<'s>(nodes: &[NodeText<'_>], steps: &'s [Step]) -> Vec<Flow<&'s str>> {
    let flow = |(node, step): (&NodeText<'_>, &'s Step)| {
        let in_place = node.aten().is_some_and(|name| name.ends_with('_'));
        let changed = step.reads.first().filter(|_| in_place);
        Flow {
            reads: step.reads.iter().map(String::as_str).collect(),
            writes: step
                .writes
                .iter()
                .chain(changed)
                .map(String::as_str)
                .collect(),
            is_layer: node.aten().is_some_and(ops::is_layer),
        }
    };
    nodes.iter().zip(steps).map(flow).collect()
}

fn step(node: &NodeText<'_>) -> Step {
    Step {
        reads: node
            .inputs
            .iter()
            .flat_map(|input| names(&input.arg))
            .collect(),
        writes: node.outputs.iter().flat_map(names).collect(),
        effect: effect(node),
    }
}

/// The tensors of the file to which the program writes when it has run. A program without in-place operators, as
/// `run_decompositions()` gives, changes its buffers and parameters so.
fn written_back(specs: Raw<'_>) -> Result<HashSet<String>, String> {
    let specs: Vec<Tagged<'_>> = read(specs).map_err(|e| e.to_string())?;
    let mut names = HashSet::new();
    for spec in specs {
        match &*spec.tag {
            "buffer_mutation" | "parameter_mutation" => {
                let spec: WrittenBackSpec<'_> = read(spec.value).map_err(|e| e.to_string())?;
                names.insert(spec.name.0.into_owned());
            }
            "user_output" | "loss_output" | "user_input_mutation" | "token" => {}
            other => {
                return Err(format!(
                    "its signature has an output of the kind {}, which is not known",
                    quoted(other)
                ));
            }
        }
    }
    Ok(names)
}

/// The placeholders that stand for tensors of the file.
#[derive(Default)]
struct Stored {
    stored: HashSet<String>,
    /// Those of tensors to which the program writes.
    changing: HashSet<String>,
    /// The name that each tensor has among the weights.
    lies: HashMap<String, String>,
}

/// Finds them, and what is known of each.
fn stored(
    specs: Vec<Tagged<'_>>,
    checkpoint: &Checkpoint,
    (unread, written_back): (&HashMap<String, String>, &HashSet<String>),
    context: &mut Context<'_>,
) -> Result<Stored, String> {
    let mut found = Stored::default();
    for spec in specs {
        match &*spec.tag {
            "parameter" | "buffer" | "tensor_constant" => {}
            "user_input" | "constant_input" | "custom_obj" | "token" => continue,
            other => {
                return Err(format!(
                    "its signature has an input of the kind {}, which is not known",
                    quoted(other)
                ));
            }
        }
        let spec: StoredSpec<'_> = read(spec.value).map_err(|e| e.to_string())?;
        let (value, name) = (spec.arg.name.0.into_owned(), &*spec.name.0);
        match (checkpoint.get(name), unread.get(name)) {
            (Some(tensor), _) => {
                check(&value, tensor, context)?;
                context.constants.insert(value.clone(), tensor.clone());
            }
            (None, Some(why)) => {
                context.unread.insert(value.clone(), why.clone());
            }
            (None, None) => {
                return Err(format!(
                    "{} stands for {}, which is not among the weights",
                    quoted(&value),
                    quoted(name)
                ));
            }
        }
        if written_back.contains(name) {
            found.changing.insert(value.clone());
        }
        found.lies.insert(value.clone(), name.to_owned());
        if let Some(twice) = found.stored.replace(value) {
            return Err(format!(
                "two inputs of its signature are {}",
                quoted(&twice)
            ));
        }
    }
    Ok(found)
}

/// Whether the graph says the same of a tensor as the weights do.
fn check(value: &str, tensor: &Tensor, context: &Context<'_>) -> Result<(), String> {
    let (Some(shape), Some(dtype)) = (context.shape(value), context.dtype(value)) else {
        return Err(format!("it says nothing of the shape of {}", quoted(value)));
    };
    let same = shape.iter().eq(tensor
        .shape()
        .iter()
        .map(|n| Dim::Known(*n))
        .collect::<Vec<_>>()
        .iter());
    match same && dtype == *tensor.dtype() {
        true => Ok(()),
        false => Err(format!(
            "it says that {tensor} is {dtype} [{}]; the weights say {} {:?}",
            shape.iter().map(shown).collect::<Vec<_>>().join(", "),
            tensor.dtype(),
            tensor.shape()
        )),
    }
}

fn shown(dim: &Dim) -> String {
    match dim {
        Dim::Known(n) => n.to_string(),
        Dim::Named(name) => name.to_string(),
        Dim::Any => "?".to_owned(),
    }
}

/// Whether the program was exported in evaluation mode.
fn check_evaluates(
    path: &Path,
    nodes: &[NodeText<'_>],
    context: &Context<'_>,
) -> Result<(), Error> {
    let Some(node) = nodes.iter().find(|node| in_training(node, context)) else {
        return Ok(());
    };
    let node = node
        .module()
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| node.shown().to_owned());
    Err(Error::Training {
        path: path.to_owned(),
        node: quoted(&node),
    })
}

/// Whether a node is a batch norm that has running statistics and does not use them.
fn in_training(node: &NodeText<'_>, context: &Context<'_>) -> bool {
    let trains = match node.aten() {
        Some("batch_norm" | "native_batch_norm" | "cudnn_batch_norm" | "miopen_batch_norm") => {
            let training = node.inputs.iter().find(|input| input.name.0 == "training");
            training.is_some_and(|input| read::<bool>(input.arg.value).unwrap_or(false))
        }
        Some(
            "_native_batch_norm_legit"
            | "_native_batch_norm_legit_functional"
            | "_batch_norm_with_update"
            | "_batch_norm_with_update_functional",
        ) => true,
        _ => false,
    };
    trains && {
        let call = Call { node, context };
        // Statistics that are changed are no constants.
        !matches!(call.input("running_mean"), Ok(Input::Absent))
    }
}

/// The graph while it grows.
#[derive(Default)]
struct Builder<'a> {
    context: Context<'a>,
    values: Vec<Value>,
    nodes: Vec<Node>,
    positions: Vec<usize>,
    ids: HashMap<String, ValueId>,
    /// Every name that is read.
    read: HashSet<String>,
    /// Constants that flow into the weights of layers.
    wanted: HashSet<String>,
    /// Constants that are computed when the program is read, and the tensors of the file that they are computed of.
    computed: HashMap<String, Vec<Tensor>>,
    budget: Budget,
    fills: Fills,
}

impl Builder<'_> {
    fn finish(
        self,
        dead: HashSet<usize>,
        part_of: HashMap<usize, usize>,
    ) -> Result<Built, model::Error> {
        let graph = Graph::new(self.values, self.nodes)?;
        let dtypes = graph
            .values()
            .iter()
            .filter_map(|value| Some((value.name.clone(), self.context.dtype(&value.name)?)));
        Ok(Built {
            dtypes: dtypes.collect(),
            graph,
            positions: self.positions,
            dead,
            part_of,
            computed: self.computed,
        })
    }

    fn value(&mut self, name: String) -> ValueId {
        let id = ValueId(self.values.len());
        self.values
            .push(Value::new(name.clone(), self.context.shape(&name)));
        self.ids.insert(name, id);
        id
    }

    /// The statistics that a norm gives beside its result are empty in evaluation mode.
    fn without_statistics<'w>(&self, op: Op, writes: &'w [String]) -> (Op, &'w [String]) {
        match (op, writes) {
            (Op::Norm(norm), [first, others @ ..])
                if !others.iter().any(|name| self.read.contains(name)) =>
            {
                (Op::Norm(norm), std::slice::from_ref(first))
            }
            (Op::Norm(_), [_, _, ..]) => (
                Op::Opaque(Some("its statistics are read".to_owned())),
                writes,
            ),
            (op, writes) => (op, writes),
        }
    }

    /// The tensors of the file that some constants are computed of.
    fn stored(&self, of: &[Tensor]) -> Vec<Tensor> {
        let parts = of.iter().flat_map(|tensor| {
            let made = self.computed.get(tensor.name());
            made.map_or_else(|| vec![tensor.clone()], Vec::clone)
        });
        parts.collect()
    }

    fn node(
        &mut self,
        checkpoint: &Checkpoint,
        position: usize,
        node: &NodeText<'_>,
        step: &Step,
        is_stale: bool,
    ) {
        self.spread(node, step, is_stale);
        if !is_stale && self.constants(checkpoint, node, step) {
            return;
        }
        let call = Call {
            node,
            context: &self.context,
        };
        let (op, reads) = match ops::operator(&call) {
            _ if is_stale => (self.stale(step), None),
            Ok((op, reads)) => (op, Some(reads)),
            Err(why) => (Op::Opaque(why), None),
        };
        let reads = reads.unwrap_or_else(|| step.reads.clone());
        let inputs = reads
            .iter()
            .filter_map(|name| self.ids.get(name).copied())
            .collect();
        let (op, writes) = self.without_statistics(op, &step.writes);
        let outputs = writes.iter().map(|name| self.value(name.clone())).collect();
        let at = self.push(position, node, op, inputs, outputs);
        if !is_stale && let Err(why) = self.follow(checkpoint, node, at) {
            self.nodes[at].op = Op::Opaque(why);
        }
    }

    /// Remembers a constant that a node gives in a larger shape.
    fn spread(&mut self, node: &NodeText<'_>, step: &Step, is_stale: bool) {
        let call = Call {
            node,
            context: &self.context,
        };
        if let (Some(tensor), [name]) = (fills::spread(&call), &step.writes[..])
            && !is_stale
        {
            self.context.spread.insert(name.clone(), tensor);
        }
    }

    /// Takes note of what a node makes of constants alone, if that is all that anybody reads of it.
    fn constants(&mut self, checkpoint: &Checkpoint, node: &NodeText<'_>, step: &Step) -> bool {
        let call = Call {
            node,
            context: &self.context,
        };
        if let (Some(tensor), [name]) = (views::of_constant(&call), &step.writes[..]) {
            self.context.constants.insert(name.clone(), tensor);
            return true;
        }
        let is_large = |name: &String| {
            let shape = self.context.shape(name);
            shape.is_some_and(|shape| wanted::is_large(&shape))
        };
        let all = &mut step.writes.iter();
        if !all.clone().any(|name| self.wanted.contains(name)) && all.any(is_large) {
            return false;
        }
        let Some(found) = computed::computed(&call, checkpoint, &mut self.budget) else {
            return false;
        };
        let known = |name: &String| found.values.iter().any(|(known, _)| known == name);
        if !(step.writes.iter()).all(|name| known(name) || !self.read.contains(name)) {
            return false;
        }
        let of = self.stored(&found.of);
        for (name, tensor) in found.values {
            if !tensor.is_turned() {
                self.computed.insert(name.clone(), of.clone());
            }
            self.context.constants.insert(name, tensor);
        }
        true
    }

    /// Adds a node, and gives its number.
    fn push(
        &mut self,
        position: usize,
        text: &NodeText<'_>,
        op: Op,
        inputs: Vec<ValueId>,
        outputs: Vec<ValueId>,
    ) -> usize {
        self.nodes.push(Node {
            name: text.shown().to_owned(),
            module: text.module(),
            op,
            inputs,
            outputs,
        });
        self.positions.push(position);
        self.nodes.len() - 1
    }

    /// Follows what is made of a padding.
    fn follow(
        &mut self,
        checkpoint: &Checkpoint,
        text: &NodeText<'_>,
        at: usize,
    ) -> Result<(), Opaque> {
        let node = &self.nodes[at];
        let (Some(&from), &[to]) = (node.inputs.first(), &node.outputs[..]) else {
            return Ok(());
        };
        if !matches!(node.op, Op::Opaque(_)) || text.aten() != Some("slice_scatter") {
            self.fills.follow(&node.op, [from, to], at);
            return Ok(());
        }
        let call = Call {
            node: text,
            context: &self.context,
        };
        let rows = fills::rows(&call, &self.values[from.0].name)?;
        let with = call.input("src")?;
        let with = self.around(checkpoint, with, from);
        Ok(self.fills.fill(from, rows, with, to, at)?)
    }

    /// The numbers that a padded value is filled with.
    fn around(&mut self, checkpoint: &Checkpoint, with: Input, of: ValueId) -> Option<Around> {
        let tensor = match with {
            Input::Constant(tensor) => tensor,
            Input::Value(name) => self.context.spread.get(&name)?.clone(),
            Input::Absent => return None,
        };
        // Another type would round it.
        let dtype = self.context.dtype(&self.values[of.0].name)?;
        let axes = self.fills.axes(of).filter(|_| dtype == *tensor.dtype())?;
        Around::read(checkpoint, &tensor, axes, &mut self.budget)
    }

    /// A padding with what is copied into it in place.
    fn filled(
        &mut self,
        checkpoint: &Checkpoint,
        position: usize,
        (one, nodes): (&fills::InPlace, &[NodeText<'_>]),
        step: &Step,
        is_stale: bool,
    ) {
        let pad = &nodes[one.pad];
        let call = Call {
            node: pad,
            context: &self.context,
        };
        let (op, pads) = match ops::operator(&call) {
            _ if is_stale => (self.stale(step), None),
            Ok((Op::Pad(pads), _)) => (Op::Opaque(None), Some(pads)),
            Ok(_) => (Op::Opaque(None), None),
            Err(why) => (Op::Opaque(why), None),
        };
        let inputs: Vec<ValueId> = (step.reads.iter())
            .filter_map(|name| self.ids.get(name).copied())
            .collect();
        let outputs = step.writes.iter().map(|name| self.value(name.clone()));
        let outputs: Vec<ValueId> = outputs.collect();
        let padded = (inputs.first().copied(), pads, outputs.first().copied());
        self.push(position, pad, op, inputs, outputs);
        let (Some(of), Some(pads), Some(to)) = padded else {
            return;
        };
        self.fills.padded(of, &pads, to);
        for fill in &one.fills {
            if let Err(why) = self.fill(checkpoint, fill, nodes, to) {
                if let Some(node) = self.nodes.last_mut() {
                    node.op = Op::Opaque(why);
                }
                return;
            }
        }
    }

    /// What is copied into a view of a padding.
    fn fill(
        &mut self,
        checkpoint: &Checkpoint,
        fill: &fills::Fill,
        nodes: &[NodeText<'_>],
        of: ValueId,
    ) -> Result<(), Opaque> {
        let call = |node: usize| Call {
            node: &nodes[node],
            context: &self.context,
        };
        let name = &self.values[of.0].name;
        let mut rows = None;
        for view in fill.views.iter().map(|view| call(*view)) {
            if fills::is_whole(&view)? {
                continue;
            }
            // Part of a part is no side.
            rows = match rows {
                None => Some(fills::rows(&view, name)?),
                Some((axis, _)) => Some((axis, None)),
            };
        }
        let rows = rows.unwrap_or((0, None));
        let with = call(fill.copy).input("src")?;
        let with = self.around(checkpoint, with, of);
        let at = self.nodes.len() - 1;
        Ok(self.fills.fill(of, rows, with, of, at)?)
    }

    /// A node whose numbers are changed in place where they must not be.
    fn stale(&self, step: &Step) -> Op {
        let weight = (step.reads.iter()).find_map(|name| self.context.unread.get(name));
        let again = "what it reads or computes is changed in place and read again";
        Op::Opaque(Some(weight.map_or(again, String::as_str).to_owned()))
    }
}
