//! Whatever is changed in a file or a recipe: the answer is a result or an error, and what is accepted obeys the law.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::support::Random;
use crate::support::file::{self, Place, bytes, checkpoint};
use crate::support::forge::File;
use proptest::prelude::*;
use proptest::sample::Index;
use repfuse::plan::{self, Options};
use repfuse::recipe;
use repfuse::tensor::Checkpoint;
use repfuse::tensor::arrays::read_arrays;
use repfuse::verify::{self, Deployed};
use serde_json::Value;

/// What replaces or follows a part of a text.
const TOKENS: &[&str] = &[
    "",
    "0",
    "1",
    "-1",
    "1.5",
    "4294967296",
    "18446744073709551615",
    "1e308",
    "null",
    "true",
    "[]",
    "{}",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "\\",
    "\"a\"",
    "\"{p}\"",
    "\"{i}\"",
    "\"{s:*}\"",
    "\"{s:a|b}\"",
    "F32",
    "F16",
    "I64",
    "F4",
    "X",
    "shape",
    "dtype",
    "data_offsets",
    "__metadata__",
    "rbr_dense",
    "\u{1b}",
    "\u{0}",
    "\u{e9}",
    "\"identity\"",
    "{\"mean\":3}",
    "{\"sum\":[]}",
];

/// Where to cut, how much to leave out, and what to put there.
type Edit = (Index, u8, Index);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec((any::<Index>(), 0u8..12, any::<Index>()), 1..5)
}

fn mutate(text: &str, edits: &[Edit]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for (at, gone, token) in edits {
        let at = at.index(text.len() + 1);
        let end = (at + usize::from(*gone)).min(text.len());
        text.splice(at..end, token.get::<&str>(TOKENS).chars());
    }
    text.into_iter().collect()
}

/// A header of two blocks and a classifier, and its data.
fn valid() -> &'static (String, Vec<u8>) {
    static VALID: OnceLock<(String, Vec<u8>)> = OnceLock::new();
    VALID.get_or_init(|| {
        let place = Place::new();
        checkpoint(2, 2).write(&place.path("in.safetensors"));
        let bytes = place.read("in.safetensors");
        let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")));
        let (header, data) = bytes[8..].split_at(len.expect("a length"));
        (
            String::from_utf8(header.to_vec()).expect("UTF-8"),
            data.to_vec(),
        )
    })
}

/// Plans and verifies by every recipe that fits; says whether one did.
fn go_through(checkpoint: &Checkpoint, recipes: &[recipe::Recipe]) -> bool {
    let mut planned = false;
    for recipe in recipes {
        let Ok(plan) = plan::plan(checkpoint.tensors(), recipe, &Options::default()) else {
            continue;
        };
        planned = true;
        let options = verify::Options::default();
        if let Ok(verdict) = verify::verify(checkpoint, &plan, Deployed::InMemory, &options) {
            assert!(verdict.accepted(), "{:?}", verdict.blocks);
        }
    }
    planned
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The file as its length, its header and its data, each of them changed a little.
    #[test]
    fn changed_headers_are_read_or_refused(edits in edits(), shorter in 0usize..3, longer in 0usize..9) {
        let place = Place::new();
        let (header, data) = valid();
        let mut file = bytes(mutate(header, &edits), data);
        file.truncate(file.len() - shorter);
        file.extend(vec![0; longer * usize::from(shorter == 0)]);
        place.write("x", file);
        if let Ok(checkpoint) = Checkpoint::open(place.path("x")) {
            let recipes = [recipe::source("repvgg").expect("a recipe").0];
            go_through(&checkpoint, &recipes);
        }
    }

    /// Bytes of the whole file.
    #[test]
    fn changed_bytes_are_read_or_refused(edits in prop::collection::vec((any::<Index>(), any::<u8>()), 1..8)) {
        let place = Place::new();
        let (header, data) = valid();
        let mut file = bytes(header, data);
        for (at, byte) in edits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        place.write("x", file);
        if let Ok(checkpoint) = Checkpoint::open(place.path("x")) {
            let recipes = [recipe::source("repvgg").expect("a recipe").0];
            go_through(&checkpoint, &recipes);
        }
    }

    /// The text of a recipe.
    #[test]
    fn changed_recipes_are_taken_or_refused(which in any::<Index>(), edits in edits()) {
        let text = mutate(which.get::<&str>(RECIPES), &edits);
        if let Ok(recipe) = recipe::parse(&text, "own.json") {
            go_through(everything(), &[recipe]);
        }
    }

    /// A recipe that stays JSON: values take one another's places.
    #[test]
    fn rearranged_recipes_are_taken_or_refused(which in any::<Index>(), moves in prop::collection::vec((any::<Index>(), any::<Index>()), 1..4)) {
        let mut value: Value = serde_json::from_str(which.get::<&str>(RECIPES)).expect("JSON");
        for (from, to) in moves {
            let places = places(&value);
            let taken = value.pointer(from.get::<String>(&places)).expect("a place").clone();
            *value.pointer_mut(to.get::<String>(&places)).expect("a place") = taken;
        }
        if let Ok(recipe) = recipe::parse(&value.to_string(), "own.json") {
            go_through(everything(), &[recipe]);
        }
    }

    /// Feature maps.
    #[test]
    fn changed_maps_are_read_or_refused(edits in edits(), cut in any::<Index>()) {
        let place = Place::new();
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3, 3), }";
        let header = mutate(header, &edits);
        let mut file = b"\x93NUMPY\x01\0".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend([0; 72]);
        file.truncate(file.len() - cut.index(4) * 20);
        place.write("x", file);
        let _ = read_arrays(&place.path("x"));
    }
}

/// The JSON pointers to every value.
fn places(value: &Value) -> Vec<String> {
    let mut all = vec![String::new()];
    let inside: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (k.replace('~', "~0").replace('/', "~1"), v))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in inside {
        all.extend(
            places(value)
                .into_iter()
                .map(|below| format!("/{key}{below}")),
        );
    }
    all
}

/// Recipes that use all of the language, for the names in [`everything`].
const RECIPES: &[&str] = &[
    r#"{"name": "own", "about": "a test", "eps": 1e-3, "drop": ["{p}.aux"], "beside": ["{p}"], "when": [["{p}.gamma", "{p}.shift"]], "unless": ["x"],
    "owns": ["branches"], "deploy": ["{p}.conv.weight"], "eps_note": "note", "rename": {"{p}.old": "{p}.new"},
    "blocks": [{"at": "{p}.branches.0.weight",
        "where": {"{p}.branches.0.weight": ["o", "_", "odd", "odd"], "{p}.alpha": [1], "{p}.beta": null},
        "fuse": {"{p}.conv": {"seq": [
            {"sum": [
                {"each": {"seq": [{"conv": "{p}.branches.{i}", "groups": 2}, {"bn": "{p}.norms.{i}", "eps": 1e-6}]}},
                {"seq": [{"conv": "{p}.tall", "bias": "optional", "dilation": [1, 2]}, {"scale": "{p}.alpha"}]},
                {"seq": [{"mean": 3}, {"scale": -0.5}]},
                {"optional": {"conv": "{p}.wide", "bias": "optional", "flipped": true}},
                {"optional": "identity"}]},
            {"scale": "{p}.gamma"},
            {"shift": "{p}.shift"}]}},
        "set": {"{p}.after.weight": 1},
        "rename": {"{p}.after": "{p}.post_norm"}}]}"#,
    r#"{"name": "own", "about": "a test", "eps": 1e-5, "beside": ["{p}"], "blocks": [
        {"at": ["{p}.q.weight"], "fuse": {
            "{p}.q": {"seq": [{"bn": "{p}.norm", "eps": 1e-3}, {"conv": "{p}.q", "bias": "optional"}]},
            "{p}.k": {"seq": [{"bn": "{p}.norm"}, {"conv": "{p}.k", "bias": "optional"}]}}},
        {"at": "{p}.up.weight", "fuse": {"{p}.up": {"seq": [{"conv": "{p}.up", "transposed": true}, {"bn": "{p}.up_bn"}]}}},
        {"at": "{p}.{s:expand|grow}.weight", "drop": ["{p}.more"], "fuse": {"{p}.out": {"seq": [
            {"sum": [{"conv": "{p}.{s:expand|grow}", "bias": "optional", "groups": 1}, "identity"]},
            {"mean": "{p}.middle.weight"},
            {"sum": [{"conv": "{p}.middle", "bias": "optional"}, {"seq": [{"mean": [3, 3]}, {"conv": "{p}.reduce", "bias": "optional"}]}]},
            {"bn": "{p}.last"}]}}}]}"#,
];

/// A file with a tensor for every name in [`RECIPES`].
fn everything() -> &'static Checkpoint {
    static FILE: OnceLock<(Place, Checkpoint)> = OnceLock::new();
    let (_, checkpoint) = FILE.get_or_init(|| {
        let (mut file, mut random) = (File::default(), Random(6));
        let shapes: BTreeMap<&str, &[usize]> = BTreeMap::from([
            ("a.branches.0.weight", &[4, 2, 3, 3][..]),
            ("a.branches.1.weight", &[4, 2, 3, 3]),
            ("a.tall.weight", &[4, 2, 3, 2]),
            ("a.alpha", &[1]),
            ("a.gamma", &[4, 1, 1]),
            ("a.shift", &[4]),
            ("a.aux.weight", &[3, 4]),
            ("a.old.weight", &[3]),
            ("b.q.weight", &[4, 6]),
            ("b.k.weight", &[4, 6]),
            ("b.k.bias", &[4]),
            ("c.up.weight", &[4, 6, 2, 2]),
            ("d.expand.weight", &[4, 4, 1, 1]),
            ("d.middle.weight", &[2, 4, 3, 3]),
            ("d.reduce.weight", &[2, 4, 1, 1]),
        ]);
        for (name, shape) in shapes {
            file::tensor(&mut file, name, shape, &mut random);
        }
        for (module, channels) in [
            ("a.norms.0", 4),
            ("a.norms.1", 4),
            ("a.after", 4),
            ("b.norm", 6),
            ("c.up_bn", 6),
            ("d.last", 2),
        ] {
            file::norm(&mut file, module, channels, &mut random);
        }
        let place = Place::new();
        file.write(&place.path("in.safetensors"));
        let checkpoint = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
        (place, checkpoint)
    });
    checkpoint
}

/// Unchanged, everything above is taken; else nothing of it would be tested.
#[test]
fn what_is_changed_is_valid_before() {
    let place = Place::new();
    let (header, data) = valid();
    place.write("x", bytes(header, data));
    let file = Checkpoint::open(place.path("x")).expect("a checkpoint");
    assert!(go_through(
        &file,
        &[recipe::source("repvgg").expect("a recipe").0]
    ));
    for text in RECIPES {
        let recipe = recipe::parse(text, "own.json").expect("a recipe");
        let plan = plan::plan(everything().tensors(), &recipe, &Options::default());
        plan.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        assert!(go_through(everything(), &[recipe]), "{text}");
    }
}
