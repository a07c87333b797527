//! Operators that move numbers and compute none.

use super::call::{Call, Input, Opaque, because};
use super::fills::is_whole;
use super::moved::axes;
use crate::graph::model::{Dim, Op};
use crate::tensor::Tensor;

/// What such a call does, and the values that it reads.
pub(super) fn operator(call: &Call<'_>, name: &str) -> Result<(Op, Vec<String>), Opaque> {
    match (name, call.node.overload()) {
        ("cat" | "concat", "default") => concat(call),
        ("slice", "Tensor") if is_whole(call)? => Ok((Op::Identity, vec![call.value()?])),
        ("slice", "Tensor") => slice(call),
        // Its first argument only says the shape.
        ("slice_scatter", "default") if is_whole(call)? => {
            match (call.value()?, call.input("src")?) {
                (like, Input::Value(value)) => Ok((Op::Identity, vec![value, like])),
                _ => Err(None),
            }
        }
        ("narrow", "default") => narrow(call),
        ("split" | "split_with_sizes" | "chunk" | "unsafe_split" | "unsafe_chunk", _) => {
            parts(call)
        }
        ("sym_size", "int") => Ok((Op::Shape, vec![call.value()?])),
        ("permute", "default") => permute(call),
        ("transpose", "int") => transpose(call),
        ("dropout" | "feature_dropout" | "alpha_dropout" | "feature_alpha_dropout", "default") => {
            match call.flag("train", true)? {
                true => because("it drops numbers (training mode)"),
                false => Ok((Op::Identity, vec![call.value()?])),
            }
        }
        ("expand", "default") => {
            let (value, given) = (call.value()?, call.output()?);
            let shape = call.context.shape(&value);
            match shape.is_some() && shape == call.context.shape(&given) {
                true => Ok((Op::Identity, vec![value])),
                false => Err(None),
            }
        }
        // The second argument only says the type, or the shape.
        ("type_as", "default") => match call.context.dtype(&call.value()?) {
            own if own == call.context.dtype(&call.output()?) => with_like(call, Op::Identity),
            _ => because("it changes the type"),
        },
        ("reshape_as" | "view_as", "default") => with_like(call, Op::Reshape),
        ("to", overload) if !matches!(overload, "dtype" | "dtype_layout") => Err(None),
        _ if same_numbers(name) => moved(call),
        _ => Err(None),
    }
}

/// The same numbers in the same order, with other dimensions or elsewhere.
fn moved(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let (from, to) = (value.as_str(), call.output()?);
    let context = call.context;
    if context.dtype(from) != context.dtype(&to) {
        return because("it changes the type");
    }
    if context.shape(from) != context.shape(&to) || context.shape(from).is_none() {
        return Ok((Op::Reshape, vec![value]));
    }
    // Numbers that lie elsewhere are wanted there by a `view` behind it. Where only gaps go, what a conv writes has none.
    let in_order = |name: &str| in_order(&context.strides(name)?);
    let same = context.strides(from) == context.strides(&to);
    match same || in_order(from) == Some(true) && in_order(&to) == Some(true) {
        true => Ok((Op::Identity, vec![value])),
        false => because("it changes how its numbers lie in memory"),
    }
}

/// Whether the last axis lies innermost and each other one around those behind it, as far as the strides tell.
fn in_order(strides: &[Dim]) -> Option<bool> {
    let known: Vec<usize> = strides.iter().map(Dim::known).collect::<Option<_>>()?;
    Some(known.last() == Some(&1) && known.is_sorted_by(|a, b| a > b))
}

/// An operator on the first argument; the second one, `other`, has to be there and is not computed with.
fn with_like(call: &Call<'_>, op: Op) -> Result<(Op, Vec<String>), Opaque> {
    let (value, like) = (call.value()?, call.input("other")?);
    let like = match like {
        Input::Value(like) => Some(like),
        Input::Constant(_) | Input::Absent => None,
    };
    Ok((op, std::iter::once(value).chain(like).collect()))
}

/// Whether an operator gives the numbers of its first argument in the same order.
fn same_numbers(name: &str) -> bool {
    let reshapes = [
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
    ];
    let copies = [
        "contiguous",
        "clone",
        "detach",
        "alias",
        "lift_fresh_copy",
        "to",
        "_to_copy",
    ];
    reshapes.contains(&name) || copies.contains(&name)
}

/// The result of a call whose input is constant, if it is the same numbers.
pub(super) fn of_constant(call: &Call<'_>) -> Option<Tensor> {
    let name = call.node.aten()?;
    let name = name.strip_suffix('_').unwrap_or(name);
    let Ok(Input::Constant(tensor)) = call.first() else {
        return None;
    };
    let reads = call.reads();
    // Where an `expand` gives as many numbers, only axes of one element are new.
    let same = same_numbers(name) || name == "expand";
    // The second one only says the shape, or the type.
    let like = matches!(name, "reshape_as" | "view_as" | "type_as") && reads.len() == 2;
    let constant = |name: &String| call.context.constants.contains_key(name);
    if !(same && reads.len() == 1 || like && reads.iter().all(constant)) {
        return None;
    }
    let output = call.output().ok()?;
    if call.context.dtype(&output)? != *tensor.dtype() {
        return None;
    }
    let sizes = call.context.shape(&output)?;
    let shape: Vec<usize> = sizes.iter().map(Dim::known).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    (count == Some(tensor.len())).then(|| match shape == tensor.shape() {
        true => tensor,
        false => tensor.reshaped(shape),
    })
}

fn concat(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let values = call.values("tensors")?;
    let rank = call.shape(&call.output()?)?.len();
    for value in &values {
        if call.shape(value)?.len() != rank {
            return because("its inputs have different ranks");
        }
    }
    Ok((Op::Concat(call.axis("dim", 0, rank)?), values))
}

/// The length of an axis of a value.
fn extent(call: &Call<'_>, value: &str, axis: usize) -> Result<usize, Opaque> {
    match call.shape(value)?.get(axis) {
        Some(Dim::Known(n)) => Ok(*n),
        _ => because("the length of what it cuts is not known before it runs"),
    }
}

fn slice(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let axis = call.axis("dim", 0, call.shape(&value)?.len())?;
    if call.int("step", 1)? != 1 {
        return because("it takes every second element, or fewer");
    }
    let len = match (extent(call, &value, axis), call.int("end", i64::MAX)) {
        (Ok(len), _) => len as i64,
        // Without so many at the end of an axis of any length.
        (Err(_), Ok(end)) if end < 0 || end == i64::MAX => {
            let count = |n: Option<i64>| n.and_then(|n| usize::try_from(n).ok()).ok_or(None);
            let op = Op::Cut {
                axis,
                before: count(Some(call.int("start", 0)?))?,
                after: count(if end < 0 { end.checked_neg() } else { Some(0) })?,
            };
            return Ok((op, vec![value]));
        }
        (Err(why), _) => return Err(why),
    };
    let bound = |n: i64| (if n < 0 { n.saturating_add(len) } else { n }).clamp(0, len) as usize;
    let begin = bound(call.int("start", 0)?);
    let end = bound(call.int("end", len)?).max(begin);
    Ok((
        Op::Slice {
            axis,
            ranges: vec![[begin, end]],
        },
        vec![value],
    ))
}

fn narrow(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let axis = call.axis("dim", 0, call.shape(&value)?.len())?;
    let len = extent(call, &value, axis)?;
    let start = call.int("start", 0)?;
    let start = if start < 0 {
        start.saturating_add(len as i64)
    } else {
        start
    };
    let begin = usize::try_from(start).map_err(|_| None)?;
    let length = usize::try_from(call.int("length", -1)?).map_err(|_| None)?;
    let end = begin
        .checked_add(length)
        .filter(|end| *end <= len)
        .ok_or(None)?;
    Ok((
        Op::Slice {
            axis,
            ranges: vec![[begin, end]],
        },
        vec![value],
    ))
}

/// Parts that lie one behind the other; their shapes say how long they are.
fn parts(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let axis = call.axis("dim", 0, call.shape(&value)?.len())?;
    let len = extent(call, &value, axis)?;
    let (mut ranges, mut at) = (Vec::new(), 0usize);
    for output in call.outputs() {
        let end = at.checked_add(extent(call, &output, axis)?).ok_or(None)?;
        ranges.push([at, end]);
        at = end;
    }
    match at == len {
        true => Ok((Op::Slice { axis, ranges }, vec![value])),
        false => because("its parts are not the whole"),
    }
}

fn permute(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let rank = call.shape(&value)?.len();
    let permutation = axes(&call.ints("dims")?.ok_or(None)?, rank)?;
    let mut sorted = permutation.clone();
    sorted.sort_unstable();
    match sorted.into_iter().eq(0..rank) {
        true => Ok((Op::Transpose(permutation), vec![value])),
        false => Err(None),
    }
}

fn transpose(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let rank = call.shape(&value)?.len();
    let (a, b) = (call.axis("dim0", 0, rank)?, call.axis("dim1", 0, rank)?);
    let mut permutation: Vec<usize> = (0..rank).collect();
    permutation.swap(a, b);
    Ok((Op::Transpose(permutation), vec![value]))
}
