//! A written model before it has become its destination.

use std::path::{Path, PathBuf};

use crate::fuse::Unfinished;
use crate::tensor::{Checkpoint, Error as TensorError};

/// A model that is complete, and has not become its destination.
#[derive(Debug)]
pub struct Written {
    pub(super) model: Unfinished,
    /// The file beside it, where it has one.
    pub(super) data: Option<(String, Unfinished)>,
}

impl From<Unfinished> for Written {
    fn from(model: Unfinished) -> Written {
        Written { model, data: None }
    }
}

impl Written {
    /// The path at which the model can be read meanwhile.
    pub fn path(&self) -> &Path {
        self.model.path()
    }

    /// Opens the model, or whatever was written, as a checkpoint meanwhile.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(&self) -> Result<Checkpoint, TensorError> {
        self.model.open()
    }

    /// The paths that the files will have, that of the model or of an index last.
    pub fn paths(&self) -> &[PathBuf] {
        self.model.paths()
    }

    /// Where the data that the model says is at this location can be read meanwhile.
    pub(super) fn data(&self) -> Option<(&str, &Path)> {
        self.data
            .as_ref()
            .map(|(location, data)| (&**location, data.path()))
    }

    /// The bytes of what is written.
    pub fn bytes(&self) -> u64 {
        self.model.bytes() + self.data.as_ref().map_or(0, |(_, data)| data.bytes())
    }

    /// How many fused numbers are not zero and became zero in the element type they are stored in.
    pub fn vanished(&self) -> u64 {
        self.model.vanished() + self.data.as_ref().map_or(0, |(_, data)| data.vanished())
    }

    /// Gives the files their names, the data first.
    ///
    /// # Errors
    /// When that fails; the destination is then what it was.
    pub fn finish(self) -> Result<(), TensorError> {
        if let Some((_, data)) = self.data {
            data.finish()?;
        }
        self.model.finish()
    }
}
