//! `repfuse recipes`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::Answer;
use super::learn;
use super::output::{self, Cut, plural};
use super::select;
use crate::plan::{self, Options, Source};
use crate::recipe;
use crate::summary::units;
use crate::tensor::{Checkpoint, plain, quoted};

/// List the built-in recipes, print one, or check your own
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_long_help = "Examples:
  repfuse recipes
  repfuse recipes --for repvgg_a0
  repfuse recipes repvgg > my-block.json
  repfuse recipes check my-block.json train.safetensors
  repfuse recipes learn model.pt2 -o my-net.json")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print this recipe's JSON
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// List only the recipes that cover the model of this name, of timm, ultralytics or a paper
    #[arg(long = "for", value_name = "MODEL", conflicts_with = "name")]
    model: Option<String>,
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
        #[command(flatten)]
        key: select::Key,
        /// Print what was found as JSON
        #[arg(long)]
        json: bool,
    },
    Learn(learn::Args),
}

impl Args {
    /// Whether the result is to be JSON.
    pub(super) fn json(&self) -> bool {
        match &self.command {
            Some(Command::Check { json, .. }) => *json,
            Some(Command::Learn(_)) => false,
            None => self.json,
        }
    }
}

/// What `recipes --json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct List {
    /// This schema and its version.
    #[schemars(extend("const" = "repfuse.recipes/1"))]
    schema: &'static str,
    recipes: Vec<Entry>,
}

/// One built-in recipe.
#[derive(Serialize, JsonSchema)]
struct Entry {
    name: String,
    /// One line on what it covers.
    about: String,
    /// The paper or project it comes from.
    cite: String,
    /// Beginnings of the names of models that it covers; `*` stands for anything.
    models: Vec<String>,
    /// How to load the deploy form in Python; `{weights}` stands for its state dict.
    load: Option<String>,
    /// The eps of its batch norms, if it has any.
    eps: Option<f64>,
    /// Who else uses these names with another eps.
    eps_note: Option<String>,
}

/// What `recipes check --json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Checked {
    /// This schema and its version.
    #[schemars(extend("const" = "repfuse.recipes-check/1"))]
    schema: &'static str,
    recipe: String,
    /// How many kinds of block it describes.
    kinds: usize,
    /// What it matches in the checkpoint, if one was given.
    checkpoint: Option<Matched>,
}

/// What a recipe matches in a checkpoint.
#[derive(Serialize, JsonSchema)]
struct Matched {
    /// Whether detection would consider it for this file.
    detected: bool,
    /// The convs that its blocks become.
    convs: Vec<MatchedConv>,
    /// The tensors that no block takes.
    copied: Vec<String>,
    /// The tensors that are dropped by name.
    dropped: Vec<String>,
    /// What it drops, renames, keeps or sets and the file has not.
    idle: Vec<Idle>,
}

/// A pattern that matches nothing.
#[derive(Serialize, JsonSchema)]
struct Idle {
    /// `drop`, `rename`, `keep` or `set`.
    under: &'static str,
    pattern: String,
}

/// A conv that a block becomes.
#[derive(Serialize, JsonSchema)]
struct MatchedConv {
    block: String,
    /// Its tensors are `<module>.weight` and `<module>.bias`.
    module: String,
    weight_shape: Vec<usize>,
    /// What it is fused from, in a line.
    expression: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    match (&args.command, &args.name) {
        (Some(Command::Learn(args)), _) => return learn::run(args),
        (
            Some(Command::Check {
                recipe,
                checkpoint,
                key,
                json,
            }),
            _,
        ) => {
            check(recipe, checkpoint.as_deref(), key, *json)?;
        }
        (None, Some(name)) => output::result(recipe::source(name)?.1)?,
        (None, None) => return list(args.model.as_deref(), args.json),
    }
    Ok(Answer::Yes)
}

fn list(model: Option<&str>, json: bool) -> anyhow::Result<Answer> {
    let mut recipes = recipe::builtin()?;
    if let Some(model) = model {
        recipes = recipe::for_model(&recipes, model)
            .into_iter()
            .cloned()
            .collect();
    }
    let answer = match recipes.is_empty() {
        true => Answer::No,
        false => Answer::Yes,
    };
    if json {
        let entry = |r: recipe::Recipe| Entry {
            name: r.name,
            about: r.about,
            cite: r.cite,
            models: r.models,
            load: r.load,
            eps: r.eps,
            eps_note: r.eps_note,
        };
        output::json(&List {
            schema: "repfuse.recipes/1",
            recipes: recipes.into_iter().map(entry).collect(),
        })?;
        return Ok(answer);
    }
    if let (Some(model), true) = (model, recipes.is_empty()) {
        output::note(&format!(
            "repfuse: no recipe names {}; `repfuse inspect FILE` looks at the names of the tensors instead, and an .onnx or .pt2 file needs no recipe",
            quoted(model)
        ));
        return Ok(answer);
    }
    let longest = recipes.iter().map(|r| r.name.chars().count()).max();
    let name = longest.unwrap_or(0);
    let mut text = String::new();
    for r in &recipes {
        let eps = r.eps.map(output::small).unwrap_or_default();
        // What the list is read for wraps rather than being cut.
        let about = output::wrapped(&r.about, name + 8, output::width());
        text += &format!("{:<name$}  {eps:<4}  {about}\n", r.name);
    }
    output::result(&text)?;
    Ok(answer)
}

fn check(name: &str, path: Option<&Path>, key: &select::Key, json: bool) -> anyhow::Result<()> {
    let recipe = select::named(name)?;
    let checkpoint = path.map(|path| key.open(path, json)).transpose()?;
    let matched = checkpoint.map(|file| matched(&recipe, &file)).transpose()?;
    if json {
        return output::json(&Checked {
            schema: "repfuse.recipes-check/1",
            kinds: recipe.blocks.len(),
            recipe: recipe.name,
            checkpoint: matched,
        });
    }
    let kinds = plural(recipe.blocks.len(), "kind");
    let mut text = format!(
        "{} is a valid recipe for {kinds} of block\n",
        quoted(&recipe.name)
    );
    if let Some(matched) = matched {
        let row = |conv: &MatchedConv| {
            vec![
                plain(&conv.block),
                "→".to_owned(),
                plain(&conv.module),
                units::shape(&conv.weight_shape),
                conv.expression.clone(),
            ]
        };
        let rows: Vec<_> = matched.convs.iter().map(row).collect();
        let cut = [(0, Cut::Middle), (2, Cut::Middle), (4, Cut::End)];
        text += &output::table(&rows, &[], &cut, output::table_width(false));
        let names = |names: &[String]| match names {
            [] => "nothing".to_owned(),
            _ => {
                let shown: Vec<String> = names.iter().take(SHOWN).map(|n| quoted(n)).collect();
                let more = if names.len() > SHOWN { ", …" } else { "" };
                let all = plural(names.len(), "tensor");
                format!("{all}: {}{more}", shown.join(", "))
            }
        };
        text += &output::line("copied", &names(&matched.copied));
        text += &output::line("dropped", &names(&matched.dropped));
        for Idle { under, pattern } in &matched.idle {
            let said = format!(
                "`{under}` names {}, which the file has not",
                quoted(pattern)
            );
            text += &output::line("idle", &said);
        }
        text += if matched.detected {
            "detection would consider it for this file\n"
        } else {
            "detection would not consider it for this file: its `when` or `unless` does not hold\n"
        };
    }
    output::result(&text)
}

/// As many names are enough to see what a recipe has missed.
const SHOWN: usize = 8;

fn matched(recipe: &recipe::Recipe, checkpoint: &Checkpoint) -> anyhow::Result<Matched> {
    let plan = plan::plan(checkpoint.tensors(), recipe, &Options::default())?;
    let convs = plan.blocks().iter().flat_map(|block| {
        block.fused().iter().map(|fused| MatchedConv {
            block: block.name().to_owned(),
            module: fused.module().to_owned(),
            weight_shape: fused.stored_shape(),
            expression: crate::algebra::describe::expression(fused.expr().root()),
        })
    });
    let copied = plan
        .outputs()
        .iter()
        .filter_map(|planned| match &planned.what {
            Source::Copy(tensor) => Some(tensor.name()),
            _ => None,
        });
    let idle = plan::idle(recipe, checkpoint.tensors());
    Ok(Matched {
        detected: recipe::found_in(recipe, checkpoint.tensors()),
        convs: convs.collect(),
        copied: copied.map(str::to_owned).collect(),
        dropped: plan.dropped().iter().map(|t| t.name().to_owned()).collect(),
        idle: idle
            .into_iter()
            .map(|(under, pattern)| Idle {
                under,
                pattern: pattern.to_owned(),
            })
            .collect(),
    })
}
