//! What rounding may move an output by, and how much of it a deploy form is allowed.

use super::Deployed;
use crate::algebra::geometry::four_dims;
use crate::algebra::{Expr, Operand};
use crate::fuse::METADATA_PREFIX;
use crate::tensor::{Checkpoint, Float};

/// Which rounding a deploy form is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Each stored number is the exact one rounded once: the file says that repfuse wrote it.
    OneRounding,
    /// The fold itself may have been done in the arithmetic of the stored type, as the families' own scripts do.
    Arithmetic,
}

/// A file that says repfuse wrote it is held to one rounding.
pub(crate) fn allowance_of(deployed: Deployed<'_>) -> Allowance {
    let ours = |file: &Checkpoint| {
        file.metadata()
            .iter()
            .any(|(key, _)| key.starts_with(METADATA_PREFIX))
    };
    match deployed {
        Deployed::File(file) if !ours(file) => Allowance::Arithmetic,
        _ => Allowance::OneRounding,
    }
}

/// What the rounding of a deploy form may add up to beyond the rounding of its stored numbers: this many times the
/// magnitude of the training form's terms.
pub(crate) fn slack<T: Operand>(allowance: Allowance, float: Float, expr: &Expr<T>) -> f64 {
    let unit = match allowance {
        Allowance::OneRounding => f64::EPSILON,
        Allowance::Arithmetic => float.unit_roundoff(),
    };
    unit * roundings(expr, true)
}

/// How many roundings in a row the slowest path through an expression takes when it is folded.
///
/// A conv on the block's input takes two (scale, bias), a batch norm four (root, quotient, product, sum) and a sum one per
/// branch. A conv on anything else adds up one product per channel and tap, whose errors grow like the root of their number.
fn roundings<T: Operand>(expr: &Expr<T>, on_input: bool) -> f64 {
    match expr {
        Expr::Conv(_) if on_input => 2.0,
        Expr::Conv(c) => {
            let [_, i, kh, kw] = four_dims(c.weight.shape()).unwrap_or([1; 4]);
            2.0 + ((i * kh * kw) as f64).sqrt()
        }
        Expr::Bn(_) => 4.0,
        Expr::Scale(_) | Expr::Shift(_) | Expr::Mean(_) => 1.0,
        Expr::Identity => 0.0,
        Expr::Sum(xs) => {
            let branches = xs.iter().map(|x| roundings(x, on_input));
            branches.fold(0.0, f64::max) + xs.len() as f64
        }
        Expr::Seq(xs) => {
            let steps = xs.iter().enumerate();
            steps.map(|(i, x)| roundings(x, on_input && i == 0)).sum()
        }
    }
}
