//! A checkpoint in shards: several files that an index joins to one.
//!
//! Every shard is opened and checked as a file of its own; the index and the shards must agree on every tensor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::checkpoint::Checkpoint;
use super::error::{Error, quoted};
use super::index;
use super::single::Tensor;

/// The files of a checkpoint in shards.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<Checkpoint>,
    /// The number of the file that each tensor is in.
    of: HashMap<String, usize>,
}

/// What the shards hold together.
pub(super) struct Joined {
    pub shards: Shards,
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: Vec<(String, String)>,
}

impl Shards {
    /// Fills `out` with a tensor's bytes from byte `at` on.
    pub(super) fn read_at(&self, tensor: &Tensor, at: u64, out: &mut [u8]) -> Result<(), Error> {
        // Every tensor of the checkpoint has been found in a file.
        let file = self
            .of
            .get(tensor.name_in_file())
            .and_then(|i| self.files.get(*i));
        match file {
            Some(file) => file.read_at(tensor, at, out),
            None => Err(Error::Io {
                what: "find",
                path: tensor.name_in_file().into(),
                source: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }

    /// The files, in the order of their names.
    pub(super) fn files(&self) -> &[Checkpoint] {
        &self.files
    }
}

/// Opens the shards that an index names.
///
/// # Errors
/// When the index or a shard cannot be read, or they do not agree on where each tensor is.
pub(super) fn open(path: &Path) -> Result<Joined, Error> {
    let index = index::read(path)?;
    let wrong = |reason: String| Error::Index {
        path: path.to_owned(),
        reason,
    };
    let directory = path.parent().unwrap_or(Path::new(""));
    let names: BTreeSet<&str> = index.files.iter().map(|(_, file)| file.as_str()).collect();
    let mut files = Vec::with_capacity(names.len());
    for name in &names {
        files.push(Checkpoint::open_whole(&directory.join(name), None)?);
    }
    let joined = join(files, index.metadata).map_err(wrong)?;
    let names: Vec<&str> = names.into_iter().collect();
    for (tensor, file) in &index.files {
        match joined.shards.of.get(tensor).map(|i| names[*i]) {
            Some(found) if found == file => {}
            found => {
                return Err(wrong(format!(
                    "it says that {} is in {}, {}",
                    quoted(tensor),
                    quoted(file),
                    match found {
                        Some(found) => format!("where it is not; it is in {}", quoted(found)),
                        None => "where it is not".to_owned(),
                    }
                )));
            }
        }
    }
    let listed: BTreeSet<&str> = index.files.iter().map(|(name, _)| name.as_str()).collect();
    let unlisted = joined.tensors.keys().find(|n| !listed.contains(n.as_str()));
    match unlisted {
        Some(tensor) => Err(wrong(format!(
            "{} is in {}, and the index does not know it",
            quoted(tensor),
            quoted(names[joined.shards.of[tensor]])
        ))),
        None => Ok(joined),
    }
}

/// Joins files that hold different tensors.
///
/// Metadata that two of them disagree about is one file's own and is left out.
pub(super) fn join(
    files: Vec<Checkpoint>,
    mut metadata: Vec<(String, String)>,
) -> Result<Joined, String> {
    let (mut tensors, mut of) = (BTreeMap::new(), HashMap::new());
    for (i, file) in files.iter().enumerate() {
        for (name, tensor) in file.tensors() {
            if let Some(other) = of.insert(name.clone(), i) {
                let other: &Checkpoint = &files[other];
                return Err(format!(
                    "{tensor} is in {} and in {}",
                    quoted(&other.path().display().to_string()),
                    quoted(&file.path().display().to_string())
                ));
            }
            tensors.insert(name.clone(), tensor.clone());
        }
        metadata.extend_from_slice(file.metadata());
    }
    Ok(Joined {
        shards: Shards { files, of },
        tensors,
        metadata: agreed(metadata),
    })
}

/// Each string once, in order, without those of which there are different ones under the same key.
fn agreed(mut metadata: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut values: HashMap<String, Option<String>> = HashMap::new();
    for (key, value) in &metadata {
        values
            .entry(key.clone())
            .and_modify(|known| *known = known.take().filter(|known| known == value))
            .or_insert_with(|| Some(value.clone()));
    }
    // Taken out of the map with the first of its key, so that it is there once.
    metadata.retain(|(key, _)| values.remove(key).flatten().is_some());
    metadata
}

/// Whether a file is only one of several, by its name or by an index beside it.
///
/// # Errors
/// Names what to open instead.
pub(super) fn expect_whole(path: &Path) -> Result<(), Error> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Without a list of the directory, the name alone has to tell.
    let indexes = index::siblings(directory).unwrap_or_default();
    let joins = indexes.into_iter().find(|sibling| {
        // One that cannot be read joins nothing.
        let files = index::read(sibling).map(|index| index.files);
        let files = files.unwrap_or_default();
        files.iter().any(|(_, file)| *file == name) && files.iter().any(|(_, file)| *file != name)
    });
    let of = match (&joins, shard_of(&name)) {
        (None, None) => return Ok(()),
        (_, Some(count)) => format!("one of {count} shards"),
        (Some(_), None) => "one of several shards".to_owned(),
    };
    let remedy = match joins {
        Some(index) => format!("open {} instead", quoted(&index.display().to_string())),
        None => "put the other shards and their index (`*.safetensors.index.json`) beside it and open the index"
            .to_owned(),
    };
    Err(Error::OneShard {
        path: path.to_owned(),
        of,
        remedy,
    })
}

/// Whether a name is that of a shard of `stem`, of any number of shards: `stem-00001-of-00001.safetensors`.
pub(super) fn is_shard_of(name: &str, stem: &str) -> bool {
    let numbers = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".safetensors"));
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let pair = numbers.and_then(|numbers| numbers.split_once("-of-"));
    pair.is_some_and(|(number, count)| digits(number) && digits(count))
}

/// How many shards a name such as `model-00002-of-00003.safetensors` tells of, if more than one.
fn shard_of(name: &str) -> Option<usize> {
    let (stem, _) = name.rsplit_once('.')?;
    let (before, count) = stem.rsplit_once("-of-")?;
    let (_, number) = before.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let count = Some(count).filter(|c| digits(c) && digits(number))?;
    count.parse().ok().filter(|count| *count > 1)
}

#[cfg(test)]
mod tests {
    use super::{is_shard_of, shard_of};

    #[test]
    fn a_shard_is_of_one_name() {
        assert!(is_shard_of("a-00001-of-00003.safetensors", "a"));
        assert!(is_shard_of("a-00001-of-00001.safetensors", "a"));
        for other in [
            "a-b-00001-of-00003.safetensors",
            "a-00001-of-00003.bin",
            "a-1-of-3.safetensors",
            "a.safetensors",
            "sub/a-00001-of-00003.safetensors",
        ] {
            assert!(!is_shard_of(other, "a"), "{other}");
        }
    }

    #[test]
    fn the_name_of_a_shard_tells_how_many_there_are() {
        assert_eq!(shard_of("model-00001-of-00003.safetensors"), Some(3));
        assert_eq!(shard_of("a-b.c-00012-of-00163.bin"), Some(163));
        for whole in [
            "model-00001-of-00001.safetensors",
            "model.safetensors",
            "one-of-many.safetensors",
            "best-1-of-3.pt",
            "model-00001-of-00003",
        ] {
            assert_eq!(shard_of(whole), None, "{whole}");
        }
    }
}
