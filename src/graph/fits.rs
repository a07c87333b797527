//! Whether fused numbers fit the type that a network computes in, whatever type they are stored in.

use crate::fuse::diagnose::{self, first_where, place_in};
use crate::plan::{Plan, stored_type};
use crate::tensor::{Checkpoint, Error as TensorError, Float, Reader, quoted};

/// A fused number that the network cannot compute with.
#[derive(Debug, thiserror::Error)]
#[error(
    "the fused {tensor} is {value:.4e} at {index:?}, beyond the largest {dtype}, {largest:.4e}, and the network computes in {dtype}{}",
    remedy(*dtype)
)]
pub struct Beyond {
    /// The block.
    pub block: String,
    /// The fused tensor, in quotes.
    pub tensor: String,
    /// Where in it.
    pub index: Vec<usize>,
    /// The number.
    pub value: f64,
    /// What the network computes in.
    pub dtype: Float,
    /// The largest number of that.
    pub largest: f64,
}

/// What helps where a wider type holds the number.
fn remedy(dtype: Float) -> &'static str {
    match dtype.largest() < Float::F32.largest() {
        true => "; export it in f32",
        false => "",
    }
}

/// The first fused number of what was made that is beyond the type in which the network computes.
///
/// # Errors
/// When a tensor cannot be read.
pub(super) fn beyond(plan: &Plan, made: &Checkpoint) -> Result<Option<Beyond>, TensorError> {
    for block in &plan.blocks {
        for fused in &block.fused {
            let Ok(computed) = stored_type(fused.expr.root()) else {
                continue;
            };
            if fused.dtype.largest() <= computed.largest() {
                continue;
            }
            for name in fused.names() {
                let Some(tensor) = made.get(&name).filter(|t| t.dtype().float().is_some()) else {
                    continue;
                };
                let mut reader = Reader::new(made, 1 << 16);
                let is_beyond = |x: f64| !computed.round(x).is_finite();
                if let Some((flat, value)) = first_where(&mut reader, tensor, is_beyond)? {
                    return Ok(Some(Beyond {
                        block: block.name.clone(),
                        tensor: quoted(&name),
                        index: place_in(tensor.shape(), flat),
                        value,
                        dtype: computed,
                        largest: computed.largest(),
                    }));
                }
            }
        }
    }
    Ok(None)
}

/// The same of an error, where a number is too large for the type that the network computes in and is stored in.
pub(super) fn beyond_in(plan: &Plan, error: &diagnose::Error) -> Option<Beyond> {
    let diagnose::Error::Overflow {
        tensor,
        index,
        value,
        dtype,
        largest,
    } = error
    else {
        return None;
    };
    let fused = |block: &crate::plan::Block| {
        block.fused.iter().any(|fused| {
            fused.names().any(|name| quoted(&name) == *tensor)
                && stored_type(fused.expr.root()).is_ok_and(|of| of == *dtype)
        })
    };
    let block = plan.blocks.iter().find(|block| fused(block))?;
    Some(Beyond {
        block: block.name.clone(),
        tensor: tensor.clone(),
        index: index.clone(),
        value: *value,
        dtype: *dtype,
        largest: *largest,
    })
}
