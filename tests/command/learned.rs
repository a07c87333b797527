//! Recipes that are learned from graphs: what has no words, and beside it what has.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::pt2::archives::changed;
use crate::support::file::Place;
use repfuse::graph::GraphFile;
use repfuse::graph::learn::learn;
use repfuse::plan::Options;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// What is learned from some of a graph's blocks, and what is not put into words.
fn learned(path: &Path, of: impl Fn(usize) -> std::ops::Range<usize>) -> (usize, String) {
    let file = GraphFile::open(path).unwrap().expect("a graph");
    let folded = file.fold(&Options::default(), false).unwrap();
    let blocks = folded.plan().blocks();
    let some = &blocks[of(blocks.len())];
    let learned = learn(file.constants(), &file.state(), some, "own", "a test");
    (learned.blocks, learned.unsaid.join("\n"))
}

/// That a sentence is said of all blocks of a graph.
fn unsaid(path: &Path, expected: &str) {
    let (_, said) = learned(path, |all| 0..all);
    assert!(said.contains(expected), "{expected}: {said}");
}

#[test]
fn what_has_no_words_is_said() {
    for (name, expected) in [
        (
            "pt2/concat.pt2",
            "block `out`: recipes have no word for [3×3+b, 1×1+b]",
        ),
        (
            "pt2/weight-norm.pt2",
            "block `0`: `_weight_norm` is a number of the graph and in no file of weights",
        ),
        (
            "pt2/mixed.pt2",
            "recipes have no word for a part of `norm.running_mean`",
        ),
        (
            "onnx/divided.onnx",
            "`/1/Constant_1_output_0` does not stand for its factors itself",
        ),
        ("pt2/shared.pt2", "block `tied` is not found by its names"),
    ] {
        unsaid(&fixture(name), expected);
    }
    assert_eq!(
        learned(&fixture("pt2/conv3d.pt2"), |all| 0..all),
        (1, String::new())
    );
}

#[test]
fn names_that_say_something_else_are_said() {
    let path = fixture("pt2/attention-in-place.pt2");
    let (blocks, said) = learned(&path, |_| 0..1);
    let expected = "block `k`: names alone say something else than the graph";
    assert_eq!((blocks, &*said), (0, expected));
    let (blocks, said) = learned(&fixture("pt2/levit.pt2"), |_| 0..1);
    assert_eq!((blocks, &*said), (1, ""));
}

#[test]
fn names_and_numbers_that_recipes_do_not_have_are_said() {
    let place = Place::new();
    let to = place.path("in.pt2");
    let with = |from: &str, new: &str| {
        changed(&fixture("pt2/conv3d.pt2"), &to, |_, text| {
            Some(text.replace(from, new))
        });
    };
    with("0.1.running_mean", "0.1.mean");
    unsaid(&to, "`0.1.mean` is not called running_mean");
    with("0.1.running_var", "0.1.var");
    unsaid(&to, "`0.1.var` is not called running_var");
    with("\"0.0.weight\"", "\"0.{0}.weight\"");
    unsaid(&to, "`0.{0}.weight` has braces in its name");
    with("running_mean", "running_mean");
    assert_eq!(learned(&to, |all| 0..all), (1, String::new()));
}

/// `conv3d.pt2` with a second conv beside the first, of the same weight and this dilation.
fn dilated(to: &Path, by: [usize; 3]) {
    changed(&fixture("pt2/conv3d.pt2"), to, |name, text| {
        if name != "models/model.json" {
            return None;
        }
        let mut program: Value = serde_json::from_str(text).unwrap();
        let graph = &mut program["graph_module"]["graph"];
        for value in ["beside", "sum"] {
            graph["tensor_values"][value] = graph["tensor_values"]["conv3d"].clone();
        }
        let tensor = |name: &str| json!({"as_tensor": {"name": name}});
        let mut beside = graph["nodes"][0].clone();
        let mut sum = beside.clone();
        beside["inputs"][4]["arg"]["as_ints"] = json!(by);
        let dilation = json!({"name": "dilation", "arg": {"as_ints": by}, "kind": 1});
        beside["inputs"].as_array_mut().unwrap().push(dilation);
        sum["target"] = "torch.ops.aten.add.Tensor".into();
        sum["inputs"] = json!([
            {"name": "self", "arg": tensor("conv3d"), "kind": 1},
            {"name": "other", "arg": tensor("beside"), "kind": 1},
        ]);
        for (node, name) in [(&mut beside, "beside"), (&mut sum, "sum")] {
            node["name"] = name.into();
            node["outputs"] = json!([tensor(name)]);
        }
        graph["nodes"][1]["inputs"][0]["arg"] = tensor("sum");
        let nodes = graph["nodes"].as_array_mut().unwrap();
        nodes.splice(1..1, [beside, sum]);
        Some(program.to_string())
    });
}

#[test]
fn a_dilation_of_the_depth_has_no_word() {
    let place = Place::new();
    let to = place.path("in.pt2");
    dilated(&to, [2, 1, 1]);
    let expected = "recipes have no word for the dilation of `0.0.weight`";
    unsaid(&to, expected);
    dilated(&to, [1, 2, 1]);
    let (_, said) = learned(&to, |all| 0..all);
    assert!(!said.contains(expected), "{said}");
}
