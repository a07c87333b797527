//! What is left of a conv's weights when they are rounded to eight bits.
//!
//! Rounding is that of PyTorch's min-max observers with the symmetric schemes: for the largest size `a` the step is `a / 127.5`, and
//! a weight becomes the nearest multiple of it from −128 to 127, ties to even. `a` is taken over the whole tensor or over each
//! output channel. A signal-to-noise ratio is `10·log10(Σw² / Σ(w − ŵ)²)`, in decibels (dB).
//!
//! Only weights are looked at. Activations are in no file.

use serde::Serialize;

use crate::algebra::branches;
use crate::algebra::describe;
use crate::algebra::fold::{Folded, Scratch};
use crate::fuse::diagnose;
use crate::plan::PlannedConv;
use crate::summary::units::plural;
use crate::tensor::{Checkpoint, Reader};
use crate::verify::{Deployed, deployed_rows};

/// What rounding to eight bits leaves of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Noise {
    /// Signal to noise in dB with one step for the whole tensor; null if rounding changes nothing.
    pub per_tensor: Option<f64>,
    /// The same with a step for each output channel.
    pub per_channel: Option<f64>,
    /// The most dB that an output channel loses where the whole tensor shares its step.
    pub worst_loss: f64,
}

/// A fused conv and its largest branch, rounded to eight bits.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Int8 {
    /// The fused conv.
    pub fused: Noise,
    /// The branch with the largest kernel, batch norm included; null where there is one branch only.
    pub branch: Option<Branch>,
}

/// A branch, as it adds to the fused kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Branch {
    /// What it is, as in `bn(3×3)`.
    pub label: String,
    /// What rounding leaves of it.
    pub noise: Noise,
}

impl Int8 {
    /// Whether an output channel loses more than [`MUCH`] where the whole tensor shares its step.
    pub fn loses_much(&self) -> bool {
        self.fused.worst_loss > MUCH
    }
}

/// A loss that counts, in dB: the noise is a hundred times as strong.
pub const MUCH: f64 = 20.0;

/// Rounds the kernel of a conv, and that of its largest branch, to eight bits.
///
/// # Errors
/// When a value cannot be read or folded.
pub fn int8(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    deployed: Deployed<'_>,
) -> Result<Int8, diagnose::Error> {
    let g = fused.geometry();
    let stored = |o: usize, row: &mut Vec<f64>| {
        *row = deployed_rows(checkpoint, fused, deployed, o..o + 1)?.kernel;
        Ok(())
    };
    let whole = noise(g.out(), stored)?;
    let branches = branches(&fused.expr);
    let mut largest: Option<(f64, String, Folded<crate::tensor::Tensor>)> = None;
    let mut reader = Reader::new(checkpoint, 1 << 18);
    let mut scratch = Scratch::default();
    let mut row = vec![0.0; g.row_len()];
    for branch in branches.iter().filter(|_| branches.len() > 1) {
        let folded = Folded::compile_branch(&fused.expr, branch, &mut reader)?;
        let mut energy = 0.0;
        for o in 0..g.out() {
            folded.row(o, &mut reader, &mut scratch, &mut row)?;
            energy += row.iter().map(|w| w * w).sum::<f64>();
        }
        if largest.as_ref().is_none_or(|(most, ..)| energy > *most) {
            largest = Some((energy, describe::expression(branch), folded));
        }
    }
    let branch = match largest {
        Some((_, label, folded)) => {
            let rows = |o: usize, row: &mut Vec<f64>| {
                row.resize(g.row_len(), 0.0);
                folded.row(o, &mut reader, &mut scratch, row)?;
                Ok(())
            };
            let noise = noise(g.out(), rows)?;
            Some(Branch { label, noise })
        }
        None => None,
    };
    Ok(Int8 {
        fused: whole,
        branch,
    })
}

/// One sentence on a whole file.
pub fn sentence<'a>(convs: impl Iterator<Item = &'a Int8>) -> String {
    let (mut much, mut all) = (0, 0);
    for conv in convs {
        all += 1;
        much += usize::from(conv.loses_much());
    }
    match much {
        0 => format!(
            "none of {} loses more than {MUCH} dB in an output channel per tensor",
            plural(all, "conv")
        ),
        1 => format!(
            "1 of {} loses more than {MUCH} dB in an output channel per tensor; quantize weights per channel",
            plural(all, "conv")
        ),
        _ => format!(
            "{much} of {} lose more than {MUCH} dB in an output channel per tensor; quantize weights per channel",
            plural(all, "conv")
        ),
    }
}

/// Reads every row twice: the step of the whole tensor needs all of them.
fn noise(
    out: usize,
    mut rows: impl FnMut(usize, &mut Vec<f64>) -> Result<(), diagnose::Error>,
) -> Result<Noise, diagnose::Error> {
    let mut row = Vec::new();
    let mut largest: f64 = 0.0;
    for o in 0..out {
        rows(o, &mut row)?;
        largest = largest.max(most(&row));
    }
    let (mut signal, mut by_tensor, mut by_channel) = (0.0, 0.0, 0.0);
    let mut worst_loss: f64 = 0.0;
    for o in 0..out {
        rows(o, &mut row)?;
        let shared = error(&row, largest);
        let own = error(&row, most(&row));
        let energy: f64 = row.iter().map(|w| w * w).sum();
        signal += energy;
        by_tensor += shared;
        by_channel += own;
        if let (Some(shared), Some(own)) = (decibels(energy, shared), decibels(energy, own)) {
            worst_loss = worst_loss.max(own - shared);
        }
    }
    Ok(Noise {
        per_tensor: decibels(signal, by_tensor),
        per_channel: decibels(signal, by_channel),
        worst_loss,
    })
}

fn most(row: &[f64]) -> f64 {
    row.iter().fold(0.0, |most, w| most.max(w.abs()))
}

/// `Σ(w − ŵ)²`, where the largest size is `largest`.
fn error(row: &[f64], largest: f64) -> f64 {
    let step = largest / 127.5;
    if step == 0.0 {
        return 0.0;
    }
    let off = |w: &f64| w - step * (w / step).round_ties_even().clamp(-128.0, 127.0);
    row.iter().map(off).map(|e| e * e).sum()
}

fn decibels(signal: f64, noise: f64) -> Option<f64> {
    (signal > 0.0 && noise > 0.0).then(|| 10.0 * (signal / noise).log10())
}
