//! The tree whose shapes fit: every part of it knows what it maps to what.
//!
//! Only [`resolve`](super::shape::resolve) makes one, so that its readers need not ask whether a shape is one of a weight, or
//! whether the groups of a conv are known.

use super::expr::{Bn, Channels, Conv, Expr, Factor, Operand, Vector};
use super::extent::{Extent, Margins, POINT};
use super::shape::Geometry;

/// A part of a tree whose shapes fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<T> {
    geometry: Geometry,
    op: Op<T>,
}

/// What a part does: the forms of [`Expr`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "as in `Expr`")]
pub enum Op<T> {
    Conv(Kernel<T>),
    Bn(Bn<T>),
    Scale(Factor<T>),
    Shift(T),
    AvgPool(Extent),
    Crop(Margins),
    Identity,
    Seq(Vec<Part<T>>),
    Sum(Vec<Part<T>>),
    Stack(Vec<Part<T>>),
    Select(Channels),
}

/// The weight of a conv, and how it is applied. Its channels and groups are in the [`Geometry`] of its part.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel<T> {
    /// The weight, with a shape for its layout.
    pub weight: T,
    /// `[out]`.
    pub bias: Option<T>,
    /// The taps of the weight, `[depth, height, width]`.
    pub taps: Extent,
    /// The distance between them.
    pub dilation: Extent,
    /// Whether they are applied turned by 180°.
    pub flipped: bool,
    /// What the axes of the weight are.
    pub layout: Layout,
}

/// What the axes of a conv's weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in/groups, …]`.
    Plain,
    /// `[in, out/groups, …]`, of a transposed conv.
    Transposed,
    /// `[1, 1, …]`: one kernel, which every channel is convolved with by itself.
    Shared,
}

impl<T> Part<T> {
    pub(super) fn new(geometry: Geometry, op: Op<T>) -> Part<T> {
        Part { geometry, op }
    }

    /// Parts one after the other; of none, the identity over so many channels.
    pub(super) fn seq(parts: Vec<Part<T>>, inputs: usize) -> Part<T> {
        let start = Geometry::channelwise(inputs, &Op::<T>::Identity);
        let then = |all: Geometry, part: &Part<T>| all.then(&part.geometry);
        let mut geometry = parts.iter().fold(start, then);
        // As its last weight is stored: a Linear layer behind a Conv1d stays one.
        if let Some(last) = parts.iter().rfind(|part| part.has_conv()) {
            geometry = geometry.with_rank(last.geometry.rank());
        }
        Part::new(geometry, Op::Seq(parts))
    }

    /// The same, where nothing in the tree says how many groups it has.
    pub(super) fn with_groups_guessed(mut self) -> Part<T> {
        self.geometry = self.geometry.with_groups_guessed();
        self
    }

    pub(super) fn set_rank(&mut self, rank: usize) {
        self.geometry = self.geometry.with_rank(rank);
    }

    /// What the part maps to what.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What it does.
    pub fn op(&self) -> &Op<T> {
        &self.op
    }

    /// The parts that it is made of.
    pub fn parts(&self) -> &[Part<T>] {
        match &self.op {
            Op::Seq(xs) | Op::Sum(xs) | Op::Stack(xs) => xs,
            _ => &[],
        }
    }

    /// Calls `f` on this part and on every part below it, parents first.
    pub fn visit<'a>(&'a self, f: &mut impl FnMut(&'a Part<T>)) {
        f(self);
        self.parts().iter().for_each(|x| x.visit(f));
    }

    /// Every leaf, in the order in which they are written.
    pub fn leaves(&self) -> Vec<&T> {
        let mut out = Vec::new();
        self.visit(&mut |part| match &part.op {
            Op::Conv(c) => {
                out.push(&c.weight);
                out.extend(&c.bias);
            }
            Op::Bn(b) => {
                out.extend(b.affine.iter().flatten());
                out.extend([&b.mean, &b.var]);
            }
            Op::Scale(Factor::Tensor(Vector { tensor: t, .. })) | Op::Shift(t) => out.push(t),
            _ => {}
        });
        out
    }

    /// Every conv, with what it maps to what.
    pub fn convs(&self) -> Vec<(&Kernel<T>, &Geometry)> {
        let mut out = Vec::new();
        self.visit(&mut |part| {
            if let Op::Conv(kernel) = &part.op {
                out.push((kernel, &part.geometry));
            }
        });
        out
    }

    /// Every batch norm.
    pub fn norms(&self) -> Vec<&Bn<T>> {
        let mut out = Vec::new();
        self.visit(&mut |part| {
            if let Op::Bn(norm) = &part.op {
                out.push(norm);
            }
        });
        out
    }

    /// The first leaf that adds a constant: a conv's bias, a batch norm's mean or a shift. Without one the tree is linear, and its
    /// fold has a bias of zeros.
    pub fn constant(&self) -> Option<&T> {
        let mut found = None;
        self.visit(&mut |part| {
            found = found.or(match &part.op {
                Op::Conv(c) => c.bias.as_ref(),
                Op::Bn(b) => Some(&b.mean),
                Op::Shift(t) => Some(t),
                _ => None,
            });
        });
        found
    }

    /// Whether there is a conv in it.
    pub fn has_conv(&self) -> bool {
        matches!(self.op, Op::Conv(_)) || self.parts().iter().any(Part::has_conv)
    }

    /// Whether every output channel depends on the input channel of the same number and on no other.
    pub fn is_channelwise(&self) -> bool {
        match self.op {
            Op::Conv(_) | Op::Stack(_) | Op::Select(_) => false,
            _ => self.parts().iter().all(Part::is_channelwise),
        }
    }

    /// Whether every output pixel depends on the input pixel of the same channel and place and on no other.
    pub fn is_pixelwise(&self) -> bool {
        self.is_channelwise() && self.geometry.extent() == POINT
    }
}

/// Splits a sequence before its last part that has a conv.
///
/// Output channel `o` needs of that part and of all that follows only some rows, and of what stands before it everything. This is
/// what lets a block be worked on in slabs.
pub fn split<T>(parts: &[Part<T>]) -> (&[Part<T>], &[Part<T>]) {
    let last = parts.iter().rposition(Part::has_conv).unwrap_or(0);
    parts.split_at(last)
}

impl<T: Operand> Part<T> {
    /// The same as an expression; every conv in it has its groups.
    pub fn expr(&self) -> Expr<T> {
        let all = |parts: &[Part<T>]| parts.iter().map(Part::expr).collect();
        match &self.op {
            Op::Conv(kernel) => Expr::Conv(Conv {
                weight: kernel.weight.clone(),
                bias: kernel.bias.clone(),
                dilation: kernel.dilation,
                groups: Some(self.geometry.groups()),
                transposed: kernel.layout == Layout::Transposed,
                flipped: kernel.flipped,
                shared: kernel.layout == Layout::Shared,
            }),
            Op::Bn(norm) => Expr::Bn(norm.clone()),
            Op::Scale(factor) => Expr::Scale(factor.clone()),
            Op::Shift(shift) => Expr::Shift(shift.clone()),
            Op::AvgPool(window) => Expr::AvgPool(*window),
            Op::Crop(margins) => Expr::Crop(*margins),
            Op::Identity => Expr::Identity,
            Op::Seq(parts) => Expr::Seq(all(parts)),
            Op::Sum(parts) => Expr::Sum(all(parts)),
            Op::Stack(parts) => Expr::Stack(all(parts)),
            Op::Select(channels) => Expr::Select(channels.clone()),
        }
    }
}
