//! Operators that slide a window over spatial axes, or put zeros around them.

use super::dims::on_axes;
use super::proto::{Attribute, Node};
use super::reading::{Reading, Trouble, because, opaque};
use crate::graph::model::{Conv, Dim, Op, Pads, Window};
use crate::tensor::{Place, Tensor};

/// An attribute of one number for each axis, none of them negative.
fn each_axis(node: &Node, key: &str, axes: usize, default: usize) -> Result<Vec<usize>, Trouble> {
    let ints = match node.attributes.get(key) {
        None => return Ok(vec![default; axes]),
        Some(Attribute::Ints(ints)) => ints,
        Some(_) => return because(&format!("its `{key}` are no whole numbers")),
    };
    let numbers: Result<Vec<usize>, _> = ints.iter().map(|i| usize::try_from(*i)).collect();
    match numbers {
        Ok(numbers) if numbers.len() == axes => Ok(numbers),
        _ => because(&format!("its `{key}` do not fit its axes")),
    }
}

/// Whether a constant that a node makes is made of zeros.
fn is_nothing(tensor: &Tensor) -> bool {
    match tensor.place() {
        Place::InMemory(bytes) => bytes.iter().all(|byte| *byte == 0),
        _ => false,
    }
}

pub(super) fn conv(reading: &Reading<'_>, node: &Node, transposed: bool) -> Result<Conv, Trouble> {
    let weight = reading.weight(node, 1, "weight")?;
    let bias = reading.optional_weight(node, 2, "bias")?;
    let axes = match weight.shape().len() {
        rank @ 3..=5 => rank - 2,
        _ => return because("its weight has another number of axes than that of a conv"),
    };
    let stride = each_axis(node, "strides", axes, 1)?;
    let dilation = each_axis(node, "dilations", axes, 1)?;
    let kernel = &weight.shape()[2..];
    if stride.contains(&0) || dilation.contains(&0) || kernel.contains(&0) {
        return because("a stride, a dilation or an extent of it is zero");
    }
    if each_axis(node, "kernel_shape", axes, 0)?
        .iter()
        .zip(kernel)
        .any(|(a, k)| *a != 0 && a != k)
    {
        return because("its `kernel_shape` is not that of its weight");
    }
    let Ok(groups) = usize::try_from(reading.attribute_int(node, "group", 1)) else {
        return because("its number of groups is negative");
    };
    let first = weight.shape()[0];
    if groups == 0 || !first.is_multiple_of(groups) {
        return because("its channels cannot be cut into its groups");
    }
    let outputs = if transposed {
        weight.shape()[1].saturating_mul(groups)
    } else {
        first
    };
    if bias.as_ref().is_some_and(|bias| bias.shape() != [outputs]) {
        return because("its bias is not one number for each output channel");
    }
    let added = each_axis(node, "output_padding", axes, 0)?;
    let extents: Vec<usize> = kernel
        .iter()
        .zip(&dilation)
        .map(|(k, d)| (k - 1).saturating_mul(*d).saturating_add(1))
        .collect();
    let pads = match transposed {
        true => cut(reading, node, [&extents, &stride, &added])?,
        false => pads(reading, node, axes, &extents, &stride)?,
    };
    Ok(Conv {
        pads,
        weight,
        // An exporter that is not to optimise makes one of zeros where there is none.
        bias: bias.filter(|bias| !is_nothing(bias)),
        stride,
        dilation,
        groups,
        transposed: transposed.then_some(added),
    })
}

/// Explicit paddings, also those that `auto_pad` comes to.
fn pads(
    reading: &Reading<'_>,
    node: &Node,
    axes: usize,
    extents: &[usize],
    stride: &[usize],
) -> Result<Pads, Trouble> {
    let upper = match reading.attribute_text(node, "auto_pad") {
        None | Some(b"NOTSET") => {
            let mut before = each_axis(node, "pads", 2 * axes, 0)?;
            let after = before.split_off(axes);
            return Ok(Pads { before, after });
        }
        Some(b"VALID") => {
            let none = vec![0; axes];
            return Ok(Pads {
                before: none.clone(),
                after: none,
            });
        }
        Some(b"SAME_UPPER") => true,
        Some(b"SAME_LOWER") => false,
        Some(_) => return because("its `auto_pad` is none that ONNX knows"),
    };
    let shape = reading
        .value(node, 0)
        .and_then(|id| reading.values.values[id.0].shape.as_ref());
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (i, (&extent, &stride)) in extents.iter().zip(stride).enumerate() {
        let total = match (stride, shape.and_then(|shape| shape.get(i + 2))) {
            (1, _) => extent - 1,
            (_, Some(Dim::Known(size))) => {
                let windows = size.div_ceil(stride).max(1);
                ((windows - 1).saturating_mul(stride).saturating_add(extent)).saturating_sub(*size)
            }
            _ => return because("its padding follows from a size that is not known"),
        };
        let (less, more) = (total / 2, total - total / 2);
        before.push(if upper { less } else { more });
        after.push(if upper { more } else { less });
    }
    Ok(Pads { before, after })
}

/// What a transposed conv cuts off its output, also where that follows from the shape that the output is to have. An uneven rest is
/// left: runtimes differ on which side they cut it off.
fn cut(
    reading: &Reading<'_>,
    node: &Node,
    [extents, stride, added]: [&[usize]; 3],
) -> Result<Pads, Trouble> {
    let axes = extents.len();
    let told = node.attributes.contains_key("output_shape");
    let same = match reading.attribute_text(node, "auto_pad") {
        Some(b"SAME_UPPER" | b"SAME_LOWER") => true,
        _ if told => false,
        _ => return pads(reading, node, axes, extents, stride),
    };
    let wanted = each_axis(node, "output_shape", axes, 0)?;
    let input = reading
        .value(node, 0)
        .and_then(|id| reading.values.values[id.0].shape.as_ref());
    let mut half = Vec::with_capacity(axes);
    for i in 0..axes {
        let full = extents[i].checked_add(added[i]);
        // One stride more for each input behind the first; the output has one for each, or what is told.
        let total = match (told, input.and_then(|shape| shape.get(i + 2))) {
            (false, _) => full.and_then(|full| full.checked_sub(stride[i])),
            (true, Some(Dim::Known(size))) => full.and_then(|full| {
                let behind = size.checked_sub(1)?.checked_mul(stride[i])?;
                full.checked_add(behind)?.checked_sub(wanted[i])
            }),
            (true, _) => return because("its padding follows from a size that is not known"),
        };
        match total {
            Some(total) if total % 2 == 0 => half.push(total / 2),
            _ if same => {
                return because("what its `auto_pad` cuts off is uneven, or less than nothing");
            }
            _ => {
                return because("what its `output_shape` cuts off is uneven, or less than nothing");
            }
        }
    }
    Ok(Pads {
        before: half.clone(),
        after: half,
    })
}

pub(super) fn average(reading: &Reading<'_>, node: &Node) -> Result<Window, Trouble> {
    let Some(Attribute::Ints(kernel)) = node.attributes.get("kernel_shape") else {
        return opaque();
    };
    let axes = kernel.len();
    if !(1..=3).contains(&axes) {
        return opaque();
    }
    let kernel = each_axis(node, "kernel_shape", axes, 1)?;
    let stride = each_axis(node, "strides", axes, 1)?;
    if kernel.contains(&0) || stride.contains(&0) {
        return because("a stride or an extent of it is zero");
    }
    if reading.attribute_int(node, "ceil_mode", 0) != 0 {
        return because("its last window may reach beyond the padding");
    }
    if each_axis(node, "dilations", axes, 1)?
        .iter()
        .any(|d| *d != 1)
    {
        return because("its window is dilated");
    }
    let pads = pads(reading, node, axes, &kernel, &stride)?;
    let padded = pads.before.iter().chain(&pads.after).any(|p| *p > 0);
    if padded && reading.attribute_int(node, "count_include_pad", 0) == 0 {
        return because("it leaves its padding out of the average");
    }
    Ok(Window {
        kernel,
        stride,
        pads,
    })
}

pub(super) fn pad(reading: &Reading<'_>, node: &Node) -> Result<Pads, Trouble> {
    if !matches!(
        reading.attribute_text(node, "mode"),
        None | Some(b"constant")
    ) {
        return because("it pads with what is at the border");
    }
    let (ints, value) = told_pads(reading, node)?;
    if value != Some(0.0) {
        return because("it pads with something else than zeros");
    }
    let (mut all, named) = (ints, node.inputs.get(3).copied().flatten());
    if let Some(name) = named {
        let rank = reading
            .value(node, 0)
            .and_then(|id| reading.values.values[id.0].shape.as_ref());
        let (Some(axes), Some(rank)) = (reading.ints(name), rank.map(Vec::len)) else {
            return because("which axes it pads is not known");
        };
        let Some(spread) = on_axes(&all, &axes, rank) else {
            return because("its axes do not fit what it pads");
        };
        all = spread;
    }
    around(&all)
}

/// How much a node pads before and behind each axis, and with what, where that is known.
fn told_pads(reading: &Reading<'_>, node: &Node) -> Result<(Vec<i64>, Option<f64>), Trouble> {
    if reading.opset() >= 11 {
        let Some(ints) = node
            .inputs
            .get(1)
            .copied()
            .flatten()
            .and_then(|n| reading.ints(n))
        else {
            return because("how much it pads is no constant");
        };
        let value = match node.inputs.get(2).copied().flatten() {
            None => Some(0.0),
            Some(name) => reading
                .constants
                .get(&name)
                .and_then(|tensor| reading.number(tensor)),
        };
        Ok((ints, value))
    } else {
        let Some(Attribute::Ints(ints)) = node.attributes.get("pads") else {
            return opaque();
        };
        let value = f64::from(reading.attribute_float(node, "value", 0.0));
        Ok((ints.clone(), Some(value)))
    }
}

/// The paddings of the spatial axes; of the others there must be none.
fn around(all: &[i64]) -> Result<Pads, Trouble> {
    let numbers: Result<Vec<usize>, _> = all.iter().map(|i| usize::try_from(*i)).collect();
    let rank = all.len() / 2;
    match numbers {
        Ok(numbers) if (3..=5).contains(&rank) && all.len().is_multiple_of(2) => {
            let (before, after) = numbers.split_at(rank);
            if [before, after].iter().any(|of| of[..2] != [0, 0]) {
                return because("it pads channels");
            }
            Ok(Pads {
                before: before[2..].to_vec(),
                after: after[2..].to_vec(),
            })
        }
        Ok(_) => because("it pads another number of axes than a conv has"),
        Err(_) => because("it cuts off a border"),
    }
}

/// A map that is made larger or smaller.
pub(super) fn resized(reading: &Reading<'_>, node: &Node) -> Result<Op, Trouble> {
    // Outside of its input, this one takes another number.
    match reading.attribute_text(node, "coordinate_transformation_mode") {
        Some(b"tf_crop_and_resize") => opaque(),
        _ => Ok(Op::Resample),
    }
}
