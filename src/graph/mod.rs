//! Networks as graphs: what is computed from what, read from a file that says it.
//!
//! A weight file does not say what is added to what, so a recipe has to. A graph says it, and eps, groups, strides and
//! paddings too. It answers the one question that a recipe answers otherwise: which tensors form a block?

mod agree;
mod arrays;
mod border;
mod constants;
mod contract;
mod convolve;
mod cost;
mod diagonal;
pub mod file;
mod fits;
mod form;
mod indexed;
mod kinds;
mod lanes;
mod layer;
pub mod learn;
mod masks;
pub mod model;
pub mod numbers;
pub mod onnx;
pub mod plan;
pub mod pt2;
mod raise;
pub mod region;
mod sink;
mod stacks;
mod tree;
mod walk;
mod wanted;

pub use agree::Agreement;
pub use file::{Folded, GraphFile};
pub use fits::Beyond;
pub use model::{Dim, Graph, Node, NodeId, Op, Value, ValueId};
