//! Runs of equal things: networks repeat a block under one number after the other, and one line says so.

use crate::summary::units::natural_order;

/// Sorts named things as people count, and joins neighbours with equal `rest` whose names differ in one number only,
/// which goes up by one: `stage.3.1` … `stage.3.13` become `stage.3.1–13`; without `join`, only sorts. Gives name, how many, and the first of each run.
pub(super) fn runs<'a, T, K: PartialEq>(
    mut things: Vec<(&'a str, T)>,
    rest: impl Fn(&T) -> K,
    join: bool,
) -> Vec<(String, usize, T)> {
    things.sort_by(|a, b| natural_order(a.0, b.0));
    let mut out: Vec<(Run<'a>, T)> = Vec::new();
    for (name, thing) in things {
        if join
            && let Some((run, first)) = out.last_mut()
            && rest(first) == rest(&thing)
            && run.take(name)
        {
            continue;
        }
        out.push((Run::new(name), thing));
    }
    out.into_iter()
        .map(|(run, thing)| (run.name(), run.count, thing))
        .collect()
}

struct Run<'a> {
    first: &'a str,
    last: &'a str,
    /// The segment that counts up, once it is known.
    at: Option<usize>,
    count: usize,
}

impl<'a> Run<'a> {
    fn new(name: &'a str) -> Run<'a> {
        Run {
            first: name,
            last: name,
            at: None,
            count: 1,
        }
    }

    /// Whether `name` follows.
    fn take(&mut self, name: &'a str) -> bool {
        let step = counts_up(self.last, name);
        if step.is_none() || (self.at.is_some() && self.at != step) {
            return false;
        }
        (self.last, self.at, self.count) = (name, step, self.count + 1);
        true
    }

    fn name(&self) -> String {
        let Some(at) = self.at else {
            return self.first.to_owned();
        };
        let last = self.last.split('.').nth(at).unwrap_or_default();
        let letters = last.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let segment = |(i, segment): (usize, &str)| match i == at {
            true => format!("{segment}–{}", &last[letters..]),
            false => segment.to_owned(),
        };
        let segments: Vec<String> = self.first.split('.').enumerate().map(segment).collect();
        segments.join(".")
    }
}

/// The one segment in which `b` is one more than `a`.
fn counts_up(a: &str, b: &str) -> Option<usize> {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.split('.').collect(), b.split('.').collect());
    if a.len() != b.len() {
        return None;
    }
    let mut differ = (0..a.len()).filter(|i| a[*i] != b[*i]);
    let (at, None) = (differ.next()?, differ.next()) else {
        return None;
    };
    let number = |segment: &str| {
        let letters = segment.trim_end_matches(|c: char| c.is_ascii_digit());
        let n: u64 = segment[letters.len()..].parse().ok()?;
        Some((letters.to_owned(), n))
    };
    let ((x, n), (y, m)) = (number(a[at])?, number(b[at])?);
    (x == y && m == n.checked_add(1)?).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[(&str, u8)]) -> Vec<(String, usize)> {
        let found = runs(of.to_vec(), |kind| *kind, true);
        found.into_iter().map(|(name, n, _)| (name, n)).collect()
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
