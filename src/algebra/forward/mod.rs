//! The second reading: an expression runs on feature maps branch by branch, as training did.
//!
//! Nothing is folded here, and nothing that computes a number is shared with [`fold`](mod@super::fold): a batch norm subtracts its
//! mean and divides by its root, a conv convolves, a sum adds maps. Outputs are computed for a range of
//! output channels and for a centred window, which is what [`Op::Sum`] crops its branches to.

mod maps;
mod weights;

use std::borrow::Cow;
use std::ops::Range;

use super::expr::{Bn, Channels, Factor, Operand, Through, Values, Vector};
use super::extent::{Extent, POINT, flat, grown, volume};
use super::part::{Kernel, Op, Part, split};
use super::shape::Geometry;
pub use maps::Maps;
use weights::Weights;

/// What an expression is applied to.
#[derive(Clone, Debug)]
pub enum Input {
    /// Maps with values everywhere.
    Dense(Maps),
    /// An impulse on one channel after the other.
    Spikes(Spikes),
}

/// One map per input channel of a group: each is zero but for `amplitude` at the centre of one channel
/// of every group. The responses to all of them read every tap of every kernel.
#[derive(Clone, Debug)]
pub struct Spikes {
    /// Input channels of each group; as many as those of the tree, or a multiple.
    pub per_group: usize,
    /// Which channels of the group have a spike, each in a map of its own.
    pub channels: Range<usize>,
    /// The height of the spikes.
    pub amplitude: f64,
}

/// What to compute along the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The output itself.
    Value,
    /// The same with every operand and every intermediate result replaced by its absolute value: what the
    /// rounding error of any order of evaluation is proportional to.
    Magnitude,
    /// The same with squares: the sum of the squares of all terms, whose root independent errors of the terms add up to.
    Energy,
    /// [Magnitude](Reading::Magnitude) with every weight, factor and constant made larger by what rounding to a multiple of twice `step` can
    /// change it, as arithmetic does whose numbers are that small.
    Coarse {
        /// Half the distance between the smallest numbers of the type.
        step: Step,
    },
}

/// Half the distance between the smallest numbers of a type, as the power of two that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(i32);

impl Step {
    /// The largest power of two that is no more than `x`.
    pub fn of(x: f64) -> Step {
        Step(x.log2().floor() as i32)
    }

    /// The number.
    pub fn get(self) -> f64 {
        2.0_f64.powi(self.0)
    }
}

impl Reading {
    /// The factor of a batch norm: its weight over the root of its variance and eps.
    fn norm(self, weight: f64, variance: f64) -> f64 {
        let root = variance.sqrt();
        match self {
            Reading::Coarse { step } => {
                // The variance with its eps is rounded before its root is taken, and so are the root and the quotient.
                let off = step.get() / (2.0 * variance) + step.get() / root;
                weight.abs() / root * (1.0 + off) + step.get()
            }
            _ => self.of(weight / root),
        }
    }

    /// A number as this reading sees it.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Reading::Value => x,
            Reading::Magnitude => x.abs(),
            Reading::Coarse { step } => x.abs() + step.get(),
            Reading::Energy => x * x,
        }
    }
}

/// Why an expression cannot be run; `E` is what reading its values may give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error<E> {
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error(transparent)]
    Values(E),
}

/// What is wanted of an expression that it does not give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Misfit {
    #[error(
        "maps of {channels} channels and size {size:?} do not fit; expected {inputs} channels and at least {needed:?}"
    )]
    Maps {
        channels: usize,
        size: Extent,
        inputs: usize,
        needed: Extent,
    },
    #[error(
        "impulses on channels {channels:?} of {per_group} do not fit; expected groups of {expected} or a multiple"
    )]
    Spikes {
        channels: Range<usize>,
        per_group: usize,
        expected: usize,
    },
    #[error("output channels {rows:?} in a window of {want:?} are wanted; there are {out}")]
    Outputs {
        rows: Range<usize>,
        want: Extent,
        out: usize,
    },
}

/// Runs output channels `rows` of a tree over `input` and returns the centre `want` of the output maps.
///
/// # Errors
/// When the input does not fit the tree, and whatever reading the values gives.
pub fn forward<T: Operand, V: Values<T>>(
    root: &Part<T>,
    input: &Input,
    rows: Range<usize>,
    want: Extent,
    reading: Reading,
    values: &mut V,
) -> Result<Maps, Error<V::Error>> {
    check(root.geometry(), input, &rows, want)?;
    let mut run = Run { reading, values };
    let fed = match input {
        Input::Dense(maps) => Fed::Dense(Cow::Borrowed(maps)),
        Input::Spikes(spikes) => Fed::Impulses(Impulses {
            per_group: spikes.per_group,
            channels: spikes.channels.clone(),
            levels: vec![[0.0, spikes.amplitude]; root.geometry().inputs()],
        }),
    };
    run.run(root, &fed, rows, want).map_err(Error::Values)
}

fn check(g: &Geometry, input: &Input, rows: &Range<usize>, want: Extent) -> Result<(), Misfit> {
    if rows.start > rows.end || rows.end > g.out() || want.contains(&0) {
        return Err(Misfit::Outputs {
            rows: rows.clone(),
            want,
            out: g.out(),
        });
    }
    match input {
        Input::Dense(maps) => {
            let (channels, inputs) = (maps.channels(), g.inputs());
            let (size, needed) = (maps.size(), grown(want, g.extent()));
            if channels != inputs || (0..3).any(|axis| size[axis] < needed[axis]) {
                return Err(Misfit::Maps {
                    channels,
                    size,
                    inputs,
                    needed,
                });
            }
        }
        Input::Spikes(spikes) => {
            // A branch may see less than the group of the whole, whose channels have the spikes.
            let (per_group, expected) = (spikes.per_group, g.in_per_group());
            let fits = per_group > 0
                && per_group.is_multiple_of(expected)
                && g.inputs().is_multiple_of(per_group)
                && spikes.channels.end <= per_group;
            if !fits {
                return Err(Misfit::Spikes {
                    channels: spikes.channels.clone(),
                    per_group,
                    expected,
                });
            }
        }
    }
    Ok(())
}

/// What a part is applied to.
enum Fed<'a> {
    Dense(Cow<'a, Maps>),
    Impulses(Impulses),
}

/// What [`Spikes`] become where every pixel is changed by itself: each channel has one number everywhere, and another one at the
/// centre of its own map.
struct Impulses {
    per_group: usize,
    channels: Range<usize>,
    /// Of each channel, the number beside its spike and that of the spike.
    levels: Vec<[f64; 2]>,
}

struct Run<'a, V> {
    reading: Reading,
    values: &'a mut V,
}

/// Maps of some of the channels that a part is applied to.
#[derive(Clone)]
struct Held {
    maps: Maps,
    channels: Range<usize>,
}

impl Held {
    /// The centre of the maps of some of these channels.
    fn part(self, channels: Range<usize>, want: Extent) -> Maps {
        let start = self.channels.start;
        let maps = self.maps;
        maps.part(channels.start - start..channels.end - start)
            .cropped(want)
    }
}

impl<V> Run<'_, V> {
    fn run<T: Operand>(
        &mut self,
        part: &Part<T>,
        input: &Fed<'_>,
        rows: Range<usize>,
        want: Extent,
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        match part.op() {
            Op::Conv(kernel) => self.conv(kernel, part.geometry(), input, rows, want),
            Op::Sum(parts) => {
                let mut total = Maps::zeros(rows.len(), input.maps(), want);
                for x in parts {
                    total.add(&self.run(x, input, rows.clone(), want)?);
                }
                Ok(total)
            }
            Op::Stack(parts) => {
                let mut all = Maps::zeros(0, input.maps(), want);
                for (x, rows) in of_each(parts, &rows) {
                    all.append(self.run(x, input, rows, want)?);
                }
                Ok(all)
            }
            Op::Seq(parts) => {
                let (head, tail) = split(parts);
                let (first, rest) = tail.split_at(tail.len().min(1));
                let (channels, size) = (needed(rest, rows.clone()), grown(want, reach(rest)));
                let maps = match first {
                    [first] if head.is_empty() => self.run(first, input, channels.clone(), size)?,
                    [first] => {
                        let head = Part::seq(head.to_vec(), part.geometry().inputs());
                        let inner = grown(size, first.geometry().extent());
                        let inner = self.inner(&head, input, inner)?;
                        self.run(first, &inner, channels.clone(), size)?
                    }
                    _ => input.centre(channels.clone(), size),
                };
                self.apply_all(rest, Held { maps, channels }, rows, want)
            }
            _ => {
                let part = std::slice::from_ref(part);
                let channels = needed(part, rows.clone());
                let maps = input.centre(channels.clone(), grown(want, reach(part)));
                self.apply_all(part, Held { maps, channels }, rows, want)
            }
        }
    }

    /// What a part makes of its input for the conv behind it. Impulses stay what they are where every pixel is changed by itself: maps
    /// of all channels for each of them would be as large as the square of their number.
    fn inner<T: Operand>(
        &mut self,
        head: &Part<T>,
        input: &Fed<'_>,
        want: Extent,
    ) -> Result<Fed<'static>, V::Error>
    where
        V: Values<T>,
    {
        let width = head.geometry().out();
        let impulses = match input {
            Fed::Impulses(impulses) if head.is_pixelwise() => impulses,
            _ => {
                return Ok(Fed::Dense(Cow::Owned(self.run(
                    head,
                    input,
                    0..width,
                    want,
                )?)));
            }
        };
        let mut levels = Maps::zeros(width, 2, POINT);
        levels
            .data_mut()
            .copy_from_slice(impulses.levels.as_flattened());
        let levels = self.run(head, &Fed::Dense(Cow::Owned(levels)), 0..width, POINT)?;
        let (levels, _) = levels.data().as_chunks::<2>();
        Ok(Fed::Impulses(Impulses {
            per_group: impulses.per_group,
            channels: impulses.channels.clone(),
            levels: levels.to_vec(),
        }))
    }

    /// Applies parts without a conv, one after the other.
    fn apply_all<T: Operand>(
        &mut self,
        parts: &[Part<T>],
        held: Held,
        rows: Range<usize>,
        want: Extent,
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        let Some((last, before)) = parts.split_last() else {
            return Ok(held.part(rows, want));
        };
        let channels = needed(std::slice::from_ref(last), rows.clone());
        let size = grown(want, last.geometry().extent());
        let maps = self.apply_all(before, held, channels.clone(), size)?;
        self.apply(last, Held { maps, channels }, rows, want)
    }

    fn apply<T: Operand>(
        &mut self,
        part: &Part<T>,
        held: Held,
        rows: Range<usize>,
        want: Extent,
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        match part.op() {
            Op::Seq(parts) => self.apply_all(parts, held, rows, want),
            Op::Sum(parts) => {
                let mut total = Maps::zeros(rows.len(), held.maps.maps(), want);
                for x in parts {
                    total.add(&self.apply(x, held.clone(), rows.clone(), want)?);
                }
                Ok(total)
            }
            Op::Stack(parts) => {
                let mut all = Maps::zeros(0, held.maps.maps(), want);
                for (x, rows) in of_each(parts, &rows) {
                    all.append(self.apply(x, held.clone(), rows, want)?);
                }
                Ok(all)
            }
            Op::Select(Channels { picked, .. }) => {
                let start = held.channels.start;
                let picked = picked[rows].iter().map(|channel| channel - start);
                Ok(held.maps.picked(picked).cropped(want))
            }
            Op::AvgPool(window) => {
                let weight = self.reading.of(1.0 / volume(*window) as f64);
                let maps = held.part(rows, grown(want, *window));
                Ok(maps.pooled(*window, weight))
            }
            Op::Crop(margins) => {
                let maps = held.part(rows, grown(want, margins.extent()));
                Ok(maps.at(margins.before, want))
            }
            op => {
                let mut maps = held.part(rows.clone(), want);
                self.diagonal(op, &mut maps, rows)?;
                Ok(maps)
            }
        }
    }

    /// Applies a norm, a factor or a constant to the channels `rows`.
    fn diagonal<T: Operand>(
        &mut self,
        op: &Op<T>,
        maps: &mut Maps,
        rows: Range<usize>,
    ) -> Result<(), V::Error>
    where
        V: Values<T>,
    {
        let reading = self.reading;
        match op {
            Op::Bn(Bn {
                mean,
                var,
                affine,
                eps,
            }) => {
                let (mean, var) = (self.vector(mean, &rows)?, self.vector(var, &rows)?);
                let [weight, bias] = match affine {
                    Some([weight, bias]) => {
                        [self.vector(weight, &rows)?, self.vector(bias, &rows)?]
                    }
                    None => [vec![1.0; rows.len()], vec![0.0; rows.len()]],
                };
                maps.each_channel(|c, map| {
                    let factor = reading.norm(weight[c], var[c] + eps);
                    let [less, bias] = [-mean[c], bias[c]].map(|x| reading.of(x));
                    map.iter_mut()
                        .for_each(|x| *x = (*x + less) * factor + bias);
                });
            }
            Op::Scale(Factor::Number(n)) => {
                maps.each_channel(|_, map| map.iter_mut().for_each(|x| *x *= reading.of(*n)));
            }
            Op::Scale(Factor::Tensor(v)) => {
                let scale = gate(v, &rows, self.values)?;
                maps.each_channel(|c, map| map.iter_mut().for_each(|x| *x *= reading.of(scale[c])));
            }
            Op::Shift(t) => {
                let shift = self.vector(t, &rows)?;
                maps.each_channel(|c, map| map.iter_mut().for_each(|x| *x += reading.of(shift[c])));
            }
            _ => {}
        }
        Ok(())
    }

    fn conv<T: Operand>(
        &mut self,
        kernel: &Kernel<T>,
        geometry: &Geometry,
        input: &Fed<'_>,
        rows: Range<usize>,
        want: Extent,
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        let reading = self.reading;
        let weights = Weights::read(kernel, *geometry, rows.clone(), reading, self.values)?;
        let mut out = match input {
            Fed::Dense(maps) => weights.over(&maps.centre(grown(want, geometry.extent())), want),
            Fed::Impulses(impulses) => weights.over_impulses(impulses, want),
        };
        if let Some(bias) = &kernel.bias {
            let bias = self.vector(bias, &rows)?;
            out.each_channel(|c, map| map.iter_mut().for_each(|x| *x += reading.of(bias[c])));
        }
        Ok(out)
    }

    /// The values of a vector for `rows`; a single value holds for all.
    fn vector<T: Operand>(&mut self, leaf: &T, rows: &Range<usize>) -> Result<Vec<f64>, V::Error>
    where
        V: Values<T>,
    {
        per_channel(leaf, 0..leaf.len(), rows, self.values)
    }
}

/// What parts that are applied one after the other cover.
fn reach<T>(parts: &[Part<T>]) -> Extent {
    let extents = parts.iter().map(|part| part.geometry().extent());
    extents.fold(POINT, grown)
}

/// Channels that hold all that the output channels `rows` of these parts need; there is no conv in them.
fn needed<T>(parts: &[Part<T>], rows: Range<usize>) -> Range<usize> {
    let all = |ranges: &mut dyn Iterator<Item = Range<usize>>| {
        let union = |a: Range<usize>, b: Range<usize>| a.start.min(b.start)..a.end.max(b.end);
        ranges.filter(|range| !range.is_empty()).reduce(union)
    };
    parts.iter().rev().fold(rows, |rows, part| {
        let channels = match part.op() {
            Op::Seq(parts) => Some(needed(parts, rows)),
            Op::Sum(parts) => all(&mut parts
                .iter()
                .map(|x| needed(std::slice::from_ref(x), rows.clone()))),
            Op::Stack(parts) => {
                all(&mut of_each(parts, &rows)
                    .map(|(x, rows)| needed(std::slice::from_ref(x), rows)))
            }
            Op::Select(Channels { picked, .. }) => all(&mut picked[rows].iter().map(|c| *c..c + 1)),
            _ => Some(rows),
        };
        channels.unwrap_or(0..0)
    })
}

/// Of the parts of a stack, those that some of the output channels `rows` are of, and which of their own those are.
fn of_each<'a, T>(
    parts: &'a [Part<T>],
    rows: &Range<usize>,
) -> impl Iterator<Item = (&'a Part<T>, Range<usize>)> {
    let (rows, mut first) = (rows.clone(), 0);
    parts.iter().filter_map(move |part| {
        let own = first..first + part.geometry().out();
        first = own.end;
        let (start, end) = (rows.start.max(own.start), rows.end.min(own.end));
        (start < end).then(|| (part, start - own.start..end - own.start))
    })
}

/// The values `held` in a leaf that belong to the channels `rows`; a single one holds for all.
fn per_channel<T: Operand, V: Values<T>>(
    leaf: &T,
    held: Range<usize>,
    rows: &Range<usize>,
    values: &mut V,
) -> Result<Vec<f64>, V::Error> {
    match held.len() {
        1 => Ok(vec![values.vector(leaf, held.start, 1)?[0]; rows.len()]),
        _ => values.vector(leaf, held.start + rows.start, rows.len()),
    }
}

/// What the channels `rows` are multiplied by. A sigmoid is taken from the side where its exponential is small, so that a gate that
/// is all but closed keeps its digits.
pub(crate) fn gate<T: Operand, V: Values<T>>(
    vector: &Vector<T>,
    rows: &Range<usize>,
    values: &mut V,
) -> Result<Vec<f64>, V::Error> {
    let held = vector.first()..vector.first() + vector.len();
    let mut factors = per_channel(&vector.tensor, held, rows, values)?;
    let squashed = |x: f64| {
        let e = (-x.abs()).exp();
        match x.is_finite() {
            true if x < 0.0 => e / (1.0 + e),
            true => 1.0 / (1.0 + e),
            false => f64::NAN,
        }
    };
    match vector.through {
        Through::Itself => {}
        Through::Sigmoid => factors.iter_mut().for_each(|x| *x = squashed(*x)),
        Through::Reciprocal => factors.iter_mut().for_each(|x| *x = x.recip()),
    }
    Ok(factors)
}

impl Fed<'_> {
    /// How many maps each channel has.
    fn maps(&self) -> usize {
        match self {
            Fed::Dense(maps) => maps.maps(),
            Fed::Impulses(impulses) => impulses.channels.len(),
        }
    }

    /// The centre of the maps of channels `rows`.
    fn centre(&self, rows: Range<usize>, want: Extent) -> Maps {
        let Impulses {
            per_group,
            channels,
            levels,
        } = match self {
            Fed::Dense(maps) => return maps.part(rows).cropped(want),
            Fed::Impulses(impulses) => impulses,
        };
        let mut maps = Maps::zeros(rows.len(), channels.len(), want);
        let (area, centre) = (volume(want), flat(want.map(|n| n / 2), want));
        maps.each_channel(|local, map| {
            let [beside, spike] = levels[rows.start + local];
            if beside != 0.0 {
                map.fill(beside);
            }
            let channel = (rows.start + local) % per_group;
            if channels.contains(&channel) {
                map[(channel - channels.start) * area + centre] = spike;
            }
        });
        maps
    }
}
