//! `verify --input`: the user's own maps through both forms of each block, with what no weight file stores.
//!
//! That the convolution itself is PyTorch's in every mode is held by `tests/library/torch_conv2d.rs`; here, that both forms see
//! the same maps and borders, and that a wrong weight shows.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::Random;
use crate::support::command::repfuse;
use crate::support::file::{Place, recipe as recipe_of};
use crate::support::forge::{File, Held};
use ndarray::Array4;
use repfuse::algebra::forward::Reading;
use repfuse::conv2d::block::run_part;
use repfuse::plan::{self, Options};
use repfuse::recipe;
use repfuse::tensor::{Checkpoint, Reader};
use tempfile::TempDir;

const TRAIN: &str = "repvgg/plain.train.safetensors";
const DEPLOY: &str = "repvgg/plain.deploy.safetensors";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

fn maps(directory: &TempDir, name: &str, channels: usize, size: usize) -> PathBuf {
    let mut random = Random(7);
    let held = Held::random(&mut random, &[2, channels, size, size], -1.0, 1.0);
    let mut file = File::default();
    file.tensors.insert(name.to_owned(), held);
    let path = directory.path().join("maps.safetensors");
    file.write(&path);
    path
}

fn verify(deploy: &Path, maps: &Path, more: &[&str]) -> Output {
    let mut command = repfuse();
    command
        .args(["verify", "--json"])
        .arg(fixture(TRAIN))
        .arg(deploy)
        .arg("--input")
        .arg(maps);
    command.args(more).output().expect("the command runs")
}

fn found(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn both_forms_agree_under_every_placement() {
    let directory = tempfile::tempdir().expect("a directory");
    let maps = maps(&directory, "x", 3, 9);
    for mode in ["zeros", "reflect", "replicate", "circular"] {
        for (stride, padding, size) in [
            ("1", "same", 9),
            ("2", "1", 5),
            ("2,1", "2,0", 6),
            ("3", "valid", 3),
        ] {
            let more = [
                "--padding-mode",
                mode,
                "--stride",
                stride,
                "--padding",
                padding,
            ];
            let output = verify(&fixture(DEPLOY), &maps, &more);
            let found = found(&output);
            assert!(output.status.success(), "{more:?}: {found}");
            let first = &found["maps"][0];
            assert_eq!(first["shape"][2], size, "{more:?}: {first}");
            let ratio = first["ratio"].as_f64().expect("a ratio");
            assert!(ratio > 0.0 && ratio < 1.0, "{more:?}: {first}");
        }
    }
}

/// Maps that bear a block's name go to that block alone, others to every block of their width.
#[test]
fn maps_find_their_blocks() {
    let directory = tempfile::tempdir().expect("a directory");
    let modules = |name: &str, channels: usize| -> Vec<String> {
        let output = verify(&fixture(DEPLOY), &maps(&directory, name, channels, 7), &[]);
        let found = found(&output);
        let all = found["maps"].as_array().expect("maps").clone();
        all.iter()
            .map(|m| m["module"].as_str().expect("a module").to_owned())
            .collect()
    };
    assert_eq!(modules("stage0", 3), ["stage0.rbr_reparam"]);
    assert_eq!(modules("x", 3), ["stage0.rbr_reparam"]);
    let wide = modules("x", 4);
    assert!(
        wide.len() > 1 && !wide.contains(&"stage0.rbr_reparam".to_owned()),
        "{wide:?}"
    );
}

#[test]
fn a_wrong_weight_shows_and_is_placed() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut file = File::read(&fixture(DEPLOY));
    file.at("stage0.rbr_reparam.weight").edit(|w| w[0] += 0.5);
    let altered = directory.path().join("altered.safetensors");
    file.write(&altered);
    let output = verify(&altered, &maps(&directory, "x", 3, 9), &[]);
    assert_eq!(output.status.code(), Some(1));
    let first = &found(&output)["maps"][0];
    assert_eq!(first["accepted"], false);
    assert_eq!(first["at"][1], 0, "output channel 0: {first}");
}

#[test]
fn maps_that_fit_nowhere_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = |maps: &Path, more: &[&str]| {
        let output = verify(&fixture(DEPLOY), maps, more);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let widths = refused(&maps(&directory, "x", 5, 9), &[]);
    assert!(
        widths.starts_with("repfuse: no block takes maps of 5 channels; the blocks take [3, "),
        "{widths}"
    );
    let small = refused(&maps(&directory, "stage0", 3, 2), &["--padding", "valid"]);
    assert_eq!(
        small,
        "repfuse: block `stage0.rbr_reparam`: a map of [2, 2] is smaller than the block's kernel [3, 3] with its padding\n"
    );
    let reflect = refused(
        &maps(&directory, "stage0", 3, 2),
        &["--padding", "2", "--padding-mode", "reflect"],
    );
    assert_eq!(
        reflect,
        "repfuse: block `stage0.rbr_reparam`: padding mode `reflect` cannot add 2 along an axis of 2\n"
    );
    let junk = directory.path().join("junk.npy");
    std::fs::write(&junk, b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9, 9, 9, 99999999), }\n").expect("a file");
    let junk = refused(&junk, &[]);
    assert!(
        junk.contains("junk.npy` does not hold feature maps: "),
        "{junk}"
    );
}

/// Maps are held to the bound of the probes: halves that are subnormal pass, and a kernel of zeros does not, whoever wrote it
/// and however many terms there are that could explain it away.
#[test]
fn maps_are_held_to_the_bound_of_the_probes() {
    let place = Place::new();
    let mut random = Random(5);
    let mut tensor = |shape: &[usize], size: f64| Held::random(&mut random, shape, -size, size);
    let mut file = File::default();
    for (name, shape, size) in [
        ("tiny.c.weight", [4, 4, 3, 3], 1e-7),
        ("deep.first.weight", [64, 64, 1, 1], 1.0),
        ("deep.second.weight", [64, 64, 3, 3], 1.0),
    ] {
        file.tensors.insert(name.to_owned(), tensor(&shape, size));
    }
    file.write(&place.path("in.safetensors"));
    place.write(
        "own.json",
        recipe_of(
            r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}},
               {"at": "{p}.first.weight", "fuse": {"{p}.out": {"seq": [{"conv": "{p}.first", "bias": "optional", "groups": 1}, {"conv": "{p}.second", "bias": "optional"}]}}}"#,
        ),
    );
    let mut maps = File::default();
    for (name, channels) in [("tiny", 4), ("deep", 64)] {
        let held = tensor(&[1, channels, 6, 6], 1.0);
        maps.tensors.insert(name.to_owned(), held);
    }
    maps.write(&place.path("maps.safetensors"));
    let accepted = |out: &str| {
        let ran = place.run(&format!(
            "verify in.safetensors {out} --recipe own.json --input maps.safetensors --json"
        ));
        let found: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let maps = found["maps"].as_array().expect("maps").clone();
        let one = |map: &serde_json::Value| {
            let module = map["module"].as_str().expect("a module").to_owned();
            (module, map["accepted"] == true)
        };
        maps.iter().map(one).collect::<Vec<_>>()
    };
    let both = |deep, tiny| vec![("deep.out".to_owned(), deep), ("tiny.out".to_owned(), tiny)];
    let fused = place.run("fuse in.safetensors out.safetensors --recipe own.json --dtype f16 -q");
    assert_eq!(fused.all(), (Some(0), "", ""));
    assert_eq!(accepted("out.safetensors"), both(true, true));
    // Another converter's file, in a type whose arithmetic is coarse.
    let mut zeros = File::read(&place.path("out.safetensors"));
    zeros.metadata.clear();
    zeros.at("deep.out.weight").dtype = safetensors::Dtype::BF16;
    zeros.at("deep.out.weight").bytes.fill(0);
    zeros.write(&place.path("zeros.safetensors"));
    assert_eq!(accepted("zeros.safetensors"), both(false, true));
}

/// The groups that a recipe declares hold on maps, too, where nothing else tells the width of a block.
#[test]
fn declared_groups_hold_on_maps() {
    let place = Place::new();
    let mut random = Random(7);
    let mut file = File::default();
    for (name, shape) in [
        ("a.first.weight", [4, 4, 1, 1]),
        ("a.dw.weight", [4, 1, 3, 3]),
        ("a.dense.weight", [4, 4, 3, 3]),
        ("a.plain.weight", [4, 4, 3, 3]),
    ] {
        let held = Held::random(&mut random, &shape, -1.0, 1.0);
        file.tensors.insert(name.to_owned(), held);
    }
    file.write(&place.path("in.safetensors"));
    place.write(
        "own.json",
        recipe_of(
            r#"{"at": "{p}.first.weight", "fuse": {"{p}.out": {"sum": [
                {"seq": [{"conv": "{p}.first", "bias": "optional"}, {"sum": [{"conv": "{p}.dw", "bias": "optional", "groups": "depthwise"}, {"conv": "{p}.dense", "bias": "optional"}]}]},
                {"conv": "{p}.plain", "bias": "optional"}]}}}"#,
        ),
    );
    let directory = tempfile::tempdir().expect("a directory");
    for (channels, code) in [(4, Some(0)), (8, Some(2))] {
        let maps = maps(&directory, "a", channels, 6);
        let verify = "verify in.safetensors --recipe own.json --quiet --input";
        let ran = place.run(&format!("{verify} {}", maps.display()));
        assert_eq!(ran.code(), code, "{}", ran.stderr);
    }
}

/// Maps are two-dimensional; a block that is not is refused, and so is a part of a block on the maps of another.
#[test]
fn maps_and_blocks_that_do_not_fit_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let maps = maps(&directory, "backbone.layer3.0", 4, 6);
    let refused = repfuse()
        .arg("verify")
        .arg(fixture("repvgg/connectomics-3d.train.safetensors"))
        .arg("--input")
        .arg(maps)
        .output()
        .expect("the command runs");
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr),
        "repfuse: block `backbone.layer3.0.rbr_reparam`: a kernel of [3, 3, 3] has a depth; only two-dimensional maps are run\n"
    );

    let checkpoint = Checkpoint::open(fixture(TRAIN)).expect("a checkpoint");
    let (recipe, _) = recipe::source("repvgg").expect("a recipe");
    let plan = plan::plan(checkpoint.tensors(), &recipe, &Options::default()).expect("a plan");
    let [first, second] = [0, 1].map(|i| plan.blocks()[i].fused()[0].expr());
    let x = Array4::<f64>::zeros((1, first.geometry().inputs(), 5, 5));
    let mut reader = Reader::new(&checkpoint, 1 << 16);
    let mut run = |part| run_part(first, part, x.view(), [1, 1], Reading::Value, &mut reader);
    assert!(run(first.root()).is_ok());
    let error = run(second.root()).expect_err("other channels");
    let expected = format!(
        "a part over {} channels is run on 3",
        second.geometry().inputs()
    );
    assert_eq!(error.to_string(), expected);
}
