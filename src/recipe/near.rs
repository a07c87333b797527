//! What a file almost is: for the error when no block is found, and for tensors that belong to half a block.

use std::collections::BTreeSet;

use super::detect::{Segments, anchors, misfit};
use super::expand::{Index, anywhere, names};
use super::model::{BlockRule, Recipe};
use super::pattern::{Captures, Pattern};
use crate::tensor::{Tensor, quoted};

/// How many near misses an error names.
const SHOWN: usize = 3;

/// Sentences such as "`stage1.0` looks like `repvgg` but `…` is missing".
pub(crate) fn near_misses(index: &Index, recipes: &[Recipe]) -> Vec<String> {
    let mut lines = Vec::new();
    let evident = |recipe: &&Recipe| {
        let there = |pattern| anywhere(index, pattern).next().is_some();
        recipe.when.iter().all(|any| any.iter().any(there)) && !recipe.unless.iter().any(there)
    };
    let segments = Segments::of(index);
    let owns_some = |recipe: &&Recipe| recipe.owns.iter().any(|owned| segments.have(owned));
    for recipe in recipes.iter().filter(owns_some).filter(evident) {
        let mut looked_at = BTreeSet::new();
        for tensor in index.values() {
            let new = |place: &String| looked_at.insert(place.clone());
            let Some(place) = place_of(recipe, tensor).filter(new) else {
                continue;
            };
            if let Some(missing) = lacks(recipe, &place, index) {
                lines.push(format!(
                    "{} looks like `{}` but {missing} is missing",
                    quoted(&place),
                    recipe.name
                ));
                break;
            }
        }
    }
    // What the names that only one family has say outweighs what any other looks like.
    let recipes = if lines.is_empty() { recipes } else { &[] };
    for recipe in recipes {
        let possible = |rule: &&BlockRule| rule.at.iter().any(|p| segments.allow(p));
        for rule in recipe.blocks.iter().filter(possible) {
            // Without shapes to check, an anchor alone is too weak a sign to be named.
            let miss = anchors(rule, index)
                .filter(|_| !rule.shapes.is_empty())
                .find_map(|start| Some((misfit(&start, index)?, start)));
            if let Some((reason, start)) =
                miss.filter(|_| recipe.unless.is_empty() && recipe.when.is_empty())
            {
                let path = rule.path(&start.captures).filter(|path| !path.is_empty());
                let place = path.unwrap_or(start.anchor.name());
                lines.push(format!(
                    "{} looks like `{}` but {reason}",
                    quoted(place),
                    recipe.name
                ));
            } else if let Some(start) = anchors(rule, index)
                .find(|start| !rule.shapes.is_empty() && misfit(start, index).is_none())
            {
                let there = |pattern| anywhere(index, pattern).next().is_some();
                let absent = recipe.when.iter().find(|any| !any.iter().any(there));
                // A file that has none of the words that tell a family is hardly of it.
                let share = |pattern: &&Pattern| segments.share(pattern);
                let told = |pattern: &&Pattern| {
                    let [found, all] = share(pattern);
                    2 * found > all
                };
                let nearest = absent.and_then(|any| any.iter().filter(told).max_by_key(share));
                if let Some(pattern) = nearest {
                    lines.push(format!("{} looks like `{}` but nothing is named {pattern}; pass --recipe {} if it is", start.anchor, recipe.name, recipe.name));
                }
            }
        }
    }
    let mut seen = BTreeSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines.truncate(SHOWN);
    lines
}

/// The block that a tensor with an owned segment belongs to, and the tensor that block lacks (if it can be told).
pub(crate) fn owner(recipe: &Recipe, tensor: &Tensor, index: &Index) -> Option<(String, String)> {
    let place = place_of(recipe, tensor)?;
    let missing = lacks(recipe, &place, index).unwrap_or_default();
    Some((place, missing))
}

/// The path before an owned segment.
fn place_of(recipe: &Recipe, tensor: &Tensor) -> Option<String> {
    let name = tensor.name();
    let segments: Vec<&str> = name.split('.').collect();
    let at = segments
        .iter()
        .position(|segment| recipe.owns.iter().any(|owned| owned == segment))?;
    Some(segments[..at].join("."))
}

/// A tensor that a block at this place lacks.
fn lacks(recipe: &Recipe, place: &str, index: &Index) -> Option<String> {
    recipe.blocks.iter().find_map(|rule| {
        let prefix = rule.prefix()?.to_owned();
        let captures = Captures::one(&prefix, place);
        let wanted = rule
            .at
            .iter()
            .find(|p| names(index, p, &captures).next().is_none())?;
        let wanted = wanted
            .fill(&captures)
            .unwrap_or_else(|| wanted.known_start(&captures).0 + "…");
        Some(quoted(&wanted))
    })
}
