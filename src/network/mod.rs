//! Whole networks: the user's own maps through both forms of a block, sequential networks in both forms, and R-Drop's divergence.

pub mod divergence;
pub mod maps;
mod sequential;

pub use sequential::{Error, Outputs, Sequential, deployed_conv, sequential};
