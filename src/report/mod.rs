//! The report: what fusing did to a file, block by block, as data and as one self-contained page.
//!
//! [`report`] gathers plain data, which is also what `--json` prints; [`page`] draws it.

mod chart;
mod heat;
mod model;
mod page;

pub use heat::level;
pub use model::{Block, Conv, Eps, Error, Macs, Options, Report, Totals, Verified, report};
pub use page::page;
