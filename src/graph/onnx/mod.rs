//! ONNX files, read and written.

mod compare;
mod computed;
mod constants;
mod dims;
mod edit;
mod encode;
mod error;
mod fills;
mod floats;
mod grids;
mod ints;
mod open;
mod ops;
mod parts;
mod products;
mod proto;
mod reading;
mod shapes;
mod values;
mod windows;
mod wire;
mod write;
mod written;

pub use compare::{Failure as VerifyFailure, verify};
pub use edit::{Edit, edit};
pub use error::Error;
pub use open::{Onnx, is_one};
pub use write::{Failure, file_len, fuse};
pub use written::Written;
