//! One export, many trainings: the structure from a graph, the numbers from a file of weights.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::model::Op;
use super::pt2::{Edit, Pt2};
use crate::algebra::shape::resolve;
use crate::algebra::{Bn, Conv, Expr, Factor, Vector};
use crate::plan::{Block, Plan, PlannedConv, Source, copy, stored_type};
use crate::recipe::model::BATCH_COUNT;
use crate::tensor::{self, Checkpoint, Float, Part, Place, Tensor, quoted};

/// A file of weights that is not of the network that the graph is of.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("{tensor} of the graph is not in {checkpoint}; the graph must be of the same model", tensor = quoted(tensor), checkpoint = quoted(checkpoint))]
    Missing { tensor: String, checkpoint: String },
    #[error("{tensor} of {checkpoint} is not in the graph; the graph must be of the same model", tensor = quoted(tensor), checkpoint = quoted(checkpoint))]
    LeftOver { tensor: String, checkpoint: String },
    #[error("{tensor} is {found:?} in {checkpoint} and {expected:?} in the graph; the graph must be of the same model", tensor = quoted(tensor), checkpoint = quoted(checkpoint))]
    Shape {
        tensor: String,
        checkpoint: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("block {block}: {message}")]
    Block { block: String, message: String },
    #[error(
        "block {block}: the graph computes a weight of {tensor}, and was read with its own numbers; export the model with the numbers of the checkpoint, and fuse that",
        tensor = quoted(tensor)
    )]
    Computed { block: String, tensor: String },
    #[error(
        "block {block}: what is around a padded value was compared with what the layers before it make of zeros, by the numbers of the graph; export the model with the numbers of the checkpoint, and fuse that"
    )]
    Border { block: String },
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
}

/// A constant of the graph that no state dict holds is kept in memory up to this size.
const LONGEST_CONSTANT: u64 = 1 << 20;

/// The plan for a file of weights that the plan for a graph becomes. `dtype` is the type that fused tensors are stored in, if not
/// that of the weights.
///
/// # Errors
/// When names or shapes of the two do not fit.
pub fn with_numbers(
    pt2: &Pt2,
    edit: Edit,
    checkpoint: &Checkpoint,
    dtype: Option<Float>,
) -> Result<Plan, Error> {
    let source = Numbers {
        pt2,
        checkpoint,
        tensors: by_names_of(pt2, checkpoint),
    };
    source.left_over()?;
    let Edit { plan, regions, .. } = edit;
    for (block, region) in plan.blocks.iter().zip(&regions.folded) {
        let mut ops = region.nodes.iter().map(|id| &pt2.graph().node(*id).op);
        if ops.any(|op| matches!(op, Op::Border { .. })) {
            let block = block.name.clone();
            return Err(Error::Border { block });
        }
    }
    let mut outputs = Vec::new();
    for planned in &plan.outputs {
        if let Source::Copy(tensor) = &planned.what
            && let Some(found) = source.find(tensor)?
        {
            outputs.push(copy(&found, found.name().to_owned()));
        }
    }
    let mut blocks = Vec::with_capacity(plan.blocks.len());
    for block in &plan.blocks {
        blocks.push(source.block(block, dtype)?);
    }
    for (b, conv) in blocks.iter().map(|block| &block.fused[0]).enumerate() {
        outputs.extend(conv.outputs([b, 0]));
    }
    Ok(Plan {
        blocks,
        outputs,
        ..plan
    })
}

struct Numbers<'a> {
    pt2: &'a Pt2,
    checkpoint: &'a Checkpoint,
    /// The tensors of the file, by the names that the graph has for them.
    tensors: BTreeMap<&'a str, &'a Tensor>,
}

/// The tensors of a file of weights by name. Where the graph has the parts of a weight, as those of weight norm, and not the weight that
/// they make, these stand for it.
fn by_names_of<'a>(pt2: &'a Pt2, checkpoint: &'a Checkpoint) -> BTreeMap<&'a str, &'a Tensor> {
    let known: HashSet<&str> = pt2.state().collect();
    let mut tensors = BTreeMap::new();
    for tensor in checkpoint.tensors().values() {
        match tensor.parts() {
            parts if !parts.is_empty() && !known.contains(tensor.name()) => {
                tensors.extend(parts.iter().map(|part| (part.name(), part)));
            }
            _ => drop(tensors.insert(tensor.name(), tensor)),
        }
    }
    tensors
}

impl Numbers<'_> {
    fn shown(&self) -> String {
        self.checkpoint.path().display().to_string()
    }

    fn left_over(&self) -> Result<(), Error> {
        let known: HashSet<&str> = self.pt2.state().collect();
        let mut names = self.tensors.keys();
        match names.find(|name| !known.contains(**name) && !is_counter(name)) {
            None => Ok(()),
            Some(tensor) => Err(Error::LeftOver {
                tensor: (*tensor).to_owned(),
                checkpoint: self.shown(),
            }),
        }
    }

    /// The tensor of the checkpoint that one of the graph stands for; none for a counter that an old file does not have.
    fn find(&self, tensor: &Tensor) -> Result<Option<Tensor>, Error> {
        let Some(found) = self.tensors.get(tensor.name()).copied() else {
            return match is_counter(tensor.name()) {
                true => Ok(None),
                false => Err(Error::Missing {
                    tensor: tensor.name().to_owned(),
                    checkpoint: self.shown(),
                }),
            };
        };
        if found.shape() != tensor.stored_shape() {
            return Err(Error::Shape {
                tensor: tensor.name().to_owned(),
                checkpoint: self.shown(),
                found: found.shape().to_vec(),
                expected: tensor.stored_shape().to_vec(),
            });
        }
        Ok(Some(found.clone()))
    }

    fn block(&self, block: &Block, dtype: Option<Float>) -> Result<Block, Error> {
        let fail = |message: String| Error::Block {
            block: block.name.clone(),
            message,
        };
        let state: HashSet<&str> = self.pt2.state().collect();
        let mut fused = Vec::with_capacity(block.fused.len());
        for conv in &block.fused {
            let expr = replaced(
                &conv.expr.root().expr(),
                &|leaf: &Tensor| match leaf.place() {
                    Place::InMemory(_) => match self.pt2.computed_of(leaf.name()) {
                        Some([first, ..]) => Err(Error::Computed {
                            block: block.name.clone(),
                            tensor: first.name().to_owned(),
                        }),
                        _ => Ok(leaf.clone()),
                    },
                    _ if !state.contains(leaf.name()) => self.held(leaf),
                    _ => {
                        let found = self
                            .find(leaf)?
                            .ok_or_else(|| fail(format!("{leaf} is missing")))?;
                        laid_as(&found, leaf).map_err(fail)
                    }
                },
            )?;
            let expr = resolve(expr).map_err(|e| fail(e.to_string()))?;
            let expr = expr.with_rank(conv.geometry().rank());
            let stored = stored_type(expr.root()).map_err(fail)?;
            fused.push(PlannedConv {
                module: conv.module.clone(),
                expr,
                bias: conv.bias,
                dtype: dtype.unwrap_or(stored),
                exported: Vec::new(),
            });
        }
        let consumed = block
            .consumed
            .iter()
            .filter_map(|tensor| self.tensors.get(tensor.name()).copied());
        Ok(Block {
            name: block.name.clone(),
            fused,
            consumed: consumed.cloned().collect(),
            assumes_identity: block.assumes_identity,
        })
    }

    /// A constant of the graph, in memory.
    fn held(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        let fail = |message: String| Error::Block {
            block: tensor.name().to_owned(),
            message,
        };
        if tensor.byte_len() > LONGEST_CONSTANT {
            return Err(fail(format!(
                "a constant of the graph that no file of weights holds has {} bytes; at most {LONGEST_CONSTANT} are taken",
                tensor.byte_len()
            )));
        }
        let mut bytes = vec![0; tensor.byte_len() as usize];
        self.pt2.constants().read_at(tensor, 0, &mut bytes)?;
        let part = Part {
            name: tensor.name().to_owned(),
            dtype: tensor.dtype().clone(),
            shape: tensor.shape().to_vec(),
            place: Place::InMemory(Arc::from(bytes)),
        };
        Tensor::new(part).map_err(fail)
    }
}

/// A tensor as the graph looks at one: with its axes exchanged, some of its numbers, other dimensions.
fn laid_as(found: &Tensor, leaf: &Tensor) -> Result<Tensor, String> {
    let found = match (leaf.is_turned(), leaf.begins()) {
        (true, _) => (found.turned()).ok_or_else(|| format!("{leaf} is no plain matrix"))?,
        (false, Some(first)) => (found.reshaped(vec![found.len()]))
            .stretch(first..first + leaf.len())
            .ok_or_else(|| format!("{leaf} is no plain vector"))?,
        (false, None) => found.clone(),
    };
    Ok(match found.shape() == leaf.shape() {
        true => found,
        false => found.reshaped(leaf.shape().to_vec()),
    })
}

/// An expression with other leaves.
fn replaced(
    expr: &Expr<Tensor>,
    f: &dyn Fn(&Tensor) -> Result<Tensor, Error>,
) -> Result<Expr<Tensor>, Error> {
    let all = |xs: &[Expr<Tensor>]| -> Result<Vec<_>, Error> {
        xs.iter().map(|x| replaced(x, f)).collect()
    };
    Ok(match expr {
        Expr::Conv(conv) => Expr::Conv(Conv {
            weight: f(&conv.weight)?,
            bias: conv.bias.as_ref().map(f).transpose()?,
            ..conv.clone()
        }),
        Expr::Bn(norm) => Expr::Bn(Bn {
            mean: f(&norm.mean)?,
            var: f(&norm.var)?,
            affine: match &norm.affine {
                Some([weight, bias]) => Some([f(weight)?, f(bias)?]),
                None => None,
            },
            eps: norm.eps,
        }),
        Expr::Scale(Factor::Tensor(vector)) => Expr::Scale(Factor::Tensor(Vector {
            tensor: f(&vector.tensor)?,
            ..vector.clone()
        })),
        Expr::Shift(tensor) => Expr::Shift(f(tensor)?),
        Expr::Seq(xs) => Expr::Seq(all(xs)?),
        Expr::Sum(xs) => Expr::Sum(all(xs)?),
        Expr::Stack(xs) => Expr::Stack(all(xs)?),
        Expr::Scale(Factor::Number(_))
        | Expr::AvgPool(_)
        | Expr::Crop(_)
        | Expr::Identity
        | Expr::Select(_) => expr.clone(),
    })
}

/// Whether a tensor counts batches, which old files do not have and no deploy form needs.
fn is_counter(name: &str) -> bool {
    name.rsplit('.').next() == Some(BATCH_COUNT)
}
