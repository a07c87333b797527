//! How a kernel walks over a map: stride, padding, dilation and groups, as `torch.nn.Conv2d` names them.

/// The parameters of `torch.nn.Conv2d` that no weight file stores. Pairs are \[height, width\].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGeometry {
    /// How far the kernel moves between two outputs.
    pub stride: [usize; 2],
    /// How much border is added around the map.
    pub padding: Padding,
    /// The distance between two taps of the kernel.
    pub dilation: [usize; 2],
    /// The number of groups the channels are split into; no connection crosses a group.
    pub groups: usize,
    /// What the added border holds.
    pub padding_mode: PaddingMode,
}

impl Default for Conv2dGeometry {
    /// PyTorch's defaults: stride 1, no padding, dilation 1, one group, zeros.
    fn default() -> Self {
        Self {
            stride: [1, 1],
            padding: Padding::Valid,
            dilation: [1, 1],
            groups: 1,
            padding_mode: PaddingMode::Zeros,
        }
    }
}

/// How much border is added around the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// None: the kernel stays inside the map.
    Valid,
    /// As much as keeps the size of the map; stride 1 only. Where the total is odd (an even kernel), the extra row or
    /// column goes to the bottom or the right, as in PyTorch.
    Same,
    /// This many rows above and below, and this many columns left and right.
    Pair([usize; 2]),
}

impl From<usize> for Padding {
    fn from(amount: usize) -> Self {
        Self::Pair([amount; 2])
    }
}

/// What the added border holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PaddingMode {
    /// Zero.
    #[default]
    Zeros,
    /// The map mirrored at its outermost row and column, which are not repeated.
    Reflect,
    /// The nearest value of the map.
    Replicate,
    /// The map's opposite side.
    Circular,
}
