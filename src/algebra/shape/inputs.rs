//! How many channels a block's input has: no weight file says, but its leaves do.

use std::collections::HashSet;

use super::GeometryError as E;
use super::annotate::{annotate, divisors};
use super::{Geometry, GeometryError, axes_of, weight_axes};
use crate::algebra::expr::{Channels, Conv, Expr, Factor, Operand};
use crate::algebra::part::{Op, Part};

/// The number of input channels, where a leaf on the block's input or a bare identity tells it.
pub(super) fn inputs_of<T: Operand>(expr: &Expr<T>) -> Result<Option<usize>, GeometryError> {
    let told = told_inputs(expr).map(|(inputs, _)| inputs);
    if let Some(inputs) = selected_from(expr).or(told) {
        return Ok(Some(inputs));
    }
    match passes_input(expr) {
        Some(out) => {
            // Nothing but a bare identity says how wide the input is. A conv whose own input is
            // narrower than its output is then depthwise, or grouped like a conv further in, or
            // does not belong beside an identity.
            let mut inner = None;
            for conv in heads(expr) {
                let ([_, per_group], _) = axes_of(conv)?;
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
        Expr::Conv(c) => Some((
            weight_axes(c.weight.shape())?.0[1].checked_mul(c.groups?)?,
            &c.weight,
        )),
        Expr::Bn(b) => Some((b.var.len(), &b.var)),
        Expr::Scale(Factor::Tensor(v)) if v.len() > 1 => Some((v.len(), &v.tensor)),
        Expr::Shift(t) if t.len() > 1 => Some((t.len(), t)),
        Expr::Scale(_) | Expr::Shift(_) | Expr::AvgPool(_) | Expr::Crop(_) | Expr::Identity => None,
        // (A selection says it, too, but is no leaf.)
        Expr::Select(_) => None,
        Expr::Sum(xs) | Expr::Stack(xs) => xs.iter().find_map(told_inputs),
        // (Each part is asked once: nested sequences would double the work at every level.)
        Expr::Seq(xs) => xs
            .iter()
            .map(|x| (told_inputs(x), x))
            .find(|(told, x)| told.is_some() || !keeps_channels(x))
            .and_then(|(told, _)| told),
    }
}

/// Whether what is behind this part sees as many channels as it does.
fn keeps_channels<T>(expr: &Expr<T>) -> bool {
    match expr {
        Expr::Conv(c) => c.shared,
        Expr::Stack(_) | Expr::Select(_) => false,
        _ => expr.parts().iter().all(keeps_channels),
    }
}

/// How many channels a selection on the input takes some of.
fn selected_from<T>(expr: &Expr<T>) -> Option<usize> {
    match expr {
        Expr::Select(Channels { of, .. }) => Some(*of),
        Expr::Sum(xs) | Expr::Stack(xs) => xs.iter().find_map(selected_from),
        Expr::Seq(xs) => {
            let told = |x: &&Expr<T>| !keeps_channels(x) || selected_from(x).is_some();
            xs.iter().find(told).and_then(selected_from)
        }
        _ => None,
    }
}

/// If a path with no parameter leads from input to output of some sum at the head: that sum's width.
fn passes_input<T: Operand>(expr: &Expr<T>) -> Option<usize> {
    match expr {
        Expr::Sum(xs) => {
            let direct = xs
                .iter()
                .any(Expr::is_channelwise)
                .then(|| xs.iter().find_map(out_of))
                .flatten();
            direct.or_else(|| xs.iter().find_map(passes_input))
        }
        Expr::Seq(xs) => xs
            .iter()
            .find(|x| !x.is_channelwise())
            .and_then(passes_input),
        _ => None,
    }
}

/// Output channels, from the last leaf that tells them.
fn out_of<T: Operand>(expr: &Expr<T>) -> Option<usize> {
    match expr {
        Expr::Conv(c) if c.shared => None,
        Expr::Conv(c) => Some(weight_axes(c.weight.shape())?.0[0]),
        Expr::Select(channels) => Some(channels.picked.len()),
        Expr::Stack(xs) => xs.iter().map(out_of).sum(),
        Expr::Sum(xs) => xs.iter().find_map(out_of),
        Expr::Seq(xs) => xs.iter().rev().find_map(out_of),
        _ => None,
    }
}

/// The convs that are applied to the block's input itself, possibly behind diagonal maps.
fn heads<T>(expr: &Expr<T>) -> Vec<&Conv<T>> {
    match expr {
        Expr::Conv(c) => vec![c],
        Expr::Sum(xs) | Expr::Stack(xs) => xs.iter().flat_map(heads).collect(),
        Expr::Seq(xs) => xs
            .iter()
            .find(|x| !x.is_channelwise())
            .map_or_else(Vec::new, heads),
        _ => Vec::new(),
    }
}

/// The groups of the convs that are not applied to the block's input itself.
fn inner_groups<T: Operand>(expr: &Expr<T>, inputs: usize) -> HashSet<usize> {
    let Ok(root) = annotate(expr, inputs) else {
        return HashSet::new();
    };
    let mut groups = HashSet::new();
    add_inner_groups(&root, &mut groups);
    groups
}

fn add_inner_groups<T>(part: &Part<T>, groups: &mut HashSet<usize>) {
    match part.op() {
        Op::Seq(parts) => {
            let mut parts = parts.iter().skip_while(|part| part.is_channelwise());
            if let Some(head) = parts.next() {
                add_inner_groups(head, groups);
            }
            let inner = parts.flat_map(Part::convs);
            groups.extend(inner.map(|(_, geometry)| geometry.groups()));
        }
        _ => {
            let parts = part.parts().iter();
            parts.for_each(|part| add_inner_groups(part, groups));
        }
    }
}

/// Nothing tells the number of input channels: the smallest that fits, if every one that fits gives the same kernel.
pub(super) fn any_inputs<T: Operand>(expr: &Expr<T>) -> Result<usize, GeometryError> {
    let convs = expr.convs();
    let Some(first) = convs.iter().find(|c| !c.shared).or(convs.first()) else {
        return Err(E::NoConv);
    };
    let ([out, per_group], _) = axes_of(first)?;
    let ambiguous = || {
        let (leaf, shape) = (first.weight.to_string(), first.weight.shape().to_vec());
        Err(E::Ambiguous { leaf, shape })
    };
    if first.shared {
        return ambiguous();
    }
    // One conv, and nothing but diagonal maps before and behind it: its groups change nothing.
    if convs.len() == 1 && is_chain(expr) {
        return Ok(per_group);
    }
    let mut found: Option<(usize, Geometry, Vec<Option<ChannelLayout>>)> = None;
    for groups in divisors(out) {
        let Some(inputs) = per_group.checked_mul(groups) else {
            continue;
        };
        let Ok(root) = annotate(expr, inputs) else {
            continue;
        };
        let mut steps = Vec::new();
        inner_layouts(&root, &mut steps);
        match &found {
            None => found = Some((inputs, *root.geometry(), steps)),
            Some((_, other, others)) => {
                if root.geometry().in_per_group() != other.in_per_group() || steps != *others {
                    return ambiguous();
                }
            }
        }
    }
    // Where none fits, the smallest one's error says why.
    Ok(found.map_or(per_group, |(inputs, ..)| inputs))
}

/// Whether a tree has no branches, and no selection of channels.
fn is_chain<T>(expr: &Expr<T>) -> bool {
    match expr {
        Expr::Seq(xs) => xs.iter().all(is_chain),
        Expr::Sum(_) | Expr::Stack(_) | Expr::Select(_) => false,
        _ => true,
    }
}

/// How the channels of an inner map lie over the input channels of one group of the whole.
#[derive(PartialEq)]
struct ChannelLayout {
    /// Parts of the group that different channels see.
    parts: usize,
    /// Channels, side by side, that see the same part.
    channels: usize,
}

/// The steps of channels in groups; none where each channel sees the whole of its group.
fn channel_layout(map: &Geometry, of_whole: usize) -> Option<ChannelLayout> {
    let parts = map.groups() / of_whole;
    (parts > 1).then(|| ChannelLayout {
        parts,
        channels: map.out_per_group(),
    })
}

/// The steps of every part of the tree that has a conv behind it or a branch beside it, in the order of the tree. Widths of the
/// input that agree in all of them give the same kernel.
fn inner_layouts<T>(part: &Part<T>, found: &mut Vec<Option<ChannelLayout>>) {
    match part.op() {
        Op::Sum(branches) | Op::Stack(branches) => {
            // A branch that is narrower than the widest lies in steps over its group, too.
            for branch in branches {
                inner_layouts(branch, found);
                found.push(channel_layout(branch.geometry(), part.geometry().groups()));
            }
        }
        Op::Seq(parts) => {
            let mut before: Option<Geometry> = None;
            let mut channelwise = true;
            for x in parts {
                inner_layouts(x, found);
                let whole = before.map_or(*x.geometry(), |before| before.then(x.geometry()));
                let inner = before.filter(|_| !channelwise);
                found.push(inner.and_then(|inner| channel_layout(&inner, whole.groups())));
                before = Some(whole);
                channelwise &= x.is_channelwise();
            }
        }
        _ => {}
    }
}
