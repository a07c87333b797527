//! `repfuse completions SHELL` and `repfuse man`.

use super::Answer;
use super::output;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse completions bash > ~/.local/share/bash-completion/completions/repfuse
  repfuse completions fish > ~/.config/fish/completions/repfuse.fish")]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: clap_complete::Shell,
}

/// Print a man page
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  repfuse man > repfuse.1
  repfuse man fuse | man -l -")]
pub(super) struct Man {
    /// The page of this command
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

pub(super) fn completions(
    args: &Completions,
    mut command: clap::Command,
) -> anyhow::Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "repfuse", &mut script);
    output::result(&String::from_utf8(script)?)?;
    Ok(Answer::Yes)
}

pub(super) fn man(args: &Man, command: &clap::Command) -> anyhow::Result<Answer> {
    let page = match &args.command {
        None => command.clone(),
        Some(name) => {
            let found = command.find_subcommand(name).cloned();
            let names = || command.get_subcommands().map(clap::Command::get_name);
            let Some(sub) = found else {
                let hint = match crate::recipe::closest(name, names()) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                };
                anyhow::bail!("there is no command {}{hint}", crate::tensor::quoted(name));
            };
            sub.bin_name(format!("repfuse {name}"))
                .display_name(format!("repfuse-{name}"))
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    let mut text = String::from_utf8(text)?;
    if args.command.is_none() {
        for sub in command.get_subcommands() {
            text += &options_of(sub)?;
        }
    }
    output::result(&text)?;
    Ok(Answer::Yes)
}

/// What the page of the whole program says of a command: how it is called, and every option.
fn options_of(command: &clap::Command) -> anyhow::Result<String> {
    let name = command.get_name();
    let page = clap_mangen::Man::new(command.clone().bin_name(format!("repfuse {name}")));
    let mut text = Vec::new();
    page.render_synopsis_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let text = String::from_utf8(text)?;
    let about = command.get_about().map(ToString::to_string);
    let lines = text.lines().filter(|line| *line != ".SH SYNOPSIS");
    let lines: Vec<&str> = lines
        .map(|line| if line == ".SH OPTIONS" { ".PP" } else { line })
        .collect();
    Ok(format!(
        ".SH \"{}\"\n{}\n.PP\n{}\n",
        name.to_uppercase(),
        about.unwrap_or_default(),
        lines.join("\n")
    ))
}
