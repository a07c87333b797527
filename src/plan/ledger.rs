//! The ledger of a plan: block by block it takes tensors, and at the end it decides about those that no block took.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::agree::{Agreement, without_numbers};
use super::classes::Unknown;
use super::closed::{Beside, Region, Regions};
use super::counters::expect_counters;
use super::leftover::{Half, Lack, Operators};
use super::path::{is_below, module_or_own, modules_above};
use super::select::Select;
use super::{
    Applied, Block, EpsSource, Left, Options, Plan, Planned, PlannedConv, Source, copies, copy,
    facts, stored_type, structure,
};
use crate::algebra::shape::resolve;
use crate::algebra::{GeometryError, Resolved};
use crate::recipe::Error;
use crate::recipe::dropped::dropped;
use crate::recipe::expand::{Expanded, Index, MOST_OPERATORS, MatchBudget, expand, wanted_conv};
use crate::recipe::model::{BATCH_COUNT, BlockRule, NORM, Recipe, Template};
use crate::recipe::near::owner;
use crate::recipe::pattern::{Captures, Pattern, covers};
use crate::recipe::start::{Start, misshapen};
use crate::tensor::{Tensor, quoted};

/// A recipe may make several convs of one tensor, but a small file no endless plan.
const CONVS_PER_TENSOR: usize = 8;

/// Nor may a few tensors become operators without end.
const OPERATORS_PER_TENSOR: usize = 64;

/// What has been decided about the tensors of a file so far.
pub(super) struct Ledger<'a> {
    pub(super) index: &'a Index,
    pub(super) recipe: &'a Recipe,
    pub(super) options: &'a Options,
    /// What has been decided about a tensor: taken by a block, or kept by the user's wish.
    pub(super) taken: HashMap<String, Fate>,
    used_names: HashSet<String>,
    pub(super) blocks: Vec<Block>,
    /// The convs of all blocks so far.
    convs: usize,
    /// The operators that they are fused from.
    operators: usize,
    /// The names that were tried for them.
    pub(super) budget: &'a MatchBudget,
    pub(super) skipped: Vec<String>,
    pub(super) left: Vec<Left>,
    /// The first that has a class which the recipe does not know.
    pub(super) stranger: Option<Unknown>,
    pub(super) dropped: Vec<Tensor>,
    renamed: BTreeMap<String, String>,
    /// What blocks use and leave where it is.
    kept: HashSet<String>,
    /// The name of a block, a tensor that it sets, and the number.
    filled: Vec<(String, Tensor, f64)>,
    /// What each block says is its own.
    pub(super) regions: Vec<Region>,
    /// Whether the blocks have what they may have.
    agreement: Agreement,
}

/// What decides about the tensors that no block has.
struct Around<'a> {
    regions: Regions,
    operators: Operators<'a>,
    beside: Beside<'a>,
    /// The names of all tensors of blocks, without their numbers.
    kinds: OnceCell<HashSet<String>>,
}

/// A tensor that is left of a block which is not whole.
struct Orphaned {
    error: Box<Error>,
    /// Whether that block lacks something; where it does not, the tensor is one more.
    has_lack: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A part of the block with this number.
    Fused(usize),
    /// Of a block that the user left out.
    Kept,
    /// Written with one number everywhere.
    Filled,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(
        index: &'a Index,
        recipe: &'a Recipe,
        options: &'a Options,
        budget: &'a MatchBudget,
    ) -> Ledger<'a> {
        Ledger {
            index,
            recipe,
            options,
            taken: HashMap::new(),
            used_names: HashSet::new(),
            blocks: Vec::new(),
            convs: 0,
            operators: 0,
            budget,
            skipped: Vec::new(),
            left: Vec::new(),
            stranger: None,
            dropped: Vec::new(),
            renamed: BTreeMap::new(),
            kept: HashSet::new(),
            filled: Vec::new(),
            regions: Vec::new(),
            agreement: Agreement::default(),
        }
    }

    /// Enters a block with all that it writes.
    pub(super) fn block(&mut self, start: &Start<'_>, select: &Select) -> Result<(), Error> {
        let Start { rule, captures, .. } = start;
        let name = self.name_of(rule, captures)?;
        if !select.takes(&name) {
            self.leave(start, &name);
            self.skipped.push(name);
            return Ok(());
        }
        self.expect_whole(start, &name)?;
        let mut block = Block {
            name,
            fused: Vec::new(),
            consumed: Vec::new(),
            assumes_identity: false,
        };
        let mut optional = Vec::new();
        for (module, template) in &rule.fuse {
            let (mut conv, mut expanded) = self.fused(module, template, start, &block.name)?;
            if rule.exported {
                conv.exported = exported(&conv, self.index);
            }
            block.fused.push(conv);
            block.consumed.append(&mut expanded.claimed);
            block.assumes_identity |= expanded.assumes_identity;
            optional.append(&mut expanded.optional);
        }
        let dropped = dropped(rule, captures, self.index);
        block.consumed.extend(dropped.into_iter().cloned());
        block.consumed.sort_by(|a, b| a.name().cmp(b.name()));
        block.consumed.dedup_by(|a, b| a.name() == b.name());
        if self.is_again(&block.consumed) {
            return Ok(());
        }
        expect_counters(&block.consumed).map_err(|message| Error::Block {
            block: block.name.clone(),
            message,
        })?;
        let used = block.consumed.iter().map(Tensor::name);
        let region = Region::of(&block.name, rule, captures, used);
        self.take(&mut block, start)?;
        self.regions.push(region);
        let is_rule = |other: &BlockRule| std::ptr::eq(other, *rule);
        let number = self.recipe.blocks.iter().position(is_rule);
        for part in optional {
            self.agreement.note(number, &block.name, part);
        }
        for (from, to) in &rule.rename {
            if let (Some(from), Some(to)) = (from.fill(captures), to.fill(captures)) {
                self.rename(&from, &to);
            }
        }
        self.blocks.push(block);
        Ok(())
    }

    /// Checks that a block has what the recipe's `where` asks for, and that the recipe does not make convs without end.
    fn expect_whole(&mut self, start: &Start<'_>, block: &str) -> Result<(), Error> {
        let Start { rule, captures, .. } = start;
        let fail = |message: String| Error::Block {
            block: block.to_owned(),
            message,
        };
        self.convs += rule.fuse.len();
        let (tensors, convs) = (self.index.len(), self.convs);
        let most = CONVS_PER_TENSOR * tensors;
        if convs > most {
            return Err(fail(format!(
                "with it the recipe makes {convs} convs of {tensors} tensors; at most {most} are planned"
            )));
        }
        // A start with a tensor missing was let through as half a block.
        let wanted = rule.shapes.iter().filter(|(_, shape)| shape.is_some());
        let mut names = wanted.filter_map(|(pattern, _)| pattern.fill(captures));
        if let Some(name) = names.find(|name| !self.index.contains_key(name)) {
            return Err(fail(format!("{} is missing", quoted(&name))));
        }
        match misshapen(rule, captures, self.index) {
            Some(message) => Err(fail(message)),
            None => Ok(()),
        }
    }

    /// Takes the tensors of a block, and those that it keeps or sets.
    fn take(&mut self, block: &mut Block, start: &Start<'_>) -> Result<(), Error> {
        let Start { rule, captures, .. } = start;
        let kept: Vec<String> = rule.keep.iter().filter_map(|p| p.fill(captures)).collect();
        block
            .consumed
            .retain(|tensor| !kept.iter().any(|name| name == tensor.name()));
        self.kept.extend(kept);
        let fate = Fate::Fused(self.blocks.len());
        for tensor in &block.consumed {
            if let Some(other) = self.taken.insert(tensor.name().to_owned(), fate) {
                let of = match other {
                    Fate::Fused(i) => format!("block {}", quoted(&self.blocks[i].name)),
                    _ => "another block".to_owned(),
                };
                return Err(Error::Block {
                    block: block.name.clone(),
                    message: format!("{tensor} is a part of {of} too; a tensor can be fused once"),
                });
            }
        }
        for (pattern, value) in &rule.set {
            let name = pattern.fill(captures);
            if let Some(tensor) = name.and_then(|name| self.index.get(&name)) {
                self.taken.insert(tensor.name().to_owned(), Fate::Filled);
                let filled = (block.name.clone(), tensor.clone(), *value);
                self.filled.push(filled);
            }
        }
        Ok(())
    }

    /// Whether these are the tensors of a block that has been found by another of them. (What it was found by now is none of
    /// them: an anchor may say "any tensor of this module".)
    fn is_again(&self, consumed: &[Tensor]) -> bool {
        let first = consumed.first().and_then(|t| self.taken.get(t.name()));
        let Some(Fate::Fused(block)) = first else {
            return false;
        };
        let names = |tensors: &[Tensor]| {
            tensors
                .iter()
                .map(|t| t.name().to_owned())
                .collect::<Vec<_>>()
        };
        names(&self.blocks[*block].consumed) == names(consumed)
    }

    /// One output of a block, and what else there is to know of its expression.
    fn fused(
        &mut self,
        module: &Pattern,
        template: &Template,
        start: &Start<'_>,
        block: &str,
    ) -> Result<(PlannedConv, Expanded), Error> {
        let Start { rule, captures, .. } = start;
        let fail = |message: String| Error::Block {
            block: block.to_owned(),
            message,
        };
        let given = self.bn_eps();
        let eps = |own: Option<f64>| given.or(own).or(self.recipe.eps);
        let (mut expr, expanded) =
            expand(template, captures, self.index, &eps, self.budget).map_err(fail)?;
        facts::told(&mut expr, given).map_err(fail)?;
        if !self.options.by_names {
            structure::agrees(&expr, template, captures).map_err(|message| {
                Error::Contradicted {
                    block: block.to_owned(),
                    recipe: self.recipe.name.clone(),
                    message,
                }
            })?;
        }
        if let Some(message) = facts::without_eps(&expr).filter(|_| given.is_none()) {
            return Err(Error::NoEps {
                block: block.to_owned(),
                message,
            });
        }
        self.operators += expanded.operators;
        let most = MOST_OPERATORS + OPERATORS_PER_TENSOR * self.index.len();
        if self.operators > most {
            return Err(fail(format!(
                "with it the recipe makes {} operators of {} tensors; at most {most} are planned",
                self.operators,
                self.index.len()
            )));
        }
        let module = named(module, captures).map_err(fail)?;
        let expr =
            resolve(expr).map_err(|source| match (&source, wanted_conv(template, captures)) {
                (GeometryError::NoConv, Some(conv)) => {
                    fail(format!("no conv of it is in the file; {conv} would be one"))
                }
                _ => Error::Shapes {
                    block: block.to_owned(),
                    source,
                },
            })?;
        same_axes(&expr).map_err(fail)?;
        let expr = stored_like(expr, &format!("{module}.weight"));
        if let Some(leaf) = expr.root().constant().filter(|_| !rule.bias) {
            return Err(fail(format!(
                "{leaf} adds a constant, and the recipe says that the block has no `bias`"
            )));
        }
        let stored = stored_type(expr.root()).map_err(fail)?;
        let turned = expr
            .root()
            .convs()
            .into_iter()
            .find(|(_, g)| g.transposed());
        if let Some((conv, _)) = turned.filter(|(conv, _)| conv.weight.is_channels_last()) {
            return Err(fail(format!(
                "{} is a transposed conv, which is not read from a file of `format: mlx`; store the file as PyTorch does",
                conv.weight
            )));
        }
        let fused = PlannedConv {
            module,
            expr,
            bias: rule.bias,
            dtype: self.options.dtype.unwrap_or(stored),
            exported: Vec::new(),
        };
        Ok((fused, expanded))
    }

    /// The dotted path that the block's names share; the first output's module if that is empty or taken.
    ///
    /// # Errors
    /// When neither is a name.
    pub(super) fn name_of(
        &mut self,
        rule: &BlockRule,
        captures: &Captures,
    ) -> Result<String, Error> {
        let path = rule.path(captures);
        let fail = |block: &str| {
            let block = block.to_owned();
            |message: String| Error::Block { block, message }
        };
        let free = |path: &&str| !path.is_empty() && !self.used_names.contains(*path);
        let name = match (path.filter(free), rule.fuse.first()) {
            (Some(path), _) => path.to_owned(),
            (None, Some((module, _))) => named(module, captures).map_err(fail(module.text()))?,
            (None, None) => {
                let empty = "`fuse` is empty; a block needs a tensor to start at and an output";
                return Err(fail(&self.recipe.name)(empty.to_owned()));
            }
        };
        self.used_names.insert(name.clone());
        Ok(name)
    }

    fn rename(&mut self, from: &str, to: &str) {
        for tensor in below(self.index, from) {
            self.renamed.insert(
                tensor.name().to_owned(),
                format!("{to}{}", &tensor.name()[from.len()..]),
            );
        }
    }

    /// The plan: what becomes of every tensor.
    pub(super) fn finish(mut self, select: &Select) -> Result<Plan, Error> {
        if let Some((block, message)) = self.agreement.odd() {
            return Err(Error::Block { block, message });
        }
        let mut outputs = Vec::new();
        self.rest(select, &mut outputs)?;
        for (block, tensor, value) in &self.filled {
            outputs.push(filled(block, tensor, *value)?);
        }
        for (b, block) in self.blocks.iter().enumerate() {
            for (f, fused) in block.fused.iter().enumerate() {
                outputs.extend(fused.outputs([b, f]));
            }
        }
        let recipe = self.recipe;
        let (eps, eps_source) = match (facts::all_eps(&self.blocks), self.bn_eps()) {
            (Some(told), _) => (told, EpsSource::File),
            (None, Some(eps)) => (Some(eps), EpsSource::User),
            (None, None) => (recipe.eps, EpsSource::Recipe),
        };
        Ok(Plan {
            recipe: recipe.name.clone(),
            eps,
            eps_source,
            eps_note: recipe.eps_note.clone(),
            families: vec![Applied {
                recipe: recipe.name.clone(),
                eps,
                eps_source,
                eps_note: recipe.eps_note.clone(),
                identity_note: recipe.identity_note.clone(),
                factor_note: recipe.factor_note.clone(),
                host: None,
                at: vec![String::new()],
                blocks: 0..self.blocks.len(),
            }],
            load: recipe.load.clone(),
            network: recipe.network.clone(),
            blocks: self.blocks,
            skipped: self.skipped,
            wrappers_removed: Vec::new(),
            left: self.left,
            outputs,
            dropped: self.dropped,
        })
    }

    /// Decides about every tensor that no block has: it is copied, or dropped by name.
    fn rest(&mut self, select: &Select, outputs: &mut Vec<Planned>) -> Result<(), Error> {
        let around = Around {
            regions: Regions::of(std::mem::take(&mut self.regions)),
            operators: Operators::of(self.recipe),
            beside: Beside::new(&self.recipe.beside, &self.options.beside)?,
            kinds: OnceCell::new(),
        };
        for tensor in self.index.values() {
            let name = tensor.name();
            match self.taken.get(name) {
                Some(Fate::Fused(_) | Fate::Filled) => continue,
                Some(Fate::Kept) => {
                    outputs.extend(copies(tensor, name));
                    continue;
                }
                None => {}
            }
            if self.is_dropped(name) {
                self.dropped.push(tensor.clone());
                continue;
            }
            if around.regions.are_left(name) {
                outputs.extend(copies(tensor, name));
                continue;
            }
            match self.is_of_half(tensor, &around) {
                Err(half) if !select.leaves(name) => return Err(*half.error),
                // What is left of a block may stand inside of another, as a whole one may that the user leaves.
                Err(half) if half.has_lack => {}
                _ => match self.is_no_stranger(tensor, &around) {
                    Err(_) if select.leaves(name) && self.counts_for_half(name, &around) => {}
                    found => found?,
                },
            }
            let to = self
                .renamed
                .remove(name)
                .or_else(|| renamed(&self.recipe.rename, name));
            outputs.extend(copies(tensor, to.as_deref().unwrap_or(name)));
        }
        Ok(())
    }

    /// Whether a tensor is what the recipe drops of a network that it has blocks of: another one may have the same names. (Where the
    /// recipe says the modules of its network, nothing else is looked at.)
    fn is_dropped(&self, name: &str) -> bool {
        let has_block = |path: &str| {
            let mut consumed = self.blocks.iter().flat_map(|block| &block.consumed);
            path.is_empty() || consumed.any(|tensor| is_below(tensor.name(), path))
        };
        let mut drops = self.recipe.drop.iter();
        drops.any(|pattern| {
            covers(pattern, name).is_some_and(|(_, captures)| {
                let path = pattern.prefix().and_then(|prefix| captures.get(prefix));
                !self.recipe.modules.is_empty() || path.is_none_or(has_block)
            })
        })
    }

    /// The error of a tensor that is left of a block which is not whole.
    fn orphan(&self, tensor: &Tensor, path: &str, missing: String) -> Orphaned {
        Orphaned {
            has_lack: !missing.is_empty(),
            error: Box::new(Error::Orphan {
                tensor: tensor.to_string(),
                name: tensor.name().to_owned(),
                block: self.name_of_half(path, tensor),
                recipe: self.recipe.name.clone(),
                missing: missing.into(),
            }),
        }
    }

    /// What a half block is called: the outermost module of it that has the tensor and no whole block, which is its path where that
    /// is its own.
    fn name_of_half(&self, path: &str, tensor: &Tensor) -> String {
        let is_own = |module: &&str| {
            let is_of_path = path.is_empty() || *module == path || is_below(module, path);
            let has = |block: &Block| block.name == **module || is_below(&block.name, module);
            is_of_path && !self.blocks.iter().any(has)
        };
        let mut modules = modules_above(tensor.name());
        let own = modules.find(is_own);
        own.unwrap_or(module_or_own(tensor.name())).to_owned()
    }

    /// Checks that a tensor which no block has is not left of one that is not whole.
    ///
    /// # Errors
    /// When it is.
    fn is_of_half(&self, tensor: &Tensor, around: &Around<'_>) -> Result<(), Orphaned> {
        let name = tensor.name();
        let owner = owner(self.recipe, tensor, self.index);
        let owner = owner.filter(|_| !self.kept.contains(name));
        let place = match owner {
            Some((place, missing)) if !missing.is_empty() => {
                return Err(self.orphan(tensor, &place, missing));
            }
            owner => owner.map(|(place, _)| place),
        };
        if self.kept.contains(name) {
            return Ok(());
        }
        if self.renamed.contains_key(name) {
            let place = place.filter(|_| !around.beside.covers(name));
            return place.map_or(Ok(()), |place| {
                Err(self.orphan(tensor, &place, String::new()))
            });
        }
        if around.beside.covers(name) {
            return Ok(());
        }
        let kinds = || {
            let consumed = self.blocks.iter().flat_map(|block| &block.consumed);
            consumed
                .map(|tensor| without_numbers(tensor.name()))
                .collect()
        };
        let like = |name: &str| {
            let kinds: &HashSet<String> = around.kinds.get_or_init(kinds);
            kinds.contains(&without_numbers(name))
        };
        let operators = &around.operators;
        match operators.leftover(tensor, self.index, &like, self.budget) {
            Some(Half { path, lack }) => Err(match lack {
                Lack::Missing(missing) => self.orphan(tensor, &path, missing),
                Lack::Misfit(said) => Orphaned {
                    error: Box::new(Error::Misfit {
                        tensor: tensor.to_string(),
                        block: self.name_of_half(&path, tensor),
                        recipe: self.recipe.name.clone(),
                        said,
                    }),
                    has_lack: true,
                },
            }),
            // Where nothing is missing, the tensor is one more.
            None => place.map_or(Ok(()), |place| {
                let more = self.orphan(tensor, &place, String::new());
                Err(match self.is_no_stranger(tensor, around) {
                    Ok(()) => more,
                    Err(error) => Orphaned {
                        error: Box::new(error),
                        ..more
                    },
                })
            }),
        }
    }

    /// Whether a tensor is the counter of a norm that is left of a block which is not whole.
    fn counts_for_half(&self, name: &str, around: &Around<'_>) -> bool {
        let mean = name
            .strip_suffix(BATCH_COUNT)
            .map(|norm| format!("{norm}{}", NORM[2]));
        let mean = mean.and_then(|mean| self.index.get(&mean));
        let half = mean.and_then(|mean| self.is_of_half(mean, around).err());
        half.is_some_and(|half| half.has_lack)
    }

    /// Checks that a tensor which no block has does not stand in one.
    ///
    /// # Errors
    /// When it stands in a block that does not know it.
    fn is_no_stranger(&self, tensor: &Tensor, around: &Around<'_>) -> Result<(), Error> {
        let name = tensor.name();
        if self.kept.contains(name) || self.renamed.contains_key(name) {
            return Ok(());
        }
        let tried = |n| self.budget.add(n);
        self.budget.may_go_on().map_err(|message| Error::Block {
            block: self.recipe.name.clone(),
            message,
        })?;
        around
            .regions
            .check(tensor, &self.recipe.name, &around.beside, &tried)
    }

    /// The eps that the user gave.
    fn bn_eps(&self) -> Option<f64> {
        let mut of = self.options.bn_eps_of.iter();
        let own = of.find(|(recipe, _)| *recipe == self.recipe.name);
        own.map(|(_, eps)| *eps).or(self.options.bn_eps)
    }
}

/// The name of an output module of a block.
fn named(module: &Pattern, captures: &Captures) -> Result<String, String> {
    let name = module.fill(captures);
    name.ok_or_else(|| format!("{module} has no name here: a number in it is below 0"))
}

/// What a file has of a fused conv beside what it is fused from.
fn exported(conv: &PlannedConv, index: &Index) -> Vec<Tensor> {
    let leaves = conv.expr.root().leaves();
    let is_leaf = |tensor: &&Tensor| leaves.iter().any(|leaf| leaf.name() == tensor.name());
    let found = conv.names().filter_map(|name| index.get(&name));
    found.filter(|tensor| !is_leaf(tensor)).cloned().collect()
}

/// A tensor that a block sets to one number everywhere.
fn filled(block: &str, tensor: &Tensor, value: f64) -> Result<Planned, Error> {
    let fail = |message: String| Error::Block {
        block: block.to_owned(),
        message,
    };
    match tensor.dtype().float() {
        None => Err(fail(format!(
            "{tensor} is {}; only a floating-point tensor can be set to {value}",
            tensor.dtype()
        ))),
        Some(float) if !float.round(value).is_finite() => Err(fail(format!(
            "{tensor} is {float}, which cannot hold the {value:e} it is set to"
        ))),
        Some(float) => Ok(Planned {
            what: Source::Fill(value, float),
            ..copy(tensor, tensor.name().to_owned())
        }),
    }
}

/// Checks that all convs of a block are stored with as many spatial axes. A matrix has none, and is a conv of one tap along any.
fn same_axes(expr: &Resolved<Tensor>) -> Result<(), String> {
    let convs = expr.root().convs().into_iter();
    let convs = convs.map(|(conv, _)| &conv.weight);
    let convs: Vec<_> = convs.filter(|weight| weight.shape().len() > 2).collect();
    let mut pairs = convs.windows(2);
    match pairs.find(|pair| pair[0].shape().len() != pair[1].shape().len()) {
        None => Ok(()),
        Some(pair) => Err(format!(
            "{} and {} have different numbers of dimensions; the convs of a block have the same",
            pair[0], pair[1]
        )),
    }
}

/// What takes the place of a weight keeps its number of dimensions: a Linear beside a Conv1d of size 1 stays a matrix.
fn stored_like(expr: Resolved<Tensor>, weight: &str) -> Resolved<Tensor> {
    let leaves = expr.root().leaves();
    let in_place = leaves.iter().find(|leaf| leaf.name() == weight);
    match in_place.map(|leaf| leaf.shape().len()) {
        Some(rank) => expr.with_rank(rank),
        None => expr,
    }
}

/// A tensor of this name, or the tensors of the module of this name.
fn below<'a>(index: &'a Index, module: &str) -> impl Iterator<Item = &'a Tensor> {
    let inside = format!("{module}.");
    let range = index.range::<str, _>((
        std::ops::Bound::Included(inside.as_str()),
        std::ops::Bound::Unbounded,
    ));
    let tensors = range
        .take_while(move |(name, _)| name.starts_with(&inside))
        .map(|(_, tensor)| tensor);
    index.get(module).into_iter().chain(tensors)
}

fn renamed(rules: &[(Pattern, Pattern)], name: &str) -> Option<String> {
    rules.iter().find_map(|(from, to)| {
        let (end, captures) = covers(from, name)?;
        Some(to.fill(&captures)? + &name[end..])
    })
}
