//! Constants that a program makes of nothing: of one number, of those that count, or with ones on the diagonal.

use super::call::{Call, Opaque};
use crate::graph::constants::{Budget, Constant};
use crate::graph::kinds::{Kind, is_exact};

/// What a call makes; the program says the shape and the type.
pub(super) fn made(
    call: &Call<'_>,
    name: &str,
    (shape, kind): (&[usize], Kind),
    budget: &mut Budget,
) -> Result<Option<Constant>, Opaque> {
    let mut all = |number: f64| Ok(Constant::filled(|_| number, shape, kind, budget));
    match (name, call.node.overload()) {
        ("zeros" | "zeros_like" | "new_zeros", "default") => all(0.0),
        ("ones" | "ones_like" | "new_ones", "default") => all(1.0),
        ("full" | "full_like" | "new_full", "default") => all(number(call, "fill_value")?),
        ("fill", "Scalar") => all(number(call, "value")?),
        ("scalar_tensor", "default") => all(number(call, "s")?),
        ("eye", "default" | "m") if shape.len() == 2 => {
            let diagonal = |at: &[usize]| f64::from(at[0] == at[1]);
            Ok(Constant::filled(diagonal, shape, kind, budget))
        }
        ("arange", "default" | "start" | "start_step") => {
            let start = call.number("start")?.unwrap_or(0.0);
            let step = call.number("step")?.unwrap_or(1.0);
            let end = call.number("end")?.ok_or(None)?;
            let count = ((end - start) / step).ceil();
            let fits = matches!(shape, [len] if *len as f64 == count);
            if ![start, step, end].into_iter().all(is_exact) || !fits {
                return Ok(None);
            }
            let counted = |at: &[usize]| start + at[0] as f64 * step;
            Ok(Constant::filled(counted, shape, kind, budget))
        }
        _ => Ok(None),
    }
}

/// A number, or one for true and zero for false.
fn number(call: &Call<'_>, name: &str) -> Result<f64, Opaque> {
    match call.is_number(name) {
        true => call.number(name)?.ok_or(None),
        false if call.is_given(name) => Ok(call.flag(name, false)?.into()),
        false => Err(None),
    }
}
