//! The order in which a file has its modules, with numbers counted.
//!
//! Names that differ in a number are in the order of the numbers. All others are in the order in which the file's bytes have the first
//! tensor of each: the order of the network, where the writer kept it, and that of the alphabet, where it sorted.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::tensor::{Checkpoint, Place};
use crate::verify::shown::{natural_segments, numbered};

/// Where the first tensor of every module lies.
#[derive(Debug, Default)]
pub struct FileOrder {
    first: HashMap<String, (usize, u64)>,
}

impl FileOrder {
    /// The order of a file's tensors.
    pub fn new(checkpoint: &Checkpoint) -> FileOrder {
        let mut first: HashMap<String, (usize, u64)> = HashMap::new();
        for tensor in checkpoint.tensors().values() {
            // What is in no file by itself has no place in its order.
            let Place::InFile { file, offset } = tensor.place() else {
                continue;
            };
            for (end, _) in tensor.name().match_indices('.') {
                let group = numbered(&tensor.name()[..end]).0;
                let place = (*file, *offset);
                match first.get_mut(group) {
                    Some(earliest) => *earliest = place.min(*earliest),
                    None => drop(first.insert(group.to_owned(), place)),
                }
            }
        }
        FileOrder { first }
    }

    /// How two names stand to one another.
    pub fn compare(&self, a: &str, b: &str) -> Ordering {
        let mut begin = 0;
        for (x, y) in a.split('.').zip(b.split('.')) {
            if x != y {
                // A module that the file does not have stands behind those that it has.
                let key = |name: &str, segment: &str| {
                    let group = numbered(&name[..begin + segment.len()]).0;
                    let place = self.first.get(group).copied();
                    (place.is_none(), place)
                };
                let places = key(a, x).cmp(&key(b, y));
                return places.then_with(|| natural_segments(x, y));
            }
            begin += x.len() + 1;
        }
        a.len().cmp(&b.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_the_order_of_letters_and_numbers_count() {
        let places = [
            ("stem", 0),
            ("stage", 1),
            ("stage1.conv", 1),
            ("stage1.bn", 2),
        ];
        let first = places.map(|(name, at)| (name.to_owned(), (0, at)));
        let order = FileOrder {
            first: first.into_iter().collect(),
        };
        let mut names = [
            "stage10.bn",
            "head",
            "stage1.bn.weight",
            "stage2",
            "stem.0",
            "stage1.conv.weight",
            "fc",
        ];
        names.sort_by(|a, b| order.compare(a, b));
        let expected = [
            "stem.0",
            "stage1.conv.weight",
            "stage1.bn.weight",
            "stage2",
            "stage10.bn",
            "fc",
            "head",
        ];
        assert_eq!(names, expected);
    }
}
