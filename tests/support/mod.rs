//! What several tests share: arrays as operands, and random numbers from a seed.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod command;
pub mod file;
pub mod fixtures;
pub mod forge;
pub mod graphs;
pub mod header;
pub mod onnx;
pub mod pickles;
pub mod tiny;
pub mod torch;

use std::convert::Infallible;
use std::fmt;

use repfuse::algebra::{Operand, Values};

/// An array in memory as an operand of the algebra.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub label: &'static str,
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.label)
    }
}

impl Operand for Array {
    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// Arrays hold their own values.
pub struct InMemory;

impl Values<Array> for InMemory {
    type Error = Infallible;

    fn read(&mut self, leaf: &Array, first: usize, out: &mut [f64]) -> Result<(), Infallible> {
        out.copy_from_slice(&leaf.data[first..first + out.len()]);
        Ok(())
    }
}

/// A small generator of reproducible numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number between `low` and `high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn array(&mut self, label: &'static str, shape: &[usize], low: f64, high: f64) -> Array {
        let data = (0..shape.iter().product())
            .map(|_| self.between(low, high))
            .collect();
        Array {
            label,
            shape: shape.to_vec(),
            data,
        }
    }
}
