//! A recipe → a plan: whatever the text, reading it and planning files by it end in a result or an error, and what is
//! planned folds to what it does branch by branch.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use repfuse::recipe;
use repfuse::plan::{self, Options};
use repfuse::tensor::Checkpoint;
use repfuse::verify::{self, Deployed};

/// The smallest file of each family among the fixtures.
static FILES: LazyLock<Vec<Checkpoint>> = LazyLock::new(|| {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let mut files = Vec::new();
    for family in std::fs::read_dir(fixtures).expect("fixtures").flatten() {
        let Ok(entries) = std::fs::read_dir(family.path()) else {
            continue;
        };
        let trained = |path: &PathBuf| path.to_string_lossy().ends_with(".train.safetensors");
        let paths = entries.flatten().map(|entry| entry.path());
        let size = |path: &PathBuf| path.metadata().map_or(u64::MAX, |m| m.len());
        let smallest = paths.filter(trained).min_by_key(size);
        files.extend(smallest.and_then(|path| Checkpoint::open(path).ok()));
    }
    assert!(files.len() > 5, "fixtures to plan");
    files
});

/// Blocks beyond this are planned only: verifying them takes longer than a fuzzer waits.
const MOST_WORK: usize = 1 << 14;

fuzz_target!(|text: &str| {
    let Ok(recipe) = recipe::parse(text, "fuzz.json") else {
        return;
    };
    for file in FILES.iter() {
        let _ = recipe::found_in(&recipe, file.tensors());
        let Ok(plan) = plan::plan(file.tensors(), &recipe, &Options::default()) else {
            continue;
        };
        let convs = plan.blocks().iter().flat_map(|block| block.fused());
        let work: usize = convs
            .map(|f| f.geometry().out() * f.geometry().row_len())
            .sum();
        if work > MOST_WORK {
            continue;
        }
        let verdict = verify::verify(file, &plan, Deployed::InMemory, &verify::Options::default());
        if let Ok(verdict) = verdict {
            assert!(verdict.accepted(), "{:?}", verdict.blocks);
        }
    }
});
