//! Writing the deploy form: every block folded row by row, every other tensor copied.
//!
//! Output channels are independent, so the work is cut into slabs of them; each worker takes the next slab,
//! reads its rows of every branch, and writes them straight to their place. What is written does not depend
//! on the number of workers.

pub(crate) mod archive;
pub mod diagnose;
mod pytorch;
mod sums;

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::algebra::Values;
use crate::algebra::fold::{Folded, Scratch};
use crate::plan::{Applied, Block, Plan, Planned, PlannedConv, Source};
use crate::tensor::Reader;
use crate::tensor::write::Layout;
use crate::tensor::{
    Checkpoint, Destinations, Error as TensorError, Float, Format, Output, Tensor, WriteQueue,
    Writer,
};
use diagnose::explain;
use sums::Sums;

/// The bytes that a worker reads, folds and writes at a time.
///
/// As fast as 1 MiB, with a quarter of its memory.
const SLAB_BYTES: usize = 1 << 18;

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
    if Format::of(destination)? == Format::Pytorch {
        if checkpoint.is_channels_last() {
            return Err(TensorError::ChannelsLast(destination.to_owned()).into());
        }
        expect_one_file(destination, options)?;
        let places = place_for(checkpoint, destination, options.replace)?;
        let entries = pytorch::entries(checkpoint, plan, destination)?;
        return archive::write(checkpoint, &plan.blocks, entries, places, options, progress);
    }
    let layout = layout(checkpoint, plan, options.shard_size);
    let places = places_for(checkpoint, destination, &layout, options)?;
    let contents = Contents {
        blocks: &plan.blocks,
        outputs: &plan.outputs,
        layout: &layout,
    };
    write(checkpoint, &contents, places, options, progress)
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
    write_with(checkpoint, contents, places, options, None, progress)
}

fn write_with(
    checkpoint: &Checkpoint,
    contents: &Contents<'_>,
    places: Destinations,
    options: &Options,
    sums: Option<&Sums>,
    progress: &(dyn Fn(u64) -> ControlFlow<()> + Sync),
) -> Result<Unfinished, diagnose::Error> {
    diagnose::check_variances(checkpoint, contents.blocks)?;
    let layout = contents.layout;
    let paths = places.paths().map(Path::to_owned).collect();
    let writer = Writer::create(places, layout)?;
    let vanished = AtomicU64::new(0);
    let writes = WriteQueue::new(&writer);
    let order = layout.order();
    let tasks = Mutex::new(tasks(*contents, &order));
    let failure: Mutex<Option<diagnose::Error>> = Mutex::new(None);
    let threads = options.threads.unwrap_or_else(|| {
        let worth = 1 + (layout.len() / BYTES_PER_THREAD) as usize;
        match worth {
            1 => 1,
            _ => std::thread::available_parallelism().map_or(1, |cores| worth.min(cores.get())),
        }
    });
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

/// What [`fuse()`] would write, and where.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The paths of the files; with shards, that of the index is the last.
    pub paths: Vec<PathBuf>,
    /// The size in bytes of the file, or of all shards without their index.
    pub bytes: u64,
}

/// Looks at what [`fuse`] would write. Nothing is created.
///
/// # Errors
/// When nothing can be written there, or a file is there that may not be replaced: for one, the checkpoint itself.
pub fn preview(
    checkpoint: &Checkpoint,
    plan: &Plan,
    destination: &Path,
    options: &Options,
) -> Result<Preview, TensorError> {
    if Format::of(destination)? == Format::Pytorch {
        expect_one_file(destination, options)?;
        let places = place_for(checkpoint, destination, options.replace)?;
        let entries = pytorch::entries(checkpoint, plan, destination)?;
        return Ok(Preview {
            paths: places.paths().map(Path::to_owned).collect(),
            bytes: archive::file_len(&entries),
        });
    }
    let layout = layout(checkpoint, plan, options.shard_size);
    let places = places_for(checkpoint, destination, &layout, options)?;
    Ok(Preview {
        paths: places.paths().map(Path::to_owned).collect(),
        bytes: layout.len(),
    })
}

/// The size in bytes of the file that [`fuse`] would write.
pub fn file_len(checkpoint: &Checkpoint, plan: &Plan) -> u64 {
    layout(checkpoint, plan, None).len()
}

fn layout(checkpoint: &Checkpoint, plan: &Plan, shard_size: Option<u64>) -> Layout {
    let outputs: Vec<Output> = plan.outputs.iter().map(|p| p.output.clone()).collect();
    let metadata = metadata(checkpoint, plan);
    match shard_size {
        None => Layout::new(&outputs, metadata),
        Some(most) => Layout::in_shards(&outputs, &metadata, most),
    }
}

fn expect_one_file(destination: &Path, options: &Options) -> Result<(), TensorError> {
    match options.shard_size {
        None => Ok(()),
        Some(_) => Err(TensorError::PytorchShards(destination.to_owned())),
    }
}

fn places_for(
    checkpoint: &Checkpoint,
    destination: &Path,
    layout: &Layout,
    options: &Options,
) -> Result<Destinations, TensorError> {
    let places = match (options.shard_size, layout.files()) {
        (None, _) => Destinations::file(destination)?,
        (Some(_), count) if count > MOST_SHARDS => {
            return Err(TensorError::ManyShards {
                path: destination.to_owned(),
                count,
                allowed: MOST_SHARDS,
            });
        }
        (Some(_), count) => Destinations::shards(destination, count)?,
    };
    may_be_written(checkpoint, destination, &places, options.replace)?;
    Ok(places)
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

enum Task<'a> {
    /// A part of a tensor, or several tensors that lie side by side in the output, to a position.
    Copy {
        from: Vec<(&'a Tensor, Range<u64>)>,
        to: u64,
    },
    /// Some numbers of a tensor, each rounded to another type.
    Round {
        tensor: &'a Tensor,
        numbers: Range<u64>,
        float: Float,
        to: u64,
    },
    Fill {
        value: f64,
        float: Float,
        count: usize,
        to: u64,
    },
    Rows {
        job: Arc<Job<'a>>,
        rows: Range<usize>,
    },
}

/// A fused conv that several workers write.
struct Job<'a> {
    fused: &'a PlannedConv,
    weight_at: u64,
    /// Where the bias is written, if there is one.
    bias_at: Option<u64>,
    /// Compiled by whoever comes first.
    folded: Mutex<Option<Arc<Folded<Tensor>>>>,
}

impl Job<'_> {
    /// What is stored of the weight, as rows: output channels, or input channels of a transposed conv.
    fn stored_rows(&self) -> (usize, usize) {
        let shape = self.fused.geometry().weight_shape();
        (shape[0], shape[1..].iter().product())
    }
}

/// Every task, made one by one as workers ask, so that a file of a million tensors costs little memory here.
///
/// `order` is that of the outputs in the file.
fn tasks<'a>(contents: Contents<'a>, order: &'a [usize]) -> impl Iterator<Item = Task<'a>> + Send {
    let Contents {
        blocks,
        outputs,
        layout,
    } = contents;
    let bias_at: HashMap<(usize, usize), u64> = outputs
        .iter()
        .enumerate()
        .filter_map(|(i, planned)| match planned.what {
            Source::Bias(b, f) => Some(((b, f), layout.offset(i))),
            _ => None,
        })
        .collect();
    runs(outputs, layout, order).flat_map(
        move |run| -> Box<dyn Iterator<Item = Task<'a>> + Send + 'a> {
            let planned = &outputs[run[0]];
            let to = layout.offset(run[0]);
            match &planned.what {
                Source::Copy(tensor) if run.len() == 1 => Box::new(
                    slabs(tensor.byte_len(), SLAB_BYTES as u64).map(move |bytes| Task::Copy {
                        to: to + bytes.start,
                        from: vec![(tensor, bytes)],
                    }),
                ),
                Source::Copy(_) => Box::new(std::iter::once(Task::Copy {
                    from: run
                        .iter()
                        .filter_map(|&i| copied(&outputs[i]))
                        .map(|tensor| (tensor, 0..tensor.byte_len()))
                        .collect(),
                    to,
                })),
                Source::Fill(value) => {
                    let float = planned.output.dtype.float().unwrap_or(Float::F32);
                    let slabs = slabs(planned.output.byte_len, SLAB_BYTES as u64);
                    Box::new(slabs.map(move |bytes| Task::Fill {
                        value: *value,
                        float,
                        count: (bytes.end - bytes.start) as usize / float.size(),
                        to: to + bytes.start,
                    }))
                }
                Source::Round(tensor) => {
                    let float = planned.output.dtype.float().unwrap_or(Float::F32);
                    let size = float.size() as u64;
                    let slabs = slabs(tensor.len() as u64, SLAB_BYTES as u64 / 8);
                    Box::new(slabs.map(move |numbers| Task::Round {
                        tensor,
                        float,
                        to: to + numbers.start * size,
                        numbers,
                    }))
                }
                Source::Weight(b, f) => {
                    let fused = &blocks[*b].fused[*f];
                    let job = Arc::new(Job {
                        fused,
                        weight_at: to,
                        bias_at: bias_at.get(&(*b, *f)).copied(),
                        folded: Mutex::new(None),
                    });
                    let (rows, row_len) = job.stored_rows();
                    let step = SLAB_BYTES / (row_len * fused.dtype.size()).max(1);
                    Box::new(
                        slabs(rows as u64, step.max(1) as u64).map(move |rows| Task::Rows {
                            job: job.clone(),
                            rows: rows.start as usize..rows.end as usize,
                        }),
                    )
                }
                Source::Bias(..) => Box::new(std::iter::empty()),
            }
        },
    )
}

/// Cuts the outputs, in the order of the file, into runs that one task writes: small copies together, all else alone.
///
/// (In a file of a million small tensors each would cost a write.)
///
/// A run is of one shard: between two, a header stands.
fn runs<'a>(
    outputs: &'a [Planned],
    layout: &'a Layout,
    order: &'a [usize],
) -> impl Iterator<Item = &'a [usize]> + Send {
    let mut rest = order;
    std::iter::from_fn(move || {
        let begin = rest.first().map(|&i| layout.offset(i))?;
        let mut bytes = 0;
        let fits = |&&i: &&usize| {
            copied(&outputs[i]).is_some_and(|tensor| {
                let follows = layout.offset(i) == begin + bytes;
                bytes += tensor.byte_len();
                follows && bytes <= SLAB_BYTES as u64
            })
        };
        let len = rest.iter().take_while(fits).count().max(1);
        let (run, after) = rest.split_at_checked(len)?;
        rest = after;
        Some(run)
    })
}

fn copied(planned: &Planned) -> Option<&Tensor> {
    match &planned.what {
        Source::Copy(tensor) => Some(tensor),
        _ => None,
    }
}

/// Cuts `0..len` into ranges of at most `step`.
fn slabs(len: u64, step: u64) -> impl Iterator<Item = Range<u64>> + Send {
    (0..len.div_ceil(step)).map(move |i| i * step..len.min((i + 1) * step))
}

/// One thread's buffers.
struct Worker<'a> {
    checkpoint: &'a Checkpoint,
    writes: &'a WriteQueue<'a>,
    sums: Option<&'a Sums>,
    vanished: &'a AtomicU64,
    reader: Reader<'a>,
    scratch: Scratch,
    row: Vec<f64>,
    /// A row as it is written, where that is in another order.
    turned: Vec<f64>,
    biases: Vec<f64>,
    bytes: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        writes: &'a WriteQueue<'a>,
        sums: Option<&'a Sums>,
        vanished: &'a AtomicU64,
    ) -> Worker<'a> {
        Worker {
            checkpoint,
            writes,
            sums,
            vanished,
            reader: Reader::new(checkpoint, SLAB_BYTES),
            scratch: Scratch::default(),
            row: Vec::new(),
            turned: Vec::new(),
            biases: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Does one task; returns the bytes it wrote.
    fn run(&mut self, task: Task<'_>) -> Result<u64, diagnose::Error> {
        match task {
            Task::Copy { from, to } => {
                let len: u64 = from.iter().map(|(_, bytes)| bytes.end - bytes.start).sum();
                self.bytes.resize(len as usize, 0);
                let mut out = &mut self.bytes[..];
                for (tensor, bytes) in from {
                    let (part, after) = out.split_at_mut((bytes.end - bytes.start) as usize);
                    self.checkpoint.read_at(tensor, bytes.start, part)?;
                    out = after;
                }
                self.write(to)
            }
            Task::Fill {
                value,
                float,
                count,
                to,
            } => {
                self.row.clear();
                self.row.resize(count, value);
                self.bytes.resize(count * float.size(), 0);
                float.encode(&self.row, &mut self.bytes);
                self.write(to)
            }
            Task::Round {
                tensor,
                numbers,
                float,
                to,
            } => self.rounded(tensor, numbers, float, to),
            Task::Rows { job, rows } => self.rows(&job, rows),
        }
    }

    /// Rounds some numbers of a copied tensor. What is finite stays so.
    fn rounded(
        &mut self,
        tensor: &Tensor,
        numbers: Range<u64>,
        float: Float,
        to: u64,
    ) -> Result<u64, diagnose::Error> {
        let first = numbers.start as usize;
        self.row.resize((numbers.end - numbers.start) as usize, 0.0);
        self.reader.forget();
        self.reader.read(tensor, first, &mut self.row)?;
        self.reader.forget();
        self.bytes.resize(self.row.len() * float.size(), 0);
        if !float.encode(&self.row, &mut self.bytes) {
            let lost = |x: &f64| x.is_finite() && !float.round(*x).is_finite();
            if let Some(i) = self.row.iter().position(lost) {
                return Err(diagnose::too_large(tensor, first + i, self.row[i], float));
            }
        }
        self.write(to)
    }

    /// Folds some rows of a weight, and the biases that belong to them.
    fn rows(&mut self, job: &Job<'_>, rows: Range<usize>) -> Result<u64, diagnose::Error> {
        let (fused, (all_rows, row_len)) = (job.fused, job.stored_rows());
        let (g, dtype) = (fused.geometry(), fused.dtype);
        let taps = fused.is_channels_last().then(|| g.taps());
        self.reader.forget();
        let folded = {
            let mut folded = lock(&job.folded);
            match &*folded {
                Some(folded) => folded.clone(),
                None => folded
                    .insert(Arc::new(Folded::compile(&fused.expr, &mut self.reader)?))
                    .clone(),
            }
        };
        self.reader.forget();
        self.reader.read_ahead_until(all_rows, rows.end);
        let buffers = Buffers {
            scratch: &mut self.scratch,
            row: &mut self.row,
            biases: &mut self.biases,
            bytes: &mut self.bytes,
            // (A transposed conv is not stored so.)
            channels_last: taps.map(|taps| (taps, &mut self.turned)),
        };
        let (checkpoint, reader) = (self.checkpoint, &mut self.reader);
        let vanished = encode_rows(checkpoint, fused, &folded, rows.clone(), reader, buffers)?;
        self.vanished.fetch_add(vanished as u64, Relaxed);
        let mut written =
            self.write(job.weight_at + (rows.start * row_len * dtype.size()) as u64)?;
        if !g.transposed() {
            written += self.write_biases(job, rows.start)?;
        } else if rows.start == 0 {
            // The rows are input channels; the biases belong to none of them.
            self.biases.clear();
            self.biases.extend_from_slice(folded.constant_bias());
            written += self.write_biases(job, 0)?;
        }
        Ok(written)
    }

    /// Writes the biases from output channel `first` on, where the conv has any.
    fn write_biases(&mut self, job: &Job<'_>, first: usize) -> Result<u64, diagnose::Error> {
        let (fused, dtype) = (job.fused, job.fused.dtype);
        let Some(bias_at) = job.bias_at else {
            return Ok(0);
        };
        self.vanished
            .fetch_add(dtype.vanishing(&self.biases) as u64, Relaxed);
        encode_biases(self.checkpoint, fused, first, &self.biases, &mut self.bytes)?;
        self.write(bias_at + (first * dtype.size()) as u64)
    }

    fn write(&mut self, at: u64) -> Result<u64, diagnose::Error> {
        let bytes = std::mem::take(&mut self.bytes);
        let len = bytes.len() as u64;
        if let Some(sums) = self.sums {
            sums.add(at, &bytes);
        }
        self.bytes = self.writes.put(bytes, at)?;
        Ok(len)
    }
}

/// What folding rows fills: the biases and the bytes are what is stored of them.
struct Buffers<'a> {
    scratch: &'a mut Scratch,
    row: &'a mut Vec<f64>,
    biases: &'a mut Vec<f64>,
    bytes: &'a mut Vec<u8>,
    /// Where the file has the channels last: the taps of the kernel, and room for a row in that order.
    channels_last: Option<(usize, &'a mut Vec<f64>)>,
}

/// Folds some rows of a weight as they are stored, to bytes, and the biases of as many output channels; of a transposed conv, whose
/// rows are input channels, zeros. Returns how many numbers became zero.
fn encode_rows(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    folded: &Folded<Tensor>,
    rows: Range<usize>,
    reader: &mut Reader<'_>,
    mut to: Buffers<'_>,
) -> Result<usize, diagnose::Error> {
    let (g, dtype) = (fused.geometry(), fused.dtype);
    let row_len: usize = g.weight_shape()[1..].iter().product();
    let mut vanished = 0;
    to.row.resize(row_len, 0.0);
    to.biases.clear();
    to.bytes.resize(rows.len() * row_len * dtype.size(), 0);
    let stored = to.bytes.chunks_exact_mut((row_len * dtype.size()).max(1));
    for (row, stored) in rows.zip(stored) {
        let bias = if g.transposed() {
            folded.transposed_row(row, reader, to.scratch, to.row)?;
            0.0
        } else {
            folded.row(row, reader, to.scratch, to.row)?
        };
        let row_of_file: &[f64] = match &mut to.channels_last {
            Some((taps, turned)) => {
                channels_last(to.row, *taps, turned);
                turned
            }
            None => to.row,
        };
        if !dtype.encode(row_of_file, stored) {
            return Err(explain(checkpoint, fused, row, to.row, bias));
        }
        vanished += dtype.vanishing(to.row);
        to.biases.push(bias);
    }
    Ok(vanished)
}

/// The bytes of the biases from output channel `first` on.
fn encode_biases(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    first: usize,
    biases: &[f64],
    bytes: &mut Vec<u8>,
) -> Result<(), diagnose::Error> {
    let dtype = fused.dtype;
    bytes.resize(biases.len() * dtype.size(), 0);
    if dtype.encode(biases, bytes) {
        return Ok(());
    }
    let mut numbered = biases.iter().enumerate();
    match numbered.find(|(_, b)| !dtype.round(**b).is_finite()) {
        Some((i, bias)) => Err(explain(checkpoint, fused, first + i, &[], *bias)),
        None => Ok(()),
    }
}

/// The bytes that [`fuse`] writes for some rows of a fused weight as it is stored, and for its biases: of as many output channels, or of a
/// transposed conv, whose rows are input channels, of all. Where the file has the channels last, these have them second.
///
/// # Errors
/// When a number cannot be folded or stored, or the file cannot be read.
pub fn stored_bytes(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    rows: Range<usize>,
    reader: &mut Reader<'_>,
) -> Result<[Vec<u8>; 2], diagnose::Error> {
    let folded = Folded::compile(&fused.expr, reader)?;
    let (mut weight, mut bias) = (Vec::new(), Vec::new());
    let (mut scratch, mut row, mut biases) = (Scratch::default(), Vec::new(), Vec::new());
    let buffers = Buffers {
        scratch: &mut scratch,
        row: &mut row,
        biases: &mut biases,
        bytes: &mut weight,
        channels_last: None,
    };
    encode_rows(checkpoint, fused, &folded, rows.clone(), reader, buffers)?;
    match fused.geometry().transposed() {
        true => encode_biases(checkpoint, fused, 0, folded.constant_bias(), &mut bias)?,
        false => encode_biases(checkpoint, fused, rows.start, &biases, &mut bias)?,
    }
    Ok([weight, bias])
}

/// Puts a row of a weight, which has so many taps for each input channel, in the order of a file with the channels last.
fn channels_last(row: &[f64], taps: usize, out: &mut Vec<f64>) {
    let channels = row.len() / taps.max(1);
    out.clear();
    out.extend((0..taps).flat_map(|tap| (0..channels).map(move |i| row[i * taps + tap])));
}

/// Folds some output channels in memory: their kernel rows and biases, in f64, checked to fit the stored type.
///
/// # Errors
/// When a number cannot be folded or stored, or the file cannot be read.
pub fn fold_rows(
    checkpoint: &Checkpoint,
    fused: &PlannedConv,
    rows: Range<usize>,
    reader: &mut Reader<'_>,
) -> Result<(Vec<f64>, Vec<f64>), diagnose::Error> {
    let folded = Folded::compile(&fused.expr, reader)?;
    let len = fused.geometry().row_len();
    let (mut kernel, mut biases) = (vec![0.0; rows.len() * len], Vec::with_capacity(rows.len()));
    let mut scratch = Scratch::default();
    for (o, row) in rows.zip(kernel.chunks_exact_mut(len.max(1))) {
        let bias = folded.row(o, reader, &mut scratch, row)?;
        if !row
            .iter()
            .chain([&bias])
            .all(|x| fused.dtype.round(*x).is_finite())
        {
            return Err(explain(checkpoint, fused, o, row, bias));
        }
        biases.push(bias);
    }
    Ok((kernel, biases))
}
