//! Shapes from leaf to root: what a tree maps, once the width of its input is known.

use super::GeometryError as E;
use super::{GeometryError, dilated, dims};
use crate::algebra::expr::{Conv, Expr, Factor, Operand};

/// What one subtree maps, given its number of input channels.
#[derive(Clone)]
pub(in crate::algebra) struct Op {
    pub(in crate::algebra) out: usize,
    pub(super) groups: usize,
    pub(in crate::algebra) in_per_group: usize,
    pub(in crate::algebra) extent: [usize; 2],
    /// Made of diagonal maps only, so that it fits beside any kernel.
    pub(super) channelwise: bool,
    /// The recipe declares the groups, so that a narrower kernel beside it is meant.
    pub(super) declared: bool,
}

impl Op {
    pub(in crate::algebra) fn channelwise(inputs: usize, extent: [usize; 2]) -> Op {
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

pub(in crate::algebra) fn walk<T: Operand>(
    expr: &Expr<T>,
    inputs: usize,
) -> Result<Op, GeometryError> {
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

pub(super) fn walk_conv<T: Operand>(conv: &Conv<T>, inputs: usize) -> Result<Op, GeometryError> {
    let (leaf, shape) = (conv.weight.to_string(), conv.weight.shape().to_vec());
    let [first, second, kh, kw] = dims(conv);
    let (out, groups, in_per_group) = if conv.shared {
        (inputs, inputs, 1)
    } else if conv.transposed {
        // `[in, out/groups]`: the recipe or a bias tells the groups. Without either it is dense, and a norm of another length is
        // reported as such.
        if first != inputs {
            return Err(E::TransposedInputs {
                leaf,
                shape,
                inputs,
            });
        }
        let told_by_bias = |b: &T| b.len().is_multiple_of(second).then_some(b.len() / second);
        let groups = conv
            .groups
            .or_else(|| conv.bias.as_ref().and_then(told_by_bias))
            .unwrap_or(1);
        if groups == 0 || first % groups != 0 {
            return Err(E::TransposedGroups {
                leaf,
                shape,
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
        declared: conv.groups.is_some() || conv.shared,
    })
}

pub(in crate::algebra) fn compose(inputs: usize, first: Op, then: Op) -> Option<Op> {
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
