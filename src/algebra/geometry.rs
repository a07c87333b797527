//! Shapes: what an expression maps to what, decided from the shapes of its leaves alone.
//!
//! A weight file stores `[out, in/groups, kh, kw]` but neither `in` nor `groups`. The number of input
//! channels follows from a batch norm on the block's input, else from a bare identity (in = out), else
//! any value that fits gives the same kernel, or the expression is refused as ambiguous.

use std::collections::HashSet;

use super::expr::{Conv, Expr, Factor, Operand};
use super::size;

/// What an expression maps: `[inputs, h, w]` to `[out, h − kh + 1, w − kw + 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels. Where nothing in the block tells (a plain sum of convs), the smallest value that fits.
    pub inputs: usize,
    /// Output channels.
    pub out: usize,
    /// Groups of the one kernel that computes the same; 0 for a block without channels.
    pub groups: usize,
    /// Whether the leaves decide the groups, or any number would give the same kernel.
    pub groups_known: bool,
    /// `[kh, kw]` of the one kernel that computes the same.
    pub extent: [usize; 2],
    /// The number of dimensions of the stored weight: 2 (Linear), 3 (Conv1d) or 4.
    pub rank: usize,
    /// Whether the weight is stored as that of a transposed conv.
    pub transposed: bool,
}

/// An expression whose shapes fit, with the groups of every conv filled in.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    expr: Expr<T>,
    geometry: Geometry,
}

impl<T> Resolved<T> {
    /// The expression; every conv in it has its groups.
    pub fn expr(&self) -> &Expr<T> {
        &self.expr
    }

    /// What it maps to what.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
}

impl<T: Operand> Resolved<T> {
    /// The same expression over `inputs` channels, where nothing in the block says how many there are: a
    /// plain depthwise conv looks like one with a single input channel until a network shows what it is applied to.
    ///
    /// # Errors
    /// When the block says otherwise, or its convs do not take that many channels.
    pub fn for_inputs(&self, inputs: usize) -> Result<Resolved<T>, GeometryError> {
        let expr = match self.geometry.groups_known {
            true => self.expr.clone(),
            false => with_groups(without_groups(self.expr.clone()), inputs)?,
        };
        let op = walk(&expr, inputs)?;
        let geometry = Geometry {
            inputs,
            groups: op.groups,
            groups_known: true,
            ..self.geometry
        };
        Ok(Resolved { expr, geometry })
    }
}

fn without_groups<T>(expr: Expr<T>) -> Expr<T> {
    match expr {
        Expr::Conv(c) => Expr::Conv(Conv { groups: None, ..c }),
        Expr::Seq(xs) => Expr::Seq(xs.into_iter().map(without_groups).collect()),
        Expr::Sum(xs) => Expr::Sum(xs.into_iter().map(without_groups).collect()),
        leaf => leaf,
    }
}

impl Geometry {
    /// Input channels that one output channel sees: the second number of a weight's shape.
    pub fn in_per_group(&self) -> usize {
        self.inputs / self.groups.max(1)
    }

    /// The first input channel that output channel `o` sees.
    pub fn first_input(&self, o: usize) -> usize {
        first_input(o, self.out, self.groups, self.in_per_group())
    }

    /// Elements of one output channel's kernel.
    pub fn row_len(&self) -> usize {
        self.in_per_group() * self.extent[0] * self.extent[1]
    }

    /// The shape in which the fused weight is stored.
    pub fn weight_shape(&self) -> Vec<usize> {
        let [kh, kw] = self.extent;
        let (first, second) = match self.transposed {
            true => (self.inputs, self.out / self.groups.max(1)),
            false => (self.out, self.in_per_group()),
        };
        match self.rank {
            2 => vec![first, second],
            3 => vec![first, second, kw],
            _ => vec![first, second, kh, kw],
        }
    }
}

/// The first input channel that output channel `o` of a conv with these numbers sees.
pub fn first_input(o: usize, out: usize, groups: usize, in_per_group: usize) -> usize {
    match out / groups.max(1) {
        0 => 0,
        out_per_group => o / out_per_group * in_per_group,
    }
}

/// A stored weight shape as `[out, in/groups, kh, kw]` (transposed: `[in, out/groups, kh, kw]`).
pub fn four_dims(shape: &[usize]) -> Option<[usize; 4]> {
    match *shape {
        [o, i] => Some([o, i, 1, 1]),
        [o, i, k] => Some([o, i, 1, k]),
        [o, i, kh, kw] => Some([o, i, kh, kw]),
        _ => None,
    }
}

/// The extent of a kernel whose taps lie `dilation` apart, or `None` if it overflows.
pub fn dilated(kernel: [usize; 2], dilation: [usize; 2]) -> Option<[usize; 2]> {
    let along = |k: usize, d: usize| k.checked_sub(1)?.checked_mul(d)?.checked_add(1);
    Some([
        along(kernel[0], dilation[0])?,
        along(kernel[1], dilation[1])?,
    ])
}

/// Why the shapes of an expression do not fit. Leaves are named by their labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum GeometryError {
    #[error(
        "{leaf} has shape {shape:?}; expected a conv weight with 2, 3 or 4 dimensions and no zero"
    )]
    NotAWeight { leaf: String, shape: Vec<usize> },
    #[error("{leaf} has {found} values; expected {expected}, one per channel")]
    Length {
        leaf: String,
        found: usize,
        expected: usize,
    },
    #[error(
        "{leaf} has shape {shape:?}: {per_group} input channels per group do not divide the {inputs} channels {source_of_inputs}"
    )]
    Inputs {
        leaf: String,
        shape: Vec<usize>,
        per_group: usize,
        inputs: usize,
        source_of_inputs: String,
    },
    #[error(
        "{leaf} has shape {shape:?}: its {out} output channels do not divide into {groups} groups"
    )]
    Groups {
        leaf: String,
        shape: Vec<usize>,
        out: usize,
        groups: usize,
    },
    #[error("{leaf} has shape {shape:?}, so {found} groups; the recipe declares {declared}")]
    Declared {
        leaf: String,
        shape: Vec<usize>,
        found: usize,
        declared: usize,
    },
    #[error(
        "{left} gives {left_out} channels and {right} gives {right_out}; branches that are added need the same number"
    )]
    Outputs {
        left: String,
        left_out: usize,
        right: String,
        right_out: usize,
    },
    #[error(
        "{left} has {left_in} input channels per group and {right} has {right_in}; branches that are added need the same number"
    )]
    Widths {
        left: String,
        left_in: usize,
        right: String,
        right_in: usize,
    },
    #[error(
        "{left} covers {left_extent:?} taps and {right} covers {right_extent:?}: they have no common centre; each axis needs both odd or both even"
    )]
    Centre {
        left: String,
        left_extent: [usize; 2],
        right: String,
        right_extent: [usize; 2],
    },
    #[error(
        "{leaf} has shape {shape:?}: an identity needs as many output as input channels, and this conv gives {out} from {inputs}"
    )]
    Identity {
        leaf: String,
        shape: Vec<usize>,
        out: usize,
        inputs: usize,
    },
    #[error(
        "{leaf} has shape {shape:?}, and nothing in the block says how many groups it has; declare it with `\"groups\"` in the recipe"
    )]
    Ambiguous { leaf: String, shape: Vec<usize> },
    #[error("a block needs at least one conv; this one has none")]
    NoConv,
    #[error(
        "{leaf} is the weight of a transposed conv, which can only be followed by batch norms, scales and shifts"
    )]
    Transposed { leaf: String },
    #[error("an empty sequence or sum")]
    Empty,
    #[error("its dilations and means cover more than this machine can address")]
    TooLarge,
    #[error(
        "one kernel for it would be {kernel:?}, far more than the {stored} numbers of its tensors; a dilation or a mean is too wide"
    )]
    Spread { kernel: [usize; 4], stored: usize },
    #[error("its sums multiply out to {found} products; at most {most} are folded")]
    Products { found: usize, most: usize },
}

use GeometryError as E;

/// Checks every shape of `expr` and fills in the groups of its convs.
///
/// # Errors
/// Names the leaf that does not fit, what was found and what was expected.
pub fn resolve<T: Operand>(expr: Expr<T>) -> Result<Resolved<T>, GeometryError> {
    check_weights(&expr)?;
    let Some(first) = expr.convs().first().map(|c| (*c).clone()) else {
        return Err(E::NoConv);
    };
    let (inputs, op, groups_known) = match inputs_of(&expr)? {
        Some(inputs) => {
            let op = walk(&expr, inputs).map_err(|e| name_source(e, &expr))?;
            (inputs, op, true)
        }
        None => {
            let (inputs, op) = any_inputs(&expr, &first)?;
            (inputs, op, false)
        }
    };
    let rank = expr
        .convs()
        .iter()
        .map(|c| c.weight.shape().len())
        .max()
        .unwrap_or(4);
    let geometry = Geometry {
        inputs,
        out: op.out,
        groups: op.groups,
        groups_known,
        extent: op.extent,
        rank,
        transposed: first.transposed,
    };
    size::check(&expr, inputs)?;
    let expr = with_groups(expr, inputs)?;
    Ok(Resolved { expr, geometry })
}

/// Output channels of a part of a resolved tree.
pub(super) fn outputs<T: Operand>(part: &Expr<T>, inputs: usize) -> usize {
    walk(part, inputs).map_or(0, |op| op.out)
}

/// What a part of a resolved tree maps, behind what is already folded. A part needs no conv.
pub(super) fn of_part<T: Operand>(
    part: &Expr<T>,
    inputs: usize,
    after: Option<&Geometry>,
) -> Geometry {
    let whole = walk(part, inputs).ok().and_then(|op| match after {
        Some(g) => {
            let first = Op {
                out: g.out,
                groups: g.groups,
                in_per_group: g.in_per_group(),
                extent: g.extent,
                channelwise: false,
                declared: true,
            };
            compose(g.inputs, first, op)
        }
        None => Some(op),
    });
    let (out, groups, extent) = whole.map_or((0, 0, [1, 1]), |op| (op.out, op.groups, op.extent));
    let inputs = after.map_or(inputs, |g| g.inputs);
    Geometry {
        inputs,
        out,
        groups,
        groups_known: true,
        extent,
        rank: 4,
        transposed: false,
    }
}

/// Whether a bare identity could stand beside these branches: they keep the number of channels.
///
/// This is the rule behind a recipe's `{"optional": "identity"}`. A conv `[out, 1, kh, kw]` counts as
/// depthwise, any other as dense unless a batch norm on the input or the recipe says otherwise.
pub fn keeps_width<T: Operand>(branches: &[Expr<T>]) -> bool {
    let mut with_identity = branches.to_vec();
    with_identity.push(Expr::Identity);
    resolve(Expr::Sum(with_identity)).is_ok()
}

/// What one subtree maps, given its number of input channels.
#[derive(Clone)]
pub(super) struct Op {
    pub(super) out: usize,
    groups: usize,
    pub(super) in_per_group: usize,
    pub(super) extent: [usize; 2],
    /// Made of diagonal maps only, so that it fits beside any kernel.
    channelwise: bool,
    /// The recipe declares the groups, so that a narrower kernel beside it is meant.
    declared: bool,
}

impl Op {
    pub(super) fn channelwise(inputs: usize, extent: [usize; 2]) -> Op {
        Op {
            out: inputs,
            groups: inputs,
            in_per_group: 1,
            extent,
            channelwise: true,
            declared: false,
        }
    }
}

fn check_weights<T: Operand>(expr: &Expr<T>) -> Result<(), GeometryError> {
    let convs = expr.convs();
    for conv in &convs {
        let shape = conv.weight.shape();
        if four_dims(shape).is_none_or(|dims| dims.contains(&0)) {
            return Err(E::NotAWeight {
                leaf: conv.weight.to_string(),
                shape: shape.to_vec(),
            });
        }
    }
    match convs.iter().find(|c| c.transposed) {
        Some(conv) if !transposed_alone(expr) => Err(E::Transposed {
            leaf: conv.weight.to_string(),
        }),
        _ => Ok(()),
    }
}

/// A transposed conv may head a sequence of diagonal maps, and be summed with its like.
fn transposed_alone<T>(expr: &Expr<T>) -> bool {
    match expr {
        Expr::Conv(conv) => conv.transposed && conv.dilation == [1, 1],
        Expr::Seq(xs) => match xs.split_first() {
            Some((first, rest)) => {
                transposed_alone(first)
                    && rest.iter().all(|x| {
                        matches!(
                            x,
                            Expr::Bn(_) | Expr::Scale(_) | Expr::Shift(_) | Expr::Identity
                        )
                    })
            }
            None => false,
        },
        Expr::Sum(xs) => !xs.is_empty() && xs.iter().all(transposed_alone),
        _ => false,
    }
}

/// The number of input channels, where a leaf on the block's input or a bare identity tells it.
fn inputs_of<T: Operand>(expr: &Expr<T>) -> Result<Option<usize>, GeometryError> {
    if let Some((inputs, _)) = told_inputs(expr) {
        return Ok(Some(inputs));
    }
    match passes_input(expr) {
        Some(out) => {
            // Nothing but a bare identity says how wide the input is. A conv whose own input is
            // narrower than its output is then depthwise, or grouped like a conv further in, or
            // does not belong beside an identity.
            let mut inner = None;
            for conv in heads(expr) {
                let [_, per_group, ..] = dims(conv);
                let declared = conv.groups.is_some() || per_group == out || per_group == 1;
                if !declared
                    && !inner
                        .get_or_insert_with(|| inner_groups(expr, out))
                        .contains(&(out / per_group))
                {
                    let (leaf, shape) = (conv.weight.to_string(), conv.weight.shape().to_vec());
                    return Err(E::Identity {
                        leaf,
                        shape,
                        out,
                        inputs: per_group,
                    });
                }
            }
            Ok(Some(out))
        }
        None => Ok(None),
    }
}

/// Names the leaf that tells the width of the input, where a conv at the head does not take that many channels.
fn name_source<T: Operand>(error: GeometryError, expr: &Expr<T>) -> GeometryError {
    match (error, told_inputs(expr)) {
        (
            E::Inputs {
                leaf,
                shape,
                per_group,
                inputs,
                ..
            },
            Some((told, by)),
        ) if told == inputs => E::Inputs {
            leaf,
            shape,
            per_group,
            inputs,
            source_of_inputs: format!("of {by}"),
        },
        (error, _) => error,
    }
}

/// The groups of the convs that are not applied to the block's input itself.
fn inner_groups<T: Operand>(expr: &Expr<T>, inputs: usize) -> HashSet<usize> {
    let Ok(expr) = with_groups(expr.clone(), inputs) else {
        return HashSet::new();
    };
    let heads: HashSet<_> = heads(&expr).into_iter().map(std::ptr::from_ref).collect();
    let inner = |conv: &&Conv<T>| !heads.contains(&std::ptr::from_ref(*conv));
    let convs = expr.convs().into_iter().filter(inner);
    convs.filter_map(|conv| conv.groups).collect()
}

/// What a batch norm, a vector or declared groups at the head of the expression say, and the leaf that says it.
fn told_inputs<T: Operand>(expr: &Expr<T>) -> Option<(usize, &T)> {
    match expr {
        Expr::Conv(c) if c.transposed => Some((*c.weight.shape().first()?, &c.weight)),
        Expr::Conv(c) => Some((dims(c)[1].checked_mul(c.groups?)?, &c.weight)),
        Expr::Bn(b) => Some((b.var.len(), &b.var)),
        Expr::Scale(Factor::Tensor(v)) if v.len() > 1 => Some((v.len(), &v.tensor)),
        Expr::Shift(t) if t.len() > 1 => Some((t.len(), t)),
        Expr::Scale(_) | Expr::Shift(_) | Expr::Mean(_) | Expr::Identity => None,
        Expr::Sum(xs) => xs.iter().find_map(told_inputs),
        // (Each part is asked once: nested sequences would double the work at every level.)
        Expr::Seq(xs) => xs
            .iter()
            .map(|x| (told_inputs(x), x))
            .find(|(told, x)| told.is_some() || x.mixes_channels())
            .and_then(|(told, _)| told),
    }
}

/// If a path with no parameter leads from input to output of some sum at the head: that sum's width.
fn passes_input<T: Operand>(expr: &Expr<T>) -> Option<usize> {
    match expr {
        Expr::Sum(xs) => {
            let direct = xs
                .iter()
                .any(|x| !x.mixes_channels())
                .then(|| xs.iter().find_map(out_of))
                .flatten();
            direct.or_else(|| xs.iter().find_map(passes_input))
        }
        Expr::Seq(xs) => xs
            .iter()
            .find(|x| x.mixes_channels())
            .and_then(passes_input),
        _ => None,
    }
}

/// Output channels, from the last leaf that tells them.
fn out_of<T: Operand>(expr: &Expr<T>) -> Option<usize> {
    match expr {
        Expr::Conv(c) => Some(dims(c)[0]),
        Expr::Sum(xs) => xs.iter().find_map(out_of),
        Expr::Seq(xs) => xs.iter().rev().find_map(out_of),
        _ => None,
    }
}

/// The convs that are applied to the block's input itself, possibly behind diagonal maps.
fn heads<T>(expr: &Expr<T>) -> Vec<&Conv<T>> {
    match expr {
        Expr::Conv(c) => vec![c],
        Expr::Sum(xs) => xs.iter().flat_map(heads).collect(),
        Expr::Seq(xs) => xs
            .iter()
            .find(|x| x.mixes_channels())
            .map(heads)
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Nothing tells the number of input channels: try every one that fits the first conv.
fn any_inputs<T: Operand>(expr: &Expr<T>, first: &Conv<T>) -> Result<(usize, Op), GeometryError> {
    let [out, per_group, ..] = dims(first);
    let mut found: Option<(usize, Op)> = None;
    for groups in divisors(out) {
        let Some(inputs) = per_group.checked_mul(groups) else {
            continue;
        };
        match (walk(expr, inputs), &found) {
            (Ok(op), None) => found = Some((inputs, op)),
            (Ok(op), Some((_, other))) if op.in_per_group != other.in_per_group => {
                let (leaf, shape) = (first.weight.to_string(), first.weight.shape().to_vec());
                return Err(E::Ambiguous { leaf, shape });
            }
            _ => {}
        }
    }
    match found {
        Some(found) => Ok(found),
        None => walk(expr, per_group).map(|op| (per_group, op)),
    }
}

fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let low = (1..)
        .take_while(move |d| d * d <= n)
        .filter(move |d| n.is_multiple_of(*d));
    let high = low.clone().map(move |d| n / d).collect::<Vec<_>>();
    low.chain(high.into_iter().rev())
}

pub(super) fn walk<T: Operand>(expr: &Expr<T>, inputs: usize) -> Result<Op, GeometryError> {
    let channelwise = |extent| Op::channelwise(inputs, extent);
    match expr {
        Expr::Conv(c) => walk_conv(c, inputs),
        Expr::Bn(b) => {
            for leaf in b.affine.iter().flatten().chain([&b.mean, &b.var]) {
                check_len(leaf, inputs)?;
            }
            Ok(channelwise([1, 1]))
        }
        Expr::Scale(Factor::Tensor(v)) => match v.len() {
            found if found == inputs || found == 1 => Ok(channelwise([1, 1])),
            found => Err(E::Length {
                leaf: v.tensor.to_string(),
                found,
                expected: inputs,
            }),
        },
        Expr::Shift(t) => {
            if t.len() != 1 {
                check_len(t, inputs)?;
            }
            Ok(channelwise([1, 1]))
        }
        Expr::Mean(k) => Ok(channelwise(*k)),
        Expr::Scale(Factor::Number(_)) | Expr::Identity => Ok(channelwise([1, 1])),
        Expr::Seq(xs) => {
            let mut op = channelwise([1, 1]);
            for x in xs {
                let next = walk(x, op.out)?;
                op = compose(inputs, op, next).ok_or(E::TooLarge)?;
            }
            if xs.is_empty() { Err(E::Empty) } else { Ok(op) }
        }
        Expr::Sum(xs) => walk_sum(xs, inputs),
    }
}

fn walk_conv<T: Operand>(conv: &Conv<T>, inputs: usize) -> Result<Op, GeometryError> {
    let (leaf, shape) = (conv.weight.to_string(), conv.weight.shape().to_vec());
    let [first, second, kh, kw] = dims(conv);
    let (out, groups, in_per_group) = if conv.transposed {
        // `[in, out/groups]`: a bias or a norm behind the conv tells the groups; until then it is
        // dense, and a vector of another length is reported as such.
        let groups = conv
            .groups
            .or_else(|| conv.bias.as_ref().map(|b| b.len() / second))
            .unwrap_or(1);
        if groups == 0 || first % groups != 0 {
            return Err(E::Groups {
                leaf,
                shape,
                out: first,
                groups,
            });
        }
        (second * groups, groups, first / groups)
    } else {
        if !inputs.is_multiple_of(second) {
            return Err(E::Inputs {
                leaf,
                shape,
                per_group: second,
                inputs,
                source_of_inputs: "it is applied to".to_owned(),
            });
        }
        (first, inputs / second, second)
    };
    if let Some(declared) = conv.groups.filter(|&declared| declared != groups) {
        return Err(E::Declared {
            leaf,
            shape,
            found: groups,
            declared,
        });
    }
    if groups == 0 || out % groups != 0 {
        return Err(E::Groups {
            leaf,
            shape,
            out,
            groups,
        });
    }
    if let Some(bias) = &conv.bias {
        check_len(bias, out)?;
    }
    let extent = dilated([kh, kw], conv.dilation).ok_or(E::TooLarge)?;
    Ok(Op {
        out,
        groups,
        in_per_group,
        extent,
        channelwise: false,
        declared: conv.groups.is_some(),
    })
}

pub(super) fn compose(inputs: usize, first: Op, then: Op) -> Option<Op> {
    // Both partitions of the channels in between refine the one into gcd(g1, g2) parts.
    let groups = gcd(first.groups, then.groups);
    let extent = [
        first.extent[0].checked_add(then.extent[0] - 1)?,
        first.extent[1].checked_add(then.extent[1] - 1)?,
    ];
    Some(Op {
        out: then.out,
        groups,
        in_per_group: inputs / groups.max(1),
        extent,
        channelwise: first.channelwise && then.channelwise,
        declared: first.declared || then.declared,
    })
}

fn walk_sum<T: Operand>(xs: &[Expr<T>], inputs: usize) -> Result<Op, GeometryError> {
    let ops = xs
        .iter()
        .map(|x| walk(x, inputs))
        .collect::<Result<Vec<_>, _>>()?;
    let widest = ops
        .iter()
        .enumerate()
        .max_by_key(|(i, op)| (!op.channelwise, op.in_per_group, usize::MAX - i));
    let Some((w, wide)) = widest else {
        return Err(E::Empty);
    };
    let mut extent = wide.extent;
    for (x, op) in xs.iter().zip(&ops) {
        if op.out != wide.out {
            let (left, right) = (label(&xs[w]), label(x));
            return Err(E::Outputs {
                left,
                left_out: wide.out,
                right,
                right_out: op.out,
            });
        }
        if op.in_per_group != wide.in_per_group && !op.channelwise && !op.declared {
            let (left, right) = (label(&xs[w]), label(x));
            return Err(E::Widths {
                left,
                left_in: wide.in_per_group,
                right,
                right_in: op.in_per_group,
            });
        }
        if (0..2).any(|axis| op.extent[axis] % 2 != wide.extent[axis] % 2) {
            let (left, right) = (label(&xs[w]), label(x));
            return Err(E::Centre {
                left,
                left_extent: wide.extent,
                right,
                right_extent: op.extent,
            });
        }
        extent = [extent[0].max(op.extent[0]), extent[1].max(op.extent[1])];
    }
    Ok(Op {
        out: wide.out,
        groups: ops.iter().map(|op| op.groups).fold(0, gcd),
        in_per_group: wide.in_per_group,
        extent,
        channelwise: ops.iter().all(|op| op.channelwise),
        declared: ops.iter().any(|op| op.declared),
    })
}

/// The tree with the groups of every conv filled in; the shapes are known to fit.
fn with_groups<T: Operand>(expr: Expr<T>, inputs: usize) -> Result<Expr<T>, GeometryError> {
    Ok(match expr {
        Expr::Conv(c) => {
            let groups = walk_conv(&c, inputs)?.groups;
            Expr::Conv(Conv {
                groups: Some(groups),
                ..c
            })
        }
        Expr::Seq(xs) => {
            let (mut width, mut out) = (inputs, Vec::with_capacity(xs.len()));
            for x in xs {
                let next = walk(&x, width)?.out;
                out.push(with_groups(x, width)?);
                width = next;
            }
            Expr::Seq(out)
        }
        Expr::Sum(xs) => Expr::Sum(
            xs.into_iter()
                .map(|x| with_groups(x, inputs))
                .collect::<Result<_, _>>()?,
        ),
        leaf => leaf,
    })
}

fn check_len<T: Operand>(leaf: &T, expected: usize) -> Result<(), GeometryError> {
    match leaf.len() {
        found if found == expected => Ok(()),
        found => Err(E::Length {
            leaf: leaf.to_string(),
            found,
            expected,
        }),
    }
}

/// Checked by [`check_weights`] before any other function runs.
fn dims<T: Operand>(conv: &Conv<T>) -> [usize; 4] {
    four_dims(conv.weight.shape()).unwrap_or([1; 4])
}

/// How an error names a branch: by its first conv weight, else by its first leaf.
fn label<T: Operand>(expr: &Expr<T>) -> String {
    match (expr.convs().first(), expr.leaves().first(), expr) {
        (Some(conv), ..) => format!("{} {:?}", conv.weight, conv.weight.shape()),
        (None, Some(leaf), _) => leaf.to_string(),
        (None, None, Expr::Mean(_)) => "the average pooling".to_owned(),
        _ => "the identity".to_owned(),
    }
}

/// The greatest common divisor; `gcd(0, n) = n`.
pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The extent of operators applied one after the other, in a tree that is known to fit.
pub(super) fn extent_of<T: Operand>(seq: &[Expr<T>]) -> [usize; 2] {
    seq.iter()
        .map(extent)
        .fold([1, 1], |a, b| [a[0] + b[0] - 1, a[1] + b[1] - 1])
}

fn extent<T: Operand>(expr: &Expr<T>) -> [usize; 2] {
    match expr {
        Expr::Conv(c) => {
            let [_, _, kh, kw] = dims(c);
            dilated([kh, kw], c.dilation).unwrap_or([kh, kw])
        }
        Expr::Mean(k) => *k,
        Expr::Seq(xs) => extent_of(xs),
        Expr::Sum(xs) => xs
            .iter()
            .map(extent)
            .fold([1, 1], |a, b| [a[0].max(b[0]), a[1].max(b[1])]),
        _ => [1, 1],
    }
}
