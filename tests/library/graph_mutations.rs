//! Whatever is changed in a file with a graph: it is refused, or what is made of it is proved.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::support::Random;
use crate::support::file::files_below;
use crate::support::fixtures::fixtures;
use repfuse::graph::GraphFile;
use repfuse::plan::Options;
use repfuse::{fuse, verify};

/// Changes of one fixture. `MUTATIONS=10000` tries as many.
const CHANGES: u64 = 12;

/// One change, or a few: bytes of another value, bytes that are gone, bytes that are there twice, an end that is missing.
fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let len = bytes.len();
        let at = random.below(len);
        let some = 1 + random.below((len - at).min(40));
        match random.below(6) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'9'][random.below(6)],
            3 => drop(bytes.drain(at..at + some)),
            4 => {
                let again = bytes[at..at + some].to_vec();
                bytes.splice(at..at, again);
            }
            _ if random.below(4) == 0 => bytes.truncate(at),
            _ => {
                let other = random.below(len);
                bytes.swap(at, other);
            }
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Whether the file was taken.
fn tried(from: &Path, to: &Path, even_if_dearer: bool) -> Result<bool, String> {
    let Ok(Some(file)) = GraphFile::open(from) else {
        return Ok(false);
    };
    let Ok(folded) = file.fold(&Options::default(), even_if_dearer) else {
        return Ok(false);
    };
    let options = fuse::Options {
        replace: true,
        threads: Some(1),
        ..fuse::Options::default()
    };
    // Numbers that are not finite, and locations of data that is not there.
    let Ok(written) = folded.write(to, &options, &|_| ControlFlow::Continue(())) else {
        return Ok(false);
    };
    let verdict = folded
        .verify_written(&written, &verify::Options::default())
        .map_err(|e| format!("what was made of it cannot be read: {e}"))?;
    match verdict.accepted() {
        true => Ok(true),
        false => Err(format!("{:?}", verdict.failures)),
    }
}

#[test]
fn a_changed_graph_is_refused_or_folded_right() {
    let place = tempfile::tempdir().unwrap();
    let changes = std::env::var("MUTATIONS").map_or(CHANGES, |n| n.parse().unwrap());
    let (mut taken, mut refused, mut wrong) = (0, 0, Vec::new());
    let mut files: Vec<PathBuf> = files_below(&fixtures().join("onnx"), "onnx");
    files.extend(files_below(&fixtures().join("pt2"), "pt2"));
    files.sort();
    assert!(files.len() >= 60, "{}", files.len());
    for (number, file) in files.iter().enumerate() {
        let original = std::fs::read(file).unwrap();
        let name = file.file_name().unwrap();
        for seed in 0..changes {
            let mut random = Random(seed * 1000 + number as u64);
            let mut bytes = original.clone();
            change(&mut bytes, &mut random);
            let from = place.path().join(name);
            std::fs::write(&from, &bytes).unwrap();
            match tried(&from, &place.path().join("out"), seed % 3 == 0) {
                Ok(true) => taken += 1,
                Ok(false) => refused += 1,
                Err(why) => wrong.push(format!("{} {seed}: {why}", file.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Both must happen, or nothing was asked.
    assert!(
        taken > 50 && refused > 50,
        "{taken} taken, {refused} refused"
    );
}
