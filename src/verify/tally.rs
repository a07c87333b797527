//! The outcome of many comparisons, as far as they have been made.

/// Whether a ratio is worse than the worst so far. NaN is never skipped: it is worse than any number.
pub(crate) fn is_worse(ratio: f64, worst: f64) -> bool {
    ratio > worst || (ratio.is_nan() && !worst.is_nan())
}

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
        if is_worse(ratio, self.ratio) {
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
        if is_worse(other.ratio, self.ratio) {
            (self.ratio, self.at) = (other.ratio, other.at);
        }
    }

    /// Signal to noise, in dB.
    pub(super) fn snr_db(&self) -> f64 {
        10.0 * (self.signal / self.noise).log10()
    }
}
