//! What names leave open, and what OUT does not tell: sentences, each with its size for the file and the tensors that it is about.

use std::collections::{BTreeMap, BTreeSet};

use super::units;
use crate::fuse::diagnose::EpsSensitivity;
use crate::plan::{Applied, Block, EpsSource, Plan, PlannedConv, built_with};
use crate::recipe::model::BATCH_COUNT;
use crate::tensor::{Tensor, quoted};

/// Something that the names of a file do not tell, and that the recipe was believed about.
#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    /// What it is, and how much it matters for this file.
    pub sentence: String,
    /// The tensors that it is about.
    pub tensors: Vec<String>,
    /// The eps that the file may have instead of the recipe's, if it is about an eps.
    pub other_eps: Option<f64>,
}

/// What of a plan rests on names alone. `weights` are those of [`check_norms`](crate::fuse::diagnose::check_norms).
pub fn warnings(plan: &Plan, weights: &[EpsSensitivity]) -> Vec<Warning> {
    let mut found = Vec::new();
    for (number, family) in plan.families.iter().enumerate() {
        let weight = weights.iter().find(|weight| weight.family == Some(number));
        found.extend(weight.and_then(|weight| match says_no_eps(plan, family) {
            true => about_code(family, weight),
            false => about_eps(family, weight),
        }));
        found.extend(about_identities(plan, family));
        found.extend(about_factors(plan, family));
        found.extend(about_odd_blocks(plan, family));
        found.extend(about_arguments(plan, family));
    }
    found
}

/// What fused convs are built with that is unlike the recipe's.
fn about_arguments(plan: &Plan, family: &Applied) -> Vec<Warning> {
    let convs = plan.blocks_of(family).iter().flat_map(|block| &block.fused);
    let mut of: BTreeMap<String, Vec<&PlannedConv>> = BTreeMap::new();
    for conv in convs {
        for argument in built_with(conv) {
            of.entry(argument).or_default().push(conv);
        }
    }
    let warning = |(argument, convs): (String, Vec<&PlannedConv>)| {
        let which = match convs[..] {
            [one] => format!("the fused conv {} is", quoted(&one.module)),
            [first, ..] => format!(
                "{} fused convs, {} and others, are",
                convs.len(),
                quoted(&first.module)
            ),
            [] => return None,
        };
        Some(Warning {
            sentence: format!(
                "{which} to be built with {}, as the file says of what is folded; tensors do not tell it",
                quoted(&argument)
            ),
            tensors: convs.iter().map(|conv| conv.weight_name()).collect(),
            other_eps: None,
        })
    };
    of.into_iter().filter_map(warning).collect()
}

fn about_eps(family: &Applied, weight: &EpsSensitivity) -> Option<Warning> {
    let note = family.eps_note.as_ref()?;
    if family.eps_source != EpsSource::Recipe {
        return None;
    }
    let sentence = format!(
        "the names alone do not tell the eps; {}: {note}",
        would_change(family.eps?, family, weight)
    );
    Some(of_eps(sentence, weight))
}

/// How much another eps would matter.
fn would_change(eps: f64, family: &Applied, weight: &EpsSensitivity) -> String {
    format!(
        "recipe {} has {eps:e}, and {:e} would change a scale by up to {}",
        quoted(&family.recipe),
        weight.other,
        units::share(weight.largest)
    )
}

fn of_eps(sentence: String, weight: &EpsSensitivity) -> Warning {
    Warning {
        sentence,
        tensors: vec![weight.tensor.clone()],
        other_eps: Some(weight.other),
    }
}

/// Whether the file tells the modules of norms and not their eps, as TorchScript does, which keeps that in its code.
fn says_no_eps(plan: &Plan, family: &Applied) -> bool {
    let blocks = plan.blocks_of(family);
    let convs = blocks.iter().flat_map(|block| &block.fused);
    let mut norms = convs.flat_map(|conv| conv.expr.root().norms());
    norms.any(|norm| {
        let said = norm.mean.module();
        said.is_some_and(|said| said.in_code && said.number("eps").is_none())
    })
}

fn about_code(family: &Applied, weight: &EpsSensitivity) -> Option<Warning> {
    if !matches!(family.eps_source, EpsSource::Recipe | EpsSource::Host) {
        return None;
    }
    let sentence = format!(
        "the eps of this file's norms stands in its code, as TorchScript keeps it, and is not read; {}: a model that was made with another one is folded wrongly",
        would_change(family.eps?, family, weight)
    );
    Some(of_eps(sentence, weight))
}

fn about_identities(plan: &Plan, family: &Applied) -> Option<Warning> {
    let note = family.identity_note.as_ref()?;
    let blocks = plan.blocks_of(family);
    let convs = blocks.iter().flat_map(|block| &block.fused);
    let keeps = convs.filter(|conv| conv.geometry().inputs() == conv.geometry().out());
    let tensors: Vec<String> = keeps.map(|conv| conv.weight_name()).collect();
    (!tensors.is_empty()).then(|| Warning {
        sentence: format!(
            "the names alone do not tell whether {} a bare identity, which adds 1 to the middle tap of each channel; recipe {} was believed: {note}",
            match tensors.len() {
                1 => "1 block that keeps its width holds".to_owned(),
                n => format!("{n} blocks that keep their width hold"),
            },
            quoted(&family.recipe)
        ),
        tensors,
        other_eps: None,
    })
}

fn about_factors(plan: &Plan, family: &Applied) -> Option<Warning> {
    let note = family.factor_note.as_ref()?;
    let blocks = plan.blocks_of(family);
    let convs = blocks.iter().flat_map(|block| &block.fused);
    let tensors: Vec<String> = convs.map(|conv| conv.weight_name()).collect();
    (!tensors.is_empty()).then(|| Warning {
        sentence: format!(
            "no file holds the factor of these blocks, and recipe {} takes it for 1: {note}",
            quoted(&family.recipe)
        ),
        tensors,
        other_eps: None,
    })
}

/// Fewer blocks than this say nothing of one that is unlike them.
const ENOUGH_ALIKE: usize = 3;

/// Blocks that stand in a row, have the same shape, and are alike but for one: it has lost a branch, or has one that the others do without.
fn about_odd_blocks(plan: &Plan, family: &Applied) -> Vec<Warning> {
    let blocks = plan.blocks_of(family);
    let mut rows: BTreeMap<(String, Vec<Vec<usize>>), Vec<&Block>> = BTreeMap::new();
    for block in blocks {
        let shapes = block.fused.iter().map(|conv| conv.stored_shape());
        let row = in_row(&block.name);
        rows.entry((row, shapes.collect())).or_default().push(block);
    }
    let rows = rows.values().filter(|row| row.len() > ENOUGH_ALIKE);
    rows.filter_map(|row| odd_one(row)).collect()
}

/// The name of a block without the last number in it.
fn in_row(name: &str) -> String {
    let mut segments: Vec<&str> = name.split('.').collect();
    let is_number = |segment: &&str| segment.bytes().all(|b| b.is_ascii_digit());
    if let Some(last) = segments.iter().rposition(is_number) {
        segments[last] = "";
    }
    segments.join(".")
}

fn odd_one(row: &[&Block]) -> Option<Warning> {
    let below = |block: &Block| -> BTreeSet<String> {
        let tensors = block.consumed.iter().map(Tensor::name);
        let below = tensors.filter(|name| !name.ends_with(BATCH_COUNT));
        let below = below.filter_map(|name| name.strip_prefix(&*block.name));
        below.map(str::to_owned).collect()
    };
    let all: Vec<BTreeSet<String>> = row.iter().map(|block| below(block)).collect();
    let mut times: BTreeMap<&String, usize> = BTreeMap::new();
    for name in all.iter().flatten() {
        *times.entry(name).or_default() += 1;
    }
    let others = row.len() - 1;
    let (name, there) = times.iter().find_map(|(name, times)| match times {
        1 => Some((*name, true)),
        n if *n == others => Some((*name, false)),
        _ => None,
    })?;
    let odd = (all.iter()).position(|names| names.contains(name) == there)?;
    if odd == 0 && !there {
        // The first of a row takes larger steps, and has no identity even where it keeps the width.
        return None;
    }
    let tensor = format!("{}{name}", row[odd].name);
    let [has, do_others] = match there {
        true => ["has", "have none such"],
        false => ["has no", "have one"],
    };
    Some(Warning {
        sentence: format!(
            "block {} {has} {}, and the {others} blocks of its shape beside it {do_others}: the recipe calls it optional",
            quoted(&row[odd].name),
            quoted(&tensor),
        ),
        tensors: vec![tensor],
        other_eps: None,
    })
}
