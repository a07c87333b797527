//! Files of MLX, whose convs are stored with the channels last: `[out, kh, kw, in]`. Their tensors are looked at as PyTorch
//! has them, and are written as they lie in the file.

use std::sync::Arc;

use super::single::{Place, Tensor};
use super::strided::View;

/// What the metadata of such a file says.
const FORMAT: (&str, &str) = ("format", "mlx");

/// Whether metadata says that convs are stored with the channels last.
pub(super) fn says(metadata: &[(String, String)]) -> bool {
    metadata
        .iter()
        .any(|(key, value)| (key.as_str(), value.as_str()) == FORMAT)
}

/// A tensor of such a file as PyTorch has it: with the channels before the kernel's axes, if it may be a conv's weight. A linear
/// layer has none of those, and other tensors of three dimensions than weights are no convs.
///
/// # Errors
/// When it cannot be addressed.
pub(super) fn seen(tensor: Tensor) -> Result<Tensor, String> {
    let is_weight = tensor.name() == "weight" || tensor.name().ends_with(".weight");
    let rank = tensor.shape().len();
    let bytes = tensor.dtype().bits().filter(|bits| bits % 8 == 0);
    let &Place::InFile { offset, .. } = tensor.place() else {
        return Ok(tensor);
    };
    let Some(size) = bytes.map(|bits| bits as u64 / 8) else {
        return Ok(tensor);
    };
    if !(rank == 3 && is_weight || rank == 4 || rank == 5) {
        return Ok(tensor);
    }
    let mut strides = vec![1u64; rank];
    for axis in (0..rank - 1).rev() {
        strides[axis] = strides[axis + 1].saturating_mul(tensor.shape()[axis + 1] as u64);
    }
    let shape = channels_first(tensor.shape());
    let lengths: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
    let storage = offset..offset + tensor.byte_len();
    let view = View::new(storage, size, 0, &lengths, &channels_first(&strides))
        .map_err(|why| format!("{tensor} {why}"))?;
    let place = match view.is_plain() {
        true => tensor.place().clone(),
        false => Place::View(Arc::new(view)),
    };
    Ok(tensor.seen_with(shape, place))
}

/// `[out, kh, kw, in]` as `[out, in, kh, kw]`.
fn channels_first<T: Copy>(of: &[T]) -> Vec<T> {
    match of {
        [out, axes @ .., inputs] => [*out, *inputs]
            .into_iter()
            .chain(axes.iter().copied())
            .collect(),
        _ => of.to_vec(),
    }
}

/// `[out, in, kh, kw]` as `[out, kh, kw, in]`.
pub(crate) fn channels_last<T: Copy>(of: &[T]) -> Vec<T> {
    match of {
        [out, inputs, axes @ ..] => std::iter::once(*out)
            .chain(axes.iter().copied())
            .chain([*inputs])
            .collect(),
        _ => of.to_vec(),
    }
}
