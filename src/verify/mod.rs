//! The proof: the training form runs branch by branch, the deploy form as one conv, and both must agree.
//!
//! The verdict is not a tolerance picked by feel. For an output `y = K ∗ x + b` whose kernel and bias are stored with
//! unit roundoff `u`, rounding them moves `y` by at most `u·(|K| ∗ |x| + |b|)`; every difference is measured in units of
//! that bound, and more than 1 of them is a failure. Nothing that computes a number is shared with [`fold`](mod@crate::algebra::fold).
//!
//! Three kinds of input are tried on every block:
//!
//! | probe | finds |
//! |---|---|
//! | zero | the bias |
//! | random maps | anything large |
//! | impulses, one per input channel | any single weight, and names it |

mod block;
mod bound;
mod compared;
mod copies;
pub mod deploy;
mod deployed;
mod exported;
mod names;
mod narrow;
mod probes;
pub mod random;
pub mod shown;
mod tally;
mod types;
mod unfused;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rayon::prelude::*;

use crate::fuse::diagnose;
use crate::plan::{Plan, PlannedConv, Source};
use crate::tensor::{Checkpoint, Error as TensorError, Float, quoted};

use block::{Check, impulse_share};
use copies::{Copies, compare_copies};

pub use bound::Allowance;
pub(crate) use bound::{Rounding, Shown, allowance_of, allowed, beyond, while_running};
pub(crate) use deployed::fits;
pub use deployed::{Deployed, DeployedRows, deployed_rows};
pub use exported::expect_exported;
pub use names::aligned;
pub use shown::Place;
pub(crate) use tally::{is_worse, ratio, worse};
pub(crate) use types::{computed_in, made_in};

/// How a file is verified.
#[derive(Clone, Debug)]
pub struct Options {
    /// Random maps per block.
    pub probes: NonZeroU16,
    /// The number that the maps are drawn from.
    pub seed: u64,
    /// Impulses on every input channel of every block, whatever it costs.
    pub exhaustive: bool,
    /// The largest difference that passes, in units of the rounding bound.
    pub tolerance: f64,
    /// Raised from outside to end the work early, with [`Interrupted`](TensorError::Interrupted).
    pub stop: Option<&'static AtomicBool>,
    /// Told of every fused conv that has been compared.
    pub progress: Option<Progress>,
}

/// What is called for every conv that has been compared, by any thread.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn() + Send + Sync>);

impl Progress {
    /// Something to call.
    pub fn new(call: impl Fn() + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(call))
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl Options {
    pub(crate) fn go_on(&self) -> Result<(), TensorError> {
        match self.stop {
            Some(stop) if stop.load(Relaxed) => Err(TensorError::Interrupted),
            _ => Ok(()),
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            probes: NonZeroU16::new(2).unwrap_or(NonZeroU16::MIN),
            seed: 0,
            exhaustive: false,
            tolerance: 1.0,
            stop: None,
            progress: None,
        }
    }
}

/// The outcome for a whole file.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// One for each fused conv.
    pub blocks: Vec<BlockVerdict>,
    /// Tensors that were copied and are the same, byte for byte.
    pub copied: usize,
    /// Tensors that were copied with each number rounded once to the type that all of the deploy form is stored in.
    pub rounded: usize,
    /// Tensors of the training form that are still in the deploy form beside what was fused of them, and are what they were. The
    /// deploy form does not need them.
    pub unfused: usize,
    /// What is wrong apart from the blocks, by name, numbers as numbers.
    pub failures: Vec<Failure>,
    /// Of the tensors that fusing makes, of a graph of the convs, those that the deploy form has with that shape, and all; none where
    /// nothing is on disk.
    pub fits: Option<[usize; 2]>,
    /// Which rounding the file was allowed.
    pub allowance: Allowance,
    /// The largest ratio that passes.
    pub tolerance: f64,
}

/// What is wrong with a tensor that is not fused, or with a graph around its tensors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The deploy form lacks the tensor of this name.
    #[error("{} is missing", quoted(.0))]
    Missing(String),
    /// The deploy form has a tensor of this name, which fusing does not make.
    #[error("{} is left over; the deploy form has no such tensor", quoted(.0))]
    LeftOver(String),
    /// Something is not the same, in a sentence.
    #[error("{0}")]
    Differs(String),
}

/// The outcome for one fused conv.
#[derive(Clone, Debug)]
pub struct BlockVerdict {
    /// The block's name.
    pub name: String,
    /// The output module.
    pub module: String,
    /// What it was fused from, in a line.
    pub expression: String,
    /// The worst difference in units of its bound.
    pub ratio: f64,
    /// The worst absolute difference.
    pub absolute: f64,
    /// The worst difference relative to the larger of output and bound.
    pub relative: f64,
    /// Where the worst ratio is, and what stands there.
    pub at: Option<Place>,
    /// Input channels of each group that an impulse was sent through, of how many.
    pub impulses: [usize; 2],
    /// The types in which the training form's conv is and the deploy form's weight is stored.
    pub types: Option<[Float; 2]>,
    /// What is wrong with its tensors, if they cannot be compared at all.
    pub failure: Option<String>,
    /// Whether it passes.
    pub accepted: bool,
}

impl BlockVerdict {
    /// Why it does not pass, in a sentence.
    pub fn why_not(&self) -> Option<String> {
        if self.accepted {
            return None;
        }
        Some(match (&self.failure, &self.at) {
            (Some(failure), _) => failure.clone(),
            (None, Some(place)) if self.ratio.is_nan() && place.found.is_finite() => format!(
                "{} gives an output or a bound beyond the largest number",
                quoted(&place.name())
            ),
            (None, Some(place)) => place.said(),
            (None, None) => "nothing was compared".to_owned(),
        })
    }

    /// `equal`, `differs`, `not-finite` where a number of the deploy form is none, or `not-comparable`.
    pub fn state(&self) -> &'static str {
        match () {
            () if self.accepted => "equal",
            () if self.failure.is_some() || self.at.is_none() => "not-comparable",
            () if self.ratio.is_finite() => "differs",
            () => "not-finite",
        }
    }
}

impl Verdict {
    /// Whether the two forms are the same network.
    pub fn accepted(&self) -> bool {
        self.failures.is_empty() && self.blocks.iter().all(|block| block.accepted)
    }

    /// The worst ratio of all blocks; NaN counts as the worst, as does a block that cannot be compared.
    pub fn worst_ratio(&self) -> f64 {
        worst(self.blocks.iter())
    }

    /// The worst ratio of the blocks that can be compared.
    pub fn worst_compared(&self) -> f64 {
        worst(self.blocks.iter().filter(|b| b.failure.is_none()))
    }
}

fn worst<'a>(blocks: impl Iterator<Item = &'a BlockVerdict>) -> f64 {
    blocks.map(|b| b.ratio).fold(0.0, worse)
}

/// Compares a training form with its deploy form.
///
/// # Errors
/// When a file cannot be read or the training form cannot be folded. That the two differ is no error but a [`Verdict`].
pub fn verify(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    options: &Options,
) -> Result<Verdict, diagnose::Error> {
    expect_exported(checkpoint, plan, options)?;
    let blocks = verify_blocks(checkpoint, plan, deployed, options)?;
    let copies = match deployed {
        Deployed::File(file) => compare_copies(checkpoint, plan, file, options)?,
        Deployed::Beside(_) => Copies::default(),
        Deployed::InMemory => {
            let count =
                |is: fn(&Source) -> bool| plan.outputs.iter().filter(|p| is(&p.what)).count();
            Copies {
                copied: count(|what| matches!(what, Source::Copy(_))),
                rounded: count(|what| matches!(what, Source::Round(..))),
                ..Copies::default()
            }
        }
    };
    let mut failures = copies.failures;
    failures.extend(types::odd_type(plan, deployed).map(Failure::Differs));
    Ok(Verdict {
        blocks,
        copied: copies.copied,
        rounded: copies.rounded,
        unfused: copies.unfused,
        failures,
        fits: copies.fits,
        allowance: allowance_of(deployed),
        tolerance: options.tolerance,
    })
}

/// Compares the fused convs, and nothing else.
///
/// # Errors
/// As for [`verify`].
pub fn verify_blocks(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    options: &Options,
) -> Result<Vec<BlockVerdict>, diagnose::Error> {
    diagnose::check_variances(checkpoint, &plan.blocks)?;
    compare(checkpoint, plan, deployed, options, |_| true)
}

/// Compares those of the fused convs that are wanted.
fn compare(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    options: &Options,
    wanted: impl Fn(&PlannedConv) -> bool,
) -> Result<Vec<BlockVerdict>, diagnose::Error> {
    let allowance = allowance_of(deployed);
    let made_in = types::made_in(checkpoint, plan, deployed)?;
    let convs = plan
        .blocks
        .iter()
        .flat_map(|block| block.fused.iter().map(move |fused| (block, fused)));
    let convs: Vec<_> = convs.filter(|(_, fused)| wanted(fused)).collect();
    let share = impulse_share(convs.iter().map(|(_, fused)| *fused));
    convs
        .par_iter()
        .map(|(block, fused)| {
            let check = Check {
                checkpoint,
                deployed,
                fused,
                allowance,
                made_in,
                share,
                options,
            };
            let verdict = check.run(&block.name)?;
            if let Some(Progress(call)) = &options.progress {
                call();
            }
            Ok(verdict)
        })
        .collect()
}
