//! Writing an ONNX file: what stays is copied as bytes, what is new goes between.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::edit::{Edit, Piece};
use super::encode::{Message, kind};
use super::error::Error;
use super::open::Onnx;
use super::proto::Data;
use super::wire::Wire;
use super::written::Written;
use crate::fuse::{self, Contents, Options, archive, diagnose};
use crate::graph::plan::tensor_of;
use crate::plan::{Planned, PlannedConv, Source, planned};
use crate::tensor::write::Layout;
use crate::tensor::{Destinations, Error as TensorError, Place};

/// Protocol buffers have no longer messages.
const LONGEST_MESSAGE: u64 = i32::MAX as u64;

/// Tensors in a file of their own begin at multiples of this, and large ones at a page.
const ALIGNED: u64 = 64;
const PAGE: u64 = 4096;

/// The metadata that repfuse adds.
pub(super) const VERSION: &str = "repfuse.version";

/// Folds what is planned, and writes the model to a scratch file beside `destination`; where the input keeps its weights in another
/// file, so does the output, in `<destination>.data`.
///
/// # Errors
/// When a number cannot be folded or stored, or a file cannot be read or written. The destination is not touched.
pub fn fuse(
    onnx: &Onnx,
    edit: &Edit,
    destination: &Path,
    options: &Options,
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Written, Failure> {
    let place = fuse::place_for(onnx.constants(), destination, options.replace)?;
    let files = files(onnx, edit, destination)?;
    let write = |items: &[Planned], place: Destinations| {
        let layout = Layout::in_order(items.iter().map(|item| item.output.byte_len));
        let contents = Contents {
            blocks: &edit.plan.blocks,
            outputs: items,
            layout: &layout,
        };
        fuse::write(onnx.constants(), &contents, place, options, progress)
    };
    let data = match &files.data {
        Some((path, items)) => {
            let place = fuse::place_for(onnx.constants(), path, options.replace)?;
            Some((files.location.clone(), write(items, place)?))
        }
        None => None,
    };
    let model = write(&files.model, place)?;
    Ok(Written { model, data })
}

/// What went wrong with writing a model.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Numbers, or the files.
    #[error(transparent)]
    Numbers(#[from] diagnose::Error),
    /// The model that is read.
    #[error(transparent)]
    Onnx(#[from] Error),
    /// The files.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The files that are written, as what stands in them.
struct Files {
    model: Vec<Planned>,
    /// What the model calls the other one.
    location: String,
    data: Option<(PathBuf, Vec<Planned>)>,
}

/// The size in bytes of what [`fuse()`] would write.
///
/// # Errors
/// When the model cannot be read, or would be too long.
pub fn file_len(onnx: &Onnx, edit: &Edit, destination: &Path) -> Result<u64, Error> {
    let Files { model, data, .. } = files(onnx, edit, destination)?;
    let data = data.map_or(Vec::new(), |(_, items)| items);
    Ok(model
        .iter()
        .chain(&data)
        .map(|item| item.output.byte_len)
        .sum())
}

fn files(onnx: &Onnx, edit: &Edit, destination: &Path) -> Result<Files, Error> {
    let path = data_path(destination);
    let location = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("model.data");
    let mut build = Build {
        onnx,
        location,
        model: Items::default(),
        data: Items::default(),
        external: external_blocks(onnx, edit),
        unchanged: edit.plan.blocks.is_empty(),
        wire: Wire::new(&onnx.file, &onnx.path, onnx.file_len()),
    };
    let fields = &onnx.model.fields;
    let (before, after) = fields.split_at(onnx.model.before_graph);
    let mut graph = Items::default();
    for (number, piece) in &edit.graph {
        build.piece(edit, *number, piece, &mut graph)?;
    }
    let graph = graph.finish();
    let len: u64 = graph.iter().map(|item| item.output.byte_len).sum();
    if len > LONGEST_MESSAGE {
        return Err(Error::Format {
            path: destination.to_owned(),
            reason: format!(
                "its graph would have {len} bytes; a message has at most {LONGEST_MESSAGE}"
            ),
        });
    }
    let mut model = std::mem::take(&mut build.model);
    build.top(before, &mut model);
    let mut open = Message::default();
    open.open(7, len);
    model.bytes(&open.0);
    graph.into_iter().for_each(|item| model.item(item));
    build.top(after, &mut model);
    if !edit.plan.blocks.is_empty() {
        let (mut entry, mut metadata) = (Message::default(), Message::default());
        entry.text(1, VERSION);
        entry.text(2, env!("CARGO_PKG_VERSION"));
        metadata.message(14, &entry);
        model.bytes(&metadata.0);
    }
    let data = build.data.finish();
    Ok(Files {
        model: model.finish(),
        location: location.to_owned(),
        data: (!data.is_empty()).then(|| (path.clone(), data)),
    })
}

/// Where the weights of a model go that does not hold them itself.
fn data_path(destination: &Path) -> PathBuf {
    let mut name = destination.as_os_str().to_owned();
    name.push(".data");
    PathBuf::from(name)
}

/// The blocks whose weights go to the file beside the model: those that have one from there.
fn external_blocks(onnx: &Onnx, edit: &Edit) -> Vec<bool> {
    let external: HashMap<&str, bool> = onnx
        .model
        .graph
        .tensors
        .iter()
        .filter_map(|tensor| {
            let is = matches!(tensor.data, Data::External { .. });
            Some((&**onnx.model.names.get(tensor.name?), is))
        })
        .collect();
    let blocks = edit.plan.blocks.iter();
    blocks
        .map(|block| {
            block
                .consumed
                .iter()
                .any(|t| external.get(t.name()).is_some_and(|is| *is))
        })
        .collect()
}

struct Build<'a> {
    onnx: &'a Onnx,
    location: &'a str,
    model: Items,
    data: Items,
    external: Vec<bool>,
    /// Whether nothing is folded, and the file stays what it is.
    unchanged: bool,
    wire: Wire<'a>,
}

impl Build<'_> {
    /// Fields of the file itself, without what an earlier run has said about itself.
    fn top(&mut self, fields: &[(u32, Range<u64>)], to: &mut Items) {
        for (_, range) in fields {
            if self.unchanged || !self.onnx.model.ours.contains(range) {
                to.range(0, range.clone());
            }
        }
    }

    fn piece(
        &mut self,
        edit: &Edit,
        number: u32,
        piece: &Piece,
        to: &mut Items,
    ) -> Result<(), Error> {
        match piece {
            Piece::Kept(range) => to.range(0, range.clone()),
            Piece::New(message) => {
                let mut field = Message::default();
                field.message(number, message);
                to.bytes(&field.0);
            }
            Piece::Rewired(whole, inputs) => {
                let message = rewired(&mut self.wire, whole, inputs)?;
                let mut field = Message::default();
                field.message(number, &message);
                to.bytes(&field.0);
            }
            Piece::Fused { block, is_bias } => {
                let fused = &edit.plan.blocks[*block].fused[0];
                self.fused(fused, *block, *is_bias, to);
            }
            Piece::Moved(tensor) => self.moved(*tensor, to)?,
        }
        Ok(())
    }

    fn fused(&mut self, fused: &PlannedConv, block: usize, is_bias: bool, to: &mut Items) {
        let (name, shape) = tensor_of(fused, is_bias);
        let mut tensor = Message::default();
        shape.iter().for_each(|dim| tensor.int(1, *dim as i64));
        tensor.int(2, kind(fused.dtype));
        tensor.text(8, &name);
        let source = match is_bias {
            false => Source::Weight(block, 0),
            true => Source::Bias(block, 0),
        };
        let item = planned(name, fused.dtype, shape, source);
        let mut field = Message::default();
        if self.external[block] {
            let len = item.output.byte_len;
            let offset = self.data.align(len);
            self.data.item(item);
            external(&mut tensor, self.location, offset, len);
            tensor.int(14, 1);
            field.message(5, &tensor);
            to.bytes(&field.0);
        } else {
            tensor.open(9, item.output.byte_len);
            field.open(5, tensor.0.len() as u64 + item.output.byte_len);
            to.bytes(&field.0);
            to.bytes(&tensor.0);
            to.item(item);
        }
    }

    /// A tensor whose numbers are in another file, which becomes the one beside the new model.
    fn moved(&mut self, tensor: usize, to: &mut Items) -> Result<(), Error> {
        let onnx = self.onnx;
        let Some((_, whole)) = onnx
            .model
            .graph
            .fields
            .iter()
            .find(|(part, _)| *part == super::proto::Part::Tensor(tensor))
        else {
            return Ok(());
        };
        let name = onnx.model.graph.tensors[tensor]
            .name
            .map(|name| onnx.model.names.get(name));
        let Some(numbers) = name.and_then(|name| onnx.constants().get(name)) else {
            // Of a type that is not read here: nothing says how long it is.
            return Err(self.wire.wrong(format!(
                "the data of {} is in another file, and of a type that cannot be copied from there",
                name.map_or("a tensor", |name| &**name)
            )));
        };
        let offset = self.data.align(numbers.byte_len());
        if let Place::InFile { file, offset } = numbers.place() {
            self.data.range(*file, *offset..offset + numbers.byte_len());
        }
        let mut message = Message::default();
        let field = self.wire.fields_of(whole.clone())?;
        for field in field {
            if field.number != 13 {
                let bytes = self.wire.bytes(field.whole)?;
                message.0.extend_from_slice(&bytes);
            }
        }
        external(&mut message, self.location, offset, numbers.byte_len());
        let mut field = Message::default();
        field.message(5, &message);
        to.bytes(&field.0);
        Ok(())
    }
}

/// A node with other inputs; all that stands beside these is copied.
pub(super) fn rewired(
    wire: &mut Wire<'_>,
    whole: &Range<u64>,
    inputs: &[String],
) -> Result<Message, Error> {
    let mut message = Message::default();
    let mut inputs = inputs.iter().peekable();
    for field in wire.fields_of(whole.clone())? {
        match inputs.next_if(|_| field.number == 1) {
            Some(input) => message.text(1, input),
            None => message.0.extend(wire.bytes(field.whole)?),
        }
    }
    Ok(message)
}

fn external(tensor: &mut Message, location: &str, offset: u64, len: u64) {
    for (key, value) in [
        ("location", location),
        ("offset", &offset.to_string()),
        ("length", &len.to_string()),
    ] {
        let mut entry = Message::default();
        entry.text(1, key);
        entry.text(2, value);
        tensor.message(13, &entry);
    }
}

/// What stands in a file, one thing behind another. Neighbours are joined.
#[derive(Default)]
struct Items {
    items: Vec<Planned>,
    /// The bytes so far.
    len: u64,
    /// Bytes that are not an item yet.
    bytes: Vec<u8>,
    /// A part of a file that is not an item yet.
    range: Option<(usize, Range<u64>)>,
}

impl Items {
    fn bytes(&mut self, bytes: &[u8]) {
        self.close_range();
        self.bytes.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
    }

    fn range(&mut self, file: usize, range: Range<u64>) {
        self.close_bytes();
        self.len += range.end - range.start;
        match &mut self.range {
            Some((of, open)) if *of == file && open.end == range.start => open.end = range.end,
            _ => {
                self.close_range();
                self.range = Some((file, range));
            }
        }
    }

    fn item(&mut self, item: Planned) {
        self.close_bytes();
        self.close_range();
        self.len += item.output.byte_len;
        self.items.push(item);
    }

    /// Steps to where something of `len` bytes may begin.
    fn align(&mut self, len: u64) -> u64 {
        let to = if len < PAGE { ALIGNED } else { PAGE };
        let gap = self.len.next_multiple_of(to) - self.len;
        if gap > 0 {
            self.bytes(&vec![0; gap as usize]);
        }
        self.len
    }

    fn close_bytes(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if !bytes.is_empty() {
            self.copy(bytes.len() as u64, Place::InMemory(Arc::from(bytes)));
        }
    }

    fn close_range(&mut self) {
        if let Some((file, range)) = self.range.take() {
            let offset = range.start;
            self.copy(range.end - range.start, Place::InFile { file, offset });
        }
    }

    fn copy(&mut self, byte_len: u64, place: Place) {
        self.items.push(archive::bytes(byte_len, place));
    }

    fn finish(mut self) -> Vec<Planned> {
        self.close_bytes();
        self.close_range();
        self.items
    }
}
