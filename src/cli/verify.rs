//! `repfuse verify IN [OUT]`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::Answer;
use super::output::{self, plural};
use super::select::{self, Select};
use super::whole;
use crate::numbers;
use crate::tensor::plain;
use crate::verify::{self, Allowance, Deployed, Verdict};

/// Prove that a deploy form computes what its training form does
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  repfuse verify train.safetensors deploy.safetensors
  repfuse verify train.safetensors            # fold in memory, write nothing
  repfuse verify train.safetensors deploy.safetensors --json")]
pub(super) struct Args {
    /// The checkpoint in training form
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The deploy form; without it, what `fuse` would write is verified in memory
    #[arg(value_name = "OUT")]
    output: Option<PathBuf>,
    #[command(flatten)]
    select: Select,
    /// The largest difference that passes, in units of the rounding bound
    #[arg(long, value_name = "RATIO", default_value = "1", value_parser = tolerance)]
    tolerance: f64,
    /// Random maps per block
    #[arg(long, value_name = "N", default_value = "2")]
    probes: NonZeroUsize,
    /// Send an impulse through every input channel, also where an inner conv makes that slow
    #[arg(long)]
    exhaustive: bool,
    /// The number that random maps are drawn from
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    #[command(flatten)]
    whole: whole::Whole,
    /// Of a `.pt` file: the key of the state dict, as in `ema` or `ema.module` [default: detect]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a positive number; 1 is the rounding bound itself".to_owned()),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    input: String,
    output: Option<String>,
    accepted: bool,
    recipe: &'a str,
    bn_eps: Option<f64>,
    bn_eps_source: &'static str,
    bn_eps_weight: Option<f64>,
    allowance: &'static str,
    tolerance: f64,
    worst_ratio: Option<f64>,
    copied: usize,
    failures: &'a [String],
    blocks: Vec<Block<'a>>,
    #[serde(flatten)]
    findings: whole::Findings,
    seconds: f64,
}

#[derive(Serialize)]
struct Block<'a> {
    name: &'a str,
    module: &'a str,
    expression: &'a str,
    accepted: bool,
    ratio: Option<f64>,
    absolute: Option<f64>,
    relative: Option<f64>,
    snr_db: Option<f64>,
    tensor: Option<&'a str>,
    index: Option<&'a [usize]>,
    impulses: usize,
    input_channels_per_group: usize,
    failure: Option<&'a str>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let begin = Instant::now();
    let checkpoint = select::open_key(&args.input, args.key.as_deref(), args.quiet || args.json)?;
    let deployed = args.output.as_deref().map(select::open).transpose()?;
    let plan = args.select.plan(&checkpoint, None)?;
    let weight = numbers::check_norms(&checkpoint, &plan)?;
    let options = verify::Options {
        probes: args.probes,
        seed: args.seed,
        exhaustive: args.exhaustive,
        tolerance: args.tolerance,
        stop: None,
    };
    let form = deployed.as_ref().map_or(Deployed::InMemory, Deployed::File);
    let verdict = verify::verify(&checkpoint, &plan, form, &options)?;
    let findings = whole::run(
        &args.whole,
        args.seed,
        args.tolerance,
        &checkpoint,
        &plan,
        form,
    )?;
    let accepted = verdict.accepted() && findings.accepted();
    if args.json {
        let finite = |x: f64| x.is_finite().then_some(x);
        output::json(&Report {
            schema: "repfuse.verify/1",
            input: args.input.display().to_string(),
            output: args.output.as_ref().map(|p| p.display().to_string()),
            accepted,
            recipe: &plan.recipe,
            bn_eps: weight.as_ref().and(plan.eps),
            bn_eps_source: match plan.eps_source {
                crate::recipe::EpsSource::Recipe => "recipe",
                crate::recipe::EpsSource::User => "user",
            },
            bn_eps_weight: weight.as_ref().map(|w| w.largest),
            allowance: match verdict.allowance {
                Allowance::OneRounding => "one-rounding",
                Allowance::Arithmetic => "arithmetic",
            },
            tolerance: verdict.tolerance,
            worst_ratio: finite(verdict.worst_ratio()),
            copied: verdict.copied,
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
            seconds: begin.elapsed().as_secs_f64(),
        })?;
    } else if !args.quiet {
        let mut text = blocks(&verdict);
        text += &failures(&verdict);
        text += &whole::text(&findings);
        let against = match verdict.allowance {
            Allowance::OneRounding => "rounding once",
            Allowance::Arithmetic => {
                "arithmetic in the stored type, for repfuse did not write this file"
            }
        };
        let equal = if accepted {
            "equivalent"
        } else {
            "NOT equivalent"
        };
        let worst = verdict.worst_ratio();
        text += &format!(
            "\n{equal}: {}, worst difference {worst:.2} of what {against} allows, {} copied\n",
            plural(verdict.blocks.len(), "conv"),
            plural(verdict.copied, "tensor")
        );
        text += &format!("  recipe      {}\n", plan.recipe);
        if let Some(eps) = select::eps_line(&plan, weight.as_ref()) {
            text += &format!("  bn eps      {}\n", eps.replace('\n', "\n  "));
        }
        output::result(&text)?;
    }
    let otherwise = deployed
        .as_ref()
        .and_then(|file| select::made_otherwise(file, &plan));
    if let Some(hint) = otherwise.filter(|_| !accepted) {
        output::note(&hint);
    }
    Ok(if accepted { Answer::Yes } else { Answer::No })
}

/// One line per fused conv.
fn blocks(verdict: &Verdict) -> String {
    let mut rows = vec![
        ["", "conv", "ratio", "worst", "dB", "expression"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for b in &verdict.blocks {
        rows.push(vec![
            if b.accepted { "ok" } else { "FAIL" }.to_owned(),
            plain(&b.module),
            format!("{:.2}", b.ratio),
            format!("{:.1e}", b.absolute),
            format!("{:.0}", b.snr_db),
            b.expression.clone(),
        ]);
    }
    output::table(&rows, &[2, 3, 4])
}

/// What is wrong, a line each; nothing for a verdict that accepts.
pub(super) fn failures(verdict: &Verdict) -> String {
    let mut lines = String::new();
    for b in verdict.blocks.iter().filter(|b| !b.accepted) {
        let what = match (&b.failure, &b.at) {
            (Some(failure), _) => failure.clone(),
            (None, Some((tensor, index))) => format!(
                "{} at {index:?} is off by {:.2} times what rounding allows",
                crate::tensor::quoted(tensor),
                b.ratio
            ),
            (None, None) => "nothing was compared".to_owned(),
        };
        lines += &format!("  {}: {what}\n", plain(&b.name));
    }
    for failure in &verdict.failures {
        lines += &format!("  {failure}\n");
    }
    lines
}
