//! Several families in one file, blocks of one in the network of another, and what names leave open.

use crate::support::Random;
use crate::support::file::{Place, checkpoint};
use crate::support::forge::{File, Held};
use serde_json::Value;

fn norm(file: &mut File, random: &mut Random, path: &str, channels: usize) {
    for (end, low) in [
        ("weight", 0.5),
        ("bias", -0.5),
        ("running_mean", -0.5),
        ("running_var", 0.05),
    ] {
        let held = Held::random(random, &[channels], low, low + 1.0);
        file.tensors.insert(format!("{path}.{end}"), held);
    }
}

/// `<path>.conv` and `<path>.bn`.
fn conv(file: &mut File, random: &mut Random, path: &str, shape: &[usize]) {
    let held = Held::random(random, shape, -0.5, 0.5);
    file.tensors.insert(format!("{path}.conv.weight"), held);
    norm(file, random, &format!("{path}.bn"), shape[0]);
}

fn repvgg(file: &mut File, random: &mut Random, path: &str, channels: usize) {
    for (branch, extent) in [("rbr_dense", 3), ("rbr_1x1", 1)] {
        let shape = [channels, channels, extent, extent];
        conv(file, random, &format!("{path}.{branch}"), &shape);
    }
}

/// A network of ultralytics whose blocks are RepVGG's, one of them a layer of its own.
fn nested() -> File {
    let (mut file, mut random) = (File::default(), Random(3));
    conv(&mut file, &mut random, "model.0", &[4, 3, 3, 3]);
    conv(&mut file, &mut random, "model.1.cv1", &[4, 4, 1, 1]);
    conv(&mut file, &mut random, "model.1.cv2", &[4, 4, 1, 1]);
    repvgg(&mut file, &mut random, "model.1.m.0", 2);
    repvgg(&mut file, &mut random, "model.2", 4);
    norm(&mut file, &mut random, "model.2.rbr_identity", 4);
    conv(&mut file, &mut random, "model.3", &[4, 4, 3, 3]);
    file
}

fn json(place: &Place, args: &str) -> Value {
    let ran = place.run(&format!("{args} --json"));
    serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.stderr))
}

#[test]
fn guests_have_the_eps_of_their_host() {
    let place = Place::new();
    nested().write(&place.path("in.safetensors"));
    let found = json(&place, "fuse in.safetensors out.safetensors --verify");
    assert_eq!(found["verified"], true, "{found:#}");
    assert_eq!(found["blocks_fused"], 6);
    let families = found["families"].as_array().expect("families");
    let said = |i: usize, key: &str| families[i][key].clone();
    assert_eq!(
        [said(0, "recipe"), said(1, "recipe")],
        ["ultralytics", "repvgg"]
    );
    assert_eq!(said(0, "at"), serde_json::json!(["model"]));
    assert_eq!(said(1, "at"), serde_json::json!(["model.1.m", "model.2"]));
    assert_eq!(said(1, "host"), "ultralytics");
    assert_eq!(said(1, "bn_eps").as_f64(), Some(1e-3));
    assert_eq!(said(1, "bn_eps_source"), "host");
    assert_eq!(found["bn_eps"].as_f64(), Some(1e-3));
    let norms = File::read(&place.path("out.safetensors"));
    assert!(
        norms
            .tensors
            .keys()
            .all(|name| !name.contains("running_var"))
    );

    let own = json(
        &place,
        "fuse in.safetensors b.safetensors --bn-eps repvgg=1e-5",
    );
    assert_eq!(own["families"][1]["bn_eps"].as_f64(), Some(1e-5));
    assert_eq!(own["families"][1]["bn_eps_source"], "user");
    assert_eq!(own["families"][0]["bn_eps"].as_f64(), Some(1e-3));
    assert!(own["bn_eps"].is_null());
    let ran = place.run("fuse in.safetensors c.safetensors");
    assert!(
        ran.stdout
            .contains("repvgg: 2 blocks below model.1.m, model.2, in the network of"),
        "{}",
        ran.stdout
    );
    let ran = place.run("fuse in.safetensors d.safetensors --bn-eps dbb=1e-5");
    assert_eq!(
        ran.all(),
        (
            Some(2),
            "",
            "repfuse: an eps is given for recipe `dbb`, which is none of this file's: `ultralytics`, `repvgg`\n"
        )
    );
}

#[test]
fn families_side_by_side_have_their_own_eps() {
    let place = Place::new();
    let mut file = File::default();
    for (path, part) in [("reid", checkpoint(2, 4)), ("detector", nested())] {
        for (name, held) in part.tensors {
            if !name.contains("rbr_") || path == "reid" {
                file.tensors.insert(format!("{path}.{name}"), held);
            }
        }
    }
    file.write(&place.path("in.safetensors"));
    let found = json(&place, "fuse in.safetensors out.safetensors --verify");
    assert_eq!(found["recipe"], "ultralytics + repvgg", "{found:#}");
    assert!(found["bn_eps"].is_null());
    assert_eq!(found["families"][1]["bn_eps"].as_f64(), Some(1e-5));
    assert_eq!(found["families"][0]["bn_eps"].as_f64(), Some(1e-3));
    let written = File::read(&place.path("out.safetensors"));
    assert_eq!(
        written.metadata["repfuse.eps"],
        "ultralytics=1e-3, repvgg=1e-5"
    );
    let verified = place.run("verify in.safetensors out.safetensors -q");
    assert_eq!(verified.all(), (Some(0), "", ""));
    // A library that expects one family is told.
    let opened = repfuse::tensor::Checkpoint::open(place.path("in.safetensors")).expect("a file");
    let recipes = repfuse::recipe::builtin().expect("recipes");
    let error = repfuse::recipe::detect_one(opened.tensors(), &recipes).expect_err("two");
    assert_eq!(
        error.to_string(),
        "the file holds blocks of the recipes `ultralytics` and `repvgg`; one is expected"
    );
    // What no recipe covers is mentioned.
    let mut random = Random(9);
    conv(&mut file, &mut random, "other.0.big", &[4, 4, 3, 3]);
    conv(&mut file, &mut random, "other.0.small", &[4, 4, 1, 1]);
    file.write(&place.path("in.safetensors"));
    let ran = place.run("fuse in.safetensors out.safetensors --force");
    assert!(
        ran.stderr
            .contains("repfuse: other.0 look like branches of a block, and no recipe covers them"),
        "{}",
        ran.stderr
    );
    // Convs one behind another are none, whether each has a module of its own or not.
    file.tensors.retain(|name, _| !name.starts_with("other"));
    for (i, shape) in [[4, 4, 1, 1], [4, 4, 3, 3], [16, 4, 1, 1]]
        .iter()
        .enumerate()
    {
        let n = i + 1;
        conv(&mut file, &mut random, &format!("neck.0.conv{n}"), shape);
        let plain = format!("back.layer1.0.conv{n}.weight");
        let held = Held::random(&mut random, shape, -0.5, 0.5);
        file.tensors.insert(plain, held);
        let bn = format!("back.layer1.0.bn{n}");
        norm(&mut file, &mut random, &bn, shape[0]);
    }
    file.write(&place.path("in.safetensors"));
    let ran = place.run("fuse in.safetensors out.safetensors --force");
    assert!(
        ran.code() == Some(0) && !ran.stderr.contains("look like"),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_names_leave_open_is_warned_of() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    let ran = place.run("fuse in.safetensors out.safetensors");
    let start = "repfuse: warning: the names alone do not tell the eps; recipe `repvgg` has 1e-5, and 1e-3 would change a scale by up to ";
    assert!(ran.stderr.starts_with(start), "{}", ran.stderr);
    let found = json(&place, "verify in.safetensors out.safetensors");
    let warning = &found["warnings"][0];
    assert!(
        warning["tensors"][0]
            .as_str()
            .is_some_and(|t| t.ends_with(".running_var")),
        "{found:#}"
    );
    for settled in ["--bn-eps 1e-5", "-q"] {
        let ran = place.run(&format!(
            "fuse in.safetensors out.safetensors --force {settled}"
        ));
        assert_eq!(ran.stderr, "", "{settled}");
    }
    let root = env!("CARGO_MANIFEST_DIR");
    let blocks = format!("{root}/fixtures/ecbsr/prelu.train.safetensors");
    let open = json(
        &place,
        &format!("fuse {blocks} e.safetensors --recipe ecbsr"),
    );
    let said = open["warnings"][0]["sentence"]
        .as_str()
        .expect("a sentence")
        .to_owned();
    let identity = "the names alone do not tell whether 2 blocks that keep their width hold a bare identity, which adds 1 to the middle tap of each channel; recipe `ecbsr` was believed: ";
    assert!(said.starts_with(identity), "{said}");
    let sample = format!("{root}/fixtures/ecbsr/prelu.sample.safetensors");
    let decided = json(
        &place,
        &format!("fuse {blocks} f.safetensors --sample {sample}"),
    );
    assert_eq!(decided["warnings"], serde_json::json!([]));
    // One block of those two.
    let only = json(
        &place,
        &format!("fuse {blocks} g.safetensors --recipe ecbsr --only backbone.1"),
    );
    let said = only["warnings"][0]["sentence"]
        .as_str()
        .expect("a sentence");
    assert!(
        said.contains("1 block that keeps its width holds"),
        "{said}"
    );
}

#[test]
fn a_factor_that_no_file_holds_is_told() {
    let place = Place::new();
    let root = env!("CARGO_MANIFEST_DIR");
    let adapters = format!("{root}/fixtures/repadapter/blocks.train.safetensors");
    let summary = json(&place, &format!("fuse {adapters} out.safetensors"));
    let [warning] = &summary["warnings"].as_array().expect("warnings")[..] else {
        panic!("{summary:#}");
    };
    let said = warning["sentence"].as_str().expect("a sentence");
    let expected = "no file holds the factor of these blocks, and recipe `repadapter` takes it for 1: `set_RepAdapter`";
    assert!(said.starts_with(expected), "{said}");
    // The copy that the sentence asks for.
    let (recipe, text) = repfuse::recipe::source("repadapter").expect("a recipe");
    assert!(recipe.factor_note.is_some());
    let scaled = text.replace(
        r#"_B", "bias": true }]"#,
        r#"_B", "bias": true }, { "scale": 0.1 }]"#,
    );
    assert_ne!(scaled, text);
    std::fs::write(place.path("scaled.json"), scaled).expect("a recipe");
    let other = json(
        &place,
        &format!("fuse {adapters} scaled.safetensors --recipe scaled.json"),
    );
    let expression =
        |summary: &serde_json::Value| summary["blocks"][0]["outputs"][0]["expression"].clone();
    assert_eq!(expression(&summary), "1×1+b(x + 1×1+b(1×1+b))");
    assert_eq!(expression(&other), "1×1+b(x + 0.1·(1×1+b(1×1+b)))");
    let bytes = |name: &str| std::fs::read(place.path(name)).expect("a file");
    assert_ne!(bytes("scaled.safetensors"), bytes("out.safetensors"));
}

#[test]
fn the_library_checks_variances_itself() {
    let place = Place::new();
    let mut file = checkpoint(1, 4);
    file.at("stage0.0.rbr_dense.bn.running_var")
        .edit(|values| values[1] = -1e-6);
    file.write(&place.path("in.safetensors"));
    let train = repfuse::tensor::Checkpoint::open(place.path("in.safetensors")).expect("a file");
    let (recipe, _) = repfuse::recipe::source("repvgg").expect("a recipe");
    let options = repfuse::plan::Options::default();
    let plan = repfuse::plan::plan(train.tensors(), &recipe, &options).expect("a plan");
    let expected = "`stage0.0.rbr_dense.bn.running_var` is -1e-6 at [1]; a variance must be finite and not negative";
    let said = |error: repfuse::fuse::diagnose::Error| {
        error.to_string().replace("-9.999999974752427e-7", "-1e-6")
    };
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let out = place.path("out.safetensors");
    let fused = repfuse::fuse::fuse(&train, &plan, &out, &Default::default(), &go_on);
    assert_eq!(said(fused.expect_err("no fold")), expected);
    let form = repfuse::verify::Deployed::InMemory;
    let verified = repfuse::verify::verify(&train, &plan, form, &Default::default());
    assert_eq!(said(verified.expect_err("no verdict")), expected);
}

#[cfg(unix)]
#[test]
fn a_recipe_that_is_a_pipe_is_refused() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    let made = std::process::Command::new("mkfifo")
        .arg(place.path("own.json"))
        .status();
    assert!(made.expect("mkfifo").success());
    let ran = place.run("fuse in.safetensors out.safetensors --recipe own.json");
    assert_eq!(
        ran.all(),
        (
            Some(2),
            "",
            "repfuse: `own.json` is a named pipe, which may wait for ever; pass a file, or `/dev/stdin`\n"
        )
    );
}
