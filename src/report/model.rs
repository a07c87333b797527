//! What a report says, as plain data.

use rayon::prelude::*;
use serde::Serialize;

use crate::fuse::diagnose;
use crate::plan::{EpsSource, Plan, PlannedConv};
use crate::summary::cost::{self, Change, macs_per_pixel};
use crate::summary::int8::{Int8, int8};
use crate::summary::kernels::{Kernel, KernelMaps, kernel_maps};
use crate::summary::units;
use crate::tensor::Checkpoint;
use crate::verify::{Allowance, BlockVerdict, Deployed, Verdict};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error(transparent)]
    Numbers(#[from] diagnose::Error),
    #[error("the page: {0}")]
    Page(String),
}

/// What a report may be told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Height and width of the images that multiply-adds are counted for.
    pub input_size: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { input_size: 224 }
    }
}

/// What fusing did to a file.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Report {
    /// The training form's path.
    pub input: String,
    /// The deploy form's path; without one, the report is on what `fuse` would write.
    pub output: Option<String>,
    /// The recipe.
    pub recipe: String,
    /// The eps of the batch norms, if there are any.
    pub eps: Option<Eps>,
    /// Tensors of the file.
    pub tensors: Totals,
    /// Learned numbers of the file: floating-point elements, running statistics left out.
    pub parameters: Totals,
    /// Bytes of the file.
    pub bytes: Totals,
    /// Multiply-adds of the fused convs.
    pub macs: Macs,
    /// What `verify` says.
    pub verified: Verified,
    /// The blocks, in the order of their names, numbers as numbers.
    pub blocks: Vec<Block>,
}

/// A number of the whole file before and after.
pub type Totals = Change;

/// The eps of the batch norms, and how much it matters.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Eps {
    /// The eps that was used.
    pub value: f64,
    /// Who decided it.
    pub source: EpsSource,
    /// Who else uses these names with another eps.
    pub note: Option<String>,
    /// The eps it is compared with.
    pub other: f64,
    /// The largest relative change of a batch norm's scale if that were the eps.
    pub weight: f64,
    /// The `running_var` at which it is that large.
    pub tensor: String,
}

/// Multiply-adds of the fused convs of the whole network.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Macs {
    /// Height and width of the image.
    pub input_size: usize,
    /// The sum; null where the file and the recipe do not tell the strides.
    pub total: Option<Change>,
}

/// The verdict on the file.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Verified {
    /// Whether both forms are the same network.
    pub accepted: bool,
    /// `one-rounding` for what repfuse wrote, `arithmetic` for the files of other converters.
    pub allowance: Allowance,
    /// The largest ratio that passes.
    pub tolerance: f64,
    /// The worst ratio of all blocks; null if it is not a number.
    pub worst_ratio: Option<f64>,
    /// Tensors that were copied and are the same.
    pub copied: usize,
    /// What is wrong apart from the blocks.
    pub failures: Vec<String>,
}

/// One block.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Block {
    /// Its name.
    pub name: String,
    /// Whether it holds a bare identity, which no file shows.
    pub assumes_identity: bool,
    /// Its learned numbers.
    pub parameters: Change,
    /// Its bytes in the file.
    pub bytes: Change,
    /// The convs it becomes, nearly always one.
    pub convs: Vec<Conv>,
}

/// One fused conv.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Conv {
    /// Its module: its tensors are `<module>.weight` and `<module>.bias`.
    pub module: String,
    /// What it is fused from, in a line.
    pub expression: String,
    /// The shape of its weight.
    pub weight_shape: Vec<usize>,
    /// Its element type.
    pub dtype: String,
    /// Multiply-adds per output pixel at stride 1; of a transposed conv, per input pixel.
    pub macs_per_pixel: Change,
    /// What each branch adds to the kernel, its batch norms and scales included.
    pub branches: Vec<Kernel>,
    /// The fused kernel; null where the deploy form has none of this shape.
    pub fused: Option<Kernel>,
    /// What is left of its weights when they are rounded to eight bits; null where the deploy form has none of this shape.
    pub int8: Option<Int8>,
    /// Whether it passes.
    pub accepted: bool,
    /// The worst difference in units of the rounding bound; null if it is not a number.
    pub ratio: Option<f64>,
    /// What is wrong with it.
    pub failure: Option<String>,
}

impl Report {
    /// Every fused conv, block by block.
    pub fn convs(&self) -> impl Iterator<Item = &Conv> {
        self.blocks.iter().flat_map(|block| &block.convs)
    }
}

/// Gathers a report from a plan and a verdict. Every kernel is read once, row by row.
///
/// # Errors
/// When a file cannot be read or a number cannot be folded.
pub fn report(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    verdict: &Verdict,
    options: &Options,
) -> Result<Report, Error> {
    let file = match deployed {
        Deployed::File(file) => Some(file),
        Deployed::Beside(_) | Deployed::InMemory => None,
    };
    Ok(Report {
        input: checkpoint.path().display().to_string(),
        output: file.map(|file| file.path().display().to_string()),
        recipe: plan.recipe.clone(),
        eps: eps(checkpoint, plan)?,
        tensors: Change {
            before: checkpoint.tensors().len() as u64,
            after: file.map_or(plan.outputs.len(), |file| file.tensors().len()) as u64,
        },
        parameters: Change {
            before: cost::parameters(checkpoint.tensors().values()),
            after: match file {
                Some(file) => cost::parameters(file.tensors().values()),
                None => cost::planned_parameters(plan),
            },
        },
        bytes: Change {
            before: checkpoint.file_len(),
            after: file.map_or_else(
                || crate::fuse::file_len(checkpoint, plan),
                Checkpoint::file_len,
            ),
        },
        macs: Macs {
            input_size: options.input_size,
            total: cost::macs_of_network(checkpoint, plan, options.input_size),
        },
        verified: verified(verdict),
        blocks: blocks(checkpoint, plan, deployed, verdict)?,
    })
}

/// What the eps of the batch norms is, and how much it matters.
fn eps(checkpoint: &Checkpoint, plan: &Plan) -> Result<Option<Eps>, Error> {
    let weights = diagnose::check_norms(checkpoint, plan)?;
    let weight = diagnose::heaviest(&weights).cloned();
    Ok(weight.zip(plan.eps).map(|(weight, value)| Eps {
        value,
        source: plan.eps_source,
        note: plan
            .eps_note
            .clone()
            .filter(|_| plan.eps_source == EpsSource::Recipe),
        other: weight.other,
        weight: weight.largest,
        tensor: weight.tensor,
    }))
}

fn verified(verdict: &Verdict) -> Verified {
    let worst = verdict.worst_ratio();
    Verified {
        accepted: verdict.accepted(),
        allowance: verdict.allowance,
        tolerance: verdict.tolerance,
        worst_ratio: worst.is_finite().then_some(worst),
        copied: verdict.copied,
        failures: verdict.failures_in_words(),
    }
}

/// Every block with its convs, in the natural order of the names.
fn blocks(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    verdict: &Verdict,
) -> Result<Vec<Block>, Error> {
    let convs: Vec<&PlannedConv> = plan.blocks.iter().flat_map(|block| &block.fused).collect();
    let maps = convs
        .par_iter()
        .map(|fused| {
            let maps = kernel_maps(checkpoint, fused, deployed)?;
            let rounded = match maps.fused {
                Some(_) => Some(int8(checkpoint, fused, deployed)?),
                None => None,
            };
            Ok((maps, rounded))
        })
        .collect::<Result<Vec<_>, diagnose::Error>>()?;
    let mut drawn = convs
        .into_iter()
        .zip(&verdict.blocks)
        .zip(maps)
        .map(|((fused, verdict), (maps, int8))| conv(fused, verdict, maps, int8));
    let mut blocks: Vec<Block> = plan
        .blocks
        .iter()
        .map(|block| Block {
            name: block.name.clone(),
            assumes_identity: block.assumes_identity,
            parameters: Change {
                before: cost::parameters(&block.consumed),
                after: block.fused.iter().map(PlannedConv::numbers).sum(),
            },
            bytes: Change {
                before: block.consumed.iter().map(|t| t.byte_len()).sum(),
                after: block
                    .fused
                    .iter()
                    .map(|f| f.numbers() * f.dtype.size() as u64)
                    .sum(),
            },
            convs: drawn.by_ref().take(block.fused.len()).collect(),
        })
        .collect();
    blocks.sort_by(|a, b| units::natural_order(&a.name, &b.name));
    Ok(blocks)
}

fn conv(fused: &PlannedConv, verdict: &BlockVerdict, maps: KernelMaps, int8: Option<Int8>) -> Conv {
    Conv {
        module: fused.module.clone(),
        expression: verdict.expression.clone(),
        weight_shape: fused.stored_shape(),
        dtype: fused.dtype.to_string(),
        macs_per_pixel: macs_per_pixel(fused, 1),
        branches: maps.branches,
        fused: maps.fused,
        int8,
        accepted: verdict.accepted,
        ratio: verdict.ratio.is_finite().then_some(verdict.ratio),
        failure: verdict.why_not(),
    }
}
