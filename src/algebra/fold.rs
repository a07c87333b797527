//! The first reading: an expression becomes one kernel and one bias.
//!
//! The normal form is a sum of *terms*, each a scaled kernel or a scaled diagonal, plus a bias. A batch
//! norm behind a conv only changes the term's scale, so nothing is multiplied out until a row of
//! the fused kernel is asked for, and then every branch is read once: `row = Σ scale · branch row + taps`.
//! A diagonal becomes a delta kernel only there, so the identity tap
//! `[o, o mod (in/groups), ⌊kh/2⌋, ⌊kw/2⌋]` is written in one place.
//!
//! Rows (output channels) are independent of one another, and the large weights are read only row by row.
//! What stands before the last conv of a sequence is needed whole by every row; it is folded when
//! the expression is compiled.

use std::sync::Arc;

use super::branches::Branch;
use super::expr::{Bn, Conv, Expr, Factor, Operand, Values};
use super::geometry::{self, Geometry, Resolved, dilated, first_input, four_dims};

/// A kernel `[out, in/groups, kh, kw]` and a bias `[out]`, in f64 and row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// The shapes of kernel and bias.
    pub geometry: Geometry,
    /// `out · in/groups · kh · kw` values.
    pub kernel: Vec<f64>,
    /// `out` values.
    pub bias: Vec<f64>,
}

/// Folds a whole expression at once.
///
/// # Errors
/// Whatever reading the values gives.
pub fn fold<T: Operand, V: Values<T>>(
    expr: &Resolved<T>,
    values: &mut V,
) -> Result<Affine, V::Error> {
    Folded::compile(expr, values)?.all_rows(values)
}

/// An expression compiled to its normal form; rows of the fused kernel are there for the asking.
#[derive(Debug)]
pub struct Folded<T> {
    geometry: Geometry,
    form: Form<T>,
}

/// Terms and a bias `[out]`.
#[derive(Clone, Debug)]
struct Form<T> {
    terms: Vec<Term<T>>,
    bias: Vec<f64>,
}

/// One summand of the kernel: `scale[o] · row o of the source`, averaged over the windows in `means`.
#[derive(Clone, Debug)]
struct Term<T> {
    source: Source<T>,
    scale: Vec<f64>,
    means: Vec<[usize; 2]>,
}

#[derive(Clone, Debug)]
enum Source<T> {
    /// Channel `o` itself.
    Diagonal,
    /// Row `o` of a kernel that is already folded.
    Inner(Arc<Affine>),
    /// Row `o` of a stored weight, applied to the block's input or to what is already folded.
    Conv {
        conv: Conv<T>,
        after: Option<Arc<Affine>>,
    },
}

/// Buffers that one thread reuses from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    weight: Vec<f64>,
    composed: Vec<f64>,
    by_tap: Vec<f64>,
    blurred: [Vec<f64>; 2],
}

impl<T: Operand> Folded<T> {
    /// Compiles `expr`. Vectors are read, and inner convs folded; the outermost weights stay where they are.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn compile<V: Values<T>>(expr: &Resolved<T>, values: &mut V) -> Result<Self, V::Error> {
        let geometry = *expr.geometry();
        let form = compile(expr.expr(), geometry.inputs, None, values)?;
        Ok(Folded { geometry, form })
    }

    /// Compiles one of the [`branches`](super::branches::branches) of an expression by itself. Its rows have the extent of
    /// the whole kernel, with the branch in the middle; they add up to the rows of the whole.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn compile_branch<V: Values<T>>(
        whole: &Resolved<T>,
        branch: &Branch<T>,
        values: &mut V,
    ) -> Result<Self, V::Error> {
        let geometry = *whole.geometry();
        let form = compile(&branch.expr, geometry.inputs, None, values)?;
        Ok(Folded { geometry, form })
    }

    /// What the fused kernel maps to what.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Writes the fused kernel's row `o`, `[in/groups, kh, kw]`, to `out` and returns its bias.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn row<V: Values<T>>(
        &self,
        o: usize,
        values: &mut V,
        scratch: &mut Scratch,
        out: &mut [f64],
    ) -> Result<f64, V::Error> {
        let Scratch {
            weight,
            composed,
            by_tap,
            blurred,
        } = scratch;
        let start = self.geometry.first_input(o);
        let mut bias = self.form.bias[o];
        out.fill(0.0);
        for Term {
            source,
            scale,
            means,
        } in &self.form.terms
        {
            let scale = scale[o];
            let (taps, extent, first): (&[f64], _, _) = match source {
                Source::Diagonal => (&[1.0], [1, 1], o),
                Source::Inner(inner) => (
                    inner.row(o),
                    inner.geometry.extent,
                    inner.geometry.first_input(o),
                ),
                Source::Conv { conv, after } => {
                    let row = read_row(conv, o, values, weight)?;
                    match after {
                        Some(inner) => {
                            bias += scale * row.through_bias(weight, &inner.bias);
                            let (extent, first) =
                                row.through(weight, inner, o, &self.geometry, [composed, by_tap]);
                            (composed, extent, first)
                        }
                        None if conv.dilation == [1, 1] => (weight, row.kernel, row.first),
                        None => (
                            spread(weight, row.kernel, row.extent, conv.dilation, composed),
                            row.extent,
                            row.first,
                        ),
                    }
                }
            };
            let (taps, extent) = blur(taps, extent, means, blurred);
            add_centred(
                taps,
                extent,
                first - start,
                scale,
                out,
                self.geometry.extent,
            );
        }
        Ok(bias)
    }

    /// Writes what is stored for input channel `i` of a transposed conv, `[out/groups, kh, kw]`, to `out`.
    ///
    /// Its taps stay as they are stored, for nothing but scales and sums can follow a transposed conv.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn transposed_row<V: Values<T>>(
        &self,
        i: usize,
        values: &mut V,
        scratch: &mut Scratch,
        out: &mut [f64],
    ) -> Result<(), V::Error> {
        let Geometry {
            inputs,
            out: outputs,
            groups,
            extent,
            ..
        } = self.geometry;
        let area = extent[0] * extent[1];
        // The group of input channel `i`, and so its first output channel.
        let start = i * groups / inputs * (outputs / groups);
        out.fill(0.0);
        for Term { source, scale, .. } in &self.form.terms {
            let Source::Conv { conv, .. } = source else {
                continue;
            };
            let [_, width, kh, kw] = four_dims(conv.weight.shape()).unwrap_or([0; 4]);
            let weight = &mut scratch.weight;
            weight.resize(width * kh * kw, 0.0);
            values.read(&conv.weight, i * weight.len(), weight)?;
            let first = i * conv.groups.unwrap_or(1) / inputs * width;
            let maps = out[(first - start) * area..].chunks_exact_mut(area);
            for ((kernel, map), scale) in
                weight.chunks_exact(kh * kw).zip(maps).zip(&scale[first..])
            {
                add_centred(kernel, [kh, kw], 0, *scale, map, extent);
            }
        }
        Ok(())
    }

    /// The bias of every output channel, as far as no outermost weight has a part in it; of a transposed conv, all of it.
    pub fn constant_bias(&self) -> &[f64] {
        &self.form.bias
    }

    fn all_rows<V: Values<T>>(&self, values: &mut V) -> Result<Affine, V::Error> {
        let geometry = self.geometry;
        let mut kernel = vec![0.0; geometry.out * geometry.row_len()];
        let mut bias = Vec::with_capacity(geometry.out);
        let mut scratch = Scratch::default();
        for (o, row) in kernel
            .chunks_exact_mut(geometry.row_len().max(1))
            .enumerate()
        {
            bias.push(self.row(o, values, &mut scratch, row)?);
        }
        Ok(Affine {
            geometry,
            kernel,
            bias,
        })
    }
}

impl Affine {
    fn row(&self, o: usize) -> &[f64] {
        &self.kernel[o * self.geometry.row_len()..][..self.geometry.row_len()]
    }
}

/// Compiles an expression over `inputs` channels, behind what is already folded.
fn compile<T: Operand, V: Values<T>>(
    expr: &Expr<T>,
    inputs: usize,
    after: Option<&Arc<Affine>>,
    values: &mut V,
) -> Result<Form<T>, V::Error> {
    match expr {
        Expr::Conv(conv) => {
            let out = geometry::outputs(expr, inputs);
            let bias = match &conv.bias {
                Some(bias) => values.vector(bias, 0, out)?,
                None => vec![0.0; out],
            };
            let source = Source::Conv {
                conv: conv.clone(),
                after: after.cloned(),
            };
            Ok(Form {
                terms: vec![Term {
                    source,
                    scale: vec![1.0; out],
                    means: Vec::new(),
                }],
                bias,
            })
        }
        Expr::Sum(xs) => {
            let forms = xs
                .iter()
                .map(|x| compile(x, inputs, after, values))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(sum(forms))
        }
        Expr::Seq(xs) => {
            let (head, tail) = Expr::split_seq(xs);
            let inner = match head {
                [] => after.cloned(),
                _ => Some(Arc::new(fold_part(head, inputs, after, values)?)),
            };
            let inputs = inner.as_ref().map_or(inputs, |inner| inner.geometry.out);
            let Some((first, rest)) = tail.split_first() else {
                return Ok(input(inputs, after));
            };
            let form = compile(first, inputs, inner.as_ref(), values)?;
            rest.iter()
                .try_fold(form, |form, x| apply_channelwise(x, form, values))
        }
        channelwise => apply_channelwise(channelwise, input(inputs, after), values),
    }
}

/// Folds the head of a sequence over all its channels.
fn fold_part<T: Operand, V: Values<T>>(
    head: &[Expr<T>],
    inputs: usize,
    after: Option<&Arc<Affine>>,
    values: &mut V,
) -> Result<Affine, V::Error> {
    let head = Expr::Seq(head.to_vec());
    let form = compile(&head, inputs, after, values)?;
    let geometry = geometry::of_part(&head, inputs, after.map(|a| &a.geometry));
    Folded { geometry, form }.all_rows(values)
}

/// The block's input, or what is already folded, as a form.
fn input<T>(inputs: usize, after: Option<&Arc<Affine>>) -> Form<T> {
    let (source, bias) = match after {
        None => (Source::Diagonal, vec![0.0; inputs]),
        Some(inner) => (Source::Inner(inner.clone()), inner.bias.clone()),
    };
    Form {
        terms: vec![Term {
            source,
            scale: vec![1.0; inputs],
            means: Vec::new(),
        }],
        bias,
    }
}

fn sum<T>(forms: Vec<Form<T>>) -> Form<T> {
    let mut forms = forms.into_iter();
    let mut total = forms.next().unwrap_or(Form {
        terms: Vec::new(),
        bias: Vec::new(),
    });
    for form in forms {
        total.terms.extend(form.terms);
        total
            .bias
            .iter_mut()
            .zip(form.bias)
            .for_each(|(a, b)| *a += b);
    }
    total
}

/// Applies an operator that maps every channel by itself.
fn apply_channelwise<T: Operand, V: Values<T>>(
    expr: &Expr<T>,
    mut form: Form<T>,
    values: &mut V,
) -> Result<Form<T>, V::Error> {
    match expr {
        Expr::Seq(xs) => xs
            .iter()
            .try_fold(form, |form, x| apply_channelwise(x, form, values)),
        Expr::Sum(xs) => {
            let forms = xs
                .iter()
                .map(|x| apply_channelwise(x, form.clone(), values))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(sum(forms))
        }
        Expr::Mean(k) => {
            form.terms.iter_mut().for_each(|term| term.means.push(*k));
            Ok(form)
        }
        diagonal => {
            let [scale, shift] = diagonal_of(diagonal, form.bias.len(), values)?;
            for term in &mut form.terms {
                term.scale.iter_mut().zip(&scale).for_each(|(a, s)| *a *= s);
            }
            for ((bias, scale), shift) in form.bias.iter_mut().zip(scale).zip(shift) {
                *bias = *bias * scale + shift;
            }
            Ok(form)
        }
    }
}

/// The diagonal affine map `scale · x + shift` that a batch norm, a scale or a shift is, per channel.
fn diagonal_of<T: Operand, V: Values<T>>(
    expr: &Expr<T>,
    channels: usize,
    values: &mut V,
) -> Result<[Vec<f64>; 2], V::Error> {
    let mut per_channel = |leaf: &T| match leaf.len() {
        1 => Ok(vec![values.vector(leaf, 0, 1)?[0]; channels]),
        _ => values.vector(leaf, 0, channels),
    };
    let (ones, zeros) = (|| vec![1.0; channels], || vec![0.0; channels]);
    Ok(match expr {
        Expr::Bn(Bn {
            mean,
            var,
            affine,
            eps,
        }) => {
            let (mean, var) = (per_channel(mean)?, per_channel(var)?);
            let [weight, bias] = match affine {
                Some([weight, bias]) => [per_channel(weight)?, per_channel(bias)?],
                None => [ones(), zeros()],
            };
            let scale: Vec<f64> = weight
                .iter()
                .zip(&var)
                .map(|(w, v)| w / (v + eps).sqrt())
                .collect();
            let shift = bias
                .iter()
                .zip(&mean)
                .zip(&scale)
                .map(|((b, m), s)| b - m * s)
                .collect();
            [scale, shift]
        }
        Expr::Scale(Factor::Number(n)) => [vec![*n; channels], zeros()],
        Expr::Scale(Factor::Tensor(v)) => [v.read(values, 0, channels)?, zeros()],
        Expr::Shift(t) => [ones(), per_channel(t)?],
        _ => [ones(), zeros()],
    })
}

/// One output channel of a stored weight, and which inputs it sees.
struct Row {
    first: usize,
    kernel: [usize; 2],
    extent: [usize; 2],
    dilation: [usize; 2],
}

/// Reads output channel `o` of a conv as `[in/groups, kh, kw]`.
fn read_row<T: Operand, V: Values<T>>(
    conv: &Conv<T>,
    o: usize,
    values: &mut V,
    row: &mut Vec<f64>,
) -> Result<Row, V::Error> {
    let [first, second, kh, kw] = four_dims(conv.weight.shape()).unwrap_or([0; 4]);
    let (taps, groups) = (kh * kw, conv.groups.unwrap_or(1));
    let (out, per_group) = if conv.transposed {
        (second * groups, first / groups)
    } else {
        (first, second)
    };
    row.resize(per_group * taps, 0.0);
    if conv.transposed {
        // `[in, out/groups, kh, kw]`: gather the output channel from every input channel of its group.
        // Seen as a plain conv, over a map with zeros between the pixels, its taps are turned by 180°.
        let (group, column) = (o / second, o % second);
        for (i, kernel) in row.chunks_exact_mut(taps).enumerate() {
            values.read(
                &conv.weight,
                ((group * per_group + i) * second + column) * taps,
                kernel,
            )?;
            kernel.reverse();
        }
    } else {
        values.read(&conv.weight, o * per_group * taps, row)?;
    }
    let extent = dilated([kh, kw], conv.dilation).unwrap_or([kh, kw]);
    Ok(Row {
        first: first_input(o, out, groups, per_group),
        kernel: [kh, kw],
        extent,
        dilation: conv.dilation,
    })
}

impl Row {
    /// What the inner bias contributes: every tap sees it, for a valid conv never leaves its map.
    fn through_bias(&self, weight: &[f64], inner: &[f64]) -> f64 {
        let taps = self.kernel[0] * self.kernel[1];
        let sums = weight
            .chunks_exact(taps)
            .map(|kernel| kernel.iter().sum::<f64>());
        sums.zip(&inner[self.first..])
            .map(|(sum, bias)| sum * bias)
            .sum()
    }

    /// Composes this row with an inner kernel: `Σ_t w[t] ∗ inner[t]`, as `[in/groups, h, w]` for the
    /// groups that the composition has; returns its extent and first input channel.
    fn through(
        &self,
        weight: &[f64],
        inner: &Affine,
        o: usize,
        whole: &Geometry,
        [out, by_tap]: [&mut Vec<f64>; 2],
    ) -> ([usize; 2], usize) {
        let [ih, iw] = inner.geometry.extent;
        let extent = [self.extent[0] + ih - 1, self.extent[1] + iw - 1];
        // The channels of the whole kernel's group hold those of the composition's.
        let (start, width) = (whole.first_input(o), whole.in_per_group());
        out.clear();
        out.resize(width * extent[0] * extent[1], 0.0);
        let mut apart = Vec::new();
        let weight = match self.dilation {
            [1, 1] => weight,
            _ => spread(weight, self.kernel, self.extent, self.dilation, &mut apart),
        };
        let area = extent[0] * extent[1];
        let kernels = weight.chunks_exact(self.extent[0] * self.extent[1]);
        let inner_rows = (self.first..).map(|t| {
            let channel = inner.geometry.first_input(t) - start;
            (inner.row(t), channel)
        });
        if self.extent == [1, 1] {
            for (w, (row, channel)) in weight.iter().zip(inner_rows) {
                add_scaled(row, *w, &mut out[channel * area..]);
            }
        } else if [ih, iw] == [1, 1] {
            // Tap by tap, for so the channels lie side by side.
            by_tap.clear();
            by_tap.resize(area * width, 0.0);
            for (kernel, (row, channel)) in kernels.zip(inner_rows) {
                for (w, map) in kernel.iter().zip(by_tap.chunks_exact_mut(width)) {
                    add_scaled(row, *w, &mut map[channel..]);
                }
            }
            for (c, map) in out.chunks_exact_mut(area).enumerate() {
                let taps = by_tap[c..].iter().step_by(width);
                map.iter_mut().zip(taps).for_each(|(to, w)| *to = *w);
            }
        } else {
            for (kernel, (row, channel)) in kernels.zip(inner_rows) {
                let maps = out[channel * area..].chunks_exact_mut(area);
                for (taps, map) in row.chunks_exact(ih * iw).zip(maps) {
                    // Either kernel may move over the other: the larger one moves, in fewer and longer steps.
                    let (steps, width, moved, moved_width) = match taps.len() < kernel.len() {
                        true => (taps, iw, kernel, self.extent[1]),
                        false => (kernel, self.extent[1], taps, iw),
                    };
                    for (i, w) in steps.iter().enumerate() {
                        let at = i / width * extent[1] + i % width;
                        add_at(moved, moved_width, *w, &mut map[at..], extent[1]);
                    }
                }
            }
        }
        (extent, start)
    }
}

/// Puts zeros between the taps of a dilated kernel.
fn spread<'a>(
    weight: &[f64],
    kernel: [usize; 2],
    extent: [usize; 2],
    dilation: [usize; 2],
    out: &'a mut Vec<f64>,
) -> &'a [f64] {
    let (taps, area) = (kernel[0] * kernel[1], extent[0] * extent[1]);
    out.clear();
    out.resize(weight.len() / taps * area, 0.0);
    for (kernel_taps, map) in weight.chunks_exact(taps).zip(out.chunks_exact_mut(area)) {
        for (i, w) in kernel_taps.iter().enumerate() {
            map[i / kernel[1] * dilation[0] * extent[1] + i % kernel[1] * dilation[1]] = *w;
        }
    }
    out
}

/// Averages a kernel over each window in turn; it grows by the window's extent less one.
fn blur<'a>(
    taps: &'a [f64],
    extent: [usize; 2],
    means: &[[usize; 2]],
    buffers: &'a mut [Vec<f64>; 2],
) -> (&'a [f64], [usize; 2]) {
    if means.is_empty() {
        return (taps, extent);
    }
    let [result, next] = buffers;
    result.clear();
    result.extend_from_slice(taps);
    let mut extent = extent;
    for window in means {
        let grown = [extent[0] + window[0] - 1, extent[1] + window[1] - 1];
        let weight = 1.0 / (window[0] * window[1]) as f64;
        next.clear();
        next.resize(
            result.len() / (extent[0] * extent[1]) * grown[0] * grown[1],
            0.0,
        );
        for (from, to) in result
            .chunks_exact(extent[0] * extent[1])
            .zip(next.chunks_exact_mut(grown[0] * grown[1]))
        {
            for y in 0..window[0] {
                for x in 0..window[1] {
                    add_at(
                        from,
                        extent[1],
                        weight,
                        &mut to[y * grown[1] + x..],
                        grown[1],
                    );
                }
            }
        }
        std::mem::swap(result, next);
        extent = grown;
    }
    (result, extent)
}

/// Adds `scale · taps` to the middle of a larger kernel, from input channel `channel` on.
fn add_centred(
    taps: &[f64],
    extent: [usize; 2],
    channel: usize,
    scale: f64,
    out: &mut [f64],
    into: [usize; 2],
) {
    let area = into[0] * into[1];
    let out = &mut out[channel * area..];
    if extent == into {
        add_scaled(taps, scale, out);
        return;
    }
    let at = (into[0] - extent[0]) / 2 * into[1] + (into[1] - extent[1]) / 2;
    for (map, kernel) in out
        .chunks_exact_mut(area)
        .zip(taps.chunks_exact(extent[0] * extent[1]))
    {
        add_at(kernel, extent[1], scale, &mut map[at..], into[1]);
    }
}

fn add_scaled(from: &[f64], scale: f64, to: &mut [f64]) {
    from.iter().zip(to).for_each(|(w, o)| *o += scale * w);
}

/// Adds `scale` times a map of rows of `width` to one whose rows are `stride` apart.
fn add_at(from: &[f64], width: usize, scale: f64, to: &mut [f64], stride: usize) {
    if width == stride {
        to.iter_mut().zip(from).for_each(|(o, w)| *o += scale * w);
        return;
    }
    for (from, to) in from.chunks_exact(width).zip(to.chunks_mut(stride)) {
        add_scaled(from, scale, to);
    }
}
