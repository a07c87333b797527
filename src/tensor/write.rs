//! Where every tensor of a new safetensors file, or of new shards, goes, known before the first byte is written.

use std::path::Path;

use super::checkpoint::Checkpoint;
use super::destination::{Destination, Destinations};
use super::dtype::Dtype;
use super::error::Error;
use super::header::{self, Entry, Header};
use super::index;
use super::scratch::Scratch;
use super::together::finish_together;

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

/// Where every tensor goes, in a file or in shards.
///
/// Positions count through all files, one after the other in the order of their numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    files: Vec<Part>,
    /// For each output, in the caller's order: the position of its first byte.
    offsets: Vec<u64>,
    len: u64,
}

/// One of the files.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    /// What stands before the tensors.
    prefix: Vec<u8>,
    /// The position of its first byte.
    start: u64,
    len: u64,
    /// The names of its tensors, where there are shards and an index is to list them.
    names: Vec<String>,
}

/// A checkpoint that is being written. The bytes go to it in any order and from any thread.
#[derive(Debug)]
pub struct Writer {
    /// The files, and the positions of their first bytes.
    files: Vec<(u64, Scratch)>,
    /// The index of the shards, if it is in shards.
    index: Option<Scratch>,
    /// Older shards, which go with the index that is replaced.
    stale: Vec<Destination>,
}

impl Layout {
    /// Lays tensors out in one file as the safetensors library does: widest element type first, then by name.
    pub fn new(outputs: &[&Output], metadata: Vec<(String, String)>) -> Layout {
        let mut layout = Layout::empty(outputs.len());
        layout.add(outputs, (0..outputs.len()).collect(), metadata);
        layout
    }

    /// Lays tensors out in shards with no more than `most` bytes of tensors each, or with a single tensor that has more. The shards
    /// follow one another in the order of the names.
    pub fn in_shards(outputs: &[&Output], metadata: &[(String, String)], most: u64) -> Layout {
        let mut order: Vec<usize> = (0..outputs.len()).collect();
        order.sort_by(|&a, &b| outputs[a].name.cmp(&outputs[b].name));
        let (mut layout, mut shard, mut bytes) = (Layout::empty(outputs.len()), Vec::new(), 0u64);
        for i in order {
            let more = outputs[i].byte_len;
            if !shard.is_empty() && bytes.saturating_add(more) > most {
                layout.add_shard(outputs, std::mem::take(&mut shard), metadata);
                bytes = 0;
            }
            shard.push(i);
            bytes = bytes.saturating_add(more);
        }
        layout.add_shard(outputs, shard, metadata);
        layout
    }

    fn empty(outputs: usize) -> Layout {
        Layout {
            files: Vec::new(),
            offsets: vec![0; outputs],
            len: 0,
        }
    }

    fn add_shard(&mut self, outputs: &[&Output], shard: Vec<usize>, metadata: &[(String, String)]) {
        let names = shard.iter().map(|&i| outputs[i].name.clone()).collect();
        self.add(outputs, shard, metadata.to_vec());
        if let Some(file) = self.files.last_mut() {
            file.names = names;
        }
    }

    /// Adds a file that holds some of the outputs.
    fn add(&mut self, outputs: &[&Output], mut held: Vec<usize>, metadata: Vec<(String, String)>) {
        held.sort_by(|&a, &b| {
            let key = |i: usize| {
                (
                    std::cmp::Reverse(outputs[i].dtype.bits().unwrap_or(0)),
                    &outputs[i].name,
                )
            };
            key(a).cmp(&key(b))
        });
        let mut at = 0;
        let entries: Vec<Entry> = held
            .iter()
            .map(|&i| {
                let Output {
                    name,
                    dtype,
                    shape,
                    byte_len,
                } = (*outputs[i]).clone();
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
        for (&i, entry) in held.iter().zip(&entries) {
            self.offsets[i] = entry.start;
        }
        let prefix = header::serialize(&Header { entries, metadata });
        let data = self.len + prefix.len() as u64;
        held.iter().for_each(|&i| self.offsets[i] += data);
        let len = prefix.len() as u64 + at;
        self.files.push(Part {
            prefix,
            start: self.len,
            len,
            names: Vec::new(),
        });
        self.len += len;
    }

    /// Lays outputs of so many bytes out one behind the other in one file, with nothing before or between them.
    pub fn in_order(lengths: impl IntoIterator<Item = u64>) -> Layout {
        let mut layout = Layout::empty(0);
        for len in lengths {
            layout.offsets.push(layout.len);
            layout.len += len;
        }
        layout.files.push(Part {
            prefix: Vec::new(),
            start: 0,
            len: layout.len,
            names: Vec::new(),
        });
        layout
    }

    /// Outputs at these positions of one file of this size, whatever stands between them.
    pub fn at(offsets: Vec<u64>, file_len: u64) -> Layout {
        Layout {
            files: vec![Part {
                prefix: Vec::new(),
                start: 0,
                len: file_len,
                names: Vec::new(),
            }],
            offsets,
            len: file_len,
        }
    }

    /// The position of the first byte of the `i`-th output.
    pub fn offset(&self, i: usize) -> u64 {
        self.offsets[i]
    }

    /// The outputs in the order in which they lie.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.offsets.len()).collect();
        order.sort_by_key(|&i| self.offsets[i]);
        order
    }

    /// The number of files, an index aside.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The size of all files, an index aside.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte is written, which is never so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The text of the index of shards with these names.
    fn index<'a>(&'a self, names: impl Iterator<Item = &'a str>) -> String {
        let bytes = self.files.iter().map(|f| f.len - f.prefix.len() as u64);
        let tensors = self.files.iter().zip(names).flat_map(|(file, name)| {
            let tensors = file.names.iter();
            tensors.map(move |tensor| (tensor.as_str(), name))
        });
        index::serialize(bytes.sum(), tensors)
    }
}

impl Writer {
    /// Creates the scratch files and writes the headers, and the index of shards. `destinations` are those of this layout.
    ///
    /// # Errors
    /// When a destination's directory cannot be written to, or a header is longer than the format allows.
    pub fn create(destinations: Destinations, layout: &Layout) -> Result<Writer, Error> {
        debug_assert_eq!(destinations.files.len(), layout.files());
        let places = || destinations.files.iter().zip(&layout.files);
        for ((_, destination), part) in places() {
            let header_len = (part.prefix.len() as u64).saturating_sub(8);
            if header_len > header::MAX_HEADER {
                return Err(Error::LongHeader {
                    path: destination.path().to_owned(),
                    len: header_len,
                    allowed: header::MAX_HEADER,
                });
            }
        }
        let index = match &destinations.index {
            None => None,
            Some(index) => {
                let names = destinations.files.iter().map(|(name, _)| name.as_str());
                let scratch = Scratch::create(index.clone())?;
                scratch.write_at(layout.index(names).as_bytes(), 0)?;
                Some(scratch)
            }
        };
        let mut files = Vec::with_capacity(layout.files());
        for ((_, destination), part) in places() {
            let scratch = Scratch::create(destination.clone())?;
            scratch.write_at(&part.prefix, 0)?;
            scratch.set_len(part.len)?;
            files.push((part.start, scratch));
        }
        let stale = destinations.stale;
        Ok(Writer {
            files,
            index,
            stale,
        })
    }

    /// The path of the scratch file; of shards, the first one's.
    pub fn scratch_path(&self) -> &Path {
        // A layout has at least one file.
        self.files[0].1.path()
    }

    /// Writes bytes at a position that is within one file; safe to call from many threads.
    ///
    /// # Errors
    /// When the file system refuses, for one because it is full.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        match self.files.iter().rfind(|(start, _)| *start <= at) {
            Some((start, file)) => file.write_at(bytes, at - start),
            None => Ok(()),
        }
    }

    /// Opens what has been written so far.
    ///
    /// # Errors
    /// When it cannot be read, or is no checkpoint.
    pub fn open(&self) -> Result<Checkpoint, Error> {
        let paths = self.files.iter().map(|(_, file)| file.path().to_owned());
        Checkpoint::open_files(&paths.collect::<Vec<_>>())
    }

    /// Syncs all files and moves them to their destinations, the index last; `replace` allows files to be there already, whose modes
    /// they keep. Shards that an index there named, and that the new one does not, are then removed.
    ///
    /// # Errors
    /// When syncing or renaming fails, or a destination has appeared meanwhile and may not be replaced. The destinations are then
    /// what they were.
    pub fn finish(self, replace: bool) -> Result<(), Error> {
        let mut files: Vec<Scratch> = self.files.into_iter().map(|(_, file)| file).collect();
        files.extend(self.index);
        match (files.pop(), files.is_empty()) {
            (Some(file), true) => file.finish(replace),
            (last, _) => {
                files.extend(last);
                finish_together(files, &self.stale, replace)
            }
        }
    }
}
