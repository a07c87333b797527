//! The worst difference so far, and where it is.

use crate::plan::WeightOrBias;

/// Whether a ratio is worse than the worst so far. NaN is never skipped: it is worse than any number.
pub(crate) fn is_worse(ratio: f64, worst: f64) -> bool {
    ratio > worst || (ratio.is_nan() && !worst.is_nan())
}

/// A difference in units of its bound. A bound that is no number, or beyond the largest, excuses nothing.
pub(crate) fn ratio(difference: f64, bound: f64) -> f64 {
    if difference == 0.0 {
        0.0
    } else if bound.is_finite() {
        difference / bound
    } else {
        f64::NAN
    }
}

/// The worse of two numbers; what is no number is the worst.
pub fn worse(a: f64, b: f64) -> f64 {
    if is_worse(b, a) { b } else { a }
}

/// The worst of what was compared of one fused conv.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub ratio: f64,
    pub absolute: f64,
    pub relative: f64,
    pub at: Option<At>,
}

/// A number of a conv that is compared.
#[derive(Clone, Debug)]
pub(super) struct At {
    /// The tensor that it stands in.
    pub which: WeightOrBias,
    /// Of a weight that random maps show, the output channel alone.
    pub index: Vec<usize>,
    pub found: f64,
    pub expected: Option<f64>,
    /// Whether the index is that of an output channel alone.
    pub whole_channel: bool,
}

impl Tally {
    /// `unit` is the height of the input: absolute differences are reported per unit of it.
    pub(super) fn add(
        &mut self,
        difference: f64,
        value: f64,
        bound: f64,
        unit: f64,
        at: impl FnOnce() -> At,
    ) {
        let ratio = ratio(difference, bound);
        self.absolute = worse(self.absolute, difference / unit);
        self.relative = worse(self.relative, difference / value.abs().max(bound));
        if is_worse(ratio, self.ratio) {
            self.ratio = ratio;
            self.at = Some(at());
        }
    }

    /// Takes in what another part of the same conv gave.
    pub(super) fn merge(&mut self, other: Tally) {
        self.absolute = worse(self.absolute, other.absolute);
        self.relative = worse(self.relative, other.relative);
        if is_worse(other.ratio, self.ratio) {
            (self.ratio, self.at) = (other.ratio, other.at);
        }
    }
}
