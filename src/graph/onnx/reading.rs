//! What is known of an ONNX graph while its nodes are read, and the questions that readers of nodes ask of it.

use std::collections::{HashMap, HashSet};

use super::error::Error;
use super::proto::{Attribute, Model, Name, Node, is_onnx};
use super::values::Values;
use crate::algebra::Values as _;
use crate::graph::constants::Budget;
use crate::graph::model::{Dim, ValueId};
use crate::graph::wanted::{Flow, wanted};
use crate::tensor::{Checkpoint, Float, Reader, Tensor};

/// What is known while the nodes are read one after the other.
pub(super) struct Reading<'a> {
    pub model: &'a Model,
    pub checkpoint: &'a Checkpoint,
    /// Constants by name, also those that nodes make of others.
    pub constants: HashMap<Name, Tensor>,
    pub values: &'a mut Values,
    /// Constants that nodes make.
    pub made: HashSet<Name>,
    /// Names that stand for something, but for nothing that is read here.
    pub unread: HashSet<Name>,
    /// What values that hold shapes hold.
    pub shapes: HashMap<Name, Vec<Dim>>,
    /// Whole numbers that nodes compute of constants alone.
    pub computed: HashMap<Name, Ints>,
    /// Of the constants that are computed here, the tensors of the file behind each.
    pub parts: HashMap<String, Vec<Tensor>>,
    pub budget: Budget,
    /// Constants that flow into the weights of layers.
    pub wanted: HashSet<Name>,
    /// Of constants that are made in the shape of values: these.
    pub shaped_by: HashMap<Name, Vec<ValueId>>,
    /// The types of values that are known to be floating-point numbers.
    pub floats: HashMap<Name, Float>,
    /// Values that are constant matrices with their axes exchanged: the matrices.
    pub turned: HashMap<Name, Tensor>,
}

/// Why a node is opaque, or what went wrong with the file.
pub(super) enum Trouble {
    Opaque(Option<String>),
    File(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::File(error)
    }
}

pub(super) fn because<T>(why: &str) -> Result<T, Trouble> {
    Err(Trouble::Opaque(Some(why.to_owned())))
}

pub(super) fn opaque<T>() -> Result<T, Trouble> {
    Err(Trouble::Opaque(None))
}

/// What flows through the nodes of a graph.
fn flows(model: &Model) -> Vec<Flow<Name>> {
    let flow = |node: &Node| Flow {
        reads: node
            .inputs
            .iter()
            .flatten()
            .chain(&node.captured)
            .copied()
            .collect(),
        writes: node.outputs.iter().flatten().copied().collect(),
        is_layer: LAYERS.contains(&&*node.op),
    };
    model.graph.nodes.iter().map(flow).collect()
}

/// Operators that may multiply with a weight.
const LAYERS: &[&str] = &[
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "Einsum",
    "Gemm",
    "MatMul",
];

/// A few whole numbers with a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ints {
    pub shape: Vec<usize>,
    pub numbers: Vec<i64>,
}

/// More numbers than this are in no shape, and in no list of axes.
pub(super) const MOST_INTS: usize = 64;

impl<'a> Reading<'a> {
    pub fn new(
        model: &'a Model,
        checkpoint: &'a Checkpoint,
        constants: HashMap<Name, Tensor>,
        values: &'a mut Values,
    ) -> Reading<'a> {
        let wanted = wanted(&flows(model), constants.keys().copied());
        let named = model.graph.tensors.iter().filter_map(|tensor| tensor.name);
        let unread = named.chain(model.graph.sparse.iter().copied()).collect();
        Reading {
            model,
            checkpoint,
            constants,
            values,
            made: HashSet::new(),
            unread,
            shapes: HashMap::new(),
            computed: HashMap::new(),
            parts: HashMap::new(),
            budget: Budget::default(),
            wanted,
            shaped_by: HashMap::new(),
            floats: HashMap::new(),
            turned: HashMap::new(),
        }
    }

    /// What nodes make of constants alone: the names, and for what is computed the tensors of the file behind it.
    pub fn made(self) -> (HashSet<Name>, HashMap<String, Vec<Tensor>>) {
        (self.made, self.parts)
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint
    }

    /// A name as the file has it.
    pub fn name(&self, name: Name) -> &str {
        self.model.names.get(name)
    }

    /// Whether a node is one of ONNX's own, as they are read here.
    pub fn is_known(&self, node: &Node) -> bool {
        is_onnx(&node.domain)
            && node.captured.is_empty()
            && self.opset() >= 7
            && !self.model.redefined.contains(&node.op)
    }

    /// The numbers of a constant, or of what follows from constants, that is a short list of whole numbers.
    pub fn ints(&self, name: Name) -> Option<Vec<i64>> {
        let ints = self.whole(name)?;
        (ints.shape.len() <= 1).then_some(ints.numbers)
    }

    /// A list that is an input or, in older versions of the format, an attribute.
    pub fn list(&self, node: &Node, index: usize, key: &str) -> Option<Vec<i64>> {
        match (node.inputs.get(index), node.attributes.get(key)) {
            (Some(Some(name)), _) => self.ints(*name),
            (_, Some(Attribute::Ints(ints))) => Some(ints.clone()),
            _ => None,
        }
    }

    /// The same, or the default where the node says nothing. An input that is there and no constant never means the default.
    pub fn list_or(
        &self,
        node: &Node,
        index: usize,
        key: &str,
        default: impl FnOnce() -> Vec<i64>,
    ) -> Option<Vec<i64>> {
        let told = node.inputs.get(index).copied().flatten().is_some();
        match told || node.attributes.contains_key(key) {
            true => self.list(node, index, key),
            false => Some(default()),
        }
    }

    /// The same with their shape, of what follows from constants alone.
    pub fn known_ints(&self, name: Name) -> Option<Ints> {
        let computed = self.values.numbers.contains_key(&name);
        self.whole(name).filter(|_| !computed)
    }

    /// The same with their shape.
    pub fn whole(&self, name: Name) -> Option<Ints> {
        if let Some(ints) = self.computed.get(&name) {
            return Some(ints.clone());
        }
        let few = |tensor: &&Tensor| tensor.len() <= MOST_INTS;
        self.stored_ints(self.constants.get(&name).filter(few)?)
    }

    /// The whole numbers of a constant tensor, however many.
    pub fn stored_ints(&self, tensor: &Tensor) -> Option<Ints> {
        let size = match tensor.dtype().to_string().as_str() {
            "I64" => 8,
            "I32" => 4,
            _ => return None,
        };
        let mut bytes = vec![0; tensor.len() * size];
        self.checkpoint.read_at(tensor, 0, &mut bytes).ok()?;
        let number = |b: &[u8]| match *b {
            [a, b, c, d] => Some(i64::from(i32::from_le_bytes([a, b, c, d]))),
            _ => b.first_chunk().map(|b| i64::from_le_bytes(*b)),
        };
        Some(Ints {
            shape: tensor.shape().to_vec(),
            numbers: bytes
                .chunks_exact(size)
                .map(number)
                .collect::<Option<_>>()?,
        })
    }

    /// The one number of a constant.
    pub fn number(&self, tensor: &Tensor) -> Option<f64> {
        self.numbers(tensor, 1)?.first().copied()
    }

    /// The numbers of a constant that has so many.
    pub fn numbers(&self, tensor: &Tensor, count: usize) -> Option<Vec<f64>> {
        if tensor.len() != count || tensor.dtype().float().is_none() {
            return None;
        }
        let mut reader = Reader::new(self.checkpoint, 0);
        reader.vector(tensor, 0, count).ok()
    }

    pub fn constant(&self, name: Option<Name>) -> Option<&Tensor> {
        self.constants.get(&name?)
    }

    pub fn value(&self, node: &Node, index: usize) -> Option<ValueId> {
        let name = (*node.inputs.get(index)?)?;
        self.values.numbers.get(&name).copied()
    }

    pub fn attribute_int(&self, node: &Node, key: &str, default: i64) -> i64 {
        match node.attributes.get(key) {
            Some(Attribute::Int(value)) => *value,
            _ => default,
        }
    }

    pub fn attribute_float(&self, node: &Node, key: &str, default: f32) -> f32 {
        match node.attributes.get(key) {
            Some(Attribute::Float(value)) => *value,
            _ => default,
        }
    }

    pub fn attribute_text<'n>(&self, node: &'n Node, key: &str) -> Option<&'n [u8]> {
        match node.attributes.get(key) {
            Some(Attribute::Text(value)) => Some(value),
            _ => None,
        }
    }

    pub fn opset(&self) -> i64 {
        self.model.opset.unwrap_or(0)
    }

    /// A float tensor that is constant.
    pub fn weight(&self, node: &Node, index: usize, what: &str) -> Result<Tensor, Trouble> {
        match self.constant(node.inputs.get(index).copied().flatten()) {
            Some(tensor) if tensor.dtype().float().is_some() => Ok(tensor.clone()),
            Some(_) => because(&format!("its {what} is no floating-point tensor")),
            None => because(&format!("its {what} is no constant")),
        }
    }

    pub fn optional_weight(
        &self,
        node: &Node,
        index: usize,
        what: &str,
    ) -> Result<Option<Tensor>, Trouble> {
        match node.inputs.get(index).copied().flatten() {
            None => Ok(None),
            Some(_) => self.weight(node, index, what).map(Some),
        }
    }
}
