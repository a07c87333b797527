//! One plan for a file of several families: each has its own part of the file.

use std::ops::Range;

use super::select::Select;
use super::{EpsSource, Options, Plan, closed, copies, keep_within, ledger_of, without, wrapped};
use crate::recipe::bounds::Bounds;
use crate::recipe::expand::{Index, MatchBudget};
use crate::recipe::{Error, Family, Recipe, seen_through, split};

/// A recipe that a plan is made by.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Its name.
    pub recipe: String,
    /// The eps of its batch norms, if it has any.
    pub eps: Option<f64>,
    /// Who decided it.
    pub eps_source: EpsSource,
    /// Who else uses these names with another eps.
    pub eps_note: Option<String>,
    /// Who else uses these names with another bare identity.
    pub identity_note: Option<String>,
    /// What decides a factor that no file holds, and that the recipe takes for 1.
    pub factor_note: Option<String>,
    /// The recipe of the network that its blocks are guests in.
    pub host: Option<String>,
    /// The paths that its part of the file is below; an empty one is the whole file.
    pub at: Vec<String>,
    /// The numbers of its blocks in the plan.
    pub blocks: Range<usize>,
}

/// Plans a file by the recipes of its families. Blocks of a guest have the eps of their host.
///
/// # Errors
/// As for [`plan`](super::plan), and when an eps is given for a recipe that is none of these.
pub fn plan_families(
    index: &Index,
    families: &[Family<'_>],
    options: &Options,
) -> Result<Plan, Error> {
    let names = || families.iter().map(|family| family.recipe.name.clone());
    let of_none = options
        .bn_eps_of
        .iter()
        .find(|(of, _)| !names().any(|name| name == *of));
    if let Some((recipe, _)) = of_none {
        return Err(Error::EpsOfNone {
            recipe: recipe.clone(),
            known: names().collect(),
        });
    }
    if let [family] = families {
        return super::plan(index, family.recipe, options);
    }
    let (dropped, kept) = without::split(index, &options.drop)?;
    let recipes: Vec<&Recipe> = families.iter().map(|family| family.recipe).collect();
    let index = &*seen_through(kept.as_ref().unwrap_or(index), &recipes)?;
    let select = Select::new(&options.only, &options.skip)?;
    closed::expect_beside(&options.beside, index)?;
    let mut whole: Option<Plan> = None;
    let (parts, rest) = split(index, families);
    for (family, part) in families.iter().zip(parts) {
        let plan = plan_part(&part, family, options, &select)?;
        match &mut whole {
            None => whole = Some(plan),
            Some(whole) => whole.append(plan),
        }
    }
    let Some(mut plan) = whole else {
        return Err(Error::NoBlock { near: Vec::new() });
    };
    if plan.blocks.is_empty() {
        return Err(Error::NoneSelected {
            blocks: plan.skipped.len(),
        });
    }
    select.expect_used()?;
    closed::expect_not_fused(&options.beside, index, &plan.blocks)?;
    let rest = rest.iter();
    plan.outputs
        .extend(rest.flat_map(|tensor| copies(tensor, tensor.name())));
    plan.dropped.extend(dropped);
    wrapped::restore(&mut plan, index.values());
    plan.without_clashes()
}

/// Plans the part of a file that a family has.
fn plan_part(
    part: &Index,
    family: &Family<'_>,
    options: &Options,
    select: &Select,
) -> Result<Plan, Error> {
    let own = eps_of(family.recipe, options);
    let host = family.host.filter(|_| own.is_none());
    let options = Options {
        bn_eps: own.or_else(|| host.and_then(|host| eps_of(host, options))),
        ..options.clone()
    };
    // What the file itself says goes before what the host would have. A host without norms has none to give.
    let of_host = host.and_then(|host| host.eps);
    let guest = of_host.map(|eps| Recipe {
        eps: Some(eps),
        ..family.recipe.clone()
    });
    let by_host = of_host.is_some() || (host.is_some() && options.bn_eps.is_some());
    let recipe = guest.as_ref().unwrap_or(family.recipe);
    let bounds = Bounds::of(recipe, part);
    let (part, outside) = bounds.split(part);
    let budget = MatchBudget::default();
    let mut plan = ledger_of(&part, recipe, &options, select, &budget)?.finish(select)?;
    for applied in &mut plan.families {
        applied.at = family.at.clone();
        applied.host = family.host.map(|host| host.name.clone());
        let told = applied.eps_source == EpsSource::File;
        if by_host && applied.eps.is_some() && !told {
            applied.eps_source = EpsSource::Host;
        }
    }
    keep_within(&mut plan, &bounds, &part, outside);
    Ok(plan)
}

/// The eps that a user gave for a recipe.
fn eps_of(recipe: &Recipe, options: &Options) -> Option<f64> {
    let own = options.bn_eps_of.iter().find(|(of, _)| *of == recipe.name);
    own.map(|(_, eps)| *eps).or(options.bn_eps)
}
