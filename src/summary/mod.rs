//! What a file is and what it costs: blocks, parameters, multiply-adds, kernels per tap.

pub mod cost;
pub mod inspect;
pub mod int8;
pub mod kernels;
pub mod leftover;
pub mod norms;
pub mod order;
pub mod units;
pub mod warnings;
