//! Writing the deploy form: every block folded row by row, every other tensor copied.
//!
//! Output channels are independent, so the work is cut into slabs of them; each worker takes the next slab,
//! reads its rows of every branch, and writes them straight to their place. What is written does not depend
//! on the number of workers.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::algebra::fold::{Folded, Scratch};
use crate::algebra::transposed;
use crate::numbers::{self, explain};
use crate::recipe::{Fused, Plan, What};
use crate::tensor::write::Layout;
use crate::tensor::{Checkpoint, Destination, Error as TensorError, Float, Output, Tensor, Writer};
use crate::values::Reader;

/// The bytes that a worker reads, folds and writes at a time.
///
/// Large enough that a system call costs nothing, small enough that two buffers of it stay in the cache.
const SLAB_BYTES: usize = 1 << 20;

/// How a file is written.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Replace a destination that exists, even the input itself.
    pub replace: bool,
    /// Workers; by default one per core.
    pub threads: Option<usize>,
}

/// A file that is complete but has not become its destination.
#[derive(Debug)]
pub struct Unfinished {
    writer: Writer,
    replace: bool,
    bytes: u64,
    vanished: u64,
}

impl Unfinished {
    /// The path at which it can be read meanwhile.
    pub fn path(&self) -> &Path {
        self.writer.scratch_path()
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many fused numbers are not zero and became zero in the element type they are stored in.
    pub fn vanished(&self) -> u64 {
        self.vanished
    }

    /// Syncs the file and gives it its name.
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
) -> Result<Unfinished, numbers::Error> {
    let place = Destination::new(destination)?;
    if !options.replace && place.replaced().is_some() {
        let same = checkpoint.is_same_file(destination);
        return Err(if same {
            TensorError::SameFile(destination.to_owned())
        } else {
            TensorError::Exists(destination.to_owned())
        }
        .into());
    }
    let outputs: Vec<Output> = plan
        .outputs
        .iter()
        .map(|planned| planned.output.clone())
        .collect();
    let layout = Layout::new(&outputs, metadata(checkpoint, plan));
    let writer = Writer::create(place, &layout)?;
    let vanished = AtomicU64::new(0);
    let queue = Mutex::new(tasks(plan, &layout));
    let failure: Mutex<Option<numbers::Error>> = Mutex::new(None);
    let threads = options
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
        .unwrap_or(1);
    let work = || {
        let mut worker = Worker::new(checkpoint, &writer, &vanished);
        loop {
            let task = lock(&queue).next();
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
            bytes: layout.file_len(),
            vanished: vanished.into_inner(),
            writer,
            replace: options.replace,
        }),
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
    if let Some(eps) = plan.eps {
        add("eps", format!("{eps:e}"));
    }
    metadata
}

/// What the metadata that repfuse adds begins with.
pub const METADATA_PREFIX: &str = "repfuse.";

enum Task<'a> {
    Copy {
        tensor: &'a Tensor,
        bytes: Range<u64>,
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
    fused: &'a Fused,
    weight_at: u64,
    bias_at: u64,
    /// Compiled by whoever comes first.
    folded: Mutex<Option<Arc<Folded<Tensor>>>>,
}

/// Every task, made one by one as workers ask, so that a file of a million tensors costs no memory here.
fn tasks<'a>(plan: &'a Plan, layout: &'a Layout) -> impl Iterator<Item = Task<'a>> + Send {
    let bias_at: std::collections::HashMap<(usize, usize), u64> = plan
        .outputs
        .iter()
        .enumerate()
        .filter_map(|(i, planned)| match planned.what {
            What::Bias(b, f) => Some(((b, f), layout.offset(i))),
            _ => None,
        })
        .collect();
    plan.outputs.iter().enumerate().flat_map(
        move |(i, planned)| -> Box<dyn Iterator<Item = Task<'a>> + Send + 'a> {
            let to = layout.offset(i);
            match &planned.what {
                What::Copy(tensor) => Box::new(slabs(tensor.byte_len(), SLAB_BYTES as u64).map(
                    move |bytes| Task::Copy {
                        tensor,
                        to: to + bytes.start,
                        bytes,
                    },
                )),
                What::Fill(value) => {
                    let float = planned.output.dtype.float().unwrap_or(Float::F32);
                    let count = planned.output.shape.iter().product();
                    Box::new(std::iter::once(Task::Fill {
                        value: *value,
                        float,
                        count,
                        to,
                    }))
                }
                What::Weight(b, f) => {
                    let fused = &plan.blocks[*b].fused[*f];
                    let bias_at = bias_at.get(&(*b, *f)).copied().unwrap_or_default();
                    let job = Arc::new(Job {
                        fused,
                        weight_at: to,
                        bias_at,
                        folded: Mutex::new(None),
                    });
                    let g = fused.geometry();
                    // A transposed conv is stored by input channel, so its rows cannot be written one by one.
                    let rows = if g.transposed {
                        g.out
                    } else {
                        (SLAB_BYTES / (g.row_len() * fused.dtype.size()).max(1)).max(1)
                    };
                    Box::new(
                        slabs(g.out as u64, rows.max(1) as u64).map(move |rows| Task::Rows {
                            job: job.clone(),
                            rows: rows.start as usize..rows.end as usize,
                        }),
                    )
                }
                What::Bias(..) => Box::new(std::iter::empty()),
            }
        },
    )
}

/// Cuts `0..len` into ranges of at most `step`.
fn slabs(len: u64, step: u64) -> impl Iterator<Item = Range<u64>> + Send {
    (0..len.div_ceil(step)).map(move |i| i * step..len.min((i + 1) * step))
}

/// One thread's buffers.
struct Worker<'a> {
    checkpoint: &'a Checkpoint,
    writer: &'a Writer,
    vanished: &'a AtomicU64,
    reader: Reader<'a>,
    scratch: Scratch,
    row: Vec<f64>,
    biases: Vec<f64>,
    bytes: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(checkpoint: &'a Checkpoint, writer: &'a Writer, vanished: &'a AtomicU64) -> Worker<'a> {
        let reader = Reader::new(checkpoint, SLAB_BYTES);
        Worker {
            checkpoint,
            writer,
            vanished,
            reader,
            scratch: Scratch::default(),
            row: Vec::new(),
            biases: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Does one task; returns the bytes it wrote.
    fn run(&mut self, task: Task<'_>) -> Result<u64, numbers::Error> {
        self.bytes.clear();
        match task {
            Task::Copy { tensor, bytes, to } => {
                self.bytes.resize((bytes.end - bytes.start) as usize, 0);
                self.checkpoint
                    .read_at(tensor, bytes.start, &mut self.bytes)?;
                self.writer.write_at(&self.bytes, to)?;
            }
            Task::Fill {
                value,
                float,
                count,
                to,
            } => {
                self.row.clear();
                self.row.resize(count, value);
                float.encode(&self.row, &mut self.bytes);
                self.writer.write_at(&self.bytes, to)?;
            }
            Task::Rows { job, rows } => self.rows(&job, rows)?,
        }
        Ok(self.bytes.len() as u64)
    }

    fn rows(&mut self, job: &Job<'_>, rows: Range<usize>) -> Result<(), numbers::Error> {
        let Job {
            fused,
            weight_at,
            bias_at,
            ..
        } = *job;
        let (g, size) = (*fused.geometry(), fused.dtype.size());
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
        self.reader.read_ahead_until(g.out, rows.end);
        self.row.resize(g.row_len(), 0.0);
        self.biases.clear();
        let mut vanished = 0;
        let mut whole = Vec::new();
        for o in rows.clone() {
            let bias = folded.row(o, &mut self.reader, &mut self.scratch, &mut self.row)?;
            let finite = if g.transposed {
                whole.extend_from_slice(&self.row);
                self.row.iter().all(|x| fused.dtype.round(*x).is_finite())
            } else {
                fused.dtype.encode(&self.row, &mut self.bytes)
            };
            if !(finite && fused.dtype.round(bias).is_finite()) {
                return Err(explain(self.checkpoint, fused, o, &self.row, bias));
            }
            vanished += fused.dtype.vanishing(&self.row) + fused.dtype.vanishing(&[bias]);
            self.biases.push(bias);
        }
        self.vanished.fetch_add(vanished as u64, Relaxed);
        if g.transposed {
            fused
                .dtype
                .encode(&transposed::to_stored(&whole, &g), &mut self.bytes);
        }
        self.writer.write_at(
            &self.bytes,
            weight_at + (rows.start * g.row_len() * size) as u64,
        )?;
        self.bytes.clear();
        fused.dtype.encode(&self.biases, &mut self.bytes);
        self.writer
            .write_at(&self.bytes, bias_at + (rows.start * size) as u64)?;
        Ok(())
    }
}

/// Folds some output channels in memory: their kernel rows and biases, in f64, checked to fit the stored type.
///
/// # Errors
/// When a number cannot be folded or stored, or the file cannot be read.
pub fn fold_rows(
    checkpoint: &Checkpoint,
    fused: &Fused,
    rows: Range<usize>,
    reader: &mut Reader<'_>,
) -> Result<(Vec<f64>, Vec<f64>), numbers::Error> {
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
