//! A checkpoint: named tensors with a dtype, a shape, and bytes on demand.
//!
//! Reads are positioned and never through a memory map: a file truncated while it is read is an error
//! rather than a crash, and memory use does not grow with the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::channels_last;
use super::computed;
use super::error::Error;
use super::facts::Facts;
use super::foreign;
use super::header::{self, Header};
use super::index;
use super::open::{self, read_exact_at};
use super::plain::Wrapping;
use super::pytorch;
use super::shards::{self, Joined, Shards};
use super::single::{Part, Place, Tensor};

/// A file of tensors, or one in shards, opened; only headers have been read.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    source: Source,
    file_len: u64,
    tensors: BTreeMap<String, Tensor>,
    /// What some of them are computed from.
    parts: BTreeMap<String, Tensor>,
    metadata: Vec<(String, String)>,
    facts: Arc<Facts>,
    wrapping: Option<Wrapping>,
}

/// Where the bytes of its tensors are.
#[derive(Debug)]
enum Source {
    /// Files in which each tensor has its place, with their paths. The first is the one that was opened.
    Files(Vec<(PathBuf, File)>),
    /// Several files, each with some of the tensors.
    Shards(Shards),
}

/// How often the bytes of a file may be shared by its tensors, all in all.
const SHARED: u64 = 4;

/// Adds the tensors that `save_model` of safetensors left out because they share their numbers with another: it notes each in the
/// metadata, as the name left out and the name of the other. Returns the rest of the metadata.
fn aliases(
    tensors: &mut BTreeMap<String, Tensor>,
    metadata: Vec<(String, String)>,
    file_len: u64,
) -> Result<Vec<(String, String)>, String> {
    let (mut rest, mut added, mut claimed) = (Vec::new(), Vec::new(), 0u64);
    for (name, of) in metadata {
        let Some(tensor) = tensors.get(&of).filter(|_| !tensors.contains_key(&name)) else {
            rest.push((name, of));
            continue;
        };
        claimed = claimed.saturating_add(tensor.byte_len());
        if claimed > file_len.saturating_mul(SHARED) {
            return Err(format!(
                "the tensors that its metadata names as copies of others claim {claimed} bytes; the file has {file_len}"
            ));
        }
        added.push(tensor.named(name));
    }
    tensors.extend(
        added
            .into_iter()
            .map(|tensor| (tensor.name().to_owned(), tensor)),
    );
    Ok(rest)
}

impl Checkpoint {
    /// Opens a safetensors file and reads its header, or a file that `torch.save` wrote; its bytes tell which.
    ///
    /// The index of a checkpoint in shards (`*.safetensors.index.json`), or a directory that has one, opens all of its files
    /// as one checkpoint.
    ///
    /// # Errors
    /// When the file cannot be read or its header does not describe it exactly, it is a single shard, or an index and its
    /// shards do not agree.
    pub fn open(path: impl Into<PathBuf>) -> Result<Checkpoint, Error> {
        Checkpoint::open_key(path, None)
    }

    /// The same, for the state dict under `key` of a file that `torch.save` wrote.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and when there is no such key.
    pub fn open_key(path: impl Into<PathBuf>, key: Option<&str>) -> Result<Checkpoint, Error> {
        let path = path.into();
        let path = match path.is_dir() {
            true => index::in_directory(&path)?,
            false => path,
        };
        let index = index::is_named_so(&path).then(|| path.clone());
        match (index, key) {
            (Some(index), None) => Ok(Checkpoint::joined(shards::open(&index)?, index).assembled()),
            (Some(path), Some(key)) => Err(Error::NoKeys {
                path,
                key: key.to_owned(),
            }),
            (None, key) => {
                let checkpoint = Checkpoint::open_whole(&path, key)?;
                shards::expect_whole(&path)?;
                Ok(checkpoint.assembled())
            }
        }
    }

    /// Opens files that hold different tensors as one checkpoint.
    ///
    /// # Errors
    /// When one cannot be opened, or two hold a tensor of the same name.
    pub fn open_files(paths: &[PathBuf]) -> Result<Checkpoint, Error> {
        let files = paths.iter().map(|path| Checkpoint::open_whole(path, None));
        let mut files = files.collect::<Result<Vec<_>, _>>()?;
        match (files.pop(), files.is_empty()) {
            (Some(file), true) => Ok(file),
            (last, _) => {
                files.extend(last);
                let path = paths.first().cloned().unwrap_or_default();
                let joined = shards::join(files, Vec::new()).map_err(|reason| Error::Index {
                    path: path.clone(),
                    reason,
                })?;
                Ok(Checkpoint::joined(joined, path))
            }
        }
    }

    /// Computes the weights that the file keeps in parts.
    fn assembled(mut self) -> Checkpoint {
        self.parts = computed::assemble(&mut self.tensors);
        self
    }

    fn joined(joined: Joined, path: PathBuf) -> Checkpoint {
        let Joined {
            shards,
            tensors,
            metadata,
        } = joined;
        Checkpoint {
            file_len: shards.files().iter().map(Checkpoint::file_len).sum(),
            path,
            source: Source::Shards(shards),
            facts: Arc::default(),
            wrapping: None,
            parts: BTreeMap::new(),
            tensors,
            metadata,
        }
    }

    /// Opens one file, whether or not it is a shard.
    pub(super) fn open_whole(path: &Path, key: Option<&str>) -> Result<Checkpoint, Error> {
        let path = path.to_owned();
        let format = |reason: String| Error::Format {
            path: path.clone(),
            reason,
        };
        let (file, metadata) = open::regular(&path)?;
        let file_len = metadata.len();
        let mut begin = [0; foreign::TELLING];
        let begin = &mut begin[..file_len.min(foreign::TELLING as u64) as usize];
        read_exact_at(&file, begin, 0).map_err(|e| Error::unreadable(&path, e))?;
        let kind = foreign::kind(begin, &path);
        // A file of another kind may begin with a small number, too.
        let wrong = |reason: String| format(kind.map_or(reason, str::to_owned));
        let Some(&prefix) = begin.first_chunk::<8>() else {
            return Err(match (kind, file_len) {
                (_, 0) => Error::Empty(path),
                (Some(is), _) => format(is.to_owned()),
                (None, _) => format(format!(
                    "it has {}; a header needs at least 8",
                    header::in_bytes(file_len)
                )),
            });
        };
        let header_len = u64::from_le_bytes(prefix);
        if let Some(form) = pytorch::form(&file, prefix, file_len) {
            let contents = pytorch::open(&path, &file, file_len, form, key)?;
            return Checkpoint::of_pytorch(path, file, file_len, contents);
        }
        if let Some(key) = key.filter(|_| kind.is_none()) {
            return Err(Error::NoKeys {
                path,
                key: key.to_owned(),
            });
        }
        if header_len > header::MAX_HEADER {
            return Err(wrong(format!(
                "it begins with `{}`, and not with the length of a header, which is at most {} bytes; it is damaged, or a file of another kind",
                prefix.escape_ascii(),
                header::MAX_HEADER
            )));
        }
        if header_len > file_len - 8 {
            return Err(wrong(format!(
                "its header has {header_len} bytes, and the file has only {} more; it is cut short: copy or download it again",
                file_len - 8
            )));
        }
        let mut json = vec![0; header_len as usize];
        read_exact_at(&file, &mut json, 8).map_err(|e| Error::unreadable(&path, e))?;
        let data = 8 + header_len;
        let Header { entries, metadata } = header::parse(&json, file_len - data).map_err(wrong)?;
        let tensors = entries.into_iter().map(|e| {
            let place = Place::InFile {
                file: 0,
                offset: data + e.start,
            };
            let tensor = Tensor::at(e.name.clone(), e.dtype, e.shape, place, e.end - e.start);
            (e.name, tensor)
        });
        let mut tensors: BTreeMap<String, Tensor> = match channels_last::says(&metadata) {
            false => tensors.collect(),
            true => {
                let seen = tensors.map(|(name, tensor)| Ok((name, channels_last::seen(tensor)?)));
                seen.collect::<Result<_, String>>().map_err(format)?
            }
        };
        let metadata = aliases(&mut tensors, metadata, file_len).map_err(format)?;
        Ok(Checkpoint {
            tensors,
            metadata,
            source: Source::Files(vec![(path.clone(), file)]),
            path,
            file_len,
            facts: Arc::default(),
            wrapping: None,
            parts: BTreeMap::new(),
        })
    }

    /// A checkpoint of the tensors that lie in some files, whose format is read elsewhere. The first file is the one that was asked for.
    ///
    /// # Errors
    /// When a tensor has no element type of a fixed size, does not lie in its file as a whole, or has another's name.
    pub fn of_parts(
        files: Vec<(PathBuf, File)>,
        parts: Vec<Part>,
        metadata: Vec<(String, String)>,
    ) -> Result<Checkpoint, Error> {
        let mut lengths = Vec::with_capacity(files.len());
        for (path, file) in &files {
            let metadata = file.metadata().map_err(|e| Error::unreadable(path, e))?;
            lengths.push(metadata.len());
        }
        let file_len = lengths
            .iter()
            .fold(0u64, |sum, len| sum.saturating_add(*len));
        let Some((path, _)) = files.first() else {
            return Err(Error::Format {
                path: PathBuf::new(),
                reason: "there is no file".to_owned(),
            });
        };
        let mut tensors = BTreeMap::new();
        for part in parts {
            let in_file = |file: usize| files.get(file).map_or(path, |(path, _)| path).clone();
            let tensor = Tensor::new(part).map_err(|reason| Error::Format {
                path: path.clone(),
                reason,
            })?;
            if let Place::InFile { file, offset } = tensor.place() {
                let there = lengths.get(*file).copied();
                let end = offset.checked_add(tensor.byte_len());
                if end.zip(there).is_none_or(|(end, there)| end > there) {
                    return Err(Error::Format {
                        path: in_file(*file),
                        reason: format!(
                            "{tensor} has {} from position {offset} on, which is beyond the end of the file",
                            header::in_bytes(tensor.byte_len())
                        ),
                    });
                }
            }
            if let Some(other) = tensors.insert(tensor.name().to_owned(), tensor) {
                return Err(Error::Format {
                    path: path.clone(),
                    reason: format!("two tensors are named {other}"),
                });
            }
        }
        Ok(Checkpoint {
            tensors,
            metadata,
            path: path.clone(),
            source: Source::Files(files),
            file_len,
            facts: Arc::default(),
            wrapping: None,
            parts: BTreeMap::new(),
        })
    }

    fn of_pytorch(
        path: PathBuf,
        file: File,
        file_len: u64,
        contents: pytorch::Contents,
    ) -> Result<Checkpoint, Error> {
        let facts = Arc::new(contents.facts);
        let tensors = contents.tensors.into_iter().map(|(name, stored)| {
            let pytorch::Stored { dtype, shape, view } = stored;
            let byte_len = view.byte_len;
            let place = match view.is_plain() {
                true => Place::InFile {
                    file: 0,
                    offset: view.at,
                },
                false => Place::View(Arc::new(view)),
            };
            let tensor = Tensor::at(name.clone(), dtype, shape, place, byte_len);
            (name, tensor.said(&facts))
        });
        let unread = contents.other_kinds.into_iter().map(|(name, kind)| {
            let place = Place::Unread(kind.why.into());
            let tensor = Tensor::at(name.clone(), kind.dtype, kind.shape, place, 0);
            (name, tensor.said(&facts))
        });
        let tensors = tensors.chain(unread);
        let metadata = match contents.metadata {
            Some(json) => header::parse_metadata(&json).map_err(|reason| Error::Pytorch {
                path: path.clone(),
                reason,
            })?,
            None => vec![("format".to_owned(), "pt".to_owned())],
        };
        Ok(Checkpoint {
            tensors: tensors.collect(),
            metadata,
            source: Source::Files(vec![(path.clone(), file)]),
            path,
            file_len,
            facts: facts.clone(),
            wrapping: Some(contents.wrapping),
            parts: BTreeMap::new(),
        })
    }

    /// What stands around the state dict in a file that `torch.save` wrote; none for other files.
    pub fn wrapping(&self) -> Option<&Wrapping> {
        self.wrapping.as_ref()
    }

    /// The key under which a file that `torch.save` wrote keeps the state dict, if it is not at the top.
    pub fn unwrapped(&self) -> Option<&str> {
        self.wrapping.as_ref()?.key.as_deref()
    }

    /// What the file says of its modules, as a pickled module does.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The files that it is in, if it is in shards.
    pub fn shards(&self) -> &[Checkpoint] {
        match &self.source {
            Source::Shards(shards) => shards.files(),
            _ => &[],
        }
    }

    /// The path it was opened from; that of the index, if it is in shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file, or of all shards, in bytes.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Every tensor by name, in the order of the names.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The tensor of this name, also one that another is computed from.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name).or_else(|| self.parts.get(name))
    }

    /// What is looked up by name: the tensors, and what some are computed from.
    pub(super) fn names_mut(&mut self) -> [&mut BTreeMap<String, Tensor>; 2] {
        [&mut self.tensors, &mut self.parts]
    }

    /// The metadata strings, in the order of the file.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Fills `out` with the tensor's bytes from byte `at` on.
    ///
    /// # Errors
    /// When the file cannot be read, for one because it has been truncated meanwhile.
    pub fn read_at(&self, tensor: &Tensor, at: u64, out: &mut [u8]) -> Result<(), Error> {
        if let Place::Unread(why) = tensor.place() {
            return Err(Error::Unread {
                tensor: tensor.to_string(),
                name: tensor.name_in_file().to_owned(),
                why: why.to_string(),
            });
        }
        if at.saturating_add(out.len() as u64) > tensor.byte_len() {
            // The bytes behind a tensor are another's.
            let beyond = format!("{tensor} ends before that");
            let beyond = std::io::Error::new(std::io::ErrorKind::InvalidInput, beyond);
            return Err(Error::unreadable(&self.path, beyond));
        }
        if let Place::Computed(computed) = tensor.place() {
            return computed.read(at, out, &|part, at, out| self.read_at(part, at, out));
        }
        let files = match &self.source {
            Source::Files(files) => files,
            Source::Shards(shards) => return shards.read_at(tensor, at, out),
        };
        let number = match tensor.place() {
            Place::InFile { file, .. } => *file,
            Place::View(view) => view.file,
            Place::InMemory(_) | Place::Computed(_) | Place::Unread(_) => 0,
        };
        let Some((path, file)) = files.get(number) else {
            let elsewhere = format!("{tensor} is of another file");
            let elsewhere = std::io::Error::new(std::io::ErrorKind::InvalidInput, elsewhere);
            return Err(Error::unreadable(&self.path, elsewhere));
        };
        match tensor.place() {
            Place::InMemory(bytes) => {
                out.copy_from_slice(&bytes[at as usize..][..out.len()]);
                Ok(())
            }
            Place::InFile { offset, .. } => read_exact_at(file, out, offset + at),
            Place::View(view) => view.read(file, at, out),
            // Above.
            Place::Computed(_) | Place::Unread(_) => Ok(()),
        }
        .map_err(|e| Error::unreadable(path, e))
    }

    /// Whether `path` leads to this very file, or to one of the shards, by whatever name.
    pub fn is_same_file(&self, path: &Path) -> bool {
        if self.shards().iter().any(|shard| shard.is_same_file(path)) {
            return true;
        }
        match (self.path.canonicalize(), path.canonicalize()) {
            (Ok(a), Ok(b)) => a == b || same_inode(&a, &b),
            _ => false,
        }
    }
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}
