//! What operators cost: stored numbers, and multiply-adds for each output of the value at their end.

use std::collections::BTreeSet;

use super::form::{Form, Forms, form_of};
use super::lanes::Lanes;
use super::model::{Arithmetic, Graph, NodeId, Op, ValueId};
use crate::algebra::{Operand, Resolved};
use crate::tensor::Tensor;

/// What some operators cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Numbers that are stored.
    pub parameters: u64,
    /// Of these, what is only added.
    pub bias: u64,
    /// Multiply-adds for each position of the last output.
    pub macs: u64,
}

impl Cost {
    /// Whether one operator costs no more than what it replaces. What is only added is added in passing, and so costs nothing: a
    /// norm before a linear layer leaves a bias.
    pub fn no_more_than(&self, other: &Cost) -> bool {
        self.factors() <= other.factors() && self.macs <= other.macs
    }

    /// Stored numbers that are multiplied with.
    pub fn factors(&self) -> u64 {
        self.parameters.saturating_sub(self.bias)
    }
}

/// The cost of the one operator that an expression becomes.
pub(super) fn cost_of_one(expr: &Resolved<Tensor>, bias: bool) -> Cost {
    let g = expr.geometry();
    let kernel: u64 = g.weight_shape().iter().map(|d| *d as u64).product();
    let bias = if bias { g.out() as u64 } else { 0 };
    Cost {
        parameters: kernel + bias,
        bias,
        macs: kernel,
    }
}

/// The cost of some nodes between a source and a value. Of a node that is there several times each bears its part.
pub(super) fn cost_of(
    graph: &Graph,
    forms: &Forms,
    source: ValueId,
    value: ValueId,
    (nodes, copies): (&BTreeSet<NodeId>, &[usize]),
) -> Cost {
    let last = form_of(forms, source, value);
    let mut total = Cost::default();
    for id in nodes {
        let node = graph.node(*id);
        let Some(&output) = node.outputs.first() else {
            continue;
        };
        let form = form_of(forms, source, output);
        let times = form.zip(last).map_or(1, |(form, last)| often(form, last));
        let channels = form
            .and_then(|form| form.channels.or(form.inputs))
            .unwrap_or(0) as u64;
        let one = cost_of_op(&node.op, channels);
        let often = copies.get(id.0).map_or(1, |n| *n as u64);
        let one = Cost {
            parameters: one.parameters / often,
            bias: one.bias / often,
            macs: one.macs / often,
        };
        total.parameters = total.parameters.saturating_add(one.parameters);
        total.bias = total.bias.saturating_add(one.bias);
        total.macs = total.macs.saturating_add(one.macs.saturating_mul(times));
    }
    total
}

/// How often an operator runs for one position of the last output: a stride behind it skips most of what it makes.
fn often(form: &Form, last: &Form) -> u64 {
    match (&form.lanes, &last.lanes) {
        (Lanes::Maps(axes), Lanes::Maps(of_last)) => of_last
            .iter()
            .enumerate()
            .map(|(i, last)| (last.stride / axes.get(i).map_or(1, |axis| axis.stride)) as u64)
            .product(),
        (_, Lanes::Maps(of_last)) => of_last.iter().map(|axis| axis.stride as u64).product(),
        _ => 1,
    }
}

fn cost_of_op(op: &Op, channels: u64) -> Cost {
    let stored = |tensors: &[&Tensor]| tensors.iter().map(|t| Operand::len(*t) as u64).sum::<u64>();
    let bias_of = |bias: &Option<Tensor>| bias.iter().map(|b| stored(&[b])).sum::<u64>();
    match op {
        Op::Conv(conv) => Cost {
            parameters: stored(&[&conv.weight]) + bias_of(&conv.bias),
            bias: bias_of(&conv.bias),
            macs: stored(&[&conv.weight]),
        },
        Op::Linear(linear) => Cost {
            parameters: stored(&[&linear.weight]) + bias_of(&linear.bias),
            bias: bias_of(&linear.bias),
            macs: stored(&[&linear.weight]),
        },
        Op::Norm(norm) => Cost {
            parameters: stored(&[&norm.mean, &norm.var])
                + norm
                    .affine
                    .iter()
                    .flatten()
                    .map(|t| stored(&[t]))
                    .sum::<u64>(),
            bias: 0,
            macs: channels,
        },
        Op::WithConstant(how, constant) => Cost {
            parameters: stored(&[constant]),
            bias: match how {
                Arithmetic::Add | Arithmetic::Sub | Arithmetic::SubFrom => stored(&[constant]),
                Arithmetic::Mul | Arithmetic::Div => 0,
            },
            macs: channels,
        },
        Op::AvgPool(window) => Cost {
            parameters: 0,
            bias: 0,
            macs: channels * window.kernel.iter().map(|k| *k as u64).product::<u64>(),
        },
        Op::Sum(_) | Op::Neg | Op::Pad(_) | Op::Border { .. } => Cost {
            parameters: 0,
            bias: 0,
            macs: channels,
        },
        Op::Concat(_)
        | Op::Slice { .. }
        | Op::Cut { .. }
        | Op::Reshape
        | Op::Transpose(_)
        | Op::Identity
        | Op::Shape
        | Op::Mean { .. }
        | Op::Total { .. }
        | Op::Stack(_)
        | Op::Resample
        | Op::Opaque(_) => Cost::default(),
    }
}
