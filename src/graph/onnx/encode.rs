//! New messages of an ONNX file, as bytes.

use prost::encoding::{WireType, encode_key, encode_varint};

use crate::graph::region::{Step, Walk};
use crate::tensor::Float;

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Message(pub Vec<u8>);

impl Message {
    pub fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    pub fn int(&mut self, number: u32, value: i64) {
        encode_key(number, WireType::Varint, &mut self.0);
        encode_varint(value as u64, &mut self.0);
    }

    pub fn message(&mut self, number: u32, message: &Message) {
        self.bytes(number, &message.0);
    }

    pub fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.open(number, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// The key and the length of a field whose bytes follow from elsewhere.
    pub fn open(&mut self, number: u32, len: u64) {
        encode_key(number, WireType::LengthDelimited, &mut self.0);
        encode_varint(len, &mut self.0);
    }
}

/// `TensorProto.DataType`.
pub(super) fn kind(float: Float) -> i64 {
    match float {
        Float::F32 => 1,
        Float::F16 => 10,
        Float::F64 => 11,
        Float::Bf16 => 16,
    }
}

/// A `NodeProto`.
pub(super) fn node(
    name: &str,
    op: &str,
    inputs: &[&str],
    output: &str,
    attributes: &[Message],
) -> Message {
    let mut node = Message::default();
    inputs.iter().for_each(|input| node.text(1, input));
    node.text(2, output);
    node.text(3, name);
    node.text(4, op);
    attributes
        .iter()
        .for_each(|attribute| node.message(5, attribute));
    node
}

/// An attribute of one whole number.
pub(super) fn int(name: &str, value: i64) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    attribute.int(3, value);
    attribute.int(20, 2);
    attribute
}

/// An attribute of several whole numbers.
pub(super) fn ints(name: &str, values: impl IntoIterator<Item = usize>) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    values
        .into_iter()
        .for_each(|value| attribute.int(8, value as i64));
    attribute.int(20, 7);
    attribute
}

/// An attribute that is a tensor: a list of whole numbers.
pub(super) fn list(name: &str, values: &[i64]) -> Message {
    let mut tensor = Message::default();
    tensor.int(1, values.len() as i64);
    tensor.int(2, INT64);
    let bytes: Vec<u8> = values.iter().flat_map(|n| n.to_le_bytes()).collect();
    tensor.bytes(9, &bytes);
    let mut attribute = Message::default();
    attribute.text(1, name);
    attribute.message(5, &tensor);
    attribute.int(20, 4);
    attribute
}

/// `TensorProto.DataType.INT64`.
const INT64: i64 = 7;

/// The attributes of a `Conv` or `ConvTranspose`.
pub(super) fn conv_attributes(walk: &Walk, kernel: &[usize], groups: usize) -> Vec<Message> {
    let (steps, added): (&[Step], &[usize]) = match walk {
        Walk::Conv(steps) => (steps, &[]),
        Walk::Transposed(steps, added) => (steps, added),
        Walk::Linear => return Vec::new(),
    };
    let pads = steps
        .iter()
        .map(|s| s.before)
        .chain(steps.iter().map(|s| s.after));
    let mut attributes = vec![
        ints("dilations", steps.iter().map(|step| step.dilation)),
        int("group", groups as i64),
        ints("kernel_shape", kernel.iter().copied()),
        ints("pads", pads),
        ints("strides", steps.iter().map(|step| step.stride)),
    ];
    if added.iter().any(|n| *n > 0) {
        attributes.push(ints("output_padding", added.iter().copied()));
    }
    attributes
}
