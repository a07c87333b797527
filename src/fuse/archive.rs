//! Writing an archive: entries that are folded or copied, and the records around them once all sums are known.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Contents, Options, Sums, Unfinished, diagnose};
use crate::plan::{Block, Planned, Source};
use crate::tensor::write::Layout;
use crate::tensor::zip_layout::ZipLayout;
use crate::tensor::{Checkpoint, Destinations, Dtype, Output, Part, Place, Tensor};

/// An entry of a new archive.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Its path in the archive.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) item: Planned,
}

/// Writes an archive to a scratch file beside its place. Every variance of the blocks has been checked.
///
/// # Errors
/// As for [`write`](super::write).
pub(crate) fn write_checked(
    checkpoint: &Checkpoint,
    blocks: &[Block],
    entries: Vec<Entry>,
    places: Destinations,
    options: &Options,
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Unfinished, diagnose::Error> {
    let (zip, layout) = layout(&entries);
    let outputs: Vec<Planned> = entries.into_iter().map(|entry| entry.item).collect();
    let contents = Contents {
        blocks,
        outputs: &outputs,
        layout: &layout,
    };
    let sums = Sums::default();
    let written = super::write_checked(
        checkpoint,
        &contents,
        places,
        options,
        Some(&sums),
        progress,
    )?;
    let crcs: Vec<u32> = (0..outputs.len()).map(|i| sums.of(zip.data(i))).collect();
    for (i, crc) in crcs.iter().enumerate() {
        let (at, header) = zip.header(i, *crc);
        written.write_at(&header, at)?;
    }
    let (at, directory) = zip.directory(&crcs);
    written.write_at(&directory, at)?;
    Ok(written)
}

/// The size in bytes of an archive of these entries.
pub(crate) fn file_len(entries: &[Entry]) -> u64 {
    layout(entries).0.file_len()
}

fn layout(entries: &[Entry]) -> (ZipLayout, Layout) {
    let named = entries
        .iter()
        .map(|entry| (entry.name.clone(), entry.item.output.byte_len));
    let zip = ZipLayout::new(named.collect());
    let offsets = (0..entries.len()).map(|i| zip.data(i).start).collect();
    let layout = Layout::at(offsets, zip.file_len());
    (zip, layout)
}

/// A text, or other bytes in memory.
pub(crate) fn text(text: &[u8]) -> Planned {
    bytes(text.len() as u64, Place::InMemory(Arc::from(text)))
}

/// Bytes that are copied. There are as many as their place has.
pub(crate) fn bytes(byte_len: u64, place: Place) -> Planned {
    let (dtype, shape) = (
        Dtype::Known(safetensors::Dtype::U8),
        vec![byte_len as usize],
    );
    let output = Output {
        name: String::new(),
        dtype: dtype.clone(),
        shape: shape.clone(),
        byte_len,
    };
    let part = Part {
        name: String::new(),
        dtype,
        shape,
        place,
    };
    let tensor = Tensor::new(part).expect("U8 has a size, and the shape is the number of bytes");
    Planned {
        output,
        what: Source::Copy(tensor),
    }
}
