//! Why a convolution cannot be computed.

use super::PaddingMode;

/// A convolution that has no result. Shapes are given as PyTorch prints them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvError {
    /// A stride, a dilation or the number of groups is 0.
    #[error("`{name}` is 0; it must be at least 1")]
    Zero {
        /// The parameter's name.
        name: &'static str,
    },
    /// A map or a kernel has an axis of length 0 (a batch may be empty).
    #[error("the {what} has shape {shape:?}; no axis but the batch may be empty")]
    Empty {
        /// "input" or "weight".
        what: &'static str,
        /// Its shape.
        shape: [usize; 4],
    },
    /// The channels on one side are not a multiple of the groups.
    #[error(
        "{channels} {side} channels cannot be split into {groups} groups; `groups` must divide them"
    )]
    Groups {
        /// "input" or "output".
        side: &'static str,
        /// The number of channels on that side.
        channels: usize,
        /// The number of groups.
        groups: usize,
    },
    /// The weight reads another number of channels than the input has.
    #[error(
        "the input has {found} channels; a weight of shape {weight:?} in {groups} groups reads {expected}"
    )]
    Channels {
        /// The input's channels.
        found: usize,
        /// The channels the weight reads: its second axis times the groups.
        expected: usize,
        /// The weight's shape.
        weight: [usize; 4],
        /// The number of groups.
        groups: usize,
    },
    /// The bias does not have one value per output channel.
    #[error("the bias has {found} values; {expected} output channels need one each")]
    Bias {
        /// The bias's length.
        found: usize,
        /// The weight's output channels.
        expected: usize,
    },
    /// Padding `same` with a stride, which PyTorch does not define.
    #[error(
        "padding `same` is defined for stride 1 only, and the stride is {stride:?}; give the padding as numbers"
    )]
    SameWithStride {
        /// The stride, \[height, width\].
        stride: [usize; 2],
    },
    /// A border wider than what the map can fill it with.
    #[error(
        "padding mode `{mode}` cannot add {padding} along the {axis} of a map of {length}; {limit} is the most"
    )]
    PaddingTooWide {
        /// "reflect" or "circular".
        mode: &'static str,
        /// "height" or "width".
        axis: &'static str,
        /// The border asked for.
        padding: usize,
        /// The map's length along that axis.
        length: usize,
        /// The widest border that this mode can fill.
        limit: usize,
    },
    /// The kernel does not fit into the padded map.
    #[error(
        "a kernel of {kernel} (dilation {dilation}) spans {span} along the {axis}; the padded map has {padded}"
    )]
    KernelTooLarge {
        /// "height" or "width".
        axis: &'static str,
        /// The kernel's taps along that axis.
        kernel: usize,
        /// The dilation along that axis.
        dilation: usize,
        /// `dilation · (kernel − 1) + 1`.
        span: usize,
        /// The map's length along that axis, padding included.
        padded: usize,
    },
    /// A size that no memory of this machine can hold.
    #[error("the {what} would be larger than memory can be addressed")]
    Overflow {
        /// Which size it is.
        what: &'static str,
    },
}

impl PaddingMode {
    /// The name PyTorch gives this mode.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zeros => "zeros",
            Self::Reflect => "reflect",
            Self::Replicate => "replicate",
            Self::Circular => "circular",
        }
    }
}
