//! Printing: results on stdout, everything else on stderr, and numbers in the units people use.

use std::io::Write as _;

use anyhow::Context;

use crate::tensor::{is_control, plain};

/// Prints a result. A reader that has seen enough, as `head` has, is no error.
///
/// # Errors
/// When stdout is full.
pub(super) fn result(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to the standard output"),
    }
}

/// Prints a result as JSON.
///
/// # Errors
/// When stdout is full.
pub(super) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    result(&(escaped(&serde_json::to_string_pretty(value)?) + "\n"))
}

/// JSON in which characters that a terminal may act on are escaped. (JSON itself asks for it below U+0020 only, and those
/// that are left can only stand inside strings.)
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_control(c) {
            out += &format!("\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Prints a remark.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints an error and its causes.
pub(super) fn error(error: &anyhow::Error) {
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    // Transparent errors repeat what their source says.
    causes.dedup();
    note(&format!(
        "repfuse: {}",
        causes
            .iter()
            .map(|c| printable(c))
            .collect::<Vec<_>>()
            .join(": ")
    ));
}

/// A message keeps its line breaks and nothing else that a terminal acts on.
pub(super) fn printable(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// Columns aligned to their widest cell, two spaces apart; the last one is not padded.
pub(super) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[c].saturating_sub(cell.chars().count()));
            line += &if right.contains(&c) {
                format!("{pad}{cell}  ")
            } else {
                format!("{cell}{pad}  ")
            };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// `12.3 MB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB"])
}

/// `12.3 M`.
pub(super) fn count(n: u64) -> String {
    scaled(n as f64, &["", "k", "M", "G"])
}

fn scaled(n: f64, units: &[&str]) -> String {
    let mut value = n;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
        .trim_end()
        .to_owned()
}

/// `1e-5`, `3e-3`: a small number as it is written in a recipe.
pub(super) fn small(x: f64) -> String {
    format!("{x:e}")
}

/// `one block`, `3 blocks`.
pub(super) fn plural(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}
