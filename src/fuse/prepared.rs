//! What is about to be written, checked before the first byte of it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::archive::{self, Entry};
use super::diagnose::{self, EpsSensitivity, check_norms};
use super::{Contents, MOST_SHARDS, Options, Unfinished, may_be_written, metadata, place_for};
use super::{pytorch, write_checked};
use crate::plan::Plan;
use crate::tensor::write::Layout;
use crate::tensor::{Checkpoint, Destinations, Error as TensorError, Format, Output};

/// A deploy form that can be written: its place is free, every variance is a number of which a norm can take the root, and each of
/// its bytes has a position. Nothing has been created.
#[derive(Debug)]
pub struct Prepared<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    options: Options,
    places: Destinations,
    form: Form,
    norms: Vec<EpsSensitivity>,
}

/// The format of the file.
#[derive(Debug)]
enum Form {
    Safetensors(Layout),
    Pytorch(Vec<Entry>),
}

impl<'a> Prepared<'a> {
    /// Looks at where a deploy form is to go, and at the variances of its norms.
    ///
    /// # Errors
    /// When nothing can be written there, or a file is there that may not be replaced: for one, the checkpoint itself. When a
    /// variance makes its square root meaningless, or cannot be read.
    pub fn new(
        checkpoint: &'a Checkpoint,
        plan: &'a Plan,
        destination: &Path,
        options: &Options,
    ) -> Result<Prepared<'a>, diagnose::Error> {
        let (places, form) = match Format::of(destination)? {
            Format::Pytorch if checkpoint.is_channels_last() => {
                return Err(TensorError::ChannelsLast(destination.to_owned()).into());
            }
            Format::Pytorch if options.shard_size.is_some() => {
                return Err(TensorError::PytorchShards(destination.to_owned()).into());
            }
            Format::Pytorch => {
                let places = place_for(checkpoint, destination, options.replace)?;
                let entries = pytorch::entries(checkpoint, plan, destination)?;
                (places, Form::Pytorch(entries))
            }
            _ => {
                let layout = layout(checkpoint, plan, options.shard_size);
                let places = places_for(checkpoint, destination, &layout, options)?;
                (places, Form::Safetensors(layout))
            }
        };
        Ok(Prepared {
            norms: check_norms(checkpoint, plan)?,
            checkpoint,
            plan,
            options: options.clone(),
            places,
            form,
        })
    }

    /// How much the eps of the norms matters, for each recipe that has some.
    pub fn norms(&self) -> &[EpsSensitivity] {
        &self.norms
    }

    /// The paths of the files; with shards, that of the index is the last.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.places.paths().map(Path::to_owned).collect()
    }

    /// How many older shards are removed once the new ones have their names: those that only the replaced index names.
    pub fn stale(&self) -> usize {
        self.places.stale().count()
    }

    /// The size in bytes of the file, or of all shards without their index.
    pub fn bytes(&self) -> u64 {
        match &self.form {
            Form::Safetensors(layout) => layout.len(),
            Form::Pytorch(entries) => archive::file_len(entries),
        }
    }

    /// Folds and copies everything that the plan says to a scratch file beside the destination.
    ///
    /// `progress` is called with the number of bytes done since the last call, from any worker; it can stop the work.
    ///
    /// # Errors
    /// When a number cannot be folded or stored, or a file cannot be read or written. The destination is not touched.
    pub fn write(
        &self,
        progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
    ) -> Result<Unfinished, diagnose::Error> {
        let (checkpoint, plan, options) = (self.checkpoint, self.plan, &self.options);
        let places = self.places.clone();
        match &self.form {
            Form::Safetensors(layout) => {
                let contents = Contents {
                    blocks: &plan.blocks,
                    outputs: &plan.outputs,
                    layout,
                };
                write_checked(checkpoint, &contents, places, options, None, progress)
            }
            Form::Pytorch(entries) => {
                let entries = entries.clone();
                archive::write_checked(checkpoint, &plan.blocks, entries, places, options, progress)
            }
        }
    }
}

pub(super) fn layout(checkpoint: &Checkpoint, plan: &Plan, shard_size: Option<u64>) -> Layout {
    let outputs: Vec<&Output> = plan.outputs.iter().map(|p| &p.output).collect();
    let metadata = metadata(checkpoint, plan);
    match shard_size {
        None => Layout::new(&outputs, metadata),
        Some(most) => Layout::in_shards(&outputs, &metadata, most),
    }
}

fn places_for(
    checkpoint: &Checkpoint,
    destination: &Path,
    layout: &Layout,
    options: &Options,
) -> Result<Destinations, TensorError> {
    let places = match (options.shard_size, layout.files()) {
        (None, _) => Destinations::file(destination)?,
        (Some(_), count) if count > MOST_SHARDS => {
            return Err(TensorError::ManyShards {
                path: destination.to_owned(),
                count,
                allowed: MOST_SHARDS,
            });
        }
        (Some(_), count) => Destinations::shards(destination, count)?,
    };
    may_be_written(checkpoint, destination, &places, options.replace)?;
    Ok(places)
}
