//! What is not fused: the same names in both files, and the same bytes.

use std::collections::BTreeMap;

use super::Options;
use crate::algebra::Values;
use crate::fuse::diagnose;
use crate::plan::{Plan, Source};
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Error as TensorError, Float, Output, Tensor, quoted};

/// How the copied tensors compare.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Those that are the same, byte for byte.
    pub(super) copied: usize,
    /// Those of which each number is rounded once.
    pub(super) rounded: usize,
    /// What is wrong with the others.
    pub(super) failures: Vec<String>,
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
    let planned: BTreeMap<&str, _> = plan
        .outputs
        .iter()
        .map(|p| (p.output.name.as_str(), p))
        .collect();
    for (name, planned) in &planned {
        options.go_on()?;
        let Some(found) = file.get(name) else {
            copies.failures.push(format!("{} is missing", quoted(name)));
            continue;
        };
        match &planned.what {
            Source::Copy(tensor) | Source::Round(tensor) => {
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
                copies.failures.extend(difference);
            }
            Source::Fill(_) if !same_kind(&planned.output, found) => copies.failures.push(format!(
                "{found} is {} {:?}; expected {} {:?}",
                found.dtype(),
                found.shape(),
                planned.output.dtype,
                planned.output.shape
            )),
            Source::Fill(value) => {
                let mut reader = Reader::new(file, 1 << 16);
                let values = reader.vector(found, 0, found.len())?;
                let value = found.dtype().float().map_or(*value, |f| f.round(*value));
                if let Some(x) = values.iter().find(|x| **x != value) {
                    copies
                        .failures
                        .push(format!("{found} holds {x}; the recipe sets it to {value}"));
                }
            }
            // Compared as blocks.
            Source::Weight(..) | Source::Bias(..) => {}
        }
    }
    let of_plan = |name: &str| planned.contains_key(name);
    let leftovers = file.tensors().iter().filter(|(name, tensor)| {
        let parts = tensor.parts();
        let in_parts = !parts.is_empty() && parts.iter().all(|part| of_plan(part.name()));
        !of_plan(name) && !in_parts
    });
    let leftovers = leftovers.map(|(name, _)| name);
    copies.failures.extend(leftovers.map(|name| {
        format!(
            "{} is left over; the deploy form has no such tensor",
            quoted(name)
        )
    }));
    Ok(copies)
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
            return Ok(Some(format!(
                "{found} holds {} at {:?}; its copy in {float} would be {}",
                is[i],
                diagnose::place_in(tensor.shape(), first + i),
                float.round(was[i])
            )));
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
            let place = match tensor.dtype().bits() {
                Some(bits) => {
                    let flat = byte * 8 / bits.max(1);
                    format!("{:?}", diagnose::place_in(tensor.shape(), flat))
                }
                None => format!("byte {byte}"),
            };
            return Ok(Some(format!("{found} differs from its copy at {place}")));
        }
        at += len as u64;
    }
    Ok(None)
}
