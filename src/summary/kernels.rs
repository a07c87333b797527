//! Kernels seen from above: the mean of |w| over all channels at every tap, as the ACNet and RepLKNet papers draw them; of a kernel
//! with a depth, over that as well.
//!
//! A kernel is reduced row by row, so a block of a gigabyte needs the memory of one of its rows.

use crate::algebra::describe;
use crate::algebra::fold::{Folded, Scratch};
use crate::algebra::{Extent, Geometry, branches};
use crate::fuse::diagnose;
use crate::plan::PlannedConv;
use crate::tensor::Checkpoint;
use crate::tensor::Reader;
use crate::verify::{Deployed, deployed_rows};
use serde::Serialize;

/// A kernel seen from above.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Kernel {
    /// What it is, as in `bn(3×3)`.
    pub label: String,
    /// Its own height and width, in the middle of the fused kernel's.
    pub extent: [usize; 2],
    /// The mean of |w| over all channels, and the depth, at each tap of the fused kernel, row by row.
    pub taps: Vec<f64>,
}

/// The kernels of one block, on the taps of the fused one.
#[derive(Clone, Debug)]
pub struct KernelMaps {
    /// What each branch adds to the fused kernel, its batch norms and scales included.
    pub branches: Vec<Kernel>,
    /// The fused kernel: the stored one if there is a deploy form, and none where that has another shape.
    pub fused: Option<Kernel>,
}

/// The values of a slab of the stored kernel that are held at a time.
const SLAB_VALUES: usize = 1 << 18;

/// Reduces the kernels of a block's branches and its fused kernel to one number per tap.
///
/// # Errors
/// When a value cannot be read, or a branch is not finite.
pub fn kernel_maps(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    deployed: Deployed<'_>,
) -> Result<KernelMaps, diagnose::Error> {
    let g = fused.geometry();
    let mut reader = Reader::new(checkpoint, 1 << 18);
    let mut scratch = Scratch::default();
    let branches = branches(&fused.expr);
    let folded = branches
        .iter()
        .map(|branch| Folded::compile_branch(&fused.expr, branch, &mut reader))
        .collect::<Result<Vec<_>, _>>()?;
    let area = area(g);
    let mut sums = vec![vec![0.0; area]; branches.len()];
    let mut whole = vec![0.0; area];
    let (mut row, mut total) = (vec![0.0; g.row_len()], vec![0.0; g.row_len()]);
    for o in 0..g.out() {
        total.fill(0.0);
        for (folded, sums) in folded.iter().zip(&mut sums) {
            folded.row(o, &mut reader, &mut scratch, &mut row)?;
            add_magnitudes(&row, sums);
            total.iter_mut().zip(&row).for_each(|(a, b)| *a += b);
        }
        add_magnitudes(&total, &mut whole);
    }
    let frame = |label: String, [_, height, width]: Extent, sums| Kernel {
        label,
        extent: [height, width],
        taps: means(sums, g),
    };
    let fused_label = describe::size(g.extent());
    let stored = match deployed {
        Deployed::InMemory => Some(whole),
        Deployed::File(_) | Deployed::Beside(_) => stored_magnitudes(checkpoint, fused, deployed)?,
    };
    Ok(KernelMaps {
        branches: branches
            .iter()
            .zip(sums)
            .map(|(branch, sums)| {
                let label = describe::expression(branch);
                frame(label, branch.geometry().extent(), sums)
            })
            .collect(),
        fused: stored.map(|sums| frame(fused_label, g.extent(), sums)),
    })
}

fn stored_magnitudes(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    deployed: Deployed<'_>,
) -> Result<Option<Vec<f64>>, diagnose::Error> {
    let g = fused.geometry();
    let mut sums = vec![0.0; area(g)];
    // A transposed conv is stored by input channel, so it is read whole.
    let step = if g.transposed() {
        g.out()
    } else {
        (SLAB_VALUES / g.row_len()).max(1)
    };
    for first in (0..g.out()).step_by(step) {
        let rows = first..(first + step).min(g.out());
        match deployed_rows(checkpoint, fused, deployed, rows) {
            Ok(rows) => add_magnitudes(&rows.kernel, &mut sums),
            // The verdict says what is wrong with it.
            Err(diagnose::Error::Deployed(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(sums))
}

/// `row` holds one kernel of `sums.len()` taps after the other.
fn add_magnitudes(row: &[f64], sums: &mut [f64]) {
    for kernel in row.chunks_exact(sums.len()) {
        sums.iter_mut().zip(kernel).for_each(|(s, w)| *s += w.abs());
    }
}

/// The taps that a kernel has from above.
fn area(g: &Geometry) -> usize {
    let [_, height, width] = g.extent();
    height * width
}

fn means(mut sums: Vec<f64>, g: &Geometry) -> Vec<f64> {
    let kernels = (g.out() * g.row_len() / area(g)) as f64;
    sums.iter_mut().for_each(|s| *s /= kernels);
    // Folding sees a transposed conv as a plain one with its taps turned by 180°.
    if g.transposed() {
        sums.reverse();
    }
    sums
}
