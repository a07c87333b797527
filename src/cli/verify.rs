//! `repfuse verify IN [OUT]`.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;

use super::Answer;
use super::families;
use super::graph;
use super::made;
use super::output;
use super::progress;
use super::sample::{Evidence, Sampled};
use super::select::{self, Key, Select};
use super::verdict::Told;
use super::whole;
use super::workers::with_workers;
use crate::fuse::diagnose::{self, heaviest};
use crate::graph::GraphFile;
use crate::plan::Plan;
use crate::summary::order::FileOrder;
use crate::summary::warnings::{Warning, warnings};
use crate::tensor::{Checkpoint, plain, quoted};
use crate::verify::{self, Allowance, BlockVerdict, Deployed, Verdict};

/// Prove that a deploy form computes the same as its training form
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse verify train.safetensors deploy.safetensors
  repfuse verify train.safetensors            # fold in memory, write nothing
  repfuse verify train.safetensors deploy.safetensors --json")]
pub(super) struct Args {
    /// The training form: a checkpoint, an ONNX model, or a `.pt2`
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The deploy form; without it, what `fuse` would write is verified in memory
    #[arg(value_name = "DEPLOY")]
    output: Option<PathBuf>,
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    sampled: Sampled,
    /// The largest difference that passes, in units of the rounding bound
    #[arg(long, hide_short_help = true, allow_negative_numbers = true, value_name = "RATIO", default_value = "1", value_parser = tolerance)]
    tolerance: f64,
    /// Random maps per block
    #[arg(long, hide_short_help = true, allow_negative_numbers = true, value_name = "N", default_value = "2", value_parser = probes)]
    probes: NonZeroU16,
    /// Send an impulse through every input channel, also where an inner conv makes that slow
    #[arg(long, hide_short_help = true)]
    exhaustive: bool,
    /// The number that random maps are drawn from
    #[arg(
        long,
        hide_short_help = true,
        allow_negative_numbers = true,
        value_name = "N",
        default_value = "0"
    )]
    seed: u64,
    #[command(flatten)]
    key: Key,
    /// One row for every conv, every failure, and names in full
    #[arg(long)]
    all: bool,
    /// Print the verdict as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    whole: whole::Whole,
}

/// More maps say no more, and each is held in memory.
const MOST_PROBES: u16 = 1024;

fn probes(text: &str) -> Result<NonZeroU16, String> {
    let number = text.parse().ok();
    number
        .filter(|n: &NonZeroU16| n.get() <= MOST_PROBES)
        .ok_or_else(|| format!("expected a number from 1 to {MOST_PROBES}"))
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a positive number; 1 is the rounding bound itself".to_owned()),
    }
}

/// Says of which blocks not every weight was looked at.
pub(super) fn sampled(verdict: &Verdict) {
    let compared = verdict.blocks.iter().filter(|b| b.failure.is_none());
    for line in compared.filter_map(|b| sample_of(&b.module, b.impulses)) {
        output::note(&line);
    }
}

fn sample_of(module: &str, [tried, all]: [usize; 2]) -> Option<String> {
    let module = plain(module);
    (tried < all).then(|| {
        format!("repfuse: {module}: impulses went through {tried} of {all} input channels; `verify --exhaustive` tries all")
    })
}

/// What `verify --json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Report<'a> {
    /// This schema and its version.
    #[schemars(extend("const" = "repfuse.verify/1"))]
    schema: &'static str,
    /// The checkpoint in training form.
    input: String,
    /// The deploy form; null if what `fuse` would write was verified in memory.
    output: Option<String>,
    /// Whether both forms are the same network. The exit status is 0 if so, else 1.
    accepted: bool,
    /// The verdict in a sentence: the first line of the text of a file that fails.
    summary: String,
    recipe: &'a str,
    /// The eps of the batch norms; null if there are none, or if the file says several.
    bn_eps: Option<f64>,
    /// `recipe`, `file`, `user`, `sample` or `host`; see `families` where they are several.
    bn_eps_source: &'static str,
    /// The largest relative change of a batch norm's scale if the eps were 1e-3 instead of 1e-5, or the reverse.
    bn_eps_weight: Option<f64>,
    /// `one-rounding` for what repfuse wrote, `arithmetic` for the files of other converters.
    allowance: &'static str,
    /// The largest ratio that passes.
    tolerance: f64,
    /// The worst ratio of all convs; null where a conv has none, whose `state` says why.
    worst_ratio: Option<f64>,
    /// Tensors that were copied and are the same, byte for byte.
    copied: usize,
    /// Tensors that were copied with each number rounded once to the type of the whole deploy form.
    rounded: usize,
    /// Tensors of the training form that are still in the deploy form beside what was fused of them, and are what they were.
    unfused: usize,
    /// How the names of the deploy form differ from those that `fuse` would write; null if they do not.
    names: Option<&'a str>,
    /// What is wrong apart from the convs: names missing or left over, copies that differ.
    failures: Vec<String>,
    /// One for each fused conv.
    blocks: Vec<Block<'a>>,
    #[serde(flatten)]
    findings: &'a whole::Findings,
    /// What the maps of `--sample` said.
    sample: Option<&'a Evidence>,
    /// The recipes, each with its eps and its part of the file; none for a graph.
    families: Vec<families::Document>,
    /// What rests on names alone, with its size for this file.
    warnings: Vec<families::Warned>,
    seconds: f64,
}

/// The verdict on one fused conv. Numbers that are infinite or not numbers are null, and `state` says why.
#[derive(Serialize, JsonSchema)]
struct Block<'a> {
    name: &'a str,
    /// Its tensors are `<module>.weight` and `<module>.bias`.
    module: &'a str,
    /// What it was fused from, in a line.
    expression: &'a str,
    accepted: bool,
    /// `equal`, `differs`, `not-finite` where a number of the deploy form is infinite or none, or `not-comparable` where its tensors
    /// are missing or of another shape.
    state: &'static str,
    /// The type of its weight in the deploy form.
    dtype: Option<String>,
    /// The type of the convs that it was fused from.
    trained_dtype: Option<String>,
    /// The worst difference in units of the rounding bound.
    ratio: Option<f64>,
    /// The worst absolute difference.
    absolute: Option<f64>,
    /// The worst difference relative to the larger of output and bound.
    relative: Option<f64>,
    /// The tensor of the deploy form in which the worst ratio is.
    tensor: Option<&'a str>,
    /// Where in it; an output channel alone where random maps show its weights to be wrong only together.
    index: Option<&'a [usize]>,
    /// The number that stands there; null where it is none (see `state`) or nothing differs there.
    found: Option<f64>,
    /// The number that the training form gives.
    expected: Option<f64>,
    /// Input channels of each group that an impulse was sent through.
    impulses: usize,
    input_channels_per_group: usize,
    /// What is wrong with it, in a sentence; null if nothing is.
    failure: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let begin = Instant::now();
    if let Some(graph) = graph::open(&args.input)? {
        args.key.refuse_for_a_graph()?;
        args.sampled.refuse_for_a_graph()?;
        return verify_graph(args, &graph, begin);
    }
    let checkpoint = args.key.open(&args.input, args.quiet || args.json)?;
    let deployed = args.output.as_deref().map(select::deployed).transpose()?;
    let (plan, sample) = match args.sampled.plan(&args.select, &checkpoint, None)? {
        Some((plan, evidence)) => (plan, Some(evidence)),
        None => (
            args.select.plan_first(&checkpoint, deployed.as_ref())?,
            None,
        ),
    };
    let weights = diagnose::check_norms(&checkpoint, &plan)?;
    let (bar, progress) = progress::verifying(&plan, args.quiet || args.json);
    let options = options(args, Some(progress));
    let (deployed, names) = match deployed.map(|file| verify::aligned(file, &plan)) {
        None => (None, None),
        Some(Ok((file, names))) => (Some(file), names),
        Some(Err(why)) => anyhow::bail!("{why}"),
    };
    let form = deployed.as_ref().map_or(Deployed::InMemory, Deployed::File);
    let (verdict, findings) = with_workers(|| -> anyhow::Result<_> {
        let verdict = verify::verify(&checkpoint, &plan, form, &options)?;
        bar.finish_and_clear();
        let findings = whole::run(
            &args.whole,
            args.seed,
            args.tolerance,
            &checkpoint,
            &plan,
            form,
        )?;
        Ok((verdict, findings))
    })??;
    let no_deploy_form = no_deploy_form(args, &verdict, deployed.as_ref());
    let told = Told {
        plan: &plan,
        weights: &weights,
        verdict: &verdict,
        findings: &findings,
        sample: sample.as_ref(),
        no_deploy_form: no_deploy_form.as_deref(),
        names: names.as_deref(),
        order: &FileOrder::new(&checkpoint),
        all: args.all,
    };
    let answer = tell(args, begin, &told)?;
    if !verdict.accepted()
        && let Some(file) = &deployed
        && let Some(hint) = otherwise(args, &checkpoint, file, &plan)?
    {
        output::note(&hint);
    }
    Ok(answer)
}

/// If a deploy form is equivalent by other settings, or where other blocks are chosen: what to pass for that.
fn otherwise(
    args: &Args,
    checkpoint: &Checkpoint,
    deployed: &Checkpoint,
    plan: &Plan,
) -> anyhow::Result<Option<String>> {
    if let Some((flags, select)) = args.select.as_made(deployed, plan)
        && accepts(args, &select, checkpoint, deployed)?
    {
        return Ok(Some(format!(
            "repfuse: the file says it was fused with other settings, and `{flags}` verifies it"
        )));
    }
    if let Some((how, select)) = args.select.as_chosen(deployed, plan)
        && accepts(args, &select, checkpoint, deployed)?
    {
        return Ok(Some(format!(
            "repfuse: other blocks of the file are fused; {how} verifies it"
        )));
    }
    Ok(None)
}

/// Whether a deploy form is equivalent by a selection.
fn accepts(
    args: &Args,
    select: &Select,
    checkpoint: &Checkpoint,
    deployed: &Checkpoint,
) -> anyhow::Result<bool> {
    let Ok(plan) = select.plan(checkpoint, None) else {
        return Ok(false);
    };
    let form = Deployed::File(deployed);
    let options = options(args, None);
    Ok(with_workers(|| verify::verify(checkpoint, &plan, form, &options))??.accepted())
}

/// What there is to say where no block is found in a file because it is in training form itself.
fn no_deploy_form(args: &Args, verdict: &Verdict, deployed: Option<&Checkpoint>) -> Option<String> {
    let (file, path) = deployed.zip(args.output.as_ref())?;
    let is_so = !verdict.accepted()
        && verdict.blocks.iter().all(|b| b.failure.is_some())
        && args.select.plan(file, None).is_ok();
    is_so.then(|| unfolded(path))
}

/// Says that a file is no deploy form.
fn unfolded(path: &Path) -> String {
    let path = quoted(&path.display().to_string());
    format!("{path} is in training form, too; `fuse` makes a deploy form of it")
}

fn options(args: &Args, progress: Option<verify::Progress>) -> verify::Options {
    verify::Options {
        probes: args.probes,
        seed: args.seed,
        exhaustive: args.exhaustive,
        tolerance: args.tolerance,
        stop: None,
        progress,
    }
}

/// A graph, and another one or a file of weights that was made of it.
fn verify_graph(args: &Args, file: &GraphFile, begin: Instant) -> anyhow::Result<Answer> {
    let made = args.output.as_deref().map(made::made).transpose()?;
    let folded = made::folded(&args.select, file, made.as_ref())?;
    diagnose::check_norms(file.constants(), folded.plan())?;
    let (bar, progress) = progress::verifying(folded.plan(), args.quiet || args.json);
    let options = options(args, Some(progress));
    let verdict = with_workers(|| made::verify(file, &folded, made.as_ref(), &options))??;
    bar.finish_and_clear();
    let findings = args
        .whole
        .run_graphs(args.seed, &args.input, args.output.as_deref())?;
    // What can be folded itself has not been.
    let training_too = match &made {
        Some(made::Made::Graph(other)) => {
            verdict.blocks.iter().all(|b| b.failure.is_some())
                && args
                    .select
                    .fold(other, None)
                    .is_ok_and(|folded| !folded.plan().blocks().is_empty())
        }
        _ => false,
    };
    let no_deploy_form = args
        .output
        .as_deref()
        .filter(|_| training_too)
        .map(unfolded);
    let told = Told {
        plan: folded.plan(),
        weights: &[],
        verdict: &verdict,
        findings: &findings,
        sample: None,
        no_deploy_form: no_deploy_form.as_deref(),
        names: None,
        order: &FileOrder::new(file.constants()),
        all: args.all,
    };
    let answer = tell(args, begin, &told)?;
    if !verdict.accepted()
        && let Some(made::Made::Graph(other)) = &made
        && let Some(hint) = with_workers(|| {
            let options = self::options(args, None);
            made::fused_in_part(&args.select, file, (other, folded.plan()), &options)
        })??
    {
        output::note(&hint);
    }
    Ok(answer)
}

/// Prints the verdict.
fn tell(args: &Args, begin: Instant, told: &Told<'_>) -> anyhow::Result<Answer> {
    let warnings = match told.sample {
        Some(_) => Vec::new(),
        None => warnings(told.plan, told.weights),
    };
    let accepted = told.accepted();
    if !args.quiet && !args.json {
        families::warn(&warnings);
        if accepted {
            sampled(told.verdict);
        }
    }
    if args.json {
        output::json(&report(args, begin, told, &warnings))?;
    } else if !args.quiet {
        output::result(&told.text())?;
    }
    Ok(if accepted { Answer::Yes } else { Answer::No })
}

fn report<'a>(args: &Args, begin: Instant, told: &Told<'a>, warnings: &[Warning]) -> Report<'a> {
    let (plan, verdict) = (told.plan, told.verdict);
    let weight = heaviest(told.weights);
    Report {
        schema: "repfuse.verify/1",
        input: args.input.display().to_string(),
        output: args.output.as_ref().map(|p| p.display().to_string()),
        accepted: told.accepted(),
        summary: told.sentence(),
        recipe: plan.recipe(),
        bn_eps: weight.and(plan.eps()),
        bn_eps_source: plan.eps_source().name(),
        bn_eps_weight: weight.map(|w| w.largest),
        allowance: match verdict.allowance {
            Allowance::OneRounding => "one-rounding",
            Allowance::Arithmetic => "arithmetic",
        },
        tolerance: verdict.tolerance,
        worst_ratio: finite(verdict.worst_ratio()),
        copied: verdict.copied,
        rounded: verdict.rounded,
        unfused: verdict.unfused,
        names: told.names,
        failures: verdict.failures_in_words(),
        blocks: verdict.blocks.iter().map(block).collect(),
        findings: told.findings,
        sample: told.sample,
        families: families::documents(plan, told.weights),
        warnings: families::warned(warnings),
        seconds: begin.elapsed().as_secs_f64(),
    }
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

fn block(b: &BlockVerdict) -> Block<'_> {
    let number = b.at.as_ref().filter(|at| !at.whole_channel);
    Block {
        name: &b.name,
        module: &b.module,
        expression: &b.expression,
        accepted: b.accepted,
        state: b.state(),
        ratio: finite(b.ratio),
        trained_dtype: b.types.map(|[trained, _]| trained.to_string()),
        dtype: b.types.map(|[_, stored]| stored.to_string()),
        absolute: finite(b.absolute),
        relative: finite(b.relative),
        tensor: b.at.as_ref().map(|at| at.tensor.as_str()),
        index: b.at.as_ref().map(|at| at.index.as_slice()),
        found: number.and_then(|at| finite(at.found)),
        expected: number.and_then(|at| at.expected).and_then(finite),
        impulses: b.impulses[0],
        input_channels_per_group: b.impulses[1],
        failure: b.why_not(),
    }
}

#[cfg(test)]
mod tests {
    use super::sample_of;

    #[test]
    fn a_sample_is_said_to_be_one() {
        let said = sample_of("a.out", [3, 8]);
        let expected = "repfuse: a.out: impulses went through 3 of 8 input channels; `verify --exhaustive` tries all";
        assert_eq!(said.as_deref(), Some(expected));
        assert_eq!(sample_of("a.out", [8, 8]), None);
    }
}
