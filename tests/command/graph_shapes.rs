//! Shapes are worked out where they are certain: an input that is there and no constant never means its default.

use crate::support::file::Place;
use crate::support::onnx::{Message, graph, int, list, model, node, tensor, value};

/// Whether a factor behind `r`, which a node makes of `x`, `[2, 4, 4]`, and whole numbers `n`, is folded into the matrix behind it. It
/// is where the last axis of `r` is known to have four channels: of one channel the factor makes four.
fn folds(made: Message) -> bool {
    let place = Place::new();
    let numbers: Vec<f32> = (0..16).map(|i| (i as f32 * 0.7).sin()).collect();
    let tensors = [
        tensor("k", &[4], &numbers[..4]),
        tensor("w", &[4, 4], &numbers),
        list("none", &[]),
        list("0", &[0]),
        list("1", &[1]),
        list("2", &[2]),
        list("parts", &[1, 3]),
    ];
    let dim = Message::default().message(1, &Message::default().int(1, 1));
    let of_tensor = Message::default().int(1, 7).message(2, &dim);
    let of_type = Message::default().message(1, &of_tensor);
    let whole = Message::default().bytes(1, "n").message(2, &of_type);
    let nodes = [
        made,
        node("Mul", &["r", "k"], &["a"], &[]),
        node("MatMul", &["a", "w"], &["y"], &[]),
    ];
    let output = Message::default().bytes(1, "y");
    let graph = graph(
        &nodes,
        &tensors,
        &[value("x", &[2, 4, 4]), whole],
        &[output],
    );
    place.write("in.onnx", &model(&graph, 18).0);
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    ran.stdout.contains("fused 1 block")
}

fn reduced(op: &str, axes: &str, attributes: &[Message]) -> Message {
    node(op, &["x", axes], &["r"], attributes)
}

#[test]
fn what_is_known_of_a_shape_is_used() {
    assert!(folds(node("Relu", &["x"], &["r"], &[])));
    assert!(folds(reduced("ReduceMean", "1", &[])));
    assert!(folds(node("Slice", &["x", "0", "2", "1"], &["r"], &[])));
    assert!(folds(node(
        "Slice",
        &["x", "0", "2", "1", "1"],
        &["r"],
        &[]
    )));
    let split = [int("axis", 1)];
    assert!(folds(node("Split", &["x", "parts"], &["r", "s"], &split)));
}

#[test]
fn no_axes_are_all_of_them_or_none() {
    for op in ["ReduceMean", "ReduceMax", "ReduceL2"] {
        assert!(!folds(reduced(op, "none", &[])), "{op}");
        let noop = [int("noop_with_empty_axes", 1)];
        assert!(folds(reduced(op, "none", &noop)), "{op}");
        assert!(!folds(reduced(op, "n", &[])), "{op}");
    }
}

#[test]
fn what_is_no_constant_is_no_default() {
    for inputs in [
        &["x", "0", "1", "n"][..],
        &["x", "0", "2", "2", "n"],
        &["x", "n", "2", "2"],
    ] {
        assert!(!folds(node("Slice", inputs, &["r"], &[])), "{inputs:?}");
    }
    for axis in [1, 2] {
        let split = node("Split", &["x", "n"], &["r", "s"], &[int("axis", axis)]);
        assert!(!folds(split));
    }
}
