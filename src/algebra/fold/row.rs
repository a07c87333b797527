//! One output channel of a stored weight, by itself or composed with what stands before it.

use super::Affine;
use super::taps::{add_at, add_scaled, spread};
use crate::algebra::expr::{Operand, Values};
use crate::algebra::extent::{Extent, POINT, flat, grown, position, volume};
use crate::algebra::part::{Kernel, Layout};
use crate::algebra::shape::Geometry;

/// One output channel of a stored weight, and which inputs it sees.
pub(super) struct Row {
    pub first: usize,
    pub taps: Extent,
    pub extent: Extent,
    dilation: Extent,
}

/// Reads output channel `o` of a conv as `[in/groups, kd, kh, kw]`.
pub(super) fn read_row<T: Operand, V: Values<T>>(
    kernel: &Kernel<T>,
    geometry: &Geometry,
    o: usize,
    values: &mut V,
    row: &mut Vec<f64>,
) -> Result<Row, V::Error> {
    let taps = volume(kernel.taps);
    let (width, per_group) = (geometry.out_per_group(), geometry.in_per_group());
    row.resize(per_group * taps, 0.0);
    match kernel.layout {
        Layout::Transposed => {
            // `[in, out/groups, …]`: gather the output channel from every input channel of its group.
            // Seen as a plain conv, over a map with zeros between the pixels, its taps are turned by 180°.
            let (group, column) = (o / width, o % width);
            for (i, map) in row.chunks_exact_mut(taps).enumerate() {
                let input = group * per_group + i;
                values.read(&kernel.weight, (input * width + column) * taps, map)?;
                map.reverse();
            }
        }
        Layout::Plain => values.read(&kernel.weight, o * row.len(), row)?,
        Layout::Shared => values.read(&kernel.weight, 0, row)?,
    }
    if kernel.flipped {
        row.chunks_exact_mut(taps).for_each(<[f64]>::reverse);
    }
    Ok(Row {
        first: geometry.first_input(o),
        taps: kernel.taps,
        extent: geometry.extent(),
        dilation: kernel.dilation,
    })
}

impl Row {
    /// What the inner bias contributes: every tap sees it, for a valid conv never leaves its map.
    pub(super) fn through_bias(&self, weight: &[f64], inner: &[f64]) -> f64 {
        let sums = weight
            .chunks_exact(volume(self.taps))
            .map(|kernel| kernel.iter().sum::<f64>());
        sums.zip(&inner[self.first..])
            .map(|(sum, bias)| sum * bias)
            .sum()
    }

    /// Composes this row with an inner kernel: `Σ_t w[t] ∗ inner[t]`, as `[in/groups, d, h, w]` for the
    /// groups that the composition has; returns its extent and first input channel.
    pub(super) fn through(
        &self,
        weight: &[f64],
        inner: &Affine,
        o: usize,
        whole: &Geometry,
        [out, by_tap]: [&mut Vec<f64>; 2],
    ) -> (Extent, usize) {
        let of_inner = inner.geometry.extent();
        let extent = grown(self.extent, of_inner);
        let area = volume(extent);
        // The channels of the whole kernel's group hold those of the composition's.
        let (start, width) = (whole.first_input(o), whole.in_per_group());
        out.clear();
        out.resize(width * area, 0.0);
        let mut apart = Vec::new();
        let weight = match self.dilation {
            [1, 1, 1] => weight,
            _ => spread(weight, self.taps, self.extent, self.dilation, &mut apart),
        };
        let kernels = weight.chunks_exact(volume(self.extent));
        let inner_rows = (self.first..).map(|t| {
            let channel = inner.geometry.first_input(t) - start;
            (inner.row(t), channel)
        });
        if self.extent == POINT {
            for (w, (row, channel)) in weight.iter().zip(inner_rows) {
                add_scaled(row, *w, &mut out[channel * area..]);
            }
        } else if of_inner == POINT {
            // Tap by tap, for so the channels lie side by side.
            by_tap.clear();
            by_tap.resize(area * width, 0.0);
            for (kernel, (row, channel)) in kernels.zip(inner_rows) {
                for (w, map) in kernel.iter().zip(by_tap.chunks_exact_mut(width)) {
                    add_scaled(row, *w, &mut map[channel..]);
                }
            }
            for (c, map) in out.chunks_exact_mut(area).enumerate() {
                let taps = by_tap[c..].iter().step_by(width);
                map.iter_mut().zip(taps).for_each(|(to, w)| *to = *w);
            }
        } else {
            for (kernel, (row, channel)) in kernels.zip(inner_rows) {
                let maps = out[channel * area..].chunks_exact_mut(area);
                for (taps, map) in row.chunks_exact(volume(of_inner)).zip(maps) {
                    // Either kernel may move over the other: the larger one moves, in fewer and longer steps.
                    let (steps, places, moved, reach) = match taps.len() < kernel.len() {
                        true => (taps, of_inner, kernel, self.extent),
                        false => (kernel, self.extent, taps, of_inner),
                    };
                    for (i, w) in steps.iter().enumerate() {
                        let at = flat(position(i, places), extent);
                        add_at(moved, reach, *w, &mut map[at..], extent);
                    }
                }
            }
        }
        (extent, start)
    }
}
