//! Numbers that cannot be folded or stored: found, named, and placed.

use crate::algebra::forward;
use crate::algebra::{Bn, GeometryError, Values};
use crate::plan::{Block, Plan, PlannedConv, WeightOrBias};
use crate::tensor::Reader;
use crate::tensor::channels_last::channels_last;
use crate::tensor::{Checkpoint, Error as TensorError, Float, Tensor, quoted};

/// A number that stands in the way.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error(
        "{tensor} is 0 at {index:?}, and the eps of its norm is 0, too; their sum is divided by, and must be above 0"
    )]
    NoVariance { tensor: String, index: Vec<usize> },
    #[error("{tensor} is {value:?} at {index:?}; a variance must be finite and not negative")]
    Variance {
        tensor: String,
        index: Vec<usize>,
        value: f64,
    },
    #[error("{tensor} is {value:?} at {index:?}; expected a finite number")]
    NotFinite {
        tensor: String,
        index: Vec<usize>,
        value: f64,
    },
    #[error(
        "the fused {tensor} at {index:?} is beyond the largest f64, although every tensor it comes from is finite"
    )]
    Unbounded { tensor: String, index: Vec<usize> },
    #[error(
        "the fused {tensor} is {value:.4e} at {index:?}, beyond the largest {dtype}, {largest:.4e}"
    )]
    Overflow {
        tensor: String,
        index: Vec<usize>,
        value: f64,
        dtype: Float,
        largest: f64,
    },
    #[error(
        "{tensor} is {value:.4e} at {index:?}, beyond the largest {dtype}, {largest:.4e}; store only the fused tensors in {dtype}"
    )]
    TooLarge {
        tensor: String,
        index: Vec<usize>,
        value: f64,
        dtype: Float,
        largest: f64,
    },
    #[error(
        "block {}: the file has the conv {} beside the branches that it was computed from, and it is not what they give: {why}{}",
        quoted(block),
        quoted(conv),
        and_more(*more)
    )]
    Exported {
        block: String,
        conv: String,
        why: String,
        more: usize,
    },
    #[error("{0}")]
    Deployed(String),
    #[error(transparent)]
    Shapes(#[from] GeometryError),
    #[error(transparent)]
    Probes(#[from] forward::Misfit),
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl From<forward::Error<TensorError>> for Error {
    fn from(error: forward::Error<TensorError>) -> Error {
        match error {
            forward::Error::Misfit(misfit) => misfit.into(),
            forward::Error::Values(error) => error.into(),
        }
    }
}

fn and_more(convs: usize) -> String {
    match convs {
        0 => String::new(),
        1 => "; so it is with another conv".to_owned(),
        n => format!("; so it is with {n} other convs"),
    }
}

/// The element types that would hold a number that `dtype` does not.
pub fn holding(value: f64, dtype: Float) -> impl Iterator<Item = Float> {
    let types = [Float::F32, Float::Bf16].into_iter();
    types.filter(move |float| *float != dtype && float.round(value).is_finite())
}

/// How much the eps of the batch norms matters for a file.
#[derive(Clone, Debug, PartialEq)]
pub struct EpsSensitivity {
    /// The eps it is compared with: 1e-3, or 1e-5 where the recipe has about 1e-3.
    pub other: f64,
    /// The largest relative change of a channel's scale `1/√(var + eps)` if that were the eps.
    pub largest: f64,
    /// The variance at which it is that large.
    pub var: f64,
    /// The batch norm's `running_var`.
    pub tensor: String,
    /// The number of the recipe among those of the plan. (A graph has none.)
    pub family: Option<usize>,
}

/// That of the recipe for which it matters most.
pub fn heaviest(weights: &[EpsSensitivity]) -> Option<&EpsSensitivity> {
    weights
        .iter()
        .max_by(|a, b| a.largest.total_cmp(&b.largest))
}

/// Checks every variance of the plan and weighs the eps of each recipe that has norms. Nothing but `running_var` is read.
///
/// # Errors
/// When a variance makes its square root meaningless, or cannot be read.
pub fn check_norms(checkpoint: &Checkpoint, plan: &Plan) -> Result<Vec<EpsSensitivity>, Error> {
    let of = |block: usize| plan.families.iter().position(|f| f.blocks.contains(&block));
    // The smaller a variance, the more the eps beside it matters.
    let mut smallest: Vec<(Option<usize>, f64, &Bn<Tensor>)> = Vec::new();
    for_each_norm(checkpoint, &plan.blocks, |block, bn, vars| {
        let family = of(block);
        let Some(var) = vars.iter().copied().reduce(f64::min) else {
            return;
        };
        match smallest.iter_mut().find(|found| found.0 == family) {
            Some(found) if change_of_scale(bn, var) > change_of_scale(found.2, found.1) => {
                *found = (family, var, bn);
            }
            Some(_) => {}
            None => smallest.push((family, var, bn)),
        }
    })?;
    let weight = |(family, var, bn): (Option<usize>, f64, &Bn<Tensor>)| EpsSensitivity {
        other: other_eps(bn),
        largest: change_of_scale(bn, var),
        var,
        tensor: bn.var.name().to_owned(),
        family,
    };
    Ok(smallest.into_iter().map(weight).collect())
}

/// The usual eps that a norm's is not.
fn other_eps(bn: &Bn<Tensor>) -> f64 {
    if bn.eps > 1e-4 { 1e-5 } else { 1e-3 }
}

/// The relative change of a channel's scale if the eps were the other one.
fn change_of_scale(bn: &Bn<Tensor>, var: f64) -> f64 {
    (((var + bn.eps) / (var + other_eps(bn))).sqrt() - 1.0).abs()
}

/// Checks every variance of some blocks.
///
/// # Errors
/// As for [`check_norms`].
pub(crate) fn check_variances(checkpoint: &Checkpoint, blocks: &[Block]) -> Result<(), Error> {
    for_each_norm(checkpoint, blocks, |_, _, _| ())
}

/// Calls `f` with the number of the block, the norm and its variances, each of which can be one.
fn for_each_norm<'p>(
    checkpoint: &Checkpoint,
    blocks: &'p [Block],
    mut f: impl FnMut(usize, &'p Bn<Tensor>, &[f64]),
) -> Result<(), Error> {
    let mut reader = Reader::new(checkpoint, 1 << 16);
    for (number, block) in blocks.iter().enumerate() {
        for bn in block
            .fused
            .iter()
            .flat_map(|fused| fused.expr.root().norms())
        {
            let vars = reader.vector(&bn.var, 0, bn.var.len())?;
            let is_one = |var: f64| (var >= 0.0) & var.is_finite() & (var + bn.eps > 0.0);
            // All of them are looked at first, which runs in vectors.
            let all = vars.iter().fold(true, |all, var| all & is_one(*var));
            let wrong = || vars.iter().position(|var| !is_one(*var));
            if let Some(i) = (!all).then(wrong).flatten() {
                if vars[i] == 0.0 && bn.eps == 0.0 {
                    return Err(Error::NoVariance {
                        tensor: bn.var.to_string(),
                        index: place(&bn.var, i),
                    });
                }
                return Err(Error::Variance {
                    tensor: bn.var.to_string(),
                    index: place(&bn.var, i),
                    value: vars[i],
                });
            }
            f(number, bn, &vars);
        }
        reader.forget();
    }
    Ok(())
}

/// Says why channel `o` of a fused conv has no finite value in its type.
pub(crate) fn explain(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    o: usize,
    row: &[f64],
    bias: f64,
) -> Error {
    let mut reader = Reader::new(checkpoint, 1 << 16);
    for leaf in fused.expr.root().leaves() {
        match first_where(&mut reader, leaf, |x| !x.is_finite()) {
            Ok(Some((i, value))) => {
                return Error::NotFinite {
                    tensor: leaf.to_string(),
                    index: place(leaf, i),
                    value,
                };
            }
            Ok(None) => {}
            Err(error) => return error.into(),
        }
    }
    let dtype = fused.dtype;
    let stored = |x: &f64| dtype.round(*x).is_finite();
    let (which, index, value) = match row.iter().position(|x| !stored(x)) {
        Some(i) => {
            let mut index = place_in(&fused.geometry().weight_shape()[1..], i);
            index.insert(0, o);
            if fused.is_channels_last() {
                index = channels_last(&index);
            }
            (WeightOrBias::Weight, index, row[i])
        }
        None => (WeightOrBias::Bias, vec![o], bias),
    };
    let tensor = quoted(&fused.name_of(which));
    if !value.is_finite() {
        return Error::Unbounded { tensor, index };
    }
    Error::Overflow {
        tensor,
        index,
        value,
        dtype,
        largest: dtype.largest(),
    }
}

/// A number of a copied tensor that the type it is to be stored in does not hold.
pub(crate) fn too_large(tensor: &Tensor, flat: usize, value: f64, dtype: Float) -> Error {
    Error::TooLarge {
        tensor: tensor.to_string(),
        index: place(tensor, flat),
        value,
        dtype,
        largest: dtype.largest(),
    }
}

/// The first number of a tensor of which this is true, and its flat position.
pub(crate) fn first_where(
    reader: &mut Reader<'_>,
    leaf: &Tensor,
    is: impl Fn(f64) -> bool,
) -> Result<Option<(usize, f64)>, TensorError> {
    let mut buffer = vec![0.0; leaf.len().min(1 << 14)];
    let mut first = 0;
    while first < leaf.len() {
        let part = (leaf.len() - first).min(buffer.len());
        reader.read(leaf, first, &mut buffer[..part])?;
        if let Some(i) = buffer[..part].iter().position(|x| is(*x)) {
            return Ok(Some((first + i, buffer[i])));
        }
        first += part;
    }
    Ok(None)
}

fn place(tensor: &Tensor, flat: usize) -> Vec<usize> {
    let index = place_in(tensor.stored_shape(), tensor.begins().unwrap_or(0) + flat);
    match tensor.is_channels_last() {
        true => channels_last(&index),
        false => index,
    }
}

/// The index of a flat position in a row-major shape.
pub fn place_in(shape: &[usize], flat: usize) -> Vec<usize> {
    let mut rest = flat;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&n| (rest % n.max(1), rest /= n.max(1)).0)
        .collect();
    index.reverse();
    index
}
