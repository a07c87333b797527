//! Pickled modules, TorchScript, the oldest forms, and what stands beside a state dict.
//!
//! `fixtures/generate_pickles.py` makes `fixtures/pickles` with PyTorch and ultralytics.

use std::path::{Path, PathBuf};

use repfuse::tensor::Checkpoint;
use repfuse::tensor::facts::Attribute;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/pickles")
        .join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(fixture(name)).expect(name)
}

/// A file holds the tensors of another one and no others, byte for byte.
fn assert_same(name: &str, expected: &str) {
    let (got, want) = (open(name), open(expected));
    let names = |file: &Checkpoint| file.tensors().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&got), names(&want), "{name}");
    for (tensor, other) in got.tensors().values().zip(want.tensors().values()) {
        assert_eq!(
            (tensor.dtype(), tensor.shape()),
            (other.dtype(), other.shape()),
            "{name}: {tensor}"
        );
        let bytes = |file: &Checkpoint, tensor| {
            let mut bytes = vec![0; other.byte_len() as usize];
            file.read_at(tensor, 0, &mut bytes).expect("bytes");
            bytes
        };
        assert_eq!(bytes(&got, tensor), bytes(&want, other), "{name}: {tensor}");
    }
}

#[test]
fn every_form_has_the_tensors_of_the_module() {
    for name in [
        "block.pt",
        "channels_last.pt",
        "averaged.pt",
        "protocol1.pt",
        "tar.pt",
        "beside.pt",
        "beside_protocol4.pt",
    ] {
        assert_same(name, "block.safetensors");
    }
    assert_same("yolo.pt", "yolo.safetensors");
}

/// TorchScript compresses its code and stores its tensors. Its modules do not tell which of their buffers are persistent.
#[test]
fn torchscript_is_read() {
    for name in ["scripted.pt", "traced.pt"] {
        let (file, want) = (open(name), open("block.safetensors"));
        for (tensor, other) in want.tensors() {
            let found = file
                .get(tensor)
                .unwrap_or_else(|| panic!("{name}: {tensor}"));
            assert_eq!(found.shape(), other.shape());
            let read = |file: &Checkpoint, of| {
                let mut bytes = vec![0; other.byte_len() as usize];
                file.read_at(of, 0, &mut bytes).expect("bytes");
                bytes
            };
            assert_eq!(read(&file, found), read(&want, other), "{name}: {tensor}");
        }
        let norm = file
            .facts()
            .module("stage0.rbr_identity")
            .expect("a module");
        assert_eq!(
            norm.class, "torch.nn.modules.batchnorm.BatchNorm2d",
            "{name}"
        );
    }
}

#[test]
fn a_pickled_module_tells_what_its_parts_are() {
    let facts = open("block.pt").facts().clone();
    let conv = facts.module("stage0.rbr_dense.conv").expect("a conv");
    assert_eq!(conv.class, "torch.nn.modules.conv.Conv2d");
    assert_eq!(conv.count("groups"), Some(2));
    for (name, expected) in [
        ("stride", [1, 1]),
        ("padding", [1, 1]),
        ("dilation", [1, 1]),
    ] {
        assert_eq!(conv.counts(name), Some(expected.to_vec()), "{name}");
    }
    assert_eq!(conv.flag("transposed"), Some(false));
    assert_eq!(
        conv.attributes.get("padding_mode"),
        Some(&Attribute::Text("zeros".to_owned()))
    );
    let norm = facts.module("stage0.rbr_1x1.bn").expect("a norm");
    assert_eq!(norm.number("eps"), Some(1e-3));
    assert_eq!(norm.flag("training"), Some(false));
    assert_eq!(
        facts.module("stage0").expect("a block").class,
        "__main__.Block"
    );
    assert!(facts.module("").is_some());
    // A state dict tells nothing.
    assert!(open("channels_last.pt").facts().is_empty());
}

#[test]
fn what_stands_beside_a_state_dict_is_known() {
    let file = open("averaged.pt");
    let wrapping = file.wrapping().expect("a wrapped state dict");
    assert_eq!(wrapping.key.as_deref(), Some("state_dict"));
    assert_eq!(wrapping.others, ["state_dict_ema"]);
    let averaged = Checkpoint::open_key(fixture("averaged.pt"), Some("state_dict_ema"));
    let averaged = averaged.expect("the average");
    assert_eq!(averaged.wrapping().expect("wrapped").others, ["state_dict"]);
}

/// What is no plain tensor has a name, and is refused where its numbers are asked for.
#[test]
fn tensors_of_other_kinds_are_refused_where_they_are_needed() {
    let file = open("quantized.pt");
    let tensor = file.get("lost").expect("the quantized tensor");
    let what = "is what PyTorch's `torch._utils._rebuild_qtensor` makes: a tensor without plain numbers (qtensor); save `tensor.dequantize()` in its place";
    assert_eq!(tensor.unread(), Some(what));
    assert_eq!(tensor.shape(), [2]);
    let error = file
        .read_at(tensor, 0, &mut [0; 4])
        .expect_err("no numbers");
    assert_eq!(error.to_string(), format!("`lost` {what}"));
}
