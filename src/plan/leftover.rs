//! A block of which anything is left is never just not there: a norm without its conv, branches without the one that a
//! block is found by.

use crate::recipe::Recipe;
use crate::recipe::expand::{Index, MatchBudget};
use crate::recipe::model::{BlockRule, Presence, Template};
use crate::recipe::pattern::{Captures, Pattern};
use crate::tensor::{Tensor, quoted};

/// A conv, norm or factor of a rule, by the names of its tensors.
struct Operator<'r> {
    rule: &'r BlockRule,
    norm: bool,
    /// What must be there for it to be there.
    tensors: Vec<Pattern>,
    /// Whether a block can do without it.
    optional: bool,
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
                collect(rule, template, false, &mut operators);
            }
        }
        Operators(operators)
    }

    /// What is missing of the block that a tensor is a part of, if it is a part of one that is not whole.
    ///
    /// `free` tells whether a tensor is in no block that was found.
    pub(super) fn leftover(
        &self,
        tensor: &Tensor,
        index: &Index,
        free: &dyn Fn(&str) -> bool,
        budget: &MatchBudget,
    ) -> Option<String> {
        budget.add(1 + self.0.len() / FAIL_AT_ONCE);
        self.0.iter().find_map(|operator| {
            operator.tensors.iter().find_map(|pattern| {
                let captures = pattern.matches(tensor.name(), &Captures::new())?;
                self.missing(operator, &captures, index, free, budget)
            })
        })
    }

    /// What is missing of the block with these captures, given that a tensor of this operator is left.
    fn missing(
        &self,
        left: &Operator<'_>,
        captures: &Captures,
        index: &Index,
        free: &dyn Fn(&str) -> bool,
        budget: &MatchBudget,
    ) -> Option<String> {
        let bound = bound(left.rule, captures.clone());
        let found = |pattern: &Pattern| budget.names(index, pattern, &bound).next();
        let there = |pattern: &Pattern| found(pattern).is_some();
        let named = |pattern: &Pattern| {
            let (known, complete) = pattern.known_start(captures);
            quoted(&(known + if complete { "" } else { "…" }))
        };
        let own = |pattern: &Pattern| budget.names(index, pattern, captures).next().is_some();
        if let Some(lost) = left.lost(&own) {
            return lost.map(named);
        }
        let of_rule = || self.0.iter().filter(|o| std::ptr::eq(o.rule, left.rule));
        // Without its conv, a norm is something else's; with it, the shapes are no block's.
        let mut convs = of_rule().filter(|o| !o.norm);
        if left.norm && !convs.clone().any(|o| o.is_there(&there)) {
            return convs.next().and_then(|o| o.tensors.first()).map(named);
        }
        // One operator alone can be anything's; two are half a block.
        let is_left = |o: &&Operator<'_>| {
            let mut of = o.tensors.iter().filter_map(found);
            of.any(|(tensor, _)| free(tensor.name()))
        };
        if of_rule().filter(is_left).count() < 2 {
            return None;
        }
        let absent = of_rule().find(|o| !o.optional && !o.is_there(&there));
        absent.and_then(|o| o.tensors.first()).map(named)
    }
}

impl Operator<'_> {
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

fn collect<'r>(
    rule: &'r BlockRule,
    template: &Template,
    optional: bool,
    out: &mut Vec<Operator<'r>>,
) {
    let (norm, tensors): (bool, Vec<Pattern>) = match template {
        Template::Seq(xs) | Template::Sum(xs) => {
            return xs.iter().for_each(|x| collect(rule, x, optional, out));
        }
        Template::Optional(x) | Template::Each(x) => return collect(rule, x, true, out),
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
        });
    }
}

/// What a block of this rule has captured.
fn bound(rule: &BlockRule, mut captures: Captures) -> Captures {
    let by_all = |name: &str| rule.at.iter().all(|p| p.captures().any(|c| c == name));
    captures.keep(by_all);
    captures
}
