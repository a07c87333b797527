//! Shapes: what an expression maps to what, decided from the shapes of its leaves alone.
//!
//! A weight file stores `[out, in/groups, kh, kw]` but neither `in` nor `groups`. The number of input
//! channels follows from a batch norm on the block's input, else from a bare identity (in = out), else
//! any value that fits gives the same kernel, or the expression is refused as ambiguous.

mod error;
mod inputs;
mod size;
pub mod transposed;
mod walk;

use super::expr::{Conv, Expr, Operand};
use inputs::{any_inputs, inputs_of, name_source};
use walk::walk_conv;

use GeometryError as E;
pub use error::GeometryError;
pub use walk::gcd;
pub(super) use walk::{Op, compose, walk};

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
    /// Where the groups are a guess: the expression with those that the recipe declares, and no others.
    declared: Option<Expr<T>>,
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
        let expr = match &self.declared {
            Some(declared) if inputs != self.geometry.inputs => {
                with_groups(declared.clone(), inputs)?
            }
            _ => self.expr.clone(),
        };
        // With their groups filled in, all convs would pass for declared, and any width for meant.
        let op = walk(self.declared.as_ref().unwrap_or(&expr), inputs)?;
        let geometry = Geometry {
            inputs,
            groups: op.groups,
            groups_known: true,
            ..self.geometry
        };
        Ok(Resolved {
            expr,
            geometry,
            declared: None,
        })
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

/// Checks every shape of `expr` and fills in the groups of its convs.
///
/// # Errors
/// Names the leaf that does not fit, what was found and what was expected.
pub fn resolve<T: Operand>(expr: Expr<T>) -> Result<Resolved<T>, GeometryError> {
    check_weights(&expr)?;
    let convs = expr.convs();
    let with_widths = convs.iter().find(|c| !c.shared).or(convs.first());
    let Some(first) = with_widths.map(|c| (*c).clone()) else {
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
    // As its widest weight is stored, but an average pooling may need an axis that no weight has.
    let stored = convs.iter().map(|c| c.weight.shape().len()).max();
    let rank = stored.unwrap_or(4).max(match op.extent {
        [1, 1] => 2,
        [1, _] => 3,
        _ => 4,
    });
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
    let declared = (!groups_known).then(|| expr.clone());
    let expr = with_groups(expr, inputs)?;
    Ok(Resolved {
        expr,
        geometry,
        declared,
    })
}

/// More convs one behind another than this are folded by nobody, and each is folded into all that stand before it.
const MOST_IN_A_ROW: usize = 64;

fn in_a_row<T>(expr: &Expr<T>) -> usize {
    match expr {
        Expr::Conv(_) => 1,
        Expr::Seq(xs) => xs.iter().map(in_a_row).sum(),
        Expr::Sum(xs) => xs.iter().map(in_a_row).max().unwrap_or(0),
        _ => 0,
    }
}

fn check_weights<T: Operand>(expr: &Expr<T>) -> Result<(), GeometryError> {
    let (found, most) = (in_a_row(expr), MOST_IN_A_ROW);
    if found > most {
        return Err(E::InARow { found, most });
    }
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
        Expr::Conv(conv) => {
            conv.transposed && conv.dilation == [1, 1] && !conv.flipped && !conv.shared
        }
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

/// Whether a bare identity could stand beside these branches: they keep the number of channels.
///
/// This is the rule behind a recipe's `{"optional": "identity"}`. A conv `[out, 1, kh, kw]` counts as
/// depthwise, any other as dense unless a batch norm on the input or the recipe says otherwise.
pub fn keeps_width<T: Operand>(branches: &[Expr<T>]) -> bool {
    let mut with_identity = branches.to_vec();
    with_identity.push(Expr::Identity);
    resolve(Expr::Sum(with_identity)).is_ok()
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

/// The extent of operators applied one after the other, in a tree that is known to fit.
pub(crate) fn extent_of<T: Operand>(seq: &[Expr<T>]) -> [usize; 2] {
    seq.iter()
        .map(extent)
        .fold([1, 1], |a, b| [a[0] + b[0] - 1, a[1] + b[1] - 1])
}

/// The extent of one operator, in a tree that is known to fit.
pub(crate) fn extent<T: Operand>(expr: &Expr<T>) -> [usize; 2] {
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

/// The output channels of a conv whose groups are known, and the input channels that each of them sees.
pub(super) fn channels<T: Operand>(conv: &Conv<T>) -> [usize; 2] {
    let ([first, second, ..], groups) = (dims(conv), conv.groups.unwrap_or(1));
    if conv.shared {
        [groups, 1]
    } else if conv.transposed {
        [second * groups, first / groups]
    } else {
        [first, second]
    }
}

/// Checked by [`check_weights`] before any other function runs.
fn dims<T: Operand>(conv: &Conv<T>) -> [usize; 4] {
    four_dims(conv.weight.shape()).unwrap_or([1; 4])
}
