//! Norms and factors that what makes their input can take over, behind what only moves numbers, or puts them together.
//!
//! What maps each channel by itself can as well be done before values are put together, to each of them. Where nothing else reads these,
//! and what computes each takes its part over, the norm is not needed, and what has read its output reads its input.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::diagonal::{adds, before, mapped, moves, numbers, part, placed};
use super::model::{Dim, Graph, NodeId, Op, Value, ValueId};
use crate::tensor::quoted;

/// What is done to a value of what has been done to what is made of it.
#[derive(Debug)]
pub(super) struct Share {
    /// The node that did it.
    pub node: NodeId,
    /// The same for this value.
    pub op: Op,
    /// Whether that has a part of the node's numbers, and no other share has these.
    pub is_part: bool,
}

/// Nodes that are raised.
#[derive(Debug, Default)]
pub(super) struct Raised {
    /// The nodes, and what each reads.
    pub nodes: BTreeMap<NodeId, ValueId>,
    /// What is done to values as soon as they are computed, in this order.
    pub shares: HashMap<ValueId, Vec<Share>>,
    /// The values that hold other numbers than before.
    pub changed: BTreeSet<ValueId>,
    /// Nodes that are not raised; and why, for those that stand behind a concat.
    pub stuck: BTreeMap<NodeId, Option<String>>,
}

/// Those of some nodes that stand behind what moves numbers, or behind another one that does.
pub(super) fn candidates(graph: &Graph, of: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    for id in of {
        let input = graph.node(id).inputs.first();
        let Some(before) = input.and_then(|input| graph.value(*input).producer()) else {
            continue;
        };
        if found.contains(&before) || moves(&graph.node(before).op) {
            found.insert(id);
        }
    }
    found
}

/// What becomes of values when these nodes are raised. What one of the nodes in `sinking` computes has no part in it.
pub(super) fn raised(
    graph: &Graph,
    raising: &BTreeSet<NodeId>,
    sinking: &BTreeSet<NodeId>,
) -> Raised {
    let mut raised = Raised::default();
    for id in raising {
        let node = graph.node(*id);
        let Some(&input) = node.inputs.first() else {
            continue;
        };
        let mut spread = Spread {
            graph,
            sinking,
            raised: &raised,
            op: &node.op,
            node: *id,
            moved: false,
            put_together: false,
            shares: Vec::new(),
            changed: BTreeSet::new(),
        };
        let axis = mapped(node, graph.value(input)).flatten();
        let found = spread.value(input, axis, None);
        let Spread {
            moved,
            put_together,
            shares,
            changed,
            ..
        } = spread;
        match found {
            Ok(()) if moved => {
                for (value, share) in shares {
                    raised.shares.entry(value).or_default().push(share);
                }
                raised.changed.extend(changed);
                raised.nodes.insert(*id, input);
            }
            Ok(()) => drop(raised.stuck.insert(*id, None)),
            Err(why) => drop(raised.stuck.insert(*id, Some(why).filter(|_| put_together))),
        }
    }
    raised
}

/// Why a node is not raised, where what computes a value does not take its part over.
pub(super) fn not_taken(value: &Value) -> String {
    let name = quoted(&value.name);
    format!("what makes {name} before it does not take over what it does")
}

/// Whether one node reads the numbers of a value, once, and nothing else can tell what they are.
fn is_alone(graph: &Graph, value: &Value) -> bool {
    let users = value.users().iter();
    let reads = users.filter(|user| graph.node(**user).op != Op::Shape);
    reads.count() == 1 && !value.is_output && !value.changes_later
}

/// The way of one node to the values that it is done to instead.
struct Spread<'a> {
    graph: &'a Graph,
    sinking: &'a BTreeSet<NodeId>,
    /// What has been raised before.
    raised: &'a Raised,
    node: NodeId,
    op: &'a Op,
    /// Whether anything lies on the way.
    moved: bool,
    /// Whether a concat does.
    put_together: bool,
    shares: Vec<(ValueId, Share)>,
    changed: BTreeSet<ValueId>,
}

impl Spread<'_> {
    /// A value to which the node does all, or what it does to a range of the indices of this axis.
    ///
    /// # Errors
    /// Says why that cannot be done before it is computed, or as soon as it is.
    fn value(
        &mut self,
        value: ValueId,
        axis: Option<usize>,
        range: Option<Range<usize>>,
    ) -> Result<(), String> {
        let of = self.graph.value(value);
        if !is_alone(self.graph, of) {
            let name = quoted(&of.name);
            return Err(format!("{name} before it is read by something else, too"));
        }
        let fail = || not_taken(of);
        let producer = of.producer().ok_or_else(fail)?;
        self.changed.insert(value);
        if let Some(before) = self.raised.nodes.get(&producer) {
            return self.value(*before, axis, range);
        }
        let node = self.graph.node(producer);
        // What is raised as far as this must be done first.
        if !self.raised.shares.contains_key(&value) {
            if let Op::Concat(along) = node.op {
                (self.moved, self.put_together) = (true, true);
                return self.concat(value, &node.inputs, along, (axis, range));
            }
            if let (Some(&input), Some(before)) = (
                node.inputs.first(),
                before(self.graph, node, axis, adds(self.op)),
            ) {
                self.moved = true;
                return self.value(input, before, range);
            }
        }
        if matches!(node.op, Op::Opaque(_) | Op::Shape) || self.sinking.contains(&producer) {
            return Err(fail());
        }
        let rank = of.shape.as_ref().map(Vec::len).ok_or_else(fail)?;
        let own = match &range {
            Some(range) => part(self.op, range).ok_or_else(fail)?,
            None => self.op.clone(),
        };
        let share = Share {
            node: self.node,
            op: placed(&own, axis, rank),
            is_part: range.is_some(),
        };
        self.shares.push((value, share));
        Ok(())
    }

    /// The same for the inputs of the concat that makes a value.
    fn concat(
        &mut self,
        value: ValueId,
        inputs: &[ValueId],
        along: usize,
        (axis, range): (Option<usize>, Option<Range<usize>>),
    ) -> Result<(), String> {
        if axis != Some(along) {
            let mut all = inputs.iter();
            return all.try_for_each(|input| self.value(*input, axis, range.clone()));
        }
        let fail = || not_taken(self.graph.value(value));
        let len = |id: ValueId| {
            let dims = self.graph.value(id).shape.as_ref();
            dims.and_then(|dims| dims.get(along)).and_then(Dim::known)
        };
        let all = numbers(self.op).map(|all| 0..all);
        let whole = range.or(all).ok_or_else(fail)?;
        let (mut at, mut ranges) = (whole.start, Vec::with_capacity(inputs.len()));
        for input in inputs {
            let behind = len(*input).and_then(|len| at.checked_add(len));
            let behind = behind.filter(|behind| *behind > at).ok_or_else(fail)?;
            ranges.push(at..behind);
            at = behind;
        }
        if at != whole.end || len(value) != Some(whole.len()) {
            return Err(fail());
        }
        let mut parts = inputs.iter().zip(ranges);
        parts.try_for_each(|(input, range)| self.value(*input, axis, Some(range)))
    }
}
