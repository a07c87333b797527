//! Writing a safetensors file whole or not at all.
//!
//! Every tensor's place is known before the first byte is written. The bytes go, in any order and from
//! any thread, to a scratch file beside the destination, which becomes the destination by a rename after it has
//! been synced. Until then the destination is what it was.

use std::fs::{File, OpenOptions};
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use super::destination::Destination;
use super::dtype::Dtype;
use super::error::Error;
use super::header::{self, Entry, Header};

/// A tensor to be written: its name, element type, shape and number of bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The tensor's name; no two outputs share one.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub byte_len: u64,
}

/// Where every tensor of a new file goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    prefix: Vec<u8>,
    /// For each output, in the caller's order: the position of its first byte in the file.
    offsets: Vec<u64>,
    file_len: u64,
}

/// A file that is being written, and the destination it will replace or become.
#[derive(Debug)]
pub struct Writer {
    file: File,
    scratch: TempPath,
    destination: Destination,
}

/// The scratch file of `name` is called `.name.repfuse-XXXXXX.tmp`, in the directory of the destination. Only `kill -9` or a
/// loss of power leaves it behind, and nothing removes it then: whether another run is still writing it cannot be known.
const SCRATCH: [&str; 3] = [".", ".repfuse-", ".tmp"];

/// As much of the destination's name as the scratch file's name takes up, in bytes. File systems allow 143 and more.
const LONGEST_NAME: usize = 100;

impl Layout {
    /// Lays tensors out as the safetensors library does: widest element type first, then by name.
    pub fn new(outputs: &[Output], metadata: Vec<(String, String)>) -> Layout {
        let mut order: Vec<usize> = (0..outputs.len()).collect();
        order.sort_by(|&a, &b| {
            let key = |i: usize| {
                (
                    std::cmp::Reverse(outputs[i].dtype.bits().unwrap_or(0)),
                    &outputs[i].name,
                )
            };
            key(a).cmp(&key(b))
        });
        let mut at = 0;
        let entries: Vec<Entry> = order
            .iter()
            .map(|&i| {
                let Output {
                    name,
                    dtype,
                    shape,
                    byte_len,
                } = outputs[i].clone();
                let start = at;
                at += byte_len;
                Entry {
                    name,
                    dtype,
                    shape,
                    start,
                    end: at,
                }
            })
            .collect();
        let mut offsets = vec![0; outputs.len()];
        for (&i, entry) in order.iter().zip(&entries) {
            offsets[i] = entry.start;
        }
        let prefix = header::serialize(&Header { entries, metadata });
        let data = prefix.len() as u64;
        offsets.iter_mut().for_each(|offset| *offset += data);
        Layout {
            file_len: data + at,
            offsets,
            prefix,
        }
    }

    /// The position in the file of the first byte of the `i`-th output.
    pub fn offset(&self, i: usize) -> u64 {
        self.offsets[i]
    }

    /// The outputs in the order in which they lie in the file.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.offsets.len()).collect();
        order.sort_by_key(|&i| self.offsets[i]);
        order
    }

    /// The size of the whole file.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }
}

impl Writer {
    /// Creates the scratch file and writes the header.
    ///
    /// # Errors
    /// When the destination's directory cannot be written to, or the header is longer than the format allows.
    pub fn create(destination: Destination, layout: &Layout) -> Result<Writer, Error> {
        let header_len = layout.prefix.len() as u64 - 8;
        if header_len > header::MAX_HEADER {
            return Err(Error::LongHeader {
                path: destination.path().to_owned(),
                len: header_len,
                allowed: header::MAX_HEADER,
            });
        }
        let [before, after, end] = SCRATCH;
        let prefix = format!("{before}{}{after}", short_name(destination.path()));
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(end);
        let directory = destination.directory();
        let scratch = builder
            .make_in(&directory, |path| create_new(path, &destination))
            .map_err(|source| Error::Io {
                what: "write to",
                path: directory.clone(),
                source,
            })?;
        let (file, scratch) = scratch.into_parts();
        let writer = Writer {
            file,
            scratch,
            destination,
        };
        writer.write_at(&layout.prefix, 0)?;
        writer
            .file
            .set_len(layout.file_len)
            .map_err(|source| writer.io(source))?;
        Ok(writer)
    }

    /// Writes bytes at a position of the file; safe to call from many threads.
    ///
    /// # Errors
    /// When the file system refuses, for one because it is full.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        write_all_at(&self.file, bytes, at).map_err(|source| self.io(source))
    }

    /// The path of the scratch file, for reading back what was written.
    pub fn scratch_path(&self) -> &Path {
        &self.scratch
    }

    /// Syncs the file and moves it to its destination; `replace` allows one to be there already, whose mode it keeps.
    ///
    /// # Errors
    /// When syncing or renaming fails, or the destination has appeared meanwhile and may not be replaced.
    pub fn finish(self, replace: bool) -> Result<(), Error> {
        if let Some(permissions) = self.destination.replaced() {
            let kept = self.file.set_permissions(permissions.clone());
            kept.map_err(|source| self.io(source))?;
        }
        self.file.sync_all().map_err(|source| self.io(source))?;
        let destination = self.destination;
        let scratch = NamedTempFile::from_parts(self.file, self.scratch);
        let moved = if replace {
            scratch.persist(destination.path())
        } else {
            scratch.persist_noclobber(destination.path())
        };
        moved.map_err(|e| match e.error.kind() {
            std::io::ErrorKind::AlreadyExists => Error::Exists(destination.path().to_owned()),
            _ => Error::Io {
                what: "write",
                path: destination.path().to_owned(),
                source: e.error,
            },
        })?;
        let directory = destination.directory();
        sync_directory(&directory).map_err(|source| Error::Io {
            what: "sync",
            path: directory,
            source,
        })
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io {
            what: "write",
            path: self.destination.path().to_owned(),
            source,
        }
    }
}

fn short_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let end = (0..=LONGEST_NAME.min(name.len())).rfind(|at| name.is_char_boundary(*at));
    name[..end.unwrap_or(0)].to_owned()
}

/// A new file is as open to others as the umask allows, and one that replaces another no more than that.
fn create_new(path: &Path, destination: &Destination) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        let mode = destination.replaced().map_or(0o666, PermissionsExt::mode);
        // Its owner reads it back to verify it.
        options.mode(mode & 0o666 | 0o600);
    }
    #[cfg(not(unix))]
    let _ = destination;
    options.open(path)
}

/// Makes the rename itself durable.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        // Some file systems cannot sync a directory, and one that may be written to may be unreadable. The file itself has
        // been synced.
        Err(e) if matches!(e.kind(), InvalidInput | Unsupported | PermissionDenied) => Ok(()),
        result => result,
    }
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        if n == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        at += n as u64;
    }
    Ok(())
}
