//! What a value of constants is made of, and by which steps.

use ndarray::ArrayD;

use super::call::{Call, Input, Opaque};
use super::schema::STRIDED;
use crate::graph::arrays::within;
use crate::graph::constants::{Budget, Constant, Make, make};
use crate::graph::kinds::Kind;
use crate::graph::model::Dim;
use crate::tensor::{Checkpoint, Tensor};

/// What something is made of.
#[derive(Clone)]
pub(super) enum Operand {
    Tensor(Tensor),
    /// A number that stands in the call.
    Number(f64),
    /// Indices that stand in the call.
    Indices(ArrayD<f64>),
}

/// How a value is made.
pub(super) struct Plan {
    /// One step after the other; the first reads the operands.
    pub(super) how: Vec<Make>,
    pub(super) of: Vec<Operand>,
}

impl Plan {
    pub(super) fn new(how: Make, of: impl IntoIterator<Item = Operand>) -> Plan {
        Plan {
            how: vec![how],
            of: of.into_iter().collect(),
        }
    }

    /// The constant that comes of it.
    pub(super) fn followed(
        &self,
        checkpoint: &Checkpoint,
        budget: &mut Budget,
    ) -> Option<Constant> {
        let read = |operand: &Operand| match operand {
            Operand::Tensor(tensor) => Constant::read(checkpoint, tensor, budget),
            Operand::Number(number) => Some(Constant::number(*number)),
            Operand::Indices(indices) => Some(Constant {
                numbers: indices.clone(),
                kind: Some(Kind::I64),
            }),
        };
        let mut of = self.of.iter().map(read).collect::<Option<Vec<_>>>()?;
        for how in &self.how {
            of = vec![make(how, &of, budget)?];
        }
        of.pop()
    }
}

/// An argument, which is a constant or a number.
pub(super) fn operand(call: &Call<'_>, key: &str) -> Result<Operand, Opaque> {
    if call.is_number(key) {
        return Ok(Operand::Number(call.number(key)?.ok_or(None)?));
    }
    match call.input(key)? {
        Input::Constant(tensor) => Ok(Operand::Tensor(tensor)),
        Input::Value(_) | Input::Absent => Err(None),
    }
}

/// The shape and the type of a value, if it is one of those that are worked out.
pub(super) fn known(call: &Call<'_>, value: &str) -> Option<(Vec<usize>, Kind)> {
    let shape = call.context.shape(value)?;
    let shape: Vec<usize> = shape.iter().map(Dim::known).collect::<Option<_>>()?;
    let is_plain = call.context.metas.get(value)?.layout == STRIDED;
    let kind = Kind::of(&call.context.dtype(value)?)?;
    (within(&shape) && is_plain).then_some((shape, kind))
}
