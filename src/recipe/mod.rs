//! Recipes: which tensors of a checkpoint form a block, which expression it is, and what its fused conv is called.
//!
//! This is where the algebra and the tensors meet. A recipe is data; no line of Rust knows a family. Planning reads
//! names and shapes only, never a tensor's bytes.

pub(crate) mod bounds;
mod builtin;
mod captures;
pub(crate) mod detect;
pub(crate) mod dropped;
mod error;
pub(crate) mod expand;
mod json;
pub(crate) mod model;
mod models;
pub(crate) mod near;
mod parse;
pub(crate) mod pattern;
mod place;
mod regions;
mod segments;
pub(crate) mod start;
mod template;
mod wrappers;

pub use builtin::{builtin, builtin_near, detect_builtin, names, source};
pub use detect::{deployed, detect, detect_one};
pub use error::Error;
pub use expand::Index;
pub use model::{Network, Recipe};
pub use models::for_model;
pub use parse::recipe as parse;
pub use regions::Family;
pub(crate) use regions::split;
pub use start::found_in;
pub(crate) use wrappers::{bare, seen_through, without as without_wrappers, wrappers_of};

/// The JSON Schema of a recipe, for editors. [`parse`](fn@parse) says more, and says it better.
pub const SCHEMA: &str = include_str!("schema.json");

/// The candidate that `word` is probably a slip for: at most one letter and a quarter of the word away.
pub fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let best = candidates.map(|c| (distance(word, c), c)).min()?;
    (best.0 <= 1 + word.len() / 4).then_some(best.1)
}

/// The number of letters to insert, delete or replace to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
