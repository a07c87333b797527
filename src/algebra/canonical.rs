//! Expressions in one form, so that two ways of writing the same are seen to be the same.

use std::fmt::Write as _;

use super::{Conv, Expr, Factor, Operand, Resolved};

/// Whether two expressions say the same, as far as their leaves tell the groups of both.
pub fn same<T: Operand>(a: &Resolved<T>, b: &Resolved<T>) -> bool {
    let known = a.geometry().groups_known && b.geometry().groups_known;
    let text = |of: &Resolved<T>| match known {
        true => canonical(of.expr()),
        false => canonical(&without_groups(of.expr())),
    };
    text(a) == text(b)
}

fn without_groups<T: Operand>(expr: &Expr<T>) -> Expr<T> {
    match expr {
        Expr::Conv(conv) => Expr::Conv(Conv {
            groups: None,
            ..conv.clone()
        }),
        Expr::Seq(xs) => Expr::Seq(xs.iter().map(without_groups).collect()),
        Expr::Sum(xs) => Expr::Sum(xs.iter().map(without_groups).collect()),
        other => other.clone(),
    }
}

/// The expression as a text that does not depend on the order of summands or on how sequences are nested. Leaves are their names.
/// Two expressions with the same text compute the same; the reverse need not hold.
pub fn canonical<T: Operand>(expr: &Expr<T>) -> String {
    match expr {
        Expr::Sum(_) => {
            let mut terms = Vec::new();
            summands(expr, &mut terms);
            terms.sort();
            match &terms[..] {
                [only] => only.clone(),
                _ => format!("({})", terms.join(" + ")),
            }
        }
        Expr::Seq(_) => {
            let mut steps = Vec::new();
            sequence(expr, &mut steps);
            match &steps[..] {
                [] => "x".to_owned(),
                _ => steps.join(" > "),
            }
        }
        Expr::Conv(conv) => {
            let spatial = conv.weight.shape().iter().skip(2);
            let taps = spatial.clone().count();
            // A distance between taps of which there is one says nothing.
            let distance = |i: usize| match taps
                .checked_sub(i + 1)
                .and_then(|at| conv.weight.shape().get(2 + at))
            {
                Some(n) if *n > 1 => conv.dilation[1 - i],
                _ => 1,
            };
            let mut text = format!("conv {}", conv.weight);
            if let Some(bias) = &conv.bias {
                let _ = write!(text, " bias {bias}");
            }
            let distances = [distance(1), distance(0)];
            if distances != [1, 1] {
                let _ = write!(text, " dilation {distances:?}");
            }
            if let Some(groups) = conv.groups.filter(|groups| *groups != 1) {
                let _ = write!(text, " groups {groups}");
            }
            for (is, what) in [
                (conv.transposed, "transposed"),
                (conv.flipped, "flipped"),
                (conv.shared, "shared"),
            ] {
                if is {
                    let _ = write!(text, " {what}");
                }
            }
            text
        }
        Expr::Bn(bn) => {
            let affine: Vec<String> = bn
                .affine
                .iter()
                .flatten()
                .map(ToString::to_string)
                .collect();
            format!(
                "bn {} {} [{}] eps {:e}",
                bn.mean,
                bn.var,
                affine.join(" "),
                bn.eps
            )
        }
        Expr::Scale(Factor::Number(n)) => format!("times {n:e}"),
        Expr::Scale(Factor::Tensor(v)) => {
            let row = v.row.map_or(String::new(), |row| format!(" row {row}"));
            format!("times {}{row} {:?}", v.tensor, v.through)
        }
        Expr::Shift(t) => format!("plus {t}"),
        Expr::Mean(k) => format!("mean {k:?}"),
        Expr::Identity => "x".to_owned(),
    }
}

fn summands<T: Operand>(expr: &Expr<T>, out: &mut Vec<String>) {
    match expr {
        Expr::Sum(xs) => xs.iter().for_each(|x| summands(x, out)),
        Expr::Seq(xs) if xs.len() == 1 => summands(&xs[0], out),
        _ => out.push(canonical(expr)),
    }
}

fn sequence<T: Operand>(expr: &Expr<T>, out: &mut Vec<String>) {
    match expr {
        Expr::Seq(xs) => xs.iter().for_each(|x| sequence(x, out)),
        Expr::Sum(xs) if xs.len() == 1 => sequence(&xs[0], out),
        Expr::Identity => {}
        Expr::Scale(Factor::Number(n)) if *n == 1.0 => {}
        _ => out.push(canonical(expr)),
    }
}
