//! What a file says of padding, in the expression of a block: kernels that are added up must lie over each other, so each conv
//! has the padding that its kernel asks for, all of one kind.

use super::path::module_or_own;
use crate::algebra::extent::POINT;
use crate::algebra::shape::weight_axes;
use crate::algebra::{Conv, Expr};
use crate::tensor::facts::Attribute;
use crate::tensor::{Tensor, quoted};

/// By how much a map shrinks along each axis, as far as the file says it; and the conv that says so.
type Shrinks<'a> = [Option<(i64, Option<&'a Conv<Tensor>>)>; 3];

/// Checks that the branches of every sum leave their maps of one size, and pad them in one way.
///
/// # Errors
/// A sentence on two convs that do not agree.
pub(super) fn agree(expr: &Expr<Tensor>) -> Result<(), String> {
    shrinks(expr)?;
    one_mode(expr)
}

fn shrinks(expr: &Expr<Tensor>) -> Result<Shrinks<'_>, String> {
    match expr {
        Expr::Conv(conv) => Ok(of_conv(conv)),
        Expr::Seq(xs) => {
            // Behind the first operator, a map may have been padded by what has no tensor.
            let mut all: Shrinks<'_> = [Some((0, None)); 3];
            for (i, x) in xs.iter().enumerate() {
                let more = shrinks(x)?;
                for (so_far, more) in all.iter_mut().zip(more) {
                    *so_far = match (i, *so_far, more) {
                        (0, _, more) => more,
                        (_, known, Some((0, _))) => known,
                        _ => None,
                    };
                }
            }
            Ok(all)
        }
        Expr::Sum(xs) | Expr::Stack(xs) => {
            let mut all: Shrinks<'_> = [None; 3];
            for x in xs {
                for (so_far, more) in all.iter_mut().zip(shrinks(x)?) {
                    if let (Some((a, conv)), Some((b, other))) = (*so_far, more)
                        && a != b
                    {
                        return Err(said(conv, other));
                    }
                    // The one that a conv says is worth more to an error than that of an identity.
                    *so_far = match (*so_far, more) {
                        (Some((a, None)), Some((_, conv))) => Some((a, conv)),
                        (None, more) => more,
                        (known, _) => known,
                    };
                }
            }
            Ok(all)
        }
        Expr::AvgPool(_) | Expr::Crop(_) => Ok([None; 3]),
        _ => Ok([Some((0, None)); 3]),
    }
}

fn of_conv(conv: &Conv<Tensor>) -> Shrinks<'_> {
    let unknown = [None; 3];
    let (Some(said), Some((_, taps))) = (conv.weight.module(), weight_axes(conv.weight.shape()))
    else {
        return unknown;
    };
    let padding = match said.attributes.get("padding") {
        Some(Attribute::Text(text)) if text == "same" => return [Some((0, Some(conv))); 3],
        _ => match said.counts("padding").and_then(|counts| axes(&counts, 0)) {
            Some(padding) => padding,
            None => return unknown,
        },
    };
    if conv.transposed {
        return unknown;
    }
    let dilation = said.counts("dilation").and_then(|counts| axes(&counts, 1));
    let dilation = dilation.unwrap_or(POINT);
    [0, 1, 2].map(|i| {
        let extent = taps[i].saturating_sub(1).saturating_mul(dilation[i]);
        let [extent, padding] = [extent, padding[i]].map(|n| i64::try_from(n).ok());
        match (extent?, padding?) {
            // Its map may have been padded before.
            (1.., 0) => None,
            (extent, padding) => Some((extent - padding.checked_mul(2)?, Some(conv))),
        }
    })
}

/// Counts of the last axes, and `rest` for those before.
fn axes(counts: &[usize], rest: usize) -> Option<[usize; 3]> {
    let mut axes = [rest; 3];
    let first = axes.len().checked_sub(counts.len())?;
    axes[first..].copy_from_slice(counts);
    Some(axes)
}

fn module(conv: &Conv<Tensor>) -> String {
    quoted(module_or_own(conv.weight.name_in_file()))
}

fn padding_of(conv: &Conv<Tensor>) -> String {
    let said = conv
        .weight
        .module()
        .and_then(|said| said.attributes.get("padding"));
    let padding = match said {
        Some(Attribute::Text(text)) => quoted(text),
        Some(Attribute::Integers(counts)) => format!("{counts:?}"),
        _ => "none".to_owned(),
    };
    let taps: Vec<usize> = conv.weight.shape().iter().skip(2).copied().collect();
    format!(
        "{} has padding {padding} around a kernel of {taps:?}",
        module(conv)
    )
}

fn said(a: Option<&Conv<Tensor>>, b: Option<&Conv<Tensor>>) -> String {
    match (a, b) {
        (Some(a), Some(b)) => format!(
            "the file says that {} and {}; what they make cannot be added up, as the recipe has it",
            padding_of(a),
            padding_of(b)
        ),
        (one, other) => format!(
            "the file says that {}; what it makes cannot be added to a branch that keeps the size, as the recipe has it",
            one.or(other).map_or(String::new(), padding_of)
        ),
    }
}

/// Checks that all convs of a block that pad fill what they add alike.
fn one_mode(expr: &Expr<Tensor>) -> Result<(), String> {
    let mut convs = Vec::new();
    all_convs(expr, &mut convs);
    let mut modes = convs
        .iter()
        .filter_map(|conv| Some((mode(&conv.weight)?, module(conv))));
    let Some((first, of)) = modes.next() else {
        return Ok(());
    };
    match modes.find(|(mode, _)| *mode != first) {
        None => Ok(()),
        Some((mode, other)) => Err(format!(
            "the file says that {of} has padding_mode {} and {other} has {}; one conv has one",
            quoted(first),
            quoted(mode)
        )),
    }
}

/// How the conv of a weight fills what it adds around its map, as far as the file says it, if it adds anything.
pub(super) fn mode(weight: &Tensor) -> Option<&str> {
    let said = weight.module()?;
    let pads = match said.attributes.get("padding")? {
        Attribute::Integers(counts) => counts.iter().any(|n| *n != 0),
        Attribute::Text(text) => text != "valid",
        _ => false,
    };
    match said.attributes.get("padding_mode")? {
        Attribute::Text(mode) if pads => Some(mode),
        _ => None,
    }
}

/// Every conv of an expression, in its order.
pub(super) fn all_convs<'a>(expr: &'a Expr<Tensor>, out: &mut Vec<&'a Conv<Tensor>>) {
    match expr {
        Expr::Conv(conv) => out.push(conv),
        Expr::Seq(xs) | Expr::Sum(xs) | Expr::Stack(xs) => {
            xs.iter().for_each(|x| all_convs(x, out));
        }
        _ => {}
    }
}
