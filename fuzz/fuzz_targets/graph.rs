//! A file with a graph in it → the folded file: whatever the bytes, the answer is an error, or a file that is proved.
#![no_main]

use std::ops::ControlFlow;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use repfuse::graph::GraphFile;
use repfuse::plan::Options;
use repfuse::{fuse, verify};

static PLACE: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|bytes: &[u8]| {
    let (from, to) = (PLACE.path().join("in"), PLACE.path().join("out"));
    std::fs::write(&from, bytes).expect("room");
    let Ok(Some(file)) = GraphFile::open(&from) else {
        return;
    };
    for even_if_dearer in [false, true] {
        let Ok(folded) = file.fold(&Options::default(), even_if_dearer) else {
            continue;
        };
        let options = fuse::Options {
            replace: true,
            threads: Some(1),
            ..fuse::Options::default()
        };
        let Ok(written) = folded.write(&to, &options, &|_| ControlFlow::Continue(())) else {
            continue;
        };
        let verdict = folded.verify_written(&written, &verify::Options::default());
        assert!(verdict.expect("what was written can be read").accepted());
    }
});
