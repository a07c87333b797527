//! What is written is legal in the version of the operators that the model has, whichever that is.

use std::ops::RangeInclusive;

use crate::support::command::repfuse;
use crate::support::file::Place;
use crate::support::onnx::{Message, graph, int, ints, list, model, node, tensor, value};

/// Of each operator that may be written, from which version on: its inputs and its attributes, as ONNX has them.
const LEGAL: [(&str, i64, RangeInclusive<usize>, &[&str]); 12] = [
    ("Conv", 1, 2..=3, &CONV),
    ("ConvTranspose", 1, 2..=3, &TRANSPOSED),
    ("Gemm", 7, 3..=3, &GEMM),
    ("Gemm", 11, 2..=3, &GEMM),
    ("MatMul", 1, 2..=2, &[]),
    ("Add", 7, 2..=2, &[]),
    ("Transpose", 1, 1..=1, &["perm"]),
    ("Reshape", 5, 2..=2, &[]),
    ("Reshape", 14, 2..=2, &["allowzero"]),
    ("Constant", 1, 0..=0, &["value"]),
    ("Cast", 6, 1..=1, &["to"]),
    ("Relu", 6, 1..=1, &[]),
];
const CONV: [&str; 6] = [
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "pads",
    "strides",
];
const TRANSPOSED: [&str; 8] = [
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "pads",
    "strides",
];
const GEMM: [&str; 4] = ["alpha", "beta", "transA", "transB"];

/// The versions that are read.
const VERSIONS: RangeInclusive<i64> = 7..=23;

/// The fields of a message that hold bytes: their numbers and these.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0, 0);
        while let [first, rest @ ..] = *bytes {
            *bytes = rest;
            n |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                break;
            }
        }
        n
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => drop(varint(&mut bytes)),
            5 => bytes = &bytes[4..],
            _ => {
                let len = varint(&mut bytes) as usize;
                found.push((key >> 3, &bytes[..len]));
                bytes = &bytes[len..];
            }
        }
    }
    found
}

fn texts(message: &[u8], number: u64) -> Vec<&str> {
    let all = fields(message).into_iter().filter(|(n, _)| *n == number);
    all.map(|(_, bytes)| std::str::from_utf8(bytes).unwrap())
        .collect()
}

/// The nodes of a model: operator, number of inputs, names of attributes.
fn nodes(model: &[u8]) -> Vec<(String, usize, Vec<String>)> {
    let below = |of: &[u8], number: u64| -> Vec<Vec<u8>> {
        let all = fields(of).into_iter().filter(|(n, _)| *n == number);
        all.map(|(_, bytes)| bytes.to_vec()).collect()
    };
    let nodes = below(model, 7)
        .into_iter()
        .flat_map(|graph| below(&graph, 1));
    let one = |node: Vec<u8>| {
        let attributes = below(&node, 5).into_iter();
        let names = attributes.map(|attribute| texts(&attribute, 1)[0].to_owned());
        let op = texts(&node, 4)[0].to_owned();
        (op, texts(&node, 1).len(), names.collect())
    };
    nodes.map(one).collect()
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| 0.25 + (i % 7) as f32 / 8.0).collect()
}

fn filled(name: &str, shape: &[usize]) -> Message {
    tensor(name, shape, &numbers(shape.iter().product()))
}

/// Each form that a region can become: what it is called, its graph, and the operator that must be written.
fn forms(version: i64) -> Vec<(&'static str, Message, &'static str)> {
    let gemm = |op: &'static str| if version < 11 { "MatMul" } else { op };
    let norm = ["scale", "shift", "mean", "var"];
    let of_norm = norm.map(|name| filled(name, &[4]));
    let batch_norm = |from: &str| {
        let inputs: Vec<&str> = [from].into_iter().chain(norm).collect();
        node("BatchNormalization", &inputs, &["y"], &[])
    };
    let whole = |nodes: &[Message], tensors: &[Message], shape: &[usize], out: &[usize]| {
        let relu = node("Relu", &["y"], &["out"], &[]);
        let nodes = [nodes, &[relu]].concat();
        graph(&nodes, tensors, &[value("x", shape)], &[value("out", out)])
    };
    let with_norm = |weight: Message| [&of_norm[..], &[weight]].concat();
    let product = |output: &str| node("MatMul", &["x", "w"], &[output], &[]);
    let matrix = || filled("w", &[4, 4]);
    let maps: &[usize] = &[1, 4, 5, 5];
    let conv = node(
        "Conv",
        &["x", "w"],
        &["a"],
        &[ints("kernel_shape", &[3, 3])],
    );
    let transposed = node(
        "ConvTranspose",
        &["x", "w"],
        &["a"],
        &[ints("output_padding", &[1, 1]), ints("strides", &[2, 2])],
    );
    let both = [
        product("a"),
        node("MatMul", &["x", "v"], &["b"], &[]),
        node("Add", &["a", "b"], &["y"], &[]),
    ];
    let residual = [product("a"), node("Add", &["a", "x"], &["y"], &[])];
    let scaled = |op: Message| [op, node("Mul", &["a", "s"], &["y"], &[])];
    let biased = node("Gemm", &["x", "w", "c"], &["a"], &[int("transB", 1)]);
    let added = [
        product("a"),
        node("Add", &["a", "c"], &["b"], &[]),
        node("Mul", &["b", "s"], &["y"], &[]),
    ];
    let turned = [
        product("a"),
        node("Transpose", &["a"], &["b"], &[ints("perm", &[0, 2, 1])]),
        batch_norm("b"),
    ];
    let parted = [
        product("a"),
        node("Reshape", &["a", "to"], &["b"], &[]),
        batch_norm("b"),
    ];
    let vectors = || [matrix(), filled("s", &[4]), filled("c", &[4])];
    let weight = |shape: &[usize]| with_norm(filled("w", shape));
    vec![
        (
            "conv",
            whole(
                &[conv, batch_norm("a")],
                &weight(&[4, 4, 3, 3]),
                maps,
                &[1, 4, 3, 3],
            ),
            "Conv",
        ),
        (
            "transposed conv",
            whole(
                &[transposed, batch_norm("a")],
                &weight(&[4, 4, 2, 2]),
                maps,
                &[1, 4, 11, 11],
            ),
            "ConvTranspose",
        ),
        (
            "sum of products",
            whole(&both, &[matrix(), filled("v", &[4, 4])], &[2, 4], &[2, 4]),
            "MatMul",
        ),
        (
            "residual",
            whole(&residual, &[matrix()], &[2, 4], &[2, 4]),
            gemm("Gemm"),
        ),
        (
            "layer with a bias",
            whole(&scaled(biased), &vectors(), &[2, 4], &[2, 4]),
            "Gemm",
        ),
        (
            "tokens",
            whole(
                &scaled(product("a")),
                &vectors()[..2],
                &[1, 3, 4],
                &[1, 3, 4],
            ),
            "MatMul",
        ),
        (
            "tokens with a bias",
            whole(&added, &vectors(), &[1, 3, 4], &[1, 3, 4]),
            "Add",
        ),
        (
            "a norm behind a transpose",
            whole(&turned, &with_norm(matrix()), &[1, 3, 4], &[1, 4, 3]),
            "Transpose",
        ),
        (
            "a norm behind a reshape",
            whole(
                &parted,
                &[&with_norm(matrix())[..], &[list("to", &[-1, 4])]].concat(),
                &[1, 3, 4],
                &[3, 4],
            ),
            "Reshape",
        ),
    ]
}

/// What is wrong with the nodes of a model of this version.
fn illegal(version: i64, nodes: &[(String, usize, Vec<String>)]) -> Vec<String> {
    let legal = |(op, inputs, attributes): &&(String, usize, Vec<String>)| {
        let known = LEGAL.iter().rev();
        let mut known = known.filter(|(name, since, ..)| name == op && *since <= version);
        known.next().is_some_and(|(_, _, count, names)| {
            count.contains(inputs) && attributes.iter().all(|name| names.contains(&&**name))
        })
    };
    let wrong = nodes.iter().filter(|node| !legal(node));
    wrong.map(|node| format!("{version}: {node:?}")).collect()
}

#[test]
fn every_form_is_legal_in_every_version() {
    let place = Place::new();
    let (from, to) = (place.path("in.onnx"), place.path("out.onnx"));
    let mut wrong = Vec::new();
    for version in VERSIONS {
        for (what, graph, expected) in forms(version) {
            for dtype in [&[][..], &["--dtype", "f16"]] {
                place.write("in.onnx", &model(&graph, version).0);
                let mut command = repfuse();
                command.arg("fuse").args([&from, &to]);
                let done = command.args(["--force", "--verify"]).args(dtype).output();
                let done = done.unwrap();
                let said = String::from_utf8_lossy(&done.stderr);
                if !done.status.success() {
                    wrong.push(format!("{version} {what}: {said}"));
                    continue;
                }
                let nodes = nodes(&place.read("out.onnx"));
                wrong.extend(illegal(version, &nodes));
                let casts = nodes.iter().any(|(op, ..)| op == "Cast");
                if !nodes.iter().any(|(op, ..)| op == expected) || casts == dtype.is_empty() {
                    wrong.push(format!("{version} {what}: {nodes:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_weight_in_bf16_is_cast_where_casts_know_it() {
    let place = Place::new();
    let (from, to) = (place.path("in.onnx"), place.path("out.onnx"));
    for version in VERSIONS {
        let (_, graph, _) = forms(version).swap_remove(0);
        place.write("in.onnx", &model(&graph, version).0);
        let mut command = repfuse();
        command.arg("fuse").args([&from, &to]);
        let done = command
            .args(["--force", "--dtype", "bf16"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.success(), version >= 13, "{version}: {said}");
        let told = said.contains("a weight in bf16 is cast back when the network runs, which needs version 13 of the operators of ONNX");
        assert_eq!(told, version < 13, "{said}");
    }
}
