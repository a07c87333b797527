//! The numbers a feature map can hold.

use std::ops::AddAssign;

use fearless_simd::SimdFloatElement;
use num_traits::Float;

/// A float that there are vectors of: f32 or f64, and no other type.
pub trait Element: Float + SimdFloatElement + AddAssign + Send + Sync + 'static {}

impl Element for f32 {}
impl Element for f64 {}
