//! Writing the deploy form: every block folded row by row, every other tensor copied.
//!
//! Output channels are independent, so the work is cut into slabs of them; each worker takes the next slab,
//! reads its rows of every branch, and writes them straight to their place. What is written does not depend
//! on the number of workers.

pub(crate) mod archive;
pub mod diagnose;
mod prepared;
mod pytorch;
mod rows;
mod sums;
mod tasks;
mod worker;

pub use prepared::Prepared;
pub use rows::{fold_rows, stored_bytes};

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use self::sums::Sums;
use self::tasks::tasks;
use self::worker::Worker;
use crate::plan::{Applied, Block, Plan, Planned};
use crate::tensor::write::Layout;
use crate::tensor::{Checkpoint, Destinations, Error as TensorError, WriteQueue, Writer};

/// What a thread is started for by default. (A file of 1 MB is fused in 5 % less time by one.)
const BYTES_PER_THREAD: u64 = 4 << 20;

/// How a file is written.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Replace a destination that exists, even the input itself.
    pub replace: bool,
    /// Workers; by default one per core, and fewer for a small file.
    pub threads: Option<usize>,
    /// The most bytes of tensors in a shard; none for a single file.
    pub shard_size: Option<u64>,
}

/// The most shards that are written: each is held open until all are done.
const MOST_SHARDS: usize = 500;

/// What is complete but has not got its name.
#[derive(Debug)]
pub struct Unfinished {
    writer: Writer,
    paths: Vec<PathBuf>,
    replace: bool,
    bytes: u64,
    vanished: u64,
}

impl Unfinished {
    /// The path at which it can be read meanwhile; of shards, the first one's.
    pub fn path(&self) -> &Path {
        self.writer.scratch_path()
    }

    /// Opens it as it will be read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(&self) -> Result<Checkpoint, TensorError> {
        self.writer.open()
    }

    /// The paths that its files will have; with shards, that of the index is the last.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The size of the file, or of all shards without their index.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many fused numbers are not zero and became zero in the element type they are stored in.
    pub fn vanished(&self) -> u64 {
        self.vanished
    }

    /// Writes bytes at a position of it: what is known only when all else has been written.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), TensorError> {
        self.writer.write_at(bytes, at)
    }

    /// Syncs the file and gives it its name, or all shards theirs.
    ///
    /// # Errors
    /// When that fails; the destination is then what it was.
    pub fn finish(self) -> Result<(), TensorError> {
        self.writer.finish(self.replace)
    }
}

/// Folds and copies everything that the plan says to a scratch file beside `destination`.
///
/// `progress` is called with the number of bytes done since the last call, from any worker; it can stop the work.
///
/// # Errors
/// When a number cannot be folded or stored, or a file cannot be read or written. The destination is not touched.
pub fn fuse(
    checkpoint: &Checkpoint,
    plan: &Plan,
    destination: &Path,
    options: &Options,
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Unfinished, diagnose::Error> {
    Prepared::new(checkpoint, plan, destination, options)?.write(progress)
}

/// What a file is to hold.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The blocks whose convs are among the outputs.
    pub blocks: &'a [Block],
    /// What stands in the file.
    pub outputs: &'a [Planned],
    /// Where.
    pub layout: &'a Layout,
}

/// Writes files of any format to scratch files beside their places.
///
/// # Errors
/// As for [`fuse`].
pub fn write(
    checkpoint: &Checkpoint,
    contents: &Contents<'_>,
    places: Destinations,
    options: &Options,
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Unfinished, diagnose::Error> {
    diagnose::check_variances(checkpoint, contents.blocks)?;
    write_checked(checkpoint, contents, places, options, None, progress)
}

/// As many threads as are worth their start, and as there are cores.
fn threads_for(layout: &Layout) -> usize {
    let worth = 1 + (layout.len() / BYTES_PER_THREAD) as usize;
    match worth {
        1 => 1,
        _ => std::thread::available_parallelism().map_or(1, |cores| worth.min(cores.get())),
    }
}

/// Writes them where every variance has been checked.
fn write_checked(
    checkpoint: &Checkpoint,
    contents: &Contents<'_>,
    places: Destinations,
    options: &Options,
    sums: Option<&Sums>,
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Unfinished, diagnose::Error> {
    let layout = contents.layout;
    let paths = places.paths().map(Path::to_owned).collect();
    let writer = Writer::create(places, layout)?;
    let vanished = AtomicU64::new(0);
    let writes = WriteQueue::new(&writer);
    let order = layout.order();
    let tasks = Mutex::new(tasks(*contents, &order));
    let failure: Mutex<Option<diagnose::Error>> = Mutex::new(None);
    let threads = options.threads.unwrap_or_else(|| threads_for(layout));
    let work = || {
        let mut worker = Worker::new(checkpoint, &writes, sums, &vanished);
        loop {
            let task = lock(&tasks).next();
            let Some(task) = task.filter(|_| lock(&failure).is_none()) else {
                break;
            };
            let done = worker.run(task).and_then(|bytes| match progress(bytes) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(TensorError::Interrupted.into()),
            });
            if let Err(error) = done {
                lock(&failure).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where the system allows no more threads, those that run do all the work.
            if std::thread::Builder::new()
                .spawn_scoped(scope, work)
                .is_err()
            {
                break;
            }
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(Unfinished {
            bytes: layout.len(),
            vanished: vanished.into_inner(),
            writer,
            paths,
            replace: options.replace,
        }),
    }
}

/// The size in bytes of the file that [`fuse`] would write.
pub fn file_len(checkpoint: &Checkpoint, plan: &Plan) -> u64 {
    prepared::layout(checkpoint, plan, None).len()
}

/// Where a single file is written to.
///
/// # Errors
/// When nothing can be written there, or a file is there that may not be replaced: for one, the checkpoint itself.
pub fn place_for(
    checkpoint: &Checkpoint,
    destination: &Path,
    replace: bool,
) -> Result<Destinations, TensorError> {
    let places = Destinations::file(destination)?;
    may_be_written(checkpoint, destination, &places, replace)?;
    Ok(places)
}

fn may_be_written(
    checkpoint: &Checkpoint,
    asked: &Path,
    places: &Destinations,
    replace: bool,
) -> Result<(), TensorError> {
    // A single file is called by the name that was asked for, even if that is a link.
    let there = places.replaced().filter(|_| !replace);
    match there.map(|path| {
        if places.paths().count() == 1 {
            asked
        } else {
            path
        }
    }) {
        None => Ok(()),
        Some(path) if checkpoint.is_same_file(path) => Err(TensorError::SameFile(path.to_owned())),
        Some(path) => Err(TensorError::Exists(path.to_owned())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The input's metadata, and what this file was made with.
fn metadata(checkpoint: &Checkpoint, plan: &Plan) -> Vec<(String, String)> {
    let mut metadata: Vec<_> = checkpoint
        .metadata()
        .iter()
        .filter(|(key, _)| !key.starts_with(METADATA_PREFIX))
        .cloned()
        .collect();
    let mut add =
        |key: &str, value: String| metadata.push((format!("{METADATA_PREFIX}{key}"), value));
    add("version", env!("CARGO_PKG_VERSION").to_owned());
    add("recipe", plan.recipe.clone());
    let eps = |family: &Applied| Some(format!("{}={:e}", family.recipe, family.eps?));
    let of_each: Vec<String> = plan.families.iter().filter_map(eps).collect();
    match plan.eps {
        Some(eps) => add("eps", format!("{eps:e}")),
        None if !of_each.is_empty() => add("eps", of_each.join(", ")),
        None => {}
    }
    metadata
}

/// What the metadata that repfuse adds begins with.
pub const METADATA_PREFIX: &str = "repfuse.";
