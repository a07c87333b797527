//! Several families in one file: which recipe is about which part of it.
//!
//! A recipe holds for a part of a file, everything below one path, as it would for a file of its own: blocks of it are there, and the
//! evidence it asks for. It is used for the largest part that it explains: where other recipes find blocks, too, each of those
//! is a part of one of its own. A host is a recipe whose network may hold blocks of others, its guests.

use std::collections::BTreeSet;
use std::ops::Range;

use super::bounds::Bounds;
use super::dropped::dropped;
use super::error::Error;
use super::expand::{Index, MatchBudget, anywhere};
use super::model::{BlockRule, Recipe};
use super::pattern::{Captures, Pattern};
use super::start::{Start, found_in, is_start, possible_starts, starts};
use crate::tensor::Tensor;

/// A family in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Family<'a> {
    /// Its recipe.
    pub recipe: &'a Recipe,
    /// The paths that its part of the file is below; an empty one is the whole file.
    pub at: Vec<String>,
    /// The recipe of the network that its blocks are guests in. That one's initializer has set the eps of every norm.
    pub host: Option<&'a Recipe>,
}

impl<'a> Family<'a> {
    /// The family of a whole file.
    pub fn whole(recipe: &'a Recipe) -> Family<'a> {
        Family {
            recipe,
            at: vec![String::new()],
            host: None,
        }
    }
}

/// Paths deeper than this are not taken apart: no network has them.
const MOST_DEPTH: usize = 64;

/// Finds the families of a file, the likeliest of `recipes` for each part of it; none if no recipe fits.
///
/// # Errors
/// When several recipes fit a part equally well.
pub(super) fn families<'a>(
    index: &Index,
    recipes: Vec<&'a Recipe>,
) -> Result<Vec<Family<'a>>, Error> {
    let budget = MatchBudget::default();
    let there = |pattern: &Pattern| budget.anywhere(index, pattern).next().is_some();
    let candidates: Vec<&Recipe> = recipes
        .into_iter()
        .filter(|recipe| recipe.when.iter().all(|any| any.iter().any(there)))
        .filter(|recipe| starts(recipe, index, &budget).next().is_some())
        .collect();
    match candidates[..] {
        [] => return Ok(Vec::new()),
        // Nearly always.
        [recipe] if found_in(recipe, index) => return Ok(vec![Family::whole(recipe)]),
        _ => {}
    }
    let file = File::of(index, candidates, &budget);
    let regions = file.divide("", 0..file.names.len(), 0);
    let regions = file.that_nothing_speaks_against(regions);
    let undecided = regions.iter().find(|region| region.recipes.len() > 1);
    if let Some(region) = undecided {
        let name = |i: &usize| file.seen[*i].recipe.name.clone();
        return Err(Error::Ambiguous {
            recipes: region.recipes.iter().map(name).collect(),
        });
    }
    let mut found: Vec<Family<'a>> = Vec::new();
    for region in regions {
        let [recipe, host] = [region.recipes.first().copied(), region.host]
            .map(|i| i.and_then(|i| file.seen.get(i)).map(|seen| seen.recipe));
        let Some(recipe) = recipe else { continue };
        let known = |family: &&mut Family<'_>| {
            family.recipe.name == recipe.name
                && family.host.map(|host| &host.name) == host.map(|host| &host.name)
        };
        match found.iter_mut().find(known) {
            Some(family) => family.at.push(region.path),
            None => found.push(Family {
                recipe,
                at: vec![region.path],
                host,
            }),
        }
    }
    // What stands beside the one family of a file is no other.
    Ok(match &found[..] {
        [family] => vec![Family::whole(family.recipe)],
        _ => found,
    })
}

/// The part of a file that each family has, and what is in no part.
pub(crate) fn split(index: &Index, families: &[Family<'_>]) -> (Vec<Index>, Vec<Tensor>) {
    let (mut parts, mut rest) = (vec![Index::new(); families.len()], Vec::new());
    for (name, tensor) in index {
        let nearness = |family: &Family<'_>| {
            let above = family.at.iter().filter(|path| is_in(name, path));
            above.map(String::len).max()
        };
        let of = |i: &usize| nearness(&families[*i]);
        let nearest = (0..families.len())
            .rev()
            .max_by_key(of)
            .filter(|i| of(i).is_some());
        match nearest.and_then(|i| parts.get_mut(i)) {
            Some(part) => drop(part.insert(name.clone(), tensor.clone())),
            None => rest.push(tensor.clone()),
        }
    }
    (parts, rest)
}

/// Whether a name stands below a path.
fn is_in(name: &str, path: &str) -> bool {
    path.is_empty()
        || name
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
}

/// A module and its tensors.
type Module<'n> = (&'n str, Range<usize>);

/// What a recipe finds in a file, tensors by their numbers in it.
struct Seen<'a> {
    recipe: &'a Recipe,
    /// The tensor that each block was found by, in order, and the tensors of the block.
    blocks: Vec<(usize, Vec<usize>)>,
    /// The block that a tensor is of.
    claimed: Vec<Option<usize>>,
    /// Of each list of `when`, the tensors that match; in order.
    when: Vec<Vec<usize>>,
    unless: Vec<usize>,
    /// The paths above what matches `when`: where its networks begin.
    roots: BTreeSet<String>,
    /// The modules that its networks consist of. What stands beside them is not seen.
    bounds: Bounds<'a>,
}

/// A part of a file, and the recipes that it may be of.
struct Region {
    path: String,
    tensors: Range<usize>,
    recipes: Vec<usize>,
    host: Option<usize>,
}

/// The names of a file in order, and what every recipe finds.
struct File<'a, 'i> {
    names: Vec<&'i str>,
    seen: Vec<Seen<'a>>,
    /// For each two recipes, how many of the first blocks of the one are no part of a block of the other.
    unlike: Vec<Vec<Vec<usize>>>,
}

impl<'a, 'i> File<'a, 'i> {
    fn of(index: &'i Index, recipes: Vec<&'a Recipe>, budget: &MatchBudget) -> File<'a, 'i> {
        let names: Vec<&str> = index.keys().map(String::as_str).collect();
        let seen: Vec<Seen<'a>> = recipes
            .into_iter()
            .map(|recipe| Seen::of(recipe, index, &names, budget))
            .collect();
        let unlike = |one: &Seen<'_>, other: &Seen<'_>| {
            let mut counts = vec![0];
            for (_, tensors) in &one.blocks {
                let mut of = tensors.iter().map(|i| other.claimed[*i]);
                let first = of.next().flatten();
                let is_part = first.is_some() && of.all(|block| block == first);
                counts.push(counts[counts.len() - 1] + usize::from(!is_part));
            }
            counts
        };
        let of = |one| seen.iter().map(|other| unlike(one, other)).collect();
        let unlike = seen.iter().map(of).collect();
        File {
            names,
            seen,
            unlike,
        }
    }

    /// The families below a path.
    fn divide(&self, path: &str, tensors: Range<usize>, depth: usize) -> Vec<Region> {
        let mut below = Vec::new();
        if depth < MOST_DEPTH {
            for (path, tensors) in self.children(path, tensors.clone()) {
                below.extend(self.divide(path, tensors, depth + 1));
            }
        }
        if self.are_networks(&below, &tensors) {
            return below;
        }
        let below = match self.network_beside(path, &tensors, below, true) {
            Ok(regions) => return regions,
            Err(below) => below,
        };
        let fitting = self.fitting(&below, path, &tensors);
        if !fitting.is_empty() {
            return vec![Region {
                path: path.to_owned(),
                tensors,
                recipes: fitting,
                host: None,
            }];
        }
        let is_host = |i: &usize| self.hosts(*i, &below, path, &tensors);
        let Some(host) = (0..self.seen.len()).find(is_host) else {
            let network = self.network_beside(path, &tensors, below, false);
            return network.unwrap_or_else(|below| below);
        };
        let network = Region {
            path: path.to_owned(),
            tensors,
            recipes: vec![host],
            host: None,
        };
        let guests = below.into_iter().filter(|r| !self.explains(host, r));
        let guests = guests.map(|guest| Region {
            host: Some(host).filter(|_| self.seen[host].bounds.hold(&guest.path)),
            ..guest
        });
        std::iter::once(network).chain(guests).collect()
    }

    /// The network below a path without the modules of others, and what was found in those; as it was, if there is none.
    fn network_beside(
        &self,
        path: &str,
        tensors: &Range<usize>,
        below: Vec<Region>,
        is_bounded: bool,
    ) -> Result<Vec<Region>, Vec<Region>> {
        let modules: Vec<Range<usize>> = self.modules(path, tensors.clone()).map(|m| m.1).collect();
        let others = |i: usize| self.others(i, &modules, &below, is_bounded);
        let is_network = |i: &usize| {
            let (seen, others) = (&self.seen[*i], others(*i));
            let is_evident = match is_bounded {
                true => seen.bounds.are_known(),
                false => !seen.recipe.when.is_empty() && seen.is_in_several(&modules, &others),
            };
            let finds = |range: &&Range<usize>| {
                let mut found = below.iter();
                found.any(|region| range.contains(&region.tensors.start))
            };
            let is_own =
                |region: &&Region| !others.iter().any(|o| o.contains(&region.tensors.start));
            let mut own = below.iter().filter(is_own);
            (is_evident || seen.has_across(&modules, tensors))
                && own.all(|region| self.explains(*i, region))
                && others.len() + 1 < modules.len()
                && others.iter().any(finds)
                && seen.fits_without(tensors, &others)
        };
        let found: Vec<usize> = (0..self.seen.len()).filter(is_network).collect();
        // The network has most of the modules; those beside it are fewer.
        let count = |i: &usize| others(*i).len();
        let fewest = found.iter().map(count).min();
        let networks: Vec<usize> = found
            .into_iter()
            .filter(|i| Some(count(i)) == fewest)
            .collect();
        let Some(first) = networks.first() else {
            return Err(below);
        };
        let others = others(*first);
        let is_other = |region: &Region| others.iter().any(|o| o.contains(&region.tensors.start));
        let beside: Vec<bool> = below.iter().map(is_other).collect();
        let network = Region {
            path: path.to_owned(),
            tensors: tensors.clone(),
            recipes: networks,
            host: None,
        };
        let beside = below.into_iter().zip(beside).filter(|(_, is)| *is);
        Ok(std::iter::once(network)
            .chain(beside.map(|(region, _)| region))
            .collect())
    }

    /// Those of some modules that a recipe's network does not consist of.
    fn others<'m>(
        &self,
        recipe: usize,
        modules: &'m [Range<usize>],
        below: &[Region],
        is_bounded: bool,
    ) -> Vec<&'m Range<usize>> {
        let seen = &self.seen[recipe];
        let is_other = |module: &&Range<usize>| {
            let mut inside = below.iter().filter(|r| module.contains(&r.tensors.start));
            let first = self.names.get(module.start);
            // Within the modules that a recipe says, what it does not explain are guests.
            let may_have_guests = is_bounded && seen.bounds.are_known();
            first.is_some_and(|name| !seen.bounds.hold(name))
                || !may_have_guests && inside.any(|region| !self.explains(recipe, region))
        };
        modules.iter().filter(is_other).collect()
    }

    /// The recipes that a part of a file may be of as a whole: several where they fit equally well.
    fn fitting(&self, below: &[Region], path: &str, tensors: &Range<usize>) -> Vec<usize> {
        let all = 0..self.seen.len();
        let fitting: Vec<usize> = all.filter(|i| self.seen[*i].fits(tensors)).collect();
        let mut whole = fitting.clone();
        // What has its own evidence and shares nothing with a recipe is another network, though it is found in no one module. Beside
        // one that asks for no evidence, a block is enough.
        let is_apart = |i: &usize, other: &usize| {
            let [recipe, other] = [&self.seen[*i], &self.seen[*other]];
            let is_claimed = |tensor: &usize| recipe.claimed[*tensor].is_some();
            let is_free = |block: &(usize, Vec<usize>)| !block.1.iter().any(is_claimed);
            let mut blocks = other.blocks_in(tensors);
            let is_free = match recipe.recipe.when.is_empty() {
                true => blocks.any(is_free),
                false => blocks.all(is_free),
            };
            is_free && !other.recipe.when.is_empty()
        };
        whole.retain(|i| !fitting.iter().any(|other| is_apart(i, other)));
        // A recipe that found its evidence is preferred to one that asks for none.
        whole.retain(|i| below.iter().all(|region| self.explains(*i, region)));
        if whole.iter().any(|i| !self.seen[*i].recipe.when.is_empty()) {
            whole.retain(|i| !self.seen[*i].recipe.when.is_empty());
        }
        // Of blocks in blocks, the outer ones are right. (Those that are found by the same tensors are the same blocks.)
        let here = |i: usize| Region {
            path: path.to_owned(),
            tensors: tensors.clone(),
            recipes: vec![i],
            host: None,
        };
        let found = |i: usize| {
            let blocks = &self.seen[i].blocks;
            let here = within(blocks, tensors, |block| block.0);
            let anchors = blocks[here].iter().map(|block| block.0);
            anchors.collect::<BTreeSet<_>>()
        };
        let outermost = |i: &usize| {
            let mut others = whole.iter().filter(|other| *other != i);
            others.all(|other| {
                self.explains(*i, &here(*other))
                    && !self.explains(*other, &here(*i))
                    && found(*i).is_disjoint(&found(*other))
            })
        };
        match whole.iter().copied().find(outermost) {
            Some(outer) => vec![outer],
            None => whole,
        }
    }

    /// Whether a part of a file is a network of this recipe with the networks below it as guests.
    fn hosts(&self, host: usize, below: &[Region], path: &str, tensors: &Range<usize>) -> bool {
        let seen = &self.seen[host];
        if !seen.recipe.host {
            return false;
        }
        let others: Vec<&Region> = below.iter().filter(|r| !self.explains(host, r)).collect();
        let has_guest = others.iter().any(|r| seen.bounds.hold(&r.path));
        let is_others = |tensor: usize| others.iter().any(|r| r.tensors.contains(&tensor));
        // A network that is whole further down has nothing to do with what stands beside it.
        let outside = |block: &(usize, Vec<usize>)| {
            let inside = |region: &Region| region.tensors.contains(&block.0);
            !below.iter().any(inside)
        };
        let own = below.len() - others.len();
        let spreads = own > 1 || seen.blocks_in(tensors).any(outside);
        let is_below = |root: &String| path == root || is_in(path, root);
        let begins = seen
            .roots
            .iter()
            .chain(seen.bounds.networks())
            .any(is_below);
        spreads && begins && has_guest && seen.fits_beside(tensors, &is_others)
    }

    /// Whether what was found are networks side by side: all of the file below a path, each with its own evidence and nothing
    /// in the others that speaks against it.
    fn are_networks(&self, regions: &[Region], tensors: &Range<usize>) -> bool {
        let mut recipes: Vec<&[usize]> = regions.iter().map(|r| r.recipes.as_slice()).collect();
        recipes.sort();
        recipes.dedup();
        let evident = |region: &Region| match region.recipes[..] {
            [recipe] => {
                let seen = &self.seen[recipe];
                let against = &seen.unless[within(&seen.unless, tensors, |i| *i)];
                let outside = against
                    .iter()
                    .any(|tensor| !region.tensors.contains(tensor));
                !seen.recipe.when.is_empty() && region.host.is_none() && !outside
            }
            _ => false,
        };
        let covered: usize = regions.iter().map(|region| region.tensors.len()).sum();
        regions.len() > 1
            && recipes.len() == regions.len()
            && regions.iter().all(evident)
            && covered == tensors.len()
    }

    /// Whether every block of a region is a recipe's own, or a part of one.
    fn explains(&self, recipe: usize, region: &Region) -> bool {
        let unlike = |other: &usize| {
            let blocks = within(&self.seen[*other].blocks, &region.tensors, |block| block.0);
            let counts = &self.unlike[*other][recipe];
            counts[blocks.end] - counts[blocks.start]
        };
        // What asks for no evidence does not outweigh what has found its own.
        let outweighed = |other: &usize| {
            self.seen[recipe].recipe.when.is_empty() && !self.seen[*other].recipe.when.is_empty()
        };
        let is_part = |other: &usize| unlike(other) == 0 && !outweighed(other);
        region.recipes.contains(&recipe) || region.recipes.iter().all(is_part)
    }

    /// The modules directly below a path, each with its tensors.
    fn modules<'s>(
        &'s self,
        path: &str,
        tensors: Range<usize>,
    ) -> impl Iterator<Item = Module<'i>> + use<'s, 'a, 'i> {
        let mut next = tensors.start;
        let end = tensors.end;
        let skip = if path.is_empty() { 0 } else { path.len() + 1 };
        std::iter::from_fn(move || {
            while next < end {
                let name = self.names[next];
                let Some(dot) = name[skip..].find('.') else {
                    next += 1;
                    continue;
                };
                let child = &name[..skip + dot];
                let of_child = |name: &&str| is_in(name, child);
                let count = self.names[next..end].partition_point(of_child);
                let tensors = next..next + count;
                next = tensors.end;
                return Some((child, tensors));
            }
            None
        })
    }

    /// Those of them in which blocks are found.
    fn children<'s>(
        &'s self,
        path: &str,
        tensors: Range<usize>,
    ) -> impl Iterator<Item = Module<'i>> + use<'s, 'a, 'i> {
        self.modules(path, tensors).filter(|(_, tensors)| {
            let found = |seen: &Seen<'_>| !within(&seen.blocks, tensors, |b| b.0).is_empty();
            self.seen.iter().any(found)
        })
    }

    /// A recipe is used for parts of a file only if all that speaks against it is of other families, and of none that stands
    /// between those parts: that would be one network with them.
    fn that_nothing_speaks_against(&self, mut regions: Vec<Region>) -> Vec<Region> {
        let fits = |i: usize| {
            let (own, others): (Vec<&Region>, Vec<&Region>) = regions
                .iter()
                .partition(|region| region.recipes.contains(&i));
            let within = |regions: &[&Region], tensor: usize| {
                let mut regions = regions.iter();
                regions.any(|region| region.tensors.contains(&tensor))
            };
            let first = own.iter().map(|region| region.tensors.start).min();
            let end = own.iter().map(|region| region.tensors.end).max();
            let between = |tensor: usize| first <= Some(tensor) && Some(tensor) < end;
            let is_of_another = |tensor: &usize| {
                within(&own, *tensor) || within(&others, *tensor) && !between(*tensor)
            };
            self.seen[i].unless.iter().all(is_of_another)
        };
        let fits: Vec<bool> = (0..self.seen.len()).map(fits).collect();
        regions.retain(|region| region.recipes.iter().all(|i| fits[*i]));
        regions
    }
}

/// Those of a sorted list that lie in a range.
fn within<T>(sorted: &[T], range: &Range<usize>, key: impl Fn(&T) -> usize) -> Range<usize> {
    let start = sorted.partition_point(|x| key(x) < range.start);
    let end = sorted.partition_point(|x| key(x) < range.end);
    start..end.max(start)
}

impl<'a> Seen<'a> {
    fn of(recipe: &'a Recipe, index: &Index, all: &[&str], budget: &MatchBudget) -> Seen<'a> {
        // Every name is one of the file.
        let number = |tensor: &Tensor| all.binary_search(&tensor.name()).ok();
        let bounds = Bounds::of(recipe, index);
        let matching = |pattern: &Pattern| -> Vec<usize> {
            let found = anywhere(index, pattern);
            let own = found.filter(|(tensor, _)| bounds.hold(tensor.name()));
            own.filter_map(|(tensor, _)| number(tensor)).collect()
        };
        let sorted = |patterns: &[Pattern]| {
            let mut found: Vec<usize> = patterns.iter().flat_map(matching).collect();
            found.sort_unstable();
            found
        };
        let own: Vec<(&BlockRule, Vec<Pattern>)> =
            recipe.blocks.iter().map(|rule| (rule, own(rule))).collect();
        let root = |pattern: &Pattern| -> Vec<String> {
            let found = anywhere(index, pattern);
            let path = |captures: Captures| captures.get(pattern.prefix()?).map(str::to_owned);
            found.filter_map(|(_, captures)| path(captures)).collect()
        };
        let roots = match recipe.host {
            true => recipe.when.iter().flatten().flat_map(root).collect(),
            false => BTreeSet::new(),
        };
        let mut blocks: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut claimed = vec![None; all.len()];
        for start in possible_starts(recipe, index, budget) {
            // As in a plan, the first rule has it.
            let free = number(start.anchor)
                .filter(|anchor| claimed[*anchor].is_none())
                .filter(|_| bounds.hold(start.anchor.name()) && is_start(&start, index));
            let of_rule = own.iter().find(|(rule, _)| std::ptr::eq(*rule, start.rule));
            let (Some(anchor), Some((_, own))) = (free, of_rule) else {
                continue;
            };
            let mut tensors: Vec<usize> = tensors_of(&start, own, index, budget)
                .iter()
                .filter_map(number)
                .collect();
            tensors.sort_unstable();
            tensors.dedup();
            for tensor in &tensors {
                claimed[*tensor].get_or_insert(blocks.len());
            }
            blocks.push((anchor, tensors));
        }
        blocks.sort();
        Seen {
            recipe,
            blocks,
            claimed,
            when: recipe.when.iter().map(|any| sorted(any)).collect(),
            unless: sorted(&recipe.unless),
            roots,
            bounds,
        }
    }

    /// The blocks that are whole in a part of the file.
    fn blocks_in<'s>(
        &'s self,
        range: &'s Range<usize>,
    ) -> impl Iterator<Item = &'s (usize, Vec<usize>)> {
        let blocks = &self.blocks[within(&self.blocks, range, |block| block.0)];
        let is_in = move |block: &&(usize, Vec<usize>)| {
            let ends = [block.1.first(), block.1.last()];
            ends.iter().flatten().all(|tensor| range.contains(tensor))
        };
        blocks.iter().filter(is_in)
    }

    /// Whether the recipe needs several of some modules, without those of others: it has blocks in several, or does not hold for
    /// one alone.
    fn is_in_several(&self, modules: &[Range<usize>], others: &[&Range<usize>]) -> bool {
        let own = || modules.iter().filter(|module| !others.contains(module));
        let has_block = |module: &&Range<usize>| self.blocks_in(module).next().is_some();
        own().filter(has_block).count() > 1 || !own().any(|module| self.fits(module))
    }

    /// Whether a block stands in several of some modules.
    fn has_across(&self, modules: &[Range<usize>], tensors: &Range<usize>) -> bool {
        let across = |block: &(usize, Vec<usize>)| {
            let is_in =
                |module: &Range<usize>| block.1.iter().all(|tensor| module.contains(tensor));
            !modules.iter().any(is_in)
        };
        self.blocks_in(tensors).any(across)
    }

    /// Whether the recipe holds for a part of the file without some modules of it.
    fn fits_without(&self, tensors: &Range<usize>, others: &[&Range<usize>]) -> bool {
        let is_own = |tensor: &usize| {
            let mut others = others.iter();
            tensors.contains(tensor) && !others.any(|other| other.contains(tensor))
        };
        let mut blocks = self.blocks_in(tensors);
        blocks.any(|(_, tensors)| tensors.iter().all(is_own))
            && self.when.iter().all(|any| any.iter().any(is_own))
            && !self.unless.iter().any(|tensor| tensors.contains(tensor))
    }

    /// Whether the recipe holds for a part of the file.
    fn fits(&self, tensors: &Range<usize>) -> bool {
        self.fits_beside(tensors, &|_| false)
    }

    /// The same, where some tensors are not its own: they do not speak against it.
    fn fits_beside(&self, tensors: &Range<usize>, other: &dyn Fn(usize) -> bool) -> bool {
        let any = |sorted: &Vec<usize>| !within(sorted, tensors, |i| *i).is_empty();
        let against = &self.unless[within(&self.unless, tensors, |i| *i)];
        self.blocks_in(tensors).next().is_some()
            && self.when.iter().all(any)
            && against.iter().all(|tensor| other(*tensor))
    }
}

/// The names of a rule's tensors.
fn own(rule: &BlockRule) -> Vec<Pattern> {
    let templates = rule
        .fuse
        .iter()
        .flat_map(|(_, template)| template.tensors());
    templates.map(|p| p.with_kinds_of(rule.at.iter())).collect()
}

/// The tensors that a block is made of.
fn tensors_of(
    start: &Start<'_>,
    own: &[Pattern],
    index: &Index,
    budget: &MatchBudget,
) -> Vec<Tensor> {
    let mut found = vec![start.anchor.clone()];
    for pattern in own {
        match pattern.fill(&start.captures) {
            Some(name) => found.extend(index.get(&name).cloned()),
            None if budget.may_go_on().is_ok() => {
                let named = budget.names(index, pattern, &start.captures);
                found.extend(named.map(|(tensor, _)| tensor.clone()));
            }
            None => {}
        }
    }
    // What a block makes superfluous is its own, too.
    let dropped = dropped(start.rule, &start.captures, index);
    found.extend(dropped.into_iter().cloned());
    found
}
