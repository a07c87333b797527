//! The floating-point types of values, as they follow from node to node. Of what is not known nothing is taken for granted.

use super::computed::target;
use super::constants::dtype;
use super::proto::{Name, Node};
use super::reading::Reading;
use crate::graph::kinds::Kind;
use crate::tensor::Float;

/// Operators whose output has the type of all of their inputs, or of the first one.
const KEEP: &[&str] = &[
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Div",
    "Dropout",
    "Elu",
    "Flatten",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LayerNormalization",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "Neg",
    "Pad",
    "PRelu",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
];

/// The type of what has a name, where it is known to be one of floating-point numbers.
pub(super) fn float(reading: &Reading<'_>, name: Name) -> Option<Float> {
    let constant = reading.constant(Some(name));
    if let Some(float) = constant.and_then(|tensor| tensor.dtype().float()) {
        return Some(float);
    }
    let told = || dtype(*reading.values.kinds.get(&name)?)?.float();
    reading.floats.get(&name).copied().or_else(told)
}

/// The type of what a node gives.
pub(super) fn given(reading: &Reading<'_>, node: &Node) -> Option<Float> {
    match &*node.op {
        "Cast" | "CastLike" => cast_to(reading, node),
        // The next inputs of some of these are whole numbers.
        op if KEEP.contains(&op) => float(reading, (*node.inputs.first()?)?),
        _ => None,
    }
}

/// Whether a node casts what it reads to the type that it has.
pub(super) fn is_kept(reading: &Reading<'_>, node: &Node) -> bool {
    let first = node.inputs.first().copied().flatten();
    let own = first.and_then(|name| float(reading, name));
    own.is_some() && own == cast_to(reading, node)
}

fn cast_to(reading: &Reading<'_>, node: &Node) -> Option<Float> {
    match target(reading, node)? {
        Kind::Float(float) => Some(float),
        _ => None,
    }
}
