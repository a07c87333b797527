//! One output channel of a stored weight, by itself or composed with what stands before it.

use super::Affine;
use super::taps::{add_at, add_scaled, spread};
use crate::algebra::expr::{Conv, Operand, Values};
use crate::algebra::shape::{Geometry, channels, dilated, first_input, four_dims};

/// One output channel of a stored weight, and which inputs it sees.
pub(super) struct Row {
    pub first: usize,
    pub kernel: [usize; 2],
    pub extent: [usize; 2],
    dilation: [usize; 2],
}

/// Reads output channel `o` of a conv as `[in/groups, kh, kw]`.
pub(super) fn read_row<T: Operand, V: Values<T>>(
    conv: &Conv<T>,
    o: usize,
    values: &mut V,
    row: &mut Vec<f64>,
) -> Result<Row, V::Error> {
    let [_, second, kh, kw] = four_dims(conv.weight.shape()).unwrap_or([0; 4]);
    let (taps, groups) = (kh * kw, conv.groups.unwrap_or(1));
    let [out, per_group] = channels(conv);
    row.resize(per_group * taps, 0.0);
    if conv.transposed {
        // `[in, out/groups, kh, kw]`: gather the output channel from every input channel of its group.
        // Seen as a plain conv, over a map with zeros between the pixels, its taps are turned by 180°.
        let (group, column) = (o / second, o % second);
        for (i, kernel) in row.chunks_exact_mut(taps).enumerate() {
            values.read(
                &conv.weight,
                ((group * per_group + i) * second + column) * taps,
                kernel,
            )?;
            kernel.reverse();
        }
    } else {
        let start = if conv.shared { 0 } else { o * row.len() };
        values.read(&conv.weight, start, row)?;
        if conv.flipped {
            row.chunks_exact_mut(taps).for_each(<[f64]>::reverse);
        }
    }
    let extent = dilated([kh, kw], conv.dilation).unwrap_or([kh, kw]);
    Ok(Row {
        first: first_input(o, out, groups, per_group),
        kernel: [kh, kw],
        extent,
        dilation: conv.dilation,
    })
}

impl Row {
    /// What the inner bias contributes: every tap sees it, for a valid conv never leaves its map.
    pub(super) fn through_bias(&self, weight: &[f64], inner: &[f64]) -> f64 {
        let taps = self.kernel[0] * self.kernel[1];
        let sums = weight
            .chunks_exact(taps)
            .map(|kernel| kernel.iter().sum::<f64>());
        sums.zip(&inner[self.first..])
            .map(|(sum, bias)| sum * bias)
            .sum()
    }

    /// Composes this row with an inner kernel: `Σ_t w[t] ∗ inner[t]`, as `[in/groups, h, w]` for the
    /// groups that the composition has; returns its extent and first input channel.
    pub(super) fn through(
        &self,
        weight: &[f64],
        inner: &Affine,
        o: usize,
        whole: &Geometry,
        [out, by_tap]: [&mut Vec<f64>; 2],
    ) -> ([usize; 2], usize) {
        let [ih, iw] = inner.geometry.extent;
        let extent = [self.extent[0] + ih - 1, self.extent[1] + iw - 1];
        // The channels of the whole kernel's group hold those of the composition's.
        let (start, width) = (whole.first_input(o), whole.in_per_group());
        out.clear();
        out.resize(width * extent[0] * extent[1], 0.0);
        let mut apart = Vec::new();
        let weight = match self.dilation {
            [1, 1] => weight,
            _ => spread(weight, self.kernel, self.extent, self.dilation, &mut apart),
        };
        let area = extent[0] * extent[1];
        let kernels = weight.chunks_exact(self.extent[0] * self.extent[1]);
        let inner_rows = (self.first..).map(|t| {
            let channel = inner.geometry.first_input(t) - start;
            (inner.row(t), channel)
        });
        if self.extent == [1, 1] {
            for (w, (row, channel)) in weight.iter().zip(inner_rows) {
                add_scaled(row, *w, &mut out[channel * area..]);
            }
        } else if [ih, iw] == [1, 1] {
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
                for (taps, map) in row.chunks_exact(ih * iw).zip(maps) {
                    // Either kernel may move over the other: the larger one moves, in fewer and longer steps.
                    let (steps, width, moved, moved_width) = match taps.len() < kernel.len() {
                        true => (taps, iw, kernel, self.extent[1]),
                        false => (kernel, self.extent[1], taps, iw),
                    };
                    for (i, w) in steps.iter().enumerate() {
                        let at = i / width * extent[1] + i % width;
                        add_at(moved, moved_width, *w, &mut map[at..], extent[1]);
                    }
                }
            }
        }
        (extent, start)
    }
}
