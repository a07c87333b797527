//! Printing: results on stdout, everything else on stderr; tables that fit, and colour where it means something.
//!
//! Colour goes through anstream, which drops it where no terminal listens or `NO_COLOR` is set.

use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;

pub(super) use crate::summary::units::{bytes, count, plural, small};
use crate::tensor::{is_control, plain};

/// Prints a result. A reader that has seen enough, as `head` has, is no error.
///
/// # Errors
/// When stdout is full.
pub(super) fn result(text: &str) -> anyhow::Result<()> {
    print(anstream::stdout().lock(), text)
}

/// Prints a result as JSON.
///
/// # Errors
/// When stdout is full.
pub(super) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = escaped(&serde_json::to_string_pretty(value)?) + "\n";
    print(std::io::stdout().lock(), &text)
}

fn print(mut out: impl std::io::Write, text: &str) -> anyhow::Result<()> {
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Whether a result has been printed, as far as anybody reads it.
///
/// # Errors
/// When stdout is full.
pub(super) fn printed(outcome: std::io::Result<()>) -> anyhow::Result<()> {
    match outcome {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to the standard output"),
    }
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
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Prints an error and its causes.
pub(super) fn error(causes: &[String]) {
    note(&format!("{}: {}", bad("repfuse"), causes.join(": ")));
}

/// An error and its causes, outermost first, with nothing in them that a terminal acts on but line breaks.
pub(super) fn causes(error: &anyhow::Error) -> Vec<String> {
    let printable = |text: String| text.split('\n').map(plain).collect::<Vec<_>>().join("\n");
    let mut causes: Vec<String> = error.chain().map(|e| printable(advised(e))).collect();
    // Transparent errors repeat what their source says.
    causes.dedup();
    causes
}

/// What an error says, and the remedy that this command has for it.
fn advised(error: &(dyn std::error::Error + 'static)) -> String {
    match super::advice::of(error) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

/// Something holds.
pub(super) fn good(text: &str) -> String {
    styled(text, AnsiColor::Green.on_default().bold())
}

/// Something does not.
pub(super) fn bad(text: &str) -> String {
    styled(text, AnsiColor::Red.on_default().bold())
}

/// Beside the point.
pub(super) fn soft(text: &str) -> String {
    styled(text, Style::new().dimmed())
}

/// In a colour of the 256-colour palette.
pub(super) fn coloured(text: &str, colour: u8) -> String {
    styled(text, anstyle::Ansi256Color(colour).on_default())
}

fn styled(text: &str, style: Style) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!("{style}{text}{style:#}")
}

/// How many columns a line of prose may have: `COLUMNS`, else the terminal's, else 80.
pub(super) fn width() -> usize {
    known_width().unwrap_or(80).max(20)
}

/// How many columns a line of a table may have. With `all`, and where nobody looks through a terminal, names are never shortened.
pub(super) fn table_width(all: bool) -> usize {
    match known_width() {
        Some(width) if !all => width.max(20),
        _ => usize::MAX,
    }
}

fn known_width() -> Option<usize> {
    let asked = std::env::var("COLUMNS").ok().and_then(|n| n.parse().ok());
    let terminal = || {
        let out = std::io::stdout();
        out.is_terminal()
            .then(|| terminal_size::terminal_size_of(out))
            .flatten()
            .map(|(w, _)| usize::from(w.0))
    };
    asked.or_else(terminal)
}

/// Which part of a cell goes when a line is too long.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The middle: names differ at both ends.
    Middle,
    /// The end.
    End,
}

/// A column that can be cut is not cut below this.
const NARROWEST: usize = 12;

/// Columns aligned to their widest cell, two spaces apart, the ones in `right` to the right; the ones in `cut` give way
/// until a line has no more than `width` columns.
pub(super) fn table(
    rows: &[Vec<String>],
    right: &[usize],
    cut: &[(usize, Cut)],
    width: usize,
) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c));
        cells.map(|cell| visible(cell)).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..columns).map(widest).collect();
    let mut over =
        (widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)).saturating_sub(width);
    while over > 0 {
        // Expressions, which lose their end, give way before names; of those, the widest.
        let wide = |kind| {
            let of_kind = cut
                .iter()
                .filter(|(c, cut)| *cut == kind && widths[*c] > NARROWEST);
            of_kind.map(|(c, _)| *c).max_by_key(|c| widths[*c])
        };
        let Some(c) = wide(Cut::End).or_else(|| wide(Cut::Middle)) else {
            break;
        };
        widths[c] -= 1;
        over -= 1;
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let cell = match cut.iter().find(|(at, _)| *at == c) {
                Some((_, cut)) => shortened(cell, widths[c], *cut),
                None => cell.clone(),
            };
            let pad = " ".repeat(widths[c].saturating_sub(visible(&cell)));
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

/// The rows without a column in which all cells are empty; whether it was.
pub(super) fn without_empty(rows: &mut [Vec<String>], column: usize) -> bool {
    let cell = |row: &Vec<String>| row.get(column).is_none_or(String::is_empty);
    let empty = rows.iter().all(cell);
    if empty {
        for row in rows.iter_mut().filter(|row| column < row.len()) {
            row.remove(column);
        }
    }
    empty
}

/// Characters that take up space: colours do not.
fn visible(text: &str) -> usize {
    anstream::adapter::strip_str(text)
        .to_string()
        .chars()
        .count()
}

/// At most `width` characters of a text without colour, with `…` for what is missing.
pub(super) fn shortened(text: &str, width: usize, cut: Cut) -> String {
    if visible(text) <= width {
        return text.to_owned();
    }
    let chars: Vec<char> = text.chars().collect();
    let kept = width.saturating_sub(1);
    let head = match cut {
        Cut::Middle => kept / 2,
        Cut::End => kept,
    };
    let tail = kept - head;
    let ends = chars[..head]
        .iter()
        .chain(['…'].iter())
        .chain(&chars[chars.len() - tail..]);
    ends.collect()
}

/// Words on lines of at most `width` columns, each but the first behind `indent` spaces.
pub(super) fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for word in text.split(' ') {
        let length = visible(word);
        if column > indent && column + 1 + length > width {
            out += &format!("\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += length;
    }
    out
}

/// `  label       text`, the text wrapped beside its label.
pub(super) fn line(label: &str, text: &str) -> String {
    format!("  {label:<12}{}\n", wrapped(text, 14, width()))
}

/// What the words of expressions stand for, a line for each that is there; whether a recipe assumed their identities.
pub(super) fn legend(expressions: &[String], assumed: bool) -> String {
    let words = [
        (
            "x",
            match assumed {
                true => "a bare identity, which no file shows and the recipe assumes",
                false => "the block's input itself, an identity",
            },
        ),
        ("dw", "depthwise: each channel by itself"),
        (
            "dw?",
            "depthwise, or any number of groups: the weights do not tell",
        ),
        ("b", "a bias of the conv"),
        ("ᵀ", "a transposed conv"),
    ];
    let mut out = String::new();
    for (word, meaning) in words {
        if expressions.iter().any(|text| has_word(text, word)) {
            out += &line(word, meaning);
        }
    }
    out
}

/// Whether a word stands in an expression by itself.
fn has_word(text: &str, word: &str) -> bool {
    if word == "ᵀ" {
        return text.contains(word);
    }
    let breaks = |c: char| !(c.is_alphanumeric() || c == '?') || c == '·' || c == '×';
    text.replace('ᵀ', " ").split(breaks).any(|w| w == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(rows: &[&[&str]]) -> Vec<Vec<String>> {
        let row = |row: &&[&str]| row.iter().map(|cell| (*cell).to_owned()).collect();
        rows.iter().map(row).collect()
    }

    #[test]
    fn a_long_name_loses_its_middle_and_the_rest_stays() {
        let rows = cells(&[
            &[
                "ok",
                "backbone.stages.3.blocks.17.token_mixer",
                "0.42",
                "bn(3×3) + bn",
            ],
            &["ok", "head", "0.5", "bn(3×3)"],
        ]);
        let cut = [(1, Cut::Middle), (3, Cut::End)];
        assert_eq!(
            table(&rows, &[2], &cut, 40),
            "ok  backbon…en_mixer  0.42  bn(3×3) + bn\nok  head               0.5  bn(3×3)\n"
        );
        assert!(table(&rows, &[2], &cut, 80).contains("backbone.stages.3.blocks.17.token_mixer"));
    }

    #[test]
    fn a_legend_names_what_is_there() {
        let words = |text: &str| {
            let lines = legend(&[text.to_owned()], false);
            let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
            lines.lines().filter_map(first).collect::<Vec<String>>()
        };
        assert_eq!(words("bn(3×3) + bn"), [""; 0]);
        assert_eq!(words("bn(dw 3×3) + bn(x)"), ["x", "dw"]);
        assert_eq!(words("2·bn(dw? 3×3+b) + x"), ["x", "dw?", "b"]);
        assert_eq!(words("bn(4×4ᵀ+b)"), ["b", "ᵀ"]);
    }

    #[test]
    fn colour_takes_no_room() {
        let rows = vec![
            vec![good("ok"), "a".to_owned()],
            vec!["FAIL".to_owned(), "b".to_owned()],
        ];
        let shown = anstream::adapter::strip_str(&table(&rows, &[], &[], 80)).to_string();
        assert_eq!(shown, "ok    a\nFAIL  b\n");
    }

    #[test]
    fn words_wrap_beside_their_label() {
        assert_eq!(wrapped("one two three", 4, 12), "one two\n    three");
        assert_eq!(wrapped("unbreakable", 4, 8), "unbreakable");
    }
}
