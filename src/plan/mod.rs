//! The plan: what becomes of every tensor of a file, decided from names and shapes alone.
//!
//! The ledger: each input tensor is fused, dropped by name, or copied, exactly once, and output names are unique.

mod agree;
mod build;
mod classes;
pub(crate) mod closed;
mod counters;
mod facts;
mod families;
mod idle;
mod join;
mod known;
mod leave;
mod ledger;
mod leftover;
mod model;
mod padding;
mod parts;
pub(crate) mod path;
mod prefix;
pub(crate) mod select;
mod structure;
mod without;
mod wrapped;

pub(crate) use crate::recipe::pattern::within;
pub use build::built_with;
pub use families::{Applied, plan_families};
pub use idle::idle;
pub(crate) use model::WeightOrBias;
pub use model::{Block, EpsSource, Left, Options, Plan, Planned, PlannedConv, Source};
pub use select::glob;

use self::ledger::{Fate, Ledger};
use self::select::Select;
use crate::algebra::{GeometryError, Part};
use crate::recipe::bounds::Bounds;
use crate::recipe::detect::nothing;
use crate::recipe::expand::{Index, MatchBudget};
use crate::recipe::model::Recipe;
use crate::recipe::pattern::covers;
use crate::recipe::start::{is_start, possible_starts};
use crate::recipe::{Error, seen_through};
use crate::tensor::{Dtype, Float, Output, Tensor};

/// Plans a file by a recipe.
///
/// # Errors
/// When a block is not whole, shapes do not fit, an owned tensor is left over, or two outputs share a name.
pub fn plan(index: &Index, recipe: &Recipe, options: &Options) -> Result<Plan, Error> {
    let (dropped, rest) = without::split(index, &options.drop)?;
    let index = &*seen_through(rest.as_ref().unwrap_or(index), &[recipe])?;
    let select = Select::new(&options.only, &options.skip)?;
    closed::expect_beside(&options.beside, index)?;
    let bounds = Bounds::of(recipe, index);
    let (part, outside) = bounds.split(index);
    let budget = MatchBudget::default();
    let mut ledger = ledger_of(&part, recipe, options, &select, &budget)?;
    ledger.dropped = dropped;
    match (
        ledger.blocks.len(),
        ledger.skipped.len(),
        ledger.stranger.take(),
    ) {
        (0, 0, Some(module)) => Err(module.refused(&recipe.name)),
        (0, 0, None) => Err(match nothing(index, std::slice::from_ref(recipe)) {
            Error::NoBlock { near } => Error::NoBlockOf {
                recipe: recipe.name.clone(),
                near,
            },
            other => other,
        }),
        (0, blocks, _) => Err(Error::NoneSelected { blocks }),
        _ => {
            let mut plan = ledger.finish(&select)?;
            keep_within(&mut plan, &bounds, &part, outside);
            select.expect_used()?;
            closed::expect_not_fused(&options.beside, index, &plan.blocks)?;
            wrapped::restore(&mut plan, index.values());
            plan.without_clashes()
        }
    }
}

/// Adds to the plan of a recipe's part of a file what stands outside of it.
fn keep_within(plan: &mut Plan, bounds: &Bounds<'_>, part: &Index, outside: Vec<&Tensor>) {
    if outside.is_empty() {
        return;
    }
    let copied = outside.into_iter();
    plan.outputs
        .extend(copied.flat_map(|tensor| copies(tensor, tensor.name())));
    for family in &mut plan.families {
        family.at = bounds.modules_in(part).into_iter().collect();
    }
}

/// Enters every block of a recipe.
fn ledger_of<'a>(
    index: &'a Index,
    recipe: &'a Recipe,
    options: &'a Options,
    select: &Select,
    budget: &'a MatchBudget,
) -> Result<Ledger<'a>, Error> {
    let mut ledger = Ledger::new(index, recipe, options, budget);
    ledger.refuse_parts(select)?;
    let mut unknown = Vec::new();
    for start in possible_starts(recipe, index, budget) {
        let name = start.anchor.name();
        // Most anchors are found once for every tensor of their norm: the first has taken the others.
        if ledger.taken.contains_key(name)
            || recipe.drop.iter().any(|p| covers(p, name).is_some())
            || !is_start(&start, index)
        {
            continue;
        }
        match classes::unknown(&start).filter(|_| !options.by_names) {
            Some(module) => unknown.push((start, module)),
            None => ledger.block(&start, select)?,
        }
    }
    budget.may_go_on().map_err(|message| Error::Block {
        block: recipe.name.clone(),
        message,
    })?;
    for (start, module) in unknown {
        // Another rule may have known it.
        if !ledger.taken.contains_key(start.anchor.name()) {
            ledger.leave(&start, &module.module);
            select.skips(&module.module);
            ledger.left.push(module.left());
            ledger.stranger.get_or_insert(module);
        }
    }
    Ok(ledger)
}

/// A block is stored in the type of its conv weights, the widest if they differ.
pub(crate) fn stored_type(root: &Part<Tensor>) -> Result<Float, String> {
    let float = |leaf: &Tensor| {
        if let Some(why) = leaf.unread() {
            return Err(format!("{leaf} {why}"));
        }
        leaf.dtype().float().ok_or_else(|| {
            format!(
                "{leaf} has dtype {}, which no arithmetic is defined for; expected F64, F32, F16 or BF16",
                leaf.dtype()
            )
        })
    };
    for leaf in root.leaves() {
        float(leaf)?;
    }
    let convs = root.convs().into_iter();
    let mut types = convs.map(|(conv, _)| float(&conv.weight));
    let no_conv = || GeometryError::NoConv.to_string();
    let first = types.next().ok_or_else(no_conv)??;
    types.try_fold(first, |widest, float| Ok(widest.wider(float?)))
}

pub(crate) fn planned(name: String, dtype: Float, shape: Vec<usize>, what: Source) -> Planned {
    let byte_len = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
    Planned {
        output: Output {
            name,
            dtype: Dtype::from(dtype),
            shape,
            byte_len,
        },
        what,
    }
}

pub(crate) fn copy(tensor: &Tensor, name: String) -> Planned {
    let tensor = &tensor.as_it_lies();
    let output = Output {
        name,
        dtype: tensor.dtype().clone(),
        shape: tensor.shape().to_vec(),
        byte_len: tensor.byte_len(),
    };
    Planned {
        output,
        what: Source::Copy(tensor.clone()),
    }
}

/// A copy of a tensor under a name; of one that is computed, copies of what the file has of it.
fn copies(tensor: &Tensor, to: &str) -> Vec<Planned> {
    let module = |name: &str| {
        name.rsplit_once('.')
            .map_or(0, |(module, _)| module.len() + 1)
    };
    match tensor.parts() {
        [] => vec![copy(tensor, to.to_owned())],
        parts => {
            let of_file = tensor.name_in_file();
            let [from, to] = [&of_file[..module(of_file)], &to[..module(to)]];
            let named = |part: &Tensor| {
                format!(
                    "{to}{}",
                    part.name().strip_prefix(from).unwrap_or(part.name())
                )
            };
            parts.iter().map(|part| copy(part, named(part))).collect()
        }
    }
}
