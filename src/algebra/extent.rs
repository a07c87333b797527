//! How far a kernel reaches along depth, height and width. A Conv2d has a depth of 1, a Conv1d a height of 1 as well.

/// `[depth, height, width]`.
pub type Extent = [usize; 3];

/// The extent of whatever maps each position by itself.
pub const POINT: Extent = [1; 3];

/// What is left out at the edges of a map, along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Margins {
    /// Before the first position that stays.
    pub before: Extent,
    /// Behind the last one.
    pub after: Extent,
}

impl Margins {
    /// How far the window reaches of which only one position counts. It stops at the largest number, as [`grown`] does.
    pub fn extent(&self) -> Extent {
        each(|axis| {
            let around = self.before[axis].saturating_add(self.after[axis]);
            around.saturating_add(1)
        })
    }
}

/// The number of positions in it.
pub fn volume(extent: Extent) -> usize {
    extent.iter().product()
}

/// The extent of two kernels one behind the other; also the map that a valid kernel needs to give `a`.
///
/// It stops at the largest number; [`resolve`](super::shape::resolve) refuses such a tree.
pub fn grown(a: Extent, b: Extent) -> Extent {
    each(|axis| a[axis].saturating_add(b[axis] - 1))
}

/// The larger of two extents along each axis.
pub fn larger(a: Extent, b: Extent) -> Extent {
    each(|axis| a[axis].max(b[axis]))
}

/// The extent of a kernel whose taps lie `dilation` apart. It stops at the largest number, as [`grown`] does.
pub fn dilated(taps: Extent, dilation: Extent) -> Extent {
    each(|axis| ((taps[axis] - 1).saturating_mul(dilation[axis])).saturating_add(1))
}

/// The place in a map of this extent that a position lies at, row-major.
pub(super) fn flat(position: Extent, extent: Extent) -> usize {
    (position[0] * extent[1] + position[1]) * extent[2] + position[2]
}

/// The position of a place in a map of this extent: the inverse of `flat`.
pub fn position(flat: usize, extent: Extent) -> Extent {
    let row = flat / extent[2];
    [row / extent[1], row % extent[1], flat % extent[2]]
}

fn each(f: impl Fn(usize) -> usize) -> Extent {
    [0, 1, 2].map(f)
}
