//! Progress: on a terminal only, and never in the way of results. Its units are those of the summaries.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::plan::Plan;
use crate::summary::units;
use crate::verify::Progress;

/// A bar over bytes on stderr, hidden where stderr is no terminal or the user wants quiet.
pub(super) fn bar(bytes: u64, quiet: bool) -> ProgressBar {
    let number = |of: fn(&ProgressState) -> u64| {
        move |state: &ProgressState, out: &mut dyn Write| {
            // What cannot be drawn is not.
            let _ = write!(out, "{}", units::bytes(of(state)));
        }
    };
    styled(
        bytes,
        quiet,
        "{bar:30} {done} of {all}, {rate}/s",
        |style| {
            style
                .with_key("done", number(ProgressState::pos))
                .with_key("all", number(|state| state.len().unwrap_or(state.pos())))
                .with_key("rate", number(|state| state.per_sec() as u64))
        },
    )
}

/// A bar over the convs of a plan that are verified, and what moves it on.
pub(super) fn verifying(plan: &Plan, quiet: bool) -> (ProgressBar, Progress) {
    let convs: usize = plan.blocks().iter().map(|block| block.fused().len()).sum();
    let template = "{bar:30} {pos} of {len} convs verified";
    let bar = styled(convs as u64, quiet, template, |style| style);
    let shared = bar.clone();
    (bar, Progress::new(move || shared.inc(1)))
}

/// A line while the system puts on the disk what was written.
pub(super) fn syncing(quiet: bool) -> ProgressBar {
    let bar = styled(1, quiet, "waiting for the disk, {elapsed}", |style| style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn styled(
    length: u64,
    quiet: bool,
    template: &str,
    with: impl FnOnce(ProgressStyle) -> ProgressStyle,
) -> ProgressBar {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if quiet || dumb || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(with(style));
    }
    bar
}
