//! Programs that `torch.export.save` wrote: a zip of stored entries, with the graph as JSON and each weight as raw bytes.
//!
//! The archive is read by its directory (`zip`), the graph by `schema` and `json`, the weights by
//! `weights`; `call`, `ops` and `views` say what an operator computes, `computed` what follows from weights alone (in `steps`, some
//! of which `moved` and `made` know), `alias` where values change in place, and `build` puts the graph together; `read` opens a file.
//! `text` takes its text apart again, `kept` says what of it stays; `edit` and `nodes` give the texts of the new archive, `write` the
//! file; `compare` proves it.

mod alias;
mod build;
mod call;
mod compare;
mod computed;
mod edit;
mod error;
mod fills;
mod json;
mod kept;
mod made;
mod moved;
mod nodes;
mod ops;
mod read;
mod schema;
mod steps;
mod text;
mod views;
mod weights;
mod write;

pub use compare::verify;
pub use edit::{Edit, edit};
pub use error::Error;
pub use read::{Pt2, is_one};
pub use write::{WrongType, file_len, fuse};
