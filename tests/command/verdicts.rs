//! What `verify` says of files that fail: the first line counts and names, and only what fails is shown.

use serde_json::Value;

use crate::support::file::{Place, ones, recipe};
use crate::support::forge::{File, Held};
use crate::support::tiny::{Ran, Tiny};

const CONV: &str = "stage1.0.rbr_reparam";

/// A small network and its deploy form.
fn fused() -> (Tiny, File) {
    let tiny = Tiny::network();
    tiny.prints(&["fuse", "train.safetensors", "deploy.safetensors"]);
    let file = File::read(&tiny.path("deploy.safetensors"));
    (tiny, file)
}

/// Verifies a deploy form after an edit.
fn edited(tiny: &Tiny, file: &File, edit: impl FnOnce(&mut File), more: &[&str]) -> Ran {
    let mut file = file.clone();
    edit(&mut file);
    file.write(&tiny.path("edited.safetensors"));
    let args = ["verify", "train.safetensors", "edited.safetensors"];
    let ran = tiny.run(&[&args[..], more].concat());
    assert_eq!(ran.status, 1, "{}", ran.stdout);
    assert!(!ran.stdout.contains("NaN") && !ran.stderr.contains("NaN"));
    ran
}

fn first(ran: &Ran) -> &str {
    ran.stdout.lines().next().expect("a line")
}

fn weight(file: &mut File) -> &mut Held {
    file.at("stage1.0.rbr_reparam.weight")
}

#[test]
fn the_first_line_counts_and_names() {
    let (tiny, file) = fused();
    let ran = edited(&tiny, &file, |f| weight(f).edit(|w| w[40] = 0.5), &[]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let begin = "NOT equivalent: 1 of 5 convs differs: `stage1.0.rbr_reparam.weight[1,0,1,1]` is 0.5, expected ";
    assert!(lines[0].starts_with(begin), "{}", ran.stdout);
    // One row, and nothing said twice.
    assert!(lines[1].is_empty() && lines[2].contains("ratio"));
    assert!(lines[3].starts_with("FAIL  stage1.0.rbr_reparam  "));
    assert!(lines[4].is_empty() && lines[5].starts_with("  recipe"));
    assert_eq!(ran.stdout.matches(CONV).count(), 2);
    let all = edited(
        &tiny,
        &file,
        |f| weight(f).edit(|w| w[40] = 0.5),
        &["--all"],
    );
    assert_eq!(all.stdout.matches("\nok ").count(), 4, "{}", all.stdout);

    let bias = |f: &mut File| f.at("stage2.0.rbr_reparam.bias").edit(|b| b[5] = 0.0);
    let ran = edited(&tiny, &file, bias, &[]);
    let begin =
        "NOT equivalent: 1 of 5 convs differs: `stage2.0.rbr_reparam.bias[5]` is 0, expected ";
    assert!(first(&ran).starts_with(begin), "{}", ran.stdout);

    let two = |f: &mut File| {
        weight(f).edit(|w| w[0] += 1.0);
        f.at("stage2.0.rbr_reparam.weight").edit(|w| w[0] += 0.01);
    };
    let ran = edited(&tiny, &file, two, &[]);
    let begin = "NOT equivalent: 2 of 5 convs differ, most of all `stage1.0.rbr_reparam.weight[0,0,0,0]` is ";
    assert!(first(&ran).starts_with(begin), "{}", ran.stdout);
    assert!(
        ran.stdout
            .contains("\n  `stage2.0.rbr_reparam.weight[0,0,0,0]` is ")
    );
}

#[test]
fn what_is_no_number_has_a_name() {
    let (tiny, file) = fused();
    for (number, said, state) in [
        (f32::NAN, "is not a number", "not-finite"),
        (f32::NEG_INFINITY, "is infinite", "not-finite"),
        (7.0, "is 7, expected ", "differs"),
    ] {
        let edit = |f: &mut File| weight(f).edit(|w| w[9] = number);
        let ran = edited(&tiny, &file, edit, &[]);
        let line = format!("`stage1.0.rbr_reparam.weight[0,1,0,0]` {said}");
        assert!(first(&ran).contains(&line), "{}", ran.stdout);
        let json: Value =
            serde_json::from_str(&edited(&tiny, &file, edit, &["--json"]).stdout).expect("JSON");
        let block = &json["blocks"][1];
        assert_eq!(json["summary"].as_str(), Some(first(&ran)));
        assert_eq!(block["module"], CONV);
        assert_eq!(block["state"], state);
        assert_eq!(block["index"], serde_json::json!([0, 1, 0, 0]));
        assert_eq!(block["found"].is_number(), number.is_finite());
        assert_eq!(block["expected"].is_number(), number.is_finite());
        assert_eq!(json["blocks"][0]["state"], "equal");
        assert!(block.get("snr_db").is_none());
    }
}

#[test]
fn names_are_listed_in_their_order_and_cut() {
    let (tiny, file) = fused();
    let more = |f: &mut File| {
        for i in (0..30).rev() {
            f.tensors
                .insert(format!("extra.{i}"), Held::f32(&[1], &[0.0]));
        }
    };
    let ran = edited(&tiny, &file, more, &[]);
    let line =
        "NOT equivalent: 30 tensors are left over: `extra.0`, `extra.1`, `extra.2` and 27 more";
    assert_eq!(first(&ran), line);
    assert!(ran.stdout.contains("`extra.10`, `extra.11` and 18 more"));
    let all = edited(&tiny, &file, more, &["--all"]);
    assert!(all.stdout.contains("`extra.28`, `extra.29`\n"));
    let copies = |f: &mut File| {
        f.at("linear.bias").edit(|b| b[2] = 2.0);
        f.at("linear.weight").edit(|w| w[9] = 2.0);
    };
    let ran = edited(&tiny, &file, copies, &[]);
    assert!(first(&ran).starts_with("NOT equivalent: `linear.bias[2]` is 2, expected "));
    let end = ", as it was, and 1 more difference in what is copied";
    assert!(first(&ran).ends_with(end), "{}", ran.stdout);
    assert!(
        ran.stdout
            .contains("\n  `linear.weight[1,1]` is 2, expected ")
    );
    let absent = |f: &mut File| {
        drop(f.tensors.remove("stage0.rbr_reparam.weight"));
        drop(f.tensors.remove("stage1.2.rbr_reparam.weight"));
    };
    let ran = edited(&tiny, &file, absent, &["--json"]);
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        json["summary"],
        "NOT equivalent: 2 of 5 convs cannot be compared: `stage0.rbr_reparam.weight` is missing, and so on"
    );
    assert_eq!(json["blocks"][0]["state"], "not-comparable");
}

#[test]
fn files_of_different_networks_are_called_that() {
    let (tiny, file) = fused();
    let other = |f: &mut File| {
        let renamed = f
            .tensors
            .iter()
            .map(|(name, held)| (name.replace('.', "_"), held.clone()));
        f.tensors = renamed.collect();
    };
    let ran = edited(&tiny, &file, other, &[]);
    let line = "NOT equivalent: the files are of different networks: of the 12 tensors that fusing makes, none is in the deploy form with \
                the same shape; for one, `stage0.rbr_reparam.weight` is missing";
    assert_eq!(first(&ran), line);
    assert!(ran.stdout.lines().count() < 6, "{}", ran.stdout);
    // As many as a quarter are a network with something missing.
    let some = |f: &mut File| {
        f.tensors
            .retain(|name, _| name.starts_with("linear") || name.contains("stage2"));
    };
    let ran = edited(&tiny, &file, some, &[]);
    assert!(first(&ran).starts_with("NOT equivalent: 4 of 5 convs cannot be compared: "));
    let ran = tiny.run(&["verify", "train.safetensors", "train.safetensors"]);
    let line = "NOT equivalent: `train.safetensors` is in training form, too; `fuse` makes a deploy form of it";
    assert_eq!((ran.status, first(&ran)), (1, line));
}

/// The settings that a file says are mentioned where they lead somewhere.
#[test]
fn a_hint_leads_somewhere() {
    let (tiny, _) = fused();
    tiny.prints(&[
        "fuse",
        "train.safetensors",
        "other.safetensors",
        "--bn-eps",
        "1e-3",
    ]);
    let hint =
        "repfuse: the file says it was fused with other settings, and `--bn-eps 1e-3` verifies it";
    let ran = tiny.run(&["verify", "train.safetensors", "other.safetensors"]);
    assert_eq!((ran.status, ran.stderr.contains(hint)), (1, true));
    let mut other = File::read(&tiny.path("other.safetensors"));
    weight(&mut other).edit(|w| w[0] = 9.0);
    other.write(&tiny.path("other.safetensors"));
    let ran = tiny.run(&["verify", "train.safetensors", "other.safetensors"]);
    assert_eq!(
        (ran.status, ran.stderr.contains("other settings")),
        (1, false)
    );
}

/// Work is bounded by what a file holds: convs in a row that would run over ever larger maps are refused before any number is read.
#[test]
fn a_long_row_of_wide_convs_is_refused() {
    let place = Place::new();
    let write = |convs: usize| {
        let names: Vec<String> = (0..convs).map(|i| format!("net.c{i}.weight")).collect();
        let tensors = names
            .iter()
            .map(|name| (name.as_str(), &[1, 1, 13, 13][..]));
        ones(&tensors.collect::<Vec<_>>()).write(&place.path("in.safetensors"));
        let parts = (0..convs).map(|i| format!(r#"{{"conv": "{{p}}.c{i}", "bias": "optional"}}"#));
        let parts = parts.collect::<Vec<_>>().join(", ");
        let block =
            format!(r#"{{"at": "{{p}}.c0", "fuse": {{"{{p}}.out": {{"seq": [{parts}]}}}}}}"#);
        place.write("own.json", recipe(&block));
    };
    write(40);
    for command in [
        "fuse in.safetensors out.safetensors",
        "verify in.safetensors",
    ] {
        let ran = place.run(&format!("{command} --recipe own.json"));
        assert_eq!(ran.code(), Some(2), "{}", ran.stderr);
        let said = "running it takes 3433390311 multiply-adds for one map; at most 221511680 are taken for the 6760 numbers of its \
                    tensors: too many convs or means stand one behind another";
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
    write(4);
    let ran = place.run("verify in.safetensors --recipe own.json --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
}

#[test]
fn an_image_that_memory_cannot_hold_is_refused() {
    let place = Place::new();
    let tensors = [
        ("a0.c.weight", &[30_000, 3, 1, 1][..]),
        ("fc.weight", &[2, 30_000]),
        ("fc.bias", &[2]),
    ];
    ones(&tensors).write(&place.path("in.safetensors"));
    let network = r#"{"name": "own", "about": "", "eps": 1e-5, "network": {"blocks": ["a{i}"], "head": "fc"}, "blocks": [
        {"at": "{p}.c", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}}]}"#;
    place.write("own.json", network);
    let verify = "verify in.safetensors --recipe own.json --end-to-end --images 100";
    let ran = place.run(&format!("{verify} --size 4096"));
    assert_eq!(ran.code(), Some(2));
    let said = "repfuse: an image of 4096×4096 takes about 16.1 TB in this network, and ";
    assert!(ran.stderr.starts_with(said), "{}", ran.stderr);
    let remedy = " are free; choose a smaller --size or --precision f32\n";
    assert!(ran.stderr.ends_with(remedy), "{}", ran.stderr);
    let ran = place.run(&format!("{verify} --size 2"));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let said = "whole network, 100 images in f64, about 265 MB at a time:";
    assert!(ran.stdout.contains(said), "{}", ran.stdout);
}

/// The same of graphs.
#[test]
fn graphs_that_are_not_folded_are_called_that() {
    let place = Place::new();
    let onnx = |name: &str| format!("{}/fixtures/onnx/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    let verify = |other: &str| {
        let ran = place.run(&format!("verify {} {other}", onnx("acnet")));
        assert_eq!(ran.code(), Some(1));
        let line = ran.stdout.lines().next().expect("a line").to_owned();
        (line, ran.stdout.lines().count())
    };
    let (line, count) = verify(&onnx("acnet"));
    assert!(
        line.ends_with("is in training form, too; `fuse` makes a deploy form of it"),
        "{line}"
    );
    assert!(count < 6, "{count}");
    let fused = place.run(&format!("fuse {} dbb.onnx", onnx("dbb")));
    assert_eq!(fused.code(), Some(0), "{}", fused.stderr);
    let (line, count) = verify("dbb.onnx");
    assert!(line.starts_with("NOT equivalent: "), "{line}");
    // Lists of differences are cut.
    assert!(count < 30, "{count}");
}

/// What a weight does not tell of its groups is not told, in text and in JSON.
#[test]
fn groups_that_are_not_known_are_never_one() {
    let mut tiny = Tiny::empty();
    tiny.block("stage0", [3, 4]);
    for (branch, k) in [("rbr_dense", 3), ("rbr_1x1", 1)] {
        let name = format!("stage1.0.{branch}");
        tiny.tensor(&format!("{name}.conv.weight"), &[4, 1, k, k], -1.0, 1.0);
        tiny.norm(&format!("{name}.bn"), 4);
    }
    tiny.tensor("head.conv.weight", &[4, 1, 3, 3], -1.0, 1.0);
    tiny.tensor("head.proj.weight", &[4, 4, 1, 1], -1.0, 1.0);
    tiny.write();
    let shown = tiny.prints(&["inspect", "train.safetensors"]);
    assert!(shown.contains("bn(dw? 3×3) + bn(dw? 1×1)"), "{shown}");
    let row = |line: &str| {
        line.split_whitespace()
            .eq(["head.conv.weight", "4×1×3×3", "dw?"])
    };
    assert!(shown.lines().any(row), "{shown}");
    assert!(
        shown.contains("  dw?         depthwise, or any number of groups"),
        "{shown}"
    );
    let json: Value =
        serde_json::from_str(&tiny.prints(&["inspect", "train.safetensors", "--json"]))
            .expect("JSON");
    for (block, known) in [(0, false), (1, false)] {
        let output = &json["blocks"][block]["outputs"][0];
        for groups in [
            &output["groups"],
            &output["convs"][0]["groups"],
            &output["convs"][1]["groups"],
        ] {
            assert_eq!(groups.is_number(), known, "{output:#}");
        }
    }
    assert!(json["convs"][0]["class"].is_null(), "{json:#}");
    assert_eq!(json["convs"][1]["class"], "pointwise");
    let json: Value = serde_json::from_str(&tiny.prints(&[
        "fuse",
        "train.safetensors",
        "out.safetensors",
        "--dry-run",
        "--json",
    ]))
    .expect("JSON");
    assert!(
        json["blocks"][1]["outputs"][0]["groups"].is_null(),
        "{json:#}"
    );
}
