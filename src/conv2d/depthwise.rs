//! One input channel per group: direct sums over the taps, vector by vector of the output rows.

use std::ops::Range;

use fearless_simd::{Level, Simd, SimdBase, SimdFloat, dispatch};
use rayon::prelude::*;

use super::element::Element;
use super::plan::Plan;
use super::planes::Layout;
use super::product::shape;

/// Output vectors summed at the same time: one load and one multiplication per tap each, none waiting for the others.
const TOGETHER: usize = 8;

/// The longest vector of any instruction set, in numbers.
const LONGEST: usize = 16;

/// Adds the convolution to `y`, which holds the bias.
pub(super) fn accumulate<F: Element>(
    plan: &Plan,
    layout: &Layout,
    x: &[F],
    weight: &[F],
    y: &mut [F],
) {
    let level = Level::new();
    let map = plan.rows.input * plan.columns.input;
    let taps = layout.taps.len();
    let vectors = vectors(plan, layout, shape::<F>(level).0);
    y.par_chunks_mut(plan.group_out * plan.positions())
        .zip(x.par_chunks(map))
        .enumerate()
        .for_each_init(
            // A vector that starts in the last row may reach beyond the plane.
            || vec![F::zero(); layout.len + LONGEST],
            |plane, (job, (y, map))| {
                layout.fill(map, plane);
                let first = job % plan.groups * plan.group_out;
                for (channel, y) in y.chunks_mut(plan.positions()).enumerate() {
                    let weight = &weight[(first + channel) * taps..][..taps];
                    dispatch!(level, simd => add(simd, &vectors, &layout.taps, plane, weight, y));
                }
            },
        );
}

/// A vector of the output: where its first value is in the plane (without a tap's offset), and its place in the output.
struct Vector {
    start: usize,
    output: Range<usize>,
}

/// Cuts the output rows into vectors; the last of a row may be shorter.
fn vectors(plan: &Plan, layout: &Layout, lanes: usize) -> Vec<Vector> {
    let width = plan.columns.output;
    (0..plan.rows.output)
        .flat_map(|row| {
            (0..width).step_by(lanes).map(move |column| Vector {
                start: row * layout.pitch + column,
                output: row * width + column..row * width + width.min(column + lanes),
            })
        })
        .collect()
}

#[inline(always)]
fn add<F: Element, S: Simd>(
    simd: S,
    vectors: &[Vector],
    taps: &[usize],
    plane: &[F],
    weight: &[F],
    y: &mut [F],
) {
    for vectors in vectors.chunks(TOGETHER) {
        let starts = std::array::from_fn(|i| vectors[i.min(vectors.len() - 1)].start);
        let sums = sums(simd, starts, taps, plane, weight);
        for (vector, sum) in vectors.iter().zip(&sums) {
            for (value, &sum) in y[vector.output.clone()].iter_mut().zip(sum.as_slice()) {
                *value += sum;
            }
        }
    }
}

#[inline(always)]
fn sums<F: Element, S: Simd>(
    simd: S,
    starts: [usize; TOGETHER],
    taps: &[usize],
    plane: &[F],
    weight: &[F],
) -> [F::Native<S>; TOGETHER] {
    let mut sums = [F::Native::<S>::splat(simd, F::zero()); TOGETHER];
    for (&weight, &tap) in weight.iter().zip(taps) {
        let weight = F::Native::<S>::splat(simd, weight);
        let plane = &plane[tap..];
        for (sum, start) in sums.iter_mut().zip(starts) {
            let values = F::Native::<S>::from_slice(simd, &plane[start..][..F::Native::<S>::LEN]);
            *sum = weight.mul_add(values, *sum);
        }
    }
    sums
}
