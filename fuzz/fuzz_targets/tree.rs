//! Any expression, legal or not: it is refused in words, or its fold and its branches give the same.
#![no_main]

use std::convert::Infallible;
use std::fmt;

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use repfuse::algebra::extent::{POINT, volume};
use repfuse::algebra::forward::{Input, Maps, Reading, Spikes, forward};
use repfuse::algebra::shape::resolve;
use repfuse::algebra::{
    Bn, Channels, Conv, Expr, Extent, Factor, Margins, Operand, Resolved, Values, Vector, fold,
};

/// An array whose numbers follow from its place in the tree.
#[derive(Clone, Debug)]
struct Array {
    seed: usize,
    shape: Vec<usize>,
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.seed)
    }
}

impl Operand for Array {
    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

struct Numbers;

impl Values<Array> for Numbers {
    type Error = Infallible;

    fn read(&mut self, leaf: &Array, first: usize, out: &mut [f64]) -> std::result::Result<(), Infallible> {
        for (i, x) in out.iter_mut().enumerate() {
            let n = (leaf.seed * 7919 + (first + i) * 104_729) % 1021;
            *x = (n + 1) as f64 / 512.0;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Case(Expr<Array>);

struct Grow<'u, 'a> {
    u: &'u mut Unstructured<'a>,
    leaves: usize,
}

impl Grow<'_, '_> {
    /// A small number, mostly one that shapes share.
    fn size(&mut self) -> Result<usize> {
        let sizes = [1, 1, 2, 2, 3, 4, 4, 4, 6, 8, 0, 12];
        self.u.choose(&sizes).copied()
    }

    fn extent(&mut self) -> Result<Extent> {
        let along = |u: &mut Unstructured<'_>| u.choose(&[1, 1, 1, 2, 3, 3, 5, 0]).copied();
        Ok([along(self.u)?, along(self.u)?, along(self.u)?])
    }

    fn margin(&mut self) -> Result<Extent> {
        let along = |u: &mut Unstructured<'_>| u.choose(&[0, 0, 0, 1, 1, 2, 4]).copied();
        Ok([along(self.u)?, along(self.u)?, along(self.u)?])
    }

    fn array(&mut self, shape: Vec<usize>) -> Array {
        self.leaves += 1;
        let seed = self.leaves;
        Array { seed, shape }
    }

    fn vector(&mut self) -> Result<Array> {
        let len = self.size()?;
        Ok(self.array(vec![len]))
    }

    fn conv(&mut self) -> Result<Expr<Array>> {
        let (mut shape, taps) = (vec![self.size()?, self.size()?], self.extent()?);
        shape.extend(&taps[self.u.int_in_range(0..=3)?..]);
        Ok(Expr::Conv(Conv {
            weight: self.array(shape),
            bias: if self.u.arbitrary()? { Some(self.vector()?) } else { None },
            dilation: self.extent()?,
            groups: if self.u.arbitrary()? { Some(self.size()?) } else { None },
            transposed: self.u.ratio(1, 16)?,
            flipped: self.u.ratio(1, 4)?,
            shared: self.u.ratio(1, 16)?,
        }))
    }

    fn norm(&mut self) -> Result<Expr<Array>> {
        let len = self.size()?;
        let affine = [self.array(vec![len]), self.array(vec![len])];
        Ok(Expr::Bn(Bn {
            mean: self.array(vec![len]),
            var: self.array(vec![len]),
            affine: Some(affine).filter(|_| !self.u.is_empty()),
            eps: 1e-5,
        }))
    }

    fn select(&mut self) -> Result<Expr<Array>> {
        let of = self.size()?;
        let count = self.u.int_in_range(0..=4)?;
        let picked = (0..count).map(|_| self.u.int_in_range(0..=of));
        let picked = picked.collect::<Result<_>>()?;
        Ok(Expr::Select(Channels { of, picked }))
    }

    fn tree(&mut self, depth: usize) -> Result<Expr<Array>> {
        let kinds = if depth == 0 { 7 } else { 12 };
        Ok(match self.u.int_in_range(0..=kinds)? {
            0..=2 => self.conv()?,
            3 => self.norm()?,
            4 => Expr::Identity,
            5 if self.u.ratio(1, 3)? => Expr::Crop(Margins {
                before: self.margin()?,
                after: self.margin()?,
            }),
            5 => Expr::AvgPool(self.extent()?),
            6 => self.select()?,
            7 if self.u.arbitrary()? => Expr::Shift(self.vector()?),
            7 => Expr::Scale(Factor::Tensor(Vector::of(self.vector()?))),
            kind => {
                let count = self.u.int_in_range(0..=3)?;
                let parts = (0..count).map(|_| self.tree(depth - 1));
                let parts = parts.collect::<Result<Vec<_>>>()?;
                match kind {
                    8 | 9 => Expr::Seq(parts),
                    10 | 11 => Expr::Sum(parts),
                    _ => Expr::Stack(parts),
                }
            }
        })
    }
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Case> {
        Grow { u, leaves: 0 }.tree(3).map(Case)
    }
}

fn run(tree: &Resolved<Array>, input: &Input, want: Extent, reading: Reading) -> Maps {
    let rows = 0..tree.geometry().out();
    let maps = forward(tree.root(), input, rows, want, reading, &mut Numbers);
    maps.unwrap_or_else(|e| panic!("{e}: {tree:?}"))
}

fuzz_target!(|case: Case| {
    let Ok(tree) = resolve(case.0) else {
        return;
    };
    let g = *tree.geometry();
    if g.transposed() || g.inputs() * volume(g.extent()) > 1 << 12 || g.out() > 1 << 8 {
        return;
    }
    let Ok(fused) = fold(&tree, &mut Numbers);
    // All numbers are positive, so that the magnitude is what is added up.
    let spikes = Input::Spikes(Spikes {
        per_group: g.in_per_group(),
        channels: 0..g.in_per_group(),
        amplitude: 1.0,
    });
    let [value, size] = [Reading::Value, Reading::Magnitude]
        .map(|reading| run(&tree, &spikes, g.extent(), reading));
    // A response has its taps in reverse, and the bias everywhere.
    for (o, row) in value.data().chunks_exact(g.row_len()).enumerate() {
        let kernel = &fused.kernel()[o * g.row_len()..][..g.row_len()];
        let sizes = &size.data()[o * g.row_len()..][..g.row_len()];
        for (channel, taps) in kernel.chunks_exact(g.taps()).enumerate() {
            for (tap, w) in taps.iter().enumerate() {
                let at = channel * g.taps() + g.taps() - 1 - tap;
                let off = (row[at] - w - fused.bias()[o]).abs();
                assert!(off <= 1e-11 * sizes[at], "{off} at {o}, {at}: {tree:?}");
            }
        }
    }
    let zeros = Input::Dense(Maps::zeros(g.inputs(), 1, g.extent()));
    let [bias, size] = [Reading::Value, Reading::Magnitude]
        .map(|reading| run(&tree, &zeros, POINT, reading));
    for (o, (b, size)) in bias.data().iter().zip(size.data()).enumerate() {
        let off = (b - fused.bias()[o]).abs();
        assert!(off <= 1e-11 * size, "{off} of bias {o}: {tree:?}");
    }
});
