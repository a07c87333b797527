//! A product with a constant matrix, as the layer that it is.

use super::contract::Equation;
use super::model::{Conv, Dim, Linear, Op};
use crate::tensor::Tensor;

/// What an equation over two operands computes of the one of this number, a value of this shape, and of a constant matrix. Where the
/// operators of a format have their outputs first, the matrix has them first, too.
pub(super) fn layer_of(
    equation: &Equation,
    value: usize,
    (matrix, shape): (&Tensor, &[Dim]),
    outputs_first: bool,
) -> Option<Op> {
    let (axis, in_first) = equation.along(value)?;
    let rank = shape.len();
    // Of another number, one of them would be repeated.
    let inputs = *matrix.shape().get(usize::from(!in_first))?;
    let fits = shape.get(axis)?.known() == Some(inputs) && matrix.shape().len() == 2;
    if !fits || matrix.dtype().float().is_none() || equation.rank(value) != Some(rank) {
        return None;
    }
    let (matrix, in_first) = match in_first && (outputs_first || axis + 1 != rank) {
        true => (matrix.turned()?, false),
        false => (matrix.clone(), in_first),
    };
    if axis + 1 == rank {
        return Some(Op::Linear(Linear::product(matrix, in_first)));
    }
    let spatial = rank
        .checked_sub(2)
        .filter(|n| axis == 1 && (1..=3).contains(n))?;
    let of_matrix = matrix.shape().iter().copied();
    let shape = of_matrix.chain(std::iter::repeat_n(1, spatial)).collect();
    Some(Op::Conv(Conv::point(matrix.reshaped(shape), spatial)))
}
