//! `repfuse recipes learn MODEL`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::output::{self, plural};
use super::{Answer, graph, place};
use crate::graph::learn::{Learned, learn};
use crate::tensor::{Error, Scratch, quoted};

/// Learn a recipe from a graph: the names by which its blocks are found in a file of weights
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse recipes learn model.pt2 -o my-net.json
  repfuse fuse train.safetensors deploy.safetensors --recipe my-net.json --verify")]
pub(super) struct Args {
    /// A program that torch.export.save wrote, or an ONNX model that keeps the names of its weights
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The file to write [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let Some(file) = graph::open(&args.model)? else {
        anyhow::bail!(
            "{} holds no graph; expected a `.pt2` that torch.export.save wrote, or an ONNX model",
            quoted(&args.model.display().to_string())
        );
    };
    let folded = file.fold(&Default::default(), false)?;
    let name = name_of(args.output.as_deref().unwrap_or(&args.model));
    let count = plural(folded.plan().blocks().len(), "block");
    let model = args.model.file_name().unwrap_or(args.model.as_os_str());
    let model = model.to_string_lossy();
    let about = format!("learned from {model}: {count}");
    let learned = learn(
        file.constants(),
        &file.state(),
        folded.plan().blocks(),
        &name,
        &about,
    );
    let text = format!("{}\n", pretty(&learned.recipe, 0));
    match &args.output {
        Some(path) => write(path, &text, args.force)?,
        None => output::result(&text)?,
    }
    tell(&learned, folded.plan().blocks().len());
    Ok(if learned.unsaid.is_empty() {
        Answer::Yes
    } else {
        Answer::No
    })
}

fn tell(learned: &Learned, all: usize) {
    for sentence in &learned.unsaid {
        output::note(&format!("repfuse: not put into words: {sentence}"));
    }
    output::note(&format!(
        "repfuse: the recipe reproduces {} of {} in {}",
        learned.blocks,
        plural(all, "block"),
        plural(learned.kinds, "kind")
    ));
}

fn write(path: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    let place = place::of(path)?;
    if place.replaced().is_some() && !force {
        return Err(Error::Exists(path.to_owned()).into());
    }
    let scratch = Scratch::create(place)?;
    scratch.write_at(text.as_bytes(), 0)?;
    Ok(scratch.finish(force)?)
}

/// A recipe's name: that of the file, as far as a recipe can be called so.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy());
    let stem = stem.map_or(String::new(), |stem| stem.to_lowercase());
    let fits = |c: char| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let name: String = stem.chars().map(fits).collect();
    match name.trim_matches('-') {
        "" => "learned".to_owned(),
        name => name.to_owned(),
    }
}

/// Lines no longer than this.
const WIDTH: usize = 120;

/// JSON with as much on a line as fits.
fn pretty(value: &Value, depth: usize) -> String {
    let short = value.to_string();
    if depth > 0 && short.len() + 2 * depth <= WIDTH {
        return spaced(value);
    }
    let (inner, outer) = ("  ".repeat(depth + 1), "  ".repeat(depth));
    let mut out = String::new();
    match value {
        Value::Array(items) if !items.is_empty() => {
            let lines: Vec<String> = items
                .iter()
                .map(|item| format!("{inner}{}", pretty(item, depth + 1)))
                .collect();
            let _ = write!(out, "[\n{}\n{outer}]", lines.join(",\n"));
        }
        Value::Object(members) if !members.is_empty() => {
            let line = |(key, value): (&String, &Value)| {
                format!(
                    "{inner}{}: {}",
                    Value::from(&**key),
                    pretty(value, depth + 1)
                )
            };
            let lines: Vec<String> = members.iter().map(line).collect();
            let _ = write!(out, "{{\n{}\n{outer}}}", lines.join(",\n"));
        }
        _ => out = short,
    }
    out
}

/// JSON on a line, with spaces.
fn spaced(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spaced).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) if !members.is_empty() => {
            let member = |(key, value): (&String, &Value)| {
                format!("{}: {}", Value::from(&**key), spaced(value))
            };
            let members: Vec<String> = members.iter().map(member).collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}
