//! The normal form: a sum of terms, compiled from an expression without touching the outermost weights.

use std::sync::Arc;

use super::{Affine, Folded};
use crate::algebra::expr::{Bn, Conv, Expr, Factor, Operand, Through, Values, Vector};
use crate::algebra::shape;

/// Terms and a bias `[out]`.
#[derive(Clone, Debug)]
pub(super) struct Form<T> {
    pub terms: Vec<Term<T>>,
    pub bias: Vec<f64>,
}

/// One summand of the kernel: `scale[o] · row o of the source`, averaged over the windows in `means`.
#[derive(Clone, Debug)]
pub(super) struct Term<T> {
    pub source: Source<T>,
    pub scale: Vec<f64>,
    pub means: Vec<[usize; 2]>,
}

#[derive(Clone, Debug)]
pub(super) enum Source<T> {
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

/// Compiles an expression over `inputs` channels, behind what is already folded.
pub(super) fn compile<T: Operand, V: Values<T>>(
    expr: &Expr<T>,
    inputs: usize,
    after: Option<&Arc<Affine>>,
    values: &mut V,
) -> Result<Form<T>, V::Error> {
    match expr {
        Expr::Conv(conv) => {
            let out = shape::outputs(expr, inputs);
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
    let geometry = shape::of_part(&head, inputs, after.map(|a| &a.geometry));
    Folded { geometry, form }.all_rows(values)
}

/// The factor of each channel; a single value holds for all.
fn factors<T: Operand, V: Values<T>>(
    vector: &Vector<T>,
    channels: usize,
    values: &mut V,
) -> Result<Vec<f64>, V::Error> {
    let first = vector.row.unwrap_or(0) * vector.len();
    let mut factors = values.vector(&vector.tensor, first, vector.len())?;
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
        Expr::Scale(Factor::Tensor(v)) => [factors(v, channels, values)?, zeros()],
        Expr::Shift(t) => [ones(), per_channel(t)?],
        _ => [ones(), zeros()],
    })
}
