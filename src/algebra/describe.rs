//! An expression in a line of text, as in `bn(3×3) + bn(1×1) + bn`.

use crate::algebra::shape::four_dims;
use crate::algebra::{Conv, Expr, Factor, Operand, Through};

/// Describes an expression: convs by their kernels, everything else by its name.
pub fn expression<T: Operand>(expr: &Expr<T>) -> String {
    match expr {
        Expr::Conv(c) => conv(c),
        Expr::Bn(_) => "bn".to_owned(),
        Expr::Scale(Factor::Number(-1.0)) => "−1".to_owned(),
        Expr::Scale(Factor::Number(n)) => n.to_string(),
        Expr::Scale(Factor::Tensor(v)) if v.through == Through::Sigmoid => "gate".to_owned(),
        Expr::Scale(Factor::Tensor(_)) => "scale".to_owned(),
        Expr::Shift(_) => "shift".to_owned(),
        Expr::Mean([kh, kw]) => format!("mean {kh}×{kw}"),
        Expr::Identity => "x".to_owned(),
        Expr::Sum(xs) => terms(xs),
        Expr::Seq(xs) => sequence(xs),
    }
}

/// Equal terms beside one another are counted: `4·bn(3×3)`.
fn terms<T: Operand>(xs: &[Expr<T>]) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for text in xs.iter().map(expression) {
        match counted.last_mut() {
            Some((last, n)) if *last == text => *n += 1,
            _ => counted.push((text, 1)),
        }
    }
    let term = |(text, n): (String, usize)| if n == 1 { text } else { format!("{n}·{text}") };
    counted
        .into_iter()
        .map(term)
        .collect::<Vec<_>>()
        .join(" + ")
}

/// The last operator is outermost: `bn(3×3)`.
fn sequence<T: Operand>(xs: &[Expr<T>]) -> String {
    let mut text = String::new();
    for (i, x) in xs.iter().enumerate() {
        let this = expression(x);
        text = match (i, x) {
            (0, _) => this,
            (_, Expr::Sum(_)) => format!("({this})({text})"),
            (_, Expr::Scale(Factor::Number(_))) => format!("{this}·({text})"),
            _ => format!("{this}({text})"),
        };
    }
    text
}

fn conv<T: Operand>(c: &Conv<T>) -> String {
    let [_, second, kh, kw] = four_dims(c.weight.shape()).unwrap_or([0; 4]);
    let mut text = format!("{kh}×{kw}");
    if second == 1 && c.groups.is_some_and(|g| g > 1) {
        text = format!("dw {text}");
    }
    match c.dilation {
        [1, 1] => {}
        [a, b] if a == b => text += &format!(" d{a}"),
        [a, b] => text += &format!(" d{a}×{b}"),
    }
    if c.flipped {
        text += " flipped";
    }
    if c.transposed {
        text += "ᵀ";
    }
    if c.bias.is_some() { text + "+b" } else { text }
}
