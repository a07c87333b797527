//! A kernel that slides over constants, as over another kernel, and maps that are made larger or smaller.

use ndarray::{Array2, ArrayD, Axis, Dimension as _, IxDyn, Slice};

use super::arrays::{padded, within};
use super::contract::MOST_STEPS;
use super::indexed::taken;
use super::model::Conv;

/// How a kernel slides.
#[derive(Clone, Debug)]
pub(super) struct Slide {
    pub stride: Vec<usize>,
    pub dilation: Vec<usize>,
    /// The zeros before and behind each spatial axis.
    pub pads: Vec<[usize; 2]>,
    pub groups: usize,
}

impl Slide {
    /// How the kernel of a conv slides, which is not transposed.
    pub fn of(conv: &Conv) -> Slide {
        let pads = conv.pads.before.iter().zip(&conv.pads.after);
        Slide {
            stride: conv.stride.clone(),
            dilation: conv.dilation.clone(),
            pads: pads.map(|(before, after)| [*before, *after]).collect(),
            groups: conv.groups,
        }
    }
}

/// The shape of what a kernel makes, and how many multiply-adds that takes; none where it does not fit.
pub(super) fn size(slide: &Slide, of: &[usize], kernel: &[usize]) -> Option<(Vec<usize>, usize)> {
    let axes = of.len().checked_sub(2).filter(|axes| *axes > 0)?;
    let lens = [&slide.stride, &slide.dilation].map(Vec::len);
    let &[outputs, inputs, ref taps @ ..] = kernel else {
        return None;
    };
    let fits = taps.len() == axes && lens == [axes; 2] && slide.pads.len() == axes;
    let groups = slide.groups;
    let grouped = groups > 0 && outputs.is_multiple_of(groups);
    if !fits || !grouped || inputs.checked_mul(groups)? != of[1] || kernel.contains(&0) {
        return None;
    }
    let mut shape = vec![of[0], outputs];
    for axis in 0..axes {
        let [before, behind] = slide.pads[axis];
        let len = of[axis + 2].checked_add(before)?.checked_add(behind)?;
        let extent = (taps[axis] - 1).checked_mul(slide.dilation[axis])?;
        let free = len.checked_sub(extent.checked_add(1)?)?;
        shape.push(free.checked_div(slide.stride[axis])? + 1);
    }
    if !within(&shape) || slide.dilation.contains(&0) {
        return None;
    }
    let each = inputs.checked_mul(taps.iter().product())?;
    let steps = shape.iter().product::<usize>().checked_mul(each)?;
    (steps <= MOST_STEPS).then_some((shape, steps))
}

/// What a kernel makes of maps.
pub(super) fn convolved(
    slide: &Slide,
    maps: &ArrayD<f64>,
    kernel: &ArrayD<f64>,
) -> Option<ArrayD<f64>> {
    let (shape, _) = size(slide, maps.shape(), kernel.shape())?;
    let around: Vec<[usize; 2]> = [[0; 2]; 2].into_iter().chain(slide.pads.clone()).collect();
    let maps = padded(maps, &around)?;
    let (batch, spatial) = (shape[0], &shape[2..]);
    let places = batch * spatial.iter().product::<usize>();
    let [outputs, inputs] = [kernel.shape()[0] / slide.groups, kernel.shape()[1]];
    let mut out = ArrayD::zeros(IxDyn(&shape));
    let taps = IxDyn(&kernel.shape()[2..]);
    for group in 0..slide.groups {
        let mut sum = Array2::<f64>::zeros((outputs, places));
        for tap in ndarray::indices(taps.clone()) {
            let mut part = maps.slice_each_axis(|axis| match axis.axis.index() {
                0 => Slice::from(..),
                1 => Slice::from(group * inputs..(group + 1) * inputs),
                i => {
                    let (i, begin) = (i - 2, tap[i - 2] * slide.dilation[i - 2]);
                    let stride = slide.stride[i];
                    let end = begin + (spatial[i] - 1) * stride + 1;
                    Slice::from(begin..end).step_by(stride as isize)
                }
            });
            // The channels first, so that each is a row.
            part.swap_axes(0, 1);
            let part = part.as_standard_layout().into_owned();
            let part = part.into_shape_with_order((inputs, places)).ok()?;
            let mut weight = kernel.view();
            for at in tap.as_array_view().iter() {
                weight = weight.index_axis_move(Axis(2), *at);
            }
            let weight = weight
                .slice_axis_move(Axis(0), Slice::from(group * outputs..(group + 1) * outputs));
            let weight = weight.as_standard_layout().into_owned();
            let weight = weight.into_shape_with_order((outputs, inputs)).ok()?;
            ndarray::linalg::general_mat_mul(1.0, &weight, &part, 1.0, &mut sum);
        }
        let grouped: Vec<usize> = [&[outputs, batch], spatial].concat();
        let mut sum = sum.into_shape_with_order(IxDyn(&grouped)).ok()?;
        sum.swap_axes(0, 1);
        let own = Slice::from(group * outputs..(group + 1) * outputs);
        out.slice_axis_mut(Axis(1), own).assign(&sum);
    }
    Some(out)
}

/// Two elements of an axis and their weights.
pub(super) type Blend = [(usize, f64); 2];

/// An axis whose elements are put together of two each of those that were there.
pub(super) fn blended(numbers: &ArrayD<f64>, axis: usize, blends: &[Blend]) -> Option<ArrayD<f64>> {
    let of = |which: usize| {
        let places: Vec<usize> = blends.iter().map(|blend| blend[which].0).collect();
        let mut part = taken(numbers, axis, &places)?;
        for (mut part, blend) in part.axis_iter_mut(Axis(axis)).zip(blends) {
            part *= blend[which].1;
        }
        Some(part)
    };
    Some(of(0)? + of(1)?)
}

/// How an axis of `len` elements becomes one of `wanted` by lines between neighbours. Either the first and last stay where they are, or
/// the borders of the first and last pixel do.
pub(super) fn linear(len: usize, wanted: usize, corners_stay: bool) -> Option<Vec<Blend>> {
    let last = len.checked_sub(1)?;
    if wanted == 0 || !within(&[wanted]) {
        return None;
    }
    let at = |i: usize| match corners_stay {
        true if wanted == 1 => 0.0,
        true => i as f64 * (last as f64 / (wanted - 1) as f64),
        false => ((i as f64 + 0.5) * (len as f64 / wanted as f64) - 0.5).max(0.0),
    };
    let blend = |i: usize| {
        let at = at(i).min(last as f64);
        let before = at.floor();
        let place = before as usize;
        let share = at - before;
        [(place, 1.0 - share), ((place + 1).min(last), share)]
    };
    Some((0..wanted).map(blend).collect())
}

/// For each axis that becomes longer the element that stands in each place, where all are there as many times; none where not.
pub(super) fn repeats(of: &[usize], wanted: &[usize]) -> Option<Vec<(usize, Vec<usize>)>> {
    let mut axes = Vec::new();
    for (axis, (len, wanted)) in of.iter().zip(wanted).enumerate() {
        if *len == 0 || !wanted.is_multiple_of(*len) || !within(&[*wanted]) {
            return None;
        }
        let times = wanted / len;
        if times != 1 {
            axes.push((axis, (0..*wanted).map(|i| i / times).collect()));
        }
    }
    Some(axes)
}

#[cfg(test)]
mod tests {
    use super::{Slide, blended, convolved, linear, repeats, size};
    use ndarray::{ArrayD, IxDyn};

    fn counted(shape: &[usize]) -> ArrayD<f64> {
        let mut n = 0.0;
        ArrayD::from_shape_simple_fn(IxDyn(shape), || {
            n += 1.0;
            (n * 0.7) % 3.0 - 1.0
        })
    }

    /// One number after the other, as a conv is defined.
    fn plain(slide: &Slide, maps: &ArrayD<f64>, kernel: &ArrayD<f64>) -> ArrayD<f64> {
        let (shape, _) = size(slide, maps.shape(), kernel.shape()).expect("it fits");
        let (inputs, outputs) = (kernel.shape()[1], shape[1] / slide.groups);
        ArrayD::from_shape_fn(IxDyn(&shape), |out| {
            let mut sum = 0.0;
            for (at, weight) in kernel.indexed_iter().filter(|(at, _)| at[0] == out[1]) {
                let channel = out[1] / outputs * inputs + at[1];
                let place = |axis: usize| {
                    (out[axis + 2] * slide.stride[axis] + at[axis + 2] * slide.dilation[axis])
                        .checked_sub(slide.pads[axis][0])
                };
                let places: Option<Vec<usize>> = (0..shape.len() - 2).map(place).collect();
                let Some(places) = places else { continue };
                let index = [&[out[0], channel], &places[..]].concat();
                sum += weight * maps.get(IxDyn(&index)).copied().unwrap_or(0.0);
            }
            sum
        })
    }

    #[test]
    fn kernels_slide_as_convs_are_defined() {
        for (maps, kernel, stride, dilation, pads, groups) in [
            (
                &[2, 4, 5, 4][..],
                &[6, 4, 2, 3][..],
                vec![1, 1],
                vec![1, 1],
                vec![[1, 1], [0, 2]],
                1,
            ),
            (
                &[3, 4, 7, 6],
                &[4, 2, 3, 2],
                vec![2, 1],
                vec![2, 3],
                vec![[0, 0], [2, 1]],
                2,
            ),
            (&[1, 3, 9], &[3, 1, 3], vec![2], vec![1], vec![[1, 0]], 3),
            (&[0, 3, 9], &[3, 3, 1], vec![1], vec![1], vec![[0, 0]], 1),
        ] {
            let slide = Slide {
                stride,
                dilation,
                pads,
                groups,
            };
            let (maps, kernel) = (counted(maps), counted(kernel));
            let made = convolved(&slide, &maps, &kernel).expect("it fits");
            let expected = plain(&slide, &maps, &kernel);
            assert_eq!(made.shape(), expected.shape());
            let mut all = made.iter().zip(&expected);
            assert!(all.all(|(a, b)| (a - b).abs() < 1e-12), "{slide:?}");
        }
    }

    /// Along one axis, step by step.
    fn one_by_one() -> Slide {
        Slide {
            stride: vec![1],
            dilation: vec![1],
            pads: vec![[0, 0]],
            groups: 1,
        }
    }

    fn none(slide: &Slide, of: &[usize], kernel: &[usize]) {
        assert!(
            size(slide, of, kernel).is_none(),
            "{slide:?} {of:?} {kernel:?}"
        );
    }

    #[test]
    fn what_does_not_fit_or_is_too_much_is_none() {
        let plain = one_by_one();
        assert!(size(&plain, &[1, 2, 3], &[4, 2, 3]).is_some());
        for (of, kernel) in [
            (&[1, 2, 3][..], &[4, 2, 4][..]),
            (&[1, 3, 3], &[4, 2, 3]),
            (&[1, 2, 3], &[4, 2, 0]),
            (&[1, 2, 3], &[4, 0, 3]),
            (&[1, 2, 3, 3], &[4, 2, 3]),
            (&[1, 2], &[4, 2]),
            (&[1 << 11, 1, 1 << 11], &[1 << 11, 1, 1]),
        ] {
            none(&plain, of, kernel);
        }
    }

    #[test]
    fn a_slide_that_goes_nowhere_or_for_ever_is_none() {
        let plain = one_by_one();
        for changed in [
            Slide {
                stride: vec![0],
                ..plain.clone()
            },
            Slide {
                dilation: vec![0],
                ..plain.clone()
            },
            Slide {
                dilation: vec![usize::MAX],
                ..plain.clone()
            },
            Slide {
                pads: vec![[usize::MAX, 1]],
                ..plain.clone()
            },
            Slide {
                groups: 0,
                ..plain.clone()
            },
            Slide {
                groups: 3,
                ..plain.clone()
            },
            Slide {
                pads: Vec::new(),
                ..plain.clone()
            },
        ] {
            none(&changed, &[1, 2, 3], &[4, 2, 3]);
        }
        let wide = Slide {
            pads: vec![[1 << 20, 1 << 20]],
            ..plain
        };
        none(&wide, &[1, 1, 1 << 20], &[1, 1, 1 << 20]);
    }

    #[test]
    fn axes_are_stretched_by_lines() {
        let row = ArrayD::from_shape_vec(IxDyn(&[3]), vec![0.0, 1.0, 4.0]).expect("three");
        let stretch = |wanted, corners_stay| {
            let blends = linear(3, wanted, corners_stay)?;
            Some(
                blended(&row, 0, &blends)?
                    .iter()
                    .copied()
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(stretch(5, true), Some(vec![0.0, 0.5, 1.0, 2.5, 4.0]));
        assert_eq!(
            stretch(6, false),
            Some(vec![0.0, 0.25, 0.75, 1.75, 3.25, 4.0])
        );
        assert_eq!(stretch(1, true), Some(vec![0.0]));
        assert_eq!(stretch(0, true), None);
        assert_eq!(repeats(&[2, 3], &[4, 3]), Some(vec![(0, vec![0, 0, 1, 1])]));
        assert_eq!(repeats(&[2], &[0]), Some(vec![(0, Vec::new())]));
        for (of, wanted) in [(2, 3), (0, 4), (1, usize::MAX)] {
            assert_eq!(repeats(&[of], &[wanted]), None);
        }
        assert!(linear(0, 2, false).is_none() && linear(2, usize::MAX, false).is_none());
    }
}
