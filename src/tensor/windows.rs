//! The numbers of a checkpoint, for folding and for running: decoded to f64, a window at a time.

use std::ops::Range;

use crate::algebra::Values;
use crate::tensor::{Checkpoint, Error, Float, Tensor};

/// Reads tensors of a checkpoint through windows, so that reading row after row costs few system calls
/// and memory does not grow with the tensor.
#[derive(Debug)]
pub struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    windows: Vec<Window>,
    window_bytes: usize,
    /// Tensors with this many rows are not read ahead beyond the given one.
    until: Option<(usize, usize)>,
}

#[derive(Debug)]
struct Window {
    tensor: Tensor,
    float: Float,
    /// The elements that `bytes` begins with; none if the window is free.
    held: Range<usize>,
    /// As long as the largest read so far.
    bytes: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Reads at least `window_bytes` at once where the tensor has as many.
    pub fn new(checkpoint: &'a Checkpoint, window_bytes: usize) -> Reader<'a> {
        Reader {
            checkpoint,
            windows: Vec::new(),
            window_bytes,
            until: None,
        }
    }

    /// From here on, tensors with `rows` rows are read ahead no further than row `until`.
    pub fn read_ahead_until(&mut self, rows: usize, until: usize) {
        self.until = Some((rows, until));
    }

    /// Forgets what has been read, and keeps the buffers.
    pub fn forget(&mut self) {
        self.until = None;
        for window in &mut self.windows {
            window.held = 0..0;
        }
    }

    /// The bytes of `len` elements from `first` on, and what they are.
    fn bytes(&mut self, leaf: &Tensor, first: usize, len: usize) -> Result<(Float, &[u8]), Error> {
        let i = self.window_of(leaf)?;
        let window = &mut self.windows[i];
        let size = window.float.size();
        if first < window.held.start || first + len > window.held.end {
            let rows = leaf.shape().first().copied().unwrap_or(1).max(1);
            let end = match self.until {
                Some((of, until)) if of == rows => until.min(rows) * (leaf.len() / rows),
                _ => leaf.len(),
            };
            let ahead = (self.window_bytes / size)
                .min(end.saturating_sub(first))
                .max(len);
            if window.bytes.len() < ahead * size {
                window.bytes.resize(ahead * size, 0);
            }
            // What a failed read leaves in the window is not to be taken for anything.
            window.held = 0..0;
            let bytes = &mut window.bytes[..ahead * size];
            self.checkpoint
                .read_at(leaf, (first * size) as u64, bytes)?;
            window.held = first..first + ahead;
        }
        let at = (first - window.held.start) * size;
        Ok((window.float, &window.bytes[at..at + len * size]))
    }

    fn window_of(&mut self, leaf: &Tensor) -> Result<usize, Error> {
        if let Some(i) = self.windows.iter().position(|w| w.tensor.is(leaf)) {
            return Ok(i);
        }
        let Some(float) = leaf.dtype().float() else {
            return Err(Error::NotFloat {
                tensor: leaf.to_string(),
                found: leaf.dtype().to_string(),
            });
        };
        // A buffer that a former block has left behind serves again.
        if let Some(i) = self.windows.iter().position(|w| w.held.is_empty()) {
            let window = &mut self.windows[i];
            (window.tensor, window.float) = (leaf.clone(), float);
            return Ok(i);
        }
        self.windows.push(Window {
            tensor: leaf.clone(),
            float,
            held: 0..0,
            bytes: Vec::new(),
        });
        Ok(self.windows.len() - 1)
    }
}

impl Values<Tensor> for Reader<'_> {
    type Error = Error;

    fn read(&mut self, leaf: &Tensor, first: usize, out: &mut [f64]) -> Result<(), Error> {
        let (float, bytes) = self.bytes(leaf, first, out.len())?;
        float.decode(bytes, out);
        Ok(())
    }

    fn read_scaled(
        &mut self,
        leaf: &Tensor,
        first: usize,
        scale: f64,
        out: &mut [f64],
    ) -> Result<(), Error> {
        let (float, bytes) = self.bytes(leaf, first, out.len())?;
        float.decode_scaled(bytes, scale, out);
        Ok(())
    }
}
