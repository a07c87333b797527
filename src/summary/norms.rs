//! Which norms of a file are folded, and which are left.

use crate::plan::{Plan, Source};
use crate::tensor::{Checkpoint, Tensor};

/// The norms of a file that keep running statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Norms {
    /// How many there are.
    pub all: usize,
    /// Those that the output still has, in the order of their names, each with why if that is known.
    pub left: Vec<(String, Option<String>)>,
}

/// Counts the norms of a plan.
pub fn norms(checkpoint: &Checkpoint, plan: &Plan) -> Norms {
    let module = |tensor: &Tensor| {
        let module = tensor.name_in_file().strip_suffix(".running_var")?;
        let mean = format!("{module}.running_mean");
        checkpoint.get(&mean).map(|_| module.to_owned())
    };
    let copied = plan
        .outputs
        .iter()
        .filter_map(|planned| match &planned.what {
            Source::Copy(tensor) | Source::Round(tensor, _) => module(tensor),
            _ => None,
        });
    let mut left: Vec<_> = copied.map(|norm| (why(&norm, plan), norm)).collect();
    left.sort_by(|a, b| a.1.cmp(&b.1));
    Norms {
        all: checkpoint.tensors().values().filter_map(module).count(),
        left: left.into_iter().map(|(why, norm)| (norm, why)).collect(),
    }
}

/// Why a norm is left, as far as the plan tells: it stands beside a module that is left, or in one.
fn why(norm: &str, plan: &Plan) -> Option<String> {
    let parent = |path: &str| {
        path.rsplit_once('.')
            .map_or("", |(parent, _)| parent)
            .to_owned()
    };
    let beside = parent(norm);
    let mut left = plan.left.iter();
    let found = left.find(|left| left.module == beside || parent(&left.module) == beside);
    let skipped = || {
        let below = |block: &String| norm.strip_prefix(block.as_str())?.strip_prefix('.');
        plan.skipped.iter().any(|block| below(block).is_some())
    };
    match found {
        Some(left) => Some(left.why.clone()),
        None => skipped().then(|| "skipped".to_owned()),
    }
}
