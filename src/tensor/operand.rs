//! A stored tensor as an operand of the algebra.

use crate::algebra::Operand;
use crate::tensor::Tensor;

impl Operand for Tensor {
    fn shape(&self) -> &[usize] {
        Tensor::shape(self)
    }
}
