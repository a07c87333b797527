//! Operators that map every channel by itself: they may as well run elsewhere, wherever the channels are.

use std::ops::Range;

use super::model::{Arithmetic, Dim, Graph, Node, Norm, Op, Value, ValueId};
use crate::tensor::Tensor;

/// The axis whose every index an operator maps by itself: none if it maps all numbers alike. No answer for other operators.
pub(super) fn mapped(node: &Node, input: &Value) -> Option<Option<usize>> {
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
pub(super) fn adds(op: &Op) -> bool {
    use Arithmetic as A;
    matches!(
        op,
        Op::Norm(_) | Op::WithConstant(A::Add | A::Sub | A::SubFrom, _)
    )
}

/// How many numbers such an operator has for the indices of its axis.
pub(super) fn numbers(op: &Op) -> Option<usize> {
    match op {
        Op::Norm(norm) => Some(norm.mean.len()),
        Op::WithConstant(_, constant) => Some(constant.len()),
        _ => None,
    }
}

/// Such an operator for a value of so many axes, of which this is the one whose every index it maps.
pub(super) fn placed(op: &Op, axis: Option<usize>, rank: usize) -> Op {
    let along = |numbers: usize| match axis {
        Some(axis) if numbers > 1 => {
            let ones = std::iter::repeat_n(1, rank.saturating_sub(axis + 1));
            std::iter::once(numbers).chain(ones).collect()
        }
        _ => Vec::new(),
    };
    match (op, axis) {
        (Op::WithConstant(how, constant), _) => {
            Op::WithConstant(*how, constant.reshaped(along(constant.len())))
        }
        (Op::Norm(norm), Some(axis)) => Op::Norm(Norm {
            axis,
            ..norm.clone()
        }),
        (op, _) => op.clone(),
    }
}

/// What such an operator does to a range of the indices that it maps, where its numbers for these stand side by side.
pub(super) fn part(op: &Op, range: &Range<usize>) -> Option<Op> {
    let part = |tensor: &Tensor| match tensor.len() {
        1 => Some(tensor.clone()),
        len => tensor.reshaped(vec![len]).stretch(range.clone()),
    };
    Some(match op {
        Op::Norm(norm) => Op::Norm(Norm {
            mean: part(&norm.mean)?,
            var: part(&norm.var)?,
            affine: match &norm.affine {
                Some([weight, bias]) => Some([part(weight)?, part(bias)?]),
                None => None,
            },
            ..norm.clone()
        }),
        Op::WithConstant(how, constant) => Op::WithConstant(*how, part(constant)?),
        op => op.clone(),
    })
}

/// Whether an operator gives numbers of its inputs, or means of these, so that what is done to all numbers of a channel may as well be
/// done before it.
pub(super) fn moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Concat(_)
            | Op::Identity
            | Op::Transpose(_)
            | Op::Reshape
            | Op::Slice { .. }
            | Op::Cut { .. }
            | Op::AvgPool(_)
            | Op::Mean { .. }
            | Op::Resample
            | Op::Pad(_)
    )
}

/// Where the axis is behind a node whose every index is mapped before it, if that may as well be done behind the node. `adds` tells
/// whether anything is added.
pub(super) fn behind(
    graph: &Graph,
    node: &Node,
    axis: Option<usize>,
    adds: bool,
) -> Option<Option<usize>> {
    let Some(own) = axis else {
        return keeps(&node.op, None, adds).then_some(None);
    };
    Some(Some(match &node.op {
        Op::Transpose(order) => order.iter().position(|from| *from == own)?,
        Op::Reshape => {
            let [from, to] = shapes(graph, node)?;
            reshaped(from, to, own)?
        }
        Op::Resample if own == 1 => as_before(graph, node, own)?,
        Op::Mean { axes, keeps } if !axes.contains(&own) => match keeps {
            true => own,
            false => (0..own).filter(|axis| !axes.contains(axis)).count(),
        },
        op => keeps(op, axis, adds).then_some(own)?,
    }))
}

/// Where the axis is before a node whose every index is mapped behind it, if that may as well be done before the node.
pub(super) fn before(
    graph: &Graph,
    node: &Node,
    axis: Option<usize>,
    adds: bool,
) -> Option<Option<usize>> {
    let [_] = node.outputs[..] else {
        return None;
    };
    let Some(own) = axis else {
        return keeps(&node.op, None, adds).then_some(None);
    };
    Some(Some(match &node.op {
        Op::Transpose(order) => *order.get(own)?,
        Op::Reshape => {
            let [from, to] = shapes(graph, node)?;
            reshaped(to, from, own)?
        }
        Op::Resample if own == 1 => as_before(graph, node, own)?,
        Op::Mean { axes, keeps: false } => (0..).filter(|axis| !axes.contains(axis)).nth(own)?,
        Op::Mean { axes, keeps: true } if !axes.contains(&own) => own,
        op => keeps(op, axis, adds).then_some(own)?,
    }))
}

/// Whether a node may as well run before what maps each index of an axis by itself, and keeps that where it is; any axis where all numbers are
/// mapped alike.
fn keeps(op: &Op, axis: Option<usize>, adds: bool) -> bool {
    // Windows slide over the axes from the third one on; beyond the border they see zeros.
    let is_channels = axis.is_none_or(|axis| axis == 1);
    match op {
        Op::Identity => true,
        Op::Transpose(_) | Op::Reshape | Op::Mean { .. } => axis.is_none(),
        Op::Slice { axis: cut, .. } | Op::Cut { axis: cut, .. } => Some(*cut) != axis,
        Op::AvgPool(window) => {
            let mut pads = window.pads.before.iter().chain(&window.pads.after);
            is_channels && !(adds && pads.any(|n| *n > 0))
        }
        Op::Resample => axis.is_none(),
        Op::Pad(_) => is_channels && !adds,
        _ => false,
    }
}

/// The shapes of what a node reads first and of what it computes first.
fn shapes<'g>(graph: &'g Graph, node: &Node) -> Option<[&'g [Dim]; 2]> {
    let shape = |id: Option<&ValueId>| graph.value(*id?).shape.as_deref();
    Some([shape(node.inputs.first())?, shape(node.outputs.first())?])
}

/// The axis, where there are as many indices of it behind a node as before.
fn as_before(graph: &Graph, node: &Node, axis: usize) -> Option<usize> {
    let [from, to] = shapes(graph, node)?;
    let same = from.len() == to.len() && from.get(axis)?.same(&to[axis]);
    same.then_some(axis)
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
