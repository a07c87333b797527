//! One recorded block: run as the plan says, and compared with what was recorded.

use ndarray::Array4;

use super::after::{After, norms_after};
use super::explain::{Seen, explain};
use super::lie::placements;
use super::run::{Fit, LEAST_TOLD, Tried};
use super::{Error, RecordVerdict, in_four_dims};
use crate::algebra::Resolved;
use crate::conv2d::block::{self, Placement};
use crate::plan::{Block, Plan, PlannedConv};
use crate::tensor::{Checkpoint, Float, Tensor};
use crate::verify::is_worse;

/// What was recorded of a block.
pub(super) struct Maps<'a> {
    pub input: Vec<f64>,
    pub input_shape: &'a [usize],
    pub output: Vec<f64>,
    pub output_shape: &'a [usize],
    pub float: Float,
}

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

/// A record, the block that it is of, and its maps.
struct Recorded<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    of: &'a Block,
    fused: &'a PlannedConv,
    /// The block with the inputs that the maps have.
    block: Resolved<Tensor>,
    x: Array4<f64>,
    y: Array4<f64>,
    float: Float,
}

fn one(
    checkpoint: &Checkpoint,
    plan: &Plan,
    name: &str,
    (of, fused): (&Block, &PlannedConv),
    maps: &Maps<'_>,
) -> Result<Result<RecordVerdict, String>, Error> {
    let [x, y] = match in_maps(fused, maps) {
        Ok(maps) => maps,
        Err(reason) => return Ok(Err(reason)),
    };
    let block = match expect_fitting(fused, &x, &y) {
        Ok(block) => block,
        Err(reason) => return Ok(Err(reason)),
    };
    let recorded = Recorded {
        checkpoint,
        plan,
        of,
        fused,
        block,
        x,
        y,
        float: maps.float,
    };
    let Some((Fit { tried, found }, after)) = recorded.best()? else {
        let ([_, _, h, w], [_, _, oh, ow]) = (recorded.x.dim().into(), recorded.y.dim().into());
        let [_, rows, columns] = recorded.block.geometry().extent();
        return Ok(Err(format!(
            "no usual stride and padding make maps of {oh}×{ow} of maps of {h}×{w} with a kernel of {rows}×{columns}"
        )));
    };
    if found.told < LEAST_TOLD {
        return Ok(Err(
            "too little of its output is in sight: the maps are too small, or all zero".to_owned(),
        ));
    }
    let accepted = found.accepted();
    let why = match accepted {
        true => None,
        false => recorded.why(&tried)?,
    };
    Ok(Ok(RecordVerdict {
        name: name.to_owned(),
        module: fused.module.clone(),
        float: maps.float,
        activation: found.activation,
        after,
        stride: tried.placement.stride,
        padding: tried.placement.padding,
        compared: found.compared,
        recorded: recorded.y.len() as u64,
        ratio: found.ratio,
        rms: (found.squares / found.compared as f64).sqrt(),
        absolute: found.absolute,
        at: found.at,
        accepted,
        why,
    }))
}

/// The maps as `[maps, channels, height, width]`; the reason, where they are none.
fn in_maps(fused: &PlannedConv, maps: &Maps<'_>) -> Result<[Array4<f64>; 2], String> {
    let g = fused.geometry();
    let four = |shape, values: &[f64], channels| in_four_dims(shape, values.to_vec(), channels);
    let input = four(maps.input_shape, &maps.input, g.inputs());
    let output = four(maps.output_shape, &maps.output, g.out());
    match (input, output) {
        (Some(x), Some(y)) => Ok([x, y]),
        _ => Err(format!(
            "its maps have the shapes {:?} and {:?}; expected [maps, channels, height, width]",
            maps.input_shape, maps.output_shape
        )),
    }
}

/// The block for maps of these sizes; the reason, where it does not take them.
fn expect_fitting(
    fused: &PlannedConv,
    x: &Array4<f64>,
    y: &Array4<f64>,
) -> Result<Resolved<Tensor>, String> {
    if fused.geometry().transposed() {
        return Err("it is a transposed conv, which is not run on maps".to_owned());
    }
    let (n, channels, _, _) = x.dim();
    let (maps, out, _, _) = y.dim();
    let block = fused.expr.for_inputs(channels);
    let block = block.map_err(|e| format!("the block does not take its maps: {e}"))?;
    let g = block.geometry();
    if maps != n || out != g.out() {
        return Err(format!(
            "the block makes {n} × {} maps of its input; {maps} × {out} were recorded",
            g.out()
        ));
    }
    match y.len() as f64 * g.row_len() as f64 > MOST_WORK {
        true => Err("its maps are too large; record a smaller image".to_owned()),
        false => Ok(block),
    }
}

impl Recorded<'_> {
    fn run(&self, placement: &Placement) -> Result<Tried, Error> {
        let x = self.x.view();
        let tried = Tried::run(self.checkpoint, &self.block, x, placement, self.float);
        tried.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: block::Error) -> Error {
        Error::Run {
            block: self.fused.module.clone(),
            source: Box::new(source),
        }
    }

    /// The norms that the block may be recorded behind.
    fn norms_after(&self) -> Result<Vec<After>, Error> {
        let channels = self.y.dim().1;
        Ok(norms_after(self.checkpoint, self.plan, self.of, channels)?)
    }

    /// The stride and padding that fit best, and the norm that it was recorded behind.
    fn best(&self) -> Result<Option<(Fit, Option<String>)>, Error> {
        let ([_, _, h, w], [_, _, oh, ow]) = (self.x.dim().into(), self.y.dim().into());
        let [_, rows, columns] = self.block.geometry().extent();
        let placements = placements([h, w], [rows, columns], [oh, ow]);
        let mut best: Option<Fit> = None;
        for placement in &placements {
            let fit = self.run(placement)?.compare(self.y.view());
            if fit.found.accepted() {
                return Ok(Some((fit, None)));
            }
            let better = |best: &Fit| is_worse(best.found.ratio, fit.found.ratio);
            if best.as_ref().is_none_or(better) {
                best = Some(fit);
            }
        }
        let Some(best) = best else {
            return Ok(None);
        };
        // The block may be recorded behind a norm that is left where it is.
        for norm in self.norms_after()? {
            for placement in &placements {
                let fit = self.run(placement)?.behind(&norm).compare(self.y.view());
                if fit.found.accepted() {
                    return Ok(Some((fit, Some(norm.module))));
                }
            }
        }
        Ok(Some((best, None)))
    }

    /// What explains the difference, if one part does.
    fn why(&self, tried: &Tried) -> Result<Option<String>, Error> {
        let seen = Seen {
            checkpoint: self.checkpoint,
            block: &self.block,
            x: self.x.view(),
            y: self.y.view(),
            after: None,
        };
        let mut why = explain(&seen, tried).map_err(|e| self.failed(e))?;
        for norm in self.norms_after()? {
            if why.is_none() {
                let tried = self.run(&tried.placement)?.behind(&norm);
                let seen = Seen {
                    after: Some(&norm),
                    ..seen
                };
                why = explain(&seen, &tried).map_err(|e| self.failed(e))?;
            }
        }
        Ok(why)
    }
}
