//! Paddings that are filled with what the layers before make of zeros; and those that only look so, which are left as they are.

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use serde_json::{Value, json};

use super::pt2::archives::changed;
use crate::support::file::Place;
use crate::support::graphs::{apart, counts, run};
use crate::support::onnx::{graph, int, ints, list, model, node, tensor, text, typed, value};

const OTHER_ROWS: &str =
    "it fills other rows than those that have been padded, or which ones is not known";
const OTHER_NUMBERS: &str = "it fills what has been padded with other numbers than elsewhere";
const SOME_SIDES: &str = "it fills what has been padded on some sides only";
const NO_CONSTANT: &str =
    "it fills what has been padded with something else than a constant for each channel";
const NOT_OF_ZEROS: &str = "what is around it is not what the layers before it make of zeros";
const NOT_ZEROS: &str = "it pads with something else than zeros";

/// What is said of what stays.
fn left(place: &Place, name: &str) -> String {
    let ran = place.run(&format!("inspect {name} --json"));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    report["left"].to_string()
}

/// A side that is filled: axis, rows, and by how much the numbers are off.
type Side = (i64, Vec<i64>, f32);

/// `x [1, 4, 8, 8]`, a conv with a bias, zeros around it that are filled, and a 3×3; both sum up with a conv of `x`.
struct Bordered {
    kernel: usize,
    pad: f32,
    sides: Vec<Side>,
    /// Whether the map is read before the last side is filled.
    is_read: bool,
    /// Whether an update is a sum instead of a copy.
    adds: bool,
    /// Whether the numbers differ along a side.
    varies: bool,
    /// Whether the indices list every place of a side, as optimizers of graphs leave them, and nothing is turned.
    is_listed: bool,
}

impl Default for Bordered {
    fn default() -> Bordered {
        let side = |axis, row| (axis, vec![row], 0.0);
        Bordered {
            kernel: 1,
            pad: 0.0,
            sides: vec![side(2, 0), side(2, 9), side(3, 0), side(3, -1)],
            is_read: false,
            adds: false,
            varies: false,
            is_listed: false,
        }
    }
}

/// Every place of some rows of `[1, 4, 10, 10]` along an axis.
fn listed(axis: i64, rows: &[i64]) -> (Vec<usize>, Vec<i64>) {
    let all: Vec<i64> = (0..10).collect();
    let [along_2, along_3] = match axis {
        2 => [rows, &all],
        _ => [&all, rows],
    };
    let mut places = Vec::new();
    for channel in 0..4 {
        for i in along_2 {
            along_3
                .iter()
                .for_each(|j| places.extend([0, channel, *i, *j]));
        }
    }
    (vec![1, 4, along_2.len(), along_3.len(), 4], places)
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

impl Bordered {
    fn bytes(&self) -> Vec<u8> {
        let (k, bias) = (self.kernel, ramp(4));
        let mut tensors = vec![
            tensor("a.weight", &[4, 4, k, k], &ramp(16 * k * k)),
            tensor("a.bias", &[4], &bias),
            tensor("b.weight", &[4, 4, 3, 3], &ramp(144)),
            tensor("c.weight", &[4, 4, 3, 3], &ramp(144)),
            list("around", &[0, 0, 1, 1, 0, 0, 1, 1]),
            typed("zero", &[], 1, &self.pad.to_le_bytes()),
        ];
        let ones = |name: &str| ints(name, &[1, 1]);
        let same = [
            ones("strides"),
            ones("dilations"),
            ints("pads", &[(k / 2) as i64; 4]),
        ];
        let mut nodes = vec![
            node("Conv", &["x", "a.weight", "a.bias"], &["a"], &same),
            node("Pad", &["a", "around", "zero"], &["p"], &[]),
        ];
        let mut at = "p".to_owned();
        for (i, (axis, rows, off)) in self.sides.iter().enumerate().filter(|_| self.is_listed) {
            let [indices, numbers, filled] =
                ["indices", "numbers", "straight"].map(|what| format!("{what}{i}"));
            let (shape, places) = listed(*axis, rows);
            let of = |at: usize| bias[at * 4 / (shape[2] * shape[3] * 4) % 4] + off;
            let count = shape[..4].iter().product();
            let values: Vec<f32> = (0..count).map(of).collect();
            tensors.push(tensor(&numbers, &shape[..4], &values));
            let bytes: Vec<u8> = places
                .iter()
                .flat_map(|place| place.to_le_bytes())
                .collect();
            tensors.push(typed(&indices, &shape, 7, &bytes));
            nodes.push(node(
                "ScatterND",
                &[&at, &indices, &numbers],
                &[&filled],
                &[],
            ));
            at = filled;
        }
        for (i, (axis, rows, off)) in self.sides.iter().enumerate().filter(|_| !self.is_listed) {
            let name = |what: &str| format!("{what}{i}");
            let [turned, filled, straight] = ["turned", "filled", "straight"].map(name);
            let [indices, numbers] = ["indices", "numbers"].map(name);
            let order = match axis {
                2 => [2, 1, 0, 3],
                _ => [3, 1, 2, 0],
            };
            let order = [ints("perm", &order)];
            let shape = match axis {
                2 => [rows.len(), 4, 1, 10],
                _ => [rows.len(), 4, 10, 1],
            };
            let of = |at: usize| {
                let along = if self.varies { at % 10 } else { 0 };
                bias[at / 10 % 4] + off + along as f32
            };
            tensors.push(tensor(
                &numbers,
                &shape,
                &(0..rows.len() * 40).map(of).collect::<Vec<f32>>(),
            ));
            let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
            tensors.push(typed(&indices, &[rows.len(), 1], 7, &bytes));
            let reduction = match self.adds {
                true => vec![text("reduction", "add")],
                false => Vec::new(),
            };
            let inputs = [&*turned, &indices, &numbers];
            nodes.extend([
                node("Transpose", &[&at], &[&turned], &order),
                node("ScatterND", &inputs, &[&filled], &reduction),
                node("Transpose", &[&filled], &[&straight], &order),
            ]);
            at = straight;
        }
        let same = [ones("strides"), ones("dilations"), ints("pads", &[1; 4])];
        nodes.extend([
            node(
                "Conv",
                &[&at, "b.weight"],
                &["b"],
                &[ones("strides"), ones("dilations"), ints("pads", &[0; 4])],
            ),
            node("Conv", &["x", "c.weight"], &["c"], &same),
            node("Add", &["b", "c"], &["sum"], &[]),
            node("Relu", &["sum"], &["y"], &[]),
        ]);
        let mut ends = vec![value("y", &[1, 4, 8, 8])];
        if self.is_read {
            let seen = format!("straight{}", self.sides.len() - 2);
            nodes.push(node("Relu", &[&seen], &["z"], &[]));
            ends.push(value("z", &[1, 4, 10, 10]));
        }
        model(
            &graph(&nodes, &tensors, &[value("x", &[1, 4, 8, 8])], &ends),
            18,
        )
        .0
    }
}

/// The number of convs of a graph before and after, and what is said of it; what comes out is the same.
fn fused(place: &Place, bytes: &[u8]) -> (usize, usize, String) {
    place.write("in.onnx", bytes);
    let ran = place.run("fuse in.onnx out.onnx --force --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let x = ArrayD::from_shape_fn(IxDyn(&[1, 4, 8, 8]), |at| {
        ((at[1] * 64 + at[2] * 8 + at[3]) as f64).cos()
    });
    let paths = ["in.onnx", "out.onnx"].map(|name| place.path(name));
    let [before, after] = [&paths[0], &paths[1]].map(|path| run(path, &x));
    assert!(apart(&before, &after) < 1e-6);
    let [before, after] = [&paths[0], &paths[1]].map(|path| counts(path)[0]);
    (before, after, left(place, "in.onnx"))
}

#[test]
fn a_border_of_what_a_layer_makes_of_zeros_is_a_padding() {
    let place = Place::new();
    let (before, after, left) = fused(&place, &Bordered::default().bytes());
    assert_eq!((before, after), (3, 1), "{left}");
    let written = counts(&place.path("out.onnx"));
    assert_eq!(written, [1, 0, 0, 0]);
}

#[test]
fn a_border_that_only_looks_so_is_left() {
    let place = Place::new();
    let with = |i: usize, side: Side| {
        let mut bordered = Bordered::default();
        bordered.sides[i] = side;
        bordered
    };
    let mut off = Bordered::default();
    (off.sides.iter_mut()).for_each(|side| side.2 = 1e-3);
    let mut three = Bordered::default();
    three.sides.pop();
    let of = Bordered::default;
    let cases = [
        (with(1, (2, vec![9], 0.5)), OTHER_NUMBERS),
        (off, NOT_OF_ZEROS),
        (three, SOME_SIDES),
        (with(0, (2, vec![0, 1], 0.0)), OTHER_ROWS),
        (with(0, (2, vec![1], 0.0)), OTHER_ROWS),
        (with(3, (3, vec![0], 0.0)), OTHER_ROWS),
        (with(1, (2, vec![9, 8], 0.0)), OTHER_ROWS),
        (Bordered { pad: 0.5, ..of() }, NOT_ZEROS),
        (Bordered { kernel: 3, ..of() }, NOT_OF_ZEROS),
        (Bordered { adds: true, ..of() }, OTHER_ROWS),
        (
            Bordered {
                varies: true,
                ..of()
            },
            NO_CONSTANT,
        ),
    ];
    for (i, (bordered, why)) in cases.iter().enumerate() {
        let (before, after, left) = fused(&place, &bordered.bytes());
        assert_eq!((before, after), (3, 3), "{i}: {why}");
        assert!(left.contains(why), "{i}: expected {why}, found {left}");
    }
}

/// What `onnxsim` and the optimizers of onnxruntime leave: every place of a side is a constant.
#[test]
fn a_border_whose_places_are_listed_is_a_padding() {
    let place = Place::new();
    let of = || Bordered {
        is_listed: true,
        ..Bordered::default()
    };
    let (before, after, left) = fused(&place, &of().bytes());
    assert_eq!((before, after), (3, 1), "{left}");
    let with = |i: usize, side: Side| {
        let mut bordered = of();
        bordered.sides[i] = side;
        bordered
    };
    let cases = [
        with(0, (2, vec![0, 1], 0.0)),
        with(0, (2, vec![1], 0.0)),
        with(1, (2, vec![9, 8], 0.0)),
        with(3, (3, vec![0], 0.0)),
        with(3, (3, vec![3, 9], 0.0)),
    ];
    for (i, bordered) in cases.iter().enumerate() {
        let (before, after, left) = fused(&place, &bordered.bytes());
        assert_eq!((before, after), (3, 3), "{i}");
        assert!(left.contains(OTHER_ROWS), "{i}: {left}");
    }
}

/// What reads the map before it is filled all around goes on reading it.
#[test]
fn a_map_that_is_read_between_two_fills_is_still_computed() {
    let bordered = Bordered {
        is_read: true,
        ..Bordered::default()
    };
    let (before, after, left) = fused(&Place::new(), &bordered.bytes());
    assert_eq!((before, after), (3, 2), "{left}");
}

/// Indices that are counted, and a constant in the shape of another value.
#[test]
fn indices_may_be_counted_along_axes_that_are_not_known() {
    let place = Place::new();
    let tensors = [
        tensor("a.weight", &[4, 4, 1, 1], &ramp(16)),
        tensor("a.bias", &[4], &ramp(4)),
        tensor("v", &[4, 1, 1], &ramp(4)),
        tensor("b.weight", &[4, 4, 3, 3], &ramp(144)),
        list("around", &[0, 0, 1, 0, 0, 0, 0, 0]),
        typed("zero", &[], 7, &0i64.to_le_bytes()),
        typed("one", &[], 7, &1i64.to_le_bytes()),
        typed("two", &[], 7, &2i64.to_le_bytes()),
        list("0", &[0]),
        list("1", &[1]),
        list("2", &[2]),
        list("-1", &[-1]),
        list("4", &[4]),
        list("many", &[i64::MAX]),
    ];
    let strides = || {
        let ones = |name: &str| ints(name, &[1, 1]);
        [ones("strides"), ones("dilations"), ints("pads", &[0; 4])]
    };
    let turned = || [ints("perm", &[2, 1, 0, 3])];
    let bordered = |begin: &str, end: &str| {
        let nodes = [
            node("Conv", &["x", "a.weight", "a.bias"], &["a"], &strides()),
            node("Pad", &["a", "around"], &["p"], &[]),
            node("Shape", &["p"], &["shape"], &[]),
            node("Gather", &["shape", "two"], &["height"], &[]),
            node("Range", &["zero", "height", "one"], &["rows"], &[]),
            node("Slice", &["rows", begin, end, "0", "1"], &["first"], &[]),
            node("Unsqueeze", &["first", "-1"], &["indices"], &[]),
            node("Slice", &["shape", "0", "1"], &["batch"], &[]),
            node("Slice", &["shape", "-1", "many"], &["width"], &[]),
            node(
                "Concat",
                &["batch", "4", "1", "width"],
                &["to"],
                &[int("axis", 0)],
            ),
            node("Expand", &["v", "to"], &["wide"], &[]),
            node("Transpose", &["wide"], &["numbers"], &turned()),
            node("Transpose", &["p"], &["turned"], &turned()),
            node(
                "ScatterND",
                &["turned", "indices", "numbers"],
                &["filled"],
                &[],
            ),
            node("Transpose", &["filled"], &["straight"], &turned()),
            node("Conv", &["straight", "b.weight"], &["y"], &strides()),
        ];
        let ends = [value("x", &[0, 4, 0, 8]), value("y", &[0, 4, 0, 6])];
        model(&graph(&nodes, &tensors, &ends[..1], &ends[1..]), 17).0
    };
    let (before, after, left) = fused(&place, &bordered("0", "1"));
    assert_eq!((before, after), (2, 1), "{left}");
    assert_eq!(counts(&place.path("out.onnx")), [1, 0, 0, 0]);
    // The last row, and the second one.
    for (begin, end) in [("-1", "many"), ("1", "2")] {
        let (before, after, left) = fused(&place, &bordered(begin, end));
        assert_eq!((before, after), (2, 2));
        assert!(left.contains(OTHER_ROWS), "{left}");
    }
}

/// A fixture of a program with its graph changed: the reasons that are given.
fn program(place: &Place, name: &str, change: impl Fn(&mut Vec<Value>)) -> String {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/pt2/{name}.pt2"));
    changed(&from, &place.path("in.pt2"), |entry, content| {
        if entry != "models/model.json" {
            return None;
        }
        let mut program: Value = serde_json::from_str(content).unwrap();
        let nodes = program["graph_module"]["graph"]["nodes"].as_array_mut();
        change(nodes.unwrap());
        Some(program.to_string())
    });
    place.write("out.pt2", []);
    let ran = place.run("fuse in.pt2 out.pt2 --force --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    left(place, "in.pt2")
}

fn named(nodes: &[Value], name: &str) -> usize {
    let at = nodes.iter().position(|node| node["name"] == name);
    at.unwrap_or_else(|| panic!("{name}"))
}

/// Changes one argument of a node.
fn argument(nodes: &mut [Value], node: &str, name: &str, new: Value) {
    let node = named(nodes, node);
    let inputs = nodes[node]["inputs"].as_array_mut().unwrap();
    match inputs.iter_mut().find(|input| input["name"] == name) {
        Some(input) => input["arg"] = new,
        None => inputs.push(json!({"name": name, "arg": new, "kind": 1})),
    }
}

#[test]
fn a_program_that_fills_in_place_otherwise_is_left() {
    let place = Place::new();
    let int = |n: i64| json!({"as_int": n});
    let tensor = |name: &str| json!({"as_tensor": {"name": name}});
    let float = |x: f64| json!({"as_float": x});
    let fixture = "border-dbb";
    let same = program(&place, fixture, |_| {});
    assert_eq!(same, "[]");
    let is_left = |why: &str, change: &dyn Fn(&mut Vec<Value>)| {
        let found = program(&place, fixture, change);
        assert!(found.contains(why), "expected {why}, found {found}");
    };
    let other = |nodes: &mut Vec<Value>| argument(nodes, "view_2", "self", tensor("p_norm_bias"));
    is_left(OTHER_NUMBERS, &other);
    is_left(NOT_OF_ZEROS, &|nodes| {
        argument(nodes, "add", "other", float(2e-3));
    });
    is_left(SOME_SIDES, &|nodes| {
        nodes.retain(|node| node["name"] != "slice_4" && node["name"] != "copy__3");
    });
    is_left(OTHER_ROWS, &|nodes| {
        argument(nodes, "slice_1", "end", int(2))
    });
    is_left(OTHER_ROWS, &|nodes| {
        argument(nodes, "slice_2", "start", int(-2))
    });
    is_left(OTHER_ROWS, &|nodes| {
        argument(nodes, "pad", "pad", json!({"as_ints": [1, 1, 2, 2]}));
    });
    is_left(OTHER_ROWS, &|nodes| {
        argument(nodes, "slice_1", "start", int(1));
        argument(nodes, "slice_1", "end", int(2));
    });
    is_left(OTHER_ROWS, &|nodes| {
        argument(nodes, "slice_1", "step", int(2))
    });
    is_left("it pads with a number that is not zero", &|nodes| {
        argument(nodes, "pad", "value", float(0.5));
    });
    is_left(NO_CONSTANT, &|nodes| {
        argument(nodes, "copy_", "src", tensor("conv2d"));
    });
    // Somebody reads it before the last side is filled.
    is_left("is changed in place and read again", &|nodes| {
        let conv = nodes.remove(named(nodes, "conv2d_2"));
        nodes.insert(named(nodes, "copy__3"), conv);
    });
}

#[test]
fn a_program_that_fills_value_by_value_otherwise_is_left() {
    let place = Place::new();
    let fixture = "border-ecbsr-decomposed";
    assert_eq!(program(&place, fixture, |_| {}), "[]");
    let int = |n: i64| json!({"as_int": n});
    let found = program(&place, fixture, |nodes| {
        argument(nodes, "slice_scatter_1", "start", int(-2));
    });
    assert!(found.contains(OTHER_ROWS), "{found}");
    let found = program(&place, fixture, |nodes| {
        let src = json!({"as_tensor": {"name": "slice_7"}});
        argument(nodes, "slice_scatter_2", "src", src);
    });
    assert!(found.contains(NO_CONSTANT), "{found}");
    let found = program(&place, fixture, |nodes| {
        let last = json!({"as_tensor": {"name": "slice_scatter_2"}});
        argument(nodes, "convolution_2", "input", last);
    });
    assert!(found.contains(SOME_SIDES), "{found}");
}

#[test]
fn a_border_is_compared_by_the_numbers_of_the_graph() {
    let place = Place::new();
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pt2/border-ecbsr.pt2");
    let graph = graph.to_str().unwrap();
    let bytes = std::fs::read(graph).unwrap();
    place.write("in.pt2", bytes);
    super::pt2::weights_of("border-ecbsr", &place.path("in.safetensors"));
    let ran = place.run("fuse in.safetensors out.safetensors --graph in.pt2");
    let expected = "what is around a padded value was compared with what the layers before it make of zeros, by the numbers of the graph; export the model with the numbers of the checkpoint, and fuse that";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    assert_eq!(ran.code(), Some(2));
}
