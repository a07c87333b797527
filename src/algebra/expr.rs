//! The one tree: what a re-parameterizable block is, whatever stands at its leaves.

use std::fmt;

/// An expression over linear operators on feature maps `[channels, height, width]`.
///
/// The leaf type `T` changes with the phase: a name pattern in a recipe, a tensor of a checkpoint
/// in a plan, an array in the tests of the law. Every conv is "valid": padding and stride belong to the
/// caller of the block, and [`Sum`](Expr::Sum) crops its children to their common centre.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr<T> {
    /// A convolution; a Linear layer is a 1×1 conv and a Conv1d is 1×k.
    Conv(Conv<T>),
    /// A batch norm in evaluation mode.
    Bn(Bn<T>),
    /// A multiplication, per channel or by one number.
    Scale(Factor<T>),
    /// An addition of a constant per channel.
    Shift(T),
    /// Average pooling over `[height, width]`.
    Mean([usize; 2]),
    /// The input itself.
    Identity,
    /// Operators applied one after the other, the first one first.
    Seq(Vec<Expr<T>>),
    /// Branches over the same input, added up.
    Sum(Vec<Expr<T>>),
}

/// The parameters of a convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv<T> {
    /// `[out, in/groups, kh, kw]`, `[out, in/groups, k]` or `[out, in]`; for a transposed conv
    /// `[in, out/groups, kh, kw]`; of a shared kernel, `out` and `in/groups` are 1.
    pub weight: T,
    /// `[out]`.
    pub bias: Option<T>,
    /// Distance between taps, `[height, width]`.
    pub dilation: [usize; 2],
    /// The number of groups: what the recipe declares, then what [`geometry::resolve`](super::shape::resolve) found.
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

    /// The elements `first..first + len` of `leaf` as a vector.
    fn vector(&mut self, leaf: &T, first: usize, len: usize) -> Result<Vec<f64>, Self::Error> {
        let mut out = vec![0.0; len];
        self.read(leaf, first, &mut out)?;
        Ok(out)
    }
}

impl<T> Expr<T> {
    /// The tree with every leaf replaced by what `f` makes of it, in the order in which they are written.
    pub fn try_map<U, E>(&self, f: &mut impl FnMut(&T) -> Result<U, E>) -> Result<Expr<U>, E> {
        Ok(match self {
            Expr::Conv(c) => Expr::Conv(Conv {
                weight: f(&c.weight)?,
                bias: c.bias.as_ref().map(&mut *f).transpose()?,
                dilation: c.dilation,
                groups: c.groups,
                transposed: c.transposed,
                flipped: c.flipped,
                shared: c.shared,
            }),
            Expr::Bn(b) => Expr::Bn(Bn {
                affine: match &b.affine {
                    Some([w, b]) => Some([f(w)?, f(b)?]),
                    None => None,
                },
                mean: f(&b.mean)?,
                var: f(&b.var)?,
                eps: b.eps,
            }),
            Expr::Scale(Factor::Number(n)) => Expr::Scale(Factor::Number(*n)),
            Expr::Scale(Factor::Tensor(v)) => Expr::Scale(Factor::Tensor(Vector {
                tensor: f(&v.tensor)?,
                row: v.row,
                through: v.through,
            })),
            Expr::Shift(t) => Expr::Shift(f(t)?),
            Expr::Mean(k) => Expr::Mean(*k),
            Expr::Identity => Expr::Identity,
            Expr::Seq(xs) => Expr::Seq(xs.iter().map(|x| x.try_map(f)).collect::<Result<_, _>>()?),
            Expr::Sum(xs) => Expr::Sum(xs.iter().map(|x| x.try_map(f)).collect::<Result<_, _>>()?),
        })
    }

    /// Every leaf, in the order in which they are written.
    pub fn leaves(&self) -> Vec<&T> {
        let mut out = Vec::new();
        self.visit(&mut |node| match node {
            Expr::Conv(c) => {
                out.push(&c.weight);
                out.extend(&c.bias);
            }
            Expr::Bn(b) => {
                out.extend(b.affine.iter().flatten());
                out.extend([&b.mean, &b.var]);
            }
            Expr::Scale(Factor::Tensor(Vector { tensor: t, .. })) | Expr::Shift(t) => out.push(t),
            _ => {}
        });
        out
    }

    /// Calls `f` on this node and on every node below it, parents first.
    pub fn visit<'a>(&'a self, f: &mut impl FnMut(&'a Expr<T>)) {
        f(self);
        if let Expr::Seq(xs) | Expr::Sum(xs) = self {
            for x in xs {
                x.visit(f);
            }
        }
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

    /// The first leaf that adds a constant: a conv's bias, a batch norm's mean or a shift. Without one the tree is linear, and its
    /// fold has a bias of zeros.
    pub fn constant(&self) -> Option<&T> {
        let mut found = None;
        self.visit(&mut |node| {
            found = found.or(match node {
                Expr::Conv(c) => c.bias.as_ref(),
                Expr::Bn(b) => Some(&b.mean),
                Expr::Shift(t) => Some(t),
                _ => None,
            });
        });
        found
    }

    /// Whether an output channel can depend on an input channel other than its own.
    ///
    /// Without a conv the whole tree is a diagonal map, possibly blurred by [`Expr::Mean`].
    pub fn mixes_channels(&self) -> bool {
        !self.convs().is_empty()
    }

    /// Splits a sequence before its last element that mixes channels.
    ///
    /// Output channel `o` needs of that element and of all that follows only channel `o`, and of
    /// what stands before it everything. This is what lets a block be worked on in slabs.
    pub fn split_seq(xs: &[Expr<T>]) -> (&[Expr<T>], &[Expr<T>]) {
        let last = xs.iter().rposition(Expr::mixes_channels).unwrap_or(0);
        xs.split_at(last)
    }
}
