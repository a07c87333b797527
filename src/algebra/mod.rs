//! The algebra of re-parameterization: an expression over linear operators and its two readings.
//!
//! [`fold()`] turns an [`Expr`] into one kernel and one bias; [`forward`](forward::forward) runs it branch by branch on
//! a feature map. The law that holds repfuse together is that the two agree. Nothing here knows a
//! file or a recipe: operands are whatever has a shape and a label ([`Operand`]).
//!
//! An expression may be anything. [`resolve`](shape::resolve) checks it and makes the tree that both readings
//! read: there, every [`Part`] knows its channels, groups and extent.

pub mod branches;
pub mod canonical;
pub mod describe;
pub mod expr;
pub mod extent;
pub mod fold;
pub mod forward;
pub mod part;
pub mod shape;

pub use branches::branches;
pub use expr::{Bn, Channels, Conv, Expr, Factor, Operand, Through, Values, Vector};
pub use extent::{Extent, Margins};
pub use fold::{Affine, fold};
pub use part::{Kernel, Layout, Op, Part};
pub use shape::{Geometry, GeometryError, Resolved};
