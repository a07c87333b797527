//! Files that `torch.save` wrote, read as data: nothing in them is executed.
//!
//! A pickle (`pickle`) becomes values (`value`); among them is the state dict (`wrap`, `state`), with what is said of its
//! modules (`module`, `code`) and what would be lost of it (`unread`). Each tensor of it is a view of a storage (`storage`),
//! which is a range of the file: an entry of an archive (`zip`), or, in the older forms (`legacy`), what follows the pickle.

mod code;
mod legacy;
mod module;
mod pickle;
mod state;
mod storage;
mod unread;
mod value;
mod wrap;
pub(crate) mod write;

use std::fs::File;
use std::path::Path;

use super::bytes::Bytes;
use super::error::{Error, plain, quoted};
use super::facts::Facts;
use super::foreign;
use super::open::read_exact_at;
use super::plain::Wrapping;
use super::zip;
use code::Code;
use legacy::Loaded;
use state::{Source, State};
use storage::Storages;
pub(super) use storage::{OtherKind, Stored};
use value::{Pickle, Value};

/// A view may repeat what is stored, as `expand` does, and so claim any size; this much more than the file has is believed.
const REPEATED_BYTES: u64 = 16 << 20;

/// How often the bytes of a file may be shared by its tensors, all in all.
const SHARED: u64 = 4;

/// What was found in a file.
#[derive(Debug)]
pub(super) struct Contents {
    /// The state dict.
    pub(super) tensors: Vec<(String, Stored)>,
    /// Tensors of it whose numbers cannot be read.
    pub(super) other_kinds: Vec<(String, OtherKind)>,
    /// What the file says of its modules.
    pub(super) facts: Facts,
    /// What stands around the state dict.
    pub(super) wrapping: Wrapping,
    /// What repfuse wrote beside it.
    pub(super) metadata: Option<Vec<u8>>,
}

/// The forms of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Archive,
    Stream,
    Tar,
}

/// The form of a file that begins like this, if it is one of these.
///
/// A safetensors file begins with the length of its header, which the file must hold: as such a length, a zip archive's and
/// a pickle's beginnings are far beyond any file.
pub(super) fn form(file: &File, prefix: [u8; 8], file_len: u64) -> Option<Form> {
    let (tar_at, tar_magic) = legacy::TAR_MAGIC;
    let mut magic = [0; 5];
    if u64::from_le_bytes(prefix) <= file_len {
        return None;
    }
    if prefix.starts_with(zip::MAGIC) {
        Some(Form::Archive)
    } else if prefix[0] == 0x80 && (1..=5).contains(&prefix[1]) {
        Some(Form::Stream)
    } else if file_len > tar_at + 5
        && read_exact_at(file, &mut magic, tar_at).is_ok()
        && magic == *tar_magic
    {
        Some(Form::Tar)
    } else {
        None
    }
}

/// The entry of an archive in which repfuse keeps its metadata. PyTorch does not look at it.
pub(crate) const METADATA_ENTRY: &str = "repfuse.json";

/// Finds the state dict of a file: under `key`, else under the one key that wraps one, else at the top.
pub(super) fn open(
    path: &Path,
    file: &File,
    file_len: u64,
    form: Form,
    key: Option<&str>,
) -> Result<Contents, Error> {
    let archive = match form {
        Form::Archive => Some(zip::Archive::open(file, file_len).map_err(|e| wrong(path, &e))?),
        Form::Stream | Form::Tar => None,
    };
    let loaded = match (&archive, form) {
        (Some(archive), _) => from_archive(file, archive),
        (None, Form::Tar) => legacy::tar(file, file_len),
        (None, _) => legacy::stream(file, file_len),
    };
    let loaded = loaded.map_err(|e| unread(path, &e))?;
    let source = Source {
        pickle: &loaded.pickle,
        storages: &loaded.storages,
        swapped: loaded.swapped,
        code: archive.as_ref().map(Code::of),
    };
    let (place, value) = match key {
        Some(key) => wrap::follow(&loaded.pickle, key),
        None => match wrap::find(&source) {
            wrap::Found::At(place) => wrap::follow(&loaded.pickle, &place.join(".")),
            wrap::Found::Several(keys) => {
                return Err(Error::SeveralKeys {
                    path: path.to_owned(),
                    keys,
                });
            }
        },
    }
    .map_err(|e| wrong(path, &e))?;
    let state = source.state(value).map_err(|e| wrong(path, &e))?;
    check(path, file_len, &loaded.pickle, (&place, value), &state)?;
    let metadata = match &archive {
        Some(archive) => archive.short(METADATA_ENTRY).map_err(|e| wrong(path, &e))?,
        None => None,
    };
    Ok(Contents {
        wrapping: wrap::wrapping(&source, &place),
        tensors: state.tensors.into_iter().collect(),
        other_kinds: state.other_kinds.into_iter().collect(),
        facts: state.facts,
        metadata,
    })
}

fn from_archive<'a>(file: &File, archive: &'a zip::Archive<'a>) -> Result<Loaded<'a>, String> {
    if !archive.has("data.pkl")
        && let Some(is) = foreign::archive(|end| archive.any_ends(end))
    {
        return Err(is.to_owned());
    }
    let range = archive.range("data.pkl")?;
    let swapped = archive
        .short("byteorder")?
        .is_some_and(|order| order.starts_with(b"big"));
    Ok(Loaded {
        pickle: pickle::read(&mut Bytes::new(file, range.start, range.end))?,
        storages: Storages::Archive(archive),
        swapped,
    })
}

/// Whether there is something to read and all of it can be.
fn check(
    path: &Path,
    file_len: u64,
    pickle: &Pickle,
    (place, value): (&[String], Value),
    state: &State,
) -> Result<(), Error> {
    if let Some(why) = &state.unreadable {
        return Err(wrong(path, why));
    }
    if state.tensors.is_empty() {
        let place = match place {
            [] => String::new(),
            _ => format!(" under `{}`", place.join(".")),
        };
        if let Some((name, kind)) = state.other_kinds.first_key_value() {
            let it = match name.as_str() {
                "" => "it".to_owned(),
                name => quoted(name),
            };
            return Err(wrong(path, &format!("{it} {}", kind.why)));
        }
        let what = pickle.kind(value);
        let remedy = wrap::instead(pickle, value);
        return Err(wrong(
            path,
            &format!("it has no tensor{place}, where {what} is; {remedy}"),
        ));
    }
    let most = file_len.saturating_add(REPEATED_BYTES);
    let mut claimed: u64 = 0;
    for (name, Stored { view, .. }) in &state.tensors {
        claimed = claimed.saturating_add(view.byte_len);
        if view.byte_len > most {
            let claim = format!(
                "{} claims {} bytes; the file has {file_len}",
                quoted(name),
                view.byte_len
            );
            return Err(wrong(path, &claim));
        }
    }
    // Names that share a storage, as tied weights do, are several tensors here, too.
    if claimed > most.saturating_mul(SHARED) {
        return Err(wrong(
            path,
            &format!("its tensors claim {claimed} bytes; the file has {file_len}"),
        ));
    }
    Ok(())
}

/// A pickle can hold what no reader but Python's own understands, beside the tensors.
fn unread(path: &Path, why: &str) -> Error {
    wrong(
        path,
        &format!("{why}; where PyTorch reads it, save its state dict alone"),
    )
}

fn wrong(path: &Path, reason: &str) -> Error {
    Error::Pytorch {
        path: path.to_owned(),
        reason: plain(reason),
    }
}
