//! Numbers that a network computes of its weights alone, as a scale times a mask: worked out when it is read.
//!
//! Each step is computed in f64 and rounded to the element type, as whoever runs the network rounds it. For the four operations and
//! the root that is the very same number; sums may be added up in another order. Whole numbers and truths are worked out as far as
//! indices and masks are made of them.

use std::sync::Arc;

use ndarray::{ArrayD, Dimension as _, IxDyn};

use super::arrays::{self, Reduction, both, reduced, within};
use super::contract::{Equation, contracted};
use super::convolve::{self, Blend, Slide};
use super::indexed;
use super::kinds::Kind;
use crate::tensor::{Checkpoint, Float, Part, Place, Tensor};

/// All that are computed of one file have no more numbers than this, so that a small file cannot ask for much.
const MOST_IN_ALL: usize = 1 << 24;

/// How many multiply-adds of a sliding kernel are counted as one number.
const STEPS_OF_A_NUMBER: usize = 1 << 10;

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

    /// The same of what has been computed; then it counts in any case, so that nobody asks for it again and again.
    fn has_allowed(&mut self, numbers: usize) -> bool {
        let allowed = numbers <= self.0;
        self.0 = self.0.saturating_sub(numbers);
        allowed
    }
}

/// Numbers with a shape.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub numbers: ArrayD<f64>,
    /// Their element type; none for a number of the program itself, which has that of what it meets.
    pub kind: Option<Kind>,
}

/// How constants become another one.
#[derive(Clone, Debug)]
pub(super) enum Make {
    /// Number by number, of one.
    Each(fn(f64) -> f64),
    /// Number by number, of two that are broadcast to one shape.
    Both(fn(f64, f64) -> f64),
    /// The same of one after the other.
    All(fn(f64, f64) -> f64),
    /// The first, and so many times the second.
    AddTimes(f64),
    /// Whether something holds, number by number; of one alone, beside zero.
    Holds(fn(f64, f64) -> bool),
    /// The second where the first holds, the third where it does not.
    Choose,
    /// Between two bounds; the upper one counts where they are the wrong way round.
    Clamp([Option<f64>; 2]),
    /// Axes become one number each, and stay as axes of one if `keep`.
    Reduce {
        how: Reduction,
        axes: Vec<usize>,
        keep: bool,
    },
    /// A direction and a length for each index of an axis, or for all numbers: weight norm, as `torch._weight_norm` has it.
    WeightNorm(Option<usize>),
    /// The share of each number of an axis in the sum of their exponentials, or its logarithm.
    Softmax { axis: usize, log: bool },
    /// Each number of an axis with all those before it.
    Cumulate(usize),
    /// What is on one side of the diagonal that is so far above the middle one.
    Triangle { diagonal: i64, upper: bool },
    /// The mean of each channel taken off and its deviation made one; then the factors, if `factors`, and the summands, if any.
    Standardise { eps: f64, factors: bool },
    /// The same with factors, summands, a mean and a variance for each channel.
    Normalise { eps: f64 },
    /// The product of two matrices, or of two stacks of them; also of vectors.
    Product,
    /// Every number of the first times all of the second.
    Kron,
    /// Products that are summed over axes.
    Contract(Equation),
    /// A kernel slides over maps; a number may be added to each channel.
    Slide(Slide),
    /// Axes whose elements are put together of two each.
    Blend(Vec<(usize, Vec<Blend>)>),
    /// Broadcast to a shape.
    Expand(Vec<usize>),
    /// Axes in another order.
    Permute(Vec<usize>),
    /// So many times along each axis.
    Repeat(Vec<usize>),
    /// One behind the other along an axis.
    Concat(usize),
    /// These elements of each of some axes, in this order.
    Take(Vec<(usize, Vec<usize>)>),
    /// With this many zeros before and behind each axis.
    Pad(Vec<[usize; 2]>),
    /// The one index of an axis, which is then gone.
    Pick { axis: usize, index: usize },
    /// The elements of an axis that the second points at.
    Gather(usize),
    /// The rows that the last axis of the second points at.
    GatherRows,
    /// The third put where the second points along an axis.
    Put(usize),
    /// The third put where the last axis of the second points.
    PutRows,
    /// In another element type.
    Cast(Kind),
}

impl Constant {
    /// The numbers of a tensor, if they are few enough.
    pub fn read(checkpoint: &Checkpoint, tensor: &Tensor, budget: &mut Budget) -> Option<Constant> {
        let kind = Kind::of(tensor.dtype())?;
        if !within(tensor.shape()) || !budget.allows(tensor.len()) {
            return None;
        }
        let mut bytes = vec![0; tensor.len() * kind.size()];
        checkpoint.read_at(tensor, 0, &mut bytes).ok()?;
        let numbers = kind.decode(&bytes)?;
        Some(Constant {
            numbers: ArrayD::from_shape_vec(IxDyn(tensor.shape()), numbers).ok()?,
            kind: Some(kind),
        })
    }

    /// Numbers in the places of a shape, by the place along each axis, if they are few enough.
    pub fn filled(
        number: impl Fn(&[usize]) -> f64,
        shape: &[usize],
        kind: Kind,
        budget: &mut Budget,
    ) -> Option<Constant> {
        if !within(shape) || !budget.allows(shape.iter().product()) {
            return None;
        }
        let mut numbers = ArrayD::zeros(IxDyn(shape));
        for (at, x) in numbers.indexed_iter_mut() {
            *x = kind.rounded(number(at.as_array_view().as_slice()?))?;
        }
        let kind = Some(kind);
        Some(Constant { numbers, kind })
    }

    /// A number of the program.
    pub fn number(number: f64) -> Constant {
        Constant {
            numbers: ArrayD::from_elem(IxDyn(&[]), number),
            kind: None,
        }
    }

    /// The tensor of this name that holds the numbers.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        let kind = self.kind?;
        let numbers: Vec<f64> = self.numbers.iter().copied().collect();
        Tensor::new(Part {
            name: name.to_owned(),
            dtype: kind.dtype(),
            shape: self.numbers.shape().to_vec(),
            place: Place::InMemory(Arc::from(kind.encode(&numbers))),
        })
        .ok()
    }

    /// The numbers as those of a type in which they meet others.
    fn met(&self, kind: Kind, compared: bool) -> Option<ArrayD<f64>> {
        let as_float = |float: Float| {
            let mut numbers = self.numbers.clone();
            numbers.mapv_inplace(|x| float.round(x));
            numbers
        };
        match (self.kind, kind) {
            (Some(own), kind) if own == kind => Some(self.numbers.clone()),
            // Numbers of the program are no finer than what they meet; half types meet them in single precision.
            (None, Kind::Float(Float::F64)) => Some(self.numbers.clone()),
            (None, Kind::Float(Float::F16 | Float::Bf16)) if compared => None,
            (None, Kind::Float(_)) => Some(as_float(Float::F32)),
            (Some(_), Kind::Float(float)) => Some(as_float(float)),
            (_, Kind::I64 | Kind::I32 | Kind::U8 | Kind::Bool) => Some(self.numbers.clone()),
        }
    }
}

/// The type in which some constants meet.
fn common<'c>(of: impl IntoIterator<Item = &'c Constant>) -> Option<Kind> {
    let mut kinds = of.into_iter().filter_map(|constant| constant.kind);
    let first = kinds.next()?;
    kinds.try_fold(first, Kind::with)
}

/// What becomes of some constants; none where they do not fit, or it would be too much.
pub(super) fn make(how: &Make, of: &[Constant], budget: &mut Budget) -> Option<Constant> {
    // Which are numbers, and which point at some or say where something holds.
    let points = |index: &Constant| index.kind.is_some_and(Kind::is_whole);
    let (numbers, other): (Vec<&Constant>, Option<&ArrayD<f64>>) = match (how, of) {
        (Make::Gather(_) | Make::GatherRows, [one, index]) if points(index) => {
            (vec![one], Some(&index.numbers))
        }
        (Make::Put(_) | Make::PutRows, [one, index, others]) if points(index) => {
            (vec![one, others], Some(&index.numbers))
        }
        (Make::Choose, [holds, a, b]) => (vec![a, b], Some(&holds.numbers)),
        _ => (of.iter().collect(), None),
    };
    let kind = common(numbers.iter().copied())?;
    let compared = matches!(how, Make::Holds(_));
    let met = numbers.iter().map(|one| one.met(kind, compared));
    let met: Vec<ArrayD<f64>> = met.collect::<Option<_>>()?;
    if let Make::Slide(slide) = how {
        let [maps, kernel, ..] = &met[..] else {
            return None;
        };
        let (_, steps) = convolve::size(slide, maps.shape(), kernel.shape())?;
        let turns = slide.groups * kernel.shape()[2..].iter().product::<usize>();
        budget
            .allows(steps / STEPS_OF_A_NUMBER + 4 * turns)
            .then_some(())?;
    }
    let mut made = match (how, other, &met[..]) {
        (Make::Gather(axis), Some(index), [one]) => indexed::gathered(one, *axis, index)?,
        (Make::GatherRows, Some(index), [one]) => indexed::gathered_rows(one, index)?,
        (Make::Put(axis), Some(index), [one, others]) => indexed::put(one, *axis, index, others)?,
        (Make::PutRows, Some(index), [one, others]) => indexed::put_rows(one, index, others)?,
        (Make::Choose, Some(holds), [a, b]) => arrays::chosen(holds, a, b)?,
        _ => of_numbers(how, &met, kind)?,
    };
    if !budget.has_allowed(made.len()) {
        return None;
    }
    let kind = match how {
        Make::Cast(to) => *to,
        Make::Holds(_) => Kind::Bool,
        _ => kind,
    };
    for x in &mut made {
        *x = match how {
            Make::Cast(to) => to.cast(*x)?,
            _ => kind.rounded(*x)?,
        };
    }
    Some(Constant {
        numbers: made,
        kind: Some(kind),
    })
}

/// What becomes of numbers of one type.
fn of_numbers(how: &Make, of: &[ArrayD<f64>], kind: Kind) -> Option<ArrayD<f64>> {
    Some(match (how, of) {
        (Make::Each(f), [one]) => one.mapv(f),
        (Make::Both(f), [a, b]) => both(f, a, b)?,
        (Make::All(f), [first, others @ ..]) => {
            let mut all = first.clone();
            for one in others {
                all = both(f, &all, one)?;
                for x in &mut all {
                    *x = kind.rounded(*x)?;
                }
            }
            all
        }
        (Make::AddTimes(factor), [a, b]) => both(|a, b| a + factor * b, a, b)?,
        (Make::Holds(f), [a, b]) => both(|a, b| f64::from(f(a, b)), a, b)?,
        (Make::Holds(f), [one]) => one.mapv(|x| f64::from(f(x, 0.0))),
        (Make::Clamp(bounds), [one]) => {
            let [least, most] = bounds.map(|bound| bound.and_then(|x| kind.rounded(x)));
            let clamp = |x: f64| {
                let x = least.map_or(x, |least| arrays::larger(x, least));
                most.map_or(x, |most| arrays::smaller(x, most))
            };
            let fits =
                least.is_some() == bounds[0].is_some() && most.is_some() == bounds[1].is_some();
            fits.then(|| one.mapv(clamp))?
        }
        (Make::Reduce { how, axes, keep }, [one]) => reduced(*how, one, axes, *keep)?,
        (Make::WeightNorm(axis), [direction, length]) => {
            let others = (0..direction.ndim()).filter(|i| Some(*i) != *axis);
            let others: Vec<usize> = others.collect();
            let norm = reduced(Reduction::Norm, direction, &others, true)?;
            let factor = both(|length, norm| length / norm, length, &norm)?;
            both(|x, factor| x * factor, direction, &factor)?
        }
        (Make::Softmax { axis, log }, [one]) => arrays::softmax(one, *axis, *log)?,
        (Make::Cumulate(axis), [one]) => arrays::cumulated(one, *axis)?,
        (Make::Triangle { diagonal, upper }, [one]) => arrays::triangle(one, *diagonal, *upper)?,
        (Make::Standardise { eps, factors }, [one, others @ ..]) => {
            let affine = match (factors, others) {
                (_, []) => [None, None],
                (true, [weight]) => [Some(weight), None],
                (true, [weight, bias]) => [Some(weight), Some(bias)],
                (false, [bias]) => [None, Some(bias)],
                _ => return None,
            };
            arrays::standardised(one, affine, *eps)?
        }
        (Make::Normalise { eps }, [one, weight, bias, mean, variance]) => {
            arrays::normalised(one, [mean, variance], [Some(weight), Some(bias)], *eps)?
        }
        (Make::Product, [a, b]) => {
            let equation = Equation::of_product(a.ndim(), b.ndim())?;
            contracted(&equation, &[a, b], &within)?
        }
        (Make::Kron, [a, b]) => arrays::kron(a, b)?,
        (Make::Contract(equation), of) => {
            contracted(equation, &of.iter().collect::<Vec<_>>(), &within)?
        }
        (Make::Slide(slide), [maps, kernel]) => convolve::convolved(slide, maps, kernel)?,
        (Make::Slide(slide), [maps, kernel, bias]) => {
            let out = convolve::convolved(slide, maps, kernel)?;
            let fits = bias.shape() == [out.shape()[1]];
            let mut bias = fits.then(|| bias.clone())?;
            for _ in 2..out.ndim() {
                bias = bias.insert_axis(ndarray::Axis(1));
            }
            both(|x, bias| x + bias, &out, &bias)?
        }
        (Make::Blend(axes), [one]) => {
            let all = &mut axes.iter();
            all.try_fold(one.clone(), |of, (axis, blends)| {
                convolve::blended(&of, *axis, blends)
            })?
        }
        (Make::Expand(shape), [one]) if within(shape) => one.broadcast(IxDyn(shape))?.to_owned(),
        (Make::Permute(order), [one]) => arrays::permuted(one, order)?,
        (Make::Repeat(times), [one]) => arrays::repeated(one, times)?,
        (Make::Cast(_), [one]) => one.clone(),
        (Make::Concat(axis), of) => arrays::joined(&of.iter().collect::<Vec<_>>(), *axis)?,
        (Make::Take(axes), [one]) => {
            let all = &mut axes.iter();
            all.try_fold(one.clone(), |of, (axis, indices)| {
                indexed::taken(&of, *axis, indices)
            })?
        }
        (Make::Pad(around), [one]) => arrays::padded(one, around)?,
        (Make::Pick { axis, index }, [one]) => {
            let there = one.shape().get(*axis).is_some_and(|n| index < n);
            there.then(|| one.index_axis(ndarray::Axis(*axis), *index).to_owned())?
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Budget, Constant, MOST_IN_ALL, Make, Reduction};
    use crate::graph::convolve::Slide;
    use crate::graph::kinds::Kind;
    use crate::tensor::Float;
    use ndarray::{ArrayD, IxDyn};

    fn of(shape: &[usize], numbers: &[f64]) -> Constant {
        Constant {
            numbers: ArrayD::from_shape_vec(IxDyn(shape), numbers.to_vec())
                .expect("as many numbers as the shape has"),
            kind: Some(Kind::Float(Float::F32)),
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
        let flip = Make::Take(vec![(2, vec![2, 1, 0])]);
        let flipped = made(flip, std::slice::from_ref(&table)).1;
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
            kind: Some(Kind::Float(Float::F16)),
            ..a.clone()
        };
        assert!(make(&Make::Both(|a, b| a + b), &[a, half]).is_none());
    }

    fn of_kind(kind: Kind, shape: &[usize], numbers: &[f64]) -> Constant {
        Constant {
            kind: Some(kind),
            ..of(shape, numbers)
        }
    }

    #[test]
    fn types_meet_as_they_do_when_the_network_runs() {
        let mask = of_kind(Kind::Bool, &[2], &[1.0, 0.0]);
        let whole = of_kind(Kind::I64, &[2], &[16_777_217.0, 2.0]);
        let add = Make::Both(|a, b| a + b);
        let sum = make(&add, &[of(&[2], &[0.5, 0.5]), mask.clone()]).expect("it fits");
        assert_eq!(
            (sum.kind, sum.numbers[[0]]),
            (Some(Kind::Float(Float::F32)), 1.5)
        );
        // Whole numbers are rounded before they are added.
        let sum = make(&add, &[of(&[], &[1.0]), whole.clone()]).expect("it fits");
        assert_eq!(sum.numbers[[0]], 16_777_216.0);
        // A number of the program is no finer than what it meets.
        let third = Constant::number(1.0 / 3.0);
        let times = Make::Both(|a, b| a * b);
        let product = make(&times, &[of(&[1], &[3.0]), third.clone()]).expect("it fits");
        assert_eq!(product.numbers[[0]], f64::from(3.0 * (1.0f32 / 3.0)));
        let half = of_kind(Kind::Float(Float::F16), &[1], &[1.0]);
        assert!(make(&Make::Holds(|a, b| a > b), &[half, third.clone()]).is_none());
        // No whole number, and none of a type of them.
        assert!(make(&times, &[whole.clone(), third]).is_none());
        assert!(make(&add, &[whole.clone(), of_kind(Kind::I32, &[1], &[0.0])]).is_none());
        assert!(make(&Make::Both(|a, b| a / b), &[whole.clone(), whole]).is_some());
        assert!(make(&add, &[mask.clone(), mask]).is_none());
    }

    #[test]
    fn numbers_are_chosen_found_and_put() {
        let holds = made(
            Make::Holds(|a, b| a > b),
            &[of(&[2], &[1.0, 3.0]), of(&[], &[2.0])],
        );
        assert_eq!(holds.1, [0.0, 1.0]);
        let mask = of_kind(Kind::Bool, &[2], &holds.1);
        let choose = [mask.clone(), of(&[2], &[5.0, 6.0]), Constant::number(0.0)];
        assert_eq!(made(Make::Choose, &choose).1, [0.0, 6.0]);
        let (one, index) = (of(&[2], &[5.0, 6.0]), of_kind(Kind::I64, &[1], &[-1.0]));
        let found = made(Make::Gather(0), &[one.clone(), index.clone()]);
        assert_eq!(found, (vec![1], vec![6.0]));
        let put = made(Make::Put(0), &[one.clone(), index, of(&[], &[9.0])]);
        assert_eq!(put.1, [5.0, 9.0]);
        assert!(make(&Make::Gather(0), &[one.clone(), mask]).is_none());
        for how in [
            Make::Gather(0),
            Make::GatherRows,
            Make::Put(0),
            Make::PutRows,
            Make::Choose,
        ] {
            assert!(make(&how, std::slice::from_ref(&one)).is_none() && make(&how, &[]).is_none());
        }
        assert!(make(&Make::Gather(0), &[one.clone(), of(&[1], &[0.0])]).is_none());
        let clamp = Make::Clamp([Some(5.5), None]);
        assert_eq!(made(clamp, std::slice::from_ref(&one)).1, [5.5, 6.0]);
        let wrong_way = Make::Clamp([Some(7.0), Some(1.0)]);
        assert_eq!(made(wrong_way, std::slice::from_ref(&one)).1, [1.0, 1.0]);
        let all = Make::All(|a, b| a + b);
        assert_eq!(made(all, &[one.clone(), one.clone(), one]).1, [15.0, 18.0]);
    }

    #[test]
    fn a_kernel_that_slides_may_have_a_bias() {
        let slide = Slide {
            stride: vec![1],
            dilation: vec![1],
            pads: vec![[0, 0]],
            groups: 1,
        };
        let (maps, kernel) = (
            of(&[1, 1, 3], &[1.0, 2.0, 4.0]),
            of(&[1, 1, 2], &[1.0, 10.0]),
        );
        let slid = made(Make::Slide(slide.clone()), &[maps.clone(), kernel.clone()]);
        assert_eq!(slid, (vec![1, 1, 2], vec![21.0, 42.0]));
        let bias = of(&[1], &[0.5]);
        let slid = made(
            Make::Slide(slide.clone()),
            &[maps.clone(), kernel.clone(), bias],
        );
        assert_eq!(slid.1, [21.5, 42.5]);
        let long = of(&[2], &[0.5; 2]);
        assert!(make(&Make::Slide(slide.clone()), &[maps, kernel, long]).is_none());
        assert!(make(&Make::Slide(slide), &[of(&[1], &[1.0])]).is_none());
    }

    #[test]
    fn what_was_made_in_vain_counts_as_well() {
        let one = of(&[1], &[1.0]);
        let (wide, mut budget) = (Make::Expand(vec![1 << 22]), Budget(1 << 21));
        assert!(super::make(&wide, std::slice::from_ref(&one), &mut budget).is_none());
        assert!(!budget.allows(1));
    }

    #[test]
    fn a_cast_rounds_to_the_type_it_names() {
        let cast =
            make(&Make::Cast(Kind::Float(Float::F16)), &[of(&[1], &[0.1])]).expect("a cast fits");
        assert_eq!(cast.kind, Some(Kind::Float(Float::F16)));
        assert_eq!(cast.numbers[[0]], Float::F16.round(f64::from(0.1f32)));
        let mut budget = Budget::default();
        assert!(Constant::filled(|_| 1.0, &[1 << 30], Kind::I64, &mut budget).is_none());
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
