//! Where the blocks of a recipe start in a file, told by names and by the shapes that the recipe asks for.

use std::collections::BTreeMap;
use std::fmt;

use super::expand::{Index, MatchBudget, anywhere};
use super::model::{BATCH_COUNT, BlockRule, Dim, NORM, Recipe, Template};
use super::pattern::{Captures, Pattern};
use crate::tensor::{Tensor, quoted};

/// A place in a file where a block of a recipe starts.
#[derive(Clone, Debug)]
pub(crate) struct Start<'a> {
    pub(crate) rule: &'a BlockRule,
    /// The anchor of the rule that matched.
    pub(crate) at: &'a Pattern,
    pub(crate) anchor: &'a Tensor,
    pub(crate) captures: Captures,
}

impl<'a> Start<'a> {
    /// A start of this rule, given the tensor that an anchor of it matches.
    fn of(rule: &'a BlockRule, at: &'a Pattern) -> impl Fn((&'a Tensor, Captures)) -> Start<'a> {
        move |(anchor, captures)| Start {
            rule,
            at,
            anchor,
            captures,
        }
    }
}

/// Every place where a block starts, in the order of the recipe's rules and then of the names.
/// There are no more once `looks` says that the file has been looked through too often.
pub(crate) fn starts<'a>(
    recipe: &'a Recipe,
    index: &'a Index,
    budget: &'a MatchBudget,
) -> impl Iterator<Item = Start<'a>> {
    possible_starts(recipe, index, budget).filter(|start| is_start(start, index))
}

/// Every tensor that an anchor of the recipe matches, in the order of [`starts`]. Those of them that are [starts](is_start) are
/// told apart by the caller, who may know of most that they are not wanted.
pub(crate) fn possible_starts<'a>(
    recipe: &'a Recipe,
    index: &'a Index,
    budget: &'a MatchBudget,
) -> impl Iterator<Item = Start<'a>> {
    let of_rule = move |rule: &'a BlockRule| {
        let at = rule.at.iter();
        at.flat_map(move |pattern| {
            let found = budget.anywhere(index, pattern);
            found.map(move |found| Start::of(rule, pattern)(found))
        })
    };
    recipe.blocks.iter().flat_map(of_rule)
}

/// Whether a block starts at a tensor that an anchor matches.
pub(crate) fn is_start(start: &Start<'_>, index: &Index) -> bool {
    // An open anchor says "any tensor of this module", and means those that the block has.
    (!start.at.ends_open() || is_part(start)) && misfit(start, index).is_none()
}

/// Whether the tensor that a block is found by is one of its tensors or the counter of one of its norms.
fn is_part(start: &Start<'_>) -> bool {
    let name = start.anchor.name();
    let mean = name
        .strip_suffix(BATCH_COUNT)
        .map(|module| format!("{module}{}", NORM[2]));
    let is = |found: &str| found == name || Some(found) == mean.as_deref();
    let templates = start.rule.fuse.iter();
    let mut tensors = templates.flat_map(|(_, template)| template.tensors());
    tensors.any(|pattern| match pattern.fill(&start.captures) {
        Some(found) => is(&found),
        None => {
            let pattern = pattern.with_kinds_of(start.rule.at.iter());
            let matches = |name: &str| pattern.matches(name, &start.captures).is_some();
            matches(name) || mean.as_deref().is_some_and(matches)
        }
    })
}

/// Every tensor that matches one of a rule's anchors.
pub(crate) fn anchors<'a>(
    rule: &'a BlockRule,
    index: &'a Index,
) -> impl Iterator<Item = Start<'a>> {
    let at = rule.at.iter();
    at.flat_map(move |pattern| anywhere(index, pattern).map(Start::of(rule, pattern)))
}

/// What of a start is not as the rule's `where` asks for.
pub(crate) enum Misfit<'a> {
    /// A tensor is there that must not be.
    There(&'a Tensor),
    /// A tensor has another shape.
    Shape(&'a Tensor),
    /// The tensor of this name is missing.
    Missing(String),
}

impl fmt::Display for Misfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::There(tensor) => write!(f, "{tensor} is there"),
            Misfit::Shape(tensor) => write!(f, "{tensor} has shape {:?}", tensor.shape()),
            Misfit::Missing(name) => write!(f, "{} is missing", quoted(name)),
        }
    }
}

/// Checks the shapes that the rule's `where` asks for, and returns the first that does not fit.
///
/// A tensor that is missing while the rest of its branch is there, a branch other than the one that the block was found
/// by, does not make it another block but half of this one: such a start fits, and expanding it names what is missing.
pub(crate) fn misfit<'a>(start: &Start<'_>, index: &'a Index) -> Option<Misfit<'a>> {
    let mut letters: BTreeMap<&str, usize> = BTreeMap::new();
    let mut missing = Vec::new();
    for (pattern, shape) in &start.rule.shapes {
        let name = pattern.fill(&start.captures).unwrap_or_default();
        match (index.get(&name), shape) {
            (None, None) => {}
            (Some(tensor), None) => return Some(Misfit::There(tensor)),
            (None, Some(_)) => missing.push(name),
            (Some(tensor), Some(shape)) => {
                let found = tensor.shape();
                let fits = found.len() == shape.len()
                    && shape
                        .iter()
                        .zip(found)
                        .all(|(dim, n)| fits(dim, *n, &mut letters));
                if !fits {
                    return Some(Misfit::Shape(tensor));
                }
            }
        }
    }
    let lost = |name: &String| !branch_is_there(start, name, index);
    missing.into_iter().find(lost).map(Misfit::Missing)
}

/// The first tensor of a block that has not the shape which the rule's `shapes` say, in words.
pub(crate) fn misshapen(rule: &BlockRule, captures: &Captures, index: &Index) -> Option<String> {
    let there = rule.forms.iter().filter_map(|(pattern, shape)| {
        let tensor = index.get(&pattern.fill(captures)?)?;
        Some((tensor, shape))
    });
    let mut letters: BTreeMap<&str, usize> = BTreeMap::new();
    for (tensor, shape) in there {
        let found = tensor.shape();
        let expected = shown(shape, &letters);
        let all = found.len() == shape.len();
        let mut dims = shape.iter().zip(found);
        if !(all && dims.all(|(dim, n)| fits(dim, *n, &mut letters))) {
            return Some(format!(
                "{tensor} has shape {found:?}; the recipe expects {expected}"
            ));
        }
    }
    None
}

/// A shape of a recipe, with the numbers of the letters that are known.
fn shown(shape: &[Dim], letters: &BTreeMap<&str, usize>) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Is(n) => n.to_string(),
        Dim::Same(letter) => match letters.get(letter.as_str()) {
            Some(n) => n.to_string(),
            None => letter.clone(),
        },
        Dim::Odd => "odd".to_owned(),
        Dim::Any => "_".to_owned(),
    };
    let dims: Vec<String> = shape.iter().map(dim).collect();
    format!("[{}]", dims.join(", "))
}

/// Whether other tensors of the branch that a tensor belongs to are in the file.
fn branch_is_there(start: &Start<'_>, name: &str, index: &Index) -> bool {
    let captures = &start.captures;
    let templates = start.rule.fuse.iter().map(|(_, template)| template);
    let branches = templates.filter_map(|t| branch_of(t, name, captures));
    let others = branches.flat_map(Template::tensors);
    let others: Vec<String> = others.filter_map(|p| p.fill(captures)).collect();
    // By module, for a batch norm's counter can be the anchor and is no operand.
    let anchor = module_of(start.anchor.name());
    let found_by = others.iter().any(|other| module_of(other) == anchor);
    !found_by && others.iter().any(|other| index.contains_key(other))
}

fn module_of(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(module, _)| module)
}

/// The innermost sum or sequence that a tensor is a direct part of.
fn branch_of<'t>(template: &'t Template, name: &str, captures: &Captures) -> Option<&'t Template> {
    match template {
        Template::Optional(x) | Template::Each(x) => branch_of(x, name, captures),
        Template::Seq(xs) | Template::Sum(xs) => {
            let deeper = xs.iter().find_map(|x| branch_of(x, name, captures));
            deeper.or_else(|| names(template, name, captures).then_some(template))
        }
        _ => None,
    }
}

/// Whether a template names this tensor.
fn names(template: &Template, name: &str, captures: &Captures) -> bool {
    let mut found = false;
    template.visit_tensors(&mut |pattern| found = found || pattern.stands_for(name, captures));
    found
}

fn fits<'a>(dim: &'a Dim, n: usize, letters: &mut BTreeMap<&'a str, usize>) -> bool {
    match dim {
        Dim::Any => true,
        Dim::Odd => n % 2 == 1,
        Dim::Is(expected) => n == *expected,
        Dim::Same(letter) => *letters.entry(letter).or_insert(n) == n,
    }
}

/// Whether the file has a block of this recipe and the evidence that the recipe asks for.
pub fn found_in(recipe: &Recipe, index: &Index) -> bool {
    let there = |pattern: &Pattern| anywhere(index, pattern).next().is_some();
    starts(recipe, index, &MatchBudget::default())
        .next()
        .is_some()
        && recipe.when.iter().all(|any| any.iter().any(there))
        && !recipe.unless.iter().any(there)
}
