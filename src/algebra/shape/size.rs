//! How large a block may become when it is folded, for a recipe can ask for more than any file holds.
//!
//! A dilation and an average pooling spread a few stored numbers over a wide kernel, and sums of diagonal maps behind a
//! conv multiply out. Both are bound here by what the block's tensors hold, before anything is allocated.

use super::{Geometry, GeometryError};
use crate::algebra::expr::Operand;
use crate::algebra::part::{Op, Part};

/// What is folded may hold this many times what the block's tensors hold: enough for a depthwise kernel of 16×16 that is
/// widened to a dense one.
pub(super) const SPREAD: usize = 256;

/// What a block of any size may hold.
const FREE: usize = 1 << 16;

/// The products that a block may multiply out to, beside one for each of its operators.
const PRODUCTS: usize = 1 << 10;

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
    size.part(root, &input, 1).map(|_| ())
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
