//! Whole networks: maps recorded from the author's network, the user's own maps through both forms of a block, sequential networks in both forms, and R-Drop's divergence.

pub mod divergence;
#[cfg(feature = "run")]
pub mod graphs;
pub mod maps;
pub mod sample;
mod sequential;

pub use sequential::{Error, Outputs, Sequential, deployed_conv, sequential};
