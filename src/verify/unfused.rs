//! Tensors of the training form that another converter leaves in its file beside what it fused of them. Nothing else has a place
//! there.

use std::collections::{BTreeMap, BTreeSet};

use super::Failure;
use super::compared::{Compared, compared};
use crate::plan::Plan;
use crate::recipe::bare;
use crate::recipe::model::BATCH_COUNT;
use crate::tensor::{Checkpoint, Error as TensorError, Float, Tensor};

/// What the blocks of a plan are fused from, by names without wrappers.
pub(super) struct Trained<'a> {
    tensors: BTreeMap<String, &'a Tensor>,
    /// Those that nothing is computed from: placeholders, which an export may fill.
    idle: BTreeSet<String>,
}

impl<'a> Trained<'a> {
    pub(super) fn of(plan: &'a Plan) -> Trained<'a> {
        let mut trained = Trained {
            tensors: BTreeMap::new(),
            idle: BTreeSet::new(),
        };
        for block in &plan.blocks {
            let convs = block.fused.iter();
            let leaves = convs.flat_map(|conv| conv.expr.root().leaves());
            let used: BTreeSet<&str> = leaves.map(Tensor::name).collect();
            for tensor in &block.consumed {
                let counts = tensor.name().ends_with(BATCH_COUNT);
                let is_idle = !counts && !used.contains(tensor.name());
                for part in in_parts(tensor) {
                    let name = bare(part.name());
                    if is_idle {
                        trained.idle.insert(name.clone());
                    }
                    trained.tensors.insert(name, part);
                }
            }
        }
        trained
    }

    /// What is wrong with a tensor that the plan does not make, if anything is. `of_file` is the type of all floating-point tensors of
    /// its file.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn failure(
        &self,
        files: [&Checkpoint; 2],
        found: &Tensor,
        of_file: Option<Float>,
    ) -> Result<Option<Failure>, TensorError> {
        for part in in_parts(found) {
            let (name, part) = (bare(part.name()), &part.as_it_lies());
            let known = self.tensors.get(&name).map(|tensor| tensor.as_it_lies());
            let Some(tensor) = known.filter(|tensor| is_like(tensor, part, of_file)) else {
                return Ok(Some(Failure::LeftOver(found.name().to_owned())));
            };
            if self.idle.contains(&name) {
                continue;
            }
            if let Compared::Differs(said) = compared(files, [&tensor, part], of_file)? {
                return Ok(Some(Failure::Differs(said)));
            }
        }
        Ok(None)
    }
}

/// A tensor, or what it is computed from.
fn in_parts(tensor: &Tensor) -> &[Tensor] {
    match tensor.parts() {
        [] => std::slice::from_ref(tensor),
        parts => parts,
    }
}

/// Whether a tensor has the shape of another, and its type or, like all of the file, one that it is rounded to.
fn is_like(tensor: &Tensor, found: &Tensor, of_file: Option<Float>) -> bool {
    let is_float = tensor.dtype().float().is_some();
    let cast = |float| is_float && Some(float) == of_file;
    tensor.shape() == found.shape()
        && (tensor.dtype() == found.dtype() || found.dtype().float().is_some_and(cast))
}
