//! The laws of the algebra, over random expression trees.
//!
//! | law | |
//! |---|---|
//! | fold = forward | `apply (fold e) x  =  forward e x` |
//! | a fold folds to itself | `fold (conv (fold e))  =  fold e` |
//! | sequences associate | `fold (seq [a, seq [b, c]])  =  fold (seq [seq [a, b], c])` |
//! | sums commute | `fold (sum [a, b])  =  fold (sum [b, a])` |
//! | energy is a sum of squares | `energy e x  =  forward e² x²` |

mod support;

use repfuse::algebra::Values as _;
use repfuse::algebra::expr::{Bn, Conv, Expr, Factor, Through, Vector};
use repfuse::algebra::forward::{Input, Maps, Reading, forward};
use repfuse::algebra::shape::resolve;
use repfuse::algebra::{Affine, Operand, Resolved, fold};
use support::{Array, InMemory, Random};

const TREES: usize = 3000;

type Tree = Expr<Array>;

/// Builds trees whose shapes fit by construction: `inputs` channels in, `outputs` out.
struct Grow<'a> {
    random: &'a mut Random,
}

impl Grow<'_> {
    fn conv(&mut self, inputs: usize, outputs: usize, extent: [usize; 2]) -> Tree {
        let groups = self.random.pick(&divisors(gcd(inputs, outputs)));
        self.conv_of_groups(inputs, outputs, groups, extent)
    }

    fn conv_of_groups(
        &mut self,
        inputs: usize,
        outputs: usize,
        groups: usize,
        extent: [usize; 2],
    ) -> Tree {
        // An extent of 3 is three taps, or two taps at distance 2.
        let mut kernel = extent;
        let mut dilation = [1, 1];
        for axis in 0..2 {
            if extent[axis] > 1 {
                let steps = self.random.pick(&divisors(extent[axis] - 1));
                (kernel[axis], dilation[axis]) = ((extent[axis] - 1) / steps + 1, steps);
            }
        }
        let bias =
            (self.random.below(2) == 0).then(|| self.random.array("bias", &[outputs], -1.0, 1.0));
        let shape = [outputs, inputs / groups, kernel[0], kernel[1]];
        let flat = [outputs, inputs / groups, kernel[1]];
        let shape = match (kernel, self.random.below(3)) {
            ([1, 1], 0) => &flat[..2],
            ([1, _], 1) => &flat[..],
            _ => &shape[..],
        };
        let shared = groups == inputs && groups == outputs && self.random.below(4) == 0;
        let shape = if shared {
            &[1, 1, kernel[0], kernel[1]][..]
        } else {
            shape
        };
        let weight = self.random.array("weight", shape, -1.0, 1.0);
        Expr::Conv(Conv {
            weight,
            bias,
            dilation,
            groups: Some(groups),
            transposed: false,
            flipped: self.random.below(4) == 0,
            shared,
        })
    }

    fn diagonal(&mut self, channels: usize) -> Tree {
        let random = &mut *self.random;
        match random.below(6) {
            0 => Expr::Scale(Factor::Number(random.between(-2.0, 2.0))),
            1 => {
                let row = random.pick(&[None, Some(0), Some(2)]);
                let shape = if row.is_some() {
                    [3, channels]
                } else {
                    [channels, 1]
                };
                let ways = [Through::Itself, Through::Sigmoid, Through::Reciprocal];
                let through = random.pick(&ways);
                // What divides is not all but zero.
                let least = if through == Through::Reciprocal {
                    0.5
                } else {
                    -2.0
                };
                Expr::Scale(Factor::Tensor(Vector {
                    tensor: random.array("scale", &shape, least, 2.0),
                    row,
                    through,
                }))
            }
            2 => Expr::Shift(random.array("shift", &[channels], -1.0, 1.0)),
            3 => Expr::Identity,
            _ => Expr::Bn(Bn {
                mean: random.array("running_mean", &[channels], -1.0, 1.0),
                var: random.array("running_var", &[channels], 0.01, 2.0),
                affine: (random.below(4) > 0).then(|| {
                    [
                        random.array("weight", &[channels], 0.5, 1.5),
                        random.array("bias", &[channels], -1.0, 1.0),
                    ]
                }),
                eps: 1e-3,
            }),
        }
    }

    /// A tree of exactly this extent on each axis.
    fn tree(&mut self, inputs: usize, outputs: usize, extent: [usize; 2], depth: usize) -> Tree {
        match self.random.below(if depth == 0 { 2 } else { 6 }) {
            0 => self.conv(inputs, outputs, extent),
            1 if inputs == outputs && extent[0] == extent[1] => Expr::Seq(vec![
                self.diagonal(inputs),
                Expr::Mean(extent),
                self.diagonal(inputs),
            ]),
            1 => Expr::Seq(vec![
                self.conv(inputs, outputs, extent),
                self.diagonal(outputs),
            ]),
            2 | 3 => {
                let middle = self.random.pick(&[1, 2, 4, 6]);
                let first = [0, 1].map(|axis| 1 + self.random.below(extent[axis]));
                let second = [0, 1].map(|axis| extent[axis] + 1 - first[axis]);
                let mut steps = vec![self.tree(inputs, middle, first, depth - 1)];
                if self.random.below(2) == 0 {
                    steps.insert(0, self.diagonal(inputs));
                }
                steps.push(self.diagonal(middle));
                steps.push(self.tree(middle, outputs, second, depth - 1));
                steps.push(self.diagonal(outputs));
                Expr::Seq(steps)
            }
            _ => {
                let mut branches = vec![self.tree(inputs, outputs, extent, depth - 1)];
                for _ in 0..self.random.below(3) {
                    let smaller = extent.map(|n| n - 2 * self.random.below(n.div_ceil(2)));
                    branches.push(self.tree(inputs, outputs, smaller, depth - 1));
                }
                if inputs == outputs && extent.iter().all(|n| n % 2 == 1) {
                    branches.push(self.diagonal(inputs));
                }
                let last = branches.len() - 1;
                branches.swap(0, self.random.below(last + 1));
                Expr::Sum(branches)
            }
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// A random tree that has a conv; a few draws have none.
fn resolved(random: &mut Random) -> Resolved<Array> {
    loop {
        let (inputs, outputs) = (random.pick(&[1, 2, 4, 6]), random.pick(&[1, 2, 4, 6]));
        let extent = [random.pick(&[1, 2, 3, 5]), random.pick(&[1, 3, 4])];
        let tree = Grow { random }.tree(inputs, outputs, extent, 3);
        if tree.mixes_channels() {
            let label = format!("{tree:?}");
            return resolve(tree).unwrap_or_else(|e| panic!("{e}: {label}"));
        }
    }
}

fn in_memory<T>(result: Result<T, std::convert::Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

/// The conv that a fold is.
fn as_conv(affine: &Affine) -> Resolved<Array> {
    let g = affine.geometry;
    let weight = Array {
        label: "fused.weight",
        shape: vec![g.out, g.in_per_group(), g.extent[0], g.extent[1]],
        data: affine.kernel.clone(),
    };
    let bias = Array {
        label: "fused.bias",
        shape: vec![g.out],
        data: affine.bias.clone(),
    };
    let conv = Conv {
        weight,
        bias: Some(bias),
        dilation: [1, 1],
        groups: Some(g.groups),
        transposed: false,
        flipped: false,
        shared: false,
    };
    resolve(Expr::Conv(conv)).expect("a fold is a conv")
}

fn run(tree: &Resolved<Array>, input: &Input, want: [usize; 2], reading: Reading) -> Maps {
    let g = tree.geometry();
    in_memory(forward(
        tree.expr(),
        g,
        input,
        0..g.out,
        want,
        reading,
        &mut InMemory,
    ))
}

/// The largest difference, relative to what the rounding errors of the tree are proportional to.
fn difference(
    tree: &Resolved<Array>,
    other: &Resolved<Array>,
    input: &Input,
    want: [usize; 2],
) -> f64 {
    let [a, b, size] = [
        run(tree, input, want, Reading::Value),
        run(other, input, want, Reading::Value),
        run(tree, &magnitude(input), want, Reading::Magnitude),
    ];
    assert_eq!((a.channels, a.maps, a.size), (b.channels, b.maps, b.size));
    let pairs = a.data.iter().zip(&b.data).zip(&size.data);
    pairs
        .map(|((a, b), size)| (a - b).abs() / size.max(f64::MIN_POSITIVE))
        .fold(0.0, f64::max)
}

fn all_spikes(per_group: usize, amplitude: f64) -> Input {
    Input::Spikes {
        per_group,
        channels: 0..per_group,
        amplitude,
    }
}

fn magnitude(input: &Input) -> Input {
    match input.clone() {
        Input::Dense(mut maps) => {
            maps.data.iter_mut().for_each(|x| *x = x.abs());
            Input::Dense(maps)
        }
        spikes => spikes,
    }
}

#[test]
fn fold_equals_forward() {
    let mut random = Random(1);
    let mut worst = 0.0f64;
    for _ in 0..TREES {
        let tree = resolved(&mut random);
        let g = tree.geometry();
        let stored: usize = g.weight_shape().iter().product();
        assert_eq!(stored, g.out * g.row_len(), "{g:?}");
        let fused = as_conv(&in_memory(fold(&tree, &mut InMemory)));
        let g = *tree.geometry();
        let want = [1 + random.below(3), 1 + random.below(3)];
        let size = [g.extent[0] + want[0] - 1, g.extent[1] + want[1] - 1];
        let mut maps = Maps::zeros(g.inputs, 2, size);
        maps.data
            .iter_mut()
            .for_each(|x| *x = random.between(-1.0, 1.0));
        let dense = difference(&tree, &fused, &Input::Dense(maps), want);
        let spikes = all_spikes(g.in_per_group(), 1.0);
        let impulse = difference(&tree, &fused, &spikes, g.extent);
        assert!(
            dense < 1e-14 && impulse < 1e-14,
            "dense {dense:e}, impulse {impulse:e}: {tree:?}"
        );
        worst = worst.max(dense).max(impulse);
    }
    assert!(
        worst > 0.0,
        "the two readings are too equal to be independent"
    );
}

/// Spikes say the same as the maps they stand for, written out in full.
#[test]
fn spikes_equal_dense_maps() {
    let mut random = Random(2);
    for _ in 0..300 {
        let tree = resolved(&mut random);
        let g = *tree.geometry();
        if g.extent.iter().any(|n| n % 2 == 0) {
            continue;
        }
        let per_group = g.in_per_group();
        let size = g.extent.map(|n| 2 * n - 1);
        let mut maps = Maps::zeros(g.inputs, per_group, size);
        for channel in 0..g.inputs {
            let map = channel * per_group + channel % per_group;
            maps.data[map * size[0] * size[1] + (g.extent[0] - 1) * size[1] + g.extent[1] - 1] =
                3.0;
        }
        let dense = run(&tree, &Input::Dense(maps), g.extent, Reading::Value);
        let spikes = run(&tree, &all_spikes(per_group, 3.0), g.extent, Reading::Value);
        let pairs = dense.data.iter().zip(&spikes.data);
        let worst = pairs
            .map(|(a, b)| (a - b).abs() / (1.0 + a.abs()))
            .fold(0.0, f64::max);
        assert!(worst < 1e-12, "{worst:e}: {tree:?}");
    }
}

fn square(array: &Array) -> Array {
    Array {
        data: array.data.iter().map(|x| x * x).collect(),
        ..array.clone()
    }
}

/// The tree whose every coefficient is the square of this one's; a norm is then the three operators it consists of.
fn squared(tree: &Tree) -> Tree {
    let factors = |data: Vec<f64>| {
        let shape = vec![data.len()];
        let label = "squares";
        Expr::Scale(Factor::Tensor(Vector::of(Array { label, shape, data })))
    };
    match tree {
        Expr::Conv(conv) => Expr::Conv(Conv {
            weight: square(&conv.weight),
            bias: conv.bias.as_ref().map(square),
            ..conv.clone()
        }),
        Expr::Bn(bn) => {
            let (mut scale, mut shift) = (vec![1.0; bn.var.data.len()], None);
            if let Some([weight, bias]) = &bn.affine {
                scale.clone_from(&weight.data);
                shift = Some(Expr::Shift(square(bias)));
            }
            let vars = scale.iter_mut().zip(&bn.var.data);
            vars.for_each(|(w, var)| *w = *w * *w / (var + bn.eps));
            let steps = [Expr::Shift(square(&bn.mean)), factors(scale)];
            Expr::Seq(steps.into_iter().chain(shift).collect())
        }
        Expr::Scale(Factor::Number(n)) => Expr::Scale(Factor::Number(n * n)),
        Expr::Scale(Factor::Tensor(v)) => {
            let start = v.row.unwrap_or(0) * v.len();
            let mut read = in_memory(InMemory.vector(&v.tensor, start, v.len()));
            read.iter_mut().for_each(|x| {
                *x = match v.through {
                    Through::Itself => *x,
                    Through::Sigmoid => 1.0 / (1.0 + (-*x).exp()),
                    Through::Reciprocal => 1.0 / *x,
                }
            });
            factors(read.into_iter().map(|x| x * x).collect())
        }
        Expr::Shift(shift) => Expr::Shift(square(shift)),
        Expr::Mean(k) => {
            let weight = 1.0 / (k[0] * k[1]) as f64;
            Expr::Seq(vec![Expr::Mean(*k), Expr::Scale(Factor::Number(weight))])
        }
        Expr::Identity => Expr::Identity,
        Expr::Seq(xs) => Expr::Seq(xs.iter().map(squared).collect()),
        Expr::Sum(xs) => Expr::Sum(xs.iter().map(squared).collect()),
    }
}

#[test]
fn energy_is_a_sum_of_squares() {
    let mut random = Random(12);
    for _ in 0..TREES {
        let tree = resolved(&mut random);
        let g = *tree.geometry();
        let mut maps = Maps::zeros(g.inputs, 2, g.extent);
        let fill = |x: &mut f64| *x = random.between(-1.0, 1.0).powi(2);
        maps.data.iter_mut().for_each(fill);
        let input = Input::Dense(maps);
        let energy = run(&tree, &input, [1, 1], Reading::Energy);
        let squares = in_memory(forward(
            &squared(tree.expr()),
            &g,
            &input,
            0..g.out,
            [1, 1],
            Reading::Value,
            &mut InMemory,
        ));
        for (a, b) in energy.data.iter().zip(&squares.data) {
            assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} and {b}: {tree:?}");
        }
    }
}

#[test]
fn a_fold_folds_to_itself() {
    let mut random = Random(3);
    for _ in 0..TREES {
        let once = in_memory(fold(&resolved(&mut random), &mut InMemory));
        let twice = in_memory(fold(&as_conv(&once), &mut InMemory));
        assert_eq!(once.kernel, twice.kernel);
        assert_eq!(once.bias, twice.bias);
    }
}

#[test]
fn sequences_associate() {
    let mut random = Random(4);
    for _ in 0..TREES {
        let widths: Vec<usize> = (0..4).map(|_| random.pick(&[1, 2, 4])).collect();
        let mut step = |i: usize| {
            let extent = [random.pick(&[1, 2, 3]), random.pick(&[1, 3])];
            Grow {
                random: &mut random,
            }
            .tree(widths[i], widths[i + 1], extent, 1)
        };
        let (a, b, c) = (step(0), step(1), step(2));
        let left = Expr::Seq(vec![Expr::Seq(vec![a.clone(), b.clone()]), c.clone()]);
        let right = Expr::Seq(vec![a, Expr::Seq(vec![b, c])]);
        assert_same_fold(left, right);
    }
}

#[test]
fn sums_commute() {
    let mut random = Random(5);
    for _ in 0..TREES {
        let (inputs, outputs) = (random.pick(&[1, 2, 4]), random.pick(&[1, 2, 4]));
        let mut branch = || {
            Grow {
                random: &mut random,
            }
            .tree(inputs, outputs, [3, 3], 1)
        };
        let (a, b) = (branch(), branch());
        let left = Expr::Sum(vec![a.clone(), b.clone()]);
        assert_same_fold(left, Expr::Sum(vec![b, a]));
    }
}

fn assert_same_fold(left: Tree, right: Tree) {
    if !left.mixes_channels() {
        return;
    }
    let [left, right] = [left, right].map(|tree| resolve(tree).expect("shapes that fit"));
    assert_eq!(left.geometry(), right.geometry());
    let [a, b] = [&left, &right].map(|tree| in_memory(fold(tree, &mut InMemory)));
    let size = a
        .kernel
        .iter()
        .chain(&a.bias)
        .fold(1.0f64, |m, x| m.max(x.abs()));
    for (a, b) in a
        .kernel
        .iter()
        .chain(&a.bias)
        .zip(b.kernel.iter().chain(&b.bias))
    {
        assert!((a - b).abs() <= 1e-12 * size, "{a} and {b}: {left:?}");
    }
}

/// The tap of an identity beside a grouped, non-square kernel, written down by hand.
#[test]
fn the_identity_tap_is_where_it_belongs() {
    let weight = Array {
        label: "weight",
        shape: vec![4, 2, 3, 5],
        data: vec![0.0; 4 * 2 * 3 * 5],
    };
    let conv = Conv {
        weight,
        bias: None,
        dilation: [1, 1],
        groups: Some(2),
        transposed: false,
        flipped: false,
        shared: false,
    };
    let tree = resolve(Expr::Sum(vec![Expr::Conv(conv), Expr::Identity])).expect("shapes that fit");
    let fused = in_memory(fold(&tree, &mut InMemory));
    let ones: Vec<usize> = (0..fused.kernel.len())
        .filter(|&i| fused.kernel[i] == 1.0)
        .collect();
    let at = |o: usize, i: usize| ((o * 2 + i) * 3 + 1) * 5 + 2;
    assert_eq!(ones, [at(0, 0), at(1, 1), at(2, 0), at(3, 1)]);
    assert_eq!(fused.kernel.iter().sum::<f64>(), 4.0);
    assert!(tree.expr().leaves().iter().all(|leaf| !leaf.is_empty()));
}
