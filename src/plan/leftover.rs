//! A block of which anything is left is never just not there: a norm without its conv, branches without the one that a
//! block is found by.

use super::closed::path_of;
use crate::recipe::Recipe;
use crate::recipe::expand::{Index, MatchBudget, names};
use crate::recipe::model::{BlockRule, Presence, Template};
use crate::recipe::pattern::{Captures, Pattern};
use crate::recipe::start::{Misfit, Start, misfit};
use crate::tensor::{Tensor, quoted};

/// A conv, norm or factor of a rule, by the names of its tensors.
struct Operator<'r> {
    rule: &'r BlockRule,
    norm: bool,
    /// What must be there for it to be there.
    tensors: Vec<Pattern>,
    /// Whether a block can do without it.
    optional: bool,
    /// Of a norm, the weight of the one conv in a sequence with it; of a conv, the variance of the one norm.
    partner: Option<Pattern>,
}

/// What is wrong with a block of which a tensor is left.
pub(super) enum Lack {
    /// The tensor that it lacks, for a text.
    Missing(String),
    /// What of it has not the shape that the recipe asks for, in words.
    Misfit(String),
}

/// A block of which a tensor is left.
pub(super) struct Half {
    /// The path of all its modules; empty where they share none.
    pub(super) path: String,
    pub(super) lack: Lack,
}

/// The operators of a recipe's rules.
pub(super) struct Operators<'r>(Vec<Operator<'r>>);

/// Most names fail on the end of a pattern: so many of those count as one name that is tried.
const FAIL_AT_ONCE: usize = 64;

impl<'r> Operators<'r> {
    pub(super) fn of(recipe: &'r Recipe) -> Operators<'r> {
        let mut operators = Vec::new();
        for rule in &recipe.blocks {
            for (_, template) in &rule.fuse {
                collect(rule, template, (false, Pair::default()), &mut operators);
            }
        }
        Operators(operators)
    }

    /// What is wrong with the block that a tensor is a part of, if it is a part of one that was not found.
    ///
    /// `have_like` tells whether a block that was found has a tensor whose name differs in its numbers alone.
    pub(super) fn leftover(
        &self,
        tensor: &Tensor,
        index: &Index,
        have_like: &dyn Fn(&str) -> bool,
        budget: &MatchBudget,
    ) -> Option<Half> {
        budget.add(1 + self.0.len() / FAIL_AT_ONCE);
        let halves = self.0.iter().filter_map(|operator| {
            operator.tensors.iter().find_map(|pattern| {
                let captures = pattern.matches(tensor.name(), &Captures::new())?;
                let at = Place {
                    name: tensor.name(),
                    index,
                    have_like,
                    budget,
                    captures: &captures,
                };
                let lack = self
                    .lack(operator, &at)
                    .or_else(|| operator.without_norm(&at))?;
                let bound = bound(operator.rule, captures);
                let absent = self.absent(operator.rule, &bound, index, budget);
                let path = self.path(operator.rule, &bound, index, budget);
                Some((absent, Half { path, lack }))
            })
        });
        // Several rules may know the name: it is left of the block that is there but for the least.
        halves
            .min_by_key(|(absent, _)| *absent)
            .map(|(_, half)| half)
    }

    /// The operators of a rule.
    fn of_rule(&self, rule: &BlockRule) -> impl Iterator<Item = &Operator<'r>> + Clone {
        self.0.iter().filter(move |o| std::ptr::eq(o.rule, rule))
    }

    /// How many of the operators that a block needs are not there.
    fn absent(
        &self,
        rule: &BlockRule,
        captures: &Captures,
        index: &Index,
        budget: &MatchBudget,
    ) -> usize {
        let there = |pattern: &Pattern| budget.names(index, pattern, captures).next().is_some();
        let needed = self.of_rule(rule).filter(|o| !o.optional);
        needed.filter(|o| !o.is_there(&there)).count()
    }

    /// The path of all modules of a block, as far as they are there.
    fn path(
        &self,
        rule: &BlockRule,
        captures: &Captures,
        index: &Index,
        budget: &MatchBudget,
    ) -> String {
        let patterns = self.of_rule(rule).flat_map(|o| &o.tensors);
        let named = patterns.flat_map(|pattern| budget.names(index, pattern, captures));
        let own: Vec<&str> = named.map(|(tensor, _)| tensor.name()).collect();
        path_of(own.into_iter(), rule, captures).to_owned()
    }

    /// What the block lacks at a place where a tensor of this operator is left.
    fn lack(&self, left: &Operator<'_>, at: &Place<'_>) -> Option<Lack> {
        let bound = bound(left.rule, at.captures.clone());
        let found = |pattern: &Pattern| at.budget.names(at.index, pattern, &bound).next();
        let there = |pattern: &Pattern| found(pattern).is_some();
        let named = |pattern: &Pattern| at.named(pattern);
        let own = |pattern: &Pattern| at.has(pattern);
        if let Some(lost) = left.lost(&own) {
            return lost.map(named);
        }
        let of_rule = || self.of_rule(left.rule);
        if let Some(weight) = left.partner.as_ref().filter(|_| left.norm)
            && !own(weight)
        {
            return Some(named(weight));
        }
        // Without its conv, a norm is something else's; with it, the shapes are no block's.
        let mut convs = of_rule().filter(|o| !o.norm);
        if left.norm && !convs.clone().any(|o| o.is_there(&there)) {
            return convs.next().and_then(|o| o.tensors.first()).map(named);
        }
        // One operator alone can be anything's; two are half a block, also where another rule has taken the second.
        if of_rule().filter(|o| o.is_there(&there)).count() < 2 {
            return None;
        }
        let mut needed = of_rule().filter(|o| !o.optional);
        if let Some(absent) = needed.find(|o| !o.is_there(&there)) {
            return absent.tensors.first().map(named);
        }
        // A conv and a norm of other shapes may be anything.
        let telling = of_rule().count() > 2 || of_rule().filter(|o| !o.norm).count() > 1;
        if !telling {
            return None;
        }
        misfit_at(left.rule, &bound, at.index).map(Lack::Misfit)
    }
}

/// Where a tensor is left.
struct Place<'a> {
    name: &'a str,
    index: &'a Index,
    /// Whether a block has a tensor whose name differs in its numbers alone.
    have_like: &'a dyn Fn(&str) -> bool,
    budget: &'a MatchBudget,
    /// What the name of the tensor says.
    captures: &'a Captures,
}

impl Place<'_> {
    fn has(&self, pattern: &Pattern) -> bool {
        let mut named = self.budget.names(self.index, pattern, self.captures);
        named.next().is_some()
    }

    fn named(&self, pattern: &Pattern) -> Lack {
        let (known, complete) = pattern.known_start(self.captures);
        Lack::Missing(quoted(&(known + if complete { "" } else { "…" })))
    }
}

/// What of a block with these captures has another shape than the rule asks for, in words.
fn misfit_at(rule: &BlockRule, captures: &Captures, index: &Index) -> Option<String> {
    let starts = rule.at.iter().flat_map(|at| {
        let named = names(index, at, captures);
        named.map(move |(anchor, captures)| Start {
            rule,
            at,
            anchor,
            captures,
        })
    });
    let mut misfits = starts.filter_map(|start| match misfit(&start, index) {
        Some(misfit @ Misfit::Shape(_)) => Some(misfit.to_string()),
        _ => None,
    });
    misfits.next()
}

impl Operator<'_> {
    /// What a conv lacks that stands without the norm behind it, where blocks with names like its own have one.
    fn without_norm(&self, at: &Place<'_>) -> Option<Lack> {
        let norm = self.partner.as_ref().filter(|_| !self.norm)?;
        let name = at.name;
        let bias = name
            .strip_suffix("weight")
            .map(|module| format!("{module}bias"));
        // A conv with a bias of its own is of another kind, unless the others have one.
        let alike = match bias.filter(|bias| at.index.contains_key(bias)) {
            Some(bias) => (at.have_like)(&bias),
            None => true,
        };
        (alike && !at.has(norm) && (at.have_like)(name)).then(|| at.named(norm))
    }

    /// Whether it is in the file. (A norm of another kind has the names of this one, but no statistics.)
    fn is_there(&self, there: &dyn Fn(&Pattern) -> bool) -> bool {
        let telling = if self.norm {
            &self.tensors[2..]
        } else {
            &self.tensors
        };
        telling.iter().any(there)
    }

    /// Of an operator of which a tensor is there, what is missing: `Some(None)` if it is none of this kind.
    fn lost(&self, there: &dyn Fn(&Pattern) -> bool) -> Option<Option<&Pattern>> {
        if !self.is_there(there) {
            return Some(None);
        }
        let affine = self.norm && self.tensors[..2].iter().any(there);
        let needed = if self.norm && !affine {
            &self.tensors[2..]
        } else {
            &self.tensors
        };
        needed.iter().find(|pattern| !there(pattern)).map(Some)
    }
}

/// The one conv and the one norm of a sequence, by a tensor of each.
#[derive(Clone, Copy, Default)]
struct Pair<'t> {
    weight: Option<&'t Pattern>,
    var: Option<&'t Pattern>,
}

impl<'t> Pair<'t> {
    fn of(steps: &'t [Template]) -> Pair<'t> {
        let weights = steps.iter().filter_map(|x| match x {
            Template::Conv(conv) => Some(&conv.weight),
            _ => None,
        });
        let vars = steps.iter().filter_map(|x| match x {
            Template::Bn { norm, .. } => Some(&norm.tensors[3]),
            _ => None,
        });
        Pair {
            weight: only(weights),
            var: only(vars),
        }
    }
}

/// The only one of its kind; none where there are several.
fn only<'t>(mut of: impl Iterator<Item = &'t Pattern>) -> Option<&'t Pattern> {
    of.next().filter(|_| of.next().is_none())
}

/// Collects the operators of a template, which a block can do without if it is optional, and which stands in a sequence with this
/// pair.
fn collect<'r>(
    rule: &'r BlockRule,
    template: &Template,
    (optional, pair): (bool, Pair<'_>),
    out: &mut Vec<Operator<'r>>,
) {
    let (norm, tensors): (bool, Vec<Pattern>) = match template {
        Template::Seq(xs) => {
            let pair = Pair::of(xs);
            return xs
                .iter()
                .for_each(|x| collect(rule, x, (optional, pair), out));
        }
        Template::Sum(xs) => {
            return xs
                .iter()
                .for_each(|x| collect(rule, x, (optional, Pair::default()), out));
        }
        Template::Optional(x) | Template::Each(x) => {
            return collect(rule, x, (true, pair), out);
        }
        Template::Bn { norm, .. } => (true, norm.tensors.to_vec()),
        Template::Conv(conv) => {
            let is_required = conv.presence == Presence::Required;
            let bias = conv.bias.iter().filter(|_| is_required);
            (
                false,
                [&conv.weight].into_iter().chain(bias).cloned().collect(),
            )
        }
        leaf => (false, leaf.tensors().into_iter().cloned().collect()),
    };
    let tensors: Vec<Pattern> = tensors
        .iter()
        .map(|pattern| pattern.with_kinds_of(rule.at.iter()))
        .collect();
    if !tensors.is_empty() {
        out.push(Operator {
            rule,
            norm,
            tensors,
            optional,
            partner: match (norm, template) {
                (true, _) => pair.weight,
                (false, Template::Conv(_)) => pair.var,
                _ => None,
            }
            .map(|pattern| pattern.with_kinds_of(rule.at.iter())),
        });
    }
}

/// What a block of this rule has captured.
pub(super) fn bound(rule: &BlockRule, mut captures: Captures) -> Captures {
    let by_all = |name: &str| rule.at.iter().all(|p| p.captures().any(|c| c == name));
    captures.keep(by_all);
    captures
}
