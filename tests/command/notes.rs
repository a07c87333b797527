//! The snippet of the notes, end to end: `conv_2d(x) + conv_2d_pointwise(x) + x` as one conv.
//!
//! `fixtures/repconv/notes.maps.safetensors` holds maps `x` and what PyTorch's three branches make of them, with
//! `padding="same"`; the command fuses the three branches, and the one conv it writes must give the same maps.

use std::path::{Path, PathBuf};

use crate::support::command::repfuse;
use crate::support::forge::File;
use crate::support::{Array, InMemory};
use repfuse::algebra::forward::{Input, Maps, Reading, forward};
use repfuse::algebra::shape::resolve;
use repfuse::algebra::{Conv, Expr};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/repconv")
        .join(name)
}

fn array(file: &mut File, name: &str, label: &'static str) -> Array {
    let held = file.at(name);
    Array {
        label,
        shape: held.shape.clone(),
        data: held.values().into_iter().map(f64::from).collect(),
    }
}

/// `[maps, channels, h, w]` as the algebra's `[channels, maps, h, w]`, with zeros around: `padding="same"`.
fn padded(x: &Array) -> Maps {
    let [maps, channels, h, w] = x.shape[..] else {
        panic!("x is {:?}", x.shape)
    };
    let mut out = Maps::zeros(channels, maps, [1, h + 2, w + 2]);
    for (i, value) in x.data.iter().enumerate() {
        let (map, channel, y, x) = (
            i / (channels * h * w),
            i / (h * w) % channels,
            i / w % h,
            i % w,
        );
        out.data_mut()[((channel * maps + map) * (h + 2) + y + 1) * (w + 2) + x + 1] = *value;
    }
    out
}

#[test]
fn the_notes_end_to_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("deploy.safetensors");
    let run = repfuse()
        .args(["fuse", "--verify", "--quiet"])
        .args([&fixture("notes.train.safetensors"), &out])
        .output()
        .expect("the command runs");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );

    let mut fused = File::read(&out);
    let names: Vec<_> = fused.tensors.keys().cloned().collect();
    assert_eq!(
        names,
        ["conv_2d_for_fussion.bias", "conv_2d_for_fussion.weight"]
    );
    let conv = Conv {
        weight: array(&mut fused, "conv_2d_for_fussion.weight", "weight"),
        bias: Some(array(&mut fused, "conv_2d_for_fussion.bias", "bias")),
        dilation: [1; 3],
        groups: None,
        transposed: false,
        flipped: false,
        shared: false,
    };
    let conv = resolve(Expr::Conv(conv)).expect("a conv");

    let mut maps = File::read(&fixture("notes.maps.safetensors"));
    let (x, y) = (array(&mut maps, "x", "x"), array(&mut maps, "y", "y"));
    let [batch, channels, h, w] = y.shape[..] else {
        panic!("y is {:?}", y.shape)
    };
    let input = Input::Dense(padded(&x));
    let ours = forward(
        conv.root(),
        &input,
        0..channels,
        [1, h, w],
        Reading::Value,
        &mut InMemory,
    )
    .expect("maps that fit");
    assert_eq!(
        (ours.channels(), ours.maps(), ours.size()),
        (channels, batch, [1, h, w])
    );
    for (i, theirs) in y.data.iter().enumerate() {
        let (map, channel, pixel) = (i / (channels * h * w), i / (h * w) % channels, i % (h * w));
        let ours = ours.data()[(channel * batch + map) * h * w + pixel];
        assert!(
            (ours - theirs).abs() < 1e-6,
            "map {map}, channel {channel}, pixel {pixel}: {ours} and {theirs}"
        );
    }
}
