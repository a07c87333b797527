//! What is not fused: the same names in both files, and the same bytes.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::compared::{Compared, compared, number};
use super::shown::natural_order;
use super::unfused::Trained;
use super::{Allowance, Deployed, Failure, Options, allowance_of};
use crate::algebra::Values;
use crate::plan::{Plan, Source};
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Error as TensorError, Float, Output, Tensor};

/// How the copied tensors compare.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Those that are the same, byte for byte.
    pub(super) copied: usize,
    /// Those of which each number is rounded once.
    pub(super) rounded: usize,
    /// Those of the training form that are still there beside what was fused of them, and are what they were.
    pub(super) unfused: usize,
    /// What is wrong with the others.
    pub(super) failures: Vec<Failure>,
    /// Of the tensors that fusing makes, those that the file has with that shape, and all.
    pub(super) fits: Option<[usize; 2]>,
}

/// Compares all that is not fused.
///
/// A copy may be rounded to another type where that is the type of all floating-point tensors of the file, as `half()` leaves them.
pub(super) fn compare_copies(
    checkpoint: &Checkpoint,
    plan: &Plan,
    file: &Checkpoint,
    options: &Options,
) -> Result<Copies, TensorError> {
    let mut copies = Copies::default();
    let of_file = one_type(file);
    let mut fit = 0;
    let planned: BTreeMap<&str, _> = plan
        .outputs
        .iter()
        .map(|p| (p.output.name.as_str(), p))
        .collect();
    for (name, planned) in &planned {
        options.go_on()?;
        let Some(found) = &file.get(name).map(Tensor::as_it_lies) else {
            copies.failures.push(Failure::Missing((*name).to_owned()));
            continue;
        };
        fit += usize::from(planned.output.shape == found.shape());
        match &planned.what {
            Source::Copy(tensor) | Source::Round(tensor, _) => {
                match compared([checkpoint, file], [tensor, found], of_file)? {
                    Compared::Same => copies.copied += 1,
                    Compared::Rounded => copies.rounded += 1,
                    Compared::Differs(said) => copies.failures.push(Failure::Differs(said)),
                }
            }
            Source::Fill(..) if !same_kind(&planned.output, found) => {
                let said = other_kind(&planned.output, found);
                copies.failures.push(Failure::Differs(said));
            }
            Source::Fill(value, _) => {
                let difference = not_filled(file, found, *value)?;
                copies.failures.extend(difference.map(Failure::Differs));
            }
            // Compared as blocks.
            Source::Weight(..) | Source::WeightChannelsLast(..) | Source::Bias(..) => {}
        }
    }
    let trained = Trained::of(plan);
    for found in left_over(file, |name| planned.contains_key(name)) {
        options.go_on()?;
        let failure = match allowance_of(Deployed::File(file)) {
            Allowance::Arithmetic => trained.failure([checkpoint, file], found, of_file)?,
            // What repfuse writes has nothing of the training form.
            Allowance::OneRounding => Some(Failure::LeftOver(found.name().to_owned())),
        };
        match failure {
            Some(failure) => copies.failures.push(failure),
            None => copies.unfused += 1,
        }
    }
    copies.fits = Some([fit, planned.len()]);
    copies.failures.sort_by(in_order);
    Ok(copies)
}

fn other_kind(expected: &Output, found: &Tensor) -> String {
    format!(
        "{found} is {} {:?}; expected {} {:?}",
        found.dtype(),
        found.shape(),
        expected.dtype,
        expected.shape
    )
}

/// Tensors of a file that a plan does not have.
fn left_over(file: &Checkpoint, of_plan: impl Fn(&str) -> bool) -> impl Iterator<Item = &Tensor> {
    let tensors = file.tensors().iter().filter(move |(name, tensor)| {
        let parts = tensor.parts();
        let in_parts = !parts.is_empty() && parts.iter().all(|part| of_plan(part.name()));
        !of_plan(name) && !in_parts
    });
    tensors.map(|(_, tensor)| tensor)
}

/// The first number of a tensor that is not what the recipe sets it to.
fn not_filled(
    file: &Checkpoint,
    found: &Tensor,
    value: f64,
) -> Result<Option<String>, TensorError> {
    let mut reader = Reader::new(file, 1 << 16);
    let values = reader.vector(found, 0, found.len())?;
    let value = found.dtype().float().map_or(value, |f| f.round(value));
    let differs = values.iter().position(|x| *x != value);
    Ok(differs.map(|i| {
        let said = number(found, i, values[i], value);
        format!("{said}, to which the recipe sets it")
    }))
}

/// Missing ones first, then what differs, then what is left over; each by name, numbers as numbers.
fn in_order(a: &Failure, b: &Failure) -> Ordering {
    let key = |failure: &Failure| match failure {
        Failure::Missing(name) => (0, name.clone()),
        Failure::Differs(text) => (1, text.clone()),
        Failure::LeftOver(name) => (2, name.clone()),
    };
    let (a, b) = (key(a), key(b));
    a.0.cmp(&b.0).then_with(|| natural_order(&a.1, &b.1))
}

/// The type of all floating-point tensors of a file, if they have one.
fn one_type(file: &Checkpoint) -> Option<Float> {
    let mut types = file.tensors().values().filter_map(|t| t.dtype().float());
    let first = types.next()?;
    types.all(|float| float == first).then_some(first)
}

fn same_kind(output: &Output, found: &Tensor) -> bool {
    output.dtype == *found.dtype() && output.shape == found.shape()
}
