//! The graph, as little of it as folding needs, whatever format it was read from.
//!
//! A reader resolves what is constant: the weights of an operator are [`Tensor`]s of the file, and `inputs` holds only what is
//! computed when the network runs. What a reader cannot say exactly in these terms it leaves [`Opaque`](Op::Opaque), which
//! is never wrong: opaque nodes stay as they are.

use std::collections::HashSet;
use std::sync::Arc;

use crate::tensor::{Tensor, quoted};

/// The number of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// One dimension of a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// So many.
    Known(usize),
    /// A number that is known when the network runs; the same wherever it has this name.
    Named(Arc<str>),
    /// Any number.
    Any,
}

/// The number of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// A network: nodes that compute values from values, each after all that it reads.
#[derive(Debug)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
}

/// What a node computes, or an input of the network. Constants are no values.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its name in the file, which no other value has.
    pub name: String,
    /// Its dimensions, batch and channels included; none where the file does not say even how many there are.
    pub shape: Option<Vec<Dim>>,
    /// Whether the network gives it to whoever runs it.
    pub is_output: bool,
    /// Whether its numbers are changed in place once it is computed: who reads it must not read it later than now.
    pub changes_later: bool,
    /// How far apart in memory the elements of each axis lie, where the file says it.
    pub layout: Option<Vec<Dim>>,
    /// The node that computes it; none for an input of the network.
    producer: Option<NodeId>,
    /// The nodes that read it, in their order; a node that reads it twice is there twice.
    users: Vec<NodeId>,
}

/// One step of the network.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in the file, if it has one; need not be unique.
    pub name: String,
    /// The dotted path of the module that it belongs to, where the file tells it.
    pub module: Option<String>,
    /// What it does to its inputs.
    pub op: Op,
    /// What it reads, constants left out: first what it is linear in, then what only says a shape. Of an opaque node with subgraphs
    /// also whatever these read.
    pub inputs: Vec<ValueId>,
    /// What it computes.
    pub outputs: Vec<ValueId>,
}

/// What a node does. All but [`Opaque`](Op::Opaque) are linear in their inputs, up to a constant.
///
/// Vectors over spatial axes have as many elements as the kernel has spatial dimensions, 1 to 3.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A convolution of `[batch, channels, spatial…]`, transposed or not.
    Conv(Conv),
    /// A linear layer over the last axis.
    Linear(Linear),
    /// A batch norm in evaluation mode over one axis.
    Norm(Norm),
    /// The sum of inputs of one shape, of which none is broadcast, each times a number. What is read behind these is not computed with.
    Sum(Vec<f64>),
    /// A constant added to, subtracted from, multiplied with or dividing the one input.
    WithConstant(Arithmetic, Tensor),
    /// The input times −1.
    Neg,
    /// The average over windows. Padding counts as zeros that are averaged too; there is one divisor for all windows.
    AvgPool(Window),
    /// Zeros around the spatial axes.
    Pad(Pads),
    /// One number for each channel around the spatial axes, and not always zero.
    Border {
        /// How much is around them.
        pads: Pads,
        /// The values before it of which the layers between make just these numbers where the value is zero: for each of these it is as
        /// well zeros around the value.
        sources: Vec<ValueId>,
    },
    /// Inputs one after the other along this axis.
    Concat(usize),
    /// For each output, in order: where along the axis it begins and ends. Steps are 1.
    Slice {
        /// The axis that is cut.
        axis: usize,
        /// `[begin, end)` of each output.
        ranges: Vec<[usize; 2]>,
    },
    /// An axis, whose length need not be known, without so many elements at its beginning and its end.
    Cut {
        /// The axis that is cut.
        axis: usize,
        /// How many are left out before the first one that stays.
        before: usize,
        /// How many are left out behind the last one.
        after: usize,
    },
    /// The same numbers in the same order with other dimensions: the shapes of input and output say which.
    Reshape,
    /// Means along these axes: over the whole of each, or over windows in which all numbers count alike and nothing else does.
    Mean {
        /// The axes.
        axes: Vec<usize>,
        /// Whether the output has them, too.
        keeps: bool,
    },
    /// Sums along these axes.
    Total {
        /// The axes.
        axes: Vec<usize>,
        /// Whether the output has them, too.
        keeps: bool,
    },
    /// Inputs of one shape, one after the other along an axis of their own, which is this one of the output.
    Stack(usize),
    /// Maps of another size: each number is one of the input's channel, or several of them times weights that add up to 1.
    Resample,
    /// Axes in another order: axis `i` of the output is axis `permutation[i]` of the input.
    Transpose(Vec<usize>),
    /// The input itself.
    Identity,
    /// Its input is only asked for its shape, or for a part of that.
    Shape,
    /// Something else; where it is nearly one of the others, why it is not, as in `its weight is no constant`.
    Opaque(Option<String>),
}

/// Zeros before and after each spatial axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pads {
    /// Before the first element of each spatial axis.
    pub before: Vec<usize>,
    /// Behind the last one.
    pub after: Vec<usize>,
}

/// A convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// `[out, in/groups, spatial…]`; transposed: `[in, out/groups, spatial…]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// The distance of windows; of a transposed conv, of the inputs in the output.
    pub stride: Vec<usize>,
    /// Zeros around the input; of a transposed conv, what is cut off the output.
    pub pads: Pads,
    /// The distance of taps.
    pub dilation: Vec<usize>,
    /// How many groups of channels there are.
    pub groups: usize,
    /// For a transposed conv, what is added at the end of each spatial axis of the output.
    pub transposed: Option<Vec<usize>>,
}

/// A linear layer `y = α·x·Wᵀ + β·b` over the last axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`, or `[in, out]` if `in_first`.
    pub weight: Tensor,
    /// Whether the weight is stored as `[in, out]`, as a matrix product has it.
    pub in_first: bool,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// What the product is multiplied with.
    pub alpha: f64,
    /// What the bias is multiplied with. Not 0.
    pub beta: f64,
}

/// A batch norm in evaluation mode: `y = (x − mean) / √(var + eps) · weight + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// `[channels]`.
    pub mean: Tensor,
    /// `[channels]`.
    pub var: Tensor,
    /// `weight` and `bias`, `[channels]` each.
    pub affine: Option<[Tensor; 2]>,
    /// Added under the root.
    pub eps: f64,
    /// The axis of the channels: 1 in every file. Behind a transpose that it is moved over, another one.
    pub axis: usize,
}

/// How a constant `c` and the input `x` are combined. The constant is broadcast to the input, never the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `x + c`.
    Add,
    /// `x − c`.
    Sub,
    /// `c − x`.
    SubFrom,
    /// `x · c`.
    Mul,
    /// `x / c`.
    Div,
}

/// A window that slides over the spatial axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its extent.
    pub kernel: Vec<usize>,
    /// The distance of windows.
    pub stride: Vec<usize>,
    /// Zeros around the input.
    pub pads: Pads,
}

/// A graph that contradicts itself.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("two values are named {}; the name of a value must be its own", quoted(.0))]
    TwoOfAName(String),
    #[error("node {node} computes {}, which {by} computes too", quoted(value))]
    ComputedTwice {
        node: String,
        value: String,
        by: String,
    },
    #[error(
        "node {node} reads {}, which is computed after it; a node must come after what it reads",
        quoted(value)
    )]
    ReadBeforeComputed { node: String, value: String },
}

impl Graph {
    /// Puts a graph together: the nodes in an order in which they can run.
    ///
    /// # Errors
    /// When two values have one name, a value is computed twice, or a node reads what is computed after it, as in a cycle.
    ///
    /// # Panics
    /// When a node holds the number of a value that is not there, which is a mistake of the reader.
    pub fn new(mut values: Vec<Value>, nodes: Vec<Node>) -> Result<Graph, Error> {
        let mut names = HashSet::new();
        if let Some(twice) = values.iter().find(|value| !names.insert(&*value.name)) {
            return Err(Error::TwoOfAName(twice.name.clone()));
        }
        let shown = |id: NodeId| match &*nodes[id.0].name {
            "" => format!("{}", id.0),
            name => quoted(name),
        };
        for (i, node) in nodes.iter().enumerate() {
            for output in &node.outputs {
                let value = &mut values[output.0];
                if let Some(by) = value.producer.replace(NodeId(i)) {
                    return Err(Error::ComputedTwice {
                        node: shown(NodeId(i)),
                        value: value.name.clone(),
                        by: shown(by),
                    });
                }
            }
        }
        for (i, node) in nodes.iter().enumerate() {
            for input in &node.inputs {
                let value = &mut values[input.0];
                if value.producer.is_some_and(|producer| producer.0 >= i) {
                    return Err(Error::ReadBeforeComputed {
                        node: shown(NodeId(i)),
                        value: value.name.clone(),
                    });
                }
                value.users.push(NodeId(i));
            }
        }
        Ok(Graph { values, nodes })
    }

    /// Every value.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Every node, each after all that it reads.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The value of this number.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// The node of this number.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }
}

impl Value {
    /// A value that no node computes or reads yet.
    pub fn new(name: String, shape: Option<Vec<Dim>>) -> Value {
        Value {
            name,
            shape,
            is_output: false,
            changes_later: false,
            layout: None,
            producer: None,
            users: Vec::new(),
        }
    }

    /// The node that computes it; none for an input of the network.
    pub fn producer(&self) -> Option<NodeId> {
        self.producer
    }

    /// The nodes that read it, in their order; a node that reads it twice is there twice.
    pub fn users(&self) -> &[NodeId] {
        &self.users
    }
}

impl Conv {
    /// A conv of one tap over so many axes, with nothing around it.
    pub(super) fn point(weight: Tensor, axes: usize) -> Conv {
        let none = vec![0; axes];
        Conv {
            weight,
            bias: None,
            stride: vec![1; axes],
            pads: Pads {
                before: none.clone(),
                after: none,
            },
            dilation: vec![1; axes],
            groups: 1,
            transposed: None,
        }
    }
}

impl Linear {
    /// A product with a matrix, and nothing more.
    pub(super) fn product(weight: Tensor, in_first: bool) -> Linear {
        Linear {
            weight,
            in_first,
            bias: None,
            alpha: 1.0,
            beta: 1.0,
        }
    }
}

/// Whether two shapes are certainly the same.
pub(super) fn same_shape(a: &[Dim], b: &[Dim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b))
}

impl Dim {
    /// The number, where the file says it.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Known(n) => Some(*n),
            Dim::Named(_) | Dim::Any => None,
        }
    }

    /// Whether two dimensions are certainly the same number.
    pub fn same(&self, other: &Dim) -> bool {
        *self != Dim::Any && self == other
    }
}
