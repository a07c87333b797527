//! How a block lay in the network that was recorded: stride and padding, as the sizes of its maps tell them.

use std::ops::Range;

use crate::conv2d::PaddingMode;
use crate::conv2d::block::Placement;

/// The strides that are tried, the likeliest first.
const STRIDES: [usize; 10] = [1, 2, 4, 8, 16, 32, 3, 5, 6, 7];

/// Every way in which a kernel of `extent` makes maps of `output` from maps of `input`, `[height, width]` each: with as much
/// padding as keeps the size at stride 1, or without any; the likeliest first.
pub(super) fn placements(
    input: [usize; 2],
    extent: [usize; 2],
    output: [usize; 2],
) -> Vec<Placement> {
    let [rows, columns] = [0, 1].map(|axis| ways(input[axis], extent[axis], output[axis]));
    let mut placements: Vec<Placement> = rows
        .iter()
        .flat_map(|row| columns.iter().map(move |column| (row, column)))
        .map(|((down, above), (right, left))| Placement {
            stride: [*down, *right],
            padding: [*above, *left],
            mode: PaddingMode::Zeros,
        })
        .collect();
    // What is done along one axis is mostly done along the other.
    placements.sort_by_key(|p| p.stride[0] != p.stride[1]);
    placements
}

/// Stride and padding along an axis.
fn ways(input: usize, extent: usize, output: usize) -> Vec<(usize, [usize; 2])> {
    let same = [(extent - 1) / 2, extent / 2];
    let of = |padding: [usize; 2]| {
        let padded = input + padding[0] + padding[1];
        let fits = move |stride: &usize| {
            padded >= extent && output > 0 && (padded - extent) / stride + 1 == output
        };
        // With a single output, the stride makes no difference.
        let most = if output == 1 { 1 } else { STRIDES.len() };
        let strides = STRIDES.into_iter().filter(fits).take(most);
        strides.map(move |stride| (stride, padding))
    };
    match extent {
        1 => of(same).collect(),
        _ => of(same).chain(of([0, 0])).collect(),
    }
}

/// The outputs along an axis that see no padding.
pub(super) fn inside(
    input: usize,
    extent: usize,
    stride: usize,
    padding: [usize; 2],
    output: usize,
) -> Range<usize> {
    let first = padding[0].div_ceil(stride);
    let end = match (input + padding[0]).checked_sub(extent) {
        Some(last) => (last / stride + 1).min(output),
        None => 0,
    };
    first.min(end)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strides(input: usize, extent: usize, output: usize) -> Vec<(usize, [usize; 2])> {
        ways(input, extent, output)
    }

    #[test]
    fn sizes_tell_stride_and_padding() {
        assert_eq!(strides(7, 3, 7), [(1, [1, 1])]);
        assert_eq!(strides(7, 3, 4)[0], (2, [1, 1]));
        assert_eq!(strides(7, 3, 5), [(1, [0, 0])]);
        assert_eq!(strides(8, 4, 2)[0], (4, [1, 2]));
        assert!(strides(8, 4, 2).contains(&(4, [0, 0])));
        assert_eq!(strides(7, 3, 9), []);
        assert_eq!(strides(6, 1, 6), [(1, [0, 0])]);
    }

    #[test]
    fn the_inside_sees_no_padding() {
        assert_eq!(inside(7, 3, 1, [1, 1], 7), 1..6);
        assert_eq!(inside(7, 3, 2, [1, 1], 4), 1..3);
        assert_eq!(inside(8, 3, 2, [1, 1], 4), 1..4);
        assert_eq!(inside(2, 3, 1, [1, 1], 2), 1..1);
        assert_eq!(inside(7, 3, 1, [0, 0], 5), 0..5);
    }
}
