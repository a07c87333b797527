//! The matrix product of the dense path: weight rows times packed columns, added to the output.
//!
//! A vector kernel holds `H` rows × `V` vectors of the output in registers and adds to them, for each row of a packed
//! panel, one weight of each output channel times the panel's vectors. The weight is read where it lies: a re-parameterized
//! network meets each weight only once per image, and copying it into panels of its own first, as a general matrix
//! product does, costs more than it saves at the map sizes of such networks.

use fearless_simd::{Level, Simd, SimdBase, SimdFloat, dispatch};

use super::element::Element;
use super::pack::{Cut, Panel};

/// The most numbers a panel is wide: 4 vectors of 16.
const WIDEST: usize = 64;

/// Output channels held in registers together.
pub(super) const HEIGHT: usize = 6;

/// Vectors held in registers per output channel: 4 where there are 32 vector registers, 2 where there are 16.
#[inline(always)]
const fn widest<S: Simd>() -> usize {
    let wide = size_of::<S::f32s>() == 64 || cfg!(target_arch = "aarch64");
    if wide { 4 } else { 2 }
}

/// The length of a vector and the vectors of the widest panel.
pub(super) fn shape<F: Element>(level: Level) -> (usize, usize) {
    #[inline(always)]
    fn of<F: Element, S: Simd>(_: S) -> (usize, usize) {
        (F::Native::<S>::LEN, widest::<S>())
    }
    dispatch!(level, simd => of::<F, _>(simd))
}

/// What [`product`] multiplies.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a, F> {
    pub cut: &'a Cut,
    /// The weight rows of some output channels, `cut.depth` long each.
    pub weight: &'a [F],
    /// One packed tile.
    pub packed: &'a [F],
    /// Its columns, and the first of them in an output row.
    pub columns: usize,
    pub offset: usize,
}

/// Adds the product to the output rows of the same channels, `pitch` long each.
pub(super) fn product<F: Element>(
    level: Level,
    factors: Factors<'_, F>,
    y: &mut [F],
    pitch: usize,
) {
    dispatch!(level, simd => blocks(simd, factors, y, pitch));
}

#[inline(always)]
fn blocks<F: Element, S: Simd>(simd: S, factors: Factors<'_, F>, y: &mut [F], pitch: usize) {
    let Factors {
        cut,
        weight,
        packed,
        columns,
        offset,
    } = factors;
    let stripe = cut.padded(columns) * cut.block;
    for (first, block) in (0..cut.depth).step_by(cut.block).zip(packed.chunks(stripe)) {
        let depth = cut.block.min(cut.depth - first);
        for (weight, y) in weight
            .chunks(HEIGHT * cut.depth)
            .zip(y.chunks_mut(HEIGHT * pitch))
        {
            for panel in cut.panels(columns) {
                let Panel { start, vectors } = panel;
                let tile = Tile {
                    weight: &weight[first..],
                    pitch_in: cut.depth,
                    depth,
                    panel: &block[start * depth..][..vectors * cut.lanes * depth],
                    pitch_out: pitch,
                    columns: columns - start,
                };
                let y = &mut y[offset + start..];
                let height = weight.len() / cut.depth;
                match vectors {
                    4 if widest::<S>() == 4 => heights::<F, S, 4>(simd, tile, height, y),
                    2 => heights::<F, S, 2>(simd, tile, height, y),
                    _ => heights::<F, S, 1>(simd, tile, height, y),
                }
            }
        }
    }
}

/// The part of the output that stays in registers, and its factors.
#[derive(Clone, Copy)]
struct Tile<'a, F> {
    weight: &'a [F],
    pitch_in: usize,
    depth: usize,
    panel: &'a [F],
    pitch_out: usize,
    /// Columns that exist; those of the panel beyond them are padding.
    columns: usize,
}

/// Cuts the rows that are left below the last full height into powers of two, to have few kernels.
#[inline(always)]
fn heights<F: Element, S: Simd, const V: usize>(
    simd: S,
    tile: Tile<'_, F>,
    height: usize,
    y: &mut [F],
) {
    let mut done = 0;
    while done < height {
        let tile = Tile {
            weight: &tile.weight[done * tile.pitch_in..],
            ..tile
        };
        let y = &mut y[done * tile.pitch_out..];
        done += match height - done {
            HEIGHT.. => kernel::<F, S, V, HEIGHT>(simd, tile, y),
            4.. => kernel::<F, S, V, 4>(simd, tile, y),
            2.. => kernel::<F, S, V, 2>(simd, tile, y),
            _ => kernel::<F, S, V, 1>(simd, tile, y),
        };
    }
}

/// Adds `H` rows × `V` vectors of the product to the output, and returns `H`.
#[inline(always)]
fn kernel<F: Element, S: Simd, const V: usize, const H: usize>(
    simd: S,
    tile: Tile<'_, F>,
    y: &mut [F],
) -> usize {
    let lanes = F::Native::<S>::LEN;
    let sums = sums::<F, S, V, H>(simd, tile);
    for (i, sums) in sums.iter().enumerate() {
        let row = &mut y[i * tile.pitch_out..];
        if tile.columns >= V * lanes {
            for (part, sum) in row[..V * lanes].chunks_exact_mut(lanes).zip(sums) {
                (F::Native::<S>::from_slice(simd, part) + *sum).store_slice(part);
            }
        } else {
            // The sums are copied whole: were only some of them read from here, they would all have to live in memory
            // while they are summed.
            let mut padded = [F::zero(); WIDEST];
            for (part, sum) in padded[..V * lanes].chunks_exact_mut(lanes).zip(sums) {
                sum.store_slice(part);
            }
            for (value, &sum) in row[..tile.columns].iter_mut().zip(&padded) {
                *value += sum;
            }
        }
    }
    H
}

#[inline(always)]
fn sums<F: Element, S: Simd, const V: usize, const H: usize>(
    simd: S,
    tile: Tile<'_, F>,
) -> [[F::Native<S>; V]; H] {
    let lanes = F::Native::<S>::LEN;
    let rows: [&[F]; H] = std::array::from_fn(|i| &tile.weight[i * tile.pitch_in..][..tile.depth]);
    let mut sums = [[F::Native::<S>::splat(simd, F::zero()); V]; H];
    for (k, values) in tile
        .panel
        .chunks_exact(V * lanes)
        .take(tile.depth)
        .enumerate()
    {
        let values: [F::Native<S>; V] = std::array::from_fn(|j| {
            F::Native::<S>::from_slice(simd, &values[j * lanes..][..lanes])
        });
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let weight = F::Native::<S>::splat(simd, row[k]);
            for (sum, &value) in sums.iter_mut().zip(&values) {
                *sum = weight.mul_add(value, *sum);
            }
        }
    }
    sums
}
