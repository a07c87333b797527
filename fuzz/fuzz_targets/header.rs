//! A file → a plan: whatever the bytes, opening, planning, inspecting and reading end in a result or an error.
//!
//! The first byte tells how the rest is taken: as a header, to which as many zeros are added as it asks for; or, if it
//! is odd, as a whole file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use repfuse::fuse::diagnose;
use repfuse::plan::{self, Options};
use repfuse::recipe::{self, Recipe};
use repfuse::tensor::Checkpoint;
use repfuse::summary::inspect;
use serde_json::Value;

static RECIPES: LazyLock<Vec<Recipe>> =
    LazyLock::new(|| recipe::builtin().expect("the built-in recipes"));

static FILE: LazyLock<tempfile::NamedTempFile> =
    LazyLock::new(|| tempfile::NamedTempFile::new().expect("a file"));

/// More data than this is not written for a header that asks for it.
const MOST: u64 = 1 << 16;

/// The bytes that a header asks for.
fn wanted(header: &[u8]) -> usize {
    let json: Value = serde_json::from_slice(header).unwrap_or_default();
    let tensors = json.as_object().into_iter().flat_map(|map| map.values());
    let ends = tensors.filter_map(|about| about["data_offsets"][1].as_u64());
    ends.filter(|end| *end <= MOST).max().unwrap_or_default() as usize
}

fuzz_target!(|input: &[u8]| {
    let Some((how, bytes)) = input.split_first() else {
        return;
    };
    let file = match how % 2 {
        0 => {
            let mut file = (bytes.len() as u64).to_le_bytes().to_vec();
            file.extend(bytes);
            file.resize(file.len() + wanted(bytes), 0);
            file
        }
        _ => bytes.to_vec(),
    };
    std::fs::write(FILE.path(), file).expect("room");
    let Ok(checkpoint) = Checkpoint::open(FILE.path()) else {
        return;
    };
    let _ = inspect::inspect(&checkpoint, None, &Options::default());
    for recipe in RECIPES.iter() {
        if let Ok(plan) = plan::plan(checkpoint.tensors(), recipe, &Options::default()) {
            let _ = diagnose::check_norms(&checkpoint, &plan);
        }
    }
    for tensor in checkpoint.tensors().values() {
        let len = tensor.byte_len().min(MOST) as usize;
        let _ = checkpoint.read_at(tensor, 0, &mut vec![0; len]);
    }
});
