//! What stands among the tensors of a block and has no part in what it computes: an attention, a gate, another path.

use std::collections::{BTreeSet, HashSet};

use super::words::Words;
use crate::graph::agree::Index;
use crate::plan::closed::region_of;
use crate::plan::path::{is_below, modules_above, parent};
use crate::recipe::model::BATCH_COUNT;

/// Says of each block what stands beside it.
pub(super) fn add_beside(state: &Index, blocks: &mut [Words]) {
    let own: Vec<HashSet<String>> = blocks.iter().map(own).collect();
    let taken: HashSet<&str> = own.iter().flatten().map(String::as_str).collect();
    let free: Vec<&str> = state
        .keys()
        .map(String::as_str)
        .filter(|name| !taken.contains(name))
        .collect();
    for (block, own) in blocks.iter_mut().zip(&own) {
        let names: BTreeSet<String> = beside(&free, own)
            .into_iter()
            .map(|name| below(&block.path, &name))
            .collect();
        block.beside = names.into_iter().collect();
    }
}

/// The tensors of a block, the counters of its norms with them.
fn own(block: &Words) -> HashSet<String> {
    let counters = block
        .consumed
        .iter()
        .filter_map(|name| name.strip_suffix(".running_mean"))
        .map(|module| format!("{module}.{BATCH_COUNT}"));
    counters.chain(block.consumed.iter().cloned()).collect()
}

/// The outermost modules, or tensors, in the region of a block that hold none of its own.
fn beside(free: &[&str], own: &HashSet<String>) -> BTreeSet<String> {
    let region = region_of(own.iter().map(String::as_str));
    let modules: HashSet<&str> = own
        .iter()
        .map(|name| parent(name))
        .filter(|module| module.len() > region.len())
        .collect();
    let above: HashSet<&str> = own.iter().flat_map(|name| modules_above(name)).collect();
    let inside = free
        .iter()
        .filter(|name| region.is_empty() || is_below(name, region));
    inside
        .map(|name| {
            // In a conv or norm of the block only a tensor's whole name says so.
            let within = modules_above(name).any(|module| modules.contains(module));
            let outermost = modules_above(name)
                .filter(|module| module.len() > region.len())
                .find(|module| !above.contains(module));
            match (within, outermost) {
                (false, Some(module)) => module.to_owned(),
                _ => (*name).to_owned(),
            }
        })
        .collect()
}

/// A name as a pattern below the path of a block.
fn below(path: &str, name: &str) -> String {
    match name.strip_prefix(path) {
        Some(rest) if !path.is_empty() => format!("{{p}}{rest}"),
        _ => format!("{{p}}.{name}"),
    }
}

/// A module as a pattern in which digits may be others: `layers.{a}.norm`.
pub(super) fn with_captures(path: &str) -> String {
    let mut letters = ('a'..='f').map(|letter| format!("{{{letter}}}"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<String> = path
        .split('.')
        .map(|part| match is_number(part) {
            true => letters.next().unwrap_or_else(|| part.to_owned()),
            false => part.to_owned(),
        })
        .collect();
    parts.join(".")
}
