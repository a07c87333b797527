//! How an operator walks over the axes of its input.

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
