//! Writing one file from many threads without waiting for one another.
//!
//! The kernel lets one thread at a time write to a file, on tmpfs, ext4 and XFS alike, and the others spin. Here whoever
//! finds the file busy leaves its bytes to the one that is writing, and goes on. (Two threads that write by themselves
//! take 1.14 times as long as `cp` for a RepVGG-B3; two that do this, 0.83 times.)

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::error::Error;
use super::write::Writer;

/// Buffers that wait to be written before whoever brings one more has to wait too: what bounds the memory.
const DEPTH: usize = 4;

/// A [`Writer`] that many threads share.
#[derive(Debug)]
pub struct WriteQueue<'a> {
    writer: &'a Writer,
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Piece>,
    /// Buffers that have been written and serve again.
    spare: Vec<Vec<u8>>,
    /// Whether a thread is writing; it will not leave before nothing waits.
    busy: bool,
}

/// The first bytes of a buffer, and where they go. (A buffer is never cut: what serves again would be filled with zeros anew.)
#[derive(Debug)]
struct Piece {
    buffer: Vec<u8>,
    len: usize,
    at: u64,
}

impl<'a> WriteQueue<'a> {
    /// An empty queue.
    pub fn new(writer: &'a Writer) -> WriteQueue<'a> {
        WriteQueue {
            writer,
            state: Mutex::default(),
            room: Condvar::new(),
        }
    }

    /// Writes the first `len` bytes of `buffer` at a position of the file, now or soon; returns a buffer to fill next, of any length
    /// and with anything in it.
    ///
    /// When every call has returned, everything has been written.
    ///
    /// # Errors
    /// When the file system refuses these bytes or any that waited; what waits then is never written.
    pub fn put(&self, buffer: Vec<u8>, len: usize, at: u64) -> Result<Vec<u8>, Error> {
        let piece = Piece { buffer, len, at };
        let mut state = self.lock();
        if state.busy {
            while state.busy && state.waiting.len() >= DEPTH {
                state = self
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if state.busy {
                state.waiting.push_back(piece);
                return Ok(state.spare.pop().unwrap_or_default());
            }
        }
        state.busy = true;
        let mut next = Some(piece);
        let mut written = Ok(());
        while let Some(Piece { buffer, len, at }) = next {
            drop(state);
            self.room.notify_one();
            written = self.writer.write_at(&buffer[..len], at);
            state = self.lock();
            state.spare.push(buffer);
            if written.is_err() {
                state.waiting.clear();
            }
            next = state.waiting.pop_front();
        }
        state.busy = false;
        self.room.notify_all();
        written.map(|()| state.spare.pop().unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
