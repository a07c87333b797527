//! What to do about a tensor that a block's recipe does not know.

use std::collections::BTreeSet;

use crate::plan::{self, Block, Options, Plan};
use crate::recipe::{self, Family, Index, Recipe};
use crate::tensor::plain;

/// So many tensors are set aside to see what the others of a block are.
const SET_ASIDE: usize = 16;

/// The remedies. `of` is the recipe that the block was taken for.
pub(super) fn advice(
    [name, recipe, block]: [&str; 3],
    of: Option<&Family<'_>>,
    index: &Index,
    options: &Options,
) -> String {
    let own = of.and_then(|of| known_of(of.recipe, name, block, index, options));
    let known = own.map_or(String::new(), |own| {
        known_by_others(name, recipe, &own, index, options)
    });
    format!(
        "{known}pass `--beside '{}'` if it acts after the block, `--skip '{}'` to leave the block as it is, or a recipe of your own that says what it does (`repfuse recipes {recipe}` prints this one)",
        plain(name),
        plain(block)
    )
}

/// The tensors that a recipe fuses in a block, were the strange ones not there.
fn known_of(
    recipe: &Recipe,
    name: &str,
    block: &str,
    index: &Index,
    options: &Options,
) -> Option<BTreeSet<String>> {
    let mut options = options.clone();
    let mut next = name.to_owned();
    for _ in 0..SET_ASIDE {
        if options.beside.contains(&next) {
            return None;
        }
        options.beside.push(next);
        match plan::plan(index, recipe, &options) {
            Ok(plan) => {
                let mut blocks = plan.blocks().iter();
                return blocks.find(|other| other.name() == block).map(leaves);
            }
            Err(recipe::Error::Stranger { name, .. }) => next = name,
            Err(_) => return None,
        }
    }
    None
}

/// What a block is computed from.
fn leaves(block: &Block) -> BTreeSet<String> {
    let convs = block.fused().iter();
    let leaves = convs.flat_map(|conv| conv.expr().root().leaves());
    leaves.map(|leaf| leaf.name().to_owned()).collect()
}

/// The recipes that have a place for the tensor in one block with all that the block is known by. (Many know any conv and norm.)
fn known_by_others(
    name: &str,
    of: &str,
    own: &BTreeSet<String>,
    index: &Index,
    options: &Options,
) -> String {
    let knows = |recipe: &Recipe| {
        let plan = plan::plan(index, recipe, options).ok();
        let mut blocks = plan.iter().flat_map(Plan::blocks);
        blocks.any(|block| {
            let used = leaves(block);
            used.contains(name) && used.is_superset(own)
        })
    };
    let recipes = recipe::builtin().unwrap_or_default();
    let others = recipes.iter().filter(|recipe| recipe.name != of);
    let knowing: Vec<String> = others
        .filter(|recipe| knows(recipe))
        .map(|recipe| format!("`--recipe {}`", recipe.name))
        .collect();
    match knowing.is_empty() {
        true => String::new(),
        false => format!("{} knows it; ", knowing.join(" or ")),
    }
}
