//! `repfuse fuse IN OUT`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::Answer;
use super::output::{self, bytes, count, plural};
use super::progress;
use super::select::{self, Select};
use crate::numbers::{self, EpsWeight};
use crate::recipe::{Plan, What};
use crate::tensor::{Checkpoint, Float};
use crate::{fuse, verify};

/// Fold every block of a checkpoint into one conv and write a deployable file
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  repfuse fuse train.safetensors deploy.safetensors
  repfuse fuse train.safetensors deploy.safetensors --verify --dtype f16
  repfuse fuse yolo.safetensors fused.safetensors --recipe my-block.json --bn-eps 1e-3")]
pub(super) struct Args {
    /// The checkpoint in training form
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    select: Select,
    /// The element type of fused tensors; copied tensors stay as they are
    #[arg(long, default_value = "keep")]
    dtype: Stored,
    /// Verify after writing, and leave no OUT if that fails
    #[arg(long)]
    verify: bool,
    /// Print what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace OUT if it exists
    #[arg(long)]
    force: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
    /// Workers [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
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

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    schema: &'static str,
    input: String,
    output: String,
    dry_run: bool,
    recipe: &'a str,
    bn_eps: Option<f64>,
    bn_eps_source: &'static str,
    bn_eps_note: Option<&'a str>,
    bn_eps_weight: Option<f64>,
    bn_eps_other: Option<f64>,
    blocks_fused: usize,
    blocks_skipped: &'a [String],
    tensors_before: usize,
    tensors_after: usize,
    parameters_before: u64,
    parameters_after: u64,
    bytes_before: u64,
    bytes_after: u64,
    seconds: f64,
    verified: Option<bool>,
    blocks: Vec<BlockSummary<'a>>,
    dropped: Vec<&'a str>,
}

#[derive(Serialize)]
struct BlockSummary<'a> {
    name: &'a str,
    assumes_identity: bool,
    outputs: Vec<OutputSummary<'a>>,
    consumed: Vec<&'a str>,
}

#[derive(Serialize)]
struct OutputSummary<'a> {
    module: &'a str,
    dtype: String,
    weight_shape: Vec<usize>,
    groups: usize,
    expression: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let begin = Instant::now();
    select::check_destination(&args.output)?;
    let checkpoint = select::open(&args.input)?;
    let plan = args.select.plan(&checkpoint, args.dtype.float())?;
    let weight = numbers::check_norms(&checkpoint, &plan)?;
    let mut after = plan.outputs.iter().map(|p| p.output.byte_len).sum();
    let mut verified = None;
    if !args.dry_run {
        let bar = progress::bar(after, args.quiet || args.json);
        let options = fuse::Options {
            replace: args.force,
            threads: args.threads.map(usize::from),
        };
        let unfinished = fuse::fuse(&checkpoint, &plan, &args.output, &options, &|n| {
            bar.inc(n);
            ControlFlow::Continue(())
        })?;
        bar.finish_and_clear();
        after = unfinished.bytes();
        if args.verify {
            let written = Checkpoint::open(unfinished.path())?;
            let verdict = verify::verify(
                &checkpoint,
                &plan,
                verify::Deployed::File(&written),
                &verify::Options::default(),
            )?;
            verified = Some(verdict.accepted());
            if !verdict.accepted() {
                output::note(&super::verify::failures(&verdict));
                anyhow::bail!(
                    "the written file is not equivalent to its input; {} was not kept",
                    crate::tensor::quoted(&args.output.display().to_string())
                );
            }
        }
        unfinished.finish()?;
    }
    let summary = summary(
        args,
        &checkpoint,
        &plan,
        weight.as_ref(),
        after,
        begin.elapsed().as_secs_f64(),
        verified,
    );
    if args.json {
        output::json(&summary)?;
    } else if !args.quiet {
        if args.dry_run {
            output::result(&plan_table(&plan))?;
        }
        output::result(&text(&summary, &plan, weight.as_ref()))?;
    }
    Ok(Answer::Yes)
}

fn summary<'a>(
    args: &Args,
    checkpoint: &Checkpoint,
    plan: &'a Plan,
    weight: Option<&EpsWeight>,
    bytes_after: u64,
    seconds: f64,
    verified: Option<bool>,
) -> Summary<'a> {
    let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
    let before = checkpoint.tensors().values();
    Summary {
        schema: "repfuse.fuse/1",
        input: args.input.display().to_string(),
        output: args.output.display().to_string(),
        dry_run: args.dry_run,
        recipe: &plan.recipe,
        bn_eps: weight.and(plan.eps),
        bn_eps_source: match plan.eps_source {
            crate::recipe::EpsSource::Recipe => "recipe",
            crate::recipe::EpsSource::User => "user",
        },
        bn_eps_note: plan.eps_note.as_deref(),
        bn_eps_weight: weight.map(|w| w.largest),
        bn_eps_other: weight.map(|w| w.other),
        blocks_fused: plan.blocks.len(),
        blocks_skipped: &plan.skipped,
        tensors_before: checkpoint.tensors().len(),
        tensors_after: plan.outputs.len(),
        parameters_before: before
            .filter(|t| t.dtype().float().is_some())
            .map(|t| elements(t.shape()))
            .sum(),
        parameters_after: plan
            .outputs
            .iter()
            .filter(|p| p.output.dtype.float().is_some())
            .map(|p| elements(&p.output.shape))
            .sum(),
        bytes_before: checkpoint.file_len(),
        bytes_after,
        seconds,
        verified,
        blocks: plan.blocks.iter().map(block_summary).collect(),
        dropped: plan.dropped.iter().map(|t| t.name()).collect(),
    }
}

fn block_summary(block: &crate::recipe::Block) -> BlockSummary<'_> {
    BlockSummary {
        name: &block.name,
        assumes_identity: block.assumes_identity,
        outputs: block
            .fused
            .iter()
            .map(|fused| OutputSummary {
                module: &fused.module,
                dtype: fused.dtype.to_string(),
                weight_shape: fused.geometry().weight_shape(),
                groups: fused.geometry().groups,
                expression: crate::describe::expression(fused.expr.expr()),
            })
            .collect(),
        consumed: block.consumed.iter().map(|t| t.name()).collect(),
    }
}

fn text(s: &Summary<'_>, plan: &Plan, weight: Option<&EpsWeight>) -> String {
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
        head += ", verified";
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
    for row in output::table(&rows, &[1]).lines() {
        lines += &format!("  {row}\n");
    }
    lines += &format!("  recipe      {}\n", s.recipe);
    if let Some(eps) = select::eps_line(plan, weight) {
        lines += &format!("  bn eps      {}\n", eps.replace('\n', "\n  "));
    }
    lines
}

fn plan_table(plan: &Plan) -> String {
    let mut rows = Vec::new();
    for fused in plan.blocks.iter().flat_map(|block| &block.fused) {
        let shape = format!("{:?}", fused.geometry().weight_shape());
        rows.push(vec![
            crate::tensor::plain(&fused.module),
            shape,
            "=".to_owned(),
            crate::describe::expression(fused.expr.expr()),
        ]);
    }
    let copied = plan
        .outputs
        .iter()
        .filter(|p| matches!(p.what, What::Copy(_)))
        .count();
    format!(
        "{}{} copied, {} dropped by name\n",
        output::table(&rows, &[]),
        plural(copied, "tensor"),
        plan.dropped.len()
    )
}
