//! Where every tensor of a new safetensors file goes, known before the first byte is written.

use std::path::Path;

use super::destination::Destination;
use super::dtype::Dtype;
use super::error::Error;
use super::header::{self, Entry, Header};
use super::scratch::Scratch;

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

/// A file that is being written. The bytes go to it in any order and from any thread.
#[derive(Debug)]
pub struct Writer(Scratch);

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

    /// Lays outputs of so many bytes out one behind the other, with nothing before or between them.
    pub fn in_order(lengths: impl IntoIterator<Item = u64>) -> Layout {
        let mut at = 0;
        let mut offsets = Vec::new();
        for len in lengths {
            offsets.push(at);
            at += len;
        }
        Layout {
            prefix: Vec::new(),
            offsets,
            file_len: at,
        }
    }

    /// Outputs at these positions of a file of this size, whatever stands between them.
    pub fn at(offsets: Vec<u64>, file_len: u64) -> Layout {
        Layout {
            prefix: Vec::new(),
            offsets,
            file_len,
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
        let header_len = (layout.prefix.len() as u64).saturating_sub(8);
        if header_len > header::MAX_HEADER {
            return Err(Error::LongHeader {
                path: destination.path().to_owned(),
                len: header_len,
                allowed: header::MAX_HEADER,
            });
        }
        let scratch = Scratch::create(destination)?;
        scratch.write_at(&layout.prefix, 0)?;
        scratch.set_len(layout.file_len)?;
        Ok(Writer(scratch))
    }

    /// Writes bytes at a position of the file; safe to call from many threads.
    ///
    /// # Errors
    /// When the file system refuses, for one because it is full.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        self.0.write_at(bytes, at)
    }

    /// The path of the scratch file, for reading back what was written.
    pub fn scratch_path(&self) -> &Path {
        self.0.path()
    }

    /// Syncs the file and moves it to its destination; `replace` allows one to be there already, whose mode it keeps.
    ///
    /// # Errors
    /// When syncing or renaming fails, or the destination has appeared meanwhile and may not be replaced.
    pub fn finish(self, replace: bool) -> Result<(), Error> {
        self.0.finish(replace)
    }
}
