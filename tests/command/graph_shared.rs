//! Norms and factors that several layers read: each takes them over, or none does.

use ndarray::{ArrayD, IxDyn};

use crate::support::Random;
use crate::support::file::Place;
use crate::support::graphs::{apart, counts, run};
use crate::support::onnx::{ByHand, Message, graph, int, ints, model, value};

/// A graph by hand, over maps of 6 channels and 4×4 pixels.
#[derive(Default)]
struct Made {
    by_hand: ByHand,
    outputs: Vec<&'static str>,
}

impl Made {
    fn norm(&mut self, input: &str, output: &str) {
        let names = ["weight", "bias", "mean", "var"].map(|end| format!("{output}.{end}"));
        names
            .iter()
            .for_each(|name| self.by_hand.constant(name, &[6]));
        let [a, b, c, d] = &names;
        self.by_hand
            .push("BatchNormalization", &[input, a, b, c, d], output, &[]);
    }

    fn turned(&mut self, input: &str, output: &str) {
        self.by_hand
            .push("Transpose", &[input], output, &[ints("perm", &[0, 2, 1])]);
    }

    fn linear(&mut self, input: &str, output: &'static str) {
        let [weight, product, bias] =
            ["weight", "product", "bias"].map(|end| format!("{output}.{end}"));
        self.by_hand.constant(&weight, &[6, 6]);
        self.by_hand.constant(&bias, &[6]);
        self.by_hand
            .push("MatMul", &[input, &weight], &product, &[]);
        self.by_hand.push("Add", &[&product, &bias], output, &[]);
        self.outputs.push(output);
    }

    /// `norm → reshape → transpose → q`, and behind a pool and one more norm `k` and `v`.
    fn attention(pool: &[Message]) -> Made {
        let mut made = Made::default();
        made.norm("x", "norm1");
        made.by_hand.list("flat", &[0, 6, -1]);
        made.by_hand
            .push("Reshape", &["norm1", "flat"], "columns", &[]);
        made.turned("columns", "rows");
        made.linear("rows", "q");
        made.by_hand
            .push("AveragePool", &["columns"], "pooled", pool);
        made.norm("pooled", "norm2");
        made.turned("norm2", "fewer");
        made.linear("fewer", "k");
        made.linear("fewer", "v");
        made
    }

    fn write(&self, place: &Place, name: &str) {
        let outputs: Vec<Message> = (self.outputs.iter())
            .map(|name| value(name, &[0, 0, 6]))
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
                18,
            )
            .0,
        );
    }
}

fn window(pads: [i64; 2]) -> Vec<Message> {
    vec![
        ints("kernel_shape", &[4]),
        ints("strides", &[4]),
        ints("pads", &pads),
        int("count_include_pad", 1),
    ]
}

/// Fuses and proves it, compares both by a run, and gives the norms and other linear nodes that are left.
fn fused(made: &Made) -> [usize; 2] {
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
    let [_, linear, norms, _] = counts(&place.path("out.onnx"));
    [norms, linear]
}

#[test]
fn a_norm_before_attention_becomes_part_of_each_of_its_layers() {
    let made = Made::attention(&window([0, 0]));
    assert_eq!(fused(&made), [0, 3]);
}

#[test]
fn a_norm_behind_which_borders_are_averaged_stays() {
    // The zeros of the border would have to be what the norm makes of zero.
    let made = Made::attention(&window([2, 2]));
    // The second one stands behind the pool.
    assert_eq!(fused(&made), [1, 3]);
}

#[test]
fn a_factor_behind_which_borders_are_averaged_is_taken_over() {
    let mut made = Made::default();
    made.by_hand.constant("scale", &[6, 1]);
    made.by_hand.list("flat", &[0, 6, -1]);
    made.by_hand.push("Reshape", &["x", "flat"], "columns", &[]);
    made.by_hand
        .push("Mul", &["columns", "scale"], "scaled", &[]);
    made.by_hand
        .push("AveragePool", &["scaled"], "pooled", &window([2, 2]));
    made.turned("scaled", "rows");
    made.turned("pooled", "fewer");
    made.linear("rows", "q");
    made.linear("fewer", "k");
    let others = |made: &Made| {
        let place = Place::new();
        made.write(&place, "in.onnx");
        place.run("fuse in.onnx out.onnx");
        counts(&place.path("out.onnx"))[3]
    };
    fused(&made);
    // Two sums of a bias, two transposes, the reshape and the pool.
    assert_eq!(others(&made), 6);
}

#[test]
fn a_norm_that_something_else_reads_stays() {
    for op in ["Relu", "Softmax"] {
        let mut made = Made::attention(&window([0, 0]));
        made.by_hand.push(op, &["rows"], "other", &[]);
        made.outputs.push("other");
        assert_eq!(fused(&made), [1, 3], "{op}");
    }
    // Also where only what moves its numbers is given to whoever runs the network.
    let mut made = Made::attention(&window([0, 0]));
    made.outputs.push("rows");
    assert_eq!(fused(&made), [1, 3]);
}

#[test]
fn who_asks_for_the_shape_of_a_norm_asks_its_input() {
    let mut made = Made::attention(&window([0, 0]));
    made.by_hand.push("Shape", &["rows"], "shape", &[]);
    made.turned("q", "turned");
    made.by_hand.push("Relu", &["turned"], "some", &[]);
    made.turned("some", "back");
    made.by_hand.push("Reshape", &["back", "shape"], "r", &[]);
    made.outputs.push("r");
    assert_eq!(fused(&made), [0, 3]);
}

#[test]
fn a_norm_whose_channels_a_reshape_takes_apart_stays() {
    let mut made = Made::attention(&window([0, 0]));
    made.by_hand.list("apart", &[0, 16, 6]);
    made.by_hand
        .push("Reshape", &["norm1", "apart"], "mixed", &[]);
    made.linear("mixed", "w");
    assert_eq!(fused(&made), [1, 4]);
}

/// `norm → mean → linear layer`, where the mean is taken in one of the ways that there are.
fn averaged(mean: impl Fn(&mut Made)) -> Made {
    let mut made = Made::default();
    made.by_hand.push("Relu", &["x"], "r", &[]);
    made.norm("r", "norm");
    mean(&mut made);
    made.by_hand.list("row", &[0, 1, 6]);
    made.by_hand.push("Reshape", &["mean", "row"], "rows", &[]);
    made.linear("rows", "y");
    made
}

#[test]
fn a_norm_before_a_mean_of_all_pixels_becomes_part_of_the_layer_behind() {
    let all = averaged(|made| {
        made.by_hand
            .push("GlobalAveragePool", &["norm"], "mean", &[])
    });
    assert_eq!(fused(&all), [0, 1]);
    let some = averaged(|made| {
        made.by_hand.list("axes", &[-1, 2]);
        made.by_hand
            .push("ReduceMean", &["norm", "axes"], "mean", &[]);
    });
    assert_eq!(fused(&some), [0, 1]);
    // Without the axes that it is taken over.
    let mut made = Made::default();
    made.by_hand.push("Relu", &["x"], "r", &[]);
    made.norm("r", "norm");
    made.by_hand.list("axes", &[-1, 2]);
    let drops = [int("keepdims", 0)];
    made.by_hand
        .push("ReduceMean", &["norm", "axes"], "mean", &drops);
    made.linear("mean", "given");
    made.by_hand.list("row", &[0, 1, 6]);
    made.by_hand.push("Reshape", &["given", "row"], "y", &[]);
    made.outputs = vec!["y"];
    assert_eq!(fused(&made), [0, 1]);
    // Over tokens.
    let tokens = averaged(|made| {
        made.by_hand.list("flat", &[0, 6, -1]);
        made.by_hand
            .push("Reshape", &["norm", "flat"], "columns", &[]);
        made.turned("columns", "tokens");
        made.by_hand.list("axes", &[1]);
        made.by_hand
            .push("ReduceMean", &["tokens", "axes"], "mean", &[]);
    });
    assert_eq!(fused(&tokens), [0, 1]);
}

#[test]
fn a_norm_before_a_mean_that_something_else_reads_stays() {
    let mut made = averaged(|made| {
        made.by_hand
            .push("GlobalAveragePool", &["norm"], "mean", &[])
    });
    made.by_hand.push("Relu", &["rows"], "other", &[]);
    made.outputs.push("other");
    assert_eq!(fused(&made), [1, 1]);
}

#[test]
fn a_norm_before_a_mean_of_its_channels_stays() {
    // One of the image's axes is as long as that of its channels: the layer behind reads pixels.
    let mut made = Made::default();
    made.by_hand.push("Relu", &["x"], "r", &[]);
    made.norm("r", "norm");
    made.by_hand.list("axes", &[1]);
    let drops = [int("keepdims", 0)];
    made.by_hand
        .push("ReduceMean", &["norm", "axes"], "mean", &drops);
    made.by_hand.constant("wide", &[4, 6]);
    made.by_hand.push("MatMul", &["mean", "wide"], "y", &[]);
    made.outputs.push("y");
    assert_eq!(fused(&made), [1, 1]);
    // Nor is a mean of all numbers one of each channel.
    for attributes in [&[][..], &[int("noop_with_empty_axes", 1)]] {
        let mut made = Made::default();
        made.by_hand.push("Relu", &["x"], "r", &[]);
        made.norm("r", "norm");
        made.by_hand
            .push("ReduceMean", &["norm"], "mean", attributes);
        made.by_hand.push("Sigmoid", &["mean"], "s", &[]);
        made.by_hand.list("row", &[1, -1, 1]);
        made.by_hand.push("Reshape", &["s", "row"], "y", &[]);
        made.outputs.push("y");
        assert_eq!(fused(&made), [1, 0]);
    }
}

#[test]
fn a_block_that_the_user_keeps_keeps_the_norm() {
    let place = Place::new();
    Made::attention(&window([0, 0])).write(&place, "in.onnx");
    let ran = place.run("fuse in.onnx out.onnx --skip q --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    // The one behind the pool is nothing of `q`.
    assert_eq!(counts(&place.path("out.onnx"))[2], 1);
    let ran = place.run("verify in.onnx out.onnx --skip q");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
}
