//! Laws of the convolution on random geometry, and the errors it gives.

use ndarray::{Array1, Array4, Axis, concatenate};
use proptest::prelude::*;
use repfuse::conv2d::{Conv2dGeometry, ConvError, Padding, PaddingMode, conv2d};

/// The definition, one sum at a time. Padding is looked up in the map by the rule of the mode, so that no padded map is
/// built.
fn reference(
    x: &Array4<f64>,
    weight: &Array4<f64>,
    bias: &Array1<f64>,
    geometry: &Conv2dGeometry,
) -> Array4<f64> {
    let (batch, _, height, width) = x.dim();
    let (out, group_in, kernel_height, kernel_width) = weight.dim();
    let maps = [height, width].map(usize::cast_signed);
    let kernels = [kernel_height, kernel_width].map(usize::cast_signed);
    let (strides, dilations) = (
        geometry.stride.map(usize::cast_signed),
        geometry.dilation.map(usize::cast_signed),
    );
    let reach = [0, 1].map(|axis| dilations[axis] * (kernels[axis] - 1));
    let (before, total) = match geometry.padding {
        Padding::Valid => ([0, 0], [0, 0]),
        Padding::Same => (reach.map(|reach| reach / 2), reach),
        Padding::Pair(amounts) => (
            amounts.map(usize::cast_signed),
            amounts.map(|amount| 2 * amount.cast_signed()),
        ),
    };
    let size = [0, 1].map(|axis| {
        ((maps[axis] + total[axis] - reach[axis] - 1) / strides[axis] + 1).cast_unsigned()
    });
    let find = |axis: usize, at: isize| -> Option<usize> {
        let length = maps[axis];
        let at = match geometry.padding_mode {
            PaddingMode::Zeros => at,
            PaddingMode::Reflect if at < 0 => -at,
            PaddingMode::Reflect if at >= length => 2 * (length - 1) - at,
            PaddingMode::Reflect => at,
            PaddingMode::Replicate => at.clamp(0, length - 1),
            PaddingMode::Circular => at.rem_euclid(length),
        };
        (0..length).contains(&at).then_some(at.cast_unsigned())
    };
    Array4::from_shape_fn((batch, out, size[0], size[1]), |(n, o, i, j)| {
        let first = o / (out / geometry.groups) * group_in;
        let mut sum = bias[o];
        for ((c, u, v), &w) in weight.index_axis(Axis(0), o).indexed_iter() {
            let at = |axis: usize, i: usize, u: usize| {
                find(
                    axis,
                    i.cast_signed() * strides[axis] + u.cast_signed() * dilations[axis]
                        - before[axis],
                )
            };
            if let (Some(row), Some(column)) = (at(0, i, u), at(1, j, v)) {
                sum += w * x[[n, first + c, row, column]];
            }
        }
        sum
    })
}

#[derive(Debug)]
struct Problem {
    x: Array4<f64>,
    weight: Array4<f64>,
    bias: Array1<f64>,
    geometry: Conv2dGeometry,
}

impl Problem {
    fn solve(&self) -> Array4<f64> {
        self.solve_for(&self.x, &self.weight)
    }

    fn solve_for(&self, x: &Array4<f64>, weight: &Array4<f64>) -> Array4<f64> {
        conv2d(
            x.view(),
            weight.view(),
            Some(self.bias.view()),
            &self.geometry,
        )
        .unwrap()
    }
}

/// Integers, so that every sum is exact and results can be compared for equality.
fn values(count: usize, seed: u64) -> Vec<f64> {
    let mut random = repfuse::verify::random::SplitMix64::new(seed);
    (0..count)
        .map(|_| (random.next_unit() * 17.0).floor() - 8.0)
        .collect()
}

fn array4(shape: [usize; 4], seed: u64) -> Array4<f64> {
    Array4::from_shape_vec(shape, values(shape.iter().product(), seed)).unwrap()
}

prop_compose! {
    fn problem()(
        batch in 0..4_usize,
        groups in 1..5_usize,
        group_in in 1..5_usize,
        group_out in 1..9_usize,
        map in [1..14_usize, 1..20_usize],
        kernel in [1..6_usize, 1..6_usize],
        stride in [1..5_usize, 1..5_usize],
        dilation in [1..4_usize, 1..4_usize],
        mode in 0..4_usize,
        kind in 0..4,
        amounts in [0..9_usize, 0..9_usize],
        seed: u64,
    ) -> Problem {
        let padding_mode =
            [PaddingMode::Zeros, PaddingMode::Reflect, PaddingMode::Replicate, PaddingMode::Circular][mode];
        let limit = |axis: usize| match padding_mode {
            PaddingMode::Reflect => map[axis] - 1,
            PaddingMode::Circular => map[axis],
            _ => usize::MAX,
        };
        let amounts = [0, 1].map(|axis| amounts[axis].min(limit(axis)));
        let same = kind == 0;
        let valid = kind == 1;
        // The widest kernel that the padded map, or the widest border of the mode, has room for.
        let fit = |axis: usize| {
            let room = if same { limit(axis).saturating_mul(2).min(100) } else if valid { map[axis] - 1 } else { map[axis] + 2 * amounts[axis] - 1 };
            kernel[axis].min(room / dilation[axis] + 1)
        };
        let geometry = Conv2dGeometry {
            stride: if same { [1, 1] } else { stride },
            padding: if same { Padding::Same } else if valid { Padding::Valid } else { Padding::Pair(amounts) },
            dilation,
            groups,
            padding_mode,
        };
        Problem {
            x: array4([batch, groups * group_in, map[0], map[1]], seed),
            weight: array4([groups * group_out, group_in, fit(0), fit(1)], seed ^ 1),
            bias: values(groups * group_out, seed ^ 2).into(),
            geometry,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_definition(problem in problem()) {
        prop_assert_eq!(problem.solve(), reference(&problem.x, &problem.weight, &problem.bias, &problem.geometry));
    }

    #[test]
    fn is_linear_in_the_map_and_in_the_weight(problem in problem(), seed: u64) {
        let Problem { x, weight, .. } = &problem;
        let constant = problem.solve_for(&Array4::zeros(x.dim()), weight);
        let other = array4(x.dim().into(), seed);
        prop_assert_eq!(
            problem.solve_for(&(x * 3.0 - &other), weight) - &constant,
            (problem.solve() - &constant) * 3.0 - (problem.solve_for(&other, weight) - &constant)
        );
        let other = array4(weight.dim().into(), seed);
        prop_assert_eq!(
            problem.solve_for(x, &(weight * 3.0 - &other)) - &constant,
            (problem.solve() - &constant) * 3.0 - (problem.solve_for(x, &other) - &constant)
        );
    }

    /// A grouped weight is a dense one with zeros outside the blocks on its diagonal.
    #[test]
    fn groups_are_a_block_diagonal_weight(problem in problem()) {
        let (out, group_in, height, width) = problem.weight.dim();
        let groups = problem.geometry.groups;
        let mut dense = Array4::zeros((out, groups * group_in, height, width));
        for ((o, c, u, v), &w) in problem.weight.indexed_iter() {
            dense[[o, o / (out / groups) * group_in + c, u, v]] = w;
        }
        let geometry = Conv2dGeometry { groups: 1, ..problem.geometry };
        let expected = conv2d(problem.x.view(), dense.view(), Some(problem.bias.view()), &geometry).unwrap();
        prop_assert_eq!(problem.solve(), expected);
    }

    /// Views that are not in standard layout are read by their indices, not by their memory.
    #[test]
    fn layout_in_memory_does_not_matter(problem in problem()) {
        let transposed = |array: &Array4<f64>| {
            let copy = array.view().permuted_axes([2, 3, 1, 0]).as_standard_layout().into_owned();
            copy.permuted_axes([3, 2, 0, 1])
        };
        prop_assert_eq!(problem.solve(), problem.solve_for(&transposed(&problem.x), &transposed(&problem.weight)));
    }

    /// An image gives the same bits alone and in a batch, where the work is split between threads in another way.
    #[test]
    fn a_batch_is_its_images(problem in problem(), scale in 0.1..1.0) {
        prop_assume!(problem.x.dim().0 > 0);
        let x = problem.x.mapv(|value| value * scale);
        let alone: Vec<_> = x
            .axis_chunks_iter(Axis(0), 1)
            .map(|image| conv2d(image.view(), problem.weight.view(), None, &problem.geometry).unwrap())
            .collect();
        let views: Vec<_> = alone.iter().map(|image| image.view()).collect();
        let together = conv2d(x.view(), problem.weight.view(), None, &problem.geometry).unwrap();
        prop_assert_eq!(together, concatenate(Axis(0), &views).unwrap());
    }
}

/// Deep enough for several blocks of rows, and for every height of the vector kernel.
#[test]
fn a_sum_of_many_products_agrees_with_the_definition() {
    for out in [1, 2, 3, 5, 6, 7, 11, 25] {
        let problem = Problem {
            x: array4([1, 150, 5, 6], 1),
            weight: array4([out, 150, 3, 3], 2),
            bias: values(out, 3).into(),
            geometry: Conv2dGeometry {
                padding: 1.into(),
                ..Conv2dGeometry::default()
            },
        };
        assert_eq!(
            problem.solve(),
            reference(
                &problem.x,
                &problem.weight,
                &problem.bias,
                &problem.geometry
            )
        );
    }
}

/// Wide enough for several tiles of columns.
#[test]
fn a_large_map_agrees_with_the_definition() {
    let problem = Problem {
        x: array4([1, 16, 151, 150], 1),
        weight: array4([2, 16, 3, 3], 2),
        bias: values(2, 3).into(),
        geometry: Conv2dGeometry {
            padding: 1.into(),
            ..Conv2dGeometry::default()
        },
    };
    assert_eq!(
        problem.solve(),
        reference(
            &problem.x,
            &problem.weight,
            &problem.bias,
            &problem.geometry
        )
    );
}

/// The error of a 3 × 3 convolution of four channels into six on a map of 5 × 6, after some changes.
fn error(
    x: [usize; 4],
    weight: [usize; 4],
    bias: usize,
    change: impl FnOnce(&mut Conv2dGeometry),
) -> String {
    let mut geometry = Conv2dGeometry::default();
    change(&mut geometry);
    let (x, weight) = (Array4::<f32>::zeros(x), Array4::zeros(weight));
    let bias = Array1::zeros(bias);
    conv2d(x.view(), weight.view(), Some(bias.view()), &geometry)
        .unwrap_err()
        .to_string()
}

#[test]
fn errors_say_what_was_found_and_what_was_expected() {
    let (x, w) = ([1, 4, 5, 6], [6, 4, 3, 3]);
    let check = |found: String, expected: &str| assert_eq!(found, expected);
    check(
        error(x, w, 6, |g| g.stride = [1, 0]),
        "`stride` is 0; it must be at least 1",
    );
    check(
        error(x, w, 6, |g| g.dilation = [0, 1]),
        "`dilation` is 0; it must be at least 1",
    );
    check(
        error(x, w, 6, |g| g.groups = 0),
        "`groups` is 0; it must be at least 1",
    );
    check(
        error([1, 4, 0, 6], w, 6, |_| ()),
        "the input has shape [1, 4, 0, 6]; no axis but the batch may be empty",
    );
    check(
        error(x, [6, 4, 3, 0], 6, |_| ()),
        "the weight has shape [6, 4, 3, 0]; no axis but the batch may be empty",
    );
    check(
        error(x, w, 6, |g| g.groups = 3),
        "4 input channels cannot be split into 3 groups; `groups` must divide them",
    );
    check(
        error(x, [6, 1, 3, 3], 6, |g| g.groups = 4),
        "6 output channels cannot be split into 4 groups; `groups` must divide them",
    );
    check(
        error(x, w, 6, |g| g.groups = 2),
        "the input has 4 channels; a weight of shape [6, 4, 3, 3] in 2 groups reads 8",
    );
    check(
        error(x, w, 5, |_| ()),
        "the bias has 5 values; 6 output channels need one each",
    );
    check(
        error(x, w, 6, |g| (g.padding, g.stride) = (Padding::Same, [2, 1])),
        "padding `same` is defined for stride 1 only, and the stride is [2, 1]; give the padding as numbers",
    );
    check(
        error(x, w, 6, |g| {
            (g.padding, g.padding_mode) = (5.into(), PaddingMode::Reflect)
        }),
        "padding mode `reflect` cannot add 5 along the height of a map of 5; 4 is the most",
    );
    check(
        error(x, w, 6, |g| {
            (g.padding, g.padding_mode) = (Padding::Pair([5, 7]), PaddingMode::Circular)
        }),
        "padding mode `circular` cannot add 7 along the width of a map of 6; 6 is the most",
    );
    check(
        error(x, w, 6, |g| g.dilation = [1, 3]),
        "a kernel of 3 (dilation 3) spans 7 along the width; the padded map has 6",
    );
    check(
        error(x, w, 6, |g| g.dilation = [usize::MAX, 1]),
        "the dilated kernel would be larger than memory can be addressed",
    );
    check(
        error(x, w, 6, |g| g.padding = usize::MAX.into()),
        "the padded input would be larger than memory can be addressed",
    );
    check(
        error(x, w, 6, |g| g.padding = (usize::MAX / 8).into()),
        "the output would be larger than memory can be addressed",
    );
}

#[test]
fn errors_can_be_told_apart() {
    let (x, weight) = (
        Array4::<f64>::zeros((1, 3, 2, 2)),
        Array4::zeros((1, 2, 1, 1)),
    );
    let found = conv2d(x.view(), weight.view(), None, &Conv2dGeometry::default());
    assert_eq!(
        found,
        Err(ConvError::Channels {
            found: 3,
            expected: 2,
            weight: [1, 2, 1, 1],
            groups: 1
        })
    );
}
