//! The deploy form: from a file or made in memory, a range of output channels at a time.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;

use super::tally::At;
use crate::algebra::extent::{POINT, position};
use crate::algebra::shape::resolve;
use crate::algebra::{Conv, Expr, Extent, Geometry, GeometryError, Operand, Resolved, Values};
use crate::fuse::diagnose;
use crate::fuse::{fold_rows, stored_bytes};
use crate::plan::{Plan, PlannedConv, WeightOrBias};
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Error as TensorError, Float, Tensor, quoted};

/// What the training form is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Deployed<'a> {
    /// A file on disk.
    File(&'a Checkpoint),
    /// What `fuse` would write, folded and rounded in memory.
    InMemory,
    /// The training form itself, which has fused convs beside the branches that they were computed from.
    Beside(&'a Checkpoint),
}

impl<'a> Deployed<'a> {
    /// The file that its tensors are in.
    fn file(self) -> Option<&'a Checkpoint> {
        match self {
            Deployed::File(file) | Deployed::Beside(file) => Some(file),
            Deployed::InMemory => None,
        }
    }
}

/// Some output channels of a deploy form.
#[derive(Clone, Debug)]
pub struct DeployedRows {
    /// `[rows, in/groups, kd, kh, kw]`.
    pub kernel: Vec<f64>,
    /// `[rows]`.
    pub bias: Vec<f64>,
    /// The types that kernel and bias are stored in.
    pub types: [Float; 2],
}

/// A tensor of the deploy form and its type.
type Typed<'a> = (&'a Tensor, Float);

/// The deploy form's weight and, if it has one, its bias, or what is wrong with them. None in memory.
pub(super) fn stored<'a>(
    fused: &'a PlannedConv,
    deployed: Deployed<'a>,
) -> Result<Option<(Typed<'a>, Option<Typed<'a>>)>, String> {
    let find = |which: WeightOrBias| {
        let name = fused.name_of(which);
        let found = match deployed {
            Deployed::File(file) => file.get(&name),
            Deployed::Beside(_) => fused.exported(which),
            Deployed::InMemory => None,
        };
        found.ok_or_else(|| format!("{} is missing", quoted(&name)))
    };
    if deployed.file().is_none() {
        return Ok(None);
    }
    let weight = find(WeightOrBias::Weight)?;
    let bias = fused.bias.then(|| find(WeightOrBias::Bias)).transpose()?;
    let g = fused.geometry();
    let check = |tensor: &'a Tensor, expected: Vec<usize>| {
        if tensor.shape() != expected {
            return Err(format!(
                "{tensor} has shape {:?}; expected {expected:?}",
                tensor.shape()
            ));
        }
        let float = tensor.dtype().float();
        let expected = || {
            format!(
                "{tensor} is {}; expected a floating-point type",
                tensor.dtype()
            )
        };
        Ok((tensor, float.ok_or_else(expected)?))
    };
    Ok(Some((
        check(weight, g.weight_shape())?,
        bias.map(|bias| check(bias, vec![g.out()])).transpose()?,
    )))
}

/// How many fused convs of a plan the deploy form has tensors of the right shapes for, and how many there are.
pub(crate) fn fits(plan: &Plan, deployed: Deployed<'_>) -> [usize; 2] {
    let convs = plan.blocks.iter().flat_map(|block| &block.fused);
    let there = convs.clone().filter(|conv| stored(conv, deployed).is_ok());
    [there.count(), convs.count()]
}

/// Output channels `rows` of the deploy form. In memory, they are read from the bytes that `fuse` would write; some rows of a transposed
/// conv, whose bytes lie all over its weight, are folded and rounded alone.
///
/// # Errors
/// When the tensors are missing or of another shape, or cannot be read or folded.
pub fn deployed_rows(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    deployed: Deployed<'_>,
    rows: Range<usize>,
) -> Result<DeployedRows, diagnose::Error> {
    let g = fused.geometry();
    match (
        stored(fused, deployed).map_err(diagnose::Error::Deployed)?,
        deployed.file(),
    ) {
        (Some(((weight, of_weight), bias)), Some(file)) => {
            let mut reader = Reader::new(file, 0);
            let kernel = if g.transposed() {
                turned_rows(g, rows.clone(), |first, taps| {
                    reader.read(weight, first, taps)
                })?
            } else {
                reader.vector(weight, rows.start * g.row_len(), rows.len() * g.row_len())?
            };
            let (bias, of_bias) = match bias {
                Some((bias, of_bias)) => (reader.vector(bias, rows.start, rows.len())?, of_bias),
                None => (vec![0.0; rows.len()], of_weight),
            };
            Ok(DeployedRows {
                kernel,
                bias,
                types: [of_weight, of_bias],
            })
        }
        _ => {
            let [kernel, bias] = match !g.transposed() || rows == (0..g.out()) {
                true => rows_as_written(checkpoint, fused, rows)?,
                false => rows_alone(checkpoint, fused, rows)?,
            };
            Ok(DeployedRows {
                kernel,
                bias,
                types: [fused.dtype; 2],
            })
        }
    }
}

/// The kernel and the bias of some rows, of a transposed conv of all of them, read from the bytes that `fuse` would write.
fn rows_as_written(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    rows: Range<usize>,
) -> Result<[Vec<f64>; 2], diagnose::Error> {
    let g = fused.geometry();
    let mut reader = Reader::new(checkpoint, 1 << 18);
    let written = match g.transposed() {
        true => 0..g.inputs(),
        false => rows.clone(),
    };
    let bytes = stored_bytes(checkpoint, fused, written, &mut reader)?;
    let [stored, bias] = bytes.map(|bytes| {
        let mut numbers = vec![0.0; bytes.len() / fused.dtype.size()];
        fused.dtype.decode(&bytes, &mut numbers);
        numbers
    });
    let kernel = match g.transposed() {
        true => turned_rows(g, rows, |first, taps| {
            taps.copy_from_slice(&stored[first..][..taps.len()]);
            Ok(())
        })?,
        false => stored,
    };
    Ok([kernel, bias])
}

/// The kernel and the bias of some rows of a transposed conv. Each lies all over its weight, of which nothing else is wanted.
fn rows_alone(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    rows: Range<usize>,
) -> Result<[Vec<f64>; 2], diagnose::Error> {
    let mut reader = Reader::new(checkpoint, 0);
    let (mut kernel, mut bias) = fold_rows(checkpoint, fused, rows, &mut reader)?;
    kernel
        .iter_mut()
        .chain(&mut bias)
        .for_each(|x| *x = fused.dtype.round(*x));
    Ok([kernel, bias])
}

/// Output channels of a transposed conv's weight, which is stored as `[in, out/groups, …]`, as those of the plain conv that does the
/// same over a map with zeros between the pixels: its taps are turned by 180°.
fn turned_rows(
    g: &Geometry,
    rows: Range<usize>,
    mut read: impl FnMut(usize, &mut [f64]) -> Result<(), TensorError>,
) -> Result<Vec<f64>, TensorError> {
    let (taps, columns) = (g.taps(), g.out_per_group());
    let mut kernel = vec![0.0; rows.len() * g.row_len()];
    let mut side_by_side = Vec::new();
    let mut o = rows.start;
    while o < rows.end {
        // The output channels of one group lie side by side for each input, and are read at once.
        let column = o % columns;
        let count = (columns - column).min(rows.end - o);
        side_by_side.resize(count * taps, 0.0);
        for i in 0..g.in_per_group() {
            let first = (g.first_input(o) + i) * columns + column;
            read(first * taps, &mut side_by_side)?;
            for (n, stored) in side_by_side.chunks_exact(taps).enumerate() {
                let at = (o - rows.start + n) * g.row_len() + i * taps;
                let turned = stored.iter().rev();
                kernel[at..][..taps]
                    .iter_mut()
                    .zip(turned)
                    .for_each(|(to, from)| *to = *from);
            }
        }
        o += count;
    }
    Ok(kernel)
}

/// The deploy form's rows that are compared at a time, as operands of the algebra.
pub(super) struct Slab {
    pub geometry: Geometry,
    pub first: usize,
    pub rows: DeployedRows,
}

/// Weight and bias of a slab, with their shapes.
#[derive(Clone)]
pub(super) enum Stored {
    Kernel([usize; 5]),
    Bias([usize; 1]),
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stored::Kernel(_) => "weight",
            Stored::Bias(_) => "bias",
        })
    }
}

impl Operand for Stored {
    fn shape(&self) -> &[usize] {
        match self {
            Stored::Kernel(shape) => shape,
            Stored::Bias(shape) => shape,
        }
    }
}

impl Values<Stored> for &Slab {
    type Error = Infallible;

    fn read(&mut self, leaf: &Stored, first: usize, out: &mut [f64]) -> Result<(), Self::Error> {
        let (from, skipped) = match leaf {
            Stored::Kernel(_) => (&self.rows.kernel, self.first * self.geometry.row_len()),
            Stored::Bias(_) => (&self.rows.bias, self.first),
        };
        out.copy_from_slice(&from[first - skipped..][..out.len()]);
        Ok(())
    }
}

/// The index of a weight, given its output channel, its input channel in the group and its tap, as it is stored: in as many
/// dimensions, and of a transposed conv as `[in, out/groups, …]` with its taps turned.
pub(super) fn stored_index(g: &Geometry, [o, i]: [usize; 2], tap: Extent) -> Vec<usize> {
    let (channels, tap) = match g.transposed() {
        false => ([o, i], tap),
        true => {
            let turned = [0, 1, 2].map(|axis| g.extent()[axis] - 1 - tap[axis]);
            ([g.first_input(o) + i, o % g.out_per_group()], turned)
        }
    };
    let axes = &tap[tap.len() + 2 - g.rank()..];
    channels.iter().chain(axes).copied().collect()
}

impl Slab {
    /// The first stored number that is none.
    pub(super) fn not_finite(&self) -> Option<At> {
        let first = |values: &[f64]| values.iter().position(|x| !x.is_finite());
        let g = &self.geometry;
        let at = |which, index, found| At {
            which,
            index,
            found,
            expected: None,
            whole_channel: false,
        };
        let of_kernel = first(&self.rows.kernel).map(|i| {
            let (row, taps) = (g.row_len(), g.taps());
            let channels = [self.first + i / row, i % row / taps];
            let tap = position(i % taps, g.extent());
            at(
                WeightOrBias::Weight,
                stored_index(g, channels, tap),
                self.rows.kernel[i],
            )
        });
        of_kernel.or_else(|| {
            let i = first(&self.rows.bias)?;
            let index = vec![self.first + i];
            Some(at(WeightOrBias::Bias, index, self.rows.bias[i]))
        })
    }

    /// The conv that the deploy form is.
    ///
    /// # Errors
    /// None, for a geometry is one of a conv.
    pub(super) fn as_conv(&self) -> Result<Resolved<Stored>, GeometryError> {
        let g = &self.geometry;
        let [kd, kh, kw] = g.extent();
        resolve(Expr::Conv(Conv {
            weight: Stored::Kernel([g.out(), g.in_per_group(), kd, kh, kw]),
            bias: Some(Stored::Bias([g.out()])),
            dilation: POINT,
            groups: Some(g.groups()),
            transposed: false,
            flipped: false,
            shared: false,
        }))
    }
}
