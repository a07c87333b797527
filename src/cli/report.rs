//! `repfuse report IN [DEPLOY] -o PAGE`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;

use super::Answer;
use super::graph;
use super::made::{self, Made};
use super::select::{self, Key, Select};
use super::workers::with_workers;
use super::{output, place, progress, signals};
use crate::graph::GraphFile;
use crate::report::{self, Report};
use crate::summary::units;
use crate::tensor::{self, Checkpoint, Scratch, plain, quoted};
use crate::verify::{self, Deployed, Verdict};

/// Draw what fusing does, block by block, on one page
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse report train.safetensors -o report.html
  repfuse report train.safetensors deploy.safetensors -o report.html
  repfuse report slow.onnx fast.onnx -o report.html
  repfuse report train.safetensors --json | jq '.blocks[].convs[].ratio'")]
pub(super) struct Args {
    /// The training form: a checkpoint, an ONNX model, or a `.pt2`
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The deploy form; without it, the report is on what `fuse` would write
    #[arg(value_name = "DEPLOY")]
    deploy: Option<PathBuf>,
    /// The page to write; a report that is there already is replaced
    #[arg(
        long = "output",
        short = 'o',
        alias = "page",
        value_name = "PAGE",
        required_unless_present = "json"
    )]
    page: Option<PathBuf>,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    select: Select,
    /// Height and width of the images that multiply-adds are counted for
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value = "224", value_parser = clap::value_parser!(u16).range(1..))]
    input_size: u16,
    /// Replace PAGE even if it is no report
    #[arg(long)]
    force: bool,
    /// Print what the page shows as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

/// What `report --json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Document<'a> {
    /// This schema and its version.
    #[schemars(extend("const" = "repfuse.report/1"))]
    schema: &'static str,
    /// The page that was written.
    page: Option<String>,
    #[serde(flatten)]
    report: &'a Report,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    if let Some(page) = &args.page {
        // What cannot be written to is said before anything is read.
        place::of(page)?;
        anyhow::ensure!(
            args.force || may_replace(page)?,
            "{} exists and is no report; choose another name or pass --force to replace it",
            quoted(&page.display().to_string())
        );
    }
    if let Some(file) = graph::open(&args.input)? {
        args.key.refuse_for_a_graph()?;
        return of_graph(args, &file);
    }
    let checkpoint = args.key.open(&args.input, args.quiet || args.json)?;
    let deployed = args.deploy.as_deref().map(select::deployed).transpose()?;
    let plan = args.select.plan_first(&checkpoint, deployed.as_ref())?;
    check_page(args, std::iter::once(&checkpoint).chain(&deployed))?;
    let form = deployed.as_ref().map_or(Deployed::InMemory, Deployed::File);
    let (verdict, report) = with_workers(|| -> anyhow::Result<_> {
        let (bar, progress) = progress::verifying(&plan, args.quiet || args.json);
        let options = verify::Options {
            stop: Some(&signals::STOP),
            progress: Some(progress),
            ..Default::default()
        };
        let verdict = verify::verify(&checkpoint, &plan, form, &options)?;
        bar.finish_and_clear();
        let options = report::Options {
            input_size: usize::from(args.input_size),
        };
        let report = report::report(&checkpoint, &plan, form, &verdict, &options)?;
        Ok((verdict, report))
    })??;
    tell(args, &verdict, &report)
}

/// The report on a graph.
fn of_graph(args: &Args, file: &GraphFile) -> anyhow::Result<Answer> {
    let made = args.deploy.as_deref().map(made::made).transpose()?;
    let folded = made::folded(&args.select, file, made.as_ref())?;
    let (checkpoint, deployed) = (file.constants(), made.as_ref().map(Made::constants));
    check_page(args, std::iter::once(checkpoint).chain(deployed))?;
    let form = deployed.map_or(Deployed::InMemory, Deployed::File);
    let (verdict, report) = with_workers(|| -> anyhow::Result<_> {
        let options = verify::Options {
            stop: Some(&signals::STOP),
            ..Default::default()
        };
        let verdict = made::verify(file, &folded, made.as_ref(), &options)?;
        let options = report::Options {
            input_size: usize::from(args.input_size),
        };
        let report = report::report(checkpoint, folded.plan(), form, &verdict, &options)?;
        Ok((verdict, report))
    })??;
    tell(args, &verdict, &report)
}

/// Refuses to write the page over a file that it is about.
fn check_page<'a>(
    args: &Args,
    mut about: impl Iterator<Item = &'a Checkpoint>,
) -> anyhow::Result<()> {
    if let Some(page) = &args.page {
        anyhow::ensure!(
            !about.any(|file| file.is_same_file(page)),
            "{} is what the report is on; choose another name",
            quoted(&page.display().to_string())
        );
        signals::watch()?;
    }
    Ok(())
}

/// Writes the page and says so.
fn tell(args: &Args, verdict: &Verdict, report: &Report) -> anyhow::Result<Answer> {
    if let Some(path) = &args.page {
        let html = report::page(report)?;
        if signals::stopped() {
            return Err(tensor::Error::Interrupted.into());
        }
        let page = Scratch::create(place::of(path)?)?;
        page.write_at(html.as_bytes(), 0)?;
        page.finish(true)?;
        if !args.quiet && !args.json {
            output::result(&format!(
                "{}: {}, {}\n",
                plain(&path.display().to_string()),
                units::plural(report.blocks.len(), "block"),
                units::bytes(html.len() as u64)
            ))?;
        }
    }
    if args.json {
        output::json(&Document {
            schema: "repfuse.report/1",
            page: args.page.as_ref().map(|p| p.display().to_string()),
            report,
        })?;
    }
    Ok(if verdict.accepted() {
        Answer::Yes
    } else {
        Answer::No
    })
}

/// Nothing is there, or a report that an earlier run has left: never somebody's weights.
fn may_replace(page: &Path) -> anyhow::Result<bool> {
    let Ok(file) = std::fs::File::open(page) else {
        return Ok(page.symlink_metadata().is_err());
    };
    let mut begin = Vec::new();
    file.take(1024)
        .read_to_end(&mut begin)
        .with_context(|| format!("cannot read {}", quoted(&page.display().to_string())))?;
    let begin = String::from_utf8_lossy(&begin);
    Ok(begin.starts_with("<!doctype html>") && begin.contains("content=\"repfuse "))
}
