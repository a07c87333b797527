//! Evidence from the author's network: feature maps that were recorded while it ran in its training form.
//!
//! No weight file holds the eps of its norms, bare identities or average poolings; the running network does. A sample holds what
//! went into some blocks and what came out, `<block>.input` and `<block>.output`. Each recorded block is run
//! branch by branch in f64 and compared, by what the arithmetic of the recorded type may be expected to be off by.

mod activation;
mod after;
mod choose;
mod explain;
mod fit;
mod lie;
mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Array4;

use crate::conv2d::block;
use crate::plan::{Block, Plan, PlannedConv};
use crate::tensor::{self, Checkpoint, Float, Tensor, quoted};
use crate::verify::{is_worse, worse};

pub use activation::Activation;
pub use choose::{Choice, Decided, Options, choose};

/// Recorded feature maps, opened; only the header has been read.
#[derive(Debug)]
pub struct Sample {
    file: Checkpoint,
    /// The module, what went into it, and what came out.
    records: Vec<(String, Tensor, Tensor)>,
}

/// Why a sample cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("{} is no sample: {reason}", quoted(&path.display().to_string()))]
    NoSample { path: PathBuf, reason: String },
    #[error("block {}", quoted(block))]
    Run {
        block: String,
        source: Box<block::Error>,
    },
    #[error(
        "no recorded block can be compared: {}; the blocks of recipe `{recipe}` are {known}",
        reasons.join(", ")
    )]
    NothingCompared {
        reasons: Vec<String>,
        recipe: String,
        known: String,
    },
    #[error("the sample fits the recipes `{}` alike; record a block in which they differ, as {block}", recipes.join("`, `"))]
    Undecided { recipes: Vec<String>, block: String },
    #[error("no recipe makes a plan of the file")]
    NoPlan,
    #[error(transparent)]
    Recipe(#[from] crate::recipe::Error),
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
}

/// How a recorded block compares with what a plan says of it.
#[derive(Clone, Debug)]
pub struct RecordVerdict {
    /// The module that was recorded.
    pub name: String,
    /// The output module of the conv that the block becomes.
    pub module: String,
    /// The type in which it was recorded.
    pub float: Float,
    /// What stood between the block and the place where its output was recorded.
    pub activation: Activation,
    /// The norm beside the block that its output went through, too.
    pub after: Option<String>,
    /// `[height, width]`.
    pub stride: [usize; 2],
    /// Rows above and below, columns left and right.
    pub padding: [[usize; 2]; 2],
    /// How many numbers were compared.
    pub compared: u64,
    /// How many were recorded: those that see padding are left out where it is not of zeros around the block.
    pub recorded: u64,
    /// The worst difference in units of what arithmetic may be off by.
    pub ratio: f64,
    /// The root of the mean square of all differences in these units.
    pub rms: f64,
    /// The worst absolute difference.
    pub absolute: f64,
    /// The index `[map, channel, y, x]` of the worst ratio.
    pub at: [usize; 4],
    /// Whether the block computes what was recorded.
    pub accepted: bool,
    /// What explains it, if it does not and something does.
    pub why: Option<String>,
}

/// What a sample says of a plan.
#[derive(Clone, Debug)]
pub struct Support {
    /// One for each recorded block.
    pub records: Vec<RecordVerdict>,
    /// Recorded modules that are not compared, each with the reason.
    pub ignored: Vec<(String, String)>,
}

impl Support {
    /// Whether something was compared, and all of it is what was recorded.
    pub fn accepted(&self) -> bool {
        !self.records.is_empty() && self.records.iter().all(|r| r.accepted)
    }

    /// The worst ratio.
    pub fn worst_ratio(&self) -> f64 {
        self.records.iter().map(|r| r.ratio).fold(0.0, worse)
    }

    /// The record that fits worst.
    pub fn worst(&self) -> Option<&RecordVerdict> {
        let worse = |a: &'_ RecordVerdict, b: &'_ RecordVerdict| is_worse(b.ratio, a.ratio);
        let mut records = self.records.iter();
        let first = records.next()?;
        Some(records.fold(first, |a, b| if worse(a, b) { b } else { a }))
    }

    /// The root of the mean square of all differences.
    fn rms(&self) -> f64 {
        let count: f64 = self.records.iter().map(|r| r.compared as f64).sum();
        let squares = self.records.iter();
        let squares: f64 = squares.map(|r| r.rms * r.rms * r.compared as f64).sum();
        (squares / count).sqrt()
    }
}

/// The most numbers of a recorded map. A network that is recorded on small images shows as much.
const MOST_VALUES: usize = 1 << 26;

impl Sample {
    /// Opens a safetensors file of recorded maps, `<module>.input` and `<module>.output` each.
    ///
    /// # Errors
    /// When it cannot be read, a tensor is neither, or one of the two is missing.
    pub fn open(path: &Path) -> Result<Sample, Error> {
        let file = Checkpoint::open(path)?;
        let wrong = |reason: String| Error::NoSample {
            path: path.to_owned(),
            reason,
        };
        let mut pairs: BTreeMap<&str, [Option<Tensor>; 2]> = BTreeMap::new();
        for (name, tensor) in file.tensors() {
            let (module, which) = match (name.strip_suffix(".input"), name.strip_suffix(".output"))
            {
                (Some(module), _) => (module, 0),
                (_, Some(module)) => (module, 1),
                _ => {
                    return Err(wrong(format!(
                        "{tensor} is neither `<block>.input` nor `<block>.output`"
                    )));
                }
            };
            if tensor.len() > MOST_VALUES {
                return Err(wrong(format!(
                    "{tensor} has {} numbers; at most {MOST_VALUES} are read, so record a smaller image",
                    tensor.len()
                )));
            }
            pairs.entry(module).or_default()[which] = Some(tensor.clone());
        }
        let mut records = Vec::with_capacity(pairs.len());
        for (module, pair) in pairs {
            match pair {
                [Some(input), Some(output)] => records.push((module.to_owned(), input, output)),
                [input, _] => {
                    let missing = if input.is_none() { "input" } else { "output" };
                    return Err(wrong(format!(
                        "{} is missing",
                        quoted(&format!("{module}.{missing}"))
                    )));
                }
            }
        }
        match records.is_empty() {
            true => Err(wrong("it is empty".to_owned())),
            false => Ok(Sample { file, records }),
        }
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The numbers of a recorded map, and their type.
    fn read(&self, tensor: &Tensor) -> Result<(Vec<f64>, Float), Error> {
        let Some(float) = tensor.dtype().float() else {
            return Err(Error::Tensor(tensor::Error::NotFloat {
                tensor: tensor.to_string(),
                found: tensor.dtype().to_string(),
            }));
        };
        let mut bytes = vec![0; tensor.byte_len() as usize];
        self.file.read_at(tensor, 0, &mut bytes)?;
        let mut values = vec![0.0; tensor.len()];
        float.decode(&bytes, &mut values);
        match values.iter().find(|x| !x.is_finite()) {
            None => Ok((values, float)),
            Some(value) => Err(Error::NoSample {
                path: self.path().to_owned(),
                reason: format!("{tensor} holds {value}; expected finite numbers"),
            }),
        }
    }
}

/// Runs every recorded block as a plan says, and compares.
///
/// # Errors
/// When the sample or the checkpoint cannot be read, or no recorded module is a block of the plan.
pub fn check(checkpoint: &Checkpoint, plan: &Plan, sample: &Sample) -> Result<Support, Error> {
    let (mut records, mut ignored) = (Vec::new(), Vec::new());
    for (name, input, output) in &sample.records {
        let convs = convs_of(plan, name);
        if convs.is_empty() {
            ignored.push((name.clone(), "it is no block".to_owned()));
            continue;
        }
        let ((numbers, float), (made, of_output)) = (sample.read(input)?, sample.read(output)?);
        let maps = fit::Maps {
            input: numbers,
            input_shape: input.shape(),
            output: made,
            output_shape: output.shape(),
            float: float.min(of_output),
        };
        match fit::record(checkpoint, plan, name, &convs, &maps)? {
            Ok(verdict) => records.push(verdict),
            Err(reason) => ignored.push((name.clone(), reason)),
        }
    }
    if records.is_empty() {
        let reason = |(name, reason): &(String, String)| format!("{}: {reason}", quoted(name));
        const SHOWN: usize = 4;
        let mut known: Vec<String> = plan.blocks.iter().map(|b| quoted(&b.name)).collect();
        let more = known.len().saturating_sub(SHOWN);
        known.truncate(SHOWN);
        if more > 0 {
            known.push(format!("{more} more"));
        }
        return Err(Error::NothingCompared {
            reasons: ignored.iter().take(SHOWN).map(reason).collect(),
            recipe: plan.recipe.clone(),
            known: known.join(", "),
        });
    }
    Ok(Support { records, ignored })
}

/// The convs that a recorded module may be: those of the block of this name, the one of this output module, else those below
/// it, else those of the one block whose name ends so, or that the name ends with: hooks may have been put on a part of the network, or around it.
fn convs_of<'a>(plan: &'a Plan, name: &str) -> Vec<(&'a Block, &'a PlannedConv)> {
    let of = |is: &dyn Fn(&Block, &PlannedConv) -> bool| -> Vec<(&'a Block, &'a PlannedConv)> {
        let blocks = plan.blocks.iter();
        blocks
            .flat_map(|block| block.fused.iter().map(move |fused| (block, fused)))
            .filter(|(block, fused)| is(block, fused))
            .collect()
    };
    let below = |of: &str, above: &str| {
        of.strip_suffix(above)
            .is_some_and(|before| before.ends_with('.'))
    };
    let exact = of(&|block, fused| fused.module == name || block.name == name);
    if !exact.is_empty() {
        return exact;
    }
    let inside = of(&|_, fused| {
        let rest = fused.module.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with('.'))
    });
    if !inside.is_empty() {
        return inside;
    }
    let mut ends = plan
        .blocks
        .iter()
        .filter(|block| below(&block.name, name) || below(name, &block.name));
    match (ends.next(), ends.next()) {
        (Some(block), None) => block.fused.iter().map(|fused| (block, fused)).collect(),
        _ => Vec::new(),
    }
}

/// Maps of any number of dimensions as `[maps, channels, height, width]`; none if they cannot be.
///
/// `[maps, channels]` is that of a Linear layer, `[maps, channels, length]` that of a Conv1d or, without a batch, `[channels, height,
/// width]`.
fn in_four_dims(shape: &[usize], values: Vec<f64>, channels: usize) -> Option<Array4<f64>> {
    let shape = match *shape {
        [n, c, h, w] => [n, c, h, w],
        [n, c, l] if c == channels => [n, c, 1, l],
        [c, h, w] => [1, c, h, w],
        [n, c] => [n, c, 1, 1],
        _ => return None,
    };
    Array4::from_shape_vec(shape, values).ok()
}
