//! What can go wrong with an ONNX file.

use std::path::{Path, PathBuf};

use crate::graph::model;
use crate::tensor::{Error as TensorError, quoted};

/// An ONNX file that cannot be read, or is not what it says it is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("{} is not an ONNX file that can be read: {reason}", quoted(&path.display().to_string()))]
    Format { path: PathBuf, reason: String },
    #[error("the graph of {} contradicts itself", quoted(&path.display().to_string()))]
    Graph { path: PathBuf, source: model::Error },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Error {
    pub(super) fn unreadable(path: &Path, source: std::io::Error) -> Error {
        Error::Tensor(TensorError::unreadable(path, source))
    }
}
