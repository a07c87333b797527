//! How an operator walks over the axes of its input.

use super::lanes::{Axis, Lanes};

/// How an operator walks over the axes of its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Walk {
    /// A conv, with what belongs to each spatial axis.
    Conv(Vec<Step>),
    /// A transposed conv, with what it adds at the end of each spatial axis.
    Transposed(Vec<Step>, Vec<usize>),
    /// A linear layer over the last axis; of a matrix if there are two axes.
    Linear,
}

/// How a conv walks along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The distance of windows.
    pub stride: usize,
    /// Zeros before the first element.
    pub before: usize,
    /// Zeros behind the last one.
    pub after: usize,
    /// The distance of taps.
    pub dilation: usize,
}

impl Walk {
    /// How the one operator walks over its source that a value with these lanes becomes. No answer where nothing in it has weights.
    pub(super) fn of(lanes: &Lanes) -> Option<Walk> {
        let step = |axis: &Axis| Step {
            stride: axis.stride,
            before: axis.before,
            after: axis.after,
            dilation: axis.step.max(1),
        };
        let steps = |axes: &[Axis]| axes.iter().map(step).collect();
        match lanes {
            Lanes::Maps(axes) => Some(Walk::Conv(steps(axes))),
            Lanes::Spread(axes, added) => Some(Walk::Transposed(steps(axes), added.clone())),
            Lanes::Rows { .. } => Some(Walk::Linear),
            Lanes::Untouched => None,
        }
    }

    /// The steps along spatial axes, of which a linear layer has none.
    pub(super) fn steps(&self) -> &[Step] {
        match self {
            Walk::Conv(steps) | Walk::Transposed(steps, _) => steps,
            Walk::Linear => &[],
        }
    }

    /// Whether a conv pads one side more than the other.
    pub(super) fn is_uneven(&self) -> bool {
        matches!(self, Walk::Conv(steps) if steps.iter().any(|step| step.before != step.after))
    }
}
