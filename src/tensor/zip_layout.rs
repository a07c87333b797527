//! Where every entry of a new archive goes, known before the first byte is written, and the records around them.
//!
//! Entries are stored as they are and begin at multiples of 64, as in the archives of PyTorch, which maps them into memory.

use std::ops::Range;

const ENTRY: &[u8; 4] = b"PK\x03\x04";
const DIRECTORY_ENTRY: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const END_64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR_64: &[u8; 4] = b"PK\x06\x07";

/// Where the bytes of an entry begin is a multiple of this.
const ALIGNED: u64 = 64;

/// What stands in a field of 32 bits whose number stands in a field of 64.
const WIDE: u32 = u32::MAX;

/// An archive of entries with these names and lengths.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZipLayout {
    entries: Vec<Entry>,
    directory_at: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    name: String,
    header_at: u64,
    data: Range<u64>,
}

impl ZipLayout {
    /// Lays entries out in this order.
    pub(crate) fn new(entries: Vec<(String, u64)>) -> ZipLayout {
        let mut at = 0;
        let entries = entries.into_iter().map(|(name, len)| {
            let header_at = at;
            let fixed = 30 + name.len() as u64 + if is_wide(len) { 20 } else { 0 };
            // The field that fills the gap has four bytes at least.
            let start = (header_at + fixed + 4).next_multiple_of(ALIGNED);
            at = start + len;
            Entry {
                name,
                header_at,
                data: start..at,
            }
        });
        let entries = entries.collect();
        ZipLayout {
            entries,
            directory_at: at,
        }
    }

    /// Where the bytes of the `i`-th entry go.
    pub(crate) fn data(&self, i: usize) -> Range<u64> {
        self.entries[i].data.clone()
    }

    /// What stands before the bytes of the `i`-th entry, and where it begins.
    pub(crate) fn header(&self, i: usize, crc: u32) -> (u64, Vec<u8>) {
        let entry = &self.entries[i];
        let len = entry.data.end - entry.data.start;
        let wide = is_wide(len);
        let mut out = ENTRY.to_vec();
        shorts(&mut out, [version(wide), 1 << 11, 0, 0, 0]);
        longs(&mut out, [crc, narrow(len), narrow(len)]);
        let gap = entry.data.start - entry.header_at - 30 - entry.name.len() as u64;
        shorts(&mut out, [entry.name.len() as u16, gap as u16]);
        out.extend_from_slice(entry.name.as_bytes());
        if wide {
            shorts(&mut out, [1, 16]);
            out.extend([len, len].into_iter().flat_map(u64::to_le_bytes));
        }
        // As PyTorch fills it.
        let left = entry.data.start - entry.header_at - out.len() as u64 - 4;
        out.extend_from_slice(b"FB");
        shorts(&mut out, [left as u16]);
        out.resize(out.len() + left as usize, b'Z');
        (entry.header_at, out)
    }

    /// The directory, which stands at the end of the file, and where it begins.
    pub(crate) fn directory(&self, crcs: &[u32]) -> (u64, Vec<u8>) {
        let mut out = Vec::new();
        for (entry, crc) in self.entries.iter().zip(crcs) {
            let len = entry.data.end - entry.data.start;
            let mut extra = Vec::new();
            if is_wide(len) {
                extra.extend([len, len].into_iter().flat_map(u64::to_le_bytes));
            }
            if is_wide(entry.header_at) {
                extra.extend(entry.header_at.to_le_bytes());
            }
            let wide = !extra.is_empty();
            out.extend_from_slice(DIRECTORY_ENTRY);
            shorts(&mut out, [version(wide), version(wide), 1 << 11, 0, 0, 0]);
            longs(&mut out, [*crc, narrow(len), narrow(len)]);
            let extra_len = extra.len() + if wide { 4 } else { 0 };
            shorts(
                &mut out,
                [entry.name.len() as u16, extra_len as u16, 0, 0, 0],
            );
            longs(&mut out, [0, narrow(entry.header_at)]);
            out.extend_from_slice(entry.name.as_bytes());
            if wide {
                shorts(&mut out, [1, extra.len() as u16]);
                out.extend(extra);
            }
        }
        self.end(&mut out);
        (self.directory_at, out)
    }

    /// The records behind the directory.
    fn end(&self, out: &mut Vec<u8>) {
        let (count, at, len) = (
            self.entries.len() as u64,
            self.directory_at,
            out.len() as u64,
        );
        let wide = count >= u64::from(u16::MAX) || is_wide(at) || is_wide(len);
        if wide {
            out.extend_from_slice(END_64);
            out.extend(44u64.to_le_bytes());
            shorts(out, [version(true), version(true)]);
            longs(out, [0, 0]);
            out.extend(
                [count, count, len, at]
                    .into_iter()
                    .flat_map(u64::to_le_bytes),
            );
            out.extend_from_slice(LOCATOR_64);
            longs(out, [0]);
            out.extend((at + len).to_le_bytes());
            longs(out, [1]);
        }
        let short = u16::try_from(count).unwrap_or(u16::MAX);
        out.extend_from_slice(END);
        shorts(out, [0, 0, short, short]);
        longs(out, [narrow(len), narrow(at)]);
        shorts(out, [0]);
    }

    /// The size of the whole file.
    pub(crate) fn file_len(&self) -> u64 {
        let crcs = vec![0; self.entries.len()];
        let (at, directory) = self.directory(&crcs);
        at + directory.len() as u64
    }
}

fn is_wide(n: u64) -> bool {
    n >= u64::from(WIDE)
}

fn narrow(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(WIDE)
}

/// The version of the format that a reader needs.
fn version(wide: bool) -> u16 {
    if wide { 45 } else { 20 }
}

fn shorts<const N: usize>(out: &mut Vec<u8>, numbers: [u16; N]) {
    out.extend(numbers.into_iter().flat_map(u16::to_le_bytes));
}

fn longs<const N: usize>(out: &mut Vec<u8>, numbers: [u32; N]) {
    out.extend(numbers.into_iter().flat_map(u32::to_le_bytes));
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::ZipLayout;
    use crate::tensor::zip::Archive;

    #[test]
    fn an_archive_is_read_by_this_reader_and_by_another() {
        let contents: [(&str, &[u8]); 3] =
            [("a/b", b"one"), ("a/empty", b""), ("a/c/d", &[7; 1000])];
        let named = contents.map(|(name, bytes)| (name.to_owned(), bytes.len() as u64));
        let layout = ZipLayout::new(named.to_vec());
        let mut file = vec![0; layout.file_len() as usize];
        let mut put =
            |at: u64, bytes: &[u8]| file[at as usize..][..bytes.len()].copy_from_slice(bytes);
        let crcs = contents.map(|(_, bytes)| crc32fast::hash(bytes));
        for (i, (_, bytes)) in contents.iter().enumerate() {
            let (at, header) = layout.header(i, crcs[i]);
            assert_eq!(layout.data(i).start, at + header.len() as u64);
            assert_eq!(layout.data(i).start % 64, 0);
            put(at, &header);
            put(layout.data(i).start, bytes);
        }
        let (at, directory) = layout.directory(&crcs);
        put(at, &directory);
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(&file).unwrap();
        let opened = File::open(on_disk.path()).unwrap();
        let archive = Archive::open(&opened, file.len() as u64).unwrap();
        let mut other = zip::ZipArchive::new(std::io::Cursor::new(&file)).unwrap();
        for (i, (name, bytes)) in contents.iter().enumerate() {
            assert_eq!(
                archive.range(name.strip_prefix("a/").unwrap()).unwrap(),
                layout.data(i)
            );
            let mut read = Vec::new();
            other.by_name(name).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, *bytes);
        }
    }

    #[test]
    fn numbers_beyond_32_bits_are_kept() {
        let layout = ZipLayout::new(vec![
            ("a/large".to_owned(), 5 << 30),
            ("a/behind".to_owned(), 3),
        ]);
        let (at, directory) = layout.directory(&[1, 2]);
        // The file is as long as it would be, and its large entry a hole.
        let file = tempfile::tempfile().unwrap();
        file.set_len(layout.file_len()).unwrap();
        let write = |at: u64, bytes: &[u8]| {
            use std::io::{Seek, SeekFrom};
            let mut file = &file;
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(bytes).unwrap();
        };
        write(at, &directory);
        for i in 0..2 {
            let (at, header) = layout.header(i, 0);
            write(at, &header);
        }
        let archive = Archive::open(&file, layout.file_len()).unwrap();
        assert_eq!(archive.range("large").unwrap(), layout.data(0));
        assert_eq!(archive.range("behind").unwrap(), layout.data(1));
    }
}
