//! ONNX files from strangers: refused in words, or read; never a panic, and no memory that the file does not pay for.

use std::path::Path;

use crate::support::Random;
use crate::support::file::{Place, files_below};
use crate::support::fixtures::fixtures;
use crate::support::onnx::{
    Message, elsewhere, graph, graph_attribute, int, ints, list, model, node, tensor, typed, value,
};
use repfuse::graph::onnx::Onnx;
use repfuse::graph::{Dim, Graph, GraphFile, Node, Op, Value, ValueId};
use repfuse::plan::Options;
use repfuse::verify;

/// A conv of `x` that gives `y`.
fn conv() -> Message {
    node("Conv", &["x", "w"], &["y"], &[])
}

fn weight() -> Message {
    tensor("w", &[4, 4, 1, 1], &[0.5; 16])
}

fn whole(nodes: &[Message], tensors: &[Message]) -> Message {
    let [x, y] = ["x", "y"].map(|name| value(name, &[1, 4, 8, 8]));
    model(&graph(nodes, tensors, &[x], &[y]), 17)
}

/// What opening such a file says; empty if it is read.
fn refusal(place: &Place, bytes: impl AsRef<[u8]>) -> String {
    place.write("in.onnx", bytes);
    match Onnx::open(place.path("in.onnx")) {
        Ok(_) => String::new(),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                text += &format!(": {error}");
                source = error.source();
            }
            text
        }
    }
}

/// Checks that each file is refused with these words, and that a right one is read.
fn all_refused(cases: &[(Message, &str)]) {
    let place = Place::new();
    assert_eq!(refusal(&place, whole(&[conv()], &[weight()]).0), "");
    for (file, expected) in cases {
        let found = refusal(&place, &file.0);
        // What stands at the dots is a position.
        let whole = expected.split('…').all(|part| found.contains(part));
        assert!(whole, "expected {expected}, found {found}");
    }
}

#[test]
fn messages_that_are_none_are_refused() {
    let raw = |bytes: &[u8]| Message([whole(&[conv()], &[weight()]).0, bytes.to_vec()].concat());
    let nested = (0..40).fold(Message::default(), |inner, _| {
        let of = node("If", &[], &[], &[graph_attribute("then_branch", &inner)]);
        graph(&[of], &[], &[], &[])
    });
    let long = "n".repeat(70_000);
    let numbers = [vec![0x80; 3], vec![0x80]].concat();
    let cut_short = Message::default().bytes(1, "pads").bytes(8, numbers);
    all_refused(&[
        (
            raw(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            "the field at byte … reaches beyond the message that it is in",
        ),
        (
            raw(&[0x08, 0x80]),
            "the field at byte … reaches beyond the message that it is in",
        ),
        (
            raw(&[0x80, 0x80, 0x80]),
            "has no key that a protocol buffer can have",
        ),
        (raw(&[0x07]), "has no key that a protocol buffer can have"),
        (
            raw(&[0x0b]),
            "begins or ends a group, which no ONNX file has",
        ),
        (
            raw(&[0x38, 0x01]),
            "the field at byte … is a number; expected a string or a message",
        ),
        (
            raw(&[0x0a, 0x01, 0x00]),
            " is not an ONNX file that can be read: the field at byte … is no whole number",
        ),
        (Message::default().int(1, 8), "it has no graph"),
        (
            raw(&whole(&[], &[]).0),
            "it has several graphs; expected one",
        ),
        (
            whole(&[Message::default().bytes(4, [0xff])], &[]),
            "the name at byte … is no UTF-8",
        ),
        (
            whole(&[node(&long, &[], &[], &[])], &[]),
            "the name at byte … has 70000 bytes; at most 65536 are read",
        ),
        (
            whole(
                &[node("If", &[], &[], &[graph_attribute("then", &nested)])],
                &[],
            ),
            "its subgraphs are nested more than 16 deep",
        ),
        (
            whole(
                &[node(
                    "Conv",
                    &["x", "w"],
                    &["y"],
                    &[int("a", 1), int("a", 2)],
                )],
                &[weight()],
            ),
            "a node has two attributes `a`",
        ),
        (
            whole(
                &[node("Conv", &["x", "w"], &["y"], &[cut_short])],
                &[weight()],
            ),
            "the numbers at byte … are cut short",
        ),
        (
            whole(&[conv()], &[typed("w", &[1; 70], 1, &[0; 4])]),
            " has more than … numbers",
        ),
        (
            whole(&[conv()], &[weight(), value("v", &[1; 70])]),
            "the field at byte … is no whole number",
        ),
    ]);
}

#[test]
fn counts_that_are_beyond_any_network_are_refused() {
    // Empty nodes of two bytes each: more than a million of them.
    let nodes = Message([0x0a, 0x00].repeat(1_100_000));
    let file = Message::default().message(7, &nodes);
    let top = Message(
        [
            [0x08, 0x01].repeat(1_100_000),
            whole(&[conv()], &[weight()]).0,
        ]
        .concat(),
    );
    let inputs = Message([0x0a, 0x00].repeat(1_100_000));
    let reads = Message([0x0a, 0x02, 0x0a, 0x00].repeat(1_100_000));
    let subgraph = Message::default().bytes(1, "body").message(6, &reads);
    let dims = Message([0x0a, 0x00].repeat(70));
    let of_type = Message::default().message(1, &Message::default().message(2, &dims));
    let wide = Message::default().bytes(1, "x").message(2, &of_type);
    all_refused(&[
        (
            file,
            "its graph has more than 1048576 nodes, tensors and values",
        ),
        (top, "it has more than 1048576 fields"),
        (whole(&[inputs], &[]), "a node has too many inputs"),
        (
            whole(&[node("Loop", &[], &["y"], &[subgraph])], &[]),
            "the subgraphs of a node are too large",
        ),
        (
            model(&graph(&[], &[], &[wide], &[]), 17),
            "a value has more than 64 dimensions",
        ),
    ]);
}

#[test]
fn tensors_that_lie_about_themselves_are_refused() {
    let of = |tensor: Message| whole(&[conv()], &[tensor]);
    let numbers = Message::default()
        .int(1, 3)
        .int(2, 7)
        .bytes(8, "w")
        .bytes(7, [1, 2]);
    all_refused(&[
        (
            of(typed("w", &[4, 4, 1, 1], 1, &[0; 60])),
            "`w` has 60 bytes; its shape [4, 4, 1, 1] takes 64",
        ),
        (of(typed("w", &[4, 4, 1, 1], 1, &[])), "takes 64"),
        (of(numbers), "`w` has 16 bytes; its shape [3] takes 24"),
        (
            of(Message::default().int(1, -4).int(2, 1).bytes(8, "w")),
            "`w` has a dimension of -4",
        ),
        (of(typed("w", &[1 << 40, 1 << 40], 1, &[])), "overflows"),
        (
            of(Message::default().int(1, 4).int(2, 1).bytes(9, [0; 16])),
            "one of its initializers has no name",
        ),
        (
            whole(&[conv()], &[weight(), weight()]),
            "two of its initializers are named `w`",
        ),
    ]);
}

#[test]
fn wiring_that_cannot_run_is_refused() {
    let constant = |name: &str| {
        let held = Message::default()
            .bytes(1, "value")
            .message(5, &list("", &[1]))
            .int(20, 4);
        node("Constant", &[], &[name], &[held])
    };
    let relu = |from: &str, to: &str| node("Relu", &[from], &[to], &[]);
    let twice = graph(
        &[conv()],
        &[weight()],
        &[value("x", &[1]), value("x", &[1])],
        &[],
    );
    all_refused(&[
        (
            whole(&[node("Conv", &["nothing", "w"], &["y"], &[])], &[weight()]),
            "reads `nothing`, which nothing before it computes",
        ),
        // A cycle, and a node that stands before what it reads.
        (
            whole(&[relu("b", "a"), relu("a", "b")], &[]),
            "reads `b`, which nothing before it computes",
        ),
        (
            whole(&[conv(), conv()], &[weight()]),
            "two things are named `y`; the name of a value must be its own",
        ),
        (
            whole(&[relu("x", "w")], &[weight()]),
            "two things are named `w`; the name of a value must be its own",
        ),
        (whole(&[relu("x", "x")], &[]), "two things are named `x`"),
        (
            whole(&[constant("c"), constant("c")], &[]),
            "two constants are named `c`",
        ),
        (model(&twice, 17), "two of its inputs are named `x`"),
    ]);
}

#[test]
fn a_graph_that_contradicts_itself_is_no_graph() {
    let value = |name: &str| Value::new(name.to_owned(), Some(vec![Dim::Any]));
    let node = |input: usize, output: usize| Node {
        name: String::new(),
        module: None,
        op: Op::Neg,
        inputs: vec![ValueId(input)],
        outputs: vec![ValueId(output)],
    };
    let wrong = |values: &[&str], nodes: Vec<Node>| {
        let values = values.iter().map(|name| value(name)).collect();
        Graph::new(values, nodes).unwrap_err().to_string()
    };
    assert_eq!(
        wrong(&["a", "a"], Vec::new()),
        "two values are named `a`; the name of a value must be its own"
    );
    assert_eq!(
        wrong(&["a", "b"], vec![node(0, 1), node(0, 1)]),
        "node 1 computes `b`, which 0 computes too"
    );
    assert_eq!(
        wrong(&["a", "b"], vec![node(1, 1)]),
        "node 0 reads `b`, which is computed after it; a node must come after what it reads"
    );
}

#[test]
fn external_data_stays_in_the_folder() {
    let place = Place::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("w.data"), [0; 64]).unwrap();
    std::fs::create_dir(place.path("sub")).unwrap();
    place.write("sub/w.data", [0; 64]);
    place.write("w.data", [0; 64]);
    let absolute = outside.path().join("w.data");
    let absolute = absolute.to_str().unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(absolute, place.path("link.data")).unwrap();
    let at = |entries: &[(&str, &str)]| {
        let file = whole(&[conv()], &[elsewhere("w", &[4, 4, 1, 1], entries)]);
        refusal(&place, file.0)
    };
    for location in ["w.data", "./w.data", "sub/w.data"] {
        assert_eq!(at(&[("location", location)]), "", "{location}");
    }
    let outside = ", outside the folder of the file";
    for location in ["../w.data", "sub/../../w.data", absolute, "", "a\\b", "/"] {
        let found = at(&[("location", location)]);
        assert!(found.contains(outside), "{location}: {found}");
    }
    #[cfg(unix)]
    assert!(at(&[("location", "link.data")]).contains(outside));
    for (entries, expected) in [
        (
            &[("offset", "0")][..],
            " has external data, and no location",
        ),
        (
            &[("location", "w.data"), ("location", "w.data")],
            "a tensor has two entries `location` of external data",
        ),
        (
            &[("location", "w.data"), ("offset", "-1")],
            " has external data at the offset `-1`, which is no number",
        ),
        (
            &[("location", "w.data"), ("length", "many")],
            " has external data at the length `many`, which is no number",
        ),
        (
            &[("location", "w.data"), ("length", "60")],
            "`w` has 60 bytes; its shape [4, 4, 1, 1] takes 64",
        ),
        (&[("location", "w.data"), ("offset", "4")], "`w`"),
        (&[("location", "sub")], "sub"),
        (&[("location", "gone.data")], "gone.data"),
    ] {
        let found = at(entries);
        assert!(found.contains(expected), "{entries:?}: {found}");
    }
}

#[test]
fn data_of_a_type_that_is_not_read_cannot_be_moved() {
    let place = Place::new();
    place.write("w.data", [0; 64]);
    let odd = elsewhere("odd", &[16], &[("location", "w.data"), ("length", "8")]);
    let odd = Message(
        odd.0
            .iter()
            .copied()
            .chain(Message::default().int(2, 22).0)
            .collect(),
    );
    let norm = node(
        "BatchNormalization",
        &["c", "s", "s", "s", "s"],
        &["y"],
        &[],
    );
    let nodes = [
        node("Conv", &["x", "w"], &["c"], &[]),
        norm,
        node("Cast", &["odd"], &["z"], &[int("to", 1)]),
    ];
    let file = whole(&nodes, &[weight(), tensor("s", &[4], &[1.0; 4]), odd]);
    place.write("in.onnx", &file.0);
    let ran = place.run("fuse in.onnx out.onnx");
    let expected =
        "the data of odd is in another file, and of a type that cannot be copied from there";
    assert_eq!(ran.code(), Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    assert!(!place.path("out.onnx").exists());
}

/// Opens, plans, writes and verifies; whatever the file, this ends without a panic, and what is written is verified.
fn all_of_it(path: &Path, to: &Path) -> bool {
    let Ok(Some(file)) = GraphFile::open(path) else {
        return false;
    };
    let Ok(folded) = file.fold(&Options::default(), false) else {
        return false;
    };
    let options = repfuse::fuse::Options {
        shard_size: None,
        replace: true,
        threads: Some(1),
    };
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let Ok(written) = folded.write(to, &options, &go_on) else {
        return false;
    };
    let verdict = folded.verify_written(&written, &verify::Options::default());
    assert!(
        verdict.is_ok_and(|verdict| verdict.accepted()),
        "{}",
        path.display()
    );
    true
}

#[test]
fn changed_bytes_are_refused_or_folded_right() {
    let place = Place::new();
    let files = files_below(&fixtures().join("onnx"), "onnx");
    let mut random = Random(11);
    let mut taken = 0;
    for file in &files {
        let original = std::fs::read(file).unwrap();
        for _ in 0..40 {
            let mut bytes = original.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
                    2 => drop(bytes.splice(at..(at + random.below(9)).min(bytes.len()), [])),
                    _ => {
                        let from = random.below(bytes.len());
                        let part = bytes[from..(from + random.below(60)).min(bytes.len())].to_vec();
                        drop(bytes.splice(at..at, part));
                    }
                }
                if bytes.is_empty() {
                    break;
                }
            }
            place.write("in.onnx", &bytes);
            taken += usize::from(all_of_it(&place.path("in.onnx"), &place.path("out.onnx")));
        }
    }
    assert!(taken > 100, "{taken} could be read");
}

#[test]
fn files_that_are_cut_off_are_refused() {
    let place = Place::new();
    let bytes = std::fs::read(fixtures().join("onnx/repvgg.onnx")).unwrap();
    let mut read = Vec::new();
    for len in 0..bytes.len() {
        if refusal(&place, &bytes[..len]).is_empty() {
            read.push(len);
        }
    }
    // Where a field of the file itself ends after the graph, nothing is missing that must be there.
    assert!(read.len() < 8, "{read:?}");
}

#[test]
fn paddings_beyond_any_number_are_no_forms() {
    let place = Place::new();
    let huge = i64::MAX;
    for attribute in [
        ints("pads", &[huge; 4]),
        ints("strides", &[huge; 2]),
        ints("dilations", &[huge; 2]),
        ints("pads", &[-1; 4]),
    ] {
        let nodes = [
            node(
                "Conv",
                &["x", "w"],
                &["a"],
                std::slice::from_ref(&attribute),
            ),
            node("Conv", &["a", "w"], &["y"], &[attribute]),
        ];
        place.write("in.onnx", &whole(&nodes, &[weight()]).0);
        all_of_it(&place.path("in.onnx"), &place.path("out.onnx"));
    }
}
