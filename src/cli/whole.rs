//! The parts of `repfuse verify` that run maps: the user's own through each block, and images through the whole network.

use std::path::{Path, PathBuf};

use anyhow::Context;
use ndarray::{Array4, Axis, Slice};
use schemars::JsonSchema;
use serde::Serialize;

use super::output::{self, Cut, plural};
use crate::conv2d::PaddingMode;
use crate::network::divergence::{bidirectional_kl, dropout_kl};
use crate::network::maps::{self, MapVerdict, Padding, verify_maps};
use crate::network::{Outputs, Sequential, sequential};
use crate::plan::Plan;
use crate::summary::units;
use crate::tensor::{Checkpoint, arrays::read_arrays, plain};
use crate::verify::Deployed;
use crate::verify::random::SplitMix64;
use crate::verify::shown::list;

mod graphs;

/// What to run besides the probes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Your own maps and whole networks")]
pub(super) struct Whole {
    /// Maps [batch, channels, height, width] to run too: for the block they are named after, or for every block whose
    /// width fits; with --end-to-end, images
    #[arg(long = "input", id = "maps", value_name = "FILE")]
    maps: Option<PathBuf>,
    /// Stride of the blocks for --input: N or H,W
    #[arg(long, hide_short_help = true, requires = "maps", allow_negative_numbers = true, value_name = "N", default_value = "1", value_parser = pair)]
    stride: [usize; 2],
    /// Padding of the blocks for --input: N or H,W, `same` or `valid`
    #[arg(long, hide_short_help = true, requires = "maps", allow_negative_numbers = true, value_name = "N", default_value = "same", value_parser = padding)]
    padding: Padding,
    /// What the padding holds
    #[arg(
        long,
        hide_short_help = true,
        value_name = "MODE",
        default_value = "zeros",
        requires = "maps"
    )]
    padding_mode: Mode,
    /// Run the whole network in both forms, where the recipe says how its blocks follow one another
    #[arg(long)]
    end_to_end: bool,
    /// Images for --end-to-end, if no --input gives any
    #[arg(long, hide_short_help = true, requires = "end_to_end", allow_negative_numbers = true, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=1024))]
    images: u16,
    /// Height and width of random images
    #[arg(long, hide_short_help = true, requires = "end_to_end", allow_negative_numbers = true, value_name = "N", default_value = "224", value_parser = clap::value_parser!(u16).range(1..=4096))]
    size: u16,
    /// Arithmetic of --end-to-end
    #[arg(
        long,
        hide_short_help = true,
        requires = "end_to_end",
        default_value = "f64"
    )]
    precision: Precision,
    /// The dropout to compare the difference with
    #[arg(long, hide_short_help = true, requires = "end_to_end", allow_negative_numbers = true, value_name = "P", default_value = "0.1", value_parser = probability)]
    dropout: f64,
}

impl Whole {
    /// Runs two graphs with the same input, if that is asked for.
    pub(super) fn run_graphs(
        &self,
        seed: u64,
        before: &Path,
        after: Option<&Path>,
    ) -> anyhow::Result<Findings> {
        if !self.end_to_end {
            anyhow::ensure!(
                self.maps.is_none(),
                "--input is for the blocks of weight files; add --end-to-end to run a graph with it"
            );
            return Ok(Findings::default());
        }
        let Some(after) = after else {
            anyhow::bail!("--end-to-end runs two graphs; give the fused one, too");
        };
        let sizes = [usize::from(self.images), usize::from(self.size)];
        let finding = graphs::run([before, after], self.maps.as_deref(), sizes, seed)?;
        Ok(Findings {
            graphs: Some(finding),
            ..Findings::default()
        })
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    Zeros,
    Reflect,
    Replicate,
    Circular,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Precision {
    F32,
    F64,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F64 => "f64",
        }
    }

    /// The size of a number in bytes.
    fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::F64 => 8,
        }
    }
}

fn pair(text: &str) -> Result<[usize; 2], String> {
    let number = |text: &str| {
        text.trim()
            .parse::<usize>()
            .ok()
            .filter(|n| (1..=MOST).contains(n))
    };
    let both = match text.split_once(',') {
        Some((h, w)) => number(h).zip(number(w)),
        None => number(text).zip(number(text)),
    };
    both.map(|(h, w)| [h, w])
        .ok_or_else(|| format!("expected a number from 1 to {MOST}, or two as in 2,1"))
}

/// Strides and paddings beyond this are mistakes.
const MOST: usize = 512;

fn padding(text: &str) -> Result<Padding, String> {
    match text {
        "same" => Ok(Padding::Same),
        "valid" | "0" => Ok(Padding::Valid),
        "0,0" => Ok(Padding::Valid),
        _ => {
            let zero_or = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n <= MOST);
            let both = match text.split_once(',') {
                Some((h, w)) => zero_or(h).zip(zero_or(w)),
                None => zero_or(text).zip(zero_or(text)),
            };
            let expected =
                || format!("expected `same`, `valid`, a number up to {MOST}, or two as in 1,0");
            both.map(|(h, w)| Padding::Of([h, w])).ok_or_else(expected)
        }
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..1.0).contains(&p) => Ok(p),
        _ => Err("expected a probability from 0 up to, but not including, 1".to_owned()),
    }
}

/// What the maps and the images have shown, as `--json` prints it.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Findings {
    /// One for each block and array that was run.
    pub(super) maps: Vec<MapFinding>,
    /// The whole network, if it was run.
    pub(super) end_to_end: Option<EndToEnd>,
    /// The same of two graphs.
    pub(super) graphs: Option<graphs::Finding>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct MapFinding {
    module: String,
    shape: [usize; 4],
    accepted: bool,
    ratio: Option<f64>,
    absolute: Option<f64>,
    at: [usize; 4],
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct EndToEnd {
    images: usize,
    /// About how much memory the images took that were run at a time.
    bytes_at_once: u64,
    precision: &'static str,
    top1_agreement: f64,
    largest_logit_difference: f64,
    largest_logit: f64,
    bidirectional_kl: f64,
    dropout: f64,
    dropout_kl: f64,
}

impl Findings {
    /// Whether every map agrees. The whole network adds no verdict: what its rounding adds up to has no bound.
    pub(super) fn accepted(&self) -> bool {
        self.maps.iter().all(|m| m.accepted)
    }

    /// What is wrong on the user's own maps, in a sentence.
    pub(super) fn why_not(&self) -> Option<String> {
        let failed: Vec<&str> = self
            .maps
            .iter()
            .filter(|m| !m.accepted)
            .map(|m| m.module.as_str())
            .collect();
        (!failed.is_empty()).then(|| {
            format!(
                "{} of {} on your maps: {}",
                failed.len(),
                match self.maps.len() {
                    1 => "1 conv differs".to_owned(),
                    n => format!("{n} convs differ"),
                },
                list(&failed, 3)
            )
        })
    }
}

pub(super) fn run(
    args: &Whole,
    seed: u64,
    tolerance: f64,
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
) -> anyhow::Result<Findings> {
    let arrays = args.maps.as_deref().map(read_arrays).transpose()?;
    if args.end_to_end {
        let images = arrays.map(|arrays| match <[_; 1]>::try_from(arrays) {
            Ok([(_, images)]) => Ok(images),
            Err(arrays) => anyhow::bail!(
                "--end-to-end takes one array of images; --input has {}",
                arrays.len()
            ),
        });
        let end_to_end = end_to_end(args, seed, checkpoint, plan, deployed, images.transpose()?)?;
        return Ok(Findings {
            end_to_end: Some(end_to_end),
            ..Findings::default()
        });
    }
    let Some(arrays) = arrays else {
        return Ok(Findings::default());
    };
    let options = maps::Options {
        stride: args.stride,
        padding: args.padding,
        mode: match args.padding_mode {
            Mode::Zeros => PaddingMode::Zeros,
            Mode::Reflect => PaddingMode::Reflect,
            Mode::Replicate => PaddingMode::Replicate,
            Mode::Circular => PaddingMode::Circular,
        },
        tolerance,
    };
    let verdicts = verify_maps(checkpoint, plan, deployed, &arrays, &options)?;
    Ok(Findings {
        maps: verdicts.iter().map(finding).collect(),
        ..Findings::default()
    })
}

fn finding(v: &MapVerdict) -> MapFinding {
    let finite = |x: f64| x.is_finite().then_some(x);
    MapFinding {
        module: v.module.clone(),
        shape: v.shape,
        accepted: v.accepted,
        ratio: finite(v.ratio),
        absolute: finite(v.absolute),
        at: v.at,
    }
}

/// What an image takes in a network, in bytes.
///
/// # Errors
/// When that is more than what is free.
fn bytes_of_one(args: &Whole, network: &Sequential<'_>, size: usize) -> anyhow::Result<u64> {
    let each = network.bytes_for(size, args.precision.bytes());
    let most = memory();
    anyhow::ensure!(
        each <= most,
        "an image of {size}×{size} takes about {} in this network, and {} are free; choose a smaller --size{}",
        output::bytes(each),
        output::bytes(most),
        match args.precision {
            Precision::F64 => " or --precision f32",
            Precision::F32 => "",
        }
    );
    Ok(each)
}

/// How many images are of the same class by both forms.
fn agreed(outputs: &Outputs) -> usize {
    let best = |logits: ndarray::ArrayView1<'_, f64>| {
        let ranked = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        ranked.map(|(class, _)| class)
    };
    let trained = outputs.trained.axis_iter(Axis(0));
    let pairs = trained.zip(outputs.deployed.axis_iter(Axis(0)));
    pairs
        .filter(|(a, b)| best(a.view()) == best(b.view()))
        .count()
}

fn end_to_end(
    args: &Whole,
    seed: u64,
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    images: Option<Array4<f64>>,
) -> anyhow::Result<EndToEnd> {
    let network = sequential(checkpoint, plan)?;
    let mut random = SplitMix64::new(seed);
    let (count, size) = match &images {
        Some(images) => (images.dim().0, images.dim().2.max(images.dim().3)),
        None => (usize::from(args.images), usize::from(args.size)),
    };
    let each = bytes_of_one(args, &network, size)?;
    let at_once =
        usize::try_from(AT_ONCE / each.max(1)).map_or(count, |n| n.clamp(1, count.max(1)));
    let mut outputs: Option<Outputs> = None;
    for first in (0..count).step_by(at_once) {
        let now = first..(first + at_once).min(count);
        let part = match &images {
            Some(images) => images.slice_axis(Axis(0), Slice::from(now)).to_owned(),
            None => {
                let shape = (now.len(), network.channels(), size, size);
                Array4::from_shape_simple_fn(shape, || 2.0 * random.next_unit() - 1.0)
            }
        };
        let of_part = match args.precision {
            Precision::F64 => network.outputs(checkpoint, deployed, part.view())?,
            Precision::F32 => {
                network.outputs(checkpoint, deployed, part.mapv(|x| x as f32).view())?
            }
        };
        match &mut outputs {
            Some(outputs) => outputs.append(&of_part)?,
            None => outputs = Some(of_part),
        }
    }
    let outputs = outputs.context("there are no images; expected one at the least")?;
    let agreed = agreed(&outputs);
    let differences = outputs
        .trained
        .iter()
        .zip(&outputs.deployed)
        .map(|(a, b)| (a - b).abs());
    let [weight, bias] = network.head(checkpoint)?;
    let bias = bias.index_axis(Axis(0), 0);
    Ok(EndToEnd {
        images: count,
        bytes_at_once: each.saturating_mul(at_once as u64),
        precision: args.precision.name(),
        top1_agreement: agreed as f64 / count as f64,
        largest_logit_difference: differences.fold(0.0, f64::max),
        largest_logit: outputs.trained.iter().fold(0.0, |m: f64, x| m.max(x.abs())),
        bidirectional_kl: bidirectional_kl(outputs.trained.view(), outputs.deployed.view())
            .context("the network's logits")?,
        dropout: args.dropout,
        dropout_kl: dropout_kl(
            outputs.trained_features.view(),
            weight.view(),
            bias,
            args.dropout,
            &mut random,
        )?,
    })
}

/// Images are run together as long as they take no more bytes than this.
const AT_ONCE: u64 = 1 << 28;

/// The memory that is free, where the system says it, else eight gigabytes.
fn memory() -> u64 {
    const ELSE: u64 = 8_000_000_000;
    let text = std::fs::read_to_string("/proc/meminfo").ok();
    let line = text
        .iter()
        .flat_map(|text| text.lines())
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kilobytes.map_or(ELSE, |n: u64| n.saturating_mul(1024))
}

/// The findings in lines of text; nothing if nothing was run.
pub(super) fn text(findings: &Findings) -> String {
    let mut out = String::new();
    if !findings.maps.is_empty() {
        let mut rows = vec![
            ["", "on your maps", "shape", "ratio", "worst"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for m in &findings.maps {
            let ok = if m.accepted {
                output::good("ok")
            } else {
                output::bad("FAIL")
            };
            rows.push(vec![
                ok,
                plain(&m.module),
                format!("{:?}", m.shape),
                m.ratio.map_or_else(|| "–".to_owned(), units::ratio),
                m.absolute
                    .map_or_else(|| "–".to_owned(), |x| format!("{x:.1e}")),
            ]);
        }
        out += "\n";
        out += &output::table(
            &rows,
            &[3, 4],
            &[(1, Cut::Middle)],
            output::table_width(false),
        );
    }
    if let Some(graphs) = &findings.graphs {
        out += &graphs::text(graphs);
    }
    if let Some(e) = &findings.end_to_end {
        out += &format!(
            "\nwhole network, {} in {}, about {} at a time:\n",
            plural(e.images, "image"),
            e.precision,
            output::bytes(e.bytes_at_once)
        );
        out += &format!(
            "  same top-1 class          {:.0} %\n",
            100.0 * e.top1_agreement
        );
        out += &format!(
            "  largest logit difference  {:.1e} (largest logit {:.1e})\n",
            e.largest_logit_difference, e.largest_logit
        );
        out += &format!("  KL between the two forms  {:.1e}\n", e.bidirectional_kl);
        out += &format!(
            "  KL that dropout leaves    {:.1e} (p = {}, between two sub-models of the classifier)\n",
            e.dropout_kl, e.dropout
        );
    }
    out
}
