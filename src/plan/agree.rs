//! Where a tensor is optional, the blocks of one rule agree: a bias that only one of them lacks has been lost.

use std::collections::BTreeMap;

use crate::recipe::expand::OptionalPart;
use crate::tensor::quoted;

/// Which blocks have a tensor that the recipe says may be there, and which do without.
#[derive(Default)]
pub(super) struct Agreement(BTreeMap<(Option<usize>, String), Vec<Seen>>);

/// What a block has or lacks.
struct Seen {
    block: String,
    part: OptionalPart,
}

impl Agreement {
    /// Notes what a block has; `rule` is the number of its rule.
    pub(super) fn note(&mut self, rule: Option<usize>, block: &str, part: OptionalPart) {
        let key = (rule, part.pattern.clone());
        self.0.entry(key).or_default().push(Seen {
            block: block.to_owned(),
            part,
        });
    }

    /// The block that is unlike the others of its rule, and a sentence on how.
    pub(super) fn odd(&self) -> Option<(String, String)> {
        let of_rules = self.0.values().map(Vec::as_slice);
        of_rules.flat_map(alike).find_map(|blocks| odd_one(&blocks))
    }
}

/// The blocks that are compared with each other. The convs of a rule all have a bias or none; whether there is a factor is
/// a matter of a part of the network: a backbone has it, a neck does without.
fn alike(seen: &[Seen]) -> Vec<Vec<&Seen>> {
    if seen.iter().all(|seen| seen.part.is_bias) {
        return vec![seen.iter().collect()];
    }
    let mut parts: BTreeMap<String, Vec<&Seen>> = BTreeMap::new();
    for seen in seen {
        // Blocks at like places differ in their numbers.
        let place = without_numbers(&seen.block);
        parts.entry(place).or_default().push(seen);
    }
    parts.into_values().collect()
}

fn odd_one(seen: &[&Seen]) -> Option<(String, String)> {
    let (with, without): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|seen| seen.part.there);
    let (odd, others, [is, have]) = match without.len() <= with.len() {
        true => (without.first()?, &with, ["is missing", "have one"]),
        false => (with.first()?, &without, ["is there", "have none"]),
    };
    let tensor = quoted(&odd.part.name);
    let said = match &others[..] {
        [] => return None,
        [other] if other.part.there => {
            format!(
                "{tensor} is missing, and {} is there",
                quoted(&other.part.name)
            )
        }
        [other] => format!(
            "{tensor} is there, and {} is missing",
            quoted(&other.part.name)
        ),
        _ => format!(
            "{tensor} {is}, and the {} other blocks of its kind {have}",
            others.len()
        ),
    };
    Some((odd.block.clone(), said))
}

/// A name without its digits: blocks and tensors at like places differ in those.
pub(super) fn without_numbers(name: &str) -> String {
    name.split(|c: char| c.is_ascii_digit()).collect()
}
