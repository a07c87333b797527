//! What is done to arrays of numbers: number by number, axis by axis, and around them.
//!
//! A file says the shapes, so every function first looks whether the shapes fit and what it makes is not too much; none where not.

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice, concatenate};

/// More numbers than this are not computed: they would be held in memory.
pub(super) const MOST_NUMBERS: usize = 1 << 22;

/// How an axis becomes one number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reduction {
    Sum,
    Mean,
    Product,
    Max,
    Min,
    /// The sum of absolute values.
    Absolute,
    /// The sum of squares.
    Squares,
    /// Its root.
    Norm,
    /// The variance, with so many taken off the count.
    Variance(f64),
    /// Its root.
    Deviation(f64),
}

/// Whether a shape has no more numbers than are computed. Axes of no element are counted as of one, so that none of its axes is longer.
pub(super) fn within(shape: &[usize]) -> bool {
    let mut axes = shape.iter();
    let count = axes.try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
    count.is_some_and(|count| count <= MOST_NUMBERS)
}

/// The larger number, or the one that is none.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The smaller number, or the one that is none.
pub(super) fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

/// The shape that all are broadcast to.
fn broadcast(shapes: &[&[usize]]) -> Option<Vec<usize>> {
    let rank = shapes.iter().map(|shape| shape.len()).max()?;
    let mut out = vec![1; rank];
    for shape in shapes {
        let behind = &mut out[rank - shape.len()..];
        for (n, own) in behind.iter_mut().zip(*shape) {
            *n = match (*n, *own) {
                (1, other) | (other, 1) => other,
                (n, own) => (n == own).then_some(n)?,
            };
        }
    }
    within(&out).then_some(out)
}

/// Two arrays number by number.
pub(super) fn both(
    f: impl Fn(f64, f64) -> f64,
    a: &ArrayD<f64>,
    b: &ArrayD<f64>,
) -> Option<ArrayD<f64>> {
    let shape = broadcast(&[a.shape(), b.shape()])?;
    let mut out = a.broadcast(IxDyn(&shape))?.to_owned();
    out.zip_mut_with(&b.broadcast(IxDyn(&shape))?, |x, y| *x = f(*x, *y));
    Some(out)
}

/// Numbers of the one where something holds, and of the other where it does not.
pub(super) fn chosen(
    holds: &ArrayD<f64>,
    then: &ArrayD<f64>,
    otherwise: &ArrayD<f64>,
) -> Option<ArrayD<f64>> {
    let shape = broadcast(&[holds.shape(), then.shape(), otherwise.shape()])?;
    let mut out = otherwise.broadcast(IxDyn(&shape))?.to_owned();
    let then = then.broadcast(IxDyn(&shape))?;
    ndarray::Zip::from(&mut out)
        .and(&holds.broadcast(IxDyn(&shape))?)
        .and(&then)
        .for_each(|out, holds, then| {
            if *holds != 0.0 {
                *out = *then;
            }
        });
    Some(out)
}

/// Some axes become one number each, and stay as axes of one if `keep`.
pub(super) fn reduced(
    how: Reduction,
    numbers: &ArrayD<f64>,
    axes: &[usize],
    keep: bool,
) -> Option<ArrayD<f64>> {
    let mut axes = axes.to_vec();
    axes.sort_unstable();
    axes.dedup();
    let lens = axes.iter().map(|axis| numbers.shape().get(*axis).copied());
    let count = lens.collect::<Option<Vec<_>>>()?.iter().product::<usize>();
    let folded = |of: &ArrayD<f64>, from: f64, f: fn(f64, f64) -> f64| {
        let mut out = of.clone();
        for axis in &axes {
            out = out.fold_axis(Axis(*axis), from, |x, y| f(*x, *y));
            out.insert_axis_inplace(Axis(*axis));
        }
        out
    };
    let sum = |of: &ArrayD<f64>| {
        let mut sum = of.clone();
        for axis in &axes {
            sum = sum.sum_axis(Axis(*axis)).insert_axis(Axis(*axis));
        }
        sum
    };
    let squares = |of: &ArrayD<f64>| sum(&of.mapv(|x| x * x));
    let extreme = |from: f64, f: fn(f64, f64) -> f64| (count > 0).then(|| folded(numbers, from, f));
    let count = count as f64;
    let variance = |correction: f64| {
        let mean = sum(numbers) / count;
        squares(&(numbers - &mean)) / (count - correction).max(0.0)
    };
    let mut out = match how {
        Reduction::Sum => sum(numbers),
        Reduction::Mean => sum(numbers) / count,
        Reduction::Product => folded(numbers, 1.0, |x, y| x * y),
        Reduction::Max => extreme(f64::NEG_INFINITY, larger)?,
        Reduction::Min => extreme(f64::INFINITY, smaller)?,
        Reduction::Absolute => sum(&numbers.mapv(f64::abs)),
        Reduction::Squares => squares(numbers),
        Reduction::Norm => squares(numbers).mapv(f64::sqrt),
        Reduction::Variance(correction) => variance(correction),
        Reduction::Deviation(correction) => variance(correction).mapv(f64::sqrt),
    };
    if !keep {
        for axis in axes.iter().rev() {
            out = out.index_axis_move(Axis(*axis), 0);
        }
    }
    Some(out)
}

/// With zeros before and behind each axis.
pub(super) fn padded(numbers: &ArrayD<f64>, around: &[[usize; 2]]) -> Option<ArrayD<f64>> {
    let axes = numbers.shape().iter().zip(around);
    let shape: Vec<usize> = axes
        .map(|(n, [before, behind])| n.checked_add(*before)?.checked_add(*behind))
        .collect::<Option<_>>()?;
    if around.len() != numbers.ndim() || !within(&shape) {
        return None;
    }
    let mut out = ArrayD::zeros(IxDyn(&shape));
    let inside = |axis: ndarray::AxisDescription| {
        let begin = around[axis.axis.index()][0];
        Slice::from(begin..begin + numbers.shape()[axis.axis.index()])
    };
    out.slice_each_axis_mut(inside).assign(numbers);
    Some(out)
}

/// So many times along each axis. More repeats than axes put new axes before the others, as PyTorch does.
pub(super) fn repeated(numbers: &ArrayD<f64>, times: &[usize]) -> Option<ArrayD<f64>> {
    let mut out = numbers.clone();
    while out.ndim() < times.len() {
        out = out.insert_axis(Axis(0));
    }
    if out.ndim() != times.len() {
        return None;
    }
    for (axis, times) in times.iter().enumerate() {
        let mut shape = out.shape().to_vec();
        shape[axis] = shape[axis].checked_mul(*times)?;
        // An axis of no element could be repeated for ever.
        if *times == 0 || *times > MOST_NUMBERS || !within(&shape) {
            return None;
        }
        let copies = vec![out.view(); *times];
        out = concatenate(Axis(axis), &copies).ok()?;
    }
    Some(out)
}

/// One behind the other along an axis.
pub(super) fn joined(parts: &[&ArrayD<f64>], axis: usize) -> Option<ArrayD<f64>> {
    let all: usize = parts.iter().map(|part| part.len()).sum();
    let views: Vec<ArrayViewD<'_, f64>> = parts.iter().map(|part| part.view()).collect();
    let fits = all <= MOST_NUMBERS && views.iter().all(|view| axis < view.ndim());
    let out = fits.then(|| concatenate(Axis(axis), &views).ok())??;
    within(out.shape()).then_some(out)
}

/// With its axes in another order, in memory too.
pub(super) fn permuted(numbers: &ArrayD<f64>, order: &[usize]) -> Option<ArrayD<f64>> {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    let fits = sorted.into_iter().eq(0..numbers.ndim());
    let turned = fits.then(|| numbers.view().permuted_axes(order))?;
    Some(turned.as_standard_layout().into_owned())
}

/// The share that each number of an axis has in the sum of their exponentials, or its logarithm.
pub(super) fn softmax(numbers: &ArrayD<f64>, axis: usize, log: bool) -> Option<ArrayD<f64>> {
    let mut out = (axis < numbers.ndim()).then(|| numbers.clone())?;
    for mut lane in out.lanes_mut(Axis(axis)) {
        let most = lane.iter().copied().fold(f64::NEG_INFINITY, larger);
        let sum: f64 = lane.iter().map(|x| (x - most).exp()).sum();
        lane.mapv_inplace(|x| match log {
            true => x - most - sum.ln(),
            false => (x - most).exp() / sum,
        });
    }
    Some(out)
}

/// Each number with all those before it along an axis.
pub(super) fn cumulated(numbers: &ArrayD<f64>, axis: usize) -> Option<ArrayD<f64>> {
    let mut out = (axis < numbers.ndim()).then(|| numbers.clone())?;
    out.accumulate_axis_inplace(Axis(axis), |before, x| *x += *before);
    Some(out)
}

/// Zeros on one side of a diagonal of each matrix, which is so far above the middle one.
pub(super) fn triangle(numbers: &ArrayD<f64>, diagonal: i64, upper: bool) -> Option<ArrayD<f64>> {
    let rank = numbers.ndim();
    let (row, column) = (rank.checked_sub(2)?, rank.checked_sub(1)?);
    let mut out = numbers.clone();
    for (at, x) in out.indexed_iter_mut() {
        let above = at[column] as i64 - at[row] as i64;
        let stays = match upper {
            true => above >= diagonal,
            false => above <= diagonal,
        };
        if !stays {
            *x = 0.0;
        }
    }
    Some(out)
}

/// Every number of the first times all of the second.
pub(super) fn kron(a: &ArrayD<f64>, b: &ArrayD<f64>) -> Option<ArrayD<f64>> {
    let rank = a.ndim().max(b.ndim());
    let spread = |of: &ArrayD<f64>, behind: bool| {
        let shape = of.shape().iter().copied();
        let shape = std::iter::repeat_n(1, rank - of.ndim()).chain(shape);
        let pairs = shape.flat_map(|n| if behind { [1, n] } else { [n, 1] });
        let shape: Vec<usize> = pairs.collect();
        let of = of.as_standard_layout().into_owned();
        of.into_shape_with_order(IxDyn(&shape)).ok()
    };
    let product = both(|x, y| x * y, &spread(a, false)?, &spread(b, true)?)?;
    let shape: Vec<usize> = product
        .shape()
        .chunks_exact(2)
        .map(|pair| pair[0] * pair[1])
        .collect();
    let product = product.as_standard_layout().into_owned();
    product.into_shape_with_order(IxDyn(&shape)).ok()
}

/// Each channel, of the second axis, with the mean of its numbers taken off and divided by their deviation.
pub(super) fn standardised(
    numbers: &ArrayD<f64>,
    affine: [Option<&ArrayD<f64>>; 2],
    eps: f64,
) -> Option<ArrayD<f64>> {
    let others: Vec<usize> = (0..numbers.ndim()).filter(|axis| *axis != 1).collect();
    let mean = reduced(Reduction::Mean, numbers, &others, false)?;
    let variance = reduced(Reduction::Variance(0.0), numbers, &others, false)?;
    normalised(numbers, [&mean, &variance], affine, eps)
}

/// The same with a mean and a variance for each channel that are told.
pub(super) fn normalised(
    numbers: &ArrayD<f64>,
    [mean, variance]: [&ArrayD<f64>; 2],
    [weight, bias]: [Option<&ArrayD<f64>>; 2],
    eps: f64,
) -> Option<ArrayD<f64>> {
    let channels = *numbers.shape().get(1)?;
    let mut shape = vec![1; numbers.ndim()];
    shape[1] = channels;
    let along = |vector: &ArrayD<f64>| {
        let fits = vector.shape() == [channels];
        let vector = fits.then(|| vector.as_standard_layout().into_owned())?;
        vector.into_shape_with_order(IxDyn(&shape)).ok()
    };
    let mut factor = along(variance)?.mapv(|x| 1.0 / (x + eps).sqrt());
    if let Some(weight) = weight {
        factor = both(|x, y| x * y, &factor, &along(weight)?)?;
    }
    let out = both(|x, factor| x * factor, &(numbers - &along(mean)?), &factor)?;
    match bias {
        Some(bias) => both(|x, bias| x + bias, &out, &along(bias)?),
        None => Some(out),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        MOST_NUMBERS, Reduction, chosen, cumulated, joined, kron, larger, permuted, reduced,
        repeated, smaller, softmax, standardised, triangle, within,
    };
    use ndarray::{ArrayD, IxDyn};

    fn of(shape: &[usize], numbers: &[f64]) -> ArrayD<f64> {
        ArrayD::from_shape_vec(IxDyn(shape), numbers.to_vec())
            .expect("as many numbers as the shape has")
    }

    fn flat(array: Option<ArrayD<f64>>) -> Vec<f64> {
        array.expect("what fits").iter().copied().collect()
    }

    #[test]
    fn no_axis_is_longer_than_what_is_computed() {
        assert!(within(&[MOST_NUMBERS]) && within(&[0, 5]) && within(&[]));
        for shape in [&[0, MOST_NUMBERS + 1][..], &[1 << 40, 0], &[usize::MAX; 3]] {
            assert!(!within(shape), "{shape:?}");
        }
        assert!(repeated(&of(&[0], &[]), &[usize::MAX]).is_none());
    }

    #[test]
    fn extremes_are_no_numbers_where_one_is_none() {
        let table = of(&[2, 2], &[1.0, -3.0, f64::NAN, 2.0]);
        let max = flat(reduced(Reduction::Max, &table, &[1], false));
        assert!(max[0] == 1.0 && max[1].is_nan());
        let min = flat(reduced(Reduction::Min, &table, &[1], false));
        assert!(min[0] == -3.0 && min[1].is_nan());
        assert!(reduced(Reduction::Max, &of(&[0, 2], &[]), &[0], true).is_none());
        assert!(larger(1.0, f64::NAN).is_nan() && smaller(f64::NAN, 1.0).is_nan());
    }

    #[test]
    fn axes_become_one_number_in_other_ways() {
        let table = of(&[2, 2], &[1.0, -3.0, 2.0, 6.0]);
        let reduce = |how| flat(reduced(how, &table, &[1], false));
        assert_eq!(reduce(Reduction::Product), [-3.0, 12.0]);
        assert_eq!(reduce(Reduction::Absolute), [4.0, 8.0]);
        assert_eq!(reduce(Reduction::Squares), [10.0, 40.0]);
        let all = reduced(Reduction::Max, &table, &[0, 1], false);
        assert_eq!(all.expect("a number").shape(), [0usize; 0]);
    }

    #[test]
    fn numbers_are_chosen_in_one_shape() {
        let holds = of(&[2, 1], &[1.0, 0.0]);
        let (then, otherwise) = (of(&[2], &[1.0, 2.0]), of(&[], &[9.0]));
        assert_eq!(
            flat(chosen(&holds, &then, &otherwise)),
            [1.0, 2.0, 9.0, 9.0]
        );
        assert!(chosen(&holds, &of(&[3, 1], &[0.0; 3]), &otherwise).is_none());
    }

    #[test]
    fn shares_of_an_axis_add_up() {
        let table = of(&[2, 2], &[0.0, 1000.0, 0.0, 1000.0]);
        assert_eq!(flat(softmax(&table, 0, false)), [0.5; 4]);
        assert_eq!(flat(softmax(&table, 1, false)), [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(flat(softmax(&table, 0, true)), [0.5f64.ln(); 4]);
        assert!(softmax(&of(&[], &[1.0]), 0, false).is_none());
    }

    #[test]
    fn sums_grow_and_triangles_stay() {
        let table = of(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(flat(cumulated(&table, 0)), [1.0, 2.0, 4.0, 6.0]);
        assert_eq!(flat(triangle(&table, 0, true)), [1.0, 2.0, 0.0, 4.0]);
        assert_eq!(flat(triangle(&table, -1, false)), [0.0, 0.0, 3.0, 0.0]);
        assert_eq!(flat(triangle(&table, i64::MIN, true)).len(), 4);
        assert!(triangle(&of(&[2], &[1.0; 2]), 0, true).is_none());
    }

    #[test]
    fn every_number_goes_with_all_others() {
        let (a, b) = (of(&[2], &[1.0, 10.0]), of(&[1, 2], &[1.0, 2.0]));
        let product = kron(&a, &b).expect("it fits");
        assert_eq!(product.shape(), [1, 4]);
        assert_eq!(flat(Some(product)), [1.0, 2.0, 10.0, 20.0]);
    }

    #[test]
    fn channels_are_standardised_one_by_one() {
        let maps = of(&[1, 2, 2], &[1.0, 3.0, 5.0, 5.0]);
        let (weight, bias) = (of(&[2], &[2.0, 1.0]), of(&[2], &[0.0, 7.0]));
        let out = flat(standardised(&maps, [Some(&weight), Some(&bias)], 0.0));
        assert_eq!(out[..2], [-2.0, 2.0]);
        assert!(out[2].is_nan(), "nothing over nothing");
        let short = of(&[1], &[1.0]);
        assert!(standardised(&maps, [Some(&short), None], 0.1).is_none());
    }

    #[test]
    fn axes_that_are_not_there_are_none() {
        let table = of(&[2], &[1.0, 2.0]);
        assert!(permuted(&table, &[1]).is_none());
        assert!(joined(&[&table], 1).is_none());
        assert!(cumulated(&table, 1).is_none());
    }
}
