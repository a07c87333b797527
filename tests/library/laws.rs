//! The laws of the algebra, over random expression trees.
//!
//! | law | |
//! |---|---|
//! | fold = forward | `apply (fold e) x  =  forward e x` |
//! | a fold folds to itself | `fold (conv (fold e))  =  fold e` |
//! | sequences associate | `fold (seq [a, seq [b, c]])  =  fold (seq [seq [a, b], c])` |
//! | sums commute | `fold (sum [a, b])  =  fold (sum [b, a])` |
//! | stacks are of rows | `fold (stack [a, b])  =  the rows of fold a, then those of fold b` |
//! | a selection is of rows | `fold (seq [a, select c])  =  rows c of fold a` |
//! | energy is a sum of squares | `energy e x  =  forward e² x²` |

use crate::support::{Array, InMemory, Random};
use repfuse::algebra::Values as _;
use repfuse::algebra::expr::{Bn, Channels, Conv, Expr, Factor, Through, Vector};
use repfuse::algebra::extent::{Margins, POINT, grown, volume};
use repfuse::algebra::forward::{Error, Input, Maps, Reading, Spikes, forward};
use repfuse::algebra::shape::{resolve, resolve_over};
use repfuse::algebra::{Affine, Extent, Operand, Resolved, fold};

const TREES: usize = 3000;

type Tree = Expr<Array>;

/// Builds trees whose shapes fit by construction: `inputs` channels in, `outputs` out.
struct Grow<'a> {
    random: &'a mut Random,
}

impl Grow<'_> {
    fn conv(&mut self, inputs: usize, outputs: usize, extent: Extent) -> Tree {
        let groups = self.random.pick(&divisors(gcd(inputs, outputs)));
        self.conv_of_groups(inputs, outputs, groups, extent)
    }

    fn conv_of_groups(
        &mut self,
        inputs: usize,
        outputs: usize,
        groups: usize,
        extent: Extent,
    ) -> Tree {
        // An extent of 3 is three taps, or two taps at distance 2.
        let mut kernel = extent;
        let mut dilation = POINT;
        for axis in 0..3 {
            if extent[axis] > 1 {
                let steps = self.random.pick(&divisors(extent[axis] - 1));
                (kernel[axis], dilation[axis]) = ((extent[axis] - 1) / steps + 1, steps);
            }
        }
        let bias =
            (self.random.below(2) == 0).then(|| self.random.array("bias", &[outputs], -1.0, 1.0));
        let shared = groups == inputs && groups == outputs && self.random.below(4) == 0;
        let mut shape = match shared {
            true => vec![1, 1],
            false => vec![outputs, inputs / groups],
        };
        // As a Linear layer, a Conv1d, a Conv2d or a Conv3d, whichever can be so large.
        let needed = kernel.iter().take_while(|n| **n == 1).count();
        shape.extend(&kernel[self.random.below(needed + 1)..]);
        let weight = self.random.array("weight", &shape, -1.0, 1.0);
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
    fn tree(&mut self, inputs: usize, outputs: usize, extent: Extent, depth: usize) -> Tree {
        match self.random.below(if depth == 0 { 2 } else { 8 }) {
            0 => self.conv(inputs, outputs, extent),
            1 if inputs == outputs && extent[1] == extent[2] => Expr::Seq(vec![
                self.diagonal(inputs),
                Expr::AvgPool(extent),
                self.diagonal(inputs),
            ]),
            1 => Expr::Seq(vec![
                self.conv(inputs, outputs, extent),
                self.diagonal(outputs),
            ]),
            2 | 3 => {
                let middle = self.random.pick(&[1, 2, 4, 6]);
                let first = extent.map(|n| 1 + self.random.below(n));
                let second = [0, 1, 2].map(|axis| extent[axis] + 1 - first[axis]);
                let mut steps = vec![self.tree(inputs, middle, first, depth - 1)];
                if self.random.below(2) == 0 {
                    steps.insert(0, self.diagonal(inputs));
                }
                steps.push(self.diagonal(middle));
                steps.push(self.tree(middle, outputs, second, depth - 1));
                steps.push(self.diagonal(outputs));
                Expr::Seq(steps)
            }
            4 => {
                // Behind a stack of all its parts, or not, some channels are taken.
                let from = self.random.pick(&[1, 2, 4, 6]);
                let select = self.select(from, outputs);
                Expr::Seq(match self.random.below(2) {
                    0 => vec![self.tree(inputs, from, extent, depth - 1), select],
                    _ => {
                        let before = self.select(inputs, from);
                        vec![before, self.tree(from, outputs, extent, depth - 1)]
                    }
                })
            }
            5 if outputs > 1 => {
                let first = 1 + self.random.below(outputs - 1);
                Expr::Stack(vec![
                    self.tree(inputs, first, extent, depth - 1),
                    self.smaller(inputs, outputs - first, extent, depth - 1),
                ])
            }
            _ => {
                let mut branches = vec![self.tree(inputs, outputs, extent, depth - 1)];
                for _ in 0..self.random.below(3) {
                    branches.push(self.smaller(inputs, outputs, extent, depth - 1));
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

    /// A tree that lies within one of this extent: in the middle, or anywhere.
    fn smaller(&mut self, inputs: usize, outputs: usize, extent: Extent, depth: usize) -> Tree {
        if self.random.below(3) == 0 {
            let smaller = extent.map(|n| 1 + self.random.below(n));
            let beyond = [0, 1, 2].map(|axis| extent[axis] - smaller[axis]);
            let before = beyond.map(|n| self.random.below(n + 1));
            let after = [0, 1, 2].map(|axis| beyond[axis] - before[axis]);
            let crop = Expr::Crop(Margins { before, after });
            let tree = self.tree(inputs, outputs, smaller, depth);
            return Expr::Seq(match (self.random.below(2), inputs == outputs) {
                (0, true) => vec![self.diagonal(inputs), crop, tree],
                (0, false) => vec![crop, tree],
                _ => vec![tree, crop],
            });
        }
        let smaller = extent.map(|n| n - 2 * self.random.below(n.div_ceil(2)));
        self.tree(inputs, outputs, smaller, depth)
    }

    fn select(&mut self, of: usize, count: usize) -> Tree {
        let first = self.random.below(of);
        Expr::Select(match first + count <= of {
            true => Channels::range(of, first..first + count),
            false => Channels {
                of,
                picked: (0..count).map(|_| self.random.below(of)).collect(),
            },
        })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// The extent of a kernel in one, two or three dimensions.
fn extent(random: &mut Random) -> Extent {
    let width = random.pick(&[1, 3, 4]);
    match random.below(4) {
        0 => [1, 1, width],
        1 => [random.pick(&[1, 2, 3]), random.pick(&[1, 3]), width],
        _ => [1, random.pick(&[1, 2, 3, 5]), width],
    }
}

/// A random tree that has a conv; a few draws have none.
fn resolved(random: &mut Random) -> Resolved<Array> {
    loop {
        let (inputs, outputs) = (random.pick(&[1, 2, 4, 6]), random.pick(&[1, 2, 4, 6]));
        let extent = extent(random);
        let tree = Grow { random }.tree(inputs, outputs, extent, 3);
        if tree.has_conv() {
            let label = format!("{tree:?}");
            // Behind a selection or before a stack, a tree may not tell how many channels its input has.
            let mut told = true;
            tree.visit(&mut |node| told &= !matches!(node, Expr::Select(_) | Expr::Stack(_)));
            let tree = match told {
                true => resolve(tree),
                false => resolve_over(tree, inputs),
            };
            return tree.unwrap_or_else(|e| panic!("{e}: {label}"));
        }
    }
}

fn in_memory<T>(result: Result<T, std::convert::Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

fn that_fits<T>(result: Result<T, Error<std::convert::Infallible>>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// The conv that a fold is.
fn as_conv(affine: &Affine) -> Resolved<Array> {
    let g = affine.geometry();
    let shape = [g.out(), g.in_per_group()];
    let weight = Array {
        label: "fused.weight",
        shape: shape.into_iter().chain(g.extent()).collect(),
        data: affine.kernel().to_vec(),
    };
    let bias = Array {
        label: "fused.bias",
        shape: vec![g.out()],
        data: affine.bias().to_vec(),
    };
    let conv = Conv {
        weight,
        bias: Some(bias),
        dilation: POINT,
        groups: Some(g.groups()),
        transposed: false,
        flipped: false,
        shared: false,
    };
    resolve(Expr::Conv(conv)).expect("a fold is a conv")
}

fn run(tree: &Resolved<Array>, input: &Input, want: Extent, reading: Reading) -> Maps {
    let rows = 0..tree.geometry().out();
    that_fits(forward(
        tree.root(),
        input,
        rows,
        want,
        reading,
        &mut InMemory,
    ))
}

/// The largest difference, relative to what the rounding errors of the tree are proportional to.
fn difference(tree: &Resolved<Array>, other: &Resolved<Array>, input: &Input, want: Extent) -> f64 {
    let [a, b, size] = [
        run(tree, input, want, Reading::Value),
        run(other, input, want, Reading::Value),
        run(tree, &magnitude(input), want, Reading::Magnitude),
    ];
    assert_eq!(
        (a.channels(), a.maps(), a.size()),
        (b.channels(), b.maps(), b.size())
    );
    let pairs = a.data().iter().zip(b.data()).zip(size.data());
    pairs
        .map(|((a, b), size)| (a - b).abs() / size.max(f64::MIN_POSITIVE))
        .fold(0.0, f64::max)
}

fn all_spikes(per_group: usize, amplitude: f64) -> Input {
    Input::Spikes(Spikes {
        per_group,
        channels: 0..per_group,
        amplitude,
    })
}

fn magnitude(input: &Input) -> Input {
    match input.clone() {
        Input::Dense(mut maps) => {
            maps.data_mut().iter_mut().for_each(|x| *x = x.abs());
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
        assert_eq!(stored, g.out() * g.row_len(), "{g:?}");
        let fused = as_conv(&in_memory(fold(&tree, &mut InMemory)));
        let g = *tree.geometry();
        let want = [
            1 + random.below(2),
            1 + random.below(3),
            1 + random.below(3),
        ];
        let mut maps = Maps::zeros(g.inputs(), 2, grown(g.extent(), want));
        maps.data_mut()
            .iter_mut()
            .for_each(|x| *x = random.between(-1.0, 1.0));
        let dense = difference(&tree, &fused, &Input::Dense(maps), want);
        let spikes = all_spikes(g.in_per_group(), 1.0);
        let impulse = difference(&tree, &fused, &spikes, g.extent());
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
        if g.extent().iter().any(|n| n % 2 == 0) {
            continue;
        }
        let per_group = g.in_per_group();
        let size = g.extent().map(|n| 2 * n - 1);
        let mut maps = Maps::zeros(g.inputs(), per_group, size);
        for channel in 0..g.inputs() {
            let map = channel * per_group + channel % per_group;
            // The middle of a map whose sides are all odd.
            maps.data_mut()[map * volume(size) + volume(size) / 2] = 3.0;
        }
        let dense = run(&tree, &Input::Dense(maps), g.extent(), Reading::Value);
        let spikes = run(
            &tree,
            &all_spikes(per_group, 3.0),
            g.extent(),
            Reading::Value,
        );
        let pairs = dense.data().iter().zip(spikes.data());
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
        Expr::AvgPool(k) => {
            let weight = 1.0 / volume(*k) as f64;
            Expr::Seq(vec![Expr::AvgPool(*k), Expr::Scale(Factor::Number(weight))])
        }
        Expr::Crop(margins) => Expr::Crop(*margins),
        Expr::Identity => Expr::Identity,
        Expr::Seq(xs) => Expr::Seq(xs.iter().map(squared).collect()),
        Expr::Sum(xs) => Expr::Sum(xs.iter().map(squared).collect()),
        Expr::Stack(xs) => Expr::Stack(xs.iter().map(squared).collect()),
        Expr::Select(channels) => Expr::Select(channels.clone()),
    }
}

#[test]
fn energy_is_a_sum_of_squares() {
    let mut random = Random(12);
    for _ in 0..TREES {
        let tree = resolved(&mut random);
        let g = *tree.geometry();
        let mut maps = Maps::zeros(g.inputs(), 2, g.extent());
        let fill = |x: &mut f64| *x = random.between(-1.0, 1.0).powi(2);
        maps.data_mut().iter_mut().for_each(fill);
        let input = Input::Dense(maps);
        let energy = run(&tree, &input, POINT, Reading::Energy);
        let squared = resolve(squared(&tree.root().expr())).expect("the same shapes");
        let squares = run(&squared, &input, POINT, Reading::Value);
        for (a, b) in energy.data().iter().zip(squares.data()) {
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
        assert_eq!(once.kernel(), twice.kernel());
        assert_eq!(once.bias(), twice.bias());
    }
}

#[test]
fn sequences_associate() {
    let mut random = Random(4);
    for _ in 0..TREES {
        let widths: Vec<usize> = (0..4).map(|_| random.pick(&[1, 2, 4])).collect();
        let mut step = |i: usize| {
            let extent = [1, random.pick(&[1, 2, 3]), random.pick(&[1, 3])];
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
            .tree(inputs, outputs, [1, 3, 3], 1)
        };
        let (a, b) = (branch(), branch());
        let left = Expr::Sum(vec![a.clone(), b.clone()]);
        assert_same_fold(left, Expr::Sum(vec![b, a]));
    }
}

fn assert_same_fold(left: Tree, right: Tree) {
    if !left.has_conv() {
        return;
    }
    let [left, right] = [left, right].map(|tree| resolve(tree).expect("shapes that fit"));
    assert_eq!(left.geometry(), right.geometry());
    let [a, b] = [&left, &right].map(|tree| in_memory(fold(tree, &mut InMemory)));
    let all = |fold: &Affine| [fold.kernel(), fold.bias()].concat();
    let size = all(&a).iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (a, b) in all(&a).iter().zip(all(&b)) {
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
        dilation: POINT,
        groups: Some(2),
        transposed: false,
        flipped: false,
        shared: false,
    };
    let tree = resolve(Expr::Sum(vec![Expr::Conv(conv), Expr::Identity])).expect("shapes that fit");
    let fused = in_memory(fold(&tree, &mut InMemory));
    let ones: Vec<usize> = (0..fused.kernel().len())
        .filter(|&i| fused.kernel()[i] == 1.0)
        .collect();
    let at = |o: usize, i: usize| ((o * 2 + i) * 3 + 1) * 5 + 2;
    assert_eq!(ones, [at(0, 0), at(1, 1), at(2, 0), at(3, 1)]);
    assert_eq!(fused.kernel().iter().sum::<f64>(), 4.0);
    assert!(tree.root().leaves().iter().all(|leaf| !leaf.is_empty()));
}

/// The rows of a fold as `[inputs, d, h, w]` in the middle of this extent, whatever its groups, each with its bias.
fn whole_rows(tree: &Resolved<Array>, extent: Extent) -> Vec<Vec<f64>> {
    let fused = in_memory(fold(tree, &mut InMemory));
    let (g, own) = (*fused.geometry(), fused.geometry().extent());
    let start = [0, 1, 2].map(|axis| (extent[axis] - own[axis]) / 2);
    let row = |o: usize| {
        let mut row = vec![0.0; g.inputs() * volume(extent)];
        let stored = &fused.kernel()[o * g.row_len()..][..g.row_len()];
        for (i, w) in stored.iter().enumerate() {
            let (channel, tap) = (g.first_input(o) + i / g.taps(), i % g.taps());
            let at = [tap / own[2] / own[1], tap / own[2] % own[1], tap % own[2]];
            let [z, y, x] = [0, 1, 2].map(|axis| start[axis] + at[axis]);
            row[((channel * extent[0] + z) * extent[1] + y) * extent[2] + x] = *w;
        }
        row.push(fused.bias()[o]);
        row
    };
    (0..g.out()).map(row).collect()
}

fn assert_same_rows(found: &[Vec<f64>], expected: &[Vec<f64>], tree: &Resolved<Array>) {
    assert_eq!(found.len(), expected.len(), "{tree:?}");
    for (found, expected) in found.iter().zip(expected) {
        let size = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-12 * size, "{a} and {b}: {tree:?}");
        }
    }
}

#[test]
fn stacks_are_of_rows() {
    let mut random = Random(6);
    for _ in 0..TREES / 3 {
        let extent = extent(&mut random);
        let inputs = random.pick(&[1, 2, 4, 6]);
        let mut grow = Grow {
            random: &mut random,
        };
        // A conv in front of both tells the number of channels.
        let head = grow.conv_of_groups(inputs, 4, 1, POINT);
        let parts = [2, 3].map(|out| grow.smaller(4, out, extent, 2));
        let with_head =
            |x: Tree| resolve(Expr::Seq(vec![head.clone(), x])).expect("shapes that fit");
        let each = parts.clone().map(&with_head);
        let stack = with_head(Expr::Stack(parts.to_vec()));
        let whole = stack.geometry().extent();
        let expected = each.map(|part| whole_rows(&part, whole)).concat();
        assert_same_rows(&whole_rows(&stack, whole), &expected, &stack);
    }
}

#[test]
fn a_selection_is_of_rows() {
    let mut random = Random(7);
    for _ in 0..TREES / 3 {
        let tree = resolved(&mut random);
        let (of, extent) = (tree.geometry().out(), tree.geometry().extent());
        let picked: Vec<usize> = (0..1 + random.below(5)).map(|_| random.below(of)).collect();
        let rows = whole_rows(&tree, extent);
        let expected: Vec<_> = picked.iter().map(|o| rows[*o].clone()).collect();
        let select = Expr::Select(Channels { of, picked });
        let inputs = tree.geometry().inputs();
        let selected = resolve_over(Expr::Seq(vec![tree.root().expr(), select]), inputs)
            .expect("shapes that fit");
        assert_same_rows(&whole_rows(&selected, extent), &expected, &selected);
    }
}

/// What does not fit is an error, not zeros.
#[test]
fn inputs_that_do_not_fit_are_refused() {
    let tree = resolve(
        Grow {
            random: &mut Random(9),
        }
        .conv_of_groups(4, 6, 2, [1, 3, 3]),
    )
    .expect("shapes that fit");
    let run = |input, rows, want| {
        forward(
            tree.root(),
            &input,
            rows,
            want,
            Reading::Value,
            &mut InMemory,
        )
        .map(|_| ())
    };
    let dense = |channels, size| Input::Dense(Maps::zeros(channels, 1, size));
    assert_eq!(run(dense(4, [1, 3, 3]), 0..6, POINT), Ok(()));
    assert_eq!(run(all_spikes(2, 1.0), 0..6, [1, 3, 3]), Ok(()));
    for (input, rows, want) in [
        (dense(3, [1, 3, 3]), 0..6, POINT),
        (dense(4, [1, 3, 2]), 0..6, POINT),
        (dense(4, [1, 3, 3]), 0..6, [1, 1, 2]),
        (dense(4, [1, 3, 3]), 0..7, POINT),
        (dense(4, [1, 3, 3]), 0..6, [1, 0, 1]),
        (all_spikes(3, 1.0), 0..6, POINT),
    ] {
        let refused = run(input, rows, want);
        assert!(matches!(refused, Err(Error::Misfit(_))), "{refused:?}");
    }
}

#[test]
fn a_linear_layer_behind_a_conv1d_stays_one() {
    let shapes = |shapes: &[&[usize]]| {
        let conv = |shape: &&[usize]| {
            Expr::Conv(Conv {
                weight: Random(10).array("weight", shape, -1.0, 1.0),
                bias: None,
                dilation: POINT,
                groups: Some(1),
                transposed: false,
                flipped: false,
                shared: false,
            })
        };
        let tree = resolve(Expr::Seq(shapes.iter().map(conv).collect()));
        tree.expect("shapes that fit").geometry().weight_shape()
    };
    assert_eq!(shapes(&[&[16, 16, 1], &[48, 16]]), [48, 16]);
    assert_eq!(shapes(&[&[16, 16], &[48, 16, 1]]), [48, 16, 1]);
    assert_eq!(shapes(&[&[16, 16, 3], &[48, 16]]), [48, 16, 3]);
    assert_eq!(
        shapes(&[&[8, 16, 1, 3, 3], &[4, 8, 3, 1, 1]]),
        [4, 16, 3, 3, 3]
    );
}
