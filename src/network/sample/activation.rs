//! The activations that may stand between a block and the place where its output was recorded.

use std::fmt;

/// A function that is applied to every number of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// None.
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + exp(−x))`.
    Silu,
    /// `x · Φ(x)`, by the error function.
    Gelu,
    /// The same by its approximation with a hyperbolic tangent.
    GeluTanh,
    /// `x · min(max(x + 3, 0), 6) / 6`.
    Hardswish,
    /// `x` where it is positive, else `x` times this slope.
    LeakyRelu(f64),
}

/// Those that are tried, in this order.
pub(super) const TRIED: [Activation; 8] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Hardswish,
    Activation::LeakyRelu(0.1),
    Activation::LeakyRelu(0.01),
];

impl Activation {
    /// The function.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Activation::Identity => x,
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Hardswish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
            Activation::LeakyRelu(slope) => {
                if x > 0.0 {
                    x
                } else {
                    slope * x
                }
            }
        }
    }

    /// How far two results are apart at the most, for inputs that are one apart.
    pub(super) fn steepest(self) -> f64 {
        match self {
            Activation::Identity | Activation::Relu | Activation::LeakyRelu(_) => 1.0,
            Activation::Silu => 1.1,
            Activation::Gelu | Activation::GeluTanh => 1.13,
            Activation::Hardswish => 1.5,
        }
    }

    /// What arithmetic with this unit roundoff may be off by when it computes the function of `x`: a few roundings of a factor
    /// that is no larger than 1, and of the product.
    pub(super) fn rounding(self, x: f64, unit: f64) -> f64 {
        match self {
            Activation::Identity | Activation::Relu => 0.0,
            Activation::LeakyRelu(_) => unit * x.abs(),
            _ => 8.0 * unit * x.abs(),
        }
    }

    /// Whether the result tells `x`: elsewhere, a wrong input passes.
    pub(super) fn shows(self, x: f64) -> bool {
        const STEP: f64 = 1e-3;
        (self.of(x + STEP) - self.of(x - STEP)).abs() > 0.1 * STEP
    }

    /// The positive input of a positive result.
    pub(super) fn positive_input(self, y: f64) -> f64 {
        match self {
            Activation::Identity | Activation::Relu | Activation::LeakyRelu(_) => y,
            _ => {
                // On positive inputs each of these rises, and stays below its input by less than 0.4.
                let (mut low, mut high) = (y, y + 0.5);
                for _ in 0..64 {
                    let middle = 0.5 * (low + high);
                    match self.of(middle) < y {
                        true => low = middle,
                        false => high = middle,
                    }
                }
                0.5 * (low + high)
            }
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Activation::Identity => f.write_str("identity"),
            Activation::Relu => f.write_str("ReLU"),
            Activation::Silu => f.write_str("SiLU"),
            Activation::Gelu => f.write_str("GELU"),
            Activation::GeluTanh => f.write_str("GELU (tanh)"),
            Activation::Hardswish => f.write_str("Hardswish"),
            Activation::LeakyRelu(slope) => write!(f, "LeakyReLU({slope})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `torch.nn.functional` in f64, at −1.5 and 0.7.
    #[test]
    fn activations_are_those_of_torch() {
        let expected = [
            [-1.5, 0.7],
            [0.0, 0.7],
            [-0.273_638_285_709_534_5, 0.467_731_440_517_716_26],
            [-0.100_210_801_903_287_04, 0.530_625_443_443_848_9],
            [-0.100_428_423_019_767_06, 0.530_570_134_705_116_7],
            [-0.375, 0.431_666_666_666_666_64],
            [-0.15, 0.7],
            [-0.015, 0.7],
        ];
        for (activation, expected) in TRIED.into_iter().zip(expected) {
            for (x, expected) in [-1.5, 0.7].into_iter().zip(expected) {
                let found = activation.of(x);
                assert!(
                    (found - expected).abs() < 1e-9,
                    "{activation} of {x}: {found}"
                );
            }
        }
    }

    #[test]
    fn positive_inputs_are_found_again() {
        for activation in TRIED {
            for x in [1e-3, 0.4, 2.9, 3.1, 40.0] {
                let found = activation.positive_input(activation.of(x));
                assert!((found - x).abs() < 1e-9, "{activation}: {found}, not {x}");
            }
        }
    }

    #[test]
    fn no_step_is_steeper_than_it_is_said_to_be() {
        for activation in TRIED {
            for i in -800..800 {
                let x = f64::from(i) / 100.0;
                let step = activation.of(x + 0.01) - activation.of(x);
                assert!(
                    step.abs() <= 0.01 * activation.steepest() + 1e-12,
                    "{activation} at {x}"
                );
            }
        }
    }
}
