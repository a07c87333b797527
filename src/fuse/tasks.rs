//! What writing a file is cut into: slabs of output channels, and parts of copied tensors.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::Contents;
use crate::algebra::fold::Folded;
use crate::plan::{Planned, PlannedConv, Source};
use crate::tensor::write::Layout;
use crate::tensor::{Float, Tensor};

/// The bytes that a worker reads, folds and writes at a time.
///
/// As fast as 1 MiB, with a quarter of its memory.
pub(super) const SLAB_BYTES: usize = 1 << 18;

/// What a worker does at a time.
pub(super) enum Task<'a> {
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
pub(super) struct Job<'a> {
    pub(super) fused: &'a PlannedConv,
    /// Whether each row is written with its channels innermost.
    pub(super) channels_last: bool,
    pub(super) weight_at: u64,
    /// Where the bias is written, if there is one.
    pub(super) bias_at: Option<u64>,
    /// Compiled by whoever comes first.
    pub(super) folded: Mutex<Option<Arc<Folded<Tensor>>>>,
}

impl Job<'_> {
    /// What is stored of the weight, as rows: output channels, or input channels of a transposed conv.
    pub(super) fn stored_rows(&self) -> (usize, usize) {
        let shape = self.fused.geometry().weight_shape();
        (shape[0], shape[1..].iter().product())
    }
}

/// Every task, made one by one as workers ask, so that a file of a million tensors costs little memory here.
///
/// `order` is that of the outputs in the file.
pub(super) fn tasks<'a>(
    contents: Contents<'a>,
    order: &'a [usize],
) -> impl Iterator<Item = Task<'a>> + Send {
    let Contents {
        outputs, layout, ..
    } = contents;
    let bias_at: HashMap<(usize, usize), u64> = outputs
        .iter()
        .enumerate()
        .filter_map(|(i, planned)| match planned.what {
            Source::Bias(b, f) => Some(((b, f), layout.offset(i))),
            _ => None,
        })
        .collect();
    runs(outputs, layout, order).flat_map(move |run| of_run(contents, &bias_at, run))
}

/// The tasks of one run.
fn of_run<'a>(
    Contents {
        blocks,
        outputs,
        layout,
    }: Contents<'a>,
    bias_at: &HashMap<(usize, usize), u64>,
    run: &[usize],
) -> Box<dyn Iterator<Item = Task<'a>> + Send + 'a> {
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
        &Source::Fill(value, float) => {
            let slabs = slabs(planned.output.byte_len, SLAB_BYTES as u64);
            Box::new(slabs.map(move |bytes| Task::Fill {
                value,
                float,
                count: (bytes.end - bytes.start) as usize / float.size(),
                to: to + bytes.start,
            }))
        }
        &Source::Round(ref tensor, float) => {
            let size = float.size() as u64;
            let slabs = slabs(tensor.len() as u64, SLAB_BYTES as u64 / 8);
            Box::new(slabs.map(move |numbers| Task::Round {
                tensor,
                float,
                to: to + numbers.start * size,
                numbers,
            }))
        }
        Source::Weight(b, f) | Source::WeightChannelsLast(b, f) => Box::new(rows_of(Job {
            fused: &blocks[*b].fused[*f],
            channels_last: matches!(planned.what, Source::WeightChannelsLast(..))
                || blocks[*b].fused[*f].is_channels_last(),
            weight_at: to,
            bias_at: bias_at.get(&(*b, *f)).copied(),
            folded: Mutex::new(None),
        })),
        Source::Bias(..) => Box::new(std::iter::empty()),
    }
}

/// The rows of a conv, as many at a time as a slab has bytes for.
fn rows_of(job: Job<'_>) -> impl Iterator<Item = Task<'_>> + Send {
    let job = Arc::new(job);
    let (rows, row_len) = job.stored_rows();
    let step = SLAB_BYTES / (row_len * job.fused.dtype.size()).max(1);
    slabs(rows as u64, step.max(1) as u64).map(move |rows| Task::Rows {
        job: job.clone(),
        rows: rows.start as usize..rows.end as usize,
    })
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
