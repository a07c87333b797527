//! Fused convs that a training form has already, beside the branches that they were computed from: where they are not what these
//! give, the file holds two networks, and nobody but its user knows which of them is meant.

use super::{Deployed, Options, compare};
use crate::fuse::diagnose;
use crate::plan::Plan;
use crate::tensor::Checkpoint;

/// Checks that such convs are what their branches give, up to the arithmetic of their type.
///
/// # Errors
/// Names the first that is not, or when the file cannot be read.
pub fn expect_exported(
    checkpoint: &Checkpoint,
    plan: &Plan,
    options: &Options,
) -> Result<(), diagnose::Error> {
    let convs = || plan.blocks.iter().flat_map(|block| &block.fused);
    if convs().all(|conv| conv.exported.is_empty()) {
        return Ok(());
    }
    diagnose::check_variances(checkpoint, &plan.blocks)?;
    // What is told of progress is told of the convs that are written.
    let options = Options {
        progress: None,
        ..options.clone()
    };
    let there = Deployed::Beside(checkpoint);
    let verdicts = compare(checkpoint, plan, there, &options, |conv| {
        !conv.exported.is_empty()
    })?;
    let wrong: Vec<_> = verdicts
        .iter()
        .filter_map(|verdict| Some((verdict, verdict.why_not()?)))
        .collect();
    match wrong.as_slice() {
        [] => Ok(()),
        [(first, why), more @ ..] => Err(diagnose::Error::Exported {
            block: first.name.clone(),
            conv: first.module.clone(),
            why: why.clone(),
            more: more.len(),
        }),
    }
}
