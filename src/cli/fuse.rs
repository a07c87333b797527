//! `repfuse fuse IN OUT`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;

use super::Answer;
use super::families;
use super::graph;
use super::load;
use super::output::{self, bytes, count, plural};
use super::place;
use super::planned;
use super::progress;
use super::sample::{Evidence, Sampled};
use super::select::{self, Key, Select};
use super::signals;
use super::workers::with_workers;
use crate::fuse::diagnose::{self, EpsSensitivity, heaviest};
use crate::fuse::{self, Prepared};
use crate::graph::{Agreement, Folded};
use crate::plan::Plan;
use crate::summary::cost;
use crate::summary::leftover::branches_left;
use crate::summary::norms::{Norms, norms};
use crate::summary::warnings::{Warning, warnings};
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

/// What `fuse --json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Summary<'a> {
    /// This schema and its version.
    #[schemars(extend("const" = "repfuse.fuse/1"))]
    schema: &'static str,
    /// The checkpoint in training form.
    input: String,
    /// The file that was written, or would be; of shards, the index.
    output: String,
    /// The shards, with `--shard-size`.
    shards: Vec<String>,
    /// Whether nothing was written because that was the wish.
    dry_run: bool,
    recipe: &'a str,
    /// The eps of the batch norms; null if there are none, or if the file says several.
    bn_eps: Option<f64>,
    /// `recipe`, `file`, `user`, `sample` or `host`; see `families` where they are several.
    bn_eps_source: &'static str,
    /// Who else uses these names with another eps.
    bn_eps_note: Option<&'a str>,
    /// The largest relative change of a batch norm's scale if `bn_eps_other` were the eps.
    bn_eps_weight: Option<f64>,
    bn_eps_other: Option<f64>,
    blocks_fused: usize,
    /// The names of the blocks that `--only` and `--skip` left as they are.
    blocks_skipped: &'a [String],
    tensors_before: usize,
    tensors_after: usize,
    /// Learned numbers: floating-point elements, running statistics left out.
    parameters_before: u64,
    parameters_after: u64,
    bytes_before: u64,
    bytes_after: u64,
    seconds: f64,
    /// Null without `--verify`; a file that fails is not kept.
    verified: Option<bool>,
    /// What the maps of `--sample` said.
    sample: Option<Evidence>,
    /// PlannedConv numbers that are not zero but too small for the type they are stored in; null if nothing was written.
    became_zero: Option<u64>,
    /// The recipes, each with its eps and its part of the file; none for a graph.
    families: Vec<families::Document>,
    /// What rests on names alone, with its size for this file.
    warnings: Vec<families::Warned>,
    /// What a built-in recipe that knows blocks of the graph says of them; null for a file of weights, and where none does.
    agreement: Option<Agreed<'a>>,
    /// The line of Python that loads what was written. Names in capitals are for the user to fill in.
    load: String,
    blocks: Vec<BlockSummary<'a>>,
    /// Segments of wrappers, as `_orig_mod`, that stood inside of blocks, and that the names of the output are without.
    wrappers_removed: &'a [String],
    /// Tensors that are dropped by name, without a part in any fused tensor.
    dropped: Vec<&'a str>,
    /// The norms with running statistics, of the input.
    norms: usize,
    /// Those that the output still has.
    norms_left: Vec<String>,
}

/// A built-in recipe beside a graph.
#[derive(Serialize, JsonSchema)]
struct Agreed<'a> {
    recipe: &'a str,
    /// How many of the blocks it knows.
    blocks: usize,
    /// What the two say differently, a sentence each. The graph is believed.
    differences: &'a [String],
}

/// One block.
#[derive(Serialize, JsonSchema)]
struct BlockSummary<'a> {
    name: &'a str,
    /// Whether it holds a bare identity, which no file shows.
    assumes_identity: bool,
    /// The convs it becomes.
    outputs: Vec<OutputSummary<'a>>,
    /// The tensors that went into it, or that it makes superfluous.
    consumed: Vec<&'a str>,
}

/// A conv that a block becomes.
#[derive(Serialize, JsonSchema)]
struct OutputSummary<'a> {
    /// Its tensors are `<module>.weight` and `<module>.bias`.
    module: &'a str,
    dtype: String,
    weight_shape: Vec<usize>,
    /// Null where any number of groups gives the same kernel.
    groups: Option<usize>,
    /// What it is fused from, in a line.
    expression: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let begin = Instant::now();
    // What cannot be written to is said before anything is read.
    place::of(&args.output)?;
    if let Some(file) = graph::open(&args.input)? {
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
        let weights_alone = graph::holds(&file, &args.output)? == graph::Holds::Weights;
        anyhow::ensure!(
            args.shard_size.is_none() || weights_alone,
            "--shard-size is about files of weights; leave it out for a graph"
        );
        fuse::place_for(file.constants(), &args.output, args.force)?;
        if weights_alone {
            graph::plain(file.has_plain_weights())?;
        }
        let folded = args.select.fold(&file, args.dtype.float())?;
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
        return fuse_it(args, &input, None, begin);
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
    /// The paths of the files.
    fn paths(self, args: &Args) -> Vec<PathBuf> {
        match self {
            To::Weights(prepared) => prepared.paths(),
            To::Graph(_) => vec![args.output.clone()],
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
        output,
        ..
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
    let written = if args.dry_run {
        if let To::Graph(_) = output {
            diagnose::check_norms(checkpoint, plan)?;
        }
        Written::default()
    } else {
        match write(args, input)? {
            Some(written) => written,
            // What is wrong with it has been said; a script reads it here.
            None if args.json => {
                let why = format!(
                    "what was written is not equivalent to its input; {} was not kept",
                    quoted(&args.output.display().to_string())
                );
                output::json(&super::schema::Failure::new(&[why], 1))?;
                return Ok(Answer::No);
            }
            None => return Ok(Answer::No),
        }
    };
    if plan.blocks().is_empty() && !args.quiet {
        output::note(
            "repfuse: nothing to fuse: no two operators of the graph can become one; the output is a copy",
        );
    }
    let norms = norms(checkpoint, plan);
    let made = Made {
        written,
        bytes,
        norms: &norms,
        seconds: begin.elapsed().as_secs_f64(),
    };
    let summary = summary(args, input, sample, &warnings, &made);
    if args.json {
        output::json(&summary)?;
    } else if !args.quiet {
        if args.dry_run {
            output::result(&planned::table(checkpoint, plan, args.all))?;
        }
        output::result(&text(args, &summary, plan, &norms, (weights, output)))?;
    }
    Ok(Answer::Yes)
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

/// What is known of a file once it is there; nothing of one that was not written.
#[derive(Default)]
struct Written {
    verified: Option<bool>,
    vanished: Option<u64>,
}

/// What a summary says besides the plan.
struct Made<'a> {
    written: Written,
    /// The size of the file.
    bytes: u64,
    norms: &'a Norms,
    seconds: f64,
}

/// Writes the file and, if asked to, verifies it; none if it was rejected and not kept.
fn write(args: &Args, input: &Input<'_>) -> anyhow::Result<Option<Written>> {
    let Input {
        checkpoint,
        plan,
        output,
        ..
    } = *input;
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
    let mut verified = None;
    if args.verify {
        let (bar, progress) = progress::verifying(plan, args.quiet || args.json);
        let options = verify::Options {
            stop: Some(&signals::STOP),
            progress: Some(progress),
            ..Default::default()
        };
        let verdict = with_workers(|| -> anyhow::Result<_> {
            Ok(match output {
                To::Graph(folded) => graph::plain(folded.verify_written(&unfinished, &options))?,
                To::Weights(_) => {
                    let file = unfinished.open()?;
                    let form = verify::Deployed::File(&file);
                    verify::verify(checkpoint, plan, form, &options)?
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
            return Ok(None);
        }
        if !args.quiet && !args.json {
            super::verify::sampled(&verdict);
        }
        verified = Some(true);
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
        verified,
        vanished: Some(vanished),
    }))
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

fn summary<'a>(
    args: &Args,
    input: &Input<'a>,
    sample: Option<Evidence>,
    warnings: &[Warning],
    made: &Made<'_>,
) -> Summary<'a> {
    let Input {
        checkpoint,
        plan,
        weights,
        agreement,
        output: to,
    } = *input;
    let Made { written, norms, .. } = made;
    let weight = heaviest(weights);
    let agreed = agreement.and_then(|of| {
        Some(Agreed {
            recipe: of.recipe.as_deref()?,
            blocks: of.blocks,
            differences: &of.differences,
        })
    });
    let shown = |path: &PathBuf| path.display().to_string();
    let (output, shards) = match (to.paths(args).split_last(), args.shard_size) {
        (Some((index, shards)), Some(_)) => (shown(index), shards.iter().map(shown).collect()),
        _ => (shown(&args.output), Vec::new()),
    };
    Summary {
        schema: "repfuse.fuse/1",
        families: families::documents(plan, weights),
        warnings: families::warned(warnings),
        input: args.input.display().to_string(),
        output: output.clone(),
        shards,
        dry_run: args.dry_run,
        recipe: plan.recipe(),
        bn_eps: weight.and(plan.eps()),
        bn_eps_source: plan.eps_source().name(),
        bn_eps_note: plan.eps_note(),
        bn_eps_weight: weight.map(|w| w.largest),
        bn_eps_other: weight.map(|w| w.other),
        blocks_fused: plan.blocks().len(),
        blocks_skipped: plan.skipped(),
        tensors_before: checkpoint.tensors().len(),
        tensors_after: plan.outputs().len(),
        parameters_before: cost::parameters(checkpoint.tensors().values()),
        parameters_after: cost::planned_parameters(plan),
        bytes_before: checkpoint.file_len(),
        bytes_after: made.bytes,
        seconds: made.seconds,
        verified: written.verified,
        sample,
        became_zero: written.vanished,
        agreement: agreed,
        load: load::load(
            plan,
            &output,
            checkpoint.unwrapped(),
            matches!(to, To::Graph(_)),
        ),
        blocks: plan.blocks().iter().map(block_summary).collect(),
        wrappers_removed: plan.wrappers_removed(),
        dropped: plan.dropped().iter().map(|t| t.name()).collect(),
        norms: norms.all,
        norms_left: norms.left.iter().map(|(norm, _)| norm.clone()).collect(),
    }
}

fn block_summary(block: &crate::plan::Block) -> BlockSummary<'_> {
    BlockSummary {
        name: block.name(),
        assumes_identity: block.assumes_identity(),
        outputs: block
            .fused()
            .iter()
            .map(|fused| OutputSummary {
                module: fused.module(),
                dtype: fused.dtype().to_string(),
                weight_shape: fused.stored_shape(),
                groups: fused
                    .geometry()
                    .groups_known()
                    .then_some(fused.geometry().groups()),
                expression: crate::algebra::describe::expression(fused.expr().root()),
            })
            .collect(),
        consumed: block.consumed().iter().map(|t| t.name()).collect(),
    }
}

fn text(
    args: &Args,
    s: &Summary<'_>,
    plan: &Plan,
    norms: &Norms,
    (weights, to): (&[EpsSensitivity], To<'_>),
) -> String {
    let did = if s.dry_run { "would fuse" } else { "fused" };
    let mut head = format!(
        "{did} {} in {:.2} s",
        plural(s.blocks_fused, "block"),
        s.seconds
    );
    if !s.blocks_skipped.is_empty() {
        head += &format!(
            ", left {} as they are",
            plural(s.blocks_skipped.len(), "block")
        );
    }
    if s.verified == Some(true) {
        head += &format!(", {}", output::good("verified"));
    }
    let mut rows = vec![
        vec![
            "tensors".to_owned(),
            s.tensors_before.to_string(),
            "→".to_owned(),
            s.tensors_after.to_string(),
        ],
        vec![
            "parameters".to_owned(),
            count(s.parameters_before),
            "→".to_owned(),
            count(s.parameters_after),
        ],
    ];
    rows.push(vec![
        "bytes".to_owned(),
        bytes(s.bytes_before),
        "→".to_owned(),
        bytes(s.bytes_after),
    ]);
    let mut lines = format!("{head}\n");
    for row in output::table(&rows, &[1, 3], &[], output::width()).lines() {
        lines += &format!("  {row}\n");
    }
    if !s.shards.is_empty() {
        let index = quoted(&s.output);
        let shards = format!("{}, joined by {index}", plural(s.shards.len(), "file"));
        lines += &output::line("shards", &shards);
    }
    let knows = |of: &Agreed<'_>| {
        let says = match of.differences {
            [] => "agrees",
            _ => "differs",
        };
        format!(
            "{}; {} knows {} of the blocks and {says}",
            s.recipe, of.recipe, of.blocks
        )
    };
    lines += &match &s.agreement {
        Some(agreed) => output::line("recipe", &knows(agreed)),
        None => families::lines(plan),
    };
    lines += &computed_line(plan).unwrap_or_default();
    lines += &left_line(norms).unwrap_or_default();
    lines += &families::eps_lines(plan, weights);
    let sample = s.sample.as_ref().map(|evidence| evidence.line(plan));
    lines += &sample.unwrap_or_default();
    lines += &half_types(args, plan, to).unwrap_or_default();
    lines + &load::line(&s.load)
}

/// Says that fused weights are rounded to a half type because the file's are of that type.
fn half_types(args: &Args, plan: &Plan, to: To<'_>) -> Option<String> {
    if args.dtype.float().is_some() {
        return None;
    }
    // A graph computes in the type of its values, whatever its weights are stored in.
    let remedy = match to {
        To::Weights(_) => "; --dtype f32 keeps more digits",
        To::Graph(_) => ", in which the network computes",
    };
    let fused = plan.blocks().iter().flat_map(|block| block.fused());
    let half: BTreeSet<String> = fused
        .filter(|f| matches!(f.dtype(), Float::F16 | Float::Bf16))
        .map(|f| f.dtype().to_string())
        .collect();
    let half: Vec<String> = half.into_iter().collect();
    (!half.is_empty()).then(|| {
        let said = format!(
            "fused weights are rounded to {}{remedy}",
            half.join(" and ")
        );
        output::line("rounding", &said)
    })
}

/// Which weights were computed from parts before they were folded.
fn computed_line(plan: &Plan) -> Option<String> {
    let convs = plan.blocks().iter().flat_map(|block| block.fused());
    let leaves = convs.flat_map(|fused| fused.expr().root().leaves());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for computed in leaves.filter_map(|leaf| leaf.computed()) {
        *counts.entry(computed.name()).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(from, n)| format!("{} from {from}", plural(*n, "weight")))
        .collect();
    (!counts.is_empty()).then(|| output::line("computed", &counts.join(", ")))
}

/// As many norms as a summary names.
const NORMS_NAMED: usize = 4;

/// How many norms are left, and which; nothing where all are folded.
fn left_line(norms: &Norms) -> Option<String> {
    let left = norms.left.len();
    if left == 0 {
        return None;
    }
    let named = norms.left.iter().take(NORMS_NAMED).map(|(norm, why)| {
        let why = why.as_ref().map(|why| format!(" ({why})"));
        format!("{}{}", plain(norm), why.unwrap_or_default())
    });
    let mut named: Vec<String> = named.collect();
    if left > NORMS_NAMED {
        named.push(format!("{} more", left - NORMS_NAMED));
    }
    let line = format!(
        "{} of {} folded; as they were: {}",
        norms.all - left,
        plural(norms.all, "norm"),
        named.join(", ")
    );
    Some(output::line("left", &line))
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
