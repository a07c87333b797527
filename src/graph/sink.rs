//! Norms and factors that all of their readers can take over, each for itself.
//!
//! A norm before attention is read by several linear layers, and between them lie operators that only move numbers, or average
//! them. What maps each channel by itself can as well be done behind these. So the graph is looked at once more with a copy of the
//! norm before each layer that asks for what it has made; where every copy becomes part of a region, the norm is not needed, and
//! what has read its output reads its input.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::diagonal::{adds, behind, mapped, placed};
use super::model::{Dim, Graph, Node, NodeId, Op, Value, ValueId};
use super::raise::{self, Raised, Share};
use super::region::{self, Dialect, Region, Regions};

/// Nodes are given up no more often than this, some at a time.
const MOST_ROUNDS: usize = 64;

/// Finds what to fold, as [`region::regions`] does, norms that several layers take over included, and norms that
/// what makes their input takes over.
pub(super) fn regions(
    graph: &Graph,
    dialect: Dialect,
    even_if_dearer: bool,
    takes: &mut dyn FnMut(&Region) -> bool,
) -> Regions {
    let mut search = |graph: &Graph, copies: &[usize], takes: &mut dyn FnMut(&Region) -> bool| {
        region::regions(graph, copies, dialect, even_if_dearer, takes)
    };
    let mut found = search(graph, &[], takes);
    let mut moving = Moving {
        sinking: candidates(graph, &found),
        ..Moving::default()
    };
    if let Some(sunk) = moving.settled(graph, &mut search, takes) {
        found = sunk;
    }
    moving.raising = raise::candidates(graph, candidates(graph, &found));
    if moving.raising.is_empty() {
        return found;
    }
    let staying = |found: &Regions| found.stays.iter().filter(|stays| **stays).count();
    if let Some(raised) = moving.settled(graph, &mut search, takes)
        && staying(&raised) < staying(&found)
    {
        found = raised;
    }
    found.say(moving.stuck);
    found
}

/// How regions are found in a graph: how often each node stands in it, and which regions the user wants.
type Search<'s> = dyn FnMut(&Graph, &[usize], &mut dyn FnMut(&Region) -> bool) -> Regions + 's;

/// Nodes that run elsewhere than in the network.
#[derive(Default)]
struct Moving {
    /// Those that run behind where they are, as often as that is asked for.
    sinking: BTreeSet<NodeId>,
    /// Those that run before what only moves the numbers that they read.
    raising: BTreeSet<NodeId>,
    /// Why some of the latter do not.
    stuck: BTreeMap<NodeId, String>,
}

impl Moving {
    /// What is folded once only those are left that are not needed where they are; nothing where none is left.
    fn settled(
        &mut self,
        graph: &Graph,
        search: &mut Search<'_>,
        takes: &mut dyn FnMut(&Region) -> bool,
    ) -> Option<Regions> {
        for _ in 0..MOST_ROUNDS {
            let mut raised = raise::raised(graph, &self.raising, &self.sinking);
            for (id, why) in std::mem::take(&mut raised.stuck) {
                self.leave(id, why);
            }
            if self.sinking.is_empty() && self.raising.is_empty() {
                return None;
            }
            let sunk = match Sunk::new(graph, &self.sinking, &raised) {
                Ok(sunk) => sunk,
                Err(stuck) => {
                    stuck.into_iter().for_each(|id| self.leave(id, None));
                    continue;
                }
            };
            let new = sunk.graph.as_ref()?;
            let mut takes = |region: &Region| takes(&sunk.back(region));
            let tried = search(new, &sunk.copies, &mut takes);
            let unraised = sunk.unraised(new, &tried);
            let stuck = match unraised.is_empty() {
                true => sunk.stuck(new, &tried),
                false => BTreeSet::new(),
            };
            if unraised.is_empty() && stuck.is_empty() {
                return Some(sunk.all_back(tried));
            }
            for (id, why) in unraised {
                self.leave(id, Some(why));
            }
            self.sinking.retain(|id| !stuck.contains(id));
        }
        None
    }

    /// Leaves a node where it is.
    fn leave(&mut self, id: NodeId, why: Option<String>) {
        self.sinking.remove(&id);
        if self.raising.remove(&id)
            && let Some(why) = why
        {
            self.stuck.insert(id, why);
        }
    }
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
            // What nobody reads would be gone.
            && !to.users().is_empty()
            && mapped(node, from).is_some()
    };
    all.filter(sinks).map(|(i, _)| NodeId(i)).collect()
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
    /// The nodes that are copied to behind where they are.
    sinking: &'a BTreeSet<NodeId>,
    /// What is done to values as soon as they are computed.
    raises: Vec<Raise>,
}

/// What is done to a value as soon as it is computed, instead of to what is made of it.
struct Raise {
    /// The value of the graph before.
    of: ValueId,
    /// The same in the new graph.
    first: ValueId,
    /// The nodes that do it, one behind another.
    nodes: Vec<NodeId>,
}

impl<'a> Sunk<'a> {
    /// # Errors
    /// Gives the nodes that something asks for which cannot take them over.
    fn new(
        before: &'a Graph,
        sinking: &'a BTreeSet<NodeId>,
        raised: &'a Raised,
    ) -> Result<Sunk<'a>, BTreeSet<NodeId>> {
        let mut building = Building {
            before,
            raised,
            raises: Vec::new(),
            parts: HashSet::new(),
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
        let all = building.of_nodes.iter().enumerate();
        let copies = all.map(|(i, id)| match building.parts.contains(&NodeId(i)) {
            // Each has numbers that no other has.
            true => 1,
            false => often[id],
        });
        let copies = copies.collect();
        Ok(Sunk {
            before,
            graph: Graph::new(building.values, building.nodes).ok(),
            copies,
            nodes: building.of_nodes,
            heads: building.heads,
            values: building.of_values,
            bypassed: building.bypassed,
            sinking,
            raises: building.raises,
        })
    }

    /// The raised nodes of which a part does not become part of what computes a value, and why.
    fn unraised(&self, graph: &Graph, found: &Regions) -> BTreeMap<NodeId, String> {
        let ends: BTreeSet<ValueId> = found.folded.iter().map(|region| region.value).collect();
        let is_there = |id: ValueId| {
            let producer = graph.value(id).producer();
            ends.contains(&id) || producer.is_some_and(|producer| found.stays[producer.0])
        };
        let mut unraised = BTreeMap::new();
        for raise in &self.raises {
            let outputs = raise.nodes.iter().map(|id| graph.node(*id).outputs[0]);
            let outputs: Vec<ValueId> = outputs.collect();
            let Some((last, others)) = outputs.split_last() else {
                continue;
            };
            // In the file, all of them have one name: only one can be there.
            let twice = is_there(raise.first) && is_there(*last);
            for (id, output) in raise.nodes.iter().zip(&outputs) {
                let ends_within = others.contains(output) && ends.contains(output);
                if found.stays[id.0] || ends_within || twice {
                    let why = raise::not_taken(self.before.value(raise.of));
                    unraised.insert(self.nodes[id.0], why);
                }
            }
        }
        unraised
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
    raised: &'a Raised,
    raises: Vec<Raise>,
    /// Nodes that have a part of the numbers of one of the graph before.
    parts: HashSet<NodeId>,
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
        if let Some(input) = self.raised.nodes.get(&id) {
            let source = self.bypassed.get(input).copied().unwrap_or(*input);
            for output in &node.outputs {
                self.bypassed.insert(*output, source);
                self.new.insert(*output, self.new[&source]);
            }
            return;
        }
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
            let shares = self.raised.shares.get(output).into_iter().flatten();
            // What comes first would have to be done first.
            if self.owed.contains_key(output) {
                stuck.extend(shares.map(|share| share.node));
            }
            outputs.push(self.value(*output, value.name.clone(), value.shape.clone()));
        }
        let mut op = node.op.clone();
        if let Op::Border { sources, .. } = &mut op {
            // What is owed to a value has not been done to the new one.
            let is_same =
                |of: &&ValueId| !self.owed.contains_key(of) && !self.raised.changed.contains(of);
            let same = sources.iter().filter(is_same);
            *sources = same.map(|of| self.new[of]).collect();
        }
        self.nodes.push(Node {
            op,
            inputs,
            outputs,
            ..node.clone()
        });
        self.of_nodes.push(id);
        for output in &node.outputs {
            if let Some(shares) = self.raised.shares.get(output) {
                self.shared(*output, shares);
            }
        }
    }

    /// What is done to a value as soon as it is computed.
    fn shared(&mut self, value: ValueId, shares: &[Share]) {
        let first = self.new[&value];
        let (mut at, mut nodes) = (first, Vec::with_capacity(shares.len()));
        for share in shares {
            let id = NodeId(self.nodes.len());
            at = self.copy(value, share.node, share.op.clone(), at);
            nodes.push(id);
            if share.is_part {
                self.parts.insert(id);
            }
        }
        self.new.insert(value, at);
        self.raises.push(Raise {
            of: value,
            first,
            nodes,
        });
    }

    /// A copy of a node that reads this, and what it makes of a value.
    fn copy(&mut self, value: ValueId, of: NodeId, op: Op, input: ValueId) -> ValueId {
        let (before, output) = (self.before, ValueId(self.values.len()));
        let Value { name, shape, .. } = before.value(value);
        // No file has it.
        let name = format!("{name}\n{}", output.0);
        self.values.push(Value::new(name, shape.clone()));
        self.of_values.push(value);
        self.nodes.push(Node {
            op,
            inputs: vec![input],
            outputs: vec![output],
            ..before.node(of).clone()
        });
        self.of_nodes.push(of);
        output
    }

    /// What is owed to the outputs of a node that may as well run before what is owed to its first input.
    fn moved(&self, node: &Node, owed: &Owed) -> Option<Owed> {
        let adds = owed.nodes.iter().any(|id| adds(&self.before.node(*id).op));
        Some(Owed {
            nodes: owed.nodes.clone(),
            axis: behind(self.before, node, owed.axis, adds)?,
        })
    }

    /// A copy of a value to which everything is done that is owed to it. A region that ends there, or begins, is none.
    fn paid(&mut self, value: ValueId, owed: &Owed) -> ValueId {
        let before = self.before;
        let rank = before.value(value).shape.as_ref().map_or(0, Vec::len);
        let mut at = self.new[&value];
        for id in &owed.nodes {
            if let Some(head) = owed.nodes.first() {
                self.heads.insert(NodeId(self.nodes.len()), *head);
            }
            let op = placed(&before.node(*id).op, owed.axis, rank);
            at = self.copy(value, *id, op, at);
        }
        at
    }
}
