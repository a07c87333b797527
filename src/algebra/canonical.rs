//! Expressions in one form, so that two ways of writing the same are seen to be the same.

use std::fmt::{Display, Write as _};

use super::part::Kernel;
use super::{Factor, Layout, Op, Part, Resolved};

/// Whether two expressions say the same, as far as their leaves tell the groups of both.
pub fn same<T: Display>(a: &Resolved<T>, b: &Resolved<T>) -> bool {
    let groups = a.geometry().groups_known() && b.geometry().groups_known();
    canonical(a.root(), groups) == canonical(b.root(), groups)
}

/// The expression as a text that does not depend on the order of summands or on how sequences are nested. Leaves are their names.
/// Two expressions with the same text compute the same; the reverse need not hold.
fn canonical<T: Display>(part: &Part<T>, groups: bool) -> String {
    match part.op() {
        Op::Sum(_) => {
            let mut terms = Vec::new();
            summands(part, groups, &mut terms);
            terms.sort();
            match &terms[..] {
                [only] => only.clone(),
                _ => format!("({})", terms.join(" + ")),
            }
        }
        Op::Stack(parts) => {
            let parts: Vec<String> = parts.iter().map(|x| canonical(x, groups)).collect();
            format!("[{}]", parts.join(", "))
        }
        Op::Seq(_) => {
            let mut steps = Vec::new();
            sequence(part, groups, &mut steps);
            match &steps[..] {
                [] => "x".to_owned(),
                _ => steps.join(" > "),
            }
        }
        Op::Conv(conv) => of_conv(conv, groups.then(|| part.geometry().groups())),
        Op::Bn(bn) => {
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
        Op::Scale(Factor::Number(n)) => format!("times {n:e}"),
        Op::Scale(Factor::Tensor(v)) => {
            let row = v.row.map_or(String::new(), |row| format!(" row {row}"));
            format!("times {}{row} {:?}", v.tensor, v.through)
        }
        Op::Shift(t) => format!("plus {t}"),
        Op::AvgPool(k) => format!("mean {k:?}"),
        Op::Crop(margins) => format!("crop {:?} {:?}", margins.before, margins.after),
        Op::Select(channels) => format!("channels {:?} of {}", channels.picked, channels.of),
        Op::Identity => "x".to_owned(),
    }
}

fn summands<T: Display>(part: &Part<T>, groups: bool, out: &mut Vec<String>) {
    match part.op() {
        Op::Sum(xs) => xs.iter().for_each(|x| summands(x, groups, out)),
        Op::Seq(xs) if xs.len() == 1 => summands(&xs[0], groups, out),
        _ => out.push(canonical(part, groups)),
    }
}

fn sequence<T: Display>(part: &Part<T>, groups: bool, out: &mut Vec<String>) {
    match part.op() {
        Op::Seq(xs) => xs.iter().for_each(|x| sequence(x, groups, out)),
        Op::Sum(xs) if xs.len() == 1 => sequence(&xs[0], groups, out),
        Op::Identity => {}
        Op::Scale(Factor::Number(n)) if *n == 1.0 => {}
        _ => out.push(canonical(part, groups)),
    }
}

/// A conv; `groups` are said where they are given.
fn of_conv<T: Display>(conv: &Kernel<T>, groups: Option<usize>) -> String {
    let mut text = format!("conv {}", conv.weight);
    if let Some(bias) = &conv.bias {
        let _ = write!(text, " bias {bias}");
    }
    // A distance between taps of which there is one says nothing.
    let distances = [0, 1, 2].map(|axis| match conv.taps[axis] {
        1 => 1,
        _ => conv.dilation[axis],
    });
    if distances != [1; 3] {
        let _ = write!(text, " dilation {distances:?}");
    }
    if let Some(groups) = groups {
        let _ = write!(text, " groups {groups}");
    }
    if conv.layout != Layout::Plain {
        let _ = write!(text, " {:?}", conv.layout);
    }
    if conv.flipped {
        text += " flipped";
    }
    text
}
