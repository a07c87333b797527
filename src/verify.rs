//! The proof: the training form runs branch by branch, the deploy form as one conv, and both must agree.
//!
//! The verdict is not a tolerance picked by feel. For an output `y = K ∗ x + b` whose kernel and bias are stored with
//! unit roundoff `u`, rounding them moves `y` by at most `u·(|K| ∗ |x| + |b|)`; every difference is measured in units of
//! that bound, and more than 1 of them is a failure. Nothing is shared with [`fold`](mod@crate::algebra::fold).
//!
//! Three kinds of input are tried on every block:
//!
//! | probe | finds |
//! |---|---|
//! | zero | the bias |
//! | random maps | anything large |
//! | impulses, one per input channel | any single weight, and names it |

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rayon::prelude::*;

use crate::algebra::forward::{Input, Maps, Reading, forward};
use crate::algebra::{Conv, Expr, Geometry, Operand, Values, transposed};
use crate::describe;
use crate::fuse::METADATA_PREFIX;
use crate::numbers;
use crate::recipe::{Fused, Plan, What};
use crate::tensor::{Checkpoint, Error as TensorError, Float, Output, Tensor, quoted};
use crate::values::Reader;

/// How a file is verified.
#[derive(Clone, Debug)]
pub struct Options {
    /// Random maps per block.
    pub probes: NonZeroUsize,
    /// The number that the maps are drawn from.
    pub seed: u64,
    /// Impulses on every input channel of every block, whatever it costs.
    pub exhaustive: bool,
    /// The largest difference that passes, in units of the rounding bound.
    pub tolerance: f64,
    /// Raised from outside to end the work early, with [`Interrupted`](TensorError::Interrupted).
    pub stop: Option<&'static AtomicBool>,
}

impl Options {
    fn go_on(&self) -> Result<(), TensorError> {
        match self.stop {
            Some(stop) if stop.load(Relaxed) => Err(TensorError::Interrupted),
            _ => Ok(()),
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            probes: NonZeroUsize::new(2).unwrap_or(NonZeroUsize::MIN),
            seed: 0,
            exhaustive: false,
            tolerance: 1.0,
            stop: None,
        }
    }
}

/// What the training form is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Deployed<'a> {
    /// A file on disk.
    File(&'a Checkpoint),
    /// What `fuse` would write, folded and rounded in memory.
    InMemory,
}

/// Which rounding a deploy form is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Each stored number is the exact one rounded once: the file says that repfuse wrote it.
    OneRounding,
    /// The fold itself may have been done in the arithmetic of the stored type, as the families' own scripts do.
    Arithmetic,
}

/// The outcome for a whole file.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// One for each fused conv.
    pub blocks: Vec<BlockVerdict>,
    /// Tensors that were copied and are the same, byte for byte.
    pub copied: usize,
    /// What is wrong apart from the blocks: names missing or left over, copies that differ.
    pub failures: Vec<String>,
    /// Which rounding the file was allowed.
    pub allowance: Allowance,
    /// The largest ratio that passes.
    pub tolerance: f64,
}

/// The outcome for one fused conv.
#[derive(Clone, Debug)]
pub struct BlockVerdict {
    /// The block's name.
    pub name: String,
    /// The output module.
    pub module: String,
    /// What it was fused from, in a line.
    pub expression: String,
    /// The worst difference in units of its bound.
    pub ratio: f64,
    /// The worst absolute difference.
    pub absolute: f64,
    /// The worst difference relative to the larger of output and bound.
    pub relative: f64,
    /// Signal to noise over all probes, in dB.
    pub snr_db: f64,
    /// Where the worst ratio is: a tensor of the deploy form and an index in it.
    pub at: Option<(String, Vec<usize>)>,
    /// Input channels of each group that an impulse was sent through, of how many.
    pub impulses: [usize; 2],
    /// What is wrong with its tensors, if they cannot be compared at all.
    pub failure: Option<String>,
    /// Whether it passes.
    pub accepted: bool,
}

impl Verdict {
    /// Whether the two forms are the same network.
    pub fn accepted(&self) -> bool {
        self.failures.is_empty() && self.blocks.iter().all(|block| block.accepted)
    }

    /// The worst ratio of all blocks; NaN counts as the worst.
    pub fn worst_ratio(&self) -> f64 {
        self.blocks
            .iter()
            .map(|b| b.ratio)
            .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
    }
}

/// Compares a training form with its deploy form.
///
/// # Errors
/// When a file cannot be read or the training form cannot be folded. That the two differ is no error but a [`Verdict`].
pub fn verify(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    options: &Options,
) -> Result<Verdict, numbers::Error> {
    let allowance = allowance_of(deployed);
    let convs: Vec<_> = plan
        .blocks
        .iter()
        .flat_map(|block| block.fused.iter().map(move |fused| (block, fused)))
        .collect();
    let blocks = convs
        .par_iter()
        .map(|(block, fused)| {
            let check = Check {
                checkpoint,
                deployed,
                fused,
                allowance,
                options,
            };
            check.run(&block.name)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (copied, failures) = match deployed {
        Deployed::File(file) => compare_copies(checkpoint, plan, file, options)?,
        Deployed::InMemory => (
            plan.outputs
                .iter()
                .filter(|p| matches!(p.what, What::Copy(_)))
                .count(),
            Vec::new(),
        ),
    };
    Ok(Verdict {
        blocks,
        copied,
        failures,
        allowance,
        tolerance: options.tolerance,
    })
}

/// A file that says repfuse wrote it is held to one rounding.
pub(crate) fn allowance_of(deployed: Deployed<'_>) -> Allowance {
    let ours = |file: &Checkpoint| {
        file.metadata()
            .iter()
            .any(|(key, _)| key.starts_with(METADATA_PREFIX))
    };
    match deployed {
        Deployed::File(file) if !ours(file) => Allowance::Arithmetic,
        _ => Allowance::OneRounding,
    }
}

/// What the rounding of a deploy form may add up to beyond the rounding of its stored numbers: this many times the
/// magnitude of the training form's terms.
pub(crate) fn slack<T: Operand>(allowance: Allowance, float: Float, expr: &Expr<T>) -> f64 {
    let unit = match allowance {
        Allowance::OneRounding => f64::EPSILON,
        Allowance::Arithmetic => float.unit_roundoff(),
    };
    unit * roundings(expr)
}

/// Everything that is not fused: the same names, and the same bytes.
fn compare_copies(
    checkpoint: &Checkpoint,
    plan: &Plan,
    file: &Checkpoint,
    options: &Options,
) -> Result<(usize, Vec<String>), TensorError> {
    let mut failures = Vec::new();
    let mut copied = 0;
    let planned: BTreeMap<&str, _> = plan
        .outputs
        .iter()
        .map(|p| (p.output.name.as_str(), p))
        .collect();
    for (name, planned) in &planned {
        options.go_on()?;
        let Some(found) = file.get(name) else {
            failures.push(format!("{} is missing", quoted(name)));
            continue;
        };
        match &planned.what {
            What::Copy(tensor) => match difference(checkpoint, tensor, file, found)? {
                None => copied += 1,
                Some(difference) => failures.push(difference),
            },
            What::Fill(_) if !same_kind(&planned.output, found) => failures.push(format!(
                "{found} is {} {:?}; expected {} {:?}",
                found.dtype(),
                found.shape(),
                planned.output.dtype,
                planned.output.shape
            )),
            What::Fill(value) => {
                let mut reader = Reader::new(file, 1 << 16);
                let values = reader.vector(found, 0, found.len())?;
                let value = found.dtype().float().map_or(*value, |f| f.round(*value));
                if let Some(x) = values.iter().find(|x| **x != value) {
                    failures.push(format!("{found} holds {x}; the recipe sets it to {value}"));
                }
            }
            // Compared as blocks.
            What::Weight(..) | What::Bias(..) => {}
        }
    }
    // A counter of a batch norm that is gone does no harm, and some converters leave it behind.
    let leftovers = file
        .tensors()
        .keys()
        .filter(|name| !planned.contains_key(name.as_str()));
    failures.extend(leftovers.map(|name| {
        format!(
            "{} is left over; the deploy form has no such tensor",
            quoted(name)
        )
    }));
    Ok((copied, failures))
}

fn same_kind(output: &Output, found: &Tensor) -> bool {
    output.dtype == *found.dtype() && output.shape == found.shape()
}

fn difference(
    checkpoint: &Checkpoint,
    tensor: &Tensor,
    file: &Checkpoint,
    found: &Tensor,
) -> Result<Option<String>, TensorError> {
    if tensor.dtype() != found.dtype() || tensor.shape() != found.shape() {
        let [was, is] = [tensor, found].map(|t| format!("{} {:?}", t.dtype(), t.shape()));
        return Ok(Some(format!(
            "{found} is {is}; it was {was}, and is to be copied"
        )));
    }
    const CHUNK: u64 = 1 << 20;
    let mut at = 0;
    let mut buffers = [Vec::new(), Vec::new()];
    while at < tensor.byte_len() {
        let len = CHUNK.min(tensor.byte_len() - at) as usize;
        let [a, b] = &mut buffers;
        a.resize(len, 0);
        b.resize(len, 0);
        checkpoint.read_at(tensor, at, a)?;
        file.read_at(found, at, b)?;
        if let Some(byte) = a.iter().zip(b.iter()).position(|(a, b)| a != b) {
            let size = tensor.byte_len() as usize / tensor.len().max(1);
            let index = numbers::place_in(tensor.shape(), (at as usize + byte) / size.max(1));
            return Ok(Some(format!("{found} differs from its copy at {index:?}")));
        }
        at += len as u64;
    }
    Ok(None)
}

/// A spike this high makes the bias vanish beside the weights it is multiplied with.
const AMPLITUDE: f64 = 16_777_216.0;

/// Values of the deploy form's weight that a worker takes at a time, so that the dense maps run over many rows at once.
const SLAB_VALUES: usize = 1 << 18;

/// Values of each map that impulses give: they stay in the cache, and the allocator hands the same memory out again
/// instead of asking the kernel for fresh pages. (Over as many as in a slab, verifying RepVGG-B3 takes 1.7 times as long.)
const MAP_VALUES: usize = 1 << 14;

/// The multiply-adds that impulses through an inner conv may cost before only some channels get one.
const IMPULSE_BUDGET: f64 = 4e9;

struct Check<'a> {
    checkpoint: &'a Checkpoint,
    deployed: Deployed<'a>,
    fused: &'a Fused,
    allowance: Allowance,
    options: &'a Options,
}

/// The deploy form's weight and bias and the coarser of their types, or what is wrong with them. None in memory.
fn stored<'a>(
    fused: &Fused,
    deployed: Deployed<'a>,
) -> Result<Option<(&'a Tensor, &'a Tensor, Float)>, String> {
    let Deployed::File(file) = deployed else {
        return Ok(None);
    };
    let find = |end: &str| {
        let name = format!("{}.{end}", fused.module);
        file.get(&name)
            .ok_or_else(|| format!("{} is missing", quoted(&name)))
    };
    let (weight, bias) = (find("weight")?, find("bias")?);
    let g = fused.geometry();
    let mut float = Float::F64;
    for (tensor, expected) in [(weight, g.weight_shape()), (bias, vec![g.out])] {
        if tensor.shape() != expected {
            return Err(format!(
                "{tensor} has shape {:?}; expected {expected:?}",
                tensor.shape()
            ));
        }
        let Some(of_tensor) = tensor.dtype().float() else {
            return Err(format!(
                "{tensor} is {}; expected a floating-point type",
                tensor.dtype()
            ));
        };
        float = float.min(of_tensor);
    }
    Ok(Some((weight, bias, float)))
}

/// Output channels `rows` of the deploy form: the kernel `[rows, in/groups, kh, kw]`, the bias, and the type they are
/// stored in. In memory, they are folded and rounded as `fuse` would.
///
/// # Errors
/// When the tensors are missing or of another shape, or cannot be read or folded.
pub fn deployed_rows(
    checkpoint: &Checkpoint,
    fused: &Fused,
    deployed: Deployed<'_>,
    rows: Range<usize>,
) -> Result<(Vec<f64>, Vec<f64>, Float), numbers::Error> {
    let g = fused.geometry();
    match (
        stored(fused, deployed).map_err(numbers::Error::Deployed)?,
        deployed,
    ) {
        (Some((weight, bias, float)), Deployed::File(file)) => {
            let mut reader = Reader::new(file, 0);
            let kernel = if g.transposed {
                transposed::read_rows(weight, g.groups, rows.clone(), &mut reader)?
            } else {
                reader.vector(weight, rows.start * g.row_len(), rows.len() * g.row_len())?
            };
            Ok((kernel, reader.vector(bias, rows.start, rows.len())?, float))
        }
        _ => {
            // A row of a transposed conv lies all over its weight; nothing beside it is wanted.
            let window = if g.transposed { 0 } else { 1 << 18 };
            let mut reader = Reader::new(checkpoint, window);
            let (mut kernel, mut bias) =
                crate::fuse::fold_rows(checkpoint, fused, rows, &mut reader)?;
            kernel
                .iter_mut()
                .chain(&mut bias)
                .for_each(|x| *x = fused.dtype.round(*x));
            Ok((kernel, bias, fused.dtype))
        }
    }
}

/// The deploy form's rows that are compared at a time, as operands of the algebra.
struct Slab {
    geometry: Geometry,
    first: usize,
    kernel: Vec<f64>,
    bias: Vec<f64>,
}

#[derive(Clone)]
enum Part {
    Kernel([usize; 4]),
    Bias([usize; 1]),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Kernel(_) => "weight",
            Part::Bias(_) => "bias",
        })
    }
}

impl Operand for Part {
    fn shape(&self) -> &[usize] {
        match self {
            Part::Kernel(shape) => shape,
            Part::Bias(shape) => shape,
        }
    }
}

impl Values<Part> for &Slab {
    type Error = std::convert::Infallible;

    fn read(&mut self, leaf: &Part, first: usize, out: &mut [f64]) -> Result<(), Self::Error> {
        let (from, skipped) = match leaf {
            Part::Kernel(_) => (&self.kernel, self.first * self.geometry.row_len()),
            Part::Bias(_) => (&self.bias, self.first),
        };
        out.copy_from_slice(&from[first - skipped..][..out.len()]);
        Ok(())
    }
}

/// The running outcome of one fused conv.
#[derive(Clone, Debug, Default)]
struct Tally {
    ratio: f64,
    absolute: f64,
    relative: f64,
    signal: f64,
    noise: f64,
    at: Option<(&'static str, Vec<usize>)>,
}

impl Tally {
    /// `unit` is the height of the input: absolute differences are reported per unit of it.
    fn add(
        &mut self,
        difference: f64,
        value: f64,
        bound: f64,
        unit: f64,
        at: impl FnOnce() -> (&'static str, Vec<usize>),
    ) {
        let ratio = if difference == 0.0 {
            0.0
        } else {
            difference / bound
        };
        self.signal += value * value;
        self.noise += difference * difference;
        self.absolute = self.absolute.max(difference / unit);
        self.relative = self.relative.max(difference / value.abs().max(bound));
        // NaN is never skipped: it is worse than any number.
        if ratio > self.ratio || (ratio.is_nan() && !self.ratio.is_nan()) {
            self.ratio = ratio;
            self.at = Some(at());
        }
    }
}

impl Check<'_> {
    fn run(&self, name: &str) -> Result<BlockVerdict, numbers::Error> {
        let fused = self.fused;
        let mut verdict = BlockVerdict {
            name: name.to_owned(),
            module: fused.module.clone(),
            expression: describe::expression(fused.expr.expr()),
            ratio: f64::NAN,
            absolute: f64::NAN,
            relative: f64::NAN,
            snr_db: f64::NAN,
            at: None,
            impulses: [0, fused.geometry().in_per_group()],
            failure: stored(self.fused, self.deployed).err(),
            accepted: false,
        };
        if verdict.failure.is_some() {
            return Ok(verdict);
        }
        let g = *fused.geometry();
        let composed = inner_cost(fused.expr.expr());
        // What stands before the last conv runs anew for every slab, so such blocks are taken whole.
        let per_slab = if composed > 0.0 {
            g.out
        } else {
            (SLAB_VALUES / g.row_len().max(1)).max(1)
        };
        let all = g.in_per_group();
        let cost = composed * g.extent[0] as f64 * g.extent[1] as f64;
        let tried = if self.options.exhaustive || cost * all as f64 <= IMPULSE_BUDGET {
            all
        } else {
            ((IMPULSE_BUDGET / cost) as usize).clamp(1, all)
        };
        verdict.impulses[0] = tried;
        let slabs: Vec<usize> = (0..g.out).step_by(per_slab).collect();
        let tallies = slabs
            .par_iter()
            .map(|&first| self.slab(first..(first + per_slab).min(g.out), tried))
            .collect::<Result<Vec<_>, _>>()?;
        let mut total = Tally::default();
        for tally in tallies {
            total.signal += tally.signal;
            total.noise += tally.noise;
            total.absolute = total.absolute.max(tally.absolute);
            total.relative = total.relative.max(tally.relative);
            if tally.ratio > total.ratio || (tally.ratio.is_nan() && !total.ratio.is_nan()) {
                (total.ratio, total.at) = (tally.ratio, tally.at);
            }
        }
        verdict.ratio = total.ratio;
        verdict.absolute = total.absolute;
        verdict.relative = total.relative;
        verdict.snr_db = 10.0 * (total.signal / total.noise).log10();
        verdict.at = total
            .at
            .map(|(end, index)| (format!("{}.{end}", fused.module), index));
        verdict.accepted = total.ratio <= self.options.tolerance;
        Ok(verdict)
    }

    fn slab(&self, rows: Range<usize>, channels: usize) -> Result<Tally, numbers::Error> {
        self.options.go_on()?;
        let g = self.fused.geometry();
        let (kernel, bias, float) =
            deployed_rows(self.checkpoint, self.fused, self.deployed, rows.clone())?;
        let slab = Slab {
            geometry: *g,
            first: rows.start,
            kernel,
            bias,
        };
        let conv = slab.as_conv();
        let mut reader = Reader::new(self.checkpoint, 0);
        let mut tally = Tally::default();
        let compare = Compare {
            check: self,
            conv: &conv,
            slab: &slab,
            float,
            rows: rows.clone(),
        };
        compare.over(&self.maps(), [1, 1], &mut reader, &mut tally)?;
        let area = g.extent[0] * g.extent[1];
        // Every impulse through some rows, or, where each run begins with an inner conv, through all of them, some at a time.
        let (part, step) = if inner_cost(self.fused.expr.expr()) > 0.0 {
            let step = SLAB_VALUES / (rows.len() * area).max(1);
            (rows.len(), step.clamp(1, channels.max(1)))
        } else {
            let part = MAP_VALUES / (channels * area).max(1);
            (part.max(1), channels.max(1))
        };
        // A sample of channels starts where the seed says.
        let offset = if channels < g.in_per_group() {
            self.options.seed as usize % (g.in_per_group() - channels + 1)
        } else {
            0
        };
        for start in rows.clone().step_by(part) {
            let compare = Compare {
                rows: start..(start + part).min(rows.end),
                ..compare
            };
            for first in (0..channels).step_by(step) {
                let last = (first + step).min(channels);
                let input = Input::Spikes {
                    per_group: g.in_per_group(),
                    channels: first + offset..last + offset,
                    amplitude: AMPLITUDE,
                };
                compare.over(&input, g.extent, &mut reader, &mut tally)?;
            }
        }
        Ok(tally)
    }

    /// One map of zeros and the random ones, each as large as the kernel.
    fn maps(&self) -> Input {
        let g = self.fused.geometry();
        let random = self.options.probes.get();
        let mut maps = Maps::zeros(g.inputs, 1 + random, g.extent);
        let area = g.extent[0] * g.extent[1];
        let mut state = self.options.seed;
        for (i, x) in maps.data.iter_mut().enumerate() {
            if !(i / area).is_multiple_of(1 + random) {
                *x = uniform(&mut state);
            }
        }
        Input::Dense(maps)
    }
}

/// A number from −1 to 1 (SplitMix64, Steele et al. 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

impl Slab {
    fn as_conv(&self) -> Expr<Part> {
        let g = &self.geometry;
        Expr::Conv(Conv {
            weight: Part::Kernel([g.out, g.in_per_group(), g.extent[0], g.extent[1]]),
            bias: Some(Part::Bias([g.out])),
            dilation: [1, 1],
            groups: Some(g.groups),
            transposed: false,
        })
    }
}

struct Compare<'a> {
    check: &'a Check<'a>,
    conv: &'a Expr<Part>,
    slab: &'a Slab,
    float: Float,
    rows: Range<usize>,
}

impl Compare<'_> {
    fn over(
        &self,
        input: &Input,
        want: [usize; 2],
        reader: &mut Reader<'_>,
        tally: &mut Tally,
    ) -> Result<(), numbers::Error> {
        let (g, rows) = (self.check.fused.geometry(), &self.rows);
        let expr = self.check.fused.expr.expr();
        let trained = forward(expr, g, input, rows.clone(), want, Reading::Value, reader)?;
        let mut slab = self.slab;
        let Ok(deployed) = forward(
            self.conv,
            g,
            input,
            rows.clone(),
            want,
            Reading::Value,
            &mut slab,
        );
        let absolute = magnitude(input);
        let Ok(size) = forward(
            self.conv,
            g,
            &absolute,
            rows.clone(),
            want,
            Reading::Magnitude,
            &mut slab,
        );
        let (unit, floor) = (
            self.float.unit_roundoff(),
            self.float.half_subnormal() * input_size(input),
        );
        let bound = |i: usize| unit * size.data[i] + floor;
        let off = |i: usize| (trained.data[i] - deployed.data[i]).abs();
        let within = (0..trained.data.len()).all(|i| off(i) <= bound(i));
        // Only where one rounding does not explain a difference does the arithmetic itself come in.
        let beyond = if within {
            None
        } else {
            let terms = forward(
                expr,
                g,
                &absolute,
                rows.clone(),
                want,
                Reading::Magnitude,
                reader,
            )?;
            Some((slack(self.check.allowance, self.float, expr), terms.data))
        };
        let height = match input {
            Input::Dense(_) => 1.0,
            Input::Spikes { amplitude, .. } => *amplitude,
        };
        for (i, y) in trained.data.iter().enumerate() {
            let allowed = bound(i) + beyond.as_ref().map_or(0.0, |(unit, terms)| unit * terms[i]);
            tally.add(off(i), *y, allowed, height, || self.place(input, i, want));
        }
        Ok(())
    }

    /// The number of the deploy form that an output shows.
    fn place(&self, input: &Input, i: usize, want: [usize; 2]) -> (&'static str, Vec<usize>) {
        let g = self.check.fused.geometry();
        match input {
            Input::Dense(maps) => {
                let (o, map) = (self.rows.start + i / maps.maps, i % maps.maps);
                (if map == 0 { "bias" } else { "weight" }, vec![o])
            }
            Input::Spikes { channels, .. } => {
                let area = want[0] * want[1];
                let (map, tap) = (i / area, area - 1 - i % area);
                let o = self.rows.start + map / channels.len();
                let index = [
                    o,
                    channels.start + map % channels.len(),
                    tap / want[1],
                    tap % want[1],
                ];
                let rank = g.rank.clamp(2, 4);
                let index = if rank == 3 {
                    vec![index[0], index[1], index[3]]
                } else {
                    index[..rank].to_vec()
                };
                ("weight", index)
            }
        }
    }
}

fn magnitude(input: &Input) -> Input {
    match input {
        Input::Dense(maps) => Input::Dense(Maps {
            data: maps.data.iter().map(|x| x.abs()).collect(),
            ..*maps
        }),
        spikes => spikes.clone(),
    }
}

/// What the roundings of subnormal numbers are multiplied by at most.
fn input_size(input: &Input) -> f64 {
    match input {
        Input::Dense(maps) => 1.0 + (maps.channels * maps.size[0] * maps.size[1]) as f64,
        Input::Spikes { amplitude, .. } => 1.0 + amplitude,
    }
}

/// How many roundings in a row the slowest path through an expression takes when it is folded.
///
/// A batch norm takes four (root, quotient, product, sum) and a sum one per branch; a conv over an inner conv
/// adds up one product per channel, whose errors grow like the root of their number.
fn roundings<T: Operand>(expr: &Expr<T>) -> f64 {
    match expr {
        Expr::Conv(c) => {
            let [_, i, kh, kw] =
                crate::algebra::geometry::four_dims(c.weight.shape()).unwrap_or([1; 4]);
            2.0 + ((i * kh * kw) as f64).sqrt()
        }
        Expr::Bn(_) => 4.0,
        Expr::Scale(_) | Expr::Shift(_) | Expr::Mean(_) => 1.0,
        Expr::Identity => 0.0,
        Expr::Sum(xs) => xs.iter().map(roundings).fold(0.0, f64::max) + xs.len() as f64,
        Expr::Seq(xs) => xs.iter().map(roundings).sum(),
    }
}

/// The multiply-adds per position and map of convs that run on what another conv has made.
fn inner_cost<T: Operand>(expr: &Expr<T>) -> f64 {
    match expr {
        Expr::Sum(xs) => xs.iter().map(inner_cost).sum(),
        Expr::Seq(xs) => {
            let (head, tail) = Expr::split_seq(xs);
            let inner: f64 = head.iter().map(inner_cost).sum();
            let outer = if head.iter().any(Expr::mixes_channels) {
                tail.iter()
                    .flat_map(Expr::convs)
                    .map(|c| c.weight.len() as f64)
                    .sum()
            } else {
                0.0
            };
            inner + outer
        }
        _ => 0.0,
    }
}
