//! PyTorch's own files as input: what `torch.save` wrote in its many forms, and what strangers wrote.
//!
//! `fixtures/pytorch` holds one small network in every form, and the same tensors as safetensors.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::command;
use crate::support::forge::File;
use proptest::prelude::*;
use repfuse::tensor::Checkpoint;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/pytorch")
        .join(name)
}

/// Every tensor of the expected file is in `got`, with the same type, shape and bytes.
fn assert_holds(got: &Checkpoint, expected: &str, case: &str) {
    let expected = Checkpoint::open(fixture(expected)).expect("a checkpoint");
    for (name, want) in expected.tensors() {
        let tensor = got
            .get(name)
            .unwrap_or_else(|| panic!("{case}: `{name}` is missing"));
        assert_eq!(tensor.dtype(), want.dtype(), "{case}: {name}");
        assert_eq!(tensor.shape(), want.shape(), "{case}: {name}");
        let bytes = |checkpoint: &Checkpoint, tensor| {
            let mut bytes = vec![0; want.byte_len() as usize];
            checkpoint.read_at(tensor, 0, &mut bytes).expect("bytes");
            bytes
        };
        assert_eq!(bytes(got, tensor), bytes(&expected, want), "{case}: {name}");
    }
}

#[test]
fn every_form_gives_the_same_tensors() {
    let cases = [
        ("state_dict.pt", None),
        ("protocol4.pt", None),
        ("legacy.pt", None),
        ("wrapped.pt", Some("state_dict")),
        ("ema_module.pt", Some("ema.module")),
        ("module.pt", Some("model")),
    ];
    for (name, key) in cases {
        let file = Checkpoint::open(fixture(name)).expect(name);
        assert_eq!(file.unwrapped(), key, "{name}");
        assert_holds(&file, "expected.safetensors", name);
    }
    // Views share a storage, and some rows do not lie one after the other.
    let views = Checkpoint::open(fixture("views.pt")).expect("views");
    assert_holds(&views, "expected.safetensors", "views.pt");
    assert_eq!(
        views.get("other").expect("the other view").shape(),
        [4, 4, 3, 3]
    );
    assert_holds(
        &Checkpoint::open(fixture("types.pt")).expect("types"),
        "types.safetensors",
        "types.pt",
    );
}

#[test]
fn a_part_of_a_tensor_is_read_where_it_is() {
    let file = Checkpoint::open(fixture("views.pt")).expect("a checkpoint");
    let tensor = file
        .get("stage0.rbr_1x1.conv.weight")
        .expect("a tensor")
        .clone();
    let mut whole = vec![0; tensor.byte_len() as usize];
    file.read_at(&tensor, 0, &mut whole).expect("bytes");
    let mut part = [0; 12];
    file.read_at(&tensor, 20, &mut part).expect("bytes");
    assert_eq!(part, whole[20..32]);
}

fn run(args: &[&str], directory: &Path) -> Output {
    command::repfuse()
        .current_dir(directory)
        .args(args)
        .output()
        .expect("the command runs")
}

#[test]
fn fuse_verify_and_inspect_take_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let module = fixture("module.pt");
    let module = module.to_str().expect("UTF-8");
    let fused = run(
        &["fuse", module, "out.safetensors", "--verify"],
        directory.path(),
    );
    assert!(
        fused.status.success(),
        "{}",
        String::from_utf8_lossy(&fused.stderr)
    );
    let said = String::from_utf8_lossy(&fused.stderr);
    assert!(said.starts_with("repfuse: reading the state dict under `model`\n"));
    assert!(said.lines().all(|line| !line.contains("error")), "{said}");
    let written = File::read(&directory.path().join("out.safetensors"));
    let names: Vec<_> = written.tensors.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "linear.bias",
            "linear.weight",
            "stage0.rbr_reparam.bias",
            "stage0.rbr_reparam.weight"
        ]
    );
    assert_eq!(
        written.metadata.get("format").map(String::as_str),
        Some("pt")
    );
    let verified = run(
        &["verify", module, "out.safetensors", "--quiet"],
        directory.path(),
    );
    assert_eq!(verified.status.code(), Some(0));
    let inspected = run(&["inspect", module, "--json"], directory.path());
    let found: serde_json::Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    assert_eq!(
        (&found["recipe"], &found["form"]),
        (&"repvgg".into(), &"training".into())
    );
    // The same file as safetensors gives the same output, byte for byte.
    let expected = fixture("expected.safetensors");
    run(
        &[
            "fuse",
            expected.to_str().expect("UTF-8"),
            "same.safetensors",
            "-q",
        ],
        directory.path(),
    );
    let read = |name: &str| std::fs::read(directory.path().join(name)).expect("a file");
    assert_eq!(read("out.safetensors"), read("same.safetensors"));
}

#[test]
fn keys_are_chosen_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let two = fixture("two.pt");
    let two = two.to_str().expect("UTF-8");
    let refused = |args: &[&str]| {
        let output = run(args, directory.path());
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    assert_eq!(
        refused(&["inspect", two]),
        format!(
            "repfuse: `{two}` holds several state dicts, `model`, `ema`; choose one with --key\n"
        )
    );
    assert_eq!(
        refused(&["verify", two, two, "--key", "ema", "--quiet"]),
        format!(
            "repfuse: `{two}` holds several state dicts, `model`, `ema`; save the one to compare by itself\n"
        )
    );
    for args in [
        &["inspect", two, "--key", "ema"][..],
        &["recipes", "check", "ultralytics", two, "--key", "ema"],
    ] {
        let output = run(args, directory.path());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
    }
    assert!(
        refused(&["inspect", two, "--key", "nets"]).starts_with(&format!(
            "repfuse: `{two}` cannot be read as a PyTorch file: "
        ))
    );
    let expected = fixture("expected.safetensors");
    let expected = expected.to_str().expect("UTF-8");
    assert_eq!(
        refused(&["inspect", expected, "--key", "ema"]),
        format!(
            "repfuse: `{expected}` is a safetensors file, which has no keys; leave out --key `ema`\n"
        )
    );
}

fn refused(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file.pt");
    std::fs::write(&path, bytes).expect("a file");
    match Checkpoint::open(&path) {
        Ok(file) => panic!("read as {:?}", file.tensors()),
        Err(error) => error
            .to_string()
            .replace(path.to_str().expect("UTF-8"), "file.pt"),
    }
}

/// A pickle is data: what it asks to be called is not called.
#[test]
fn hostile_pickles_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mark = directory.path().join("executed");
    let command = format!("touch {}", mark.display());
    let mut system = b"\x80\x02cos\nsystem\nX".to_vec();
    system.extend((command.len() as u32).to_le_bytes());
    system.extend(command.as_bytes());
    system.extend(b"\x85R.");
    // Each list holds the one before it twice: 2^60 elements if they were copied.
    let mut bomb = b"\x80\x02]q\x00".to_vec();
    for i in 0..60u8 {
        bomb.extend([b']', b'q', i + 1, b'(', b'h', i, b'h', i, b'e']);
    }
    bomb.push(b'.');
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(std::iter::repeat_n(b']', 200_000));
    deep.extend(std::iter::repeat_n(b'a', 199_999));
    deep.push(b'.');
    let claims = b"\x80\x02X\xff\xff\xff\x7fabc".to_vec();
    let long = b"\x80\x02\x8b\xff\xff\xff\x7f\x01".to_vec();
    let cycle = b"\x80\x02]q\x00h\x00a.".to_vec();
    // A dict that holds itself under names without end.
    let endless = b"\x80\x02}q\x00U\x01ah\x00s.".to_vec();
    let list = "it has no tensor, where a list is; save a state dict: `torch.save(model.state_dict(), PATH)`";
    for (what, bytes, expected) in [
        (
            "system",
            system,
            "it has no tensor, where a `os.system` is; save a state dict: `torch.save(model.state_dict(), PATH)`",
        ),
        ("bomb", bomb, list),
        ("deep", deep, list),
        (
            "claims",
            claims,
            "it ends where 2147483647 more bytes are expected, after 3; where PyTorch reads it, save its state dict alone",
        ),
        (
            "long",
            long,
            "it has an integer of 2147483647 bytes; where PyTorch reads it, save its state dict alone",
        ),
        ("cycle", cycle, list),
        ("endless", endless, "it is nested more than 256 deep"),
    ] {
        assert_eq!(
            refused(&bytes),
            format!("`file.pt` cannot be read as a PyTorch file: {expected}"),
            "{what}"
        );
    }
    assert!(!mark.exists(), "the pickle's command was run");
    // A dict without a tensor is a pickle like any other; there is nothing to read in it.
    assert_eq!(
        refused(b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s."),
        "`file.pt` cannot be read as a PyTorch file: it has no tensor, where a dict is; save a state dict: `torch.save(model.state_dict(), PATH)`"
    );
}

/// A view can repeat one number as often as it says; what goes far beyond the file is not believed.
#[test]
fn repeated_numbers_are_bound_by_the_file() {
    let path = |name| fixture(name).display().to_string();
    let error = Checkpoint::open(path("expanded.pt")).expect_err("a claim of four gigabytes");
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` cannot be read as a PyTorch file: `a.weight` claims 4294967296 bytes; the file has 1584",
            path("expanded.pt")
        )
    );
    let file = Checkpoint::open(path("expanded_little.pt")).expect("four kilobytes");
    assert_eq!(file.get("a.weight").expect("a tensor").shape(), [1024, 1]);
}

fn string(text: &str) -> Vec<u8> {
    let len = (text.len() as u32).to_le_bytes();
    [b"X", &len[..], text.as_bytes()].concat()
}

/// An archive as `torch.save` writes it, of one number under a name.
fn archive(name: &str) -> Vec<u8> {
    use std::io::Write as _;
    let pickle = [
        b"\x80\x02}q\x00",
        &string(name)[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &string("storage"),
        b"ctorch\nFloatStorage\n",
        &string("0"),
        &string("cpu"),
        b"K\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (part, bytes) in [
        ("data.pkl", &pickle[..]),
        ("version", b"3\n"),
        ("data/0", &1f32.to_le_bytes()),
    ] {
        zip.start_file(format!("archive/{part}"), stored)
            .expect("a part");
        zip.write_all(bytes).expect("its bytes");
    }
    zip.finish().expect("an archive").into_inner()
}

/// What is read must be readable again when it has been written.
#[test]
fn names_are_as_long_as_they_may_be_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file.pt");
    let longest = "n".repeat(1 << 16);
    std::fs::write(&path, archive(&longest)).expect("a file");
    let file = Checkpoint::open(&path).expect("a checkpoint");
    assert_eq!(file.get(&longest).expect("a tensor").shape(), [1]);
    assert_eq!(
        refused(&archive(&(longest + "n"))),
        "`file.pt` cannot be read as a PyTorch file: a name has 65537 bytes and its tensor 1 dimensions; at most 65536 and 64 are read"
    );
    // Nested dicts make long names of a few long keys.
    let nested = |leaves: u32| {
        let mut pickle = b"\x80\x02".to_vec();
        for _ in 0..10 {
            pickle.extend([b"}", &string(&"k".repeat(60_000))[..]].concat());
        }
        pickle.push(b'}');
        for i in 0..leaves {
            pickle.extend([&string(&i.to_string())[..], b"K\x01s"].concat());
        }
        pickle.extend(b"s".repeat(10));
        pickle.push(b'.');
        pickle
    };
    let begin = "`file.pt` cannot be read as a PyTorch file: ";
    assert_eq!(
        refused(&nested(200)),
        format!("{begin}the names in it are longer than 100000000 bytes in all")
    );
    assert_eq!(
        refused(&nested(100)),
        format!(
            "{begin}it has no tensor, where a dict is; save a state dict: `torch.save(model.state_dict(), PATH)`"
        )
    );
}

/// A compressed part may become a thousand times as large as the file.
#[test]
fn archives_are_not_compressed() {
    let mut bytes = archive("a.weight");
    let central = bytes.windows(4).position(|w| w == b"PK\x01\x02");
    // The method of the first part, in both of its headers.
    for at in [8, central.expect("a directory") + 10] {
        assert_eq!(bytes[at], 0);
        bytes[at] = 8;
    }
    assert_eq!(
        refused(&bytes),
        "`file.pt` cannot be read as a PyTorch file: `archive/data.pkl` in it is compressed; torch.save stores what it writes as it is; where PyTorch reads it, save its state dict alone"
    );
}

/// A truncated archive, or one that is not one, is an error that names the file.
#[test]
fn broken_files_are_refused() {
    let whole = std::fs::read(fixture("state_dict.pt")).expect("a file");
    for cut in [30, whole.len() / 2, whole.len() - 1] {
        assert!(
            refused(&whole[..cut]).starts_with("`file.pt` cannot be read as a PyTorch file: "),
            "cut at {cut}"
        );
    }
    assert!(
        refused(b"PK\x03\x04 but nothing more")
            .starts_with("`file.pt` cannot be read as a PyTorch file: ")
    );
}

proptest! {
    /// Whatever is changed in a file, opening and reading it ends, with a result or an error.
    #[test]
    fn mutated_files_never_crash(form in 0usize..3, edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
        let name = ["state_dict.pt", "legacy.pt", "module.pt"][form];
        let mut bytes = std::fs::read(fixture(name)).expect("a file");
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file.pt");
        std::fs::write(&path, &bytes).expect("a file");
        if let Ok(file) = Checkpoint::open(&path) {
            for tensor in file.tensors().values() {
                let mut bytes = vec![0; tensor.byte_len().min(1 << 20) as usize];
                let _ = file.read_at(tensor, 0, &mut bytes);
            }
        }
    }
}
