//! One recorded block: run as the plan says, and compared with what was recorded.

use std::ops::Range;

use ndarray::{Array4, ArrayView4, Axis, Slice};

use super::activation::{Activation, TRIED};
use super::after::{After, norms_after};
use super::explain::{Seen, explain};
use super::lie::{inside, placements};
use super::{Error, RecordVerdict, in_four_dims};
use crate::algebra::Resolved;
use crate::algebra::forward::Reading;
use crate::conv2d::block::{self, Placement, pad, run_part};
use crate::plan::{Block, Plan, PlannedConv};
use crate::tensor::{Checkpoint, Float, Reader, Tensor};
use crate::verify::{is_worse, ratio, while_running, worse};

/// What was recorded of a block.
pub(super) struct Maps<'a> {
    pub input: Vec<f64>,
    pub input_shape: &'a [usize],
    pub output: Vec<f64>,
    pub output_shape: &'a [usize],
    pub float: Float,
}

/// Fewer numbers than these that tell anything are no comparison.
const LEAST_TOLD: u64 = 4;

/// The most multiply-adds for a record.
const MOST_WORK: f64 = 1e13;

/// Compares a record with the convs that it may be of; the reason, where it cannot be compared.
///
/// Where there are several convs, the record may as well be of all of them together, and only one that fits is evidence.
///
/// # Errors
/// When a value cannot be read.
pub(super) fn record(
    checkpoint: &Checkpoint,
    plan: &Plan,
    name: &str,
    convs: &[(&Block, &PlannedConv)],
    maps: &Maps<'_>,
) -> Result<Result<RecordVerdict, String>, Error> {
    let mut reason = String::new();
    for conv in convs {
        match one(checkpoint, plan, name, *conv, maps)? {
            Ok(verdict) if verdict.accepted || convs.len() == 1 => return Ok(Ok(verdict)),
            Ok(_) => {}
            Err(why) => reason = why,
        }
    }
    Ok(Err(match convs.len() {
        1 => reason,
        n => format!("it becomes {n} convs, none of which alone computes what was recorded"),
    }))
}

fn one(
    checkpoint: &Checkpoint,
    plan: &Plan,
    name: &str,
    (of, fused): (&Block, &PlannedConv),
    maps: &Maps<'_>,
) -> Result<Result<RecordVerdict, String>, Error> {
    let g = fused.geometry();
    let four = |shape, values: &[f64], channels| in_four_dims(shape, values.to_vec(), channels);
    let input = four(maps.input_shape, &maps.input, g.inputs());
    let output = four(maps.output_shape, &maps.output, g.out());
    let (Some(x), Some(y)) = (input, output) else {
        return Ok(Err(format!(
            "its maps have the shapes {:?} and {:?}; expected [maps, channels, height, width]",
            maps.input_shape, maps.output_shape
        )));
    };
    if g.transposed() {
        return Ok(Err(
            "it is a transposed conv, which is not run on maps".to_owned()
        ));
    }
    let (n, channels, h, w) = x.dim();
    let (maps_out, out, oh, ow) = y.dim();
    let block = match fused.expr.for_inputs(channels) {
        Ok(block) => block,
        Err(e) => return Ok(Err(format!("the block does not take its maps: {e}"))),
    };
    let g = block.geometry();
    if maps_out != n || out != g.out() {
        return Ok(Err(format!(
            "the block makes {n} × {} maps of its input; {maps_out} × {out} were recorded",
            g.out()
        )));
    }
    if y.len() as f64 * g.row_len() as f64 > MOST_WORK {
        return Ok(Err(
            "its maps are too large; record a smaller image".to_owned()
        ));
    }
    let placements = placements([h, w], [g.extent()[1], g.extent()[2]], [oh, ow]);
    let failed = |source| Error::Run {
        block: fused.module.clone(),
        source: Box::new(source),
    };
    let run = |placement: &Placement| {
        let tried = Tried::run(checkpoint, &block, x.view(), placement, maps.float);
        tried.map_err(failed)
    };
    let mut best: Option<Fit> = None;
    let mut after = None;
    for placement in &placements {
        let fit = run(placement)?.compare(y.view());
        let accepted = fit.found.accepted();
        let better = |best: &Fit| is_worse(best.found.ratio, fit.found.ratio);
        if accepted || best.as_ref().is_none_or(better) {
            best = Some(fit);
        }
        if accepted {
            break;
        }
    }
    if best.as_ref().is_some_and(|best| !best.found.accepted()) {
        // The block may be recorded behind a norm that is left where it is.
        'tried: for norm in norms_after(checkpoint, plan, of, out)? {
            for placement in &placements {
                let fit = run(placement)?.behind(&norm).compare(y.view());
                if fit.found.accepted() {
                    (best, after) = (Some(fit), Some(norm.module));
                    break 'tried;
                }
            }
        }
    }
    let Some(Fit { tried, found }) = best else {
        return Ok(Err(format!(
            "no usual stride and padding make maps of {oh}×{ow} of maps of {h}×{w} with a kernel of {}×{}",
            g.extent()[1],
            g.extent()[2]
        )));
    };
    if found.told < LEAST_TOLD {
        return Ok(Err(
            "too little of its output is in sight: the maps are too small, or all zero".to_owned(),
        ));
    }
    let accepted = found.accepted();
    let mut why = None;
    if !accepted {
        let seen = Seen {
            checkpoint,
            block: &block,
            x: x.view(),
            y: y.view(),
            after: None,
        };
        why = explain(&seen, &tried).map_err(failed)?;
        for norm in norms_after(checkpoint, plan, of, out)? {
            if why.is_none() {
                let tried = run(&tried.placement)?.behind(&norm);
                let seen = Seen {
                    after: Some(&norm),
                    ..seen
                };
                why = explain(&seen, &tried).map_err(failed)?;
            }
        }
    }
    Ok(Ok(RecordVerdict {
        name: name.to_owned(),
        module: fused.module.clone(),
        float: maps.float,
        activation: found.activation,
        after,
        stride: tried.placement.stride,
        padding: tried.placement.padding,
        compared: found.compared,
        recorded: y.len() as u64,
        ratio: found.ratio,
        rms: (found.squares / found.compared as f64).sqrt(),
        absolute: found.absolute,
        at: found.at,
        accepted,
        why,
    }))
}

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
    fn behind(self, norm: &After) -> Tried {
        let unit = self.float.unit_roundoff();
        Tried {
            bound: norm.off(&self.value, &self.bound, unit),
            value: norm.of(&self.value),
            ..self
        }
    }

    /// The activation that fits best, over all outputs if these fit, else over those that see no padding.
    fn compare(self, y: ArrayView4<'_, f64>) -> Fit {
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
        let mut best: Option<Found> = None;
        for activation in TRIED {
            let found = self.with(activation, y, rows.clone(), columns.clone());
            if found.accepted() {
                return found;
            }
            if best
                .as_ref()
                .is_none_or(|best| is_worse(best.ratio, found.ratio))
            {
                best = Some(found);
            }
        }
        best.unwrap_or_else(|| self.with(Activation::Identity, y, rows, columns))
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
struct Found {
    activation: Activation,
    compared: u64,
    /// Of these, how many tell anything.
    told: u64,
    /// The sum of the squares of all ratios.
    squares: f64,
    ratio: f64,
    absolute: f64,
    at: [usize; 4],
}

impl Found {
    fn accepted(&self) -> bool {
        self.told >= LEAST_TOLD && self.ratio <= 1.0
    }
}

/// A block that has been run, and how it compares.
struct Fit {
    tried: Tried,
    found: Found,
}
