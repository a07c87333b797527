//! Where in a file the network of a recipe is: in the modules that the recipe says it consists of, where its evidence stands.
//!
//! A plain conv with its batch norm has the same names in many networks. What stands beside the network of a recipe is not the
//! recipe's, though its names fit: nothing says that its eps is the same.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::expand::{Index, anywhere};
use super::model::Recipe;
use super::pattern::Pattern;
use crate::tensor::Tensor;

/// The part of a file that is a recipe's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bounds<'a> {
    /// The names of the modules that a network consists of; without them, all modules.
    modules: Option<&'a [String]>,
    /// The paths that networks are below. Without one all of the file is the recipe's.
    networks: BTreeSet<String>,
}

impl<'a> Bounds<'a> {
    /// Finds the networks of a recipe: the paths below which a module that it names has its evidence. Where the modules have other
    /// names, it is the path that all evidence is below.
    pub(crate) fn of(recipe: &'a Recipe, index: &Index) -> Bounds<'a> {
        let modules = &recipe.modules;
        if modules.is_empty() {
            return Bounds {
                modules: None,
                networks: BTreeSet::new(),
            };
        }
        let found = |any: &Vec<Pattern>| -> Vec<&str> {
            let found = any.iter().flat_map(|pattern| anywhere(index, pattern));
            found.map(|(tensor, _)| tensor.name()).collect()
        };
        let evidence: Vec<Vec<&str>> = recipe.when.iter().map(found).collect();
        let above = |names: &Vec<&str>| {
            let above = names.iter().flat_map(|name| paths(name, modules));
            above.map(str::to_owned).collect()
        };
        let common = in_all(evidence.iter().map(above));
        // Evidence is of the innermost network that it stands in.
        let innermost = |names: &Vec<&str>| {
            let of = |name: &&str| {
                let above = paths(name, modules).filter(|path| common.contains(*path));
                above.last().map(str::to_owned)
            };
            names.iter().filter_map(of).collect()
        };
        let networks = in_all(evidence.iter().map(innermost));
        if !networks.is_empty() {
            return Bounds {
                modules: Some(modules),
                networks,
            };
        }
        let path = match evidence.iter().any(Vec::is_empty) {
            true => None,
            false => shared_path(evidence.iter().flatten().copied()),
        };
        let path = path.filter(|path| !path.is_empty());
        Bounds {
            modules: None,
            networks: path.map(str::to_owned).into_iter().collect(),
        }
    }

    /// The paths that networks are below.
    pub(super) fn networks(&self) -> impl Iterator<Item = &String> {
        self.networks.iter()
    }

    /// Whether the recipe's part of a file has an end.
    pub(super) fn are_known(&self) -> bool {
        !self.networks.is_empty()
    }

    /// Whether a tensor or module of this name is the recipe's.
    pub(crate) fn hold(&self, name: &str) -> bool {
        !self.are_known() || self.module_of(name).is_some()
    }

    /// The tensors of a file that are the recipe's, and the others.
    pub(crate) fn split<'i>(&self, index: &'i Index) -> (Cow<'i, Index>, Vec<&'i Tensor>) {
        if index.keys().all(|name| self.hold(name)) {
            return (Cow::Borrowed(index), Vec::new());
        }
        let (mut part, mut outside) = (Index::new(), Vec::new());
        for (name, tensor) in index {
            match self.hold(name) {
                true => drop(part.insert(name.clone(), tensor.clone())),
                false => outside.push(tensor),
            }
        }
        (Cow::Owned(part), outside)
    }

    /// The modules of the networks that a file has.
    pub(crate) fn modules_in(&self, index: &Index) -> BTreeSet<String> {
        let modules = index.keys().filter_map(|name| self.module_of(name));
        modules.map(str::to_owned).collect()
    }

    /// The module of a network that has this name or stands above it.
    fn module_of<'n>(&self, name: &'n str) -> Option<&'n str> {
        self.networks.iter().find_map(|path| {
            let below = match &**path {
                "" => name,
                path => name.strip_prefix(path)?.strip_prefix('.')?,
            };
            let start = name.len() - below.len();
            let end = below.find('.').map_or(name.len(), |dot| start + dot);
            let is_one = |modules| is_module(&name[start..end], modules);
            self.modules.is_none_or(is_one).then_some(&name[..end])
        })
    }
}

/// The paths above a name at which a network of these modules may be, the outermost first.
fn paths<'n>(name: &'n str, modules: &[String]) -> impl Iterator<Item = &'n str> {
    let mut start = 0;
    let segments = name.split('.').map(move |segment| {
        let path = &name[..start.max(1) - 1];
        start += segment.len() + 1;
        (path, segment)
    });
    let of_module = segments.filter(|(_, segment)| is_module(segment, modules));
    of_module.map(|(path, _)| path)
}

/// Whether a segment of a name is one of some modules.
fn is_module(segment: &str, modules: &[String]) -> bool {
    let mut modules = modules.iter();
    modules.any(|module| match module.strip_suffix('*') {
        Some(start) => segment.starts_with(start),
        None => module == segment,
    })
}

/// The longest path above all of some names in which no segment has a number: numbered modules are parts of a network.
fn shared_path<'n>(mut names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let first = names.next()?;
    let has_number = |segment: &&str| segment.contains(|c: char| c.is_ascii_digit());
    let above = first.matches('.').count();
    let plain = first.split('.').take_while(|segment| !has_number(segment));
    let shared = names.fold(plain.count().min(above), |shared, name| {
        let both = first.split('.').zip(name.split('.'));
        shared.min(both.take_while(|(a, b)| a == b).count())
    });
    let mut dots = first.match_indices('.');
    let (end, _) = dots.nth(shared.checked_sub(1)?)?;
    Some(&first[..end])
}

/// What is in all of some sets.
fn in_all(sets: impl Iterator<Item = BTreeSet<String>>) -> BTreeSet<String> {
    let common = sets.reduce(|one, other| &one & &other);
    common.into_iter().flatten().collect()
}
