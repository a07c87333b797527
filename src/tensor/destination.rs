//! Where a file is to go: looked at before any work, and replaced by a rename.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::path::{Path, PathBuf};

use super::error::{Error, quoted};
use super::index;
use super::open::expect_regular;
use super::shards;

/// A place that a regular file has or can get.
///
/// A symbolic link is followed, as `cp` does: what it leads to is replaced, and the link stays.
#[derive(Clone, Debug)]
pub struct Destination {
    path: PathBuf,
    replaced: Option<Permissions>,
}

impl Destination {
    /// Looks at what is there now. Nothing is created.
    ///
    /// # Errors
    /// When its directory is not there, or something that is no regular file is there: a device or a pipe would be
    /// replaced by a file.
    pub fn new(path: &Path) -> Result<Destination, Error> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { what, path, source }
        };
        if !names_a_file(path) {
            return Err(Error::NotAFile {
                path: path.to_owned(),
                found: "the name of a directory",
                expected: "the name of a file",
            });
        }
        match path.symlink_metadata() {
            Ok(found) if found.is_symlink() => {
                // A link such as `/dev/stdout` can lead to a pipe, which has no path.
                if let Ok(found) = path.metadata() {
                    expect_regular(path, found.file_type())?;
                }
                let target = path.canonicalize().map_err(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => Error::DanglingLink(path.to_owned()),
                    _ => io("follow", path)(e),
                })?;
                let found = target.metadata().map_err(io("follow", path))?;
                expect_regular(path, found.file_type())?;
                Ok(Destination {
                    path: target,
                    replaced: Some(found.permissions()),
                })
            }
            Ok(found) => {
                expect_regular(path, found.file_type())?;
                Ok(Destination {
                    path: path.to_owned(),
                    replaced: Some(found.permissions()),
                })
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let directory = directory_of(path);
                directory.metadata().map_err(io("write to", &directory))?;
                Ok(Destination {
                    path: path.to_owned(),
                    replaced: None,
                })
            }
            Err(e) => Err(io("write", path)(e)),
        }
    }

    /// The path that a rename replaces.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The permissions of the file that is there, which the new one keeps.
    pub fn replaced(&self) -> Option<&Permissions> {
        self.replaced.as_ref()
    }

    /// The directory that the file is in.
    pub fn directory(&self) -> PathBuf {
        directory_of(&self.path)
    }
}

/// Where the files of a checkpoint go: one file, or shards and their index.
#[derive(Clone, Debug)]
pub struct Destinations {
    /// The files with the names that an index calls them by.
    pub(super) files: Vec<(String, Destination)>,
    pub(super) index: Option<Destination>,
    /// Shards that the index there now names and the new one will not. They go with the old index.
    pub(super) stale: Vec<Destination>,
}

impl Destinations {
    /// Looks at where one file is to go.
    ///
    /// # Errors
    /// As [`Destination::new`].
    pub fn file(path: &Path) -> Result<Destinations, Error> {
        Ok(Destinations {
            files: vec![(String::new(), Destination::new(path)?)],
            index: None,
            stale: Vec::new(),
        })
    }

    /// Looks at where so many shards and their index are to go. For `a.safetensors` or `a.safetensors.index.json`, the index is the
    /// latter, and the shards are `a-00001-of-00002.safetensors` and so on.
    ///
    /// # Errors
    /// As [`Destination::new`], of every file. When an index is there already that names other files than shards of this name: they
    /// would stay without an index.
    pub fn shards(path: &Path, count: usize) -> Result<Destinations, Error> {
        Destination::new(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(".index.json").unwrap_or(&name);
        let stem = stem.strip_suffix(".safetensors").unwrap_or(stem);
        let names = (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.safetensors"));
        let at = |name: String| Ok((name.clone(), Destination::new(&path.with_file_name(name))?));
        let files = names.map(at).collect::<Result<Vec<_>, Error>>()?;
        let index = path.with_file_name(format!("{stem}.safetensors.index.json"));
        Ok(Destinations {
            stale: stale(&index, stem, &files)?,
            index: Some(Destination::new(&index)?),
            files,
        })
    }

    /// The paths of older shards, which are removed with the index that is replaced.
    pub fn stale(&self) -> impl Iterator<Item = &Path> {
        self.stale.iter().map(Destination::path)
    }

    /// The paths that renames replace or make, that of the index last.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.each().map(Destination::path)
    }

    /// The path of a file that is there now.
    pub fn replaced(&self) -> Option<&Path> {
        let mut there = self.each().filter(|d| d.replaced().is_some());
        there.next().map(Destination::path)
    }

    fn each(&self) -> impl Iterator<Item = &Destination> {
        self.files.iter().map(|(_, file)| file).chain(&self.index)
    }
}

/// The shards that the index at this path names, without those that the new files replace.
fn stale(
    index: &Path,
    stem: &str,
    files: &[(String, Destination)],
) -> Result<Vec<Destination>, Error> {
    // What is no index names no shards.
    let Ok(old) = index::read(index) else {
        return Ok(Vec::new());
    };
    let names: BTreeSet<String> = old.files.into_iter().map(|(_, file)| file).collect();
    let mut stale = Vec::new();
    for name in names {
        let path = index.with_file_name(&name);
        // A link is removed, and what it leads to stays.
        let Ok(found) = path.symlink_metadata() else {
            continue;
        };
        if files.iter().any(|(new, _)| *new == name) {
            continue;
        }
        if !shards::is_shard_of(&name, stem) {
            return Err(Error::Index {
                path: index.to_owned(),
                reason: format!(
                    "it joins {} as well, which the new shards would leave without an index; remove the files of this index first, or choose another name",
                    quoted(&name)
                ),
            });
        }
        stale.push(Destination {
            path,
            replaced: Some(found.permissions()),
        });
    }
    Ok(stale)
}

/// Whether a path ends in a name, and not in a slash, a dot or nothing.
fn names_a_file(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    let last = text
        .rsplit(|b| std::path::is_separator(char::from(*b)))
        .next();
    !matches!(last, None | Some(b"" | b"." | b".."))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
