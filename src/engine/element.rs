//! The numbers a feature map can hold.

use fearless_simd::{Simd, SimdFloat, SimdFloatElement};
use num_traits::Float;

/// A float with vectors of it in every instruction set: f32 or f64, and no other type.
pub trait Element: Float + SimdFloatElement + Default + Send + Sync + 'static {
    /// The widest vector of this number that the instruction set `S` has.
    type Lanes<S: Simd>: SimdFloat<S, Element = Self>;
}

impl Element for f32 {
    type Lanes<S: Simd> = S::f32s;
}

impl Element for f64 {
    type Lanes<S: Simd> = S::f64s;
}
