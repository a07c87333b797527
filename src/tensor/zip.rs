//! The directory of a zip archive: where its entries lie in the file.
//!
//! Readers of any archive allow for junk in front of one, and guess its length from where the directory lies. PyTorch's
//! archives begin at byte 0, and its reader takes every offset as it stands; so does this one. (With a root folder
//! of 21 letters, the guess of such readers finds a directory 76 bytes late.)

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use miniz_oxide::inflate::decompress_to_vec_with_limit;

use super::bytes::Bytes;
use super::error::quoted;

/// What an archive begins with, unless it is empty.
pub(crate) const MAGIC: &[u8; 4] = b"PK\x03\x04";

const ENTRY: u32 = u32::from_le_bytes(*b"PK\x01\x02");
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: u32 = u32::from_le_bytes(*b"PK\x06\x06");
const LOCATOR_64: u32 = u32::from_le_bytes(*b"PK\x06\x07");

/// The end record without its comment, and the record before it that tells where the 64-bit one is.
const END_LEN: u64 = 22;
const LOCATOR_LEN: u64 = 20;

/// A directory of a million tensors has half of that.
const LONGEST_DIRECTORY: u64 = 256 << 20;

/// What the directory says of an entry.
#[derive(Debug)]
struct Entry {
    header_at: u64,
    len: u64,
    packed: Packed,
}

/// How the bytes of an entry are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packed {
    /// As they are.
    Stored,
    /// By deflate, in so many bytes.
    Deflated(u64),
    /// In a way that is not read.
    Otherwise,
}

/// An archive whose directory has been read.
#[derive(Debug)]
pub(crate) struct Archive<'a> {
    file: &'a File,
    file_len: u64,
    entries: HashMap<String, Entry>,
    /// The folder that the first entry is in, with its slash.
    root: String,
}

impl<'a> Archive<'a> {
    /// Reads the directory.
    pub(crate) fn open(file: &'a File, file_len: u64) -> Result<Archive<'a>, String> {
        let (range, count) = find_directory(file, file_len)?;
        let mut bytes = Bytes::new(file, range.start, range.end);
        let mut archive = Archive {
            file,
            file_len,
            entries: HashMap::new(),
            root: String::new(),
        };
        for i in 0..count {
            let (name, entry) =
                read_entry(&mut bytes).map_err(|e| format!("its directory is broken: {e}"))?;
            if i == 0 {
                let end = name.find('/').map_or(0, |at| at + 1);
                archive.root = name[..end].to_owned();
            }
            if archive.entries.contains_key(&name) {
                return Err(format!("{} is there twice", quoted(&name)));
            }
            archive.entries.insert(name, entry);
        }
        Ok(archive)
    }

    /// Whether there is an entry of this name below the root folder.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(&format!("{}{name}", self.root))
    }

    /// The folder that every entry is in, with its slash.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// The names of all entries below the root folder, in the order in which they lie in the file.
    ///
    /// # Errors
    /// When an entry is outside of the root folder.
    pub(crate) fn entries(&self) -> Result<Vec<&str>, String> {
        let mut entries: Vec<(&String, &Entry)> = self.entries.iter().collect();
        entries.sort_by_key(|(name, entry)| (entry.header_at, *name));
        entries
            .into_iter()
            .map(|(name, _)| match name.strip_prefix(&self.root) {
                Some(below) => Ok(below),
                None => Err(format!(
                    "{} in it is outside of {}",
                    quoted(name),
                    quoted(&self.root)
                )),
            })
            .collect()
    }

    /// Whether any entry below the root folder has a name that begins so.
    pub(crate) fn has_any(&self, start: &str) -> bool {
        let start = format!("{}{start}", self.root);
        self.entries.keys().any(|name| name.starts_with(&start))
    }

    /// Whether any entry has a name that ends so.
    pub(crate) fn any_ends(&self, end: &str) -> bool {
        self.entries.keys().any(|name| name.ends_with(end))
    }

    /// Where in the file the bytes of an entry below the root folder lie.
    pub(crate) fn range(&self, name: &str) -> Result<Range<u64>, String> {
        let name = format!("{}{name}", self.root);
        let entry = self
            .entries
            .get(&name)
            .ok_or_else(|| format!("{} is missing in it", quoted(&name)))?;
        if entry.packed != Packed::Stored {
            return Err(format!(
                "{} in it is compressed; torch.save stores what it writes as it is",
                quoted(&name)
            ));
        }
        self.lies(&name, entry, entry.len)
    }

    /// Where `len` bytes behind the header of an entry lie.
    fn lies(&self, name: &str, entry: &Entry, len: u64) -> Result<Range<u64>, String> {
        // The name is repeated before the bytes, and more may stand there than in the directory.
        let broken = || format!("the header of {} in it is broken", quoted(name));
        let mut header = Bytes::new(
            self.file,
            entry.header_at,
            entry.header_at.saturating_add(30).min(self.file_len),
        );
        let header: [u8; 30] = header.array().map_err(|_| broken())?;
        if !header.starts_with(MAGIC) {
            return Err(broken());
        }
        let len_at = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let start = entry.header_at + 30 + len_at(26) + len_at(28);
        let end = start.checked_add(len).filter(|end| *end <= self.file_len);
        let end = end.ok_or_else(|| format!("{} in it ends behind the file", quoted(name)))?;
        Ok(start..end)
    }

    /// The text of an entry below the root folder, stored or deflated, of at most so many bytes; none if it is not there, is
    /// longer, or is broken.
    pub(crate) fn text(&self, name: &str, most: usize) -> Option<String> {
        let name = format!("{}{name}", self.root);
        let entry = self.entries.get(&name)?;
        let len = usize::try_from(entry.len).ok().filter(|len| *len <= most)?;
        let take = |len: u64| {
            let range = self.lies(&name, entry, len).ok()?;
            Bytes::new(self.file, range.start, range.end).take(len).ok()
        };
        let bytes = match entry.packed {
            Packed::Stored => take(entry.len)?,
            Packed::Deflated(compressed) => {
                decompress_to_vec_with_limit(&take(compressed)?, len).ok()?
            }
            Packed::Otherwise => return None,
        };
        String::from_utf8(bytes)
            .ok()
            .filter(|text| text.len() == len)
    }

    /// The bytes of a short entry below the root folder, if it is there.
    pub(crate) fn short(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        const SHORT: u64 = 1 << 20;
        if !self.has(name) {
            return Ok(None);
        }
        let range = self.range(name)?;
        if range.end - range.start > SHORT {
            return Err(format!(
                "{} in it has more than {SHORT} bytes",
                quoted(name)
            ));
        }
        Bytes::new(self.file, range.start, range.end)
            .take(range.end - range.start)
            .map(Some)
    }
}

/// Finds the directory by the record at the end: where it is and how many entries it has.
fn find_directory(file: &File, file_len: u64) -> Result<(Range<u64>, u64), String> {
    let tail_at = file_len.saturating_sub(END_LEN + u64::from(u16::MAX));
    let tail = Bytes::new(file, tail_at, file_len).take(file_len - tail_at)?;
    let is_end = |at: &usize| {
        let comment = tail[*at + 20..]
            .first_chunk()
            .map(|len| usize::from(u16::from_le_bytes(*len)));
        tail[*at..].starts_with(&END)
            && comment.is_some_and(|len| at + END_LEN as usize + len == tail.len())
    };
    let starts = 0..(tail.len() + 1).saturating_sub(END_LEN as usize);
    let end = starts.rev().find(is_end);
    let end = end.ok_or(
        "it begins like a zip archive and has no directory at its end; it may have been cut off",
    )?;
    let end_at = tail_at + end as u64;
    let mut record = Bytes::new(file, end_at + 10, file_len);
    let mut count = u64::from(u16::from_le_bytes(record.array()?));
    let mut len = u64::from(u32::from_le_bytes(record.array()?));
    let mut at = u64::from(u32::from_le_bytes(record.array()?));
    if let Some(locator_at) = end_at.checked_sub(LOCATOR_LEN) {
        let mut locator = Bytes::new(file, locator_at, end_at);
        if u32::from_le_bytes(locator.array()?) == LOCATOR_64 {
            locator.skip(4)?;
            let record_at = u64::from_le_bytes(locator.array()?).min(locator_at);
            let mut record = Bytes::new(file, record_at, locator_at);
            if u32::from_le_bytes(record.array()?) != END_64 {
                return Err(
                    "the 64-bit record of its directory is not where it should be".to_owned(),
                );
            }
            record.skip(28)?;
            count = u64::from_le_bytes(record.array()?);
            len = u64::from_le_bytes(record.array()?);
            at = u64::from_le_bytes(record.array()?);
        }
    }
    let end = at
        .checked_add(len)
        .filter(|end| *end <= end_at && len <= LONGEST_DIRECTORY);
    let end = end.ok_or("its directory lies outside of the file or is longer than any")?;
    Ok((at..end, count))
}

fn read_entry(bytes: &mut Bytes<'_>) -> Result<(String, Entry), String> {
    let header: [u8; 46] = bytes.array()?;
    let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let long = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if long(0) != ENTRY {
        return Err("an entry does not begin like one".to_owned());
    }
    let name = bytes.take(short(28).into())?;
    let extra = bytes.take(short(30).into())?;
    bytes.skip(short(32).into())?;
    let [mut len, mut compressed, mut header_at] = [long(24), long(20), long(42)].map(u64::from);
    // What does not fit into 32 bits stands in an extra field, in this order.
    let mut wide = extra_field(&extra, 1).unwrap_or(&[]);
    for value in [&mut len, &mut compressed, &mut header_at] {
        if *value == u64::from(u32::MAX) {
            let (bytes, rest) = wide
                .split_first_chunk()
                .ok_or("a 64-bit length is missing")?;
            *value = u64::from_le_bytes(*bytes);
            wide = rest;
        }
    }
    let encrypted = short(8) & 1 != 0;
    let packed = match short(10) {
        0 if !encrypted && len == compressed => Packed::Stored,
        8 if !encrypted => Packed::Deflated(compressed),
        _ => Packed::Otherwise,
    };
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok((
        name,
        Entry {
            header_at,
            len,
            packed,
        },
    ))
}

fn extra_field(mut extra: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (header, rest) = extra.split_first_chunk::<4>()?;
        let id = u16::from_le_bytes([header[0], header[1]]);
        let len = usize::from(u16::from_le_bytes([header[2], header[3]]));
        let (field, rest) = rest.split_at_checked(len)?;
        if id == wanted {
            return Some(field);
        }
        extra = rest;
    }
}
