//! The first reading: an expression becomes one kernel and one bias.
//!
//! The normal form is a sum of *terms*, each a scaled kernel or a scaled diagonal, plus a bias. A batch
//! norm behind a conv only changes the term's scale, so nothing is multiplied out until a row of
//! the fused kernel is asked for, and then every branch is read once: `row = Σ scale · branch row + taps`.
//! A diagonal becomes a delta kernel only there, so the identity tap
//! `[o, o mod (in/groups), ⌊kh/2⌋, ⌊kw/2⌋]` is written in one place. Of a stack or a selection, a term
//! knows which of its source's rows each output channel has.
//!
//! Rows (output channels) are independent of one another, and the large weights are read only row by row.
//! What stands before the last conv of a sequence is needed whole by every row; it is folded when
//! the expression is compiled.

mod form;
mod row;
mod taps;

use super::expr::{Operand, Values};
use super::extent::{POINT, volume};
use super::part::Part;
use super::shape::{Geometry, Resolved};
use form::{Form, Source, Term, compile};
use row::read_row;
use taps::{add_centred, seen_through, set_scaled, spread};

/// A kernel `[out, in/groups, kd, kh, kw]` and a bias `[out]`, in f64 and row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    geometry: Geometry,
    kernel: Vec<f64>,
    bias: Vec<f64>,
}

/// Folds a whole expression at once.
///
/// # Errors
/// Whatever reading the values gives.
pub fn fold<T: Operand, V: Values<T>>(
    expr: &Resolved<T>,
    values: &mut V,
) -> Result<Affine, V::Error> {
    Folded::compile(expr, values)?.all_rows(values)
}

/// An expression compiled to its normal form; rows of the fused kernel are there for the asking.
#[derive(Debug)]
pub struct Folded<T> {
    geometry: Geometry,
    form: Form<T>,
}

/// Buffers that one thread reuses from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    weight: Vec<f64>,
    composed: Vec<f64>,
    by_tap: Vec<f64>,
    seen: [Vec<f64>; 2],
}

impl<T: Operand> Folded<T> {
    /// Compiles `expr`. Vectors are read, and inner convs folded; the outermost weights stay where they are.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn compile<V: Values<T>>(expr: &Resolved<T>, values: &mut V) -> Result<Self, V::Error> {
        let geometry = *expr.geometry();
        let form = compile(expr.root(), None, values)?;
        Ok(Folded { geometry, form })
    }

    /// Compiles one of the [`branches`](super::branches::branches) of an expression by itself. Its rows have the extent of
    /// the whole kernel, with the branch in the middle; they add up to the rows of the whole.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn compile_branch<V: Values<T>>(
        whole: &Resolved<T>,
        branch: &Part<T>,
        values: &mut V,
    ) -> Result<Self, V::Error> {
        let geometry = *whole.geometry();
        let form = compile(branch, None, values)?;
        Ok(Folded { geometry, form })
    }

    /// What the fused kernel maps to what.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Writes the fused kernel's row `o`, `[in/groups, kd, kh, kw]`, to `out` and returns its bias.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn row<V: Values<T>>(
        &self,
        o: usize,
        values: &mut V,
        scratch: &mut Scratch,
        out: &mut [f64],
    ) -> Result<f64, V::Error> {
        let Scratch {
            weight,
            composed,
            by_tap,
            seen,
        } = scratch;
        let start = self.geometry.first_input(o);
        let mut bias = self.form.bias[o];
        let mut filled = false;
        for term in &self.form.terms {
            let Some(of_source) = term.rows.of(o) else {
                continue;
            };
            let scale = term.scale[o];
            if !filled && let Some(weight) = term.whole_rows(&self.geometry) {
                values.read_scaled(weight, of_source * out.len(), scale, out)?;
                filled = true;
                continue;
            }
            let Term {
                source, windows, ..
            } = term;
            let (taps, extent, first): (&[f64], _, _) = match source {
                Source::Diagonal => (&[1.0], POINT, of_source),
                Source::Inner(inner) => (
                    inner.row(of_source),
                    inner.geometry.extent(),
                    inner.geometry.first_input(of_source),
                ),
                Source::Conv {
                    kernel,
                    geometry,
                    after,
                } => {
                    let row = read_row(kernel, geometry, of_source, values, weight)?;
                    match after {
                        Some(inner) => {
                            bias += scale * row.through_bias(weight, &inner.bias);
                            let (extent, first) =
                                row.through(weight, inner, o, &self.geometry, [composed, by_tap]);
                            (composed, extent, first)
                        }
                        None if kernel.dilation == POINT => (weight, row.taps, row.first),
                        None => (
                            spread(weight, row.taps, row.extent, kernel.dilation, composed),
                            row.extent,
                            row.first,
                        ),
                    }
                }
            };
            let (taps, extent) = seen_through(taps, extent, windows, seen);
            let whole = self.geometry.extent();
            if !filled && extent == whole && taps.len() == out.len() {
                // The first branch is mostly as large as the kernel. Adding it to zeros takes a tenth longer in all.
                set_scaled(taps, scale, out);
            } else {
                if !filled {
                    out.fill(0.0);
                }
                add_centred(taps, extent, first - start, scale, out, whole);
            }
            filled = true;
        }
        if !filled {
            out.fill(0.0);
        }
        Ok(bias)
    }

    /// Writes what is stored for input channel `i` of a transposed conv, `[out/groups, kd, kh, kw]`, to `out`.
    ///
    /// Its taps stay as they are stored, for nothing but scales and sums can follow a transposed conv.
    ///
    /// # Errors
    /// Whatever reading the values gives.
    pub fn transposed_row<V: Values<T>>(
        &self,
        i: usize,
        values: &mut V,
        scratch: &mut Scratch,
        out: &mut [f64],
    ) -> Result<(), V::Error> {
        let whole = &self.geometry;
        let start = i / whole.in_per_group() * whole.out_per_group();
        out.fill(0.0);
        for Term { source, scale, .. } in &self.form.terms {
            // `resolve` lets no other source into a tree with a transposed conv.
            let Source::Conv {
                kernel, geometry, ..
            } = source
            else {
                continue;
            };
            let (width, taps) = (geometry.out_per_group(), volume(kernel.taps));
            let weight = &mut scratch.weight;
            weight.resize(width * taps, 0.0);
            values.read(&kernel.weight, i * weight.len(), weight)?;
            let first = i / geometry.in_per_group() * width;
            let maps = out[(first - start) * whole.taps()..].chunks_exact_mut(whole.taps());
            for ((map, stored), scale) in maps.zip(weight.chunks_exact(taps)).zip(&scale[first..]) {
                add_centred(stored, kernel.taps, 0, *scale, map, whole.extent());
            }
        }
        Ok(())
    }

    /// The bias of every output channel, as far as no outermost weight has a part in it; of a transposed conv, all of it.
    pub fn constant_bias(&self) -> &[f64] {
        &self.form.bias
    }

    pub(super) fn all_rows<V: Values<T>>(&self, values: &mut V) -> Result<Affine, V::Error> {
        let geometry = self.geometry;
        let mut kernel = vec![0.0; geometry.out() * geometry.row_len()];
        let mut bias = Vec::with_capacity(geometry.out());
        let mut scratch = Scratch::default();
        for (o, row) in kernel.chunks_exact_mut(geometry.row_len()).enumerate() {
            bias.push(self.row(o, values, &mut scratch, row)?);
        }
        Ok(Affine {
            geometry,
            kernel,
            bias,
        })
    }
}

impl Affine {
    /// The shapes of kernel and bias.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// `out · in/groups · kd · kh · kw` values.
    pub fn kernel(&self) -> &[f64] {
        &self.kernel
    }

    /// `out` values.
    pub fn bias(&self) -> &[f64] {
        &self.bias
    }

    /// Row `o` of the kernel.
    pub(super) fn row(&self, o: usize) -> &[f64] {
        &self.kernel[o * self.geometry.row_len()..][..self.geometry.row_len()]
    }
}
