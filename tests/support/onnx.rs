//! ONNX files put together byte by byte, right ones and wrong ones.

use super::Random;

/// A message of protocol buffers.
#[derive(Clone, Debug, Default)]
pub struct Message(pub Vec<u8>);

/// A number as protocol buffers write it.
pub fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

impl Message {
    pub fn int(mut self, number: u32, value: i64) -> Message {
        self.0.extend(varint(u64::from(number) << 3));
        self.0.extend(varint(value as u64));
        self
    }

    pub fn float(mut self, number: u32, value: f32) -> Message {
        self.0.extend(varint(u64::from(number) << 3 | 5));
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn bytes(mut self, number: u32, bytes: impl AsRef<[u8]>) -> Message {
        let bytes = bytes.as_ref();
        self.0.extend(varint(u64::from(number) << 3 | 2));
        self.0.extend(varint(bytes.len() as u64));
        self.0.extend(bytes);
        self
    }

    pub fn message(self, number: u32, message: &Message) -> Message {
        self.bytes(number, &message.0)
    }

    pub fn all(self, number: u32, messages: &[Message]) -> Message {
        messages
            .iter()
            .fold(self, |all, one| all.message(number, one))
    }
}

/// An attribute of whole numbers.
pub fn ints(name: &str, values: &[i64]) -> Message {
    let start = Message::default().bytes(1, name);
    let all = values.iter().fold(start, |all, n| all.int(8, *n));
    all.int(20, 7)
}

pub fn int(name: &str, value: i64) -> Message {
    Message::default().bytes(1, name).int(3, value).int(20, 2)
}

pub fn float(name: &str, value: f32) -> Message {
    Message::default().bytes(1, name).float(2, value).int(20, 1)
}

pub fn text(name: &str, value: &str) -> Message {
    Message::default().bytes(1, name).bytes(4, value).int(20, 3)
}

/// A subgraph as an attribute.
pub fn graph_attribute(name: &str, graph: &Message) -> Message {
    Message::default()
        .bytes(1, name)
        .message(6, graph)
        .int(20, 5)
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> Message {
    let all = inputs
        .iter()
        .fold(Message::default(), |all, name| all.bytes(1, name));
    let all = outputs.iter().fold(all, |all, name| all.bytes(2, name));
    all.bytes(4, op).all(5, attributes)
}

/// A tensor of f32, side by side.
pub fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Message {
    let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    typed(name, shape, 1, &raw)
}

/// A list of i64.
pub fn list(name: &str, values: &[i64]) -> Message {
    let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    typed(name, &[values.len()], 7, &raw)
}

/// A tensor of the type of this number.
pub fn typed(name: &str, shape: &[usize], kind: i64, raw: &[u8]) -> Message {
    let dims = shape
        .iter()
        .fold(Message::default(), |all, n| all.int(1, *n as i64));
    dims.int(2, kind).bytes(8, name).bytes(9, raw)
}

/// A tensor whose numbers are in another file.
pub fn elsewhere(name: &str, shape: &[usize], entries: &[(&str, &str)]) -> Message {
    let dims = shape
        .iter()
        .fold(Message::default(), |all, n| all.int(1, *n as i64));
    let all = entries
        .iter()
        .fold(dims.int(2, 1).bytes(8, name), |all, (key, value)| {
            all.message(13, &Message::default().bytes(1, key).bytes(2, value))
        });
    all.int(14, 1)
}

/// A value of f32 and its dimensions; 0 is one that is open.
pub fn value(name: &str, dims: &[usize]) -> Message {
    let shape = dims
        .iter()
        .enumerate()
        .fold(Message::default(), |all, (i, n)| {
            let dim = match n {
                0 => Message::default().bytes(2, format!("{name}{i}")),
                n => Message::default().int(1, *n as i64),
            };
            all.message(1, &dim)
        });
    let tensor = Message::default().int(1, 1).message(2, &shape);
    let of_type = Message::default().message(1, &tensor);
    Message::default().bytes(1, name).message(2, &of_type)
}

/// A graph: its nodes, initializers, inputs and outputs.
pub fn graph(
    nodes: &[Message],
    tensors: &[Message],
    inputs: &[Message],
    outputs: &[Message],
) -> Message {
    Message::default()
        .all(1, nodes)
        .bytes(2, "g")
        .all(5, tensors)
        .all(11, inputs)
        .all(12, outputs)
}

/// A file with a graph in it, for this version of the operators.
pub fn model(graph: &Message, opset: i64) -> Message {
    let import = Message::default().bytes(1, "").int(2, opset);
    Message::default()
        .int(1, 8)
        .message(7, graph)
        .message(8, &import)
}

/// Nodes and constants of a graph that is put together by hand. Each constant has other numbers.
#[derive(Default)]
pub struct ByHand {
    pub nodes: Vec<Message>,
    pub tensors: Vec<Message>,
    random: u64,
}

impl ByHand {
    pub fn constant(&mut self, name: &str, shape: &[usize]) {
        self.random += 1;
        let mut random = Random(self.random);
        let numbers: Vec<f32> = (0..shape.iter().product())
            .map(|_| random.between(0.5, 1.5) as f32)
            .collect();
        self.tensors.push(tensor(name, shape, &numbers));
    }

    pub fn list(&mut self, name: &str, numbers: &[i64]) {
        self.tensors.push(list(name, numbers));
    }

    pub fn push(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[Message]) {
        self.nodes.push(node(op, inputs, &[output], attributes));
    }
}
