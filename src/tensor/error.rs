//! What can go wrong with a file of tensors, and how names are shown.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

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
    #[error("{} is {found}; expected {expected}", quoted(&path.display().to_string()))]
    NotAFile {
        path: PathBuf,
        found: &'static str,
        expected: &'static str,
    },
    #[error("{} is not a safetensors file: {reason}", quoted(&path.display().to_string()))]
    Format { path: PathBuf, reason: String },
    #[error("{} is empty", quoted(&.0.display().to_string()))]
    Empty(PathBuf),
    #[error("{} is a directory without an index of shards, and holds {files}; name the one to read", quoted(&path.display().to_string()))]
    SeveralFiles { path: PathBuf, files: String },
    #[error("{} has become shorter since it was opened; its tensors are no longer all there", quoted(&.0.display().to_string()))]
    Truncated(PathBuf),
    #[error("{} exists", quoted(&.0.display().to_string()))]
    Exists(PathBuf),
    #[error("{} is the input itself", quoted(&.0.display().to_string()))]
    SameFile(PathBuf),
    #[error("{} is a symbolic link to a file that is not there; remove it or choose another name", quoted(&.0.display().to_string()))]
    DanglingLink(PathBuf),
    #[error("the header of {} would have {len} bytes; the format allows {allowed}", quoted(&path.display().to_string()))]
    LongHeader {
        path: PathBuf,
        len: u64,
        allowed: u64,
    },
    #[error(
        "{tensor} has dtype {found}, which no arithmetic is defined for; expected F64, F32, F16 or BF16"
    )]
    NotFloat { tensor: String, found: String },
    #[error("{tensor} {why}")]
    Unread {
        tensor: String,
        name: String,
        why: String,
    },
    #[error("{} does not hold feature maps: {reason}", quoted(&path.display().to_string()))]
    Array { path: PathBuf, reason: String },
    #[error("{} cannot be read as a PyTorch file: {reason}", quoted(&path.display().to_string()))]
    Pytorch { path: PathBuf, reason: String },
    #[error("{} holds several state dicts, `{}`", quoted(&path.display().to_string()), keys.join("`, `"))]
    SeveralKeys { path: PathBuf, keys: Vec<String> },
    #[error("{} is a safetensors file, which has no keys", quoted(&path.display().to_string()))]
    NoKeys { path: PathBuf, key: String },
    #[error("{} has no tensor below {}; its modules are `{}`{}", quoted(&path.display().to_string()), quoted(module), plain(&known.join("`, `")), if *more { " and more" } else { "" })]
    NothingUnder {
        path: PathBuf,
        module: String,
        known: Vec<String>,
        more: bool,
    },
    #[error("{} would be a file of PyTorch, whose convs are [out, in, kh, kw]; the input has `format: mlx`, and so [out, kh, kw, in]: write a `.safetensors`", quoted(&_0.display().to_string()))]
    ChannelsLast(PathBuf),
    #[error("{} does not join shards to a checkpoint: {reason}", quoted(&path.display().to_string()))]
    Index { path: PathBuf, reason: String },
    #[error("{} is {of} of a checkpoint; {remedy}", quoted(&path.display().to_string()))]
    OneShard {
        path: PathBuf,
        of: String,
        remedy: String,
    },
    #[error("{} would be in {count} shards; at most {allowed} are written, so let them be larger", quoted(&path.display().to_string()))]
    ManyShards {
        path: PathBuf,
        count: usize,
        allowed: usize,
    },
    #[error("{} is the name of {is}; a state dict is written as `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`", quoted(&path.display().to_string()))]
    OtherFormat { path: PathBuf, is: &'static str },
    #[error("{} cannot be written as a PyTorch file: {reason}; choose a name that ends in `.safetensors`", quoted(&path.display().to_string()))]
    Unwritable { path: PathBuf, reason: String },
    #[error("{} is the name of a PyTorch file, and shards are written as safetensors; choose a name that ends in `.safetensors`", quoted(&.0.display().to_string()))]
    PytorchShards(PathBuf),
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl Error {
    /// What went wrong where a file that was open could not be read.
    pub(crate) fn unreadable(path: &Path, source: std::io::Error) -> Error {
        match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Truncated(path.to_owned()),
            _ => Error::Io {
                what: "read",
                path: path.to_owned(),
                source,
            },
        }
    }
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
        if is_control(c) {
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a terminal may act on a character: control codes, and marks that break or reorder what follows.
pub fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
