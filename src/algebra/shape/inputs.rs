//! How many channels a block's input has: no weight file says, but its leaves do.

use std::collections::HashSet;

use super::GeometryError as E;
use super::walk::{Op, compose, walk};
use super::{GeometryError, dims, with_groups};
use crate::algebra::expr::{Conv, Expr, Factor, Operand};

/// The number of input channels, where a leaf on the block's input or a bare identity tells it.
pub(super) fn inputs_of<T: Operand>(expr: &Expr<T>) -> Result<Option<usize>, GeometryError> {
    if let Some((inputs, _)) = told_inputs(expr) {
        return Ok(Some(inputs));
    }
    match passes_input(expr) {
        Some(out) => {
            // Nothing but a bare identity says how wide the input is. A conv whose own input is
            // narrower than its output is then depthwise, or grouped like a conv further in, or
            // does not belong beside an identity.
            let mut inner = None;
            for conv in heads(expr) {
                let [_, per_group, ..] = dims(conv);
                let declared = conv.groups.is_some() || per_group == out || per_group == 1;
                if !declared
                    && !inner
                        .get_or_insert_with(|| inner_groups(expr, out))
                        .contains(&(out / per_group))
                {
                    let (leaf, shape) = (conv.weight.to_string(), conv.weight.shape().to_vec());
                    return Err(E::Identity {
                        leaf,
                        shape,
                        out,
                        inputs: per_group,
                    });
                }
            }
            Ok(Some(out))
        }
        None => Ok(None),
    }
}

/// Names the leaf that tells the width of the input, where a conv at the head does not take that many channels.
pub(super) fn name_source<T: Operand>(error: GeometryError, expr: &Expr<T>) -> GeometryError {
    match (error, told_inputs(expr)) {
        (
            E::Inputs {
                leaf,
                shape,
                per_group,
                inputs,
                ..
            },
            Some((told, by)),
        ) if told == inputs => E::Inputs {
            leaf,
            shape,
            per_group,
            inputs,
            source_of_inputs: format!("of {by}"),
        },
        (error, _) => error,
    }
}

/// What a batch norm, a vector or declared groups at the head of the expression say, and the leaf that says it.
fn told_inputs<T: Operand>(expr: &Expr<T>) -> Option<(usize, &T)> {
    match expr {
        Expr::Conv(c) if c.transposed => Some((*c.weight.shape().first()?, &c.weight)),
        Expr::Conv(Conv {
            shared: true,
            groups: None,
            bias,
            ..
        }) => bias.as_ref().map(|b| (b.len(), b)),
        Expr::Conv(c) => Some((dims(c)[1].checked_mul(c.groups?)?, &c.weight)),
        Expr::Bn(b) => Some((b.var.len(), &b.var)),
        Expr::Scale(Factor::Tensor(v)) if v.len() > 1 => Some((v.len(), &v.tensor)),
        Expr::Shift(t) if t.len() > 1 => Some((t.len(), t)),
        Expr::Scale(_) | Expr::Shift(_) | Expr::Mean(_) | Expr::Identity => None,
        Expr::Sum(xs) => xs.iter().find_map(told_inputs),
        // (Each part is asked once: nested sequences would double the work at every level.)
        Expr::Seq(xs) => xs
            .iter()
            .map(|x| (told_inputs(x), x))
            .find(|(told, x)| told.is_some() || !x.convs().iter().all(|c| c.shared))
            .and_then(|(told, _)| told),
    }
}

/// If a path with no parameter leads from input to output of some sum at the head: that sum's width.
fn passes_input<T: Operand>(expr: &Expr<T>) -> Option<usize> {
    match expr {
        Expr::Sum(xs) => {
            let direct = xs
                .iter()
                .any(|x| !x.mixes_channels())
                .then(|| xs.iter().find_map(out_of))
                .flatten();
            direct.or_else(|| xs.iter().find_map(passes_input))
        }
        Expr::Seq(xs) => xs
            .iter()
            .find(|x| x.mixes_channels())
            .and_then(passes_input),
        _ => None,
    }
}

/// Output channels, from the last leaf that tells them.
fn out_of<T: Operand>(expr: &Expr<T>) -> Option<usize> {
    match expr {
        Expr::Conv(c) if c.shared => None,
        Expr::Conv(c) => Some(dims(c)[0]),
        Expr::Sum(xs) => xs.iter().find_map(out_of),
        Expr::Seq(xs) => xs.iter().rev().find_map(out_of),
        _ => None,
    }
}

/// The convs that are applied to the block's input itself, possibly behind diagonal maps.
fn heads<T>(expr: &Expr<T>) -> Vec<&Conv<T>> {
    match expr {
        Expr::Conv(c) => vec![c],
        Expr::Sum(xs) => xs.iter().flat_map(heads).collect(),
        Expr::Seq(xs) => xs
            .iter()
            .find(|x| x.mixes_channels())
            .map(heads)
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The groups of the convs that are not applied to the block's input itself.
fn inner_groups<T: Operand>(expr: &Expr<T>, inputs: usize) -> HashSet<usize> {
    let Ok(expr) = with_groups(expr.clone(), inputs) else {
        return HashSet::new();
    };
    let heads: HashSet<_> = heads(&expr).into_iter().map(std::ptr::from_ref).collect();
    let inner = |conv: &&Conv<T>| !heads.contains(&std::ptr::from_ref(*conv));
    let convs = expr.convs().into_iter().filter(inner);
    convs.filter_map(|conv| conv.groups).collect()
}

/// Nothing tells the number of input channels: try every one that fits the first conv.
pub(super) fn any_inputs<T: Operand>(
    expr: &Expr<T>,
    first: &Conv<T>,
) -> Result<(usize, Op), GeometryError> {
    let [out, per_group, ..] = dims(first);
    let ambiguous = || {
        let (leaf, shape) = (first.weight.to_string(), first.weight.shape().to_vec());
        Err(E::Ambiguous { leaf, shape })
    };
    if first.shared {
        return ambiguous();
    }
    let mut found: Option<(usize, Op, Vec<Option<Steps>>)> = None;
    for groups in divisors(out) {
        let Some(inputs) = per_group.checked_mul(groups) else {
            continue;
        };
        let Ok(op) = walk(expr, inputs) else {
            continue;
        };
        let mut steps = Vec::new();
        inner_steps(expr, inputs, &mut steps)?;
        match &found {
            None => found = Some((inputs, op, steps)),
            Some((_, other, others)) => {
                if op.in_per_group != other.in_per_group || steps != *others {
                    return ambiguous();
                }
            }
        }
    }
    match found {
        Some((inputs, op, _)) => Ok((inputs, op)),
        None => walk(expr, per_group).map(|op| (per_group, op)),
    }
}

/// How the channels of an inner map lie over the input channels of one group of the whole.
#[derive(PartialEq)]
struct Steps {
    /// Parts of the group that different channels see.
    parts: usize,
    /// Channels, side by side, that see the same part.
    channels: usize,
}

/// The steps of `out` channels in so many groups; none where each channel sees the whole of its group.
fn steps(out: usize, groups: usize, of_whole: usize) -> Option<Steps> {
    let parts = groups / of_whole.max(1);
    (parts > 1).then(|| Steps {
        parts,
        channels: out / groups,
    })
}

/// The steps of every part of the tree that has a conv behind it or a branch beside it, in the order of the tree. Widths of the
/// input that agree in all of them give the same kernel.
fn inner_steps<T: Operand>(
    expr: &Expr<T>,
    inputs: usize,
    found: &mut Vec<Option<Steps>>,
) -> Result<(), GeometryError> {
    match expr {
        Expr::Sum(xs) => {
            // A branch that is narrower than the widest lies in steps over its group, too.
            let whole = walk(expr, inputs)?;
            for x in xs {
                inner_steps(x, inputs, found)?;
                let branch = walk(x, inputs)?;
                found.push(steps(branch.out, branch.groups, whole.groups));
            }
        }
        Expr::Seq(xs) => {
            let mut before = Op::channelwise(inputs, [1, 1]);
            for x in xs {
                inner_steps(x, before.out, found)?;
                let then = walk(x, before.out)?;
                let inner = (!before.channelwise).then_some((before.out, before.groups));
                before = compose(inputs, before, then).ok_or(E::TooLarge)?;
                found.push(inner.and_then(|(out, groups)| steps(out, groups, before.groups)));
            }
        }
        _ => {}
    }
    Ok(())
}

fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let low = (1..)
        .take_while(move |d| d * d <= n)
        .filter(move |d| n.is_multiple_of(*d));
    let high = low.clone().map(move |d| n / d).collect::<Vec<_>>();
    low.chain(high.into_iter().rev())
}
