//! Hints for mistakes in a recipe of one's own, and for files that no recipe knows.

use crate::support::Random;
use crate::support::file::{Place, checkpoint, norm, tensor};
use crate::support::tiny::Tiny;

fn network() -> Tiny {
    let mut tiny = Tiny::empty();
    tiny.tensor("net.v.conv.weight", &[4, 4, 3, 3], -1.0, 1.0);
    tiny.norm("net.v.norm", 4);
    tiny.write();
    tiny
}

fn said(tiny: &Tiny, at: &str, conv: &str, bn: &str) -> String {
    let recipe = format!(
        r#"{{"name": "own", "about": "", "eps": 1e-5, "blocks": [{{"at": "{at}", "fuse": {{"{{p}}.fused": {{"seq": [{{"conv": "{conv}"}}, {{"bn": "{bn}"}}]}}}}}}]}}"#
    );
    std::fs::write(tiny.path("own.json"), recipe).unwrap();
    tiny.run(&[
        "fuse",
        "train.safetensors",
        "deploy.safetensors",
        "--recipe",
        "own.json",
    ])
    .stderr
}

#[test]
fn a_mistake_in_a_recipe_is_met_with_what_was_meant() {
    let tiny = network();
    let [at, conv, bn] = ["{p}.v.conv.weight", "{p}.v.conv", "{p}.v.norm"];
    assert_eq!(said(&tiny, at, conv, bn), "");
    std::fs::remove_file(tiny.path("deploy.safetensors")).unwrap();
    let weight = said(&tiny, at, "{p}.v.conv.weight", bn);
    assert!(
        weight.contains(
            "`{p}.v.conv.weight` is a tensor; `conv` takes the module, not its weight: `{p}.v.conv`"
        ),
        "{weight}"
    );
    let norm = said(&tiny, at, conv, "{p}.v.bn");
    assert!(
        norm.contains("the batch norm `net.v.bn` is missing; did you mean `net.v.norm`?"),
        "{norm}"
    );
    // `at` takes a module as well as a tensor.
    assert_eq!(said(&tiny, "{p}.v.conv", conv, bn), "");
}

#[test]
fn a_file_of_no_family_leads_on_three_ways() {
    let mut tiny = Tiny::empty();
    tiny.tensor("a.weight", &[4, 4, 3, 3], -1.0, 1.0);
    tiny.write();
    let ran = tiny.run(&["fuse", "train.safetensors", "deploy.safetensors"]);
    assert_eq!(ran.status, 1);
    for way in [
        "repfuse recipes learn",
        "repfuse fuse MODEL.onnx",
        "repfuse recipes --for",
    ] {
        assert!(ran.stderr.contains(way), "{}", ran.stderr);
    }
    let shown = tiny.run(&["inspect", "train.safetensors"]).stdout;
    assert!(shown.contains("repfuse recipes learn"), "{shown}");
}

#[test]
fn a_model_name_leads_to_its_recipes() {
    let tiny = Tiny::empty();
    let shown = tiny.prints(&["recipes", "--for", "yolov8n-cls.pt"]);
    assert!(shown.starts_with("ultralytics-cls"), "{shown}");
    assert_eq!(
        shown.lines().filter(|line| !line.starts_with(' ')).count(),
        1
    );
    let none = tiny.run(&["recipes", "--for", "no such model"]);
    assert_eq!(none.status, 1);
    assert!(
        none.stderr.contains("no recipe names `no such model`"),
        "{}",
        none.stderr
    );
}

/// Many recipes know any conv and norm. One is offered for a tensor that stands in the way where it has a place for it in one block
/// with all of its neighbours.
#[test]
fn a_recipe_is_offered_where_it_explains_the_block() {
    let (place, mut random) = (Place::new(), Random(5));
    let said = |file: &crate::support::forge::File, more: &str| {
        file.write(&place.path("in.safetensors"));
        let ran = place.run(&format!("fuse in.safetensors out.safetensors {more}"));
        assert_eq!(ran.code(), Some(2), "{}", ran.stderr);
        let stands = "stands among its tensors, and recipe ";
        assert!(ran.stderr.contains(stands), "{}", ran.stderr);
        ran.stderr
    };
    let mut more = checkpoint(2, 4);
    let branch = "stage0.0.rbr_dense_2";
    tensor(
        &mut more,
        &format!("{branch}.conv.weight"),
        &[4, 4, 3, 3],
        &mut random,
    );
    norm(&mut more, &format!("{branch}.bn"), 4, &mut random);
    let none = said(&more, "");
    assert!(!none.contains("knows it"), "{none}");
    let mut scaled = checkpoint(2, 4);
    tensor(&mut scaled, "stage0.0.alpha", &[1], &mut random);
    tensor(&mut scaled, "stage1.0.alpha", &[1], &mut random);
    let one = said(&scaled, "--recipe repvgg");
    assert!(one.contains("`--recipe mmyolo` "), "{one}");
    assert!(
        one.contains("knows it; pass `--beside 'stage0.0.alpha'`"),
        "{one}"
    );
}
