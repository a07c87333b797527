//! How a value lies over its source, axis by axis: where windows slide over windows, and branches beside one another.

/// Why an operator cannot join what stands before it.
pub(super) type Why = String;

pub(super) fn why<T>(text: &str) -> Result<T, Why> {
    Err(text.to_owned())
}

/// Where the channels are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Lanes {
    /// Nothing has told yet: the source itself, or times a number.
    Untouched,
    /// On axis 1, with spatial axes behind it; none where no operator has told how many there are.
    Maps(Vec<Axis>),
    /// On axis 1, and spread over a finer grid by a transposed conv, with what that adds at the end of each axis.
    Spread(Vec<Axis>, Vec<usize>),
    /// On the last axis. `reshaped`: the axes before it may be others than those of the source.
    Rows { reshaped: bool },
}

/// One spatial axis: `v[p] = Σ_t K[t] · s[p·stride − before + t]`, with zeros around the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub stride: usize,
    pub before: usize,
    pub after: usize,
    /// From the first tap to the last.
    pub extent: usize,
    /// What divides the distances of all taps; 0 where there is one tap.
    pub step: usize,
}

impl Axis {
    pub const POINT: Axis = Axis {
        stride: 1,
        before: 0,
        after: 0,
        extent: 1,
        step: 0,
    };
}

impl Lanes {
    /// A window of the given axes that slides over these. The seam is exact, or there is none. `constant`: whether what is seen
    /// has got a constant added.
    pub fn slide(&self, windows: &[Axis], constant: bool) -> Result<Vec<Axis>, Why> {
        let axes = match self {
            Lanes::Untouched => &vec![Axis::POINT; windows.len()],
            Lanes::Maps(axes) if axes.is_empty() => &vec![Axis::POINT; windows.len()],
            Lanes::Maps(axes) if axes.len() == windows.len() => axes,
            Lanes::Maps(_) => return why("it has another number of spatial axes"),
            Lanes::Spread(..) => return why("a transposed conv stands before it"),
            Lanes::Rows { .. } => return why("a linear layer stands before it"),
        };
        let slide = |(inner, outer): (&Axis, &Axis)| {
            if outer.before + outer.after > 0 {
                if constant {
                    return why("it pads with zeros where a constant has been added");
                }
                // Outside its map, the inner kernel must see nothing but zeros.
                if inner.stride != 1
                    || inner.before + 1 < inner.extent
                    || inner.after + 1 < inner.extent
                {
                    return why("it pads what a larger kernel has made");
                }
            }
            if inner.stride > 1 && outer.extent > 1 {
                return why("what stands before it has a stride");
            }
            let grown = |a: usize, b: usize| a.checked_add(b).ok_or("its size overflows");
            let axis = || {
                Ok::<_, &str>(Axis {
                    stride: inner
                        .stride
                        .checked_mul(outer.stride)
                        .ok_or("its stride overflows")?,
                    before: grown(inner.before, outer.before)?,
                    after: grown(inner.after, outer.after)?,
                    extent: grown(inner.extent, outer.extent - 1)?,
                    step: gcd(inner.step, outer.step),
                })
            };
            axis().map_err(str::to_owned)
        };
        axes.iter().zip(windows).map(slide).collect()
    }

    /// Axes two by two; where no operator has told of any, they are points.
    fn pairs<'a>(a: &'a [Axis], b: &'a [Axis]) -> Result<Vec<(Axis, Axis)>, Why> {
        let points = vec![Axis::POINT; a.len().max(b.len())];
        let [a, b] = [a, b].map(|axes| if axes.is_empty() { &points[..] } else { axes });
        match a.len() == b.len() {
            true => Ok(a.iter().copied().zip(b.iter().copied()).collect()),
            false => why("its inputs have different numbers of spatial axes"),
        }
    }

    /// The axes of a sum. Along one of them, which may be time, kernels may look only back, or only ahead.
    fn maps_beside(a: &[Axis], b: &[Axis]) -> Result<Vec<Axis>, Why> {
        let pairs = Lanes::pairs(a, b)?;
        let aligned = pairs.iter().map(|(a, b)| a.aligned(b));
        let mut aligned: Vec<Result<Axis, Why>> = aligned.collect();
        let mut off = (0..pairs.len()).filter(|i| aligned[*i].is_err());
        if let (Some(i), None) = (off.next(), off.next())
            && let Some(axis) = pairs[i].0.flush(&pairs[i].1)
        {
            aligned[i] = Ok(axis);
        }
        aligned.into_iter().collect()
    }

    /// Those of two values that are added up, or put one behind the other.
    pub fn beside(&self, other: &Lanes) -> Result<Lanes, Why> {
        Ok(match (self, other) {
            (Lanes::Untouched, Lanes::Untouched) => Lanes::Untouched,
            (Lanes::Untouched, Lanes::Maps(axes)) | (Lanes::Maps(axes), Lanes::Untouched) => {
                Lanes::Maps(Lanes::maps_beside(&[], axes)?)
            }
            (Lanes::Maps(a), Lanes::Maps(b)) => Lanes::Maps(Lanes::maps_beside(a, b)?),
            (Lanes::Spread(a, x), Lanes::Spread(b, y)) if x == y => {
                let pairs = Lanes::pairs(a, b)?.into_iter();
                let axes: Vec<Axis> = pairs
                    .map(|(a, b)| a.aligned(&b))
                    .collect::<Result<_, _>>()?;
                // Taps between those of the one are none of the other: only all of one distance are folded.
                let of = |of: &Vec<Axis>| {
                    let mut pairs = of.iter().zip(&axes);
                    pairs.all(|(own, all)| own.step == 0 || own.step == all.step)
                };
                if !of(a) || !of(b) {
                    return why("a transposed conv of another dilation stands beside it");
                }
                Lanes::Spread(axes, x.clone())
            }
            (
                Lanes::Untouched | Lanes::Rows { reshaped: false },
                Lanes::Untouched | Lanes::Rows { reshaped: false },
            ) => Lanes::Rows { reshaped: false },
            _ => return why("its inputs are laid out in different ways"),
        })
    }
}

impl Axis {
    /// The axis of a sum, where the smaller kernel lies in the middle of the larger one.
    fn aligned(&self, other: &Axis) -> Result<Axis, Why> {
        if self.stride != other.stride {
            return why("its inputs have different strides");
        }
        let (large, small) = if self.extent >= other.extent {
            (self, other)
        } else {
            (other, self)
        };
        let beyond = large.extent - small.extent;
        let middle = beyond / 2;
        if beyond % 2 != 0
            || small.before.checked_add(middle) != Some(large.before)
            || small.after.checked_add(middle) != Some(large.after)
        {
            return why("the paddings of its inputs do not line up");
        }
        Ok(Axis {
            step: gcd(gcd(large.step, small.step), middle),
            ..*large
        })
    }

    /// The axis of a sum, where both kernels end at the same position, as those of causal convs do, or begin at the same one.
    fn flush(&self, other: &Axis) -> Option<Axis> {
        let (large, small) = if self.extent >= other.extent {
            (self, other)
        } else {
            (other, self)
        };
        let beyond = large.extent - small.extent;
        let at_end =
            large.after == small.after && small.before.checked_add(beyond) == Some(large.before);
        let at_start =
            large.before == small.before && small.after.checked_add(beyond) == Some(large.after);
        (self.stride == other.stride && (at_end || at_start)).then(|| Axis {
            step: gcd(gcd(large.step, small.step), beyond),
            ..*large
        })
    }
}

/// The greatest common divisor; `gcd(0, n) = n`.
fn gcd(a: usize, b: usize) -> usize {
    crate::algebra::shape::gcd(a, b)
}
