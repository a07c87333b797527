//! Patterns over tensor names, such as `{p}.rbr_conv.{i}.bn.weight`.
//!
//! | capture | matches |
//! |---|---|
//! | `{p}`, or any name that begins with `p`, at the start | a dotted path, possibly empty; an empty one swallows the dot behind it |
//! | `{i}`, any other name | decimal digits, also inside a segment: `conv_k{k}_{r}` |
//! | `{s:*}` | exactly one segment |
//! | `{s:a\|b}` | one of the words |
//! | `{i-1}`, `{i+1}` | nothing: in a name that is written, the digits of `{i}` and a number less or more |

use std::fmt;
use std::sync::Arc;

pub(crate) use super::captures::Captures;

/// More captures than this in one pattern are refused: matching tries every combination of words.
const MAX_CAPTURES: usize = 6;

/// So are more combinations of words than this.
const MAX_COMBINATIONS: usize = 256;

/// A pattern over whole tensor names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    prefix: Option<Arc<str>>,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Digits(Arc<str>),
    Segment(Arc<str>),
    Word(Arc<str>, Vec<String>),
    /// The digits of a capture and so much more or less: only in a name that is written.
    Shifted(Arc<str>, i64),
}

impl Part {
    fn capture(&self) -> Option<&str> {
        match self {
            Part::Literal(_) => None,
            Part::Digits(name)
            | Part::Segment(name)
            | Part::Word(name, _)
            | Part::Shifted(name, _) => Some(name),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::tensor::quoted(&self.text))
    }
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let (mut prefix, mut parts) = (None, Vec::new());
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = match rest.find(['{', '}']) {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            if after.is_empty() {
                break;
            }
            let Some((inside, after)) = after
                .strip_prefix('{')
                .and_then(|after| after.split_once('}'))
            else {
                return Err(format!("`{text}` has a brace without its partner"));
            };
            let part = parse_capture(inside)?;
            rest = after;
            match part {
                Part::Digits(name) if name.starts_with('p') => {
                    if !parts.is_empty() || prefix.is_some() {
                        return Err(format!(
                            "`{{{name}}}` captures a dotted path, which can only be at the start of a pattern"
                        ));
                    }
                    match after.strip_prefix('.') {
                        Some(after) => rest = after,
                        None if after.is_empty() => {}
                        None => {
                            return Err(format!(
                                "`{{{name}}}` captures a dotted path; a dot must follow it"
                            ));
                        }
                    }
                    prefix = Some(name);
                }
                part if part.capture().is_some()
                    && parts
                        .last()
                        .is_some_and(|last: &Part| last.capture().is_some()) =>
                {
                    return Err(format!(
                        "`{{{inside}}}` follows another capture at once; something literal must lie between them"
                    ));
                }
                Part::Segment(_) if !at_boundaries(&parts, after) => {
                    return Err(format!(
                        "`{{{inside}}}` captures a whole segment; dots must enclose it"
                    ));
                }
                part => parts.push(part),
            }
        }
        if parts.iter().filter(|part| part.capture().is_some()).count() > MAX_CAPTURES {
            return Err(format!("`{text}` has more than {MAX_CAPTURES} captures"));
        }
        let combinations = combinations(&parts);
        if combinations > MAX_COMBINATIONS {
            return Err(format!(
                "`{text}` has {combinations} combinations of words; at most {MAX_COMBINATIONS} are tried"
            ));
        }
        if text.is_empty() {
            Err("a pattern cannot be empty".to_owned())
        } else {
            Ok(Pattern {
                text: text.to_owned(),
                prefix,
                parts,
            })
        }
    }

    /// The pattern as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// This pattern with a literal end, as in `{p}.conv` + `.weight`.
    pub fn with_end(&self, end: &str) -> Pattern {
        let mut pattern = self.clone();
        pattern.text += end;
        // Behind a lone `{p}` the dot belongs to the capture.
        let literal = if pattern.parts.is_empty() && pattern.prefix.is_some() {
            end.trim_start_matches('.')
        } else {
            end
        };
        match pattern.parts.last_mut() {
            Some(Part::Literal(last)) => last.push_str(literal),
            _ => pattern.parts.push(Part::Literal(literal.to_owned())),
        }
        pattern
    }

    /// This pattern with each capture of the kind that it has in another: a rule says once, in `at`, that `{s}` is a word.
    pub(crate) fn with_kinds_of<'a>(
        &self,
        others: impl Iterator<Item = &'a Pattern> + Clone,
    ) -> Pattern {
        let mut pattern = self.clone();
        for part in &mut pattern.parts {
            let Part::Digits(name) = part else { continue };
            let named = |other: &&Part| {
                !matches!(other, Part::Digits(_)) && other.capture() == Some(&**name)
            };
            if let Some(kind) = others.clone().flat_map(|p| &p.parts).find(named) {
                *part = kind.clone();
            }
        }
        pattern
    }

    /// Whether it counts on or back from a capture, as `{i-1}` does: then it can be written, and matches nothing.
    pub(crate) fn counts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Shifted(name, _) => Some(&**name),
            _ => None,
        })
    }

    /// Whether a capture stands for digits and nothing else.
    pub(crate) fn has_digits(&self, name: &str) -> bool {
        let mut parts = self.parts.iter();
        parts.any(|part| matches!(part, Part::Digits(n) if **n == *name))
    }

    /// The text with every capture as it stands where it is bound: `{s}` for `{s:a|b}`.
    pub(crate) fn bare(&self) -> String {
        let mut bare = String::with_capacity(self.text.len());
        let mut rest = self.text.as_str();
        while let Some((before, after)) = rest.split_once(':') {
            bare += before;
            rest = after.split_once('}').map_or("", |(_, after)| after);
            bare.push('}');
        }
        bare + rest
    }

    /// Whether its last segment may be anything.
    pub(crate) fn ends_open(&self) -> bool {
        matches!(self.parts.last(), Some(Part::Segment(_)))
    }

    /// How many ways a name is tried in: the combinations of the words.
    pub fn combinations(&self) -> usize {
        combinations(&self.parts)
    }

    /// The name of the capture that stands for a dotted path at the start.
    pub fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// The names of its captures.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        self.prefix
            .as_deref()
            .into_iter()
            .chain(self.parts.iter().filter_map(Part::capture))
    }

    /// Whether a capture stands for one whole segment of digits: the index into a list of modules.
    pub fn is_index(&self, name: &str) -> bool {
        self.parts.iter().enumerate().any(|(i, part)| {
            let before = i.checked_sub(1).and_then(|b| self.parts.get(b));
            matches!(part, Part::Digits(n) if **n == *name)
                && before
                    .is_none_or(|part| matches!(part, Part::Literal(text) if text.ends_with('.')))
                && self
                    .parts
                    .get(i + 1)
                    .is_none_or(|part| matches!(part, Part::Literal(text) if text.starts_with('.')))
        })
    }

    /// Matches a whole name; captures that are `bound` already must agree.
    pub(crate) fn matches(&self, name: &str, bound: &Captures) -> Option<Captures> {
        // Most names fail on the literal end, before anything is copied.
        if let Some(Part::Literal(end)) = self.parts.last()
            && !name.ends_with(end.as_str())
        {
            return None;
        }
        let mut captures = bound.clone();
        self.backwards(self.parts.len(), name, &mut captures)
            .then_some(captures)
    }

    /// Matches the first `n` parts against the end of `rest`.
    fn backwards(&self, n: usize, rest: &str, captures: &mut Captures) -> bool {
        let Some(part) = n.checked_sub(1).map(|last| &self.parts[last]) else {
            return match &self.prefix {
                None => rest.is_empty(),
                Some(name) if rest.is_empty() => self.bind(name, "", captures).is_some(),
                Some(name) if self.parts.is_empty() => self.bind(name, rest, captures).is_some(),
                Some(name) => rest.strip_suffix('.').is_some_and(|path| {
                    !path.is_empty() && self.bind(name, path, captures).is_some()
                }),
            };
        };
        let mut attempt = |name: &Arc<str>, text: &str| {
            let before = &rest[..rest.len() - text.len()];
            // Most names fail on the literal before a capture, too.
            if n > 1
                && matches!(&self.parts[n - 2], Part::Literal(end) if !before.ends_with(end.as_str()))
            {
                return false;
            }
            let Some(fresh) = self.bind(name, text, captures) else {
                return false;
            };
            let matched = self.backwards(n - 1, before, captures);
            if !matched && fresh {
                captures.unset(name);
            }
            matched
        };
        match part {
            Part::Literal(text) => rest
                .strip_suffix(text.as_str())
                .is_some_and(|rest| self.backwards(n - 1, rest, captures)),
            Part::Digits(name) => {
                let digits = rest.bytes().rev().take_while(u8::is_ascii_digit).count();
                digits > 0 && attempt(name, &rest[rest.len() - digits..])
            }
            Part::Shifted(..) => false,
            Part::Segment(name) => {
                let segment = rest.rsplit('.').next().unwrap_or_default();
                !segment.is_empty() && attempt(name, segment)
            }
            Part::Word(name, words) => words
                .iter()
                .any(|word| rest.ends_with(word.as_str()) && attempt(name, word)),
        }
    }

    /// Binds a capture; `Some(true)` if it is new, `None` if it contradicts what is bound.
    fn bind(&self, name: &Arc<str>, text: &str, captures: &mut Captures) -> Option<bool> {
        match captures.get(name) {
            Some(bound) => (bound == text).then_some(false),
            None => {
                captures.set(name, text.to_owned());
                Some(true)
            }
        }
    }

    /// The name that the pattern stands for, or `None` if a capture is not bound.
    pub(crate) fn fill(&self, captures: &Captures) -> Option<String> {
        let (known, complete) = self.known_start(captures);
        complete.then_some(known)
    }

    /// Whether the pattern, all of whose captures are bound, stands for this name.
    pub(crate) fn stands_for(&self, name: &str, captures: &Captures) -> bool {
        // Most do not, and that is seen at the literal end.
        let ends = match self.parts.last() {
            Some(Part::Literal(end)) => name.ends_with(end.as_str()),
            _ => true,
        };
        ends && self.fill(captures).as_deref() == Some(name)
    }

    /// The start of every name that the pattern can stand for, and whether that is the whole name.
    pub(crate) fn known_start(&self, captures: &Captures) -> (String, bool) {
        // Captures are seldom longer than their names in braces.
        let mut out = String::with_capacity(self.text.len() + 32);
        if let Some(prefix) = &self.prefix {
            match captures.get(prefix) {
                None => return (out, false),
                Some(path) if path.is_empty() || self.parts.is_empty() => out += path,
                Some(path) => {
                    out += path;
                    out.push('.');
                }
            }
        }
        for part in &self.parts {
            match (part, part.capture().and_then(|name| captures.get(name))) {
                (Part::Shifted(_, by), Some(text)) => {
                    let number = text.parse::<u64>().ok();
                    match number.and_then(|n| n.checked_add_signed(*by)) {
                        Some(number) => out += &number.to_string(),
                        None => return (out, false),
                    }
                }
                (Part::Literal(text), _) => out += text,
                (_, Some(text)) => out += text,
                _ => return (out, false),
            }
        }
        (out, true)
    }
}

/// The name of what belongs to a module; the module that holds the whole network has no name.
pub(crate) fn within(module: &str, end: &str) -> String {
    match module {
        "" => end.to_owned(),
        module => format!("{module}.{end}"),
    }
}

/// If a pattern names this tensor or a module above it: the length of that name, and the captures.
pub(crate) fn covers(pattern: &Pattern, name: &str) -> Option<(usize, Captures)> {
    // Most names do not have the literal end at all.
    if let Some(Part::Literal(end)) = pattern.parts.last()
        && !name.contains(end.as_str())
    {
        return None;
    }
    let ends = name
        .match_indices('.')
        .map(|(at, _)| at)
        .chain([name.len()]);
    ends.into_iter()
        .find_map(|end| Some((end, pattern.matches(&name[..end], &Captures::new())?)))
}

fn combinations(parts: &[Part]) -> usize {
    let words = parts.iter().map(|part| match part {
        Part::Word(_, words) => words.len(),
        _ => 1,
    });
    words.fold(1, usize::saturating_mul)
}

fn parse_capture(inside: &str) -> Result<Part, String> {
    let (name, kind) = inside
        .split_once(':')
        .map_or((inside, None), |(name, kind)| (name, Some(kind)));
    if let (Some(at), None) = (name.find(['-', '+']), kind)
        && let (name, by) = name.split_at(at)
        && let (true, Ok(by)) = (is_capture_name(name), by.parse::<i16>())
    {
        return Ok(Part::Shifted(name.into(), i64::from(by)));
    }
    if !is_capture_name(name) {
        return Err(format!(
            "`{{{inside}}}` is not a capture; expected a name of letters, as in `{{p}}`, `{{i}}`, `{{s:*}}` or `{{s:a|b}}`"
        ));
    }
    Ok(match kind {
        None => Part::Digits(name.into()),
        Some("*") => Part::Segment(name.into()),
        Some(words) => {
            let words: Vec<String> = words.split('|').map(str::to_owned).collect();
            if words.iter().any(String::is_empty) {
                return Err(format!("`{{{inside}}}` has an empty word"));
            }
            Part::Word(name.into(), words)
        }
    })
}

fn is_capture_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_')
}

fn at_boundaries(before: &[Part], after: &str) -> bool {
    before
        .last()
        .is_none_or(|part| matches!(part, Part::Literal(text) if text.ends_with('.')))
        && (after.is_empty() || after.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(pattern: &str, name: &str) -> Option<String> {
        let pattern = Pattern::parse(pattern).expect("a pattern");
        let captures = pattern.matches(name, &Captures::new())?;
        assert_eq!(
            pattern.fill(&captures).as_deref(),
            Some(name),
            "fill inverts matches"
        );
        let mut names: Vec<&str> = pattern.captures().collect();
        names.sort_unstable();
        names.dedup();
        let shown = names
            .iter()
            .filter_map(|k| Some(format!("{k}={}", captures.get(k)?)));
        Some(shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn names_are_matched_whole() {
        let table = [
            ("{p}.conv.weight", "a.b.conv.weight", Some("p=a.b")),
            ("{p}.conv.weight", "conv.weight", Some("p=")),
            ("{p}.conv.weight", "xconv.weight", None),
            ("{p}.conv.weight", ".conv.weight", None),
            ("{p}.conv.weight", "a.conv.weights", None),
            ("{p}", "a.b", Some("p=a.b")),
            ("{p}.rbr_conv.{i}.bn", "s.rbr_conv.12.bn", Some("i=12 p=s")),
            ("{p}.rbr_conv.{i}.bn", "s.rbr_conv.x.bn", None),
            ("{p}.dil_k{k}_{r}", "w.dil_k13_2", Some("k=13 p=w r=2")),
            ("{p}.{s:*}.linear", "a.q.linear", Some("p=a s=q")),
            ("{p}.{s:*}.linear", "q.linear", Some("p= s=q")),
            ("{p}.{s:*}.linear", "linear", None),
            (
                "{p}.{s:primary|cheap}_conv",
                "g.cheap_conv",
                Some("p=g s=cheap"),
            ),
            ("{p}.{s:primary|cheap}_conv", "g.dw_conv", None),
            ("stage{i}.{i}", "stage1.1", Some("i=1")),
            ("stage{i}.{i}", "stage1.2", None),
            ("a{i}_{j}", "a1_23", Some("i=1 j=23")),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(
                captured(pattern, name).as_deref(),
                expected,
                "{pattern} on {name}"
            );
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("{p}.{", "`{p}.{` has a brace without its partner"),
            (
                "a.{p}.b",
                "`{p}` captures a dotted path, which can only be at the start of a pattern",
            ),
            ("{p}b", "`{p}` captures a dotted path; a dot must follow it"),
            (
                "{p}.a{s:*}",
                "`{s:*}` captures a whole segment; dots must enclose it",
            ),
            ("{p}.{s:a||b}", "`{s:a||b}` has an empty word"),
            (
                "{1}",
                "`{1}` is not a capture; expected a name of letters, as in `{p}`, `{i}`, `{s:*}` or `{s:a|b}`",
            ),
            (
                "{i}{j}",
                "`{j}` follows another capture at once; something literal must lie between them",
            ),
            (
                "{a}.{b}.{c}.{d}.{e}.{f}.{g}",
                "`{a}.{b}.{c}.{d}.{e}.{f}.{g}` has more than 6 captures",
            ),
            (
                "{a:b|c|d|e|f|g|h|i|j|k|l|m|n|o|p|q|r}-{b:b|c|d|e|f|g|h|i|j|k|l|m|n|o|p|q}",
                "`{a:b|c|d|e|f|g|h|i|j|k|l|m|n|o|p|q|r}-{b:b|c|d|e|f|g|h|i|j|k|l|m|n|o|p|q}` has 272 combinations of words; \
                 at most 256 are tried",
            ),
            ("", "a pattern cannot be empty"),
        ] {
            assert_eq!(Pattern::parse(text).expect_err(text), expected);
        }
    }

    #[test]
    fn an_index_is_a_whole_segment() {
        let pattern = Pattern::parse("{p}.m.{i}.k{k}_1").expect("a pattern");
        assert!(pattern.is_index("i") && !pattern.is_index("k"));
        assert!(Pattern::parse("{p}.{i}").expect("a pattern").is_index("i"));
    }
}
