//! Shapes from leaf to root: what every part of a tree maps, once the width of its input is known.

use super::GeometryError as E;
use super::geometry::{Geometry, gcd};
use super::{GeometryError, axes_of};
use crate::algebra::expr::{Bn, Channels, Conv, Expr, Factor, Operand};
use crate::algebra::extent::{Extent, dilated, larger};
use crate::algebra::part::{Kernel, Layout, Op, Part};

/// Checks a tree over `inputs` channels and says of every part what it maps.
///
/// # Errors
/// Names the leaf that does not fit.
pub(super) fn annotate<T: Operand>(
    expr: &Expr<T>,
    inputs: usize,
) -> Result<Part<T>, GeometryError> {
    annotated(expr, inputs, true)
}

/// The same where the number of channels is a guess: the groups of convs on the input are then not known, unless they are declared.
pub(super) fn annotate_a_guess<T: Operand>(
    expr: &Expr<T>,
    inputs: usize,
) -> Result<Part<T>, GeometryError> {
    annotated(expr, inputs, false)
}

fn annotated<T: Operand>(
    expr: &Expr<T>,
    inputs: usize,
    known: bool,
) -> Result<Part<T>, GeometryError> {
    if inputs == 0 {
        return Err(E::Empty);
    }
    let all = |xs: &[Expr<T>]| match xs {
        [] => Err(E::Empty),
        _ => xs.iter().map(|x| annotated(x, inputs, known)).collect(),
    };
    let op = match expr {
        Expr::Conv(c) => return conv(c, inputs, known),
        Expr::Sum(xs) => return sum(xs, all(xs)?),
        Expr::Stack(xs) => return stack(all(xs)?),
        Expr::Select(channels) => return select(channels, inputs),
        Expr::Seq(xs) => return sequence(xs, inputs, known),
        Expr::Bn(norm) => {
            let Bn {
                mean, var, affine, ..
            } = norm;
            for leaf in affine.iter().flatten().chain([mean, var]) {
                check_len(leaf, inputs)?;
            }
            Op::Bn(norm.clone())
        }
        Expr::Scale(factor) => {
            if let Factor::Tensor(v) = factor
                && v.len() != inputs
                && v.len() != 1
            {
                return Err(wrong_len(&v.tensor, v.len(), inputs));
            }
            Op::Scale(factor.clone())
        }
        Expr::Shift(t) => {
            if t.len() != 1 {
                check_len(t, inputs)?;
            }
            Op::Shift(t.clone())
        }
        Expr::AvgPool(window) if window.contains(&0) => return Err(E::Window(*window)),
        Expr::AvgPool(window) => Op::AvgPool(*window),
        Expr::Crop(margins) => Op::Crop(*margins),
        Expr::Identity => Op::Identity,
    };
    Ok(Part::new(Geometry::channelwise(inputs, &op), op))
}

/// Each step over the channels that the one before it gives.
fn sequence<T: Operand>(
    xs: &[Expr<T>],
    inputs: usize,
    mut known: bool,
) -> Result<Part<T>, GeometryError> {
    let (mut width, mut parts) = (inputs, Vec::with_capacity(xs.len()));
    for x in xs {
        let part = annotated(x, width, known)?;
        width = part.geometry().out();
        // A conv says how many channels it gives.
        known |= part.has_conv();
        parts.push(part);
    }
    match parts.is_empty() {
        true => Err(E::Empty),
        false => Ok(Part::seq(parts, inputs)),
    }
}

fn conv<T: Operand>(conv: &Conv<T>, inputs: usize, known: bool) -> Result<Part<T>, GeometryError> {
    let leaf = || conv.weight.to_string();
    let shape = || conv.weight.shape().to_vec();
    let ([first, second], taps) = axes_of(conv)?;
    let (layout, out, groups) = if conv.shared {
        (Layout::Shared, inputs, inputs)
    } else if conv.transposed {
        if first != inputs {
            return Err(E::TransposedInputs {
                leaf: leaf(),
                shape: shape(),
                inputs,
            });
        }
        // `[in, out/groups]`: where nothing tells the groups it is dense, and a norm of another length is reported as such.
        let groups = conv.groups.unwrap_or(1);
        if groups == 0 || first % groups != 0 {
            return Err(E::TransposedGroups {
                leaf: leaf(),
                shape: shape(),
                groups,
            });
        }
        (Layout::Transposed, second.saturating_mul(groups), groups)
    } else {
        if !inputs.is_multiple_of(second) {
            return Err(E::Inputs {
                leaf: leaf(),
                shape: shape(),
                per_group: second,
                inputs,
                source_of_inputs: "it is applied to".to_owned(),
            });
        }
        (Layout::Plain, first, inputs / second)
    };
    if let Some(declared) = conv.groups.filter(|&declared| declared != groups) {
        return Err(E::Declared {
            leaf: leaf(),
            shape: shape(),
            found: groups,
            declared,
        });
    }
    if out % groups != 0 {
        return Err(E::Groups {
            leaf: leaf(),
            shape: shape(),
            out,
            groups,
        });
    }
    if let Some(bias) = &conv.bias {
        check_len(bias, out)?;
    }
    if conv.dilation.contains(&0) {
        let dilation = conv.dilation;
        return Err(E::Dilation {
            leaf: leaf(),
            dilation,
        });
    }
    let geometry = Geometry {
        inputs,
        out,
        groups,
        groups_known: known || conv.groups.is_some() || conv.shared,
        extent: dilated(taps, conv.dilation),
        rank: conv.weight.shape().len(),
        transposed: conv.transposed,
    };
    let kernel = Kernel {
        weight: conv.weight.clone(),
        bias: conv.bias.clone(),
        taps,
        dilation: conv.dilation,
        flipped: conv.flipped,
        layout,
    };
    Ok(Part::new(geometry, Op::Conv(kernel)))
}

/// Branches that are added: `parts` are what the expressions `xs` have become.
fn sum<T: Operand>(xs: &[Expr<T>], parts: Vec<Part<T>>) -> Result<Part<T>, GeometryError> {
    let widest = parts.iter().enumerate().max_by_key(|(i, part)| {
        let per_group = part.geometry().in_per_group();
        (!part.is_channelwise(), per_group, usize::MAX - i)
    });
    let Some((_, wide)) = widest else {
        return Err(E::Empty);
    };
    let g = *wide.geometry();
    for (x, part) in xs.iter().zip(&parts) {
        let other = part.geometry();
        if other.out != g.out {
            let (left, right) = (label(wide), label(part));
            return Err(E::Outputs {
                left,
                left_out: g.out,
                right,
                right_out: other.out,
            });
        }
        let (left_in, right_in) = (g.in_per_group(), other.in_per_group());
        if left_in != right_in && !part.is_channelwise() && !is_declared(x) {
            let (left, right) = (label(wide), label(part));
            return Err(E::Widths {
                left,
                left_in,
                right,
                right_in,
            });
        }
    }
    let geometry = Geometry {
        groups: parts.iter().map(|p| p.geometry().groups).fold(0, gcd),
        ..beside_one_another(wide, &parts)?
    };
    Ok(Part::new(geometry, Op::Sum(parts)))
}

/// Whether somebody says how the channels of a part are grouped, so that a narrower kernel than those beside it is meant.
fn is_declared<T>(expr: &Expr<T>) -> bool {
    match expr {
        Expr::Conv(conv) => conv.groups.is_some() || conv.shared,
        Expr::Stack(_) | Expr::Select(_) => true,
        _ => expr.parts().iter().any(is_declared),
    }
}

/// The geometry of one part with the extent of all of them, which lie over a common centre.
fn beside_one_another<T: Operand>(
    wide: &Part<T>,
    parts: &[Part<T>],
) -> Result<Geometry, GeometryError> {
    let mut geometry = *wide.geometry();
    let left_extent = geometry.extent;
    for part in parts {
        let other = part.geometry();
        if (0..3).any(|axis| other.extent[axis] % 2 != left_extent[axis] % 2) {
            return Err(E::Centre {
                left: label(wide),
                left_extent: shown(left_extent, geometry.rank),
                right: label(part),
                right_extent: shown(other.extent, other.rank),
            });
        }
        geometry.extent = larger(geometry.extent, other.extent);
        geometry.rank = geometry.rank.max(other.rank);
        geometry.transposed |= other.transposed;
    }
    Ok(geometry)
}

/// An extent as an error shows it: the depth only where there is one.
fn shown(extent: Extent, rank: usize) -> Vec<usize> {
    let from = usize::from(extent[0] == 1 && rank < 5);
    extent[from..].to_vec()
}

/// Branches whose outputs are put one behind the other. Each of them sees all of the input, so that there are no groups.
fn stack<T: Operand>(parts: Vec<Part<T>>) -> Result<Part<T>, GeometryError> {
    let (first, more) = match &parts[..] {
        [] => return Err(E::Empty),
        [first, more @ ..] => (first, more),
    };
    let mut out = first.geometry().out;
    for part in more {
        out = out.checked_add(part.geometry().out).ok_or(E::TooLarge)?;
    }
    let groups = match more {
        [] => first.geometry().groups,
        _ => 1,
    };
    let geometry = Geometry {
        out,
        groups,
        ..beside_one_another(first, &parts)?
    };
    Ok(Part::new(geometry, Op::Stack(parts)))
}

fn select<T>(channels: &Channels, inputs: usize) -> Result<Part<T>, GeometryError> {
    let Channels { of, picked } = channels;
    if *of != inputs || picked.is_empty() || picked.iter().any(|channel| channel >= of) {
        return Err(E::Select {
            channels: picked.clone(),
            of: *of,
            inputs,
        });
    }
    let op = Op::Select(channels.clone());
    let geometry = Geometry {
        out: picked.len(),
        groups: 1,
        ..Geometry::channelwise(inputs, &op)
    };
    Ok(Part::new(geometry, op))
}

/// The divisors of a number, the smallest first.
pub(super) fn divisors(n: usize) -> impl Iterator<Item = usize> {
    let low = (1..)
        .take_while(move |d| d * d <= n)
        .filter(move |d| n.is_multiple_of(*d));
    let high = low.clone().map(move |d| n / d).collect::<Vec<_>>();
    low.chain(high.into_iter().rev())
}

fn check_len<T: Operand>(leaf: &T, expected: usize) -> Result<(), GeometryError> {
    match leaf.len() {
        found if found == expected => Ok(()),
        found => Err(wrong_len(leaf, found, expected)),
    }
}

fn wrong_len<T: Operand>(leaf: &T, found: usize, expected: usize) -> GeometryError {
    E::Length {
        leaf: leaf.to_string(),
        found,
        expected,
    }
}

/// How an error names a branch: by its first conv weight, else by its first leaf.
fn label<T: Operand>(part: &Part<T>) -> String {
    match (part.convs().first(), part.leaves().first(), part.op()) {
        (Some((conv, _)), ..) => format!("{} {:?}", conv.weight, conv.weight.shape()),
        (None, Some(leaf), _) => leaf.to_string(),
        (None, None, Op::AvgPool(_)) => "the average pooling".to_owned(),
        (None, None, Op::Crop(_)) => "the cropped input".to_owned(),
        (None, None, Op::Select(_)) => "the selection of channels".to_owned(),
        _ => "the identity".to_owned(),
    }
}
