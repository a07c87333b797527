//! Graph and recipe check each other: where a built-in recipe knows the same blocks, it gives them the names of the author's
//! deploy form, and both must say the same of what they compute.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::algebra::Part;
use crate::algebra::canonical::same;
use crate::fuse::fold_rows;
use crate::plan::{self, Block, Options, Plan, PlannedConv, within};
use crate::recipe;
use crate::tensor::{Checkpoint, Reader, Tensor, quoted};

/// What a recipe makes of the weights of a graph.
#[derive(Debug, Default)]
pub struct Agreement {
    /// The recipe that knows blocks of the graph.
    pub recipe: Option<String>,
    /// How that recipe says to load the deploy form in Python.
    pub load: Option<String>,
    /// How many of them.
    pub blocks: usize,
    /// What graph and recipe say differently, a sentence each. The graph is believed.
    pub differences: Vec<String>,
}

/// The weights of a graph as a recipe sees them: those of the state dict, by name.
pub(super) type Index = std::collections::BTreeMap<String, Tensor>;

/// Names for a module that is not the author's.
fn beside(module: &str) -> impl Iterator<Item = String> {
    (1..).map(move |n| match n {
        1 => within(module, "fused"),
        n => within(module, &format!("fused{n}")),
    })
}

/// What the plan of a recipe folds to, without what agrees.
fn missed<'p>(plan: &'p Plan, agreed: &HashSet<String>) -> Vec<&'p str> {
    plan.blocks
        .iter()
        .flat_map(|block| &block.fused)
        .filter(|conv| !agreed.contains(&conv.module))
        .map(|conv| &*conv.module)
        .collect()
}

fn also_folds(recipe: &str, missed: &[&str]) -> Option<String> {
    let (first, others) = missed.split_first()?;
    let more = match others.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Some(format!(
        "recipe {recipe} also folds to {}{more}, of which the graph folds more, less or nothing",
        quoted(first)
    ))
}

/// Compares blocks with those that a built-in recipe finds, and gives them its names. `taken` are the names of tensors that are left.
pub(super) fn agree(
    checkpoint: &Checkpoint,
    state: &Index,
    blocks: &mut [Block],
    taken: &HashSet<String>,
) -> Agreement {
    let Some(plan) = planned(state) else {
        return Agreement::default();
    };
    let convs = plan.blocks.iter().flat_map(|block| &block.fused);
    let known: HashMap<BTreeSet<&str>, &PlannedConv> = convs
        .map(|conv| (names(conv.expr.root(), state), conv))
        .collect();
    let mut found = Agreement {
        recipe: Some(plan.recipe.clone()),
        load: plan.load.clone(),
        ..Agreement::default()
    };
    let modules = blocks.iter().map(|block| block.fused[0].module.clone());
    let mut modules: HashSet<String> = modules.collect();
    let (mut agreed, mut structure) = (HashSet::new(), false);
    for block in blocks.iter_mut() {
        let conv = &block.fused[0];
        let Some(by_recipe) = known.get(&names(conv.expr.root(), state)) else {
            continue;
        };
        found.blocks += 1;
        agreed.insert(by_recipe.module.clone());
        let difference = difference(checkpoint, &plan.recipe, conv, by_recipe);
        let is_free = |module: &String| {
            let tensors = ["weight", "bias"].map(|end| within(module, end));
            !modules.contains(module) && !tensors.iter().any(|name| taken.contains(name))
        };
        structure |= matches!(difference, Some(Difference::Structure(_)));
        let module = match difference {
            // What computes something else than the author's deploy form must not be loaded into it.
            Some(Difference::Structure(_)) => beside(&by_recipe.module).find(is_free),
            _ => Some(by_recipe.module.clone()).filter(is_free),
        };
        if let Some(Difference::Eps(said) | Difference::Structure(said)) = difference {
            let said = format!("block {}: {said}", quoted(&block.name));
            found.differences.push(said);
        }
        if let Some(module) = module {
            modules.insert(module.clone());
            block.fused[0].module = module;
        }
    }
    if found.blocks == 0 {
        return Agreement::default();
    }
    let missed = missed(&plan, &agreed);
    // The author's deploy form loads what it has, all of it and nothing else.
    if structure || !missed.is_empty() || found.blocks < blocks.len() {
        found.load = None;
    }
    found.differences.extend(also_folds(&plan.recipe, &missed));
    found
}

/// What a built-in recipe would do, if one fits.
fn planned(state: &Index) -> Option<Plan> {
    let near = recipe::builtin_near(state).ok()?;
    let families = recipe::detect_builtin(state, &near).ok()?;
    plan::plan_families(state, &families, &Options::default()).ok()
}

/// The weights that an expression reads. Numbers of the program itself have no part in a state dict.
fn names<'e>(expr: &'e Part<Tensor>, state: &Index) -> BTreeSet<&'e str> {
    let leaves = expr.leaves().into_iter().map(Tensor::name);
    leaves.filter(|name| state.contains_key(*name)).collect()
}

/// What graph and recipe say differently of the same tensors, in words.
enum Difference {
    /// The eps of a norm.
    Eps(String),
    /// What is computed.
    Structure(String),
}

/// What two expressions over the same tensors say differently.
fn difference(
    checkpoint: &Checkpoint,
    recipe: &str,
    graph: &PlannedConv,
    by_recipe: &PlannedConv,
) -> Option<Difference> {
    let [a, b] = [graph, by_recipe].map(|conv| conv.expr.root());
    if same(&graph.expr, &by_recipe.expr) {
        return None;
    }
    let differing = eps_of(a).into_iter().find_map(|(norm, eps)| {
        let other = eps_of(b).into_iter().find(|(other, _)| *other == norm)?.1;
        (other != eps).then_some((other, eps))
    });
    if let Some((says, eps)) = differing {
        return Some(Difference::Eps(format!(
            "recipe {recipe} says eps {says:e}, the graph {eps:e}"
        )));
    }
    match same_numbers(checkpoint, graph, by_recipe) {
        true => None,
        false => Some(Difference::Structure(format!(
            "recipe {recipe} says {}, the graph {}",
            crate::algebra::describe::expression(b),
            crate::algebra::describe::expression(a)
        ))),
    }
}

fn eps_of(expr: &Part<Tensor>) -> Vec<(&str, f64)> {
    let norms = expr.norms().into_iter();
    norms.map(|norm| (norm.var.name(), norm.eps)).collect()
}

/// Rows that are folded to tell two expressions apart, and what rounding in f64 may do to them.
const ROWS: usize = 8;
const ROUNDING: f64 = 1e-9;

/// Whether two convs compute the same: two trees can say that in other words, and then fold to the same numbers.
pub(super) fn same_numbers(checkpoint: &Checkpoint, a: &PlannedConv, b: &PlannedConv) -> bool {
    let (ga, gb) = (a.geometry(), b.geometry());
    if ga.transposed()
        || gb.transposed()
        || (ga.out(), ga.row_len(), ga.groups()) != (gb.out(), gb.row_len(), gb.groups())
    {
        return false;
    }
    let fold = |conv: &PlannedConv| {
        let mut reader = Reader::new(checkpoint, 1 << 16);
        fold_rows(checkpoint, conv, 0..ga.out().min(ROWS), &mut reader).ok()
    };
    let (Some((kernel_a, bias_a)), Some((kernel_b, bias_b))) = (fold(a), fold(b)) else {
        return false;
    };
    let largest = kernel_a
        .iter()
        .chain(&bias_a)
        .fold(0.0f64, |most, x| most.max(x.abs()));
    let mut pairs = (kernel_a.iter().chain(&bias_a)).zip(kernel_b.iter().chain(&bias_b));
    // Zeros tell nothing apart: a norm may start with them.
    largest > 0.0 && pairs.all(|(x, y)| (x - y).abs() <= ROUNDING * largest)
}
