//! What looks like the branches of a block, and is left as it is.

use std::collections::BTreeMap;

use crate::algebra::Extent;
use crate::algebra::shape::weight_axes;
use crate::plan::{Plan, Source};

/// The channels and the extent of a conv.
type Axes = ([usize; 2], Extent);

/// The paths below which convs of the same channels and of different extents are copied, each with a norm of its own in a module of its
/// own, and no convs of other channels.
pub fn branches_left(plan: &Plan) -> Vec<String> {
    let copied: BTreeMap<&str, &[usize]> = plan
        .outputs
        .iter()
        .filter_map(|planned| match &planned.what {
            Source::Copy(tensor) => Some((tensor.name(), tensor.shape())),
            _ => None,
        })
        .collect();
    // By block, the convs of each module in it.
    let mut convs: BTreeMap<&str, BTreeMap<&str, Vec<Axes>>> = BTreeMap::new();
    for (name, shape) in &copied {
        let Some((module, axes)) = name.strip_suffix(".weight").zip(conv_axes(shape)) else {
            continue;
        };
        // A branch is a module that holds a conv and its norm.
        let Some((branch, _)) = module.rsplit_once('.') else {
            continue;
        };
        let Some((block, _)) = branch.rsplit_once('.') else {
            continue;
        };
        let start = format!("{branch}.");
        let norms = copied.range(start.as_str()..);
        let mut inside = norms.take_while(|(name, _)| name.starts_with(&start));
        if inside.any(|(name, _)| name.ends_with(".running_var")) {
            let branches = convs.entry(block).or_default();
            branches.entry(branch).or_default().push(axes);
        }
    }
    // Branches hold one conv each and give the same channels from the same; where the channels go on to others, the convs stand one behind
    // another, as in a bottleneck.
    let is_block = |branches: &BTreeMap<&str, Vec<Axes>>| {
        let alone = branches.values().map(|convs| match convs[..] {
            [conv] => Some(conv),
            _ => None,
        });
        let Some(convs) = alone.collect::<Option<Vec<Axes>>>() else {
            return false;
        };
        let Some(((channels, extent), others)) = convs.split_first() else {
            return false;
        };
        others.iter().all(|other| other.0 == *channels)
            && others.iter().any(|other| other.1 != *extent)
    };
    // What the user leaves as it is is no news.
    let is_skipped = |block: &str| plan.skipped.iter().any(|skipped| skipped == block);
    let found = convs
        .into_iter()
        .filter(|(block, branches)| is_block(branches) && !is_skipped(block));
    found.map(|(block, _)| block.to_owned()).collect()
}

fn conv_axes(shape: &[usize]) -> Option<Axes> {
    (shape.len() >= 3).then(|| weight_axes(shape)).flatten()
}
