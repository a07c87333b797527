//! Numbers that a network computes of its weights alone, as a scale times a mask: worked out when it is read.
//!
//! Each step is computed in f64 and rounded to the element type, as whoever runs the network rounds it. For the four operations and
//! the root that is the very same number; sums may be added up in another order.

use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice, concatenate};

use super::contract::{Equation, contracted};
use crate::tensor::{Checkpoint, Dtype, Float, Part, Place, Tensor};

/// More numbers than this are not computed: they would be held in memory.
const MOST_NUMBERS: usize = 1 << 22;

/// All that are computed of one file have no more numbers than this, so that a small file cannot ask for much.
const MOST_IN_ALL: usize = 1 << 24;

/// How many numbers may still be computed of a file.
#[derive(Debug)]
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Budget {
        Budget(MOST_IN_ALL)
    }
}

impl Budget {
    /// Whether so many more may be read or computed; then they count.
    pub(super) fn allows(&mut self, numbers: usize) -> bool {
        let left = self.0.checked_sub(numbers);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// Numbers with a shape.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub numbers: ArrayD<f64>,
    /// Their element type; none for a number of the program itself, which has that of what it meets.
    pub float: Option<Float>,
}

/// How constants become another one.
#[derive(Clone, Debug)]
pub(super) enum Make {
    /// Number by number, of one.
    Each(fn(f64) -> f64),
    /// Number by number, of two that are broadcast to one shape.
    Both(fn(f64, f64) -> f64),
    /// Axes become one number each, and stay as axes of one if `keep`.
    Reduce {
        how: Reduction,
        axes: Vec<usize>,
        keep: bool,
    },
    /// A direction and a length for each index of an axis, or for all numbers: weight norm, as `torch._weight_norm` has it.
    WeightNorm(Option<usize>),
    /// The product of two matrices, or of two stacks of them.
    Product,
    /// Products that are summed over axes.
    Contract(Equation),
    /// Broadcast to a shape.
    Expand(Vec<usize>),
    /// Axes in another order.
    Permute(Vec<usize>),
    /// So many times along each axis.
    Repeat(Vec<usize>),
    /// One behind the other along an axis.
    Concat(usize),
    /// From one index to before another one, along an axis.
    Cut {
        axis: usize,
        begin: usize,
        end: usize,
    },
    /// With this many zeros before and behind each axis.
    Pad(Vec<[usize; 2]>),
    /// The one index of an axis, which is then gone.
    Pick { axis: usize, index: usize },
    /// The other way round along some axes.
    Flip(Vec<usize>),
    /// In another element type.
    Cast(Float),
}

/// How an axis becomes one number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reduction {
    Sum,
    Mean,
    /// The root of the sum of squares.
    Norm,
    /// The variance, with so many taken off the count.
    Variance(f64),
    /// Its root.
    Deviation(f64),
}

impl Constant {
    /// The numbers of a tensor, if they are few enough.
    pub fn read(checkpoint: &Checkpoint, tensor: &Tensor, budget: &mut Budget) -> Option<Constant> {
        let float = tensor.dtype().float()?;
        if tensor.len() > MOST_NUMBERS || !budget.allows(tensor.len()) {
            return None;
        }
        let mut bytes = vec![0; tensor.len() * float.size()];
        checkpoint.read_at(tensor, 0, &mut bytes).ok()?;
        let mut numbers = vec![0.0; tensor.len()];
        float.decode(&bytes, &mut numbers);
        Some(Constant {
            numbers: ArrayD::from_shape_vec(IxDyn(tensor.shape()), numbers).ok()?,
            float: Some(float),
        })
    }

    /// One number in every place of a shape, if that is few enough.
    pub fn filled(
        number: f64,
        shape: &[usize],
        float: Float,
        budget: &mut Budget,
    ) -> Option<Constant> {
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        (count <= MOST_NUMBERS && budget.allows(count)).then(|| Constant {
            numbers: ArrayD::from_elem(IxDyn(shape), float.round(number)),
            float: Some(float),
        })
    }

    /// A number of the program.
    pub fn number(number: f64) -> Constant {
        Constant {
            numbers: ArrayD::from_elem(IxDyn(&[]), number),
            float: None,
        }
    }

    /// The tensor of this name that holds the numbers.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        let float = self.float?;
        let numbers: Vec<f64> = self.numbers.iter().copied().collect();
        let mut bytes = vec![0; numbers.len() * float.size()];
        float.encode(&numbers, &mut bytes);
        Tensor::new(Part {
            name: name.to_owned(),
            dtype: Dtype::from(float),
            shape: self.numbers.shape().to_vec(),
            place: Place::InMemory(Arc::from(bytes)),
        })
        .ok()
    }
}

/// What becomes of some constants; none where they do not fit, or it would be too much.
pub(super) fn make(how: &Make, of: &[Constant], budget: &mut Budget) -> Option<Constant> {
    let mut types = of.iter().filter_map(|constant| constant.float);
    let float = types.next()?;
    if types.any(|other| other != float) {
        return None;
    }
    let mut numbers = match (how, of) {
        (Make::Each(f), [one]) => one.numbers.mapv(f),
        (Make::Both(f), [a, b]) => both(*f, &a.numbers, &b.numbers)?,
        (Make::Reduce { how, axes, keep }, [one]) => reduced(*how, &one.numbers, axes, *keep)?,
        (Make::WeightNorm(axis), [direction, length]) => {
            let others = (0..direction.numbers.ndim()).filter(|i| Some(*i) != *axis);
            let others: Vec<usize> = others.collect();
            let norm = reduced(Reduction::Norm, &direction.numbers, &others, true)?;
            let factor = both(|length, norm| length / norm, &length.numbers, &norm)?;
            both(|x, factor| x * factor, &direction.numbers, &factor)?
        }
        (Make::Product, [a, b]) => {
            let equation = Equation::of_matrices(a.numbers.ndim())?;
            contracted(&equation, &[&a.numbers, &b.numbers], &within)?
        }
        (Make::Contract(equation), of) => {
            let operands: Vec<&ArrayD<f64>> = of.iter().map(|one| &one.numbers).collect();
            contracted(equation, &operands, &within)?
        }
        (Make::Expand(shape), [one]) if within(shape) => {
            one.numbers.broadcast(IxDyn(shape))?.to_owned()
        }
        (Make::Permute(order), [one]) => {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            let fits = sorted.into_iter().eq(0..one.numbers.ndim());
            fits.then(|| one.numbers.view().permuted_axes(&order[..]).to_owned())?
        }
        (Make::Repeat(times), [one]) => repeated(&one.numbers, times)?,
        (Make::Cast(_), [one]) => one.numbers.clone(),
        (Make::Concat(axis), of) => {
            let all: usize = of.iter().map(|constant| constant.numbers.len()).sum();
            let views: Vec<ArrayViewD<'_, f64>> = of.iter().map(|c| c.numbers.view()).collect();
            let fits = all <= MOST_NUMBERS && views.iter().all(|view| *axis < view.ndim());
            fits.then(|| concatenate(Axis(*axis), &views).ok())??
        }
        (Make::Cut { axis, begin, end }, [one]) => {
            let len = one.numbers.shape().get(*axis)?;
            let fits = begin <= end && end <= len;
            let cut = || {
                one.numbers
                    .slice_axis(Axis(*axis), Slice::from(*begin..*end))
            };
            fits.then(|| cut().to_owned())?
        }
        (Make::Pad(around), [one]) => padded(&one.numbers, around)?,
        (Make::Pick { axis, index }, [one]) => {
            let there = one.numbers.shape().get(*axis).is_some_and(|n| index < n);
            there.then(|| one.numbers.index_axis(Axis(*axis), *index).to_owned())?
        }
        (Make::Flip(axes), [one]) => {
            let mut numbers = one.numbers.clone();
            for axis in axes {
                (*axis < numbers.ndim()).then(|| numbers.invert_axis(Axis(*axis)))?;
            }
            numbers
        }
        _ => return None,
    };
    if !budget.allows(numbers.len()) {
        return None;
    }
    let float = match how {
        Make::Cast(to) => *to,
        _ => float,
    };
    numbers.mapv_inplace(|x| float.round(x));
    Some(Constant {
        numbers,
        float: Some(float),
    })
}

/// Whether a shape has no more numbers than are computed.
fn within(shape: &[usize]) -> bool {
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    count.is_some_and(|count| count <= MOST_NUMBERS)
}

fn both(f: fn(f64, f64) -> f64, a: &ArrayD<f64>, b: &ArrayD<f64>) -> Option<ArrayD<f64>> {
    let rank = a.ndim().max(b.ndim());
    let at = |of: &ArrayD<f64>, i: usize| match (i + of.ndim()).checked_sub(rank) {
        Some(i) => of.shape()[i],
        None => 1,
    };
    let shape: Vec<usize> = (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (1, n) | (n, 1) => Some(n),
            (m, n) => (m == n).then_some(n),
        })
        .collect::<Option<_>>()?;
    if !within(&shape) {
        return None;
    }
    let mut out = a.broadcast(IxDyn(&shape))?.to_owned();
    out.zip_mut_with(&b.broadcast(IxDyn(&shape))?, |x, y| *x = f(*x, *y));
    Some(out)
}

fn reduced(
    how: Reduction,
    numbers: &ArrayD<f64>,
    axes: &[usize],
    keep: bool,
) -> Option<ArrayD<f64>> {
    let mut axes = axes.to_vec();
    axes.sort_unstable();
    axes.dedup();
    let counts = axes.iter().map(|axis| numbers.shape().get(*axis).copied());
    let count = counts
        .collect::<Option<Vec<_>>>()?
        .iter()
        .product::<usize>() as f64;
    let sum = |of: &ArrayD<f64>| {
        let mut sum = of.clone();
        for axis in &axes {
            sum = sum.sum_axis(Axis(*axis)).insert_axis(Axis(*axis));
        }
        sum
    };
    let squares = |of: &ArrayD<f64>| sum(&of.mapv(|x| x * x));
    let variance = |correction: f64| {
        let mean = sum(numbers) / count;
        squares(&(numbers - &mean)) / (count - correction).max(0.0)
    };
    let mut out = match how {
        Reduction::Sum => sum(numbers),
        Reduction::Mean => sum(numbers) / count,
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

fn padded(numbers: &ArrayD<f64>, around: &[[usize; 2]]) -> Option<ArrayD<f64>> {
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

/// More repeats than axes put new axes before the others, as PyTorch does.
fn repeated(numbers: &ArrayD<f64>, times: &[usize]) -> Option<ArrayD<f64>> {
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
        if *times == 0 || !within(&shape) {
            return None;
        }
        let copies = vec![out.view(); *times];
        out = concatenate(Axis(axis), &copies).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::{Budget, Constant, MOST_IN_ALL, Make, Reduction};
    use crate::tensor::Float;
    use ndarray::{ArrayD, IxDyn};

    fn of(shape: &[usize], numbers: &[f64]) -> Constant {
        Constant {
            numbers: ArrayD::from_shape_vec(IxDyn(shape), numbers.to_vec())
                .expect("as many numbers as the shape has"),
            float: Some(Float::F32),
        }
    }

    fn make(how: &Make, of: &[Constant]) -> Option<Constant> {
        super::make(how, of, &mut Budget::default())
    }

    fn made(how: Make, of: &[Constant]) -> (Vec<usize>, Vec<f64>) {
        let made = make(&how, of).expect("what fits").numbers;
        (made.shape().to_vec(), made.iter().copied().collect())
    }

    #[test]
    fn shapes_are_broadcast_and_axes_moved() {
        let (row, column) = (of(&[2], &[1.0, 2.0]), of(&[2, 1], &[10.0, 20.0]));
        let table = [row, column];
        assert_eq!(
            made(Make::Both(|a, b| a + b), &table),
            (vec![2, 2], vec![11.0, 12.0, 21.0, 22.0])
        );
        let table = of(&[1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(
            made(Make::Permute(vec![2, 0, 1]), std::slice::from_ref(&table)),
            (vec![3, 1, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0])
        );
        assert_eq!(
            made(Make::Repeat(vec![2, 1, 1, 1]), std::slice::from_ref(&table)).0,
            [2, 1, 2, 3]
        );
        let padded = made(
            Make::Pad(vec![[0, 0], [1, 0], [0, 1]]),
            std::slice::from_ref(&table),
        );
        assert_eq!(padded.0, [1, 3, 4]);
        assert_eq!(padded.1[4..], [1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 0.0]);
        let (axis, index) = (1, 1);
        let picked = made(Make::Pick { axis, index }, std::slice::from_ref(&table));
        assert_eq!(picked, (vec![1, 3], vec![4.0, 5.0, 6.0]));
        let flipped = made(Make::Flip(vec![2]), std::slice::from_ref(&table)).1;
        assert_eq!(flipped, [3.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
    }

    #[test]
    fn axes_become_one_number() {
        let table = [of(&[2, 2], &[1.0, 3.0, 2.0, 6.0])];
        let reduce = |how, keep| {
            let axes = vec![1];
            made(Make::Reduce { how, axes, keep }, &table)
        };
        assert_eq!(reduce(Reduction::Mean, true), (vec![2, 1], vec![2.0, 4.0]));
        assert_eq!(reduce(Reduction::Sum, false), (vec![2], vec![4.0, 8.0]));
        assert_eq!(reduce(Reduction::Variance(1.0), false).1, [2.0, 8.0]);
        assert_eq!(reduce(Reduction::Variance(0.0), false).1, [1.0, 4.0]);
    }

    #[test]
    fn each_step_is_rounded_and_what_does_not_fit_is_none() {
        let third = made(
            Make::Both(|a, b| a / b),
            &[of(&[], &[1.0]), of(&[], &[3.0])],
        );
        assert_eq!(third.1, [f64::from(1.0f32 / 3.0)]);
        let (a, b) = (of(&[2], &[0.0; 2]), of(&[3], &[0.0; 3]));
        assert!(make(&Make::Both(|a, b| a + b), &[a.clone(), b]).is_none());
        assert!(make(&Make::Expand(vec![1 << 30, 2]), std::slice::from_ref(&a)).is_none());
        assert!(make(&Make::Repeat(vec![1 << 40]), std::slice::from_ref(&a)).is_none());
        let half = Constant {
            float: Some(Float::F16),
            ..a.clone()
        };
        assert!(make(&Make::Both(|a, b| a + b), &[a, half]).is_none());
    }

    #[test]
    fn a_cast_rounds_to_the_type_it_names() {
        let cast = make(&Make::Cast(Float::F16), &[of(&[1], &[0.1])]).expect("a cast fits");
        assert_eq!(cast.float, Some(Float::F16));
        assert_eq!(cast.numbers[[0]], Float::F16.round(f64::from(0.1f32)));
        let mut budget = Budget::default();
        assert!(Constant::filled(1.0, &[1 << 30], Float::F32, &mut budget).is_none());
    }

    #[test]
    fn a_file_asks_for_no_more_than_its_budget() {
        let one = of(&[1], &[1.0]);
        let (wide, mut budget) = (Make::Expand(vec![1 << 22]), Budget::default());
        let mut times = 0;
        while super::make(&wide, std::slice::from_ref(&one), &mut budget).is_some() {
            times += 1;
        }
        assert_eq!(times, MOST_IN_ALL >> 22);
    }
}
