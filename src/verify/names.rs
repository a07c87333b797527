//! A deploy form whose names differ from the expected ones by one path before all of them, or by the segments of wrappers.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{Plan, Source};
use crate::recipe::bare;
use crate::tensor::{Checkpoint, Tensor, quoted};

/// The deploy form under the names that the plan has for it, and how its own differ, if they do.
///
/// # Errors
/// A sentence, when the names differ by a path that stands before most of them and not before the others.
pub fn aligned(file: Checkpoint, plan: &Plan) -> Result<(Checkpoint, Option<String>), String> {
    let weights = || {
        let outputs = plan.outputs.iter();
        outputs.filter(|planned| matches!(planned.what, Source::Weight(..)))
    };
    let there = weights().filter(|planned| file.get(&planned.output.name).is_some());
    let there = there.count();
    if there == weights().count() {
        return Ok((file, None));
    }
    let expected = plan.outputs.iter().map(|p| p.output.name.as_str());
    let Some(expected) = by_bare_name(expected) else {
        return Ok((file, None));
    };
    let found: Vec<String> = file
        .tensors()
        .values()
        .flat_map(|tensor| match tensor.parts() {
            [] => vec![tensor.name().to_owned()],
            parts => parts.iter().map(|part| part.name().to_owned()).collect(),
        })
        .collect();
    let Some(found) = by_bare_name(found.iter().map(String::as_str)) else {
        return Ok((file, None));
    };
    let consumed = plan.blocks.iter().flat_map(|block| &block.consumed);
    let trained: BTreeSet<String> = consumed.map(|tensor| bare(tensor.name())).collect();
    let first = weights().next().map(|planned| bare(&planned.output.name));
    let difference = match one_difference(&expected, &trained, &found, first.as_deref()) {
        Ok(Some(difference)) => difference,
        // What is missing of names that are the same otherwise is said one by one.
        Err(why) if there == 0 => return Err(why),
        Ok(None) | Err(_) => return Ok((file, None)),
    };
    let names = |tensor: &Tensor| {
        let name = difference.expected(&bare(tensor.name()));
        let known = name.as_ref().and_then(|name| expected.get(name));
        match (known, name) {
            (Some(known), _) => (*known).to_owned(),
            // A weight in parts has the name of none of them.
            (None, Some(name)) => name,
            (None, None) => tensor.name().to_owned(),
        }
    };
    let wrapped = |names: &BTreeMap<String, &str>| names.iter().any(|(bare, name)| bare != name);
    let said = difference.said(wrapped(&expected) || wrapped(&found));
    Ok((file.seen_as(&names), Some(said)))
}

/// Names by what they are without the segments of wrappers; none if two are the same then.
fn by_bare_name<'n>(names: impl Iterator<Item = &'n str>) -> Option<BTreeMap<String, &'n str>> {
    let mut all = BTreeMap::new();
    for name in names {
        if all.insert(bare(name), name).is_some() {
            return None;
        }
    }
    Some(all)
}

/// How the names of the deploy form differ from the expected ones, wrappers apart.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Difference {
    None,
    /// This path stands before all of them.
    More(String),
    /// This path stands before all that are expected.
    Less(String),
}

impl Difference {
    fn expected(&self, found: &str) -> Option<String> {
        match self {
            Difference::None => Some(found.to_owned()),
            Difference::More(path) => {
                let rest = found.strip_prefix(path.as_str())?.strip_prefix('.')?;
                Some(rest.to_owned())
            }
            Difference::Less(path) => Some(format!("{path}.{found}")),
        }
    }

    fn said(&self, wrapped: bool) -> String {
        let path = match self {
            Difference::None => None,
            Difference::More(path) => Some(format!("begin with {}", quoted(&format!("{path}.")))),
            Difference::Less(path) => Some(format!("are without {}", quoted(&format!("{path}.")))),
        };
        match (path, wrapped) {
            (Some(path), false) => format!("those of the deploy form {path}"),
            (Some(path), true) => format!(
                "those of the deploy form {path}; the segments of wrappers are looked through"
            ),
            (None, _) => "the segments of wrappers are looked through".to_owned(),
        }
    }
}

/// The ways in which names may differ, given those that are found and one that is expected.
fn ways(found: &BTreeMap<String, &str>, first: &str) -> Vec<Difference> {
    let mut ways: BTreeSet<(bool, &str)> = BTreeSet::new();
    for name in found.keys() {
        let before = |long: &'_ str, short: &str| -> Option<usize> {
            Some(long.strip_suffix(short)?.strip_suffix('.')?.len())
        };
        if let Some(len) = before(name, first) {
            ways.insert((true, &name[..len]));
        } else if let Some(len) = before(first, name) {
            ways.insert((false, &first[..len]));
        }
    }
    let mut all = vec![Difference::None];
    all.extend(ways.into_iter().map(|(more, path)| match more {
        true => Difference::More(path.to_owned()),
        false => Difference::Less(path.to_owned()),
    }));
    all
}

/// `trained` are names of the training form, which other converters leave in the file.
fn one_difference(
    expected: &BTreeMap<String, &str>,
    trained: &BTreeSet<String>,
    found: &BTreeMap<String, &str>,
    first: Option<&str>,
) -> Result<Option<Difference>, String> {
    let Some(first) = first else { return Ok(None) };
    let all = ways(found, first);
    let fits = |way: &Difference, name: &str| {
        way.expected(name)
            .is_some_and(|name| expected.contains_key(&name))
    };
    let left = |way: &Difference, name: &str| {
        way.expected(name)
            .is_some_and(|name| trained.contains(&name))
    };
    let whole = |way: &&Difference| {
        let fit = found.keys().filter(|name| fits(way, name)).count();
        let known = |name: &String| fits(way, name) || left(way, name);
        fit == expected.len() && found.keys().all(known)
    };
    // Two ways would make names of different lengths.
    if let Some(way) = all.iter().find(whole) {
        return Ok(Some(way.clone()));
    }
    // A path that stands before most of them is meant; what it does not stand before is named.
    let share = |way: &Difference| found.keys().filter(|name| fits(way, name)).count();
    let best = all.iter().map(|way| (share(way), way)).max_by_key(|x| x.0);
    match best {
        Some((n, way)) if n > 1 && 2 * n > found.len().min(expected.len()) => {
            let of_none = |name: &str| !fits(way, name) && !left(way, name);
            let odd = found.iter().find(|(bare, _)| of_none(bare));
            let reached: BTreeSet<String> =
                found.keys().filter_map(|name| way.expected(name)).collect();
            let missing = expected.iter().find(|(bare, _)| !reached.contains(*bare));
            let but = match (odd, missing) {
                (Some((_, name)), _) => format!("{} does not fit", quoted(name)),
                (None, Some((_, name))) => format!("none is for {}", quoted(name)),
                (None, None) => return Ok(None),
            };
            Err(format!(
                "the names are the same but for a path or wrappers: {}; yet {but}",
                way.said(false)
            ))
        }
        _ => Ok(None),
    }
}
