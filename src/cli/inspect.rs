//! `repfuse inspect FILE`.

use std::path::PathBuf;

use serde_json::json;

use super::Answer;
use super::output::{self, bytes, count, plural};
use super::select;
use crate::describe;
use crate::inspect::{self, Class, Form, Inspection};
use crate::recipe::{EpsSource, Options};
use crate::tensor::{Checkpoint, plain};

/// Show the blocks of a checkpoint, its other convs, and what it holds
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Only the header is read, so this is instant on gigabytes.

Examples:
  repfuse inspect train.safetensors
  repfuse inspect train.safetensors --json | jq '.blocks[].name'"
)]
pub(super) struct Args {
    /// Any safetensors file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The recipe: a built-in name, or the path of a JSON file [default: detect]
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Of a `.pt` file: the key of the state dict, as in `ema` or `ema.module` [default: detect]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let checkpoint = select::open_key(&args.file, args.key.as_deref(), args.json)?;
    let recipe = args.recipe.as_deref().map(select::named).transpose()?;
    let found = inspect::inspect(&checkpoint, recipe.as_ref(), &Options::default())?;
    if args.json {
        output::json(&as_json(args, &checkpoint, &found))?;
    } else {
        output::result(&text(&checkpoint, &found))?;
    }
    Ok(Answer::Yes)
}

fn form(form: Form) -> &'static str {
    match form {
        Form::Training => "training",
        Form::Deploy => "deploy",
        Form::Mixed => "mixed",
        Form::Unknown => "unknown",
    }
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Dense => "dense",
        Class::Grouped => "grouped",
        Class::Depthwise => "depthwise",
        Class::Pointwise => "pointwise",
    }
}

fn text(checkpoint: &Checkpoint, found: &Inspection) -> String {
    let mut out = String::new();
    if let Some(plan) = &found.plan {
        for block in &plan.blocks {
            out += &plain(&block.name);
            out += if block.assumes_identity {
                "  (a bare identity is assumed)\n"
            } else {
                "\n"
            };
            for fused in &block.fused {
                for conv in fused.expr.expr().convs() {
                    let groups = conv
                        .groups
                        .filter(|g| *g > 1 && fused.geometry().groups_known)
                        .map(|g| format!("  groups {g}"))
                        .unwrap_or_default();
                    out += &format!(
                        "    {}  {:?}{groups}\n",
                        plain(conv.weight.name()),
                        conv.weight.shape()
                    );
                }
                let g = fused.geometry();
                out += &format!(
                    "  → {}  {:?} = {}\n",
                    plain(&fused.module),
                    g.weight_shape(),
                    describe::expression(fused.expr.expr())
                );
            }
        }
        out.push('\n');
    }
    if !found.convs.is_empty() {
        let row = |(tensor, c): &(_, _)| -> Vec<String> {
            let tensor: &crate::tensor::Tensor = tensor;
            vec![
                plain(tensor.name()),
                format!("{:?}", tensor.shape()),
                class(*c).to_owned(),
            ]
        };
        out += &output::table(&found.convs.iter().map(row).collect::<Vec<_>>(), &[]);
        out.push('\n');
    }
    let dtypes: Vec<_> = found
        .dtypes
        .iter()
        .map(|(dtype, n)| format!("{} {dtype}", count(*n)))
        .collect();
    out += &format!("form        {}\n", form(found.form));
    if let Some(plan) = &found.plan {
        let eps = plan
            .eps
            .map(|e| format!(", bn eps {}", output::small(e)))
            .unwrap_or_default();
        out += &format!(
            "recipe      {}{eps}: {} to fuse\n",
            plan.recipe,
            plural(plan.blocks.len(), "block")
        );
        if let Some(note) = plan
            .eps_note
            .as_ref()
            .filter(|_| plan.eps_source == EpsSource::Recipe)
        {
            out += &format!("            {}\n", plain(note));
        }
    }
    if let Some(trouble) = &found.trouble {
        out += &format!("            {}\n", output::printable(&trouble.to_string()));
    }
    out += &format!(
        "tensors     {}, {} parameters, {}\n",
        checkpoint.tensors().len(),
        count(found.parameters),
        bytes(checkpoint.file_len())
    );
    out += &format!("elements    {}\n", dtypes.join(", "));
    for (key, value) in checkpoint.metadata() {
        out += &format!("metadata    {} = {}\n", plain(key), plain(value));
    }
    out
}

fn as_json(args: &Args, checkpoint: &Checkpoint, found: &Inspection) -> serde_json::Value {
    let blocks: Vec<_> = found
        .plan
        .iter()
        .flat_map(|plan| &plan.blocks)
        .map(|block| {
            let outputs: Vec<_> = block
                .fused
                .iter()
                .map(|fused| {
                    let g = fused.geometry();
                    let branches: Vec<_> = fused
                        .expr
                        .expr()
                        .convs()
                        .iter()
                        .map(|c| json!({"weight": c.weight.name(), "shape": c.weight.shape(), "groups": c.groups, "dilation": c.dilation}))
                        .collect();
                    json!({
                        "module": fused.module, "weight_shape": g.weight_shape(), "dtype": fused.dtype.to_string(),
                        "groups": g.groups_known.then_some(g.groups), "expression": describe::expression(fused.expr.expr()), "convs": branches,
                    })
                })
                .collect();
            json!({"name": block.name, "assumes_identity": block.assumes_identity, "outputs": outputs})
        })
        .collect();
    let convs: Vec<_> = found
        .convs
        .iter()
        .map(|(t, c)| json!({"weight": t.name(), "shape": t.shape(), "class": class(*c)}))
        .collect();
    let metadata: serde_json::Map<_, _> = checkpoint
        .metadata()
        .iter()
        .map(|(k, v)| (k.clone(), v.clone().into()))
        .collect();
    json!({
        "schema": "repfuse.inspect/1",
        "file": args.file.display().to_string(),
        "form": form(found.form),
        "recipe": found.plan.as_ref().map(|p| &p.recipe),
        "bn_eps": found.plan.as_ref().and_then(|p| p.eps),
        "trouble": found.trouble.as_ref().map(ToString::to_string),
        "blocks": blocks,
        "convs": convs,
        "tensors": checkpoint.tensors().len(),
        "parameters": found.parameters,
        "bytes": checkpoint.file_len(),
        "elements": found.dtypes,
        "metadata": metadata,
    })
}
