//! Weights that a network computes of others alone: worked out when it is read, run in both forms and compared, or left as they are.

use ndarray::{ArrayD, IxDyn};

use crate::support::file::Place;
use crate::support::graphs::{apart, counts, run, run_if_it_can};
use crate::support::onnx::{
    Message, float, graph, int, ints, list, model, node, tensor, text, typed, value,
};

fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * i % 23) as f32 - 11.3) / 9.0)
        .collect()
}

/// Nodes that make `w` of shape 4×4×3×3, and a conv and a norm behind them.
fn network(nodes: &[Message], opset: i64) -> Vec<u8> {
    let positive: Vec<f32> = numbers(4).iter().map(|x| x.abs() + 0.5).collect();
    let single = |name: &str, x: f32| typed(name, &[], 1, &x.to_le_bytes());
    let whole = |name: &str, x: i64| typed(name, &[], 7, &x.to_le_bytes());
    let long: Vec<i64> = (0..144).map(|i| i * 5 % 144).collect();
    let tensors = [
        tensor("a", &[4, 4, 3, 3], &numbers(144)),
        tensor("b", &[4, 4, 3, 3], &numbers(150)[6..]),
        tensor("flat", &[144], &numbers(144)),
        tensor("large", &[4, 4, 6, 5], &numbers(480)),
        tensor("point", &[4, 4, 1, 1], &numbers(16)),
        tensor("each", &[4, 1, 3, 3], &numbers(36)),
        tensor("halves", &[4, 2, 1, 1], &numbers(8)),
        tensor("matrix", &[4, 4], &numbers(16)),
        tensor("rows", &[4, 36], &numbers(144)),
        tensor("four", &[4], &numbers(4)),
        tensor("positive", &[4], &positive),
        single("little", -0.4),
        single("much", 0.5),
        single("none", 0.0),
        single("one", 1.0),
        single("three", 3.0),
        typed("mask", &[3, 3], 9, &[1, 0, 1, 1, 1, 0, 0, 1, 0]),
        typed("other", &[4, 1, 1, 1], 9, &[1, 0, 0, 1]),
        list("order", &[2, 0, -1, 1]),
        list("long", &long),
        typed(
            "lists",
            &[3, 1],
            7,
            &[2i64, 0, 3].map(i64::to_le_bytes).concat(),
        ),
        typed(
            "twice",
            &[2, 1],
            7,
            &[1i64, -3].map(i64::to_le_bytes).concat(),
        ),
        typed("beyond", &[1, 1], 7, &4i64.to_le_bytes()),
        list("far", &[0, 1, 2, 4]),
        whole("first", 0),
        whole("second", 1),
        whole("third", 2),
        whole("last", 3),
        list("ones", &[1, 1]),
        list("kernel", &[4, 4, 3, 3]),
        list("square", &[4, 4]),
        list("column", &[4, 1, 1, 1]),
        list("last_two", &[2, 3]),
        list("back", &[-1, -1]),
        list("from", &[4, -3]),
        list("to", &[i64::MIN, -9]),
        list("steps", &[-2, -1]),
        list("sizes", &[1, 2, 1]),
        list("huge", &[1 << 40]),
        list("empty", &[0, 1 << 60]),
        whole("many", 1 << 40),
    ];
    let behind = [
        node("Conv", &["x", "w"], &["c"], &[ints("pads", &[1; 4])]),
        node(
            "BatchNormalization",
            &["c", "four", "four", "four", "positive"],
            &["y"],
            &[],
        ),
    ];
    let ends = [value("x", &[1, 4, 6, 6]), value("y", &[0; 4])];
    let nodes = [nodes, &behind].concat();
    model(&graph(&nodes, &tensors, &ends[..1], &ends[1..]), opset).0
}

fn calls(all: &[(&str, &[&str], &str, &[Message])]) -> Vec<Message> {
    (all.iter())
        .map(|(op, inputs, to, attributes)| node(op, inputs, &[to], attributes))
        .collect()
}

/// The norm goes into the conv, and both forms compute the same.
fn folds(what: &str, nodes: &[Message]) {
    let place = Place::new();
    place.write("in.onnx", network(nodes, 20));
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert_eq!(ran.code(), Some(0), "{what}: {ran:?}");
    assert_eq!(counts(&place.path("out.onnx")), [1, 0, 0, 0], "{what}");
    let x = ArrayD::from_shape_fn(IxDyn(&[1, 4, 6, 6]), |at| {
        ((at[1] * 36 + at[2] * 6 + at[3]) as f64).cos()
    });
    // Not all of it is run by rten.
    let after = run(&place.path("out.onnx"), &x);
    if let Some(before) = run_if_it_can(&place.path("in.onnx"), &x) {
        assert!(apart(&before, &after) < 1e-5, "{what}");
    }
}

/// The network is read, and the weight is left to whoever runs it.
fn stays(what: &str, nodes: &[Message], opset: i64) {
    let place = Place::new();
    place.write("in.onnx", network(nodes, opset));
    let ran = place.run("inspect in.onnx");
    assert_eq!(ran.code(), Some(0), "{what}: {}", ran.stderr);
    assert!(
        ran.stdout.contains("its weight is no constant"),
        "{what}: {}",
        ran.stdout
    );
}

/// Makes a 4×4×3×3 weight of some numbers that are broadcast to it.
fn times(from: &str) -> Message {
    node("Mul", &["a", from], &["w"], &[])
}

#[test]
fn kernels_slide_over_kernels() {
    let conv = |inputs: &[&str], attributes: &[Message]| [node("Conv", inputs, &["w"], attributes)];
    folds("a point", &conv(&["a", "point"], &[]));
    folds(
        "a bias",
        &conv(&["a", "b", "four"], &[ints("pads", &[1; 4])]),
    );
    folds(
        "auto_pad",
        &conv(&["a", "b"], &[text("auto_pad", "SAME_UPPER")]),
    );
    folds(
        "each channel",
        &conv(
            &["a", "each"],
            &[int("group", 4), ints("pads", &[2, 0, 0, 2])],
        ),
    );
    folds("groups", &conv(&["a", "halves"], &[int("group", 2)]));
    folds(
        "strides",
        &conv(
            &["large", "b"],
            &[ints("strides", &[2, 1]), ints("pads", &[0, 0, 1, 0])],
        ),
    );
    folds(
        "dilations",
        &conv(
            &["large", "b"],
            &[ints("dilations", &[2, 2]), ints("pads", &[0, 1, 1, 1])],
        ),
    );
}

#[test]
fn shares_bounds_and_signs_are_worked_out() {
    let axis = [int("axis", 0)];
    folds(
        "shares",
        &calls(&[
            ("Softmax", &["four"], "shares", &axis),
            ("Gather", &["shares", "third"], "share", &axis),
            ("Mul", &["a", "share"], "w", &[]),
        ]),
    );
    folds(
        "logarithms of shares",
        &calls(&[("LogSoftmax", &["a"], "w", &[int("axis", 1)])]),
    );
    folds(
        "bounds",
        &calls(&[("Clip", &["a", "little", "much"], "w", &[])]),
    );
    folds(
        "one bound",
        &calls(&[("Clip", &["a", "", "much"], "w", &[])]),
    );
    for op in [
        "Sign", "Erf", "Softplus", "Floor", "Ceil", "Round", "Sin", "Cos",
    ] {
        let nodes = [
            node(op, &["a"], &["made"], &[]),
            node("Add", &["b", "made"], &["w"], &[]),
        ];
        folds(op, &nodes);
    }
    folds(
        "logarithms",
        &calls(&[
            ("Log", &["positive"], "logarithms", &[]),
            ("Reshape", &["logarithms", "column"], "made", &[]),
            ("Mul", &["a", "made"], "w", &[]),
        ]),
    );
    for op in ["Max", "Min", "Sum"] {
        folds(op, &[node(op, &["a", "b", "little"], &["w"], &[])]);
    }
    for op in [
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceSumSquare",
        "ReduceProd",
    ] {
        let nodes = [
            node(op, &["large", "last_two"], &["made"], &[]),
            node("Div", &["a", "made"], &["w"], &[]),
        ];
        folds(op, &nodes);
    }
}

#[test]
fn products_with_vectors_are_worked_out() {
    folds(
        "the largest singular value",
        &calls(&[
            ("Transpose", &["matrix"], "turned", &[ints("perm", &[1, 0])]),
            ("MatMul", &["matrix", "four"], "product", &[]),
            ("MatMul", &["turned", "product"], "again", &[]),
            ("MatMul", &["four", "again"], "length", &[]),
            ("Div", &["a", "length"], "w", &[]),
        ]),
    );
    folds(
        "a matrix of all other axes",
        &calls(&[
            ("Flatten", &["a"], "flattened", &[]),
            ("MatMul", &["matrix", "flattened"], "product", &[]),
            ("Reshape", &["product", "kernel"], "w", &[]),
        ]),
    );
    folds(
        "one number",
        &calls(&[
            ("ReduceMean", &["a"], "mean", &[]),
            ("Squeeze", &["mean"], "number", &[]),
            ("Sub", &["a", "number"], "w", &[]),
        ]),
    );
}

#[test]
fn norms_of_weights_are_worked_out() {
    let statistics = ["a", "positive", "four", "four", "positive"];
    let norm = |outputs: &[&str], attributes: &[Message]| {
        [node("BatchNormalization", &statistics, outputs, attributes)]
    };
    let training = [int("training_mode", 1), float("epsilon", 1e-3)];
    folds(
        "its own statistics",
        &norm(&["w", "mean", "variance"], &training),
    );
    folds("its own statistics alone", &norm(&["w"], &training));
    folds("statistics", &norm(&["w"], &[]));
    // What else it gives is constant, and not known. It is read, so the norm stays for it.
    let read = [
        &norm(&["w", "mean", "variance"], &training)[..],
        &[node("Relu", &["mean"], &["unused"], &[])],
    ]
    .concat();
    let place = Place::new();
    place.write("in.onnx", network(&read, 20));
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(counts(&place.path("out.onnx")), [1, 0, 0, 0]);
    let kept = |name: &str| {
        let bytes = place.read(name);
        bytes.windows(13).any(|part| part == b"training_mode")
    };
    assert!(kept("out.onnx"), "what `mean` is read of");
}

#[test]
fn numbers_are_found_and_put_by_indices() {
    folds(
        "an axis",
        &calls(&[("Gather", &["a", "order"], "w", &[int("axis", 1)])]),
    );
    folds(
        "many indices",
        &calls(&[
            ("Gather", &["flat", "long"], "found", &[]),
            ("Reshape", &["found", "kernel"], "w", &[]),
        ]),
    );
    folds(
        "rows",
        &calls(&[
            ("GatherND", &["a", "lists"], "found", &[]),
            (
                "ScatterND",
                &["b", "lists", "found"],
                "w",
                &[text("reduction", "none")],
            ),
        ]),
    );
    // Indices that are put together of others.
    folds(
        "tables",
        &calls(&[
            ("Mod", &["long", "last"], "rest", &[]),
            ("Add", &["rest", "second"], "more", &[]),
            ("Cast", &["more"], "numbers", &[int("to", 1)]),
            ("Reshape", &["numbers", "kernel"], "w", &[]),
        ]),
    );
    folds(
        "parts from the end",
        &calls(&[
            (
                "Slice",
                &["large", "from", "to", "last_two", "steps"],
                "part",
                &[],
            ),
            ("Add", &["a", "part"], "w", &[]),
        ]),
    );
    let parts = [
        node("Split", &["a", "sizes"], &["p", "q", "r"], &[]),
        node("Concat", &["r", "p", "q"], &["w"], &[int("axis", 0)]),
    ];
    folds("parts", &parts);
    let halves = [
        node(
            "Split",
            &["a"],
            &["p", "q"],
            &[int("axis", 1), int("num_outputs", 2)],
        ),
        node("Concat", &["q", "p"], &["w"], &[int("axis", 1)]),
    ];
    folds("halves", &halves);
    folds("sums", &calls(&[("CumSum", &["a", "last"], "w", &[])]));
}

#[test]
fn masks_are_worked_out() {
    folds(
        "a mask",
        &calls(&[("Where", &["mask", "a", "b"], "w", &[])]),
    );
    folds(
        "a mask of one number",
        &calls(&[("Where", &["mask", "none", "a"], "w", &[])]),
    );
    for op in ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"] {
        let nodes = [
            node(op, &["a", "b"], &["holds"], &[]),
            node("Not", &["holds"], &["fails"], &[]),
            node("Cast", &["fails"], &["numbers"], &[int("to", 1)]),
            times("numbers"),
        ];
        folds(op, &nodes);
    }
    for op in ["And", "Or", "Xor"] {
        let nodes = [
            node(op, &["mask", "other"], &["both"], &[]),
            node("Where", &["both", "a", "b"], &["w"], &[]),
        ];
        folds(op, &nodes);
    }
    folds(
        "one side of a diagonal",
        &calls(&[("Trilu", &["a", "second"], "w", &[int("upper", 0)])]),
    );
    folds(
        "a diagonal",
        &calls(&[
            ("EyeLike", &["matrix"], "eye", &[int("k", 1)]),
            ("Unsqueeze", &["eye", "last_two"], "eyes", &[]),
            ("Add", &["a", "eyes"], "w", &[]),
        ]),
    );
    folds(
        "numbers that count",
        &calls(&[
            ("Range", &["first", "last", "second"], "counted", &[]),
            ("Cast", &["counted"], "numbers", &[int("to", 1)]),
            ("Mul", &["a", "numbers"], "w", &[]),
        ]),
    );
    folds(
        "floating-point numbers that count",
        &calls(&[
            ("Range", &["none", "three", "one"], "counted", &[]),
            ("Mul", &["a", "counted"], "w", &[]),
        ]),
    );
}

#[test]
fn kernels_are_stretched() {
    let resized = |from: &str, attributes: &[(&str, &str)]| {
        let attributes: Vec<Message> = attributes
            .iter()
            .map(|(key, what)| text(key, what))
            .collect();
        [node(
            "Resize",
            &[from, "", "", "kernel"],
            &["w"],
            &attributes,
        )]
    };
    let way = "coordinate_transformation_mode";
    for from in ["large", "point"] {
        for way_of in ["half_pixel", "align_corners"] {
            folds(way_of, &resized(from, &[("mode", "linear"), (way, way_of)]));
        }
    }
    let nearest = |of: &str| {
        resized(
            "point",
            &[("mode", "nearest"), (way, of), ("nearest_mode", "floor")],
        )
    };
    folds("nearest", &nearest("asymmetric"));
    stays("nearest by half pixels", &nearest("half_pixel"), 20);
    stays("cubic", &resized("large", &[("mode", "cubic")]), 20);
}

#[test]
fn what_is_not_certain_is_left() {
    let conv = |inputs: &[&str], attributes: &[Message]| [node("Conv", inputs, &["w"], attributes)];
    let scatter = |index: &str, attributes: &[Message]| {
        calls(&[
            ("GatherND", &["a", index], "found", &[]),
            ("ScatterND", &["b", index, "found"], "w", attributes),
        ])
    };
    for (what, nodes) in [
        (
            "a sum of what is put",
            scatter("lists", &[text("reduction", "add")]),
        ),
        ("one place twice", scatter("twice", &[])),
        ("beyond the end", scatter("beyond", &[])),
        (
            "an index beyond the end",
            calls(&[("Gather", &["a", "far"], "w", &[])]),
        ),
        (
            "indices of a batch",
            calls(&[
                (
                    "GatherND",
                    &["rows", "lists"],
                    "found",
                    &[int("batch_dims", 1)],
                ),
                ("Add", &["a", "found"], "w", &[]),
            ]),
        ),
        (
            "a sum from the end",
            calls(&[("CumSum", &["a", "last"], "w", &[int("reverse", 1)])]),
        ),
        (
            "parts that are not the whole",
            vec![
                node("Split", &["large", "sizes"], &["p", "q"], &[int("axis", 2)]),
                node("Concat", &["q", "p"], &["w"], &[]),
            ],
        ),
        (
            "groups that do not fit",
            conv(&["a", "point"], &[int("group", 3)]).to_vec(),
        ),
        (
            "a kernel beyond the map",
            conv(&["point", "b"], &[]).to_vec(),
        ),
        (
            "an unknown word",
            calls(&[("Softmax", &["a"], "w", &[int("axis", 1), int("new", 1)])]),
        ),
        (
            "a bound that is not known",
            calls(&[
                ("ReduceMean", &["x"], "mean", &[]),
                ("Clip", &["a", "mean"], "w", &[]),
            ]),
        ),
        (
            "types that do not meet",
            calls(&[
                ("Cast", &["a"], "doubles", &[int("to", 11)]),
                ("Max", &["doubles", "b"], "w", &[]),
            ]),
        ),
    ] {
        stays(what, &nodes, 20);
    }
    // Earlier versions take all axes behind the one as one.
    stays(
        "shares of several axes",
        &calls(&[("Softmax", &["a"], "w", &[int("axis", 1)])]),
        12,
    );
}

/// A file of a few bytes may ask for any number of numbers.
#[test]
fn no_file_makes_it_slow() {
    for (what, nodes) in [
        (
            "a shape",
            calls(&[
                ("ConstantOfShape", &["huge"], "m", &[]),
                ("Add", &["a", "m"], "w", &[]),
            ]),
        ),
        (
            "no elements",
            calls(&[
                ("ConstantOfShape", &["empty"], "m", &[]),
                ("Add", &["a", "m"], "w", &[]),
            ]),
        ),
        (
            "a range",
            calls(&[
                ("Range", &["first", "many", "second"], "m", &[]),
                ("Add", &["a", "m"], "w", &[]),
            ]),
        ),
        (
            "no step",
            calls(&[
                ("Range", &["first", "last", "first"], "m", &[]),
                ("Add", &["a", "m"], "w", &[]),
            ]),
        ),
        (
            "paddings",
            [node(
                "Conv",
                &["a", "each"],
                &["w"],
                &[int("group", 4), ints("pads", &[1 << 40; 4])],
            )]
            .to_vec(),
        ),
        (
            "strides",
            [node(
                "Conv",
                &["a", "b"],
                &["w"],
                &[ints("dilations", &[i64::MAX; 2])],
            )]
            .to_vec(),
        ),
    ] {
        stays(what, &nodes, 20);
    }
    // A shape of as many axes.
    let nodes = calls(&[
        ("ReduceMean", &["x"], "mean", &[]),
        ("Reshape", &["mean", "huge"], "shape", &[]),
        ("Expand", &["four", "shape"], "m", &[]),
        ("Add", &["a", "m"], "w", &[]),
    ]);
    stays("axes", &nodes, 20);
    let without = calls(&[("Gather", &["a"], "w", &[])]);
    stays("no index", &without, 20);
    // One large constant after the other.
    let mut nodes = Vec::new();
    for i in 0..3000 {
        let (from, to) = (format!("m{i}"), format!("n{i}"));
        nodes.push(node("Gather", &["flat", "long"], &[&from], &[]));
        nodes.push(node("Tile", &[&from, "times"], &[&to], &[]));
    }
    nodes.insert(
        0,
        node(
            "Constant",
            &[],
            &["times"],
            &[ints("value_ints", &[1 << 14])],
        ),
    );
    let began = std::time::Instant::now();
    stays(
        "one after the other",
        &[&nodes[..], &[node("Add", &["a", "n2999"], &["w"], &[])]].concat(),
        20,
    );
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}
