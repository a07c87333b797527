//! Archives that are nearly what PyTorch writes.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// The entries of an archive, in their order.
pub fn entries(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut out = Vec::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let name = entry.name().expect("a name").into_owned();
        out.push((name, bytes));
    }
    out
}

/// An archive of stored entries.
pub fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        writer.start_file(name.as_str(), options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A copy of a program with some entries changed: `change` is given each name below the root folder and its text.
pub fn changed(from: &Path, to: &Path, change: impl Fn(&str, &str) -> Option<String>) {
    let mut all = entries(from);
    for (name, bytes) in &mut all {
        let below = name.split_once('/').unwrap().1;
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Some(new) = change(below, text)
        {
            *bytes = new.into_bytes();
        }
    }
    std::fs::write(to, archive(&all)).unwrap();
}
