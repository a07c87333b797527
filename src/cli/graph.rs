//! What the commands do with a graph instead of a file of weights.

use std::path::Path;

use super::output;
use crate::graph::file::Error;
use crate::graph::plan::Left;
use crate::graph::{Agreement, Folded, GraphFile, numbers, pt2};
use crate::plan::{Options, Plan};
use crate::summary::inspect::{Form, Inspection, of_plan};
use crate::tensor::{Checkpoint, Float, quoted};

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

/// Whether a file of this name is to hold weights alone.
pub(super) fn names_weights(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "safetensors")
}

/// What is known about a graph, and what of it stays although it nearly could be folded.
pub(super) fn inspect(file: &GraphFile) -> anyhow::Result<(Inspection, Vec<Left>)> {
    let folded = file.fold(&Options::default(), false)?;
    let left = folded.left().to_vec();
    let plan = folded.into_plan();
    let (plan, form) = match plan.blocks().is_empty() {
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
    Ok(numbers::with_numbers(&pt2, edit.plan, checkpoint, dtype)?)
}
