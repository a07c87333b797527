//! Segments of names: what rules most recipes out before a name is matched.

use foldhash::{HashSet, HashSetExt};

use super::expand::Index;
use super::pattern::Pattern;

/// The distinct segments of a file's names: most recipes are ruled out by them before a name is matched.
///
/// A file of a million tensors has a few dozen.
pub(crate) struct Segments<'a>(HashSet<&'a str>);

impl<'a> Segments<'a> {
    pub(crate) fn of(index: &'a Index) -> Segments<'a> {
        let mut found = HashSet::new();
        let mut before: &str = "";
        for name in index.keys() {
            // Names that follow one another begin alike: what they share has been found.
            let same = before.bytes().zip(name.bytes()).take_while(|(a, b)| a == b);
            let shared = name.as_bytes()[..same.count()]
                .iter()
                .rposition(|b| *b == b'.');
            found.extend(name[shared.map_or(0, |dot| dot + 1)..].split('.'));
            before = name;
        }
        Segments(found)
    }

    /// Whether a name can match the pattern at all.
    pub(crate) fn allow(&self, pattern: &Pattern) -> bool {
        self.allow_text(pattern.text())
    }

    /// The same of a pattern that has not been parsed.
    pub(crate) fn allow_text(&self, pattern: &str) -> bool {
        told_segments(pattern).all(|words| words.iter().any(|word| self.0.contains(word)))
    }

    /// How many of the segments that a pattern tells are in some name, of how many. (That there is a `weight`, a `conv` or a module `0`,
    /// tells nothing.)
    pub(crate) fn share(&self, pattern: &Pattern) -> [usize; 2] {
        let common = |word: &&str| COMMON.contains(word) || word.parse::<usize>().is_ok();
        let told = told_segments(pattern.text()).filter(|words| !words.iter().any(common));
        told.fold([0, 0], |[there, all], words| {
            let found = words.iter().any(|word| self.0.contains(word));
            [there + usize::from(found), all + 1]
        })
    }

    /// Whether any name has this segment.
    pub(crate) fn have(&self, segment: &str) -> bool {
        self.0.contains(segment)
    }
}

/// Segments that the names of any network have.
const COMMON: [&str; 4] = ["weight", "bias", "conv", "bn"];

/// The segments that a pattern's text tells: every name that it matches has each of them, or one of the words of each.
fn told_segments(text: &str) -> impl Iterator<Item = Vec<&str>> {
    // The words of a capture may have dots in them.
    let mut inside = false;
    text.split('.').filter_map(move |piece| {
        let capture = inside || piece.contains('{');
        let told = match capture {
            false => Some(vec![piece]),
            true if inside => None,
            true => words_of(piece),
        };
        if let Some(last) = piece.rfind(['{', '}']) {
            inside = piece[last..].starts_with('{');
        }
        told
    })
}

/// The words of a piece that is a capture of words and nothing else.
fn words_of(piece: &str) -> Option<Vec<&str>> {
    let inside = piece.strip_prefix('{')?.strip_suffix('}')?;
    let (_, words) = inside.split_once(':')?;
    let alone = words != "*" && !inside.contains(['{', '}']);
    alone.then(|| words.split('|').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_tells_some_segments() {
        let segments = |text| {
            told_segments(text)
                .map(|words| words.join("|"))
                .collect::<Vec<_>>()
        };
        assert_eq!(segments("{p}.conv.{i}.weight"), ["conv", "weight"]);
        assert_eq!(segments("{p}.{i}.{t:c|bn}.{u:*}"), ["c|bn"]);
        assert_eq!(segments("a{i}b.{s:c}x.c"), ["c"]);
        assert_eq!(segments("{p}.{s:a.b.c|d}.e.{t:f|g.h}x.i"), ["e", "i"]);
        assert_eq!(segments("{p}.{s:a.b}{t:c.d}.e"), ["e"]);
    }
}
