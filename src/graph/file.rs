//! A file with a graph in it, of either format.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use super::agree::Agreement;
use super::fits::{Beyond, beyond, beyond_in};
use super::model::Graph;
use super::onnx::{self, Onnx};
use super::plan::{self, Left};
use super::pt2::{self, Pt2};
use crate::fuse::{self, diagnose};
use crate::plan::{Options, Plan};
use crate::tensor::{self, Checkpoint, Tensor, assemble};
use crate::verify::{self, Verdict};

pub use super::onnx::Written;

/// A file with a graph in it.
#[derive(Debug)]
pub enum GraphFile {
    /// An ONNX model.
    Onnx(Onnx),
    /// A program that `torch.export.save` wrote.
    Pt2(Pt2),
}

/// What went wrong with such a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Numbers that cannot be folded or stored.
    #[error(transparent)]
    Numbers(#[from] diagnose::Error),
    /// Files that cannot be read or written.
    #[error(transparent)]
    Tensor(#[from] tensor::Error),
    /// The model.
    #[error(transparent)]
    Onnx(#[from] onnx::Error),
    /// The program.
    #[error(transparent)]
    Pt2(#[from] pt2::Error),
    /// A fused number that the network cannot compute with.
    #[error(transparent)]
    Beyond(#[from] Beyond),
    /// A fused conv that would not fit among its neighbours.
    #[error(transparent)]
    Type(#[from] pt2::WrongType),
    /// What was written is of another format.
    #[error("{0} is a graph of another format than what it is compared with")]
    OtherFormat(String),
}

impl From<onnx::Failure> for Error {
    fn from(failure: onnx::Failure) -> Error {
        match failure {
            onnx::Failure::Numbers(e) => Error::Numbers(e),
            onnx::Failure::Onnx(e) => Error::Onnx(e),
            onnx::Failure::Tensor(e) => Error::Tensor(e),
        }
    }
}

impl From<onnx::VerifyFailure> for Error {
    fn from(failure: onnx::VerifyFailure) -> Error {
        match failure {
            onnx::VerifyFailure::Numbers(e) => Error::Numbers(e),
            onnx::VerifyFailure::Onnx(e) => Error::Onnx(e),
        }
    }
}

impl GraphFile {
    /// Opens a file if its bytes say that it holds a graph.
    ///
    /// # Errors
    /// When it does and cannot be read.
    pub fn open(path: &Path) -> Result<Option<GraphFile>, Error> {
        // A directory may hold the shards of a checkpoint.
        if path.is_dir() {
            return Ok(None);
        }
        Ok(if pt2::is_one(path)? {
            Some(GraphFile::Pt2(Pt2::open(path)?))
        } else if onnx::is_one(path)? {
            Some(GraphFile::Onnx(Onnx::open(path)?))
        } else {
            None
        })
    }

    /// What it computes.
    pub fn graph(&self) -> &Graph {
        match self {
            GraphFile::Onnx(onnx) => onnx.graph(),
            GraphFile::Pt2(pt2) => pt2.graph(),
        }
    }

    /// Its weights and other constants.
    pub fn constants(&self) -> &Checkpoint {
        match self {
            GraphFile::Onnx(onnx) => onnx.constants(),
            GraphFile::Pt2(pt2) => pt2.constants(),
        }
    }

    /// The tensors that a file of its weights is read as having, by name: a weight in parts, as those of weight norm, is one.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let all = self.constants().tensors();
        let mut state = match self {
            GraphFile::Onnx(_) => all.clone(),
            GraphFile::Pt2(pt2) => {
                let stored = pt2.state().filter_map(|name| all.get(name));
                stored
                    .map(|tensor| (tensor.name().to_owned(), tensor.clone()))
                    .collect()
            }
        };
        assemble(&mut state);
        state
    }

    /// Whether all of its weights can be written to a file of weights alone.
    ///
    /// # Errors
    /// Names a tensor that cannot.
    pub fn has_plain_weights(&self) -> Result<(), Error> {
        match self {
            GraphFile::Onnx(_) => Ok(()),
            GraphFile::Pt2(pt2) => Ok(pt2.has_plain_weights()?),
        }
    }

    /// Plans what to fold.
    ///
    /// # Errors
    /// When nothing is left to fold, or a glob is none.
    pub fn fold(&self, options: &Options, even_if_dearer: bool) -> Result<Folded<'_>, plan::Error> {
        Ok(Folded(match self {
            GraphFile::Onnx(onnx) => {
                Of::Onnx(onnx, Box::new(onnx::edit(onnx, options, even_if_dearer)?))
            }
            GraphFile::Pt2(pt2) => Of::Pt2(pt2, Box::new(pt2::edit(pt2, options, even_if_dearer)?)),
        }))
    }
}

/// A graph, and what becomes of it.
#[derive(Debug)]
pub struct Folded<'a>(Of<'a>);

#[derive(Debug)]
enum Of<'a> {
    Onnx(&'a Onnx, Box<onnx::Edit>),
    Pt2(&'a Pt2, Box<pt2::Edit>),
}

impl Folded<'_> {
    /// The blocks, and the tensors that are left.
    pub fn plan(&self) -> &Plan {
        match &self.0 {
            Of::Onnx(_, edit) => &edit.plan,
            Of::Pt2(_, edit) => &edit.plan,
        }
    }

    /// The blocks, and the tensors that are left.
    pub fn into_plan(self) -> Plan {
        match self.0 {
            Of::Onnx(_, edit) => edit.plan,
            Of::Pt2(_, edit) => edit.plan,
        }
    }

    /// Nodes that stay although they nearly could be folded.
    pub fn left(&self) -> &[Left] {
        match &self.0 {
            Of::Onnx(_, edit) => &edit.left,
            Of::Pt2(_, edit) => &edit.left,
        }
    }

    /// What a built-in recipe says of the same blocks, where one knows them.
    pub fn agreement(&self) -> Option<&Agreement> {
        match &self.0 {
            Of::Onnx(..) => None,
            Of::Pt2(_, edit) => Some(&edit.agreement),
        }
    }

    /// The size in bytes of what would be written.
    ///
    /// # Errors
    /// When the graph cannot be read, or would be too long.
    pub fn file_len(&self, destination: &Path) -> Result<u64, Error> {
        Ok(match &self.0 {
            Of::Onnx(onnx, edit) => onnx::file_len(onnx, edit, destination)?,
            Of::Pt2(pt2, edit) => pt2::file_len(pt2, edit),
        })
    }

    /// Writes the folded graph to a scratch file beside `destination`.
    ///
    /// # Errors
    /// When a number cannot be folded or stored, or a file cannot be read or written. The destination is not touched.
    pub fn write(
        &self,
        destination: &Path,
        options: &fuse::Options,
        progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
    ) -> Result<Written, Error> {
        let write = || -> Result<Written, Error> {
            Ok(match &self.0 {
                Of::Onnx(onnx, edit) => onnx::fuse(onnx, edit, destination, options, progress)?,
                Of::Pt2(pt2, edit) => pt2::fuse(pt2, edit, destination, options, progress)?.into(),
            })
        };
        let written = write().map_err(|error| self.placed(error))?;
        // What is stored in a wider type than the network computes in must fit that, too.
        if let Of::Onnx(_, edit) = &self.0 {
            let made = Onnx::open_written(&written)?;
            if let Some(found) = beyond(&edit.plan, made.constants())? {
                return Err(found.into());
            }
        }
        Ok(written)
    }

    /// An error, with the type that the network computes in where that is what a number is too large for.
    fn placed(&self, error: Error) -> Error {
        let beyond = match &error {
            Error::Numbers(numbers) => beyond_in(self.plan(), numbers),
            _ => None,
        };
        beyond.map_or(error, Error::Beyond)
    }

    /// Compares what was written, before it becomes its destination.
    ///
    /// # Errors
    /// When a file cannot be read, or the original cannot be folded.
    pub fn verify_written(
        &self,
        written: &Written,
        options: &verify::Options,
    ) -> Result<Verdict, Error> {
        let made = match &self.0 {
            Of::Onnx(..) => GraphFile::Onnx(Onnx::open_written(written)?),
            Of::Pt2(..) => GraphFile::Pt2(Pt2::open(written.path())?),
        };
        self.verify(Some(&made), options)
    }

    /// Compares the graph with one that was made of it; without one, with what would be.
    ///
    /// # Errors
    /// When a file cannot be read, is of another format, or the original cannot be folded. That the two differ is no error but a
    /// [`Verdict`].
    pub fn verify(
        &self,
        made: Option<&GraphFile>,
        options: &verify::Options,
    ) -> Result<Verdict, Error> {
        let compared = self.compared(made, options);
        compared.map_err(|error| self.placed(error))
    }

    fn compared(
        &self,
        made: Option<&GraphFile>,
        options: &verify::Options,
    ) -> Result<Verdict, Error> {
        let other = |made: &Checkpoint| {
            Error::OtherFormat(tensor::quoted(&made.path().display().to_string()))
        };
        Ok(match (&self.0, made) {
            (Of::Onnx(onnx, edit), None) => onnx::verify(onnx, edit, None, options)?,
            (Of::Onnx(onnx, edit), Some(GraphFile::Onnx(made))) => {
                onnx::verify(onnx, edit, Some(made), options)?
            }
            (Of::Pt2(pt2, edit), None) => pt2::verify(pt2, edit, None, options)?,
            (Of::Pt2(pt2, edit), Some(GraphFile::Pt2(made))) => {
                pt2::verify(pt2, edit, Some(made), options)?
            }
            (_, Some(made)) => return Err(other(made.constants())),
        })
    }
}
