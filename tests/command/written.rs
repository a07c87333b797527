//! What is written: the format that the name of OUT promises, and whole files in one type.
//!
//! `fixtures/check_pytorch.py` shows that PyTorch reads such files.

use std::path::{Path, PathBuf};

use crate::support::forge::File;
use crate::support::tiny::Tiny;
use repfuse::tensor::{Checkpoint, Plain};
use safetensors::Dtype;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// Both hold the same tensors, byte for byte.
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    let names = |file: &Checkpoint| file.tensors().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
    for (one, other) in a.tensors().values().zip(b.tensors().values()) {
        assert_eq!(
            (one.dtype(), one.shape()),
            (other.dtype(), other.shape()),
            "{one}"
        );
        let bytes = |file: &Checkpoint, tensor| {
            let mut bytes = vec![0; one.byte_len() as usize];
            file.read_at(tensor, 0, &mut bytes).expect("bytes");
            bytes
        };
        assert_eq!(bytes(a, one), bytes(b, other), "{one}");
    }
}

#[test]
fn a_pytorch_name_makes_a_pytorch_file() {
    let tiny = Tiny::network();
    for name in ["out.pt", "out.pth", "out.bin", "out.ckpt"] {
        for more in [&["--verify"][..], &["--dtype", "f16", "--threads", "3"]] {
            let fuse = |out: &str| {
                tiny.prints(&[&["fuse", "train.safetensors", out, "--force"], more].concat())
            };
            fuse(name);
            fuse("out.safetensors");
            let [pytorch, safetensors] = [name, "out.safetensors"]
                .map(|name| Checkpoint::open(tiny.path(name)).expect(name));
            assert_same(&pytorch, &safetensors);
            assert_eq!(pytorch.metadata(), safetensors.metadata());
            assert_eq!(pytorch.unwrapped(), None);
        }
    }
    let verified = tiny.run(&["verify", "train.safetensors", "out.pth"]);
    assert_eq!(verified.status, 0, "{}", verified.stdout);
    // A tensor that differs is seen.
    let mut bytes = std::fs::read(tiny.path("out.pth")).unwrap();
    let weight = Checkpoint::open(tiny.path("out.pth")).unwrap();
    let weight = weight.get("linear.weight").unwrap().place().clone();
    let repfuse::tensor::Place::InFile { offset, .. } = weight else {
        panic!("{weight:?}");
    };
    assert_eq!(offset % 64, 0);
    bytes[offset as usize] ^= 1;
    std::fs::write(tiny.path("other.pth"), bytes).unwrap();
    let verified = tiny.run(&["verify", "train.safetensors", "other.pth"]);
    assert_eq!(verified.status, 1, "{}", verified.stdout);
}

#[test]
fn what_is_plain_around_the_state_dict_stays() {
    let tiny = Tiny::empty();
    let before = fixture("pickles/beside.pt");
    let ran = tiny.run(&["fuse", before.to_str().unwrap(), "out.pt", "--verify"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let [before, after] = [before, tiny.path("out.pt")].map(|path| Checkpoint::open(path).unwrap());
    assert_eq!(after.unwrapped(), Some("state_dict"));
    let [before, after] = [&before, &after].map(|file| file.wrapping().unwrap());
    assert_eq!(before.plain, after.plain);
    assert!(after.left_out.is_empty() && !before.left_out.is_empty());
    let Plain::Dict(items) = &after.plain else {
        panic!("{:?}", after.plain);
    };
    assert!(items.contains(&(Plain::Text("epoch".to_owned()), Plain::Integer(3))));
    // A whole module becomes a state dict with its plain attributes beside it.
    let yolo = fixture("pickles/yolo.pt");
    let ran = tiny.run(&["fuse", yolo.to_str().unwrap(), "yolo.pt", "--verify"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let yolo = Checkpoint::open(tiny.path("yolo.pt")).unwrap();
    assert_eq!(yolo.unwrapped(), Some("model"));
    assert!(yolo.get("model.0.conv.bias").is_some());
}

#[test]
fn a_name_that_promises_another_format_is_refused() {
    let tiny = Tiny::network();
    for (name, is) in [
        ("out.onnx", "an ONNX model"),
        ("out.pt2", "a program of torch.export"),
        ("out.gguf", "a GGUF file"),
        ("out.h5", "an HDF5 file"),
        ("out.npz", "an archive of NumPy arrays"),
        ("out.pb", "a TensorFlow file"),
        ("out.tflite", "a TensorFlow Lite model"),
        ("out.msgpack", "a file of Flax"),
        ("out.mlmodel", "a Core ML model"),
        ("out.gz", "a compressed file"),
        ("out.ptl", "a program of PyTorch Mobile"),
        ("out.pte", "an ExecuTorch program"),
        ("out.engine", "a TensorRT engine"),
        ("out.py", "a Python program"),
        ("out.json", "a JSON file"),
    ] {
        let ran = tiny.run(&["fuse", "train.safetensors", name]);
        let expected = format!(
            "repfuse: `{name}` is the name of {is}; a state dict is written as `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`\n"
        );
        assert_eq!((ran.status, ran.stderr), (2, expected));
        assert!(!tiny.path(name).exists());
    }
    let ran = tiny.run(&[
        "fuse",
        "train.safetensors",
        "out.pth",
        "--shard-size",
        "1KB",
        "--bn-eps",
        "1e-5",
    ]);
    let expected = "repfuse: `out.pth` is the name of a PyTorch file, and shards are written as safetensors; choose a name that ends in \
                    `.safetensors`\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (2, expected));
    // A type that PyTorch does not have.
    let mut tiny = Tiny::network();
    let linear = tiny.file.at("linear.weight");
    (linear.dtype, linear.shape) = (Dtype::F4, vec![10, 32]);
    tiny.write();
    let ran = tiny.run(&["fuse", "train.safetensors", "out.pth", "--bn-eps", "1e-5"]);
    let expected = "repfuse: `out.pth` cannot be written as a PyTorch file: `linear.weight` is F4, a type that PyTorch's files do not \
                    have; choose a name that ends in `.safetensors`\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (2, expected));
    assert_eq!(
        tiny.run(&["fuse", "train.safetensors", "out.safetensors"])
            .status,
        0
    );
}

#[test]
fn a_whole_file_in_half() {
    let tiny = Tiny::network();
    tiny.prints(&[
        "fuse",
        "train.safetensors",
        "half.safetensors",
        "--dtype-all",
        "f16",
        "--verify",
    ]);
    let half = File::read(&tiny.path("half.safetensors"));
    assert!(
        half.tensors
            .values()
            .all(|tensor| tensor.dtype == Dtype::F16)
    );
    let said = tiny.prints(&["verify", "train.safetensors", "half.safetensors"]);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "0 tensors copied, 2 copied tensors rounded once to the file's type";
    assert!(said.contains(expected), "{said}");
    // One number off, and one tensor of another type than the rest.
    let mut other = half.clone();
    other.at("linear.bias").bytes[0] ^= 1;
    other.write(&tiny.path("other.safetensors"));
    let ran = tiny.run(&["verify", "train.safetensors", "other.safetensors"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stdout
            .starts_with("NOT equivalent: `linear.bias[0]` is ")
            && ran.stdout.contains(", its copy in f16\n"),
        "{}",
        ran.stdout
    );
    tiny.prints(&["fuse", "train.safetensors", "single.safetensors"]);
    let mut mixed = File::read(&tiny.path("single.safetensors"));
    let bias = half.tensors["linear.bias"].clone();
    mixed.tensors.insert("linear.bias".to_owned(), bias);
    mixed.write(&tiny.path("mixed.safetensors"));
    let ran = tiny.run(&["verify", "train.safetensors", "mixed.safetensors"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stdout.contains("it was F32 [5], and is to be copied"),
        "{}",
        ran.stdout
    );
    // What is finite stays so.
    let mut large = Tiny::network();
    large.file.at("linear.bias").edit(|bias| bias[3] = 1e5);
    large.write();
    let ran = large.run(&[
        "fuse",
        "train.safetensors",
        "out.safetensors",
        "--dtype-all",
        "f16",
        "--bn-eps",
        "1e-5",
    ]);
    let expected = "repfuse: `linear.bias` is 1.0000e5 at [3], beyond the largest f16, 6.5504e4; store only the fused tensors in f16\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (2, expected));
    large.prints(&[
        "fuse",
        "train.safetensors",
        "out.safetensors",
        "--dtype",
        "f16",
    ]);
}
