//! Operators that put channels together, cut them apart, and turn axes.

use super::dims::{axis_of, first_axes, taken};
use super::proto::{Attribute, Node};
use super::reading::{Reading, Trouble, because, opaque};
use crate::graph::model::{Dim, Op, ValueId};

type Found = Result<(Op, Vec<ValueId>), Trouble>;

/// The dimensions of what a node reads first, and the value itself.
fn first<'r>(reading: &'r Reading<'_>, node: &Node) -> Result<(ValueId, &'r [Dim]), Trouble> {
    let Some(id) = reading.value(node, 0) else {
        return opaque();
    };
    match &reading.values.values[id.0].shape {
        Some(shape) => Ok((id, shape)),
        None => opaque(),
    }
}

/// The first value, and whatever tells a node what to do with it.
fn with_helpers(reading: &Reading<'_>, node: &Node, id: ValueId) -> Vec<ValueId> {
    let helpers = (1..node.inputs.len()).filter_map(|i| reading.value(node, i));
    std::iter::once(id).chain(helpers).collect()
}

pub(super) fn concat(reading: &Reading<'_>, node: &Node) -> Found {
    let (_, shape) = first(reading, node)?;
    let Some(Attribute::Int(axis)) = node.attributes.get("axis") else {
        return opaque();
    };
    let Some(axis) = axis_of(*axis, shape.len()) else {
        return opaque();
    };
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for i in 0..node.inputs.len() {
        let Some(id) = reading.value(node, i) else {
            return opaque();
        };
        if reading.values.values[id.0].shape.as_ref().map(Vec::len) != Some(shape.len()) {
            return opaque();
        }
        inputs.push(id);
    }
    Ok((Op::Concat(axis), inputs))
}

pub(super) fn slice(reading: &Reading<'_>, node: &Node) -> Found {
    let (id, shape) = first(reading, node)?;
    let list = |index: usize, key: &str| reading.list(node, index, key);
    let (Some(starts), Some(ends)) = (list(1, "starts"), list(2, "ends")) else {
        return opaque();
    };
    let axes = reading.list_or(node, 3, "axes", || first_axes(starts.len()));
    let steps = reading.list_or(node, 4, "steps", || vec![1; starts.len()]);
    let (Some(axes), Some(steps)) = (axes, steps) else {
        return opaque();
    };
    let (&[start], &[end], &[axis], &[step]) = (&starts[..], &ends[..], &axes[..], &steps[..])
    else {
        return opaque();
    };
    let Some(axis) = axis_of(axis, shape.len()) else {
        return opaque();
    };
    if step != 1 {
        return because("it takes every second element, or turns their order");
    }
    let Dim::Known(len) = shape[axis] else {
        return match without(start, end) {
            Some([before, after]) => Ok((
                Op::Cut {
                    axis,
                    before,
                    after,
                },
                with_helpers(reading, node, id),
            )),
            None => opaque(),
        };
    };
    let range = match taken(len, start, end, 1).as_deref() {
        Some([first, .., last]) => [*first, last + 1],
        Some([only]) => [*only, only + 1],
        _ => return opaque(),
    };
    let op = Op::Slice {
        axis,
        ranges: vec![range],
    };
    Ok((op, with_helpers(reading, node, id)))
}

/// How many elements a slice leaves out at the beginning and the end of an axis of any length, where it says that.
fn without(start: i64, end: i64) -> Option<[usize; 2]> {
    let after = match end {
        // More than any axis has: up to the end.
        end if end >= i64::from(i32::MAX) => 0,
        ..0 => end.checked_neg()?,
        _ => return None,
    };
    Some([usize::try_from(start).ok()?, usize::try_from(after).ok()?])
}

pub(super) fn split(reading: &Reading<'_>, node: &Node) -> Found {
    let (id, shape) = first(reading, node)?;
    let Some(axis) = axis_of(reading.attribute_int(node, "axis", 0), shape.len()) else {
        return opaque();
    };
    let Dim::Known(len) = shape[axis] else {
        return opaque();
    };
    let parts = node.outputs.len();
    let told = match (node.inputs.get(1), node.attributes.get("split")) {
        (None | Some(None), None) => None,
        _ => match reading.list(node, 1, "split") {
            Some(sizes) => Some(sizes),
            None => return opaque(),
        },
    };
    let sizes: Option<Vec<usize>> = match told {
        Some(sizes) => sizes.iter().map(|n| usize::try_from(*n).ok()).collect(),
        None if parts > 0 && len >= parts => {
            let size = len.div_ceil(parts);
            let of = |i: usize| {
                len.checked_sub(i.checked_mul(size)?)
                    .map(|left| left.min(size))
            };
            (0..parts).map(of).collect()
        }
        None => None,
    };
    let Some(sizes) = sizes.filter(|sizes| sizes.len() == parts) else {
        return opaque();
    };
    // The model knows outputs by their number among those that have a name.
    if node.outputs.iter().any(Option::is_none) {
        return opaque();
    }
    let (mut ranges, mut at) = (Vec::with_capacity(parts), 0usize);
    for size in sizes {
        let end = at.saturating_add(size);
        ranges.push([at, end]);
        at = end;
    }
    match at == len {
        true => Ok((Op::Slice { axis, ranges }, with_helpers(reading, node, id))),
        false => because("its parts are not the whole"),
    }
}

/// The mean over the whole of some axes, or the sum.
pub(super) fn reduced(reading: &Reading<'_>, node: &Node) -> Found {
    let (id, shape) = first(reading, node)?;
    let rank = shape.len();
    let (axes, keeps) = match &*node.op {
        "GlobalAveragePool" => ((2..rank).collect(), true),
        _ => {
            let list = reading.list_or(node, 1, "axes", Vec::new);
            let list = list.filter(|list| !list.is_empty());
            // Without any it is all of them, or none.
            let Some(list) = list else {
                return opaque();
            };
            let axes: Option<Vec<usize>> = list.iter().map(|n| axis_of(*n, rank)).collect();
            let Some(axes) = axes else {
                return opaque();
            };
            (axes, reading.attribute_int(node, "keepdims", 1) != 0)
        }
    };
    let inputs = with_helpers(reading, node, id);
    let op = match &*node.op {
        "ReduceSum" => Op::Total { axes, keeps },
        _ => Op::Mean { axes, keeps },
    };
    Ok((op, inputs))
}

pub(super) fn transpose(reading: &Reading<'_>, node: &Node) -> Found {
    let (id, shape) = first(reading, node)?;
    let order: Option<Vec<usize>> = match node.attributes.get("perm") {
        None => Some((0..shape.len()).rev().collect()),
        Some(Attribute::Ints(order)) => order.iter().map(|n| axis_of(*n, shape.len())).collect(),
        Some(_) => None,
    };
    let mut sorted = order.clone().unwrap_or_default();
    sorted.sort_unstable();
    match order {
        Some(order) if sorted.into_iter().eq(0..shape.len()) => {
            Ok((Op::Transpose(order), vec![id]))
        }
        _ => opaque(),
    }
}
