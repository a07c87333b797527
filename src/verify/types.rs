//! The element types of a file that says repfuse wrote it: those of the training form, or one for all convs.

use super::bound::{Allowance, allowance_of};
use super::deployed::{Deployed, stored};
use crate::plan::Plan;
use crate::tensor::{Float, Tensor};

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
