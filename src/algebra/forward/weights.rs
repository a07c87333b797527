//! Some output channels of a conv, run over maps.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice, linalg::general_mat_mul};

use super::maps::Maps;
use super::{Impulses, Reading};
use crate::algebra::expr::{Operand, Values};
use crate::algebra::extent::{Extent, POINT, flat, position, volume};
use crate::algebra::part::{Kernel, Layout};
use crate::algebra::shape::Geometry;

/// Rows of a group that are run one by one.
const FEW: usize = 3;

/// Numbers of the patches that are laid out at a time.
const PATCH_VALUES: usize = 1 << 21;

/// Some output channels of a conv weight.
pub(super) struct Weights {
    geometry: Geometry,
    taps: Extent,
    dilation: Extent,
    rows: Range<usize>,
    /// `[rows, in/groups, kd, kh, kw]`.
    data: Vec<f64>,
}

impl Weights {
    /// Reads output channels `rows` of a conv.
    pub(super) fn read<T: Operand, V: Values<T>>(
        kernel: &Kernel<T>,
        geometry: Geometry,
        rows: Range<usize>,
        reading: Reading,
        values: &mut V,
    ) -> Result<Weights, V::Error> {
        let taps = volume(kernel.taps);
        let row = geometry.in_per_group() * taps;
        let (weight, len) = (&kernel.weight, rows.len());
        let mut data = match kernel.layout {
            Layout::Plain => values.vector(weight, rows.start * row, len * row)?,
            Layout::Shared => values.vector(weight, 0, taps)?.repeat(len),
            Layout::Transposed => transposed(weight, &geometry, taps, rows.clone(), values)?,
        };
        // Seen as a plain conv, over a map with zeros between the pixels, a transposed one has its taps turned by 180°, too.
        if kernel.flipped || kernel.layout == Layout::Transposed {
            data = turned(&data, taps);
        }
        if reading != Reading::Value {
            data.iter_mut().for_each(|w| *w = reading.of(*w));
        }
        Ok(Weights {
            geometry,
            taps: kernel.taps,
            dilation: kernel.dilation,
            rows,
            data,
        })
    }

    fn row(&self, local: usize) -> &[f64] {
        let len = self.geometry.in_per_group() * volume(self.taps);
        &self.data[local * len..][..len]
    }

    /// A valid convolution. The maps have the size that `want` needs.
    pub(super) fn over(&self, x: &Maps, want: Extent) -> Maps {
        let count = self.rows.len();
        let mut out = Maps::zeros(count, x.maps(), want);
        let columns = x.maps() * volume(want);
        let first_of = |local: usize| self.geometry.first_input(self.rows.start + local);
        let mut local = 0;
        while local < count {
            let first = first_of(local);
            let same_group = (local..count).take_while(|l| first_of(*l) == first).count();
            let rows = local..local + same_group;
            let maps = &mut out.data_mut()[local * columns..][..same_group * columns];
            match same_group <= FEW {
                true => self.one_by_one(rows, first, x, want, maps),
                false => self.by_patches(rows, first, x, want, maps),
            }
            local += same_group;
        }
        out
    }

    /// Each row by itself, tap after tap: what is read once or twice need not be laid out for it.
    fn one_by_one(
        &self,
        rows: Range<usize>,
        first: usize,
        x: &Maps,
        want: Extent,
        out: &mut [f64],
    ) {
        let (taps, width) = (volume(self.taps), want[2]);
        let columns = x.maps() * volume(want);
        for (local, out) in rows.zip(out.chunks_exact_mut(columns)) {
            for (i, w) in self.row(local).iter().enumerate() {
                let (channel, at) = (first + i / taps, self.offset(i % taps));
                for (line, to) in out.chunks_exact_mut(width).enumerate() {
                    let from = self.seen(x, channel, at, line, want);
                    to.iter_mut().zip(from).for_each(|(y, x)| *y += w * x);
                }
            }
        }
    }

    /// A matrix of kernels times a matrix of patches, so many output lines at a time that the patches stay few.
    fn by_patches(
        &self,
        rows: Range<usize>,
        first: usize,
        x: &Maps,
        want: Extent,
        out: &mut [f64],
    ) {
        let (width, depth) = (want[2], self.geometry.in_per_group() * volume(self.taps));
        let lines = x.maps() * want[0] * want[1];
        let step = (PATCH_VALUES / (depth * width).max(1)).clamp(1, lines.max(1));
        let kernels = &self.data[rows.start * depth..][..rows.len() * depth];
        let mut patches = Vec::new();
        for begin in (0..lines).step_by(step) {
            let now = begin..(begin + step).min(lines);
            patches.resize(depth * now.len() * width, 0.0);
            let mut to = patches.chunks_exact_mut(width);
            for channel in first..first + self.geometry.in_per_group() {
                for tap in 0..volume(self.taps) {
                    let at = self.offset(tap);
                    for (line, to) in now.clone().zip(&mut to) {
                        to.copy_from_slice(self.seen(x, channel, at, line, want));
                    }
                }
            }
            let columns = begin * width..now.end * width;
            multiply([rows.len(), depth], kernels, &patches, columns, out);
        }
    }

    /// What a tap at `at` sees of a channel for a line of outputs; lines are counted over maps, planes and rows.
    fn seen<'a>(
        &self,
        x: &'a Maps,
        channel: usize,
        at: Extent,
        line: usize,
        want: Extent,
    ) -> &'a [f64] {
        let (map, y) = (line / (want[0] * want[1]), line % want[1]);
        let z = line / want[1] % want[0];
        let map = (channel * x.maps() + map) * volume(x.size());
        let from = flat([z + at[0], y + at[1], at[2]], x.size());
        &x.data()[map + from..][..want[2]]
    }

    /// Where a tap lies in the extent of the kernel.
    fn offset(&self, tap: usize) -> Extent {
        let at = position(tap, self.taps);
        [0, 1, 2].map(|axis| at[axis] * self.dilation[axis])
    }

    /// The same over impulses, where every product but one per tap is zero, or one of what lies beside the spikes.
    ///
    /// With the spike at the centre, a tap answers at the mirrored place of the output.
    pub(super) fn over_impulses(&self, impulses: &Impulses, want: Extent) -> Maps {
        let Impulses {
            per_group,
            channels,
            levels,
        } = impulses;
        let mut out = Maps::zeros(self.rows.len(), channels.len(), want);
        let extent = self.geometry.extent();
        let (area, taps) = (volume(want), volume(self.taps));
        let places: Vec<Option<usize>> = (0..taps).map(|tap| self.answer(tap, want)).collect();
        let plain = extent == want && self.dilation == POINT;
        let is_dark = levels.iter().all(|[beside, _]| *beside == 0.0);
        for (local, o) in self.rows.clone().enumerate() {
            let maps = &mut out.data_mut()[local * channels.len() * area..];
            let maps = &mut maps[..channels.len() * area];
            let first = self.geometry.first_input(o);
            let levels = &levels[first..][..self.geometry.in_per_group()];
            let beside = match is_dark {
                true => 0.0,
                false => {
                    let kernels = self.row(local).chunks_exact(taps);
                    let sums = kernels.map(|kernel| kernel.iter().sum::<f64>());
                    sums.zip(levels)
                        .map(|(sum, [beside, _])| sum * beside)
                        .sum()
                }
            };
            if !is_dark {
                maps.fill(beside);
            }
            // This conv sees a part of the group in whose channels the spikes lie.
            let skipped = first % per_group;
            for (map, channel) in maps.chunks_exact_mut(area).zip(channels.clone()) {
                let seen = channel.checked_sub(skipped);
                let Some(input) = seen.filter(|i| *i < levels.len()) else {
                    continue;
                };
                let kernel = &self.row(local)[input * taps..][..taps];
                let height = levels[input][1] - levels[input][0];
                if plain {
                    let mirrored = map.iter_mut().rev().zip(kernel);
                    mirrored.for_each(|(y, w)| *y = beside + height * w);
                    continue;
                }
                for (place, w) in places.iter().zip(kernel) {
                    if let Some(place) = place {
                        map[*place] = beside + height * w;
                    }
                }
            }
        }
        out
    }

    /// Where in a window of size `want` a tap answers to a spike; nowhere if it lies outside.
    fn answer(&self, tap: usize, want: Extent) -> Option<usize> {
        let (at, extent) = (self.offset(tap), self.geometry.extent());
        let mut place = [0; 3];
        for axis in 0..3 {
            // The response is as large as the kernel, and centred in the window, which may be smaller.
            let mirrored = extent[axis] - 1 - at[axis];
            let window = want[axis] as isize;
            let start = (window - extent[axis] as isize) / 2;
            let along = start + mirrored as isize;
            place[axis] = usize::try_from(along).ok().filter(|p| *p < want[axis])?;
        }
        Some(flat(place, want))
    }
}

/// Output channels `rows` of the weight of a transposed conv, as `[rows, in/groups, taps]` with the taps as they are stored.
fn transposed<T: Operand, V: Values<T>>(
    weight: &T,
    geometry: &Geometry,
    taps: usize,
    rows: Range<usize>,
    values: &mut V,
) -> Result<Vec<f64>, V::Error> {
    let (width, per_group) = (geometry.out_per_group(), geometry.in_per_group());
    let mut kernel = vec![0.0; rows.len() * per_group * taps];
    let mut beside = Vec::new();
    let mut first = rows.start;
    while first < rows.end {
        // Of each input channel, the output channels of its group lie side by side.
        let (group, skipped) = (first / width, first % width);
        let last = rows.end.min(first - skipped + width);
        beside.resize((last - first) * taps, 0.0);
        for i in 0..per_group {
            let input = group * per_group + i;
            values.read(weight, (input * width + skipped) * taps, &mut beside)?;
            for (row, from) in (first - rows.start..).zip(beside.chunks_exact(taps)) {
                kernel[(row * per_group + i) * taps..][..taps].copy_from_slice(from);
            }
        }
        first = last;
    }
    Ok(kernel)
}

/// Kernels of `taps` taps each, turned by 180°: the last tap comes first.
fn turned(kernels: &[f64], taps: usize) -> Vec<f64> {
    let tap = |i: usize| kernels[i / taps * taps + (taps - 1 - i % taps)];
    (0..kernels.len()).map(tap).collect()
}

/// Some columns of `out = a · b`, of `[rows, depth]` and `[depth, columns]`.
///
/// # Panics
/// When the slices have other lengths.
fn multiply(
    [rows, depth]: [usize; 2],
    a: &[f64],
    b: &[f64],
    columns: Range<usize>,
    out: &mut [f64],
) {
    let (fits, all) = ("as many numbers as rows and columns", out.len() / rows);
    let a = ArrayView2::from_shape((rows, depth), a).expect(fits);
    let b = ArrayView2::from_shape((depth, columns.len()), b).expect(fits);
    let mut out = ArrayViewMut2::from_shape((rows, all), out).expect(fits);
    let mut out = out.slice_axis_mut(Axis(1), Slice::from(columns));
    general_mat_mul(1.0, &a, &b, 0.0, &mut out);
}
