//! A worker: one thread that reads, folds and writes, task by task, with buffers of its own.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::diagnose;
use super::lock;
use super::rows::{Buffers, encode_biases, encode_rows, room};
use super::sums::Sums;
use super::tasks::{Job, SLAB_BYTES, Task};
use crate::algebra::Values;
use crate::algebra::fold::{Folded, Scratch};
use crate::tensor::{Checkpoint, Float, Reader, Tensor, WriteQueue};

/// One thread's buffers.
pub(super) struct Worker<'a> {
    checkpoint: &'a Checkpoint,
    writes: &'a WriteQueue<'a>,
    sums: Option<&'a Sums>,
    vanished: &'a AtomicU64,
    reader: Reader<'a>,
    scratch: Scratch,
    row: Vec<f64>,
    /// A row as it is written, where that is in another order.
    turned: Vec<f64>,
    biases: Vec<f64>,
    bytes: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        writes: &'a WriteQueue<'a>,
        sums: Option<&'a Sums>,
        vanished: &'a AtomicU64,
    ) -> Worker<'a> {
        Worker {
            checkpoint,
            writes,
            sums,
            vanished,
            reader: Reader::new(checkpoint, SLAB_BYTES),
            scratch: Scratch::default(),
            row: Vec::new(),
            turned: Vec::new(),
            biases: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Does one task; returns the bytes it wrote.
    pub(super) fn run(&mut self, task: Task<'_>) -> Result<u64, diagnose::Error> {
        match task {
            Task::Copy { from, to } => {
                let len: u64 = from.iter().map(|(_, bytes)| bytes.end - bytes.start).sum();
                let mut out = room(&mut self.bytes, len as usize);
                for (tensor, bytes) in from {
                    let (part, after) = out.split_at_mut((bytes.end - bytes.start) as usize);
                    self.checkpoint.read_at(tensor, bytes.start, part)?;
                    out = after;
                }
                self.write(len as usize, to)
            }
            Task::Fill {
                value,
                float,
                count,
                to,
            } => {
                self.row.clear();
                self.row.resize(count, value);
                let len = count * float.size();
                float.encode(&self.row, room(&mut self.bytes, len));
                self.write(len, to)
            }
            Task::Round {
                tensor,
                numbers,
                float,
                to,
            } => self.rounded(tensor, numbers, float, to),
            Task::Rows { job, rows } => self.rows(&job, rows),
        }
    }

    /// Rounds some numbers of a copied tensor. What is finite stays so.
    fn rounded(
        &mut self,
        tensor: &Tensor,
        numbers: Range<u64>,
        float: Float,
        to: u64,
    ) -> Result<u64, diagnose::Error> {
        let first = numbers.start as usize;
        self.row.resize((numbers.end - numbers.start) as usize, 0.0);
        self.reader.forget();
        self.reader.read(tensor, first, &mut self.row)?;
        self.reader.forget();
        let len = self.row.len() * float.size();
        if !float.encode(&self.row, room(&mut self.bytes, len)) {
            let lost = |x: &f64| x.is_finite() && !float.round(*x).is_finite();
            if let Some(i) = self.row.iter().position(lost) {
                return Err(diagnose::too_large(tensor, first + i, self.row[i], float));
            }
        }
        self.write(len, to)
    }

    /// Folds some rows of a weight, and the biases that belong to them.
    fn rows(&mut self, job: &Job<'_>, rows: Range<usize>) -> Result<u64, diagnose::Error> {
        let (fused, (all_rows, row_len)) = (job.fused, job.stored_rows());
        let (g, dtype) = (fused.geometry(), fused.dtype);
        let taps = job.channels_last.then(|| g.taps());
        self.reader.forget();
        let folded = {
            let mut folded = lock(&job.folded);
            match &*folded {
                Some(folded) => folded.clone(),
                None => folded
                    .insert(Arc::new(Folded::compile(&fused.expr, &mut self.reader)?))
                    .clone(),
            }
        };
        self.reader.forget();
        self.reader.read_ahead_until(all_rows, rows.end);
        let buffers = Buffers {
            scratch: &mut self.scratch,
            row: &mut self.row,
            biases: &mut self.biases,
            bytes: &mut self.bytes,
            channels_last: taps.map(|taps| (taps, &mut self.turned)),
        };
        let (checkpoint, reader) = (self.checkpoint, &mut self.reader);
        let vanished = encode_rows(checkpoint, fused, &folded, rows.clone(), reader, buffers)?;
        self.vanished.fetch_add(vanished as u64, Relaxed);
        let row_bytes = row_len * dtype.size();
        let at = job.weight_at + (rows.start * row_bytes) as u64;
        let mut written = self.write(rows.len() * row_bytes, at)?;
        if !g.transposed() {
            written += self.write_biases(job, rows.start)?;
        } else if rows.start == 0 {
            // The rows are input channels; the biases belong to none of them.
            self.biases.clear();
            self.biases.extend_from_slice(folded.constant_bias());
            written += self.write_biases(job, 0)?;
        }
        Ok(written)
    }

    /// Writes the biases from output channel `first` on, where the conv has any.
    fn write_biases(&mut self, job: &Job<'_>, first: usize) -> Result<u64, diagnose::Error> {
        let (fused, dtype) = (job.fused, job.fused.dtype);
        let Some(bias_at) = job.bias_at else {
            return Ok(0);
        };
        let bytes = &mut self.bytes;
        let vanished = encode_biases(self.checkpoint, fused, first, &self.biases, bytes)?;
        self.vanished.fetch_add(vanished as u64, Relaxed);
        let len = self.biases.len() * dtype.size();
        self.write(len, bias_at + (first * dtype.size()) as u64)
    }

    /// Writes the first `len` bytes of the buffer.
    fn write(&mut self, len: usize, at: u64) -> Result<u64, diagnose::Error> {
        let bytes = std::mem::take(&mut self.bytes);
        if let Some(sums) = self.sums {
            sums.add(at, &bytes[..len]);
        }
        self.bytes = self.writes.put(bytes, len, at)?;
        Ok(len as u64)
    }
}
