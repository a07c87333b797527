//! What blocks cost before and after: parameters and multiply-adds.

use crate::algebra::extent::volume;
use crate::algebra::part::{Op, Part, split};
use crate::network::sequential;
use crate::plan::{Plan, PlannedConv};
use crate::tensor::{Checkpoint, Tensor};

/// A number before and after fusing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Change {
    /// In the training form.
    pub before: u64,
    /// In the deploy form.
    pub after: u64,
}

/// Learned numbers, as PyTorch counts them: floating-point elements, running statistics left out.
pub fn parameters<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    tensors
        .into_iter()
        .filter(|t| t.dtype().float().is_some() && is_learned(t.name()))
        .map(|t| t.len() as u64)
        .sum()
}

/// The parameters of the file that a plan writes.
pub fn planned_parameters(plan: &Plan) -> u64 {
    plan.outputs
        .iter()
        .map(|planned| &planned.output)
        .filter(|o| o.dtype.float().is_some() && is_learned(&o.name))
        .map(|o| o.shape.iter().product::<usize>() as u64)
        .sum()
}

/// Whether a floating-point tensor of this name is a parameter rather than a running statistic.
pub fn is_learned(name: &str) -> bool {
    !(name.ends_with("running_mean") || name.ends_with("running_var"))
}

/// Multiply-adds of convs for one output pixel, before and after; batch norms and additions are not counted.
///
/// An inner conv runs at every input pixel of the last one, so a stride `s` counts it `s²` times. For a transposed conv
/// the pixel is one of the input.
pub fn macs_per_pixel(fused: &PlannedConv, stride: usize) -> Change {
    let g = fused.geometry();
    Change {
        before: macs(fused.expr.root(), 1, (stride * stride) as u64),
        after: (g.out() * g.row_len()) as u64,
    }
}

/// `times`: how often the part's last conv runs for an output pixel; `inner`: how often one before it does.
fn macs(part: &Part<Tensor>, times: u64, inner: u64) -> u64 {
    match part.op() {
        Op::Conv(kernel) => {
            let g = part.geometry();
            times * (g.out() * g.in_per_group() * volume(kernel.taps)) as u64
        }
        Op::Sum(parts) | Op::Stack(parts) => parts.iter().map(|x| macs(x, times, inner)).sum(),
        Op::Seq(parts) => {
            let (head, tail) = split(parts);
            let head: u64 = head.iter().map(|x| macs(x, inner, inner)).sum();
            head + tail.iter().map(|x| macs(x, times, inner)).sum::<u64>()
        }
        _ => 0,
    }
}

/// The multiply-adds of all fused convs for a square image, where the recipe tells how its blocks follow one another.
///
/// No file stores a stride. For other networks this is `None` rather than a guess.
pub fn macs_of_network(checkpoint: &Checkpoint, plan: &Plan, size: usize) -> Option<Change> {
    let network = sequential(checkpoint, plan).ok()?;
    let total =
        network
            .places(size)
            .into_iter()
            .fold(Change::default(), |total, (fused, stride, side)| {
                let one = macs_per_pixel(fused, stride);
                let pixels = (side * side) as u64;
                Change {
                    before: total.before + pixels * one.before,
                    after: total.after + pixels * one.after,
                }
            });
    Some(total)
}
