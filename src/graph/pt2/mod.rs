//! Programs that `torch.export.save` wrote: a zip of stored entries, with the graph as JSON and each weight as raw bytes.
//!
//! The archive is read by its directory ([`zip`](crate::tensor::zip)), the graph by [`schema`] and [`json`], the weights by
//! [`weights`]; [`call`], [`ops`] and [`views`] say what an operator computes, [`alias`] where values change in place, and
//! [`read`] puts the graph together.

mod alias;
mod call;
mod error;
mod json;
mod ops;
mod read;
mod schema;
mod views;
mod weights;

use std::path::Path;

pub use error::Error;
pub use read::Program;

/// Whether a file that begins like this may be one: a zip archive.
pub fn may_be_one(prefix: &[u8]) -> bool {
    prefix.starts_with(crate::tensor::zip::MAGIC)
}

/// Opens a program: its graph is read, of its weights where they lie.
///
/// # Errors
/// When it cannot be read, or is not what PyTorch writes, or holds norms in training mode.
pub fn open(path: &Path) -> Result<Program, Error> {
    read::open(path)
}
