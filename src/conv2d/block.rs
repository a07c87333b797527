//! A block on whole feature maps, as a network runs it: with padding around the block and a stride.
//!
//! The expression is evaluated branch by branch on `[maps, channels, height, width]` through the convolution
//! [`conv2d`](super). Padding and stride belong to the block, not to its branches: the map is padded once for the whole
//! extent, each branch sees the centre it needs, and the last conv of each branch takes the strides.

use ndarray::{Array1, Array4, ArrayView4, Axis, ShapeError, Slice, concatenate};

use crate::algebra::extent::Extent;
use crate::algebra::forward::{Reading, gate};
use crate::algebra::part::split;
use crate::algebra::{
    Bn, Factor, Geometry, GeometryError, Kernel, Layout, Op, Operand, Part, Resolved, Values,
};
use crate::conv2d::{self, Conv2dGeometry, ConvError, Element, PaddingMode};
use crate::tensor::Tensor;

/// What no weight file stores: how a block lies in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Distance between outputs, `[height, width]`.
    pub stride: [usize; 2],
    /// Rows above, rows below, columns left and columns right that are added around the map.
    pub padding: [[usize; 2]; 2],
    /// What they hold.
    pub mode: PaddingMode,
}

impl Placement {
    /// As much padding as keeps the size at stride 1, with zeros: what every family here does. Where the
    /// total is odd, the extra row or column goes to the bottom and the right, as in PyTorch.
    pub fn same(geometry: &Geometry, stride: usize) -> Placement {
        let axis = |extent: usize| [(extent - 1) / 2, extent / 2];
        let [_, height, width] = geometry.extent();
        Placement {
            stride: [stride; 2],
            padding: [height, width].map(axis),
            mode: PaddingMode::Zeros,
        }
    }
}

/// Why a block cannot be run on a map.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("a map of {size:?} is smaller than the block's kernel {extent:?} with its padding")]
    TooSmall {
        size: [usize; 2],
        extent: [usize; 2],
    },
    #[error("padding mode `{}` cannot add {padding} along an axis of {length}", mode.name())]
    Padding {
        mode: PaddingMode,
        padding: usize,
        length: usize,
    },
    #[error("{0} is a transposed conv, which is not run on maps")]
    Transposed(String),
    #[error("an average pooling behind a strided conv is not run on maps")]
    StridedMean,
    #[error("a kernel of {0:?} has a depth; only two-dimensional maps are run")]
    Depth(Extent),
    #[error("a part over {inputs} channels is run on {channels}")]
    Channels { inputs: usize, channels: usize },
    #[error("the maps do not fit the block")]
    Shapes(#[from] GeometryError),
    #[error("a border makes maps of {padded:?} of maps of {size:?}; it is too wide for them")]
    Border {
        size: [usize; 2],
        padded: [usize; 2],
    },
    #[error(transparent)]
    Conv(#[from] ConvError),
    #[error(transparent)]
    Array(#[from] ShapeError),
    #[error(transparent)]
    Tensor(#[from] crate::tensor::Error),
}

/// Pads maps on all sides.
///
/// # Errors
/// When the mode cannot fill so wide a border: a reflected border must be narrower than the map, a circular one no wider.
pub fn pad<F: Element>(x: ArrayView4<'_, F>, placement: &Placement) -> Result<Array4<F>, Error> {
    let (maps, channels, h, w) = x.dim();
    let [rows, columns] = [(h, 0), (w, 1)]
        .map(|(length, axis)| sources(length, placement.padding[axis], placement.mode));
    let (rows, columns) = (rows?, columns?);
    let padded = [maps, channels, rows.len(), columns.len()];
    let padded = padded.iter().copied().fold(1, usize::saturating_mul);
    if padded > x.len().saturating_mul(MOST_PADDED).max(1 << 24) {
        return Err(Error::Border {
            size: [h, w],
            padded: [rows.len(), columns.len()],
        });
    }
    let mut out = Array4::zeros((maps, channels, rows.len(), columns.len()));
    for (mut to, from) in out.outer_iter_mut().zip(x.outer_iter()) {
        for (mut to, from) in to.outer_iter_mut().zip(from.outer_iter()) {
            for (y, row) in rows.iter().enumerate() {
                for (x, column) in columns.iter().enumerate() {
                    if let (Some(row), Some(column)) = (row, column) {
                        to[[y, x]] = from[[*row, *column]];
                    }
                }
            }
        }
    }
    Ok(out)
}

/// A border that makes more of a map than this many times its numbers is a mistake.
const MOST_PADDED: usize = 16;

/// For every place along a padded axis: the place it is filled from, or none for zero.
fn sources(
    length: usize,
    [before, after]: [usize; 2],
    mode: PaddingMode,
) -> Result<Vec<Option<usize>>, Error> {
    let widest = match mode {
        PaddingMode::Zeros => usize::MAX,
        PaddingMode::Replicate if length > 0 => usize::MAX,
        PaddingMode::Reflect => length.saturating_sub(1),
        PaddingMode::Circular | PaddingMode::Replicate => length,
    };
    if before.max(after) > widest {
        return Err(Error::Padding {
            mode,
            padding: before.max(after),
            length,
        });
    }
    let n = length as isize;
    let source = |i: isize| match mode {
        _ if (0..n).contains(&i) => Some(i as usize),
        PaddingMode::Zeros => None,
        PaddingMode::Replicate => Some(i.clamp(0, n - 1) as usize),
        PaddingMode::Circular => Some(i.rem_euclid(n) as usize),
        PaddingMode::Reflect => Some(if i < 0 { -i } else { 2 * (n - 1) - i } as usize),
    };
    Ok((-(before as isize)..n + after as isize)
        .map(source)
        .collect())
}

/// Runs a block's expression over maps that have been padded for the whole block.
///
/// # Errors
/// When the maps do not fit the block, or a value cannot be read.
pub fn run<F: Element, V: Values<Tensor, Error = crate::tensor::Error>>(
    block: &Resolved<Tensor>,
    padded: ArrayView4<'_, F>,
    stride: [usize; 2],
    reading: Reading,
    values: &mut V,
) -> Result<Array4<F>, Error> {
    let block = block.for_inputs(padded.dim().1)?;
    run_part(&block, block.root(), padded, stride, reading, values)
}

/// The same for a part of a block, which sees the centre it needs of what the whole block would cover.
///
/// # Errors
/// When the maps do not fit the block, or a value cannot be read.
pub fn run_part<F: Element, V: Values<Tensor, Error = crate::tensor::Error>>(
    block: &Resolved<Tensor>,
    part: &Part<Tensor>,
    padded: ArrayView4<'_, F>,
    stride: [usize; 2],
    reading: Reading,
    values: &mut V,
) -> Result<Array4<F>, Error> {
    let (_, channels, h, w) = padded.dim();
    let (extent, own) = (plane(block.geometry())?, plane(part.geometry())?);
    let inputs = part.geometry().inputs();
    if channels != inputs {
        return Err(Error::Channels { inputs, channels });
    }
    let largest = [0, 1].map(|axis| extent[axis].max(own[axis]));
    if h < largest[0] || w < largest[1] {
        return Err(Error::TooSmall {
            size: [h, w],
            extent: largest,
        });
    }
    Runner { reading, values }.run(part, padded, largest, stride)
}

/// The height and width that a tree covers.
fn plane(geometry: &Geometry) -> Result<[usize; 2], Error> {
    match geometry.extent() {
        [1, height, width] => Ok([height, width]),
        extent => Err(Error::Depth(extent)),
    }
}

struct Runner<'a, V> {
    reading: Reading,
    values: &'a mut V,
}

impl<V: Values<Tensor, Error = crate::tensor::Error>> Runner<'_, V> {
    /// Runs a branch in a block that covers `extent`: the branch sees the centre it needs.
    fn run<F: Element>(
        &mut self,
        part: &Part<Tensor>,
        x: ArrayView4<'_, F>,
        extent: [usize; 2],
        stride: [usize; 2],
    ) -> Result<Array4<F>, Error> {
        let own = plane(part.geometry())?;
        let x = centre(x, [extent[0] - own[0], extent[1] - own[1]]);
        match part.op() {
            Op::Conv(kernel) => self.conv(kernel, part.geometry(), x, stride),
            Op::Sum(parts) => {
                let (first, others) = parts.split_first().ok_or(GeometryError::Empty)?;
                let mut sum = self.run(first, x.view(), own, stride)?;
                for branch in others {
                    sum += &self.run(branch, x.view(), own, stride)?;
                }
                Ok(sum)
            }
            Op::Stack(parts) => {
                let branches = parts
                    .iter()
                    .map(|branch| self.run(branch, x.view(), own, stride))
                    .collect::<Result<Vec<_>, _>>()?;
                let views: Vec<_> = branches.iter().map(|branch| branch.view()).collect();
                Ok(concatenate(Axis(1), &views)?)
            }
            Op::Select(channels) => {
                let picked = x.select(Axis(1), &channels.picked);
                Ok(strided(picked.view(), stride))
            }
            Op::Seq(parts) => self.sequence(parts, x, stride),
            Op::AvgPool([_, height, width]) => {
                let weight = F::rounded(self.reading.of(1.0 / (height * width) as f64));
                Ok(strided(pool(x, [*height, *width], weight).view(), stride))
            }
            Op::Crop(margins) => {
                let margins = [1, 2].map(|axis| [margins.before[axis], margins.after[axis]]);
                Ok(strided(without(x, margins), stride))
            }
            diagonal => self.diagonal(diagonal, strided(x, stride)),
        }
    }

    /// Runs one step after the other. A sequence without a conv runs at stride 1; its result is strided at the end.
    fn sequence<F: Element>(
        &mut self,
        parts: &[Part<Tensor>],
        x: ArrayView4<'_, F>,
        stride: [usize; 2],
    ) -> Result<Array4<F>, Error> {
        let (head, tail) = split(parts);
        let Some((first, rest)) = tail.split_first() else {
            return Ok(x.to_owned());
        };
        let mut y = x.to_owned();
        for step in head {
            y = self.step(step, y.view(), [1, 1])?;
        }
        let has_conv = first.has_conv();
        y = self.step(first, y.view(), if has_conv { stride } else { [1, 1] })?;
        for step in rest {
            if has_conv && stride != [1, 1] && plane(step.geometry())? != [1, 1] {
                return Err(Error::StridedMean);
            }
            y = self.step(step, y.view(), [1, 1])?;
        }
        Ok(match has_conv {
            true => y,
            false => strided(y.view(), stride),
        })
    }

    /// Runs a part by itself.
    fn step<F: Element>(
        &mut self,
        part: &Part<Tensor>,
        x: ArrayView4<'_, F>,
        stride: [usize; 2],
    ) -> Result<Array4<F>, Error> {
        self.run(part, x, plane(part.geometry())?, stride)
    }

    fn conv<F: Element>(
        &mut self,
        kernel: &Kernel<Tensor>,
        geometry: &Geometry,
        x: ArrayView4<'_, F>,
        stride: [usize; 2],
    ) -> Result<Array4<F>, Error> {
        let [_, kh, kw] = kernel.taps;
        let mut values = self.vector(&kernel.weight)?;
        match kernel.layout {
            Layout::Plain => {}
            Layout::Shared => values = values.repeat(geometry.out()),
            Layout::Transposed => return Err(Error::Transposed(kernel.weight.to_string())),
        }
        let shape = (geometry.out(), geometry.in_per_group(), kh, kw);
        let mut weight = Array4::from_shape_vec(shape, values)?;
        if kernel.flipped {
            weight.invert_axis(Axis(2));
            weight.invert_axis(Axis(3));
        }
        let bias = kernel
            .bias
            .as_ref()
            .map(|b| self.vector(b).map(Array1::from))
            .transpose()?;
        let geometry = Conv2dGeometry {
            stride,
            dilation: [kernel.dilation[1], kernel.dilation[2]],
            groups: geometry.groups(),
            ..Default::default()
        };
        Ok(conv2d::conv2d(
            x,
            weight.view(),
            bias.as_ref().map(|b| b.view()),
            &geometry,
        )?)
    }

    fn diagonal<F: Element>(
        &mut self,
        op: &Op<Tensor>,
        mut x: Array4<F>,
    ) -> Result<Array4<F>, Error> {
        let reading = self.reading;
        let Some([mean, factor, shift]) = self.channelwise(op, x.dim().1)? else {
            return Ok(x);
        };
        // Sizes grow by the mean instead of losing it; everything else is positive already.
        let mean: Vec<F> = match reading {
            Reading::Value => mean,
            Reading::Magnitude | Reading::Energy | Reading::Coarse { .. } => {
                mean.into_iter().map(|m| -m).collect()
            }
        };
        for (c, mut maps) in x.axis_iter_mut(Axis(1)).enumerate() {
            maps.mapv_inplace(|x| (x - mean[c]) * factor[c] + shift[c]);
        }
        Ok(x)
    }

    /// What an operator subtracts from each channel, multiplies it with and adds to it, in this order; none where it does nothing.
    fn channelwise<F: Element>(
        &mut self,
        op: &Op<Tensor>,
        channels: usize,
    ) -> Result<Option<[Vec<F>; 3]>, Error> {
        let reading = self.reading;
        let mut as_read = |leaf: &Tensor, reading| -> Result<Vec<F>, Error> {
            let values = self.vector_as(leaf, reading)?;
            Ok(if values.len() == 1 {
                vec![values[0]; channels]
            } else {
                values
            })
        };
        // A variance is one, however the numbers are read.
        let variance = match op {
            Op::Bn(bn) => as_read(&bn.var, Reading::Value)?,
            _ => Vec::new(),
        };
        let mut per_channel = |leaf| as_read(leaf, reading);
        let (ones, zeros) = (vec![F::one(); channels], vec![F::zero(); channels]);
        // As training did: subtract the mean, divide by the root, scale, shift.
        Ok(Some(match op {
            Op::Bn(Bn {
                mean, affine, eps, ..
            }) => {
                let eps: F = F::rounded(*eps);
                let root = |v: F| match reading {
                    Reading::Energy => v + eps,
                    _ => (v + eps).sqrt(),
                };
                let root = variance.into_iter().map(root);
                let (weight, bias) = match affine {
                    Some([weight, bias]) => (per_channel(weight)?, per_channel(bias)?),
                    None => (ones, zeros),
                };
                [
                    per_channel(mean)?,
                    weight.iter().zip(root).map(|(w, root)| *w / root).collect(),
                    bias,
                ]
            }
            Op::Scale(Factor::Number(n)) => [
                zeros.clone(),
                vec![F::rounded(reading.of(*n)); channels],
                zeros,
            ],
            Op::Scale(Factor::Tensor(v)) => {
                let factors = gate(v, &(0..channels), self.values)?.into_iter();
                let factors = factors.map(|x| F::rounded(reading.of(x))).collect();
                [zeros.clone(), factors, zeros]
            }
            Op::Shift(t) => [zeros, ones, per_channel(t)?],
            _ => return Ok(None),
        }))
    }

    fn vector<F: Element>(&mut self, leaf: &Tensor) -> Result<Vec<F>, Error> {
        self.vector_as(leaf, self.reading)
    }

    fn vector_as<F: Element>(&mut self, leaf: &Tensor, reading: Reading) -> Result<Vec<F>, Error> {
        let values = self.values.vector(leaf, 0, Operand::len(leaf))?;
        Ok(values
            .into_iter()
            .map(|x| F::rounded(reading.of(x)))
            .collect())
    }
}

/// The maps without half of `surplus` on each side.
fn centre<F>(mut x: ArrayView4<'_, F>, surplus: [usize; 2]) -> ArrayView4<'_, F> {
    for (axis, n) in [(Axis(2), surplus[0]), (Axis(3), surplus[1])] {
        let end = x.len_of(axis) - (n - n / 2);
        x.slice_axis_inplace(axis, Slice::from(n / 2..end));
    }
    x
}

fn strided<F: Element>(mut x: ArrayView4<'_, F>, stride: [usize; 2]) -> Array4<F> {
    for (axis, step) in [(Axis(2), stride[0]), (Axis(3), stride[1])] {
        x.slice_axis_inplace(axis, Slice::from(..).step_by(step as isize));
    }
    x.to_owned()
}

/// Maps without so many rows and columns before and behind.
fn without<F: Element>(mut x: ArrayView4<'_, F>, margins: [[usize; 2]; 2]) -> ArrayView4<'_, F> {
    for (axis, [before, after]) in [Axis(2), Axis(3)].into_iter().zip(margins) {
        let end = x.len_of(axis) - after;
        x.slice_axis_inplace(axis, Slice::from(before..end));
    }
    x
}

/// Average pooling with stride 1 and no padding.
fn pool<F: Element>(x: ArrayView4<'_, F>, k: [usize; 2], weight: F) -> Array4<F> {
    let (maps, channels, h, w) = x.dim();
    let (h, w) = (h + 1 - k[0], w + 1 - k[1]);
    let mut sum = Array4::zeros((maps, channels, h, w));
    for top in 0..k[0] {
        for left in 0..k[1] {
            let mut shifted = x.view();
            shifted.slice_axis_inplace(Axis(2), Slice::from(top..top + h));
            shifted.slice_axis_inplace(Axis(3), Slice::from(left..left + w));
            sum += &shifted;
        }
    }
    sum.mapv_into(|x| x * weight)
}
