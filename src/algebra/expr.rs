//! The one tree: what a re-parameterizable block is, whatever stands at its leaves.

use std::fmt;
use std::ops::Range;

use super::extent::{Extent, Margins};

/// An expression over linear operators on feature maps `[channels, depth, height, width]`.
///
/// The leaf type `T` is a tensor of a checkpoint in a plan, and an array in the tests of the law. Every conv is "valid": padding
/// and stride belong to the caller of the block, and [`Sum`](Expr::Sum) and [`Stack`](Expr::Stack) crop their children to
/// their common centre. An expression may be anything; [`resolve`](super::shape::resolve) checks it.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr<T> {
    /// A convolution. All of them are seen in three dimensions: a Linear layer is 1×1×1, a Conv1d 1×1×k, a Conv2d 1×kh×kw.
    Conv(Conv<T>),
    /// A batch norm in evaluation mode.
    Bn(Bn<T>),
    /// A multiplication, per channel or by one number.
    Scale(Factor<T>),
    /// An addition of a constant per channel.
    Shift(T),
    /// Average pooling over `[depth, height, width]`.
    AvgPool(Extent),
    /// The input without its margins: in a [`Sum`](Expr::Sum), what puts a kernel elsewhere than in the middle.
    Crop(Margins),
    /// The input itself.
    Identity,
    /// Operators applied one after the other, the first one first.
    Seq(Vec<Expr<T>>),
    /// Branches over the same input, added up.
    Sum(Vec<Expr<T>>),
    /// Branches over the same input whose output channels are put one behind the other.
    Stack(Vec<Expr<T>>),
    /// Some of the channels.
    Select(Channels),
}

/// Some of a number of channels, in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channels {
    /// How many there are to choose from.
    pub of: usize,
    /// Which are taken, each less than `of`.
    pub picked: Vec<usize>,
}

impl Channels {
    /// Channels that lie side by side.
    pub fn range(of: usize, range: Range<usize>) -> Channels {
        let picked = range.collect();
        Channels { of, picked }
    }
}

/// The parameters of a convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv<T> {
    /// `[out, in/groups, kd, kh, kw]`, `[out, in/groups, kh, kw]`, `[out, in/groups, k]` or `[out, in]`; for a transposed conv
    /// `[in, out/groups, …]`; of a shared kernel, `out` and `in/groups` are 1.
    pub weight: T,
    /// `[out]`.
    pub bias: Option<T>,
    /// Distance between taps, `[depth, height, width]`.
    pub dilation: Extent,
    /// The number of groups, where it is declared.
    pub groups: Option<usize>,
    /// Whether the weight is that of a transposed conv.
    pub transposed: bool,
    /// Whether the taps are applied turned by 180°: a convolution as mathematics has it, where PyTorch's is a correlation. Not
    /// for a transposed conv.
    pub flipped: bool,
    /// Whether the weight is one kernel, which every channel is convolved with by itself.
    pub shared: bool,
}

/// The parameters of a batch norm: `y = (x − mean) / √(var + eps) · weight + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bn<T> {
    /// `running_mean`, `[channels]`.
    pub mean: T,
    /// `running_var`, `[channels]`.
    pub var: T,
    /// `weight` and `bias`, `[channels]` each; absent for `affine=False`.
    pub affine: Option<[T; 2]>,
    /// The constant under the root, which no checkpoint stores.
    pub eps: f64,
}

/// What a [`Expr::Scale`] multiplies by.
#[derive(Clone, Debug, PartialEq)]
pub enum Factor<T> {
    /// One number for every channel.
    Number(f64),
    /// One value, or one value per channel.
    Tensor(Vector<T>),
}

/// How factors follow from what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// They are stored.
    Itself,
    /// `1 / (1 + exp(−x))`, as gates are stored.
    Sigmoid,
    /// `1 / x`, where a network divides.
    Reciprocal,
}

/// A vector of factors: a tensor, or a row of one, or what follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector<T> {
    /// `[channels]` or one value, whatever its dimensions; `[rows, channels]` if a row is chosen.
    pub tensor: T,
    /// Which row of a matrix.
    pub row: Option<usize>,
    /// How the factors follow from what is stored.
    pub through: Through,
}

impl<T> Vector<T> {
    /// A whole tensor, as it is.
    pub fn of(tensor: T) -> Vector<T> {
        Vector {
            tensor,
            row: None,
            through: Through::Itself,
        }
    }
}

impl<T: Operand> Vector<T> {
    /// The number of values; 0 if there is no such row.
    pub fn len(&self) -> usize {
        match (self.row, self.tensor.shape().first()) {
            (None, _) => self.tensor.len(),
            (Some(row), Some(&rows)) if row < rows => self.tensor.len() / rows,
            _ => 0,
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in the tensor its values begin.
    pub fn first(&self) -> usize {
        self.row.map_or(0, |row| row * self.len())
    }
}

/// A leaf that has a shape and can be named in an error message.
pub trait Operand: Clone + fmt::Display {
    /// The stored shape.
    fn shape(&self) -> &[usize];

    /// The number of elements. A shape that overflows is refused before an operand is made of it.
    fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether the operand has no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the numbers behind the leaves come from: a checkpoint on disk or arrays in memory.
pub trait Values<T> {
    /// Why a value could not be had.
    type Error;

    /// Fills `out` with the elements of `leaf` from the flat, row-major position `first` on.
    fn read(&mut self, leaf: &T, first: usize, out: &mut [f64]) -> Result<(), Self::Error>;

    /// The same, each element times `scale`, as where it is added to zeros: a product of −0 becomes +0.
    fn read_scaled(
        &mut self,
        leaf: &T,
        first: usize,
        scale: f64,
        out: &mut [f64],
    ) -> Result<(), Self::Error> {
        self.read(leaf, first, out)?;
        out.iter_mut().for_each(|x| *x = 0.0 + scale * *x);
        Ok(())
    }

    /// The elements `first..first + len` of `leaf` as a vector.
    fn vector(&mut self, leaf: &T, first: usize, len: usize) -> Result<Vec<f64>, Self::Error> {
        let mut out = vec![0.0; len];
        self.read(leaf, first, &mut out)?;
        Ok(out)
    }
}

impl<T> Expr<T> {
    /// The parts that a node is made of.
    pub(super) fn parts(&self) -> &[Expr<T>] {
        match self {
            Expr::Seq(xs) | Expr::Sum(xs) | Expr::Stack(xs) => xs,
            _ => &[],
        }
    }

    /// Calls `f` on this node and on every node below it, parents first.
    pub fn visit<'a>(&'a self, f: &mut impl FnMut(&'a Expr<T>)) {
        f(self);
        self.parts().iter().for_each(|x| x.visit(f));
    }

    /// Every conv of the tree.
    pub fn convs(&self) -> Vec<&Conv<T>> {
        let mut out = Vec::new();
        self.visit(&mut |node| {
            if let Expr::Conv(c) = node {
                out.push(c);
            }
        });
        out
    }

    /// Whether there is a conv in the tree.
    pub fn has_conv(&self) -> bool {
        matches!(self, Expr::Conv(_)) || self.parts().iter().any(Expr::has_conv)
    }

    /// Whether every output channel depends on the input channel of the same number and on no other.
    pub(super) fn is_channelwise(&self) -> bool {
        match self {
            Expr::Conv(_) | Expr::Stack(_) | Expr::Select(_) => false,
            _ => self.parts().iter().all(Expr::is_channelwise),
        }
    }
}
