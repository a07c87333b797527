//! Writing a file whole or not at all.
//!
//! The bytes go to a scratch file beside the destination, which becomes the destination by a rename after it has been
//! synced. Until then the destination is what it was.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use super::destination::Destination;
use super::error::Error;

/// A file that is being written, and the destination it will replace or become.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    scratch: TempPath,
    destination: Destination,
}

/// The scratch file of `name` is called `.name.repfuse-XXXXXX.tmp`, in the directory of the destination. Only `kill -9` or a
/// loss of power leaves it behind, and nothing removes it then: whether another run is still writing it cannot be known.
const NAME: [&str; 3] = [".", ".repfuse-", ".tmp"];

/// As much of the destination's name as the scratch file's name takes up, in bytes. File systems allow 143 and more.
const LONGEST_NAME: usize = 100;

impl Scratch {
    /// Creates the scratch file.
    ///
    /// # Errors
    /// When the destination's directory cannot be written to.
    pub fn create(destination: Destination) -> Result<Scratch, Error> {
        let scratch = named(&destination, |path| create_new(path, &destination))?;
        let (file, scratch) = scratch.into_parts();
        Ok(Scratch {
            file,
            scratch,
            destination,
        })
    }

    /// Writes bytes at a position of the file; safe to call from many threads.
    ///
    /// # Errors
    /// When the file system refuses, for one because it is full.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        write_all_at(&self.file, bytes, at).map_err(|source| self.io(source))
    }

    /// Makes the file as long as it will be.
    pub(super) fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.set_len(len).map_err(|source| self.io(source))
    }

    /// Where it will go.
    pub(super) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The path of the scratch file.
    pub fn path(&self) -> &Path {
        &self.scratch
    }

    /// Syncs the file and moves it to its destination; `replace` allows one to be there already, whose mode it keeps.
    ///
    /// # Errors
    /// When syncing or renaming fails, or the destination has appeared meanwhile and may not be replaced.
    pub fn finish(self, replace: bool) -> Result<(), Error> {
        self.sync()?;
        let directory = self.destination.directory();
        self.rename(replace)?;
        synced(directory)
    }

    /// Makes what has been written durable, with the mode of the file that it replaces.
    pub(super) fn sync(&self) -> Result<(), Error> {
        if let Some(permissions) = self.destination.replaced() {
            let kept = self.file.set_permissions(permissions.clone());
            kept.map_err(|source| self.io(source))?;
        }
        self.file.sync_all().map_err(|source| self.io(source))
    }

    /// Gives the file its name; returns its path.
    pub(super) fn rename(self, replace: bool) -> Result<PathBuf, Error> {
        let destination = self.destination;
        let scratch = NamedTempFile::from_parts(self.file, self.scratch);
        let moved = if replace {
            scratch.persist(destination.path())
        } else {
            scratch.persist_noclobber(destination.path())
        };
        match moved {
            Ok(_) => Ok(destination.path().to_owned()),
            Err(e) => Err(match e.error.kind() {
                std::io::ErrorKind::AlreadyExists => Error::Exists(destination.path().to_owned()),
                _ => Error::Io {
                    what: "write",
                    path: destination.path().to_owned(),
                    source: e.error,
                },
            }),
        }
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io {
            what: "write",
            path: self.destination.path().to_owned(),
            source,
        }
    }
}

/// Moves what is at a destination now to a scratch name, under which it is removed unless it is moved back.
pub(super) fn set_aside(destination: &Destination) -> Result<Option<TempPath>, Error> {
    if destination.replaced().is_none() {
        return Ok(None);
    }
    let aside = named(destination, |path| create_new(path, destination))?.into_temp_path();
    match std::fs::rename(destination.path(), &aside) {
        Ok(()) => Ok(Some(aside)),
        // It has been removed meanwhile.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            what: "write",
            path: destination.path().to_owned(),
            source,
        }),
    }
}

/// A new file with a scratch name beside a destination.
fn named(
    destination: &Destination,
    create: impl FnMut(&Path) -> std::io::Result<File>,
) -> Result<NamedTempFile, Error> {
    let [before, after, end] = NAME;
    let prefix = format!("{before}{}{after}", short_name(destination.path()));
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(end);
    let directory = destination.directory();
    builder
        .make_in(&directory, create)
        .map_err(|source| Error::Io {
            what: "write to",
            path: directory.clone(),
            source,
        })
}

/// Makes renames in a directory durable.
pub(super) fn synced(directory: PathBuf) -> Result<(), Error> {
    sync_directory(&directory).map_err(|source| Error::Io {
        what: "sync",
        path: directory,
        source,
    })
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
