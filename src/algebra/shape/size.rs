//! How large a block may become when it is folded, for a recipe can ask for more than any file holds.
//!
//! A dilation and an average pooling spread a few stored numbers over a wide kernel, and sums of diagonal maps behind a
//! conv multiply out. Both are bound here by what the block's tensors hold, before anything is allocated.

use super::{GeometryError, Op, compose, walk};
use crate::algebra::expr::{Expr, Operand};

/// What is folded may hold this many times what the block's tensors hold: enough for a depthwise kernel of 16×16 that is
/// widened to a dense one.
pub(super) const SPREAD: usize = 256;

/// What a block of any size may hold.
const FREE: usize = 1 << 16;

/// The products that a block may multiply out to, beside one for each of its operators.
const PRODUCTS: usize = 1 << 10;

/// Checks a tree that fits otherwise, over `inputs` channels.
///
/// # Errors
/// When a kernel or the number of products goes beyond what the block's tensors justify.
pub(super) fn check<T: Operand>(expr: &Expr<T>, inputs: usize) -> Result<(), GeometryError> {
    let stored = expr
        .leaves()
        .iter()
        .fold(0usize, |sum, leaf| sum.saturating_add(leaf.len()));
    let mut operators = 0;
    expr.visit(&mut |_| operators += 1);
    let size = Size {
        inputs,
        stored,
        numbers: stored.saturating_mul(SPREAD).max(FREE),
        products: PRODUCTS + operators,
    };
    let input = Op::channelwise(inputs, [1, 1]);
    size.part(expr, &input, 1).map(|_| ())
}

struct Size {
    inputs: usize,
    stored: usize,
    numbers: usize,
    products: usize,
}

impl Size {
    /// Checks a part of the tree behind what stands `before` it, and counts the products that `fold` makes of it: of one conv
    /// one, and of a diagonal map as many as it is applied to.
    fn part<T: Operand>(
        &self,
        expr: &Expr<T>,
        before: &Op,
        products: usize,
    ) -> Result<usize, GeometryError> {
        let made = match expr {
            Expr::Sum(xs) => xs.iter().try_fold(0usize, |sum, x| {
                Ok(sum.saturating_add(self.part(x, before, products)?))
            })?,
            Expr::Seq(xs) => {
                let (mut op, mut made) = (before.clone(), products);
                for x in xs {
                    made = self.part(x, &op, if x.mixes_channels() { 1 } else { made })?;
                    op = self.behind(&op, x)?;
                }
                made
            }
            Expr::Conv(_) => 1,
            _ => products,
        };
        let whole = self.behind(before, expr)?;
        let [kh, kw] = whole.extent;
        let kernel = [whole.out, whole.in_per_group, kh, kw];
        let numbers = kernel.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        if numbers.is_none_or(|n| n > self.numbers) {
            let stored = self.stored;
            return Err(GeometryError::Spread { kernel, stored });
        }
        // Each product has a factor for every channel.
        let most = self.products.min(self.numbers / whole.out.max(1)).max(1);
        match made {
            found if found > most => Err(GeometryError::Products { found, most }),
            made => Ok(made),
        }
    }

    fn behind<T: Operand>(&self, before: &Op, expr: &Expr<T>) -> Result<Op, GeometryError> {
        let then = walk(expr, before.out)?;
        compose(self.inputs, before.clone(), then).ok_or(GeometryError::TooLarge)
    }
}
