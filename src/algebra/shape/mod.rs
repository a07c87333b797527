//! Shapes: what an expression maps to what, decided from the shapes of its leaves alone.
//!
//! A weight file stores `[out, in/groups, …]` but neither `in` nor `groups`. The number of input
//! channels follows from a batch norm on the block's input, else from a bare identity (in = out), else
//! any value that fits gives the same kernel, or the expression is refused as ambiguous.

mod annotate;
mod error;
mod geometry;
mod inputs;
mod size;

use super::expr::{Bn, Conv, Expr, Factor, Operand};
use super::extent::Extent;
use super::part::Part;
use annotate::{annotate, annotate_a_guess};
use inputs::{any_inputs, inputs_of, name_source};

use GeometryError as E;
pub use error::GeometryError;
pub use geometry::{Geometry, gcd};

/// An expression whose shapes fit.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    root: Part<T>,
    /// Where the groups are a guess: the expression with those that are declared, and no others.
    declared: Option<Expr<T>>,
}

impl<T> Resolved<T> {
    /// The whole tree.
    pub fn root(&self) -> &Part<T> {
        &self.root
    }

    /// What it maps to what.
    pub fn geometry(&self) -> &Geometry {
        self.root.geometry()
    }

    /// The same, stored with so many dimensions, or as many as its kernel needs: a Linear and a Conv1d of size 1 can be either.
    pub fn with_rank(mut self, rank: usize) -> Resolved<T> {
        self.root.set_rank(rank);
        self
    }
}

impl<T: Operand> Resolved<T> {
    /// The same expression over `inputs` channels, where nothing in the block says how many there are: a
    /// plain depthwise conv looks like one with a single input channel until a network shows what it is applied to.
    ///
    /// # Errors
    /// When the block says otherwise, or its convs do not take that many channels.
    pub fn for_inputs(&self, inputs: usize) -> Result<Resolved<T>, GeometryError> {
        let root = match &self.declared {
            Some(declared) => annotate(declared, inputs)?,
            None if inputs == self.geometry().inputs => self.root.clone(),
            None => annotate(&self.root.expr(), inputs)?,
        };
        let declared = None;
        Ok(Resolved { root, declared })
    }
}

/// Checks every shape of `expr` and says of every part what it maps.
///
/// # Errors
/// Names the leaf that does not fit, what was found and what was expected.
pub fn resolve<T: Operand>(expr: Expr<T>) -> Result<Resolved<T>, GeometryError> {
    let expr = checked(expr)?;
    match inputs_of(&expr)? {
        Some(inputs) => {
            let root = of_size(annotate(&expr, inputs).map_err(|e| name_source(e, &expr))?)?;
            let declared = None;
            Ok(Resolved { root, declared })
        }
        None => {
            let root = annotate_a_guess(&expr, any_inputs(&expr)?)?;
            let root = of_size(root)?.with_groups_guessed();
            let declared = Some(expr);
            Ok(Resolved { root, declared })
        }
    }
}

/// The same where the number of input channels is known.
///
/// # Errors
/// Names the leaf that does not fit, what was found and what was expected.
pub fn resolve_over<T: Operand>(
    expr: Expr<T>,
    inputs: usize,
) -> Result<Resolved<T>, GeometryError> {
    let root = of_size(annotate(&checked(expr)?, inputs)?)?;
    let declared = None;
    Ok(Resolved { root, declared })
}

/// Checks what needs no width: that there are convs, and that nothing but diagonal maps follows transposed ones.
fn checked<T: Operand>(expr: Expr<T>) -> Result<Expr<T>, GeometryError> {
    let (found, most) = (in_a_row(&expr), MOST_IN_A_ROW);
    if found > most {
        return Err(E::InARow { found, most });
    }
    let convs = expr.convs();
    convs
        .iter()
        .try_for_each(|conv| axes_of(conv).map(|_| ()))?;
    if let Some(conv) = convs.iter().find(|c| c.transposed)
        && !transposed_alone(&expr)
    {
        let leaf = conv.weight.to_string();
        return Err(E::Transposed { leaf });
    }
    if convs.is_empty() {
        return Err(E::NoConv);
    }
    with_transposed_groups(expr)
}

/// A tree that is not too large to be folded.
fn of_size<T: Operand>(root: Part<T>) -> Result<Part<T>, GeometryError> {
    if root.geometry().extent.contains(&usize::MAX) {
        return Err(E::TooLarge);
    }
    size::check(&root)?;
    Ok(root)
}

/// More convs one behind another than this are folded by nobody, and each is folded into all that stand before it.
const MOST_IN_A_ROW: usize = 64;

fn in_a_row<T>(expr: &Expr<T>) -> usize {
    match expr {
        Expr::Conv(_) => 1,
        Expr::Seq(xs) => xs.iter().map(in_a_row).sum(),
        _ => expr.parts().iter().map(in_a_row).fold(0, usize::max),
    }
}

/// A transposed conv may head a sequence of diagonal maps, and be summed with its like.
fn transposed_alone<T>(expr: &Expr<T>) -> bool {
    match expr {
        Expr::Conv(conv) => {
            conv.transposed && conv.dilation == [1; 3] && !conv.flipped && !conv.shared
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

/// The tree with the groups of its transposed convs, which have no place in their weights: a bias or a norm has as many values as
/// there are output channels. (Nothing but [such convs](transposed_alone) and diagonal maps behind them is in such a tree.)
fn with_transposed_groups<T: Operand>(mut expr: Expr<T>) -> Result<Expr<T>, GeometryError> {
    let mut out = None;
    expr.visit(&mut |node| {
        out = out.or(match node {
            Expr::Conv(Conv { bias: Some(t), .. }) | Expr::Bn(Bn { var: t, .. }) => Some(t.len()),
            Expr::Shift(t) if t.len() > 1 => Some(t.len()),
            Expr::Scale(Factor::Tensor(v)) if v.len() > 1 => Some(v.len()),
            _ => None,
        });
    });
    if let Some(out) = out {
        fill_transposed_groups(&mut expr, out)?;
    }
    Ok(expr)
}

fn fill_transposed_groups<T: Operand>(expr: &mut Expr<T>, out: usize) -> Result<(), GeometryError> {
    match expr {
        Expr::Conv(conv) if conv.transposed => {
            let ([_, width], _) = axes_of(conv)?;
            let groups = (out / width).max(1);
            if out.is_multiple_of(width) {
                conv.groups.get_or_insert(groups);
            }
            Ok(())
        }
        Expr::Seq(xs) | Expr::Sum(xs) => xs
            .iter_mut()
            .try_for_each(|x| fill_transposed_groups(x, out)),
        _ => Ok(()),
    }
}

/// Whether a bare identity could stand beside these branches: they keep the number of channels.
///
/// This is the rule behind a recipe's `{"optional": "identity"}`. A conv `[out, 1, …]` counts as
/// depthwise, any other as dense unless a batch norm on the input or the recipe says otherwise.
pub fn keeps_width<T: Operand>(branches: &[Expr<T>]) -> bool {
    let mut with_identity = branches.to_vec();
    with_identity.push(Expr::Identity);
    resolve(Expr::Sum(with_identity)).is_ok()
}

/// The two axes of channels and the taps of a stored weight with 2 to 5 dimensions: `[out, in/groups]`, of a transposed conv
/// `[in, out/groups]`, and `[depth, height, width]`.
pub fn weight_axes(shape: &[usize]) -> Option<([usize; 2], Extent)> {
    let (channels, taps) = match *shape {
        [a, b] => ([a, b], [1, 1, 1]),
        [a, b, k] => ([a, b], [1, 1, k]),
        [a, b, kh, kw] => ([a, b], [1, kh, kw]),
        [a, b, kd, kh, kw] => ([a, b], [kd, kh, kw]),
        _ => return None,
    };
    Some((channels, taps))
}

/// The same of a conv; none of them is 0.
fn axes_of<T: Operand>(conv: &Conv<T>) -> Result<([usize; 2], Extent), GeometryError> {
    let shape = conv.weight.shape();
    let axes = weight_axes(shape).filter(|_| !shape.contains(&0));
    axes.ok_or_else(|| E::NotAWeight {
        leaf: conv.weight.to_string(),
        shape: shape.to_vec(),
    })
}
