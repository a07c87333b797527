//! The second reading: an expression runs on feature maps branch by branch, as training did.
//!
//! Nothing is folded here, and nothing that computes a number is shared with [`fold`](mod@super::fold): a batch norm subtracts its
//! mean and divides by its root, a conv convolves, a sum adds maps. Outputs are computed for a range of
//! output channels and for a centred window, which is what [`Expr::Sum`] crops its branches to.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

use super::expr::{Bn, Conv, Expr, Factor, Operand, Through, Values, Vector};
use super::shape::transposed;
use super::shape::{Geometry, channels, dilated, extent_of, first_input, four_dims, outputs};

/// Feature maps, `[channels, maps, height, width]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Maps {
    /// The number of channels.
    pub channels: usize,
    /// How many maps each channel has.
    pub maps: usize,
    /// `[height, width]`.
    pub size: [usize; 2],
    /// `channels · maps · height · width` values.
    pub data: Vec<f64>,
}

/// What an expression is applied to.
#[derive(Clone, Debug)]
pub enum Input {
    /// Maps with values everywhere.
    Dense(Maps),
    /// One map per input channel of a group: each is zero but for `amplitude` at the centre of one channel
    /// of every group. The responses to all of them read every tap of every kernel.
    Spikes {
        /// Input channels of each group.
        per_group: usize,
        /// Which channels of the group have a spike, each in a map of its own.
        channels: Range<usize>,
        /// The height of the spikes.
        amplitude: f64,
    },
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
}

impl Reading {
    /// A number as this reading sees it.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Reading::Value => x,
            Reading::Magnitude => x.abs(),
            Reading::Energy => x * x,
        }
    }
}

/// Runs output channels `rows` of `expr` over `input` and returns the centre `want` of the output maps.
///
/// The expression must come from a [`Resolved`](super::Resolved) tree with this `geometry`.
///
/// # Errors
/// Whatever reading the values gives.
pub fn forward<T: Operand, V: Values<T>>(
    expr: &Expr<T>,
    geometry: &Geometry,
    input: &Input,
    rows: Range<usize>,
    want: [usize; 2],
    reading: Reading,
    values: &mut V,
) -> Result<Maps, V::Error> {
    Run { reading, values }.run(expr, geometry.inputs, input, rows, want)
}

struct Run<'a, V> {
    reading: Reading,
    values: &'a mut V,
}

impl<V> Run<'_, V> {
    fn run<T: Operand>(
        &mut self,
        expr: &Expr<T>,
        inputs: usize,
        input: &Input,
        rows: Range<usize>,
        want: [usize; 2],
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        match expr {
            Expr::Conv(conv) => self.conv(conv, input, rows, want),
            Expr::Sum(xs) => {
                let mut total: Option<Maps> = None;
                for x in xs {
                    let branch = self.run(x, inputs, input, rows.clone(), want)?;
                    match &mut total {
                        None => total = Some(branch),
                        Some(total) => total
                            .data
                            .iter_mut()
                            .zip(branch.data)
                            .for_each(|(a, b)| *a += b),
                    }
                }
                Ok(total.unwrap_or_else(|| input.centre(rows, want)))
            }
            Expr::Seq(xs) => {
                let (head, tail) = Expr::split_seq(xs);
                let Some((first, rest)) = tail.split_first() else {
                    return Ok(input.centre(rows, want));
                };
                let before_rest = grown(want, extent_of(rest));
                let mut maps = if head.is_empty() {
                    self.run(first, inputs, input, rows.clone(), before_rest)?
                } else {
                    let before_first = grown(before_rest, extent_of(std::slice::from_ref(first)));
                    let width = head.iter().fold(inputs, |width, x| outputs(x, width));
                    let head = Expr::Seq(head.to_vec());
                    let inner = self.run(&head, inputs, input, 0..width, before_first)?;
                    self.run(
                        first,
                        width,
                        &Input::Dense(inner),
                        rows.clone(),
                        before_rest,
                    )?
                };
                for (i, x) in rest.iter().enumerate() {
                    let size = grown(want, extent_of(&rest[i + 1..]));
                    maps = self.channelwise(x, maps, rows.clone(), size)?;
                }
                Ok(maps)
            }
            channelwise => {
                let maps = input.centre(
                    rows.clone(),
                    grown(want, extent_of(std::slice::from_ref(channelwise))),
                );
                self.channelwise(channelwise, maps, rows, want)
            }
        }
    }

    /// Applies an operator that maps every channel by itself to the channels `rows`.
    fn channelwise<T: Operand>(
        &mut self,
        expr: &Expr<T>,
        mut maps: Maps,
        rows: Range<usize>,
        want: [usize; 2],
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        let reading = self.reading;
        match expr {
            Expr::Bn(Bn {
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
                    let root = (var[c] + eps).sqrt();
                    let [less, factor, bias] =
                        [-mean[c], weight[c] / root, bias[c]].map(|x| reading.of(x));
                    map.iter_mut()
                        .for_each(|x| *x = (*x + less) * factor + bias);
                });
            }
            Expr::Scale(Factor::Number(n)) => {
                maps.data.iter_mut().for_each(|x| *x *= reading.of(*n))
            }
            Expr::Scale(Factor::Tensor(v)) => {
                let scale = gate(v, &rows, self.values)?;
                maps.each_channel(|c, map| map.iter_mut().for_each(|x| *x *= reading.of(scale[c])));
            }
            Expr::Shift(t) => {
                let shift = self.vector(t, &rows)?;
                maps.each_channel(|c, map| map.iter_mut().for_each(|x| *x += reading.of(shift[c])));
            }
            Expr::Mean(k) => {
                let weight = reading.of(1.0 / (k[0] * k[1]) as f64);
                return Ok(pool(&maps.cropped(grown(want, [k[0], k[1]])), *k, weight));
            }
            Expr::Sum(_) | Expr::Seq(_) => {
                // Several diagonal operators grouped together: run them on these channels alone.
                return self.grouped(expr, maps, rows, want);
            }
            Expr::Identity | Expr::Conv(_) => {}
        }
        Ok(maps.cropped(want))
    }

    fn grouped<T: Operand>(
        &mut self,
        expr: &Expr<T>,
        maps: Maps,
        rows: Range<usize>,
        want: [usize; 2],
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        match expr {
            Expr::Seq(xs) => xs.iter().enumerate().try_fold(maps, |maps, (i, x)| {
                let size = grown(want, extent_of(&xs[i + 1..]));
                self.channelwise(x, maps, rows.clone(), size)
            }),
            Expr::Sum(xs) => {
                let mut total = vec![0.0; maps.channels * maps.maps * want[0] * want[1]];
                for x in xs {
                    let branch = self.channelwise(x, maps.clone(), rows.clone(), want)?;
                    total.iter_mut().zip(branch.data).for_each(|(a, b)| *a += b);
                }
                Ok(Maps {
                    size: want,
                    data: total,
                    ..maps
                })
            }
            _ => self.channelwise(expr, maps, rows, want),
        }
    }

    fn conv<T: Operand>(
        &mut self,
        conv: &Conv<T>,
        input: &Input,
        rows: Range<usize>,
        want: [usize; 2],
    ) -> Result<Maps, V::Error>
    where
        V: Values<T>,
    {
        let weights = self.weights(conv, &rows)?;
        let mut out = match input {
            Input::Dense(maps) => {
                weights.over(&maps.cropped(grown(want, weights.extent())), &rows, want)
            }
            Input::Spikes {
                per_group,
                channels,
                amplitude,
            } => weights.over_spikes(*per_group, channels, *amplitude, &rows, want),
        };
        if let Some(bias) = &conv.bias {
            let bias = self.vector(bias, &rows)?;
            let reading = self.reading;
            out.each_channel(|c, map| map.iter_mut().for_each(|x| *x += reading.of(bias[c])));
        }
        Ok(out)
    }

    /// The kernels of output channels `rows`.
    fn weights<T: Operand>(
        &mut self,
        conv: &Conv<T>,
        rows: &Range<usize>,
    ) -> Result<Weights, V::Error>
    where
        V: Values<T>,
    {
        let [_, _, kh, kw] = four_dims(conv.weight.shape()).unwrap_or([0; 4]);
        let (groups, taps) = (conv.groups.unwrap_or(1), kh * kw);
        let [out, per_group] = channels(conv);
        let stored = if conv.shared {
            let kernel = self.values.vector(&conv.weight, 0, taps)?;
            kernel.repeat(rows.len())
        } else if conv.transposed {
            transposed::read_rows(&conv.weight, groups, rows.clone(), self.values)?
        } else {
            let row = per_group * taps;
            self.values
                .vector(&conv.weight, rows.start * row, rows.len() * row)?
        };
        let mut data = match conv.flipped {
            true => turned(&stored, taps),
            false => stored,
        };
        if self.reading != Reading::Value {
            let reading = self.reading;
            data.iter_mut().for_each(|w| *w = reading.of(*w));
        }
        Ok(Weights {
            out,
            groups,
            per_group,
            kernel: [kh, kw],
            dilation: conv.dilation,
            data,
        })
    }

    /// The values of a vector for `rows`; a single value holds for all.
    fn vector<T: Operand>(&mut self, leaf: &T, rows: &Range<usize>) -> Result<Vec<f64>, V::Error>
    where
        V: Values<T>,
    {
        per_channel(leaf, 0..leaf.len(), rows, self.values)
    }
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
    let start = vector.row.unwrap_or(0) * vector.len();
    let held = start..start + vector.len();
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

/// Kernels of `taps` taps each, turned by 180°: the last tap comes first.
fn turned(kernels: &[f64], taps: usize) -> Vec<f64> {
    let tap = |i: usize| kernels[i / taps * taps + (taps - 1 - i % taps)];
    (0..kernels.len()).map(tap).collect()
}

/// Some output channels of a conv weight.
struct Weights {
    out: usize,
    groups: usize,
    per_group: usize,
    kernel: [usize; 2],
    dilation: [usize; 2],
    data: Vec<f64>,
}

impl Weights {
    fn extent(&self) -> [usize; 2] {
        dilated(self.kernel, self.dilation).unwrap_or(self.kernel)
    }

    fn first_input(&self, o: usize) -> usize {
        first_input(o, self.out, self.groups, self.per_group)
    }

    fn row(&self, local: usize) -> &[f64] {
        let len = self.per_group * self.kernel[0] * self.kernel[1];
        &self.data[local * len..][..len]
    }

    /// A valid convolution: for each group a matrix of kernels times a matrix of patches.
    fn over(&self, x: &Maps, rows: &Range<usize>, want: [usize; 2]) -> Maps {
        let mut out = Maps::zeros(rows.len(), x.maps, want);
        let columns = x.maps * want[0] * want[1];
        let depth = self.per_group * self.kernel[0] * self.kernel[1];
        let mut patches = vec![0.0; depth * columns];
        let mut local = 0;
        while local < rows.len() {
            let first = self.first_input(rows.start + local);
            let same_group = (local..rows.len())
                .take_while(|l| self.first_input(rows.start + l) == first)
                .count();
            self.patches(x, first, want, &mut patches);
            let kernels = &self.data[local * depth..][..same_group * depth];
            let maps = &mut out.data[local * columns..][..same_group * columns];
            if let (Ok(w), Ok(p), Ok(mut y)) = (
                ArrayView2::from_shape((same_group, depth), kernels),
                ArrayView2::from_shape((depth, columns), &patches),
                ArrayViewMut2::from_shape((same_group, columns), maps),
            ) {
                general_mat_mul(1.0, &w, &p, 0.0, &mut y);
            }
            local += same_group;
        }
        out
    }

    /// `[in/groups · kh · kw, maps · height · width]`: what each tap sees at each output position.
    fn patches(&self, x: &Maps, first: usize, want: [usize; 2], out: &mut [f64]) {
        let [h, w] = x.size;
        let mut at = 0;
        for c in first..first + self.per_group {
            for ky in 0..self.kernel[0] {
                for kx in 0..self.kernel[1] {
                    for map in 0..x.maps {
                        for y in 0..want[0] {
                            let from = ((c * x.maps + map) * h + y + ky * self.dilation[0]) * w
                                + kx * self.dilation[1];
                            out[at..at + want[1]].copy_from_slice(&x.data[from..from + want[1]]);
                            at += want[1];
                        }
                    }
                }
            }
        }
    }

    /// The same over spikes, where every product but one per tap is zero.
    ///
    /// With the spike at the centre, tap `(ky, kx)` answers at the mirrored place of the output.
    fn over_spikes(
        &self,
        per_group: usize,
        channels: &Range<usize>,
        amplitude: f64,
        rows: &Range<usize>,
        want: [usize; 2],
    ) -> Maps {
        let mut out = Maps::zeros(rows.len(), channels.len(), want);
        let [kh, kw] = self.kernel;
        let extent = self.extent();
        // Where the response's first row and column lie in the window; negative where it is larger.
        let offset = [0, 1].map(|axis| (want[axis] as isize - extent[axis] as isize) / 2);
        let area = want[0] * want[1];
        for (local, o) in rows.clone().enumerate() {
            let maps = &mut out.data[local * channels.len() * area..][..channels.len() * area];
            // This conv sees a part of the group in whose channels the spikes lie.
            let skipped = self.first_input(o) % per_group;
            for (map, channel) in maps.chunks_exact_mut(area).zip(channels.clone()) {
                let Some(input) = channel.checked_sub(skipped).filter(|i| *i < self.per_group)
                else {
                    continue;
                };
                let kernel = &self.row(local)[input * kh * kw..][..kh * kw];
                if extent == want && self.dilation == [1, 1] {
                    map.iter_mut()
                        .rev()
                        .zip(kernel)
                        .for_each(|(y, w)| *y = amplitude * w);
                    continue;
                }
                for (i, w) in kernel.iter().enumerate() {
                    let mirrored = [
                        (kh - 1 - i / kw) * self.dilation[0],
                        (kw - 1 - i % kw) * self.dilation[1],
                    ];
                    let at = [0, 1].map(|axis| offset[axis] + mirrored[axis] as isize);
                    if (0..2).all(|axis| at[axis] >= 0 && at[axis] < want[axis] as isize) {
                        map[at[0] as usize * want[1] + at[1] as usize] = amplitude * w;
                    }
                }
            }
        }
        out
    }
}

impl Input {
    /// The centre of the maps of channels `rows`.
    fn centre(&self, rows: Range<usize>, want: [usize; 2]) -> Maps {
        match self {
            Input::Dense(maps) => {
                let len = maps.maps * maps.size[0] * maps.size[1];
                let data = maps.data[rows.start * len..rows.end * len].to_vec();
                Maps {
                    channels: rows.len(),
                    data,
                    ..*maps
                }
                .cropped(want)
            }
            Input::Spikes {
                per_group,
                channels,
                amplitude,
            } => {
                let mut maps = Maps::zeros(rows.len(), channels.len(), want);
                let area = want[0] * want[1];
                let centre = want[0] / 2 * want[1] + want[1] / 2;
                for (local, channel) in rows.enumerate() {
                    let channel = channel % per_group;
                    if channels.contains(&channel) {
                        let map = local * channels.len() + channel - channels.start;
                        maps.data[map * area + centre] = *amplitude;
                    }
                }
                maps
            }
        }
    }
}

impl Maps {
    /// Maps of zeros.
    pub fn zeros(channels: usize, maps: usize, size: [usize; 2]) -> Maps {
        Maps {
            channels,
            maps,
            size,
            data: vec![0.0; channels * maps * size[0] * size[1]],
        }
    }

    fn each_channel(&mut self, mut f: impl FnMut(usize, &mut [f64])) {
        let len = self.maps * self.size[0] * self.size[1];
        self.data
            .chunks_exact_mut(len.max(1))
            .enumerate()
            .for_each(|(c, map)| f(c, map));
    }

    /// The centre of every map; the map itself if it has that size already.
    fn cropped(&self, want: [usize; 2]) -> Maps {
        let [h, w] = self.size;
        if self.size == want {
            return self.clone();
        }
        let [top, left] = [(h - want[0]) / 2, (w - want[1]) / 2];
        let mut data = Vec::with_capacity(self.channels * self.maps * want[0] * want[1]);
        for map in self.data.chunks_exact(h * w) {
            for row in map.chunks_exact(w).skip(top).take(want[0]) {
                data.extend_from_slice(&row[left..left + want[1]]);
            }
        }
        Maps {
            size: want,
            data,
            ..*self
        }
    }
}

/// `weight` times the sum over each window, with stride 1 and no padding.
fn pool(x: &Maps, k: [usize; 2], weight: f64) -> Maps {
    let [h, w] = x.size;
    let size = [h + 1 - k[0], w + 1 - k[1]];
    let mut out = Maps::zeros(x.channels, x.maps, size);
    for (from, to) in x
        .data
        .chunks_exact(h * w)
        .zip(out.data.chunks_exact_mut(size[0] * size[1]))
    {
        for (i, y) in to.iter_mut().enumerate() {
            let [top, left] = [i / size[1], i % size[1]];
            let rows = from[top * w..].chunks(w).take(k[0]);
            *y = weight
                * rows
                    .map(|row| row[left..left + k[1]].iter().sum::<f64>())
                    .sum::<f64>();
        }
    }
    out
}

/// The input size that a valid operator of this extent needs for an output of `want`.
fn grown(want: [usize; 2], extent: [usize; 2]) -> [usize; 2] {
    [want[0] + extent[0] - 1, want[1] + extent[1] - 1]
}
