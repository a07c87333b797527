//! The element types of a deploy form. A file that says repfuse wrote it has those of the training form, or one for all convs; another
//! converter may have put numbers of a half type into tensors of a wider one.

use super::bound::{Allowance, allowance_of};
use super::deployed::{Deployed, deployed_rows, stored};
use crate::fuse::diagnose;
use crate::plan::{Plan, PlannedConv, stored_type};
use crate::tensor::{Checkpoint, Float, Tensor};

/// Numbers that are read at a time.
const AT_ONCE: usize = 1 << 18;

/// So many numbers other than 0 that are all of a half type are not so by chance: of 8,192 numbers of f32, one is a number of f16.
const TELLING: usize = 8;

/// The half type that another converter computed in before it put the results into tensors of a wider type: that of the training
/// form's convs, if a conv of the file has numbers of it alone. (Where the converter went on with what it had put there, as with a
/// sum of branches, the numbers are finer.)
///
/// # Errors
/// When the deploy form cannot be read.
pub(crate) fn made_in(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
) -> Result<Option<Float>, diagnose::Error> {
    if allowance_of(deployed) != Allowance::Arithmetic {
        return Ok(None);
    }
    for fused in plan.blocks.iter().flat_map(|block| &block.fused) {
        if let Some(half) = widened_from(fused, deployed)
            && has_numbers_of(half, checkpoint, fused, deployed)?
        {
            return Ok(Some(half));
        }
    }
    Ok(None)
}

/// The half type of a conv in training, where the deploy form has it in a wider one.
fn widened_from(fused: &PlannedConv, deployed: Deployed<'_>) -> Option<Float> {
    let half = stored_type(fused.expr.root()).ok()?;
    let ((_, of_weight), bias) = stored(fused, deployed).ok()??;
    let of_bias = bias.map_or(of_weight, |(_, float)| float);
    let is_wide = |float| matches!(float, Float::F32 | Float::F64);
    let is_half = matches!(half, Float::F16 | Float::Bf16);
    (is_half && is_wide(of_weight) && is_wide(of_bias)).then_some(half)
}

/// The types in which the numbers of a conv were computed, given those that it is stored in and what the file tells.
pub(crate) fn computed_in(
    fused: &PlannedConv,
    deployed: Deployed<'_>,
    stored: [Float; 2],
    made_in: Option<Float>,
) -> [Float; 2] {
    match made_in.filter(|half| widened_from(fused, deployed) == Some(*half)) {
        Some(half) => [half; 2],
        None => stored,
    }
}

/// Whether all numbers of a conv are numbers of this type.
fn has_numbers_of(
    half: Float,
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    deployed: Deployed<'_>,
) -> Result<bool, diagnose::Error> {
    let g = fused.geometry();
    let step = (AT_ONCE / g.row_len().max(1)).max(1);
    let mut telling = 0;
    for first in (0..g.out()).step_by(step) {
        let range = first..(first + step).min(g.out());
        let rows = deployed_rows(checkpoint, fused, deployed, range)?;
        let mut numbers = rows.kernel.iter().chain(&rows.bias);
        if numbers.clone().any(|x| half.round(*x) != *x) {
            return Ok(false);
        }
        telling += numbers.by_ref().filter(|x| **x != 0.0).count();
    }
    Ok(telling >= TELLING)
}

/// A tensor that repfuse would have stored in another type, in a sentence.
pub(super) fn odd_type(plan: &Plan, deployed: Deployed<'_>) -> Option<String> {
    if allowance_of(deployed) != Allowance::OneRounding {
        return None;
    }
    let convs = plan.blocks.iter().flat_map(|block| &block.fused);
    let mut all: Vec<(&Tensor, Float, Float)> = Vec::new();
    for conv in convs {
        // What cannot be compared at all is said elsewhere.
        let Ok(Some((weight, bias))) = stored(conv, deployed) else {
            continue;
        };
        let found = [Some(weight), bias].into_iter().flatten();
        all.extend(found.map(|(tensor, float)| (tensor, float, conv.dtype)));
    }
    let (_, first, _) = all.first()?;
    if all.iter().all(|(_, float, _)| float == first) {
        return None;
    }
    let (tensor, found, expected) = all.iter().find(|(_, found, of_plan)| found != of_plan)?;
    Some(format!(
        "{tensor} is {found}; expected {expected}, the type of the training form, or one type for all convs"
    ))
}
