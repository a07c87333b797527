//! A file of `torch.save` → its tensors: whatever the bytes, opening, planning and reading end in a result or an error, and the
//! memory for it is bounded.
//!
//! The first byte tells how the rest is taken: as the pickle of an archive, beside a storage of zeros; as the pickles of a stream
//! from before PyTorch 1.6; or as a whole file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use repfuse::plan::{self, Options};
use repfuse::recipe::{self, Recipe};
use repfuse::tensor::Checkpoint;

static RECIPES: LazyLock<Vec<Recipe>> =
    LazyLock::new(|| recipe::builtin().expect("the built-in recipes"));

static FILE: LazyLock<tempfile::NamedTempFile> =
    LazyLock::new(|| tempfile::NamedTempFile::new().expect("a file"));

/// As many bytes of a tensor are read.
const MOST: u64 = 1 << 16;

/// The bytes of the storage `0` in an archive.
const STORAGE: usize = 1 << 12;

/// What a stream begins with: a magic number and a version, each pickled by itself.
const STREAM: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";

/// An archive of stored entries. Its sums are not looked at.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let at = file.len() as u32;
        let len = (bytes.len() as u32).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        let fields = [&[0; 12][..], &len, &len, &name_len, &[0; 2]].concat();
        file.extend([&b"PK\x03\x04\0\0"[..], &fields[..], name.as_bytes(), bytes].concat());
        directory.extend([&b"PK\x01\x02\0\0\0\0"[..], &fields[..], &[0; 10]].concat());
        directory.extend([&at.to_le_bytes()[..], name.as_bytes()].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let [at, len] = [file.len(), directory.len()].map(|n| (n as u32).to_le_bytes());
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &len, &at, &[0; 2]].concat();
    [file, directory, end].concat()
}

fuzz_target!(|input: &[u8]| {
    let Some((how, bytes)) = input.split_first() else {
        return;
    };
    let file = match how % 3 {
        0 => archive(&[
            ("a/data.pkl", bytes),
            ("a/data/0", &[0; STORAGE]),
            ("a/version", b"3\n"),
        ]),
        1 => [STREAM, bytes].concat(),
        _ => bytes.to_vec(),
    };
    std::fs::write(FILE.path(), file).expect("room");
    let Ok(checkpoint) = Checkpoint::open(FILE.path()) else {
        return;
    };
    for (path, module) in checkpoint.facts().modules() {
        assert!(path.len() as u64 <= 1 << 16, "{}", module.class);
    }
    for recipe in RECIPES.iter() {
        let _ = plan::plan(checkpoint.tensors(), recipe, &Options::default());
    }
    for tensor in checkpoint.tensors().values() {
        let len = tensor.byte_len().min(MOST) as usize;
        let _ = checkpoint.read_at(tensor, 0, &mut vec![0; len]);
    }
});
