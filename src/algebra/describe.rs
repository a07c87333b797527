//! An expression in a line of text, as in `bn(3×3) + bn(1×1) + bn`.

use crate::algebra::{
    Channels, Extent, Factor, Geometry, Kernel, Layout, Margins, Op, Part, Through,
};

/// Describes a tree: convs by their kernels, everything else by its name.
pub fn expression<T>(part: &Part<T>) -> String {
    described(part, false)
}

/// The same with the whole shape of every conv's weight, as in `bn(64×3×3×3)`.
pub fn with_shapes<T>(part: &Part<T>) -> String {
    described(part, true)
}

fn described<T>(part: &Part<T>, shapes: bool) -> String {
    match part.op() {
        Op::Conv(kernel) => conv(kernel, part.geometry(), shapes),
        Op::Bn(_) => "bn".to_owned(),
        Op::Scale(Factor::Number(-1.0)) => "−1".to_owned(),
        Op::Scale(Factor::Number(n)) => n.to_string(),
        Op::Scale(Factor::Tensor(v)) if v.through == Through::Sigmoid => "gate".to_owned(),
        Op::Scale(Factor::Tensor(_)) => "scale".to_owned(),
        Op::Shift(_) => "shift".to_owned(),
        Op::AvgPool(window) => format!("mean {}", size(*window)),
        Op::Crop(margins) => cropped(margins),
        Op::Identity => "x".to_owned(),
        Op::Sum(parts) => terms(parts, " + ", shapes),
        Op::Stack(parts) => format!("[{}]", terms(parts, ", ", shapes)),
        Op::Seq(parts) => sequence(parts, shapes),
        Op::Select(Channels { of, picked }) => format!("{} of {of}", picked.len()),
    }
}

/// An extent as in `3×3`: the depth only where there is one.
pub fn size(extent: Extent) -> String {
    match extent {
        [1, h, w] => format!("{h}×{w}"),
        [d, h, w] => format!("{d}×{h}×{w}"),
    }
}

/// How many positions are left out before and behind each axis that loses any, as in `crop 2:0`.
fn cropped(margins: &Margins) -> String {
    let axes = [0, 1, 2].map(|axis| [margins.before[axis], margins.after[axis]]);
    let of_axis = |[before, after]: &[usize; 2]| format!("{before}:{after}");
    let from = axes.iter().position(|pair| *pair != [0, 0]).unwrap_or(2);
    let axes: Vec<String> = axes[from..].iter().map(of_axis).collect();
    format!("crop {}", axes.join("×"))
}

/// Equal terms beside one another are counted: `4·bn(3×3)`.
fn terms<T>(parts: &[Part<T>], between: &str, shapes: bool) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for text in parts.iter().map(|part| described(part, shapes)) {
        match counted.last_mut() {
            Some((last, n)) if *last == text => *n += 1,
            _ => counted.push((text, 1)),
        }
    }
    let term = |(text, n): (String, usize)| if n == 1 { text } else { format!("{n}·{text}") };
    let terms: Vec<String> = counted.into_iter().map(term).collect();
    terms.join(between)
}

/// The last operator is outermost: `bn(3×3)`.
fn sequence<T>(parts: &[Part<T>], shapes: bool) -> String {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let this = described(part, shapes);
        text = match (i, part.op()) {
            (0, _) => this,
            (_, Op::Sum(_) | Op::Select(_)) => format!("({this})({text})"),
            (_, Op::Scale(Factor::Number(_))) => format!("{this}·({text})"),
            _ => format!("{this}({text})"),
        };
    }
    text
}

fn conv<T>(kernel: &Kernel<T>, geometry: &Geometry, shapes: bool) -> String {
    let mut text = size(kernel.taps);
    if shapes {
        let numbers: Vec<String> = geometry
            .weight_shape()
            .iter()
            .map(usize::to_string)
            .collect();
        text = numbers.join("×");
    }
    let narrow = match kernel.layout {
        Layout::Transposed => geometry.out_per_group() == 1,
        Layout::Plain | Layout::Shared => geometry.in_per_group() == 1,
    };
    if narrow && !geometry.groups_known() && geometry.out() > 1 {
        // One input channel per group, and any number of groups.
        text = format!("dw? {text}");
    } else if narrow && geometry.groups() > 1 {
        text = format!("dw {text}");
    }
    match kernel.dilation {
        [1, 1, 1] => {}
        [1, a, b] if a == b => text += &format!(" d{a}"),
        [a, b, c] if a == b && b == c => text += &format!(" d{a}"),
        dilation => text += &format!(" d{}", size(dilation)),
    }
    if kernel.flipped {
        text += " flipped";
    }
    if kernel.layout == Layout::Transposed {
        text += "ᵀ";
    }
    match kernel.bias {
        Some(_) => text + "+b",
        None => text,
    }
}
