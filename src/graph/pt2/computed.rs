//! Calls of operators whose inputs are all constant: what they compute is constant, too.

use super::call::{Call, Input, Opaque};
use super::made::made;
use super::moved::{axes, from_front, listed, parts, pointed, taken};
use super::ops;
use super::steps::{Operand, Plan, known, operand};
use crate::graph::arrays::{Reduction, larger, smaller, within};
use crate::graph::constants::{Budget, Make};
use crate::graph::contract::Equation;
use crate::graph::convolve::{Slide, linear, repeats};
use crate::graph::kinds::Kind;
use crate::graph::model::Conv;
use crate::tensor::{Checkpoint, Float, Tensor};

/// What a call computes of constants alone.
pub(super) struct Computed {
    /// The values, each with its name; one that is missing here is not known.
    pub(super) values: Vec<(String, Tensor)>,
    /// What they are made of.
    pub(super) of: Vec<Tensor>,
}

/// The tensors that a call computes of constants alone, and what they are made of.
pub(super) fn computed(
    call: &Call<'_>,
    checkpoint: &Checkpoint,
    budget: &mut Budget,
) -> Option<Computed> {
    let name = match call.node.aten()? {
        "__and__" => "bitwise_and",
        "__or__" => "bitwise_or",
        "__xor__" => "bitwise_xor",
        name => name.strip_suffix('_').unwrap_or(name),
    };
    let of: Vec<Tensor> = call
        .reads()
        .iter()
        .map(|name| call.context.constants.get(name).cloned())
        .collect::<Option<_>>()?;
    // A matrix across needs no number of it.
    if let [matrix] = &of[..]
        && exchanges(call, name, matrix)
    {
        let turned = matrix.turned()?;
        let output = call.output().ok()?;
        let fits = known(call, &output)?.0 == turned.shape();
        return (fits && call.context.dtype(&output)? == *turned.dtype()).then(|| Computed {
            values: vec![(output, turned)],
            of,
        });
    }
    if !of.iter().all(|tensor| within(tensor.shape())) {
        return None;
    }
    let mut values = Vec::new();
    for (output, plan) in plans(call, name, &of).ok()? {
        let (shape, kind) = known(call, &output)?;
        let made = match plan {
            Some(plan) => plan.followed(checkpoint, budget)?,
            None => made(call, name, (&shape, kind), budget).ok()??,
        };
        let fits = made.numbers.shape() == shape && made.kind == Some(kind);
        let made = fits.then(|| made.tensor(&output))??;
        values.push((output, made));
    }
    Some(Computed { values, of })
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

/// How a call makes each of its results; none for one that is made of nothing.
fn plans(
    call: &Call<'_>,
    name: &str,
    of: &[Tensor],
) -> Result<Vec<(String, Option<Plan>)>, Opaque> {
    let outputs = call.outputs();
    let [first, ..] = &outputs[..] else {
        return Err(None);
    };
    let one = |tensor: &Tensor| [Operand::Tensor(tensor.clone())];
    match (name, call.node.overload(), of) {
        ("var_mean" | "std_mean", _, [tensor]) => {
            let [how, mean] = match name {
                "var_mean" => ["var", "mean"],
                _ => ["std", "mean"],
            }
            .map(|how| reduction(call, how, tensor.shape()));
            let both = outputs
                .into_iter()
                .zip([how?.ok_or(None)?, mean?.ok_or(None)?]);
            Ok(both
                .map(|(name, how)| (name, Some(Plan::new(how, one(tensor)))))
                .collect())
        }
        ("split" | "split_with_sizes" | "chunk" | "unsafe_split" | "unsafe_chunk", _, [tensor]) => {
            parts(call, tensor, outputs)
        }
        ("unbind", "int", [tensor]) => {
            let axis = call.axis("dim", 0, tensor.shape().len())?;
            let pick = |(index, name)| {
                let how = Make::Pick { axis, index };
                (name, Some(Plan::new(how, one(tensor))))
            };
            Ok(outputs.into_iter().enumerate().map(pick).collect())
        }
        // The indices beside the numbers are not worked out.
        ("max" | "min", "dim", [tensor]) => {
            let how = reduction(
                call,
                if name == "max" { "amax" } else { "amin" },
                tensor.shape(),
            )?;
            let plan = Plan::new(how.ok_or(None)?, one(tensor));
            Ok(vec![(first.clone(), Some(plan))])
        }
        ("_native_batch_norm_legit", "no_stats", _) => {
            let plan = standardised(call)?.ok_or(None)?;
            Ok(vec![(first.clone(), Some(plan))])
        }
        _ if outputs.len() == 1 => {
            let (shape, kind) = known(call, first).ok_or(None)?;
            let plan = plan(call, name, of, (&shape, kind))?;
            Ok(vec![(first.clone(), plan)])
        }
        _ => Err(None),
    }
}

/// How a call makes its one result; none where it makes it of nothing, or is not known.
fn plan(
    call: &Call<'_>,
    name: &str,
    of: &[Tensor],
    (shape, kind): (&[usize], Kind),
) -> Result<Option<Plan>, Opaque> {
    let Some(first) = of.first() else {
        return Ok(None);
    };
    let (first, rank) = (first.shape(), first.shape().len());
    let all = || of.iter().cloned().map(Operand::Tensor);
    let plain = |make: Make| Ok(Some(Plan::new(make, all())));
    let alone = |make: Make| Ok(Some(Plan::new(make, all().take(1))));
    let on = |make: Make, keys: &[&str]| {
        let of = keys.iter().map(|key| operand(call, key));
        let of = of.collect::<Result<Vec<_>, Opaque>>()?;
        Ok(Some(Plan::new(make, of)))
    };
    match (name, call.node.overload()) {
        (_, "default") if each(name).is_some() && of.len() == 1 => {
            plain(Make::Each(each(name).ok_or(None)?))
        }
        ("softplus", "default") if defaults(call, &[("beta", 1.0), ("threshold", 20.0)])? => {
            plain(Make::Each(|x| if x > 20.0 { x } else { x.exp().ln_1p() }))
        }
        ("add" | "sub" | "rsub", "Tensor" | "Scalar") => added(call, name, kind),
        ("mul", "Tensor" | "Scalar") => on(Make::Both(|a, b| a * b), &["self", "other"]),
        ("div", "Tensor" | "Scalar") => on(Make::Both(|a, b| a / b), &["self", "other"]),
        ("pow", "Tensor_Scalar" | "Tensor_Tensor" | "Scalar") => {
            on(Make::Both(f64::powf), &["self", "exponent"])
        }
        ("fmod", "Tensor" | "Scalar") => on(Make::Both(|a, b| a % b), &["self", "other"]),
        ("remainder", "Tensor" | "Scalar") => on(
            Make::Both(|a, b| a - b * (a / b).floor()),
            &["self", "other"],
        ),
        ("maximum", "default") | ("max", "other") => on(Make::Both(larger), &["self", "other"]),
        ("minimum", "default") | ("min", "other") => on(Make::Both(smaller), &["self", "other"]),
        (_, "Tensor" | "Scalar" | "default") if holds(name).is_some() => {
            on(Make::Holds(holds(name).ok_or(None)?), &["self", "other"])
        }
        ("logical_not" | "bitwise_not", "default") => {
            let of = [operand(call, "self")?, Operand::Number(0.0)];
            Ok(Some(Plan::new(Make::Holds(|a, b| a == b), of)))
        }
        ("where", "self" | "ScalarOther" | "ScalarSelf") => {
            on(Make::Choose, &["condition", "self", "other"])
        }
        ("masked_fill", "Scalar" | "Tensor") => on(Make::Choose, &["mask", "value", "self"]),
        ("clamp" | "clip" | "clamp_min" | "clamp_max", "default") => {
            alone(Make::Clamp([call.number("min")?, call.number("max")?]))
        }
        ("clamp_min", "Tensor") => on(Make::Both(larger), &["self", "min"]),
        ("clamp_max", "Tensor") => on(Make::Both(smaller), &["self", "max"]),
        ("hardtanh", "default") => {
            let [least, most] = [("min_val", -1.0), ("max_val", 1.0)]
                .map(|(key, default)| Ok::<_, Opaque>(call.number(key)?.unwrap_or(default)));
            alone(Make::Clamp([Some(least?), Some(most?)]))
        }
        ("softmax" | "log_softmax", "int") | ("_softmax" | "_log_softmax", "default") => {
            let (axis, log) = (call.axis("dim", 0, rank)?, name.contains("log"));
            alone(Make::Softmax { axis, log })
        }
        ("cumsum", "default") => alone(Make::Cumulate(call.axis("dim", 0, rank)?)),
        ("triu" | "tril", "default") => alone(Make::Triangle {
            diagonal: call.int("diagonal", 0)?,
            upper: name == "triu",
        }),
        ("einsum", "default") => match call.text("equation")? {
            Some(text) => plain(Make::Contract(Equation::parse(&text).ok_or(None)?)),
            None => Ok(None),
        },
        ("outer" | "ger", "default") => {
            plain(Make::Contract(Equation::parse("x,z->xz").ok_or(None)?))
        }
        ("kron", "default") => plain(Make::Kron),
        ("mm" | "bmm" | "matmul" | "mv" | "dot" | "vdot", "default") => plain(Make::Product),
        ("conv1d", _) => slid(call, ops::conv_of(call, 1)?),
        ("conv2d", _) => slid(call, ops::conv_of(call, 2)?),
        ("conv3d", _) => slid(call, ops::conv_of(call, 3)?),
        ("convolution", "default") if !call.flag("transposed", false)? => {
            slid(call, ops::conv_of(call, rank.checked_sub(2).ok_or(None)?)?)
        }
        ("batch_norm", "default") => standardised(call),
        ("upsample_linear1d" | "upsample_bilinear2d" | "upsample_trilinear3d", "vec") => {
            resized(call, first, shape)
        }
        ("upsample_nearest1d" | "upsample_nearest2d" | "upsample_nearest3d", "vec")
            if !call.is_given("scale_factors") =>
        {
            alone(Make::Take(repeats(first, shape).ok_or(None)?))
        }
        ("pad" | "constant_pad_nd", "default") => {
            Ok(padding(call, first)?.map(|make| Plan::new(make, all())))
        }
        ("select", "int") => {
            let axis = call.axis("dim", 0, rank)?;
            let index = from_front(call.int("index", 0)?, first[axis])?;
            plain(Make::Pick { axis, index })
        }
        ("_weight_norm", "default") => plain(Make::WeightNorm(match call.int("dim", 0)? {
            -1 => None,
            _ => Some(call.axis("dim", 0, rank)?),
        })),
        ("expand" | "expand_as" | "broadcast_to", _) => alone(Make::Expand(shape.to_vec())),
        ("repeat" | "tile", "default") => {
            let key = if name == "tile" { "dims" } else { "repeats" };
            let times = call.ints(key)?.ok_or(None)?;
            let times = times.iter().map(|n| usize::try_from(*n).map_err(|_| None));
            let mut times = times.collect::<Result<Vec<usize>, Opaque>>()?;
            if name == "tile" && times.len() < rank {
                times.splice(0..0, vec![1; rank - times.len()]);
            }
            plain(Make::Repeat(times))
        }
        ("permute", "default") => {
            let dims = call.ints("dims")?.ok_or(None)?;
            plain(Make::Permute(axes(&dims, rank)?))
        }
        ("transpose", "int") | ("swapdims" | "swapaxes" | "mT", "default") => {
            let [a, b] = match name {
                "swapaxes" => ["axis0", "axis1"],
                _ => ["dim0", "dim1"],
            };
            // The last two, where it says none.
            let mut order: Vec<usize> = (0..rank).collect();
            order.swap(call.axis(a, -2, rank)?, call.axis(b, -1, rank)?);
            plain(Make::Permute(order))
        }
        ("copy", "default") => {
            let of = [operand(call, "src")?];
            Ok(Some(Plan::new(Make::Expand(shape.to_vec()), of)))
        }
        ("cat" | "concat" | "stack", "default") => listed(call, of, name == "stack"),
        ("to", "dtype" | "dtype_layout") | ("_to_copy" | "type_as", "default") => {
            alone(Make::Cast(kind))
        }
        _ => match taken(call, name, first)? {
            Some(how) => Ok(Some(Plan {
                how,
                of: all().collect(),
            })),
            None => match reduction(call, name, first)? {
                Some(make) => plain(make),
                None => pointed(call, name, first),
            },
        },
    }
}

/// Operators that go number by number.
fn each(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "neg" => |x| -x,
        "sqrt" => f64::sqrt,
        "rsqrt" => |x| 1.0 / x.sqrt(),
        "reciprocal" => |x| 1.0 / x,
        "square" => |x| x * x,
        "abs" => f64::abs,
        "sign" | "sgn" => |x| f64::from(x > 0.0) - f64::from(x < 0.0),
        "exp" => f64::exp,
        "exp2" => f64::exp2,
        "expm1" => f64::exp_m1,
        "log" => f64::ln,
        "log2" => f64::log2,
        "log10" => f64::log10,
        "log1p" => f64::ln_1p,
        "sin" => f64::sin,
        "cos" => f64::cos,
        "tanh" => f64::tanh,
        "erf" => libm::erf,
        "sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
        "relu" => |x| larger(x, 0.0),
        "relu6" => |x| smaller(larger(x, 0.0), 6.0),
        "floor" => f64::floor,
        "ceil" => f64::ceil,
        "trunc" => f64::trunc,
        "round" => f64::round_ties_even,
        _ => return None,
    })
}

/// Operators that say whether something holds.
fn holds(name: &str) -> Option<fn(f64, f64) -> bool> {
    Some(match name {
        "eq" => |a, b| a == b,
        "ne" => |a, b| a != b,
        "lt" => |a, b| a < b,
        "le" => |a, b| a <= b,
        "gt" => |a, b| a > b,
        "ge" => |a, b| a >= b,
        "logical_and" | "bitwise_and" => |a, b| a != 0.0 && b != 0.0,
        "logical_or" | "bitwise_or" => |a, b| a != 0.0 || b != 0.0,
        "logical_xor" | "bitwise_xor" => |a, b| (a != 0.0) != (b != 0.0),
        _ => return None,
    })
}

/// Whether numbers of a call are those that it has when it says nothing.
fn defaults(call: &Call<'_>, all: &[(&str, f64)]) -> Result<bool, Opaque> {
    for (key, default) in all {
        if call.number(key)?.is_some_and(|number| number != *default) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A sum or a difference, of which the second summand may be taken `alpha` times.
fn added(call: &Call<'_>, name: &str, kind: Kind) -> Result<Option<Plan>, Opaque> {
    let (a, b) = (operand(call, "self")?, operand(call, "other")?);
    let of = if name == "rsub" { [b, a] } else { [a, b] };
    let alpha = call.number("alpha")?.unwrap_or(1.0);
    // It is no finer than what it is multiplied with.
    let alpha = match kind {
        Kind::Float(Float::F32 | Float::F16 | Float::Bf16) => Float::F32.round(alpha),
        _ => alpha,
    };
    Ok(Some(Plan::new(
        match (name, alpha) {
            ("add", 1.0) => Make::Both(|a, b| a + b),
            (_, 1.0) => Make::Both(|a, b| a - b),
            ("add", alpha) => Make::AddTimes(alpha),
            (_, alpha) => Make::AddTimes(-alpha),
        },
        of,
    )))
}

/// A conv of constants.
fn slid(call: &Call<'_>, conv: Conv) -> Result<Option<Plan>, Opaque> {
    let Input::Constant(maps) = call.first()? else {
        return Err(None);
    };
    let slide = Slide::of(&conv);
    let of = [Some(maps), Some(conv.weight), conv.bias];
    let of = of.into_iter().flatten().map(Operand::Tensor);
    Ok(Some(Plan::new(Make::Slide(slide), of)))
}

/// A norm in training mode, of a constant.
fn standardised(call: &Call<'_>) -> Result<Option<Plan>, Opaque> {
    for key in ["running_mean", "running_var"] {
        if call.is_given(key) {
            return Ok(None);
        }
    }
    let eps = call.number("eps")?.filter(|eps| *eps >= 0.0).ok_or(None)?;
    if !call.flag("training", false)? {
        return Ok(None);
    }
    let Input::Constant(maps) = call.first()? else {
        return Err(None);
    };
    let (weight, bias) = (call.weight("weight")?, call.weight("bias")?);
    let factors = weight.is_some();
    let of = [Some(maps), weight, bias].into_iter().flatten();
    let of = of.map(Operand::Tensor);
    Ok(Some(Plan::new(Make::Standardise { eps, factors }, of)))
}

/// Maps that are stretched to a size; what a factor makes of them is another matter.
fn resized(call: &Call<'_>, first: &[usize], shape: &[usize]) -> Result<Option<Plan>, Opaque> {
    let Input::Constant(maps) = call.first()? else {
        return Err(None);
    };
    if call.is_given("scale_factors") || first.len() != shape.len() {
        return Ok(None);
    }
    let stay = call.flag("align_corners", false)?;
    let axis = |axis: usize| Some((axis, linear(first[axis], shape[axis], stay)?));
    let axes = (2..first.len()).map(axis).collect::<Option<_>>();
    Ok(axes.map(|axes| Plan::new(Make::Blend(axes), [Operand::Tensor(maps)])))
}

/// Zeros around a constant of this shape.
fn padding(call: &Call<'_>, shape: &[usize]) -> Result<Option<Make>, Opaque> {
    let other = call.text("mode")?.is_some_and(|mode| mode != "constant");
    if other || call.number("value")?.is_some_and(|value| value != 0.0) {
        return Ok(None);
    }
    // The last axis comes first.
    let pads = call.ints("pad")?.ok_or(None)?;
    let pads = pads.iter().map(|n| usize::try_from(*n).map_err(|_| None));
    let pads = pads.collect::<Result<Vec<_>, Opaque>>()?;
    let mut around = vec![[0, 0]; shape.len()];
    for (axis, pair) in around.iter_mut().rev().zip(pads.chunks_exact(2)) {
        *axis = [pair[0], pair[1]];
    }
    let fits = pads.len().is_multiple_of(2) && pads.len() <= 2 * shape.len();
    Ok(fits.then_some(Make::Pad(around)))
}

/// A call that makes one number of each of some axes.
fn reduction(call: &Call<'_>, name: &str, shape: &[usize]) -> Result<Option<Make>, Opaque> {
    let correction = || -> Result<f64, Opaque> {
        let one = call.number("correction")?.unwrap_or(1.0);
        Ok(match call.flag("unbiased", true)? {
            true => one,
            false => 0.0,
        })
    };
    let how = match (name, call.node.overload()) {
        ("sum", _) => Reduction::Sum,
        ("mean", _) => Reduction::Mean,
        ("prod", "default" | "dim_int") => Reduction::Product,
        ("amax", _) | ("max", "default") => Reduction::Max,
        ("amin", _) | ("min", "default") => Reduction::Min,
        ("var", _) => Reduction::Variance(correction()?),
        ("std", _) => Reduction::Deviation(correction()?),
        ("linalg_vector_norm", _) => match call.number("ord")? {
            None => Reduction::Norm,
            Some(2.0) => Reduction::Norm,
            Some(1.0) => Reduction::Absolute,
            Some(_) => return Ok(None),
        },
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
    Ok(Some(Make::Reduce { how, axes, keep }))
}
