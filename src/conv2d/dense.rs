//! Several input channels per group: a matrix product of the weight and the unrolled map.

use std::borrow::Cow;

use fearless_simd::Level;
use rayon::prelude::*;

use super::element::Element;
use super::pack::{Cut, pack};
use super::plan::Plan;
use super::planes::Layout;
use super::product::{Factors, HEIGHT, product, shape};

/// Parts per thread that the output channels are cut into, so that a thread that was held up does not hold up the rest.
const PARTS: usize = 4;

/// Adds the convolution to `y`, which holds the bias.
pub(super) fn accumulate<F: Element>(
    plan: &Plan,
    layout: &Layout,
    x: &[F],
    weight: &[F],
    y: &mut [F],
) {
    let level = Level::new();
    let (lanes, widest) = shape::<F>(level);
    let cut = Cut::new::<F>(plan, lanes, widest);
    let columns = plan.columns.output;
    let positions: Vec<usize> = (0..plan.positions())
        .map(|position| position / columns * layout.pitch + position % columns)
        .collect();

    let map = plan.rows.input * plan.columns.input;
    let jobs = plan.batch * plan.groups;
    // Threads share either the groups and images, or, where those are few, the work within each. A minimum length no
    // job list reaches keeps the other level on one thread, so that no more tiles exist than there are threads.
    let threads = rayon::current_num_threads();
    let (outer, inner) = if jobs >= threads {
        (1, usize::MAX)
    } else {
        (usize::MAX, 1)
    };

    y.par_chunks_mut(plan.group_out * plan.positions())
        .zip(x.par_chunks(plan.group_in * map))
        .enumerate()
        .with_min_len(outer)
        .for_each(|(job, (y, x))| {
            let planes = if layout.identity {
                Cow::Borrowed(x)
            } else {
                let mut planes = vec![F::zero(); plan.group_in * layout.len];
                planes
                    .par_chunks_mut(layout.len)
                    .zip(x.par_chunks(map))
                    .with_min_len(inner)
                    .for_each(|(plane, map)| layout.fill(map, plane));
                Cow::Owned(planes)
            };
            let weight = &weight[job % plan.groups * plan.group_out * cut.depth..]
                [..plan.group_out * cut.depth];
            let part = plan
                .group_out
                .div_ceil(threads * PARTS)
                .next_multiple_of(HEIGHT);
            let mut packed = vec![F::zero(); cut.depth * cut.padded(cut.tile)];
            for (tile, positions) in positions.chunks(cut.tile).enumerate() {
                let padded = cut.padded(positions.len());
                let packed = &mut packed[..cut.depth * padded];
                packed
                    .par_chunks_mut(cut.block * padded)
                    .enumerate()
                    .with_min_len(inner)
                    .for_each(|(index, block)| {
                        let first = index * cut.block;
                        let rows = first..cut.depth.min(first + cut.block);
                        pack(layout, &cut, &planes, rows, positions, block);
                    });
                let packed = &*packed;
                y.par_chunks_mut(part * plan.positions())
                    .zip(weight.par_chunks(part * cut.depth))
                    .with_min_len(inner)
                    .for_each(|(y, weight)| {
                        let factors = Factors {
                            cut: &cut,
                            weight,
                            packed,
                            columns: positions.len(),
                            offset: tile * cut.tile,
                        };
                        product(level, factors, y, plan.positions());
                    });
            }
        });
}
