//! One fused conv: every probe through both of its forms, slab by slab.

use std::ops::Range;

use rayon::prelude::*;

use super::bound::{Allowance, Rounding, Shown, allowed, beyond};
use super::deployed::{Deployed, Slab, Stored, deployed_rows, stored, stored_index};
use super::probes::{amplitude, as_read, input_size, maps};
use super::tally::{At, Tally};
use super::types::computed_in;
use super::{BlockVerdict, Options, Place};
use crate::algebra::describe;
use crate::algebra::extent::{POINT, position, volume};
use crate::algebra::forward::{self, Input, Reading, Spikes, forward};
use crate::algebra::part::split;
use crate::algebra::{Extent, Geometry, Kernel, Op, Part, Resolved};
use crate::fuse::diagnose;
use crate::fuse::fold_rows;
use crate::plan::{PlannedConv, WeightOrBias};
use crate::tensor::Reader;
use crate::tensor::channels_last::channels_last;
use crate::tensor::{Checkpoint, Float, Tensor};

/// Values of the deploy form's weight that a worker takes at a time, so that the dense maps run over many rows at once.
const SLAB_VALUES: usize = 1 << 18;

/// Values of each map that impulses give: they stay in the cache, and the allocator hands the same memory out again
/// instead of asking the kernel for fresh pages. (Over as many as in a slab, verifying RepVGG-B3 takes 1.7 times as long.)
const MAP_VALUES: usize = 1 << 14;

/// The multiply-adds that impulses through inner convs may cost in all before only some channels get one: half a minute.
const IMPULSE_BUDGET: f64 = 1e11;

/// The share of all input channels that impulses go through, so that those of all convs cost no more than they may.
pub(super) fn impulse_share<'a>(convs: impl Iterator<Item = &'a PlannedConv>) -> f64 {
    let cost: f64 = convs.map(impulse_cost).sum();
    (IMPULSE_BUDGET / cost).min(1.0)
}

/// The multiply-adds of an impulse through every input channel, where each runs through inner convs.
fn impulse_cost(fused: &PlannedConv) -> f64 {
    let g = fused.geometry();
    inner_cost(fused.expr.root()) * g.row_len() as f64
}

/// What a conv is compared by.
pub(super) struct Check<'a> {
    pub checkpoint: &'a Checkpoint,
    pub deployed: Deployed<'a>,
    pub fused: &'a PlannedConv,
    pub allowance: Allowance,
    /// The half type that the file's numbers were computed in, where they are stored in a wider one.
    pub made_in: Option<Float>,
    /// The share of the input channels that impulses go through.
    pub share: f64,
    pub options: &'a Options,
}

impl Check<'_> {
    pub(super) fn run(&self, name: &str) -> Result<BlockVerdict, diagnose::Error> {
        let fused = self.fused;
        let mut verdict = BlockVerdict {
            name: name.to_owned(),
            module: fused.module.clone(),
            expression: describe::expression(fused.expr.root()),
            ratio: f64::NAN,
            absolute: f64::NAN,
            relative: f64::NAN,
            at: None,
            impulses: [0, fused.geometry().in_per_group()],
            types: None,
            failure: None,
            accepted: false,
        };
        match stored(self.fused, self.deployed) {
            Ok(stored) => {
                let of_weight = stored.map_or(fused.dtype, |((_, float), _)| float);
                verdict.types = Some([fused.dtype, of_weight]);
            }
            Err(failure) => {
                verdict.failure = Some(failure);
                return Ok(verdict);
            }
        }
        let g = *fused.geometry();
        let composed = inner_cost(fused.expr.root());
        // What stands before the last conv runs anew for every slab, so such blocks are taken whole; a transposed conv's rows lie all
        // over its weight.
        let per_slab = if composed > 0.0 || g.transposed() {
            g.out()
        } else {
            (SLAB_VALUES / g.row_len()).max(1)
        };
        let all = g.in_per_group();
        let tried = match composed > 0.0 && !self.options.exhaustive {
            true => ((self.share * all as f64) as usize).clamp(1, all),
            false => all,
        };
        verdict.impulses[0] = tried;
        let slabs: Vec<usize> = (0..g.out()).step_by(per_slab).collect();
        let tallies = slabs
            .par_iter()
            .map(|&first| self.slab(first..(first + per_slab).min(g.out()), tried))
            .collect::<Result<Vec<_>, _>>()?;
        let mut total = Tally::default();
        tallies.into_iter().for_each(|tally| total.merge(tally));
        verdict.ratio = total.ratio;
        verdict.absolute = total.absolute;
        verdict.relative = total.relative;
        verdict.at = total.at.map(|at| shown(fused, at));
        verdict.accepted = total.ratio <= self.options.tolerance;
        Ok(verdict)
    }

    fn slab(&self, rows: Range<usize>, channels: usize) -> Result<Tally, diagnose::Error> {
        self.options.go_on()?;
        let g = self.fused.geometry();
        let mut slab = Slab {
            geometry: *g,
            first: rows.start,
            rows: deployed_rows(self.checkpoint, self.fused, self.deployed, rows.clone())?,
        };
        slab.rows.types = computed_in(self.fused, self.deployed, slab.rows.types, self.made_in);
        let largest = slab
            .rows
            .kernel
            .iter()
            .fold(0.0, |a: f64, w| a.max(w.abs()));
        let amplitude = amplitude(largest);
        let mut tally = Tally::default();
        if let Some(at) = slab.not_finite() {
            // Every output of the channel would show it; here is where it comes from.
            tally.add(f64::NAN, f64::NAN, f64::NAN, 1.0, || at);
            return Ok(tally);
        }
        let conv = slab.as_conv()?;
        let mut reader = Reader::new(self.checkpoint, 0);
        let compare = Compare {
            check: self,
            conv: &conv,
            slab: &slab,
            rows: rows.clone(),
            amplitude,
        };
        compare.impulses(channels, &mut reader, &mut tally)?;
        if tally.ratio.is_nan() {
            // The deploy form is finite, so this comes of the training form; folding it says where from.
            fold_rows(self.checkpoint, self.fused, rows, &mut reader)?;
        }
        // After the impulses, which name a weight where these can only name a channel.
        let dense = maps(g, self.options.probes.get().into(), self.options.seed);
        compare.over(&dense, POINT, &mut reader, &mut tally)?;
        if let Some(at) = tally.at.take_if(|at| at.whole_channel) {
            let named = compare.narrowed(at.index[0], self.options, &mut reader)?;
            tally.at = Some(named.unwrap_or(at));
        }
        Ok(tally)
    }
}

/// Both forms of some output channels, to run on the same input.
#[derive(Clone)]
pub(super) struct Compare<'a> {
    pub check: &'a Check<'a>,
    pub conv: &'a Resolved<Stored>,
    pub slab: &'a Slab,
    pub rows: Range<usize>,
    /// The height of impulses.
    pub amplitude: f64,
}

impl Compare<'_> {
    /// Impulses on some channels of every group: each through some rows, or, where each run begins with whole maps, through all of
    /// them, some at a time.
    fn impulses(
        &self,
        channels: usize,
        reader: &mut Reader<'_>,
        tally: &mut Tally,
    ) -> Result<(), diagnose::Error> {
        let (g, rows) = (self.check.fused.geometry(), &self.rows);
        let area = g.taps();
        let (part, step) = if inner_cost(self.check.fused.expr.root()) > 0.0 {
            let step = SLAB_VALUES / (rows.len() * area).max(1);
            (rows.len(), step.clamp(1, channels.max(1)))
        } else {
            let part = MAP_VALUES / (channels * area).max(1);
            (part.max(1), channels.max(1))
        };
        // A sample of channels starts where the seed says.
        let offset = if channels < g.in_per_group() {
            self.check.options.seed as usize % (g.in_per_group() - channels + 1)
        } else {
            0
        };
        for start in rows.clone().step_by(part) {
            let compare = Compare {
                rows: start..(start + part).min(rows.end),
                ..*self
            };
            for first in (0..channels).step_by(step) {
                let last = (first + step).min(channels);
                let input = Input::Spikes(Spikes {
                    per_group: g.in_per_group(),
                    channels: first + offset..last + offset,
                    amplitude: self.amplitude,
                });
                compare.over(&input, g.extent(), reader, tally)?;
            }
        }
        Ok(())
    }

    pub(super) fn over(
        &self,
        input: &Input,
        want: Extent,
        reader: &mut Reader<'_>,
        tally: &mut Tally,
    ) -> Result<(), diagnose::Error> {
        let trained = self.trained(
            self.check.fused.expr.root(),
            input,
            want,
            Reading::Value,
            reader,
        )?;
        let deployed = self.deployed(input, want, Reading::Value)?;
        let bound = self.bound(input, want)?;
        let off: Vec<f64> = trained
            .iter()
            .zip(&deployed)
            .map(|(a, b)| (a - b).abs())
            .collect();
        let allowed = allowed(&off, bound, || self.beyond(input, want, reader))?;
        let height = match input {
            Input::Dense(_) => 1.0,
            Input::Spikes(spikes) => spikes.amplitude,
        };
        for (i, y) in trained.iter().enumerate() {
            tally.add(off[i], *y, allowed[i], height, || {
                let [found, expected] = [deployed[i], *y].map(|y| y / height);
                self.place(input, i, want, found, expected)
            });
        }
        Ok(())
    }

    /// Outputs of an expression over the training form's tensors.
    fn trained(
        &self,
        part: &Part<Tensor>,
        input: &Input,
        want: Extent,
        reading: Reading,
        reader: &mut Reader<'_>,
    ) -> Result<Vec<f64>, diagnose::Error> {
        let (input, rows) = (as_read(input, reading), self.rows.clone());
        let maps = forward(part, &input, rows, want, reading, reader);
        Ok(maps?.into_data())
    }

    /// Outputs of the deploy form.
    fn deployed(
        &self,
        input: &Input,
        want: Extent,
        reading: Reading,
    ) -> Result<Vec<f64>, diagnose::Error> {
        let (input, rows) = (as_read(input, reading), self.rows.clone());
        let mut slab = self.slab;
        let maps = forward(self.conv.root(), &input, rows, want, reading, &mut slab);
        match maps {
            Ok(maps) => Ok(maps.into_data()),
            Err(forward::Error::Misfit(misfit)) => Err(misfit.into()),
        }
    }

    /// What rounding the stored numbers may move each output by.
    fn bound(&self, input: &Input, want: Extent) -> Result<Vec<f64>, diagnose::Error> {
        let mut bound = self.deployed(input, want, Reading::Magnitude)?;
        let rows = &self.slab.rows;
        let rounding = Rounding {
            types: rows.types,
            input: input_size(input),
        };
        let first = self.rows.start - self.slab.first;
        let per_row = bound.len() / self.rows.len().max(1);
        for (bound, bias) in bound.chunks_mut(per_row.max(1)).zip(&rows.bias[first..]) {
            bound
                .iter_mut()
                .for_each(|size| *size = rounding.of(*size, *bias));
        }
        Ok(bound)
    }

    /// What arithmetic may add to that.
    fn beyond(
        &self,
        input: &Input,
        want: Extent,
        reader: &mut Reader<'_>,
    ) -> Result<Vec<f64>, diagnose::Error> {
        let [weight, bias] = self.slab.rows.types;
        let float = match input {
            Input::Spikes(_) => weight,
            Input::Dense(_) => weight.min(bias),
        };
        let shown = |i| shown_by(input, i);
        let run = |part: &_, reading| self.trained(part, input, want, reading, reader);
        beyond(
            self.check.allowance,
            float,
            shown,
            &self.check.fused.expr,
            input_size(input),
            run,
        )
    }

    /// The number of the deploy form that an output shows.
    fn place(&self, input: &Input, i: usize, want: Extent, found: f64, expected: f64) -> At {
        let g = self.check.fused.geometry();
        let (which, index, whole_channel) = match input {
            Input::Dense(maps) => {
                let o = self.rows.start + i / maps.maps();
                match shown_by(input, i) {
                    Shown::Bias => (WeightOrBias::Bias, vec![o], false),
                    _ => (WeightOrBias::Weight, vec![o], true),
                }
            }
            Input::Spikes(Spikes { channels, .. }) => {
                let area = volume(want);
                let (map, tap) = (i / area, area - 1 - i % area);
                let o = self.rows.start + map / channels.len();
                let input = channels.start + map % channels.len();
                let index = stored_index(g, [o, input], position(tap, want));
                (WeightOrBias::Weight, index, false)
            }
        };
        At {
            which,
            index,
            found,
            expected: Some(expected),
            whole_channel,
        }
    }
}

/// What the output of this number shows of a conv: an impulse one weight, and of the dense maps the first, which is one of zeros, the bias.
fn shown_by(input: &Input, i: usize) -> Shown {
    match input {
        Input::Spikes(_) => Shown::Weight,
        Input::Dense(maps) if i.is_multiple_of(maps.maps()) => Shown::Bias,
        Input::Dense(_) => Shown::All,
    }
}

/// Where a conv differs, as its file counts.
fn shown(fused: &PlannedConv, at: At) -> Place {
    Place {
        tensor: fused.name_of(at.which),
        index: match fused.is_channels_last() {
            true => channels_last(&at.index),
            false => at.index,
        },
        found: at.found,
        expected: at.expected,
        whole_channel: at.whole_channel,
    }
}

/// The multiply-adds per position and map of convs that run on whole maps, as what another conv or a pool has made.
fn inner_cost<T>(part: &Part<T>) -> f64 {
    match part.op() {
        Op::Sum(parts) | Op::Stack(parts) => parts.iter().map(inner_cost).sum(),
        Op::Seq(parts) => {
            let (head, tail) = split(parts);
            let inner: f64 = head.iter().map(inner_cost).sum();
            let behind = !head.iter().all(Part::is_pixelwise);
            let outer = tail.iter().filter(|_| behind).flat_map(Part::convs);
            let cost = |(kernel, g): (&Kernel<T>, &Geometry)| {
                (g.out() * g.in_per_group() * volume(kernel.taps)) as f64
            };
            inner + outer.map(cost).sum::<f64>()
        }
        _ => 0.0,
    }
}
