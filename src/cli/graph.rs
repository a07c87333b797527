//! What the commands do with a graph instead of a file of weights.

use std::path::Path;

use super::{output, select};
use crate::graph::file::Error;
use crate::graph::plan::{self, Left};
use crate::graph::{Folded, GraphFile};
use crate::plan::Options;
use crate::summary::inspect::{Form, Inspection, of_plan};
use crate::tensor::Checkpoint;
use crate::verify::{self, Deployed, Verdict};

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

/// What was made of a graph.
pub(super) enum Made {
    Graph(Box<GraphFile>),
    Weights(Checkpoint),
}

/// Opens what was made of a graph.
pub(super) fn made(path: &Path) -> anyhow::Result<Made> {
    Ok(match open(path)? {
        Some(file) => Made::Graph(Box::new(file)),
        None => Made::Weights(select::deployed(path)?),
    })
}

/// Compares a graph with what was made of it.
pub(super) fn verify(
    file: &GraphFile,
    folded: &Folded<'_>,
    made: Option<&Made>,
    options: &verify::Options,
) -> anyhow::Result<Verdict> {
    match made {
        None => plain(folded.verify(None, options)),
        Some(Made::Graph(made)) => plain(folded.verify(Some(made), options)),
        Some(Made::Weights(weights)) => Ok(verify::verify(
            file.constants(),
            folded.plan(),
            Deployed::File(weights),
            options,
        )?),
    }
}

/// What is known about a graph, and what of it stays although it nearly could be folded.
pub(super) fn inspect(file: &GraphFile) -> anyhow::Result<(Inspection, Vec<Left>)> {
    let (plan, form, left) = match file.fold(&Options::default(), false) {
        Ok(folded) => {
            let left = folded.left().to_vec();
            (Some(folded.into_plan()), Form::Training, left)
        }
        Err(plan::Error::Nothing { left }) => (None, Form::Deploy, left),
        Err(error) => return Err(error.into()),
    };
    Ok((of_plan(file.constants(), plan, form), left))
}

/// Says where a built-in recipe and the graph differ.
pub(super) fn differences(folded: &Folded<'_>) {
    for difference in folded
        .agreement()
        .into_iter()
        .flat_map(|agreement| &agreement.differences)
    {
        output::note(&format!("repfuse: {difference}"));
    }
}
