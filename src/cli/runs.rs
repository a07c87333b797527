//! Equal things by pattern: networks repeat a block under one number after the other, and one line says so.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::summary::order::FileOrder;

/// Sorts named things in the order of their file, and joins those with equal `rest` whose names differ in one number only, which
/// goes up by one: `stage.3.1.conv` … `stage.3.13.conv` become `stage.3.1–13.conv`, whatever stands between them. Without `join`,
/// only sorts. Gives the name and the things of each group, in the order of the first.
pub(super) fn runs<T, K: Ord>(
    mut things: Vec<(&str, T)>,
    order: &FileOrder,
    rest: impl Fn(&T) -> K,
    join: bool,
) -> Vec<(String, Vec<T>)> {
    things.sort_by(|a, b| order.compare(a.0, b.0));
    let mut groups = match join {
        true => grouped(&things, rest),
        false => Vec::new(),
    };
    let mut group_of: Vec<Option<usize>> = vec![None; things.len()];
    for (g, group) in groups.iter().enumerate() {
        group.members.iter().for_each(|i| group_of[*i] = Some(g));
    }
    let mut out: Vec<(String, Vec<T>)> = Vec::new();
    // Where in `out` a group has gone.
    let mut place_of: Vec<Option<usize>> = vec![None; groups.len()];
    for (i, (name, thing)) in things.into_iter().enumerate() {
        match group_of[i] {
            None => out.push((name.to_owned(), vec![thing])),
            Some(g) => match place_of[g] {
                Some(place) => out[place].1.push(thing),
                None => {
                    place_of[g] = Some(out.len());
                    out.push((std::mem::take(&mut groups[g].name), vec![thing]));
                }
            },
        }
    }
    out
}

struct Group {
    /// The things in it, in order.
    members: Vec<usize>,
    name: String,
}

/// Each thing with equal ones that count up in one segment of the name; the longest groups are made first.
fn grouped<T, K: Ord>(things: &[(&str, T)], rest: impl Fn(&T) -> K) -> Vec<Group> {
    // By what is equal and by the name around one number: the number, and which thing has it.
    let mut series: BTreeMap<(K, usize, String), Vec<(u64, usize)>> = BTreeMap::new();
    for (i, (name, thing)) in things.iter().enumerate() {
        let segments: Vec<&str> = name.split('.').collect();
        for (at, segment) in segments.iter().enumerate() {
            let Some((letters, number)) = counted(segment) else {
                continue;
            };
            let mut around: Vec<&str> = segments.clone();
            around[at] = letters;
            let key = (rest(thing), at, around.join("."));
            series.entry(key).or_default().push((number, i));
        }
    }
    let mut chains = BinaryHeap::new();
    for ((_, at, _), mut members) in series {
        members.sort_unstable();
        chains.extend(unbroken(members).map(|chain| ranked(at, chain)));
    }
    let mut taken = vec![false; things.len()];
    let mut groups = Vec::new();
    while let Some((before, _, at, mut chain)) = chains.pop() {
        chain.retain(|(_, i)| !taken[*i]);
        if chain.len() < before {
            // What is left of it waits for its turn.
            chains.extend(unbroken(chain).map(|part| ranked(at, part)));
            continue;
        }
        chain.iter().for_each(|(_, i)| taken[*i] = true);
        groups.push(group(things, at, &chain));
    }
    groups
}

/// Its length, where it begins, the segment that counts, and the chain of numbers and things.
type Ranked = (usize, Reverse<usize>, usize, Vec<(u64, usize)>);

/// Longest first; of equally long ones, the one that begins first, then the one that counts last in the name.
fn ranked(at: usize, chain: Vec<(u64, usize)>) -> Ranked {
    let first = chain.iter().map(|(_, i)| *i).fold(usize::MAX, usize::min);
    (chain.len(), Reverse(first), at, chain)
}

fn group<T>(things: &[(&str, T)], at: usize, chain: &[(u64, usize)]) -> Group {
    let mut members: Vec<usize> = chain.iter().map(|(_, i)| *i).collect();
    members.sort_unstable();
    let last = chain.last().map(|(number, _)| *number);
    let segments = things[chain[0].1].0.split('.').enumerate();
    let name = segments.map(|(i, segment)| match last {
        Some(last) if i == at => format!("{segment}–{last}"),
        _ => segment.to_owned(),
    });
    Group {
        name: name.collect::<Vec<_>>().join("."),
        members,
    }
}

/// The parts in which the number goes up by one, of two things or more.
fn unbroken(members: Vec<(u64, usize)>) -> impl Iterator<Item = Vec<(u64, usize)>> {
    let mut parts: Vec<Vec<(u64, usize)>> = Vec::new();
    for member in members {
        match parts.last_mut() {
            Some(part) if part.last().and_then(|(n, _)| n.checked_add(1)) == Some(member.0) => {
                part.push(member);
            }
            _ => parts.push(vec![member]),
        }
    }
    parts.into_iter().filter(|part| part.len() > 1)
}

/// A segment's letters, and the number at its end as it is written without zeros before it.
fn counted(segment: &str) -> Option<(&str, u64)> {
    let letters = segment.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &segment[letters.len()..];
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some((letters, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[(&str, u8)]) -> Vec<(String, usize)> {
        let found = runs(of.to_vec(), &FileOrder::default(), |kind| *kind, true);
        let counted = found.into_iter().map(|(name, all)| (name, all.len()));
        counted.collect()
    }

    #[test]
    fn equal_neighbours_are_one_line() {
        let found = names(&[
            ("stage3.1.conv", 1),
            ("stage3.10.conv", 1),
            ("stage3.9.conv", 1),
            ("stage3.2.conv", 2),
            ("stage4.2.conv", 1),
        ]);
        let expected = [
            ("stage3.1.conv", 1),
            ("stage3.2.conv", 1),
            ("stage3.9–10.conv", 2),
            ("stage4.2.conv", 1),
        ];
        assert_eq!(found, expected.map(|(name, n)| (name.to_owned(), n)));
    }

    #[test]
    fn equal_things_join_over_others() {
        let mut things = Vec::new();
        let all: Vec<[String; 2]> = (0..18)
            .map(|i| {
                [
                    format!("blocks.{i}.attn.qkv"),
                    format!("blocks.{i}.mlp.fc1"),
                ]
            })
            .collect();
        for [qkv, fc1] in &all {
            things.push((qkv.as_str(), 1));
            things.push((fc1.as_str(), 2));
        }
        let expected = [("blocks.0–17.attn.qkv", 18), ("blocks.0–17.mlp.fc1", 18)];
        assert_eq!(
            names(&things),
            expected.map(|(name, n)| (name.to_owned(), n))
        );
    }

    #[test]
    fn a_run_counts_in_one_place_only() {
        let found = names(&[
            ("a.0.0", 1),
            ("a.0.1", 1),
            ("a.1.1", 1),
            ("b0", 1),
            ("b1", 1),
        ]);
        let expected = [("a.0.0–1", 2), ("a.1.1", 1), ("b0–1", 2)];
        assert_eq!(found, expected.map(|(name, n)| (name.to_owned(), n)));
    }
}
