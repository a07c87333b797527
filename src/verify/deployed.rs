//! The deploy form: from a file or made in memory, a range of output channels at a time.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;

use crate::algebra::{Conv, Expr, Geometry, Operand, Values, transposed};
use crate::fuse::fold_rows;
use crate::numbers;
use crate::recipe::Fused;
use crate::tensor::{Checkpoint, Float, Tensor, quoted};
use crate::values::Reader;

/// What the training form is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Deployed<'a> {
    /// A file on disk.
    File(&'a Checkpoint),
    /// What `fuse` would write, folded and rounded in memory.
    InMemory,
}

/// The deploy form's weight and bias and the coarser of their types, or what is wrong with them. None in memory.
pub(super) fn stored<'a>(
    fused: &Fused,
    deployed: Deployed<'a>,
) -> Result<Option<(&'a Tensor, &'a Tensor, Float)>, String> {
    let Deployed::File(file) = deployed else {
        return Ok(None);
    };
    let find = |end: &str| {
        let name = format!("{}.{end}", fused.module);
        file.get(&name)
            .ok_or_else(|| format!("{} is missing", quoted(&name)))
    };
    let (weight, bias) = (find("weight")?, find("bias")?);
    let g = fused.geometry();
    let mut float = Float::F64;
    for (tensor, expected) in [(weight, g.weight_shape()), (bias, vec![g.out])] {
        if tensor.shape() != expected {
            return Err(format!(
                "{tensor} has shape {:?}; expected {expected:?}",
                tensor.shape()
            ));
        }
        let Some(of_tensor) = tensor.dtype().float() else {
            return Err(format!(
                "{tensor} is {}; expected a floating-point type",
                tensor.dtype()
            ));
        };
        float = float.min(of_tensor);
    }
    Ok(Some((weight, bias, float)))
}

/// Output channels `rows` of the deploy form: the kernel `[rows, in/groups, kh, kw]`, the bias, and the type they are
/// stored in. In memory, they are folded and rounded as `fuse` would.
///
/// # Errors
/// When the tensors are missing or of another shape, or cannot be read or folded.
pub fn deployed_rows(
    checkpoint: &Checkpoint,
    fused: &Fused,
    deployed: Deployed<'_>,
    rows: Range<usize>,
) -> Result<(Vec<f64>, Vec<f64>, Float), numbers::Error> {
    let g = fused.geometry();
    match (
        stored(fused, deployed).map_err(numbers::Error::Deployed)?,
        deployed,
    ) {
        (Some((weight, bias, float)), Deployed::File(file)) => {
            let mut reader = Reader::new(file, 0);
            let kernel = if g.transposed {
                transposed::read_rows(weight, g.groups, rows.clone(), &mut reader)?
            } else {
                reader.vector(weight, rows.start * g.row_len(), rows.len() * g.row_len())?
            };
            Ok((kernel, reader.vector(bias, rows.start, rows.len())?, float))
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
            Ok((kernel, bias, fused.dtype))
        }
    }
}

/// The deploy form's rows that are compared at a time, as operands of the algebra.
pub(super) struct Slab {
    pub geometry: Geometry,
    pub first: usize,
    pub kernel: Vec<f64>,
    pub bias: Vec<f64>,
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
            Part::Kernel(_) => (&self.kernel, self.first * self.geometry.row_len()),
            Part::Bias(_) => (&self.bias, self.first),
        };
        out.copy_from_slice(&from[first - skipped..][..out.len()]);
        Ok(())
    }
}

impl Slab {
    pub(super) fn as_conv(&self) -> Expr<Part> {
        let g = &self.geometry;
        Expr::Conv(Conv {
            weight: Part::Kernel([g.out, g.in_per_group(), g.extent[0], g.extent[1]]),
            bias: Some(Part::Bias([g.out])),
            dilation: [1, 1],
            groups: Some(g.groups),
            transposed: false,
        })
    }
}
