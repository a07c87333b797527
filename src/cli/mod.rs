//! The command: the only place that prints, shows progress, or decides an exit code.

mod fuse;
mod inspect;
mod output;
mod progress;
mod recipes;
mod select;
mod signals;
mod verify;
mod whole;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::numbers;
use crate::recipe;
use crate::tensor;

/// Fold re-parameterizable blocks (RepVGG, MobileOne, RepConv and kin) into plain convs, and prove it.
#[derive(Debug, Parser)]
#[command(
    name = "repfuse",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit status: 0 done, 1 the answer is no (nothing to fuse, not equivalent), 2 it could not run."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Fuse(fuse::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
    Recipes(recipes::Args),
}

/// What a command found out.
enum Answer {
    Yes,
    No,
}

/// Runs the command line and returns the exit code.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; anything else could not run.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let answer = match cli.command {
        Command::Fuse(args) => fuse::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Recipes(args) => recipes::run(&args),
    };
    match answer {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            output::error(&error);
            if was_interrupted(&error) {
                signals::end();
            }
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let is_answer = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<recipe::Error>()
            .is_some_and(recipe::Error::is_nothing_to_fuse)
    };
    if error.chain().any(is_answer) { 1 } else { 2 }
}

fn was_interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        matches!(e.downcast_ref(), Some(tensor::Error::Interrupted))
            || matches!(
                e.downcast_ref(),
                Some(numbers::Error::Tensor(tensor::Error::Interrupted))
            )
    })
}
