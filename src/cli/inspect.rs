//! `repfuse inspect FILE`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use super::Answer;
use super::graph;
use super::int8;
use super::kernels;
use super::output::{self, Cut, bytes, count, line, plural, shortened};
use super::runs::runs;
use super::select::{self, Beside, Key};
use crate::algebra::describe;
use crate::graph::plan::Left;
use crate::plan::{Block, EpsSource, Options, Plan, PlannedConv};
use crate::recipe;
use crate::report::Macs;
use crate::summary::cost::{self, Change, macs_per_pixel};
use crate::summary::inspect::{self, Class, Form, Inspection};
use crate::summary::int8::Int8;
use crate::summary::kernels::Kernel;
use crate::summary::order::FileOrder;
use crate::summary::units;
use crate::tensor::{Checkpoint, Tensor, plain};

/// Show what a file holds: its blocks, what each becomes, and its other convs
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Without --kernels only the header is read, so this is instant on gigabytes.

Rows stand in the order in which the file has the modules, and names that differ in a number in the order of the numbers. Equal rows under one number
after the other are one row, as in `blocks.0–17.mlp.fc1`.

Examples:
  repfuse inspect train.safetensors
  repfuse inspect train.safetensors --kernels 'stage1.*'
  repfuse inspect train.safetensors --json | jq '.blocks[].name'"
)]
pub(super) struct Args {
    /// A safetensors or PyTorch file, an index of shards, an ONNX model, or a `.pt2`
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The recipe: a built-in name, or the path of a JSON file [default: detect]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    #[command(flatten)]
    beside: Beside,
    #[command(flatten)]
    key: Key,
    /// Draw the kernels of a block, by name or glob, or of all
    #[arg(long, value_name = "BLOCK", num_args = 0..=1, default_missing_value = "*")]
    kernels: Option<String>,
    /// Count the multiply-adds for images of this height and width
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    input_size: Option<u16>,
    /// Show the shape of every conv of a block: `bn(4×3×3×3)` instead of `bn(3×3)`
    #[arg(long)]
    shapes: bool,
    /// Show what rounding the fused weights to int8 would cost
    #[arg(long, conflicts_with = "kernels")]
    int8: bool,
    /// One line for every block and conv, also where they repeat, and names in full
    #[arg(long)]
    all: bool,
    /// Print everything as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What `inspect --json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Document<'a> {
    /// This schema and its version.
    #[schemars(extend("const" = "repfuse.inspect/1"))]
    schema: &'static str,
    /// The file.
    file: String,
    /// `training`, `deploy`, `mixed` or `unknown`.
    form: &'static str,
    /// The recipe that fits, if one does.
    recipe: Option<&'a str>,
    /// The eps of its batch norms.
    bn_eps: Option<f64>,
    /// Why no recipe fits, otherwise.
    trouble: Option<String>,
    /// The blocks, in the order of the plan.
    blocks: Vec<BlockDocument<'a>>,
    /// Convs outside blocks.
    convs: Vec<ConvDocument<'a>>,
    /// The number of tensors.
    tensors: usize,
    /// Learned numbers: floating-point elements, running statistics left out.
    parameters: u64,
    /// Multiply-adds of the blocks' convs, with `--input-size`.
    macs: Option<Macs>,
    /// The size of the file.
    bytes: u64,
    /// The number of elements of each element type.
    elements: &'a BTreeMap<String, u64>,
    /// The file's own metadata.
    metadata: BTreeMap<&'a str, &'a str>,
    /// Of a graph: the nodes that stay although they nearly could be folded.
    left: Vec<LeftDocument<'a>>,
}

/// A node that stays.
#[derive(Serialize, JsonSchema)]
struct LeftDocument<'a> {
    node: &'a str,
    /// What stopped it.
    why: &'a str,
}

/// One block.
#[derive(Serialize, JsonSchema)]
struct BlockDocument<'a> {
    name: &'a str,
    /// Whether it holds a bare identity, which no file shows.
    assumes_identity: bool,
    /// Its learned numbers.
    parameters: Change,
    /// The convs it becomes.
    outputs: Vec<OutputDocument<'a>>,
}

/// A conv that a block becomes.
#[derive(Serialize, JsonSchema)]
struct OutputDocument<'a> {
    /// Its tensors are `<module>.weight` and `<module>.bias`.
    module: &'a str,
    weight_shape: Vec<usize>,
    dtype: String,
    /// Null where any number of groups gives the same kernel.
    groups: Option<usize>,
    /// What it is fused from, in a line.
    expression: String,
    /// Multiply-adds per output pixel at stride 1; of a transposed conv, per input pixel.
    macs_per_pixel: Change,
    /// The convs it is fused from.
    convs: Vec<BranchDocument<'a>>,
    /// With `--int8`, what is left of the weights when they are rounded to eight bits. From weights alone: activations are in no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    int8: Option<Int8>,
    /// With `--kernels`, what each branch adds to the fused kernel, and last the fused kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<Vec<Kernel>>,
}

/// A conv of a branch.
#[derive(Serialize, JsonSchema)]
struct BranchDocument<'a> {
    /// The name of its weight.
    weight: &'a str,
    shape: &'a [usize],
    /// Null where any number of groups gives the same kernel.
    groups: Option<usize>,
    /// Distance between taps, height and width; of a Conv3d, depth, height and width.
    dilation: &'a [usize],
}

/// A conv outside blocks.
#[derive(Serialize, JsonSchema)]
struct ConvDocument<'a> {
    /// The name of its weight.
    weight: &'a str,
    shape: &'a [usize],
    /// `dense` or `pointwise`, as far as the weight tells; null for one input channel per group, which may be depthwise.
    class: Option<&'static str>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    if let Some(file) = graph::open(&args.file)? {
        args.key.refuse_for_a_graph()?;
        if args.recipe.is_some() {
            anyhow::bail!("a graph says by itself what is folded; leave out --recipe");
        }
        let (found, left) = graph::inspect(&file)?;
        return tell(args, file.constants(), found, &left);
    }
    let checkpoint = args.key.open(&args.file, args.json)?;
    let recipe = args.recipe.as_deref().map(select::named).transpose()?;
    let options = Options {
        beside: args.beside.beside.clone(),
        by_names: recipe.is_some(),
        ..Options::default()
    };
    let found = inspect::inspect(&checkpoint, recipe.as_ref(), &options)?;
    tell(args, &checkpoint, found, &[])
}

/// Prints what was found; `left` is what of a graph could nearly be folded.
fn tell(
    args: &Args,
    checkpoint: &Checkpoint,
    mut found: Inspection,
    left: &[Left],
) -> anyhow::Result<Answer> {
    let wanted = match (&args.kernels, &found.plan) {
        (None, _) => None,
        (Some(wanted), Some(plan)) => Some(kernels::chosen(plan, wanted)?),
        // Without a block there is nothing to draw, and the reason is the answer.
        (Some(_), None) => match found.trouble.take() {
            Some(trouble) => return Err(trouble.into()),
            None => Some(Vec::new()),
        },
    };
    let rounded = match (&found.plan, args.int8) {
        (Some(plan), true) => Some(int8::of(checkpoint, plan.blocks())?),
        // As for kernels.
        (None, true) => match found.trouble.take() {
            Some(trouble) => return Err(trouble.into()),
            None => Some(Vec::new()),
        },
        (_, false) => None,
    };
    if args.json {
        let mut document = document(args, checkpoint, &found, wanted.as_deref(), left)?;
        let outputs = document.blocks.iter_mut().flat_map(|b| &mut b.outputs);
        for (output, (_, int8)) in outputs.zip(rounded.into_iter().flatten()) {
            output.int8 = Some(int8);
        }
        output::json(&document)?;
    } else if let Some(rounded) = rounded {
        output::result(&int8::text(&rounded, args.all))?;
    } else if let Some(blocks) = wanted {
        for block in blocks {
            let maps = kernels::maps(checkpoint, block)?;
            output::result(&kernels::text(block, &maps, output::width()))?;
        }
    } else {
        output::result(&(text(args, checkpoint, &found) + &left_lines(args, left)))?;
    }
    Ok(Answer::Yes)
}

/// What of a graph stays, and why: one line for a reason, with the nodes that it holds for.
fn left_lines(args: &Args, left: &[Left]) -> String {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Left { node, why } in left {
        by_reason.entry(why).or_default().push(node);
    }
    let mut out = String::new();
    for (why, nodes) in by_reason {
        let shown = if args.all { nodes.len() } else { MOST_SHOWN };
        let mut names: Vec<String> = nodes.iter().take(shown).map(|name| plain(name)).collect();
        if nodes.len() > shown {
            names.push(format!("{} more", nodes.len() - shown));
        }
        out += &line("left", &format!("{}: {why}", names.join(", ")));
    }
    out
}

/// Nodes that are named for one reason, without `--all`.
const MOST_SHOWN: usize = 3;

fn form(form: Form) -> &'static str {
    match form {
        Form::Training => "training",
        Form::Deploy => "deploy",
        Form::Mixed => "mixed",
        Form::Unknown => "unknown",
    }
}

/// What a conv is, if its weight tells.
fn class(class: Class) -> Option<&'static str> {
    match class {
        Class::Dense => Some("dense"),
        Class::PerhapsDepthwise => None,
        Class::Pointwise => Some("pointwise"),
    }
}

/// The same in a table.
fn kind(of: Class) -> &'static str {
    class(of).unwrap_or(NOT_TOLD)
}

/// Depthwise, or any number of groups.
const NOT_TOLD: &str = "dw?";

fn block_parameters(block: &Block) -> Change {
    Change {
        before: cost::parameters(block.consumed()),
        after: block.fused().iter().map(PlannedConv::numbers).sum(),
    }
}

fn text(args: &Args, checkpoint: &Checkpoint, found: &Inspection) -> String {
    let mut out = String::new();
    let order = FileOrder::new(checkpoint);
    if let Some(plan) = &found.plan {
        out += &blocks(args, plan.blocks(), &order);
        out.push('\n');
    }
    if !found.convs.is_empty() {
        out += &convs(args, &found.convs, &order);
        out.push('\n');
    }
    out += &line("form", form(found.form));
    if let Some(plan) = &found.plan {
        out += &recipe_lines(plan);
    }
    let assumed = found.plan.as_ref().is_some_and(Plan::assumes_identities);
    let blocks = found.plan.iter().flat_map(|plan| plan.blocks());
    let mut texts: Vec<String> = blocks
        .flat_map(|block| block.fused())
        .map(|fused| describe::expression(fused.expr().root()))
        .collect();
    texts.extend(found.convs.iter().map(|(_, of)| kind(*of).to_owned()));
    out += &output::legend(&texts, assumed);
    if let Some(trouble) = &found.trouble {
        out += &trouble_lines(trouble);
    }
    out += &line(
        "tensors",
        &format!(
            "{}, {} parameters, {}",
            checkpoint.tensors().len(),
            count(found.parameters),
            bytes(checkpoint.file_len())
        ),
    );
    if let Some(macs) = macs(args, checkpoint, found) {
        out += &macs_line(&macs);
    }
    let dtypes: Vec<_> = found
        .dtypes
        .iter()
        .map(|(dtype, n)| format!("{} {dtype}", count(*n)))
        .collect();
    out += &line("elements", &dtypes.join(", "));
    for (key, value) in checkpoint.metadata() {
        let [key, value] =
            [key, value].map(|text| shortened(&plain(text), LONGEST_SHOWN, Cut::End));
        out += &line("metadata", &format!("{key} = {value}"));
    }
    out
}

/// The recipe of a plan with its eps, and who else uses these names with another one.
fn recipe_lines(plan: &Plan) -> String {
    let eps = plan
        .eps()
        .map(|e| format!(", bn eps {}", units::small(e)))
        .unwrap_or_default();
    let mut out = line(
        "recipe",
        &format!(
            "{}{eps}: {} to fuse",
            plan.recipe(),
            plural(plan.blocks().len(), "block")
        ),
    );
    let note = plan.eps_note();
    if let Some(note) = note.filter(|_| plan.eps_source() == EpsSource::Recipe) {
        out += &line("", &plain(note));
    }
    out
}

/// Why nothing is folded, and what to do about it.
fn trouble_lines(trouble: &recipe::Error) -> String {
    let mut out = String::new();
    // Near misses stand on lines of their own.
    for part in trouble.to_string().split('\n') {
        out += &line("", &plain(part.trim_start()));
    }
    if matches!(trouble, recipe::Error::NoBlock { .. }) {
        out += super::WAYS_ON;
        out.push('\n');
    }
    out
}

/// Multiply-adds of the blocks before and after.
fn macs_line(macs: &Macs) -> String {
    let size = macs.input_size;
    let said = match macs.total {
        Some(total) => format!(
            "{} → {} in the blocks at {size}×{size}",
            count(total.before),
            count(total.after)
        ),
        None => "not known: neither the file nor the recipe says which strides this network has"
            .to_owned(),
    };
    line("macs", &said)
}

/// Some projects keep whole configurations in the metadata. `--json` has them in full.
const LONGEST_SHOWN: usize = 400;

/// One line for each conv that a block becomes, or for a run of equal ones.
fn blocks(args: &Args, blocks: &[Block], order: &FileOrder) -> String {
    let row = |block: &Block, fused: &PlannedConv, parameters: Change| {
        vec![
            units::shape(&fused.stored_shape()),
            match args.shapes {
                true => describe::with_shapes(fused.expr().root()),
                false => describe::expression(fused.expr().root()),
            },
            count(parameters.before),
            "→".to_owned(),
            count(parameters.after),
            block.assumes_identity().to_string(),
        ]
    };
    let mut things: Vec<(&str, Vec<String>)> = Vec::new();
    for block in blocks {
        for (i, fused) in block.fused().iter().enumerate() {
            // A block's numbers stand in its first line.
            let parameters = if i == 0 {
                block_parameters(block)
            } else {
                Change::default()
            };
            let name = if block.fused().len() == 1 {
                block.name()
            } else {
                fused.module()
            };
            things.push((name, row(block, fused, parameters)));
        }
    }
    let header = ["block", "", "becomes", "from", "params", "", ""];
    let mut rows = vec![header.map(output::soft).to_vec()];
    for (name, mut all) in runs(things, order, Clone::clone, !args.all) {
        let (n, mut cells) = (all.len(), all.swap_remove(0));
        cells.pop();
        if cells[2] == "0" {
            cells[2..].fill(String::new());
        }
        rows.push([vec![plain(&name), times(n)], cells].concat());
    }
    output::table(
        &rows,
        &[1, 4, 6],
        &[(0, Cut::Middle), (3, Cut::End)],
        output::table_width(args.all || args.shapes),
    )
}

/// Convs outside blocks, runs of equal ones in one line.
fn convs(args: &Args, convs: &[(Tensor, Class)], order: &FileOrder) -> String {
    let thing =
        |(tensor, of): &(Tensor, Class)| (units::shape(tensor.shape()), kind(*of).to_owned());
    let names: Vec<(&str, (String, String))> = convs
        .iter()
        .map(|conv| (conv.0.name(), thing(conv)))
        .collect();
    let header = ["other convs", "", "shape", "kind"];
    let mut rows = vec![header.map(output::soft).to_vec()];
    for (name, all) in runs(names, order, Clone::clone, !args.all) {
        let (shape, kind) = all[0].clone();
        rows.push(vec![plain(&name), times(all.len()), shape, kind]);
    }
    output::table(
        &rows,
        &[1],
        &[(0, Cut::Middle)],
        output::table_width(args.all),
    )
}

pub(super) fn times(n: usize) -> String {
    if n == 1 {
        String::new()
    } else {
        format!("{n}×")
    }
}

fn macs(args: &Args, checkpoint: &Checkpoint, found: &Inspection) -> Option<Macs> {
    let input_size = usize::from(args.input_size?);
    let plan = found.plan.as_ref()?;
    Some(Macs {
        input_size,
        total: cost::macs_of_network(checkpoint, plan, input_size),
    })
}

fn document<'a>(
    args: &Args,
    checkpoint: &'a Checkpoint,
    found: &'a Inspection,
    wanted: Option<&[&Block]>,
    left: &'a [Left],
) -> anyhow::Result<Document<'a>> {
    let plan = found.plan.as_ref();
    let mut blocks = Vec::new();
    for block in plan.iter().flat_map(|plan| plan.blocks()) {
        let drawn = wanted.is_some_and(|w| w.iter().any(|b| b.name() == block.name()));
        let mut outputs = Vec::new();
        for fused in block.fused() {
            let kernels = match drawn {
                true => {
                    let maps = kernels::maps_of(checkpoint, fused)?;
                    Some(maps.branches.into_iter().chain(maps.fused).collect())
                }
                false => None,
            };
            outputs.push(output_document(fused, kernels));
        }
        blocks.push(BlockDocument {
            name: block.name(),
            assumes_identity: block.assumes_identity(),
            parameters: block_parameters(block),
            outputs,
        });
    }
    let conv = |(tensor, kind): &'a (Tensor, Class)| ConvDocument {
        weight: tensor.name(),
        shape: tensor.shape(),
        class: class(*kind),
    };
    let metadata = checkpoint.metadata().iter();
    Ok(Document {
        schema: "repfuse.inspect/1",
        file: args.file.display().to_string(),
        form: form(found.form),
        recipe: plan.map(|p| p.recipe()),
        bn_eps: plan.and_then(|p| p.eps()),
        trouble: found.trouble.as_ref().map(ToString::to_string),
        blocks,
        convs: found.convs.iter().map(conv).collect(),
        tensors: checkpoint.tensors().len(),
        parameters: found.parameters,
        macs: macs(args, checkpoint, found),
        bytes: checkpoint.file_len(),
        elements: &found.dtypes,
        metadata: metadata.map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        left: left
            .iter()
            .map(|left| LeftDocument {
                node: &left.node,
                why: &left.why,
            })
            .collect(),
    })
}

fn output_document(fused: &PlannedConv, kernels: Option<Vec<Kernel>>) -> OutputDocument<'_> {
    let g = fused.geometry();
    OutputDocument {
        module: fused.module(),
        weight_shape: fused.stored_shape(),
        dtype: fused.dtype().to_string(),
        groups: g.groups_known().then_some(g.groups()),
        expression: describe::expression(fused.expr().root()),
        macs_per_pixel: macs_per_pixel(fused, 1),
        convs: fused
            .expr()
            .root()
            .convs()
            .into_iter()
            .map(|(kernel, geometry)| BranchDocument {
                weight: kernel.weight.name(),
                shape: kernel.weight.shape(),
                groups: geometry.groups_known().then_some(geometry.groups()),
                dilation: match geometry.rank() {
                    5 => &kernel.dilation,
                    _ => &kernel.dilation[1..],
                },
            })
            .collect(),
        int8: None,
        kernels,
    }
}
