//! ONNX files, read and written.

mod compare;
mod computed;
mod edit;
mod encode;
mod error;
mod fills;
mod grids;
mod ints;
mod open;
mod ops;
mod parts;
mod products;
mod proto;
mod shapes;
mod windows;
mod wire;
mod write;

pub use compare::{Failure as VerifyFailure, verify};
pub use edit::{Edit, edit};
pub use error::Error;
pub use open::{Onnx, is_one};
pub use write::{Failure, Written, file_len, fuse};
