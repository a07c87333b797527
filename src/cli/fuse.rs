//! `repfuse fuse IN OUT`.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use super::Answer;
use super::families;
use super::fused::{Made, Summary, Written, summary, text};
use super::graph;
use super::output::{self, plural};
use super::place;
use super::planned;
use super::progress;
use super::sample::{Evidence, Sampled};
use super::select::{self, Key, Select};
use super::signals;
use super::workers::with_workers;
use crate::fuse::diagnose::{self, EpsSensitivity};
use crate::fuse::{self, Prepared};
use crate::graph::file;
use crate::graph::{Agreement, Folded, GraphFile};
use crate::plan::Plan;
use crate::summary::leftover::branches_left;
use crate::summary::norms::norms;
use crate::summary::warnings::warnings;
use crate::tensor::{self, Checkpoint, Float, Format, plain, quoted};
use crate::verify;

/// Fold every block of a checkpoint or a graph into one conv, and write a deployable file
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse fuse train.safetensors deploy.safetensors
  repfuse fuse train.safetensors deploy.safetensors --verify --dtype f16
  repfuse fuse model.onnx fast.onnx --verify
  repfuse fuse yolo.safetensors fused.safetensors --recipe my-block.json --bn-eps 1e-3")]
pub(super) struct Args {
    /// The training form: a checkpoint (safetensors or PyTorch, or an index of shards), an ONNX model, or a `.pt2`
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write. Its ending is its format: `.safetensors`, `.pt`, `.pth`, `.bin`, or that of a graph
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    sampled: Sampled,
    /// The element type of fused tensors; copied tensors stay as they are
    #[arg(long, default_value = "keep")]
    dtype: Stored,
    /// The element type of all floating-point tensors: copied ones are rounded once, too
    #[arg(
        long,
        hide_short_help = true,
        value_name = "DTYPE",
        conflicts_with = "dtype"
    )]
    dtype_all: Option<Stored>,
    /// Write shards of at most this size, such as 5GB or 500MiB, and an index: `OUT-00001-of-00002.safetensors` …
    #[arg(long, allow_negative_numbers = true, value_name = "SIZE", value_parser = shard_size)]
    shard_size: Option<u64>,
    /// Take this path away from the beginning of every name of OUT, as in `module`
    #[arg(long, hide_short_help = true, value_name = "PREFIX", value_parser = select::path)]
    strip: Option<String>,
    /// Put this path before every name of OUT
    #[arg(long, hide_short_help = true, value_name = "PREFIX", value_parser = select::path)]
    prefix: Option<String>,
    /// Verify before OUT is replaced, and leave it as it was if that fails
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    key: Key,
    /// Print what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run, one line for every conv and names in full
    #[arg(long, hide_short_help = true, requires = "dry_run")]
    all: bool,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
    /// Workers [default: one per core]
    #[arg(long, hide_short_help = true, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Stored {
    Keep,
    F32,
    F16,
    Bf16,
}

impl Stored {
    fn float(self) -> Option<Float> {
        match self {
            Stored::Keep => None,
            Stored::F32 => Some(Float::F32),
            Stored::F16 => Some(Float::F16),
            Stored::Bf16 => Some(Float::Bf16),
        }
    }
}

/// A number of bytes, as in `5GB`: powers of 1000, and of 1024 with an `i`.
fn shard_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_uppercase();
    let factor = match unit.as_str() {
        "" | "B" => Some(1),
        unit => ["K", "M", "G", "T"]
            .iter()
            .zip(1..)
            .find_map(|(letter, power)| {
                let rest = unit.strip_prefix(letter)?;
                match rest {
                    "B" => Some(1000u64.pow(power)),
                    "IB" => Some(1024u64.pow(power)),
                    _ => None,
                }
            }),
    };
    let number = digits.parse::<u64>().ok().filter(|n| *n > 0);
    number
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .ok_or_else(|| "expected a size such as 5GB or 500MiB".to_owned())
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let begin = Instant::now();
    // What cannot be written to is said before anything is read.
    place::of(&args.output)?;
    if let Some(file) = graph::open(&args.input)? {
        return run_graph(args, &file, begin);
    }
    let checkpoint = args.key.open(&args.input, args.quiet || args.json)?;
    // Before the plan, which may take a while.
    Format::of(&args.output)?;
    if args.shard_size.is_none() {
        anyhow::ensure!(
            !args.output.to_string_lossy().ends_with(".index.json"),
            "{} is the name of an index; choose that of a file, or pass --shard-size to write shards",
            quoted(&args.output.display().to_string())
        );
        fuse::place_for(&checkpoint, &args.output, args.force)?;
    }
    let float = args.dtype.float();
    let (mut plan, sample) = match args.sampled.plan(&args.select, &checkpoint, float)? {
        Some((plan, evidence)) => (plan, Some(evidence)),
        None => (args.select.plan(&checkpoint, float)?, None),
    };
    if let Some(evidence) = sample.as_ref().filter(|evidence| !evidence.accepted) {
        return not_supported(args, &plan, evidence);
    }
    if !args.dry_run {
        // As long as its names are those of the input.
        with_workers(|| verify::expect_exported(&checkpoint, &plan, &Default::default()))??;
    }
    if let Some(float) = args.dtype_all.and_then(Stored::float) {
        plan.store_all(float);
    }
    plan.set_prefix(args.strip.as_deref(), args.prefix.as_deref())?;
    let prepared = Prepared::new(&checkpoint, &plan, &args.output, &options(args))?;
    let input = Input {
        checkpoint: &checkpoint,
        plan: &plan,
        weights: prepared.norms(),
        agreement: None,
        output: To::Weights(&prepared),
    };
    fuse_it(args, &input, sample, begin)
}

fn run_graph(args: &Args, file: &GraphFile, begin: Instant) -> anyhow::Result<Answer> {
    args.key.refuse_for_a_graph()?;
    args.sampled.refuse_for_a_graph()?;
    anyhow::ensure!(
        args.dtype_all.is_none(),
        "--dtype-all is about files of weights; leave it out for a graph"
    );
    for (flag, given) in [("--strip", &args.strip), ("--prefix", &args.prefix)] {
        anyhow::ensure!(
            given.is_none(),
            "{flag} is about files of weights; leave it out for a graph"
        );
    }
    let weights_alone = graph::holds(file, &args.output)? == graph::Holds::Weights;
    anyhow::ensure!(
        args.shard_size.is_none() || weights_alone,
        "--shard-size is about files of weights; leave it out for a graph"
    );
    fuse::place_for(file.constants(), &args.output, args.force)?;
    if weights_alone {
        graph::plain(file.has_plain_weights())?;
    }
    let folded = args.select.fold(file, args.dtype.float())?;
    if !args.quiet {
        graph::differences(&folded);
    }
    let (constants, plan) = (file.constants(), folded.plan());
    // Its weights alone can be written, too.
    let prepared = match weights_alone {
        true => Some(Prepared::new(
            constants,
            plan,
            &args.output,
            &options(args),
        )?),
        false => None,
    };
    let input = Input {
        checkpoint: constants,
        plan,
        weights: &[],
        agreement: folded.agreement(),
        output: prepared.as_ref().map_or(To::Graph(&folded), To::Weights),
    };
    fuse_it(args, &input, None, begin)
}

fn options(args: &Args) -> fuse::Options {
    fuse::Options {
        replace: args.force,
        threads: args.threads.map(usize::from),
        shard_size: args.shard_size,
    }
}

/// What is fused.
struct Input<'a> {
    /// Its tensors.
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    /// How much its eps matters.
    weights: &'a [EpsSensitivity],
    /// What a recipe says of the graph.
    agreement: Option<&'a Agreement>,
    output: To<'a>,
}

/// What is written.
#[derive(Clone, Copy)]
enum To<'a> {
    /// A file of weights.
    Weights(&'a Prepared<'a>),
    /// A graph that becomes another graph.
    Graph(&'a Folded<'a>),
}

impl To<'_> {
    /// With `--shard-size` the paths of the shards, and that of their index.
    fn shards(self, args: &Args) -> Option<(Vec<PathBuf>, PathBuf)> {
        args.shard_size?;
        match self {
            To::Weights(prepared) => {
                let mut paths = prepared.paths();
                let index = paths.pop()?;
                Some((paths, index))
            }
            To::Graph(_) => None,
        }
    }

    /// The size in bytes of the file.
    fn bytes(self, args: &Args) -> anyhow::Result<u64> {
        Ok(match self {
            To::Weights(prepared) => prepared.bytes(),
            To::Graph(folded) => graph::plain(folded.file_len(&args.output))?,
        })
    }

    /// How many older shards go with the index that is replaced.
    fn stale(&self) -> usize {
        match self {
            To::Weights(prepared) => prepared.stale(),
            To::Graph(_) => 0,
        }
    }
}

fn fuse_it(
    args: &Args,
    input: &Input<'_>,
    sample: Option<Evidence>,
    begin: Instant,
) -> anyhow::Result<Answer> {
    let Input {
        checkpoint,
        plan,
        weights,
        agreement,
        output,
    } = *input;
    let warnings = match sample {
        Some(_) => Vec::new(),
        None => warnings(plan, weights),
    };
    if !args.quiet && !args.json {
        families::warn(&warnings);
        families::mention(&branches_left(plan));
        wrappers(plan);
    }
    // A dry run says it, too.
    let bytes = output.bytes(args)?;
    let written = match (args.dry_run, output) {
        (true, To::Weights(_)) => None,
        (true, To::Graph(_)) => {
            diagnose::check_norms(checkpoint, plan)?;
            None
        }
        (false, _) => match write(args, input)? {
            Some(written) => Some(written),
            None => return rejected(args),
        },
    };
    if plan.blocks().is_empty() && !args.quiet {
        output::note(NOTHING);
    }
    let norms = norms(checkpoint, plan);
    let made = Made {
        input: &args.input,
        output: &args.output,
        shards: output.shards(args),
        is_graph: matches!(output, To::Graph(_)),
        has_dtype: args.dtype.float().is_some(),
        checkpoint,
        plan,
        weights,
        agreement,
        written,
        bytes,
        norms: &norms,
        seconds: begin.elapsed().as_secs_f64(),
    };
    tell(args, &made, &summary(&made, sample, &warnings))?;
    Ok(Answer::Yes)
}

fn tell(args: &Args, made: &Made<'_>, summary: &Summary<'_>) -> anyhow::Result<()> {
    if args.json {
        return output::json(summary);
    }
    if args.quiet {
        return Ok(());
    }
    if args.dry_run {
        output::result(&planned::table(made.checkpoint, made.plan, args.all))?;
    }
    output::result(&text(summary, made))
}

const NOTHING: &str =
    "repfuse: nothing to fuse: no two operators of the graph can become one; the output is a copy";

/// Says in JSON that a file was not kept. (What is wrong with it has been said; a script reads it here.)
fn rejected(args: &Args) -> anyhow::Result<Answer> {
    if args.json {
        let why = format!(
            "what was written is not equivalent to its input; {} was not kept",
            quoted(&args.output.display().to_string())
        );
        output::json(&super::schema::Failure::new(&[why], 1))?;
    }
    Ok(Answer::No)
}

/// Says which segments of wrappers the names of the output are without.
fn wrappers(plan: &Plan) {
    if !plan.wrappers_removed().is_empty() {
        output::note(&format!(
            "repfuse: inside of blocks the names of the output are without `{}`, which wrappers had put there",
            plan.wrappers_removed().join("` and `")
        ));
    }
}

/// Says what the sample has against a plan; nothing is written.
fn not_supported(args: &Args, plan: &Plan, evidence: &Evidence) -> anyhow::Result<Answer> {
    let why = format!(
        "the sample does not support recipe `{}`; {} was not written",
        plain(plan.recipe()),
        quoted(&args.output.display().to_string())
    );
    let lines = evidence.failures().trim_end();
    output::note(&format!("repfuse: {why}\n{lines}"));
    if args.json {
        let lines = lines.lines().map(|line| line.trim().to_owned());
        let causes: Vec<String> = std::iter::once(why).chain(lines).collect();
        output::json(&super::schema::Failure::new(&causes, 1))?;
    }
    Ok(Answer::No)
}

/// Writes the file and, if asked to, verifies it; none if it was rejected and not kept.
fn write(args: &Args, input: &Input<'_>) -> anyhow::Result<Option<Written>> {
    let Input { plan, output, .. } = *input;
    signals::watch()?;
    let bytes = match output {
        To::Graph(_) => output.bytes(args)?,
        To::Weights(_) => plan.outputs().iter().map(|p| p.output.byte_len).sum(),
    };
    let bar = progress::bar(bytes, args.quiet || args.json);
    let progress = |n| {
        bar.inc(n);
        match signals::stopped() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let unfinished = match output {
        To::Graph(folded) => graph::plain(folded.write(&args.output, &options(args), &progress))?,
        To::Weights(prepared) => prepared.write(&progress)?.into(),
    };
    bar.finish_and_clear();
    if args.verify && !is_equivalent(args, input, &unfinished)? {
        return Ok(None);
    }
    if signals::stopped() {
        return Err(tensor::Error::Interrupted.into());
    }
    let vanished = unfinished.vanished();
    let waiting = progress::syncing(args.quiet || args.json);
    unfinished.finish()?;
    waiting.finish_and_clear();
    let stale = output.stale();
    if stale > 0 && !args.quiet {
        output::note(&format!(
            "repfuse: removed {} of the index that was replaced",
            plural(stale, "older shard")
        ));
    }
    if vanished > 0 && !args.quiet {
        output::note(&vanishing(plan, vanished));
    }
    Ok(Some(Written {
        verified: args.verify,
        vanished,
    }))
}

/// Verifies what was written, and says so where it is wrong.
fn is_equivalent(
    args: &Args,
    input: &Input<'_>,
    unfinished: &file::Written,
) -> anyhow::Result<bool> {
    let (bar, progress) = progress::verifying(input.plan, args.quiet || args.json);
    let options = verify::Options {
        stop: Some(&signals::STOP),
        progress: Some(progress),
        ..Default::default()
    };
    let verdict = with_workers(|| -> anyhow::Result<_> {
        Ok(match input.output {
            To::Graph(folded) => graph::plain(folded.verify_written(unfinished, &options))?,
            To::Weights(_) => {
                let file = unfinished.open()?;
                let form = verify::Deployed::File(&file);
                verify::verify(input.checkpoint, input.plan, form, &options)?
            }
        })
    })??;
    bar.finish_and_clear();
    if let Some(why) = verdict.why_not() {
        output::note(&format!(
            "repfuse: what was written is not equivalent to its input; {} was not kept\n  {}",
            quoted(&args.output.display().to_string()),
            plain(&why)
        ));
        return Ok(false);
    }
    if !args.quiet && !args.json {
        super::verify::sampled(&verdict);
    }
    Ok(true)
}

/// Says that numbers were too small for the type they are stored in.
fn vanishing(plan: &Plan, vanished: u64) -> String {
    let fused = plan.blocks().iter().flat_map(|block| block.fused());
    let all: u64 = fused.clone().map(|f| f.numbers()).sum();
    let types: BTreeSet<String> = fused.map(|f| f.dtype().to_string()).collect();
    let types: Vec<String> = types.into_iter().collect();
    format!(
        "repfuse: warning: {vanished} of {all} fused numbers are not zero, but too small for {}, and became zero",
        types.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::shard_size;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1", 1),
            ("5GB", 5_000_000_000),
            ("500 MiB", 500 << 20),
            ("2tb", 2_000_000_000_000),
            ("10kib", 10 << 10),
        ] {
            assert_eq!(shard_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "GB",
            "0GB",
            "-1GB",
            "5XB",
            "5G",
            "1.5GB",
            "99999999999TB",
        ] {
            assert!(shard_size(text).is_err(), "{text}");
        }
    }
}
