//! Forms of linear operators that no fixture has: put together here, fused, run and compared.

use ndarray::{ArrayD, IxDyn};

use crate::support::file::Place;
use crate::support::fixtures::fixtures;
use crate::support::graphs::{Counts, apart, counts, run, run_if_it_can};
use crate::support::onnx::{
    Message, float, graph, int, ints, list, model, node, tensor, text, typed, value,
};

#[test]
fn a_matrix_with_its_inputs_first_folds_behind_others() {
    let place = Place::new();
    let tensors = [
        tensor("m.weight", &[4, 4], &numbers(16)),
        tensor("n.weight", &[4, 4], &numbers(16)),
        tensor("n.bias", &[4], &numbers(4)),
    ];
    for (shape, nodes) in [
        (
            vec![3, 4],
            vec![
                node("MatMul", &["x", "m.weight"], &["a"], &[]),
                node("Gemm", &["a", "n.weight", "n.bias"], &["y"], &[]),
            ],
        ),
        (
            vec![2, 3, 4],
            vec![
                node("MatMul", &["x", "m.weight"], &["a"], &[]),
                node("MatMul", &["a", "n.weight"], &["b"], &[]),
                node("Add", &["b", "n.bias"], &["y"], &[]),
            ],
        ),
        // The matrix on the left of channels and positions, which is a conv of one tap.
        (
            vec![2, 4, 5],
            vec![
                node("MatMul", &["m.weight", "x"], &["a"], &[]),
                node("Add", &["a", "x"], &["y"], &[]),
            ],
        ),
    ] {
        let graph = graph(
            &nodes,
            &tensors,
            &[value("x", &shape)],
            &[value("y", &vec![0; shape.len()])],
        );
        place.write("in.onnx", &model(&graph, 17).0);
        let ran = place.run("fuse in.onnx out.onnx --force --verify");
        assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
        assert!(
            ran.stdout.contains("fused 1 block"),
            "{shape:?}: {}",
            ran.stdout
        );
        let x = ArrayD::from_shape_vec(
            IxDyn(&shape),
            (0..shape.iter().product::<usize>())
                .map(|i| (i as f64).cos())
                .collect(),
        )
        .unwrap();
        let [before, after] = ["in.onnx", "out.onnx"].map(|name| run(&place.path(name), &x));
        assert!(apart(&before, &after) < 1e-6, "{shape:?}");
        let ran = place.run("fuse out.onnx again.onnx --force");
        assert!(ran.stderr.contains("nothing to fuse"), "{}", ran.stderr);
    }
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// Nodes from `x`, `[2, 3, 4]`, to `y`: one block, that computes the same and is not folded again. Gives what was written.
fn is_one_block(nodes: &[Message], rank: usize) -> Vec<u8> {
    let place = Place::new();
    let positive: Vec<f32> = numbers(4).iter().map(|x| x.abs() + 0.5).collect();
    let tensors = [
        tensor("m.weight", &[4, 4], &numbers(16)),
        tensor("n.weight", &[4, 4], &numbers(16)),
        tensor("three.weight", &[3, 4], &numbers(12)),
        tensor("bn.weight", &[4], &numbers(4)),
        tensor("bn.running_var", &[4], &positive),
        list("rows", &[-1, 4]),
        list("heads", &[2, 3, 2, 2]),
    ];
    let ends = [value("x", &[2, 3, 4]), value("y", &vec![0; rank])];
    let graph = graph(nodes, &tensors, &ends[..1], &ends[1..]);
    place.write("in.onnx", &model(&graph, 17).0);
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert!(ran.stdout.contains("fused 1 block"), "{ran:?}");
    let x = ArrayD::from_shape_fn(IxDyn(&[2, 3, 4]), |at| {
        ((at[0] * 12 + at[1] * 4 + at[2]) as f64).cos()
    });
    let [before, after] = ["in.onnx", "out.onnx"].map(|name| run(&place.path(name), &x));
    assert!(apart(&before, &after) < 1e-6);
    let ran = place.run("fuse out.onnx again.onnx");
    assert!(ran.stderr.contains("nothing to fuse"), "{}", ran.stderr);
    place.read("out.onnx")
}

/// Fuses a graph from `x` to `y`, which becomes one conv alone, and compares both by a run.
fn is_one_conv(nodes: &[Message], tensors: &[Message], shape: &[usize]) {
    let place = Place::new();
    let ends = [value("x", shape), value("y", &vec![0; shape.len()])];
    let graph = graph(nodes, tensors, &ends[..1], &ends[1..]);
    place.write("in.onnx", &model(&graph, 17).0);
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert_eq!(counts(&place.path("out.onnx")), [1, 0, 0, 0]);
    let x = ArrayD::from_shape_fn(IxDyn(shape), |at| {
        let last = at[shape.len() - 1];
        ((at[1] * 12 + last * 5) as f64).cos()
    });
    let [before, after] = ["in.onnx", "out.onnx"].map(|name| run(&place.path(name), &x));
    assert!(apart(&before, &after) < 1e-6);
}

#[test]
fn causal_branches_lie_at_the_end_of_the_kernel() {
    let tensors = [
        tensor("three.weight", &[4, 4, 3], &numbers(48)),
        tensor("two.weight", &[4, 4, 2], &numbers(32)),
        tensor("one.weight", &[4, 4, 1], &numbers(16)),
        tensor("bn.weight", &[4], &numbers(4)),
        tensor("bn.var", &[4], &[0.5, 1.0, 1.5, 2.0]),
        list("around", &[0, 0, 4, 0, 0, 0]),
        list("0", &[0]),
        list("-1", &[-1]),
        list("axis", &[2]),
    ];
    let conv = |x: &str, weight: &str, y: &str, pads: [i64; 2], dilation: i64| {
        let attributes = [
            ints("pads", &pads),
            ints("strides", &[1]),
            ints("dilations", &[dilation]),
        ];
        node("Conv", &[x, weight], &[y], &attributes)
    };
    let bn = ["bn.weight", "bn.weight", "bn.weight", "bn.var"];
    let [a, b, c, d] = bn;
    // Zeros of a node before, zeros of its own, zeros behind which too much is cut off again, none, and the input.
    let nodes = [
        node("Pad", &["x", "around"], &["p"], &[]),
        conv("p", "three.weight", "a", [0, 0], 2),
        conv("x", "two.weight", "b", [1, 0], 1),
        conv("x", "two.weight", "c", [1, 1], 1),
        node("Slice", &["c", "0", "-1", "axis"], &["d"], &[]),
        conv("x", "one.weight", "e", [0, 0], 1),
        node("BatchNormalization", &["d", a, b, c, d], &["f"], &[]),
        node("Add", &["a", "b"], &["g"], &[]),
        node("Sub", &["g", "f"], &["h"], &[]),
        node("Add", &["e", "x"], &["i"], &[]),
        node("Add", &["h", "i"], &["y"], &[]),
    ];
    is_one_conv(&nodes, &tensors, &[1, 4, 9]);
}

/// As `tensordot` is exported: what is turned is given the shape that it has, before a matrix and behind it.
#[test]
fn a_shape_that_a_value_has_is_nothing_new() {
    let tensors = [
        tensor("m.weight", &[4, 4], &numbers(16)),
        tensor("scale", &[4, 1, 1], &numbers(4)),
        list("same", &[1, 5, 6, 4]),
    ];
    let perm = |order: &[i64]| [ints("perm", order)];
    let nodes = [
        node("Transpose", &["x"], &["a"], &perm(&[0, 2, 3, 1])),
        node("Reshape", &["a", "same"], &["b"], &[]),
        node("MatMul", &["b", "m.weight"], &["c"], &[]),
        node("Reshape", &["c", "same"], &["d"], &[]),
        node("Transpose", &["d"], &["e"], &perm(&[0, 3, 1, 2])),
        node("Mul", &["e", "scale"], &["y"], &[]),
    ];
    is_one_conv(&nodes, &tensors, &[1, 4, 5, 6]);
}

/// The classic causal layer: too many zeros on both sides, and the end cut off, of an input of any length.
#[test]
fn the_end_of_a_map_of_any_length_is_cut_off() {
    let place = Place::new();
    let tensors = [
        tensor("three.weight", &[4, 4, 3], &numbers(48)),
        tensor("bn.weight", &[4], &numbers(4)),
        tensor("bn.var", &[4], &[0.5, 1.0, 1.5, 2.0]),
        list("0", &[0]),
        list("-2", &[-2]),
        list("axis", &[2]),
    ];
    let [weight, var] = ["bn.weight", "bn.var"];
    let [strides, dilations] = ["strides", "dilations"].map(|name| ints(name, &[1]));
    let around = [ints("pads", &[2, 2]), strides, dilations];
    let nodes = [
        node("Conv", &["x", "three.weight"], &["a"], &around),
        node("Slice", &["a", "0", "-2", "axis"], &["b"], &[]),
        node(
            "BatchNormalization",
            &["b", weight, weight, weight, var],
            &["c"],
            &[],
        ),
        node("Add", &["c", "x"], &["y"], &[]),
    ];
    let ends = [value("x", &[1, 4, 0]), value("y", &[1, 4, 0])];
    let graph = graph(&nodes, &tensors, &ends[..1], &ends[1..]);
    place.write("in.onnx", &model(&graph, 17).0);
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert_eq!(counts(&place.path("out.onnx")), [1, 0, 0, 0]);
    for len in [1, 2, 9] {
        let x = ArrayD::from_shape_fn(IxDyn(&[1, 4, len]), |at| {
            ((at[1] * 12 + at[2] * 5) as f64).cos()
        });
        let [before, after] = ["in.onnx", "out.onnx"].map(|name| run(&place.path(name), &x));
        assert!(apart(&before, &after) < 1e-6, "{len}");
    }
}

/// Rows that are put side by side before a matrix, and stay so: the region begins behind the reshape.
#[test]
fn a_matrix_behind_a_reshape_folds() {
    let nodes = [
        node("Flatten", &["x"], &["f"], &[int("axis", 2)]),
        node("MatMul", &["f", "m.weight"], &["a"], &[]),
        node("MatMul", &["a", "n.weight"], &["y"], &[]),
    ];
    is_one_block(&nodes, 2);
}

/// LeViT's linear layer and its norm, as PyTorch's newer exporter writes them: rows are put side by side between the two, and
/// what follows takes them apart in another way. The reshape goes behind the one operator.
#[test]
fn a_reshape_between_a_matrix_and_its_norm_goes_behind_them() {
    let norm = ["a", "bn.weight", "bn.weight", "bn.weight", "bn.running_var"];
    let flattened = [
        node("MatMul", &["x", "m.weight"], &["p"], &[]),
        node("Reshape", &["p", "rows"], &["a"], &[]),
        node("BatchNormalization", &norm, &["y"], &[]),
    ];
    is_one_block(&flattened, 2);
    let mut split = flattened.to_vec();
    split[2] = node("BatchNormalization", &norm, &["n"], &[]);
    split.push(node("Reshape", &["n", "heads"], &["y"], &[]));
    is_one_block(&split, 4);
}

/// Channels that are moved to the end before a chain of matrices: nothing behind the transposition leads back over it.
#[test]
fn matrices_behind_a_transpose_fold() {
    let turned = node("Transpose", &["x"], &["t"], &[ints("perm", &[1, 0, 2])]);
    let across = node("Transpose", &["x"], &["t"], &[ints("perm", &[0, 2, 1])]);
    let chain = [
        node("MatMul", &["t", "m.weight"], &["a"], &[]),
        node("MatMul", &["a", "n.weight"], &["y"], &[]),
    ];
    is_one_block(&[&[turned.clone()][..], &chain].concat(), 3);
    let scaled = [
        turned,
        node("MatMul", &["t", "m.weight"], &["a"], &[]),
        node("Add", &["a", "bn.weight"], &["b"], &[]),
        node("Mul", &["b", "bn.running_var"], &["y"], &[]),
    ];
    is_one_block(&scaled, 3);
    let narrow = [
        across,
        node("MatMul", &["t", "three.weight"], &["a"], &[]),
        node("MatMul", &["a", "n.weight"], &["y"], &[]),
    ];
    is_one_block(&narrow, 3);
}

/// Channels that come to the front behind a matrix, or to the end behind a conv, and a norm or a factor where they are then: the
/// transposition goes behind the one operator.
#[test]
fn a_transposition_between_a_layer_and_its_norm_goes_behind_them() {
    let norm = ["t", "bn.weight", "bn.weight", "bn.weight", "bn.running_var"];
    let linear = [
        node("MatMul", &["x", "m.weight"], &["p"], &[]),
        node("Add", &["p", "bn.weight"], &["a"], &[]),
        node("Transpose", &["a"], &["t"], &[ints("perm", &[0, 2, 1])]),
        node("BatchNormalization", &norm, &["y"], &[]),
    ];
    is_one_block(&linear, 3);
    let conv = [
        node("Conv", &["x", "c.weight"], &["a"], &[]),
        node("Transpose", &["a"], &["t"], &[ints("perm", &[0, 2, 3, 1])]),
        node("Mul", &["t", "bn.weight"], &["y"], &[]),
    ];
    becomes(&conv, [1, 0, 0, 1]);
    // Nothing is gained where it stands behind them as it is.
    let window = [
        ints("strides", &[1, 1]),
        ints("dilations", &[1, 1]),
        ints("pads", &[0; 4]),
    ];
    let behind = [
        node("Conv", &["x", "c.weight"], &["a"], &window),
        node("Transpose", &["a"], &["y"], &[ints("perm", &[0, 2, 3, 1])]),
    ];
    becomes(&behind, [1, 0, 0, 1]);
}

/// A conv that something else reads, too, is not computed a second time for the norms behind it, however cheap it is.
#[test]
fn a_conv_that_is_read_twice_is_computed_once() {
    let depthwise = [
        ints("strides", &[1, 1]),
        ints("dilations", &[1, 1]),
        ints("pads", &[0; 4]),
        int("group", 4),
    ];
    let norms = [normed("c", "n"), normed("n", "m")];
    let conv = node("Conv", &["x", "depthwise.weight"], &["c"], &depthwise);
    let sum = node("Relu", &["c"], &["r"], &[]);
    let end = node("Mul", &["m", "r"], &["y"], &[]);
    becomes(
        &[conv.clone(), norms[0].clone(), norms[1].clone(), sum, end],
        [1, 0, 2, 0],
    );
    let alone = [conv, norms[0].clone(), normed("n", "y")];
    becomes(&alone, [1, 0, 0, 0]);
}

/// A matrix that is stored the other way round and turned when the network runs, as exporters write every linear layer.
#[test]
fn a_matrix_goes_with_its_transposition() {
    let turned = node("Transpose", &["m.weight"], &["w"], &[]);
    let nodes = [
        turned.clone(),
        node("MatMul", &["x", "w"], &["p"], &[]),
        node("Mul", &["p", "bn.weight"], &["y"], &[]),
    ];
    let out = is_one_block(&nodes, 3);
    assert!(!out.windows(6).any(|bytes| bytes == b"fused2"));
    // What something else reads stays.
    let mut shared = nodes.to_vec();
    shared[2] = node("Mul", &["p", "bn.weight"], &["s"], &[]);
    shared.push(node("Relu", &["s"], &["r"], &[]));
    shared.push(node("MatMul", &["r", "w"], &["y"], &[]));
    let out = is_one_block(&shared, 3);
    assert!(out.windows(6).any(|bytes| bytes == b"fused2"));
}

/// Nodes from `x`, `[1, 4, 6, 6]`, to `y`: what they become.
fn with_constants(nodes: &[Message]) -> Message {
    let positive: Vec<f32> = numbers(4).iter().map(|x| x.abs() + 0.5).collect();
    let tensors = [
        tensor("c.weight", &[4, 4, 3, 3], &numbers(144)),
        tensor("depthwise.weight", &[4, 1, 1, 1], &numbers(4)),
        tensor("up.weight", &[4, 4, 4, 4], &numbers(256)),
        tensor("bn.weight", &[4], &numbers(4)),
        tensor("bn.running_var", &[4], &positive),
        typed("zero", &[], 1, &0f32.to_le_bytes()),
        typed("one", &[], 1, &1f32.to_le_bytes()),
        list("first", &[1]),
        list("rows", &[4, -1]),
        list("back", &[4, 1, 1, 1]),
        list("inner", &[1]),
        list("border", &[0, 0, 1, 1, 0, 0, 1, 1]),
        list("last", &[2, 3]),
        list("last.1", &[3]),
        list("index.1", &[0]),
        typed("index", &[], 7, &2i64.to_le_bytes()),
    ];
    let ends = [value("x", &[1, 4, 6, 6]), value("y", &[0; 4])];
    model(&graph(nodes, &tensors, &ends[..1], &ends[1..]), 17)
}

fn becomes(nodes: &[Message], expected: Counts) {
    let place = Place::new();
    place.write("in.onnx", &with_constants(nodes).0);
    let ran = place.run("fuse in.onnx out.onnx --verify");
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(counts(&place.path("out.onnx")), expected);
    let x = ArrayD::from_shape_fn(IxDyn(&[1, 4, 6, 6]), |at| {
        ((at[1] * 36 + at[2] * 6 + at[3]) as f64).cos()
    });
    // Not all that is folded is run by rten; then what it became is, and was proved.
    let after = run(&place.path("out.onnx"), &x);
    if let Some(before) = run_if_it_can(&place.path("in.onnx"), &x) {
        assert!(apart(&before, &after) < 1e-5);
    }
    let ran = place.run("fuse out.onnx again.onnx");
    assert!(ran.stderr.contains("nothing to fuse"), "{}", ran.stderr);
    assert_eq!(place.read("out.onnx"), place.read("again.onnx"));
}

fn normed(from: &str, to: &str) -> Message {
    let inputs = [
        from,
        "bn.weight",
        "bn.weight",
        "bn.weight",
        "bn.running_var",
    ];
    node("BatchNormalization", &inputs, &[to], &[])
}

/// A variance of zero is one like any other where an eps is added to it.
#[test]
fn a_variance_and_an_eps_of_zero_are_refused_by_name() {
    let place = Place::new();
    let with = |eps: f32| {
        let norm = ["c", "ones", "zeros", "zeros", "zeros"];
        let nodes = [
            node("Conv", &["x", "weight"], &["c"], &[]),
            node(
                "BatchNormalization",
                &norm,
                &["y"],
                &[float("epsilon", eps)],
            ),
        ];
        let tensors = [
            tensor("weight", &[2, 2, 1, 1], &numbers(4)),
            tensor("ones", &[2], &[1.0; 2]),
            tensor("zeros", &[2], &[0.0; 2]),
        ];
        let ends = [value("x", &[1, 2, 3, 3]), value("y", &[0; 4])];
        let graph = graph(&nodes, &tensors, &ends[..1], &ends[1..]);
        place.write("in.onnx", &model(&graph, 17).0);
        place.run("fuse in.onnx out.onnx --verify --force")
    };
    let said = "repfuse: `zeros` is 0 at [0], and the eps of its norm is 0, too; their sum is divided by, and must be above 0\n";
    assert_eq!(with(0.0).all(), (Some(2), "", said));
    assert_eq!(with(1e-3).code(), Some(0));
}

/// A bias of zeros as PyTorch's newer exporter writes one if it is not to optimise.
#[test]
fn a_bias_of_zeros_is_worked_out_and_is_none() {
    let zeros = [
        node(
            "Shape",
            &["c.weight"],
            &["s"],
            &[int("start", 0), int("end", 1)],
        ),
        node("Expand", &["s", "first"], &["e"], &[]),
        node("CastLike", &["zero", "c.weight"], &["z"], &[]),
        node("Expand", &["z", "e"], &["bias"], &[]),
    ];
    let mut all = zeros.to_vec();
    all.push(node("Conv", &["x", "c.weight", "bias"], &["c"], &[]));
    all.push(normed("c", "y"));
    becomes(&all, [1, 0, 0, 0]);
    // The same of the shape of a filled constant, and of a value of which the file says the type.
    let filled = [
        node("ConstantOfShape", &["s"], &["bias"], &[]),
        node("Shape", &["c.weight"], &["s"], &[int("end", 1)]),
    ];
    let mut all = vec![filled[1].clone(), filled[0].clone()];
    all.push(node("Conv", &["x", "c.weight", "bias"], &["c"], &[]));
    all.push(normed("c", "y"));
    becomes(&all, [1, 0, 0, 0]);
    let mut all = zeros.to_vec();
    all[2] = node("CastLike", &["zero", "x"], &["z"], &[]);
    all.push(node("Conv", &["x", "c.weight", "bias"], &["c"], &[]));
    all.push(normed("c", "y"));
    becomes(&all, [1, 0, 0, 0]);
}

/// A weight that is divided by its deviation, of which the count follows from a shape.
#[test]
fn a_standardised_weight_is_worked_out() {
    let nodes = [
        node("Reshape", &["c.weight", "rows"], &["v"], &[]),
        node("ReduceMean", &["v"], &["mean"], &[ints("axes", &[1])]),
        node("Sub", &["v", "mean"], &["d"], &[]),
        node("Mul", &["d", "d"], &["q"], &[]),
        node(
            "ReduceMean",
            &["q"],
            &["var"],
            &[ints("axes", &[1]), int("keepdims", 0)],
        ),
        node("Shape", &["v"], &["shape"], &[]),
        node("Gather", &["shape", "inner"], &["inside"], &[]),
        node("ReduceProd", &["inside"], &["n"], &[int("keepdims", 0)]),
        node("Cast", &["n"], &["count"], &[int("to", 1)]),
        node("Mul", &["var", "count"], &["sum"], &[]),
        node("Sub", &["count", "one"], &["less"], &[]),
        node("Div", &["sum", "less"], &["unbiased"], &[]),
        node("Sqrt", &["unbiased"], &["std"], &[]),
        node("Reshape", &["std", "back"], &["s"], &[]),
        node("Div", &["c.weight", "s"], &["w"], &[]),
        node("Conv", &["x", "w"], &["c"], &[]),
        normed("c", "y"),
    ];
    becomes(&nodes, [1, 0, 0, 0]);
}

/// A kernel that is put together of others by products over named axes.
#[test]
fn a_weight_made_by_einsum_is_worked_out() {
    let equation = |text_of: &str| text("equation", text_of);
    let nodes = [
        // The taps of one place.
        node(
            "Slice",
            &["c.weight", "index.1", "first", "last.1"],
            &["taps.1"],
            &[],
        ),
        node("Squeeze", &["taps.1", "last.1"], &["taps"], &[]),
        node("Gather", &["taps", "index"], &["matrix"], &[int("axis", 2)]),
        node(
            "Einsum",
            &["matrix", "c.weight"],
            &["made"],
            &[equation("ti,othw->oihw")],
        ),
        node(
            "Einsum",
            &["made", "bn.weight"],
            &["scaled"],
            &[equation("oihw, o -> oihw")],
        ),
        node(
            "Einsum",
            &["matrix", "bn.weight", "bn.weight"],
            &["point.2"],
            &[equation("oi,o,i->oi")],
        ),
        node("Unsqueeze", &["point.2", "last"], &["point"], &[]),
        node("Pad", &["point", "border"], &["padded"], &[]),
        node("Add", &["scaled", "padded"], &["w"], &[]),
        node("Conv", &["x", "w"], &["c"], &[ints("pads", &[1; 4])]),
        normed("c", "y"),
    ];
    becomes(&nodes, [1, 0, 0, 0]);
    // A letter twice, and axes without letters, are left to whoever runs the network.
    for text in ["...i,i->...i", "oohw,o->oohw"] {
        let nodes = [
            node(
                "Einsum",
                &["c.weight", "bn.weight"],
                &["w"],
                &[equation(text)],
            ),
            node("Conv", &["x", "w"], &["y"], &[]),
        ];
        let place = Place::new();
        place.write("in.onnx", &with_constants(&nodes).0);
        let ran = place.run("inspect in.onnx");
        assert!(
            ran.stdout.contains("its weight is no"),
            "{text}: {}",
            ran.stdout
        );
    }
}

/// Attributes of a transposed conv that are copied, or follow from others.
#[test]
fn a_norm_behind_any_transposed_conv_folds() {
    let strides = ints("strides", &[2, 2]);
    for attributes in [
        vec![ints("dilations", &[2, 2]), ints("strides", &[1, 1])],
        vec![text("auto_pad", "SAME_UPPER"), strides.clone()],
        vec![text("auto_pad", "SAME_LOWER"), strides.clone()],
        vec![ints("output_shape", &[12, 12]), strides],
    ] {
        let nodes = [
            node("ConvTranspose", &["x", "up.weight"], &["c"], &attributes),
            normed("c", "y"),
        ];
        becomes(&nodes, [1, 0, 0, 0]);
    }
}

#[test]
fn a_graph_stored_in_another_type_is_verified_and_reported() {
    let place = Place::new();
    for name in ["dbb", "mobileone", "levit", "transposed"] {
        let from = fixtures().join(format!("onnx/{name}.onnx"));
        let from = from.display();
        let ran = place.run(&format!("fuse {from} half.onnx --dtype f16 --force"));
        assert_eq!(ran.code(), Some(0), "{name}: {}", ran.stderr);
        for command in [
            "verify",
            "verify --json",
            "report -o page.html",
            "report --json",
        ] {
            let ran = place.run(&format!("{command} {from} half.onnx"));
            assert_eq!(
                ran.code(),
                Some(0),
                "{name}, {command}: {} {}",
                ran.stdout,
                ran.stderr
            );
        }
        let page = String::from_utf8(place.read("page.html")).unwrap();
        assert!(page.contains("<svg") || page.contains("<table"), "{name}");
        let ran = place.run(&format!("report {from} -o {from} --force"));
        assert_eq!(ran.code(), Some(2), "{name}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("is what the report is on"),
            "{}",
            ran.stderr
        );
    }
    // A program computes in the type of its values, and has no other.
    let program = fixtures().join("pt2/dbb.pt2");
    let ran = place.run(&format!("report {} -o program.html", program.display()));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
}

#[test]
fn a_sum_of_many_branches_folds() {
    let same = || [ints("pads", &[1; 4])];
    let nodes = |summands: &[&str]| {
        vec![
            node("Conv", &["x", "c.weight"], &["a"], &same()),
            node(
                "Conv",
                &["x", "depthwise.weight"],
                &["b"],
                &[int("group", 4)],
            ),
            normed("a", "n"),
            node("Sum", summands, &["y"], &[]),
        ]
    };
    becomes(&nodes(&["n", "b", "x"]), [1, 0, 0, 0]);
    becomes(&nodes(&["n", "b", "n", "x"]), [1, 0, 0, 0]);
    // A sum of one is that one.
    let [conv, _, norm, sum] = &nodes(&["n"])[..] else {
        panic!("four nodes");
    };
    becomes(&[conv.clone(), norm.clone(), sum.clone()], [1, 0, 0, 0]);
}

#[test]
fn constants_of_many_numbers_may_stand_in_a_node() {
    let each = |values: &[f32]| {
        let start = Message::default().bytes(1, "value_floats");
        let all = values.iter().fold(start, |all, x| all.float(7, *x));
        all.int(20, 6)
    };
    let packed = |values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Message::default()
            .bytes(1, "value_floats")
            .bytes(7, bytes)
            .int(20, 6)
    };
    for attribute in [
        each(&[0.5, -1.0, 2.0, 0.25]),
        packed(&[0.5, -1.0, 2.0, 0.25]),
    ] {
        let nodes = [
            node("Constant", &[], &["scale"], &[attribute]),
            node("Conv", &["x", "c.weight"], &["a"], &[]),
            node(
                "BatchNormalization",
                &["a", "scale", "bn.weight", "bn.weight", "bn.running_var"],
                &["y"],
                &[],
            ),
        ];
        becomes(&nodes, [1, 0, 0, 0]);
    }
    let place = Place::new();
    let cut_short = Message::default().bytes(1, "value_floats").bytes(7, [0; 6]);
    let nodes = [
        node("Constant", &[], &["scale"], &[cut_short]),
        node("Mul", &["x", "scale"], &["y"], &[]),
    ];
    place.write("in.onnx", &with_constants(&nodes).0);
    let ran = place.run("inspect in.onnx");
    assert_eq!(ran.code(), Some(2));
    assert!(ran.stderr.contains("are cut short"), "{}", ran.stderr);
}
