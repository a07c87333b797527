//! Which recipe and which eps a sample supports.

use std::collections::BTreeSet;

use super::{Error, Sample, Support, check};
use crate::plan::{self, Block, EpsSource, Plan, plan, plan_families};
use crate::recipe::{self, Family, Recipe};
use crate::tensor::{Checkpoint, quoted};

/// What is tried.
#[derive(Clone, Debug)]
pub struct Options {
    /// The recipe to use; without one, every built-in recipe may be it.
    pub recipe: Option<Recipe>,
    /// With an eps in it, this is the eps; without one, each usual eps may be it.
    pub plan: plan::Options,
}

/// The plan that a sample supports, or the one that comes closest.
#[derive(Debug)]
pub struct Choice {
    /// The plan.
    pub plan: Plan,
    /// What the sample says of it.
    pub support: Support,
    /// What was decided by the sample.
    pub decided: Decided,
}

/// What a sample decided.
#[derive(Clone, Debug, Default)]
pub struct Decided {
    /// Whether names left the recipe open, or would have chosen another.
    pub recipe: bool,
    /// Whether the eps is another than the recipe's.
    pub eps: bool,
    /// Other usual eps that the sample does not rule out.
    pub also_eps: Vec<f64>,
    /// What it supports instead of what the user chose: a recipe, and its eps.
    pub instead: Option<(String, Option<f64>)>,
    /// Everything that was tried.
    pub tried: Vec<(String, Option<f64>)>,
}

/// The eps that batch norms usually have.
const USUAL_EPS: [f64; 5] = [1e-5, 1e-3, 1e-6, 1e-4, 1e-2];

/// A difference as large as this many times the smallest one is as good.
const AS_GOOD: f64 = 2.0;

/// A plan that was tried.
struct Try {
    plan: Plan,
    support: Support,
    /// Whether it is what the names alone would have led to.
    by_names: bool,
    own_eps: bool,
}

/// Finds the recipe and the eps that a sample supports.
///
/// What names alone lead to, or the user's choice, is tried first, with its own eps and then with the usual ones; then every other
/// recipe whose blocks are in the file. Where none is supported, the choice is the closest one, and its support is not accepted.
///
/// # Errors
/// When nothing can be planned or compared, or recipes that differ are supported alike.
pub fn choose(
    checkpoint: &Checkpoint,
    sample: &Sample,
    options: &Options,
) -> Result<Choice, Error> {
    let index = checkpoint.tensors();
    let all = recipe::builtin()?;
    let mut trouble = None;
    let first: Vec<&Recipe> = match &options.recipe {
        Some(recipe) => vec![recipe],
        None => match recipe::detect_builtin(index, &all) {
            Ok(families) => match families[..] {
                [Family { recipe, .. }] => vec![recipe],
                // Each has its part of the file, and an eps of its own.
                _ => return of_families(checkpoint, sample, &families, &options.plan),
            },
            Err(recipe::Error::Ambiguous { recipes }) => {
                all.iter().filter(|r| recipes.contains(&r.name)).collect()
            }
            Err(error) => {
                trouble = Some(error.into());
                Vec::new()
            }
        },
    };
    let mut tries = Tries {
        checkpoint,
        sample,
        options,
        tries: Vec::new(),
        trouble,
    };
    for recipe in &first {
        tries.with_every_eps(recipe, true)?;
    }
    if !tries.tries.iter().any(|t| t.support.accepted()) {
        let known = |recipe: &&Recipe| first.iter().any(|f| f.name == recipe.name);
        for recipe in all.iter().filter(|recipe| !known(recipe)) {
            tries.with_every_eps(recipe, false)?;
        }
    }
    tries.best(first.len() != 1)
}

/// The eps of each of several families, one after the other: its own, or the usual one by which most records are supported.
fn of_families(
    checkpoint: &Checkpoint,
    sample: &Sample,
    families: &[Family<'_>],
    given: &plan::Options,
) -> Result<Choice, Error> {
    let mut options = given.clone();
    let planned = |options: &plan::Options| -> Result<(Plan, Support), Error> {
        let plan = plan_families(checkpoint.tensors(), families, options)?;
        let support = check(checkpoint, &plan, sample)?;
        Ok((plan, support))
    };
    let (mut plan, mut support) = planned(&options)?;
    let mut decided = Decided {
        tried: vec![(plan.recipe.clone(), plan.eps)],
        ..Decided::default()
    };
    let mut by_sample = Vec::new();
    for Family { recipe, .. } in families {
        let name = &recipe.name;
        let is_given = given.bn_eps.is_some() || given.bn_eps_of.iter().any(|(of, _)| of == name);
        if support.accepted() || is_given {
            continue;
        }
        let fit = |support: &Support| support.records.iter().filter(|r| r.accepted).count();
        let mut best = (fit(&support), support.rms(), None);
        for eps in USUAL_EPS {
            let mut other = options.clone();
            other.bn_eps_of.push((name.clone(), eps));
            let (_, found) = planned(&other)?;
            decided.tried.push((name.clone(), Some(eps)));
            let (fits, off) = (fit(&found), found.rms());
            if fits > best.0 || fits == best.0 && best.2.is_some() && off < best.1 {
                best = (fits, off, Some(other));
            }
        }
        if let (.., Some(better)) = best {
            options = better;
            (plan, support) = planned(&options)?;
            decided.eps = true;
            by_sample.push(name.clone());
        }
    }
    for family in &mut plan.families {
        if by_sample.contains(&family.recipe) {
            family.eps_source = EpsSource::Sample;
        }
    }
    Ok(Choice {
        plan,
        support,
        decided,
    })
}

struct Tries<'a> {
    checkpoint: &'a Checkpoint,
    sample: &'a Sample,
    options: &'a Options,
    tries: Vec<Try>,
    /// Why the first that could not be tried could not.
    trouble: Option<Error>,
}

impl Tries<'_> {
    /// Tries a recipe with its own eps, or the user's, and with the usual ones.
    fn with_every_eps(&mut self, recipe: &Recipe, by_names: bool) -> Result<(), Error> {
        let own = self.options.plan.bn_eps;
        self.one(recipe, own, by_names)?;
        let Some(eps) = self.tries.last().and_then(|t| t.plan.eps) else {
            return Ok(());
        };
        // The recipe could not be tried, and the last is another's.
        if self
            .tries
            .last()
            .is_none_or(|t| t.plan.recipe != recipe.name)
        {
            return Ok(());
        }
        for usual in USUAL_EPS.into_iter().filter(|usual| *usual != eps) {
            self.one(recipe, Some(usual), by_names)?;
        }
        Ok(())
    }

    fn one(&mut self, recipe: &Recipe, eps: Option<f64>, by_names: bool) -> Result<(), Error> {
        let options = plan::Options {
            bn_eps: eps,
            ..self.options.plan.clone()
        };
        let own_eps = eps == self.options.plan.bn_eps;
        let planned = plan(self.checkpoint.tensors(), recipe, &options).map_err(Error::from);
        let tried = planned.and_then(|mut plan| {
            if !own_eps {
                plan.eps_source = EpsSource::Sample;
                for family in &mut plan.families {
                    family.eps_source = EpsSource::Sample;
                }
            }
            let support = check(self.checkpoint, &plan, self.sample)?;
            Ok((plan, support))
        });
        match tried {
            Ok((plan, support)) => self.tries.push(Try {
                plan,
                support,
                by_names,
                own_eps,
            }),
            Err(error @ (Error::Recipe(_) | Error::NothingCompared { .. })) => {
                self.trouble.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The one to choose. What the user has chosen stays, with what would be supported instead. `open` says that names left the recipe open.
    fn best(mut self, open: bool) -> Result<Choice, Error> {
        let tried = self.tries.iter();
        let mut decided = Decided {
            tried: tried.map(|t| (t.plan.recipe.clone(), t.plan.eps)).collect(),
            ..Decided::default()
        };
        let Options { recipe, plan } = self.options;
        // What the user left open may be chosen.
        let may =
            |t: &Try| (recipe.is_none() || t.by_names) && (plan.bn_eps.is_none() || t.own_eps);
        let supported = self.supported();
        let chosen = match supported.first() {
            Some(&best) if may(&self.tries[best]) => {
                self.expect_decided(&supported)?;
                let t = &self.tries[best];
                decided.recipe = recipe.is_none() && (open || !t.by_names);
                decided.eps = !t.own_eps;
                let others = supported[1..].iter().map(|i| &self.tries[*i].plan);
                let others = others.filter(|other| other.recipe == t.plan.recipe);
                decided.also_eps = others.filter_map(|other| other.eps).collect();
                best
            }
            best => {
                decided.instead = best.map(|best| {
                    let plan = &self.tries[*best].plan;
                    (plan.recipe.clone(), plan.eps)
                });
                let worst = |i: &usize| self.tries[*i].support.worst_ratio();
                let mut all: Vec<usize> = (0..self.tries.len()).collect();
                all.retain(|i| may(&self.tries[*i]));
                // By what the names lead to before anything else, and by its own eps.
                let rank = |i: &usize| (!self.tries[*i].by_names, !self.tries[*i].own_eps);
                all.sort_by(|a, b| rank(a).cmp(&rank(b)).then(worst(a).total_cmp(&worst(b))));
                match all.first() {
                    Some(closest) => *closest,
                    None => return Err(self.trouble.unwrap_or(Error::NoPlan)),
                }
            }
        };
        let Try { plan, support, .. } = self.tries.swap_remove(chosen);
        Ok(Choice {
            plan,
            support,
            decided,
        })
    }

    /// Those that the sample supports as well as any, in the order in which they were tried.
    fn supported(&self) -> Vec<usize> {
        let mut fit: Vec<usize> = (0..self.tries.len()).collect();
        fit.retain(|i| self.tries[*i].support.accepted());
        let compared = |i: &usize| self.tries[*i].support.records.len();
        let most = fit.iter().map(compared).max();
        fit.retain(|i| Some(compared(i)) == most);
        let rms = |i: &usize| self.tries[*i].support.rms();
        let least = fit.iter().map(rms).fold(f64::INFINITY, f64::min);
        fit.retain(|i| rms(i) <= AS_GOOD * least);
        fit
    }

    /// Checks that what is supported is one thing, eps aside.
    fn expect_decided(&self, supported: &[usize]) -> Result<(), Error> {
        let plans = supported.iter().map(|i| &self.tries[*i].plan);
        let Some(best) = plans.clone().next() else {
            return Ok(());
        };
        let others: Vec<&Plan> = plans
            .filter(|other| other.recipe != best.recipe && other.eps == best.eps)
            .filter(|other| !is_same(best, other))
            .collect();
        let Some(other) = others.first() else {
            return Ok(());
        };
        let differs = best.blocks.iter().find(|block| {
            let same = other.blocks.iter().find(|b| b.name == block.name);
            same.is_none_or(|same| !is_same_block(block, same))
        });
        let names = [best].into_iter().chain(others.iter().copied());
        Err(Error::Undecided {
            recipes: names.map(|plan| plan.recipe.clone()).collect(),
            block: match differs {
                Some(block) => quoted(&block.name),
                None => "those that one of them has".to_owned(),
            },
        })
    }
}

/// Whether two plans write the same numbers under the same names.
fn is_same(a: &Plan, b: &Plan) -> bool {
    let names = |plan: &Plan| {
        let names = plan
            .outputs
            .iter()
            .map(|planned| planned.output.name.clone());
        names.collect::<BTreeSet<_>>()
    };
    let of = |plan: &Plan| -> Vec<_> {
        let convs = plan.blocks.iter().flat_map(|block| &block.fused);
        let mut convs: Vec<_> = convs
            .map(|c| (c.module.clone(), c.expr.root().clone()))
            .collect();
        convs.sort_by(|a, b| a.0.cmp(&b.0));
        convs
    };
    names(a) == names(b) && of(a) == of(b)
}

fn is_same_block(a: &Block, b: &Block) -> bool {
    a.fused.len() == b.fused.len()
        && a.fused
            .iter()
            .zip(&b.fused)
            .all(|(a, b)| a.expr.root() == b.expr.root())
}
