//! The whole way in one call: open, plan, fuse, verify.

use std::ops::ControlFlow;
use std::path::Path;

use super::{Deployed, Verdict, verify};
use crate::fuse::{self, diagnose, fuse, place_for};
use crate::plan::{self, plan_families};
use crate::recipe::{self, Family, Recipe, builtin_near, detect_builtin};
use crate::tensor::{self, Checkpoint};

/// What may be decided about [`deploy`].
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which state dict of a PyTorch file that holds several.
    pub key: Option<String>,
    /// The recipe; by default the built-in ones whose blocks are in the file.
    pub recipe: Option<Recipe>,
    /// What is fused, and with which eps.
    pub plan: plan::Options,
    /// How it is written.
    pub fuse: fuse::Options,
    /// How it is verified.
    pub verify: super::Options,
}

/// Why a file has no verdict.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error(transparent)]
    File(#[from] tensor::Error),
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    #[error(transparent)]
    Numbers(#[from] diagnose::Error),
}

/// Writes the deploy form of the checkpoint `from` to `to`, and proves that it computes the same.
///
/// The file is kept only where the [verdict](Verdict::accepted) accepts it; until then `to` is what it was. Use the
/// [parts](crate#where-things-are) of this for progress, for shards, or to look at a plan before anything is written.
///
/// # Errors
/// When the file cannot be read, no recipe fits it or several do, a number cannot be folded or stored, or `to` cannot be
/// written.
pub fn deploy(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &Options,
) -> Result<Verdict, Error> {
    let train = Checkpoint::open_key(from.as_ref(), options.key.as_deref())?;
    if options.fuse.shard_size.is_none() {
        // Before the work that would be in vain.
        place_for(&train, to.as_ref(), options.fuse.replace)?;
    }
    let near = builtin_near(train.tensors())?;
    let families = match &options.recipe {
        Some(recipe) => vec![Family::whole(recipe)],
        None => detect_builtin(train.tensors(), &near)?,
    };
    let plan = plan_families(train.tensors(), &families, &options.plan)?;
    let go_on = |_bytes| ControlFlow::Continue(());
    let written = fuse(&train, &plan, to.as_ref(), &options.fuse, &go_on)?;
    let file = written.open()?;
    let verdict = verify(&train, &plan, Deployed::File(&file), &options.verify)?;
    drop(file);
    if verdict.accepted() {
        written.finish()?;
    }
    Ok(verdict)
}
