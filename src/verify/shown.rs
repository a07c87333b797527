//! How a verdict writes its numbers and what it says in words.

use std::cmp::Ordering;

use super::{BlockVerdict, Failure, Verdict};
use crate::tensor::quoted;

/// A ratio to the rounding bound: `0.42`, `5.3e4`; `–` for what is no number.
pub fn ratio(x: f64) -> String {
    match x {
        x if x.is_nan() => "–".to_owned(),
        x if x.is_infinite() => "∞".to_owned(),
        x if x < 1000.0 => format!("{x:.2}"),
        x => format!("{x:.1e}"),
    }
}

/// Two different numbers with as many digits as tell them apart, and four at the least: `0.7411` and `0.7401`.
pub fn apart(a: f64, b: f64) -> [String; 2] {
    let shown = |digits| [a, b].map(|x| significant(x, digits));
    let differ = |[a, b]: &[String; 2]| a != b;
    // Seventeen digits tell all numbers apart.
    (4..17).map(shown).find(differ).unwrap_or_else(|| shown(17))
}

/// A number with so many digits that count; zeros at its end are left out.
fn significant(x: f64, digits: usize) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{x:.*e}", digits - 1);
    let exponent = scientific
        .rsplit_once('e')
        .and_then(|(_, e)| e.parse().ok());
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    match (exponent, scientific.split_once('e')) {
        (Some(e @ -4..=5), _) => trimmed(&format!(
            "{x:.*}",
            // A number of more digits than asked for has none behind the point.
            (digits as i32 - 1 - e).max(0) as usize
        )),
        (_, Some((mantissa, e))) => format!("{}e{e}", trimmed(mantissa)),
        // What is no number has no exponent.
        (_, None) => scientific,
    }
}

/// The order people expect of numbered names: `stage.2` before `stage.10`.
pub fn natural_order(a: &str, b: &str) -> Ordering {
    let mut pairs = a.split('.').zip(b.split('.'));
    pairs
        .find_map(|(x, y)| Some(natural_segments(x, y)).filter(|order| order.is_ne()))
        .unwrap_or_else(|| a.len().cmp(&b.len()))
}

/// The same of two segments of names.
pub fn natural_segments(a: &str, b: &str) -> Ordering {
    // Numbers are compared as numbers, behind the letters before them.
    let key = |text| {
        let (letters, digits) = numbered(text);
        let number = digits.trim_start_matches('0');
        (
            letters,
            !digits.is_empty(),
            number.len(),
            number,
            digits.len(),
        )
    };
    key(a).cmp(&key(b))
}

/// A text and the digits at its end.
pub fn numbered(text: &str) -> (&str, &str) {
    let letters = text.trim_end_matches(|c: char| c.is_ascii_digit());
    text.split_at(letters.len())
}

/// A number that is not what it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The tensor of the deploy form.
    pub tensor: String,
    /// The index in it. Of a weight that random maps found wrong as a whole, the output channel alone.
    pub index: Vec<usize>,
    /// What stands there; where the index is that of a channel alone, an output of it.
    pub found: f64,
    /// What the training form gives; none where nothing can be compared with what was found.
    pub expected: Option<f64>,
    /// Whether the index is that of an output channel alone.
    pub whole_channel: bool,
}

impl Place {
    /// `stages.1.6.weight[5,0,1,1]`.
    pub fn name(&self) -> String {
        let index: Vec<String> = self.index.iter().map(usize::to_string).collect();
        format!("{}[{}]", self.tensor, index.join(","))
    }

    /// What is wrong: ``the name `…[5,0,1,1]` is 0.7411, expected 0.7401``.
    pub fn said(&self) -> String {
        let name = quoted(&self.name());
        match self.expected {
            _ if self.found.is_nan() => format!("{name} is not a number"),
            _ if self.found.is_infinite() => format!("{name} is infinite"),
            Some(expected) => {
                let [found, expected] = apart(self.found, expected);
                match self.whole_channel {
                    false => format!("{name} is {found}, expected {expected}"),
                    true => format!(
                        "output channel {name} gives {found} for a random map, expected {expected}"
                    ),
                }
            }
            None => format!("{name} is {}", self.found),
        }
    }
}

/// Names in a list that are shown before it is cut.
const MOST_NAMES: usize = 3;

/// `1 conv differs`, `2 convs differ`.
fn counted(n: usize, all: usize, [one, several]: [&str; 2]) -> String {
    match (n, all) {
        (1, 1) => format!("the only conv {one}"),
        (1, _) => format!("1 of {all} convs {one}"),
        _ => format!("{n} of {all} convs {several}"),
    }
}

impl Verdict {
    /// What is wrong with the convs and copies, in one sentence without its full stop; nothing where all is right.
    pub fn why_not(&self) -> Option<String> {
        if self.accepted() {
            return None;
        }
        if let Some(fits) = self.few_that_fit() {
            return Some(self.another_network(fits));
        }
        let all = self.blocks.len();
        let failed = || self.blocks.iter().filter(|b| !b.accepted);
        let mut parts = Vec::new();
        let differ: Vec<&BlockVerdict> = failed().filter(|b| b.failure.is_none()).collect();
        if let Some(worst) = differ.iter().copied().reduce(|a, b| worse_of(a, b)) {
            let said = worst.why_not().unwrap_or_else(|| worst.module.clone());
            let count = counted(differ.len(), all, ["differs", "differ"]);
            parts.push(match differ.len() {
                1 => format!("{count}: {said}"),
                _ => format!("{count}, most of all {said}"),
            });
        }
        let absent: Vec<&str> = failed().filter_map(|b| b.failure.as_deref()).collect();
        if let Some(first) = absent.first() {
            let count = counted(absent.len(), all, ["cannot be compared"; 2]);
            parts.push(match absent.len() {
                1 => format!("{count}: {first}"),
                _ => format!("{count}: {first}, and so on"),
            });
        }
        parts.extend(self.failures_said());
        Some(parts.join("; "))
    }

    /// The failures that no conv has said, in order.
    pub fn other_failures(&self) -> Vec<&Failure> {
        let said = |failure: &&Failure| {
            let text = failure.to_string();
            let of_blocks = self.blocks.iter().filter_map(|b| b.failure.as_ref());
            !of_blocks.into_iter().any(|said| *said == text)
        };
        self.failures.iter().filter(said).collect()
    }

    /// Every failure apart from the convs, in words.
    pub fn failures_in_words(&self) -> Vec<String> {
        self.failures.iter().map(ToString::to_string).collect()
    }

    fn failures_said(&self) -> Vec<String> {
        let others = self.other_failures();
        let named = |pick: fn(&Failure) -> Option<&String>| -> Vec<&str> {
            others
                .iter()
                .filter_map(|f| pick(f))
                .map(String::as_str)
                .collect()
        };
        let missing = named(|f| match f {
            Failure::Missing(name) => Some(name),
            _ => None,
        });
        let left_over = named(|f| match f {
            Failure::LeftOver(name) => Some(name),
            _ => None,
        });
        let differs = named(|f| match f {
            Failure::Differs(text) => Some(text),
            _ => None,
        });
        let mut parts = Vec::new();
        for (names, end) in [(missing, "missing"), (left_over, "left over")] {
            match names[..] {
                [] => {}
                [name] => parts.push(format!("{} is {end}", quoted(name))),
                _ => parts.push(format!(
                    "{} tensors are {end}: {}",
                    names.len(),
                    list(&names, MOST_NAMES)
                )),
            }
        }
        match differs[..] {
            [] => {}
            [text] => parts.push(text.to_owned()),
            [text, ref more @ ..] => {
                let plural = if more.len() == 1 { "" } else { "s" };
                parts.push(format!(
                    "{text}, and {} more difference{plural} in what is copied",
                    more.len()
                ));
            }
        }
        parts
    }

    /// Whether next to nothing of what fusing makes is in the other file, and no conv of it is right.
    pub fn is_of_another_network(&self) -> bool {
        self.few_that_fit().is_some()
    }

    /// How many of the tensors fit, and how many there are, where that are next to none.
    fn few_that_fit(&self) -> Option<[usize; 2]> {
        let right = self.blocks.iter().any(|block| block.accepted);
        let fits = self.fits.filter(|_| !self.accepted() && !right);
        fits.filter(|[fit, all]| *all > 1 && 4 * fit < *all)
    }

    fn another_network(&self, [fit, all]: [usize; 2]) -> String {
        let example = self.blocks.iter().find_map(|b| b.failure.as_deref());
        let example = example.map_or(String::new(), |e| format!("; for one, {e}"));
        let what = match all == self.blocks.len() {
            true => "convs",
            false => "tensors",
        };
        let some = match fit {
            0 => "none is".to_owned(),
            1 => "1 is".to_owned(),
            n => format!("{n} are"),
        };
        format!(
            "the files are of different networks: of the {all} {what} that fusing makes, {some} in the deploy form with the \
             same shape{example}"
        )
    }
}

/// Names side by side, so many at the most.
pub fn list(names: &[&str], most: usize) -> String {
    let shown: Vec<String> = names.iter().take(most).map(|name| quoted(name)).collect();
    match names.len().saturating_sub(most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

pub use super::tally::worse;

fn worse_of<'a>(a: &'a BlockVerdict, b: &'a BlockVerdict) -> &'a BlockVerdict {
    match super::is_worse(b.ratio, a.ratio) {
        true => b,
        false => a,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_tell_numbers_apart() {
        for (a, b, expected) in [
            (0.7411, 0.7401, ["0.7411", "0.7401"]),
            (0.741_12, 0.741_13, ["0.74112", "0.74113"]),
            (0.0, 1.5, ["0", "1.5"]),
            (-2.0e-7, 3.0e8, ["-2e-7", "3e8"]),
            (123_456.0, 123_457.0, ["123456", "123457"]),
            (1.0, 1.0 + f64::EPSILON, ["1", "1.0000000000000002"]),
        ] {
            assert_eq!(apart(a, b), expected);
        }
    }

    #[test]
    fn names_are_cut_behind_some() {
        assert_eq!(list(&["a", "b"], 2), "`a`, `b`");
        assert_eq!(list(&["a", "b", "c"], 2), "`a`, `b` and 1 more");
    }

    #[test]
    fn ratios_are_short_and_never_no_number() {
        assert_eq!(
            [0.421_3, 53_211.0, f64::NAN, f64::INFINITY].map(ratio),
            ["0.42", "5.3e4", "–", "∞"]
        );
    }
}
