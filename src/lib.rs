//! Fold re-parameterizable blocks of a checkpoint into plain convs, and prove that nothing changed.
//!
//! RepVGG, MobileOne, RepConv and their kin train with several branches per block and deploy with one conv that computes
//! the same. This crate reads such a checkpoint, finds its blocks, folds each into one kernel and one bias, and checks the
//! result: branch by branch on one side, one conv on the other.
//!
//! ```
//! # let directory = tempfile::tempdir().expect("a directory");
//! # let from = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/repvgg/plain.train.safetensors");
//! # let to = directory.path().join("deploy.safetensors");
//! let verdict = repfuse::deploy(from, &to, &repfuse::Options::default())?;
//! assert!(verdict.accepted());
//! # assert!(to.exists());
//! # Ok::<(), repfuse::Error>(())
//! ```
//!
//! The same in steps, for progress or to look at the plan before anything is written:
//!
//! ```
//! use std::{error::Error, ops::ControlFlow, path::Path};
//! use repfuse::{fuse, plan, recipe, tensor::Checkpoint, verify};
//!
//! /// Writes the deploy form of a checkpoint; says whether it computes the same.
//! fn deploy(from: &Path, to: &Path) -> Result<bool, Box<dyn Error>> {
//!     let train = Checkpoint::open(from)?;
//!     let recipes = recipe::builtin()?;
//!     let family = recipe::detect_one(train.tensors(), &recipes)?;
//!     let plan = plan::plan(train.tensors(), family, &plan::Options::default())?;
//!     let go_on = |_bytes| ControlFlow::Continue(());
//!     fuse::fuse(&train, &plan, to, &fuse::Options::default(), &go_on)?.finish()?;
//!     let written = Checkpoint::open(to)?;
//!     let deployed = verify::Deployed::File(&written);
//!     let verdict = verify::verify(&train, &plan, deployed, &verify::Options::default())?;
//!     Ok(verdict.accepted())
//! }
//! # let directory = tempfile::tempdir().unwrap();
//! # let from = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/repvgg/plain.train.safetensors");
//! # assert!(deploy(from.as_ref(), &directory.path().join("deploy.safetensors")).unwrap());
//! ```
//!
//! # Where things are
//!
//! | to | see |
//! |---|---|
//! | do all of it in one call | [`deploy`] |
//! | open a safetensors or PyTorch file | [`tensor::Checkpoint`] |
//! | know what is in it | [`summary::inspect`] |
//! | find its family, or describe one in JSON | [`recipe`] |
//! | write the deploy form | [`fuse`](mod@fuse) |
//! | prove it | [`verify`](mod@verify); on feature maps [`network::maps`]; as a whole network [`network`] |
//! | show it | [`report`](mod@report), [`summary::cost`] |
//! | fold or run an expression of one's own arrays | [`algebra`] |
//! | run a convolution with everything that `torch.nn.Conv2d` knows | [`conv2d`] |
//!
//! Shapes are PyTorch's: a weight is `[out, in/groups, height, width]`, a map `[batch, channels, height, width]`.
//! Folding is done in f64 whatever the stored type, and each number is rounded once. Nothing here prints or exits.
//! Errors say in a sentence what was found and what was expected; their sources are kept.

pub mod algebra;
pub mod conv2d;
pub mod fuse;
pub mod graph;
pub mod network;
pub mod plan;
pub mod recipe;
#[cfg(feature = "report")]
pub mod report;
pub mod summary;
pub mod tensor;
pub mod verify;

pub use verify::deploy::{Error, Options, deploy};
