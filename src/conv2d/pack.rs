//! The unrolled map (im2col), written in the order in which [`product`](super::product) reads it.
//!
//! The matrix has one row per weight of an output channel (input channel, then tap) and one column per output position.
//! A tile of columns is cut into *panels*, and the rows into *blocks*:
//!
//! ```text
//!               panel 0   panel 1  …                     in memory: block by block,
//!             ┌─────────┬─────────┬──┐                   in a block panel by panel,
//!    block 0  │ 0 1 2 3 │         │  │  ≤ 2 KiB deep     in a panel row by row
//!             │ 4 5 6 7 │         │  │
//!             ├─────────┼─────────┼──┤
//!    block 1  │         │         │  │
//! ```
//!
//! A panel is as wide as the product's accumulators, the last ones narrower, so that few columns are padding.

use std::ops::Range;

use super::element::Element;
use super::plan::Plan;
use super::planes::Layout;

/// The most memory one tile takes, unless a single panel needs more.
const TILE_BYTES: usize = 16 << 20;

/// The depth of a block in bytes: with it, a panel of a block stays in the second-level cache while all output channels
/// pass over it, and the rows of the weight in the first.
const BLOCK_BYTES: usize = 2 << 10;

/// The columns of a tile from `start` on, `vectors` vectors wide.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub start: usize,
    pub vectors: usize,
}

/// How the unrolled map of one group is cut.
pub(super) struct Cut {
    pub lanes: usize,
    widest: usize,
    /// Rows of the matrix, and of a block (the last may have fewer).
    pub depth: usize,
    pub block: usize,
    /// Columns of a tile (the last may have fewer).
    pub tile: usize,
}

impl Cut {
    /// `lanes` is the length of a vector, `widest` the vectors of the widest panel.
    pub(super) fn new<F>(plan: &Plan, lanes: usize, widest: usize) -> Self {
        let depth = plan.depth();
        let panel = lanes * widest;
        let tile = TILE_BYTES / (depth * size_of::<F>()) / panel * panel;
        Self {
            lanes,
            widest,
            depth,
            block: BLOCK_BYTES / size_of::<F>(),
            tile: tile.max(panel).min(plan.positions()),
        }
    }

    /// Columns rounded up to whole vectors.
    pub(super) fn padded(&self, columns: usize) -> usize {
        columns.next_multiple_of(self.lanes)
    }

    /// The panels of a tile: the widest as long as they fit, then each half as wide as the one before.
    pub(super) fn panels(&self, columns: usize) -> impl Iterator<Item = Panel> {
        let (lanes, widest, end) = (self.lanes, self.widest, self.padded(columns));
        let mut start = 0;
        std::iter::from_fn(move || {
            let left = (end - start) / lanes;
            let vectors = if left >= widest {
                widest
            } else {
                1 << left.checked_ilog2()?
            };
            let panel = Panel { start, vectors };
            start += vectors * lanes;
            Some(panel)
        })
    }
}

/// Writes one block of one tile: the matrix rows `rows`, for the output positions `positions`.
///
/// Columns beyond the last position keep what they hold; what the product makes of them is dropped.
pub(super) fn pack<F: Element>(
    layout: &Layout,
    cut: &Cut,
    planes: &[F],
    rows: Range<usize>,
    positions: &[usize],
    block: &mut [F],
) {
    let depth = rows.len();
    let taps = layout.taps.len();
    let mut rest = block;
    let mut runs = Vec::new();
    for panel in cut.panels(positions.len()) {
        let width = panel.vectors * cut.lanes;
        let columns = &positions[panel.start..positions.len().min(panel.start + width)];
        runs.clear();
        runs.extend(
            columns
                .chunk_by(|a, b| a + 1 == *b)
                .map(|run| (run[0], run.len())),
        );
        let (values, after) = rest.split_at_mut(depth * width);
        rest = after;
        for (row, mut values) in rows.clone().zip(values.chunks_exact_mut(width)) {
            let source = &planes[row / taps * layout.len + layout.taps[row % taps]..];
            for &(start, length) in &runs {
                let (run, after) = values.split_at_mut(length);
                run.copy_from_slice(&source[start..][..length]);
                values = after;
            }
        }
    }
}
