//! Values that are put one behind the other along an axis of their own, and summed along it: `torch.stack(branches).sum(0)`. That is a sum of
//! the values.

use std::collections::HashMap;

use super::model::{Dim, Node, Op, Value, ValueId, same_shape};

/// Makes sums of all such nodes.
pub(super) fn as_sums(nodes: &mut [Node], values: &[Value]) {
    let producers: HashMap<ValueId, usize> = (nodes.iter().enumerate())
        .flat_map(|(i, node)| node.outputs.iter().map(move |output| (*output, i)))
        .collect();
    for i in 0..nodes.len() {
        let (along, mean) = match &nodes[i].op {
            Op::Mean { axes, keeps: false } => (axes, true),
            Op::Total { axes, keeps: false } => (axes, false),
            _ => continue,
        };
        let (&[axis], &[stack], &[output]) =
            (&along[..], &nodes[i].inputs[..], &nodes[i].outputs[..])
        else {
            continue;
        };
        let found = Stacks {
            nodes,
            values,
            producers: &producers,
        };
        let Some(parts) = found.parts(stack, axis) else {
            continue;
        };
        let alike = |part: &ValueId| same(shape(values, *part), shape(values, output));
        if !parts.iter().all(alike) {
            continue;
        }
        let factor = if mean { 1.0 / parts.len() as f64 } else { 1.0 };
        nodes[i].op = Op::Sum(vec![factor; parts.len()]);
        // What reads the stack itself is not told by the sum.
        nodes[i].inputs = parts.into_iter().chain([stack]).collect();
    }
}

fn shape(values: &[Value], id: ValueId) -> &[Dim] {
    values[id.0].shape.as_deref().unwrap_or_default()
}

/// Whether two shapes are certainly the same, and of as many axes as maps or rows have.
fn same(a: &[Dim], b: &[Dim]) -> bool {
    a.len() >= 2 && same_shape(a, b)
}

struct Stacks<'a> {
    nodes: &'a [Node],
    values: &'a [Value],
    producers: &'a HashMap<ValueId, usize>,
}

impl Stacks<'_> {
    fn producer(&self, id: ValueId) -> Option<&Node> {
        self.producers.get(&id).map(|i| &self.nodes[*i])
    }

    /// The values that lie one behind the other along this axis of a value, each at one place of it.
    fn parts(&self, stack: ValueId, axis: usize) -> Option<Vec<ValueId>> {
        let node = self.producer(stack)?;
        match &node.op {
            Op::Stack(along) if *along == axis => Some(node.inputs.clone()),
            Op::Concat(along) if *along == axis => node
                .inputs
                .iter()
                .map(|part| self.given(*part, axis))
                .collect(),
            Op::Reshape => self.folded(*node.inputs.first()?, stack, axis),
            _ => None,
        }
    }

    /// What has been given an axis of one element.
    fn given(&self, part: ValueId, axis: usize) -> Option<ValueId> {
        let node = self.producer(part).filter(|node| node.op == Op::Reshape)?;
        let &of = node.inputs.first()?;
        let mut wide = shape(self.values, part).to_vec();
        let is_new = wide.get(axis) == Some(&Dim::Known(1));
        is_new.then(|| wide.remove(axis))?;
        same(&wide, shape(self.values, of)).then_some(of)
    }

    /// What has been put together along an axis which then was taken apart: `[n · d, …]` as `[n, d, …]`.
    fn folded(&self, all: ValueId, stack: ValueId, axis: usize) -> Option<Vec<ValueId>> {
        let node = self.producer(all)?;
        let parts = match &node.op {
            Op::Concat(along) if *along == axis => &node.inputs,
            _ => return None,
        };
        let of_one = shape(self.values, *parts.first()?);
        let mut wide = of_one.to_vec();
        wide.get(axis)?;
        wide.insert(axis, Dim::Known(parts.len()));
        let alike = |part: &ValueId| same(shape(self.values, *part), of_one);
        (same(&wide, shape(self.values, stack)) && parts.iter().all(alike)).then(|| parts.clone())
    }
}
