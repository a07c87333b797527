//! What one kernel that computes the same as a part of a tree maps to what.

use crate::algebra::extent::{Extent, POINT, grown, volume};
use crate::algebra::part::Op;

/// What a tree or a part of it maps: `[inputs, d, h, w]` to `[out, d − kd + 1, h − kh + 1, w − kw + 1]`.
///
/// No number in it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub(super) inputs: usize,
    pub(super) out: usize,
    pub(super) groups: usize,
    pub(super) groups_known: bool,
    pub(super) extent: Extent,
    pub(super) rank: usize,
    pub(super) transposed: bool,
}

impl Geometry {
    /// Of an operator that maps every channel by itself.
    pub(in crate::algebra) fn channelwise<T>(inputs: usize, op: &Op<T>) -> Geometry {
        let extent = match op {
            Op::AvgPool(window) => *window,
            Op::Crop(margins) => margins.extent(),
            _ => POINT,
        };
        Geometry {
            inputs,
            out: inputs,
            groups: inputs,
            groups_known: true,
            extent,
            rank: axes_needed(extent),
            transposed: false,
        }
    }

    /// Of this and, behind it, another.
    pub(in crate::algebra) fn then(&self, next: &Geometry) -> Geometry {
        let extent = grown(self.extent, next.extent);
        Geometry {
            inputs: self.inputs,
            out: next.out,
            // Both partitions of the channels in between refine the one into gcd(g1, g2) parts.
            groups: gcd(self.groups, next.groups),
            groups_known: true,
            extent,
            rank: self.rank.max(next.rank),
            transposed: self.transposed || next.transposed,
        }
    }

    /// With so many dimensions, or as many as it needs.
    pub(in crate::algebra) fn with_rank(self, rank: usize) -> Geometry {
        Geometry {
            rank: rank.clamp(axes_needed(self.extent), 5),
            ..self
        }
    }

    pub(in crate::algebra) fn with_groups_guessed(self) -> Geometry {
        Geometry {
            groups_known: false,
            ..self
        }
    }

    /// Input channels. Where nothing in the block tells (a plain sum of convs), the smallest value that fits.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Groups of the one kernel that computes the same.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Whether the leaves decide the groups, or any number would give the same kernel.
    pub fn groups_known(&self) -> bool {
        self.groups_known
    }

    /// `[kd, kh, kw]` of the one kernel that computes the same.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The number of dimensions of the stored weight: 2 (Linear), 3 (Conv1d), 4 (Conv2d) or 5 (Conv3d).
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Whether the weight is stored as that of a transposed conv.
    pub fn transposed(&self) -> bool {
        self.transposed
    }

    /// Input channels that one output channel sees: the second number of a weight's shape.
    pub fn in_per_group(&self) -> usize {
        self.inputs / self.groups
    }

    /// Output channels that see the same input channels: the second number of a transposed weight's shape.
    pub fn out_per_group(&self) -> usize {
        self.out / self.groups
    }

    /// The first input channel that output channel `o` sees.
    pub fn first_input(&self, o: usize) -> usize {
        o / self.out_per_group() * self.in_per_group()
    }

    /// Elements of one output channel's kernel.
    pub fn row_len(&self) -> usize {
        self.in_per_group() * self.taps()
    }

    /// Taps of the kernel of one input and one output channel.
    pub fn taps(&self) -> usize {
        volume(self.extent)
    }

    /// The shape in which the fused weight is stored.
    pub fn weight_shape(&self) -> Vec<usize> {
        let channels = match self.transposed {
            true => [self.inputs, self.out_per_group()],
            false => [self.out, self.in_per_group()],
        };
        let axes = &self.extent[self.extent.len() + 2 - self.rank..];
        channels.iter().chain(axes).copied().collect()
    }
}

/// The fewest dimensions of a weight with this extent.
fn axes_needed(extent: Extent) -> usize {
    match extent {
        [1, 1, 1] => 2,
        [1, 1, _] => 3,
        [1, _, _] => 4,
        _ => 5,
    }
}

/// The greatest common divisor; `gcd(0, n) = n`.
pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
