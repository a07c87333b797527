//! Operators of ATen as operators of ours.

use std::sync::Arc;

use super::call::{Call, Input, Opaque, because};
use super::moved::axes;
use super::views;
use crate::graph::contract::Equation;
use crate::graph::layer::layer_of;
use crate::graph::model::{Arithmetic, Conv, Dim, Linear, Norm, Op, Pads, Window};
use crate::tensor::{Dtype, Float, Part, Place, Tensor, quoted};

/// Whether an operator may multiply with a weight.
pub(super) fn is_layer(name: &str) -> bool {
    let others = [
        "linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "einsum",
    ];
    name.starts_with("conv") || name.contains("batch_norm") || others.contains(&name)
}

/// Operators that make maps larger or smaller, each channel by itself.
const RESAMPLES: [&str; 12] = [
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
];

/// What a call computes, and the values that it reads.
pub(super) fn operator(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let name = call.node.aten().ok_or(None)?;
    // An operator that changes its input in place computes the same.
    let name = name.strip_suffix('_').unwrap_or(name);
    match (name, call.node.overload()) {
        ("conv1d", _) => conv(call, 1),
        ("conv2d", _) => conv(call, 2),
        ("conv3d", _) => conv(call, 3),
        ("conv_transpose1d", _) => transposed(call, 1),
        ("conv_transpose2d", _) => transposed(call, 2),
        ("conv_transpose3d", _) => transposed(call, 3),
        ("convolution", "default") => convolution(call),
        ("linear", "default") => linear(call),
        ("addmm", "default") => addmm(call),
        ("mm", "default") => product(call, "mat2"),
        ("matmul", "default") => product(call, "other"),
        ("bmm", "default") => batched(call),
        ("einsum", "default") => einsum(call),
        (
            "batch_norm" | "native_batch_norm" | "_native_batch_norm_legit_no_training",
            "default",
        ) => norm(call),
        ("add", "Tensor" | "Scalar") => arithmetic(call, Arithmetic::Add),
        ("sub", "Tensor" | "Scalar") => arithmetic(call, Arithmetic::Sub),
        ("rsub", "Tensor" | "Scalar") => arithmetic(call, Arithmetic::SubFrom),
        ("mul", "Tensor" | "Scalar") => arithmetic(call, Arithmetic::Mul),
        ("div", "Tensor" | "Scalar") => arithmetic(call, Arithmetic::Div),
        ("lerp", "Scalar") => lerp(call),
        (name, "default" | "vec") if RESAMPLES.contains(&name) => unary(call, Op::Resample),
        ("stack", "default") => stack(call),
        ("sum", "dim_IntList") => total(call),
        ("neg", "default") => unary(call, Op::Neg),
        ("avg_pool1d", "default") => pooling(call, 1),
        ("avg_pool2d", "default") => pooling(call, 2),
        ("avg_pool3d", "default") => pooling(call, 3),
        ("mean", "dim") => mean(call),
        ("adaptive_avg_pool1d", "default") => adaptive(call, 1),
        ("adaptive_avg_pool2d" | "_adaptive_avg_pool2d", "default") => adaptive(call, 2),
        ("adaptive_avg_pool3d" | "_adaptive_avg_pool3d", "default") => adaptive(call, 3),
        ("pad" | "constant_pad_nd", "default") => padding(call),
        _ => views::operator(call, name),
    }
}

/// An operator on one value.
fn unary(call: &Call<'_>, op: Op) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    floating(call, &value)?;
    Ok((op, vec![value]))
}

/// The input of an operator over `spatial` axes, which must have batch and channels too.
fn maps(call: &Call<'_>, spatial: usize) -> Result<String, Opaque> {
    let value = call.value()?;
    match call.shape(&value)?.len() == spatial + 2 {
        true => Ok(value),
        false => because("its input has no batch axis"),
    }
}

fn weight(call: &Call<'_>, rank: usize) -> Result<Tensor, Opaque> {
    let weight = call.weight("weight")?.ok_or(None)?;
    match weight.shape().len() == rank && weight.shape().iter().all(|n| *n > 0) {
        true => Ok(weight),
        false => because(format!(
            "its weight {weight} has the shape {:?}",
            weight.shape()
        )),
    }
}

fn positive(call: &Call<'_>, name: &str, rank: usize) -> Result<Vec<usize>, Opaque> {
    let numbers = call.per_axis(name, rank, 1)?;
    match numbers.contains(&0) {
        true => because(format!("its {name} is 0")),
        false => Ok(numbers),
    }
}

fn groups(call: &Call<'_>) -> Result<usize, Opaque> {
    usize::try_from(call.int("groups", 1)?)
        .ok()
        .filter(|n| *n > 0)
        .ok_or(None)
}

fn both(pads: Vec<usize>) -> Pads {
    Pads {
        before: pads.clone(),
        after: pads,
    }
}

fn conv(call: &Call<'_>, spatial: usize) -> Result<(Op, Vec<String>), Opaque> {
    Ok((
        Op::Conv(conv_of(call, spatial)?),
        vec![maps(call, spatial)?],
    ))
}

/// The conv that a call is, whatever it reads.
pub(super) fn conv_of(call: &Call<'_>, spatial: usize) -> Result<Conv, Opaque> {
    let weight = weight(call, spatial + 2)?;
    let (stride, dilation) = (
        positive(call, "stride", spatial)?,
        positive(call, "dilation", spatial)?,
    );
    let pads = match call.text("padding") {
        Ok(Some(text)) if text == "valid" => both(vec![0; spatial]),
        Ok(Some(text)) if text == "same" => same(&weight.shape()[2..], &dilation),
        Ok(Some(_)) => return Err(None),
        Ok(None) | Err(_) => both(call.per_axis("padding", spatial, 0)?),
    };
    Ok(Conv {
        bias: call.weight("bias")?,
        groups: groups(call)?,
        transposed: None,
        weight,
        stride,
        pads,
        dilation,
    })
}

/// Padding that keeps the size: of an odd number, one more behind.
fn same(kernel: &[usize], dilation: &[usize]) -> Pads {
    let all = kernel
        .iter()
        .zip(dilation)
        .map(|(k, d)| (k - 1).saturating_mul(*d));
    Pads {
        before: all.clone().map(|n| n / 2).collect(),
        after: all.map(|n| n - n / 2).collect(),
    }
}

fn transposed(call: &Call<'_>, spatial: usize) -> Result<(Op, Vec<String>), Opaque> {
    let conv = Conv {
        weight: weight(call, spatial + 2)?,
        bias: call.weight("bias")?,
        stride: positive(call, "stride", spatial)?,
        pads: both(call.per_axis("padding", spatial, 0)?),
        dilation: positive(call, "dilation", spatial)?,
        groups: groups(call)?,
        transposed: Some(call.per_axis("output_padding", spatial, 0)?),
    };
    Ok((Op::Conv(conv), vec![maps(call, spatial)?]))
}

/// The one operator that all of them become when a program is decomposed.
fn convolution(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let spatial = call
        .weight("weight")?
        .ok_or(None)?
        .shape()
        .len()
        .checked_sub(2);
    let spatial = spatial.filter(|n| (1..=3).contains(n)).ok_or(None)?;
    match call.flag("transposed", false)? {
        true => transposed(call, spatial),
        false => conv(call, spatial),
    }
}

fn linear(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let linear = Linear {
        bias: call.weight("bias")?,
        ..Linear::product(weight(call, 2)?, false)
    };
    Ok((Op::Linear(linear), vec![call.value()?]))
}

/// A number that a call multiplies with; 1 where it is left out.
fn factor(call: &Call<'_>, name: &str) -> Result<f64, Opaque> {
    match call.number(name)?.unwrap_or(1.0) {
        number if number.is_normal() => Ok(number),
        number => because(format!("it multiplies by {number}")),
    }
}

/// What a decomposed linear layer becomes: `bias + x · matrix`.
fn addmm(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let [alpha, beta] = [factor(call, "alpha")?, factor(call, "beta")?];
    let weight = matrix(call, "mat2")?;
    let bias = call.weight("self")?.ok_or(None)?;
    if bias.shape() != [weight.shape()[0]] {
        return because("its bias is not one number for each output");
    }
    let Input::Value(value) = call.input("mat1")? else {
        return Err(None);
    };
    let linear = Linear {
        weight,
        in_first: false,
        bias: Some(bias),
        alpha,
        beta,
    };
    Ok((Op::Linear(linear), vec![value]))
}

/// A product with a constant matrix, on the right of rows or on the left of `[batch, channels, positions]`.
fn product(call: &Call<'_>, right: &str) -> Result<(Op, Vec<String>), Opaque> {
    match (call.first()?, call.input(right)?) {
        (Input::Value(value), Input::Constant(_)) => {
            let linear = Linear::product(matrix(call, right)?, false);
            Ok((Op::Linear(linear), vec![value]))
        }
        (Input::Constant(left), Input::Value(value))
            if left.shape().len() == 2
                && left.dtype().float().is_some()
                && call.shape(&value)?.len() == 3 =>
        {
            let shape = left.shape().iter().copied().chain([1]).collect();
            Ok((Op::Conv(Conv::point(left.reshaped(shape), 1)), vec![value]))
        }
        _ => Err(None),
    }
}

/// Products one for each of a batch, all with one constant matrix: what a decomposed layer over rows becomes.
fn batched(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let name = call.reads().pop().ok_or(None)?;
    let one = |matrix: &Tensor| match *matrix.shape() {
        [rows, columns] | [1, rows, columns] => matrix.reshaped(vec![rows, columns]).turned(),
        _ => None,
    };
    let stored = [&call.context.spread, &call.context.constants];
    let weight = stored.iter().find_map(|of| of.get(&name).and_then(one));
    let Some(weight) = weight.filter(|weight| weight.dtype().float().is_some()) else {
        return Err(None);
    };
    Ok((Op::Linear(Linear::product(weight, false)), vec![value]))
}

/// A product with a constant matrix that names the axes: over the last axis, or over that of the channels.
fn einsum(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let reads = call.reads();
    let constants = reads.iter().map(|name| call.context.constants.get(name));
    let (value, matrix) = match (&reads[..], &constants.collect::<Vec<_>>()[..]) {
        ([value, _], [None, Some(matrix)]) => ((0, value), *matrix),
        ([_, value], [Some(matrix), None]) => ((1, value), *matrix),
        _ => return Err(None),
    };
    let text = call.text("equation")?.ok_or(None)?;
    let equation = Equation::parse(&text).ok_or(None)?;
    let shape = call.shape(value.1)?;
    let op = layer_of(&equation, value.0, (matrix, &shape), true).ok_or(None)?;
    Ok((op, vec![value.1.clone()]))
}

/// A constant matrix of a product, with its outputs first.
fn matrix(call: &Call<'_>, name: &str) -> Result<Tensor, Opaque> {
    let matrix = call.weight(name)?.ok_or(None)?;
    match (matrix.shape().len(), matrix.turned()) {
        (2, Some(turned)) => Ok(turned),
        (2, None) => because(format!("its matrix {matrix} is a view of another tensor")),
        _ => because("its matrix has another number of axes"),
    }
}

fn norm(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    let (Some(mean), Some(var)) = (call.weight("running_mean")?, call.weight("running_var")?)
    else {
        return because("it keeps no running statistics (track_running_stats=False)");
    };
    let affine = match (call.weight("weight")?, call.weight("bias")?) {
        (Some(weight), Some(bias)) => Some([weight, bias]),
        (None, None) => None,
        _ => return because("it has one of weight and bias"),
    };
    let channels = mean.shape().to_vec();
    let vectors = affine.iter().flatten().chain([&var]);
    if channels.len() != 1 || vectors.into_iter().any(|tensor| tensor.shape() != channels) {
        return because("its vectors have different lengths");
    }
    let eps = call.number("eps")?.ok_or(None)?;
    if !(eps >= 0.0 && eps.is_finite()) {
        return because(format!(
            "its eps is {eps}; expected a finite number, not negative"
        ));
    }
    let norm = Norm {
        mean,
        var,
        affine,
        eps,
        axis: 1,
    };
    Ok((Op::Norm(norm), vec![value]))
}

/// Two values, or a value and a constant.
fn arithmetic(call: &Call<'_>, how: Arithmetic) -> Result<(Op, Vec<String>), Opaque> {
    let alpha = factor(call, "alpha")?;
    let neutral = match how {
        Arithmetic::Add | Arithmetic::Sub => Some(0.0),
        Arithmetic::Mul | Arithmetic::Div => Some(1.0),
        Arithmetic::SubFrom => None,
    };
    let constant = match call.is_number("other") {
        // As `sum(branches)` begins in Python.
        true if call.number("other")? == neutral => {
            let value = call.value()?;
            floating(call, &value)?;
            return Ok((Op::Identity, vec![value]));
        }
        true => Input::Constant(scalar(call, "other")?),
        false => call.input("other")?,
    };
    // In a decomposed program a number may stand first: `1 − x`.
    let first = match call.is_number("self") {
        true => Input::Constant(scalar(call, "self")?),
        false => call.first()?,
    };
    let (op, inputs) = match (first, constant) {
        (Input::Value(a), Input::Value(b)) => {
            let factors = match how {
                Arithmetic::Add => [1.0, alpha],
                Arithmetic::Sub => [1.0, -alpha],
                Arithmetic::SubFrom => [-alpha, 1.0],
                Arithmetic::Mul | Arithmetic::Div => return Err(None),
            };
            alike(call, [&a, &b])?;
            (Op::Sum(factors.to_vec()), vec![a, b])
        }
        _ if alpha != 1.0 => return because("it multiplies a constant by `alpha`"),
        (Input::Value(value), Input::Constant(constant)) => {
            (Op::WithConstant(how, constant), vec![value])
        }
        (Input::Constant(constant), Input::Value(value)) => {
            let how = match how {
                Arithmetic::Sub => Arithmetic::SubFrom,
                Arithmetic::SubFrom => Arithmetic::Sub,
                Arithmetic::Div => return Err(None),
                Arithmetic::Add | Arithmetic::Mul => how,
            };
            (Op::WithConstant(how, constant), vec![value])
        }
        _ => return Err(None),
    };
    if let Op::WithConstant(_, constant) = &op {
        fits(constant, &call.shape(&inputs[0])?)?;
    }
    for input in &inputs {
        floating(call, input)?;
    }
    Ok((op, inputs))
}

/// A number that stands in the call under this name.
fn scalar(call: &Call<'_>, key: &str) -> Result<Tensor, Opaque> {
    let number = call.number(key)?.ok_or(None)?;
    let part = Part {
        name: format!("{}.{key}", call.node.shown()),
        dtype: Dtype::from(Float::F64),
        shape: Vec::new(),
        place: Place::InMemory(Arc::from(number.to_le_bytes())),
    };
    Tensor::new(part).map_err(Some)
}

/// Whether a constant can be broadcast to a value without the value being broadcast to it.
fn fits(constant: &Tensor, value: &[Dim]) -> Result<(), Opaque> {
    let shape = constant.shape();
    let Some(missing) = value.len().checked_sub(shape.len()) else {
        return because(format!(
            "the constant {constant} has more dimensions than what it meets"
        ));
    };
    let fit = shape
        .iter()
        .zip(&value[missing..])
        .all(|(n, dim)| *n == 1 || *dim == Dim::Known(*n));
    match fit && constant.dtype().float().is_some() {
        true => Ok(()),
        false => because(format!(
            "the constant {constant} is {} {shape:?}, which is not broadcast to its other input",
            constant.dtype()
        )),
    }
}

/// Whether a value is of a floating-point type, and the result of the same.
fn floating(call: &Call<'_>, value: &str) -> Result<(), Opaque> {
    let of = |name: &str| call.context.dtype(name).and_then(|dtype| dtype.float());
    match of(value) {
        Some(float) if of(&call.output()?) == Some(float) => Ok(()),
        _ => because(format!("the type of {} is not kept", quoted(value))),
    }
}

fn pooling(call: &Call<'_>, spatial: usize) -> Result<(Op, Vec<String>), Opaque> {
    let value = maps(call, spatial)?;
    let kernel = positive(call, "kernel_size", spatial)?;
    let stride = match call.ints("stride")?.filter(|list| !list.is_empty()) {
        Some(_) => positive(call, "stride", spatial)?,
        None => kernel.clone(),
    };
    let pads = call.per_axis("padding", spatial, 0)?;
    let divisor = call.number("divisor_override")?;
    let taps = kernel
        .iter()
        .try_fold(1usize, |n, k| n.checked_mul(*k))
        .ok_or(None)?;
    let counted = call.flag("count_include_pad", true)? || pads.iter().all(|n| *n == 0);
    if !counted || divisor.is_some_and(|divisor| divisor != taps as f64) {
        return because("its divisor is not that of its window everywhere");
    }
    let window = Window {
        kernel,
        stride,
        pads: both(pads),
    };
    if call.flag("ceil_mode", false)? {
        let (from, to) = (call.shape(&value)?, call.shape(&call.output()?)?);
        let floor = |axis: usize| match (&from[axis + 2], to.get(axis + 2)) {
            (Dim::Known(n), Some(Dim::Known(out))) => {
                let padded = n.saturating_add(2 * window.pads.before[axis]);
                padded
                    .checked_sub(window.kernel[axis])
                    .map(|n| n / window.stride[axis] + 1)
                    == Some(*out)
            }
            _ => false,
        };
        if !(0..spatial).all(floor) {
            return because("its last windows go over the border (ceil_mode)");
        }
    }
    Ok((Op::AvgPool(window), vec![value]))
}

/// The mean over the whole of some axes.
/// Whether two values certainly have one shape.
fn alike(call: &Call<'_>, [a, b]: [&str; 2]) -> Result<(), Opaque> {
    match call.shape(a)? != call.shape(b)? || call.shape(a)?.contains(&Dim::Any) {
        true => because("its inputs have different shapes"),
        false => Ok(()),
    }
}

/// What lies between two values: so much of the way from the first to the second.
fn lerp(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let Input::Value(end) = call.input("end")? else {
        return Err(None);
    };
    let (start, weight) = (call.value()?, call.number("weight")?.ok_or(None)?);
    floating(call, &start)?;
    alike(call, [&start, &end])?;
    match weight.is_finite() {
        true => Ok((Op::Sum(vec![1.0 - weight, weight]), vec![start, end])),
        false => Err(None),
    }
}

fn stack(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let values = call.values("tensors")?;
    let rank = call.shape(&call.output()?)?.len();
    Ok((Op::Stack(call.axis("dim", 0, rank)?), values))
}

fn total(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    match mean(call)? {
        (Op::Mean { axes, keeps }, values) => Ok((Op::Total { axes, keeps }, values)),
        _ => Err(None),
    }
}

fn mean(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    floating(call, &value)?;
    let rank = call.shape(&value)?.len();
    let list = call.ints("dim")?.filter(|list| !list.is_empty());
    let op = Op::Mean {
        axes: axes(&list.ok_or(None)?, rank)?,
        keeps: call.flag("keepdim", false)?,
    };
    Ok((op, vec![value]))
}

/// Means over windows that lie beside each other, of which there are as many as wanted.
fn adaptive(call: &Call<'_>, spatial: usize) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    floating(call, &value)?;
    let rank = call.shape(&value)?.len();
    let first = rank.checked_sub(spatial).ok_or(None)?;
    let op = Op::Mean {
        axes: (first..rank).collect(),
        keeps: true,
    };
    Ok((op, vec![value]))
}

/// Zeros around spatial axes. PyTorch counts them from the last axis on, before and behind.
fn padding(call: &Call<'_>) -> Result<(Op, Vec<String>), Opaque> {
    let value = call.value()?;
    if call.text("mode")?.is_some_and(|mode| mode != "constant") {
        return because("it pads with other things than zeros");
    }
    if call.number("value")?.is_some_and(|value| value != 0.0) {
        return because("it pads with a number that is not zero");
    }
    let rank = call.shape(&value)?.len();
    let spatial = rank
        .checked_sub(2)
        .filter(|n| (1..=3).contains(n))
        .ok_or(None)?;
    let list = call.ints("pad")?.ok_or(None)?;
    let mut pads = both(vec![0; spatial]);
    for (i, pair) in list.chunks(2).enumerate() {
        let &[before, after] = pair else {
            return Err(None);
        };
        let axis = spatial.checked_sub(i + 1);
        match (axis, u16::try_from(before), u16::try_from(after)) {
            (Some(axis), Ok(before), Ok(after)) => {
                (pads.before[axis], pads.after[axis]) = (before.into(), after.into());
            }
            (None, Ok(0), Ok(0)) => {}
            _ => return because("it cuts, or pads what is no spatial axis"),
        }
    }
    Ok((Op::Pad(pads), vec![value]))
}
