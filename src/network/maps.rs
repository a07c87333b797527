//! The proof on the user's own feature maps: a block with its padding and stride, as `torch.nn.Conv2d` has them.
//!
//! Both forms run on the same maps and are compared by the same bound as the probes of [`verify`](mod@crate::verify):
//! rounding a kernel and a bias with unit roundoff `u` moves an output by at most `u·(|K| ∗ |x| + |b|)`.

use ndarray::{Array4, ArrayView4};

use crate::algebra::Geometry;
use crate::algebra::forward::Reading;
use crate::conv2d::PaddingMode;
use crate::conv2d::block::{self, Placement, pad, run_part};
use crate::network::{self, deployed_conv};
use crate::plan::{Block, Plan, PlannedConv};
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Float, quoted};
use crate::verify::{
    Deployed, DeployedRows, Rounding, Shown, allowance_of, allowed, beyond, computed_in,
    deployed_rows, is_worse, made_in, ratio, worse,
};

/// How wide a border is added around the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// None.
    Valid,
    /// As much as keeps the size; an odd row or column goes to the bottom or right, as in PyTorch.
    Same,
    /// This many rows above and below, and columns left and right.
    Of([usize; 2]),
}

/// What no weight file stores.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Distance between outputs, `[height, width]`.
    pub stride: [usize; 2],
    /// The border around the maps.
    pub padding: Padding,
    /// What it holds.
    pub mode: PaddingMode,
    /// The largest difference that passes, in units of the rounding bound.
    pub tolerance: f64,
}

/// How the two forms of a block compare on maps.
#[derive(Clone, Debug)]
pub struct MapVerdict {
    /// The output module.
    pub module: String,
    /// The shape of the output maps.
    pub shape: [usize; 4],
    /// The worst difference in units of its bound.
    pub ratio: f64,
    /// The worst absolute difference.
    pub absolute: f64,
    /// The index `[map, channel, y, x]` of the worst ratio.
    pub at: [usize; 4],
    /// Whether it passes.
    pub accepted: bool,
}

/// Why maps cannot be compared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("no block takes maps of {channels} channels; the blocks take {known:?}")]
    NoBlock { channels: usize, known: Vec<usize> },
    #[error("the file of maps is empty")]
    Empty,
    #[error("the maps hold {value} at {at:?}; expected finite numbers")]
    NotFinite { value: f64, at: [usize; 4] },
    #[error("block {}", quoted(block))]
    Run { block: String, source: block::Error },
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Numbers(#[from] crate::fuse::diagnose::Error),
}

/// Runs blocks on maps: those that bear a block's name on that block, any other on every block whose width fits.
///
/// # Errors
/// When no block takes some maps, they are smaller than a kernel, or a value cannot be read.
pub fn verify_maps(
    checkpoint: &Checkpoint,
    plan: &Plan,
    deployed: Deployed<'_>,
    arrays: &[(Option<String>, Array4<f64>)],
    options: &Options,
) -> Result<Vec<MapVerdict>, Error> {
    if arrays.is_empty() {
        return Err(Error::Empty);
    }
    let convs: Vec<(&Block, &PlannedConv)> = plan
        .blocks
        .iter()
        .flat_map(|block| block.fused.iter().map(move |fused| (block, fused)))
        .collect();
    let made_in = made_in(checkpoint, plan, deployed)?;
    let mut verdicts = Vec::new();
    for (name, maps) in arrays {
        let channels = maps.dim().1;
        if let Some((at, value)) = maps.indexed_iter().find(|(_, x)| !x.is_finite()) {
            let (at, value) = (at.into(), *value);
            return Err(Error::NotFinite { value, at });
        }
        let named = |(block, fused): &&(&Block, &PlannedConv)| {
            name.as_ref()
                .is_some_and(|n| *n == block.name || *n == fused.module)
        };
        let fits = |(_, fused): &&(&Block, &PlannedConv)| widths(fused).contains(&channels);
        let by_name: Vec<_> = convs.iter().filter(named).collect();
        let chosen: Vec<_> = if by_name.is_empty() {
            convs.iter().filter(fits).collect()
        } else {
            by_name
        };
        if chosen.is_empty() {
            let mut known: Vec<usize> = convs.iter().flat_map(|(_, fused)| widths(fused)).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Error::NoBlock { channels, known });
        }
        for (_, fused) in chosen {
            verdicts.push(one(
                checkpoint,
                (fused, made_in),
                deployed,
                maps.view(),
                options,
            )?);
        }
    }
    Ok(verdicts)
}

/// The numbers of channels that a block may be applied to: a conv `[out, 1, kh, kw]` may be depthwise.
fn widths(fused: &PlannedConv) -> Vec<usize> {
    let g = fused.geometry();
    match !g.groups_known() && g.in_per_group() == 1 {
        true => vec![g.inputs(), g.out()],
        false => vec![g.inputs()],
    }
}

fn one(
    checkpoint: &Checkpoint,
    (fused, made_in): (&PlannedConv, Option<Float>),
    deployed: Deployed<'_>,
    maps: ArrayView4<'_, f64>,
    options: &Options,
) -> Result<MapVerdict, Error> {
    let g = fused.geometry();
    let placement = placement(g, options);
    let failed = |source: block::Error| Error::Run {
        block: fused.module.clone(),
        source,
    };
    let padded = pad(maps, &placement).map_err(failed)?;
    let block = fused.expr.for_inputs(padded.dim().1);
    let block = block.map_err(|e| failed(e.into()))?;
    let mut reader = Reader::new(checkpoint, 1 << 20);
    let mut trained = |part: &_, reading: Reading| {
        let x = padded.mapv(|x| reading.of(x));
        run_part(
            &block,
            part,
            x.view(),
            placement.stride,
            reading,
            &mut reader,
        )
        .map_err(failed)
    };
    let rows = deployed_rows(checkpoint, fused, deployed, 0..g.out())?;
    let stored = |reading: Reading| {
        let x = padded.mapv(|x| reading.of(x));
        deployed_conv(fused, &rows, x.view(), placement.stride, reading)
    };
    let ours = trained(block.root(), Reading::Value)?;
    let theirs = stored(Reading::Value)?;
    let magnitude = stored(Reading::Magnitude)?;
    let DeployedRows { bias, types, .. } = &rows;
    let types = computed_in(fused, deployed, *types, made_in);
    let largest = padded.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let rounding = Rounding {
        types,
        input: g.row_len() as f64 * largest,
    };
    let bound: Vec<f64> = magnitude
        .indexed_iter()
        .map(|((_, o, _, _), size)| rounding.of(*size, bias[o]))
        .collect();
    let off: Vec<f64> = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| (a - b).abs())
        .collect();
    let allowed = allowed(&off, bound, || {
        let float = types[0].min(types[1]);
        let values = |part: &_, reading| {
            let maps = trained(part, reading)?;
            Ok::<_, Error>(maps.iter().copied().collect())
        };
        let (allowance, input) = (allowance_of(deployed), rounding.input);
        beyond(allowance, float, |_| Shown::All, &block, input, values)
    })?;
    let mut verdict = MapVerdict {
        module: fused.module.clone(),
        shape: ours.dim().into(),
        ratio: 0.0,
        absolute: 0.0,
        at: [0; 4],
        accepted: false,
    };
    for ((at, _), (off, allowed)) in ours.indexed_iter().zip(off.iter().zip(&allowed)) {
        let ratio = ratio(*off, *allowed);
        verdict.absolute = worse(verdict.absolute, *off);
        if is_worse(ratio, verdict.ratio) {
            (verdict.ratio, verdict.at) = (ratio, at.into());
        }
    }
    verdict.accepted = verdict.ratio <= options.tolerance;
    Ok(verdict)
}

/// How a conv is put on the maps.
fn placement(g: &Geometry, options: &Options) -> Placement {
    Placement {
        stride: options.stride,
        padding: match options.padding {
            Padding::Valid => [[0, 0]; 2],
            Padding::Same => Placement::same(g, 1).padding,
            Padding::Of([rows, columns]) => [[rows; 2], [columns; 2]],
        },
        mode: options.mode,
    }
}
