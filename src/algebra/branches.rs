//! The branches of an expression: the summands that its kernel is the sum of.

use super::expr::{Expr, Operand};
use super::shape::{Resolved, of_part};

/// One summand of an expression's kernel.
#[derive(Clone, Debug)]
pub struct Branch<T> {
    /// The summand, with whatever stands before and after the sum in it.
    pub expr: Expr<T>,
    /// The height and width of its own kernel, which lies in the middle of the whole one.
    pub extent: [usize; 2],
}

/// Takes the outermost sum of an expression apart.
///
/// The kernels of the branches add up to that of the expression, for kernels are linear: `bn(a + b)` has the kernel of
/// `bn(a)` plus that of `bn(b)`. The biases do not, where something follows the sum. An expression without an outer sum is its own branch.
pub fn branches<T: Operand>(expr: &Resolved<T>) -> Vec<Branch<T>> {
    let inputs = expr.geometry().inputs;
    let branch = |expr: Expr<T>| Branch {
        extent: of_part(&expr, inputs, None).extent,
        expr,
    };
    summands(expr.expr()).into_iter().map(branch).collect()
}

/// What stands around a sum is copied into every branch. More copies than this no network needs, and memory would.
const MOST_COPIES: usize = 1 << 14;

fn summands<T: Operand>(expr: &Expr<T>) -> Vec<Expr<T>> {
    match expr {
        Expr::Sum(xs) => xs.iter().flat_map(summands_of_summand).collect(),
        Expr::Seq(xs) => {
            let mut mixing = xs.iter().enumerate().filter(|(_, x)| x.mixes_channels());
            match (mixing.next(), mixing.next()) {
                (Some((at, sum @ Expr::Sum(summands_of_it))), None)
                    if summands_of_it.len() * xs.len() <= MOST_COPIES =>
                {
                    let around = |summand| {
                        let mut seq = xs.clone();
                        seq[at] = summand;
                        Expr::Seq(seq)
                    };
                    summands(sum).into_iter().map(around).collect()
                }
                _ => vec![expr.clone()],
            }
        }
        _ => vec![expr.clone()],
    }
}

/// A sum that stands directly in a sum is part of it; one behind an operator is the branch's own affair.
fn summands_of_summand<T: Operand>(expr: &Expr<T>) -> Vec<Expr<T>> {
    match expr {
        Expr::Sum(_) => summands(expr),
        _ => vec![expr.clone()],
    }
}
