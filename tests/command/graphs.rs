//! ONNX graphs: every fixture is fused, verified, run in both forms and compared with what onnxruntime computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use serde_json::Value;

use crate::support::file::{Place, files_below};
use crate::support::fixtures::fixtures;
use crate::support::graphs::{Counts, apart, counts, open, run};
use crate::support::onnx::{Message, graph, model, node, tensor, value};
use repfuse::graph::onnx::Onnx;
use repfuse::graph::{GraphFile, file};
use repfuse::network::graphs::Network;
use repfuse::plan::Options;
use repfuse::tensor::Checkpoint;
use repfuse::tensor::arrays::read_any_arrays;
use repfuse::verify::{self, Verdict};

/// A fixture: its nodes before and after, and what `inspect` says about something that stays.
struct Case(&'static str, Counts, Counts, &'static str);

const CASES: &[Case] = &[
    Case("acnet", [3, 0, 3, 2], [1, 0, 0, 0], ""),
    Case("auto-pad", [2, 0, 0, 1], [1, 0, 0, 0], ""),
    Case("bfloat", [2, 0, 0, 1], [1, 0, 0, 0], ""),
    Case("border-dbb", [3, 0, 1, 55], [1, 0, 0, 0], ""),
    Case("border-dbb-dynamo", [3, 0, 0, 7], [1, 0, 0, 0], ""),
    Case("border-ecbsr", [3, 0, 0, 55], [1, 0, 0, 0], ""),
    Case("border-ecbsr-dynamo", [3, 0, 0, 7], [1, 0, 0, 0], ""),
    Case("concat", [3, 0, 0, 1], [1, 0, 0, 0], ""),
    Case("conv1d", [1, 0, 1, 0], [1, 0, 0, 0], ""),
    Case("conv3d", [2, 0, 0, 1], [1, 0, 0, 0], ""),
    Case("dbb", [5, 0, 4, 4], [1, 0, 0, 0], ""),
    Case("dilated", [3, 0, 3, 2], [1, 0, 0, 0], ""),
    Case("dilated-alone", [1, 0, 1, 0], [1, 0, 0, 0], ""),
    Case("divided", [2, 0, 2, 4], [1, 0, 0, 0], ""),
    Case("dynamic", [4, 0, 6, 4], [2, 0, 0, 0], ""),
    Case("external", [4, 0, 5, 3], [2, 0, 0, 0], ""),
    Case("fastvit", [2, 0, 4, 5], [1, 0, 0, 0], ""),
    Case("half", [2, 0, 0, 1], [1, 0, 0, 0], ""),
    Case("levit", [0, 2, 2, 4], [0, 2, 0, 2], ""),
    Case("mobileone", [5, 0, 6, 6], [2, 0, 0, 0], ""),
    Case("not-activated", [2, 0, 0, 1], [2, 0, 0, 1], ""),
    Case(
        "not-aligned",
        [2, 0, 0, 2],
        [2, 0, 0, 1],
        "the paddings of its inputs do not line up",
    ),
    Case(
        "not-cheaper",
        [2, 0, 0, 0],
        [2, 0, 0, 0],
        "one conv would be dearer: 144 parameters for 40, 144 multiply-adds per output for 40",
    ),
    Case(
        "not-constant",
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        "its weight is no constant",
    ),
    Case(
        "not-once",
        [2, 0, 0, 0],
        [2, 0, 0, 0],
        "what stands before it is read by something else, too",
    ),
    Case(
        "not-padded",
        [2, 0, 0, 0],
        [2, 0, 0, 0],
        "it pads with zeros where a constant has been added",
    ),
    Case(
        "not-strided",
        [2, 0, 0, 0],
        [2, 0, 0, 0],
        "what stands before it has a stride",
    ),
    Case("old", [2, 0, 0, 1], [1, 0, 0, 0], ""),
    Case("padded-input", [2, 0, 0, 1], [1, 0, 0, 0], ""),
    Case("pre-norm", [0, 1, 1, 0], [0, 1, 0, 0], ""),
    Case("repvgg", [4, 0, 5, 3], [2, 0, 0, 0], ""),
    Case("repvgg-dynamo", [4, 0, 1, 3], [2, 0, 0, 0], ""),
    Case("repvgg-eval", [4, 0, 1, 3], [2, 0, 0, 0], ""),
    Case("repvit", [2, 0, 2, 2], [1, 0, 0, 0], ""),
    Case("repvit-legacy", [2, 0, 2, 2], [1, 0, 0, 0], ""),
    Case("residual", [1, 0, 2, 3], [1, 0, 0, 0], ""),
    Case("span", [4, 0, 0, 2], [1, 0, 0, 0], ""),
    Case("transposed", [1, 0, 1, 0], [1, 0, 0, 0], ""),
    Case("yolov10", [2, 0, 2, 1], [1, 0, 0, 0], ""),
    Case("yolov6", [4, 0, 5, 3], [2, 0, 0, 0], ""),
];

/// Types and operators that rten does not compute with; their blocks are proved all the same.
const NOT_RUN: &[&str] = &["bfloat", "conv3d", "half", "not-constant"];

/// Of these, rten runs what was made of them: it wants strides where a padding is given by name.
const NOT_RUN_BEFORE: &[&str] = &["auto-pad", "old"];

fn path(name: &str) -> PathBuf {
    fixtures().join("onnx").join(format!("{name}.onnx"))
}

/// What onnxruntime was given, and what it computed.
fn recorded(name: &str) -> (ArrayD<f64>, Vec<ArrayD<f64>>) {
    let path = fixtures()
        .join("onnx")
        .join(format!("{name}.run.safetensors"));
    let mut arrays: BTreeMap<String, ArrayD<f64>> = read_any_arrays(&path)
        .unwrap()
        .into_iter()
        .map(|(name, array)| (name.unwrap(), array))
        .collect();
    let x = arrays.remove("x").unwrap();
    (x, arrays.into_values().collect())
}

fn verdict(before: &Path, after: &Path) -> Result<Verdict, file::Error> {
    let (before, after) = (open(before), GraphFile::open(after)?);
    let folded = before.fold(&Options::default(), false).unwrap();
    folded.verify(after.as_ref(), &verify::Options::default())
}

#[test]
fn every_fixture_is_in_the_table() {
    let found: Vec<String> = files_below(&fixtures().join("onnx"), "onnx")
        .iter()
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(found.len() >= 36, "{found:?}");
    for name in &found {
        assert!(CASES.iter().any(|case| case.0 == name), "{name}");
    }
    assert_eq!(found.len(), CASES.len());
}

#[test]
fn every_fixture_becomes_what_it_should_and_computes_the_same() {
    let place = Place::new();
    let mut wrong = Vec::new();
    for Case(name, before, after, why) in CASES {
        let (from, to) = (path(name), place.path(format!("{name}.onnx")));
        let fused = place
            .command(&[
                "fuse",
                from.to_str().unwrap(),
                to.to_str().unwrap(),
                "--verify",
                "--json",
            ])
            .output()
            .unwrap();
        if !fused.status.success() {
            wrong.push(format!(
                "{name}: {}",
                String::from_utf8_lossy(&fused.stderr)
            ));
            continue;
        }
        let found = (counts(&from), counts(&to));
        if found != (*before, *after) {
            wrong.push(format!("{name}: {found:?}; expected {:?}", (before, after)));
        }
        let verified = place.command(&["verify".as_ref(), from.as_os_str(), to.as_os_str()]);
        let verified = { verified }.output().unwrap();
        if !verified.status.success() {
            wrong.push(format!(
                "{name}: {}",
                String::from_utf8_lossy(&verified.stdout)
            ));
        }
        let inspected = place.run(&format!("inspect {} --json", from.display()));
        let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
        if !inspected.to_string().contains(why) {
            wrong.push(format!(
                "{name}: `inspect` does not say that {why}: {}",
                inspected["left"]
            ));
        }
        if NOT_RUN.contains(name) {
            continue;
        }
        let (x, expected) = recorded(name);
        for path in [&from, &to] {
            if path == &from && NOT_RUN_BEFORE.contains(name) {
                continue;
            }
            let found = apart(&expected, &run(path, &x));
            if found.is_nan() || found > 1e-5 {
                wrong.push(format!("{name}: {} is {found:.1e} off", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn fusing_a_fused_graph_changes_nothing() {
    let place = Place::new();
    for Case(name, ..) in CASES {
        let from = path(name);
        let ran = place.run(&format!("fuse {} once.onnx --force", from.display()));
        assert_eq!(ran.code(), Some(0), "{name}: {}", ran.stderr);
        let ran = place.run("fuse once.onnx twice.onnx --force");
        assert_eq!(ran.code(), Some(0), "{name}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("nothing to fuse"),
            "{name}: {}",
            ran.stderr
        );
        let [once, twice] = ["once.onnx", "twice.onnx"].map(|name| place.read(name));
        // The name of the file beside it is the only thing that may differ.
        if *name != "external" {
            assert!(once == twice, "{name}");
        }
    }
}

/// The file of a fixture, fused.
fn fused(place: &Place, name: &str) -> PathBuf {
    let ran = place.run(&format!(
        "fuse {} {name}.onnx --force",
        path(name).display()
    ));
    assert_eq!(ran.code(), Some(0), "{name}: {}", ran.stderr);
    place.path(format!("{name}.onnx"))
}

#[test]
fn a_weight_that_is_slightly_off_is_rejected() {
    let place = Place::new();
    for Case(name, ..) in CASES {
        let (from, to) = (path(name), fused(&place, name));
        let file = open(&from);
        let folded = file.fold(&Options::default(), false).unwrap();
        for block in folded.plan().blocks() {
            let weight = format!("{}.weight", block.fused()[0].module());
            let made = open(&to);
            let constants: &Checkpoint = made.constants();
            let tensor = constants.get(&weight).unwrap();
            let mut bytes = vec![0; tensor.byte_len() as usize];
            constants.read_at(tensor, 0, &mut bytes).unwrap();
            let size = bytes.len() / tensor.len();
            let largest = bytes
                .chunks_exact(size)
                .map(|b| number(b).abs())
                .enumerate();
            let (at, _) = largest.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            let holder = if *name == "external" {
                place.path("external.onnx.data")
            } else {
                to.clone()
            };
            let original = std::fs::read(&holder).unwrap();
            let mut changed = original.clone();
            let found = original
                .windows(bytes.len())
                .position(|w| w == bytes)
                .unwrap();
            nudge(&mut changed[found + at * size..][..size]);
            std::fs::write(&holder, &changed).unwrap();
            let verdict = verdict(&from, &to).unwrap();
            assert!(!verdict.accepted(), "{name}: {weight}");
            std::fs::write(&holder, &original).unwrap();
        }
        assert!(verdict(&from, &to).unwrap().accepted(), "{name}");
    }
}

/// A number in four bytes, or in two (of either type: only their order is asked for).
fn number(bytes: &[u8]) -> f64 {
    match *bytes {
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]).into(),
        [a, b] => (u16::from_le_bytes([a, b]) & 0x7fff).into(),
        _ => panic!("{bytes:?}"),
    }
}

/// The same number, 1e-5 of itself off; of two bytes, the number after the next one.
fn nudge(bytes: &mut [u8]) {
    match *bytes {
        [a, b, c, d] => {
            let x = f32::from_le_bytes([a, b, c, d]);
            bytes.copy_from_slice(&(x * (1.0 + 1e-5)).to_le_bytes());
        }
        [a, b] => bytes.copy_from_slice(&(u16::from_le_bytes([a, b]) + 2).to_le_bytes()),
        _ => panic!("{bytes:?}"),
    }
}

#[test]
fn no_byte_of_the_wiring_can_change_unseen() {
    let place = Place::new();
    for name in ["repvgg", "fastvit", "levit", "concat"] {
        let (from, to) = (path(name), fused(&place, name));
        let original = std::fs::read(&to).unwrap();
        // What is skipped: the numbers of fused tensors, whose last bit is no wiring, and what repfuse says of itself.
        let mut skipped = vec![false; original.len()];
        let made = open(&to);
        for tensor in made.constants().tensors().values() {
            let mut bytes = vec![0; tensor.byte_len() as usize];
            made.constants().read_at(tensor, 0, &mut bytes).unwrap();
            if let Some(at) = original
                .windows(bytes.len().max(1))
                .position(|w| w == bytes)
            {
                skipped[at..at + bytes.len()].fill(true);
            }
        }
        let ours = original
            .windows(15)
            .rposition(|w| w == b"repfuse.version")
            .unwrap();
        skipped[ours.saturating_sub(4)..].fill(true);
        let before = open(&from);
        let folded = before.fold(&Options::default(), false).unwrap();
        let mut unseen = Vec::new();
        for at in (0..original.len()).filter(|at| !skipped[*at]) {
            for bit in [1u8, 0x20] {
                let mut changed = original.clone();
                changed[at] ^= bit;
                std::fs::write(&to, &changed).unwrap();
                let accepted = match Onnx::open(&to) {
                    Ok(made) => folded
                        .verify(Some(&GraphFile::Onnx(made)), &verify::Options::default())
                        .is_ok_and(|verdict| verdict.accepted()),
                    Err(_) => false,
                };
                if accepted {
                    unseen.push((at, bit));
                }
            }
        }
        assert!(
            unseen.is_empty(),
            "{name}: {unseen:?} of {}",
            original.len()
        );
    }
}

/// A change of nodes, initializers and the version of the format.
type Change<'a> = &'a dyn Fn(&mut Vec<Message>, &mut Vec<Message>, &mut i64);

/// What is wrong with a fused graph that was made of another one.
fn failures_of_another(change: Change<'_>) -> String {
    let place = Place::new();
    let written = |name: &str, changed: bool| {
        let mut nodes = vec![
            node("Conv", &["x", "w"], &["a"], &[]),
            node(
                "BatchNormalization",
                &["a", "b", "b", "b", "b"],
                &["n"],
                &[],
            ),
            node("Relu", &["n"], &["r"], &[]),
            node("Pow", &["r", "e"], &["y"], &[]),
        ];
        let mut tensors = vec![
            tensor("w", &[4, 4, 1, 1], &[0.5; 16]),
            tensor("b", &[4], &[0.5; 4]),
            tensor("e", &[], &[2.0]),
        ];
        let mut version = 8;
        if changed {
            change(&mut nodes, &mut tensors, &mut version);
        }
        let [x, y] = ["x", "y"].map(|name| value(name, &[1, 4, 8, 8]));
        let mut all = graph(&nodes, &tensors, &[x], &[y]);
        if tensors.len() == 3 {
            all = all.message(13, &value("r", &[1, 4, 8, 8]));
        }
        let whole = model(&all, 17);
        // The version of the format stands first.
        let whole = Message([&[0x08, version as u8], &whole.0[2..]].concat());
        place.write(name, whole.0);
    };
    written("one.onnx", false);
    written("other.onnx", true);
    let ran = place.run("fuse other.onnx fused.onnx");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let ran = place.run("verify one.onnx fused.onnx");
    assert_eq!(ran.code(), Some(1), "{}{}", ran.stdout, ran.stderr);
    ran.stdout + &ran.stderr
}

#[test]
fn what_differs_from_the_original_is_named() {
    let spare = tensor("spare", &[1], &[1.0]);
    let cases: &[(&str, Change<'_>)] = &[
        (
            "field 1 of the file differs from that of the original",
            &|_, _, version| *version = 7,
        ),
        ("node … is not what it should be", &|nodes, _, _| {
            nodes[2] = node("Tanh", &["n"], &["r"], &[]);
        }),
        ("`e` differs from that of the original", &|_, tensors, _| {
            tensors[2] = tensor("e", &[], &[3.0]);
        }),
        (
            "a shape of a value of the graph is missing",
            &|_, tensors, _| {
                tensors.push(spare.clone());
            },
        ),
        ("`spare` is left over", &|_, tensors, _| {
            tensors.push(spare.clone())
        }),
        ("is left over", &|nodes, _, _| {
            nodes.push(node("Relu", &["y"], &["z"], &[]))
        }),
    ];
    for (expected, change) in cases {
        let found = failures_of_another(*change);
        assert!(
            expected.split('…').all(|part| found.contains(part)),
            "{expected}: {found}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_graph_that_would_be_too_long_is_refused() {
    use crate::support::onnx::varint;
    use std::io::Write as _;

    const BYTES: u64 = 2_200_000_000;
    let place = Place::new();
    let [x, y] = ["x", "y"].map(|name| value(name, &[1, 4, 8, 8]));
    let nodes = [
        node("Conv", &["x", "w"], &["a"], &[]),
        node(
            "BatchNormalization",
            &["a", "b", "b", "b", "b"],
            &["n"],
            &[],
        ),
        node("Add", &["n", "big"], &["y"], &[]),
    ];
    let tensors = [
        tensor("w", &[4, 4, 1, 1], &[0.5; 16]),
        tensor("b", &[4], &[0.5; 4]),
    ];
    let import = Message::default().bytes(1, "").int(2, 17);
    let mut start = Message::default().int(1, 8).message(8, &import).0;
    let graph = graph(&nodes, &tensors, &[x], &[y]).0;
    let mut big = Message::default()
        .int(1, BYTES as i64 / 4)
        .int(2, 1)
        .bytes(8, "big")
        .0;
    big.extend([vec![9 << 3 | 2], varint(BYTES)].concat());
    let key = [vec![5 << 3 | 2], varint(big.len() as u64 + BYTES)].concat();
    let len = graph.len() as u64 + key.len() as u64 + big.len() as u64 + BYTES;
    start.extend([vec![7 << 3 | 2], varint(len), graph, key, big].concat());
    let mut file = std::fs::File::create(place.path("in.onnx")).unwrap();
    file.write_all(&start).unwrap();
    // A file with a hole takes no room.
    file.set_len(start.len() as u64 + BYTES).unwrap();
    let ran = place.run("fuse in.onnx out.onnx --dry-run");
    assert_eq!(ran.code(), Some(2), "{}{}", ran.stdout, ran.stderr);
    for part in [
        "its graph would have ",
        " bytes; a message has at most 2147483647",
    ] {
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
}

#[test]
fn only_and_skip_choose_blocks_and_a_dry_run_writes_nothing() {
    let place = Place::new();
    let from = path("repvgg");
    let ran = place.run(&format!(
        "fuse {} some.onnx --only 0* --json",
        from.display()
    ));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(summary["blocks_fused"], 1, "{summary}");
    assert_eq!(counts(&place.path("some.onnx")), [3, 0, 2, 1]);
    let ran = place.run(&format!("verify {} some.onnx --only 0*", from.display()));
    assert_eq!(ran.code(), Some(0), "{}", ran.stdout);
    let ran = place.run(&format!("verify {} some.onnx", from.display()));
    assert_eq!(ran.code(), Some(1), "{}", ran.stdout);
    let ran = place.run(&format!("fuse {} none.onnx --dry-run", from.display()));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("would fuse 2 blocks"), "{}", ran.stdout);
    assert_eq!(place.names(), ["some.onnx"]);
}

#[test]
fn what_is_dearer_is_folded_on_demand() {
    let place = Place::new();
    let from = path("not-cheaper");
    let ran = place.run(&format!(
        "fuse {} one.onnx --even-if-dearer --verify",
        from.display()
    ));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert_eq!(counts(&place.path("one.onnx")), [1, 0, 0, 0]);
    let (x, expected) = recorded("not-cheaper");
    assert!(apart(&expected, &run(&place.path("one.onnx"), &x)) < 1e-5);
}

#[test]
fn another_type_is_cast_back() {
    let place = Place::new();
    let ran = place.run(&format!(
        "fuse {} half.onnx --dtype f16 --verify",
        path("repvgg").display()
    ));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let made = open(&place.path("half.onnx"));
    let types: Vec<String> = made
        .constants()
        .tensors()
        .values()
        .map(|tensor| tensor.dtype().to_string())
        .collect();
    assert_eq!(types, ["F16"; 4]);
    let (x, expected) = recorded("repvgg");
    let found = apart(&expected, &run(&place.path("half.onnx"), &x));
    assert!(found > 0.0 && found < 2e-3, "{found}");
}

#[test]
fn the_weights_alone_can_be_written() {
    let place = Place::new();
    for name in ["repvgg", "external"] {
        let from = path(name);
        let ran = place.run(&format!(
            "fuse {} {name}.safetensors --verify",
            from.display()
        ));
        assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
        let weights = Checkpoint::open(place.path(format!("{name}.safetensors"))).unwrap();
        let names: Vec<&str> = weights.tensors().keys().map(String::as_str).collect();
        assert_eq!(names, ["0.bias", "0.weight", "1.bias", "1.weight"]);
        let ran = place.run(&format!("verify {} {name}.safetensors", from.display()));
        assert_eq!(ran.code(), Some(0), "{}", ran.stdout);
    }
}

#[test]
fn both_graphs_are_run_end_to_end() {
    let place = Place::new();
    for name in ["repvgg", "dynamic", "external", "levit", "not-once"] {
        let (from, to) = (path(name), fused(&place, name));
        let ran = place.run(&format!(
            "verify {} {} --end-to-end --size 8 --json",
            from.display(),
            to.display()
        ));
        assert_eq!(ran.code(), Some(0), "{name}: {}{}", ran.stdout, ran.stderr);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        let graphs = &report["graphs"];
        assert_eq!(graphs["not_run"], Value::Null, "{name}: {graphs}");
        for output in graphs["outputs"].as_array().unwrap() {
            let difference = output["largest_difference"].as_f64().unwrap();
            let largest = output["largest"].as_f64().unwrap();
            assert!(
                difference < 1e-5 * largest && largest > 0.0,
                "{name}: {graphs}"
            );
        }
        assert!(graphs["milliseconds_after"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn ones_own_input_is_run() {
    let place = Place::new();
    let (from, to) = (path("pre-norm"), fused(&place, "pre-norm"));
    let (x, expected) = recorded("pre-norm");
    place.write("x.npy", npy(&x));
    let command = format!(
        "verify {} {} --end-to-end --input x.npy",
        from.display(),
        to.display()
    );
    let ran = place.run(&format!("{command} --json"));
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let graphs = &report["graphs"];
    assert_eq!(graphs["inputs"][0]["shape"], serde_json::json!(x.shape()));
    assert_eq!(graphs["top1_agreement"], 1.0, "{graphs}");
    assert!(
        graphs["bidirectional_kl"].as_f64().unwrap() < 1e-9,
        "{graphs}"
    );
    let largest = expected[0].iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let found = graphs["outputs"][0]["largest"].as_f64().unwrap();
    assert!((largest - found).abs() < 1e-5 * largest);
    let ran = place.run(&command);
    for line in [
        "same top-1 class          100 %",
        "whole graph, run by rten",
        "time of a run",
    ] {
        assert!(ran.stdout.contains(line), "{}", ran.stdout);
    }
}

/// An array as NumPy writes it.
fn npy(array: &ArrayD<f64>) -> Vec<u8> {
    let shape: Vec<String> = array.shape().iter().map(|n| format!("{n},")).collect();
    let header = format!(
        "{{'descr': '<f8', 'fortran_order': False, 'shape': ({}), }}\n",
        shape.concat()
    );
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    array.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
    bytes
}

#[test]
fn what_cannot_be_run_is_said_and_proved_all_the_same() {
    let place = Place::new();
    let (from, to) = (path("bfloat"), fused(&place, "bfloat"));
    let command = format!("verify {} {} --end-to-end", from.display(), to.display());
    let ran = place.run(&command);
    assert_eq!(ran.code(), Some(0), "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stdout.contains("the whole graph was not run: "),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("cannot be run here: "),
        "{}",
        ran.stdout
    );
    let ran = place.run(&format!("{command} --json"));
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["accepted"], true);
    assert!(report["graphs"]["not_run"].is_string());
}

#[test]
fn networks_that_cannot_be_run_or_compared_say_so() {
    use repfuse::network::graphs::{Sizes, compare};
    use repfuse::verify::random::SplitMix64;

    let place = Place::new();
    let written = |name: &str, input: &Message, outputs: &[&str]| {
        let named = outputs.iter().map(|name| value(name, &[0, 0]));
        let nodes: Vec<Message> = outputs
            .iter()
            .map(|name| node("Relu", &["x"], &[name], &[]))
            .collect();
        let graph = graph(
            &nodes,
            &[],
            std::slice::from_ref(input),
            &named.collect::<Vec<_>>(),
        );
        place.write(name, model(&graph, 17).0);
        Network::open(&place.path(name)).unwrap()
    };
    let sizes = Sizes { batch: 2, side: 8 };
    let mut random = SplitMix64::new(1);
    let bare = written("bare.onnx", &Message::default().bytes(1, "x"), &["y"]);
    let error = bare.made_up(sizes, &mut random).unwrap_err().to_string();
    assert!(
        error.contains(" has no input that can be made up: nothing says what shape "),
        "{error}"
    );
    let huge = written("huge.onnx", &value("x", &[1 << 20, 1 << 20]), &["y"]);
    let error = huge.made_up(sizes, &mut random).unwrap_err().to_string();
    assert!(
        error.contains("`x` of shape [1048576, 1048576] is too large"),
        "{error}"
    );
    let one = written("one.onnx", &value("x", &[0, 3, 0, 0]), &["y"]);
    let inputs = one.made_up(sizes, &mut random).unwrap();
    assert_eq!(inputs[0].1.shape(), [2, 3, 8, 8]);
    let two = written("two.onnx", &value("x", &[0, 3, 0, 0]), &["y", "z"]);
    let other = written("other.onnx", &value("x", &[0, 3, 0, 0]), &["z"]);
    for (other, what) in [(&two, "numbers of outputs"), (&other, "outputs")] {
        let error = compare(&one, other, &inputs).unwrap_err().to_string();
        assert_eq!(error, format!("the two models have different {what}"));
    }
    let wrong = vec![("x".to_owned(), ArrayD::zeros(IxDyn(&[2, 4, 8, 8])))];
    let error = one.run(&wrong).unwrap_err().to_string();
    assert!(error.contains(" cannot be run here: "), "{error}");
    let byte = Message::default().int(1, 2);
    let shape = Message::default().message(1, &Message::default().int(1, 2));
    let of_type = Message::default().message(1, &Message(byte.message(2, &shape).0));
    let bytes = written(
        "bytes.onnx",
        &Message::default().bytes(1, "x").message(2, &of_type),
        &["y"],
    );
    let wrong = vec![("x".to_owned(), ArrayD::zeros(IxDyn(&[2])))];
    let error = bytes.run(&wrong).unwrap_err().to_string();
    assert!(
        error.contains(" takes numbers of a type that is not made here"),
        "{error}"
    );
}

#[test]
fn the_ways_to_run_graphs_wrongly_are_told() {
    let place = Place::new();
    let (from, to) = (path("repvgg"), fused(&place, "repvgg"));
    let (from, to) = (from.display(), to.display());
    place.write("x.npy", npy(&ArrayD::zeros(IxDyn(&[1, 4, 6, 6]))));
    for (command, message) in [
        (
            format!("verify {from} --end-to-end"),
            "--end-to-end runs two graphs; give the fused one, too",
        ),
        (
            format!("verify {from} {to} --input x.npy"),
            "--input is for the blocks of weight files; add --end-to-end to run a graph with it",
        ),
    ] {
        let ran = place.run(&command);
        assert_eq!(ran.code(), Some(2), "{command}: {}", ran.stdout);
        assert!(ran.stderr.contains(message), "{command}: {}", ran.stderr);
    }
}
