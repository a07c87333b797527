//! How large a block may become when it is folded, for a recipe can ask for more than any file holds.
//!
//! A dilation and an average pooling spread a few stored numbers over a wide kernel, and sums of diagonal maps behind a
//! conv multiply out. Both are bound here by what the block's tensors hold, before anything is allocated.

use super::{Geometry, GeometryError};
use crate::algebra::expr::Operand;
use crate::algebra::extent::{Extent, grown};
use crate::algebra::part::{Op, Part};

/// What is folded may hold this many times what the block's tensors hold: enough for a depthwise kernel of 16×16 that is
/// widened to a dense one.
pub(super) const SPREAD: usize = 256;

/// What a block of any size may hold.
const FREE: usize = 1 << 16;

/// The products that a block may multiply out to, beside one for each of its operators.
const PRODUCTS: usize = 1 << 10;

/// Multiply-adds that running a block once may take for each number of its tensors: some times those of a depthwise kernel of
/// 31×31 behind a 1×1.
const RUN: usize = 1 << 15;

/// What running a block of any size may take.
const RUN_FREE: usize = 1 << 24;

/// Checks a tree that fits otherwise.
///
/// # Errors
/// When a kernel or the number of products goes beyond what the block's tensors justify.
pub(super) fn check<T: Operand>(root: &Part<T>) -> Result<(), GeometryError> {
    let leaves = root.leaves();
    let stored = leaves
        .iter()
        .fold(0usize, |sum, leaf| sum.saturating_add(leaf.len()));
    let mut operators = 0;
    root.visit(&mut |_| operators += 1);
    let size = Size {
        stored,
        numbers: stored.saturating_mul(SPREAD).max(FREE),
        products: PRODUCTS + operators,
    };
    let input = Geometry::channelwise::<T>(root.geometry().inputs(), &Op::Identity);
    size.part(root, &input, 1)?;
    let most = stored.saturating_mul(RUN).max(RUN_FREE);
    match run(root, root.geometry().extent, false) {
        found if found > most => Err(GeometryError::Run {
            found,
            most,
            stored,
        }),
        _ => Ok(()),
    }
}

struct Size {
    stored: usize,
    numbers: usize,
    products: usize,
}

impl Size {
    /// Checks a part of the tree behind what stands `before` it, and counts the products that `fold` makes of it: of one conv
    /// one, and of a diagonal map as many as it is applied to.
    fn part<T: Operand>(
        &self,
        part: &Part<T>,
        before: &Geometry,
        products: usize,
    ) -> Result<usize, GeometryError> {
        let made = match part.op() {
            Op::Sum(xs) | Op::Stack(xs) => xs.iter().try_fold(0usize, |sum, x| {
                Ok(sum.saturating_add(self.part(x, before, products)?))
            })?,
            Op::Seq(xs) => {
                let (mut behind, mut made) = (*before, products);
                for x in xs {
                    made = self.part(x, &behind, if x.has_conv() { 1 } else { made })?;
                    behind = behind.then(x.geometry());
                }
                made
            }
            Op::Conv(_) => 1,
            _ => products,
        };
        let whole = before.then(part.geometry());
        let kernel = [whole.out(), whole.in_per_group()];
        let kernel = kernel.iter().chain(&whole.extent);
        let numbers = kernel.copied().try_fold(1usize, usize::checked_mul);
        if numbers.is_none_or(|n| n > self.numbers) {
            return Err(GeometryError::Spread {
                kernel: whole.weight_shape(),
                stored: self.stored,
            });
        }
        // Each product has a factor for every channel.
        let most = self.products.min(self.numbers / whole.out()).max(1);
        match made {
            found if found > most => Err(GeometryError::Products { found, most }),
            made => Ok(made),
        }
    }
}

/// The multiply-adds that a part takes for outputs of the extent `want`, for one map of each channel: those of convs `behind` others,
/// which run wherever those behind them look, and of averages. (A conv on the input is read tap by tap.)
fn run<T>(part: &Part<T>, want: Extent, behind: bool) -> usize {
    let product = |numbers: &[usize]| {
        numbers
            .iter()
            .fold(1, |all: usize, n| all.saturating_mul(*n))
    };
    let sum = |costs: &mut dyn Iterator<Item = usize>| costs.fold(0, usize::saturating_add);
    let area = want.iter().fold(1, |all: usize, n| all.saturating_mul(*n));
    let g = part.geometry();
    match part.op() {
        Op::Conv(kernel) if behind => {
            product(&[g.out(), g.in_per_group(), product(&kernel.taps), area])
        }
        // Along one axis after the other.
        Op::AvgPool(window) => {
            let along = sum(&mut window.iter().copied());
            product(&[g.out(), along, product(&grown(want, *window))])
        }
        Op::Sum(parts) | Op::Stack(parts) => sum(&mut parts.iter().map(|x| run(x, want, behind))),
        Op::Seq(parts) => {
            let (mut cost, mut want) = (0usize, want);
            for (i, x) in parts.iter().enumerate().rev() {
                let behind = behind || parts[..i].iter().any(Part::has_conv);
                cost = cost.saturating_add(run(x, want, behind));
                want = grown(want, x.geometry().extent);
            }
            cost
        }
        _ => 0,
    }
}
