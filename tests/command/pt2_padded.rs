//! Programs whose zeros are not the same on both sides of a conv.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::pt2::archives::changed;
use crate::support::file::Place;

/// `conv3d.pt2` with the zeros of its conv in a node of their own, all of them before the map along the last two axes; `change` is given
/// the values of the graph.
fn padded(place: &Place, change: impl Fn(&mut Value)) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pt2/conv3d.pt2");
    let to = place.path("in.pt2");
    changed(&from, &to, |name, text| {
        if name != "models/model.json" {
            return None;
        }
        let mut program: Value = serde_json::from_str(text).unwrap();
        let graph = &mut program["graph_module"]["graph"];
        let mut meta = graph["tensor_values"]["input"].clone();
        meta["sizes"][3] = json!({"as_int": 6});
        meta["sizes"][4] = json!({"as_int": 7});
        let numbers = [5 * 6 * 7 * 3, 5 * 6 * 7, 42, 7, 1].map(|n| json!({"as_int": n}));
        meta["strides"] = json!(numbers);
        graph["tensor_values"]["zeros"] = meta;
        let conv = &mut graph["nodes"][0];
        let mut pad = conv.clone();
        conv["inputs"][0]["arg"]["as_tensor"]["name"] = "zeros".into();
        conv["inputs"][4]["arg"]["as_ints"] = json!([1, 0, 0]);
        pad["target"] = "torch.ops.aten.pad.default".into();
        pad["name"] = "zeros".into();
        pad["outputs"][0]["as_tensor"]["name"] = "zeros".into();
        pad["inputs"] = json!([
            {"name": "self", "arg": {"as_tensor": {"name": "input"}}, "kind": 1},
            {"name": "pad", "arg": {"as_ints": [2, 0, 2, 0]}, "kind": 1},
        ]);
        let nodes = graph["nodes"].as_array_mut().unwrap();
        nodes.insert(0, pad);
        change(&mut graph["tensor_values"]);
        Some(program.to_string())
    });
    to
}

#[test]
fn zeros_of_a_node_of_their_own_stay_there() {
    let place = Place::new();
    padded(&place, |_| {});
    let ran = place.run("fuse in.pt2 out.pt2 --verify --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
    let text = String::from_utf8_lossy(&place.read("out.pt2")).into_owned();
    assert!(!text.contains("_padded"));
}

#[test]
fn zeros_on_one_side_need_the_size_of_the_input() {
    let place = Place::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pt2/causal.pt2");
    changed(&from, &place.path("in.pt2"), |name, text| {
        if name != "models/model.json" {
            return None;
        }
        let mut program: Value = serde_json::from_str(text).unwrap();
        let values = &mut program["graph_module"]["graph"]["tensor_values"];
        let symbol = json!({"as_expr": {"expr_str": "Symbol('s31', positive=True, integer=True)", "hint": {"as_int": 7}}});
        values["x"]["sizes"][2] = symbol;
        Some(program.to_string())
    });
    let ran = place.run("inspect in.pt2");
    let expected = "its paddings differ, and how large its input is is not known before it runs";
    assert!(ran.stdout.contains(expected), "{ran:?}");
}

#[test]
fn a_value_of_which_nothing_is_said_is_named() {
    let place = Place::new();
    padded(&place, |values| {
        values.as_object_mut().unwrap().remove("batch_norm");
    });
    let ran = place.run("fuse in.pt2 other.pt2 --quiet");
    let expected = "the graph says nothing of `batch_norm`";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
}
