//! The numbers a feature map can hold.

use std::ops::AddAssign;

use fearless_simd::SimdFloatElement;
use num_traits::Float;

/// A float that there are vectors of: f32 or f64, and no other type.
pub trait Element:
    Float + Into<f64> + SimdFloatElement + AddAssign + Send + Sync + 'static
{
    /// The number that is next to it.
    fn rounded(x: f64) -> Self;
}

impl Element for f32 {
    fn rounded(x: f64) -> f32 {
        x as f32
    }
}

impl Element for f64 {
    fn rounded(x: f64) -> f64 {
        x
    }
}
