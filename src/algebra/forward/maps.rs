//! Feature maps, and what can be done to them without a weight.

use std::borrow::Cow;
use std::ops::Range;

use crate::algebra::extent::{Extent, volume};

/// Feature maps, `[channels, maps, depth, height, width]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Maps {
    channels: usize,
    maps: usize,
    size: Extent,
    data: Vec<f64>,
}

impl Maps {
    /// Maps of zeros.
    pub fn zeros(channels: usize, maps: usize, size: Extent) -> Maps {
        Maps {
            channels,
            maps,
            size,
            data: vec![0.0; channels * maps * volume(size)],
        }
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// How many maps each channel has.
    pub fn maps(&self) -> usize {
        self.maps
    }

    /// `[depth, height, width]`.
    pub fn size(&self) -> Extent {
        self.size
    }

    /// `channels · maps · depth · height · width` values.
    pub fn data(&self) -> &[f64] {
        &self.data
    }

    /// The same, to be written.
    pub fn data_mut(&mut self) -> &mut [f64] {
        &mut self.data
    }

    /// The values alone.
    pub fn into_data(self) -> Vec<f64> {
        self.data
    }

    /// Values of one channel.
    fn channel_len(&self) -> usize {
        self.maps * volume(self.size)
    }

    pub(super) fn each_channel(&mut self, mut f: impl FnMut(usize, &mut [f64])) {
        let len = self.channel_len().max(1);
        let channels = self.data.chunks_exact_mut(len).enumerate();
        channels.for_each(|(c, map)| f(c, map));
    }

    /// Adds maps of the same size.
    pub(super) fn add(&mut self, other: &Maps) {
        let pairs = self.data.iter_mut().zip(&other.data);
        pairs.for_each(|(a, b)| *a += b);
    }

    /// Puts more channels behind these.
    pub(super) fn append(&mut self, other: Maps) {
        self.channels += other.channels;
        self.data.extend(other.data);
    }

    /// Some channels, in this order.
    pub(super) fn picked(&self, channels: impl ExactSizeIterator<Item = usize>) -> Maps {
        let len = self.channel_len();
        let mut data = Vec::with_capacity(channels.len() * len);
        let count = channels.len();
        channels.for_each(|c| data.extend_from_slice(&self.data[c * len..][..len]));
        Maps {
            channels: count,
            data,
            ..*self
        }
    }

    /// Channels side by side.
    pub(super) fn part(&self, channels: Range<usize>) -> Maps {
        match channels == (0..self.channels) {
            true => self.clone(),
            false => self.picked(channels),
        }
    }

    /// The centre of every map.
    pub(super) fn cropped(self, want: Extent) -> Maps {
        match self.size == want {
            true => self,
            false => self.centre(want).into_owned(),
        }
    }

    /// The same of maps that stay; the maps themselves if they have that size already.
    pub(super) fn centre(&self, want: Extent) -> Cow<'_, Maps> {
        if self.size == want {
            return Cow::Borrowed(self);
        }
        let middle = [0, 1, 2].map(|axis| (self.size[axis] - want[axis]) / 2);
        Cow::Owned(self.at(middle, want))
    }

    /// What every map is from this position on.
    pub(super) fn at(&self, [front, top, left]: Extent, want: Extent) -> Maps {
        let [_, h, w] = self.size;
        let area = volume(self.size);
        let mut data = Vec::with_capacity(self.channels * self.maps * volume(want));
        for map in self.data.chunks_exact(area) {
            for plane in map.chunks_exact(h * w).skip(front).take(want[0]) {
                for row in plane.chunks_exact(w).skip(top).take(want[1]) {
                    data.extend_from_slice(&row[left..left + want[2]]);
                }
            }
        }
        Maps {
            size: want,
            data,
            ..*self
        }
    }

    /// `weight` times the sum over each window, with stride 1 and no padding.
    pub(super) fn pooled(&self, window: Extent, weight: f64) -> Maps {
        // A sum over a window is one over its sums along an axis.
        let mut out = self.clone();
        for (axis, n) in window.into_iter().enumerate() {
            if n > 1 {
                out = out.summed(axis, n);
            }
        }
        out.data.iter_mut().for_each(|x| *x *= weight);
        out
    }

    /// The sums of `n` neighbours along an axis.
    fn summed(&self, axis: usize, n: usize) -> Maps {
        let mut size = self.size;
        size[axis] = self.size[axis] + 1 - n;
        let mut out = Maps::zeros(self.channels, self.maps, size);
        // Along the axis, lines of what lies behind it follow one another.
        let inner: usize = self.size[axis + 1..].iter().product();
        let of_each = |size: Extent| (size[axis] * inner).max(1);
        let from = self.data.chunks_exact(of_each(self.size));
        for (from, to) in from.zip(out.data.chunks_exact_mut(of_each(size))) {
            for (i, line) in to.chunks_exact_mut(inner).enumerate() {
                for neighbour in from[i * inner..].chunks_exact(inner).take(n) {
                    line.iter_mut().zip(neighbour).for_each(|(y, x)| *y += x);
                }
            }
        }
        out
    }
}
