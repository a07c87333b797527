//! What a program stores beside its graph: which of it stays, under which names, and how it lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::pt2::archives::{changed, entries};
use crate::support::command::repfuse;
use crate::support::file::Place;

fn fixture(name: &str) -> String {
    let path = format!("fixtures/pt2/{name}.pt2");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    path.to_str().unwrap().to_owned()
}

/// Runs the command; gives its exit status and what it said.
fn command(arguments: &[&str]) -> (i32, String) {
    let done = repfuse().args(arguments).output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap(),
        String::from_utf8(said).unwrap(),
    )
}

/// The fused program, which has been verified when it was written and once more from its file; and what was said of it.
fn fused(place: &Place, from: &str) -> (PathBuf, Value) {
    let to = place.path("out.pt2");
    let out = to.to_str().unwrap();
    let (code, said) = command(&["fuse", from, out, "--verify", "--force", "--json"]);
    assert_eq!(code, 0, "{said}");
    let told = serde_json::from_str(&said).unwrap();
    let (code, said) = command(&["verify", from, out]);
    assert_eq!(code, 0, "{said}");
    (to, told)
}

/// The configuration of a folder of a program.
fn config(path: &Path, folder: &str) -> BTreeMap<String, Value> {
    let end = format!("/data/{folder}/model_{folder}_config.json");
    let all = entries(path);
    let (_, text) = all.iter().find(|(name, _)| name.ends_with(&end)).unwrap();
    let config: Value = serde_json::from_slice(text).unwrap();
    serde_json::from_value(config["config"].clone()).unwrap()
}

fn numbers(of: &Value) -> Vec<u64> {
    let list = of.as_array().unwrap().iter();
    list.map(|n| n["as_int"].as_u64().unwrap()).collect()
}

#[test]
fn what_the_program_does_not_name_stays_unless_its_norm_or_its_weight_is_gone() {
    let place = Place::new();
    let (to, told) = fused(&place, &fixture("stored"));
    let config = config(&to, "weights");
    let names: Vec<&str> = config.keys().map(String::as_str).collect();
    let expected = [
        "conv.bias",
        "conv.weight",
        "left.bias",
        "left.num_batches_tracked",
        "left.running_mean",
        "left.running_var",
        "left.weight",
        "unused.bias",
        "unused.weight",
    ];
    assert_eq!(names, expected);
    assert_eq!(told["tensors_after"], json!(expected.len()), "{told}");
    let weights = place.path("out.safetensors");
    let weights = weights.to_str().unwrap();
    let (code, said) = command(&["fuse", &fixture("stored"), weights]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = command(&["verify", &fixture("stored"), weights]);
    assert!(code == 0 && said.contains("7 tensors copied"), "{said}");
    // No entry is left that nothing refers to, and none is missing.
    let all = entries(&to);
    let stored = all
        .iter()
        .filter(|(name, _)| name.contains("/weights/weight_"));
    assert_eq!(stored.count(), expected.len());
}

#[test]
fn names_of_the_network_itself_begin_with_no_dot_and_nothing_frozen_thaws() {
    let place = Place::new();
    let (to, _) = fused(&place, &fixture("root"));
    let weights = config(&to, "weights");
    let names: Vec<&str> = weights.keys().map(String::as_str).collect();
    assert_eq!(names, ["fused2.weight", "fused3.weight", "weight"]);
    for (name, payload) in &weights {
        let trains = &payload["tensor_meta"]["requires_grad"];
        assert_eq!(*trains, json!(false), "{name}");
    }
    // What has been folded of the constants beside the weights is gone there, too.
    assert!(config(&to, "constants").is_empty());
    let all = entries(&to);
    assert!(
        !all.iter()
            .any(|(name, _)| name.contains("/constants/tensor_"))
    );
    let of_trained = fused(&place, &fixture("laid")).0;
    for (name, payload) in config(&of_trained, "weights") {
        let trains = &payload["tensor_meta"]["requires_grad"];
        assert_eq!(*trains, json!(true), "{name}");
    }
}

#[test]
fn a_weight_lies_as_what_it_replaces() {
    let place = Place::new();
    for (name, whole, point) in [
        ("laid", vec![36, 1, 12, 4], vec![4, 1, 4, 4]),
        ("laid-3d", vec![108, 1, 36, 12, 4], vec![4, 1, 4, 4, 4]),
    ] {
        let (to, _) = fused(&place, &fixture(name));
        let config = config(&to, "weights");
        let strides = |name: &str| numbers(&config[name]["tensor_meta"]["strides"]);
        assert_eq!(strides("conv.weight"), whole, "{name}");
        assert_eq!(strides("point.weight"), point, "{name}");
    }
    // Numbers of one tap lie the same either way; PyTorch goes by what the strides say.
    let from = place.path("in.pt2");
    changed(Path::new(&fixture("laid")), &from, |_, text| {
        let strides = |of: [u64; 4]| {
            let list: Vec<String> = of.iter().map(|n| format!(r#"{{"as_int": {n}}}"#)).collect();
            format!(r#""strides": [{}]"#, list.join(", "))
        };
        Some(text.replace(&strides([4, 1, 4, 4]), &strides([4, 1, 1, 1])))
    });
    let (to, _) = fused(&place, from.to_str().unwrap());
    let config = config(&to, "weights");
    let strides = |name: &str| numbers(&config[name]["tensor_meta"]["strides"]);
    assert_eq!(strides("point.weight"), [4, 1, 1, 1]);
    assert_eq!(strides("conv.weight"), [36, 1, 12, 4]);
}

#[test]
fn a_weight_that_lies_otherwise_or_thaws_is_noticed() {
    let place = Place::new();
    let from = fixture("laid");
    let (to, _) = fused(&place, &from);
    let other = place.path("other.pt2");
    for (what, with) in [
        // The same numbers, as PyTorch sees them: of one tap.
        (
            r#"[{"as_int":4},{"as_int":1},{"as_int":4},{"as_int":4}]"#,
            r#"[{"as_int":4},{"as_int":1},{"as_int":1},{"as_int":1}]"#,
        ),
        (r#""requires_grad":true"#, r#""requires_grad":false"#),
    ] {
        changed(&to, &other, |name, text| {
            let config = name == "data/weights/model_weights_config.json";
            config.then(|| {
                assert!(text.contains(what), "{text}");
                text.replace(what, with)
            })
        });
        let (code, said) = command(&["verify", &from, other.to_str().unwrap()]);
        assert!(
            code == 1 && said.contains(" is not stored as it should be"),
            "{said}"
        );
    }
}

#[test]
fn a_weight_that_is_described_otherwise_is_found() {
    let place = Place::new();
    let (to, _) = fused(&place, &fixture("laid"));
    let other = place.path("other.pt2");
    changed(&to, &other, |name, text| {
        name.ends_with("weights_config.json").then(|| {
            let frozen = text.replace(r#""requires_grad":true"#, r#""requires_grad":false"#);
            assert_ne!(frozen, text);
            frozen
        })
    });
    let (code, said) = command(&["verify", &fixture("laid"), other.to_str().unwrap()]);
    assert!(
        code == 1 && said.contains(" is not stored as it should be"),
        "{said}"
    );
}

/// A buffer that the program changes lies where the means of a norm do.
#[test]
fn what_shares_its_memory_with_what_is_changed_is_no_constant() {
    let place = Place::new();
    let from = fixture("one-storage");
    let out = place.path("out.pt2");
    let (code, said) = command(&["fuse", &from, out.to_str().unwrap()]);
    assert!(code == 0 && said.contains("nothing to fuse"), "{said}");
    let (_, said) = command(&["inspect", &from]);
    let why = "`b_norm_running_mean` is changed when the network runs";
    assert!(said.contains(why), "{said}");
}
