//! ONNX models, run: the same input through a model and what was made of it, and how long each takes.
//!
//! The runtime is [rten](https://docs.rs/rten). What it cannot run is an error here, and says nothing about the model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::{ArrayD, IxDyn, ShapeError};
use rten::{DataType, Dimension, Model, ModelOptions, NodeId, Value, ValueType};
use rten_tensor::prelude::*;

use super::divergence::bidirectional_kl;
use crate::tensor::quoted;
use crate::verify::random::SplitMix64;

/// What keeps a model from being run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("{} cannot be run here: {reason}", quoted(&path.display().to_string()))]
    NotRun { path: PathBuf, reason: String },
    #[error("{} has no input that can be made up: {reason}", quoted(&path.display().to_string()))]
    Input { path: PathBuf, reason: String },
    #[error("the two models have different {0}")]
    Different(&'static str),
}

/// A named array: an input of a model or an output.
pub type Named = (String, ArrayD<f64>);

/// A model that can be run.
pub struct Network {
    path: PathBuf,
    model: Model,
}

/// How large the dimensions of made-up inputs are that a model leaves open.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The first dimension.
    pub batch: usize,
    /// Height and width, and whatever stands behind the channels.
    pub side: usize,
}

/// Channels of an image, where a model leaves them open.
const COLOURS: usize = 3;

/// Elements of a made-up input at most.
const MOST_ELEMENTS: usize = 1 << 28;

impl Network {
    /// Loads a model.
    ///
    /// # Errors
    /// When rten cannot, as for an operator that it does not have.
    pub fn open(path: &Path) -> Result<Network, Error> {
        let load = || {
            let is_named_so = path
                .extension()
                .is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
            match is_named_so {
                true => Model::load_file(path).map_err(|e| e.to_string()),
                // Its kind is told by its content; weights in another file are only found by the name of the model.
                false => std::fs::read(path)
                    .map_err(|e| e.to_string())
                    .and_then(|bytes| {
                        ModelOptions::with_all_ops()
                            .load(bytes)
                            .map_err(|e| e.to_string())
                    }),
            }
        };
        let model = guarded(path, load)?;
        Ok(Network {
            path: path.to_owned(),
            model,
        })
    }

    /// Inputs for a model that nobody has any for: numbers between −1 and 1, and whole numbers that are 0 or 1.
    ///
    /// # Errors
    /// When the model does not say how many dimensions an input has.
    pub fn made_up(&self, sizes: Sizes, random: &mut SplitMix64) -> Result<Vec<Named>, Error> {
        let wrong = |reason: String| Error::Input {
            path: self.path.clone(),
            reason,
        };
        let mut inputs = Vec::new();
        for id in self.model.input_ids() {
            let name = self.name(*id)?;
            let info = self.model.node_info(*id);
            let dims = info.as_ref().and_then(rten::NodeInfo::shape);
            let Some(dims) = dims else {
                return Err(wrong(format!(
                    "nothing says what shape {} has",
                    quoted(&name)
                )));
            };
            let rank = dims.len();
            let shape: Vec<usize> = dims
                .iter()
                .enumerate()
                .map(|(axis, dim)| match (dim, axis) {
                    (Dimension::Fixed(n), _) => *n,
                    (_, 0) => sizes.batch,
                    (_, 1) if rank >= 3 => COLOURS,
                    (_, 1) => sizes.side,
                    _ => sizes.side,
                })
                .collect();
            let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            if elements.is_none_or(|n| n > MOST_ELEMENTS) {
                return Err(wrong(format!(
                    "{} of shape {shape:?} is too large",
                    quoted(&name)
                )));
            }
            let whole =
                info.and_then(|info| info.dtype()) != Some(ValueType::Tensor(DataType::Float));
            let numbers = ArrayD::from_shape_simple_fn(IxDyn(&shape), || {
                let x = 2.0 * random.next_unit() - 1.0;
                if whole {
                    f64::from(u8::from(x > 0.0))
                } else {
                    x
                }
            });
            inputs.push((name, numbers));
        }
        Ok(inputs)
    }

    /// The names of its inputs.
    ///
    /// # Errors
    /// When one has none.
    pub fn inputs(&self) -> Result<Vec<String>, Error> {
        let ids = self.model.input_ids().iter();
        ids.map(|id| self.name(*id)).collect()
    }

    fn name(&self, id: NodeId) -> Result<String, Error> {
        let info = self.model.node_info(id);
        let name = info.as_ref().and_then(rten::NodeInfo::name);
        name.map(str::to_owned)
            .ok_or_else(|| self.not_run("an input or an output has no name"))
    }

    fn not_run(&self, reason: impl ToString) -> Error {
        Error::NotRun {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }

    /// What it computes of named inputs: every output that is an array.
    ///
    /// # Errors
    /// When an input is missing or does not fit, or an operator fails.
    pub fn run(&self, inputs: &[Named]) -> Result<Vec<Named>, Error> {
        let mut values = Vec::with_capacity(inputs.len());
        for (name, array) in inputs {
            let id = self.model.node_id(name).map_err(|e| self.not_run(e))?;
            let dtype = self.model.node_info(id).and_then(|info| info.dtype());
            let numbers = array.iter();
            let shape = array.shape();
            let value = match dtype {
                None | Some(ValueType::Tensor(DataType::Float)) => {
                    let numbers: Vec<f32> = numbers.map(|x| *x as f32).collect();
                    Value::from_shape(shape, numbers).map_err(|e| e.to_string())
                }
                Some(ValueType::Tensor(DataType::Int32)) => {
                    let numbers: Vec<i32> = numbers.map(|x| *x as i32).collect();
                    Value::from_shape(shape, numbers).map_err(|e| e.to_string())
                }
                Some(_) => {
                    return Err(self.not_run(format!(
                        "{} takes numbers of a type that is not made here",
                        quoted(name)
                    )));
                }
            };
            values.push((id, value.map_err(|e| self.not_run(e))?.into()));
        }
        let ids = self.model.output_ids().to_vec();
        let run = || {
            self.model
                .run(values, &ids, None)
                .map_err(|e| e.to_string())
        };
        let outputs = guarded(&self.path, run)?;
        let mut named = Vec::with_capacity(outputs.len());
        for (id, value) in ids.iter().zip(outputs) {
            let array = array_of(value).map_err(|e| self.not_run(e))?;
            if let Some(array) = array {
                named.push((self.name(*id)?, array));
            }
        }
        Ok(named)
    }
}

/// What rten does, where a mistake of its own ends in an error.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, String>) -> Result<T, Error> {
    let done = catch_unwind(AssertUnwindSafe(work));
    let done = done.unwrap_or_else(|_| Err("the runtime stopped unexpectedly".to_owned()));
    done.map_err(|reason| Error::NotRun {
        path: path.to_owned(),
        reason,
    })
}

fn array_of(value: Value) -> Result<Option<ArrayD<f64>>, ShapeError> {
    let (shape, numbers): (Vec<usize>, Vec<f64>) = match value {
        Value::FloatTensor(t) => (
            t.shape().to_vec(),
            t.iter().map(|x| f64::from(*x)).collect(),
        ),
        Value::Int32Tensor(t) => (
            t.shape().to_vec(),
            t.iter().map(|x| f64::from(*x)).collect(),
        ),
        Value::Int8Tensor(t) => (
            t.shape().to_vec(),
            t.iter().map(|x| f64::from(*x)).collect(),
        ),
        Value::UInt8Tensor(t) => (
            t.shape().to_vec(),
            t.iter().map(|x| f64::from(*x)).collect(),
        ),
        _ => return Ok(None),
    };
    ArrayD::from_shape_vec(IxDyn(&shape), numbers).map(Some)
}

/// What two models computed of one input.
#[derive(Debug)]
pub struct Comparison {
    /// What went in: names and shapes.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// One for each output.
    pub outputs: Vec<Output>,
    /// Of the first output that is `[samples, classes]`: for how many samples, in parts of 1, the largest class is the same.
    pub top1_agreement: Option<f64>,
    /// The mean of the two KL divergences of that output's softmax, in nats.
    pub bidirectional_kl: Option<f64>,
    /// How long a run takes: the median, in seconds, of the first model and of the second.
    pub seconds: [f64; 2],
}

/// An output of both.
#[derive(Debug)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The largest number in it.
    pub largest: f64,
    /// The largest difference between the two; not a number where one of them is none and the other is one.
    pub difference: f64,
}

/// Runs are timed so often, or until this many seconds have passed.
const TIMED: usize = 9;
const ENOUGH: f64 = 4.0;

/// Runs two models with the same inputs.
///
/// # Errors
/// When one cannot be run, or they have different outputs.
pub fn compare(first: &Network, second: &Network, inputs: &[Named]) -> Result<Comparison, Error> {
    let (a, b) = (first.run(inputs)?, second.run(inputs)?);
    if a.len() != b.len() {
        return Err(Error::Different("numbers of outputs"));
    }
    let mut outputs = Vec::with_capacity(a.len());
    for ((name, x), (other, y)) in a.iter().zip(&b) {
        if name != other || x.shape() != y.shape() {
            return Err(Error::Different("outputs"));
        }
        outputs.push(Output {
            name: name.clone(),
            shape: x.shape().to_vec(),
            largest: x.iter().fold(0.0, |most, x| most.max(x.abs())),
            difference: x.iter().zip(y).map(apart).fold(0.0, largest),
        });
    }
    let (top1_agreement, bidirectional_kl) = classes(&a, &b);
    Ok(Comparison {
        inputs: inputs
            .iter()
            .map(|(name, array)| (name.clone(), array.shape().to_vec()))
            .collect(),
        outputs,
        top1_agreement,
        bidirectional_kl,
        seconds: timed([first, second], inputs)?,
    })
}

/// How far two numbers are apart: not at all where both are the same infinity or both are no numbers.
fn apart((x, y): (&f64, &f64)) -> f64 {
    match x == y || x.is_nan() && y.is_nan() {
        true => 0.0,
        false => (x - y).abs(),
    }
}

/// The larger of two; what is no number is the largest.
fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

fn matrix(array: &ArrayD<f64>) -> Option<ndarray::ArrayView2<'_, f64>> {
    array.view().into_dimensionality().ok()
}

fn classes(a: &[Named], b: &[Named]) -> (Option<f64>, Option<f64>) {
    let logits = a.iter().zip(b).find_map(|((_, x), (_, y))| {
        let (x, y) = (matrix(x)?, matrix(y)?);
        (x.nrows() > 0 && x.ncols() > 1).then_some((x, y))
    });
    let Some((x, y)) = logits else {
        return (None, None);
    };
    let best = |row: ndarray::ArrayView1<'_, f64>| {
        let ranked = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        ranked.map(|(class, _)| class)
    };
    let same = (x.rows().into_iter().zip(y.rows()))
        .filter(|(a, b)| best(*a) == best(*b))
        .count();
    (
        Some(same as f64 / x.nrows() as f64),
        bidirectional_kl(x, y).ok(),
    )
}

/// The median time of both, which run in turn. (Both have run once already.)
fn timed(networks: [&Network; 2], inputs: &[Named]) -> Result<[f64; 2], Error> {
    let mut times = [Vec::new(), Vec::new()];
    let begin = Instant::now();
    while times[1].len() < TIMED && (times[1].is_empty() || begin.elapsed().as_secs_f64() < ENOUGH)
    {
        for (network, times) in networks.iter().zip(&mut times) {
            let begin = Instant::now();
            network.run(inputs)?;
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}
