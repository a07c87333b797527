//! The archive of a program: its texts, and its tensors by name.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::build::{Built, built, invalid};
use super::error::Error;
use super::schema::{self, Versioned};
use super::weights::{self, Stored};
use crate::fuse::METADATA_PREFIX;
use crate::graph::model::Graph;
use crate::tensor::bytes::Bytes;
use crate::tensor::zip::Archive;
use crate::tensor::{Checkpoint, Dtype, Part, Tensor, quoted};

/// The longest text of a graph or a configuration that is read. (A network of ten thousand nodes has 10 MB.)
const LONGEST_TEXT: u64 = 1 << 28;

/// The entry in which the version of repfuse stands. PyTorch gives what is below `extra/` to whoever asks for it.
pub(super) const VERSION: &str = "extra/repfuse.version";

/// A version has no more letters.
const LONGEST_VERSION: u64 = 64;

/// An exported program, opened.
#[derive(Debug)]
pub struct Pt2 {
    pub(super) graph: Graph,
    pub(super) checkpoint: Checkpoint,
    /// The element types of the values.
    pub(super) dtypes: HashMap<String, Dtype>,
    /// Constants that were computed of others when it was read, by the name of their value: the tensors of the file behind each.
    pub(super) computed: HashMap<String, Vec<Tensor>>,
    /// For each node of the graph, its number among the nodes of the file.
    pub(super) positions: Vec<usize>,
    /// The nodes of the file whose results nobody reads, by number. They are not in the graph.
    pub(super) dead: HashSet<usize>,
    /// Nodes of the file that are part of a later one in the graph: that one.
    pub(super) part_of: HashMap<usize, usize>,
    pub(super) texts: Texts,
    pub(super) entries: Vec<Entry>,
    /// The folder that every entry is in, with its slash.
    pub(super) root: String,
    /// The names of its state dict.
    state: Vec<String>,
    /// The names of what stands beside the state dict: buffers that it does not hold, and other constants.
    beside: Vec<String>,
    /// Tensors that are copied as they are, and why nothing can be read of them.
    unread: HashMap<String, String>,
}

/// The parts of the archive that are read as text.
#[derive(Debug)]
pub(super) struct Texts {
    /// The name of the model, as in `models/model.json`.
    pub(super) model: String,
    pub(super) program: String,
    /// The configurations of the weights and of the constants.
    pub(super) weights: String,
    pub(super) constants: String,
}

/// An entry of the archive.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name below the root folder.
    pub(super) name: String,
    /// Where its bytes lie in the file.
    pub(super) range: Range<u64>,
}

/// Whether a file is an archive with a program in it, and no other archive of PyTorch.
///
/// # Errors
/// When it cannot be read.
pub fn is_one(path: &Path) -> Result<bool, Error> {
    let (file, metadata) = crate::tensor::open::regular(path)?;
    let mut magic = [0; 4];
    if metadata.len() < 4 {
        return Ok(false);
    }
    crate::tensor::open::read_exact_at(&file, &mut magic, 0)
        .map_err(|e| crate::tensor::Error::unreadable(path, e))?;
    if magic != *crate::tensor::zip::MAGIC {
        return Ok(false);
    }
    let archive = Archive::open(&file, metadata.len());
    // An archive of torch.save has the one, and a program of any age one of the others.
    Ok(archive.is_ok_and(|archive| {
        !archive.has("data.pkl")
            && (archive.has_any("models/")
                || archive.has("serialized_exported_program.json")
                || archive.has_any("data/aotinductor/"))
    }))
}

impl Pt2 {
    /// Opens a program: its graph is read, of its weights where they lie.
    ///
    /// # Errors
    /// When it cannot be read, is not what PyTorch writes, or holds norms in training mode.
    pub fn open(path: impl AsRef<Path>) -> Result<Pt2, Error> {
        open(path.as_ref())
    }

    /// What it computes.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its weights, buffers and constants, by the names that the program gives them.
    pub fn constants(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The names of its state dict.
    pub fn state(&self) -> impl Iterator<Item = &str> {
        self.state.iter().map(String::as_str)
    }

    /// The names of everything that is stored: of its state dict, and of what stands beside it.
    pub(super) fn stored(&self) -> impl Iterator<Item = &str> {
        self.state().chain(self.beside.iter().map(String::as_str))
    }

    /// Whether every tensor of its state dict can be written to a file of weights.
    ///
    /// # Errors
    /// Names one that cannot.
    pub fn has_plain_weights(&self) -> Result<(), Error> {
        let why = self.state.iter().find_map(|name| self.unread.get(name));
        why.map_or(Ok(()), |why| {
            Err(Error::Format {
                path: self.path().to_owned(),
                reason: format!("{why}, so its weights alone cannot be written"),
            })
        })
    }

    /// The tensors of the file that a constant was computed of when the program was read; none for one that stands in the file.
    pub fn computed_of(&self, constant: &str) -> Option<&[Tensor]> {
        self.computed.get(constant).map(Vec::as_slice)
    }

    /// The size of the file in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an archive is never empty")]
    pub fn len(&self) -> u64 {
        self.checkpoint.file_len()
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }
}

fn open(path: &Path) -> Result<Pt2, Error> {
    let (file, metadata) = crate::tensor::open::regular(path)?;
    let wrong = |reason: String| Error::Format {
        path: path.to_owned(),
        reason: crate::tensor::plain(&reason),
    };
    let archive = Archive::open(&file, metadata.len()).map_err(wrong)?;
    let root = archive.root().to_owned();
    let entries = entries(&archive).map_err(wrong)?;
    drop(archive);
    let texts = texts(&file, &entries).map_err(wrong)?;
    check_version(path, &texts.program)?;
    let mut tensors = Tensors::default();
    let mut add = |folder: &str, config: &str| tensors.add(folder, config, &entries).map_err(wrong);
    let state = add("data/weights/", &texts.weights)?;
    let beside = add("data/constants/", &texts.constants)?;
    let Tensors {
        parts,
        unread,
        storages,
    } = tensors;
    let metadata = version_of(&file, &entries).map_err(wrong)?;
    let checkpoint = Checkpoint::of_parts(vec![(path.to_owned(), file)], parts, metadata)?;
    let Built {
        graph,
        positions,
        dead,
        part_of,
        dtypes,
        computed,
    } = built(path, &texts.program, &checkpoint, (&unread, &storages))?;
    Ok(Pt2 {
        graph,
        checkpoint,
        dtypes,
        computed,
        positions,
        dead,
        part_of,
        texts,
        entries,
        root,
        state,
        beside,
        unread,
    })
}

/// The version of repfuse that wrote it, if one did: that decides what rounding allows.
fn version_of(file: &File, entries: &[Entry]) -> Result<Vec<(String, String)>, String> {
    let Some(entry) = entries.iter().find(|entry| entry.name == VERSION) else {
        return Ok(Vec::new());
    };
    let len = (entry.range.end - entry.range.start).min(LONGEST_VERSION);
    let text = Bytes::new(file, entry.range.start, entry.range.end).take(len)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(vec![(format!("{METADATA_PREFIX}version"), text)])
}

/// Whether the text of a graph is of the version that is understood.
fn check_version(path: &Path, program: &str) -> Result<(), Error> {
    let Versioned {
        schema_version: version,
        torch_version,
    } = serde_json::from_str(program).map_err(|e| invalid(path, &e.to_string()))?;
    match version.major == schema::MAJOR {
        true => Ok(()),
        false => Err(Error::Version {
            path: path.to_owned(),
            major: version.major,
            minor: version.minor,
            torch: torch_version,
            expected: schema::MAJOR,
        }),
    }
}

/// Every entry of the archive; all must be stored as they are.
fn entries(archive: &Archive<'_>) -> Result<Vec<Entry>, String> {
    let named = archive.entries()?.into_iter();
    named
        .map(|name| {
            Ok(Entry {
                name: name.to_owned(),
                range: archive.range(name)?,
            })
        })
        .collect()
}

/// The texts of the archive.
fn texts(file: &File, entries: &[Entry]) -> Result<Texts, String> {
    let find = |name: &str| entries.iter().find(|entry| entry.name == name);
    let text = |name: &str| {
        let entry = find(name).ok_or_else(|| format!("{} is missing in it", quoted(name)))?;
        let len = entry.range.end - entry.range.start;
        if len > LONGEST_TEXT {
            return Err(format!(
                "{} in it has more than {LONGEST_TEXT} bytes",
                quoted(name)
            ));
        }
        let bytes = Bytes::new(file, entry.range.start, entry.range.end).take(len)?;
        String::from_utf8(bytes).map_err(|_| format!("{} in it is not UTF-8", quoted(name)))
    };
    if let Some(order) = find("byteorder") {
        let order = text(&order.name)?;
        if order.trim() != "little" {
            return Err(format!(
                "its byte order is {}; expected little",
                quoted(&order)
            ));
        }
    }
    let model_of = |entry: &Entry| {
        let name = entry.name.strip_prefix("models/")?.strip_suffix(".json")?;
        (!name.contains('/')).then(|| name.to_owned())
    };
    let models: Vec<String> = entries.iter().filter_map(model_of).collect();
    let [model] = &models[..] else {
        return Err(match models.len() {
            0 if find("serialized_exported_program.json").is_some() => {
                "it is laid out as PyTorch 2.7 and earlier do; load it and save it again with PyTorch 2.9 or later".to_owned()
            }
            0 if entries.iter().any(|entry| entry.name.starts_with("data/aotinductor/")) => {
                "it is compiled (AOTInductor); fuse the program that it was compiled from".to_owned()
            }
            0 => "it has no `models/*.json`".to_owned(),
            n => format!("it holds {n} models; save each in a file of its own"),
        });
    };
    let weights = format!("data/weights/{model}_weights_config.json");
    if find(&weights).is_none() && find(&format!("data/weights/{model}.pt")).is_some() {
        return Err(
            "its weights are pickled; load it and save it again with PyTorch 2.9 or later"
                .to_owned(),
        );
    }
    let constants = text(&format!("data/constants/{model}_constants_config.json"))?;
    Ok(Texts {
        model: model.clone(),
        program: text(&format!("models/{model}.json"))?,
        weights: text(&weights)?,
        constants,
    })
}

/// The tensors of the archive by name.
#[derive(Default)]
struct Tensors {
    parts: Vec<Part>,
    unread: HashMap<String, String>,
    /// Where in the file the entry of each begins. Several may lie in one.
    storages: HashMap<String, u64>,
}

impl Tensors {
    /// Adds those of a folder, and gives their names.
    fn add(
        &mut self,
        folder: &str,
        config: &str,
        entries: &[Entry],
    ) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        let ranges: HashMap<&str, &Range<u64>> = entries
            .iter()
            .filter_map(|entry| Some((entry.name.strip_prefix(folder)?, &entry.range)))
            .collect();
        let invalid = |e| format!("the configuration in {} is not valid: {e}", quoted(folder));
        for (name, payload) in weights::config(config).map_err(invalid)? {
            let range = ranges.get(&*payload.path_name.0).ok_or_else(|| {
                format!(
                    "{} lies in {}, which is missing",
                    quoted(&name),
                    quoted(&format!("{folder}{}", payload.path_name.0))
                )
            })?;
            self.storages.insert(name.clone().into_owned(), range.start);
            match weights::stored(&name, &payload, range)? {
                Stored::Tensor(part) => self.parts.push(part),
                Stored::Unread(why) => {
                    self.unread.insert(name.clone().into_owned(), why);
                }
            }
            names.push(name.into_owned());
        }
        Ok(names)
    }
}
