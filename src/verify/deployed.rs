//! The deploy form: from a file or made in memory, a range of output channels at a time.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;

use crate::algebra::shape::transposed;
use crate::algebra::{Conv, Expr, Geometry, Operand, Values};
use crate::fuse::diagnose;
use crate::fuse::fold_rows;
use crate::plan::PlannedConv;
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Float, Tensor, quoted};

/// What the training form is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Deployed<'a> {
    /// A file on disk.
    File(&'a Checkpoint),
    /// What `fuse` would write, folded and rounded in memory.
    InMemory,
}

/// Some output channels of a deploy form.
#[derive(Clone, Debug)]
pub struct DeployedRows {
    /// `[rows, in/groups, kh, kw]`.
    pub kernel: Vec<f64>,
    /// `[rows]`.
    pub bias: Vec<f64>,
    /// The types that kernel and bias are stored in.
    pub types: [Float; 2],
}

/// A tensor of the deploy form and its type.
type Stored<'a> = (&'a Tensor, Float);

/// The deploy form's weight and, if it has one, its bias, or what is wrong with them. None in memory.
pub(super) fn stored<'a>(
    fused: &PlannedConv,
    deployed: Deployed<'a>,
) -> Result<Option<(Stored<'a>, Option<Stored<'a>>)>, String> {
    let Deployed::File(file) = deployed else {
        return Ok(None);
    };
    let find = |end: &str| {
        let name = format!("{}.{end}", fused.module);
        file.get(&name)
            .ok_or_else(|| format!("{} is missing", quoted(&name)))
    };
    let weight = find("weight")?;
    let bias = fused.bias.then(|| find("bias")).transpose()?;
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
        bias.map(|bias| check(bias, vec![g.out])).transpose()?,
    )))
}

/// Output channels `rows` of the deploy form. In memory, they are folded and rounded as `fuse` would.
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
        deployed,
    ) {
        (Some(((weight, of_weight), bias)), Deployed::File(file)) => {
            let mut reader = Reader::new(file, 0);
            let kernel = if g.transposed {
                transposed::read_rows(weight, g.groups, rows.clone(), &mut reader)?
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
            // A row of a transposed conv lies all over its weight; nothing beside it is wanted.
            let window = if g.transposed { 0 } else { 1 << 18 };
            let mut reader = Reader::new(checkpoint, window);
            let (mut kernel, mut bias) = fold_rows(checkpoint, fused, rows, &mut reader)?;
            kernel
                .iter_mut()
                .chain(&mut bias)
                .for_each(|x| *x = fused.dtype.round(*x));
            Ok(DeployedRows {
                kernel,
                bias,
                types: [fused.dtype; 2],
            })
        }
    }
}

/// The deploy form's rows that are compared at a time, as operands of the algebra.
pub(super) struct Slab {
    pub geometry: Geometry,
    pub first: usize,
    pub rows: DeployedRows,
}

#[derive(Clone)]
pub(super) enum Part {
    Kernel([usize; 4]),
    Bias([usize; 1]),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Kernel(_) => "weight",
            Part::Bias(_) => "bias",
        })
    }
}

impl Operand for Part {
    fn shape(&self) -> &[usize] {
        match self {
            Part::Kernel(shape) => shape,
            Part::Bias(shape) => shape,
        }
    }
}

impl Values<Part> for &Slab {
    type Error = Infallible;

    fn read(&mut self, leaf: &Part, first: usize, out: &mut [f64]) -> Result<(), Self::Error> {
        let (from, skipped) = match leaf {
            Part::Kernel(_) => (&self.rows.kernel, self.first * self.geometry.row_len()),
            Part::Bias(_) => (&self.rows.bias, self.first),
        };
        out.copy_from_slice(&from[first - skipped..][..out.len()]);
        Ok(())
    }
}

/// An index `[o, i, y, x]` as the weight is stored: in as many dimensions, and of a transposed conv as `[in, out/groups, kh, kw]`
/// with its taps turned.
pub(super) fn stored_index(g: &Geometry, index: [usize; 4]) -> Vec<usize> {
    let index = match g.transposed {
        false => index,
        true => {
            let ([o, i, y, x], [kh, kw]) = (index, g.extent);
            let width = (g.out / g.groups.max(1)).max(1);
            let input = o / width * g.in_per_group() + i;
            [input, o % width, kh - 1 - y, kw - 1 - x]
        }
    };
    match g.rank {
        0..=2 => index[..2].to_vec(),
        3 => vec![index[0], index[1], index[3]],
        _ => index.to_vec(),
    }
}

impl Slab {
    /// The first stored number that is none: in which tensor, and its index there.
    pub(super) fn not_finite(&self) -> Option<(&'static str, Vec<usize>)> {
        let first = |values: &[f64]| values.iter().position(|x| !x.is_finite());
        let g = &self.geometry;
        let of_kernel = first(&self.rows.kernel).map(|i| {
            let (row, area) = (g.row_len(), g.extent[0] * g.extent[1]);
            let tap = i % area;
            let index = [
                self.first + i / row,
                i % row / area,
                tap / g.extent[1],
                tap % g.extent[1],
            ];
            ("weight", stored_index(g, index))
        });
        of_kernel.or_else(|| first(&self.rows.bias).map(|i| ("bias", vec![self.first + i])))
    }

    pub(super) fn as_conv(&self) -> Expr<Part> {
        let g = &self.geometry;
        Expr::Conv(Conv {
            weight: Part::Kernel([g.out, g.in_per_group(), g.extent[0], g.extent[1]]),
            bias: Some(Part::Bias([g.out])),
            dilation: [1, 1],
            groups: Some(g.groups),
            transposed: false,
            flipped: false,
            shared: false,
        })
    }
}
