//! Runs a graph as plainly as it can be said, in f64: what PyTorch computed must come out.

use std::collections::HashMap;

use repfuse::graph::model::{Arithmetic, Conv, Dim, Node, Norm, Op, Pads, Window};
use repfuse::graph::pt2::Pt2;
use repfuse::tensor::{Checkpoint, Tensor};

/// Numbers in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Map {
    fn filled(shape: Vec<usize>, data: impl Iterator<Item = f64>) -> Map {
        let data: Vec<f64> = data.collect();
        assert_eq!(data.len(), shape.iter().product::<usize>());
        Map { shape, data }
    }

    /// Every index, in order.
    fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
        let mut out = vec![vec![]];
        for n in shape {
            out = out
                .into_iter()
                .flat_map(|index| (0..*n).map(move |i| [index.clone(), vec![i]].concat()))
                .collect();
        }
        out
    }

    fn at(&self, index: &[usize]) -> f64 {
        let flat = index.iter().zip(&self.shape).fold(0, |flat, (i, n)| {
            assert!(i < n, "{index:?} in {:?}", self.shape);
            flat * n + i
        });
        self.data[flat]
    }

    /// The number at an index that may lie in zeros around the map.
    fn padded(&self, index: &[isize]) -> f64 {
        let inside = index
            .iter()
            .zip(&self.shape)
            .all(|(i, n)| (0..*n as isize).contains(i));
        match inside {
            true => self.at(&index.iter().map(|i| *i as usize).collect::<Vec<_>>()),
            false => 0.0,
        }
    }

    fn of(shape: Vec<usize>, f: impl Fn(&[usize]) -> f64) -> Map {
        let data = Map::indices(&shape)
            .iter()
            .map(|index| f(index))
            .collect::<Vec<_>>();
        Map::filled(shape, data.into_iter())
    }
}

/// A tensor of a file.
pub fn stored(file: &Checkpoint, tensor: &Tensor) -> Map {
    let mut reader = repfuse::tensor::Reader::new(file, 1 << 12);
    let data = repfuse::algebra::Values::vector(&mut reader, tensor, 0, tensor.len());
    Map {
        shape: tensor.shape().to_vec(),
        data: data.unwrap(),
    }
}

/// What a program gives for one input.
pub fn run(pt2: &Pt2, input: &Map) -> Vec<Map> {
    let graph = pt2.graph();
    let mut values: HashMap<usize, Map> = HashMap::new();
    for (i, value) in graph.values().iter().enumerate() {
        if value.producer().is_none() {
            values.insert(i, input.clone());
        }
    }
    for node in graph.nodes() {
        let inputs: Vec<&Map> = node.inputs.iter().map(|id| &values[&id.0]).collect();
        let batch = input.shape[0];
        let shape_of = |i: usize| -> Vec<usize> {
            let shape = graph.value(node.outputs[i]).shape.clone().unwrap();
            let known = |dim: &Dim| match dim {
                Dim::Known(n) => *n,
                Dim::Named(_) | Dim::Any => batch,
            };
            shape.iter().map(known).collect()
        };
        let outputs = step(pt2.constants(), node, &inputs, &shape_of);
        for ((id, map), i) in node.outputs.iter().zip(outputs).zip(0..) {
            assert_eq!(map.shape, shape_of(i), "{}: {:?}", node.name, node.op);
            values.insert(id.0, map);
        }
    }
    let outputs = graph
        .values()
        .iter()
        .enumerate()
        .filter(|(_, value)| value.is_output);
    outputs.map(|(i, _)| values[&i].clone()).collect()
}

fn step(
    file: &Checkpoint,
    node: &Node,
    inputs: &[&Map],
    shape_of: &dyn Fn(usize) -> Vec<usize>,
) -> Vec<Map> {
    let x = inputs[0];
    let each = |f: &dyn Fn(f64) -> f64| {
        vec![Map {
            shape: x.shape.clone(),
            data: x.data.iter().map(|x| f(*x)).collect(),
        }]
    };
    let with = |y: &Map, f: &dyn Fn(f64, f64) -> f64| {
        vec![Map {
            shape: x.shape.clone(),
            data: x.data.iter().zip(&y.data).map(|(x, y)| f(*x, *y)).collect(),
        }]
    };
    match &node.op {
        Op::Conv(conv) if conv.transposed.is_some() => vec![transposed(file, conv, x, shape_of(0))],
        Op::Conv(conv) => vec![convolved(file, conv, x, shape_of(0))],
        Op::Linear(linear) => {
            let weight = stored(file, &linear.weight);
            let bias = linear.bias.as_ref().map(|bias| stored(file, bias));
            let (alpha, beta) = (linear.alpha, linear.beta);
            vec![Map::of(shape_of(0), |index| {
                let (o, before) = index.split_last().unwrap();
                let ins = x.shape.last().copied().unwrap();
                let sum: f64 = (0..ins)
                    .map(|i| x.at(&[before, &[i]].concat()) * weight.at(&[*o, i]))
                    .sum();
                alpha * sum + beta * bias.as_ref().map_or(0.0, |bias| bias.data[*o])
            })]
        }
        Op::Norm(norm) => vec![normed(file, norm, x)],
        Op::Sum(factors) => vec![Map {
            shape: x.shape.clone(),
            data: (0..x.data.len())
                .map(|i| {
                    inputs
                        .iter()
                        .zip(factors)
                        .map(|(map, f)| f * map.data[i])
                        .sum()
                })
                .collect(),
        }],
        Op::WithConstant(how, constant) => {
            let c = stored(file, constant);
            let missing = x.shape.len() - c.shape.len();
            let broadcast = Map::of(x.shape.clone(), |index| {
                let index: Vec<usize> = index[missing..]
                    .iter()
                    .zip(&c.shape)
                    .map(|(i, n)| if *n == 1 { 0 } else { *i })
                    .collect();
                c.at(&index)
            });
            with(&broadcast, &|x, c| match how {
                Arithmetic::Add => x + c,
                Arithmetic::Sub => x - c,
                Arithmetic::SubFrom => c - x,
                Arithmetic::Mul => x * c,
                Arithmetic::Div => x / c,
            })
        }
        Op::Neg => each(&|x| -x),
        Op::AvgPool(window) => vec![averaged(window, x, shape_of(0))],
        Op::Pad(pads) => vec![Map::of(shape_of(0), |index| x.padded(&moved(index, pads)))],
        Op::Concat(axis) => vec![Map::of(shape_of(0), |index| {
            let mut at = index[*axis];
            let part = inputs.iter().find(|part| {
                let inside = at < part.shape[*axis];
                if !inside {
                    at -= part.shape[*axis];
                }
                inside
            });
            let mut index = index.to_vec();
            index[*axis] = at;
            part.unwrap().at(&index)
        })],
        Op::Cut { axis, before, .. } => vec![Map::of(shape_of(0), |index| {
            let mut at = index.to_vec();
            at[*axis] += before;
            x.at(&at)
        })],
        Op::Slice { axis, ranges } => (ranges.iter().zip(0..))
            .map(|([begin, _], i)| {
                Map::of(shape_of(i), |index| {
                    let mut index = index.to_vec();
                    index[*axis] += begin;
                    x.at(&index)
                })
            })
            .collect(),
        Op::Reshape => vec![Map::filled(shape_of(0), x.data.iter().copied())],
        Op::Transpose(permutation) => vec![Map::of(shape_of(0), |index| {
            let mut from = vec![0; index.len()];
            permutation
                .iter()
                .zip(index)
                .for_each(|(axis, i)| from[*axis] = *i);
            x.at(&from)
        })],
        Op::Identity => each(&|x| x),
        Op::Border { .. } => panic!("what is around it is no number of the graph"),
        Op::Mean { axes, keeps } => vec![mean(x, axes, *keeps, shape_of(0))],
        // What they make is summed by another node.
        Op::Stack(axis) => vec![Map::of(shape_of(0), |index| {
            let mut within = index.to_vec();
            let at = within.remove(*axis);
            inputs[at].at(&within)
        })],
        // The nearest number of a map that is so many times smaller.
        Op::Resample => {
            let to = shape_of(0);
            vec![Map::of(to.clone(), |index| {
                let at = index.iter().zip(&to).zip(&x.shape);
                x.at(&at.map(|((i, to), from)| i * from / to).collect::<Vec<_>>())
            })]
        }
        Op::Total { .. } => panic!("{} sums", node.name),
        Op::Shape | Op::Opaque(_) => {
            let name = node
                .name
                .trim_end_matches(|c: char| c.is_ascii_digit() || c == '_');
            match name {
                "relu" => each(&|x| x.max(0.0)),
                "gelu" => each(&|x| x * (1.0 + error_function(x / 2f64.sqrt())) / 2.0),
                "silu" => each(&|x| x / (1.0 + (-x).exp())),
                other => panic!("{other} is not run here"),
            }
        }
    }
}

/// The mean over the whole of some axes.
fn mean(x: &Map, axes: &[usize], keeps: bool, shape: Vec<usize>) -> Map {
    let taken: Vec<usize> = axes.iter().map(|axis| x.shape[*axis]).collect();
    let all = Map::indices(&taken);
    Map::of(shape, |index| {
        let mut others = index.iter().enumerate();
        let others = others.by_ref().filter(|(i, _)| !keeps || !axes.contains(i));
        let others: Vec<usize> = others.map(|(_, n)| *n).collect();
        let at = |taken: &Vec<usize>| {
            let mut rest = others.iter();
            let along = |axis: usize| match axes.iter().position(|own| *own == axis) {
                Some(i) => taken[i],
                None => *rest.next().unwrap(),
            };
            x.at(&(0..x.shape.len()).map(along).collect::<Vec<_>>())
        };
        all.iter().map(at).sum::<f64>() / all.len() as f64
    })
}

/// `erf`, by its series, for the few numbers that activations meet.
fn error_function(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// An index of a padded map as one of the map: the spatial axes are the last.
fn moved(index: &[usize], pads: &Pads) -> Vec<isize> {
    let first = index.len() - pads.before.len();
    let moved = index
        .iter()
        .enumerate()
        .map(|(axis, i)| match axis.checked_sub(first) {
            Some(axis) => *i as isize - pads.before[axis] as isize,
            None => *i as isize,
        });
    moved.collect()
}

fn convolved(file: &Checkpoint, conv: &Conv, x: &Map, shape: Vec<usize>) -> Map {
    let weight = stored(file, &conv.weight);
    let bias = conv.bias.as_ref().map(|bias| stored(file, bias));
    let taps = Map::indices(&weight.shape[1..]);
    Map::of(shape, |index| {
        let (n, o, at) = (index[0], index[1], &index[2..]);
        let group = o / (weight.shape[0] / conv.groups);
        let sum: f64 = taps
            .iter()
            .map(|tap| {
                let c = group * weight.shape[1] + tap[0];
                let spatial = at.iter().zip(&tap[1..]).enumerate().map(|(axis, (i, k))| {
                    (i * conv.stride[axis] + k * conv.dilation[axis]) as isize
                        - conv.pads.before[axis] as isize
                });
                let from: Vec<isize> = [n as isize, c as isize]
                    .into_iter()
                    .chain(spatial)
                    .collect();
                x.padded(&from) * weight.at(&[&[o], &tap[..]].concat())
            })
            .sum();
        sum + bias.as_ref().map_or(0.0, |bias| bias.data[o])
    })
}

fn transposed(file: &Checkpoint, conv: &Conv, x: &Map, shape: Vec<usize>) -> Map {
    let weight = stored(file, &conv.weight);
    let bias = conv.bias.as_ref().map(|bias| stored(file, bias));
    let per_group = weight.shape[1];
    let taps = Map::indices(&weight.shape[2..]);
    Map::of(shape, |index| {
        let (n, o, at) = (index[0], index[1], &index[2..]);
        let group = o / per_group;
        let inputs = weight.shape[0] / conv.groups;
        let mut sum = bias.as_ref().map_or(0.0, |bias| bias.data[o]);
        for tap in &taps {
            // Output `i` gets tap `k` of input `(i + pad − k·dilation) / stride`, where that is whole.
            let from: Option<Vec<isize>> = (at.iter().zip(tap).enumerate())
                .map(|(axis, (i, k))| {
                    let moved =
                        (i + conv.pads.before[axis]) as isize - (k * conv.dilation[axis]) as isize;
                    let stride = conv.stride[axis] as isize;
                    (moved % stride == 0).then_some(moved / stride)
                })
                .collect();
            let Some(from) = from else { continue };
            for c in group * inputs..(group + 1) * inputs {
                let place: Vec<isize> = [n as isize, c as isize]
                    .into_iter()
                    .chain(from.iter().copied())
                    .collect();
                sum += x.padded(&place) * weight.at(&[&[c, o % per_group], &tap[..]].concat());
            }
        }
        sum
    })
}

fn normed(file: &Checkpoint, norm: &Norm, x: &Map) -> Map {
    let [mean, var] = [&norm.mean, &norm.var].map(|tensor| stored(file, tensor).data);
    let affine = norm
        .affine
        .as_ref()
        .map(|both| both.clone().map(|tensor| stored(file, &tensor).data));
    Map::of(x.shape.clone(), |index| {
        let c = index[1];
        let y = (x.at(index) - mean[c]) / (var[c] + norm.eps).sqrt();
        affine
            .as_ref()
            .map_or(y, |[weight, bias]| y * weight[c] + bias[c])
    })
}

fn averaged(window: &Window, x: &Map, shape: Vec<usize>) -> Map {
    let taps = Map::indices(&window.kernel);
    Map::of(shape, |index| {
        let first = index.len() - window.kernel.len();
        let sum: f64 = taps
            .iter()
            .map(|tap| {
                let from: Vec<isize> = (index.iter().enumerate())
                    .map(|(axis, i)| match axis.checked_sub(first) {
                        Some(axis) => {
                            (i * window.stride[axis] + tap[axis]) as isize
                                - window.pads.before[axis] as isize
                        }
                        None => *i as isize,
                    })
                    .collect();
                x.padded(&from)
            })
            .sum();
        sum / taps.len() as f64
    })
}
