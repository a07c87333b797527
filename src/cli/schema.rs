//! `repfuse schema COMMAND`: what `--json` prints, as JSON Schema made from the very types that are printed.
//!
//! Every document names its schema and version in its field `schema`. Within a version, fields are added and never
//! removed or given another meaning.

use schemars::{JsonSchema, schema_for};
use serde::Serialize;

use super::{Answer, fused, inspect, output, recipes, report, verify};

/// Print the JSON Schema of what a command prints with --json, or of a recipe
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse schema verify
  repfuse schema recipe     # what a recipe of your own may say, for editors
  repfuse schema error      # what any command prints with --json if it cannot run")]
pub(super) struct Args {
    /// Whose output, or `recipe`
    #[arg(value_name = "COMMAND")]
    of: Of,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Of {
    Fuse,
    Verify,
    Inspect,
    Report,
    Recipes,
    RecipesCheck,
    Recipe,
    Error,
}

/// What any command prints with `--json` when it cannot run, or has nothing to work on. The same stands on stderr.
#[derive(Serialize, JsonSchema)]
pub(super) struct Failure<'a> {
    /// This schema and its version.
    #[schemars(extend("const" = "repfuse.error/1"))]
    schema: &'static str,
    /// The exit status: 1 if there is nothing to fuse, 2 if it could not run. (An interrupted command ends by
    /// its signal, and prints none.)
    exit_status: u8,
    /// What is wrong, and its causes behind it.
    error: String,
    /// The error and its causes one by one, outermost first.
    causes: &'a [String],
}

impl Failure<'_> {
    pub(super) fn new(causes: &[String], exit_status: u8) -> Failure<'_> {
        Failure {
            schema: "repfuse.error/1",
            exit_status,
            error: causes.join(": "),
            causes,
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Answer> {
    let schema = match args.of {
        Of::Recipe => {
            output::result(crate::recipe::SCHEMA)?;
            return Ok(Answer::Yes);
        }
        Of::Fuse => schema_for!(fused::Summary<'static>),
        Of::Verify => schema_for!(verify::Report<'static>),
        Of::Inspect => schema_for!(inspect::Document<'static>),
        Of::Report => schema_for!(report::Document<'static>),
        Of::Recipes => schema_for!(recipes::List),
        Of::RecipesCheck => schema_for!(recipes::Checked),
        Of::Error => schema_for!(Failure<'static>),
    };
    output::json(&schema)?;
    Ok(Answer::Yes)
}
