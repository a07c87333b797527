//! The command `repfuse`.

fn main() -> std::process::ExitCode {
    repfuse::cli::run(std::env::args_os())
}
