//! The expression of a part of a graph: its nodes as the algebra's operators.

use super::form::{Form, Forms, form_of};
use super::model::{Arithmetic, Conv, Dim, Graph, Linear, NodeId, Op, ValueId, Window};
use super::walk::Walk;
use crate::algebra::{self, Bn, Channels, Expr, Extent, Factor, Margins, Through, Vector};
use crate::tensor::Tensor;

/// The expression of `value` over `source`, where it is known to be one that walks like this: the expression is that of the kernel
/// without the zeros between its taps. `turned` reads every matrix with the outputs first.
///
/// # Errors
/// Says which operator has no expression.
pub(super) fn tree(
    (graph, forms): (&Graph, &Forms),
    (source, value): (ValueId, ValueId),
    walk: &Walk,
    turned: bool,
) -> Result<Expr<Tensor>, String> {
    let mut steps = Vec::new();
    let dilation: Vec<usize> = walk.steps().iter().map(|step| step.dilation).collect();
    let within = Within {
        graph,
        forms,
        source,
        axes: dilation.len(),
        dilation: &dilation,
        turned,
    };
    push(&within, value, &mut steps)?;
    Ok(one(steps))
}

/// What all operators of a tree share.
struct Within<'a> {
    graph: &'a Graph,
    forms: &'a Forms,
    source: ValueId,
    /// Spatial axes of its weights.
    axes: usize,
    dilation: &'a [usize],
    turned: bool,
}

impl Within<'_> {
    /// The form of a value over the source, which it has been found to have.
    fn form(&self, value: ValueId) -> Result<Form, String> {
        if value == self.source {
            return Ok(Form::identity());
        }
        let found = form_of(self.forms, self.source, value).cloned();
        found.ok_or_else(|| "it does not come from its source".to_owned())
    }

    /// What leads to a value that is part of a sum or a stack.
    fn branch(&self, value: ValueId, of: ValueId) -> Result<Vec<Expr<Tensor>>, String> {
        let mut steps = Vec::new();
        push(self, value, &mut steps)?;
        let margins = self.form(value)?.margins(&self.form(of)?);
        // What lies in the middle is put there by itself.
        if margins.iter().any(|[before, after]| before != after) {
            let side = |side: usize| {
                let margins = margins.iter().zip(self.dilation);
                let taps: Vec<usize> = margins.map(|(both, step)| both[side] / step).collect();
                three(&taps, 0)
            };
            steps.push(Expr::Crop(Margins {
                before: side(0)?,
                after: side(1)?,
            }));
        }
        Ok(steps)
    }
}

fn one(mut steps: Vec<Expr<Tensor>>) -> Expr<Tensor> {
    match (steps.pop(), steps.is_empty()) {
        (None, _) => Expr::Identity,
        (Some(only), true) => only,
        (Some(last), false) => {
            steps.push(last);
            Expr::Seq(steps)
        }
    }
}

/// Appends what leads from the source to `value`, the first operator first. The depth is bound by the operators that a form may have.
fn push(within: &Within<'_>, value: ValueId, steps: &mut Vec<Expr<Tensor>>) -> Result<(), String> {
    let graph = within.graph;
    if value == within.source {
        return Ok(());
    }
    let Some(NodeId(producer)) = graph.value(value).producer() else {
        return Err("it does not come from its source".to_owned());
    };
    let node = &graph.nodes()[producer];
    match (&node.op, &node.inputs[..]) {
        (Op::Sum(factors), inputs) => {
            let mut summands = Vec::new();
            for (input, factor) in inputs.iter().zip(factors) {
                let mut branch = within.branch(*input, value)?;
                if *factor != 1.0 {
                    branch.push(Expr::Scale(Factor::Number(*factor)));
                }
                match one(branch) {
                    Expr::Sum(xs) => summands.extend(xs),
                    x => summands.push(x),
                }
            }
            steps.push(Expr::Sum(summands));
            Ok(())
        }
        (Op::Concat(_), inputs) => {
            let branches = inputs
                .iter()
                .map(|input| within.branch(*input, value).map(one));
            steps.push(Expr::Stack(branches.collect::<Result<_, _>>()?));
            Ok(())
        }
        // Of its maps, which are padded less.
        (Op::Slice { axis, .. }, &[input, ..]) if within.form(input)?.cuts_maps(*axis) => {
            push(within, input, steps)
        }
        (Op::Slice { axis, ranges }, &[input, ..]) => {
            push(within, input, steps)?;
            let number = node.outputs.iter().position(|output| *output == value);
            let shape = graph.value(input).shape.as_ref();
            match (
                number.and_then(|i| ranges.get(i)),
                shape.and_then(|shape| shape.get(*axis)),
            ) {
                (Some(&[begin, end]), Some(Dim::Known(of))) => {
                    steps.push(Expr::Select(Channels::range(*of, begin..end)));
                    Ok(())
                }
                _ => Err("how many channels it cuts is not known".to_owned()),
            }
        }
        (op, &[input, ..]) => {
            push(within, input, steps)?;
            operator(op, within, steps)
        }
        _ => Err("it reads nothing".to_owned()),
    }
}

fn operator(op: &Op, within: &Within<'_>, steps: &mut Vec<Expr<Tensor>>) -> Result<(), String> {
    match op {
        Op::Conv(conv) => steps.push(of_conv(conv, within.dilation)?),
        Op::Linear(linear) => steps.extend(of_linear(linear, within)?),
        Op::Norm(norm) => steps.push(Expr::Bn(Bn {
            mean: norm.mean.clone(),
            var: norm.var.clone(),
            affine: norm.affine.clone(),
            eps: norm.eps,
        })),
        Op::WithConstant(how, constant) => with_constant(*how, constant, steps),
        Op::Neg => steps.push(Expr::Scale(Factor::Number(-1.0))),
        Op::AvgPool(window) => steps.push(Expr::AvgPool(of_window(window, within.dilation)?)),
        // Of these the walk knows, or nothing is to be known.
        Op::Pad(_)
        | Op::Border { .. }
        | Op::Cut { .. }
        | Op::Reshape
        | Op::Identity
        | Op::Transpose(_) => {}
        Op::Sum(_)
        | Op::Concat(_)
        | Op::Stack(_)
        | Op::Slice { .. }
        | Op::Shape
        | Op::Mean { .. }
        | Op::Total { .. }
        | Op::Resample
        | Op::Opaque(_) => {
            return Err("it is not folded".to_owned());
        }
    }
    Ok(())
}

/// `[depth, height, width]` of as many axes as there are; those that are missing are `rest`.
fn three(axes: &[usize], rest: usize) -> Result<Extent, String> {
    match *axes {
        [] => Ok([rest; 3]),
        [width] => Ok([rest, rest, width]),
        [height, width] => Ok([rest, height, width]),
        [depth, height, width] => Ok([depth, height, width]),
        _ => Err("it has more than three spatial axes".to_owned()),
    }
}

fn of_window(window: &Window, dilation: &[usize]) -> Result<Extent, String> {
    // A window of several taps lies on every grid point.
    debug_assert!(
        window
            .kernel
            .iter()
            .zip(dilation)
            .all(|(k, d)| *k == 1 || *d == 1)
    );
    three(&window.kernel, 1)
}

fn of_conv(conv: &Conv, dilation: &[usize]) -> Result<Expr<Tensor>, String> {
    let taps = conv.weight.shape().iter().skip(2);
    let between: Vec<usize> = taps
        .zip(&conv.dilation)
        .zip(dilation)
        .map(|((taps, own), whole)| if *taps > 1 { own / whole } else { 1 })
        .collect();
    Ok(Expr::Conv(algebra::Conv {
        weight: conv.weight.clone(),
        bias: conv.bias.clone(),
        dilation: three(&between, 1)?,
        groups: Some(conv.groups),
        transposed: conv.transposed.is_some(),
        flipped: false,
        shared: false,
    }))
}

/// A matrix that has its inputs first is the weight of a transposed conv of one tap. Beside convs it has as many axes as they.
fn of_linear(linear: &Linear, within: &Within<'_>) -> Result<Vec<Expr<Tensor>>, String> {
    let turned = linear.in_first && within.turned;
    let weight = match turned {
        true => (linear.weight.turned())
            .ok_or_else(|| format!("its matrix {} is stored in strides", linear.weight))?,
        false => linear.weight.clone(),
    };
    let shape = weight.shape().iter().copied();
    let shape = shape.chain(std::iter::repeat_n(1, within.axes)).collect();
    let conv = |bias| {
        Expr::Conv(algebra::Conv {
            weight: weight.reshaped(shape),
            bias,
            dilation: [1; 3],
            groups: Some(1),
            transposed: linear.in_first && !turned,
            flipped: false,
            shared: false,
        })
    };
    let times = |number: f64| Expr::Scale(Factor::Number(number));
    Ok(match (&linear.bias, linear.alpha == linear.beta) {
        (None, _) if linear.alpha == 1.0 => vec![conv(None)],
        (Some(_), true) if linear.alpha == 1.0 => vec![conv(linear.bias.clone())],
        (None, _) => vec![conv(None), times(linear.alpha)],
        (Some(bias), _) => vec![
            conv(None),
            times(linear.alpha / linear.beta),
            Expr::Shift(bias.clone()),
            times(linear.beta),
        ],
    })
}

fn with_constant(how: Arithmetic, constant: &Tensor, steps: &mut Vec<Expr<Tensor>>) {
    let negated = || Expr::Scale(Factor::Number(-1.0));
    let flat = constant.reshaped(vec![constant.len()]);
    match how {
        Arithmetic::Add => steps.push(Expr::Shift(flat)),
        Arithmetic::Sub => steps.extend([negated(), Expr::Shift(flat), negated()]),
        Arithmetic::SubFrom => steps.extend([negated(), Expr::Shift(flat)]),
        Arithmetic::Mul => steps.push(Expr::Scale(Factor::Tensor(Vector::of(flat)))),
        Arithmetic::Div => steps.push(Expr::Scale(Factor::Tensor(Vector {
            through: Through::Reciprocal,
            ..Vector::of(flat)
        }))),
    }
}
