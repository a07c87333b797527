//! What a file almost is: for the error when no block is found, and for tensors that belong to half a block.

use std::collections::BTreeSet;

use super::expand::{Index, anywhere, names};
use super::model::{BlockRule, Recipe};
use super::pattern::{Captures, Pattern};
use super::segments::Segments;
use super::start::{anchors, misfit};
use crate::tensor::{Tensor, quoted};

/// How many near misses an error names.
const SHOWN: usize = 3;

/// Sentences such as "`stage1.0` looks like `repvgg` but `…` is missing".
pub(crate) fn near_misses(index: &Index, recipes: &[Recipe]) -> Vec<String> {
    let segments = Segments::of(index);
    let mut lines = half_blocks(index, recipes, &segments);
    // What the names that only one family has say outweighs what any other looks like.
    if lines.is_empty() {
        lines = almost_blocks(index, recipes, &segments);
    }
    let mut seen = BTreeSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines.truncate(SHOWN);
    lines
}

/// Blocks that lack a tensor, told by a path segment that only one family has.
fn half_blocks(index: &Index, recipes: &[Recipe], segments: &Segments<'_>) -> Vec<String> {
    let there = |pattern: &Pattern| anywhere(index, pattern).next().is_some();
    let evident = |recipe: &&Recipe| {
        recipe.when.iter().all(|any| any.iter().any(there)) && !recipe.unless.iter().any(there)
    };
    let owns_some = |recipe: &&Recipe| recipe.owns.iter().any(|owned| segments.have(owned));
    let half_block = |recipe: &Recipe| {
        let mut seen = BTreeSet::new();
        let places = index.values().filter_map(|t| place_of(recipe, t));
        places
            .filter(|place| seen.insert(place.clone()))
            .find_map(|place| {
                let missing = lacks(recipe, &place, index)?;
                let place = quoted(&place);
                Some(format!(
                    "{place} looks like `{}` but {missing} is missing",
                    recipe.name
                ))
            })
    };
    let recipes = recipes.iter().filter(owns_some).filter(evident);
    recipes.filter_map(half_block).collect()
}

/// Blocks that are there but for a shape, and those of recipes whose evidence is not in the file.
fn almost_blocks(index: &Index, recipes: &[Recipe], segments: &Segments<'_>) -> Vec<String> {
    let possible = |rule: &&BlockRule| {
        // Without shapes to check, an anchor alone is too weak a sign to be named.
        !rule.shapes.is_empty() && rule.at.iter().any(|p| segments.allow(p))
    };
    let mut lines = Vec::new();
    for recipe in recipes {
        let no_evidence = recipe.unless.is_empty() && recipe.when.is_empty();
        for rule in recipe.blocks.iter().filter(possible) {
            let mut starts = anchors(rule, index);
            let miss = starts.find_map(|start| Some((misfit(&start, index)?, start)));
            if let Some((reason, start)) = miss.filter(|_| no_evidence) {
                let path = rule.path(&start.captures).filter(|path| !path.is_empty());
                let place = quoted(path.unwrap_or(start.anchor.name()));
                lines.push(format!("{place} looks like `{}` but {reason}", recipe.name));
                continue;
            }
            let whole = anchors(rule, index).find(|start| misfit(start, index).is_none());
            if let (Some(start), Some(pattern)) = (whole, absent(recipe, index, segments)) {
                lines.push(format!(
                    "{} looks like `{}` but nothing is named {pattern}",
                    start.anchor, recipe.name
                ));
            }
        }
    }
    lines
}

/// What a recipe asks for and the file does not have, where the file has most of the words that tell it. (A file that has none
/// of the words that tell a family is hardly of it.)
fn absent<'r>(recipe: &'r Recipe, index: &Index, segments: &Segments<'_>) -> Option<&'r Pattern> {
    let there = |pattern: &Pattern| anywhere(index, pattern).next().is_some();
    let absent = recipe.when.iter().find(|any| !any.iter().any(there))?;
    let told = |pattern: &&Pattern| {
        let [found, all] = segments.share(pattern);
        2 * found > all && has_lists(pattern, index)
    };
    let share = |pattern: &&Pattern| segments.share(pattern);
    absent.iter().filter(told).max_by_key(share)
}

/// Whether each word of a pattern that a number follows is somewhere followed by one: a `model` with layers of numbers is
/// another than the `model` around a whole network.
fn has_lists(pattern: &Pattern, index: &Index) -> bool {
    let pieces: Vec<&str> = pattern.text().split('.').collect();
    let is_number =
        |piece: &str| piece.starts_with('{') && !piece.contains(':') && piece.ends_with('}');
    let mut lists = pieces
        .windows(2)
        .filter(|pair| !pair[0].contains(['{', '}']) && is_number(pair[1]))
        .map(|pair| pair[0]);
    lists.all(|word| {
        let has = |name: &String| {
            let segments: Vec<&str> = name.split('.').collect();
            let mut pairs = segments.windows(2);
            pairs.any(|pair| pair[0] == word && pair[1].parse::<usize>().is_ok())
        };
        index.keys().any(has)
    })
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
