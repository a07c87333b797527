//! Every shape and length of one convolution, checked before anything is allocated.

use super::{Conv2dGeometry, ConvError, Padding, PaddingMode};

/// A convolution whose shapes fit together.
pub(super) struct Plan {
    pub batch: usize,
    pub groups: usize,
    /// Input and output channels of one group.
    pub group_in: usize,
    pub group_out: usize,
    pub rows: Axis,
    pub columns: Axis,
}

/// One spatial axis.
pub(super) struct Axis {
    pub input: usize,
    /// The border in front of the map, and the length with the borders on both sides.
    pub before: usize,
    pub padded: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub output: usize,
}

impl Plan {
    pub(super) fn new<F>(
        (batch, channels, height, width): (usize, usize, usize, usize),
        (out, group_in, kernel_height, kernel_width): (usize, usize, usize, usize),
        bias: Option<usize>,
        geometry: &Conv2dGeometry,
    ) -> Result<Self, ConvError> {
        let groups = geometry.groups;
        let zero = |name, value| {
            if value == 0 {
                Err(ConvError::Zero { name })
            } else {
                Ok(())
            }
        };
        zero("groups", groups)?;
        for axis in 0..2 {
            zero("stride", geometry.stride[axis])?;
            zero("dilation", geometry.dilation[axis])?;
        }

        let input = [batch, channels, height, width];
        if input[1..].contains(&0) {
            return Err(ConvError::Empty {
                what: "input",
                shape: input,
            });
        }
        let weight = [out, group_in, kernel_height, kernel_width];
        if weight.contains(&0) {
            return Err(ConvError::Empty {
                what: "weight",
                shape: weight,
            });
        }

        for (side, channels) in [("input", channels), ("output", out)] {
            if !channels.is_multiple_of(groups) {
                return Err(ConvError::Groups {
                    side,
                    channels,
                    groups,
                });
            }
        }
        if channels / groups != group_in {
            let expected = group_in.saturating_mul(groups);
            return Err(ConvError::Channels {
                found: channels,
                expected,
                weight,
                groups,
            });
        }
        if let Some(found) = bias.filter(|&found| found != out) {
            return Err(ConvError::Bias {
                found,
                expected: out,
            });
        }
        if geometry.padding == Padding::Same && geometry.stride != [1, 1] {
            return Err(ConvError::SameWithStride {
                stride: geometry.stride,
            });
        }

        let plan = Self {
            batch,
            groups,
            group_in,
            group_out: out / groups,
            rows: Axis::new(0, height, kernel_height, geometry)?,
            columns: Axis::new(1, width, kernel_width, geometry)?,
        };
        // The largest of all buffers are the output and the padded input; a plane separated into phases has fewer than
        // twice the positions along each axis, and a tile rounds its columns up to a panel.
        let bytes = |what, factors: &[usize]| match factors
            .iter()
            .try_fold(size_of::<F>(), |product, &factor| {
                product.checked_mul(factor)
            }) {
            Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
            _ => Err(ConvError::Overflow { what }),
        };
        bytes(
            "output",
            &[batch.max(1), out, plan.rows.output, plan.columns.output],
        )?;
        bytes(
            "padded input",
            &[4, channels, plan.rows.padded, plan.columns.padded],
        )?;
        bytes("unrolled input", &[64, plan.depth()])?;
        Ok(plan)
    }

    pub(super) fn out_channels(&self) -> usize {
        self.groups * self.group_out
    }

    /// Output positions in one channel.
    pub(super) fn positions(&self) -> usize {
        self.rows.output * self.columns.output
    }

    /// Products summed into one output: input channels of the group times taps.
    pub(super) fn depth(&self) -> usize {
        self.group_in * self.rows.kernel * self.columns.kernel
    }

    pub(super) fn output_dim(&self) -> (usize, usize, usize, usize) {
        (
            self.batch,
            self.out_channels(),
            self.rows.output,
            self.columns.output,
        )
    }

    /// Whether each group reads one channel. A single group has no channels to share between threads, so it is dense.
    pub(super) fn is_depthwise(&self) -> bool {
        self.group_in == 1 && self.groups > 1
    }
}

impl Axis {
    fn new(
        index: usize,
        input: usize,
        kernel: usize,
        geometry: &Conv2dGeometry,
    ) -> Result<Self, ConvError> {
        let axis = ["height", "width"][index];
        let overflow = |what| move || ConvError::Overflow { what };
        let (stride, dilation) = (geometry.stride[index], geometry.dilation[index]);
        let reach = dilation
            .checked_mul(kernel - 1)
            .filter(|&reach| reach < usize::MAX)
            .ok_or_else(overflow("dilated kernel"))?;
        let (before, after) = match geometry.padding {
            Padding::Valid => (0, 0),
            Padding::Same => (reach / 2, reach - reach / 2),
            Padding::Pair(amounts) => (amounts[index], amounts[index]),
        };

        let mode = geometry.padding_mode;
        let limit = match mode {
            PaddingMode::Zeros | PaddingMode::Replicate => usize::MAX,
            PaddingMode::Reflect => input - 1,
            PaddingMode::Circular => input,
        };
        let padding = before.max(after);
        if padding > limit {
            return Err(ConvError::PaddingTooWide {
                mode: mode.name(),
                axis,
                padding,
                length: input,
                limit,
            });
        }
        let padded = input
            .checked_add(before)
            .and_then(|length| length.checked_add(after))
            .ok_or_else(overflow("padded input"))?;
        let Some(room) = padded.checked_sub(reach + 1) else {
            return Err(ConvError::KernelTooLarge {
                axis,
                kernel,
                dilation,
                span: reach + 1,
                padded,
            });
        };
        Ok(Self {
            input,
            before,
            padded,
            kernel,
            stride,
            dilation,
            output: room / stride + 1,
        })
    }

    /// How many phases the stride separates the padded axis into, and the length of each.
    pub(super) fn phases(&self) -> usize {
        self.stride.min(self.padded)
    }

    pub(super) fn phase_len(&self) -> usize {
        self.padded.div_ceil(self.stride)
    }

    /// Where the padded position `at` takes its value from in the map, if not from nowhere.
    pub(super) fn source(&self, at: usize, mode: PaddingMode) -> Option<usize> {
        let end = self.before + self.input;
        if (self.before..end).contains(&at) {
            return Some(at - self.before);
        }
        match mode {
            PaddingMode::Zeros => None,
            PaddingMode::Replicate => Some(if at < end { 0 } else { self.input - 1 }),
            PaddingMode::Reflect if at < end => Some(self.before - at),
            PaddingMode::Reflect => Some(self.input - 2 - (at - end)),
            PaddingMode::Circular => Some((at + self.input - self.before) % self.input),
        }
    }
}
