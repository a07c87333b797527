//! Two tensors: whether one is the other, or the other with each number rounded once.

use super::shown::Place;
use crate::algebra::Values;
use crate::fuse::diagnose;
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Error as TensorError, Float, Tensor};

/// How two tensors compare.
pub(super) enum Compared {
    /// Byte for byte the same.
    Same,
    /// Each number is rounded once.
    Rounded,
    /// They are not the same, in a sentence.
    Differs(String),
}

/// Compares a tensor with what it is in another file. It may be rounded to the one type of all that file.
pub(super) fn compared(
    files: [&Checkpoint; 2],
    [tensor, found]: [&Tensor; 2],
    of_file: Option<Float>,
) -> Result<Compared, TensorError> {
    let rounded = tensor.dtype() != found.dtype() && tensor.shape() == found.shape();
    let float = found.dtype().float();
    let to = float.filter(|_| rounded && float == of_file && tensor.dtype().float().is_some());
    let (difference, same) = match to {
        Some(float) => (
            not_rounded(files, [tensor, found], float)?,
            Compared::Rounded,
        ),
        None => (
            difference(files[0], tensor, files[1], found)?,
            Compared::Same,
        ),
    };
    Ok(difference.map_or(same, Compared::Differs))
}

/// ``the name `head[3]` is 2, expected 1``: a number of a tensor that is not fused.
pub(super) fn number(found: &Tensor, flat: usize, is: f64, expected: f64) -> String {
    let place = Place {
        tensor: found.name().to_owned(),
        index: diagnose::place_in(found.shape(), flat),
        found: is,
        expected: Some(expected),
        whole_channel: false,
    };
    place.said()
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
