//! The names of the output, of a file that was looked at without the segments of wrappers: they stand again where they stood
//! outside of blocks, and inside of one they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use super::closed::region_of;
use super::path::is_below;
use super::{Plan, Source};
use crate::recipe::wrappers_of;
use crate::tensor::Tensor;

/// The segments of wrappers behind each path; none where they are not the same for all tensors.
type Wrappers = BTreeMap<String, Option<Vec<String>>>;

/// Gives the outputs of a plan the names that the file would have for them.
pub(super) fn restore<'a>(plan: &mut Plan, seen: impl Iterator<Item = &'a Tensor> + Clone) {
    let mut outside = all(seen);
    if outside.is_empty() {
        return;
    }
    let mut inside = BTreeSet::new();
    for block in &plan.blocks {
        let names = || block.consumed.iter().map(Tensor::name);
        let region = region_of(names());
        let stands_inside = |path: &&String| match region {
            "" => !path.is_empty() && names().any(|name| is_below(name, path)),
            _ => is_below(path, region),
        };
        let from = outside.range(region.to_owned()..).map(|(path, _)| path);
        let within = from.take_while(|path| path.starts_with(region));
        inside.extend(within.filter(stands_inside).cloned());
    }
    let mut removed = BTreeSet::new();
    for path in &inside {
        removed.extend(outside.remove(path).into_iter().flatten().flatten());
    }
    for planned in &mut plan.outputs {
        let name = &mut planned.output.name;
        *name = match &planned.what {
            Source::Copy(tensor) | Source::Round(tensor, _) if tensor.name() == name => {
                own(tensor, &inside)
            }
            _ => put_back(name, &outside),
        };
    }
    let around = |module: &str| {
        // What stands behind the module, too, for its tensors do.
        let mut path = put_back(&format!("{module}."), &outside);
        path.pop();
        Ok::<_, Infallible>(path)
    };
    let Ok(()) = plan.rename_convs(around);
    plan.wrappers_removed = removed.into_iter().collect();
}

fn all<'a>(seen: impl Iterator<Item = &'a Tensor>) -> Wrappers {
    let mut all = Wrappers::new();
    for tensor in seen.filter(|tensor| tensor.name() != tensor.name_in_file()) {
        for (path, words) in wrappers_of(tensor) {
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            let known = all.entry(path).or_insert_with(|| Some(words.clone()));
            if known.as_ref().is_some_and(|known| *known != words) {
                *known = None;
            }
        }
    }
    all
}

/// A tensor's name in the file, without the wrappers inside of blocks.
fn own(tensor: &Tensor, inside: &BTreeSet<String>) -> String {
    let own: Wrappers = wrappers_of(tensor)
        .into_iter()
        .filter(|(path, _)| !inside.contains(path))
        .map(|(path, words)| (path, Some(words.into_iter().map(str::to_owned).collect())))
        .collect();
    put_back(tensor.name(), &own)
}

/// A name with the wrappers behind the paths that it goes through.
fn put_back(name: &str, wrappers: &Wrappers) -> String {
    let mut out = String::with_capacity(name.len());
    let mut at = 0;
    for segment in name.split('.') {
        let above = name[..at].trim_end_matches('.');
        let words = wrappers.get(above).into_iter().flatten().flatten();
        for word in words.filter(|_| at > 0) {
            out = out + word + ".";
        }
        out += segment;
        at += segment.len() + 1;
        if at <= name.len() {
            out.push('.');
        }
    }
    out
}
