//! Times convolutions on request, so that another program can time the same ones in turn with it.
//!
//! Each line of standard input is a number of repeats and a list of layers separated by `;`, each
//! `dtype channels size out kernel stride groups` (square maps and kernels, half a kernel of padding, batch 1). The layers,
//! with a weight of their own each, run one after the other; the least of their total times, in seconds, is printed.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program to be read by another one, which stops at its first surprise"
)]

use std::collections::HashMap;
use std::hint::black_box;
use std::io::BufRead;
use std::time::Instant;

use ndarray::Array4;
use repfuse::conv2d::{Conv2dGeometry, Element, conv2d};

fn number<F: Element>(value: f64) -> F {
    num_traits::NumCast::from(value).unwrap()
}

struct Layer<F> {
    x: Array4<F>,
    weight: Array4<F>,
    geometry: Conv2dGeometry,
}

impl<F: Element> Layer<F> {
    fn new(fields: &[usize]) -> Self {
        let &[channels, size, out, kernel, stride, groups] = fields else {
            panic!("six numbers per layer, found {fields:?}")
        };
        let fill = |shape: (usize, usize, usize, usize)| {
            let values = (0..shape.0 * shape.1 * shape.2 * shape.3)
                .map(|i| number::<F>((i * 7919 % 1013) as f64 / 1013.0 - 0.5));
            Array4::from_shape_vec(shape, values.collect()).unwrap()
        };
        Self {
            x: fill((1, channels, size, size)),
            weight: fill((out, channels / groups, kernel, kernel)),
            geometry: Conv2dGeometry {
                stride: [stride, stride],
                padding: (kernel / 2).into(),
                groups,
                ..Conv2dGeometry::default()
            },
        }
    }

    fn run(&self) {
        black_box(conv2d(self.x.view(), self.weight.view(), None, &self.geometry).unwrap());
    }
}

fn prepare(line: &str) -> Vec<Box<dyn Fn()>> {
    line.split(';')
        .map(|layer| -> Box<dyn Fn()> {
            let (dtype, numbers) = layer
                .trim()
                .split_once(' ')
                .expect("a dtype and six numbers");
            let fields: Vec<usize> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
            match dtype {
                "f32" => {
                    let layer = Layer::<f32>::new(&fields);
                    Box::new(move || layer.run())
                }
                "f64" => {
                    let layer = Layer::<f64>::new(&fields);
                    Box::new(move || layer.run())
                }
                other => panic!("`{other}` is neither f32 nor f64"),
            }
        })
        .collect()
}

fn main() {
    let mut known = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (repeats, request) = line.split_once(' ').expect("a number and layers");
        let layers = known
            .entry(request.to_owned())
            .or_insert_with(|| prepare(request));
        let best = (0..repeats.parse().unwrap())
            .map(|_| {
                let start = Instant::now();
                for layer in layers.iter() {
                    layer();
                }
                start.elapsed()
            })
            .min()
            .expect("at least one repeat");
        println!("{:e}", best.as_secs_f64());
    }
}
