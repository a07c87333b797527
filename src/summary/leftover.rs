//! What looks like the branches of a block, and is left as it is.

use std::collections::BTreeMap;

use crate::algebra::Extent;
use crate::algebra::shape::weight_axes;
use crate::plan::{Plan, Source};

/// The channels and the extent of a conv.
type Axes = ([usize; 2], Extent);

/// The paths below which two convs of the same channels and of different extents are copied, each with a norm of its own beside it.
pub fn branches_left(plan: &Plan) -> Vec<String> {
    let copied: BTreeMap<&str, &[usize]> = plan
        .outputs
        .iter()
        .filter_map(|planned| match &planned.what {
            Source::Copy(tensor) => Some((tensor.name(), tensor.shape())),
            _ => None,
        })
        .collect();
    let mut convs: BTreeMap<&str, Vec<Axes>> = BTreeMap::new();
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
            convs.entry(block).or_default().push(axes);
        }
    }
    let is_block = |axes: &[Axes]| {
        let pairs = axes.iter().enumerate();
        pairs
            .into_iter()
            .any(|(i, a)| axes[..i].iter().any(|b| a.0 == b.0 && a.1 != b.1))
    };
    let found = convs.into_iter().filter(|(_, axes)| is_block(axes));
    found.map(|(block, _)| block.to_owned()).collect()
}

fn conv_axes(shape: &[usize]) -> Option<Axes> {
    (shape.len() >= 3).then(|| weight_axes(shape)).flatten()
}
