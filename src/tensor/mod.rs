//! Tensors on disk: what a checkpoint holds, reading parts of it, writing a new one whole or not at all.
//!
//! Nothing here knows a convolution.

pub mod arrays;
pub(crate) mod bytes;
pub(crate) mod channels_last;
pub mod checkpoint;
mod computed;
pub mod destination;
pub mod dtype;
pub mod error;
pub mod facts;
mod foreign;
pub mod format;
pub mod header;
mod index;
mod npy;
pub(crate) mod open;
mod operand;
mod part;
pub mod plain;
pub(crate) mod pytorch;
pub mod queue;
pub mod scratch;
mod shards;
mod single;
mod strided;
mod together;
pub mod windows;
pub mod write;
pub(crate) mod zip;
pub(crate) mod zip_layout;

pub use checkpoint::Checkpoint;
pub use computed::Computed;
pub(crate) use computed::assemble;
pub use destination::{Destination, Destinations};
pub use dtype::{Dtype, Float};
pub use error::{Error, is_control, plain, quoted};
pub use facts::Facts;
pub use format::Format;
pub use plain::{Plain, Wrapping};
pub use queue::WriteQueue;
pub use scratch::Scratch;
pub use single::{Part, Place, Tensor};
pub use strided::View;
pub use windows::Reader;
pub use write::{Output, Writer};
