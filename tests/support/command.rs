//! The built command, as every test starts it.

use std::process::Command;

/// What a started program is told of the world: enough to find others and a place for scratch files. All else would let
/// the caller's terminal, its settings or a CI service's own variables choose colours and widths for the tests.
const KEPT: [&str; 2] = ["PATH", "TMPDIR"];

/// `repfuse`, with nothing of the caller's environment that could change what it prints.
pub fn repfuse() -> Command {
    undisturbed(env!("CARGO_BIN_EXE_repfuse"))
}

/// A program that starts the command, with the same environment.
pub fn undisturbed(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}
