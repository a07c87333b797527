//! What can go wrong with a file of tensors, and how names are shown.

use std::fmt::Write as _;
use std::path::PathBuf;

/// A file that cannot be read, is not what it says it is, or cannot be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("cannot {what} {}", quoted(&path.display().to_string()))]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not a safetensors file: {reason}", quoted(&path.display().to_string()))]
    Format { path: PathBuf, reason: String },
    #[error("{} exists; choose another name or pass --force to replace it", quoted(&.0.display().to_string()))]
    Exists(PathBuf),
    #[error("{} is the input itself; choose another name or pass --force to replace it", quoted(&.0.display().to_string()))]
    SameFile(PathBuf),
    #[error(
        "{tensor} has dtype {found}, which no arithmetic is defined for; expected F64, F32, F16 or BF16"
    )]
    NotFloat { tensor: String, found: String },
    #[error("{} does not hold feature maps: {reason}", quoted(&path.display().to_string()))]
    Array { path: PathBuf, reason: String },
    #[error("interrupted; nothing was written")]
    Interrupted,
}

/// A name from a file, in backticks and with its control characters spelled out.
///
/// Names come from strangers; one with an escape sequence in it must not reach a terminal as it is.
pub fn quoted(name: &str) -> String {
    format!("`{}`", plain(name))
}

/// A text from a file with its control characters spelled out, as in `\u{1b}`.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Besides control codes: marks that reorder what follows on a terminal.
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                let _ = write!(out, "{}", c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}
