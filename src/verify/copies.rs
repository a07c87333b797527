//! What is not fused: the same names in both files, and the same bytes.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::shown::{Place, natural_order};
use super::{Failure, Options};
use crate::algebra::Values;
use crate::fuse::diagnose;
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
                let float = found.dtype().float();
                let rounded = tensor.dtype() != found.dtype() && tensor.shape() == found.shape();
                let difference = match float.filter(|_| rounded && float == of_file) {
                    Some(float) if tensor.dtype().float().is_some() => {
                        let difference = not_rounded([checkpoint, file], [tensor, found], float)?;
                        copies.rounded += usize::from(difference.is_none());
                        difference
                    }
                    _ => {
                        let difference = difference(checkpoint, tensor, file, found)?;
                        copies.copied += usize::from(difference.is_none());
                        difference
                    }
                };
                copies.failures.extend(difference.map(Failure::Differs));
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
    copies
        .failures
        .extend(left_over(file, |name| planned.contains_key(name)));
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
fn left_over(file: &Checkpoint, of_plan: impl Fn(&str) -> bool) -> impl Iterator<Item = Failure> {
    let tensors = file.tensors().iter().filter(move |(name, tensor)| {
        let parts = tensor.parts();
        let in_parts = !parts.is_empty() && parts.iter().all(|part| of_plan(part.name()));
        !of_plan(name) && !in_parts
    });
    tensors.map(|(name, _)| Failure::LeftOver(name.clone()))
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

/// ``the name `head[3]` is 2, expected 1``: a number of a tensor that is not fused.
fn number(found: &Tensor, flat: usize, is: f64, expected: f64) -> String {
    let place = Place {
        tensor: found.name().to_owned(),
        index: diagnose::place_in(found.shape(), flat),
        found: is,
        expected: Some(expected),
        whole_channel: false,
    };
    place.said()
}

/// The type of all floating-point tensors of a file, if they have one.
fn one_type(file: &Checkpoint) -> Option<Float> {
    let mut types = file.tensors().values().filter_map(|t| t.dtype().float());
    let first = types.next()?;
    types.all(|float| float == first).then_some(first)
}

/// Where a tensor is not another one with each number rounded once.
fn not_rounded(
    files: [&Checkpoint; 2],
    [tensor, found]: [&Tensor; 2],
    float: Float,
) -> Result<Option<String>, TensorError> {
    const CHUNK: usize = 1 << 16;
    let [mut before, mut after] = files.map(|file| Reader::new(file, 1 << 16));
    for first in (0..tensor.len()).step_by(CHUNK) {
        let len = CHUNK.min(tensor.len() - first);
        let was = before.vector(tensor, first, len)?;
        let is = after.vector(found, first, len)?;
        let same = |(was, is): (&f64, &f64)| {
            let rounded = float.round(*was);
            (rounded.is_finite() || !was.is_finite())
                && (rounded == *is || rounded.is_nan() && is.is_nan())
        };
        if let Some(i) = was.iter().zip(&is).position(|pair| !same(pair)) {
            let said = number(found, first + i, is[i], float.round(was[i]));
            return Ok(Some(format!("{said}, its copy in {float}")));
        }
    }
    Ok(None)
}

fn same_kind(output: &Output, found: &Tensor) -> bool {
    output.dtype == *found.dtype() && output.shape == found.shape()
}

fn difference(
    checkpoint: &Checkpoint,
    tensor: &Tensor,
    file: &Checkpoint,
    found: &Tensor,
) -> Result<Option<String>, TensorError> {
    if tensor.dtype() != found.dtype() || tensor.shape() != found.shape() {
        let [was, is] = [tensor, found].map(|t| format!("{} {:?}", t.dtype(), t.shape()));
        return Ok(Some(format!(
            "{found} is {is}; it was {was}, and is to be copied"
        )));
    }
    const CHUNK: u64 = 1 << 20;
    let mut at = 0;
    let mut buffers = [Vec::new(), Vec::new()];
    while at < tensor.byte_len() {
        let len = CHUNK.min(tensor.byte_len() - at) as usize;
        let [a, b] = &mut buffers;
        a.resize(len, 0);
        b.resize(len, 0);
        checkpoint.read_at(tensor, at, a)?;
        file.read_at(found, at, b)?;
        if let Some(byte) = a.iter().zip(b.iter()).position(|(a, b)| a != b) {
            let byte = at as usize + byte;
            return copied_otherwise([checkpoint, file], [tensor, found], byte).map(Some);
        }
        at += len as u64;
    }
    Ok(None)
}

/// What is wrong with one number of a copy.
fn copied_otherwise(
    files: [&Checkpoint; 2],
    [tensor, found]: [&Tensor; 2],
    byte: usize,
) -> Result<String, TensorError> {
    let flat = tensor.dtype().bits().map(|bits| byte * 8 / bits.max(1));
    if let (Some(flat), Some(_)) = (flat, tensor.dtype().float()) {
        let [mut before, mut after] = files.map(|file| Reader::new(file, 0));
        let was = before.vector(tensor, flat, 1)?;
        let is = after.vector(found, flat, 1)?;
        if let ([was], [is]) = (&was[..], &is[..])
            && was != is
            && was.is_finite()
        {
            return Ok(format!("{}, as it was", number(found, flat, *is, *was)));
        }
    }
    // Of −0 and 0, and of two kinds of NaN, only the bytes differ.
    let place = match flat {
        Some(flat) => format!("{:?}", diagnose::place_in(tensor.shape(), flat)),
        None => format!("byte {byte}"),
    };
    Ok(format!("{found} differs from its copy at {place}"))
}
