//! Calls that take, move, find and put numbers of constants: how, as steps.

use ndarray::{ArrayD, IxDyn};

use super::call::{Call, Opaque};
use super::schema::names;
use super::steps::{Operand, Plan, known, operand};
use crate::graph::arrays::within;
use crate::graph::constants::Make;
use crate::tensor::Tensor;

/// Parts of a constant that lie one behind the other; their shapes say how long they are.
pub(super) fn parts(
    call: &Call<'_>,
    tensor: &Tensor,
    outputs: Vec<String>,
) -> Result<Vec<(String, Option<Plan>)>, Opaque> {
    let axis = call.axis("dim", 0, tensor.shape().len())?;
    let mut at = 0usize;
    let part = |name: String| {
        let (shape, _) = known(call, &name).ok_or(None)?;
        let end = at.checked_add(*shape.get(axis).ok_or(None)?);
        let end = end.filter(|end| *end <= tensor.shape()[axis]).ok_or(None)?;
        let how = Make::Take(vec![(axis, (at..end).collect())]);
        at = end;
        let plan = Plan::new(how, [Operand::Tensor(tensor.clone())]);
        Ok((name, Some(plan)))
    };
    outputs.into_iter().map(part).collect()
}

/// Constants one behind the other, or side by side along an axis of their own.
pub(super) fn listed(
    call: &Call<'_>,
    of: &[Tensor],
    new_axis: bool,
) -> Result<Option<Plan>, Opaque> {
    let is_list =
        call.node.inputs.first().is_some_and(|input| {
            input.arg.tag == "as_tensors" && names(&input.arg) == call.reads()
        });
    let rank = of.first().ok_or(None)?.shape().len() + usize::from(new_axis);
    let axis = call.axis("dim", 0, rank)?;
    let part = |tensor: &Tensor| match new_axis {
        false => Some(tensor.clone()),
        true => {
            let mut shape = tensor.shape().to_vec();
            (axis <= shape.len()).then(|| shape.insert(axis, 1))?;
            Some(tensor.reshaped(shape))
        }
    };
    let of = of.iter().map(|tensor| part(tensor).map(Operand::Tensor));
    let of: Vec<Operand> = of.collect::<Option<_>>().ok_or(None)?;
    Ok(is_list.then(|| Plan::new(Make::Concat(axis), of)))
}

/// An index as one from the front.
pub(super) fn from_front(index: i64, len: usize) -> Result<usize, Opaque> {
    let index = match index {
        ..0 => index.saturating_add(len as i64),
        _ => index,
    };
    usize::try_from(index)
        .ok()
        .filter(|index| *index < len)
        .ok_or(None)
}

/// The indices of an axis that a slice takes, and the axis.
fn slice(call: &Call<'_>, shape: &[usize]) -> Result<(usize, Vec<usize>), Opaque> {
    let axis = call.axis("dim", 0, shape.len())?;
    let len = shape[axis] as i64;
    let bound = |n: i64| (if n < 0 { n.saturating_add(len) } else { n }).clamp(0, len) as usize;
    let begin = bound(call.int("start", 0)?);
    let end = bound(call.int("end", len)?).max(begin);
    let step = usize::try_from(call.int("step", 1)?).map_err(|_| None)?;
    let step = (step > 0).then_some(step).ok_or(None)?;
    Ok((axis, (begin..end).step_by(step).collect()))
}

/// A call that takes elements of axes in some order.
pub(super) fn taken(
    call: &Call<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Option<Vec<Make>>, Opaque> {
    let rank = shape.len();
    let reversed = |axis: usize| (axis, (0..shape[axis]).rev().collect::<Vec<_>>());
    Ok(Some(match (name, call.node.overload()) {
        ("slice", "Tensor") => vec![Make::Take(vec![slice(call, shape)?])],
        ("narrow", "default") => {
            let axis = call.axis("dim", 0, rank)?;
            let start = call.int("start", 0)?;
            let begin = match start {
                0.. => usize::try_from(start).map_err(|_| None)?,
                _ => from_front(start, shape[axis])?,
            };
            let length = usize::try_from(call.int("length", -1)?).map_err(|_| None)?;
            let end = begin.checked_add(length).filter(|end| *end <= shape[axis]);
            vec![Make::Take(vec![(
                axis,
                (begin..end.ok_or(None)?).collect(),
            )])]
        }
        ("flip", "default") => {
            let dims = axes(&call.ints("dims")?.ok_or(None)?, rank)?;
            vec![Make::Take(dims.into_iter().map(reversed).collect())]
        }
        ("roll", "default") => {
            let (shifts, dims) = (call.ints("shifts")?, call.ints("dims")?);
            let (shifts, dims) = (shifts.ok_or(None)?, axes(&dims.ok_or(None)?, rank)?);
            if shifts.len() != dims.len() || dims.is_empty() {
                return Ok(None);
            }
            let rolled = |(axis, shift): (usize, i64)| {
                let len = shape[axis];
                let by = shift.checked_rem_euclid(len as i64).unwrap_or(0) as usize;
                (axis, (0..len).map(|i| (i + len - by) % len).collect())
            };
            vec![Make::Take(
                dims.into_iter().zip(shifts).map(rolled).collect(),
            )]
        }
        ("rot90", "default") => return turned(call, shape).map(Some),
        ("repeat_interleave", "self_int") if call.is_given("dim") => {
            let axis = call.axis("dim", 0, rank)?;
            let times = usize::try_from(call.int("repeats", 1)?).map_err(|_| None)?;
            let len = shape[axis].checked_mul(times).filter(|len| within(&[*len]));
            let indices = (0..len.ok_or(None)?).map(|i| i / times).collect();
            vec![Make::Take(vec![(axis, indices)])]
        }
        _ => return Ok(None),
    }))
}

/// Quarters of a turn, as a flip and an exchange of two axes.
fn turned(call: &Call<'_>, shape: &[usize]) -> Result<Vec<Make>, Opaque> {
    let dims = call.ints("dims")?.unwrap_or_else(|| vec![0, 1]);
    let [a, b] = axes(&dims, shape.len())?[..] else {
        return Err(None);
    };
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.swap(a, b);
    let quarters = call.int("k", 1)?.rem_euclid(4);
    let flipped = match quarters {
        0 => Vec::new(),
        1 => vec![b],
        2 => vec![a, b],
        _ => vec![a],
    };
    let reversed = |axis: usize| (axis, (0..shape[axis]).rev().collect());
    let flip = Make::Take(flipped.into_iter().map(reversed).collect());
    Ok(match quarters % 2 {
        0 => vec![flip],
        _ => vec![flip, Make::Permute(order)],
    })
}

pub(super) fn axes(dims: &[i64], rank: usize) -> Result<Vec<usize>, Opaque> {
    dims.iter().map(|n| from_front(*n, rank)).collect()
}

/// A call that finds numbers, or puts some, where indices point.
pub(super) fn pointed(
    call: &Call<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Option<Plan>, Opaque> {
    let on = |make: Make, keys: &[&str]| {
        let of = keys.iter().map(|key| operand(call, key));
        Ok(Some(Plan::new(make, of.collect::<Result<Vec<_>, _>>()?)))
    };
    // The one axis that has indices, and these.
    let single = || -> Result<(usize, Operand), Opaque> {
        let list = call.optional_constants("indices")?;
        let mut given = list
            .into_iter()
            .enumerate()
            .filter_map(|(axis, index)| Some((axis, index?)));
        match (given.next(), given.next()) {
            (Some((axis, index)), None) if axis < shape.len() => Ok((axis, Operand::Tensor(index))),
            _ => Err(None),
        }
    };
    let put = |axis: usize, index: Operand, others: &str| {
        let of = [operand(call, "self")?, index, operand(call, others)?];
        Ok(Some(Plan::new(Make::Put(axis), of)))
    };
    match (name, call.node.overload()) {
        ("index_select", "default") => on(
            Make::Gather(call.axis("dim", 0, shape.len())?),
            &["self", "index"],
        ),
        ("embedding", "default") => on(Make::Gather(0), &["weight", "indices"]),
        ("index", "Tensor") => {
            let (axis, index) = single()?;
            let of = [operand(call, "self")?, index];
            Ok(Some(Plan::new(Make::Gather(axis), of)))
        }
        ("index_put", "default") if !call.flag("accumulate", false)? => {
            let (axis, index) = single()?;
            put(axis, index, "values")
        }
        ("select_scatter", "default") => {
            let axis = call.axis("dim", 0, shape.len())?;
            let index = from_front(call.int("index", 0)?, shape[axis])?;
            let index = ArrayD::from_elem(IxDyn(&[]), index as f64);
            put(axis, Operand::Indices(index), "src")
        }
        ("slice_scatter", "default") => {
            let (axis, indices) = slice(call, shape)?;
            let indices = indices
                .into_iter()
                .map(|i| i as f64)
                .collect::<ndarray::Array1<f64>>();
            put(axis, Operand::Indices(indices.into_dyn()), "src")
        }
        _ => Ok(None),
    }
}
