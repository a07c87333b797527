//! The branches of an expression: the summands that its kernel is the sum of.

use super::part::{Op, Part};
use super::shape::Resolved;

/// Takes the outermost sum of an expression apart. What stands before and after the sum is in every branch, and the kernel of a
/// branch lies in the middle of the whole one.
///
/// The kernels of the branches add up to that of the expression, for kernels are linear: `bn(a + b)` has the kernel of
/// `bn(a)` plus that of `bn(b)`. The biases do not, where something follows the sum. An expression without an outer sum is its own branch.
pub fn branches<T: Clone>(expr: &Resolved<T>) -> Vec<Part<T>> {
    summands(expr.root())
}

/// What stands around a sum is copied into every branch. More copies than this no network needs, and memory would.
const MOST_COPIES: usize = 1 << 14;

fn summands<T: Clone>(part: &Part<T>) -> Vec<Part<T>> {
    match part.op() {
        Op::Sum(parts) => parts.iter().flat_map(summands_of_summand).collect(),
        Op::Seq(parts) => {
            let mut with_conv = parts.iter().enumerate().filter(|(_, x)| x.has_conv());
            match (with_conv.next(), with_conv.next()) {
                (Some((at, sum)), None)
                    if matches!(sum.op(), Op::Sum(_))
                        && sum.parts().len() * parts.len() <= MOST_COPIES =>
                {
                    let around = |summand| {
                        let mut parts = parts.clone();
                        parts[at] = summand;
                        Part::seq(parts, part.geometry().inputs())
                    };
                    summands(sum).into_iter().map(around).collect()
                }
                _ => vec![part.clone()],
            }
        }
        _ => vec![part.clone()],
    }
}

/// A sum in a sum is part of it, also where a norm or a factor follows.
fn summands_of_summand<T: Clone>(part: &Part<T>) -> Vec<Part<T>> {
    match part.op() {
        Op::Sum(_) | Op::Seq(_) => summands(part),
        _ => vec![part.clone()],
    }
}
