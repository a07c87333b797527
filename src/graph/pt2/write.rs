//! Writing a program: entries that stay are copied as bytes, the texts and the weights of folded regions are new.

use std::ops::ControlFlow;
use std::path::Path;

use super::edit::{Edit, Fused};
use super::nodes::Lies;
use super::read::{Pt2, VERSION};
use crate::fuse::archive::{self, Entry, bytes, text};
use crate::fuse::{self, Options, Unfinished};
use crate::graph::file::Error;
use crate::graph::plan::tensor_of;
use crate::plan::{Planned, Source, planned};
use crate::tensor::{Dtype, Place};

/// A fused conv that is of another type than what it computes with: a program computes in the type of its values.
#[derive(Debug, thiserror::Error)]
#[error(
    "block {block} would be stored as {stored} among values of {values}; export the model in {stored} instead"
)]
pub struct WrongType {
    block: String,
    stored: String,
    values: String,
}

/// Folds what is planned, and writes the program to a scratch file beside `destination`.
///
/// # Errors
/// When a number cannot be folded or stored, or a file cannot be read or written. The destination is not touched.
pub fn fuse(
    pt2: &Pt2,
    edit: &Edit,
    destination: &Path,
    options: &Options,
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Unfinished, Error> {
    check_types(pt2, edit)?;
    let place = fuse::place_for(pt2.constants(), destination, options.replace)?;
    let (constants, blocks) = (pt2.constants(), &edit.plan.blocks);
    fuse::diagnose::check_variances(constants, blocks)?;
    let entries = entries(pt2, edit);
    Ok(archive::write_checked(
        constants, blocks, entries, place, options, progress,
    )?)
}

/// The size in bytes of what [`fuse()`] would write.
pub fn file_len(pt2: &Pt2, edit: &Edit) -> u64 {
    archive::file_len(&entries(pt2, edit))
}

fn check_types(pt2: &Pt2, edit: &Edit) -> Result<(), WrongType> {
    for (block, region) in edit.plan.blocks.iter().zip(&edit.regions.folded) {
        let stored = Dtype::from(block.fused[0].dtype);
        let values = pt2.dtypes.get(&pt2.graph().value(region.source).name);
        if let Some(values) = values.filter(|values| **values != stored) {
            return Err(WrongType {
                block: block.name.clone(),
                stored: stored.to_string(),
                values: values.to_string(),
            });
        }
    }
    Ok(())
}

/// The folder of the weights.
const WEIGHTS: &str = "data/weights/";

fn entries(pt2: &Pt2, edit: &Edit) -> Vec<Entry> {
    let model = &pt2.texts.model;
    let program = format!("models/{model}.json");
    let folders = [
        (WEIGHTS, "weights", &edit.texts.weights),
        ("data/constants/", "constants", &edit.texts.constants),
    ];
    let mut entries = Vec::new();
    let mut put = |name: &str, item: Planned| {
        entries.push(Entry {
            name: format!("{}{name}", pt2.root),
            item,
        });
    };
    for entry in &pt2.entries {
        let mut parts = folders.iter().filter_map(|(folder, what, new)| {
            let path = entry.name.strip_prefix(folder)?;
            Some((path, path == format!("{model}_{what}_config.json"), new))
        });
        let part = parts.next();
        if entry.name == VERSION || part.is_some_and(|(path, _, new)| new.gone.contains(path)) {
            continue;
        }
        if let Some((_, true, new)) = part {
            if entry.name.starts_with(WEIGHTS) {
                for (path, item) in fused(edit) {
                    put(&format!("{WEIGHTS}{path}"), item);
                }
            }
            put(&entry.name, text(new.config.as_bytes()));
        } else if entry.name == program {
            put(&entry.name, text(edit.texts.program.as_bytes()));
        } else {
            let place = Place::InFile {
                file: 0,
                offset: entry.range.start,
            };
            put(
                &entry.name,
                bytes(entry.range.end - entry.range.start, place),
            );
        }
    }
    put(VERSION, text(env!("CARGO_PKG_VERSION").as_bytes()));
    entries
}

fn fused(edit: &Edit) -> impl Iterator<Item = (&str, Planned)> {
    let blocks = edit.plan.blocks.iter().zip(&edit.texts.fused).enumerate();
    blocks.flat_map(|(b, (block, paths))| {
        let conv = &block.fused[0];
        paths.iter().enumerate().filter_map(move |(i, entry)| {
            let Fused { path, lies } = entry.as_ref()?;
            let (name, shape) = tensor_of(conv, i == 1);
            let source = match (i, lies) {
                (1, _) => Source::Bias(b, 0),
                (_, Lies::InOrder) => Source::Weight(b, 0),
                (_, Lies::ChannelsLast) => Source::WeightChannelsLast(b, 0),
            };
            Some((&**path, planned(name, conv.dtype, shape, source)))
        })
    })
}
