//! Which recipes a file is of.

use super::error::Error;
use super::expand::{Index, anywhere};
use super::model::Recipe;
use super::near::near_misses;
use super::pattern::Pattern;
use super::regions::{Family, families};
use super::segments::Segments;
use super::wrappers::seen_by_any;
use crate::tensor::Tensor;

/// Finds the recipes whose blocks are in the file, each with its part of it.
///
/// A recipe whose `when` holds fits better than one that asks for no evidence.
///
/// # Errors
/// When no recipe fits, naming the near misses; when several do equally well, naming them; when the file is in deploy form.
pub fn detect<'a>(index: &Index, recipes: &'a [Recipe]) -> Result<Vec<Family<'a>>, Error> {
    // What is ruled out by the names of the file is ruled out without the wrappers in them, too.
    let segments = Segments::of(index);
    let index = &*seen_by_any(index, recipes, &segments)?;
    let found = families(index, possible(&segments, recipes))?;
    match found.is_empty() {
        true => Err(nothing(index, recipes)),
        false => Ok(found),
    }
}

/// The recipes that the segments of the file's names do not rule out.
fn possible<'a>(segments: &Segments<'_>, recipes: &'a [Recipe]) -> Vec<&'a Recipe> {
    let allowed = |pattern: &Pattern| segments.allow(pattern);
    let possible = |recipe: &&Recipe| {
        let mut anchors = recipe.blocks.iter().flat_map(|rule| &rule.at);
        anchors.any(allowed) && recipe.when.iter().all(|any| any.iter().any(allowed))
    };
    recipes.iter().filter(possible).collect()
}

/// Finds the one recipe whose blocks are in the file.
///
/// # Errors
/// As for [`detect`], and when the file holds several families.
pub fn detect_one<'a>(index: &Index, recipes: &'a [Recipe]) -> Result<&'a Recipe, Error> {
    one(detect(index, recipes)?)
}

/// The one recipe of a file.
pub(super) fn one(families: Vec<Family<'_>>) -> Result<&Recipe, Error> {
    match families[..] {
        [Family { recipe, .. }] => Ok(recipe),
        _ => Err(Error::Several {
            recipes: families.iter().map(|f| f.recipe.name.clone()).collect(),
        }),
    }
}

/// Why there is nothing to fuse: the deploy form, or names that almost fit.
pub(crate) fn nothing(index: &Index, recipes: &[Recipe]) -> Error {
    match deployed(recipes, index) {
        Some(tensor) => Error::Deployed {
            tensor: tensor.to_string(),
        },
        None => Error::NoBlock {
            near: near_misses(index, recipes),
        },
    }
}

/// A tensor that only the deploy form of one of the recipes has.
pub fn deployed<'a>(recipes: &[Recipe], index: &'a Index) -> Option<&'a Tensor> {
    let segments = Segments::of(index);
    let names = recipes.iter().flat_map(|recipe| &recipe.deploy);
    names
        .filter(|name| segments.allow(name))
        .find_map(|name| anywhere(index, name).next())
        .map(|(tensor, _)| tensor)
}
