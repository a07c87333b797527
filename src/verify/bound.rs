//! What rounding may move an output by, and how much of it a deploy form is allowed.

use super::Deployed;
use crate::algebra::branches::branches;
use crate::algebra::extent::{POINT, grown, volume};
use crate::algebra::forward::{Reading, Step};
use crate::algebra::{Extent, Op, Part, Resolved};
use crate::fuse::METADATA_PREFIX;
use crate::tensor::{Checkpoint, Float};

/// Which rounding a deploy form is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
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
        Deployed::Beside(_) => Allowance::Arithmetic,
        _ => Allowance::OneRounding,
    }
}

/// What rounding the numbers of a deploy form, once each, may move an output by: `u·(|K| ∗ |x| + |b|)`, kernel and bias each with
/// the `u` of their own type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    /// The types of kernel and bias.
    pub types: [Float; 2],
    /// What the roundings of subnormal weights add up with: no less than the sum of `|x|` under the kernel.
    pub input: f64,
}

impl Rounding {
    /// Of an output whose magnitude `|K| ∗ |x| + |b|` is `size`, with this bias.
    pub(crate) fn of(&self, size: f64, bias: f64) -> f64 {
        let [of_kernel, of_bias] = self.types.map(Float::unit_roundoff);
        let [least, least_bias] = self.types.map(Float::half_subnormal);
        let bias = bias.abs();
        of_kernel * (size - bias) + of_bias * bias + least * self.input + least_bias
    }
}

/// What each output may be off by, given by how much it is off and what one rounding may move it by. Only where that does not explain
/// a difference does the arithmetic itself come in, which `beyond` gives.
///
/// # Errors
/// Whatever `beyond` gives.
pub(crate) fn allowed<E>(
    off: &[f64],
    mut bound: Vec<f64>,
    beyond: impl FnOnce() -> Result<Vec<f64>, E>,
) -> Result<Vec<f64>, E> {
    if !off.iter().zip(&bound).all(|(off, bound)| off <= bound) {
        let more = beyond()?;
        bound.iter_mut().zip(more).for_each(|(x, more)| *x += more);
    }
    Ok(bound)
}

/// What arithmetic may add to one rounding, for each output; `input` is no less than the sum of `|x|` under the kernel. `shown` says what the output of a number shows,
/// and `run` gives the outputs of a part of the expression in a reading.
///
/// For what repfuse wrote, that is what f64 may lose in any order of evaluation. Other converters may have folded in `float`, and
/// are allowed what its operations are [`expected`] to add up to.
///
/// # Errors
/// Whatever running gives.
pub(crate) fn beyond<T: Clone, E>(
    allowance: Allowance,
    float: Float,
    shown: impl Fn(usize) -> Shown,
    expr: &Resolved<T>,
    input: f64,
    mut run: impl FnMut(&Part<T>, Reading) -> Result<Vec<f64>, E>,
) -> Result<Vec<f64>, E> {
    let whole = expr.root();
    if allowance == Allowance::OneRounding {
        let steps = steps(whole);
        let slack = Shown::each(|shown| f64::EPSILON * (steps + shown.added_up(whole).sqrt()));
        let mut terms = run(whole, Reading::Magnitude)?;
        let numbered = terms.iter_mut().enumerate();
        numbered.for_each(|(i, x)| *x *= slack[shown(i) as usize]);
        return Ok(terms);
    }
    let expected = Shown::each(|shown| expected(float, whole, shown));
    let mut beyond = adds_up(|i| expected[shown(i) as usize], expr, &mut run)?;
    let step = float.half_subnormal();
    if step > NEGLIGIBLE {
        // Of numbers that are so small, each rounding is off by as much, whatever their size.
        let step = Step::of(step);
        let coarse = run(whole, Reading::Coarse { step })?;
        let exact = run(whole, Reading::Magnitude)?;
        let roundings = steps(whole) + Shown::All.added_up(whole);
        let each = step.get() * roundings * input;
        let larger = coarse
            .iter()
            .zip(&exact)
            .map(|(coarse, exact)| coarse - exact);
        beyond
            .iter_mut()
            .zip(larger)
            .for_each(|(x, more)| *x += more + each);
    }
    Ok(beyond)
}

/// What a type's smallest numbers are apart by that no weight comes close to: those of f32 and bf16, but not of f16.
const NEGLIGIBLE: f64 = 1e-30;

/// What arithmetic in `float` may be off by where it runs an expression on maps, branch by branch, as a network does in training:
/// each weight and each result of an operator rounded, and every sum of products with all of its terms.
///
/// # Errors
/// Whatever running gives.
pub(crate) fn while_running<T: Clone, E>(
    float: Float,
    expr: &Resolved<T>,
    run: impl FnMut(&Part<T>, Reading) -> Result<Vec<f64>, E>,
) -> Result<Vec<f64>, E> {
    let whole = expr.root();
    let unit = float.unit_roundoff();
    let products = added_up(whole, Shown::All, Some(POINT));
    let accumulated = 2.5 * unit.min(Float::F32.unit_roundoff()) * products.sqrt();
    let steps = steps(whole);
    let of = [
        3.5 * unit * steps.sqrt() + accumulated,
        unit * steps + accumulated,
    ];
    adds_up(|_| of, expr, run)
}

/// So many times the root of the terms' energy, and so many times the sizes of the branches, for the output of each number.
fn adds_up<T: Clone, E>(
    times: impl Fn(usize) -> [f64; 2],
    expr: &Resolved<T>,
    mut run: impl FnMut(&Part<T>, Reading) -> Result<Vec<f64>, E>,
) -> Result<Vec<f64>, E> {
    let mut beyond = run(expr.root(), Reading::Energy)?;
    let numbered = beyond.iter_mut().enumerate();
    numbered.for_each(|(i, x)| *x = times(i)[0] * x.sqrt());
    for branch in branches(expr) {
        let sizes = run(&branch, Reading::Value)?;
        let numbered = beyond.iter_mut().zip(sizes).enumerate();
        numbered.for_each(|(i, (x, y))| *x += times(i)[1] * y.abs());
    }
    Ok(beyond)
}

/// What arithmetic in the stored type may be expected to add up to: so many times the root of the terms' energy, and so
/// many times the sizes of the branches.
///
/// Where terms are many, the bound that no order of evaluation exceeds is larger than their sum, and would let anything
/// pass. But the errors of many terms are as likely up as down, and add up like the root of their squares. One rounding is off by
/// 0.42·u in the root of the mean square (a mantissa is as likely small as large), so [`PER_TERM`]·√steps is three standard deviations of as
/// many roundings that are all as large as the result, which few of them are. What all terms of a branch share (the scale of its last norm)
/// it is wrong by as a whole. Sums of products are accumulated in f32 at the least, as PyTorch does for the half types.
///
/// The two factors are measured, too: of timm's conversions of whole networks no weight is off by more than 0.63 of what they allow,
/// and of the fixtures, SESR aside, none by more than 0.45. SESR's own code takes the difference of two responses to find a weight, and comes to 0.87.
fn expected<T>(float: Float, whole: &Part<T>, shown: Shown) -> [f64; 2] {
    let unit = float.unit_roundoff();
    let added = shown.added_up(whole).sqrt();
    let accumulated = PER_PRODUCT * unit.min(Float::F32.unit_roundoff()) * added;
    let steps = steps(whole);
    // What was computed in a half type is stored in it as well, and the smallest of its steps are not small beside the result.
    let [per_term, per_step] = match float {
        Float::F16 | Float::Bf16 => [3.5, 1.0],
        Float::F32 | Float::F64 => [PER_TERM, PER_STEP],
    };
    [
        per_term * unit * steps.sqrt() + accumulated,
        per_step * unit * steps + accumulated,
    ]
}

/// Of the unit roundoff, for the root of the number of roundings in a row.
const PER_TERM: f64 = 1.25;
/// Of the unit roundoff, for each rounding in a row that a whole branch shares.
const PER_STEP: f64 = 0.35;
/// Of the unit roundoff, for the root of the number of products that are added up.
const PER_PRODUCT: f64 = 3.5;

/// How many roundings in a row the longest path through an expression takes when it is folded, those of long sums aside.
///
/// A conv takes two (scale, bias), a batch norm four (root, quotient, product, sum) and a sum one per branch.
fn steps<T>(part: &Part<T>) -> f64 {
    match part.op() {
        Op::Conv(_) => 2.0,
        Op::Bn(_) => 4.0,
        Op::Scale(_) | Op::Shift(_) | Op::AvgPool(_) => 1.0,
        Op::Crop(_) | Op::Identity | Op::Select(_) => 0.0,
        Op::Sum(parts) => parts.iter().map(steps).fold(0.0, f64::max) + parts.len() as f64,
        Op::Stack(parts) => parts.iter().map(steps).fold(0.0, f64::max),
        Op::Seq(parts) => parts.iter().map(steps).sum(),
    }
}

/// What an output shows of a fused conv.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// One weight.
    Weight,
    /// The bias.
    Bias,
    /// Weights and the bias.
    All,
}

impl Shown {
    /// Something for each of them, by their numbers.
    fn each<X>(of: impl Fn(Shown) -> X) -> [X; 3] {
        [Shown::Weight, Shown::Bias, Shown::All].map(of)
    }

    /// How many products are added up for one number.
    fn added_up<T>(self, whole: &Part<T>) -> f64 {
        added_up(whole, self, None)
    }
}

/// How many products are added up for one number. A weight of a conv on the block's input, or on diagonal maps of it, is
/// folded by itself. A conv behind an inner kernel, of the extent that stands `behind` it, adds up one product for each channel
/// and each way in which the two kernels' taps meet; and a bias, one for each channel and tap, where a constant stands before it.
fn added_up<T>(part: &Part<T>, shown: Shown, behind: Option<Extent>) -> f64 {
    match (part.op(), behind) {
        (Op::Conv(kernel), Some(behind)) => {
            let meet = match shown {
                Shown::Weight => [0, 1, 2].map(|axis| kernel.taps[axis].min(behind[axis])),
                Shown::Bias | Shown::All => kernel.taps,
            };
            (part.geometry().in_per_group() * volume(meet)) as f64
        }
        (Op::Sum(parts) | Op::Stack(parts), _) => {
            let branches = parts.iter().map(|x| added_up(x, shown, behind));
            branches.fold(0.0, f64::max)
        }
        (Op::Seq(parts), _) => {
            let (mut reach, mut behind, mut sum) = (behind.unwrap_or(POINT), behind, 0.0);
            for x in parts {
                sum += added_up(x, shown, behind);
                reach = grown(reach, x.geometry().extent());
                let is_before = match shown {
                    Shown::Weight => x.has_conv(),
                    Shown::Bias => adds_constant(x),
                    // What a norm adds on the input, too, a conv behind it adds up in its bias.
                    Shown::All => true,
                };
                if behind.is_some() || is_before {
                    behind = Some(reach);
                }
            }
            sum
        }
        _ => 0.0,
    }
}

/// Whether a part makes something of zeros.
fn adds_constant<T>(part: &Part<T>) -> bool {
    match part.op() {
        Op::Conv(kernel) => kernel.bias.is_some(),
        Op::Bn(_) | Op::Shift(_) => true,
        Op::Scale(_) | Op::AvgPool(_) | Op::Crop(_) | Op::Identity | Op::Select(_) => false,
        Op::Sum(parts) | Op::Stack(parts) | Op::Seq(parts) => parts.iter().any(adds_constant),
    }
}
