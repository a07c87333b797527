//! Rows of a fused conv: folded, and as the bytes that are stored of them.

use std::ops::Range;

use super::diagnose::{self, explain};
use crate::algebra::fold::{Folded, Scratch};
use crate::plan::PlannedConv;
use crate::tensor::{Checkpoint, Reader, Tensor};

/// What folding rows fills: the biases and the bytes are what is stored of them.
pub(super) struct Buffers<'a> {
    pub(super) scratch: &'a mut Scratch,
    pub(super) row: &'a mut Vec<f64>,
    pub(super) biases: &'a mut Vec<f64>,
    pub(super) bytes: &'a mut Vec<u8>,
    /// Where the file has the channels last: the taps of the kernel, and room for a row in that order.
    pub(super) channels_last: Option<(usize, &'a mut Vec<f64>)>,
}

/// The first `len` bytes of a buffer, which grows where it is shorter and stays as long as it was.
pub(super) fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Folds some rows of a weight as they are stored, to the first bytes of a buffer, and the biases of as many output channels; of a transposed conv, whose
/// rows are input channels, zeros. Returns how many numbers became zero.
pub(super) fn encode_rows(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    folded: &Folded<Tensor>,
    rows: Range<usize>,
    reader: &mut Reader<'_>,
    mut to: Buffers<'_>,
) -> Result<usize, diagnose::Error> {
    let (g, dtype) = (fused.geometry(), fused.dtype);
    let row_len: usize = g.weight_shape()[1..].iter().product();
    let mut vanished = 0;
    to.row.resize(row_len, 0.0);
    to.biases.clear();
    let bytes = room(to.bytes, rows.len() * row_len * dtype.size());
    let stored = bytes.chunks_exact_mut((row_len * dtype.size()).max(1));
    for (row, stored) in rows.zip(stored) {
        let bias = if g.transposed() {
            folded.transposed_row(row, reader, to.scratch, to.row)?;
            0.0
        } else {
            folded.row(row, reader, to.scratch, to.row)?
        };
        let row_of_file: &[f64] = match &mut to.channels_last {
            Some((taps, turned)) => {
                channels_last(to.row, *taps, turned);
                turned
            }
            None => to.row,
        };
        let Some(zeros) = dtype.encode_counting(row_of_file, stored) else {
            return Err(explain(checkpoint, fused, row, to.row, bias));
        };
        vanished += zeros;
        to.biases.push(bias);
    }
    Ok(vanished)
}

/// The bytes of the biases from output channel `first` on; returns how many became zero.
pub(super) fn encode_biases(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    first: usize,
    biases: &[f64],
    bytes: &mut Vec<u8>,
) -> Result<usize, diagnose::Error> {
    let dtype = fused.dtype;
    let stored = room(bytes, biases.len() * dtype.size());
    if let Some(zeros) = dtype.encode_counting(biases, stored) {
        return Ok(zeros);
    }
    let mut numbered = biases.iter().enumerate();
    match numbered.find(|(_, b)| !dtype.round(**b).is_finite()) {
        Some((i, bias)) => Err(explain(checkpoint, fused, first + i, &[], *bias)),
        None => Ok(dtype.vanishing(biases)),
    }
}

/// The bytes that [`fuse`](super::fuse()) writes for some rows of a fused weight as it is stored, and for its biases: of as many output channels, or of a
/// transposed conv, whose rows are input channels, of all. Where the file has the channels last, these have them second.
///
/// # Errors
/// When a number cannot be folded or stored, or the file cannot be read.
pub fn stored_bytes(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    rows: Range<usize>,
    reader: &mut Reader<'_>,
) -> Result<[Vec<u8>; 2], diagnose::Error> {
    let folded = Folded::compile(&fused.expr, reader)?;
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    let (mut scratch, mut row, mut biases) = (Scratch::default(), Vec::new(), Vec::new());
    let buffers = Buffers {
        scratch: &mut scratch,
        row: &mut row,
        biases: &mut biases,
        bytes: &mut weight,
        channels_last: None,
    };
    encode_rows(checkpoint, fused, &folded, rows.clone(), reader, buffers)?;
    match fused.geometry().transposed() {
        true => encode_biases(checkpoint, fused, 0, folded.constant_bias(), &mut bias)?,
        false => encode_biases(checkpoint, fused, rows.start, &biases, &mut bias)?,
    };
    Ok([weight, bias])
}

/// Puts a row of a weight, which has so many taps for each input channel, in the order of a file with the channels last.
fn channels_last(row: &[f64], taps: usize, out: &mut Vec<f64>) {
    let channels = row.len() / taps.max(1);
    out.clear();
    out.extend((0..taps).flat_map(|tap| (0..channels).map(move |i| row[i * taps + tap])));
}

/// Folds some output channels in memory: their kernel rows and biases, in f64, checked to fit the stored type.
///
/// # Errors
/// When a number cannot be folded or stored, or the file cannot be read.
pub fn fold_rows(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    rows: Range<usize>,
    reader: &mut Reader<'_>,
) -> Result<(Vec<f64>, Vec<f64>), diagnose::Error> {
    let folded = Folded::compile(&fused.expr, reader)?;
    let len = fused.geometry().row_len();
    let (mut kernel, mut biases) = (vec![0.0; rows.len() * len], Vec::with_capacity(rows.len()));
    let mut scratch = Scratch::default();
    for (o, row) in rows.zip(kernel.chunks_exact_mut(len.max(1))) {
        let bias = folded.row(o, reader, &mut scratch, row)?;
        if !row
            .iter()
            .chain([&bias])
            .all(|x| fused.dtype.round(*x).is_finite())
        {
            return Err(explain(checkpoint, fused, o, row, bias));
        }
        biases.push(bias);
    }
    Ok((kernel, biases))
}
