//! Folds a RepVGG with timm's names on candle's tensors: `candle-fuse IN OUT`.
//!
//! As one would write it: load, fold each block with whole-tensor operations in the stored type, save.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};

/// timm's default.
const EPS: f64 = 1e-5;

type Tensors = HashMap<String, Tensor>;

fn take(tensors: &mut Tensors, name: &str) -> Result<Tensor> {
    tensors.remove(name).with_context(|| format!("no `{name}`"))
}

/// A batch norm as a scale and a shift, each `[out]`.
fn norm(tensors: &mut Tensors, module: &str) -> Result<(Tensor, Tensor)> {
    tensors.remove(&format!("{module}.num_batches_tracked"));
    let mut part = |end: &str| take(tensors, &format!("{module}.{end}"));
    let (weight, bias) = (part("weight")?, part("bias")?);
    let (mean, var) = (part("running_mean")?, part("running_var")?);
    let scale = (weight / (var + EPS)?.sqrt()?)?;
    let shift = (bias - (mean * &scale)?)?;
    Ok((scale, shift))
}

/// A conv and its batch norm as a kernel `[out, in, k, k]` and a bias `[out]`.
fn branch(tensors: &mut Tensors, module: &str) -> Result<(Tensor, Tensor)> {
    let weight = take(tensors, &format!("{module}.conv.weight"))?;
    let (scale, shift) = norm(tensors, &format!("{module}.bn"))?;
    Ok((weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?, shift))
}

/// A pointwise kernel in the middle of a 3×3 one.
fn widen(kernel: &Tensor) -> Result<Tensor> {
    Ok(kernel.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?)
}

fn fold(tensors: &mut Tensors, block: &str) -> Result<(Tensor, Tensor)> {
    let (mut kernel, mut bias) = branch(tensors, &format!("{block}.conv_kxk"))?;
    let (point, shift) = branch(tensors, &format!("{block}.conv_1x1"))?;
    (kernel, bias) = ((kernel + widen(&point)?)?, (bias + shift)?);
    let identity = format!("{block}.identity");
    if tensors.contains_key(&format!("{identity}.weight")) {
        let (scale, shift) = norm(tensors, &identity)?;
        let eye = Tensor::eye(scale.dim(0)?, DType::F32, &Device::Cpu)?;
        let point = eye.broadcast_mul(&scale.reshape(((), 1))?)?;
        let point = point.unsqueeze(2)?.unsqueeze(3)?;
        (kernel, bias) = ((kernel + widen(&point)?)?, (bias + shift)?);
    }
    Ok((kernel, bias))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = &arguments[..] else {
        bail!("usage: candle-fuse IN OUT");
    };
    let mut tensors = candle_core::safetensors::load(input, &Device::Cpu)?;
    let first = ".conv_kxk.conv.weight";
    let mut blocks: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(first).map(str::to_owned))
        .collect();
    blocks.sort();
    for block in blocks {
        let (kernel, bias) = fold(&mut tensors, &block)?;
        tensors.insert(format!("{block}.reparam_conv.weight"), kernel);
        tensors.insert(format!("{block}.reparam_conv.bias"), bias);
    }
    candle_core::safetensors::save(&tensors, output)?;
    Ok(())
}
