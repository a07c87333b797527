//! The outcome of many comparisons, as far as they have been made.

/// The worst of what was compared of one fused conv.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub ratio: f64,
    pub absolute: f64,
    pub relative: f64,
    signal: f64,
    noise: f64,
    pub at: Option<(&'static str, Vec<usize>)>,
}

impl Tally {
    /// `unit` is the height of the input: absolute differences are reported per unit of it.
    pub(super) fn add(
        &mut self,
        difference: f64,
        value: f64,
        bound: f64,
        unit: f64,
        at: impl FnOnce() -> (&'static str, Vec<usize>),
    ) {
        let ratio = if difference == 0.0 {
            0.0
        } else {
            difference / bound
        };
        self.signal += value * value;
        self.noise += difference * difference;
        self.absolute = self.absolute.max(difference / unit);
        self.relative = self.relative.max(difference / value.abs().max(bound));
        // NaN is never skipped: it is worse than any number.
        if ratio > self.ratio || (ratio.is_nan() && !self.ratio.is_nan()) {
            self.ratio = ratio;
            self.at = Some(at());
        }
    }

    /// Takes in what another part of the same conv gave.
    pub(super) fn merge(&mut self, other: Tally) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.absolute = self.absolute.max(other.absolute);
        self.relative = self.relative.max(other.relative);
        if other.ratio > self.ratio || (other.ratio.is_nan() && !self.ratio.is_nan()) {
            (self.ratio, self.at) = (other.ratio, other.at);
        }
    }

    /// Signal to noise, in dB.
    pub(super) fn snr_db(&self) -> f64 {
        10.0 * (self.signal / self.noise).log10()
    }
}
