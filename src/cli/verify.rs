//! `repfuse verify IN [OUT]`.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;

use super::Answer;
use super::families;
use super::graph;
use super::output::{self, Cut, plural};
use super::sample::{Evidence, Sampled};
use super::select::{self, Key, Select};
use super::whole;
use super::workers::with_workers;
use crate::fuse::diagnose::{self, EpsWeight, heaviest};
use crate::graph::GraphFile;
use crate::plan::Plan;
use crate::summary::units;
use crate::summary::warnings::warnings;
use crate::tensor::{Checkpoint, plain, quoted};
use crate::verify::{self, Allowance, Deployed, Verdict};

/// Prove that a deploy form computes what its training form does
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse verify train.safetensors deploy.safetensors
  repfuse verify train.safetensors            # fold in memory, write nothing
  repfuse verify train.safetensors deploy.safetensors --json")]
pub(super) struct Args {
    /// The checkpoint in training form
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
    #[arg(long, hide_short_help = true, value_name = "RATIO", default_value = "1", value_parser = tolerance)]
    tolerance: f64,
    /// Random maps per block
    #[arg(long, hide_short_help = true, value_name = "N", default_value = "2", value_parser = probes)]
    probes: NonZeroU16,
    /// Send an impulse through every input channel, also where an inner conv makes that slow
    #[arg(long, hide_short_help = true)]
    exhaustive: bool,
    /// The number that random maps are drawn from
    #[arg(long, hide_short_help = true, value_name = "N", default_value = "0")]
    seed: u64,
    #[command(flatten)]
    key: Key,
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
    /// The worst ratio of all convs; null if it is not a number.
    worst_ratio: Option<f64>,
    /// Tensors that were copied and are the same, byte for byte.
    copied: usize,
    /// Tensors that were copied with each number rounded once to the type of the whole deploy form.
    rounded: usize,
    /// How the names of the deploy form differ from those that `fuse` would write; null if they do not.
    names: Option<String>,
    /// What is wrong apart from the convs: names missing or left over, copies that differ.
    failures: &'a [String],
    /// One for each fused conv.
    blocks: Vec<Block<'a>>,
    #[serde(flatten)]
    findings: whole::Findings,
    /// What the maps of `--sample` said.
    sample: Option<Evidence>,
    /// The recipes, each with its eps and its part of the file; none for a graph.
    families: Vec<families::Document>,
    /// What rests on names alone, with its size for this file.
    warnings: Vec<families::Warned>,
    seconds: f64,
}

/// The verdict on one fused conv. Numbers that are infinite or not numbers are null.
#[derive(Serialize, JsonSchema)]
struct Block<'a> {
    name: &'a str,
    /// Its tensors are `<module>.weight` and `<module>.bias`.
    module: &'a str,
    /// What it was fused from, in a line.
    expression: &'a str,
    accepted: bool,
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
    /// Signal to noise over all probes; null where there is no noise at all.
    snr_db: Option<f64>,
    /// The tensor of the deploy form in which the worst ratio is.
    tensor: Option<&'a str>,
    /// Where in it.
    index: Option<&'a [usize]>,
    /// Input channels of each group that an impulse was sent through.
    impulses: usize,
    input_channels_per_group: usize,
    /// What is wrong with its tensors, if they cannot be compared at all.
    failure: Option<&'a str>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let begin = Instant::now();
    if let Some(graph) = graph::open(&args.input)? {
        args.key.refuse_for_a_graph()?;
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
    let options = options(args);
    let (deployed, names) = match deployed.map(|file| verify::aligned(file, &plan)) {
        None => (None, None),
        Some(Ok((file, names))) => (Some(file), names),
        Some(Err(why)) => anyhow::bail!("{why}"),
    };
    let form = deployed.as_ref().map_or(Deployed::InMemory, Deployed::File);
    let (verdict, findings) = with_workers(|| -> anyhow::Result<_> {
        let verdict = verify::verify(&checkpoint, &plan, form, &options)?;
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
    let said = Said {
        names,
        sample,
        findings,
    };
    let answer = tell(args, begin, &plan, &weights, &verdict, said)?;
    let accepted = matches!(answer, Answer::Yes);
    let otherwise = deployed
        .as_ref()
        .and_then(|file| select::made_otherwise(file, &plan));
    if let Some(hint) = otherwise.filter(|_| !accepted) {
        output::note(&hint);
    }
    let untouched = |file: &Checkpoint| {
        verdict.blocks.iter().all(|b| b.failure.is_some()) && args.select.plan(file, None).is_ok()
    };
    if let Some((path, file)) = args.output.as_ref().zip(deployed.as_ref())
        && untouched(file)
    {
        let path = quoted(&path.display().to_string());
        output::note(&format!(
            "repfuse: {path} is in training form, too; `fuse` makes a deploy form of it"
        ));
    }
    Ok(answer)
}

fn options(args: &Args) -> verify::Options {
    verify::Options {
        probes: args.probes,
        seed: args.seed,
        exhaustive: args.exhaustive,
        tolerance: args.tolerance,
        stop: None,
    }
}

/// A graph, and another one or a file of weights that was made of it.
fn verify_graph(args: &Args, file: &GraphFile, begin: Instant) -> anyhow::Result<Answer> {
    let folded = args.select.fold(file, None)?;
    diagnose::check_norms(file.constants(), folded.plan())?;
    let made = args.output.as_deref().map(graph::made).transpose()?;
    let verdict = with_workers(|| graph::verify(file, &folded, made.as_ref(), &options(args)))??;
    let findings = args
        .whole
        .run_graphs(args.seed, &args.input, args.output.as_deref())?;
    let said = Said {
        names: None,
        sample: None,
        findings,
    };
    tell(args, begin, folded.plan(), &[], &verdict, said)
}

/// What is known besides the verdict.
struct Said {
    /// How the names of the deploy form differ.
    names: Option<String>,
    sample: Option<Evidence>,
    findings: whole::Findings,
}

/// Prints the verdict.
fn tell(
    args: &Args,
    begin: Instant,
    plan: &Plan,
    weights: &[EpsWeight],
    verdict: &Verdict,
    said: Said,
) -> anyhow::Result<Answer> {
    let Said {
        names,
        sample,
        findings,
    } = said;
    let warnings = match sample {
        Some(_) => Vec::new(),
        None => warnings(plan, weights),
    };
    if !args.quiet && !args.json {
        families::warn(&warnings);
        sampled(verdict);
    }
    let weight = heaviest(weights);
    let supported = sample.as_ref().is_none_or(|evidence| evidence.accepted);
    let accepted = verdict.accepted() && findings.accepted() && supported;
    if args.json {
        let finite = |x: f64| x.is_finite().then_some(x);
        output::json(&Report {
            schema: "repfuse.verify/1",
            input: args.input.display().to_string(),
            output: args.output.as_ref().map(|p| p.display().to_string()),
            accepted,
            recipe: &plan.recipe,
            bn_eps: weight.and(plan.eps),
            bn_eps_source: plan.eps_source.name(),
            bn_eps_weight: weight.map(|w| w.largest),
            allowance: match verdict.allowance {
                Allowance::OneRounding => "one-rounding",
                Allowance::Arithmetic => "arithmetic",
            },
            tolerance: verdict.tolerance,
            worst_ratio: finite(verdict.worst_ratio()),
            copied: verdict.copied,
            rounded: verdict.rounded,
            names,
            failures: &verdict.failures,
            blocks: verdict
                .blocks
                .iter()
                .map(|b| Block {
                    name: &b.name,
                    module: &b.module,
                    expression: &b.expression,
                    accepted: b.accepted,
                    ratio: finite(b.ratio),
                    trained_dtype: b.types.map(|[trained, _]| trained.to_string()),
                    dtype: b.types.map(|[_, stored]| stored.to_string()),
                    absolute: finite(b.absolute),
                    relative: finite(b.relative),
                    snr_db: finite(b.snr_db),
                    tensor: b.at.as_ref().map(|(t, _)| t.as_str()),
                    index: b.at.as_ref().map(|(_, i)| i.as_slice()),
                    impulses: b.impulses[0],
                    input_channels_per_group: b.impulses[1],
                    failure: b.failure.as_deref(),
                })
                .collect(),
            findings,
            sample,
            families: families::documents(plan, weights),
            warnings: families::warned(&warnings),
            seconds: begin.elapsed().as_secs_f64(),
        })?;
    } else if !args.quiet {
        let mut text = blocks(verdict);
        text += &failures(verdict);
        text += &whole::text(&findings);
        text += sample.as_ref().map_or("", Evidence::failures);
        let allowed = match verdict.allowance {
            Allowance::OneRounding => "rounding once allows",
            Allowance::Arithmetic => {
                "arithmetic in the stored type allows (repfuse did not write this file)"
            }
        };
        let equal = if accepted {
            output::good("equivalent")
        } else {
            output::bad("NOT equivalent")
        };
        let absent = verdict.blocks.iter().filter(|b| b.failure.is_some());
        let [all, absent] = [verdict.blocks.len(), absent.count()];
        let worst = match all - absent {
            0 => "none of them comparable".to_owned(),
            _ => format!(
                "worst difference {} of what {allowed}",
                units::ratio(verdict.worst_compared())
            ),
        };
        let uncompared = match absent {
            1.. if absent < all => format!(", {absent} not comparable"),
            _ => String::new(),
        };
        let rounded = match verdict.rounded {
            0 => String::new(),
            n => format!(
                ", {} rounded once to the file's type",
                plural(n, "copied tensor")
            ),
        };
        let sentence = format!(
            "{equal}: {}{uncompared}, {worst}, {} copied{rounded}",
            plural(all, "conv"),
            plural(verdict.copied, "tensor")
        );
        text += &format!("\n{}\n", output::wrapped(&sentence, 0, output::width()));
        text += &families::lines(plan);
        text += &names.map_or(String::new(), |names| output::line("names", &names));
        if let Some(types) = other_types(verdict) {
            text += &output::line("types", &types);
        }
        text += &families::eps_lines(plan, weights);
        let sample = sample.as_ref().map(|evidence| evidence.line(plan));
        text += &sample.unwrap_or_default();
        output::result(&text)?;
    }
    Ok(if accepted { Answer::Yes } else { Answer::No })
}

/// In which types convs are stored, where they are not those of the training form: what rounding allows depends on them.
fn other_types(verdict: &Verdict) -> Option<String> {
    let types = verdict.blocks.iter().filter_map(|b| b.types);
    let other: BTreeSet<String> = types
        .filter(|[trained, stored]| trained != stored)
        .map(|[trained, stored]| format!("{stored}, trained as {trained}"))
        .collect();
    let other: Vec<String> = other.into_iter().collect();
    (!other.is_empty()).then(|| format!("convs are {}", other.join("; convs are ")))
}

/// One line per fused conv.
fn blocks(verdict: &Verdict) -> String {
    let header = ["", "conv", "ratio", "worst", "expression"];
    let mut rows = vec![header.map(output::soft).to_vec()];
    let mut blocks: Vec<_> = verdict.blocks.iter().collect();
    blocks.sort_by(|a, b| units::natural_order(&a.module, &b.module));
    for b in blocks {
        let measured = |number: String| match b.failure {
            Some(_) => "–".to_owned(),
            None => number,
        };
        rows.push(vec![
            if b.accepted {
                output::good("ok")
            } else {
                output::bad("FAIL")
            },
            plain(&b.module),
            measured(units::ratio(b.ratio)),
            measured(format!("{:.1e}", b.absolute)),
            b.expression.clone(),
        ]);
    }
    let cut = [(1, Cut::Middle), (4, Cut::End)];
    output::table(&rows, &[2, 3], &cut, output::table_width(false))
}

/// What is wrong, a line each; nothing for a verdict that accepts.
pub(super) fn failures(verdict: &Verdict) -> String {
    let mut lines = String::new();
    for b in verdict.blocks.iter().filter(|b| !b.accepted) {
        let why = b.why_not().unwrap_or_default();
        lines += &format!("  {}: {why}\n", plain(&b.name));
    }
    // What a block lacks has been said of the block.
    let said = |failure: &&String| {
        verdict
            .blocks
            .iter()
            .any(|b| b.failure.as_ref() == Some(failure))
    };
    for failure in verdict.failures.iter().filter(|failure| !said(failure)) {
        lines += &format!("  {failure}\n");
    }
    lines
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
