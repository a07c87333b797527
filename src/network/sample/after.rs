//! Norms that stand beside a block and act after it: an output that was recorded behind one has gone through it.

use ndarray::{Array4, Axis};

use crate::algebra::Values;
use crate::plan::{Block, Plan, Source};
use crate::recipe::model::NORM;
use crate::tensor::{Checkpoint, Error, Reader, Tensor};

/// A norm beside a block, as a factor and a constant for each channel.
pub(super) struct After {
    /// Its module.
    pub module: String,
    pub scale: Vec<f64>,
    shift: Vec<f64>,
    /// What the sizes of the constant's two terms add up to.
    size: Vec<f64>,
}

/// The norms that are copied and stand directly in a block, with as many channels as it puts out.
///
/// # Errors
/// When one cannot be read.
pub(super) fn norms_after(
    checkpoint: &Checkpoint,
    plan: &Plan,
    block: &Block,
    channels: usize,
) -> Result<Vec<After>, Error> {
    let number = plan
        .blocks
        .iter()
        .position(|other| std::ptr::eq(other, block));
    let family = number.and_then(|n| plan.families.iter().find(|f| f.blocks.contains(&n)));
    let Some(eps) = family.and_then(|family| family.eps) else {
        return Ok(Vec::new());
    };
    let mut reader = Reader::new(checkpoint, 1 << 16);
    let mut found = Vec::new();
    for planned in &plan.outputs {
        let Source::Copy(mean) = &planned.what else {
            continue;
        };
        let module = mean.name().strip_suffix(&format!(".{}", NORM[2]));
        let Some(module) = module.filter(|module| stands_in(module, &block.name)) else {
            continue;
        };
        let vectors = NORM.map(|end| checkpoint.get(&format!("{module}.{end}")));
        let [Some(weight), Some(bias), Some(mean), Some(var)] = vectors else {
            continue;
        };
        let fits = |tensor: &&Tensor| tensor.shape() == [channels];
        if [weight, bias, mean, var].iter().all(fits) {
            let mut read = |tensor| reader.vector(tensor, 0, channels);
            let [weight, bias, mean, var] = [read(weight)?, read(bias)?, read(mean)?, read(var)?];
            let factor = |i: usize| weight[i] / (var[i] + eps).sqrt();
            let each = |of: &dyn Fn(usize) -> f64| (0..channels).map(of).collect();
            found.push(After {
                module: module.to_owned(),
                scale: each(&factor),
                shift: each(&|i| bias[i] - mean[i] * factor(i)),
                size: each(&|i| bias[i].abs() + (mean[i] * factor(i)).abs()),
            });
        }
    }
    Ok(found)
}

/// Whether a module is a direct part of a block.
fn stands_in(module: &str, block: &str) -> bool {
    let rest = match block {
        "" => Some(module),
        _ => module
            .strip_prefix(block)
            .and_then(|rest| rest.strip_prefix('.')),
    };
    rest.is_some_and(|rest| !rest.contains('.'))
}

impl After {
    /// What the norm makes of maps.
    pub(super) fn of(&self, maps: &Array4<f64>) -> Array4<f64> {
        self.each(maps, |x, c| x * self.scale[c] + self.shift[c])
    }

    /// What it makes of what they may be off by, with its own few roundings.
    pub(super) fn off(&self, value: &Array4<f64>, off: &Array4<f64>, unit: f64) -> Array4<f64> {
        let own = self.each(value, |x, c| {
            4.0 * unit * ((x * self.scale[c]).abs() + self.size[c])
        });
        self.each(off, |x, c| x * self.scale[c].abs()) + own
    }

    fn each(&self, maps: &Array4<f64>, f: impl Fn(f64, usize) -> f64) -> Array4<f64> {
        let mut maps = maps.clone();
        for (c, mut channel) in maps.axis_iter_mut(Axis(1)).enumerate() {
            channel.mapv_inplace(|x| f(x, c));
        }
        maps
    }
}
