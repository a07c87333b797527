//! What was made of a graph: another graph, or its weights alone.

use std::path::Path;

use super::graph::{open, plain};
use super::select;
use crate::graph::{Folded, GraphFile};
use crate::tensor::Checkpoint;
use crate::verify::{self, Deployed, Verdict};

/// What was made of a graph.
pub(super) enum Made {
    Graph(Box<GraphFile>),
    Weights(Box<Checkpoint>),
}

/// Opens what was made of a graph.
pub(super) fn made(path: &Path) -> anyhow::Result<Made> {
    Ok(match open(path)? {
        Some(file) => Made::Graph(Box::new(file)),
        None => Made::Weights(Box::new(select::deployed(path)?)),
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
