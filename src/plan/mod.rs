//! The plan: what becomes of every tensor of a file, decided from names and shapes alone.
//!
//! The ledger: each input tensor is fused, dropped by name, or copied, exactly once, and output names are unique.

mod agree;
mod classes;
pub(crate) mod closed;
mod facts;
mod families;
mod idle;
mod join;
mod leave;
mod leftover;
mod model;
mod parts;
mod prefix;
pub(crate) mod select;
mod without;
mod wrapped;

pub use families::{Applied, plan_families};
pub use idle::idle;
pub use model::{Block, EpsSource, Left, Options, Plan, Planned, PlannedConv, Source};
pub use select::glob;

use std::collections::{BTreeMap, HashMap, HashSet};

use self::agree::Agreement;
use self::classes::Unknown;
use self::closed::{Beside, Region, Regions};
use self::leftover::Operators;
use self::select::Select;
use crate::algebra::shape::resolve;
use crate::algebra::{GeometryError, Part, Resolved};
use crate::recipe::detect::{Start, is_start, nothing, possible_starts};
use crate::recipe::expand::{Expanded, Index, Looks, MOST_OPERATORS, expand, wanted_conv};
use crate::recipe::model::{BlockRule, Recipe, Template};
use crate::recipe::near::owner;
use crate::recipe::pattern::{Captures, Pattern, covers};
use crate::recipe::{Error, seen_through};
use crate::tensor::{Dtype, Float, Output, Tensor, quoted};

/// Plans a file by a recipe.
///
/// # Errors
/// When a block is not whole, shapes do not fit, an owned tensor is left over, or two outputs share a name.
pub fn plan(index: &Index, recipe: &Recipe, options: &Options) -> Result<Plan, Error> {
    let (dropped, rest) = without::split(index, &options.drop)?;
    let index = &*seen_through(rest.as_ref().unwrap_or(index), &[recipe])?;
    let select = Select::new(&options.only, &options.skip)?;
    let looks = Looks::default();
    let mut ledger = ledger_of(index, recipe, options, &select, &looks)?;
    ledger.dropped = dropped;
    match (
        ledger.blocks.len(),
        ledger.skipped.len(),
        ledger.stranger.take(),
    ) {
        (0, 0, Some(module)) => Err(module.refused(&recipe.name)),
        (0, 0, None) => Err(match nothing(index, std::slice::from_ref(recipe)) {
            Error::NoBlock { near } => Error::NoBlockOf {
                recipe: recipe.name.clone(),
                near,
            },
            other => other,
        }),
        (0, blocks, _) => Err(Error::NoneSelected { blocks }),
        _ => {
            select.expect_used()?;
            let mut plan = ledger.finish()?;
            wrapped::restore(&mut plan, index.values());
            plan.without_clashes()
        }
    }
}

/// Enters every block of a recipe.
fn ledger_of<'a>(
    index: &'a Index,
    recipe: &'a Recipe,
    options: &'a Options,
    select: &Select,
    looks: &'a Looks,
) -> Result<Ledger<'a>, Error> {
    let mut ledger = Ledger::new(index, recipe, options, looks);
    ledger.refuse_parts(select)?;
    let mut unknown = Vec::new();
    for start in possible_starts(recipe, index, looks) {
        let name = start.anchor.name();
        // Most anchors are found once for every tensor of their norm: the first has taken the others.
        if ledger.taken.contains_key(name)
            || recipe.drop.iter().any(|p| covers(p, name).is_some())
            || !is_start(&start, index)
        {
            continue;
        }
        match classes::unknown(&start).filter(|_| !options.by_names) {
            Some(module) => unknown.push((start, module)),
            None => ledger.block(&start, select)?,
        }
    }
    looks.may_go_on().map_err(|message| Error::Block {
        block: recipe.name.clone(),
        message,
    })?;
    for (start, module) in unknown {
        // Another rule may have known it.
        if !ledger.taken.contains_key(start.anchor.name()) {
            ledger.leave(&start, &module.module);
            select.skips(&module.module);
            ledger.left.push(module.left());
            ledger.stranger.get_or_insert(module);
        }
    }
    Ok(ledger)
}

/// A recipe may make several convs of one tensor, but a small file no endless plan.
const CONVS_PER_TENSOR: usize = 8;

/// Nor may a few tensors become operators without end.
const OPERATORS_PER_TENSOR: usize = 64;

struct Ledger<'a> {
    index: &'a Index,
    recipe: &'a Recipe,
    options: &'a Options,
    /// What has been decided about a tensor: taken by a block, or kept by the user's wish.
    taken: HashMap<String, Fate>,
    used_names: HashSet<String>,
    blocks: Vec<Block>,
    /// The convs of all blocks so far.
    convs: usize,
    /// The operators that they are fused from.
    operators: usize,
    /// The names that were tried for them.
    looked_at: &'a Looks,
    skipped: Vec<String>,
    left: Vec<Left>,
    /// The first that has a class which the recipe does not know.
    stranger: Option<Unknown>,
    dropped: Vec<Tensor>,
    renamed: BTreeMap<String, String>,
    /// What blocks use and leave where it is.
    kept: HashSet<String>,
    /// The name of a block, a tensor that it sets, and the number.
    filled: Vec<(String, Tensor, f64)>,
    /// What each block says is its own.
    regions: Vec<Region>,
    /// Whether the blocks have what they may have.
    agreement: Agreement,
}

/// What decides about the tensors that no block has.
struct Around<'a> {
    regions: Regions,
    operators: Operators<'a>,
    beside: Beside<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A part of the block with this number.
    Fused(usize),
    /// Of a block that the user left out.
    Kept,
    /// Written with one number everywhere.
    Filled,
}

impl<'a> Ledger<'a> {
    fn new(
        index: &'a Index,
        recipe: &'a Recipe,
        options: &'a Options,
        looked_at: &'a Looks,
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
            looked_at,
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

    fn block(&mut self, start: &Start<'_>, select: &Select) -> Result<(), Error> {
        let Start { rule, captures, .. } = start;
        let name = self.name_of(rule, captures);
        if !select.takes(&name) {
            self.leave(start, &name);
            self.skipped.push(name);
            return Ok(());
        }
        let fail = |message: String| Error::Block {
            block: name.clone(),
            message,
        };
        self.convs += rule.fuse.len();
        let most = CONVS_PER_TENSOR * self.index.len();
        if self.convs > most {
            return Err(fail(format!(
                "with it the recipe makes {} convs of {} tensors; at most {most} are planned",
                self.convs,
                self.index.len()
            )));
        }
        for (pattern, shape) in &rule.shapes {
            // Such a start was let through as half a block.
            let name = pattern.fill(captures).unwrap_or_default();
            if shape.is_some() && !self.index.contains_key(&name) {
                return Err(fail(format!("{} is missing", quoted(&name))));
            }
        }
        let (mut fused, mut consumed, mut assumes_identity) = (Vec::new(), Vec::new(), false);
        let mut optional = Vec::new();
        for (module, template) in &rule.fuse {
            let (conv, mut expanded) = self.fused(module, template, start, &name)?;
            fused.push(conv);
            consumed.append(&mut expanded.claimed);
            optional.append(&mut expanded.optional);
            assumes_identity |= expanded.assumes_identity;
        }
        for pattern in &rule.drop {
            consumed
                .extend(below(self.index, &pattern.fill(captures).unwrap_or_default()).cloned());
        }
        consumed.sort_by(|a, b| a.name().cmp(b.name()));
        consumed.dedup_by(|a, b| a.name() == b.name());
        let kept: Vec<String> = rule.keep.iter().filter_map(|p| p.fill(captures)).collect();
        if self.is_again(&consumed) {
            return Ok(());
        }
        let used = consumed.iter().map(Tensor::name);
        let region = Region::of(&name, rule, captures, used);
        consumed.retain(|tensor| !kept.iter().any(|name| name == tensor.name()));
        self.kept.extend(kept);
        let fate = Fate::Fused(self.blocks.len());
        for tensor in &consumed {
            if let Some(other) = self.taken.insert(tensor.name().to_owned(), fate) {
                let of = match other {
                    Fate::Fused(i) => format!("block {}", quoted(&self.blocks[i].name)),
                    _ => "another block".to_owned(),
                };
                return Err(fail(format!(
                    "{tensor} is a part of {of} too; a tensor can be fused once"
                )));
            }
        }
        self.regions.push(region);
        let is_rule = |other: &BlockRule| std::ptr::eq(other, *rule);
        let number = self.recipe.blocks.iter().position(is_rule);
        for part in optional {
            self.agreement.note(number, &name, part);
        }
        for (from, to) in &rule.rename {
            self.rename(
                &from.fill(captures).unwrap_or_default(),
                &to.fill(captures).unwrap_or_default(),
            );
        }
        for (pattern, value) in &rule.set {
            let filled = pattern
                .fill(captures)
                .and_then(|name| self.index.get(&name));
            if let Some(tensor) = filled {
                self.taken.insert(tensor.name().to_owned(), Fate::Filled);
                self.filled.push((name.clone(), tensor.clone(), *value));
            }
        }
        self.blocks.push(Block {
            name,
            fused,
            consumed,
            assumes_identity,
        });
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
        // A recipe with norms has an eps; without one, no number is made of it.
        let eps = |own: Option<f64>| given.or(own).or(self.recipe.eps).unwrap_or(f64::NAN);
        let (mut expr, expanded) =
            expand(template, captures, self.index, &eps, self.looked_at).map_err(fail)?;
        facts::told(&mut expr, given).map_err(fail)?;
        self.operators += expanded.operators;
        let most = MOST_OPERATORS + OPERATORS_PER_TENSOR * self.index.len();
        if self.operators > most {
            return Err(fail(format!(
                "with it the recipe makes {} operators of {} tensors; at most {most} are planned",
                self.operators,
                self.index.len()
            )));
        }
        let module = module.fill(captures).ok_or_else(|| {
            fail(format!(
                "{module} has no name here: a number in it is below 0"
            ))
        })?;
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
        let expr = stored_like(expr, &format!("{module}.weight"));
        if let Some(leaf) = expr.root().constant().filter(|_| !rule.bias) {
            return Err(fail(format!(
                "{leaf} adds a constant, and the recipe says that the block has no `bias`"
            )));
        }
        let stored = stored_type(expr.root()).map_err(fail)?;
        let fused = PlannedConv {
            module,
            expr,
            bias: rule.bias,
            dtype: self.options.dtype.unwrap_or(stored),
        };
        Ok((fused, expanded))
    }

    /// The dotted path that the block's names share; the first output's module if that is empty or taken.
    fn name_of(&mut self, rule: &BlockRule, captures: &Captures) -> String {
        let path = rule.path(captures).map(str::to_owned);
        let module = rule
            .fuse
            .first()
            .and_then(|(module, _)| module.fill(captures))
            .unwrap_or_default();
        let name = path
            .filter(|path| !path.is_empty() && !self.used_names.contains(path))
            .unwrap_or(module);
        self.used_names.insert(name.clone());
        name
    }

    fn rename(&mut self, from: &str, to: &str) {
        for tensor in below(self.index, from) {
            self.renamed.insert(
                tensor.name().to_owned(),
                format!("{to}{}", &tensor.name()[from.len()..]),
            );
        }
    }

    fn finish(mut self) -> Result<Plan, Error> {
        if let Some((block, message)) = self.agreement.odd() {
            return Err(Error::Block { block, message });
        }
        let around = Around {
            regions: Regions::of(std::mem::take(&mut self.regions)),
            operators: Operators::of(self.recipe),
            beside: Beside::new(&self.recipe.beside, &self.options.beside)?,
        };
        let mut dropped = std::mem::take(&mut self.dropped);
        let mut outputs = Vec::new();
        for tensor in self.index.values() {
            let name = tensor.name();
            match self.taken.get(name) {
                Some(Fate::Fused(_) | Fate::Filled) => {}
                Some(Fate::Kept) => outputs.extend(copies(tensor, name)),
                None if self.recipe.drop.iter().any(|p| covers(p, name).is_some()) => {
                    dropped.push(tensor.clone())
                }
                None if around.regions.are_left(name) => {
                    outputs.extend(copies(tensor, name));
                }
                None => {
                    let owner = owner(self.recipe, tensor, self.index);
                    if let Some((_, missing)) = owner.filter(|_| !self.kept.contains(name)) {
                        return Err(Error::Orphan {
                            tensor: tensor.to_string(),
                            name: name.to_owned(),
                            recipe: self.recipe.name.clone(),
                            missing,
                        });
                    }
                    self.has_no_part(tensor, &around)?;
                    let to = self
                        .renamed
                        .remove(name)
                        .or_else(|| renamed(&self.recipe.rename, name))
                        .unwrap_or_else(|| name.to_owned());
                    outputs.extend(copies(tensor, &to));
                }
            }
        }
        for (block, tensor, value) in &self.filled {
            let message = match tensor.dtype().float() {
                None => format!(
                    "{tensor} is {}; only a floating-point tensor can be set to {value}",
                    tensor.dtype()
                ),
                Some(float) if !float.round(*value).is_finite() => {
                    format!("{tensor} is {float}, which cannot hold the {value:e} it is set to")
                }
                Some(_) => String::new(),
            };
            if !message.is_empty() {
                return Err(Error::Block {
                    block: block.clone(),
                    message,
                });
            }
            outputs.push(Planned {
                what: Source::Fill(*value),
                ..copy(tensor, tensor.name().to_owned())
            });
        }
        for (b, block) in self.blocks.iter().enumerate() {
            for (f, fused) in block.fused.iter().enumerate() {
                let shape = fused.geometry().weight_shape();
                outputs.push(planned(
                    format!("{}.weight", fused.module),
                    fused.dtype,
                    shape,
                    Source::Weight(b, f),
                ));
                if fused.bias {
                    outputs.push(planned(
                        format!("{}.bias", fused.module),
                        fused.dtype,
                        vec![fused.geometry().out()],
                        Source::Bias(b, f),
                    ));
                }
            }
        }
        let (eps, eps_source) = match (facts::all_eps(&self.blocks), self.bn_eps()) {
            (Some(told), _) => (told, EpsSource::File),
            (None, Some(eps)) => (Some(eps), EpsSource::User),
            (None, None) => (self.recipe.eps, EpsSource::Recipe),
        };
        Ok(Plan {
            recipe: self.recipe.name.clone(),
            eps,
            eps_source,
            eps_note: self.recipe.eps_note.clone(),
            families: vec![Applied {
                recipe: self.recipe.name.clone(),
                eps,
                eps_source,
                eps_note: self.recipe.eps_note.clone(),
                identity_note: self.recipe.identity_note.clone(),
                host: None,
                at: vec![String::new()],
                blocks: 0..self.blocks.len(),
            }],
            load: self.recipe.load.clone(),
            network: self.recipe.network.clone(),
            blocks: self.blocks,
            skipped: self.skipped,
            wrappers_removed: Vec::new(),
            left: self.left,
            outputs,
            dropped,
        })
    }

    /// Checks that a tensor which no block has is no part of one.
    ///
    /// # Errors
    /// When it stands in a block that does not know it, or is left of a block that is not whole.
    fn has_no_part(&self, tensor: &Tensor, around: &Around<'_>) -> Result<(), Error> {
        let name = tensor.name();
        if self.kept.contains(name) || self.renamed.contains_key(name) {
            return Ok(());
        }
        let recipe = &self.recipe.name;
        let tried = |n| self.looked_at.add(n);
        self.looked_at.may_go_on().map_err(|message| Error::Block {
            block: recipe.clone(),
            message,
        })?;
        if !around.beside.covers(name) {
            let free = |name: &str| !self.taken.contains_key(name);
            let operators = &around.operators;
            let left = operators.leftover(tensor, self.index, &free, self.looked_at);
            if let Some(missing) = left {
                return Err(Error::Orphan {
                    tensor: tensor.to_string(),
                    name: name.to_owned(),
                    recipe: recipe.clone(),
                    missing,
                });
            }
        }
        around.regions.check(tensor, recipe, &around.beside, &tried)
    }

    /// The eps that the user gave.
    fn bn_eps(&self) -> Option<f64> {
        let mut of = self.options.bn_eps_of.iter();
        let own = of.find(|(recipe, _)| *recipe == self.recipe.name);
        own.map(|(_, eps)| *eps).or(self.options.bn_eps)
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

/// A block is stored in the type of its conv weights, the widest if they differ.
pub(crate) fn stored_type(root: &Part<Tensor>) -> Result<Float, String> {
    let mut found: Option<Float> = None;
    for leaf in root.leaves() {
        if leaf.dtype().float().is_none() {
            return Err(format!(
                "{leaf} has dtype {}, which no arithmetic is defined for; expected F64, F32, F16 or BF16",
                leaf.dtype()
            ));
        }
    }
    for (conv, _) in root.convs() {
        let float = conv.weight.dtype().float();
        found = match (found, float) {
            (Some(a), Some(b)) => Some(a.wider(b)),
            (a, b) => a.or(b),
        };
    }
    Ok(found.unwrap_or(Float::F32))
}

pub(crate) fn planned(name: String, dtype: Float, shape: Vec<usize>, what: Source) -> Planned {
    let byte_len = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
    Planned {
        output: Output {
            name,
            dtype: Dtype::from(dtype),
            shape,
            byte_len,
        },
        what,
    }
}

pub(crate) fn copy(tensor: &Tensor, name: String) -> Planned {
    let output = Output {
        name,
        dtype: tensor.dtype().clone(),
        shape: tensor.shape().to_vec(),
        byte_len: tensor.byte_len(),
    };
    Planned {
        output,
        what: Source::Copy(tensor.clone()),
    }
}

/// A copy of a tensor under a name; of one that is computed, copies of what the file has of it.
fn copies(tensor: &Tensor, to: &str) -> Vec<Planned> {
    let module = |name: &str| {
        name.rsplit_once('.')
            .map_or(0, |(module, _)| module.len() + 1)
    };
    match tensor.parts() {
        [] => vec![copy(tensor, to.to_owned())],
        parts => {
            let of_file = tensor.name_in_file();
            let [from, to] = [&of_file[..module(of_file)], &to[..module(to)]];
            let named = |part: &Tensor| {
                format!(
                    "{to}{}",
                    part.name().strip_prefix(from).unwrap_or(part.name())
                )
            };
            parts.iter().map(|part| copy(part, named(part))).collect()
        }
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
