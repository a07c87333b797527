//! `repfuse recipes`.

use std::path::PathBuf;

use super::Answer;
use super::output;
use super::select;
use crate::recipe::{self, Options};

/// List the built-in recipes, print one, or check your own
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  repfuse recipes
  repfuse recipes repvgg > my-block.json
  repfuse recipes check my-block.json train.safetensors")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print this recipe's JSON
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check a recipe, and show what it matches in a checkpoint
    Check {
        /// The recipe's JSON file, or a built-in name
        #[arg(value_name = "FILE")]
        recipe: String,
        /// A checkpoint to try it on
        #[arg(value_name = "CHECKPOINT")]
        checkpoint: Option<PathBuf>,
    },
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    match (&args.command, &args.name) {
        (Some(Command::Check { recipe, checkpoint }), _) => check(recipe, checkpoint.as_ref())?,
        (None, Some(name)) => output::result(recipe::source(name)?.1)?,
        (None, None) => list(args.json)?,
    }
    Ok(Answer::Yes)
}

fn list(json: bool) -> anyhow::Result<()> {
    let recipes = recipe::builtin()?;
    if json {
        let list: Vec<_> = recipes
            .iter()
            .map(|r| serde_json::json!({"name": r.name, "about": r.about, "cite": r.cite, "eps": r.eps, "eps_note": r.eps_note}))
            .collect();
        return output::json(&serde_json::json!({"schema": "repfuse.recipes/1", "recipes": list}));
    }
    let row = |r: &recipe::Recipe| {
        vec![
            r.name.clone(),
            r.eps.map(output::small).unwrap_or_default(),
            r.about.clone(),
        ]
    };
    output::result(&output::table(
        &recipes.iter().map(row).collect::<Vec<_>>(),
        &[],
    ))
}

fn check(name: &str, checkpoint: Option<&PathBuf>) -> anyhow::Result<()> {
    let recipe = select::named(name)?;
    let kinds = if recipe.blocks.len() == 1 {
        "kind"
    } else {
        "kinds"
    };
    let mut text = format!(
        "`{}` is a valid recipe for {} {kinds} of block\n",
        recipe.name,
        recipe.blocks.len()
    );
    if let Some(path) = checkpoint {
        let checkpoint = select::open(path)?;
        let plan = recipe::plan(checkpoint.tensors(), &recipe, &Options::default())?;
        let mut rows = Vec::new();
        for block in &plan.blocks {
            for fused in &block.fused {
                rows.push(vec![
                    crate::tensor::plain(&block.name),
                    "→".to_owned(),
                    crate::tensor::plain(&fused.module),
                    format!("{:?}", fused.geometry().weight_shape()),
                    crate::describe::expression(fused.expr.expr()),
                ]);
            }
        }
        text += &output::table(&rows, &[]);
        let found = recipe::found_in(&recipe, checkpoint.tensors());
        text += if found {
            "detection would consider it for this file\n"
        } else {
            "detection would not consider it for this file: its `when` or `unless` does not hold\n"
        };
    }
    output::result(&text)
}
