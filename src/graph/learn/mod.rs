//! A recipe learned from a graph: the names by which the blocks of a network are found in a file of its weights.
//!
//! The graph says which tensors form a block and what is computed of them. Said with names alone, and with the digits and paths
//! left open that vary among blocks of a kind, this is a recipe. It is applied to the same weights, and where it says more or
//! less than the graph its rules are made narrower, until both say the same or what is left has no words.

mod beside;
mod rules;
mod words;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use self::beside::{add_beside, with_captures};
use self::rules::{Merging, Path, Rule, rules};
use self::words::{Groups, words};
use super::agree::{Index, same_numbers};
use crate::algebra::canonical::same;
use crate::plan::path::module_or_own;
use crate::plan::{self, Block, Options, Plan, PlannedConv};
use crate::recipe::{self, Recipe};
use crate::tensor::{Checkpoint, quoted};

/// A recipe, and what it cannot say.
#[derive(Debug)]
pub struct Learned {
    /// The recipe's JSON.
    pub recipe: Value,
    /// How many blocks of the graph it reproduces.
    pub blocks: usize,
    /// How many kinds of block it has.
    pub kinds: usize,
    /// What it could not put into words, a sentence each.
    pub unsaid: Vec<String>,
}

/// More attempts than rules have ways to be narrower say no more.
const ATTEMPTS: usize = 256;

/// Learns a recipe from the blocks of a graph. `state` are the weights by the names that a file of them has.
pub fn learn(
    checkpoint: &Checkpoint,
    state: &Index,
    blocks: &[Block],
    name: &str,
    about: &str,
) -> Learned {
    let graph = Known {
        checkpoint,
        state,
        name,
        about,
        expected: blocks
            .iter()
            .map(|block| (block.fused[0].module.clone(), block))
            .collect(),
    };
    // The plainest words first.
    let plain = graph.learn(blocks, Groups::Hidden, Merging::Parts);
    let others = [
        (Groups::Hidden, Merging::Relatives),
        (Groups::All, Merging::Parts),
        (Groups::All, Merging::Relatives),
    ];
    others.into_iter().fold(plain, |best, (groups, merging)| {
        if groups == Groups::All && best.unsaid.is_empty() {
            return best;
        }
        let other = graph.learn(blocks, groups, merging);
        // What says more, in fewer rules.
        let score = |learned: &Learned| {
            let rules = learned.recipe.get("blocks").and_then(Value::as_array);
            (learned.blocks, Reverse(rules.map_or(0, Vec::len)))
        };
        if score(&other) > score(&best) {
            other
        } else {
            best
        }
    })
}

/// What a recipe is learned from, and what it is called.
struct Known<'a> {
    checkpoint: &'a Checkpoint,
    state: &'a Index,
    name: &'a str,
    about: &'a str,
    /// The blocks by the modules of their fused convs.
    expected: HashMap<String, &'a Block>,
}

impl Known<'_> {
    fn learn(&self, blocks: &[Block], groups: Groups, merging: Merging) -> Learned {
        let mut unsaid = Vec::new();
        let mut said = Vec::new();
        for block in blocks {
            match words(self.checkpoint, block, groups) {
                Ok(words) => said.push(words),
                Err(why) => unsaid.push(format!("block {}: {why}", quoted(&block.name))),
            }
        }
        add_beside(self.state, &mut said);
        let eps = usual(said.iter().flat_map(|words| &words.eps));
        let mut rules = rules(said, merging);
        let mut attempt = Attempt::default();
        // What looks like a part of a block that is none, wherever it is.
        let mut beside: Vec<String> = Vec::new();
        for _ in 0..ATTEMPTS {
            attempt = self.attempt(&rules, eps, &beside);
            if let Some(name) = attempt.stray.take().filter(|name| !beside.contains(name)) {
                beside.push(name);
                continue;
            }
            let narrower = attempt
                .wrong
                .iter()
                .filter_map(|rule| Some((*rule, rules[*rule].path.narrower()?)));
            let Some((rule, path)) = narrower.min_by_key(|(rule, path)| (*path, *rule)) else {
                break;
            };
            rules[rule].path = path;
        }
        unsaid.extend(attempt.failures);
        Learned {
            recipe: attempt.recipe,
            blocks: attempt.right,
            kinds: rules.len(),
            unsaid,
        }
    }

    fn attempt(&self, rules: &[Rule], eps: Option<f64>, beside: &[String]) -> Attempt {
        let recipe = recipe_of(self, rules, eps, beside);
        attempted(self, recipe, rules)
    }
}

/// The eps that most norms have.
fn usual<'a>(eps: impl Iterator<Item = &'a f64>) -> Option<f64> {
    let mut counted: BTreeMap<u64, usize> = BTreeMap::new();
    eps.for_each(|eps| *counted.entry(eps.to_bits()).or_default() += 1);
    counted
        .into_iter()
        .max_by_key(|(_, n)| *n)
        .map(|(bits, _)| f64::from_bits(bits))
}

/// What came of applying a recipe to the weights that it was learned from.
#[derive(Default)]
struct Attempt {
    recipe: Value,
    /// The blocks that it reproduces.
    right: usize,
    /// The rules that say too much or too little.
    wrong: Vec<usize>,
    failures: Vec<String>,
    /// A name that looks like a part of a block and is none, as a pattern.
    stray: Option<String>,
}

fn attempted(known: &Known<'_>, recipe: Value, rules: &[Rule]) -> Attempt {
    let Known { state, name, .. } = known;
    let everything = |failure: String| Attempt {
        recipe: recipe.clone(),
        right: 0,
        wrong: (0..rules.len()).collect(),
        failures: vec![failure],
        stray: None,
    };
    let parsed: Recipe = match recipe::parse(&recipe.to_string(), name) {
        Ok(parsed) => parsed,
        Err(error) => return everything(error.to_string()),
    };
    let plan: Plan = match plan::plan(state, &parsed, &Options::default()) {
        Ok(plan) => plan,
        Err(error) => {
            return Attempt {
                stray: stray(&error),
                ..everything(error.to_string())
            };
        }
    };
    Attempt {
        recipe: recipe.clone(),
        ..compared(&plan, known, rules)
    }
}

/// What a plan has of the blocks that are expected, and which rules are to blame for the rest.
fn compared(plan: &Plan, known: &Known<'_>, rules: &[Rule]) -> Attempt {
    let Known {
        checkpoint,
        expected,
        ..
    } = known;
    let mut attempt = Attempt::default();
    let mut found: HashSet<&str> = HashSet::new();
    for block in &plan.blocks {
        for conv in &block.fused {
            let by_graph = expected.get(&conv.module).map(|block| &block.fused[0]);
            found.insert(&conv.module);
            if by_graph.is_some_and(|of| is_same(checkpoint, of, conv)) {
                attempt.right += 1;
                continue;
            }
            let tensors: Vec<String> = block
                .consumed
                .iter()
                .map(|tensor| tensor.name().to_owned())
                .collect();
            attempt.wrong.extend(rule_of(rules, &tensors));
            attempt.failures.push(match by_graph {
                Some(_) => format!(
                    "block {}: names alone say something else than the graph",
                    quoted(&block.name)
                ),
                None => format!(
                    "{} is found by its names, and is no block of the graph",
                    quoted(&block.name)
                ),
            });
        }
    }
    for (i, rule) in rules.iter().enumerate() {
        for block in &rule.blocks {
            let module = expected
                .values()
                .find(|of| of.name == block.block)
                .map(|of| &*of.fused[0].module);
            if module.is_some_and(|module| !found.contains(module)) {
                attempt.wrong.push(i);
                attempt.failures.push(format!(
                    "block {} is not found by its names",
                    quoted(&block.block)
                ));
            }
        }
    }
    attempt
}

/// What of a file a recipe stumbled over.
fn stray(error: &recipe::Error) -> Option<String> {
    match error {
        recipe::Error::Orphan { name, .. } => Some(with_captures(module_or_own(name))),
        recipe::Error::Stranger { name, .. } => Some(name.clone()),
        _ => None,
    }
}

/// The rule that finds a block of these tensors. One that finds what the graph does not fold is too wide; which one is told by its
/// anchor.
fn rule_of(rules: &[Rule], tensors: &[String]) -> Option<usize> {
    let has = |rule: &Rule| {
        rule.blocks
            .iter()
            .any(|block| block.consumed.iter().any(|t| tensors.contains(t)))
    };
    rules
        .iter()
        .position(has)
        .or_else(|| rules.iter().position(|rule| matches(rule, tensors)))
}

fn is_same(checkpoint: &Checkpoint, a: &PlannedConv, b: &PlannedConv) -> bool {
    (same(&a.expr, &b.expr) || same_numbers(checkpoint, a, b))
        && a.bias == b.bias
        && a.dtype == b.dtype
        && a.geometry().weight_shape() == b.geometry().weight_shape()
}

/// Whether a rule's anchor is among these names.
fn matches(rule: &Rule, tensors: &[String]) -> bool {
    let Some(anchor) = &rule.anchor else {
        return false;
    };
    let end = anchor.trim_start_matches("{p}");
    tensors
        .iter()
        .any(|name| name.ends_with(end) || format!(".{name}") == end)
}

fn recipe_of(known: &Known<'_>, rules: &[Rule], eps: Option<f64>, beside: &[String]) -> Value {
    let Known {
        state, name, about, ..
    } = *known;
    let shape = |tensor: &str| state.get(tensor).map(|tensor| tensor.shape().to_vec());
    let mut blocks = Vec::new();
    let mut when = Vec::new();
    for rule in rules {
        blocks.extend(rule.json(eps, &shape));
        // Several branches are evidence; one conv and its norm are in every network.
        let several =
            rule.branches.len() > 1 || rule.blocks.iter().any(|block| block.summands.len() > 1);
        if let Some(anchor) = rule
            .anchor
            .clone()
            .filter(|_| several && rule.path < Path::Digits)
        {
            when.push(Value::from(anchor));
        }
    }
    let mut recipe = serde_json::Map::new();
    recipe.insert("name".to_owned(), name.into());
    recipe.insert("about".to_owned(), about.into());
    if let Some(eps) = eps {
        recipe.insert("eps".to_owned(), json!(eps));
    }
    when.dedup();
    if !when.is_empty() {
        recipe.insert("when".to_owned(), when.into());
    }
    if !beside.is_empty() {
        recipe.insert("beside".to_owned(), json!(beside));
    }
    recipe.insert("blocks".to_owned(), blocks.into());
    Value::Object(recipe)
}
