//! Constants that are not finite, as the masks that rule out classes have: no weight takes such a number over.

use super::model::{Node, Op};
use super::wanted::FEW;
use crate::algebra::Values as _;
use crate::tensor::{Checkpoint, Reader, Tensor};

/// Leaves the nodes that combine a value with such a constant.
pub(super) fn leave(nodes: &mut [Node], checkpoint: &Checkpoint) {
    let mut reader = Reader::new(checkpoint, 0);
    let mut is_finite = |tensor: &Tensor| {
        let numbers = reader.vector(tensor, 0, tensor.len());
        // What cannot be read is told by whoever needs it.
        numbers.map_or(true, |numbers| numbers.iter().all(|x| x.is_finite()))
    };
    for node in nodes {
        if let Op::WithConstant(_, constant) = &node.op
            && constant.len() <= FEW
            && !is_finite(constant)
        {
            let why = format!("its constant {constant} is not finite everywhere");
            node.op = Op::Opaque(Some(why));
        }
    }
}
