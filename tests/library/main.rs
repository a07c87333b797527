//! Tests of the library: one binary, a module for each subject.
#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

#[path = "../support/mod.rs"]
mod support;

mod architecture;
mod archives;
mod beside_branches;
mod closed_world;
mod conv2d_laws;
mod documents;
mod families;
mod fixtures;
mod formats;
mod graph_mutations;
mod half_arithmetic;
mod int8;
mod laws;
mod models;
mod mutations;
mod near;
mod npy;
mod pickles;
mod quantizers;
mod single_weights;
mod slabs;
mod torch_consistency;
mod torch_conv2d;
mod vectors;
mod verify;
mod wrapped_states;
mod wrappers;
