//! What a pickled module says of itself: eps, groups, dilation, stride and classes; and what contradicts it.
//!
//! `fixtures/generate_pickles.py` makes the files with PyTorch and ultralytics.

use std::path::{Path, PathBuf};

use crate::support::file::recipe as own;
use crate::support::tiny::Tiny;
use repfuse::plan::{EpsSource, Options, Plan, plan};
use repfuse::recipe;
use repfuse::tensor::Checkpoint;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/pickles")
        .join(name)
}

fn planned(file: &str, recipe: &str, options: &Options) -> Result<Plan, String> {
    let recipe = recipe::parse(recipe, "own").map_err(|e| e.to_string())?;
    let file = Checkpoint::open(fixture(file)).expect("a checkpoint");
    plan(file.tensors(), &recipe, options).map_err(|e| e.to_string())
}

/// A recipe that makes one conv of `facts.pt`.
fn fused(at: &str, expression: &str) -> String {
    own(&format!(
        r#"{{"at": "{at}", "bias": false, "fuse": {{"out": {expression}}}}}"#
    ))
}

#[test]
fn what_the_file_says_of_convs_is_not_contradicted() {
    let near = r#"{"conv": "near", "bias": false}"#;
    for (at, expression, expected) in [
        (
            "near.weight",
            format!(r#"{{"sum": [{near}, {{"conv": "far", "bias": false}}]}}"#),
            Err(
                "the file says that `near` has dilation 1 and `far` has 2; by the recipe their taps do not lie like that",
            ),
        ),
        (
            "near.weight",
            format!(r#"{{"sum": [{near}, {{"conv": "far", "bias": false, "dilation": 2}}]}}"#),
            Ok(5),
        ),
        (
            "near.weight",
            r#"{"conv": "near", "bias": false, "dilation": 2}"#.to_owned(),
            Err("the file says that `near` has dilation 1; the recipe says 2"),
        ),
        (
            "far.weight",
            r#"{"conv": "far", "bias": false, "dilation": 2}"#.to_owned(),
            Ok(5),
        ),
        (
            "wide.weight",
            r#"{"sum": [{"conv": "wide", "bias": false}, {"mean": "near.weight"}]}"#.to_owned(),
            Err(
                "the file says that `wide` has dilation 2, where the recipe has 1 beside a pooling, whose taps do not lie like that",
            ),
        ),
        (
            "near.weight",
            r#"{"sum": [{"conv": "near", "bias": false}, {"mean": "near.weight"}]}"#.to_owned(),
            Ok(3),
        ),
        // Spread alike, which is the fused conv's dilation.
        (
            "wide.weight",
            r#"{"sum": [{"conv": "wide", "bias": false}, {"conv": "wider", "bias": false}]}"#
                .to_owned(),
            Ok(5),
        ),
        (
            "step.weight",
            r#"{"seq": [{"conv": "step", "bias": false}, {"conv": "after", "bias": false}]}"#
                .to_owned(),
            Err(
                "the file says that a stride of [2, 2] comes before `after`; the recipe takes it for one of the whole block",
            ),
        ),
        (
            "step.weight",
            r#"{"seq": [{"conv": "after", "bias": false}, {"conv": "step", "bias": false}]}"#
                .to_owned(),
            Ok(3),
        ),
        (
            "step.weight",
            r#"{"sum": [{"conv": "step", "bias": false}, {"conv": "after", "bias": false}]}"#
                .to_owned(),
            Err(
                "the file says that its branches have strides [2, 2] and [1, 1]; they cannot be added up",
            ),
        ),
        (
            "step.weight",
            r#"{"sum": [{"conv": "step", "bias": false}, {"conv": "last", "bias": false}]}"#
                .to_owned(),
            Ok(1),
        ),
        (
            "turned.weight",
            r#"{"conv": "turned", "bias": false}"#.to_owned(),
            Err(
                "the file says that `turned` is a transposed conv; the recipe takes it for a plain conv",
            ),
        ),
        (
            "turned.weight",
            r#"{"conv": "turned", "bias": false, "transposed": true}"#.to_owned(),
            Ok(1),
        ),
        (
            "near.weight",
            r#"{"conv": "near", "bias": false, "transposed": true}"#.to_owned(),
            Err(
                "the file says that `near` is a plain conv; the recipe takes it for a transposed conv",
            ),
        ),
        (
            "near.weight",
            r#"{"conv": "near", "bias": false, "groups": 2}"#.to_owned(),
            Err("the file says that `near` has groups 1; the recipe says 2"),
        ),
        (
            "near.weight",
            r#"{"conv": "near", "bias": false, "groups": 1}"#.to_owned(),
            Ok(3),
        ),
    ] {
        let got = planned("facts.pt", &fused(at, &expression), &Options::default());
        let got = got.map(|plan| plan.blocks()[0].fused()[0].geometry().extent()[2]);
        let expected = expected.map_err(|e| format!("block `out`: {e}"));
        assert_eq!(got, expected, "{expression}");
    }
}

#[test]
fn eps_is_that_of_the_file() {
    let (file, usual) = (None, Some(1e-5));
    let norm = |name: &str| {
        fused(
            "near.weight",
            &format!(r#"{{"seq": [{{"conv": "near", "bias": false}}, {{"bn": "{name}"}}]}}"#),
        )
        .replace(r#""bias": false, "fuse""#, r#""fuse""#)
    };
    let both = fused(
        "near.weight",
        r#"{"seq": [{"conv": "near", "bias": false}, {"bn": "narrow"}, {"bn": "usual"}]}"#,
    )
    .replace(r#""bias": false, "fuse""#, r#""fuse""#);
    let refused = "block `out`: the file says that the norm `narrow` has eps 1e-3, and 1e-5 was asked for; leave that out";
    for (recipe, wish, expected) in [
        (norm("narrow"), file, Ok(Some(1e-3))),
        (norm("narrow"), Some(1e-3), Ok(Some(1e-3))),
        (norm("narrow"), usual, Err(refused.to_owned())),
        (norm("usual"), usual, Ok(Some(1e-5))),
        // Each has its own.
        (both, file, Ok(None)),
    ] {
        let options = Options {
            bn_eps: wish,
            ..Options::default()
        };
        let got = planned("facts.pt", &recipe, &options);
        let got = got.map(|plan| {
            assert_eq!(plan.eps_source(), EpsSource::File);
            plan.eps()
        });
        assert_eq!(got, expected, "{recipe}");
    }
}

#[test]
fn a_summary_says_that_eps_is_from_the_file() {
    let place = Tiny::empty();
    let block = fixture("block.pt");
    let block = block.to_str().expect("UTF-8");
    let said = place.prints(&["fuse", block, "out.safetensors", "--verify"]);
    assert!(said.contains("bn eps      1e-3 from the file"), "{said}");
    let refused = place.run(&["fuse", block, "other.safetensors", "--bn-eps", "1e-5"]);
    let expected = "repfuse: taken for a file of recipe `repvgg`: block `stage0`: the file says that the norm `stage0.rbr_dense.bn` \
                    has eps 1e-3, and 1e-5 was asked for; leave that out\n";
    assert_eq!((refused.status, refused.stderr.as_str()), (2, expected));
    // Names alone say nothing of it.
    let names = fixture("block.safetensors");
    let names = names.to_str().expect("UTF-8");
    place.prints(&["fuse", names, "other.safetensors", "--bn-eps", "1e-5"]);
}

/// A module of the user's own that has a `conv` and a `bn` is no conv with a norm, whatever its names.
#[test]
fn classes_are_evidence() {
    let place = Tiny::empty();
    let yolo = fixture("yolo.pt");
    let yolo = yolo.to_str().expect("UTF-8");
    let said = place.run(&["fuse", yolo, "out.safetensors", "--verify"]);
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert!(said.stdout.contains("fused 6 blocks"), "{}", said.stdout);
    let words = said.stdout.split_whitespace().collect::<Vec<_>>();
    let left = "model.3.bn (its class __main__.BnReluConv is none that the recipe knows)";
    assert!(words.join(" ").contains(left), "{}", said.stdout);
    let out = Checkpoint::open(place.path("out.safetensors")).expect("a checkpoint");
    assert!(out.get("model.3.bn.running_var").is_some());
    assert!(out.get("model.2.conv.bias").is_some());
    // The user knows better.
    let said = place.run(&["fuse", yolo, "all.safetensors", "--recipe", "ultralytics"]);
    assert!(said.stdout.contains("fused 7 blocks"), "{}", said.stdout);
    // Where only names are, they cannot tell.
    let names = fixture("yolo.safetensors");
    let names = names.to_str().expect("UTF-8");
    let said = place.prints(&["fuse", names, "names.safetensors"]);
    assert!(said.contains("fused 7 blocks"), "{said}");
}

#[test]
fn a_file_of_nothing_but_unknown_classes_is_refused() {
    let block = |classes: &str| {
        own(&format!(
            r#"{{"at": "{{p}}.bn.weight", "where": {{"{{p}}.conv.weight": ["_", "_", "_", "_"]}}, "classes": {{"{{p}}": [{classes}]}},
                 "fuse": {{"{{p}}.conv": {{"seq": [{{"conv": "{{p}}.conv", "bias": false}}, {{"bn": "{{p}}.bn"}}]}}}}}}"#
        ))
    };
    let refused = "the file says that `model.0` is of class `ultralytics.nn.modules.conv.Conv`, which recipe `own` does not know; names alone do \
                   not tell what it computes";
    let got = planned("yolo.pt", &block(""), &Options::default());
    assert_eq!(got.map(|_| ()), Err(refused.to_owned()));
    let known = block(r#""__main__.BnReluConv""#);
    let plan = planned("yolo.pt", &known, &Options::default()).expect("a plan");
    assert_eq!(plan.blocks().len(), 1);
    let options = Options {
        by_names: true,
        ..Options::default()
    };
    let plan = planned("yolo.pt", &block(""), &options).expect("a plan");
    assert_eq!(plan.blocks().len(), 7);
}

/// A conv that pads as its kernel asks for lies over the others; one that does not is refused. What may have been padded before
/// says nothing.
#[test]
fn paddings_suit_the_kernels_of_a_sum() {
    let sum = |names: &[&str]| {
        let convs = names.iter().map(|name| match *name {
            "identity" => r#""identity""#.to_owned(),
            "spread" => r#"{"conv": "spread", "bias": false, "dilation": 2}"#.to_owned(),
            name => format!(r#"{{"conv": "{name}", "bias": false}}"#),
        });
        let convs: Vec<String> = convs.collect();
        format!(r#"{{"sum": [{}]}}"#, convs.join(", "))
    };
    let names = |a: &str, b: &str| {
        Err(format!(
            "block `out`: the file says that {a} and {b}; what they make cannot be added up, as the recipe has it"
        ))
    };
    let alone = |a: &str| {
        Err(format!(
            "block `out`: the file says that {a}; what it makes cannot be added to a branch that keeps the size, as the recipe has it"
        ))
    };
    let three = "`three` has padding [1, 1] around a kernel of [3, 3]";
    let over = "`over` has padding [1, 1] around a kernel of [1, 1]";
    let narrow = "`narrow` has padding [1, 1] around a kernel of [5, 5]";
    for (branches, expected) in [
        (&["three", "point", "identity"][..], Ok(3)),
        (&["three", "five", "flat", "point"], Ok(5)),
        (&["five", "spread", "same"], Ok(5)),
        (&["three", "valid", "point"], Ok(3)),
        (&["narrow"], Ok(5)),
        (&["three", "over"], names(three, over)),
        (&["identity", "over"], alone(over)),
        (&["five", "narrow"], names("`five` has padding [2, 2] around a kernel of [5, 5]", narrow)),
        (
            &["same", "narrow"],
            names("`same` has padding `same` around a kernel of [3, 3]", narrow),
        ),
        (
            &["three", "round"],
            Err("block `out`: the file says that `three` has padding_mode `zeros` and `round` has `circular`; one conv has one".to_owned()),
        ),
        (&["round", "point"], Ok(3)),
    ] {
        let at = branches.iter().find(|name| **name != "identity").expect("a conv");
        let recipe = fused(&format!("{at}.weight"), &sum(branches));
        let got = planned("padding.pt", &recipe, &Options::default());
        let got = got.map(|plan| plan.blocks()[0].fused()[0].geometry().extent()[2]);
        assert_eq!(got, expected, "{branches:?}");
    }
}

/// A module of another class is left; by names alone it is folded.
#[test]
fn classes_tell_convs_of_maf_yolo() {
    let recipe = recipe::source("maf-yolo").expect("a recipe").0;
    let file = Checkpoint::open(fixture("maf_yolo.pt")).expect("a checkpoint");
    for (by_names, folded, left) in [(false, 3, Some("1")), (true, 4, None)] {
        let options = Options {
            by_names,
            ..Options::default()
        };
        let plan = plan(file.tensors(), &recipe, &options).expect("a plan");
        assert_eq!(plan.blocks().len(), folded);
        assert_eq!(plan.left().first().map(|left| left.module.as_str()), left);
    }
}
