//! Tensors on disk: what a checkpoint holds, reading parts of it, writing a new one whole or not at all.
//!
//! Nothing here knows a convolution.

pub mod arrays;
pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod header;
pub mod queue;
pub mod write;

pub use checkpoint::{Checkpoint, Tensor};
pub use dtype::{Dtype, Float};
pub use error::{Error, plain, quoted};
pub use queue::WriteQueue;
pub use write::{Output, Writer};
