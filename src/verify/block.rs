//! One fused conv: every probe through both of its forms, slab by slab.

use std::ops::Range;

use rayon::prelude::*;

use super::bound::{Allowance, slack};
use super::deployed::{Deployed, Part, Slab, deployed_rows, stored};
use super::probes::{AMPLITUDE, input_size, magnitude, maps};
use super::tally::Tally;
use super::{BlockVerdict, Options};
use crate::algebra::forward::{Input, Reading, forward};
use crate::algebra::{Expr, Operand};
use crate::describe;
use crate::numbers;
use crate::recipe::Fused;
use crate::tensor::{Checkpoint, Float};
use crate::values::Reader;

/// Values of the deploy form's weight that a worker takes at a time, so that the dense maps run over many rows at once.
const SLAB_VALUES: usize = 1 << 18;

/// Values of each map that impulses give: they stay in the cache, and the allocator hands the same memory out again
/// instead of asking the kernel for fresh pages. (Over as many as in a slab, verifying RepVGG-B3 takes 1.7 times as long.)
const MAP_VALUES: usize = 1 << 14;

/// The multiply-adds that impulses through an inner conv may cost before only some channels get one.
const IMPULSE_BUDGET: f64 = 4e9;

/// What a conv is compared by.
pub(super) struct Check<'a> {
    pub checkpoint: &'a Checkpoint,
    pub deployed: Deployed<'a>,
    pub fused: &'a Fused,
    pub allowance: Allowance,
    pub options: &'a Options,
}

impl Check<'_> {
    pub(super) fn run(&self, name: &str) -> Result<BlockVerdict, numbers::Error> {
        let fused = self.fused;
        let mut verdict = BlockVerdict {
            name: name.to_owned(),
            module: fused.module.clone(),
            expression: describe::expression(fused.expr.expr()),
            ratio: f64::NAN,
            absolute: f64::NAN,
            relative: f64::NAN,
            snr_db: f64::NAN,
            at: None,
            impulses: [0, fused.geometry().in_per_group()],
            failure: stored(self.fused, self.deployed).err(),
            accepted: false,
        };
        if verdict.failure.is_some() {
            return Ok(verdict);
        }
        let g = *fused.geometry();
        let composed = inner_cost(fused.expr.expr());
        // What stands before the last conv runs anew for every slab, so such blocks are taken whole.
        let per_slab = if composed > 0.0 {
            g.out
        } else {
            (SLAB_VALUES / g.row_len().max(1)).max(1)
        };
        let all = g.in_per_group();
        let cost = composed * g.extent[0] as f64 * g.extent[1] as f64;
        let tried = if self.options.exhaustive || cost * all as f64 <= IMPULSE_BUDGET {
            all
        } else {
            ((IMPULSE_BUDGET / cost) as usize).clamp(1, all)
        };
        verdict.impulses[0] = tried;
        let slabs: Vec<usize> = (0..g.out).step_by(per_slab).collect();
        let tallies = slabs
            .par_iter()
            .map(|&first| self.slab(first..(first + per_slab).min(g.out), tried))
            .collect::<Result<Vec<_>, _>>()?;
        let mut total = Tally::default();
        tallies.into_iter().for_each(|tally| total.merge(tally));
        verdict.ratio = total.ratio;
        verdict.absolute = total.absolute;
        verdict.relative = total.relative;
        verdict.snr_db = total.snr_db();
        verdict.at = total
            .at
            .map(|(end, index)| (format!("{}.{end}", fused.module), index));
        verdict.accepted = total.ratio <= self.options.tolerance;
        Ok(verdict)
    }

    fn slab(&self, rows: Range<usize>, channels: usize) -> Result<Tally, numbers::Error> {
        self.options.go_on()?;
        let g = self.fused.geometry();
        let (kernel, bias, float) =
            deployed_rows(self.checkpoint, self.fused, self.deployed, rows.clone())?;
        let slab = Slab {
            geometry: *g,
            first: rows.start,
            kernel,
            bias,
        };
        let conv = slab.as_conv();
        let mut reader = Reader::new(self.checkpoint, 0);
        let mut tally = Tally::default();
        let compare = Compare {
            check: self,
            conv: &conv,
            slab: &slab,
            float,
            rows: rows.clone(),
        };
        let dense = maps(g, self.options.probes.get(), self.options.seed);
        compare.over(&dense, [1, 1], &mut reader, &mut tally)?;
        let area = g.extent[0] * g.extent[1];
        // Every impulse through some rows, or, where each run begins with an inner conv, through all of them, some at a time.
        let (part, step) = if inner_cost(self.fused.expr.expr()) > 0.0 {
            let step = SLAB_VALUES / (rows.len() * area).max(1);
            (rows.len(), step.clamp(1, channels.max(1)))
        } else {
            let part = MAP_VALUES / (channels * area).max(1);
            (part.max(1), channels.max(1))
        };
        // A sample of channels starts where the seed says.
        let offset = if channels < g.in_per_group() {
            self.options.seed as usize % (g.in_per_group() - channels + 1)
        } else {
            0
        };
        for start in rows.clone().step_by(part) {
            let compare = Compare {
                rows: start..(start + part).min(rows.end),
                ..compare
            };
            for first in (0..channels).step_by(step) {
                let last = (first + step).min(channels);
                let input = Input::Spikes {
                    per_group: g.in_per_group(),
                    channels: first + offset..last + offset,
                    amplitude: AMPLITUDE,
                };
                compare.over(&input, g.extent, &mut reader, &mut tally)?;
            }
        }
        Ok(tally)
    }
}

/// Both forms of some output channels, to run on the same input.
struct Compare<'a> {
    check: &'a Check<'a>,
    conv: &'a Expr<Part>,
    slab: &'a Slab,
    float: Float,
    rows: Range<usize>,
}

impl Compare<'_> {
    fn over(
        &self,
        input: &Input,
        want: [usize; 2],
        reader: &mut Reader<'_>,
        tally: &mut Tally,
    ) -> Result<(), numbers::Error> {
        let (g, rows) = (self.check.fused.geometry(), &self.rows);
        let expr = self.check.fused.expr.expr();
        let trained = forward(expr, g, input, rows.clone(), want, Reading::Value, reader)?;
        let mut slab = self.slab;
        let Ok(deployed) = forward(
            self.conv,
            g,
            input,
            rows.clone(),
            want,
            Reading::Value,
            &mut slab,
        );
        let absolute = magnitude(input);
        let Ok(size) = forward(
            self.conv,
            g,
            &absolute,
            rows.clone(),
            want,
            Reading::Magnitude,
            &mut slab,
        );
        let (unit, floor) = (
            self.float.unit_roundoff(),
            self.float.half_subnormal() * input_size(input),
        );
        let bound = |i: usize| unit * size.data[i] + floor;
        let off = |i: usize| (trained.data[i] - deployed.data[i]).abs();
        let within = (0..trained.data.len()).all(|i| off(i) <= bound(i));
        // Only where one rounding does not explain a difference does the arithmetic itself come in.
        let beyond = if within {
            None
        } else {
            let terms = forward(
                expr,
                g,
                &absolute,
                rows.clone(),
                want,
                Reading::Magnitude,
                reader,
            )?;
            Some((slack(self.check.allowance, self.float, expr), terms.data))
        };
        let height = match input {
            Input::Dense(_) => 1.0,
            Input::Spikes { amplitude, .. } => *amplitude,
        };
        for (i, y) in trained.data.iter().enumerate() {
            let allowed = bound(i) + beyond.as_ref().map_or(0.0, |(unit, terms)| unit * terms[i]);
            tally.add(off(i), *y, allowed, height, || self.place(input, i, want));
        }
        Ok(())
    }

    /// The number of the deploy form that an output shows.
    fn place(&self, input: &Input, i: usize, want: [usize; 2]) -> (&'static str, Vec<usize>) {
        let g = self.check.fused.geometry();
        match input {
            Input::Dense(maps) => {
                let (o, map) = (self.rows.start + i / maps.maps, i % maps.maps);
                (if map == 0 { "bias" } else { "weight" }, vec![o])
            }
            Input::Spikes { channels, .. } => {
                let area = want[0] * want[1];
                let (map, tap) = (i / area, area - 1 - i % area);
                let o = self.rows.start + map / channels.len();
                let index = [
                    o,
                    channels.start + map % channels.len(),
                    tap / want[1],
                    tap % want[1],
                ];
                let rank = g.rank.clamp(2, 4);
                let index = if rank == 3 {
                    vec![index[0], index[1], index[3]]
                } else {
                    index[..rank].to_vec()
                };
                ("weight", index)
            }
        }
    }
}

/// The multiply-adds per position and map of convs that run on what another conv has made.
fn inner_cost<T: Operand>(expr: &Expr<T>) -> f64 {
    match expr {
        Expr::Sum(xs) => xs.iter().map(inner_cost).sum(),
        Expr::Seq(xs) => {
            let (head, tail) = Expr::split_seq(xs);
            let inner: f64 = head.iter().map(inner_cost).sum();
            let outer = if head.iter().any(Expr::mixes_channels) {
                tail.iter()
                    .flat_map(Expr::convs)
                    .map(|c| c.weight.len() as f64)
                    .sum()
            } else {
                0.0
            };
            inner + outer
        }
        _ => 0.0,
    }
}
