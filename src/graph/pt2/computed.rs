//! Calls of operators whose inputs are all constant: what they compute is constant, too.

use super::call::{Call, Input, Opaque};
use super::schema::names;
use crate::graph::constants::{Budget, Constant, Make, Reduction, make};
use crate::graph::contract::Equation;
use crate::graph::model::Dim;
use crate::tensor::{Checkpoint, Tensor};

/// The tensor that a call computes of constants alone, and what it is made of.
pub(super) fn computed(
    call: &Call<'_>,
    checkpoint: &Checkpoint,
    budget: &mut Budget,
) -> Option<(Tensor, Vec<Tensor>)> {
    let name = call.node.aten()?;
    let name = name.strip_suffix('_').unwrap_or(name);
    let tensors: Vec<Tensor> = call
        .reads()
        .iter()
        .map(|name| call.context.constants.get(name).cloned())
        .collect::<Option<_>>()?;
    let output = call.output().ok()?;
    let shape: Vec<usize> = known(&call.context.shape(&output)?)?;
    if tensors.is_empty() || call.context.dtype(&output)? != *tensors[0].dtype() {
        return None;
    }
    // A matrix across needs no number of it.
    if let [matrix] = &tensors[..]
        && exchanges(call, name, matrix)
    {
        let turned = matrix.turned()?;
        return (turned.shape() == shape).then_some((turned, tensors));
    }
    let (how, numbers) = how(call, name, &shape).ok()??;
    let mut of = tensors
        .iter()
        .map(|tensor| Constant::read(checkpoint, tensor, budget))
        .collect::<Option<Vec<_>>>()?;
    match numbers {
        Numbers::None => {}
        Numbers::Before(number) => of.insert(0, Constant::number(number)),
        Numbers::Behind(number) => of.push(Constant::number(number)),
    }
    let made = make(&how, &of, budget)?;
    let made = (made.numbers.shape() == shape).then(|| made.tensor(&output))??;
    Some((made, tensors))
}

fn known(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(Dim::known).collect()
}

/// Whether a call exchanges the two axes of a matrix.
fn exchanges(call: &Call<'_>, name: &str, matrix: &Tensor) -> bool {
    if matrix.shape().len() != 2 {
        return false;
    }
    let axis = |name: &str| call.axis(name, 0, 2).ok();
    match name {
        "t" | "numpy_T" | "mT" => true,
        "permute" => {
            matches!(call.ints("dims"), Ok(Some(dims)) if dims == [1, 0] || dims == [-1, -2] || dims == [1, -2] || dims == [-1, 0])
        }
        "transpose" => axis("dim0") != axis("dim1"),
        _ => false,
    }
}

/// A number that stands in the call beside the tensors.
enum Numbers {
    None,
    Before(f64),
    Behind(f64),
}

/// How a call makes its result of what it reads, in the order in which it reads it.
fn how(call: &Call<'_>, name: &str, shape: &[usize]) -> Result<Option<(Make, Numbers)>, Opaque> {
    let first = match call.first() {
        Ok(Input::Constant(tensor)) => tensor.shape().to_vec(),
        _ => Vec::new(),
    };
    let each = |f: fn(f64) -> f64| Ok(Some((Make::Each(f), Numbers::None)));
    let both = |f: fn(f64, f64) -> f64| -> Result<Option<(Make, Numbers)>, Opaque> {
        if call.number("alpha")?.is_some_and(|alpha| alpha != 1.0) {
            return Ok(None);
        }
        let other = ["other", "exponent"]
            .into_iter()
            .find(|key| call.is_number(key));
        let number = match other {
            Some(key) => Numbers::Behind(call.number(key)?.ok_or(None)?),
            None if call.is_number("self") => Numbers::Before(call.number("self")?.ok_or(None)?),
            None => Numbers::None,
        };
        Ok(Some((Make::Both(f), number)))
    };
    let plain = |make: Make| Ok(Some((make, Numbers::None)));
    match (name, call.node.overload()) {
        ("add", "Tensor" | "Scalar") => both(|a, b| a + b),
        ("sub", "Tensor" | "Scalar") => both(|a, b| a - b),
        ("rsub", "Tensor" | "Scalar") => both(|a, b| b - a),
        ("mul", "Tensor" | "Scalar") => both(|a, b| a * b),
        ("div", "Tensor" | "Scalar") => both(|a, b| a / b),
        ("pow", "Tensor_Scalar" | "Tensor_Tensor") => both(f64::powf),
        ("neg", _) => each(|x| -x),
        ("sqrt", _) => each(f64::sqrt),
        ("rsqrt", _) => each(|x| 1.0 / x.sqrt()),
        ("reciprocal", _) => each(|x| 1.0 / x),
        ("abs", _) => each(f64::abs),
        ("exp", _) => each(f64::exp),
        ("tanh", _) => each(f64::tanh),
        ("sigmoid", _) => each(|x| 1.0 / (1.0 + (-x).exp())),
        ("relu", _) => each(|x| x.max(0.0)),
        ("einsum", "default") => match call.text("equation")? {
            Some(text) => plain(Make::Contract(Equation::parse(&text).ok_or(None)?)),
            None => Ok(None),
        },
        ("pad" | "constant_pad_nd", "default") => padding(call, &first),
        ("select", "int") => {
            let axis = call.axis("dim", 0, first.len())?;
            let (index, len) = (call.int("index", 0)?, first[axis] as i64);
            let index = if index < 0 {
                index.saturating_add(len)
            } else {
                index
            };
            let index = usize::try_from(index).map_err(|_| None)?;
            plain(Make::Pick { axis, index })
        }
        ("_weight_norm", "default") => plain(Make::WeightNorm(match call.int("dim", 0)? {
            -1 => None,
            _ => Some(call.axis("dim", 0, first.len())?),
        })),
        ("mm" | "bmm" | "matmul", "default") => plain(Make::Product),
        ("expand" | "expand_as", _) => plain(Make::Expand(shape.to_vec())),
        ("repeat", "default") => {
            let times = call.ints("repeats")?.ok_or(None)?;
            let times = times.iter().map(|n| usize::try_from(*n).map_err(|_| None));
            plain(Make::Repeat(times.collect::<Result<_, Opaque>>()?))
        }
        ("permute", "default") => {
            let dims = call.ints("dims")?.ok_or(None)?;
            plain(Make::Permute(axes(&dims, first.len())?))
        }
        ("transpose", "int") => {
            let rank = first.len();
            let mut order: Vec<usize> = (0..rank).collect();
            order.swap(call.axis("dim0", 0, rank)?, call.axis("dim1", 0, rank)?);
            plain(Make::Permute(order))
        }
        ("flip", "default") => {
            let dims = call.ints("dims")?.ok_or(None)?;
            plain(Make::Flip(axes(&dims, first.len())?))
        }
        ("cat" | "concat", "default") => {
            let listed = call.node.inputs.first().is_some_and(|input| {
                input.arg.tag == "as_tensors" && names(&input.arg) == call.reads()
            });
            match listed {
                true => plain(Make::Concat(call.axis("dim", 0, shape.len())?)),
                false => Ok(None),
            }
        }
        ("slice", "Tensor") if call.int("step", 1)? == 1 => {
            let axis = call.axis("dim", 0, first.len())?;
            let len = first[axis] as i64;
            let bound =
                |n: i64| (if n < 0 { n.saturating_add(len) } else { n }).clamp(0, len) as usize;
            let begin = bound(call.int("start", 0)?);
            let end = bound(call.int("end", len)?).max(begin);
            plain(Make::Cut { axis, begin, end })
        }
        _ => reduction(call, name, &first),
    }
}

/// Zeros around a constant of this shape.
fn padding(call: &Call<'_>, shape: &[usize]) -> Result<Option<(Make, Numbers)>, Opaque> {
    let other = call.text("mode")?.is_some_and(|mode| mode != "constant");
    if other || call.number("value")?.is_some_and(|value| value != 0.0) {
        return Ok(None);
    }
    // The last axis comes shape.
    let pads = call.ints("pad")?.ok_or(None)?;
    let pads = pads.iter().map(|n| usize::try_from(*n).map_err(|_| None));
    let pads = pads.collect::<Result<Vec<_>, Opaque>>()?;
    let mut around = vec![[0, 0]; shape.len()];
    for (axis, pair) in around.iter_mut().rev().zip(pads.chunks_exact(2)) {
        *axis = [pair[0], pair[1]];
    }
    let fits = pads.len().is_multiple_of(2) && pads.len() <= 2 * shape.len();
    Ok(fits.then_some((Make::Pad(around), Numbers::None)))
}

fn axes(dims: &[i64], rank: usize) -> Result<Vec<usize>, Opaque> {
    let one = |n: &i64| {
        let n = if *n < 0 { n + rank as i64 } else { *n };
        usize::try_from(n).ok().filter(|n| *n < rank).ok_or(None)
    };
    dims.iter().map(one).collect()
}

/// A call that makes one number of each of some axes.
fn reduction(
    call: &Call<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Option<(Make, Numbers)>, Opaque> {
    let correction = || -> Result<f64, Opaque> {
        let one = call.number("correction")?.unwrap_or(1.0);
        Ok(match call.flag("unbiased", true)? {
            true => one,
            false => 0.0,
        })
    };
    let how = match name {
        "sum" => Reduction::Sum,
        "mean" => Reduction::Mean,
        "var" => Reduction::Variance(correction()?),
        "std" => Reduction::Deviation(correction()?),
        "linalg_vector_norm" if call.number("ord")?.is_none_or(|ord| ord == 2.0) => Reduction::Norm,
        _ => return Ok(None),
    };
    if call.text("dtype").is_err() {
        return Ok(None);
    }
    let axes = match call.ints("dim")?.filter(|dims| !dims.is_empty()) {
        Some(dims) => axes(&dims, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    let keep = call.flag("keepdim", false)?;
    Ok(Some((Make::Reduce { how, axes, keep }, Numbers::None)))
}
