//! What is in a file: blocks, other convs, totals. Only the header is read.

use std::collections::{BTreeMap, HashSet};

use crate::algebra::extent::POINT;
use crate::algebra::shape::weight_axes;
use crate::plan::{self, Options, Plan};
use crate::recipe::{self, Recipe};
use crate::tensor::{Checkpoint, Tensor};

/// Whether a file is to be fused or has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Every block has its branches.
    Training,
    /// Blocks have been fused.
    Deploy,
    /// Some have and some have not, or both forms of a block are there.
    Mixed,
    /// No known family.
    Unknown,
}

/// How a conv connects channels, as far as its weight tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Every input channel reaches every output channel, or the groups cannot be seen.
    Dense,
    /// Each output channel sees one input channel, and whether it is that of its group or the only one, the weight does not tell.
    PerhapsDepthwise,
    /// 1×1: no pixel sees its neighbours.
    Pointwise,
}

/// What is known about a file from its header.
#[derive(Debug)]
pub struct Inspection {
    /// Training or deploy form.
    pub form: Form,
    /// The plan, if a recipe fits.
    pub plan: Option<Plan>,
    /// Why no recipe fits, otherwise.
    pub trouble: Option<recipe::Error>,
    /// Convs outside blocks.
    pub convs: Vec<(Tensor, Class)>,
    /// Elements by element type.
    pub dtypes: BTreeMap<String, u64>,
    /// Learned numbers: floating-point elements, running statistics left out.
    pub parameters: u64,
}

/// Inspects a file by one recipe, or by all of them.
///
/// # Errors
/// When a built-in recipe cannot be read; that no recipe fits is part of the answer.
pub fn inspect(
    checkpoint: &Checkpoint,
    recipe: Option<&Recipe>,
    options: &Options,
) -> Result<Inspection, recipe::Error> {
    let index = checkpoint.tensors();
    let recipes = recipe.map_or_else(|| recipe::builtin_near(index), |r| Ok(vec![r.clone()]))?;
    let planned = match recipe {
        Some(recipe) => plan::plan(index, recipe, options),
        None => recipe::detect_builtin(index, &recipes)
            .and_then(|found| plan::plan_families(index, &found, options)),
    };
    let deployed = recipe::deployed(&recipes, index).is_some()
        || checkpoint
            .metadata()
            .iter()
            .any(|(key, _)| key.starts_with(crate::fuse::METADATA_PREFIX));
    let form = match (&planned, deployed) {
        (Ok(_), false) => Form::Training,
        (Ok(_), true) => Form::Mixed,
        (Err(_), true) => Form::Deploy,
        (Err(_), false) => Form::Unknown,
    };
    let (plan, trouble) = planned.map_or_else(|e| (None, Some(e)), |plan| (Some(plan), None));
    Ok(Inspection {
        trouble,
        ..of_plan(checkpoint, plan, form)
    })
}

/// What is known about a file of which the plan is known.
pub fn of_plan(checkpoint: &Checkpoint, plan: Option<Plan>, form: Form) -> Inspection {
    let index = checkpoint.tensors();
    let blocks = plan.iter().flat_map(|plan| &plan.blocks);
    let in_blocks: HashSet<&str> = blocks
        .flat_map(|block| &block.consumed)
        .map(Tensor::name)
        .collect();
    let outside = index.values().filter(|t| !in_blocks.contains(t.name()));
    let convs = outside
        .filter_map(|t| Some((t.clone(), class_of(t)?)))
        .collect();
    let mut dtypes = BTreeMap::new();
    for tensor in index.values() {
        // The shape of a tensor of an unknown type need not fit the bytes it has, and says anything.
        let count: &mut u64 = dtypes.entry(tensor.dtype().to_string()).or_default();
        *count = count.saturating_add(tensor.len() as u64);
    }
    Inspection {
        form,
        plan,
        trouble: None,
        convs,
        dtypes,
        parameters: crate::summary::cost::parameters(index.values()),
    }
}

/// The class of a conv weight, or `None` for what is none.
///
/// Groups are not stored: a weight with one input channel may be depthwise, or dense over a single channel.
pub fn class_of(tensor: &Tensor) -> Option<Class> {
    let shape = tensor.shape();
    if !(4..=5).contains(&shape.len()) || !tensor.name().ends_with("weight") {
        return None;
    }
    let ([out, per_group], taps) = weight_axes(shape)?;
    Some(match (per_group, taps) {
        (1, _) if out > 1 => Class::PerhapsDepthwise,
        (_, POINT) => Class::Pointwise,
        _ => Class::Dense,
    })
}
