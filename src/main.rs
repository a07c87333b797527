//! The command `repfuse`: a user of the library like any other.

// What `crate::` means inside `cli` is this list, so nothing that is not public can be used there.
use repfuse::{
    algebra, conv2d, fuse, graph, network, plan, recipe, report, summary, tensor, verify,
};

mod cli;

fn main() -> std::process::ExitCode {
    cli::run(std::env::args_os())
}
