//! The shapes of values, as far as they follow from what the file says. What is not worked out is not known, which is never wrong.

use super::dims::{
    Shape, axis_of, dim_of, first_axes, known, on_axes, product, reshaped, squeezed, unsqueezed,
};
use super::ints::part_of_shape;
use super::proto::{Attribute, Node, is_onnx};
use super::reading::Reading;
use crate::graph::contract::Equation;
use crate::graph::model::Dim;

/// Operators that keep the shape of their first input.
const KEEP: &[&str] = &[
    "Abs",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Mish",
    "Neg",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Round",
    "ScatterND",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tanh",
    "ThresholdedRelu",
    "GroupNormalization",
    "LRN",
];

/// The shapes of what a node computes; and what its output holds, where that is a shape.
pub(super) fn infer(reading: &mut Reading<'_>, node: &Node) -> Vec<Option<Shape>> {
    if !is_onnx(&node.domain) {
        return Vec::new();
    }
    if let Some(held) = held(reading, node)
        && let [Some(output)] = node.outputs[..]
    {
        reading.shapes.insert(output, held);
    }
    if node.op == "Split" {
        return split(reading, node).unwrap_or_default();
    }
    vec![one(reading, node)]
}

fn shape_of(reading: &Reading<'_>, node: &Node, index: usize) -> Option<Shape> {
    if let Some(tensor) = reading.constant(node.inputs.get(index).copied().flatten()) {
        return Some(tensor.shape().iter().map(|d| Dim::Known(*d)).collect());
    }
    let id = reading.value(node, index)?;
    reading.values.values[id.0].shape.clone()
}

/// The dimensions that an input holds, if it holds a shape.
fn dims(reading: &Reading<'_>, node: &Node, index: usize) -> Option<Shape> {
    let name = (*node.inputs.get(index)?)?;
    if let Some(held) = reading.shapes.get(&name) {
        return Some(held.clone());
    }
    Some(reading.ints(name)?.into_iter().map(dim_of).collect())
}

/// What the output holds, for the operators that shapes are made with.
fn held(reading: &Reading<'_>, node: &Node) -> Option<Shape> {
    const LONGEST: usize = 64;
    let held = match &*node.op {
        "Shape" => {
            let shape = shape_of(reading, node, 0)?;
            part_of_shape(reading, node, &shape)?
        }
        "Concat" => {
            let parts = (0..node.inputs.len()).map(|i| dims(reading, node, i));
            parts.collect::<Option<Vec<_>>>()?.concat()
        }
        "Slice" => {
            let from = dims(reading, node, 0)?;
            let bounds = |i| reading.ints(node.inputs.get(i).copied().flatten()?);
            let ([start], [end]) = (&bounds(1)?[..], &bounds(2)?[..]) else {
                return None;
            };
            if node.inputs.get(4).copied().flatten().is_some() && bounds(4)? != [1] {
                return None;
            }
            let rank = from.len() as i64;
            let bound =
                |i: i64| if i < 0 { i.saturating_add(rank) } else { i }.clamp(0, rank) as usize;
            from.get(bound(*start)..bound(*end))?.to_vec()
        }
        "Gather" => {
            let from = dims(reading, node, 0)?;
            let indices = reading.ints(node.inputs.get(1).copied().flatten()?)?;
            let at = indices
                .iter()
                .map(|i| axis_of(*i, from.len()).map(|i| from[i].clone()));
            at.collect::<Option<Vec<_>>>()?
        }
        "Identity" => dims(reading, node, 0)?,
        "Cast" => match node.attributes.get("to") {
            Some(Attribute::Int(6 | 7)) => dims(reading, node, 0)?,
            _ => return None,
        },
        // A list of several would become a table.
        "Unsqueeze" | "Squeeze" => dims(reading, node, 0).filter(|held| held.len() == 1)?,
        _ => return None,
    };
    (held.len() <= LONGEST).then_some(held)
}

fn one(reading: &Reading<'_>, node: &Node) -> Option<Shape> {
    let shape = |i| shape_of(reading, node, i);
    match &*node.op {
        op if KEEP.contains(&op) => shape(0),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Sum" => {
            let shapes = (0..node.inputs.len())
                .map(shape)
                .collect::<Option<Vec<_>>>()?;
            shapes.into_iter().reduce(|a, b| broadcast(&a, &b))
        }
        "Expand" => Some(broadcast(&shape(0)?, &dims(reading, node, 1)?)),
        "Range" => {
            let number = |index| match &dims(reading, node, index)?[..] {
                [one] => Some(one.clone()),
                _ => None,
            };
            let counts = (number(0)?, number(2)?) == (Dim::Known(0), Dim::Known(1));
            counts.then(|| Some(vec![number(1)?]))?
        }
        "Conv" => windows(reading, node, Some(shape(1)?)),
        "AveragePool" | "MaxPool" | "LpPool" => windows(reading, node, None),
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let shape = shape(0)?;
            let ones = std::iter::repeat_n(Dim::Known(1), shape.len().checked_sub(2)?);
            Some(shape[..2].iter().cloned().chain(ones).collect())
        }
        "ConvTranspose" => {
            let (input, weight) = (shape(0)?, shape(1)?);
            let groups = usize::try_from(reading.attribute_int(node, "group", 1)).ok()?;
            let channels = match weight.get(1)? {
                Dim::Known(n) => Dim::Known(n.checked_mul(groups)?),
                _ => Dim::Any,
            };
            let rest = std::iter::repeat_n(Dim::Any, input.len().checked_sub(2)?);
            Some(
                [input[0].clone(), channels]
                    .into_iter()
                    .chain(rest)
                    .collect(),
            )
        }
        "Einsum" => {
            let text = std::str::from_utf8(reading.attribute_text(node, "equation")?).ok()?;
            let shapes = (0..node.inputs.len()).map(shape);
            Equation::parse(text)?.shape(&shapes.collect::<Option<Vec<_>>>()?)
        }
        "MatMul" => {
            let (a, b) = (shape(0)?, shape(1)?);
            let [.., _, columns] = &b[..] else {
                return None;
            };
            let (_, rows) = a.split_last()?;
            if a.len() < 2 {
                return None;
            }
            if b.len() == 2 {
                return Some(rows.iter().cloned().chain([columns.clone()]).collect());
            }
            let batch = broadcast(&a[..a.len() - 2], &b[..b.len() - 2]);
            Some(
                batch
                    .into_iter()
                    .chain([rows.last()?.clone(), columns.clone()])
                    .collect(),
            )
        }
        "Gemm" => {
            let (a, b) = (shape(0), shape(1)?);
            let of_a = usize::from(reading.attribute_int(node, "transA", 0) != 0);
            let of_b = usize::from(reading.attribute_int(node, "transB", 0) == 0);
            let rows = a.and_then(|a| a.get(of_a).cloned()).unwrap_or(Dim::Any);
            Some(vec![rows, b.get(of_b)?.clone()])
        }
        "Flatten" => {
            let shape = shape(0);
            let Some(shape) = shape else {
                return Some(vec![Dim::Any, Dim::Any]);
            };
            let axis = reading.attribute_int(node, "axis", 1);
            let axis = if axis < 0 {
                axis.checked_add(shape.len() as i64)?
            } else {
                axis
            };
            let (a, b) = shape.split_at_checked(usize::try_from(axis).ok()?)?;
            let join = |dims: &[Dim]| match dims {
                [one] => one.clone(),
                dims => product(dims).map_or(Dim::Any, Dim::Known),
            };
            Some(vec![join(a), join(b)])
        }
        "Reshape" => {
            let wanted = dims(reading, node, 1)?;
            // Then a 0 is no axis to keep, and a number that is not known may be one.
            let zeros = reading.attribute_int(node, "allowzero", 0) != 0;
            if zeros && wanted.contains(&Dim::Known(0)) {
                return None;
            }
            match shape(0) {
                Some(shape) => reshaped(&shape, &wanted),
                None => Some(
                    wanted
                        .iter()
                        .map(|dim| match dim {
                            Dim::Known(0) => Dim::Any,
                            dim => dim.clone(),
                        })
                        .collect(),
                ),
            }
        }
        "Transpose" => {
            let shape = shape(0)?;
            let order: Vec<usize> = match node.attributes.get("perm") {
                Some(Attribute::Ints(perm)) => perm
                    .iter()
                    .map(|p| axis_of(*p, shape.len()))
                    .collect::<Option<_>>()?,
                None => (0..shape.len()).rev().collect(),
                Some(_) => return None,
            };
            (order.len() == shape.len()).then(|| order.iter().map(|i| shape[*i].clone()).collect())
        }
        "Unsqueeze" => unsqueezed(&shape(0)?, &reading.list(node, 1, "axes")?),
        "Squeeze" => squeezed(&shape(0)?, &reading.list(node, 1, "axes")?),
        "Concat" => {
            let shapes = (0..node.inputs.len())
                .map(shape)
                .collect::<Option<Vec<_>>>()?;
            let mut out = shapes.first()?.clone();
            let axis = axis_of(reading.attribute_int(node, "axis", 0), out.len())?;
            let along: Vec<Dim> = shapes
                .iter()
                .map(|s| s.get(axis).cloned())
                .collect::<Option<_>>()?;
            let sum =
                known(&along).and_then(|n| n.iter().try_fold(0usize, |a, b| a.checked_add(*b)));
            out[axis] = sum.map_or(Dim::Any, Dim::Known);
            Some(out)
        }
        "Slice" => sliced(reading, node),
        "Pad" => padded(reading, node),
        "Resize" | "Upsample" => {
            let shape = shape(0)?;
            let unknown = vec![Dim::Any; shape.len()];
            Some(resized(reading, node, &shape).unwrap_or(unknown))
        }
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL1" | "ReduceL2"
        | "ReduceProd" | "ReduceSumSquare" | "ReduceLogSum" | "ReduceLogSumExp" => {
            let mut shape = shape(0)?;
            let mut axes = reading.list_or(node, 1, "axes", Vec::new)?;
            // No axes are all of them, or none where the node says so.
            match axes.is_empty() {
                true if reading.attribute_int(node, "noop_with_empty_axes", 0) != 0 => {
                    return Some(shape);
                }
                true => axes = first_axes(shape.len()),
                false => {}
            }
            for axis in &axes {
                let axis = axis_of(*axis, shape.len())?;
                shape[axis] = Dim::Known(1);
            }
            match reading.attribute_int(node, "keepdims", 1) {
                0 => squeezed(&shape, &axes),
                _ => Some(shape),
            }
        }
        _ => None,
    }
}

/// The shape of an input with something around it.
fn padded(reading: &Reading<'_>, node: &Node) -> Option<Shape> {
    let mut shape = shape_of(reading, node, 0)?;
    let told = reading.list(node, 1, "pads").and_then(|pads| {
        match node.inputs.get(3).copied().flatten() {
            Some(axes) => on_axes(&pads, &reading.ints(axes)?, shape.len()),
            None => Some(pads),
        }
    });
    let Some(pads) = told.filter(|pads| pads.len() == 2 * shape.len()) else {
        return Some(vec![Dim::Any; shape.len()]);
    };
    let (before, after) = pads.split_at(shape.len());
    for (dim, added) in shape.iter_mut().zip(before.iter().zip(after)) {
        *dim = match (&*dim, added) {
            (_, (0, 0)) => continue,
            (Dim::Known(n), (a, b)) => i64::try_from(*n)
                .ok()
                .and_then(|n| n.checked_add(*a)?.checked_add(*b))
                .and_then(|n| usize::try_from(n).ok())
                .map_or(Dim::Any, Dim::Known),
            _ => Dim::Any,
        };
    }
    Some(shape)
}

/// The shape that is left of an input when parts of some axes are cut out.
fn sliced(reading: &Reading<'_>, node: &Node) -> Option<Shape> {
    let mut shape = shape_of(reading, node, 0)?;
    let starts = reading.list(node, 1, "starts")?;
    let ends = reading.list(node, 2, "ends")?;
    let axes = reading.list_or(node, 3, "axes", || first_axes(starts.len()))?;
    let steps = reading.list_or(node, 4, "steps", || vec![1; starts.len()])?;
    for (i, axis) in axes.iter().enumerate() {
        let axis = axis_of(*axis, shape.len())?;
        let Dim::Known(n) = shape[axis] else {
            shape[axis] = Dim::Any;
            continue;
        };
        let bound = |at: i64| {
            if at < 0 {
                at.saturating_add(n as i64)
            } else {
                at
            }
            .clamp(0, n as i64)
        };
        let (start, end) = (bound(*starts.get(i)?), bound(*ends.get(i)?));
        let step = *steps.get(i)?;
        shape[axis] = match step {
            1.. => Dim::Known(((end - start).max(0) as usize).div_ceil(step as usize)),
            _ => Dim::Any,
        };
    }
    Some(shape)
}

fn broadcast(a: &[Dim], b: &[Dim]) -> Shape {
    let rank = a.len().max(b.len());
    let at = |shape: &[Dim], i: usize| match (i + shape.len()).checked_sub(rank) {
        Some(i) => shape[i].clone(),
        None => Dim::Known(1),
    };
    let one = Dim::Known(1);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (a, b) if a == b => a,
            (a, b) if b == one => a,
            (a, b) if a == one => b,
            // Whatever the other is, it can only be this or 1.
            (Dim::Known(n), _) | (_, Dim::Known(n)) if n > 1 => Dim::Known(n),
            _ => Dim::Any,
        })
        .collect()
}

/// The shape behind a conv of this weight, or behind a pooling.
fn windows(reading: &Reading<'_>, node: &Node, weight: Option<Shape>) -> Option<Shape> {
    let input = shape_of(reading, node, 0);
    let axes = match (&input, &weight) {
        (Some(shape), _) | (None, Some(shape)) => shape.len().checked_sub(2)?,
        (None, None) => return None,
    };
    let ints = |key: &str, default: i64, n: usize| match node.attributes.get(key) {
        Some(Attribute::Ints(ints)) => (ints.len() == n).then(|| ints.clone()),
        _ => Some(vec![default; n]),
    };
    let (stride, dilation) = (ints("strides", 1, axes)?, ints("dilations", 1, axes)?);
    let pads = match node.attributes.get("auto_pad") {
        Some(Attribute::Text(text)) if text == b"VALID" => vec![0; 2 * axes],
        _ => ints("pads", 0, 2 * axes)?,
    };
    let kernel = match &weight {
        Some(weight) => known(weight.get(2..)?)?,
        None => {
            let kernel = ints("kernel_shape", 0, axes)?;
            kernel
                .iter()
                .map(|k| usize::try_from(*k))
                .collect::<Result<_, _>>()
                .ok()?
        }
    };
    if kernel.len() != axes {
        return None;
    }
    let same = match node.attributes.get("auto_pad") {
        Some(Attribute::Text(text)) if text.starts_with(b"SAME") => true,
        Some(Attribute::Text(text)) => text != b"NOTSET" && text != b"VALID",
        _ => false,
    };
    let ceil = reading.attribute_int(node, "ceil_mode", 0) != 0;
    let along = |i: usize| {
        let Dim::Known(size) = input.as_ref()?.get(i + 2)? else {
            return None;
        };
        let stride = usize::try_from(stride[i]).ok().filter(|s| *s > 0)?;
        if same {
            return Some(size.div_ceil(stride));
        }
        let number = |i: i64| usize::try_from(i).ok();
        let extent = kernel[i]
            .checked_sub(1)?
            .checked_mul(number(dilation[i])?)?
            .checked_add(1)?;
        let padded = size
            .checked_add(number(pads[i])?)?
            .checked_add(number(pads[axes + i])?)?;
        let moves = padded.checked_sub(extent)?;
        match ceil {
            true => None,
            false => Some(moves / stride + 1),
        }
    };
    let batch = input
        .as_ref()
        .map_or(Some(Dim::Any), |shape| shape.first().cloned())?;
    let channels = match &weight {
        Some(weight) => weight.first()?.clone(),
        None => input.as_ref()?.get(1)?.clone(),
    };
    let spatial = (0..axes).map(|i| along(i).map_or(Dim::Any, Dim::Known));
    Some([batch, channels].into_iter().chain(spatial).collect())
}

fn split(reading: &Reading<'_>, node: &Node) -> Option<Vec<Option<Shape>>> {
    let shape = shape_of(reading, node, 0)?;
    let axis = axis_of(reading.attribute_int(node, "axis", 0), shape.len())?;
    let equal = || {
        let Dim::Known(n) = shape[axis] else {
            return None;
        };
        let parts = node.outputs.len();
        let size = n.div_ceil(parts.max(1));
        let part = |i: usize| size.min(n.saturating_sub(i.saturating_mul(size)));
        Some((0..parts).map(|i| Dim::Known(part(i))).collect::<Vec<_>>())
    };
    let told = node.inputs.get(1).copied().flatten().is_some();
    let sizes = match told || node.attributes.contains_key("split") {
        true => (reading.list(node, 1, "split")?.into_iter().map(dim_of)).collect(),
        false => equal()?,
    };
    let part = |size: Dim| {
        let mut shape = shape.clone();
        shape[axis] = size;
        Some(shape)
    };
    Some(sizes.into_iter().map(part).collect())
}

/// A map that is made larger or smaller, where every axis is told.
fn resized(reading: &Reading<'_>, node: &Node, shape: &[Dim]) -> Option<Shape> {
    let keeps = |key: &str| node.attributes.contains_key(key);
    if keeps("axes") || keeps("keep_aspect_ratio_policy") {
        return None;
    }
    let sizes = node.inputs.get(3).copied().flatten();
    if sizes.is_some() {
        return dims(reading, node, 3).filter(|sizes| sizes.len() == shape.len());
    }
    // Before version 11 of Resize there was no region of interest before the scales.
    let index = if node.inputs.len() == 2 { 1 } else { 2 };
    let scales = reading.constant(node.inputs.get(index).copied().flatten())?;
    let scales = reading.numbers(scales, shape.len())?;
    let scaled = |(dim, scale): (&Dim, &f64)| match dim {
        dim if *scale == 1.0 => dim.clone(),
        Dim::Known(n) if scale.is_finite() => Dim::Known((*n as f64 * scale).floor() as usize),
        _ => Dim::Any,
    };
    Some(shape.iter().zip(&scales).map(scaled).collect())
}
