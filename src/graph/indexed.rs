//! Numbers that are found, or put, where indices point.
//!
//! Indices are whole numbers of a file: negative ones count from the end, and one that points beyond is refused.

use ndarray::{ArrayD, Axis, IxDyn};

use super::arrays::within;

/// The element of an axis that an index points at.
fn place(index: f64, len: usize) -> Option<usize> {
    let from_front = if index < 0.0 {
        index + len as f64
    } else {
        index
    };
    let fits = from_front >= 0.0 && from_front < len as f64 && from_front.fract() == 0.0;
    fits.then_some(from_front as usize)
}

fn places(index: &ArrayD<f64>, len: usize) -> Option<Vec<usize>> {
    index.iter().map(|index| place(*index, len)).collect()
}

/// Each at most once: which of two numbers would stay nobody says.
fn differ(places: &[usize]) -> bool {
    let mut sorted = places.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

fn shaped(numbers: ArrayD<f64>, shape: &[usize]) -> Option<ArrayD<f64>> {
    let numbers = numbers.as_standard_layout().into_owned();
    numbers.into_shape_with_order(IxDyn(shape)).ok()
}

/// A shape with others in the place of one of its axes.
fn instead(shape: &[usize], axis: usize, others: &[usize]) -> Vec<usize> {
    [&shape[..axis], others, &shape[axis + 1..]].concat()
}

/// Some elements of an axis, in this order.
pub(super) fn taken(numbers: &ArrayD<f64>, axis: usize, indices: &[usize]) -> Option<ArrayD<f64>> {
    let len = *numbers.shape().get(axis)?;
    let shape = instead(numbers.shape(), axis, &[indices.len()]);
    let fits = within(&shape) && indices.iter().all(|index| *index < len);
    fits.then(|| numbers.select(Axis(axis), indices))
}

/// The elements of an axis that indices point at, whose axes stand in its place.
pub(super) fn gathered(
    numbers: &ArrayD<f64>,
    axis: usize,
    index: &ArrayD<f64>,
) -> Option<ArrayD<f64>> {
    let len = *numbers.shape().get(axis)?;
    let shape = instead(numbers.shape(), axis, index.shape());
    if !within(&shape) {
        return None;
    }
    shaped(taken(numbers, axis, &places(index, len)?)?, &shape)
}

/// Numbers put where the indices of an axis point; they are broadcast to the shape of what is there.
pub(super) fn put(
    numbers: &ArrayD<f64>,
    axis: usize,
    index: &ArrayD<f64>,
    others: &ArrayD<f64>,
) -> Option<ArrayD<f64>> {
    let len = *numbers.shape().get(axis)?;
    let places = places(index, len)?;
    let shape = instead(numbers.shape(), axis, index.shape());
    if !within(&shape) || !differ(&places) {
        return None;
    }
    let others = others.broadcast(IxDyn(&shape))?.to_owned();
    let others = shaped(others, &instead(numbers.shape(), axis, &[places.len()]))?;
    let mut out = numbers.clone();
    for (i, place) in places.into_iter().enumerate() {
        let one = others.index_axis(Axis(axis), i);
        out.index_axis_mut(Axis(axis), place).assign(&one);
    }
    Some(out)
}

/// An array as rows, one for each place of its first `axes`, and the rows that lists of indices point at.
fn rows(
    numbers: &ArrayD<f64>,
    index: &ArrayD<f64>,
) -> Option<(ArrayD<f64>, Vec<usize>, Vec<usize>)> {
    let (axes, before) = index.shape().split_last()?;
    let shape = numbers.shape();
    let (first, rest) = shape.split_at_checked(*axes)?;
    let place = |list: &[f64]| {
        let mut all = list.iter().zip(first);
        all.try_fold(0usize, |at, (index, len)| {
            Some(at * len + place(*index, *len)?)
        })
    };
    let out = [before, rest].concat();
    if *axes == 0 || !within(&out) {
        return None;
    }
    let flat: Vec<f64> = index.iter().copied().collect();
    let places = flat.chunks_exact(*axes).map(place);
    let places = places.collect::<Option<Vec<_>>>()?;
    let row = rest.iter().product();
    let rows = shaped(numbers.clone(), &[first.iter().product(), row])?;
    Some((rows, places, out))
}

/// The rows that lists of indices point at; the last axis of the indices is that of the lists.
pub(super) fn gathered_rows(numbers: &ArrayD<f64>, index: &ArrayD<f64>) -> Option<ArrayD<f64>> {
    let (rows, places, shape) = rows(numbers, index)?;
    shaped(taken(&rows, 0, &places)?, &shape)
}

/// Rows put where lists of indices point.
pub(super) fn put_rows(
    numbers: &ArrayD<f64>,
    index: &ArrayD<f64>,
    others: &ArrayD<f64>,
) -> Option<ArrayD<f64>> {
    let (mut rows, places, shape) = rows(numbers, index)?;
    if others.shape() != shape || !differ(&places) {
        return None;
    }
    let others = shaped(others.clone(), &[places.len(), rows.shape()[1]])?;
    for (i, place) in places.into_iter().enumerate() {
        let one = others.index_axis(Axis(0), i);
        rows.index_axis_mut(Axis(0), place).assign(&one);
    }
    shaped(rows, numbers.shape())
}

#[cfg(test)]
mod tests {
    use super::{gathered, gathered_rows, put, put_rows, taken};
    use ndarray::{ArrayD, IxDyn};

    fn of(shape: &[usize], numbers: &[f64]) -> ArrayD<f64> {
        ArrayD::from_shape_vec(IxDyn(shape), numbers.to_vec())
            .expect("as many numbers as the shape has")
    }

    fn made(array: Option<ArrayD<f64>>) -> (Vec<usize>, Vec<f64>) {
        let array = array.expect("what fits");
        (array.shape().to_vec(), array.iter().copied().collect())
    }

    fn table() -> ArrayD<f64> {
        of(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    }

    #[test]
    fn elements_are_found_by_their_indices() {
        let index = of(&[1, 2], &[-1.0, 0.0]);
        assert_eq!(
            made(gathered(&table(), 1, &index)),
            (vec![2, 1, 2], vec![3.0, 1.0, 6.0, 4.0])
        );
        let one = of(&[], &[1.0]);
        assert_eq!(
            made(gathered(&table(), 0, &one)),
            (vec![3], vec![4.0, 5.0, 6.0])
        );
        assert_eq!(made(taken(&table(), 1, &[2, 2])).1, [3.0, 3.0, 6.0, 6.0]);
        let lists = of(&[2, 2], &[0.0, 1.0, 1.0, -1.0]);
        assert_eq!(
            made(gathered_rows(&table(), &lists)),
            (vec![2], vec![2.0, 6.0])
        );
        let rows = of(&[1, 1], &[1.0]);
        assert_eq!(
            made(gathered_rows(&table(), &rows)),
            (vec![1, 3], vec![4.0, 5.0, 6.0])
        );
    }

    #[test]
    fn numbers_are_put_by_their_indices() {
        let (index, others) = (of(&[2], &[2.0, 0.0]), of(&[2, 1], &[7.0, 8.0]));
        assert_eq!(
            made(put(&table(), 1, &index, &others)).1,
            [7.0, 2.0, 7.0, 8.0, 5.0, 8.0]
        );
        let (lists, others) = (of(&[1, 1], &[-1.0]), of(&[1, 3], &[7.0, 8.0, 9.0]));
        assert_eq!(
            made(put_rows(&table(), &lists, &others)).1,
            [1.0, 2.0, 3.0, 7.0, 8.0, 9.0]
        );
    }

    #[test]
    fn what_points_beyond_or_twice_at_one_is_none() {
        let nothing = of(&[], &[0.0]);
        for index in [2.0, -3.0, 0.5, f64::NAN, f64::INFINITY] {
            assert!(gathered(&table(), 0, &of(&[1], &[index])).is_none());
            assert!(put(&table(), 0, &of(&[1], &[index]), &nothing).is_none());
            assert!(gathered_rows(&table(), &of(&[1, 1], &[index])).is_none());
        }
        assert!(put(&table(), 0, &of(&[2], &[0.0, -2.0]), &nothing).is_none());
        assert!(taken(&table(), 1, &[3]).is_none());
        assert!(taken(&table(), 2, &[0]).is_none());
        assert!(gathered(&table(), 2, &nothing).is_none());
        let (twice, rows) = (of(&[2, 1], &[0.0, 0.0]), of(&[2, 3], &[0.0; 6]));
        assert!(put_rows(&table(), &twice, &rows).is_none());
        assert!(gathered_rows(&table(), &of(&[1, 3], &[0.0; 3])).is_none());
        assert!(gathered_rows(&table(), &of(&[1, 0], &[])).is_none());
        assert!(gathered_rows(&table(), &nothing).is_none());
        // Nothing is at no place.
        let empty = of(&[0, 3], &[]);
        assert!(gathered(&empty, 0, &of(&[1], &[0.0])).is_none());
        assert_eq!(made(gathered(&empty, 0, &of(&[0], &[]))).0, [0, 3]);
    }
}
