//! How a value depends on another one: the shape of the linear map, worked out operator by operator without a number of it.

use super::lanes::{Axis, Lanes, Why, why};
use super::model::{Arithmetic, Conv, Linear, Norm, Op, Pads, Value, ValueId, Window, same_shape};
use crate::tensor::Tensor;

/// A value as a linear map of a source, plus a constant for each channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Form {
    /// Which axis holds the channels, and how the others are walked over.
    pub lanes: Lanes,
    /// Channels of the source, once an operator has told.
    pub inputs: Option<usize>,
    /// Channels of the value, likewise.
    pub channels: Option<usize>,
    /// Whether anything adds a constant: then the map of zeros is not zero.
    pub constant: bool,
    /// The operators in the tree.
    pub operators: usize,
    /// The convs and linear layers among them, one behind another.
    pub depth: usize,
    /// Where the axes lie otherwise than `lanes` says: axis `i` is the one that would be `turned[i]`.
    pub turned: Option<Vec<usize>>,
}

/// The forms of each value by their sources, the nearest first.
pub(super) type Forms = Vec<Vec<(ValueId, Form)>>;

/// The form of a value over a source, if it has one.
pub(super) fn form_of(forms: &Forms, source: ValueId, value: ValueId) -> Option<&Form> {
    let mut of = forms[value.0].iter();
    of.find(|(from, _)| *from == source).map(|(_, form)| form)
}

/// More operators than this no block has; expressions are trees, and a graph may name one value often.
const MOST_OPERATORS: usize = 1024;

/// More convs than this, one behind another, no block has.
const DEEPEST: usize = 32;

const CUTS_ANOTHER: &str = "it cuts another axis than that of the channels";

impl Form {
    /// What lies around its kernel in the one of a sum that it is part of, before and behind each axis.
    pub fn margins(&self, sum: &Form) -> Vec<[usize; 2]> {
        let Lanes::Maps(of_sum) = &sum.lanes else {
            return Vec::new();
        };
        let own = match &self.lanes {
            Lanes::Maps(axes) => &axes[..],
            _ => &[],
        };
        let margin = |(i, sum): (usize, &Axis)| {
            let own = own.get(i).unwrap_or(&Axis::POINT);
            let before = sum.before - own.before;
            [before, sum.extent - own.extent - before]
        };
        of_sum.iter().enumerate().map(margin).collect()
    }

    /// A source as a map of itself.
    pub fn identity() -> Form {
        Form {
            lanes: Lanes::Untouched,
            inputs: None,
            channels: None,
            constant: false,
            operators: 1,
            depth: 0,
            turned: None,
        }
    }

    /// What an operator with one input makes of it; `input` is the value that has this form, `output` what it makes, as the operator's
    /// output of this number.
    pub fn then(&self, op: &Op, input: &Value, output: &Value, number: usize) -> Result<Form, Why> {
        // What is given the shape that it has stays what it is.
        let shapes = input.shape.as_ref().zip(output.shape.as_ref());
        let one_shape = shapes.is_some_and(|(from, to)| same_shape(from, to));
        let op = match op {
            Op::Reshape if self.turned.is_some() && one_shape => &Op::Identity,
            op => op,
        };
        if self.turned.is_some()
            && matches!(
                op,
                Op::Conv(_) | Op::AvgPool(_) | Op::Pad(_) | Op::Border { .. } | Op::Reshape
            )
        {
            return why("its axes are in another order");
        }
        let mut form = match op {
            Op::Conv(conv) => self.conv(conv)?,
            Op::Linear(linear) => self.linear(linear, input)?,
            Op::Norm(norm) => self.norm(norm, input)?,
            Op::WithConstant(how, constant) => self.with_constant(*how, constant, input)?,
            Op::Neg => self.clone(),
            Op::AvgPool(window) => self.average(window)?,
            Op::Pad(pads) => self.pad(pads)?,
            Op::Border { pads, .. } => self.border(pads)?,
            Op::Reshape => self.reshape(input, output)?,
            Op::Identity => self.clone(),
            Op::Slice { axis, ranges } => match ranges.get(number) {
                Some(range) => self.slice(*axis, *range, input)?,
                None => return why("it has more outputs than parts"),
            },
            Op::Cut {
                axis,
                before,
                after,
            } => self.cut(*axis, [*before, *after])?,
            Op::Transpose(order) => self.transpose(order, input)?,
            Op::Sum(_) | Op::Concat(_) => return why("it has several inputs"),
            Op::Shape
            | Op::Mean { .. }
            | Op::Total { .. }
            | Op::Stack(_)
            | Op::Resample
            | Op::Opaque(_) => return why("it is not folded"),
        };
        form.operators += 1;
        if form.operators > MOST_OPERATORS || form.depth > DEEPEST {
            return why("too many operators would become one");
        }
        Ok(form)
    }

    fn conv(&self, conv: &Conv) -> Result<Form, Why> {
        let shape = conv.weight.shape();
        let (Some(&first), Some(&second)) = (shape.first(), shape.get(1)) else {
            return why("its weight is none of a conv");
        };
        let [inputs, channels] = match &conv.transposed {
            None => [second.checked_mul(conv.groups), Some(first)],
            Some(_) => [Some(first), second.checked_mul(conv.groups)],
        };
        let (Some(inputs), Some(channels)) = (inputs, channels) else {
            return why("its channels overflow");
        };
        self.expect_channels(inputs)?;
        let mut windows = Vec::new();
        for (i, &taps) in shape[2..].iter().enumerate() {
            let extent = taps
                .checked_sub(1)
                .and_then(|steps| steps.checked_mul(conv.dilation[i])?.checked_add(1));
            let Some(extent) = extent else {
                return why("its kernel has no taps");
            };
            windows.push(Axis {
                stride: conv.stride[i],
                before: conv.pads.before[i],
                after: conv.pads.after[i],
                extent,
                step: if taps > 1 { conv.dilation[i] } else { 0 },
            });
        }
        let lanes = match (&conv.transposed, &self.lanes) {
            (Some(_), _) if self.operators > 1 => {
                return why("a transposed conv stays at the head of what is folded");
            }
            (Some(added), _) => Lanes::Spread(windows, added.clone()),
            (None, _) => Lanes::Maps(self.lanes.slide(&windows, self.constant)?),
        };
        Ok(Form {
            lanes,
            inputs: self.inputs.or(Some(inputs)),
            channels: Some(channels),
            constant: self.constant || conv.bias.is_some(),
            operators: self.operators,
            depth: self.depth + 1,
            turned: None,
        })
    }

    fn average(&self, window: &Window) -> Result<Form, Why> {
        let windows: Vec<Axis> = (0..window.kernel.len())
            .map(|i| Axis {
                stride: window.stride[i],
                before: window.pads.before[i],
                after: window.pads.after[i],
                extent: window.kernel[i],
                step: usize::from(window.kernel[i] > 1),
            })
            .collect();
        Ok(Form {
            lanes: Lanes::Maps(self.lanes.slide(&windows, self.constant)?),
            ..self.clone()
        })
    }

    fn pad(&self, pads: &Pads) -> Result<Form, Why> {
        let padded: Vec<Axis> = pads
            .before
            .iter()
            .zip(&pads.after)
            .map(|(&before, &after)| Axis {
                before,
                after,
                ..Axis::POINT
            })
            .collect();
        Ok(Form {
            lanes: Lanes::Maps(self.lanes.slide(&padded, self.constant)?),
            ..self.clone()
        })
    }

    /// As many zeros around the source as make these paddings of a map of single points. What it makes of a zero is what is padded: that
    /// has been looked at.
    fn border(&self, pads: &Pads) -> Result<Form, Why> {
        let around = pads.before.iter().zip(&pads.after);
        let points = match &self.lanes {
            Lanes::Untouched => vec![Axis::POINT; pads.before.len()],
            Lanes::Maps(axes) if axes.is_empty() => vec![Axis::POINT; pads.before.len()],
            Lanes::Maps(axes) if axes.len() == pads.before.len() => axes.clone(),
            _ => return why("it has another number of spatial axes"),
        };
        let padded = |(axis, (before, after)): (Axis, (&usize, &usize))| {
            if (axis.extent, axis.before, axis.after) != (1, 0, 0) {
                return why("it pads what a larger kernel has made");
            }
            let zeros = |n: &usize| n.checked_mul(axis.stride).ok_or("its size overflows");
            Ok(Axis {
                before: zeros(before)?,
                after: zeros(after)?,
                ..axis
            })
        };
        let axes = points.into_iter().zip(around).map(padded);
        Ok(Form {
            lanes: Lanes::Maps(axes.collect::<Result<_, Why>>()?),
            ..self.clone()
        })
    }

    /// Which axis of `lanes` is the one that is now at this place.
    fn origin(&self, axis: usize) -> usize {
        let turned = self.turned.as_ref();
        turned.map_or(axis, |turned| turned.get(axis).copied().unwrap_or(axis))
    }

    /// The lanes where an operator says that the channels are on this axis of `input`.
    fn lanes_along(&self, axis: usize, input: &Value) -> Result<Lanes, Why> {
        let Some(rank) = rank(input) else {
            return match (&self.lanes, axis) {
                (Lanes::Untouched, 1) => Ok(Lanes::Maps(Vec::new())),
                (Lanes::Maps(_) | Lanes::Spread(..), 1) => Ok(self.lanes.clone()),
                _ => why("how many axes it has is not known"),
            };
        };
        let axis = self.origin(axis);
        match &self.lanes {
            Lanes::Untouched if axis + 1 == rank && rank <= 2 => {
                Ok(Lanes::Rows { reshaped: false })
            }
            Lanes::Untouched if axis == 1 => Ok(Lanes::Maps(Vec::new())),
            Lanes::Untouched if axis + 1 == rank => Ok(Lanes::Rows { reshaped: false }),
            Lanes::Maps(axes) if axes.is_empty() && rank == 2 && axis == 1 => {
                Ok(Lanes::Rows { reshaped: false })
            }
            Lanes::Maps(_) | Lanes::Spread(..) if axis == 1 => Ok(self.lanes.clone()),
            Lanes::Rows { .. } if axis + 1 == rank => Ok(self.lanes.clone()),
            _ => why("its channels are on another axis than those before it"),
        }
    }

    fn linear(&self, linear: &Linear, input: &Value) -> Result<Form, Why> {
        let [inputs, channels] = linear.sizes();
        self.expect_channels(inputs)?;
        let lanes = match (&self.lanes, rank(input)) {
            // However many axes there are, the channels are on the last one.
            (Lanes::Untouched, _) if self.turned.is_none() => Lanes::Rows { reshaped: false },
            (Lanes::Rows { .. }, _) if self.turned.is_none() => self.lanes.clone(),
            (_, Some(rank @ 2..)) => match self.lanes_along(rank - 1, input)? {
                Lanes::Maps(axes) if axes.is_empty() => Lanes::Maps(vec![Axis::POINT; rank - 2]),
                lanes @ (Lanes::Maps(_) | Lanes::Rows { .. }) => lanes,
                _ => return why("a transposed conv stands before it"),
            },
            _ => return why("how many axes it has is not known"),
        };
        Ok(Form {
            lanes,
            inputs: self.inputs.or(Some(inputs)),
            channels: Some(channels),
            constant: self.constant || linear.bias.is_some(),
            operators: self.operators,
            depth: self.depth + 1,
            turned: self.turned.clone(),
        })
    }

    fn norm(&self, norm: &Norm, input: &Value) -> Result<Form, Why> {
        let channels = norm.mean.len();
        // Numbers of another axis are no channels.
        let lanes = self.lanes_along(norm.axis, input)?;
        self.expect_channels(channels)?;
        Ok(Form {
            lanes,
            inputs: self.inputs.or(Some(channels)),
            channels: Some(channels),
            constant: true,
            ..self.clone()
        })
    }

    /// A range of the channels, or of a spatial axis.
    fn slice(&self, axis: usize, [begin, end]: [usize; 2], input: &Value) -> Result<Form, Why> {
        if self.cuts_maps(axis) {
            let behind = known(input, axis).and_then(|len| len.checked_sub(end));
            let behind = behind.filter(|_| begin < end);
            return self.cut(axis, [begin, behind.ok_or(CUTS_ANOTHER)?]);
        }
        let lanes = match self.lanes_along(axis, input) {
            Ok(lanes) => lanes,
            Err(_) => return why(CUTS_ANOTHER),
        };
        let Some(channels) = known(input, axis) else {
            return why("how many channels it cuts is not known");
        };
        self.expect_channels(channels)?;
        if begin >= end || end > channels {
            return why("it takes no channels");
        }
        Ok(Form {
            lanes,
            inputs: self.inputs.or(Some(channels)),
            channels: Some(end - begin),
            ..self.clone()
        })
    }

    fn transpose(&self, order: &[usize], input: &Value) -> Result<Form, Why> {
        if rank(input) != Some(order.len()) {
            return why("how many axes it has is not known");
        }
        if matches!(
            self.lanes,
            Lanes::Spread(..) | Lanes::Rows { reshaped: true }
        ) {
            return why("it turns what has been reshaped or spread");
        }
        let turned: Vec<usize> = order.iter().map(|axis| self.origin(*axis)).collect();
        let straight = turned.iter().enumerate().all(|(i, axis)| i == *axis);
        Ok(Form {
            turned: (!straight).then_some(turned),
            ..self.clone()
        })
    }

    fn with_constant(
        &self,
        how: Arithmetic,
        constant: &Tensor,
        input: &Value,
    ) -> Result<Form, Why> {
        let adds = matches!(how, Arithmetic::Add | Arithmetic::Sub | Arithmetic::SubFrom);
        let mut form = self.clone();
        form.constant |= adds;
        if constant.len() == 1 {
            // One that has more axes would add them to the result.
            if constant.shape().len() > rank(input).unwrap_or(1) {
                return why("its constant may have more axes than what it is combined with");
            }
            return Ok(form);
        }
        let rank = match &self.lanes {
            Lanes::Maps(axes) | Lanes::Spread(axes, _) if !axes.is_empty() => Some(axes.len() + 2),
            _ => rank(input),
        };
        let Some(rank) = rank else {
            return why("how many axes it has is not known");
        };
        // Channels that lie on this axis, if the constant has a number for each of them and nothing else.
        let of_axis = |axis: usize| {
            let channels = self.channels.or_else(|| known(input, axis))?;
            let shape = constant.shape();
            let first = rank.checked_sub(shape.len())?;
            let fits =
                |(i, dim): (usize, &usize)| *dim == if i + first == axis { channels } else { 1 };
            (axis >= first && shape.iter().enumerate().all(fits)).then_some(channels)
        };
        // Where the channels are two can say: those of maps, and those of rows.
        for axis in [1, rank.saturating_sub(1)] {
            let Some(channels) = of_axis(axis) else {
                continue;
            };
            let Ok(lanes) = self.lanes_along(axis, input) else {
                continue;
            };
            form.lanes = lanes;
            form.inputs = form.inputs.or(Some(channels));
            form.channels = Some(channels);
            return Ok(form);
        }
        // Turned, they may be anywhere.
        for axis in (0..rank).filter(|_| self.turned.is_some()) {
            if let (Some(channels), Ok(lanes)) = (of_axis(axis), self.lanes_along(axis, input)) {
                form.lanes = lanes;
                form.inputs = form.inputs.or(Some(channels));
                form.channels = Some(channels);
                return Ok(form);
            }
        }
        why("its constant is none for each channel")
    }

    fn reshape(&self, input: &Value, output: &Value) -> Result<Form, Why> {
        let last = |value: &Value| value.shape.as_ref().and_then(|shape| shape.last().cloned());
        let kept = match (last(input), last(output)) {
            (Some(a), Some(b)) => a.same(&b),
            _ => false,
        };
        match self.lanes {
            Lanes::Untouched | Lanes::Rows { .. } if kept => Ok(Form {
                lanes: Lanes::Rows { reshaped: true },
                ..self.clone()
            }),
            _ => why("it does not keep the axis of the channels"),
        }
    }

    /// Whether a slice along this axis takes a part of maps that a conv or a pool makes.
    pub fn cuts_maps(&self, axis: usize) -> bool {
        let is_spatial =
            matches!(&self.lanes, Lanes::Maps(axes) if (2..axes.len() + 2).contains(&axis));
        is_spatial && self.turned.is_none()
    }

    /// Maps without so much at the beginning and the end of an axis, where no more is cut off than what a kernel makes of zeros around its
    /// input: with fewer zeros, it does not make that.
    fn cut(&self, axis: usize, [before, after]: [usize; 2]) -> Result<Form, Why> {
        let without = |axes: &[Axis]| {
            let mut axes = axes.to_vec();
            let cut = axes.get_mut(axis.checked_sub(2)?)?;
            cut.before = cut.before.checked_sub(before.checked_mul(cut.stride)?)?;
            cut.after = cut.after.checked_sub(after.checked_mul(cut.stride)?)?;
            Some(axes)
        };
        let axes = match &self.lanes {
            Lanes::Maps(axes) if self.cuts_maps(axis) => without(axes),
            _ => None,
        };
        let axes = axes.ok_or(CUTS_ANOTHER)?;
        Ok(Form {
            lanes: Lanes::Maps(axes),
            ..self.clone()
        })
    }

    fn expect_channels(&self, wanted: usize) -> Result<(), Why> {
        match self.channels {
            Some(found) if found != wanted => Err(format!(
                "it takes {wanted} channels, and what stands before it has {found}"
            )),
            _ => Ok(()),
        }
    }

    /// The sum of two maps of one source.
    pub fn plus(&self, other: &Form) -> Result<Form, Why> {
        let inputs = one(self.inputs, other.inputs)?;
        // A source that no operator has touched has as many channels as the other map's source.
        let of = |form: &Form| form.channels.or(inputs);
        let channels = one(of(self), of(other))?;
        self.beside(other, inputs, channels)
    }

    /// Maps of one source, one behind the other along an axis; each with the value that has it.
    pub fn stacked(forms: &[(&Form, &Value)], axis: usize) -> Result<Form, Why> {
        let mut inputs = None;
        for (form, _) in forms {
            inputs = one(inputs, form.inputs)?;
        }
        let (mut stack, mut channels): (Option<Form>, usize) = (None, 0);
        for (form, value) in forms {
            let untouched = form.channels.is_none().then_some(inputs).flatten();
            let Some(own) = form.channels.or(untouched).or_else(|| known(value, axis)) else {
                return why("how many channels its inputs have is not known");
            };
            if known(value, axis).is_some_and(|found| found != own) {
                return why(
                    "its inputs are put together along another axis than that of the channels",
                );
            }
            channels = channels.checked_add(own).ok_or("its channels overflow")?;
            let Ok(lanes) = form.lanes_along(axis, value) else {
                return why(
                    "its inputs are put together along another axis than that of the channels",
                );
            };
            let form = Form {
                lanes,
                ..(*form).clone()
            };
            stack = Some(match stack {
                None => form,
                Some(stack) => stack.beside(&form, inputs, None)?,
            });
        }
        let Some(stack) = stack else {
            return why("it has no inputs");
        };
        Ok(Form {
            inputs,
            channels: Some(channels),
            ..stack
        })
    }

    /// Two maps of one source, seen as one with this many channels.
    fn beside(
        &self,
        other: &Form,
        inputs: Option<usize>,
        channels: Option<usize>,
    ) -> Result<Form, Why> {
        let operators = self.operators + other.operators + 1;
        if operators > MOST_OPERATORS {
            return why("too many operators would become one");
        }
        if self.turned != other.turned {
            return why("its inputs have their axes in different orders");
        }
        Ok(Form {
            lanes: self.lanes.beside(&other.lanes)?,
            inputs,
            channels,
            constant: self.constant || other.constant,
            operators,
            depth: self.depth.max(other.depth),
            turned: self.turned.clone(),
        })
    }
}

/// The one number that two are, where they are known.
fn one(a: Option<usize>, b: Option<usize>) -> Result<Option<usize>, Why> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => why("its inputs have different numbers of channels"),
        (a, b) => Ok(a.or(b)),
    }
}

impl Linear {
    /// Input and output channels.
    pub(super) fn sizes(&self) -> [usize; 2] {
        let dim = |i: usize| self.weight.shape().get(i).copied();
        match (dim(0), dim(1), self.in_first) {
            (Some(a), Some(b), true) => [a, b],
            (Some(a), Some(b), false) => [b, a],
            _ => [0, 0],
        }
    }
}

/// The number of axes of a value, where it is known.
pub(super) fn rank(value: &Value) -> Option<usize> {
    value.shape.as_ref().map(Vec::len)
}

fn known(value: &Value, axis: usize) -> Option<usize> {
    value.shape.as_ref()?.get(axis)?.known()
}
