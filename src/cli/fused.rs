//! What `repfuse fuse` says of the file that it made: a document, and the same in lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::families;
use super::load;
use super::output::{self, bytes, count, plural};
use super::sample::Evidence;
use crate::fuse::diagnose::{EpsSensitivity, heaviest};
use crate::graph::Agreement;
use crate::plan::{Block, Plan};
use crate::summary::cost;
use crate::summary::norms::Norms;
use crate::summary::warnings::Warning;
use crate::tensor::{Checkpoint, Float, plain, quoted};

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

/// What is known of a file once it is there.
pub(super) struct Written {
    /// Whether it was verified: one that fails is not kept.
    pub(super) verified: bool,
    /// How many fused numbers were too small for the type they are stored in.
    pub(super) vanished: u64,
}

/// What was fused, and what is known of the file that it became.
pub(super) struct Made<'a> {
    /// The path of what was fused.
    pub(super) input: &'a Path,
    /// The path that was asked for.
    pub(super) output: &'a Path,
    /// With `--shard-size` the paths of the shards, and that of their index.
    pub(super) shards: Option<(Vec<PathBuf>, PathBuf)>,
    /// Whether a graph became another graph.
    pub(super) is_graph: bool,
    /// Whether the user chose an element type.
    pub(super) has_dtype: bool,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) plan: &'a Plan,
    /// How much its eps matters.
    pub(super) weights: &'a [EpsSensitivity],
    /// What a recipe says of the graph.
    pub(super) agreement: Option<&'a Agreement>,
    /// None of a file that was not written because that was the wish.
    pub(super) written: Option<Written>,
    /// The size of the file.
    pub(super) bytes: u64,
    pub(super) norms: &'a Norms,
    pub(super) seconds: f64,
}

/// The document of what was made.
pub(super) fn summary<'a>(
    made: &Made<'a>,
    sample: Option<Evidence>,
    warnings: &[Warning],
) -> Summary<'a> {
    let Made {
        checkpoint,
        plan,
        weights,
        norms,
        written,
        ..
    } = made;
    let weight = heaviest(weights);
    let shown = |path: &Path| path.display().to_string();
    let (output, shards) = match &made.shards {
        Some((shards, index)) => (shown(index), shards.iter().map(|of| shown(of)).collect()),
        None => (shown(made.output), Vec::new()),
    };
    let load = load::load(plan, &output, checkpoint.unwrapped(), made.is_graph);
    Summary {
        schema: "repfuse.fuse/1",
        families: families::documents(plan, weights),
        warnings: families::warned(warnings),
        input: shown(made.input),
        output,
        shards,
        dry_run: written.is_none(),
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
        verified: written.as_ref().and_then(|of| of.verified.then_some(true)),
        sample,
        became_zero: written.as_ref().map(|of| of.vanished),
        agreement: made.agreement.and_then(agreed),
        load,
        blocks: plan.blocks().iter().map(block_summary).collect(),
        wrappers_removed: plan.wrappers_removed(),
        dropped: plan.dropped().iter().map(|t| t.name()).collect(),
        norms: norms.all,
        norms_left: norms.left.iter().map(|(norm, _)| norm.clone()).collect(),
    }
}

fn agreed(of: &Agreement) -> Option<Agreed<'_>> {
    Some(Agreed {
        recipe: of.recipe.as_deref()?,
        blocks: of.blocks,
        differences: &of.differences,
    })
}

fn block_summary(block: &Block) -> BlockSummary<'_> {
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

/// What was made, in lines.
pub(super) fn text(s: &Summary<'_>, made: &Made<'_>) -> String {
    let plan = made.plan;
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
    let mut lines = format!("{head}\n");
    for row in output::table(&before_and_after(s), &[1, 3], &[], output::width()).lines() {
        lines += &format!("  {row}\n");
    }
    if !s.shards.is_empty() {
        let index = quoted(&s.output);
        let shards = format!("{}, joined by {index}", plural(s.shards.len(), "file"));
        lines += &output::line("shards", &shards);
    }
    lines += &match &s.agreement {
        Some(agreed) => output::line("recipe", &knows(s.recipe, agreed)),
        None => families::lines(plan),
    };
    lines += &computed_line(plan).unwrap_or_default();
    lines += &left_line(made.norms).unwrap_or_default();
    lines += &families::eps_lines(plan, made.weights);
    let sample = s.sample.as_ref().map(|evidence| evidence.line(plan));
    lines += &sample.unwrap_or_default();
    lines += &half_types(made).unwrap_or_default();
    lines + &load::line(&s.load)
}

/// What is counted, before and after.
fn before_and_after(s: &Summary<'_>) -> Vec<Vec<String>> {
    let row = |what: &str, before: String, after: String| {
        vec![what.to_owned(), before, "→".to_owned(), after]
    };
    vec![
        row(
            "tensors",
            s.tensors_before.to_string(),
            s.tensors_after.to_string(),
        ),
        row(
            "parameters",
            count(s.parameters_before),
            count(s.parameters_after),
        ),
        row("bytes", bytes(s.bytes_before), bytes(s.bytes_after)),
    ]
}

fn knows(recipe: &str, of: &Agreed<'_>) -> String {
    let says = match of.differences {
        [] => "agrees",
        _ => "differs",
    };
    format!(
        "{recipe}; {} knows {} of the blocks and {says}",
        of.recipe, of.blocks
    )
}

/// Says that fused weights are rounded to a half type because the file's are of that type.
fn half_types(made: &Made<'_>) -> Option<String> {
    if made.has_dtype {
        return None;
    }
    // A graph computes in the type of its values, whatever its weights are stored in.
    let remedy = match made.is_graph {
        false => "; --dtype f32 keeps more digits",
        true => ", in which the network computes",
    };
    let fused = made.plan.blocks().iter().flat_map(|block| block.fused());
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
