//! The algebra of re-parameterization: an expression over linear operators and its two readings.
//!
//! [`fold()`] turns an [`Expr`] into one kernel and one bias; [`forward`](forward::forward) runs it branch by branch on
//! a feature map. The law that holds repfuse together is that the two agree. Nothing here knows a
//! file or a recipe: operands are whatever has a shape and a label ([`Operand`]).

pub mod branches;
pub mod canonical;
pub mod describe;
pub mod expr;
pub mod fold;
pub mod forward;
pub mod shape;

pub use branches::{Branch, branches};
pub use expr::{Bn, Conv, Expr, Factor, Operand, Through, Values, Vector};
pub use fold::{Affine, fold};
pub use shape::{Geometry, GeometryError, Resolved};
