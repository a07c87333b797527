//! The law of graphs: whatever linear nodes a graph is made of, the fused graph computes the same, and fusing it again changes nothing.

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use repfuse::graph::model::{Arithmetic, Op};
use repfuse::tensor::Tensor;

use crate::support::Random;
use crate::support::file::{Place, files_below};
use crate::support::fixtures::fixtures;
use crate::support::graphs::open;
use crate::support::onnx::{
    Message, float, graph, int, ints, list, model, node, tensor, text, value,
};
use repfuse::network::graphs::Network;

/// A graph that grows node by node.
struct Growing {
    random: Random,
    axes: usize,
    opset: i64,
    nodes: Vec<Message>,
    tensors: Vec<Message>,
    /// Values that may be read, and their channels.
    values: Vec<(String, usize)>,
    names: usize,
}

impl Growing {
    fn below(&mut self, n: usize) -> usize {
        self.random.below(n)
    }

    fn chance(&mut self, p: f64) -> bool {
        self.random.between(0.0, 1.0) < p
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    /// A constant of numbers between −1 and 1, `away` from zero on the positive side if that is asked for.
    fn constant(&mut self, shape: &[usize], away: bool) -> String {
        let name = format!("{}.weight", self.name());
        let numbers: Vec<f32> = (0..shape.iter().product())
            .map(|_| self.random.between(-1.0, 1.0) as f32)
            .map(|x| if away { x.abs() + 0.5 } else { x })
            .collect();
        self.tensors.push(tensor(&name, shape, &numbers));
        name
    }

    fn list(&mut self, numbers: &[i64]) -> String {
        let name = self.name();
        self.tensors.push(list(&name, numbers));
        name
    }

    fn push(&mut self, op: &str, inputs: &[&str], attributes: &[Message]) -> String {
        let output = self.name();
        self.nodes.push(node(op, inputs, &[&output], attributes));
        output
    }

    /// A conv whose output is as large as its input.
    fn same(&mut self, x: &str, channels: usize, out: usize) -> String {
        let k = [1, 3, 3, 5][self.below(4)];
        let d = [1, 1, 2][self.below(3)];
        let groups = match self.below(4) {
            0 if channels == out => channels,
            1 if channels.is_multiple_of(2) && out.is_multiple_of(2) => 2,
            _ => 1,
        };
        let mut shape = vec![out, channels / groups];
        shape.extend(vec![k; self.axes]);
        let mut weight = self.constant(&shape, false);
        if self.chance(0.15) {
            // A kernel that the network computes itself.
            let mut ones = vec![1; shape.len()];
            ones[0] = out;
            let scale = self.constant(&ones, true);
            let op = ["Mul", "Div", "Sub"][self.below(3)];
            weight = self.push(op, &[&weight, &scale], &[]);
        }
        let bias = self.chance(0.5).then(|| self.constant(&[out], false));
        let inputs: Vec<&str> = [x, &weight].into_iter().chain(bias.as_deref()).collect();
        let pads = vec![((k - 1) * d / 2) as i64; 2 * self.axes];
        let attributes = [
            ints("pads", &pads),
            ints("dilations", &vec![d as i64; self.axes]),
            ints("strides", &vec![1; self.axes]),
            int("group", groups as i64),
        ];
        self.push("Conv", &inputs, &attributes)
    }

    /// A conv with any padding and stride.
    fn any(&mut self, x: &str, channels: usize, out: usize) -> String {
        let taps: Vec<usize> = (0..self.axes).map(|_| [1, 2, 3][self.below(3)]).collect();
        let shape: Vec<usize> = [out, channels].into_iter().chain(taps.clone()).collect();
        let weight = self.constant(&shape, false);
        let strides = vec![[1, 1, 2][self.below(3)]; self.axes];
        let mut attributes = vec![ints("strides", &strides)];
        match self.below(4) {
            0 => attributes.push(text(
                "auto_pad",
                ["SAME_UPPER", "SAME_LOWER"][self.below(2)],
            )),
            1 => {}
            _ => {
                let pads: Vec<i64> = (0..2 * self.axes).map(|_| self.below(3) as i64).collect();
                attributes.push(ints("pads", &pads));
            }
        }
        self.push("Conv", &[x, &weight], &attributes)
    }

    /// A conv that keeps the size of its input, or halves an even one, with zeros anywhere around that: its own, those of a node before
    /// it, or more than there should be, some of which are cut off what it makes.
    fn aside(&mut self, x: &str, channels: usize, out: usize, stride: usize) -> String {
        let (mut taps, mut pads) = (Vec::new(), [Vec::new(), Vec::new()]);
        let dilation = 1 + self.below(2);
        for _ in 0..self.axes {
            let k = 1 + self.below(3);
            let reach = (k - 1) * dilation;
            let zeros = reach - usize::from(stride == 2 && reach > 0 && self.chance(0.4));
            // In the middle, at an end, or anywhere.
            let before = [zeros / 2, zeros, 0, self.below(zeros + 1)][self.below(4)];
            taps.push(k);
            pads[0].push(before);
            pads[1].push(zeros - before);
        }
        // Around a single tap they would be none at all.
        let padded = pads.iter().flatten().any(|n| *n > 0);
        let too_much = match stride == 1 && padded && self.chance(0.3) {
            true => self.below(3),
            false => 0,
        };
        let all = pads.concat().into_iter().map(|n| (n + too_much) as i64);
        let mut all: Vec<i64> = all.collect();
        let mut x = x.to_owned();
        if self.chance(0.4) {
            let mut around = all.clone();
            [0, self.axes + 2].into_iter().for_each(|at| {
                around.splice(at..at, [0, 0]);
            });
            let around = self.list(&around);
            x = self.push("Pad", &[&x, &around], &[]);
            all.fill(0);
        }
        let shape: Vec<usize> = [out, channels].into_iter().chain(taps).collect();
        let weight = self.constant(&shape, false);
        let attributes = [
            ints("pads", &all),
            ints("dilations", &vec![dilation as i64; self.axes]),
            ints("strides", &vec![stride as i64; self.axes]),
        ];
        let mut made = self.push("Conv", &[&x, &weight], &attributes);
        for axis in (2..2 + self.axes as i64).filter(|_| too_much > 0) {
            let too_much = too_much as i64;
            let [starts, ends, axes] = [too_much, -too_much, axis].map(|n| self.list(&[n]));
            made = self.push("Slice", &[&made, &starts, &ends, &axes], &[]);
        }
        made
    }

    /// A sum of convs whose kernels do not lie in the middle of one another, and of the input itself.
    fn asides(&mut self, x: &str, channels: usize, out: usize) -> String {
        let stride = 1 + self.below(2);
        let mut sum = self.aside(x, channels, out, stride);
        for _ in 0..1 + self.below(2) {
            let mut one = self.aside(x, channels, out, stride);
            match self.below(4) {
                0 => one = self.norm(&one, out),
                1 if stride == 1 && channels == out => one = x.to_owned(),
                _ => {}
            }
            sum = match self.chance(0.2) {
                // One behind the other, and mixed again.
                true => {
                    let both = self.push("Concat", &[&sum, &one], &[int("axis", 1)]);
                    self.same(&both, 2 * out, out)
                }
                false => self.push("Add", &[&sum, &one], &[]),
            };
        }
        sum
    }

    fn norm(&mut self, x: &str, channels: usize) -> String {
        let [scale, bias, mean] = [(); 3].map(|()| self.constant(&[channels], false));
        let var = self.constant(&[channels], true);
        self.push("BatchNormalization", &[x, &scale, &bias, &mean, &var], &[])
    }

    fn arithmetic(&mut self, x: &str, channels: usize) -> String {
        let op = ["Add", "Sub", "Mul", "Div"][self.below(4)];
        let mut shape = vec![1; self.axes];
        if self.chance(0.7) {
            shape.insert(0, channels);
        }
        let constant = self.constant(&shape, true);
        // A constant divided by a value is no linear map.
        match op != "Div" && self.chance(0.4) {
            true => self.push(op, &[&constant, x], &[]),
            false => self.push(op, &[x, &constant], &[]),
        }
    }

    fn pool(&mut self, x: &str) -> String {
        let k = 2 + self.below(2);
        let padded = self.chance(0.5);
        let pads = vec![if padded { (k / 2) as i64 } else { 0 }; 2 * self.axes];
        let attributes = [
            ints("kernel_shape", &vec![k as i64; self.axes]),
            ints("strides", &vec![1 + self.below(2) as i64; self.axes]),
            ints("pads", &pads),
            int("count_include_pad", i64::from(self.chance(0.7))),
        ];
        self.push("AveragePool", &[x], &attributes)
    }

    fn pad(&mut self, x: &str) -> String {
        let axes = self.axes;
        let pads: Vec<i64> = (0..2 * (axes + 2))
            .map(|i| {
                if i % (axes + 2) < 2 {
                    0
                } else {
                    self.below(3) as i64
                }
            })
            .collect();
        let pads = self.list(&pads);
        self.push("Pad", &[x, &pads], &[])
    }

    /// Some of the channels.
    fn cut(&mut self, x: &str, channels: usize) -> (String, usize) {
        let at = 1 + self.below(channels - 1);
        if self.chance(0.5) {
            let [starts, ends, axes] = [[0], [at as i64], [1]].map(|n| self.list(&n));
            return (self.push("Slice", &[x, &starts, &ends, &axes], &[]), at);
        }
        let sizes = self.list(&[at as i64, (channels - at) as i64]);
        let outputs = [self.name(), self.name()];
        let named = [&*outputs[0], &*outputs[1]];
        self.nodes
            .push(node("Split", &[x, &sizes], &named, &[int("axis", 1)]));
        let [first, second] = outputs;
        match self.chance(0.5) {
            true => (first, at),
            false => (second, channels - at),
        }
    }

    fn branches(&mut self, x: &str, channels: usize, out: usize) -> Vec<String> {
        let count = 2 + self.below(2);
        (0..count)
            .map(|_| {
                let conv = self.same(x, channels, out);
                match self.below(5) {
                    0 | 1 => self.norm(&conv, out),
                    2 => self.arithmetic(&conv, out),
                    3 if channels == out => x.to_owned(),
                    _ => conv,
                }
            })
            .collect()
    }

    /// A norm that several layers read, as before attention; what they make has the shape of the norm's input.
    fn attention(&mut self, x: &str, channels: usize) -> String {
        let normed = match self.chance(0.7) {
            true => self.norm(x, channels),
            false => self.arithmetic(x, channels),
        };
        let flat = self.list(&[0, channels as i64, -1]);
        let flat = self.push("Reshape", &[&normed, &flat], &[]);
        let rows = self.push("Transpose", &[&flat], &[ints("perm", &[0, 2, 1])]);
        let mut sum: Option<String> = None;
        for _ in 0..2 + self.below(2) {
            let rows = match self.chance(0.3) {
                true => {
                    let flat = self.norm(&flat, channels);
                    self.push("Transpose", &[&flat], &[ints("perm", &[0, 2, 1])])
                }
                false => rows.clone(),
            };
            let weight = self.constant(&[channels, channels], false);
            let mut one = self.push("MatMul", &[&rows, &weight], &[]);
            if self.chance(0.7) {
                let bias = self.constant(&[channels], false);
                one = self.push("Add", &[&bias, &one], &[]);
            }
            let one = self.push("Relu", &[&one], &[]);
            sum = Some(match sum {
                Some(sum) => self.push("Add", &[&sum, &one], &[]),
                None => one,
            });
        }
        let flat = self.push("Transpose", &[&sum.unwrap()], &[ints("perm", &[0, 2, 1])]);
        // Which of the two is asked for its shape must not matter.
        let asked = if self.chance(0.5) { x } else { &normed };
        let shape = self.push("Shape", &[asked], &[]);
        self.push("Reshape", &[&flat, &shape], &[])
    }

    /// What is done to each channel, the mean of all pixels, what is done to that, and a gate made of it.
    fn gate(&mut self, x: &str, channels: usize) -> String {
        let some = match self.chance(0.5) {
            true => self.push("Relu", &[x], &[]),
            false => self.same(x, channels, channels),
        };
        let some = match self.chance(0.5) {
            true => self.norm(&some, channels),
            false => self.arithmetic(&some, channels),
        };
        let mut mean = match self.chance(0.5) || self.opset >= 18 {
            true => self.push("GlobalAveragePool", &[&some], &[]),
            false => {
                let axes: Vec<i64> = (2..2 + self.axes as i64).collect();
                self.push("ReduceMean", &[&some], &[ints("axes", &axes)])
            }
        };
        if self.chance(0.5) {
            mean = self.norm(&mean, channels);
        }
        if self.chance(0.7) {
            mean = self.same(&mean, channels, channels);
        }
        let gate = self.push("Sigmoid", &[&mean], &[]);
        self.push("Mul", &[x, &gate], &[])
    }

    /// Linear layers, norms and factors over the means of all pixels, as rows of a matrix or of several; and a gate made of that.
    fn rows(&mut self, x: &str, channels: usize) -> String {
        let mean = self.push("GlobalAveragePool", &[x], &[]);
        let mut rows = self.push("Flatten", &[&mean], &[]);
        let mut is_matrix = true;
        for _ in 0..3 + self.below(5) {
            rows = match self.below(9) {
                0 | 1 if is_matrix => self.norm(&rows, channels),
                2 | 3 => {
                    let shape: &[i64] = match is_matrix {
                        true => &[-1, 1, channels as i64],
                        false => &[-1, channels as i64],
                    };
                    is_matrix = !is_matrix;
                    let shape = self.list(shape);
                    self.push("Reshape", &[&rows, &shape], &[])
                }
                4 if is_matrix => {
                    let weight = self.constant(&[channels, channels], false);
                    let bias = self.constant(&[channels], false);
                    let mut attributes = vec![int("transB", self.below(2) as i64)];
                    if self.chance(0.5) {
                        attributes.extend([float("alpha", 0.5), float("beta", -1.5)]);
                    }
                    self.push("Gemm", &[&rows, &weight, &bias], &attributes)
                }
                5 => {
                    let bias = self.constant(&[channels], false);
                    self.push("Add", &[&rows, &bias], &[])
                }
                6 => {
                    let factor = self.constant(&[channels], true);
                    self.push("Mul", &[&rows, &factor], &[])
                }
                7 => self.push("Relu", &[&rows], &[]),
                _ => {
                    let weight = self.constant(&[channels, channels], false);
                    self.push("MatMul", &[&rows, &weight], &[])
                }
            };
        }
        let mut shape = vec![-1, channels as i64];
        shape.extend(vec![1; self.axes]);
        let shape = self.list(&shape);
        let gate = self.push("Reshape", &[&rows, &shape], &[]);
        self.push("Mul", &[x, &gate], &[])
    }

    /// The sum or the mean of a stack of branches.
    fn stacked(&mut self, x: &str, channels: usize, out: usize) -> String {
        let at = self.below(self.axes + 2) as i64;
        let axis = self.list(&[at]);
        let parts: Vec<String> = (self.branches(x, channels, out).iter())
            .map(|branch| self.push("Unsqueeze", &[branch, &axis], &[]))
            .collect();
        let named: Vec<&str> = parts.iter().map(String::as_str).collect();
        let all = self.push("Concat", &named, &[int("axis", at)]);
        match self.chance(0.5) && self.opset < 18 {
            true => {
                let attributes = [ints("axes", &[at]), int("keepdims", 0)];
                self.push("ReduceMean", &[&all], &attributes)
            }
            false => self.push("ReduceSum", &[&all, &axis], &[int("keepdims", 0)]),
        }
    }

    /// A conv, maps that are twice as large, and what is done to each channel of these.
    fn larger(&mut self, x: &str, channels: usize) -> String {
        let conv = self.same(x, channels, channels);
        let scales = self.name();
        let mut numbers = vec![1.0f32; 2];
        numbers.extend(vec![2.0; self.axes]);
        self.tensors
            .push(tensor(&scales, &[numbers.len()], &numbers));
        let attributes = [
            text("mode", "nearest"),
            text("coordinate_transformation_mode", "asymmetric"),
            text("nearest_mode", "floor"),
        ];
        let large = self.push("Resize", &[&conv, "", &scales], &attributes);
        match self.chance(0.7) {
            true => self.norm(&large, channels),
            false => self.arithmetic(&large, channels),
        }
    }

    /// A matrix over the channels that an equation names.
    fn named(&mut self, x: &str, channels: usize) -> String {
        let matrix = self.constant(&[channels, channels], false);
        let maps = &"hw"[..self.axes];
        let (equation, inputs) = match self.below(2) {
            0 => (format!("bc{maps},co->bo{maps}"), [x, &matrix]),
            _ => (format!("oc,bc{maps}->bo{maps}"), [&*matrix, x]),
        };
        self.push("Einsum", &inputs, &[text("equation", &equation)])
    }

    /// Convs of different sources, one behind the other, and what is done to all of them.
    fn put_together(&mut self, x: &str, channels: usize, out: usize) -> String {
        let mut parts = Vec::new();
        for _ in 0..2 + self.below(2) {
            let source = match self.chance(0.7) {
                true => self.push("Relu", &[x], &[]),
                false => x.to_owned(),
            };
            let conv = self.same(&source, channels, out);
            parts.push(match self.below(6) {
                0 => self.norm(&conv, out),
                1 => self.push("Relu", &[&conv], &[]),
                2 => parts.last().cloned().unwrap_or(conv),
                _ => conv,
            });
        }
        let named: Vec<&str> = parts.iter().map(String::as_str).collect();
        let mut all = self.push("Concat", &named, &[int("axis", 1)]);
        let wide = out * parts.len();
        for _ in 0..1 + self.below(2) {
            all = match self.chance(0.6) {
                true => self.norm(&all, wide),
                false => self.arithmetic(&all, wide),
            };
        }
        let all = match self.chance(0.5) {
            true => self.push("Relu", &[&all], &[]),
            false => all,
        };
        self.same(&all, wide, 4)
    }

    fn grow(&mut self) {
        let at = self.values.len() - 1 - self.below(self.values.len().min(3));
        let (x, channels) = self.values[at].clone();
        let out = [channels, channels, 4][self.below(3)];
        let grown = match self.below(25) {
            0 | 1 => (self.same(&x, channels, out), out),
            2 => (self.any(&x, channels, out), out),
            3 => (self.norm(&x, channels), channels),
            4 => (self.arithmetic(&x, channels), channels),
            5 => (self.pool(&x), channels),
            6 => (self.pad(&x), channels),
            7 if channels > 1 => self.cut(&x, channels),
            23 => {
                let shape = self.push("Shape", &[&x], &[]);
                (self.push("Reshape", &[&x, &shape], &[]), channels)
            }
            8 => {
                let op = ["Neg", "Identity", "Relu"][self.below(3)];
                (self.push(op, &[&x], &[]), channels)
            }
            14 => (self.gate(&x, channels), channels),
            13 => (self.put_together(&x, channels, out), 4),
            16 | 17 => (self.asides(&x, channels, out), out),
            18 | 19 => (self.rows(&x, channels), channels),
            20 => (self.stacked(&x, channels, out), out),
            21 => (self.larger(&x, channels), channels),
            22 => (self.named(&x, channels), channels),
            11 | 12 => (self.attention(&x, channels), channels),
            9 | 10 => {
                let branches = self.branches(&x, channels, out);
                let named: Vec<&str> = branches.iter().map(String::as_str).collect();
                let all = self.push("Concat", &named, &[int("axis", 1)]);
                let mut shape = vec![4, out * named.len()];
                shape.extend(vec![1; self.axes]);
                let weight = self.constant(&shape, false);
                (
                    self.push(
                        "Conv",
                        &[&all, &weight],
                        &[ints("strides", &vec![1; self.axes])],
                    ),
                    4,
                )
            }
            _ => {
                let mut branches = self.branches(&x, channels, out).into_iter();
                let first = branches.next().unwrap();
                let sum = branches.fold(first, |sum, branch| {
                    let op = ["Add", "Add", "Sub"][self.below(3)];
                    self.push(op, &[&sum, &branch], &[])
                });
                (sum, out)
            }
        };
        self.values.push(grown);
    }
}

/// A graph, and the shape of its input.
fn grown(seed: u64) -> (Message, Vec<usize>, usize) {
    let mut growing = Growing {
        random: Random(seed),
        axes: 1 + (seed % 2) as usize,
        opset: [13, 17, 21][(seed % 3) as usize],
        nodes: Vec::new(),
        tensors: Vec::new(),
        values: vec![("x".to_owned(), 4)],
        names: 0,
    };
    let steps = 2 + growing.below(7);
    (0..steps).for_each(|_| growing.grow());
    let shape: Vec<usize> = [1, 4].into_iter().chain(vec![12; growing.axes]).collect();
    let open = seed.is_multiple_of(4);
    let declared: Vec<usize> = (0..shape.len())
        .map(|i| if open && i != 1 { 0 } else { shape[i] })
        .collect();
    let unknown = vec![0; shape.len()];
    let mut outputs = vec![value(&growing.values[growing.values.len() - 1].0, &unknown)];
    if seed.is_multiple_of(5) && growing.values.len() > 3 {
        outputs.push(value(&growing.values[2].0, &unknown));
    }
    let count = growing.nodes.len();
    let graph = graph(
        &growing.nodes,
        &growing.tensors,
        &[value("x", &declared)],
        &outputs,
    );
    (model(&graph, growing.opset), shape, count)
}

/// What a graph computes and stores: convs and linear layers, average pools, and the numbers that are multiplied with. A tensor
/// that several operators read counts for each: what stands behind them may make different weights of it.
fn costs(path: &Path) -> [usize; 3] {
    let file = open(path);
    let (mut operators, mut pools, mut factors) = (0, 0, 0);
    let mut stores = |tensor: &Tensor| factors += tensor.len();
    for node in file.graph().nodes() {
        match &node.op {
            Op::Conv(conv) => {
                operators += 1;
                stores(&conv.weight);
            }
            Op::Linear(linear) => {
                operators += 1;
                stores(&linear.weight);
            }
            Op::Norm(norm) => {
                let affine = norm.affine.iter().flatten();
                [&norm.mean, &norm.var]
                    .into_iter()
                    .chain(affine)
                    .for_each(&mut stores);
            }
            Op::WithConstant(Arithmetic::Mul | Arithmetic::Div, constant) => stores(constant),
            Op::AvgPool(_) => pools += 1,
            _ => {}
        }
    }
    [operators, pools, factors]
}

/// Nothing is computed twice that was computed once, unless the user says so: a pool may become a conv, and that is all.
fn nothing_grows(before: &Path, after: &Path, what: &str) {
    let ([old, old_pools, stored], [new, new_pools, stores]) = (costs(before), costs(after));
    let folded = old_pools.saturating_sub(new_pools);
    assert!(
        new <= old + folded,
        "{what}: {old} convs and linear layers became {new}, and {folded} pools are folded"
    );
    assert!(stores <= stored, "{what}: {stored} numbers became {stores}");
}

#[test]
fn no_fixture_grows() {
    let place = Place::new();
    for kind in ["onnx", "pt2"] {
        for path in files_below(&fixtures().join(kind), kind) {
            let out = format!("out.{kind}");
            let ran = place.run(&format!("fuse {} {out} --force", path.display()));
            // One is exported in training mode.
            if ran.code() == Some(0) {
                nothing_grows(&path, &place.path(&out), &path.display().to_string());
            }
        }
    }
}

#[test]
fn the_fused_graph_computes_the_same_and_stays_what_it_is() {
    let place = Place::new();
    let (mut compared, mut smaller) = (0, 0);
    for seed in 0..400u64 {
        let (model, shape, _) = grown(seed);
        place.write("in.onnx", &model.0);
        let mut random = Random(seed + 1000);
        let x = ArrayD::from_shape_simple_fn(IxDyn(&shape), || random.between(-1.0, 1.0));
        let inputs = vec![("x".to_owned(), x)];
        // Some paddings leave nothing, or rten lacks them: nothing to compare.
        let Ok(before) = Network::open(&place.path("in.onnx")).and_then(|n| n.run(&inputs)) else {
            continue;
        };
        let flag = if seed % 3 == 0 {
            " --even-if-dearer"
        } else {
            ""
        };
        let ran = place.run(&format!("fuse in.onnx out.onnx --force --verify{flag}"));
        assert_eq!(ran.code(), Some(0), "{seed}: {}", ran.stderr);
        let after = Network::open(&place.path("out.onnx")).and_then(|n| n.run(&inputs));
        let after = after.unwrap_or_else(|e| panic!("{seed}: {e}"));
        for ((name, a), (_, b)) in before.iter().zip(&after) {
            assert_eq!(a.shape(), b.shape(), "{seed}: {name}");
            let largest = a.iter().fold(1e-3f64, |most, x| most.max(x.abs()));
            let apart = a
                .iter()
                .zip(b)
                .fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
            assert!(
                apart < 2e-4 * largest,
                "{seed}: {name} is {apart} off, of {largest}"
            );
        }
        if flag.is_empty() {
            let [old, new] = ["in.onnx", "out.onnx"].map(|name| place.path(name));
            nothing_grows(&old, &new, &format!("{seed}"));
        }
        compared += 1;
        let [old, new] = ["in.onnx", "out.onnx"].map(|name| place.read(name));
        smaller += usize::from(old != new);
        let ran = place.run(&format!("fuse out.onnx again.onnx --force{flag}"));
        assert_eq!(ran.code(), Some(0), "{seed}: {}", ran.stderr);
        assert!(
            place.read("again.onnx") == new,
            "{seed}: fusing a fused graph changes it"
        );
    }
    // Most of them must say something.
    assert!(compared >= 200, "{compared} were run");
    assert!(smaller >= 150, "{smaller} were changed");
}
