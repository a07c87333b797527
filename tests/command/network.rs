//! Whole networks against the authors' own forward pass.
//!
//! `fixtures/network/<case>.safetensors` is a tiny network in training form; `<case>.maps.safetensors` holds images and
//! the logits that its own code gives, in f64 and in f32.

use std::path::{Path, PathBuf};

use crate::support::command::repfuse;
use crate::support::forge::File;
use ndarray::{Array2, Array4};
use repfuse::network::{Outputs, sequential};
use repfuse::plan::{self, Options, Plan};
use repfuse::recipe;
use repfuse::tensor::Checkpoint;
use repfuse::tensor::arrays::read_arrays;
use repfuse::verify::Deployed;

const CASES: [&str; 5] = [
    "mobileone-se",
    "repvgg-groups",
    "repvgg-se",
    "timm-mobileone-se",
    "timm-repvgg-se",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/network")
        .join(name)
}

fn open(case: &str) -> (Checkpoint, Plan) {
    let checkpoint =
        Checkpoint::open(fixture(&format!("{case}.safetensors"))).expect("a checkpoint");
    let recipes = recipe::builtin().expect("built-in recipes");
    let found = recipe::detect_one(checkpoint.tensors(), &recipes).expect("one recipe");
    let plan = plan::plan(checkpoint.tensors(), found, &Options::default()).expect("a plan");
    (checkpoint, plan)
}

/// The images, and the logits that the authors' code gives in f64 and in f32.
fn expected(case: &str) -> (Array4<f64>, Array2<f64>, Array2<f64>) {
    let path = fixture(&format!("{case}.maps.safetensors"));
    let file = File::read(&path);
    let logits = |name: &str| {
        let held = &file.tensors[name];
        let [n, classes] = held.shape[..] else {
            panic!("{name} is {:?}", held.shape)
        };
        let values = match held.bytes.len() / (n * classes) {
            8 => held
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b))
                .collect(),
            _ => held.values().into_iter().map(f64::from).collect(),
        };
        Array2::from_shape_vec((n, classes), values).expect("a matrix")
    };
    let images = File {
        tensors: file
            .tensors
            .clone()
            .into_iter()
            .filter(|(n, _)| n == "images")
            .collect(),
        ..File::default()
    };
    let directory = tempfile::tempdir().expect("a directory");
    images.write(&directory.path().join("images.safetensors"));
    let mut arrays = read_arrays(&directory.path().join("images.safetensors")).expect("arrays");
    (arrays.remove(0).1, logits("logits"), logits("logits_f32"))
}

fn off(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    let largest = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
        / largest
}

#[test]
fn the_training_form_gives_the_authors_logits() {
    for case in CASES {
        let (checkpoint, plan) = open(case);
        let (images, f64s, f32s) = expected(case);
        let network = sequential(&checkpoint, &plan).expect("a sequential network");
        let double = network
            .outputs(&checkpoint, Deployed::InMemory, images.view())
            .expect("logits");
        assert!(
            off(&double.trained, &f64s) < 1e-12,
            "{case}: {:e}",
            off(&double.trained, &f64s)
        );
        let single: Outputs = network
            .outputs(
                &checkpoint,
                Deployed::InMemory,
                images.mapv(|x| x as f32).view(),
            )
            .expect("logits");
        assert!(
            off(&single.trained, &f32s) < 1e-4,
            "{case}: {:e}",
            off(&single.trained, &f32s)
        );
        // The deploy form differs by the rounding of its weights: not at all would mean it is not another form.
        let rounding = off(&double.deployed, &f64s);
        assert!(rounding > 1e-12 && rounding < 1e-4, "{case}: {rounding:e}");
    }
}

/// A network that is not a plain sequence is refused by name, not run wrongly.
#[test]
fn what_is_not_known_from_the_file_is_not_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("altered.safetensors");
    let mut file = File::read(&fixture("repvgg-groups.safetensors"));
    let head = file.at("linear.weight").clone();
    file.tensors.insert("neck.weight".to_owned(), head);
    file.write(&path);
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    let (recipe, _) = recipe::source("repvgg").expect("a recipe");
    let plan = plan::plan(checkpoint.tensors(), &recipe, &Options::default()).expect("a plan");
    let error = sequential(&checkpoint, &plan).expect_err("`neck.weight` has no place");
    assert_eq!(
        error.to_string(),
        "`neck.weight` has no place in the network that recipe `repvgg` describes; it is not known from the file"
    );
    let (repconv, _) = recipe::source("repconv").expect("a recipe");
    let notes =
        Checkpoint::open(fixture("../repconv/notes.train.safetensors")).expect("a checkpoint");
    let plan = plan::plan(notes.tensors(), &repconv, &Options::default()).expect("a plan");
    let error = sequential(&notes, &plan).expect_err("no network");
    assert_eq!(
        error.to_string(),
        "recipe `repconv` does not say how its blocks make up a network"
    );
}

#[test]
fn the_command_reports_agreement_and_both_divergences() {
    let case = fixture("timm-mobileone-se.safetensors");
    let run = repfuse()
        .args([
            "verify",
            "--end-to-end",
            "--json",
            "--images",
            "3",
            "--size",
            "32",
            "--dropout",
            "0.2",
        ])
        .arg(&case)
        .output()
        .expect("the command runs");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let found: serde_json::Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let whole = &found["end_to_end"];
    assert_eq!(whole["images"], 3);
    assert_eq!(whole["top1_agreement"], 1.0);
    let number = |key: &str| whole[key].as_f64().expect("a number");
    assert!(number("largest_logit_difference") > 0.0 && number("largest_logit_difference") < 1e-6);
    // What dropout leaves between two passes is far more than what fusing does.
    assert!(
        number("dropout_kl") > 1e6 * number("bidirectional_kl"),
        "{whole}"
    );
}

/// Images that are run one by one give what all of them give together.
#[test]
fn images_may_be_run_some_at_a_time() {
    for case in CASES {
        let (checkpoint, plan) = open(case);
        let network = sequential(&checkpoint, &plan).expect("a network");
        let (images, ..) = expected(case);
        let run = |images: ndarray::ArrayView4<'_, f64>| -> Outputs {
            let outputs = network.outputs(&checkpoint, Deployed::InMemory, images);
            outputs.expect("logits")
        };
        let whole = run(images.view());
        let mut parts = images.axis_chunks_iter(ndarray::Axis(0), 1).map(run);
        let mut joined = parts.next().expect("an image");
        for part in parts {
            joined.append(&part).expect("as many classes");
        }
        assert_eq!(joined.trained, whole.trained, "{case}");
        assert_eq!(joined.deployed, whole.deployed, "{case}");
        assert_eq!(joined.trained_features, whole.trained_features, "{case}");
    }
}
