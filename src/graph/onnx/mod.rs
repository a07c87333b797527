//! ONNX files, read and written.

mod error;
mod open;
mod ops;
mod proto;
mod shapes;
mod wire;

pub use error::Error;
pub use open::{Onnx, is_one};
