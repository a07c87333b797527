//! The index of a checkpoint in shards: a JSON that says in which file each tensor is.
//!
//! `{"metadata": {"total_size": 8}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors", …}}`, beside the files.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::error::{Error, quoted};
use super::header::{MAX_HEADER, MAX_NAME};
use super::open;

/// What an index says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Index {
    /// The file of each tensor, in the order of the index. No name is there twice.
    pub files: Vec<(String, String)>,
    /// The strings of its metadata, in order of their keys. (`total_size` is a number, and is not among them.)
    pub metadata: Vec<(String, String)>,
}

/// What the name of an index holds, before and after which there may be more: `model.safetensors.index.fp16.json`.
const NAMED: [&str; 2] = [".safetensors.index.", ".bin.index."];

/// Whether a file is called as an index is.
pub(super) fn is_named_so(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".json") && NAMED.iter().any(|part| name.contains(part))
}

/// What a directory is read as: the index in it, or else the only file of tensors.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn in_directory(directory: &Path) -> Result<PathBuf, Error> {
    let unreadable = |source| Error::Io {
        what: "read",
        path: directory.to_owned(),
        source,
    };
    let mut found = siblings(directory).map_err(unreadable)?;
    match (found.pop(), found.pop()) {
        (Some(index), None) => Ok(index),
        (None, _) => only_file(directory, checkpoints(directory).map_err(unreadable)?),
        (Some(second), Some(first)) => {
            let names = [first, second].map(|path| quoted(&path.display().to_string()));
            Err(Error::Index {
                path: directory.to_owned(),
                reason: format!(
                    "it holds several, {} among them; name the one to read",
                    names.join(" and ")
                ),
            })
        }
    }
}

/// How many files an error names.
const NAMED_FILES: usize = 3;

/// The file of a directory that holds one.
fn only_file(directory: &Path, mut files: Vec<PathBuf>) -> Result<PathBuf, Error> {
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(file),
        (None, _) => Err(Error::NotAFile {
            path: directory.to_owned(),
            found: "a directory without an index of shards (`*.safetensors.index.json`, `*.bin.index.json`) and without a file of tensors (`*.safetensors`, `*.bin`, `*.pt`, `*.pth`)",
            expected: "a file of tensors, or a directory with one index or one such file",
        }),
        (Some(last), more) => {
            files.push(last);
            let name = |path: &PathBuf| quoted(&path.display().to_string());
            let mut named: Vec<String> = files.iter().take(NAMED_FILES).map(name).collect();
            if let Some(more) = (more + 1).checked_sub(NAMED_FILES).filter(|more| *more > 0) {
                named.push(format!("{more} more"));
            }
            let last = named.pop().unwrap_or_default();
            Err(Error::SeveralFiles {
                path: directory.to_owned(),
                files: format!("{} and {last}", named.join(", ")),
            })
        }
    }
}

/// The files of tensors in a directory, by their names: those of safetensors, or else those of PyTorch.
fn checkpoints(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut safetensors, mut pytorch) = (Vec::new(), Vec::new());
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        match ending.to_ascii_lowercase().as_str() {
            "safetensors" => safetensors.push(path),
            "bin" | "pt" | "pth" => pytorch.push(path),
            _ => {}
        }
    }
    let mut found = match safetensors.is_empty() {
        true => pytorch,
        false => safetensors,
    };
    found.sort();
    Ok(found)
}

/// Every index in a directory, in the order of the names.
pub(super) fn siblings(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if is_named_so(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads an index.
///
/// # Errors
/// When it cannot be read, is longer than a header may be, is no index, or leads out of its directory.
pub(super) fn read(path: &Path) -> Result<Index, Error> {
    let wrong = |reason: String| Error::Index {
        path: path.to_owned(),
        reason,
    };
    let (file, metadata) = open::regular(path)?;
    if metadata.len() > MAX_HEADER {
        return Err(wrong(format!(
            "it has {} bytes; at most {MAX_HEADER} are read",
            metadata.len()
        )));
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_HEADER), &mut text).map_err(
        |source| Error::Io {
            what: "read",
            path: path.to_owned(),
            source,
        },
    )?;
    let index = parse(&text).map_err(wrong)?;
    let leaves = index.files.iter().find(|(_, file)| !stays(file));
    match leaves {
        Some((tensor, file)) => Err(wrong(format!(
            "it says that {} is in {}; expected a file beside the index",
            quoted(tensor),
            quoted(file)
        ))),
        None => Ok(index),
    }
}

/// Whether a path leads to something in the directory that it is relative to.
fn stays(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    !file.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn parse(text: &str) -> Result<Index, String> {
    let Stored {
        metadata,
        weight_map: Pairs(files),
    } = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if files.is_empty() {
        return Err("its `weight_map` is empty".to_owned());
    }
    let strings = metadata.into_iter().flatten();
    Ok(Index {
        files,
        metadata: strings
            .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())))
            .collect(),
    })
}

/// The text of an index of shards that hold so many bytes of tensors.
pub(super) fn serialize<'a>(
    total_size: u64,
    files: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let weight_map: BTreeMap<&str, &str> = files.collect();
    let index = serde_json::json!({
        "metadata": { "total_size": total_size },
        "weight_map": weight_map,
    });
    format!("{index:#}\n")
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `weight_map`")]
struct Stored {
    metadata: Option<BTreeMap<String, serde_json::Value>>,
    weight_map: Pairs,
}

/// The entries of `weight_map`, none of which is there twice.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if tensor.len().max(file.len()) > MAX_NAME {
                        return Err(A::Error::custom(format!(
                            "a name has more than {MAX_NAME} bytes"
                        )));
                    }
                    if !seen.insert(tensor.clone()) {
                        return Err(A::Error::custom(format!(
                            "{} is there twice",
                            quoted(&tensor)
                        )));
                    }
                    pairs.push((tensor, file));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let files = [("a", "x-1.safetensors"), ("b", "x-2.safetensors")];
        let index = parse(&serialize(8, files.into_iter())).expect("an index");
        let files = files.map(|(tensor, file)| (tensor.to_owned(), file.to_owned()));
        assert_eq!(index.files, files);
        assert_eq!(index.metadata, []);
    }

    #[test]
    fn only_strings_are_metadata() {
        let text = r#"{"metadata": {"total_size": 8, "b": "a"}, "weight_map": {"a": "x"}}"#;
        let index = parse(text).expect("an index");
        assert_eq!(index.metadata, [("b".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused() {
        let twice = r#"{"weight_map": {"a": "x", "a": "y"}}"#;
        let error = parse(twice).expect_err("a name twice");
        assert!(error.starts_with("`a` is there twice"), "{error}");
    }

    #[test]
    fn only_paths_below_the_index_stay() {
        for out in ["", "../a", "/a", "a/../../b", "./../a"] {
            assert!(!stays(out), "{out}");
        }
        assert!(stays("a.safetensors") && stays("shards/a.safetensors"));
    }

    #[test]
    fn an_index_is_known_by_its_name() {
        let is = |name: &str| is_named_so(Path::new(name));
        assert!(is("model.safetensors.index.json"));
        assert!(is("a/model.safetensors.index.fp16.json"));
        assert!(is("pytorch_model.bin.index.json"));
        assert!(!is("config.json") && !is("model.safetensors") && !is("index.json"));
    }
}
