//! Nodes whose inputs are all constant: what they compute is constant, too.

use ndarray::{ArrayD, IxDyn};

use super::constants::dtype;
use super::dims::axis_of;
use super::proto::{Attribute, Data, Node};
use super::reading::Reading;
use crate::graph::constants::{Budget, Constant, Make, Reduction, make};
use crate::graph::contract::Equation;
use crate::tensor::{Float, Tensor};

/// The tensor that a node computes of constants alone, and what it is made of.
pub(super) fn computed(
    reading: &Reading<'_>,
    node: &Node,
    budget: &mut Budget,
) -> Option<(Tensor, Vec<Tensor>)> {
    let [Some(output)] = node.outputs[..] else {
        return None;
    };
    let constant = |index: usize| reading.constant(node.inputs.get(index).copied().flatten());
    if let Some(made) = of_ints(reading, node, budget) {
        return Some((made.tensor(reading.name(output))?, Vec::new()));
    }
    let first = constant(0)?;
    let rank = first.shape().len();
    let all = || (0..node.inputs.len()).map(|i| constant(i).cloned());
    let (how, tensors) = match &*node.op {
        // A matrix across is read as such by whoever multiplies with it.
        "Transpose" if rank != 2 => {
            let order = match node.attributes.get("perm") {
                None => (0..rank).rev().collect(),
                Some(Attribute::Ints(order)) => axes(order, rank)?,
                Some(_) => return None,
            };
            (Make::Permute(order), vec![first.clone()])
        }
        "Expand" => {
            let wanted = numbers(&reading.list(node, 1, "shape")?)?;
            // Either of the two may be broadcast to the other.
            let len = wanted.len().max(rank);
            let at = |of: &[usize], i: usize| match (i + of.len()).checked_sub(len) {
                Some(i) => of[i],
                None => 1,
            };
            let dim = |i: usize| match (at(&wanted, i), at(first.shape(), i)) {
                (1, n) => n,
                (n, _) => n,
            };
            (
                Make::Expand((0..len).map(dim).collect()),
                vec![first.clone()],
            )
        }
        "Tile" => {
            let times = numbers(&reading.list(node, 1, "repeats")?)?;
            (
                (times.len() == rank).then_some(Make::Repeat(times))?,
                vec![first.clone()],
            )
        }
        "Cast" | "CastLike" => (Make::Cast(target(reading, node)?), vec![first.clone()]),
        "Concat" => {
            let axis = axis_of(reading.attribute_int(node, "axis", 0), rank)?;
            (Make::Concat(axis), all().collect::<Option<_>>()?)
        }
        "Einsum" => {
            let text = std::str::from_utf8(reading.attribute_text(node, "equation")?).ok()?;
            let equation = Equation::parse(text)?;
            (Make::Contract(equation), all().collect::<Option<_>>()?)
        }
        "Pad" if reading.opset() >= 11 => (padding(reading, node, rank)?, vec![first.clone()]),
        "Slice" => (cut(reading, node, first.shape())?, vec![first.clone()]),
        "Gather" => {
            let axis = axis_of(reading.attribute_int(node, "axis", 0), rank)?;
            let index = reading.whole(node.inputs.get(1).copied().flatten()?)?;
            let (&[index], []) = (&index.numbers[..], &index.shape[..]) else {
                return None;
            };
            let index = axis_of(index, first.shape()[axis])?;
            (Make::Pick { axis, index }, vec![first.clone()])
        }
        "ReduceSum" | "ReduceMean" | "ReduceL2" => {
            (reduction(reading, node, rank)?, vec![first.clone()])
        }
        op => (by_number(op)?, all().collect::<Option<_>>()?),
    };
    let of = tensors
        .iter()
        .map(|tensor| Constant::read(reading.checkpoint(), tensor, budget))
        .collect::<Option<Vec<_>>>()?;
    let made = make(&how, &of, budget)?.tensor(reading.name(output))?;
    Some((made, tensors))
}

/// The floating-point type that a node casts to.
pub(super) fn target(reading: &Reading<'_>, node: &Node) -> Option<Float> {
    let of = |kind: i64| dtype(kind)?.float();
    if node.op == "Cast" {
        return match node.attributes.get("to") {
            Some(Attribute::Int(kind)) => of(*kind),
            _ => None,
        };
    }
    let like = (*node.inputs.get(1)?)?;
    match reading.constant(Some(like)) {
        Some(tensor) => tensor.dtype().float(),
        None => of(*reading.values.kinds.get(&like)?),
    }
}

/// Floating-point numbers that a node makes of whole ones, or in as many places as these say.
fn of_ints(reading: &Reading<'_>, node: &Node, budget: &mut Budget) -> Option<Constant> {
    let first = (*node.inputs.first()?)?;
    match &*node.op {
        "Cast" | "CastLike" => {
            let ints = reading.known_ints(first)?;
            let numbers = ints.numbers.iter().map(|n| *n as f64).collect();
            let float = target(reading, node)?;
            let numbers = ArrayD::from_shape_vec(IxDyn(&ints.shape), numbers).ok()?;
            Some(Constant {
                numbers: numbers.mapv(|x| float.round(x)),
                float: Some(float),
            })
        }
        "ConstantOfShape" => {
            let shape = numbers(&reading.known_ints(first)?.numbers)?;
            let (number, float) = filling(node)?;
            Constant::filled(number, &shape, float, budget)
        }
        _ => None,
    }
}

/// The number that `ConstantOfShape` repeats, where it is a floating-point one.
fn filling(node: &Node) -> Option<(f64, Float)> {
    let (tensor, bytes) = match node.attributes.get("value") {
        None => return Some((0.0, Float::F32)),
        Some(Attribute::Tensor(tensor, bytes)) => (tensor, bytes),
        Some(_) => return None,
    };
    let float = dtype(tensor.kind)?.float()?;
    let bytes = match (&tensor.data, bytes) {
        (Data::InFile(_), Some(bytes)) => bytes.clone(),
        (Data::Numbers(numbers), _) => match numbers[..] {
            [number] => number.to_le_bytes()[..float.size()].to_vec(),
            _ => return None,
        },
        _ => return None,
    };
    let mut number = [0.0];
    (bytes.len() == float.size()).then(|| float.decode(&bytes, &mut number))?;
    Some((number[0], float))
}

/// Operators that go number by number, and the product of matrices.
fn by_number(op: &str) -> Option<Make> {
    Some(match op {
        "Add" => Make::Both(|a, b| a + b),
        "Sub" => Make::Both(|a, b| a - b),
        "Mul" => Make::Both(|a, b| a * b),
        "Div" => Make::Both(|a, b| a / b),
        "Pow" => Make::Both(f64::powf),
        "Neg" => Make::Each(|x| -x),
        "Sqrt" => Make::Each(f64::sqrt),
        "Reciprocal" => Make::Each(|x| 1.0 / x),
        "Abs" => Make::Each(f64::abs),
        "Exp" => Make::Each(f64::exp),
        "Tanh" => Make::Each(f64::tanh),
        "Sigmoid" => Make::Each(|x| 1.0 / (1.0 + (-x).exp())),
        "Relu" => Make::Each(|x| x.max(0.0)),
        "MatMul" => Make::Product,
        _ => return None,
    })
}

/// Zeros around a constant.
fn padding(reading: &Reading<'_>, node: &Node, rank: usize) -> Option<Make> {
    if !matches!(
        reading.attribute_text(node, "mode"),
        None | Some(b"constant")
    ) || node.inputs.get(3).copied().flatten().is_some()
    {
        return None;
    }
    if let Some(value) = node.inputs.get(2).copied().flatten() {
        let value = reading.constant(Some(value))?;
        (reading.number(value)? == 0.0).then_some(())?;
    }
    let pads = numbers(&reading.list(node, 1, "pads")?)?;
    let around = (0..rank).map(|i| Some([*pads.get(i)?, *pads.get(rank + i)?]));
    (pads.len() == 2 * rank).then(|| around.collect::<Option<_>>().map(Make::Pad))?
}

/// A part of one axis, every element of it.
fn cut(reading: &Reading<'_>, node: &Node, shape: &[usize]) -> Option<Make> {
    let (starts, ends) = (
        reading.list(node, 1, "starts")?,
        reading.list(node, 2, "ends")?,
    );
    let list = reading.list_or(node, 3, "axes", || vec![0])?;
    let steps = reading.list_or(node, 4, "steps", || vec![1])?;
    let (&[start], &[end], &[axis], &[1]) = (&starts[..], &ends[..], &list[..], &steps[..]) else {
        return None;
    };
    let axis = axis_of(axis, shape.len())?;
    let len = i64::try_from(shape[axis]).ok()?;
    let bound = |n: i64| (if n < 0 { n.saturating_add(len) } else { n }).clamp(0, len) as usize;
    let begin = bound(start);
    Some(Make::Cut {
        axis,
        begin,
        end: bound(end).max(begin),
    })
}

fn reduction(reading: &Reading<'_>, node: &Node, rank: usize) -> Option<Make> {
    let how = match &*node.op {
        "ReduceSum" => Reduction::Sum,
        "ReduceMean" => Reduction::Mean,
        _ => Reduction::Norm,
    };
    let told = node.inputs.get(1).copied().flatten().is_some();
    let list = match told || node.attributes.contains_key("axes") {
        true => reading.list(node, 1, "axes")?,
        false => Vec::new(),
    };
    let axes = match list.is_empty() {
        true if reading.attribute_int(node, "noop_with_empty_axes", 0) != 0 => return None,
        true => (0..rank).collect(),
        false => axes(&list, rank)?,
    };
    let keep = reading.attribute_int(node, "keepdims", 1) != 0;
    Some(Make::Reduce { how, axes, keep })
}

fn axes(list: &[i64], rank: usize) -> Option<Vec<usize>> {
    list.iter().map(|axis| axis_of(*axis, rank)).collect()
}

fn numbers(list: &[i64]) -> Option<Vec<usize>> {
    list.iter().map(|n| usize::try_from(*n).ok()).collect()
}
