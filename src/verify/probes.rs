//! The inputs that are tried on a block.

use std::borrow::Cow;

use crate::algebra::Geometry;
use crate::algebra::extent::volume;
use crate::algebra::forward::{Input, Maps, Reading, Spikes};
use crate::verify::random::SplitMix64;

/// How high spikes are, given the largest weight: so high that every bias vanishes beside the smallest weight, and not so high
/// that the squares of what comes out go beyond the largest f64. A power of two, so that it rounds nothing.
pub(super) fn amplitude(largest: f64) -> f64 {
    let bits = largest.max(f64::MIN_POSITIVE).log2().ceil();
    2.0_f64.powf((400.0 - bits).min(120.0))
}

/// One map of zeros and some random ones, each as large as the kernel.
pub(super) fn maps(g: &Geometry, random: usize, seed: u64) -> Input {
    let mut maps = Maps::zeros(g.inputs(), 1 + random, g.extent());
    let area = g.taps();
    let mut numbers = SplitMix64::new(seed);
    for (i, x) in maps.data_mut().iter_mut().enumerate() {
        if !(i / area).is_multiple_of(1 + random) {
            *x = 2.0 * numbers.next_unit() - 1.0;
        }
    }
    Input::Dense(maps)
}

/// The same input as a reading sees it.
pub(super) fn as_read(input: &Input, reading: Reading) -> Cow<'_, Input> {
    if reading == Reading::Value {
        return Cow::Borrowed(input);
    }
    Cow::Owned(match input {
        Input::Dense(maps) => {
            let mut maps = maps.clone();
            let values = maps.data_mut().iter_mut();
            values.for_each(|x| *x = reading.of(*x));
            Input::Dense(maps)
        }
        Input::Spikes(spikes) => Input::Spikes(Spikes {
            amplitude: reading.of(spikes.amplitude),
            ..spikes.clone()
        }),
    })
}

/// What the roundings of subnormal numbers are multiplied by at most.
pub(super) fn input_size(input: &Input) -> f64 {
    match input {
        Input::Dense(maps) => 1.0 + (maps.channels() * volume(maps.size())) as f64,
        Input::Spikes(spikes) => 1.0 + spikes.amplitude,
    }
}
