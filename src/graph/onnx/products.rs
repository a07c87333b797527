//! Sums and products with a constant: numbers, vectors and matrices.

use super::proto::Node;
use super::reading::{Reading, Trouble, because, opaque};
use crate::graph::contract::Equation;
use crate::graph::layer::layer_of;
use crate::graph::model::{Arithmetic, Conv, Linear, Op, ValueId};
use crate::tensor::{Float, Tensor};

/// The version of the operators from which on a `Conv` computes in bf16.
const CONVS_OF_BF16: i64 = 22;

pub(super) fn arithmetic(
    reading: &Reading<'_>,
    node: &Node,
) -> Result<(Op, Vec<ValueId>), Trouble> {
    let &[Some(a), Some(b)] = &node.inputs[..] else {
        return opaque();
    };
    let [x, y] = [a, b].map(|name| reading.values.numbers.get(&name).copied());
    let [c, d] = [a, b].map(|name| reading.constants.get(&name).cloned());
    let (input, constant, first) = match (x, y, c, d) {
        (Some(x), Some(y), _, _) => {
            return match &*node.op {
                "Add" => Ok((Op::Sum(vec![1.0, 1.0]), vec![x, y])),
                "Sub" => Ok((Op::Sum(vec![1.0, -1.0]), vec![x, y])),
                _ => opaque(),
            };
        }
        (Some(x), _, _, Some(d)) => (x, d, false),
        (_, Some(y), Some(c), _) => (y, c, true),
        _ => return opaque(),
    };
    if constant.dtype().float().is_none() {
        return opaque();
    }
    use Arithmetic as A;
    let how = match (&*node.op, first) {
        ("Add", _) => A::Add,
        ("Sub", false) => A::Sub,
        ("Sub", true) => A::SubFrom,
        ("Mul", _) => A::Mul,
        ("Div", false) => A::Div,
        _ => return opaque(),
    };
    // Sums that start at 0 are exported as such.
    let nothing = match how {
        A::Add | A::Sub => Some(0.0),
        A::Mul | A::Div => Some(1.0),
        A::SubFrom => None,
    };
    let rank = reading.values.values[input.0].shape.as_ref().map(Vec::len);
    let op = match reading.number(&constant) {
        found
            if found.is_some()
                && found == nothing
                && constant.shape().len() <= rank.unwrap_or(1) =>
        {
            Op::Identity
        }
        _ => Op::WithConstant(how, constant),
    };
    Ok((op, vec![input]))
}

/// The sum of any number of values; with constants among them it is left.
pub(super) fn sum(reading: &Reading<'_>, node: &Node) -> Result<(Op, Vec<ValueId>), Trouble> {
    let values = node.inputs.iter().flatten();
    let values: Option<Vec<ValueId>> = values
        .map(|name| reading.values.numbers.get(name).copied())
        .collect();
    match values {
        Some(values) if values.len() == node.inputs.len() => match values.len() {
            0 => opaque(),
            1 => Ok((Op::Identity, values)),
            count => Ok((Op::Sum(vec![1.0; count]), values)),
        },
        _ => opaque(),
    }
}

pub(super) fn gemm(reading: &Reading<'_>, node: &Node) -> Result<Linear, Trouble> {
    let factors = ["alpha", "beta"].map(|key| reading.attribute_float(node, key, 1.0));
    let [alpha, beta] = factors.map(f64::from);
    // A bias times 0 is none, unless it is not finite.
    if reading.attribute_int(node, "transA", 0) != 0 || !is_factor(alpha) || !is_factor(beta) {
        return because("it transposes what it multiplies, or multiplies by 0");
    }
    let (weight, turned) = matrix(reading, node, 1)?;
    let linear = Linear {
        weight,
        in_first: (reading.attribute_int(node, "transB", 0) == 0) != turned,
        bias: reading.optional_weight(node, 2, "bias")?,
        alpha,
        beta,
    };
    let outputs = linear.weight.shape()[usize::from(linear.in_first)];
    let bias = match &linear.bias {
        Some(bias) if bias.len() == outputs && bias.shape().last() == Some(&outputs) => {
            Some(bias.reshaped(vec![outputs]))
        }
        Some(_) => return because("its bias is not one number for each output"),
        None => None,
    };
    Ok(Linear { bias, ..linear })
}

/// Whether a product may be multiplied with a number and divided by it again.
fn is_factor(number: f64) -> bool {
    number.is_normal()
}

/// A constant matrix, and whether the network turns it before it multiplies.
fn matrix(reading: &Reading<'_>, node: &Node, index: usize) -> Result<(Tensor, bool), Trouble> {
    let name = node.inputs.get(index).copied().flatten();
    if let Some(matrix) = name.and_then(|name| reading.turned.get(&name))
        && matrix.dtype().float().is_some()
    {
        return Ok((matrix.clone(), true));
    }
    let matrix = reading.weight(node, index, "matrix")?;
    let rank = reading.value(node, 1 - index.min(1));
    let rank = rank.and_then(|id| reading.values.values[id.0].shape.as_ref().map(Vec::len));
    match *matrix.shape() {
        [_, _] => Ok((matrix, false)),
        // One for each of a batch of which there is one, or as many as of the other side.
        [1, rows, columns] if rank.is_some_and(|rank| rank >= 3) => {
            Ok((matrix.reshaped(vec![rows, columns]), false))
        }
        _ => because("its matrix has another number of axes"),
    }
}

/// A product with a constant matrix, on the right of rows or on the left of `[batch, channels, positions]`.
pub(super) fn product(reading: &Reading<'_>, node: &Node) -> Result<(Op, Vec<ValueId>), Trouble> {
    let [left, right] = [0, 1].map(|index| reading.value(node, index));
    let constant = |index: usize| {
        let name = node.inputs.get(index).copied().flatten();
        name.is_some_and(|name| {
            reading.constants.contains_key(&name) || reading.turned.contains_key(&name)
        })
    };
    match (left, right) {
        (Some(value), _) if constant(1) && !constant(0) => {
            let (weight, turned) = matrix(reading, node, 1)?;
            Ok((Op::Linear(Linear::product(weight, !turned)), vec![value]))
        }
        (_, Some(value)) if constant(0) && !constant(1) => {
            let rank = reading.values.values[value.0].shape.as_ref().map(Vec::len);
            if rank != Some(3) {
                return opaque();
            }
            let (weight, turned) = matrix(reading, node, 0)?;
            if turned {
                return opaque();
            }
            // It becomes a conv, which knows this type later than a product does.
            if weight.dtype().float() == Some(Float::Bf16) && reading.opset() < CONVS_OF_BF16 {
                return opaque();
            }
            let shape = weight.shape().iter().copied().chain([1]).collect();
            Ok((
                Op::Conv(Conv::point(weight.reshaped(shape), 1)),
                vec![value],
            ))
        }
        _ => opaque(),
    }
}

/// A product with a constant matrix that names the axes: over the last axis, or over that of the channels.
pub(super) fn einsum(reading: &Reading<'_>, node: &Node) -> Result<(Op, Vec<ValueId>), Trouble> {
    let &[Some(a), Some(b)] = &node.inputs[..] else {
        return opaque();
    };
    let values = [a, b].map(|name| reading.values.numbers.get(&name).copied());
    let constants = [a, b].map(|name| reading.constants.get(&name));
    let (number, value, matrix) = match (values, constants) {
        ([Some(value), None], [_, Some(matrix)]) => (0, value, matrix),
        ([None, Some(value)], [Some(matrix), _]) => (1, value, matrix),
        _ => return opaque(),
    };
    let text = reading.attribute_text(node, "equation");
    let text = text.and_then(|text| std::str::from_utf8(text).ok());
    let shape = reading.values.values[value.0].shape.as_ref();
    let (Some(equation), Some(shape)) = (text.and_then(Equation::parse), shape) else {
        return opaque();
    };
    match layer_of(&equation, number, (matrix, shape), false) {
        Some(op) => Ok((op, vec![value])),
        None => opaque(),
    }
}
