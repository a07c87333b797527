//! The convolution against what PyTorch computed; see `fixtures/generate_torch.py`.

use std::collections::HashMap;

use ndarray::{Array1, Array4, ArrayView4};
use repfuse::conv2d::{Conv2dGeometry, Element, Padding, PaddingMode, conv2d};
use safetensors::{Dtype, SafeTensors};

static FIXTURE: &[u8] = include_bytes!("../../fixtures/torch_conv2d.safetensors");

/// One case: its name says everything about it.
struct Case<'a> {
    kind: &'a str,
    name: &'a str,
    fields: HashMap<&'a str, &'a str>,
}

fn cases<'a>(file: &'a SafeTensors<'_>) -> Vec<Case<'a>> {
    file.names()
        .into_iter()
        .filter_map(|name| {
            let (kind, fields) = name.split_once(" y ")?;
            let fields = fields
                .split(' ')
                .filter_map(|field| field.split_once('='))
                .collect();
            Some(Case { kind, name, fields })
        })
        .collect()
}

fn numbers(text: &str) -> Vec<usize> {
    text.split(',')
        .map(|number| number.parse().unwrap())
        .collect()
}

fn pair(text: &str) -> [usize; 2] {
    numbers(text).try_into().unwrap()
}

fn geometry(case: &Case<'_>) -> Conv2dGeometry {
    let modes = [
        PaddingMode::Zeros,
        PaddingMode::Reflect,
        PaddingMode::Replicate,
        PaddingMode::Circular,
    ];
    Conv2dGeometry {
        stride: pair(case.fields["stride"]),
        padding: match case.fields["padding"] {
            "same" => Padding::Same,
            "valid" => Padding::Valid,
            amounts => Padding::Pair(pair(amounts)),
        },
        dilation: pair(case.fields["dilation"]),
        groups: case.fields["groups"].parse().unwrap(),
        padding_mode: modes
            .into_iter()
            .find(|mode| mode.name() == case.fields["mode"])
            .unwrap(),
    }
}

/// The shape and the values of a tensor, widened to f64.
fn tensor(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f64>) {
    let tensor = file.tensor(name).unwrap();
    let values = match tensor.dtype() {
        Dtype::F32 => tensor
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()).into())
            .collect(),
        Dtype::F64 => tensor
            .data()
            .chunks(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        other => panic!("{name}: unexpected {other:?}"),
    };
    (tensor.shape().to_vec(), values)
}

fn number<F: Element>(value: f64) -> F {
    num_traits::NumCast::from(value).unwrap()
}

fn array<F: Element>(file: &SafeTensors<'_>, name: &str) -> Array4<F> {
    let (shape, values) = tensor(file, name);
    let shape: [usize; 4] = shape.try_into().unwrap();
    let values = values.into_iter().map(number).collect();
    Array4::from_shape_vec(shape, values).unwrap()
}

fn run<F: Element>(file: &SafeTensors<'_>, case: &Case<'_>) -> Array4<F> {
    let input =
        |what: &str, shape: &str| array::<F>(file, &format!("{} {what} {shape}", case.kind));
    let x = input("x", case.fields["x"]);
    let weight = input("weight", case.fields["weight"]);
    let bias = (case.fields["bias"] == "1").then(|| {
        let (_, values) = tensor(file, &format!("{} bias {}", case.kind, weight.dim().0));
        Array1::from_iter(values.into_iter().map(number))
    });
    conv2d(
        x.view(),
        weight.view(),
        bias.as_ref().map(|bias| bias.view()),
        &geometry(case),
    )
    .unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

/// The largest difference, relative to the largest value.
fn distance(found: ArrayView4<'_, f64>, expected: ArrayView4<'_, f64>) -> f64 {
    assert_eq!(found.dim(), expected.dim());
    let largest = expected.fold(0.0_f64, |largest, value| largest.max(value.abs()));
    (&found - &expected).fold(0.0_f64, |largest, value| largest.max(value.abs())) / largest
}

#[test]
fn exact_sums_are_equal_in_every_bit() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let mut count = 0;
    for case in cases(&file).iter().filter(|case| case.kind == "exact") {
        assert_eq!(
            run::<f64>(&file, case),
            array::<f64>(&file, case.name),
            "{}",
            case.name
        );
        assert_eq!(
            run::<f32>(&file, case),
            array::<f32>(&file, case.name),
            "{}",
            case.name
        );
        count += 1;
    }
    assert_eq!(count, 132);
}

#[test]
fn rounded_sums_are_equal_to_rounding() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let mut count = 0;
    for case in cases(&file).iter().filter(|case| case.kind == "real") {
        let expected = array::<f64>(&file, case.name);
        let found = run::<f64>(&file, case);
        assert!(
            distance(found.view(), expected.view()) <= 1e-14,
            "{}",
            case.name
        );
        let found = run::<f32>(&file, case).mapv(|value| value.into());
        assert!(
            distance(found.view(), expected.view()) <= 1e-6,
            "{}",
            case.name
        );
        count += 1;
    }
    assert_eq!(count, 8);
}

/// The fixture holds every padding mode with every stride, dilation and kind of grouping, so that a case dropped from
/// the generator does not go unnoticed.
#[test]
fn the_fixture_covers_every_combination() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let cases = cases(&file);
    let has = |wanted: &[(&str, &str)]| {
        cases
            .iter()
            .any(|case| wanted.iter().all(|(key, value)| case.fields[key] == *value))
    };
    for mode in ["zeros", "reflect", "replicate", "circular"] {
        for groups in ["1", "2", "4"] {
            for dilation in ["1,1", "2,1"] {
                for stride in ["1,1", "2,1", "2,3"] {
                    let wanted = [
                        ("mode", mode),
                        ("groups", groups),
                        ("dilation", dilation),
                        ("stride", stride),
                    ];
                    assert!(has(&wanted), "{wanted:?}");
                }
            }
        }
        for weight in ["3,4,2,2", "3,4,4,3", "4,1,2,2", "4,1,4,3"] {
            assert!(
                has(&[("mode", mode), ("padding", "same"), ("weight", weight)]),
                "same {mode} {weight}"
            );
        }
    }
}
