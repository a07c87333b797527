//! Graphs as files: what OUT's name promises, the type a network computes in, and what a command says of both.

use serde_json::Value;

use crate::support::file::{Place, Ran};
use crate::support::fixtures::fixtures;
use crate::support::onnx::{Message, elsewhere, graph, model, node, tensor, typed, value};
use repfuse::tensor::Checkpoint;

fn fixture(name: &str) -> String {
    fixtures().join(name).display().to_string()
}

fn refused(ran: &Ran, parts: &[&str]) {
    assert_eq!(ran.code(), Some(2), "{ran:?}");
    for part in parts {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
}

#[test]
fn the_ending_of_out_is_kept_or_refused() {
    for (from, own, other, is) in [
        ("onnx/repvgg.onnx", "onnx", "pt2", "an ONNX model"),
        ("pt2/repvgg.pt2", "pt2", "onnx", "a program of torch.export"),
    ] {
        let place = Place::new();
        let from = fixture(from);
        for end in [other, "gguf", "h5", "zip"] {
            let ran = place.run(&format!("fuse {from} out.{end}"));
            let remedy = format!("and `{from}` is {is}; choose a name that ends in `.{own}`");
            refused(&ran, &[&format!("`out.{end}` is the name of "), &remedy]);
        }
        assert_eq!(place.names(), [""; 0]);
        // A graph: its own ending, and one that promises nothing.
        for name in [
            format!("out.{own}"),
            "out".to_owned(),
            "out.model".to_owned(),
        ] {
            let ran = place.run(&format!("fuse {from} {name} --verify"));
            assert_eq!(ran.code(), Some(0), "{ran:?}");
            let ran = place.run(&format!("verify {from} {name}"));
            assert_eq!(ran.code(), Some(0), "{ran:?}");
            assert!(
                repfuse::graph::GraphFile::open(&place.path(&name))
                    .unwrap()
                    .is_some()
            );
        }
        // Its weights alone.
        let ends = ["safetensors", "pt", "pth", "bin", "ckpt", "PT"];
        let mut said = Vec::new();
        for end in ends {
            let name = format!("weights.{end}");
            let ran = place.run(&format!("fuse {from} {name} --verify"));
            assert_eq!(ran.code(), Some(0), "{ran:?}");
            let reader = match end {
                "safetensors" => "safetensors.torch.load_file(",
                _ => "torch.load(",
            };
            assert!(ran.stdout.contains(reader) || end == "PT", "{}", ran.stdout);
            let weights = Checkpoint::open(place.path(&name)).unwrap();
            said.push(weights.tensors().keys().cloned().collect::<Vec<_>>());
            let ran = place.run(&format!("verify {from} {name}"));
            assert_eq!(ran.code(), Some(0), "{ran:?}");
        }
        assert!(
            said.iter()
                .all(|names| *names == said[0] && !names.is_empty())
        );
    }
}

/// A graph that computes in f16, with a conv and a norm that become a weight of about `size`.
fn half(size: f32) -> Vec<u8> {
    let numbers = |n: usize, x: f32| -> Vec<u8> {
        let one = half::f16::from_f32(x).to_le_bytes();
        (0..n).flat_map(|_| one).collect()
    };
    let tensors = [
        typed("c.weight", &[2, 2, 1, 1], 10, &numbers(4, 1000.0)),
        typed("bn.weight", &[2], 10, &numbers(2, size / 1000.0)),
        typed("bn.bias", &[2], 10, &numbers(2, 0.5)),
        typed("bn.running_var", &[2], 10, &numbers(2, 1.0)),
    ];
    let norm = ["c", "bn.weight", "bn.bias", "bn.bias", "bn.running_var"];
    let nodes = [
        node("Conv", &["x", "c.weight"], &["c"], &[]),
        node("BatchNormalization", &norm, &["y"], &[]),
    ];
    let graph = graph(&nodes, &tensors, &[of_half("x")], &[of_half("y")]);
    model(&graph, 17).0
}

/// A value `[1, 2, 4, 4]` of f16.
fn of_half(name: &str) -> Message {
    let dim = |n: i64| Message::default().int(1, n);
    let shape = Message::default().all(1, &[dim(1), dim(2), dim(4), dim(4)]);
    let tensor = Message::default().int(1, 10).message(2, &shape);
    let of_type = Message::default().message(1, &tensor);
    Message::default().bytes(1, name).message(2, &of_type)
}

#[test]
fn a_number_must_fit_the_type_that_the_network_computes_in() {
    let place = Place::new();
    place.write("in.onnx", half(100_000.0));
    let says = [
        "the fused `c.weight` is ",
        "beyond the largest f16, 6.5504e4, and the network computes in f16; export it in f32; --skip `c` leaves the block as it is",
    ];
    for flags in ["", " --dtype f32", " --dtype bf16"] {
        refused(&place.run(&format!("fuse in.onnx out.onnx{flags}")), &says);
    }
    refused(&place.run("verify in.onnx"), &says);
    assert_eq!(place.names(), ["in.onnx"]);
    // Weights alone are computed with by whoever loads them.
    let ran = place.run("fuse in.onnx out.safetensors --dtype f32 --verify");
    assert_eq!(ran.code(), Some(0), "{ran:?}");
}

/// No wider type is offered where the network has it.
#[test]
fn a_number_beyond_f32_has_no_remedy_but_to_skip() {
    let place = Place::new();
    let tensors = [
        tensor("c.weight", &[1, 1, 1, 1], &[1e30]),
        tensor("c.scale", &[1], &[1e30]),
    ];
    let nodes = [
        node("Conv", &["x", "c.weight"], &["c"], &[]),
        node("Mul", &["c", "c.scale"], &["y"], &[]),
    ];
    let ends = [value("x", &[1, 1, 2, 2]), value("y", &[1, 1, 2, 2])];
    let graph = graph(&nodes, &tensors, &ends[..1], &ends[1..]);
    place.write("in.onnx", model(&graph, 17).0);
    let says = "and the network computes in f32; --skip `c` leaves the block as it is";
    refused(&place.run("fuse in.onnx out.onnx"), &[says]);
}

#[test]
fn a_deploy_form_that_the_network_cannot_compute_with_is_rejected() {
    let place = Place::new();
    place.write("in.onnx", half(1000.0));
    let ran = place.run("fuse in.onnx out.onnx --dtype f32 --verify");
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let ran = place.run("verify in.onnx out.onnx");
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    // Another network, whose weight is a hundred times as large: what is stored for it is right, and no number of f16.
    let mut made = place.read("out.onnx");
    let file = repfuse::graph::GraphFile::open(&place.path("out.onnx"))
        .unwrap()
        .unwrap();
    let weight = file.constants().get("c.weight").unwrap().clone();
    let mut old = [0; 4];
    file.constants().read_at(&weight, 0, &mut old).unwrap();
    let large = (f32::from_le_bytes(old) * 100.0).to_le_bytes();
    let places: Vec<usize> = (0..made.len() - 3)
        .filter(|at| made[*at..*at + 4] == old)
        .collect();
    for at in places {
        made[at..at + 4].copy_from_slice(&large);
    }
    place.write("out.onnx", made);
    place.write("in.onnx", half(100_000.0));
    let ran = place.run("verify in.onnx out.onnx");
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert!(
        ran.stdout.contains("and the network computes in f16"),
        "{}",
        ran.stdout
    );
}

/// A graph computes in the type of its values: no flag keeps more digits.
#[test]
fn no_flag_is_named_that_does_not_help() {
    let place = Place::new();
    place.write("in.onnx", half(1000.0));
    let ran = place.run("fuse in.onnx out.onnx");
    let says = "fused weights are rounded to f16, in which the network computes";
    assert!(ran.stdout.contains(says), "{}", ran.stdout);
    assert!(!ran.stdout.contains("--dtype"), "{}", ran.stdout);
    let ran = place.run("fuse in.onnx out.safetensors");
    assert!(
        ran.stdout.contains("--dtype f32 keeps more digits"),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_sample_is_refused_as_other_flags_are() {
    let place = Place::new();
    let from = fixture("onnx/repvgg.onnx");
    for command in [
        format!("fuse {from} out.onnx --sample maps.safetensors"),
        format!("verify {from} --sample maps.safetensors"),
    ] {
        let says = ["--sample is about files of weights; leave it out for a graph"];
        refused(&place.run(&command), &says);
    }
}

#[test]
fn a_graph_that_was_fused_in_part_names_the_flag() {
    let place = Place::new();
    for (from, end) in [("onnx/repvgg.onnx", "onnx"), ("pt2/dbb.pt2", "pt2")] {
        let from = fixture(from);
        let ran = place.run(&format!("fuse {from} whole.{end} --dry-run --json"));
        let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
        let blocks = summary["blocks"].as_array().unwrap();
        let name = blocks[0]["name"].as_str().unwrap();
        if blocks.len() < 2 {
            continue;
        }
        let ran = place.run(&format!("fuse {from} some.{end} --only {name}"));
        assert_eq!(ran.code(), Some(0), "{ran:?}");
        let ran = place.run(&format!("verify {from} some.{end}"));
        assert_eq!(ran.code(), Some(1), "{ran:?}");
        let says = format!("only some of the blocks were fused, and `--only {name}` verifies them");
        assert!(ran.stderr.contains(&says), "{}", ran.stderr);
        let ran = place.run(&format!("verify {from} some.{end} --only {name}"));
        assert_eq!(ran.code(), Some(0), "{ran:?}");
        // With the flag given, and for what is no such file, nothing is said.
        let ran = place.run(&format!("verify {from} {from}"));
        assert!(!ran.stderr.contains("only some"), "{}", ran.stderr);
    }
}

#[test]
fn data_that_is_cut_short_is_that_of_the_model() {
    let place = Place::new();
    place.write("w.data", [0; 60]);
    let entries = [("location", "w.data"), ("offset", "0")];
    let tensors = [elsewhere("w", &[4, 4, 1, 1], &entries)];
    let nodes = [node("Conv", &["x", "w"], &["y"], &[])];
    let ends = [value("x", &[1, 4, 4, 4]), value("y", &[1, 4, 4, 4])];
    let graph = graph(&nodes, &tensors, &ends[..1], &ends[1..]);
    place.write("in.onnx", model(&graph, 17).0);
    let says = "its data file `w.data` has 60 bytes, and `w` takes 64 from position 0 on; it may be cut short, or that of another model";
    let ran = place.run("inspect in.onnx");
    refused(
        &ran,
        &["`in.onnx` is not an ONNX file that can be read", says],
    );
    assert!(!ran.stderr.contains("safetensors"), "{}", ran.stderr);
}

#[test]
fn a_graph_with_norms_is_no_deploy_form() {
    let place = Place::new();
    let tensors = [typed(
        "n",
        &[2],
        1,
        &[1f32.to_le_bytes(), 2f32.to_le_bytes()].concat(),
    )];
    let norm = node(
        "BatchNormalization",
        &["x", "n", "n", "n", "n"],
        &["y"],
        &[],
    );
    let ends = [value("x", &[1, 2, 4, 4]), value("y", &[1, 2, 4, 4])];
    let model = model(&graph(&[norm], &tensors, &ends[..1], &ends[1..]), 17);
    place.write("norm.onnx", model.0);
    let form = |path: &str| {
        let ran = place.run(&format!("inspect {path} --json"));
        let document: Value = serde_json::from_str(&ran.stdout).unwrap();
        document["form"].as_str().unwrap().to_owned()
    };
    assert_eq!(form("norm.onnx"), "unknown");
    let from = fixture("onnx/repvgg.onnx");
    place.run(&format!("fuse {from} out.onnx"));
    assert_eq!([form(&from), form("out.onnx")], ["training", "deploy"]);
}
