//! Where random maps show a channel to be wrong and no impulse did: which of its weights it is.

use super::Options;
use super::block::Compare;
use super::tally::{At, Tally, is_worse};
use crate::algebra::extent::POINT;
use crate::algebra::forward::{Input, Maps, Spikes};
use crate::fuse::diagnose;
use crate::tensor::Reader;
use crate::verify::random::SplitMix64;

impl Compare<'_> {
    /// The weight of output channel `o` that differs most. Half of the input channels are left out at a time, those that show
    /// less of it; an impulse through the one that is left names the weight.
    pub(super) fn narrowed(
        &self,
        o: usize,
        options: &Options,
        reader: &mut Reader<'_>,
    ) -> Result<Option<At>, diagnose::Error> {
        let g = self.check.fused.geometry();
        let one = Compare {
            rows: o..o + 1,
            ..self.clone()
        };
        let first = g.first_input(o);
        let mut left = first..first + g.in_per_group();
        while left.len() > 1 {
            options.go_on()?;
            let middle = left.start + left.len() / 2;
            let halves = [left.start..middle, middle..left.end];
            let mut worst = f64::NEG_INFINITY;
            for half in halves {
                let mut tally = Tally::default();
                let mut maps = Maps::zeros(g.inputs(), 2, g.extent());
                let mut numbers = SplitMix64::new(options.seed);
                let area = g.taps();
                // The first map stays one of zeros, as in all dense inputs.
                for channel in half.clone() {
                    let map = &mut maps.data_mut()[(2 * channel + 1) * area..][..area];
                    map.fill_with(|| 2.0 * numbers.next_unit() - 1.0);
                }
                one.over(&Input::Dense(maps), POINT, reader, &mut tally)?;
                if is_worse(tally.ratio, worst) {
                    (worst, left) = (tally.ratio, half);
                }
            }
        }
        let channel = left.start - first;
        let spikes = Spikes {
            per_group: g.in_per_group(),
            channels: channel..channel + 1,
            amplitude: self.amplitude,
        };
        let mut tally = Tally::default();
        one.over(&Input::Spikes(spikes), g.extent(), reader, &mut tally)?;
        let named = tally.ratio.is_nan() || tally.ratio > options.tolerance;
        Ok(tally.at.filter(|_| named))
    }
}
