//! Two-dimensional convolution with the semantics of `torch.nn.Conv2d`, on f32 and f64 feature maps.
//!
//! ```text
//! y[n, o, i, j] = bias[o] + Σ_{c, u, v} weight[o, c, u, v] · x̃[n, g·C/G + c, i·s_h + u·d_h, j·s_w + v·d_w]
//! ```
//!
//! where `x̃` is the padded map, `G` the number of groups, `g = ⌊o / (O/G)⌋` the group of output channel `o`, and `s` and
//! `d` stride and dilation. This is a cross-correlation: the kernel is not flipped
//! (<https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html>).
//!
//! ```text
//! geometry ─► plan ─► planes ─┬─► pack ─► product      several input channels per group
//!                             └─► depthwise            one input channel per group
//! ```
//!
//! `plan` checks every shape before anything is allocated. `planes` pads a channel and separates it into the phases of
//! the stride, after which every convolution has stride 1. The dense path is a matrix product of the weight, read where
//! it lies, and the unrolled map (im2col), written in the order in which the product reads it.
//!
//! One sum is accumulated in one order, whatever the number of threads, so a result is reproducible on one kind of CPU.
//! Between kinds it may differ by rounding: a fused multiply-add is used where there is one.

pub mod block;
mod dense;
mod depthwise;
mod element;
mod error;
mod geometry;
mod pack;
mod plan;
mod planes;
mod product;

use ndarray::{Array4, ArrayView1, ArrayView4, Axis, CowArray, Ix4};

pub use element::Element;
pub use error::ConvError;
pub use geometry::{Conv2dGeometry, Padding, PaddingMode};

use plan::Plan;
use planes::Layout;

/// Convolves the feature maps `x`, of shape \[batch, channels, height, width\], with `weight`, of shape \[output channels,
/// channels / groups, kernel height, kernel width\], and adds one `bias` per output channel.
///
/// The result has the shape \[batch, output channels, output height, output width\]; along each axis the output length is
/// `⌊(padded − dilation·(kernel − 1) − 1) / stride⌋ + 1`.
///
/// Besides its result, a call holds the padded input of one group and an unrolled tile of at most 16 MiB, once per
/// group and image worked on at the same time.
///
/// # Errors
///
/// Every [`ConvError`] is found from the shapes and the geometry alone, before any arithmetic.
pub fn conv2d<F: Element>(
    x: ArrayView4<'_, F>,
    weight: ArrayView4<'_, F>,
    bias: Option<ArrayView1<'_, F>>,
    geometry: &Conv2dGeometry,
) -> Result<Array4<F>, ConvError> {
    let plan = Plan::new::<F>(x.dim(), weight.dim(), bias.map(|bias| bias.len()), geometry)?;
    let layout = Layout::new(&plan, geometry.padding_mode);
    let (x, weight) = (x.as_standard_layout(), weight.as_standard_layout());
    let (x, weight) = (values(&x), values(&weight));

    let mut y = Array4::zeros(plan.output_dim());
    if let Some(bias) = bias {
        y += &bias.insert_axis(Axis(1)).insert_axis(Axis(2));
    }
    let sums = y.as_slice_mut().expect("a new array is in standard layout");
    if plan.is_depthwise() {
        depthwise::accumulate(&plan, &layout, x, weight, sums);
    } else {
        dense::accumulate(&plan, &layout, x, weight, sums);
    }
    Ok(y)
}

/// The values of an array in standard layout.
fn values<'a, F>(array: &'a CowArray<'_, F, Ix4>) -> &'a [F] {
    array
        .as_slice()
        .expect("the array was put in standard layout")
}
