//! What a fused conv has to be built with, besides its shape: the tensors of a file do not tell it, and the convs of a pickled
//! module do.

use super::PlannedConv;
use super::facts::axes;
use super::padding::mode;
use crate::algebra::extent::POINT;

/// What is unlike a plain conv as the recipe has it, each as an argument of `torch.nn.Conv2d`: `padding_mode='reflect'`,
/// `dilation=(2, 2)`.
pub fn built_with(conv: &PlannedConv) -> Vec<String> {
    let convs = || conv.expr().root().convs().into_iter();
    let mode = convs().find_map(|(conv, _)| mode(&conv.weight).filter(|mode| *mode != "zeros"));
    let spread = convs().find_map(|(conv, _)| {
        let axes_there = conv.weight.shape().len().checked_sub(2)?;
        let told = axes(&conv.weight, "dilation")?;
        let wider = [0, 1, 2].map(|i| match conv.taps[i] {
            1 => 1,
            _ => told[i].checked_div(conv.dilation[i]).unwrap_or(1),
        });
        let of_kernel = wider.len().checked_sub(axes_there)?;
        (wider != POINT).then(|| wider[of_kernel..].to_vec())
    });
    let mode = mode.map(|mode| format!("padding_mode='{mode}'"));
    let dilation = spread.map(|counts| {
        let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
        format!("dilation=({})", counts.join(", "))
    });
    mode.into_iter().chain(dilation).collect()
}
