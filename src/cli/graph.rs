//! What the commands do with a graph instead of a file of weights.

use std::path::Path;

use super::output;
use crate::graph::file::Error;
use crate::graph::plan::Left;
use crate::graph::{Agreement, Folded, GraphFile, Op, numbers, pt2};
use crate::plan::{Options, Plan};
use crate::summary::inspect::{Form, Inspection, of_plan};
use crate::summary::norms::norms;
use crate::tensor::{self, Checkpoint, Float, Format, quoted};

/// Opens a file if its bytes say that it is a graph.
pub(super) fn open(path: &Path) -> anyhow::Result<Option<GraphFile>> {
    plain(GraphFile::open(path))
}

/// The error itself, which decides the exit status, without what says of which format the file is.
pub(super) fn plain<T>(result: Result<T, Error>) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        Error::Numbers(e) => e.into(),
        Error::Tensor(e) => e.into(),
        other => other.into(),
    })
}

/// What a file of a name is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// A graph, with its weights.
    Graph,
    /// Weights alone.
    Weights,
}

/// What a file of this name is to hold that is made of a graph. A name that promises nothing holds the graph.
///
/// # Errors
/// When the name is that of another format.
pub(super) fn holds(file: &GraphFile, output: &Path) -> anyhow::Result<Holds> {
    let (own, is) = match file {
        GraphFile::Onnx(_) => ("onnx", "an ONNX model"),
        GraphFile::Pt2(_) => ("pt2", "a program of torch.export"),
    };
    let end = output.extension().unwrap_or_default().to_ascii_lowercase();
    if end == own {
        return Ok(Holds::Graph);
    }
    match Format::of(output) {
        Ok(Format::Pytorch) => Ok(Holds::Weights),
        Ok(Format::Safetensors) if end == "safetensors" => Ok(Holds::Weights),
        Ok(Format::Safetensors) => Ok(Holds::Graph),
        Err(tensor::Error::OtherFormat { path, is: promised }) => anyhow::bail!(
            "{} is the name of {promised}, and {} is {is}; choose a name that ends in `.{own}`, or for its weights alone in `.safetensors` or `.pt`",
            quoted(&path.display().to_string()),
            quoted(&file.constants().path().display().to_string()),
        ),
        Err(error) => Err(error.into()),
    }
}

/// What is known about a graph, and what of it stays although it nearly could be folded.
pub(super) fn inspect(file: &GraphFile) -> anyhow::Result<(Inspection, Vec<Left>)> {
    let folded = file.fold(&Options::default(), false)?;
    let left = folded.left().to_vec();
    let plan = folded.into_plan();
    let norms_left = !norms(file.constants(), &plan).left.is_empty()
        || (file.graph().nodes().iter()).any(|node| matches!(node.op, Op::Norm(_)));
    let (plan, form) = match plan.blocks().is_empty() {
        // Whether they are to be there only the author knows.
        true if norms_left => (None, Form::Unknown),
        true => (None, Form::Deploy),
        false => (Some(plan), Form::Training),
    };
    Ok((of_plan(file.constants(), plan, form), left))
}

/// Says where a built-in recipe and the graph differ.
pub(super) fn differences(folded: &Folded<'_>) {
    folded.agreement().into_iter().for_each(tell);
}

fn tell(agreement: &Agreement) {
    for difference in &agreement.differences {
        output::note(&format!("repfuse: {difference}"));
    }
}

/// The plan for a file of weights by a graph of the same model.
pub(super) fn with_numbers(
    path: &Path,
    (options, even_if_dearer): (&Options, bool),
    checkpoint: &Checkpoint,
    dtype: Option<Float>,
) -> anyhow::Result<Plan> {
    let Some(GraphFile::Pt2(pt2)) = open(path)? else {
        anyhow::bail!(
            "{} is no program of torch.export; expected a `.pt2` that torch.export.save wrote",
            quoted(&path.display().to_string())
        );
    };
    let edit = pt2::edit(&pt2, options, even_if_dearer)?;
    tell(&edit.agreement);
    Ok(numbers::with_numbers(&pt2, edit, checkpoint, dtype)?)
}
