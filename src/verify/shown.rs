//! How a verdict writes its numbers.

/// A ratio to the rounding bound: `0.42`, `5.3e4`, `NaN`.
pub fn ratio(x: f64) -> String {
    if x < 1000.0 {
        format!("{x:.2}")
    } else if x.is_finite() {
        format!("{x:.1e}")
    } else {
        x.to_string()
    }
}
