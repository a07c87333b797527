//! Norms and factors that all of their readers can take over, each for itself.
//!
//! A norm before attention is read by several linear layers, and between them lie operators that only move numbers, or average
//! them. What maps each channel by itself can as well be done behind these. So the graph is looked at once more with a copy of the
//! norm before each layer that asks for what it has made; where every copy becomes part of a region, the norm is not needed, and
//! what has read its output reads its input.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::model::{Arithmetic, Dim, Graph, Node, NodeId, Norm, Op, Value, ValueId};
use super::region::{self, Dialect, Region, Regions};

/// Nodes are given up no more often than this, some at a time.
const MOST_ROUNDS: usize = 64;

/// Finds what to fold, as [`region::regions`] does, norms that several layers take over included.
pub(super) fn regions(
    graph: &Graph,
    dialect: Dialect,
    even_if_dearer: bool,
    takes: &mut dyn FnMut(&Region) -> bool,
) -> Regions {
    let found = region::regions(graph, &[], dialect, even_if_dearer, takes);
    let mut sinking = candidates(graph, &found);
    for _ in 0..MOST_ROUNDS {
        if sinking.is_empty() {
            break;
        }
        let sunk = match Sunk::new(graph, &sinking) {
            Ok(sunk) => sunk,
            Err(stuck) => {
                sinking.retain(|id| !stuck.contains(id));
                continue;
            }
        };
        let Some(graph) = &sunk.graph else {
            return found;
        };
        let mut takes = |region: &Region| takes(&sunk.back(region));
        let tried = region::regions(graph, &sunk.copies, dialect, even_if_dearer, &mut takes);
        let stuck = sunk.stuck(graph, &tried);
        if stuck.is_empty() {
            return sunk.all_back(tried);
        }
        sinking.retain(|id| !stuck.contains(id));
    }
    found
}

/// Nodes that stay, map every channel by itself, and may be read elsewhere than now.
fn candidates(graph: &Graph, found: &Regions) -> BTreeSet<NodeId> {
    let all = graph.nodes().iter().enumerate();
    let sinks = |(i, node): &(usize, &Node)| {
        let (&[input], &[output]) = (&node.inputs[..], &node.outputs[..]) else {
            return false;
        };
        let [from, to] = [input, output].map(|id| graph.value(id));
        let layouts = from.shape == to.shape && from.layout == to.layout;
        found.stays[*i]
            && layouts
            && !from.changes_later
            && !to.is_output
            && mapped(node, from).is_some()
    };
    all.filter(sinks).map(|(i, _)| NodeId(i)).collect()
}

/// The axis whose every index an operator maps by itself: none if it maps all numbers alike. No answer for other operators.
fn mapped(node: &Node, input: &Value) -> Option<Option<usize>> {
    let rank = input.shape.as_ref()?.len();
    match &node.op {
        Op::Norm(_) if rank >= 2 => Some(Some(1)),
        Op::Neg => Some(None),
        Op::WithConstant(_, constant) => {
            let missing = rank.checked_sub(constant.shape().len())?;
            let wide = constant
                .shape()
                .iter()
                .enumerate()
                .filter(|(_, n)| **n != 1);
            match wide.collect::<Vec<_>>()[..] {
                [] => Some(None),
                [(axis, n)] => {
                    let axis = axis + missing;
                    let fits = input.shape.as_ref()?[axis] == Dim::Known(*n);
                    fits.then_some(Some(axis))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether an operator adds something, so that it does not map zero to zero.
fn adds(op: &Op) -> bool {
    use Arithmetic as A;
    matches!(
        op,
        Op::Norm(_) | Op::WithConstant(A::Add | A::Sub | A::SubFrom, _)
    )
}

/// What has still to be done to a value, because it was left out before it.
#[derive(Clone, Debug)]
struct Owed {
    /// The nodes that were left out, the first one first.
    nodes: Vec<NodeId>,
    /// Where the axis is now that they map each index of.
    axis: Option<usize>,
}

/// A graph in which some nodes are copied to where they are asked for.
struct Sunk<'a> {
    before: &'a Graph,
    /// None where it would have two values of one name.
    graph: Option<Graph>,
    /// For each of its nodes, how often it is there.
    copies: Vec<usize>,
    /// For each of its nodes, the one of the graph before.
    nodes: Vec<NodeId>,
    /// For each copy, the first of those one behind another that it stands among.
    heads: HashMap<NodeId, NodeId>,
    /// For each of its values the one of the graph before.
    values: Vec<ValueId>,
    /// For each value that is not computed any more, what is read instead.
    bypassed: BTreeMap<ValueId, ValueId>,
    /// The nodes that are copied.
    sinking: &'a BTreeSet<NodeId>,
}

impl<'a> Sunk<'a> {
    /// # Errors
    /// Gives the nodes that something asks for which cannot take them over.
    fn new(before: &'a Graph, sinking: &'a BTreeSet<NodeId>) -> Result<Sunk<'a>, BTreeSet<NodeId>> {
        let mut building = Building {
            before,
            owed: HashMap::new(),
            bypassed: BTreeMap::new(),
            new: HashMap::new(),
            values: Vec::new(),
            of_values: Vec::new(),
            nodes: Vec::new(),
            of_nodes: Vec::new(),
            heads: HashMap::new(),
        };
        let mut stuck = BTreeSet::new();
        for (i, value) in before.values().iter().enumerate() {
            if value.producer().is_none() {
                building.value(ValueId(i), value.name.clone(), value.shape.clone());
            }
        }
        for (i, node) in before.nodes().iter().enumerate() {
            let sinks = sinking.contains(&NodeId(i));
            building.node(NodeId(i), node, sinks, &mut stuck);
        }
        if !stuck.is_empty() {
            return Err(stuck);
        }
        let mut often: HashMap<NodeId, usize> = HashMap::new();
        for id in &building.of_nodes {
            *often.entry(*id).or_default() += 1;
        }
        let copies = building.of_nodes.iter().map(|id| often[id]).collect();
        Ok(Sunk {
            before,
            graph: Graph::new(building.values, building.nodes).ok(),
            copies,
            nodes: building.of_nodes,
            heads: building.heads,
            values: building.of_values,
            bypassed: building.bypassed,
            sinking,
        })
    }

    /// The nodes of which a copy is left, or is where a region ends: of several, one behind another, the first one. Without it the
    /// others may be taken over.
    fn stuck(&self, graph: &Graph, found: &Regions) -> BTreeSet<NodeId> {
        let ends = found.folded.iter();
        let ends: BTreeSet<NodeId> = ends
            .filter_map(|region| graph.value(region.value).producer())
            .collect();
        let is_left = |(i, id): &(usize, &NodeId)| {
            self.sinking.contains(id) && (found.stays[*i] || ends.contains(&NodeId(*i)))
        };
        let left = self.nodes.iter().enumerate().filter(is_left);
        let head = |(i, id): (usize, &NodeId)| self.heads.get(&NodeId(i)).copied().unwrap_or(*id);
        left.map(head).collect()
    }

    /// A region as one of the graph before.
    fn back(&self, region: &Region) -> Region {
        let nodes: BTreeSet<NodeId> = region.nodes.iter().map(|id| self.nodes[id.0]).collect();
        Region {
            source: self.values[region.source.0],
            value: self.values[region.value.0],
            nodes: nodes.into_iter().collect(),
            expr: region.expr.clone(),
            walk: region.walk.clone(),
            behind: region.behind.clone(),
        }
    }

    fn all_back(self, found: Regions) -> Regions {
        let mut stays = vec![false; self.before.nodes().len()];
        for (id, is_there) in self.nodes.iter().zip(&found.stays) {
            stays[id.0] |= is_there;
        }
        let left = found.left.iter();
        let left: BTreeMap<NodeId, String> = left
            .map(|(id, why)| (self.nodes[id.0], why.clone()))
            .collect();
        Regions {
            folded: found
                .folded
                .iter()
                .map(|region| self.back(region))
                .collect(),
            stays,
            left: left.into_iter().collect(),
            bypassed: self.bypassed,
        }
    }
}

/// The new graph while it grows.
struct Building<'a> {
    before: &'a Graph,
    /// What has still to be done to values of the graph before.
    owed: HashMap<ValueId, Owed>,
    bypassed: BTreeMap<ValueId, ValueId>,
    /// The new values of those of the graph before.
    new: HashMap<ValueId, ValueId>,
    values: Vec<Value>,
    of_values: Vec<ValueId>,
    nodes: Vec<Node>,
    of_nodes: Vec<NodeId>,
    heads: HashMap<NodeId, NodeId>,
}

impl Building<'_> {
    fn value(&mut self, of: ValueId, name: String, shape: Option<Vec<Dim>>) -> ValueId {
        let id = ValueId(self.values.len());
        let mut value = Value::new(name, shape);
        value.is_output = self.before.value(of).is_output;
        self.values.push(value);
        self.of_values.push(of);
        self.new.insert(of, id);
        id
    }

    fn node(&mut self, id: NodeId, node: &Node, sinks: bool, stuck: &mut BTreeSet<NodeId>) {
        let before = self.before;
        if sinks && let (&[input], &[output]) = (&node.inputs[..], &node.outputs[..]) {
            let axis = mapped(node, before.value(input)).flatten();
            let owed = self.owed.get(&input).cloned();
            let owed = owed.unwrap_or(Owed {
                nodes: Vec::new(),
                axis,
            });
            if owed.axis.is_none() || axis.is_none() || owed.axis == axis {
                let nodes = owed.nodes.into_iter().chain([id]).collect();
                let axis = owed.axis.or(axis);
                self.owed.insert(output, Owed { nodes, axis });
                let source = self.bypassed.get(&input).copied().unwrap_or(input);
                self.bypassed.insert(output, source);
                self.new.insert(output, self.new[&source]);
                return;
            }
            stuck.insert(id);
        }
        let moved = match node.inputs.first().and_then(|input| self.owed.get(input)) {
            Some(owed) => self.moved(node, owed),
            None => None,
        };
        // Whether it does, the search finds out.
        let takes_over = !matches!(node.op, Op::Opaque(_));
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (i, input) in node.inputs.iter().enumerate() {
            let says_shape = node.op == Op::Shape || i > 0 && node.op == Op::Reshape;
            let owed = self
                .owed
                .get(input)
                .filter(|_| !says_shape && moved.is_none());
            inputs.push(match owed.cloned() {
                None => self.new[input],
                Some(owed) if takes_over => self.paid(*input, &owed),
                Some(owed) => {
                    stuck.extend(owed.nodes);
                    self.new[input]
                }
            });
        }
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for output in &node.outputs {
            let value = before.value(*output);
            if let Some(moved) = &moved {
                match value.is_output || value.changes_later {
                    true => stuck.extend(&moved.nodes),
                    false => drop(self.owed.insert(*output, moved.clone())),
                }
            }
            outputs.push(self.value(*output, value.name.clone(), value.shape.clone()));
        }
        let mut op = node.op.clone();
        if let Op::Border { sources, .. } = &mut op {
            // What is owed to a value has not been done to the new one.
            let same = sources.iter().filter(|of| !self.owed.contains_key(of));
            *sources = same.map(|of| self.new[of]).collect();
        }
        self.nodes.push(Node {
            op,
            inputs,
            outputs,
            ..node.clone()
        });
        self.of_nodes.push(id);
    }

    /// What is owed to the outputs of a node that may as well run before what is owed to its first input.
    fn moved(&self, node: &Node, owed: &Owed) -> Option<Owed> {
        let shape = |id: Option<&ValueId>| self.before.value(*id?).shape.as_deref();
        let is_moved = |id: &NodeId| adds(&self.before.node(*id).op);
        let keeps = |axis: Option<usize>| Some(axis);
        let axis = match &node.op {
            Op::Identity => keeps(owed.axis),
            Op::Transpose(order) => match owed.axis {
                None => keeps(None),
                Some(axis) => keeps(Some(order.iter().position(|from| *from == axis)?)),
            },
            Op::Reshape => match owed.axis {
                None => keeps(None),
                Some(axis) => {
                    let (from, to) = (shape(node.inputs.first())?, shape(node.outputs.first())?);
                    keeps(Some(reshaped(from, to, axis)?))
                }
            },
            Op::Slice { axis, .. } if Some(*axis) != owed.axis => keeps(owed.axis),
            // Windows slide over the axes from the third one on; beyond the border they see zeros.
            Op::AvgPool(window) if owed.axis.is_none_or(|axis| axis == 1) => {
                let pads = window.pads.before.iter().chain(&window.pads.after);
                let sees_zeros = pads.into_iter().any(|n| *n > 0);
                (!sees_zeros || !owed.nodes.iter().any(is_moved)).then_some(owed.axis)
            }
            Op::Pad(_) if owed.axis.is_none_or(|axis| axis == 1) => {
                (!owed.nodes.iter().any(is_moved)).then_some(owed.axis)
            }
            _ => None,
        }?;
        Some(Owed {
            nodes: owed.nodes.clone(),
            axis,
        })
    }

    /// A copy of a value to which everything is done that is owed to it.
    fn paid(&mut self, value: ValueId, owed: &Owed) -> ValueId {
        let before = self.before;
        let (name, shape) = (&before.value(value).name, &before.value(value).shape);
        let rank = shape.as_ref().map_or(0, Vec::len);
        let mut at = self.new[&value];
        for id in &owed.nodes {
            let node = before.node(*id);
            let along = |numbers: usize| match owed.axis {
                Some(axis) if numbers > 1 => {
                    let ones = std::iter::repeat_n(1, rank.saturating_sub(axis + 1));
                    std::iter::once(numbers).chain(ones).collect()
                }
                _ => Vec::new(),
            };
            let op = match (&node.op, owed.axis) {
                (Op::WithConstant(how, constant), _) => {
                    Op::WithConstant(*how, constant.reshaped(along(constant.len())))
                }
                (Op::Norm(norm), Some(axis)) => Op::Norm(Norm {
                    axis,
                    ..norm.clone()
                }),
                (op, _) => op.clone(),
            };
            let output = ValueId(self.values.len());
            // No file has it: a region that ends there, or begins, is none.
            let copy = format!("{name}\n{}", output.0);
            self.values.push(Value::new(copy, shape.clone()));
            self.of_values.push(value);
            self.nodes.push(Node {
                op,
                inputs: vec![at],
                outputs: vec![output],
                ..node.clone()
            });
            if let Some(head) = owed.nodes.first() {
                self.heads.insert(NodeId(self.of_nodes.len()), *head);
            }
            self.of_nodes.push(*id);
            at = output;
        }
        at
    }
}

/// Where an axis is after a reshape that keeps it: what stands before it is as much as before.
fn reshaped(from: &[Dim], to: &[Dim], axis: usize) -> Option<usize> {
    let wanted = from.get(axis)?;
    let before = amount(&from[..axis])?;
    let mut at = (0..to.len())
        .filter(|i| to[*i].same(wanted) && amount(&to[..*i]).as_ref() == Some(&before));
    let found = at.next()?;
    // Axes of one element beside it are the same place.
    (*wanted != Dim::Known(1) && at.next().is_none()).then_some(found)
}

/// How many elements some axes have: a number, times what is known when the network runs.
fn amount(dims: &[Dim]) -> Option<(usize, Vec<&str>)> {
    let (mut number, mut names) = (1usize, Vec::new());
    for dim in dims {
        match dim {
            Dim::Known(n) => number = number.checked_mul(*n)?,
            Dim::Named(name) => names.push(&**name),
            Dim::Any => return None,
        }
    }
    names.sort_unstable();
    Some((number, names))
}
