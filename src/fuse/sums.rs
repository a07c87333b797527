//! Checksums of what is written by many threads, in whatever order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;

/// The CRC-32 of every piece of a file, by where it begins.
#[derive(Debug, Default)]
pub struct Sums(Mutex<BTreeMap<u64, Hasher>>);

impl Sums {
    /// Takes the sum of a piece.
    pub(super) fn add(&self, at: u64, bytes: &[u8]) {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.insert(at, hasher);
    }

    /// The sum of a part of the file, which whole pieces make up.
    pub fn of(&self, range: Range<u64>) -> u32 {
        let pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut whole = Hasher::new();
        for piece in pieces.range(range).map(|(_, piece)| piece) {
            whole.combine(piece);
        }
        whole.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::Sums;

    #[test]
    fn pieces_in_any_order_sum_up_to_the_whole() {
        let sums = Sums::default();
        sums.add(105, b"fgh");
        sums.add(90, b"before");
        sums.add(100, b"abcde");
        assert_eq!(sums.of(100..108), crc32fast::hash(b"abcdefgh"));
        assert_eq!(sums.of(108..108), crc32fast::hash(b""));
    }
}
