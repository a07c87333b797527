//! What the commands do with a graph instead of a file of weights.

use std::path::Path;

use super::select;
use crate::graph::onnx::{self, Edit, Onnx};
use crate::graph::plan::{self, Left};
use crate::plan::Options;
use crate::summary::inspect::{Form, Inspection, of_plan};
use crate::tensor::Checkpoint;
use crate::verify::{self, Deployed, Verdict};

/// Opens a file if its bytes say that it is a graph.
pub(super) fn open(path: &Path) -> anyhow::Result<Option<Onnx>> {
    match onnx::is_one(path)? {
        true => Ok(Some(Onnx::open(path)?)),
        false => Ok(None),
    }
}

/// Whether a file of this name is to hold weights alone.
pub(super) fn names_weights(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "safetensors")
}

/// What was made of a graph.
pub(super) enum Made {
    Graph(Box<Onnx>),
    Weights(Checkpoint),
}

/// Opens what was made of a graph.
pub(super) fn made(path: &Path) -> anyhow::Result<Made> {
    Ok(match open(path)? {
        Some(onnx) => Made::Graph(Box::new(onnx)),
        None => Made::Weights(select::deployed(path)?),
    })
}

/// Compares a graph with what was made of it.
pub(super) fn verify(
    onnx: &Onnx,
    edit: &Edit,
    made: Option<&Made>,
    options: &verify::Options,
) -> anyhow::Result<Verdict> {
    Ok(match made {
        None => onnx::verify(onnx, edit, None, options)?,
        Some(Made::Graph(made)) => onnx::verify(onnx, edit, Some(made), options)?,
        Some(Made::Weights(file)) => {
            verify::verify(onnx.constants(), &edit.plan, Deployed::File(file), options)?
        }
    })
}

/// What is known about a graph, and what of it stays although it nearly could be folded.
pub(super) fn inspect(onnx: &Onnx) -> anyhow::Result<(Inspection, Vec<Left>)> {
    let (plan, form, left) = match onnx::edit(onnx, &Options::default(), false) {
        Ok(edit) => (Some(edit.plan), Form::Training, edit.left),
        Err(plan::Error::Nothing { left }) => (None, Form::Deploy, left),
        Err(error) => return Err(error.into()),
    };
    Ok((of_plan(onnx.constants(), plan, form), left))
}
