//! The normal form: a sum of terms, compiled from an expression without touching the outermost weights.

use std::sync::Arc;

use super::taps::Window;
use super::{Affine, Folded};
use crate::algebra::expr::{Bn, Channels, Factor, Operand, Through, Values, Vector};
use crate::algebra::extent::POINT;
use crate::algebra::part::{Kernel, Layout, Op, Part, split};
use crate::algebra::shape::Geometry;

/// Terms and a bias `[out]`.
#[derive(Clone, Debug)]
pub(super) struct Form<T> {
    pub terms: Vec<Term<T>>,
    pub bias: Vec<f64>,
}

/// One summand of the kernel: for output channel `o`, `scale[o]` times a row of the source, seen through the `windows` one after the other.
#[derive(Clone, Debug)]
pub(super) struct Term<T> {
    pub source: Source<T>,
    pub rows: Rows,
    pub scale: Vec<f64>,
    pub windows: Vec<Window>,
}

#[derive(Clone, Debug)]
pub(super) enum Source<T> {
    /// A channel itself.
    Diagonal,
    /// A row of a kernel that is already folded.
    Inner(Arc<Affine>),
    /// A row of a stored weight, applied to the block's input or to what is already folded.
    Conv {
        kernel: Kernel<T>,
        geometry: Geometry,
        after: Option<Arc<Affine>>,
    },
}

/// Which row of its source each output channel of a term has.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    /// The row of the same number.
    Same,
    /// These; none where the term is no part of a channel.
    Of(Vec<Option<usize>>),
}

impl Rows {
    pub(super) fn of(&self, o: usize) -> Option<usize> {
        match self {
            Rows::Same => Some(o),
            Rows::Of(rows) => rows[o],
        }
    }
}

impl<T: Operand> Term<T> {
    /// The weight whose rows are, but for the scale, rows of the whole kernel as they are stored: that of the largest branch, mostly.
    pub(super) fn whole_rows(&self, whole: &Geometry) -> Option<&T> {
        match &self.source {
            Source::Conv {
                kernel,
                geometry,
                after: None,
            } => {
                let as_stored = kernel.layout == Layout::Plain
                    && !kernel.flipped
                    && kernel.dilation == POINT
                    && self.windows.is_empty();
                let same = geometry.extent() == whole.extent()
                    && geometry.in_per_group() == whole.in_per_group();
                (as_stored && same).then_some(&kernel.weight)
            }
            _ => None,
        }
    }
}

/// Compiles a part, behind what is already folded.
pub(super) fn compile<T: Operand, V: Values<T>>(
    part: &Part<T>,
    after: Option<&Arc<Affine>>,
    values: &mut V,
) -> Result<Form<T>, V::Error> {
    let geometry = *part.geometry();
    match part.op() {
        Op::Conv(kernel) => {
            let out = geometry.out();
            let bias = match &kernel.bias {
                Some(bias) => values.vector(bias, 0, out)?,
                None => vec![0.0; out],
            };
            let source = Source::Conv {
                kernel: kernel.clone(),
                geometry,
                after: after.cloned(),
            };
            Ok(Form::of(source, bias))
        }
        Op::Sum(parts) => Ok(sum(compile_all(parts, after, values)?)),
        Op::Stack(parts) => Ok(stack(compile_all(parts, after, values)?, geometry.out())),
        Op::Seq(parts) => {
            let (head, tail) = split(parts);
            let inner = match head {
                [] => after.cloned(),
                _ => Some(Arc::new(fold_part(head, geometry.inputs(), after, values)?)),
            };
            let (form, rest) = match tail.split_first() {
                Some((first, rest)) => (compile(first, inner.as_ref(), values)?, rest),
                None => (input(geometry.inputs(), after), tail),
            };
            rest.iter()
                .try_fold(form, |form, part| apply(part, form, values))
        }
        _ => apply(part, input(geometry.inputs(), after), values),
    }
}

fn compile_all<T: Operand, V: Values<T>>(
    parts: &[Part<T>],
    after: Option<&Arc<Affine>>,
    values: &mut V,
) -> Result<Vec<Form<T>>, V::Error> {
    let forms = parts.iter().map(|part| compile(part, after, values));
    forms.collect()
}

/// Folds the head of a sequence over all its channels.
fn fold_part<T: Operand, V: Values<T>>(
    head: &[Part<T>],
    inputs: usize,
    after: Option<&Arc<Affine>>,
    values: &mut V,
) -> Result<Affine, V::Error> {
    let head = Part::seq(head.to_vec(), inputs);
    let form = compile(&head, after, values)?;
    let own = head.geometry();
    let geometry = after.map_or(*own, |after| after.geometry.then(own));
    Folded { geometry, form }.all_rows(values)
}

/// The factor of each channel; a single value holds for all.
fn factors<T: Operand, V: Values<T>>(
    vector: &Vector<T>,
    channels: usize,
    values: &mut V,
) -> Result<Vec<f64>, V::Error> {
    let mut factors = values.vector(&vector.tensor, vector.first(), vector.len())?;
    for x in &mut factors {
        *x = match vector.through {
            Through::Itself => *x,
            // An infinite gate is no number to fold with, though its sigmoid is one.
            Through::Sigmoid if !x.is_finite() => f64::NAN,
            Through::Sigmoid => 1.0 / (1.0 + (-*x).exp()),
            Through::Reciprocal => 1.0 / *x,
        };
    }
    if let [one] = factors[..] {
        factors = vec![one; channels];
    }
    Ok(factors)
}

/// The block's input, or what is already folded, as a form.
fn input<T>(inputs: usize, after: Option<&Arc<Affine>>) -> Form<T> {
    match after {
        None => Form::of(Source::Diagonal, vec![0.0; inputs]),
        Some(inner) => Form::of(Source::Inner(inner.clone()), inner.bias.clone()),
    }
}

impl<T> Form<T> {
    /// A source as it is.
    fn of(source: Source<T>, bias: Vec<f64>) -> Form<T> {
        let term = Term {
            source,
            rows: Rows::Same,
            scale: vec![1.0; bias.len()],
            windows: Vec::new(),
        };
        Form {
            terms: vec![term],
            bias,
        }
    }

    fn seen_through(mut self, window: Window) -> Form<T> {
        let terms = self.terms.iter_mut();
        terms.for_each(|term| term.windows.push(window));
        self
    }

    /// The form whose output channels are these of this one's; where there is none, it adds nothing.
    fn picked(self, channels: &[Option<usize>]) -> Form<T> {
        let pick = |from: &[f64]| -> Vec<f64> {
            let of = |channel: &Option<usize>| channel.map_or(0.0, |channel| from[channel]);
            channels.iter().map(of).collect()
        };
        let terms = self.terms.into_iter().map(|term| Term {
            rows: Rows::Of(
                channels
                    .iter()
                    .map(|channel| channel.and_then(|channel| term.rows.of(channel)))
                    .collect(),
            ),
            scale: pick(&term.scale),
            ..term
        });
        Form {
            terms: terms.collect(),
            bias: pick(&self.bias),
        }
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

/// Forms whose output channels are put one behind the other, `out` in all: a sum of forms that add nothing to each other's.
fn stack<T>(forms: Vec<Form<T>>, out: usize) -> Form<T> {
    let mut first = 0;
    let mut spread = Vec::with_capacity(forms.len());
    for form in forms {
        let own = first..first + form.bias.len();
        let channels: Vec<_> = (0..out)
            .map(|o| own.contains(&o).then(|| o - own.start))
            .collect();
        first = own.end;
        spread.push(form.picked(&channels));
    }
    sum(spread)
}

/// Applies a part without a conv to a form.
fn apply<T: Operand, V: Values<T>>(
    part: &Part<T>,
    mut form: Form<T>,
    values: &mut V,
) -> Result<Form<T>, V::Error> {
    let mut all = |parts: &[Part<T>], form: &Form<T>| -> Result<Vec<Form<T>>, V::Error> {
        let applied = parts.iter().map(|part| apply(part, form.clone(), values));
        applied.collect()
    };
    match part.op() {
        Op::Sum(parts) => Ok(sum(all(parts, &form)?)),
        Op::Stack(parts) => Ok(stack(all(parts, &form)?, part.geometry().out())),
        Op::Seq(parts) => parts
            .iter()
            .try_fold(form, |form, part| apply(part, form, values)),
        Op::Select(Channels { picked, .. }) => {
            let channels: Vec<_> = picked.iter().map(|channel| Some(*channel)).collect();
            Ok(form.picked(&channels))
        }
        Op::AvgPool(extent) => Ok(form.seen_through(Window::Mean(*extent))),
        Op::Crop(margins) => Ok(form.seen_through(Window::Crop(*margins))),
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
    op: &Op<T>,
    channels: usize,
    values: &mut V,
) -> Result<[Vec<f64>; 2], V::Error> {
    let mut per_channel = |leaf: &T| match leaf.len() {
        1 => Ok(vec![values.vector(leaf, 0, 1)?[0]; channels]),
        _ => values.vector(leaf, 0, channels),
    };
    let (ones, zeros) = (|| vec![1.0; channels], || vec![0.0; channels]);
    Ok(match op {
        Op::Bn(Bn {
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
        Op::Scale(Factor::Number(n)) => [vec![*n; channels], zeros()],
        Op::Scale(Factor::Tensor(v)) => [factors(v, channels, values)?, zeros()],
        Op::Shift(t) => [ones(), per_channel(t)?],
        _ => [ones(), zeros()],
    })
}
