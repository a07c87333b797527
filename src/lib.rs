//! Fold re-parameterizable blocks of a checkpoint into plain convs, and prove that nothing changed.

pub mod algebra;
pub mod consistency;
pub mod cost;
pub mod describe;
pub mod engine;
pub mod fuse;
pub mod inspect;
pub mod maps;
pub mod network;
pub mod numbers;
pub mod recipe;
pub mod report;
pub mod run;
pub mod tensor;
pub mod units;
pub mod values;
pub mod verify;
