//! A block that is run on recorded maps, and how its output compares with what was recorded.

use std::ops::Range;

use ndarray::{Array4, ArrayView4, Axis, Slice};

use super::activation::{Activation, TRIED};
use super::after::After;
use super::lie::inside;
use crate::algebra::Resolved;
use crate::algebra::forward::Reading;
use crate::conv2d::block::{self, Placement, pad, run_part};
use crate::tensor::{Checkpoint, Float, Reader, Tensor};
use crate::verify::{is_worse, ratio, while_running, worse};

/// Fewer numbers than these that tell anything are no comparison.
pub(super) const LEAST_TOLD: u64 = 4;

/// A block that has been run.
pub(super) struct Tried {
    pub placement: Placement,
    /// Its output, before any activation.
    pub value: Array4<f64>,
    /// What arithmetic in the recorded type may be off by.
    pub bound: Array4<f64>,
    pub float: Float,
    /// The rows and columns that see no padding.
    pub within: [Range<usize>; 2],
}

impl Tried {
    pub(super) fn run(
        checkpoint: &Checkpoint,
        block: &Resolved<Tensor>,
        x: ArrayView4<'_, f64>,
        placement: &Placement,
        float: Float,
    ) -> Result<Tried, block::Error> {
        let padded = pad(x, placement)?;
        let mut reader = Reader::new(checkpoint, 1 << 20);
        let mut run = |part: &_, reading: Reading| {
            let x = padded.mapv(|x| reading.of(x));
            run_part(
                block,
                part,
                x.view(),
                placement.stride,
                reading,
                &mut reader,
            )
        };
        let value = run(block.root(), Reading::Value)?;
        let mut off = while_running(float, block, |part, reading| {
            Ok::<_, block::Error>(run(part, reading)?.into_iter().collect())
        })?;
        let (unit, least) = (float.unit_roundoff(), float.half_subnormal());
        for (off, y) in off.iter_mut().zip(&value) {
            *off += unit * y.abs() + least;
        }
        // As many as there are outputs.
        let bound = Array4::from_shape_vec(value.dim(), off).expect("a bound for each output");
        let (_, _, h, w) = x.dim();
        let (_, _, oh, ow) = value.dim();
        let within = |axis: usize, [input, output]: [usize; 2]| {
            let (stride, padding) = (placement.stride[axis], placement.padding[axis]);
            inside(
                input,
                block.geometry().extent()[axis + 1],
                stride,
                padding,
                output,
            )
        };
        Ok(Tried {
            placement: *placement,
            within: [within(0, [h, oh]), within(1, [w, ow])],
            value,
            bound,
            float,
        })
    }

    /// The same behind a norm.
    pub(super) fn behind(self, norm: &After) -> Tried {
        let unit = self.float.unit_roundoff();
        Tried {
            bound: norm.off(&self.value, &self.bound, unit),
            value: norm.of(&self.value),
            ..self
        }
    }

    /// The activation that fits best, over all outputs if these fit, else over those that see no padding.
    pub(super) fn compare(self, y: ArrayView4<'_, f64>) -> Fit {
        let (_, _, oh, ow) = y.dim();
        let all = self.over(y, 0..oh, 0..ow);
        let found = match all.accepted() {
            true => all,
            false => {
                // A border that is padded otherwise says nothing of the block's weights, of which every one is seen inside.
                let [rows, columns] = self.within.clone();
                let within = self.over(y, rows, columns);
                if within.told >= LEAST_TOLD {
                    within
                } else {
                    all
                }
            }
        };
        Fit { tried: self, found }
    }

    /// The activation with which these rows and columns fit best.
    fn over(&self, y: ArrayView4<'_, f64>, rows: Range<usize>, columns: Range<usize>) -> Found {
        let [first, others @ ..] = TRIED;
        let mut best = self.with(first, y, rows.clone(), columns.clone());
        for activation in others {
            if best.accepted() {
                break;
            }
            let found = self.with(activation, y, rows.clone(), columns.clone());
            if found.accepted() || is_worse(best.ratio, found.ratio) {
                best = found;
            }
        }
        best
    }

    /// Whether the outputs that see no padding fit with an activation.
    pub(super) fn fits(&self, activation: Activation, y: ArrayView4<'_, f64>) -> bool {
        let [rows, columns] = self.within.clone();
        self.with(activation, y, rows, columns).accepted()
    }

    fn with(
        &self,
        activation: Activation,
        y: ArrayView4<'_, f64>,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Found {
        let [top, left] = [rows.start, columns.start];
        let window = |maps: ArrayView4<'_, f64>| -> Array4<f64> {
            let rows = maps.slice_axis(Axis(2), Slice::from(rows.clone()));
            rows.slice_axis(Axis(3), Slice::from(columns.clone()))
                .to_owned()
        };
        let mut found = Found {
            activation,
            compared: 0,
            told: 0,
            squares: 0.0,
            ratio: 0.0,
            absolute: 0.0,
            at: [0; 4],
        };
        let unit = self.float.unit_roundoff();
        let (z, bound) = (window(self.value.view()), window(self.bound.view()));
        for (((at, z), y), bound) in z.indexed_iter().zip(&window(y)).zip(&bound) {
            let off = (activation.of(*z) - y).abs();
            let allowed = activation.steepest() * bound + activation.rounding(*z, unit);
            let ratio = ratio(off, allowed);
            found.compared += 1;
            found.told += u64::from(activation.shows(*z));
            found.squares += ratio * ratio;
            found.absolute = worse(found.absolute, off);
            if is_worse(ratio, found.ratio) {
                found.ratio = ratio;
                found.at = [at.0, at.1, at.2 + top, at.3 + left];
            }
        }
        found
    }
}

/// How the outputs compare with an activation.
pub(super) struct Found {
    pub activation: Activation,
    pub compared: u64,
    /// Of these, how many tell anything.
    pub told: u64,
    /// The sum of the squares of all ratios.
    pub squares: f64,
    pub ratio: f64,
    pub absolute: f64,
    pub at: [usize; 4],
}

impl Found {
    pub(super) fn accepted(&self) -> bool {
        self.told >= LEAST_TOLD && self.ratio <= 1.0
    }
}

/// A block that has been run, and how it compares.
pub(super) struct Fit {
    pub tried: Tried,
    pub found: Found,
}
