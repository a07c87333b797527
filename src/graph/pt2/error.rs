//! What can be wrong with an exported program.

use std::path::PathBuf;

use crate::graph::model;
use crate::tensor::{self, quoted};

/// A program that cannot be read, or is none.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("{} cannot be read as an exported program: {reason}", quoted(&path.display().to_string()))]
    Format { path: PathBuf, reason: String },
    #[error(
        "{} has schema version {major}.{minor}{}; version {expected} is understood, which torch.export.save of PyTorch 2.9 and later writes",
        quoted(&path.display().to_string()),
        torch.as_ref().map(|version| format!(" (PyTorch {})", tensor::plain(version))).unwrap_or_default()
    )]
    Version {
        path: PathBuf,
        major: u64,
        minor: u64,
        torch: Option<String>,
        expected: u64,
    },
    #[error(
        "{} was exported in training mode: the norm {node} takes its statistics from its input; call `model.eval()` before `torch.export.export`",
        quoted(&path.display().to_string())
    )]
    Training { path: PathBuf, node: String },
    #[error("the graph of {} contradicts itself", quoted(&path.display().to_string()))]
    Graph { path: PathBuf, source: model::Error },
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
}
