//! Paddings that are filled with one number for each channel, side by side, after zeros have been put there.
//!
//! A block that normalizes before it pads fills the border with what its norm makes of zeros, so that it is as if its input were
//! padded. Readers follow what is made of zeros around a value, fill by fill. Where the whole border has got the same numbers, they are
//! compared with what the layers before make of a zero: for the values of which they are just that, the fills are a padding of
//! the value.

use std::collections::{HashMap, HashSet};

use ndarray::{ArrayD, ArrayViewD, Axis};

use super::constants::{Budget, Constant};
use super::model::{Arithmetic, Conv, Node, Norm, Op, Pads, ValueId};
use crate::tensor::{Checkpoint, Float, Tensor};

/// The axis of the channels.
const CHANNELS: usize = 1;

/// Layers are looked at no farther before a padding than this.
const FARTHEST: usize = 16;

/// Numbers that were computed in different orders differ by no more units of rounding than this.
const ROUNDINGS: f64 = 8.0;

/// Which rows of an axis are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// So many from the first on.
    First(usize),
    /// So many, the last one included.
    Last(usize),
}

impl Rows {
    /// Those from `start` to before `end` of an axis of this length; negative ones count from the end. None for others than these.
    pub fn of(start: i64, end: i64, len: Option<usize>) -> Option<Rows> {
        let len = len.map(i64::try_from).transpose().ok()?;
        let count = |n: i64| usize::try_from(n).ok().filter(|n| *n > 0);
        let ends = end == i64::MAX || len.is_some_and(|len| end >= len);
        let start = match len {
            Some(len) if start < 0 => start.saturating_add(len).max(0),
            _ => start,
        };
        match (start, len) {
            (0, _) if end > 0 && !ends => Some(Rows::First(count(end)?)),
            (..0, None) if ends => Some(Rows::Last(count(start.checked_neg()?)?)),
            (1.., Some(len)) if ends => Some(Rows::Last(count(len.checked_sub(start)?)?)),
            _ => None,
        }
    }
}

/// What a border is filled with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Around {
    /// One number for each channel, or one for all.
    numbers: Vec<f64>,
    float: Float,
}

impl Around {
    /// The numbers of a constant that is broadcast to `rank` axes, of which this one is that of the channels. None where others of its
    /// axes have different numbers.
    pub fn read(
        checkpoint: &Checkpoint,
        tensor: &Tensor,
        (rank, channels): (usize, usize),
        budget: &mut Budget,
    ) -> Option<Around> {
        let float = tensor.dtype().float()?;
        let constant = Constant::read(checkpoint, tensor, budget)?;
        Some(Around {
            numbers: per_channel(&constant.numbers, rank, channels)?,
            float,
        })
    }
}

fn per_channel(numbers: &ArrayD<f64>, rank: usize, channels: usize) -> Option<Vec<f64>> {
    let first = rank.checked_sub(numbers.ndim())?;
    let groups: Vec<ArrayViewD<'_, f64>> = match channels.checked_sub(first) {
        Some(axis) => numbers.axis_iter(Axis(axis)).collect(),
        None => vec![numbers.view()],
    };
    let one = |group: ArrayViewD<'_, f64>| {
        let first = *group.first()?;
        group.iter().all(|x| *x == first).then_some(first)
    };
    groups.into_iter().map(one).collect()
}

/// A value with zeros around it, some of which have been filled.
#[derive(Clone, Debug)]
struct Filled {
    /// What was padded.
    of: ValueId,
    pads: Pads,
    /// Axis `i` is the one that was axis `order[i]` when it was padded.
    order: Vec<usize>,
    around: Option<Around>,
    /// The sides of each spatial axis that are still to be filled.
    open: Vec<[bool; 2]>,
    /// The node that has filled the last one, if any has.
    last: Option<usize>,
}

/// The paddings of a graph, and how far they have been filled.
#[derive(Debug, Default)]
pub(super) struct Fills {
    at: HashMap<ValueId, Filled>,
    /// Nodes that fill, and behind which another one does.
    followed: HashSet<usize>,
    /// Nodes behind which a border is whole.
    whole: Vec<(usize, Filled)>,
}

impl Fills {
    /// Takes note of what a node of this number makes of one value, as another one: zeros around it, or other places for its axes.
    pub fn follow(&mut self, op: &Op, [from, to]: [ValueId; 2], node: usize) {
        match op {
            Op::Pad(pads) => self.padded(from, pads, to),
            Op::Identity => self.turned(from, None, to, node),
            Op::Transpose(order) => self.turned(from, Some(order), to, node),
            _ => {}
        }
    }

    /// Takes note of zeros around a value.
    pub fn padded(&mut self, of: ValueId, pads: &Pads, output: ValueId) {
        let sides = pads.before.iter().zip(&pads.after);
        let filled = Filled {
            of,
            pads: pads.clone(),
            order: (0..pads.before.len() + 2).collect(),
            around: None,
            open: sides.map(|(a, b)| [*a > 0, *b > 0]).collect(),
            last: None,
        };
        self.at.insert(output, filled);
    }

    /// The number of axes of a value that is padded and not yet filled all around, and which of them is that of the channels.
    pub fn axes(&self, value: ValueId) -> Option<(usize, usize)> {
        let order = &self.at.get(&value)?.order;
        let channels = order.iter().position(|axis| *axis == CHANNELS)?;
        Some((order.len(), channels))
    }

    /// Takes note of a value's axes in another order, or the same one.
    fn turned(&mut self, from: ValueId, order: Option<&[usize]>, to: ValueId, node: usize) {
        let Some(filled) = self.at.get(&from) else {
            return;
        };
        let new = match order {
            None => Some(filled.order.clone()),
            Some(order) => order
                .iter()
                .map(|axis| filled.order.get(*axis).copied())
                .collect(),
        };
        let Some(order) = new.filter(|order| order.len() == filled.order.len()) else {
            return;
        };
        let filled = Filled {
            order,
            ..filled.clone()
        };
        self.put(filled, to, node);
    }

    /// Takes note of a fill by this node.
    ///
    /// # Errors
    /// Says why it is none of one side of the padding.
    pub fn fill(
        &mut self,
        from: ValueId,
        (axis, rows): (usize, Option<Rows>),
        with: Option<Around>,
        to: ValueId,
        node: usize,
    ) -> Result<(), String> {
        // In place the next step has the same name.
        let found = match from == to {
            true => self.at.remove(&from),
            false => self.at.get(&from).cloned(),
        };
        let Some(mut filled) = found else {
            return Ok(());
        };
        self.followed
            .extend(filled.last.filter(|last| *last != node));
        filled.fill(axis, rows, with)?;
        filled.last = Some(node);
        self.put(filled, to, node);
        Ok(())
    }

    fn put(&mut self, filled: Filled, to: ValueId, node: usize) {
        let straight = filled.order.iter().enumerate().all(|(i, axis)| i == *axis);
        let closed = filled.open.iter().flatten().all(|open| !open);
        match straight && closed && filled.around.is_some() {
            true => {
                self.followed.extend(filled.last);
                self.whole.push((node, filled));
            }
            false => drop(self.at.insert(to, filled)),
        }
    }

    /// Says of the nodes what is known of the borders that they fill.
    pub fn settle(self, nodes: &mut [Node], checkpoint: &Checkpoint) {
        let last: HashSet<usize> = self.at.values().filter_map(|of| of.last).collect();
        for node in last.difference(&self.followed) {
            if let Op::Opaque(why @ None) = &mut nodes[*node].op {
                *why = Some("it fills what has been padded on some sides only".to_owned());
            }
        }
        if self.whole.is_empty() {
            return;
        }
        let outputs = |(i, node): (usize, &Node)| {
            let outputs = node.outputs.clone();
            outputs.into_iter().map(move |output| (output, i))
        };
        let producers: HashMap<ValueId, usize> =
            nodes.iter().enumerate().flat_map(outputs).collect();
        for (node, filled) in self.whole {
            let found = sources(nodes, &producers, checkpoint, &filled);
            nodes[node].op = Op::Border {
                pads: filled.pads,
                sources: found,
            };
            // What it reads besides only says where and what to fill.
            nodes[node].inputs.retain(|input| *input != filled.of);
            nodes[node].inputs.insert(0, filled.of);
        }
    }
}

impl Filled {
    fn fill(
        &mut self,
        axis: usize,
        rows: Option<Rows>,
        with: Option<Around>,
    ) -> Result<(), String> {
        let axis = self.order.get(axis).and_then(|axis| axis.checked_sub(2));
        let side = match (axis, rows) {
            (Some(axis), Some(Rows::First(n))) if self.pads.before.get(axis) == Some(&n) => {
                Some((axis, 0))
            }
            (Some(axis), Some(Rows::Last(n))) if self.pads.after.get(axis) == Some(&n) => {
                Some((axis, 1))
            }
            _ => None,
        };
        let open = side.map(|(axis, side)| &mut self.open[axis][side]);
        let Some(open) = open.filter(|open| **open) else {
            return Err(
                "it fills other rows than those that have been padded, or which ones is not known"
                    .to_owned(),
            );
        };
        let Some(with) = with else {
            return Err(
                "it fills what has been padded with something else than a constant for each channel"
                    .to_owned(),
            );
        };
        *open = false;
        match &self.around {
            Some(around) if *around != with => {
                Err("it fills what has been padded with other numbers than elsewhere".to_owned())
            }
            _ => {
                self.around = Some(with);
                Ok(())
            }
        }
    }
}

/// The values of which the layers up to the padding make the numbers around it where the value is zero.
fn sources(
    nodes: &[Node],
    producers: &HashMap<ValueId, usize>,
    checkpoint: &Checkpoint,
    filled: &Filled,
) -> Vec<ValueId> {
    let Some(around) = &filled.around else {
        return Vec::new();
    };
    let rank = filled.order.len();
    let mut budget = Budget::default();
    let (mut found, mut at, mut layers) = (Vec::new(), filled.of, Vec::new());
    if around.numbers.iter().all(|x| *x == 0.0) {
        found.push(at);
    }
    while layers.len() < FARTHEST
        && let Some(node) = producers.get(&at).map(|i| &nodes[*i])
        && let (Some(&input), Some(layer)) = (
            node.inputs.first(),
            layer(&node.op, rank, checkpoint, &mut budget),
        )
    {
        let ends = matches!(node.op, Op::Conv(_));
        layers.push(layer);
        at = input;
        let zero = Made {
            numbers: vec![0.0],
            sizes: vec![0.0],
        };
        let made = layers.iter().rev().try_fold(zero, |x, layer| layer.of(&x));
        if made.is_some_and(|made| made.is(around)) {
            found.push(at);
        }
        if ends {
            break;
        }
    }
    found
}

/// What a layer makes of the same number in every place of a channel: `factor · x + summand`. None for a layer that only adds.
struct Layer {
    factor: Vec<f64>,
    /// The numbers that are added, and the sizes of what they are made of.
    summand: Made,
}

/// Numbers with the sizes of the terms that they are sums of.
struct Made {
    numbers: Vec<f64>,
    sizes: Vec<f64>,
}

/// A layer that looks at one place at a time.
fn layer(op: &Op, rank: usize, checkpoint: &Checkpoint, budget: &mut Budget) -> Option<Layer> {
    let mut vector = |tensor: &Tensor| {
        let constant = Constant::read(checkpoint, tensor, budget)?;
        match constant.numbers.ndim() {
            // The vectors of layers.
            1 if !matches!(op, Op::WithConstant(..)) => {
                Some(constant.numbers.into_iter().collect())
            }
            _ => per_channel(&constant.numbers, rank, CHANNELS),
        }
    };
    let plain = |factor: f64| Layer {
        factor: vec![factor],
        summand: Made::of(vec![0.0]),
    };
    Some(match op {
        Op::Identity => plain(1.0),
        Op::Neg => plain(-1.0),
        Op::Conv(conv) if is_point(conv) => Layer {
            // It reads zeros.
            factor: vec![0.0],
            summand: Made::of(match &conv.bias {
                Some(bias) => vector(bias)?,
                None => vec![0.0],
            }),
        },
        Op::Norm(Norm {
            mean,
            var,
            affine,
            eps,
            axis: CHANNELS,
        }) => {
            let [weight, bias] = match affine {
                Some([weight, bias]) => [vector(weight)?, vector(bias)?],
                None => [vec![1.0], vec![0.0]],
            };
            let (mean, var) = (vector(mean)?, vector(var)?);
            let factor = pairs(&weight, &var, |weight, var| weight / (var + eps).sqrt())?;
            let shift = pairs(&mean, &factor, |mean, factor| -mean * factor)?;
            Layer {
                summand: Made {
                    numbers: pairs(&shift, &bias, |a, b| a + b)?,
                    sizes: pairs(&shift, &bias, |a, b| a.abs() + b.abs())?,
                },
                factor,
            }
        }
        Op::WithConstant(how, constant) => {
            let c = vector(constant)?;
            let each = |f: fn(f64) -> f64| c.iter().map(|x| f(*x)).collect::<Vec<f64>>();
            let [factor, summand] = match how {
                Arithmetic::Add => [vec![1.0], c],
                Arithmetic::Sub => [vec![1.0], each(|x| -x)],
                Arithmetic::SubFrom => [vec![-1.0], c],
                Arithmetic::Mul => [c, vec![0.0]],
                Arithmetic::Div => [each(|x| 1.0 / x), vec![0.0]],
            };
            Layer {
                factor,
                summand: Made::of(summand),
            }
        }
        _ => return None,
    })
}

/// Whether a conv looks at one place of its input.
fn is_point(conv: &Conv) -> bool {
    let taps = conv.weight.shape().iter().skip(2);
    let zeros = conv.pads.before.iter().chain(&conv.pads.after);
    conv.transposed.is_none()
        && taps.into_iter().all(|n| *n == 1)
        && zeros.into_iter().all(|n| *n == 0)
}

impl Layer {
    fn of(&self, x: &Made) -> Option<Made> {
        let numbers = pairs(&x.numbers, &self.factor, |x, factor| x * factor)?;
        let sizes = pairs(&x.sizes, &self.factor, |x, factor| x * factor.abs())?;
        Some(Made {
            numbers: pairs(&numbers, &self.summand.numbers, |a, b| a + b)?,
            sizes: pairs(&sizes, &self.summand.sizes, |a, b| a + b)?,
        })
    }
}

impl Made {
    fn of(numbers: Vec<f64>) -> Made {
        Made {
            sizes: numbers.iter().map(|x| x.abs()).collect(),
            numbers,
        }
    }

    /// Whether they are the numbers of a border, but for rounding.
    fn is(&self, around: &Around) -> bool {
        let sizes = self.sizes.iter().chain(&around.numbers);
        let size = sizes.fold(0.0f64, |most, x| most.max(x.abs()));
        let most = ROUNDINGS * around.float.unit_roundoff() * size;
        let apart = pairs(&self.numbers, &around.numbers, |a, b| (a - b).abs());
        apart.is_some_and(|apart| apart.into_iter().all(|x| x <= most))
    }
}

/// Two vectors number by number; one number goes with each.
fn pairs(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Option<Vec<f64>> {
    match (a, b) {
        (_, &[b]) => Some(a.iter().map(|a| f(*a, b)).collect()),
        (&[a], _) => Some(b.iter().map(|b| f(a, *b)).collect()),
        _ if a.len() == b.len() => Some(a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()),
        _ => None,
    }
}
