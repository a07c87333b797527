//! Segments that a wrapper around a module puts into names, as in `stage1.0.rbr_dense._orig_mod.conv.weight`. They say nothing of
//! what is computed: a file is looked at without them.
//!
//! Segments at the very start of a name stay. Every pattern begins with a dotted path, which takes them.

use std::borrow::Cow;
use std::collections::HashMap;

use super::error::Error;
use super::expand::{Index, anywhere};
use super::model::Recipe;
use super::segments::Segments;
use super::start::found_in;
use crate::tensor::Tensor;

/// What PyTorch and the usual libraries put into names: `torch.compile`, FSDP, activation checkpointing, Fabric and DeepSpeed; and
/// `DataParallel` with its kin, whose segment is also an ordinary name.
const WRAPPERS: [&str; 5] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    PLAIN,
];

/// A wrapper's segment that authors use as a name of their own, too.
const PLAIN: &str = "module";

/// The segments of a name, each with whether it is there for a wrapper inside of the name.
pub(crate) fn segments(
    name: &str,
    is_wrapper: impl Fn(&str) -> bool,
) -> impl Iterator<Item = (&str, bool)> {
    let (mut at, mut started) = (0, false);
    name.split('.').map(move |segment| {
        at += segment.len() + 1;
        let last = at > name.len();
        let known = WRAPPERS.contains(&segment);
        let inside = known && started && !last && is_wrapper(segment);
        started |= !known;
        (segment, inside)
    })
}

/// A name or a glob without the segments of wrappers inside of it.
pub(crate) fn without(name: &str) -> String {
    let kept = segments(name, |_| true).filter(|(_, inside)| !inside);
    let kept: Vec<&str> = kept.map(|(segment, _)| segment).collect();
    kept.join(".")
}

/// A name without any segment of a wrapper, not even at its start.
pub(crate) fn bare(name: &str) -> String {
    let seen = without(name);
    let mut rest = seen.as_str();
    while let Some((first, after)) = rest.split_once('.')
        && WRAPPERS.contains(&first)
    {
        rest = after;
    }
    rest.to_owned()
}

/// The file as `recipes` look at it: tensors under names without the segments of wrappers.
///
/// A segment that one of the recipes names is no wrapper's.
///
/// # Errors
/// When two tensors would have the same name.
pub(crate) fn seen_through<'i>(
    index: &'i Index,
    recipes: &[&Recipe],
) -> Result<Cow<'i, Index>, Error> {
    let known = |word: &str| recipes.iter().any(|recipe| names(recipe, word));
    seen(index, &Segments::of(index), &known)
}

/// The same for recipes of which not all are about the file: those count that find blocks or a deploy form in it as it is.
///
/// # Errors
/// As for [`seen_through`].
pub(crate) fn seen_by_any<'i>(
    index: &'i Index,
    recipes: &[Recipe],
    there: &Segments<'_>,
) -> Result<Cow<'i, Index>, Error> {
    let known = |word: &str| {
        let mut naming = recipes.iter().filter(|recipe| names(recipe, word));
        naming.any(|recipe| {
            let there = |pattern| anywhere(index, pattern).next().is_some();
            found_in(recipe, index) || recipe.deploy.iter().any(there)
        })
    };
    seen(index, there, &known)
}

/// Whether a pattern of the recipe has this segment.
fn names(recipe: &Recipe, word: &str) -> bool {
    let rules = || recipe.blocks.iter();
    let convs = || rules().flat_map(|rule| &rule.fuse);
    let mut patterns = rules()
        .flat_map(|rule| &rule.at)
        .chain(recipe.when.iter().flatten())
        .chain(&recipe.deploy)
        .chain(convs().map(|(module, _)| module))
        .chain(convs().flat_map(|(_, template)| template.tensors()));
    patterns.any(|pattern| pattern.text().split('.').any(|segment| segment == word))
}

/// `there` are the segments of the file's names.
fn seen<'i>(
    index: &'i Index,
    there: &Segments<'_>,
    known: &dyn Fn(&str) -> bool,
) -> Result<Cow<'i, Index>, Error> {
    let words: Vec<&str> = WRAPPERS
        .into_iter()
        .filter(|word| there.have(word) && !known(word))
        .collect();
    if words.is_empty() {
        return Ok(Cow::Borrowed(index));
    }
    let mut alone: HashMap<String, bool> = HashMap::new();
    let mut clean = Index::new();
    let mut any = false;
    for (name, tensor) in index {
        let mut kept = Vec::new();
        let parts = segments(name, |word| words.contains(&word));
        let mut above = 0;
        for (segment, inside) in parts {
            let path = &name[..above];
            let wraps = inside && (segment != PLAIN || stands_alone(path, index, &mut alone));
            if !wraps {
                kept.push(segment);
            }
            above += segment.len() + 1;
        }
        let seen = kept.join(".");
        any |= seen != *name;
        let tensor = match seen == *name {
            true => tensor.clone(),
            false => tensor.seen_as(seen.clone()),
        };
        if let Some(other) = clean.insert(seen.clone(), tensor) {
            return Err(Error::Wrapped {
                first: name.clone(),
                second: other.name_in_file().to_owned(),
                name: seen,
            });
        }
    }
    Ok(match any {
        true => Cow::Owned(clean),
        false => Cow::Borrowed(index),
    })
}

/// Whether below a path, which ends in a dot, there is no other module than `module`: a wrapper holds one module and maybe
/// numbers of its own.
fn stands_alone(path: &str, index: &Index, known: &mut HashMap<String, bool>) -> bool {
    if let Some(alone) = known.get(path) {
        return *alone;
    }
    let below = index.range(path.to_owned()..);
    let mut modules = below
        .map_while(|(name, _)| name.strip_prefix(path))
        .filter_map(|rest| rest.split_once('.'));
    let alone = modules.all(|(module, _)| module == PLAIN);
    known.insert(path.to_owned(), alone);
    alone
}

/// The segments of wrappers of a tensor's name in the file that it is seen without, each with the path that it stands behind.
pub(crate) fn wrappers_of(tensor: &Tensor) -> Vec<(String, Vec<&str>)> {
    let mut seen = tensor.name().split('.').peekable();
    let (mut path, mut found): (String, Vec<(String, Vec<&str>)>) = (String::new(), Vec::new());
    for segment in tensor.name_in_file().split('.') {
        if seen.peek() == Some(&segment) {
            seen.next();
            if !path.is_empty() {
                path.push('.');
            }
            path += segment;
            continue;
        }
        match found.last_mut().filter(|(at, _)| *at == path) {
            Some((_, words)) => words.push(segment),
            None => found.push((path.clone(), vec![segment])),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn wrappers_inside_of_a_name_are_looked_through() {
        for (name, seen) in [
            ("a._orig_mod.b.weight", "a.b.weight"),
            ("_orig_mod.a.weight", "_orig_mod.a.weight"),
            ("module._orig_mod.a.module.b", "module._orig_mod.a.b"),
            ("a.module", "a.module"),
            ("a.modules.b", "a.modules.b"),
            ("a._orig_mod._checkpoint_wrapped_module.b", "a.b"),
        ] {
            assert_eq!(without(name), seen, "{name}");
        }
    }
}
