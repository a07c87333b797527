//! Samples: maps of the author's network decide what names leave open.

use std::path::Path;

use crate::support::Random;
use crate::support::file::{Place, checkpoint};
use crate::support::forge::{File, Held};
use ndarray::{Array4, Axis, Slice};
use repfuse::algebra::forward::Reading;
use repfuse::conv2d::PaddingMode;
use repfuse::conv2d::block::{Placement, pad, run};
use repfuse::plan;
use repfuse::recipe;
use repfuse::tensor::{Checkpoint, Float, Reader};
use serde_json::Value;

pub(super) fn fixture(name: &str, end: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    format!("{root}/fixtures/{name}.{end}.safetensors")
}

/// What `fuse` does with a fixture and its sample: the exit status, and the JSON.
fn fused(train: &str, sample: &str, flags: &str) -> (Option<i32>, Value, Place) {
    let place = Place::new();
    let (train, sample) = (fixture(train, "train"), fixture(sample, "sample"));
    let ran = place.run(&format!(
        "fuse {train} out.safetensors --verify --json --sample {sample} {flags}"
    ));
    let json = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.stderr));
    (ran.code(), json, place)
}

/// That a sample leads to this recipe and eps, and its file to the author's.
fn leads_to(name: &str, recipe: &str, eps: Option<f64>, source: &str, activation: &str) {
    let (code, json, place) = fused(name, name, "");
    assert_eq!(code, Some(0), "{name}: {json:#}");
    assert_eq!(json["recipe"], recipe, "{name}");
    assert_eq!(json["bn_eps"].as_f64(), eps, "{name}");
    assert_eq!(json["bn_eps_source"], source, "{name}");
    let sample = &json["sample"];
    assert_eq!(sample["accepted"], true, "{name}");
    for record in sample["records"].as_array().expect("records") {
        assert_eq!(record["activation"], activation, "{name}: {record:#}");
        assert_eq!(record["compared"], record["recorded"], "{name}: {record:#}");
    }
    let (ours, theirs) = (
        File::read(&place.path("out.safetensors")),
        File::read(Path::new(&fixture(name, "deploy"))),
    );
    for (name, held) in ours
        .tensors
        .iter()
        .filter(|(name, _)| !name.ends_with(".alpha"))
    {
        let theirs = &theirs.tensors[name];
        assert_eq!(held.shape, theirs.shape, "{name}");
        if held.dtype == theirs.dtype && held.dtype == safetensors::Dtype::F32 {
            let largest = theirs.values().iter().fold(0f32, |a, b| a.max(b.abs()));
            for (a, b) in held.values().iter().zip(theirs.values()) {
                assert!(
                    (a - b).abs() <= 1e-5 * largest.max(1e-3),
                    "{name}: {a}, {b}"
                );
            }
        }
    }
}

/// That a sample does not support what was asked for: the lines that say why.
fn refused(train: &str, sample: &str, flags: &str) -> String {
    let (code, json, place) = fused(train, sample, flags);
    assert_eq!(code, Some(1), "{train}: {json:#}");
    assert_eq!(place.names(), [] as [&str; 0], "{train}");
    json["error"].as_str().expect("a reason").to_owned()
}

#[test]
fn what_names_leave_open_is_decided() {
    leads_to(
        "yolov6-qarepvgg/yolov6n-qa",
        "yolov6-qarepvgg",
        Some(1e-3),
        "recipe",
        "ReLU",
    );
    leads_to(
        "yolov6-qarepvggv2/yolov6n-qav2",
        "yolov6-qarepvggv2",
        Some(1e-3),
        "recipe",
        "ReLU",
    );
    leads_to("ecbsr/prelu", "ecbsr", None, "recipe", "identity");
    leads_to(
        "ecbsr-idt/identity",
        "ecbsr-idt",
        None,
        "recipe",
        "identity",
    );
    leads_to(
        "yolo-nas/yolo-nas",
        "yolo-nas",
        Some(1e-3),
        "recipe",
        "ReLU",
    );
    leads_to(
        "yolo-nas-pose/yolo-nas-pose",
        "yolo-nas-pose",
        Some(1e-6),
        "recipe",
        "ReLU",
    );
    leads_to("repvgg/plain", "repvgg", Some(1e-5), "recipe", "ReLU");
    leads_to("mmyolo/yolov6", "mmyolo", Some(1e-3), "recipe", "ReLU");
    leads_to("yolov6/yolov6n", "yolov6", Some(1e-3), "recipe", "ReLU");
    leads_to(
        "mmyolo-ppyoloe/ppyoloe-plus",
        "mmyolo-ppyoloe",
        Some(1e-5),
        "recipe",
        "SiLU",
    );
}

#[test]
fn another_eps_is_found_and_alpha_by_the_recipe_that_knows_it() {
    leads_to("mmyolo/alpha", "mmyolo", Some(1e-3), "recipe", "ReLU");
    // RepVGG's names with 1e-3.
    let (code, json, _) = fused("mmyolo/yolov6", "mmyolo/yolov6", "--recipe repvgg");
    assert_eq!(code, Some(0), "{json:#}");
    assert_eq!(json["bn_eps"].as_f64(), Some(1e-3));
    assert_eq!(json["bn_eps_source"], "sample");
    assert_eq!(json["sample"]["bn_eps_decided"], true);
}

#[test]
fn what_was_asked_for_is_not_changed_but_refused() {
    let said = refused("mmyolo/yolov6", "mmyolo/yolov6", "--bn-eps 1e-5");
    assert!(
        said.contains("supports recipe mmyolo with bn eps 1e-3"),
        "{said}"
    );
    let said = refused("ecbsr-idt/identity", "ecbsr-idt/identity", "--recipe ecbsr");
    assert!(
        said.contains("a bare identity that the recipe lacks explains it"),
        "{said}"
    );
    assert!(said.contains("supports recipe ecbsr-idt"), "{said}");
    let said = refused("ecbsr/prelu", "ecbsr/prelu", "--recipe ecbsr-idt");
    assert!(
        said.contains("it lacks a bare identity, which the recipe assumes"),
        "{said}"
    );
    let v2 = "yolov6-qarepvggv2/yolov6n-qav2";
    let said = refused(v2, v2, "--recipe yolov6-qarepvgg");
    assert!(
        said.contains("an average pooling over 3×3 that the recipe lacks"),
        "{said}"
    );
    // Maps of other weights.
    let said = refused(
        "repvgg/plain",
        "repvgg/plain",
        "--recipe repvgg --bn-eps 1e-2",
    );
    assert!(
        said.contains("the sample supports recipe repvgg with bn eps 1e-5"),
        "{said}"
    );
}

#[test]
fn verify_says_the_same() {
    let place = Place::new();
    let v2 = "yolov6-qarepvggv2/yolov6n-qav2";
    let files = format!("{} {}", fixture(v2, "train"), fixture(v2, "deploy"));
    let run = |flags: &str| {
        let sample = fixture(v2, "sample");
        place.run(&format!("verify {files} --sample {sample} {flags}"))
    };
    let ran = run("");
    assert_eq!(ran.code(), Some(0), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("it decided: recipe yolov6-qarepvggv2"),
        "{}",
        ran.stdout
    );
    let ran = run("--recipe yolov6-qarepvgg --json");
    assert_eq!(ran.code(), Some(1));
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["accepted"], false);
    assert_eq!(json["sample"]["accepted"], false);
    assert_eq!(json["sample"]["instead"]["recipe"], "yolov6-qarepvggv2");
}

/// A sample of one family in a file of two decides its eps, and leaves the other's.
#[test]
fn a_family_among_others_has_the_eps_of_its_sample() {
    let other = File::read(Path::new(&fixture("mobileone/plain", "train")));
    for eps in [1e-5, 1e-3] {
        let (place, sample) = recorded(&Net {
            eps,
            ..Net::default()
        });
        let below = |file: File, path: &str| {
            let renamed = file.tensors.into_iter();
            let renamed = renamed.map(|(name, held)| (format!("{path}.{name}"), held));
            renamed.collect::<Vec<_>>()
        };
        let mut both = File::default();
        let train = File::read(&place.path("train.safetensors"));
        both.tensors.extend(below(train, "body"));
        both.tensors.extend(below(other.clone(), "image"));
        both.write(&place.path("train.safetensors"));
        let mut maps = File::default();
        maps.tensors.extend(below(sample, "body"));
        maps.write(&place.path("sample.safetensors"));
        let json = json_of(&place, "");
        assert_eq!(json["sample"]["accepted"], true, "{json:#}");
        let families = json["families"].as_array().expect("families");
        let of = |name: &str| {
            let found = families.iter().find(|family| family["recipe"] == name);
            found.unwrap_or_else(|| panic!("{name}: {families:#?}"))
        };
        assert_eq!(of("repvgg")["bn_eps"].as_f64(), Some(eps));
        assert_eq!(of("mobileone")["bn_eps_source"], "recipe");
        let source = if eps == 1e-5 { "recipe" } else { "sample" };
        assert_eq!(of("repvgg")["bn_eps_source"], source);
        // What the user gives stays.
        let json = json_of(&place, "--bn-eps repvgg=1e-4 --force");
        assert!(json["error"].is_string(), "{json:#}");
    }
}

/// How a test's own network lays its blocks.
pub(super) struct Net {
    pub(super) placement: Placement,
    pub(super) activation: fn(f64) -> f64,
    pub(super) float: Float,
    pub(super) eps: f64,
    pub(super) size: [usize; 2],
}

impl Default for Net {
    fn default() -> Net {
        Net {
            placement: Placement {
                stride: [1, 1],
                padding: [[1, 1]; 2],
                mode: PaddingMode::Zeros,
            },
            activation: |x| x,
            float: Float::F32,
            eps: 1e-5,
            size: [9, 8],
        }
    }
}

pub(super) fn held(float: Float, maps: &Array4<f64>) -> Held {
    let values: Vec<f64> = maps.iter().copied().collect();
    let mut bytes = vec![0; values.len() * float.size()];
    float.encode(&values, &mut bytes);
    Held {
        dtype: match float {
            Float::F16 => safetensors::Dtype::F16,
            Float::Bf16 => safetensors::Dtype::BF16,
            Float::F32 => safetensors::Dtype::F32,
            Float::F64 => safetensors::Dtype::F64,
        },
        shape: maps.shape().to_vec(),
        bytes,
    }
}

/// RepVGG's blocks in `train.safetensors`, with what a network makes of them in `sample.safetensors`.
pub(super) fn recorded(net: &Net) -> (Place, File) {
    let (place, mut random) = (Place::new(), Random(5));
    let train = checkpoint(2, 6);
    train.write(&place.path("train.safetensors"));
    let file = Checkpoint::open(place.path("train.safetensors")).expect("a checkpoint");
    let options = plan::Options {
        bn_eps: Some(net.eps),
        ..plan::Options::default()
    };
    let (recipe, _) = recipe::source("repvgg").expect("a recipe");
    let plan = plan::plan(file.tensors(), &recipe, &options).expect("a plan");
    let mut sample = File::default();
    for block in plan.blocks() {
        let [h, w] = net.size;
        let x = Array4::from_shape_fn((1, 6, h, w), |_| net.float.round(random.between(-1.0, 1.0)));
        let padded = pad(x.view(), &net.placement).expect("a border");
        let mut reader = Reader::new(&file, 1 << 20);
        let expr = block.fused()[0].expr();
        let stride = net.placement.stride;
        let y = run(expr, padded.view(), stride, Reading::Value, &mut reader).expect("maps");
        let y = y.mapv(net.activation);
        for (end, maps) in [("input", &x), ("output", &y)] {
            let name = format!("{}.{end}", block.name());
            sample.tensors.insert(name, held(net.float, maps));
        }
    }
    sample.write(&place.path("sample.safetensors"));
    (place, sample)
}

pub(super) fn json_of(place: &Place, flags: &str) -> Value {
    let ran = place.run(&format!(
        "fuse train.safetensors out.safetensors --sample sample.safetensors --json {flags}"
    ));
    serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.stderr))
}

#[test]
fn stride_padding_and_activation_are_found() {
    let placed = |stride, padding, mode| Placement {
        stride,
        padding,
        mode,
    };
    let (zeros, one) = (PaddingMode::Zeros, [[1, 1]; 2]);
    let silu: fn(f64) -> f64 = |x| x / (1.0 + (-x).exp());
    let leaky: fn(f64) -> f64 = |x| if x > 0.0 { x } else { 0.1 * x };
    let hard: fn(f64) -> f64 = |x| x * (x + 3.0).clamp(0.0, 6.0) / 6.0;
    for (placement, activation, name) in [
        (placed([1, 1], one, zeros), silu, "SiLU"),
        (placed([2, 2], one, zeros), leaky, "LeakyReLU(0.1)"),
        (placed([2, 1], one, zeros), hard, "Hardswish"),
        (placed([1, 1], [[0, 0]; 2], zeros), silu, "SiLU"),
    ] {
        let net = Net {
            placement,
            activation,
            ..Net::default()
        };
        let json = json_of(&recorded(&net).0, "");
        for record in json["sample"]["records"].as_array().expect("records") {
            assert_eq!(record["activation"], name, "{json:#}");
            assert_eq!(record["stride"], serde_json::json!(placement.stride));
            assert_eq!(record["padding"], serde_json::json!(placement.padding));
            assert_eq!(record["compared"], record["recorded"]);
        }
    }
    // Another padding than zeros is no part of the block: the inside is compared, and this is said.
    let net = Net {
        placement: placed([1, 1], one, PaddingMode::Reflect),
        ..Net::default()
    };
    let (place, _) = recorded(&net);
    let json = json_of(&place, "");
    let record = &json["sample"]["records"][0];
    assert_eq!(record["compared"], 6 * 7 * 6);
    assert_eq!(record["recorded"], 6 * 9 * 8);
    let ran = place.run("verify train.safetensors --sample sample.safetensors");
    assert!(
        ran.stdout.contains("2 without their borders"),
        "{}",
        ran.stdout
    );
}

#[test]
fn each_usual_eps_is_told_from_the_others() {
    for eps in [1e-5, 1e-3, 1e-6, 1e-4, 1e-2] {
        let (place, _) = recorded(&Net {
            eps,
            ..Net::default()
        });
        let json = json_of(&place, "");
        assert_eq!(json["bn_eps"].as_f64(), Some(eps), "{json:#}");
        assert_eq!(
            json["sample"]["bn_eps_also"],
            serde_json::json!([]),
            "{eps}"
        );
    }
    // One that is not usual is supported by nothing.
    let (place, _) = recorded(&Net {
        eps: 0.03,
        ..Net::default()
    });
    let json = json_of(&place, "");
    let said = json["error"].as_str().expect("a reason");
    assert!(said.contains("the norms have another eps"), "{said}");
    assert!(said.contains("none of the"), "{said}");
}

#[test]
fn half_types_are_allowed_what_they_are_off_by() {
    for float in [Float::F16, Float::Bf16] {
        let (place, sample) = recorded(&Net {
            float,
            activation: |x| x.max(0.0),
            ..Net::default()
        });
        let json = json_of(&place, "");
        assert_eq!(json["sample"]["accepted"], true, "{json:#}");
        assert_eq!(json["bn_eps"].as_f64(), Some(1e-5));
        // What is plainly wrong is seen all the same.
        let mut other = sample.clone();
        let output = other.at("stage1.0.output");
        output.bytes.reverse();
        other.write(&place.path("sample.safetensors"));
        assert!(json_of(&place, "")["error"].is_string());
    }
}

/// Doubles the 1×1 branch of the file: what ran counts half of it.
pub(super) fn double_the_point(place: &Place) {
    let mut train = File::read(&place.path("train.safetensors"));
    for end in ["weight", "bias"] {
        train
            .at(&format!("stage1.0.rbr_1x1.bn.{end}"))
            .edit(|values| values.iter_mut().for_each(|x| *x *= 2.0));
    }
    train.write(&place.path("train.safetensors"));
}

#[test]
fn a_factor_on_a_branch_is_named() {
    let (place, _) = recorded(&Net {
        activation: |x| x.max(0.0),
        ..Net::default()
    });
    double_the_point(&place);
    let json = json_of(&place, "");
    let said = json["error"].as_str().expect("a reason");
    assert!(
        said.contains("0.5000 times the branch bn(1×1) explains it"),
        "{said}"
    );
}

#[test]
fn names_may_begin_elsewhere() {
    let (place, sample) = recorded(&Net::default());
    let mut renamed = File::default();
    for (name, held) in &sample.tensors {
        let name = match name.strip_prefix("stage0.0") {
            Some(rest) => format!("model.stage0.0{rest}"),
            None => name.replace("stage1.0", "stage1.0.rbr_reparam"),
        };
        renamed.tensors.insert(name, held.clone());
    }
    renamed
        .tensors
        .insert("head.input".to_owned(), Held::f32(&[1, 6], &[0.0; 6]));
    renamed
        .tensors
        .insert("head.output".to_owned(), Held::f32(&[1, 6], &[0.0; 6]));
    renamed.write(&place.path("sample.safetensors"));
    let json = json_of(&place, "");
    assert_eq!(
        json["sample"]["records"].as_array().map(Vec::len),
        Some(2),
        "{json:#}"
    );
    assert_eq!(json["sample"]["ignored"][0]["name"], "head");
    // A part of the maps is no whole.
    let mut cut = sample.clone();
    let shape = cut.at("stage0.0.output").shape.clone();
    let maps = Array4::<f64>::zeros((1, shape[1], shape[2], shape[3]));
    let cut_maps = maps.slice_axis(Axis(2), Slice::from(..6)).to_owned();
    cut.tensors
        .insert("stage0.0.output".to_owned(), held(Float::F32, &cut_maps));
    cut.write(&place.path("sample.safetensors"));
    let json = json_of(&place, "--force");
    let reason = json["sample"]["ignored"][0]["reason"]
        .as_str()
        .unwrap_or_else(|| panic!("{json:#}"));
    assert!(reason.contains("no usual stride and padding"), "{reason}");
}

#[test]
fn files_that_are_no_sample_are_refused() {
    let (place, sample) = recorded(&Net::default());
    let refused = |sample: &File, expected: &str| {
        sample.write(&place.path("sample.safetensors"));
        let ran = place.run("fuse train.safetensors out.safetensors --sample sample.safetensors");
        assert_eq!(ran.code(), Some(2), "{expected}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert!(!place.path("out.safetensors").exists());
    };
    let without = |name: &str| {
        let mut file = sample.clone();
        file.tensors.remove(name);
        file
    };
    refused(&without("stage0.0.input"), "`stage0.0.input` is missing");
    refused(&without("stage1.0.output"), "`stage1.0.output` is missing");
    refused(&File::default(), "it is empty");
    let mut other = sample.clone();
    other
        .tensors
        .insert("x".to_owned(), Held::f32(&[1], &[0.0]));
    refused(
        &other,
        "`x` is neither `<block>.input` nor `<block>.output`",
    );
    let mut other = sample.clone();
    other
        .at("stage0.0.output")
        .edit(|values| values[3] = f32::NAN);
    refused(&other, "`stage0.0.output` holds NaN");
    let mut other = File::default();
    for (name, held) in &sample.tensors {
        other.tensors.insert(format!("a{name}"), held.clone());
    }
    refused(&other, "no recorded block can be compared");
    let mut other = sample.clone();
    for held in other.tensors.values_mut() {
        held.bytes.fill(0);
        held.dtype = safetensors::Dtype::I32;
    }
    refused(&other, "has dtype I32");
}
