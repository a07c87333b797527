//! The command: the only place that prints, shows progress, or decides an exit code.

mod advice;
mod families;
mod fuse;
mod fused;
mod graph;
mod inspect;
mod int8;
mod kernels;
mod learn;
mod load;
mod made;
mod output;
mod place;
mod planned;
mod progress;
mod recipes;
mod report;
mod runs;
mod sample;
mod schema;
mod select;
mod shell;
mod signals;
mod stranger;
mod verdict;
mod verify;
mod whole;
mod workers;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::fuse::diagnose;
use crate::graph::plan;
use crate::recipe;
use crate::tensor;

/// Fold re-parameterizable blocks (RepVGG, MobileOne, RepConv and kin) into plain convs, and prove it
#[derive(Debug, Parser)]
#[command(
    name = "repfuse",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(after_long_help = "Examples:
  repfuse inspect train.safetensors
  repfuse fuse train.safetensors deploy.safetensors --verify
  repfuse report train.safetensors deploy.safetensors -o report.html

Exit status: 0 done, 1 the answer is no (nothing to fuse, not equivalent), 2 it could not run.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Fuse(fuse::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
    Report(report::Args),
    Recipes(recipes::Args),
    Schema(schema::Args),
    Completions(shell::Completions),
    Man(shell::Man),
}

impl Command {
    /// Whether the result is to be JSON.
    fn json(&self) -> bool {
        match self {
            Command::Fuse(args) => args.json,
            Command::Verify(args) => args.json,
            Command::Inspect(args) => args.json,
            Command::Report(args) => args.json,
            Command::Recipes(args) => args.json(),
            Command::Schema(_) | Command::Completions(_) | Command::Man(_) => false,
        }
    }
}

/// What a command found out.
enum Answer {
    Yes,
    No,
}

/// Runs the command line and returns the exit code.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let long = args.iter().any(|arg| arg == "--help") || args.get(1).is_some_and(|a| a == "help");
    let parsed = help(Cli::command(), long).try_get_matches_from(args);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; anything else could not run.
            if let Err(error) = output::printed(error.print()) {
                output::error(&output::causes(&error));
                return ExitCode::from(2);
            }
            let code = if error.use_stderr() { 2 } else { 0 };
            return ExitCode::from(code);
        }
    };
    let json = cli.command.json();
    let answer = match cli.command {
        Command::Fuse(args) => fuse::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Recipes(args) => recipes::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, &Cli::command()),
    };
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            let code = exit_code(&error);
            let causes = output::causes(&error);
            output::error(&causes);
            if let Some(recipe::Error::NoBlock { .. }) = error.downcast_ref() {
                output::note(WAYS_ON);
            }
            if was_interrupted(&error) {
                signals::end();
            }
            if json {
                let _ = output::json(&schema::Failure::new(&causes, code));
            }
            ExitCode::from(code)
        }
    }
}

/// What to do with a file of which no recipe knows a block.
const WAYS_ON: &str =
    "  a recipe of your own: `repfuse recipes learn MODEL.pt2`; see docs/recipes.md
  no recipe at all: `repfuse fuse MODEL.onnx OUT.onnx`, or the same of a .pt2
  by the name of a model: `repfuse recipes --for MODEL`, then `--recipe NAME`";

/// `-h` shows what is needed most, `--help` everything and examples. Clap's own long help spends three lines on each option;
/// this keeps one.
fn help(command: clap::Command, long: bool) -> clap::Command {
    let examples = command
        .get_after_long_help()
        .map(ToString::to_string)
        .map(|examples| match long {
            true => examples,
            false => "`--help` shows every option, and examples.".to_owned(),
        })
        .unwrap_or_default();
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    let command = command
        .after_help(examples)
        .after_long_help(None::<&str>)
        .mut_args(|arg| {
            let rare = arg.is_hide_short_help_set();
            arg.hide_short_help(false).hide(rare && !long)
        });
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |sub| help(sub, long))
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let is_answer = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<recipe::Error>()
            .is_some_and(recipe::Error::is_nothing_to_fuse)
            || e.downcast_ref::<plan::Error>()
                .is_some_and(plan::Error::is_nothing_to_fuse)
    };
    if error.chain().any(is_answer) { 1 } else { 2 }
}

fn was_interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        matches!(e.downcast_ref(), Some(tensor::Error::Interrupted))
            || matches!(
                e.downcast_ref(),
                Some(diagnose::Error::Tensor(tensor::Error::Interrupted))
            )
    })
}
