//! What explains that a block does not compute what was recorded.
//!
//! What was recorded is led back through the activation where its output is positive, and what is left over is compared with what
//! one part more, or one part less, would add.

use ndarray::{Array4, ArrayView4};

use super::activation::{Activation, TRIED};
use super::after::After;
use super::run::Tried;
use crate::algebra::branches::branches;
use crate::algebra::describe;
use crate::algebra::forward::Reading;
use crate::algebra::{Op, Part, Resolved};
use crate::conv2d::block::{self, pad, run_part};
use crate::tensor::{Checkpoint, Float, Reader, Tensor};

/// A recorded block and its maps.
pub(super) struct Seen<'a> {
    pub checkpoint: &'a Checkpoint,
    pub block: &'a Resolved<Tensor>,
    pub x: ArrayView4<'a, f64>,
    pub y: ArrayView4<'a, f64>,
    /// The norm that the output went through, too.
    pub after: Option<&'a After>,
}

/// A part that may be missing or superfluous, with what it adds to every output.
struct Suspect {
    adds: Array4<f64>,
    kind: Kind,
}

enum Kind {
    /// Something over the input that no weight tells of.
    Bare(&'static str),
    /// A branch of the block, in a line.
    Branch(String),
}

/// Says what explains the difference, if one part does.
///
/// # Errors
/// When a value cannot be read.
pub(super) fn explain(seen: &Seen<'_>, tried: &Tried) -> Result<Option<String>, block::Error> {
    let branches = branches_of(seen, tried)?;
    let left: Vec<Left> = TRIED.iter().map(|a| Left::of(seen, tried, *a)).collect();
    for left in &left {
        if let Some(why) = branches
            .iter()
            .chain(&bare(seen, tried))
            .find_map(|s| left.by(s))
        {
            return Ok(Some(why));
        }
    }
    if tried.float == Float::F32 && by_tf32(seen, tried)? {
        return Ok(Some(
            "it is no more than TF32 arithmetic makes; record on the CPU, or with `torch.backends.cudnn.allow_tf32 = False`"
                .to_owned(),
        ));
    }
    let of_norms = left.iter().any(|left| left.by_factors(&branches));
    Ok(of_norms.then(|| {
        "another factor and constant for each channel explain it: the norms have another eps, or ran in training mode, without `model.eval()`"
            .to_owned()
    }))
}

/// What each branch gives.
fn branches_of(seen: &Seen<'_>, tried: &Tried) -> Result<Vec<Suspect>, block::Error> {
    let padded = pad(seen.x, &tried.placement)?;
    let mut reader = Reader::new(seen.checkpoint, 1 << 20);
    let mut run = |part: &Part<Tensor>| {
        let (x, stride) = (padded.view(), tried.placement.stride);
        run_part(seen.block, part, x, stride, Reading::Value, &mut reader)
    };
    let branch = |branch: Part<Tensor>| {
        Ok(Suspect {
            adds: run(&branch)?,
            kind: match branch.op() {
                Op::Identity => Kind::Bare("a bare identity"),
                _ => Kind::Branch(describe::expression(&branch)),
            },
        })
    };
    branches(seen.block).into_iter().map(branch).collect()
}

/// What no weight tells of: the input itself, and its average over a window of 3×3, as QARepVGG's second version has it.
fn bare(seen: &Seen<'_>, tried: &Tried) -> Vec<Suspect> {
    let (_, _, h, w) = seen.x.dim();
    let [_, rows, columns] = seen.block.geometry().extent();
    let extent = [rows, columns];
    if seen.x.dim().1 != seen.y.dim().1 {
        return Vec::new();
    }
    let placement = &tried.placement;
    // What stands at this distance from the middle of what an output sees; nothing beyond the map.
    let at = |axis: usize, i: usize, by: usize, length: usize| {
        let place = i * placement.stride[axis] + (extent[axis] - 1) / 2 + by;
        place
            .checked_sub(placement.padding[axis][0] + 1)
            .filter(|place| *place < length)
    };
    let seen_at = |(n, c, i, j): (usize, usize, usize, usize), [down, right]: [usize; 2]| {
        let place = at(0, i, down, h).zip(at(1, j, right, w));
        place.map_or(0.0, |(y, x)| seen.x[[n, c, y, x]])
    };
    let identity = Array4::from_shape_fn(seen.y.dim(), |place| seen_at(place, [1, 1]));
    let mean = Array4::from_shape_fn(seen.y.dim(), |place| {
        let window = (0..9).map(|i| seen_at(place, [i / 3, i % 3]));
        window.sum::<f64>() / 9.0
    });
    let suspect = |adds, name| Suspect {
        adds,
        kind: Kind::Bare(name),
    };
    vec![
        suspect(identity, "a bare identity"),
        suspect(mean, "an average pooling over 3×3"),
    ]
}

/// Whether the outputs are as close as TF32 arithmetic brings them, which has the precision of f16.
fn by_tf32(seen: &Seen<'_>, tried: &Tried) -> Result<bool, block::Error> {
    let coarse = Tried::run(
        seen.checkpoint,
        seen.block,
        seen.x,
        &tried.placement,
        Float::F16,
    )?;
    Ok(TRIED.into_iter().any(|a| coarse.fits(a, seen.y)))
}

/// What is left of the recorded outputs of each channel, led back through an activation: the place, the difference, and what it
/// may be off by.
struct Left(Vec<Vec<([usize; 4], f64, f64)>>);

/// The most outputs of a channel that are looked at, and the least that tell.
const LOOKED_AT: usize = 4096;
const LEAST: usize = 6;

/// Inverting an activation where its slope is least, 1/2, doubles what an input may be off by; the rest is for the fit itself.
const SLACK: f64 = 4.0;

impl Left {
    fn of(seen: &Seen<'_>, tried: &Tried, activation: Activation) -> Left {
        let mut channels = vec![Vec::new(); seen.y.dim().1];
        let unit = tried.float.unit_roundoff();
        for (place, y) in seen.y.indexed_iter() {
            let place: [usize; 4] = place.into();
            let [_, c, i, j] = place;
            let inside = tried.within[0].contains(&i) && tried.within[1].contains(&j);
            let shown = activation == Activation::Identity || *y > 0.0;
            if inside && shown && channels[c].len() < LOOKED_AT {
                let input = match activation {
                    Activation::Identity => *y,
                    other => other.positive_input(*y),
                };
                let z = tried.value[place];
                let allowed =
                    tried.bound[place] + activation.rounding(input, unit) + unit * input.abs();
                // Led back through the norm, too.
                let scale = seen.after.map_or(1.0, |after| after.scale[c]);
                if scale != 0.0 {
                    channels[c].push((place, (input - z) / scale, SLACK * allowed / scale.abs()));
                }
            }
        }
        channels.retain(|channel| channel.len() >= LEAST);
        Left(channels)
    }

    /// Says that a part explains what is left, if it does.
    fn by(&self, suspect: &Suspect) -> Option<String> {
        let factor = |channels: &[Vec<([usize; 4], f64, f64)>]| {
            let (mut product, mut square) = (0.0, 0.0);
            for (place, left, _) in channels.iter().flatten() {
                let adds = suspect.adds[*place];
                product += left * adds;
                square += adds * adds;
            }
            let factor = product / square;
            let fits = |(place, left, allowed): &([usize; 4], f64, f64)| {
                (left - factor * suspect.adds[*place]).abs() <= *allowed
            };
            channels.iter().flatten().all(fits).then_some(factor)
        };
        let factors: Vec<f64> = match suspect.kind {
            // Behind a norm of the whole block, each channel has its own.
            Kind::Bare(_) => self.0.chunks(1).map(factor).collect::<Option<_>>()?,
            Kind::Branch(_) => vec![factor(&self.0)?],
        };
        let all = |of: f64| factors.iter().all(|factor| (factor - of).abs() < 1e-2);
        if factors.is_empty() || all(0.0) || factors.iter().any(|f| !f.is_finite()) {
            return None;
        }
        Some(match &suspect.kind {
            Kind::Bare(name) if all(1.0) => format!("{name} that the recipe lacks explains it"),
            Kind::Bare(name) if all(-1.0) => {
                format!("it lacks {name}, which the recipe assumes")
            }
            Kind::Bare(name) => format!("{name} times a factor explains it"),
            Kind::Branch(branch) if all(-1.0) => format!("it has no branch {branch}"),
            Kind::Branch(branch) => format!(
                "{:.4} times the branch {branch} explains it: a factor such as `alpha`",
                1.0 + factors[0]
            ),
        })
    }

    /// Whether another factor for each branch and another constant, in every channel, explain what is left.
    fn by_factors(&self, branches: &[Suspect]) -> bool {
        let needed = 2 * (branches.len() + 1);
        !self.0.is_empty()
            && self.0.iter().all(|channel| {
                let terms = |place: &[usize; 4]| -> Vec<f64> {
                    let of_branches = branches.iter().map(|branch| branch.adds[*place]);
                    of_branches.chain([1.0]).collect()
                };
                let rows: Vec<(Vec<f64>, f64)> = channel
                    .iter()
                    .map(|(at, left, _)| (terms(at), *left))
                    .collect();
                let fits = |factors: Vec<f64>| {
                    rows.iter()
                        .zip(channel)
                        .all(|((terms, left), (_, _, allowed))| {
                            let sum: f64 = terms.iter().zip(&factors).map(|(t, f)| t * f).sum();
                            (left - sum).abs() <= *allowed
                        })
                };
                channel.len() >= needed && least_squares(&rows).is_some_and(fits)
            })
    }
}

/// The factors with which the terms of each row add up to its number as nearly as can be.
fn least_squares(rows: &[(Vec<f64>, f64)]) -> Option<Vec<f64>> {
    let n = rows.first()?.0.len();
    // The normal equations, each with its right side.
    let mut system = vec![vec![0.0; n + 1]; n];
    for (terms, left) in rows {
        for (i, a) in terms.iter().enumerate() {
            for (j, b) in terms.iter().chain([left]).enumerate() {
                system[i][j] += a * b;
            }
        }
    }
    for column in 0..n {
        let size = |row: &usize| system[*row][column].abs();
        let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b)))?;
        system.swap(column, pivot);
        let chosen = system[column].clone();
        if chosen[column] == 0.0 {
            return None;
        }
        for (_, row) in system.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / chosen[column];
            row.iter_mut()
                .zip(&chosen)
                .for_each(|(x, y)| *x -= factor * y);
        }
    }
    Some((0..n).map(|i| system[i][n] / system[i][i]).collect())
}

#[cfg(test)]
mod tests {
    use super::least_squares;

    #[test]
    fn factors_are_found_again() {
        let rows: Vec<(Vec<f64>, f64)> = (0..8)
            .map(|i| {
                let x = f64::from(i);
                (vec![x, x * x, 1.0], 3.0 * x - 0.5 * x * x + 2.0)
            })
            .collect();
        let found = least_squares(&rows).expect("factors");
        for (found, expected) in found.iter().zip([3.0, -0.5, 2.0]) {
            assert!((found - expected).abs() < 1e-9, "{found}");
        }
        assert_eq!(least_squares(&[(vec![0.0], 1.0)]), None);
    }
}
