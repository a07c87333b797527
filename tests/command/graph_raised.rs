//! Norms and factors that what stands before them takes over, behind a concat or what else only moves numbers.

use ndarray::{ArrayD, IxDyn};

use crate::support::Random;
use crate::support::file::Place;
use crate::support::graphs::{apart, counts, run};
use crate::support::onnx::{ByHand, Message, graph, int, ints, model, node, tensor, value};

/// A graph by hand over maps of 6 channels and 4×4 pixels; what it gives has as many axes as `rank`.
struct Made {
    by_hand: ByHand,
    outputs: Vec<(&'static str, usize)>,
}

impl Made {
    fn new() -> Made {
        let mut made = Made {
            by_hand: ByHand::default(),
            outputs: Vec::new(),
        };
        made.by_hand.push("Relu", &["x"], "r", &[]);
        made
    }

    /// A conv that keeps the size of its input.
    fn conv(&mut self, input: &str, output: &str, [from, to, taps]: [usize; 3]) {
        let [weight, bias] = ["weight", "bias"].map(|end| format!("{output}.{end}"));
        self.by_hand.constant(&weight, &[to, from, taps, taps]);
        self.by_hand.constant(&bias, &[to]);
        let pads = ints("pads", &[(taps / 2) as i64; 4]);
        let [strides, dilations] = ["strides", "dilations"].map(|name| ints(name, &[1, 1]));
        let attributes = [pads, strides, dilations];
        self.by_hand
            .push("Conv", &[input, &weight, &bias], output, &attributes);
    }

    fn norm(&mut self, input: &str, output: &str, channels: usize) {
        let names = ["weight", "bias", "mean", "var"].map(|end| format!("{output}.{end}"));
        names
            .iter()
            .for_each(|name| self.by_hand.constant(name, &[channels]));
        let [a, b, c, d] = &names;
        self.by_hand
            .push("BatchNormalization", &[input, a, b, c, d], output, &[]);
    }

    fn concat(&mut self, inputs: &[&str], output: &str, axis: i64) {
        self.by_hand
            .push("Concat", inputs, output, &[int("axis", axis)]);
    }

    fn gives(mut self, op: &str, input: &str, rank: usize) -> Made {
        self.by_hand.nodes.push(node(op, &[input], &["y"], &[]));
        self.outputs.push(("y", rank));
        self
    }

    fn write(&self, place: &Place, name: &str) {
        let outputs: Vec<Message> = (self.outputs.iter())
            .map(|(name, rank)| value(name, &vec![0; *rank]))
            .collect();
        let inputs = [value("x", &[0, 6, 4, 4])];
        place.write(
            name,
            &model(
                &graph(
                    &self.by_hand.nodes,
                    &self.by_hand.tensors,
                    &inputs,
                    &outputs,
                ),
                17,
            )
            .0,
        );
    }
}

/// Fuses and proves it, compares both by a run, and gives the convs, linear nodes, norms and other linear nodes that are left.
fn fused(made: &Made) -> [usize; 4] {
    let place = Place::new();
    made.write(&place, "in.onnx");
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let ran = place.run("verify in.onnx out.onnx");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let mut random = Random(5);
    let x = ArrayD::from_shape_simple_fn(IxDyn(&[2, 6, 4, 4]), || random.between(-1.0, 1.0));
    let [before, after] = ["in.onnx", "out.onnx"].map(|name| run(&place.path(name), &x));
    assert!(apart(&before, &after) < 1e-5);
    let again = place.run("fuse out.onnx again.onnx");
    assert_eq!(again.code(), Some(0), "{}", again.stderr);
    assert!(place.read("again.onnx") == place.read("out.onnx"));
    counts(&place.path("out.onnx"))
}

/// What `inspect` says of the node that gives `name`.
fn why(made: &Made, name: &str) -> String {
    let place = Place::new();
    made.write(&place, "in.onnx");
    let ran = place.run("inspect in.onnx");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let lines = ran.stdout.lines().filter(|line| line.contains(name));
    lines.collect::<Vec<_>>().join("\n")
}

/// `a` of the rectified input and `b` of the input itself, one behind the other.
fn parts() -> Made {
    let mut made = Made::new();
    made.conv("r", "a", [6, 4, 3]);
    made.conv("x", "b", [6, 3, 1]);
    made.concat(&["a", "b"], "all", 1);
    made
}

#[test]
fn a_norm_behind_a_concat_is_taken_over_part_by_part() {
    let mut made = parts();
    made.norm("all", "n", 7);
    assert_eq!(fused(&made.gives("Sigmoid", "n", 4))[..3], [2, 0, 0]);
}

#[test]
fn so_are_several_nodes_one_behind_another() {
    let mut made = parts();
    made.norm("all", "n", 7);
    made.by_hand.constant("scale", &[7, 1, 1]);
    made.by_hand.constant("one", &[1]);
    made.by_hand.push("Mul", &["n", "scale"], "scaled", &[]);
    made.by_hand.push("Sub", &["one", "scaled"], "turned", &[]);
    made.conv("turned", "behind", [7, 2, 3]);
    // The padding keeps the conv behind from taking them over.
    assert_eq!(fused(&made.gives("Sigmoid", "behind", 4))[..3], [3, 0, 0]);
}

#[test]
fn a_concat_of_concats_and_norms_is_taken_apart() {
    let mut made = parts();
    made.norm("all", "inner", 7);
    made.conv("r", "c", [6, 2, 1]);
    made.norm("c", "d", 2);
    made.concat(&["inner", "d"], "outer", 1);
    made.norm("outer", "n", 9);
    assert_eq!(fused(&made.gives("Sigmoid", "n", 4))[..3], [3, 0, 0]);
}

#[test]
fn what_is_put_together_along_another_axis_takes_the_whole_norm_over() {
    let mut made = Made::new();
    made.conv("r", "a", [6, 4, 3]);
    made.conv("x", "b", [6, 4, 1]);
    made.concat(&["a", "b"], "all", 2);
    made.norm("all", "n", 4);
    assert_eq!(fused(&made.gives("Sigmoid", "n", 4))[..3], [2, 0, 0]);
}

#[test]
fn rows_are_put_together_too() {
    let mut made = Made::new();
    made.by_hand.list("flat", &[0, -1]);
    for (input, flat, product) in [("r", "fr", "a"), ("x", "fx", "b")] {
        made.by_hand.push("Reshape", &[input, "flat"], flat, &[]);
        let weight = format!("{product}.weight");
        made.by_hand.constant(&weight, &[96, 3]);
        made.by_hand.push("MatMul", &[flat, &weight], product, &[]);
    }
    made.concat(&["a", "b"], "all", -1);
    made.norm("all", "n", 6);
    assert_eq!(fused(&made.gives("Sigmoid", "n", 2))[..3], [0, 2, 0]);
}

#[test]
fn one_input_that_is_no_conv_keeps_the_norm() {
    let mut made = Made::new();
    made.conv("x", "b", [6, 3, 1]);
    made.concat(&["r", "b"], "all", 1);
    made.norm("all", "norm", 9);
    let made = made.gives("Sigmoid", "norm", 4);
    assert_eq!(fused(&made)[2], 1);
    assert!(
        why(&made, "norm").contains("what makes `r` before it does not take over what it does")
    );
}

#[test]
fn what_another_node_reads_keeps_the_norm() {
    // A part.
    let mut made = parts();
    made.norm("all", "norm", 7);
    made.by_hand.push("Sigmoid", &["a"], "s", &[]);
    made.outputs.push(("s", 4));
    let made = made.gives("Sigmoid", "norm", 4);
    assert_eq!(fused(&made)[2], 1);
    assert!(why(&made, "norm").contains("`a` before it is read by something else, too"));
    // A part that is given to whoever runs the network.
    let mut made = parts();
    made.norm("all", "norm", 7);
    made.outputs.push(("a", 4));
    assert_eq!(fused(&made.gives("Sigmoid", "norm", 4))[2], 1);
    // The whole.
    let mut made = parts();
    made.norm("all", "norm", 7);
    made.by_hand.push("Sigmoid", &["all"], "s", &[]);
    made.outputs.push(("s", 4));
    assert_eq!(fused(&made.gives("Sigmoid", "norm", 4))[2], 1);
    // The norm itself, under its own name.
    let mut made = parts();
    made.norm("all", "norm", 7);
    made.outputs.push(("norm", 4));
    assert_eq!(fused(&made)[2], 1);
}

#[test]
fn one_value_twice_keeps_the_norm() {
    let mut made = Made::new();
    made.conv("r", "a", [6, 4, 3]);
    made.concat(&["a", "a"], "all", 1);
    made.norm("all", "n", 8);
    assert_eq!(fused(&made.gives("Sigmoid", "n", 4))[2], 1);
}

#[test]
fn who_asks_for_the_shape_of_a_part_does_not_read_it() {
    let mut made = parts();
    made.norm("all", "n", 7);
    made.by_hand.push("Shape", &["all"], "shape", &[]);
    made.by_hand.push("Sigmoid", &["n"], "s", &[]);
    made.by_hand.push("Reshape", &["s", "shape"], "z", &[]);
    assert_eq!(fused(&made.gives("Sigmoid", "z", 4))[2], 0);
}

#[test]
fn a_block_that_the_user_keeps_keeps_its_norm() {
    let place = Place::new();
    let mut made = parts();
    made.norm("all", "n", 7);
    made.gives("Sigmoid", "n", 4).write(&place, "in.onnx");
    let ran = place.run("fuse in.onnx out.onnx --skip a");
    assert_eq!(ran.code(), Some(1), "{}", ran.stderr);
}

#[test]
fn a_norm_behind_what_moves_numbers_is_taken_over_by_what_is_before() {
    let conv = || {
        let mut made = Made::new();
        made.conv("r", "a", [6, 4, 3]);
        made
    };
    // Part of the rows.
    let mut made = conv();
    for (name, number) in [("first", 1), ("last", 3), ("axis", 2)] {
        made.by_hand.list(name, &[number]);
    }
    made.by_hand
        .push("Slice", &["a", "first", "last", "axis"], "cut", &[]);
    made.norm("cut", "n", 4);
    assert_eq!(fused(&made.gives("Sigmoid", "n", 4))[2], 0);
    // One axis of all pixels, and another place for the channels.
    let mut made = conv();
    made.by_hand.list("flat", &[0, 4, -1]);
    made.by_hand.push("Reshape", &["a", "flat"], "columns", &[]);
    made.norm("columns", "n", 4);
    assert_eq!(fused(&made.gives("Sigmoid", "n", 3))[2], 0);
    // An average, also over a border of zeros for what keeps a zero.
    for (pads, is_norm, left) in [(0, true, 0), (1, true, 1), (1, false, 0)] {
        let mut made = conv();
        let window = [
            ints("kernel_shape", &[2, 2]),
            ints("strides", &[2, 2]),
            ints("pads", &[pads; 4]),
            int("count_include_pad", 1),
        ];
        made.by_hand.push("AveragePool", &["a"], "fewer", &window);
        made.by_hand.constant("scale", &[4, 1, 1]);
        match is_norm {
            true => made.norm("fewer", "n", 4),
            false => made.by_hand.push("Mul", &["fewer", "scale"], "n", &[]),
        }
        let [_, _, norms, others] = fused(&made.gives("Sigmoid", "n", 4));
        // Of these one is the pool.
        assert_eq!((norms, others), (left, 1), "{pads} {is_norm}");
    }
}

#[test]
fn a_norm_behind_a_mean_is_taken_over_by_what_is_before() {
    for (op, drops) in [("GlobalAveragePool", false), ("ReduceMean", true)] {
        let mut made = Made::new();
        made.conv("r", "a", [6, 4, 3]);
        let keeps = [int("keepdims", 0)];
        made.by_hand.list("axes", &[2, 3]);
        match drops {
            true => made.by_hand.push(op, &["a", "axes"], "mean", &keeps),
            false => made.by_hand.push(op, &["a"], "mean", &[]),
        }
        made.norm("mean", "n", 4);
        let made = made.gives("Sigmoid", "n", if drops { 2 } else { 4 });
        assert_eq!(fused(&made)[..3], [1, 0, 0], "{op}");
    }
}

#[test]
fn a_wrong_number_is_named_where_it_stands() {
    let place = Place::new();
    let mut made = parts();
    made.norm("all", "n", 7);
    // The sixth variance is that of the second channel of `b`.
    made.by_hand.tensors.pop();
    let numbers = [1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0];
    made.by_hand.tensors.push(tensor("n.var", &[7], &numbers));
    made.gives("Sigmoid", "n", 4).write(&place, "in.onnx");
    let ran = place.run("fuse in.onnx out.onnx");
    assert_eq!(ran.code(), Some(2), "{}", ran.stderr);
    let said = "`n.var` is -1.0 at [5]";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

#[test]
fn what_comes_first_is_done_first() {
    // The factor could go before the padding, and the norm that stands before it cannot.
    let mut made = Made::new();
    made.conv("r", "a", [6, 4, 3]);
    made.by_hand.list("border", &[0, 0, 1, 1, 0, 0, 1, 1]);
    made.by_hand.push("Pad", &["a", "border"], "padded", &[]);
    made.norm("padded", "n", 4);
    made.by_hand.constant("scale", &[4, 1, 1]);
    made.by_hand.push("Mul", &["n", "scale"], "scaled", &[]);
    fused(&made.gives("Sigmoid", "scaled", 4));
}
