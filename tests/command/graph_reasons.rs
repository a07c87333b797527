//! Tiny graphs, operator by operator: what is folded, and what is left with its reason.

use serde_json::Value;

use crate::support::file::Place;
use crate::support::graphs::counts;
use crate::support::onnx::{
    Message, float, graph, int, ints, list, model, node, tensor, text, typed, value,
};

/// A graph over `x [1, 4, 8, 8]`, `t [2, 3, 4]` and `m [2, 4]` that gives `y`.
struct Tiny {
    nodes: Vec<Message>,
    opset: i64,
}

/// The constants that all of them may read.
fn constants() -> Vec<Message> {
    let ramp = |name: &str, shape: &[usize]| {
        let numbers: Vec<f32> = (0..shape.iter().product())
            .map(|i| 0.3 + (i % 7) as f32 * 0.1)
            .collect();
        tensor(name, shape, &numbers)
    };
    let mut all = vec![
        ramp("k1", &[4, 4, 1, 1]),
        ramp("k3", &[4, 4, 3, 3]),
        ramp("k2", &[4, 4, 2, 2]),
        ramp("k4", &[4, 4, 4, 4]),
        ramp("up", &[8, 2, 1, 1]),
        ramp("d3", &[4, 1, 3, 3]),
        ramp("to2", &[2, 4, 1, 1]),
        ramp("to8", &[8, 4, 1, 1]),
        ramp("from8", &[4, 8, 1, 1]),
        ramp("line", &[4, 4, 3]),
        ramp("deep", &[4, 4, 1, 1, 1, 1]),
        ramp("b", &[4]),
        ramp("b3", &[3]),
        ramp("c", &[4, 1, 1]),
        ramp("row", &[4]),
        tensor("barred", &[4, 1, 1], &[0.0, 0.0, f32::NEG_INFINITY, 0.0]),
        ramp("map", &[4, 8, 8]),
        ramp("one", &[]),
        ramp("ones5", &[1, 1, 1, 1, 1]),
        ramp("matrix", &[4, 4]),
        ramp("batch", &[2, 4, 4]),
        typed("whole", &[4, 4, 1, 1], 7, &[0; 128]),
        typed("off", &[], 9, &[0]),
        typed("on", &[], 9, &[1]),
        list("axis1", &[1]),
        list("axis2", &[2]),
        list("0", &[0]),
        list("2", &[2]),
        list("4", &[4]),
        list("halves", &[2, 2]),
        list("minus", &[-1]),
        list("turn", &[-9]),
        list("border", &[0, 0, 1, 1, 0, 0, 1, 1]),
        list("channels", &[0, 1, 0, 0, 0, 0, 0, 0]),
        list("inwards", &[0, 0, -1, 0, 0, 0, 0, 0]),
        list("line_border", &[0, 1, 0, 1]),
        list("two", &[1, 1, 1, 1]),
        list("last_two", &[2, 3]),
        list("five", &[5]),
        list("flat", &[4, 64]),
        list("like", &[6, 4]),
    ];
    all.push(typed("zero", &[], 1, &0f32.to_le_bytes()));
    all.push(typed("some", &[], 1, &1f32.to_le_bytes()));
    all
}

impl Tiny {
    fn new(nodes: &[Message]) -> Tiny {
        Tiny {
            nodes: nodes.to_vec(),
            opset: 17,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let inputs = [
            value("x", &[1, 4, 8, 8]),
            value("t", &[2, 3, 4]),
            value("m", &[2, 4]),
            value("open", &[1, 4, 0, 0]),
            value("weights", &[4, 4, 1, 1]),
        ];
        let unknown = Message::default().bytes(1, "bare");
        let inputs = [&inputs[..], &[unknown]].concat();
        model(
            &graph(
                &self.nodes,
                &constants(),
                &inputs,
                &[Message::default().bytes(1, "y")],
            ),
            self.opset,
        )
        .0
    }
}

fn conv(from: &str, weight: &str, to: &str, attributes: &[Message]) -> Message {
    node("Conv", &[from, weight], &[to], attributes)
}

fn norm(from: &str, to: &str) -> Message {
    node(
        "BatchNormalization",
        &[from, "b", "b", "b", "b"],
        &[to],
        &[],
    )
}

fn padded(n: i64) -> Message {
    ints("pads", &[n; 4])
}

/// Everything that is said about what stays.
fn reasons(place: &Place, tiny: &Tiny) -> String {
    place.write("in.onnx", tiny.bytes());
    let ran = place.run("inspect in.onnx --json");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    report["left"].to_string()
}

/// One node of an operator and a conv behind it: left with these words.
fn all_left(cases: &[(&[Message], &str)]) {
    let place = Place::new();
    let mut wrong = Vec::new();
    for (nodes, expected) in cases {
        let found = reasons(&place, &Tiny::new(nodes));
        if !found.contains(expected) {
            wrong.push(format!("expected {expected}, found {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn operators_that_are_nearly_linear_say_what_stops_them() {
    let one =
        |op: &str, inputs: &[&str], attributes: &[Message]| [node(op, inputs, &["y"], attributes)];
    let c = |attributes: &[Message]| one("Conv", &["x", "k1"], attributes);
    let t = |attributes: &[Message]| one("ConvTranspose", &["x", "k1"], attributes);
    let p = |attributes: &[Message]| {
        one(
            "AveragePool",
            &["x"],
            &[&[ints("kernel_shape", &[3, 3])], attributes].concat(),
        )
    };
    let pad = |inputs: &[&str], attributes: &[Message]| one("Pad", inputs, attributes);
    all_left(&[
        (
            &one("Conv", &["x", "weights"], &[]),
            "its weight is no constant",
        ),
        (
            &one("Conv", &["x", "whole"], &[]),
            "its weight is no floating-point tensor",
        ),
        (
            &one("AveragePool", &["k1"], &[ints("kernel_shape", &[1, 1])]),
            "its input is a constant",
        ),
        (
            &one("Conv", &["x", "matrix"], &[]),
            "its weight has another number of axes than that of a conv",
        ),
        (
            &c(&[int("strides", 1)]),
            "its `strides` are no whole numbers",
        ),
        (
            &c(&[ints("strides", &[1])]),
            "its `strides` do not fit its axes",
        ),
        (
            &c(&[ints("strides", &[0, 1])]),
            "a stride, a dilation or an extent of it is zero",
        ),
        (
            &c(&[ints("kernel_shape", &[3, 3])]),
            "its `kernel_shape` is not that of its weight",
        ),
        (&c(&[int("group", -1)]), "its number of groups is negative"),
        (
            &c(&[int("group", 3)]),
            "its channels cannot be cut into its groups",
        ),
        (
            &one("Conv", &["x", "k1", "b3"], &[]),
            "its bias is not one number for each output channel",
        ),
        (
            &c(&[text("auto_pad", "MAYBE")]),
            "its `auto_pad` is none that ONNX knows",
        ),
        (
            &one(
                "Conv",
                &["open", "k3"],
                &[text("auto_pad", "SAME_UPPER"), ints("strides", &[2, 2])],
            ),
            "its padding follows from a size that is not known",
        ),
        (
            &t(&[ints("output_shape", &[9, 9])]),
            "what its `output_shape` cuts off is uneven, or less than nothing",
        ),
        (
            &t(&[text("auto_pad", "SAME_UPPER"), ints("strides", &[2, 2])]),
            "what its `auto_pad` cuts off is uneven, or less than nothing",
        ),
        (
            &[node(
                "BatchNormalization",
                &["x", "b", "b", "b", "b"],
                &["y"],
                &[float("epsilon", f32::NAN)],
            )],
            "its `epsilon` is NaN; expected a finite number, not negative",
        ),
        (
            &[node(
                "BatchNormalization",
                &["x", "b", "b", "b", "b"],
                &["y"],
                &[float("epsilon", -0.1)],
            )],
            "its `epsilon` is -0.1; expected a finite number, not negative",
        ),
        (
            &[node(
                "BatchNormalization",
                &["k1", "b", "b", "b", "b"],
                &["y"],
                &[int("training_mode", 1), int("spatial", 0)],
            )],
            "it standardises a weight, which is not worked out",
        ),
        (
            &[node(
                "BatchNormalization",
                &["x", "b", "b", "b", "b"],
                &["y"],
                &[int("training_mode", 1)],
            )],
            "it takes its statistics from its input, as the norms of a network do before `model.eval()`",
        ),
        (
            &[node(
                "BatchNormalization",
                &["x", "b", "b", "b", "b"],
                &["y"],
                &[int("spatial", 0)],
            )],
            "it has numbers for each pixel",
        ),
        (
            &[node(
                "BatchNormalization",
                &["x", "b", "b3", "b", "b"],
                &["y"],
                &[],
            )],
            "its tensors are not one number for each channel",
        ),
        (
            &[node(
                "BatchNormalization",
                &["x", "b", "b", "b", "b"],
                &["y", "mean"],
                &[],
            )],
            "it has several outputs",
        ),
        (
            &one("Gemm", &["m", "matrix"], &[int("transA", 1)]),
            "it transposes what it multiplies, or multiplies by 0",
        ),
        (
            &one("Gemm", &["m", "batch"], &[]),
            "its matrix has another number of axes",
        ),
        (
            &one("Gemm", &["m", "matrix", "b3"], &[]),
            "its bias is not one number for each output",
        ),
        (
            &one("MatMul", &["t", "batch"], &[]),
            "its matrix has another number of axes",
        ),
        (
            &p(&[ints("strides", &[0, 1])]),
            "a stride or an extent of it is zero",
        ),
        (
            &p(&[int("ceil_mode", 1)]),
            "its last window may reach beyond the padding",
        ),
        (&p(&[ints("dilations", &[2, 2])]), "its window is dilated"),
        (&p(&[padded(1)]), "it leaves its padding out of the average"),
        (
            &pad(&["x", "border"], &[text("mode", "reflect")]),
            "it pads with what is at the border",
        ),
        (
            &[
                node("Relu", &["bare"], &["n"], &[]),
                node("Pad", &["x", "n"], &["y"], &[]),
            ],
            "how much it pads is no constant",
        ),
        (
            &pad(&["x", "border", "some"], &[]),
            "it pads with something else than zeros",
        ),
        (
            &pad(&["bare", "two", "zero", "last_two"], &[]),
            "which axes it pads is not known",
        ),
        (
            &pad(&["x", "two", "zero", "five"], &[]),
            "its axes do not fit what it pads",
        ),
        (&pad(&["x", "channels"], &[]), "it pads channels"),
        (
            &pad(&["m", "line_border"], &[]),
            "it pads another number of axes than a conv has",
        ),
        (&pad(&["x", "inwards"], &[]), "it cuts off a border"),
        (
            &[node("Dropout", &["x"], &["y", "mask"], &[])],
            "it gives its mask, too",
        ),
        (
            &one("Dropout", &["x", "zero", "on"], &[]),
            "it may be in training mode",
        ),
        (
            &one("Slice", &["x", "0", "4", "axis1", "2"], &[]),
            "it takes every second element, or turns their order",
        ),
        (
            &[
                conv("x", "to8", "a", &[]),
                node("Split", &["a", "halves"], &["y", "z"], &[int("axis", 1)]),
            ],
            "its parts are not the whole",
        ),
    ]);
}

#[test]
fn operators_that_do_not_meet_say_why() {
    let strided = ints("strides", &[2, 2]);
    let add = |a: &str, b: &str| node("Add", &[a, b], &["y"], &[]);
    let transposed = node("ConvTranspose", &["x", "k1"], &["a"], &[]);
    let turned =
        |from: &str, to: &str| node("Transpose", &[from], &[to], &[ints("perm", &[0, 2, 3, 1])]);
    // Each sum reads the one before it twice.
    let many: Vec<Message> = (0..12)
        .map(|i| {
            let [from, to] = [i, i + 1].map(|i| format!("v{i}"));
            let from = if i == 0 { "x" } else { &from };
            node(
                "Add",
                &[from, from],
                &[if i == 11 { "y" } else { &to }],
                &[],
            )
        })
        .collect();
    let huge = i64::MAX;
    all_left(&[
        (&many, "too many operators would become one"),
        (
            &[
                conv("x", "k3", "a", &[]),
                conv("a", "k1", "y", &[padded(1)]),
            ],
            "it pads what a larger kernel has made",
        ),
        (
            &[norm("x", "a"), conv("a", "k3", "y", &[padded(1)])],
            "it pads with zeros where a constant has been added",
        ),
        (
            &[
                conv("x", "k3", "a", std::slice::from_ref(&strided)),
                conv("a", "k3", "y", &[]),
            ],
            "what stands before it has a stride",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                node("ConvTranspose", &["a", "k1"], &["y"], &[]),
            ],
            "a transposed conv stays at the head of what is folded",
        ),
        (
            &[
                node("ConvTranspose", &["x", "k3"], &["a"], &[]),
                node(
                    "ConvTranspose",
                    &["x", "k3"],
                    &["b2"],
                    &[ints("dilations", &[2, 2]), padded(1)],
                ),
                node("Add", &["a", "b2"], &["y"], &[]),
            ],
            "a transposed conv of another dilation stands beside it",
        ),
        (
            &[transposed.clone(), conv("a", "k1", "y", &[])],
            "a transposed conv stands before it",
        ),
        (
            &[transposed, turned("a", "y")],
            "it turns what has been reshaped or spread",
        ),
        (
            &[conv("x", "k1", "a", &[]), conv("a", "line", "y", &[])],
            "it has another number of spatial axes",
        ),
        (
            &[
                node("MatMul", &["t", "matrix"], &["a"], &[]),
                conv("a", "line", "y", &[]),
            ],
            "a linear layer stands before it",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                turned("a", "b1"),
                conv("b1", "k1", "y", &[]),
            ],
            "its axes are in another order",
        ),
        (
            &[
                node("MatMul", &["t", "matrix"], &["a"], &[]),
                norm("a", "y"),
            ],
            "its channels are on another axis than those before it",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                node("Slice", &["a", "0", "2", "axis2"], &["y"], &[]),
            ],
            "it cuts another axis than that of the channels",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                node("Mul", &["a", "ones5"], &["y"], &[]),
            ],
            "its constant may have more axes than what it is combined with",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                node("Add", &["a", "barred"], &["y"], &[]),
            ],
            "its constant `barred` is not finite everywhere",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                node("Mul", &["a", "map"], &["y"], &[]),
            ],
            "its constant is none for each channel",
        ),
        (
            &[
                node("Identity", &["bare"], &["a"], &[]),
                node("Mul", &["a", "c"], &["y"], &[]),
            ],
            "how many axes it has is not known",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                node("Reshape", &["a", "flat"], &["y"], &[]),
            ],
            "it does not keep the axis of the channels",
        ),
        (
            &[conv("x", "to2", "a", &[]), conv("a", "k1", "y", &[])],
            "it takes 4 channels, and what stands before it has 2",
        ),
        (
            &[
                conv("x", "to2", "a", &[]),
                conv("x", "k1", "b1", &[]),
                add("a", "b1"),
            ],
            "its inputs have different numbers of channels",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                conv("x", "k1", "b1", &[]),
                node("Concat", &["a", "b1"], &["y"], &[int("axis", 2)]),
            ],
            "its inputs are put together along another axis than that of the channels",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                turned("a", "b1"),
                conv("x", "k1", "d", &[]),
                add("b1", "d"),
            ],
            "its inputs have their axes in different orders",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                conv("x", "line", "d", &[]),
                add("a", "d"),
            ],
            "its inputs have different numbers of spatial axes",
        ),
        (
            &[
                node("MatMul", &["t", "matrix"], &["a"], &[]),
                conv("t", "line", "d", &[]),
                add("a", "d"),
            ],
            "its inputs are laid out in different ways",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                conv("x", "k1", "d", &[strided]),
                add("a", "d"),
            ],
            "its inputs have different strides",
        ),
        (
            &[
                conv("x", "k2", "a", &[]),
                conv("x", "k1", "d", &[]),
                add("a", "d"),
            ],
            "the paddings of its inputs do not line up",
        ),
        (
            &[
                conv("x", "k4", "a", &[ints("dilations", &[huge, huge])]),
                norm("a", "y"),
            ],
            "its kernel has no taps",
        ),
        (
            &[
                conv("x", "k1", "a", &[ints("strides", &[huge; 2])]),
                conv("a", "k1", "y", &[ints("strides", &[huge; 2])]),
            ],
            "its stride overflows",
        ),
        (
            &[
                conv("x", "k1", "a", &[]),
                conv("a", "k1", "y", &[]),
                node("Relu", &["a"], &["z"], &[]),
            ],
            "what stands before it is read by something else, too",
        ),
        (
            &[conv("x", "to2", "a", &[]), conv("a", "up", "y", &[])],
            "one conv would be dearer: ",
        ),
    ]);
}

/// Convs, linear layers and norms that are left.
fn left(place: &Place, tiny: &Tiny) -> [usize; 3] {
    place.write("in.onnx", tiny.bytes());
    let ran = place.run("fuse in.onnx out.onnx --verify --force");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let [convs, linear, norms, _] = counts(&place.path("out.onnx"));
    [convs, linear, norms]
}

#[test]
fn every_version_of_the_operators_is_folded() {
    let place = Place::new();
    for opset in 7..=23 {
        let pads = match opset {
            ..11 => node(
                "Pad",
                &["x"],
                &["p"],
                &[ints("pads", &[0, 0, 1, 1, 0, 0, 1, 1])],
            ),
            _ => node("Pad", &["x", "border"], &["p"], &[]),
        };
        let nodes = [
            pads,
            conv("p", "k3", "a", &[]),
            norm("a", "n"),
            node("Dropout", &["n"], &["d"], &[]),
            node("Mul", &["d", "c"], &["s"], &[]),
            conv("x", "k1", "e", &[]),
            node("Sub", &["e", "s"], &["f"], &[]),
            node("Neg", &["f"], &["g"], &[]),
            node("Identity", &["g"], &["y"], &[]),
        ];
        let tiny = Tiny {
            opset,
            ..Tiny::new(&nodes)
        };
        assert_eq!(left(&place, &tiny), [1, 0, 0], "opset {opset}");
    }
    let nodes = [conv("x", "k1", "a", &[]), norm("a", "y")];
    // Older ones mean other things by their attributes.
    let tiny = Tiny {
        opset: 6,
        ..Tiny::new(&nodes)
    };
    place.write("in.onnx", tiny.bytes());
    let ran = place.run("fuse in.onnx out.onnx --force");
    assert!(ran.stderr.contains("nothing to fuse"), "{}", ran.stderr);
}

#[test]
fn an_operator_that_the_file_defines_anew_is_not_the_known_one() {
    let place = Place::new();
    let tiny = Tiny::new(&[conv("x", "k1", "a", &[]), norm("a", "y")]);
    assert_eq!(left(&place, &tiny), [1, 0, 0]);
    let function = Message::default()
        .bytes(1, "BatchNormalization")
        .bytes(10, "");
    let mut bytes = tiny.bytes();
    bytes.extend(Message::default().message(25, &function).0);
    place.write("in.onnx", bytes);
    let ran = place.run("fuse in.onnx out.onnx --force");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing to fuse"), "{}", ran.stderr);
}

#[test]
fn a_subgraph_keeps_what_it_reads() {
    let place = Place::new();
    let inner = graph(
        &[node("Relu", &["a"], &["r"], &[])],
        &[],
        &[],
        &[value("r", &[0; 4])],
    );
    let both = [
        Message::default()
            .bytes(1, "then_branch")
            .message(6, &inner)
            .int(20, 5),
        Message::default()
            .bytes(1, "else_branch")
            .message(6, &inner)
            .int(20, 5),
    ];
    let nodes = [
        conv("x", "k1", "a", &[]),
        norm("a", "y"),
        node("If", &["off"], &["z"], &both),
    ];
    // The conv is computed anyway.
    assert_eq!(left(&place, &Tiny::new(&nodes)), [1, 0, 1]);
}

#[test]
fn what_another_region_makes_superfluous_is_not_saved_twice() {
    let place = Place::new();
    // FastViT's position encoding: a conv and an identity, read by a norm and by a shortcut.
    let add = |a: &str, b: &str, to: &str| node("Add", &[a, b], &[to], &[]);
    let nodes = [
        conv("x", "k3", "a", &[padded(1)]),
        add("a", "x", "s"),
        norm("s", "n"),
        node("Relu", &["n"], &["r"], &[]),
        add("r", "s", "y"),
    ];
    assert_eq!(left(&place, &Tiny::new(&nodes)), [1, 0, 1]);
}

#[test]
fn channels_are_put_together_cut_and_turned() {
    let place = Place::new();
    for (nodes, expected) in [
        (
            vec![
                conv("x", "k3", "a", &[padded(1)]),
                conv("x", "k1", "d", &[]),
                node("Concat", &["a", "d"], &["e"], &[int("axis", -3)]),
                conv("e", "from8", "y", &[]),
            ],
            [1, 0, 0],
        ),
        (
            vec![
                conv("x", "k1", "a", &[]),
                node("Slice", &["a", "0", "2", "axis1"], &["y"], &[]),
            ],
            [1, 0, 0],
        ),
        (
            vec![
                node("Transpose", &["x"], &["a"], &[ints("perm", &[0, 2, 3, 1])]),
                node("Transpose", &["matrix"], &["w"], &[]),
                node("MatMul", &["a", "w"], &["d"], &[]),
                node("Add", &["d", "row"], &["e"], &[]),
                node("Transpose", &["e"], &["f"], &[ints("perm", &[0, 3, 1, 2])]),
                norm("f", "y"),
            ],
            [1, 0, 0],
        ),
        (
            vec![
                node("MatMul", &["t", "matrix"], &["a"], &[]),
                node("Transpose", &["a"], &["d"], &[ints("perm", &[0, 2, 1])]),
                norm("d", "e"),
                node("Transpose", &["e"], &["y"], &[ints("perm", &[0, 2, 1])]),
            ],
            [0, 1, 0],
        ),
        (
            vec![
                node("MatMul", &["t", "matrix"], &["a"], &[]),
                node("Flatten", &["a"], &["n"], &[int("axis", 2)]),
                norm("n", "d"),
                node("Shape", &["a"], &["s"], &[]),
                node("Reshape", &["d", "s"], &["y"], &[]),
            ],
            [0, 1, 0],
        ),
        (
            vec![
                norm("m", "a"),
                node("Gemm", &["a", "matrix", "b"], &["y"], &[int("transB", 1)]),
            ],
            [0, 1, 0],
        ),
        (
            vec![
                node("Transpose", &["matrix"], &["w"], &[]),
                node("Transpose", &["t"], &["n"], &[ints("perm", &[0, 2, 1])]),
                norm("n", "o"),
                node("Transpose", &["o"], &["p"], &[ints("perm", &[0, 2, 1])]),
                node("MatMul", &["p", "w"], &["y"], &[]),
            ],
            [0, 1, 0],
        ),
    ] {
        assert_eq!(
            left(&place, &Tiny::new(&nodes)),
            expected,
            "{}",
            nodes.len()
        );
    }
}
