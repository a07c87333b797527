//! The stored layout of a transposed conv.
//!
//! `[in, out/groups, kh, kw]` as it is stored is `[out, in/groups, kh, kw]` with its taps turned by 180° as a plain
//! conv over a map with zeros between the pixels. (ConvTranspose2d, PyTorch.)

use std::ops::Range;

use super::four_dims;
use crate::algebra::expr::{Operand, Values};

/// Reads output channels `rows` of the weight of a transposed conv as `[rows, in/groups, kh, kw]`.
///
/// # Errors
/// Whatever reading the values gives.
pub fn read_rows<T: Operand, V: Values<T>>(
    weight: &T,
    groups: usize,
    rows: Range<usize>,
    values: &mut V,
) -> Result<Vec<f64>, V::Error> {
    let [inputs, width, kh, kw] = four_dims(weight.shape()).unwrap_or([0; 4]);
    let (taps, per_group) = (kh * kw, inputs / groups.max(1));
    let mut kernel = vec![0.0; rows.len() * per_group * taps];
    let mut beside = Vec::new();
    let mut first = rows.start;
    while first < rows.end {
        // Of each input channel, the output channels of its group lie side by side.
        let (group, skipped) = (first / width, first % width);
        let last = rows.end.min(first - skipped + width);
        beside.resize((last - first) * taps, 0.0);
        for i in 0..per_group {
            let input = group * per_group + i;
            values.read(weight, (input * width + skipped) * taps, &mut beside)?;
            for (row, from) in (first - rows.start..).zip(beside.chunks_exact(taps)) {
                let to = &mut kernel[(row * per_group + i) * taps..][..taps];
                to.iter_mut().rev().zip(from).for_each(|(to, w)| *to = *w);
            }
        }
        first = last;
    }
    Ok(kernel)
}
