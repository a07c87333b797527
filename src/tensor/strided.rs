//! Where the numbers of a tensor lie in a file, and reading some of them in their order.
//!
//! A tensor of `torch.save` is a view of a storage: an offset and a stride for each dimension. Most lie as they are
//! read, one after the other; the others are gathered, some rows at a time, so that no tensor is ever held whole.

use std::fs::File;
use std::ops::Range;

use super::open::read_exact_at;

/// A view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The number of the file among those that the checkpoint has.
    pub(super) file: usize,
    /// Where the first number begins in the file.
    pub(crate) at: u64,
    /// The bytes of the tensor, when it is read.
    pub(crate) byte_len: u64,
    /// How the numbers lie, if not one after the other.
    strides: Option<Strides>,
    /// The bytes of a part of a number whose order is to be turned; 1 where it is as it should be.
    swapped: u64,
    /// The bytes of a number.
    size: u64,
    /// Whether the sign of a number is turned: that of its real part, and that of the imaginary one. (A number that is not
    /// complex has the latter only.)
    negated: [bool; 2],
}

#[derive(Clone, Debug, PartialEq)]
struct Strides {
    /// For each dimension its length and how many bytes lie between two neighbours, the outermost first.
    dims: Vec<(u64, u64)>,
}

/// The numbers that are gathered at once.
const GATHERED: u64 = 1 << 16;

/// What may be read for one byte that is wanted, before each run of bytes is read by itself.
const SPREAD: u64 = 4;

/// Bytes with no more than this between them are read together, up to so many at once.
const GAP: u64 = 1 << 12;
const LONGEST_RUN: u64 = 1 << 20;

impl View {
    /// The same view, written by a big-endian machine: each number stands in `parts` parts, two for a complex one.
    pub(super) fn big_endian(self, parts: u64) -> View {
        View {
            swapped: (self.size / parts).max(1),
            ..self
        }
    }

    /// The same view, with the signs of the floating-point numbers in it turned: of the first half of each, as of the real part
    /// of a complex one, and of the last.
    pub(super) fn negated(self, negated: [bool; 2]) -> View {
        View { negated, ..self }
    }

    /// The same view of another file of the checkpoint.
    pub(super) fn of_file(self, file: usize) -> View {
        View { file, ..self }
    }

    /// Whether the bytes of the tensor lie in the file as they are read.
    pub(crate) fn is_plain(&self) -> bool {
        self.strides.is_none() && self.swapped == 1 && self.negated == [false; 2]
    }

    /// A view of a storage, which is a range of the file; `offset` and `strides` count elements of `size` bytes.
    ///
    /// # Errors
    /// When a part of the view lies outside of the storage.
    pub(crate) fn new(
        storage: Range<u64>,
        size: u64,
        offset: u64,
        shape: &[u64],
        strides: &[u64],
    ) -> Result<View, String> {
        if shape.len() != strides.len() {
            return Err(format!(
                "has {} dimensions and {} strides",
                shape.len(),
                strides.len()
            ));
        }
        let outside = || "lies outside of its storage".to_owned();
        let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let count = count.filter(|n| *n <= isize::MAX as u64 / 16);
        let count = count
            .ok_or_else(|| format!("has the shape {shape:?}, which is too large to address"))?;
        let byte_len = count * size;
        let at = offset
            .checked_mul(size)
            .and_then(|n| n.checked_add(storage.start));
        let at = at.filter(|at| *at <= storage.end).ok_or_else(outside)?;
        if count > 0 {
            let last = shape
                .iter()
                .zip(strides)
                .try_fold(0u64, |last, (n, stride)| {
                    last.checked_add((n - 1).checked_mul(*stride)?)
                });
            let end = last.and_then(|last| last.checked_add(1)?.checked_mul(size)?.checked_add(at));
            end.filter(|end| *end <= storage.end).ok_or_else(outside)?;
        }
        let mut dense = 1;
        let in_order = shape.iter().zip(strides).rev().all(|(n, stride)| {
            let fits = *n == 1 || *stride == dense;
            dense = n.saturating_mul(dense);
            fits
        });
        let dims = || {
            shape
                .iter()
                .zip(strides)
                .filter(|(n, _)| **n != 1)
                .map(|(n, stride)| (*n, stride * size))
        };
        Ok(View {
            file: 0,
            at,
            byte_len,
            strides: (count > 0 && !in_order).then(|| Strides {
                dims: dims().collect(),
            }),
            swapped: 1,
            size,
            negated: [false; 2],
        })
    }

    /// Turns the signs of whole little-endian numbers: the highest bit of the last byte of a number or of a half.
    fn negate(&self, numbers: &mut [u8]) {
        const SIGN: u8 = 0x80;
        let size = self.size as usize;
        for (turned, end) in self.negated.into_iter().zip([size / 2, size]) {
            let numbers = numbers.chunks_exact_mut(size).filter(|_| turned);
            numbers.for_each(|number| {
                if let Some(byte) = number.get_mut(end.wrapping_sub(1)) {
                    *byte ^= SIGN;
                }
            });
        }
    }

    /// Fills `out` with the tensor's bytes from byte `from` on, of which there must be as many.
    pub(super) fn read(&self, file: &File, from: u64, out: &mut [u8]) -> std::io::Result<()> {
        if self.is_plain() {
            return read_exact_at(file, out, self.at + from);
        }
        // Whole numbers are read; of the first and the last maybe only a part is wanted.
        let mut done = 0;
        while done < out.len() {
            let start = from + done as u64;
            let first = start / self.size;
            let behind = (from + out.len() as u64)
                .div_ceil(self.size)
                .min(first + GATHERED);
            let mut numbers = vec![0; ((behind - first) * self.size) as usize];
            match &self.strides {
                None => read_exact_at(file, &mut numbers, self.at + first * self.size)?,
                Some(strides) => strides.gather(
                    file,
                    self.at,
                    self.size as usize,
                    first..behind,
                    &mut numbers,
                )?,
            }
            if self.swapped > 1 {
                numbers
                    .chunks_exact_mut(self.swapped as usize)
                    .for_each(<[u8]>::reverse);
            }
            self.negate(&mut numbers);
            let numbers = &numbers[(start - first * self.size) as usize..];
            let len = numbers.len().min(out.len() - done);
            out[done..done + len].copy_from_slice(&numbers[..len]);
            done += len;
        }
        Ok(())
    }
}

impl Strides {
    /// Reads the numbers of a range, counted in the tensor's order.
    fn gather(
        &self,
        file: &File,
        at: u64,
        size: usize,
        range: Range<u64>,
        out: &mut [u8],
    ) -> std::io::Result<()> {
        let span = self.span(&range);
        let wanted = out.len() as u64;
        if span.end - span.start + size as u64 <= SPREAD * wanted + GAP {
            let mut bytes = vec![0; (span.end - span.start) as usize + size];
            read_exact_at(file, &mut bytes, at + span.start)?;
            let mut numbers = out.chunks_exact_mut(size);
            self.visit(range, |offset| {
                let from = (offset - span.start) as usize;
                if let Some(number) = numbers.next() {
                    number.copy_from_slice(&bytes[from..from + size]);
                }
            });
            return Ok(());
        }
        // The numbers lie far apart: sorted by where they lie, those that are close together are read at once.
        let mut places = Vec::with_capacity(out.len() / size);
        self.visit(range, |offset| places.push((offset, places.len())));
        places.sort_unstable();
        let (mut bytes, mut rest) = (Vec::new(), &places[..]);
        while let Some(&(first, _)) = rest.first() {
            let goes_on = |pair: &&[(u64, usize)]| {
                pair[1].0 - pair[0].0 <= GAP && pair[1].0 - first <= LONGEST_RUN
            };
            let len = 1 + rest.windows(2).take_while(goes_on).count();
            let (run, after) = rest.split_at(len);
            rest = after;
            bytes.resize((run[len - 1].0 - first) as usize + size, 0);
            read_exact_at(file, &mut bytes, at + first)?;
            for (offset, i) in run {
                let from = (offset - first) as usize;
                out[i * size..(i + 1) * size].copy_from_slice(&bytes[from..from + size]);
            }
        }
        Ok(())
    }

    /// From the first to the last byte offset at which a number of a range begins.
    fn span(&self, range: &Range<u64>) -> Range<u64> {
        let (first, last) = (self.index(range.start), self.index(range.end - 1));
        let [mut low, mut high] = [0, 0];
        let mut same = true;
        for ((n, stride), (a, b)) in self.dims.iter().zip(first.iter().zip(&last)) {
            // Up to the first dimension in which they differ, both have one index; behind it, every index occurs.
            let (from, to) = if same { (*a, *b) } else { (0, n - 1) };
            same &= a == b;
            low += from * stride;
            high += to * stride;
        }
        low..high
    }

    fn index(&self, mut i: u64) -> Vec<u64> {
        let mut index = vec![0; self.dims.len()];
        for (place, (n, _)) in index.iter_mut().zip(&self.dims).rev() {
            (*place, i) = (i % n, i / n);
        }
        index
    }

    /// Calls `f` with the byte offset of each number of a range, in the tensor's order.
    fn visit(&self, range: Range<u64>, mut f: impl FnMut(u64)) {
        let Some((&(row_len, row_stride), outer)) = self.dims.split_last() else {
            return range.for_each(|_| f(0));
        };
        let mut index = self.index(range.start);
        let mut left = range.end - range.start;
        while left > 0 {
            let Some((column, rows)) = index.split_last_mut() else {
                return;
            };
            let row_at: u64 = rows
                .iter()
                .zip(outer)
                .map(|(i, (_, stride))| i * stride)
                .sum();
            let len = left.min(row_len - *column);
            (0..len).for_each(|i| f(row_at + (*column + i) * row_stride));
            left -= len;
            *column = 0;
            for (i, (n, _)) in rows.iter_mut().zip(outer).rev() {
                *i += 1;
                if *i < *n {
                    break;
                }
                *i = 0;
            }
        }
    }
}
