//! Whole networks: the purely sequential ones, which are known from their file and recipe alone.
//!
//! Each block is a conv with "same" padding — stride 2 where it is larger than 1×1 and has no identity, for an identity
//! needs stride 1 and these families give every other block one — then squeeze and excitation where its tensors are,
//! then ReLU; at the end average pooling and the linear classifier. Training form and deploy form run side by side, block by
//! block, so that only one block's weights are in memory.

use ndarray::{Array1, Array2, Array4, ArrayView4, Axis};

use crate::algebra::extent::POINT;
use crate::algebra::forward::Reading;
use crate::algebra::{Op, Operand, Part, Values};
use crate::conv2d::block::{self, Placement, pad, run};
use crate::conv2d::{self, Conv2dGeometry, Element};
use crate::plan::{Plan, PlannedConv, Source};
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Tensor, quoted};
use crate::verify::{Deployed, DeployedRows, deployed_rows};

/// A network whose every layer is known.
#[derive(Debug)]
pub struct Sequential<'a> {
    steps: Vec<Step<'a>>,
    /// The channels that the first takes and that the last gives.
    ends: [usize; 2],
    head: [Tensor; 2],
}

#[derive(Debug)]
struct Step<'a> {
    fused: &'a PlannedConv,
    stride: usize,
    /// Weight and bias of the squeezing and of the exciting 1×1 conv.
    squeeze: Option<[[Tensor; 2]; 2]>,
}

/// What the two forms of a network make of the same images.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The pooled features of the training form, `[images, channels]`.
    pub trained_features: Array2<f64>,
    /// Its logits, `[images, classes]`.
    pub trained: Array2<f64>,
    /// The logits with the convs of the deploy form, `[images, classes]`. Everything else is copied, and comes from the training
    /// form; `verify` checks the copies.
    pub deployed: Array2<f64>,
}

/// Why a network cannot be run as a whole.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("recipe `{0}` does not say how its blocks make up a network")]
    NoNetwork(String),
    #[error(
        "{what} has no place in the network that recipe `{recipe}` describes; it is not known from the file"
    )]
    NotSequential { what: String, recipe: String },
    #[error("{0} is missing, which the network needs")]
    Missing(String),
    #[error("{tensor} has shape {found:?}; expected {expected}")]
    Shape {
        tensor: String,
        found: Vec<usize>,
        expected: String,
    },
    #[error("block {}", quoted(block))]
    Run { block: String, source: block::Error },
    #[error(transparent)]
    Numbers(#[from] crate::fuse::diagnose::Error),
    #[error(transparent)]
    Tensor(#[from] crate::tensor::Error),
}

/// A block that keeps the size of its maps has an identity branch, or one tap.
fn stride_of(fused: &PlannedConv) -> usize {
    let larger = fused.geometry().extent() != POINT;
    if larger && !has_identity(fused.expr.root()) {
        2
    } else {
        1
    }
}

fn weight_and_bias(checkpoint: &Checkpoint, module: &str) -> Result<[Tensor; 2], Error> {
    let find = |end: &str| {
        let name = format!("{module}.{end}");
        checkpoint
            .get(&name)
            .cloned()
            .ok_or_else(|| Error::Missing(quoted(&name)))
    };
    Ok([find("weight")?, find("bias")?])
}

/// Puts the blocks of a plan in order and finds what lies between them.
///
/// # Errors
/// When the recipe describes no network, or a block or a tensor has no place in it.
pub fn sequential<'a>(checkpoint: &Checkpoint, plan: &'a Plan) -> Result<Sequential<'a>, Error> {
    let network = plan
        .network
        .as_ref()
        .ok_or_else(|| Error::NoNetwork(plan.recipe.clone()))?;
    let outside = |what: String| Error::NotSequential {
        what,
        recipe: plan.recipe.clone(),
    };
    let mut placed = Vec::new();
    for block in &plan.blocks {
        let of_block = || outside(format!("block {}", quoted(&block.name)));
        let place = network.place(&block.name).ok_or_else(of_block)?;
        let [fused] = &block.fused[..] else {
            return Err(of_block());
        };
        placed.push((place, block, fused));
    }
    placed.sort_by(|a, b| a.0.cmp(&b.0));
    let mut used = Vec::new();
    let mut pair = |module: &str| -> Result<[Tensor; 2], Error> {
        let tensors = weight_and_bias(checkpoint, module)?;
        used.extend(tensors.iter().map(|t| t.name().to_owned()));
        Ok(tensors)
    };
    let mut steps = Vec::new();
    for (_, block, fused) in &placed {
        let convs = network
            .squeeze
            .as_ref()
            .map(|names| names.clone().map(|name| format!("{}.{name}", block.name)));
        let squeeze = match convs {
            Some([down, up]) if checkpoint.get(&format!("{down}.weight")).is_some() => {
                Some([pair(&down)?, pair(&up)?])
            }
            _ => None,
        };
        steps.push(Step {
            fused,
            stride: stride_of(fused),
            squeeze,
        });
    }
    let [Some((_, block, first)), Some((_, _, last))] = [placed.first(), placed.last()] else {
        return Err(Error::Missing("a block".to_owned()));
    };
    let head = network
        .head_of(&block.name)
        .ok_or_else(|| outside(format!("block {}", quoted(&block.name))))?;
    let head = pair(&head)?;
    let ends = [first.geometry().inputs(), last.geometry().out()];
    for planned in &plan.outputs {
        if let Source::Copy(tensor) = &planned.what
            && !used.iter().any(|name| name == tensor.name())
        {
            return Err(outside(tensor.to_string()));
        }
    }
    Ok(Sequential { steps, ends, head })
}

/// Whether a branch without a conv leads from input to output.
fn has_identity<T>(part: &Part<T>) -> bool {
    matches!(part.op(), Op::Sum(branches) if branches.iter().any(Part::is_channelwise))
}

impl Outputs {
    /// Puts what other images gave behind these.
    ///
    /// # Errors
    /// When the numbers of classes or features differ.
    pub fn append(&mut self, other: &Outputs) -> Result<(), ndarray::ShapeError> {
        self.trained.append(Axis(0), other.trained.view())?;
        self.deployed.append(Axis(0), other.deployed.view())?;
        self.trained_features
            .append(Axis(0), other.trained_features.view())
    }
}

impl Sequential<'_> {
    /// The number of channels the images need.
    pub fn channels(&self) -> usize {
        self.ends[0]
    }

    /// The classifier's weight `[classes, features]` and, as a matrix of one row, its bias.
    ///
    /// # Errors
    /// When it cannot be read or has another shape.
    pub fn head(&self, checkpoint: &Checkpoint) -> Result<[Array2<f64>; 2], Error> {
        let mut reader = Reader::new(checkpoint, 1 << 20);
        let weight = matrix(&self.head[0], self.ends[1], &mut reader)?;
        let bias = Array1::from(reader.vector(&self.head[1], 0, weight.dim().0)?);
        Ok([weight, bias.insert_axis(Axis(0))])
    }

    /// Every fused conv in order, its stride, and the height and width of what it gives for images of `size` × `size`.
    pub fn places(&self, size: usize) -> Vec<(&PlannedConv, usize, usize)> {
        let mut side = size;
        let place = |step: &Step<'_>| {
            // "Same" padding keeps the size, and a stride takes every so many pixels, the first one included.
            side = side.div_ceil(step.stride);
            side
        };
        let sides: Vec<usize> = self.steps.iter().map(place).collect();
        self.steps
            .iter()
            .zip(sides)
            .map(|(step, side)| (step.fused, step.stride, side))
            .collect()
    }

    /// About how many bytes an image of `size` × `size` takes while both forms run, with numbers of so many bytes: the largest step's maps
    /// with their borders, and what its branches give.
    pub fn bytes_for(&self, size: usize, of_number: usize) -> u64 {
        let (mut side, mut most) = (size as u64, 0);
        for step in &self.steps {
            let g = step.fused.geometry();
            let [_, height, width] = g.extent().map(|n| n as u64);
            let padded = (side + height - 1).saturating_mul(side + width - 1);
            let inputs = (g.inputs() as u64).saturating_mul(padded);
            side = side.div_ceil(step.stride as u64);
            let outputs = (g.out() as u64).saturating_mul(side.saturating_mul(side));
            // Both forms' maps, those with a border, and a branch beside the sum.
            let numbers = inputs
                .saturating_mul(3)
                .saturating_add(outputs.saturating_mul(4));
            most = numbers.max(most);
        }
        most.saturating_mul(of_number as u64)
    }

    /// Runs both forms on `images`, `[images, channels, height, width]`.
    ///
    /// # Errors
    /// When the images do not fit, or a value cannot be read.
    pub fn outputs<F: Element>(
        &self,
        checkpoint: &Checkpoint,
        deployed: Deployed<'_>,
        images: ArrayView4<'_, F>,
    ) -> Result<Outputs, Error> {
        let mut reader = Reader::new(checkpoint, 1 << 20);
        let [mut trained, mut folded] = [images.to_owned(), images.to_owned()];
        for step in &self.steps {
            let fused = step.fused;
            let placement = Placement::same(fused.geometry(), step.stride);
            let failed = |source: block::Error| Error::Run {
                block: fused.module.clone(),
                source,
            };
            let padded = pad(trained.view(), &placement).map_err(failed)?;
            trained = run(
                &fused.expr,
                padded.view(),
                placement.stride,
                Reading::Value,
                &mut reader,
            )
            .map_err(failed)?;
            let padded = pad(folded.view(), &placement).map_err(failed)?;
            let rows = deployed_rows(checkpoint, fused, deployed, 0..fused.geometry().out())?;
            let stride = placement.stride;
            folded = deployed_conv(fused, &rows, padded.view(), stride, Reading::Value)?;
            for maps in [&mut trained, &mut folded] {
                if let Some(squeeze) = &step.squeeze {
                    self.excite(maps, squeeze, &mut reader)?;
                }
                maps.mapv_inplace(|x| x.max(F::zero()));
            }
            reader.forget();
        }
        let [trained_features, folded] = [trained, folded].map(|maps| pooled(maps.view()));
        let weight = matrix(&self.head[0], trained_features.dim().1, &mut reader)?;
        let bias = Array1::from(reader.vector(&self.head[1], 0, weight.dim().0)?);
        let logits = |features: &Array2<F>| -> Array2<f64> {
            let (weight, bias) = (weight.mapv(F::rounded), bias.mapv(F::rounded));
            (product(features, &weight) + &bias).mapv(F::into)
        };
        Ok(Outputs {
            trained: logits(&trained_features),
            deployed: logits(&folded),
            trained_features: trained_features.mapv(F::into),
        })
    }

    /// Multiplies each channel by `sigmoid(up(relu(down(mean))))`.
    fn excite<F: Element>(
        &self,
        maps: &mut Array4<F>,
        [down, up]: &[[Tensor; 2]; 2],
        reader: &mut Reader<'_>,
    ) -> Result<(), Error> {
        let mut dense = |x: &Array2<F>, [weight, bias]: &[Tensor; 2]| -> Result<Array2<F>, Error> {
            let weight = matrix(weight, x.dim().1, reader)?;
            let bias = Array1::from(reader.vector(bias, 0, weight.dim().0)?);
            Ok(product(x, &weight.mapv(F::rounded)) + &bias.mapv(F::rounded))
        };
        let squeezed = dense(&pooled(maps.view()), down)?.mapv_into(|x| x.max(F::zero()));
        let gate = dense(&squeezed, up)?.mapv_into(|x| F::one() / (F::one() + (-x).exp()));
        for (mut image, gate) in maps.outer_iter_mut().zip(gate.outer_iter()) {
            for (mut channel, gate) in image.outer_iter_mut().zip(gate) {
                channel.mapv_inplace(|x| x * *gate);
            }
        }
        Ok(())
    }
}

/// The deploy form's conv, all of its rows, over a padded map.
///
/// # Errors
/// When the maps do not fit.
pub fn deployed_conv<F: Element>(
    fused: &PlannedConv,
    rows: &DeployedRows,
    padded: ArrayView4<'_, F>,
    stride: [usize; 2],
    reading: Reading,
) -> Result<Array4<F>, Error> {
    let g = fused.geometry();
    let failed = |source: block::Error| Error::Run {
        block: fused.module.clone(),
        source,
    };
    let [1, height, width] = g.extent() else {
        return Err(failed(block::Error::Depth(g.extent())));
    };
    let shape = (g.out(), g.in_per_group(), height, width);
    let as_read = |x: &f64| F::rounded(reading.of(*x));
    let kernel = rows.kernel.iter().map(as_read).collect::<Vec<F>>();
    let kernel = Array4::from_shape_vec(shape, kernel).map_err(|e| failed(e.into()))?;
    let bias: Array1<F> = rows.bias.iter().map(as_read).collect();
    let geometry = Conv2dGeometry {
        stride,
        groups: padded.dim().1 / g.in_per_group(),
        ..Default::default()
    };
    let out = conv2d::conv2d(padded, kernel.view(), Some(bias.view()), &geometry);
    out.map_err(|e| failed(e.into()))
}

/// A matrix `[out, in]`, which may be stored as a 1×1 conv.
fn matrix(tensor: &Tensor, inputs: usize, reader: &mut Reader<'_>) -> Result<Array2<f64>, Error> {
    let shape = tensor.shape();
    let fits = matches!(*shape, [_, i] | [_, i, 1, 1] if i == inputs);
    let wrong = || Error::Shape {
        tensor: tensor.to_string(),
        found: shape.to_vec(),
        expected: format!("[_, {inputs}]"),
    };
    if !fits {
        return Err(wrong());
    }
    let values = reader.vector(tensor, 0, Operand::len(tensor))?;
    Array2::from_shape_vec((shape[0], inputs), values).map_err(|_| wrong())
}

/// `x · weightᵀ`, with the products added up in order.
fn product<F: Element>(x: &Array2<F>, weight: &Array2<F>) -> Array2<F> {
    Array2::from_shape_fn((x.dim().0, weight.dim().0), |(n, o)| {
        let terms = x
            .row(n)
            .iter()
            .zip(weight.row(o))
            .map(|(a, b)| *a * *b)
            .collect::<Vec<F>>();
        terms.into_iter().fold(F::zero(), |sum, term| sum + term)
    })
}

/// The mean of each map, `[images, channels]`.
fn pooled<F: Element>(maps: ArrayView4<'_, F>) -> Array2<F> {
    let (images, channels, h, w) = maps.dim();
    let share = F::rounded(1.0 / (h * w) as f64);
    Array2::from_shape_fn((images, channels), |(image, channel)| {
        let channels = maps.index_axis(Axis(0), image);
        let plane = channels.index_axis(Axis(0), channel);
        plane.iter().fold(F::zero(), |sum, x| sum + *x) * share
    })
}
