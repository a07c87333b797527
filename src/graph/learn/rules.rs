//! From blocks to rules: blocks that differ only in their path, in the length of a list, or in branches that some of them lack,
//! are of one kind.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value, json};

use super::beside::with_captures;
use super::words::Words;

/// How much of a block's path a rule leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Path {
    /// Any path.
    Any,
    /// Any path, and the kernel of the first conv has the size that it has here.
    AnyOfShape,
    /// The path with other digits.
    Digits,
    /// The path itself.
    Literal,
}

impl Path {
    /// The next that leaves less open.
    pub fn narrower(self) -> Option<Path> {
        match self {
            Path::Any => Some(Path::AnyOfShape),
            Path::AnyOfShape => Some(Path::Digits),
            Path::Digits => Some(Path::Literal),
            Path::Literal => None,
        }
    }
}

/// A kind of block.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// The blocks that it stands for.
    pub blocks: Vec<Words>,
    /// The branches.
    pub branches: Vec<Branch>,
    /// The tensor that every block of the kind starts at.
    pub anchor: Option<String>,
    pub path: Path,
}

/// Which blocks are taken for one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merging {
    /// One of which has all branches of the other.
    Parts,
    /// Those that share a conv, too.
    Relatives,
}

/// A branch of a kind of block.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Branch {
    /// Its words; of a list those of element 0.
    word: Value,
    /// Of a list: which segment of its names counts, below `{p}`.
    list: Option<usize>,
    /// Whether some blocks of the kind lack it.
    optional: bool,
}

/// Sorts blocks into kinds, the largest first.
pub(super) fn rules(mut blocks: Vec<Words>, merging: Merging) -> Vec<Rule> {
    // What has all branches comes before what lacks some.
    blocks.sort_by_key(|block| std::cmp::Reverse(block.summands.len()));
    let mut rules: Vec<Rule> = Vec::new();
    for block in blocks {
        let branches = branches(&block.summands);
        let same = |rule: &Rule| {
            let first = &rule.blocks[0];
            (&first.module, &first.behind, first.bias) == (&block.module, &block.behind, block.bias)
        };
        let merged = rules.iter_mut().filter(|rule| same(rule)).find_map(|rule| {
            let branches = merge(&rule.branches, &branches, merging)?;
            Some((rule, branches))
        });
        match merged {
            Some((rule, branches)) => {
                rule.branches = branches;
                rule.blocks.push(block);
            }
            None => rules.push(Rule {
                blocks: vec![block],
                branches,
                anchor: None,
                path: Path::Any,
            }),
        }
    }
    // A rule is tried before those whose blocks may stand inside of its own.
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.blocks.iter().map(|b| b.consumed.len()).max()));
    for i in 0..rules.len() {
        // A weight that only this kind has tells it from the others.
        let others: HashSet<&str> = rules
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .flat_map(|(_, rule)| rule.names())
            .collect();
        let is_own = |anchor: &&String| {
            !others.contains(anchor.as_str())
                && anchor
                    .strip_suffix(".weight")
                    .is_none_or(|module| !others.contains(module))
        };
        let anchors = rules[i].anchors();
        let anchor = anchors.iter().find(is_own).or(anchors.first()).cloned();
        rules[i].anchor = anchor;
    }
    rules
}

/// Terms that count from 0 on become a list.
fn branches(summands: &[Value]) -> Vec<Branch> {
    let mut out: Vec<Branch> = Vec::new();
    let mut taken = vec![false; summands.len()];
    for (i, word) in summands.iter().enumerate() {
        if taken[i] {
            continue;
        }
        let mut branch = Branch {
            word: word.clone(),
            list: None,
            optional: false,
        };
        for segment in counting(word) {
            // Elements 1, 2, 3… of the list, as far as there are some.
            let mut members = Vec::new();
            for n in 1.. {
                let next = renumbered(word, segment, n);
                match summands.iter().position(|other| *other == next) {
                    Some(at) if !taken[at] => members.push(at),
                    _ => break,
                }
            }
            if !members.is_empty() || branch.list.is_none() {
                branch.list = Some(segment);
            }
            members.iter().for_each(|at| taken[*at] = true);
            if !members.is_empty() {
                break;
            }
        }
        out.push(branch);
    }
    out
}

/// The segments that are `0` in every name of a term.
fn counting(word: &Value) -> Vec<usize> {
    let names = names(word);
    let Some(first) = names.first() else {
        return Vec::new();
    };
    let is_zero = |at: &usize| {
        names
            .iter()
            .all(|name| name.split('.').nth(*at) == Some("0"))
    };
    (1..first.split('.').count()).filter(is_zero).collect()
}

/// Every name in a word.
pub(super) fn names(word: &Value) -> Vec<&str> {
    match word {
        Value::String(text) if text.starts_with("{p}") => vec![text],
        Value::Array(items) => items.iter().flat_map(names).collect(),
        Value::Object(members) => members.values().flat_map(names).collect(),
        _ => Vec::new(),
    }
}

fn renumbered(word: &Value, segment: usize, n: usize) -> Value {
    renamed(word, &|name| {
        let parts = name.split('.').enumerate();
        let n = n.to_string();
        let parts: Vec<&str> = parts
            .map(|(i, part)| if i == segment { &n } else { part })
            .collect();
        parts.join(".")
    })
}

/// A word with other names.
pub(super) fn renamed(word: &Value, f: &dyn Fn(&str) -> String) -> Value {
    match word {
        Value::String(text) if text.starts_with("{p}") => f(text).into(),
        Value::Array(items) => items.iter().map(|item| renamed(item, f)).collect(),
        Value::Object(members) => Value::Object(
            members
                .iter()
                .map(|(key, value)| (key.clone(), renamed(value, f)))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// The branches of two blocks of one kind; none if they share no conv.
fn merge(a: &[Branch], b: &[Branch], merging: Merging) -> Option<Vec<Branch>> {
    let same = |x: &Branch, y: &Branch| x.word == y.word;
    let shares = |x: &Branch| b.iter().any(|y| same(x, y)) && !x.optional;
    if !a.iter().any(|x| shares(x) && has_conv(&x.word)) {
        return None;
    }
    if merging == Merging::Parts && b.iter().any(|y| !a.iter().any(|x| same(x, y))) {
        return None;
    }
    // Branches of the same names that do different things are no two branches of one kind.
    let other = |x: &Branch| {
        b.iter()
            .any(|y| !same(x, y) && names(&x.word) == names(&y.word) && !names(&x.word).is_empty())
    };
    if a.iter().any(other) {
        return None;
    }
    let with = |x: &Branch, there: bool| Branch {
        optional: x.optional || !there,
        ..x.clone()
    };
    let mut out: Vec<Branch> = a
        .iter()
        .map(|x| with(x, b.iter().any(|y| same(x, y))))
        .collect();
    out.extend(
        b.iter()
            .filter(|y| !a.iter().any(|x| same(x, y)))
            .map(|y| with(y, false)),
    );
    Some(out)
}

fn has_conv(word: &Value) -> bool {
    match word {
        Value::Array(items) => items.iter().any(has_conv),
        Value::Object(members) => members
            .iter()
            .any(|(key, value)| key == "conv" || has_conv(value)),
        _ => false,
    }
}

/// The name of the first weight in a word.
fn weight(word: &Value) -> Option<String> {
    match word {
        Value::Array(items) => items.iter().find_map(weight),
        Value::Object(members) => members
            .iter()
            .find_map(|(key, value)| match (&**key, value) {
                ("conv", Value::String(module)) => Some(format!("{module}.weight")),
                ("conv", Value::Object(parts)) => parts.get("weight")?.as_str().map(str::to_owned),
                _ => weight(value),
            }),
        _ => None,
    }
}

impl Rule {
    /// The weights that every block of the kind has, in the order of its branches.
    fn anchors(&self) -> Vec<String> {
        let required = self.branches.iter().filter(|branch| !branch.optional);
        let behind = &self.blocks[0].behind;
        required
            .map(|branch| &branch.word)
            .chain(behind)
            .filter_map(weight)
            .collect()
    }

    /// Every name in the rule.
    fn names(&self) -> HashSet<&str> {
        let behind = &self.blocks[0].behind;
        self.branches
            .iter()
            .map(|branch| &branch.word)
            .chain(behind)
            .flat_map(names)
            .collect()
    }

    /// The rule in JSON, for each path that it has. `shape` gives the kernel of a tensor, `eps` is the recipe's.
    pub fn json(&self, eps: Option<f64>, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Vec<Value> {
        let mut paths: BTreeSet<String> = BTreeSet::new();
        for block in &self.blocks {
            paths.insert(match self.path {
                Path::Any | Path::AnyOfShape => "{p}".to_owned(),
                Path::Digits => with_captures(&block.path),
                Path::Literal => block.path.clone(),
            });
        }
        paths
            .iter()
            .filter_map(|path| self.at(path, eps, shape))
            .collect()
    }

    /// What a block is fused from: the sum of the branches, and what follows it.
    fn expression(&self) -> Value {
        let mut terms: Vec<Value> = self
            .branches
            .iter()
            .map(|branch| self.term(branch))
            .collect();
        let sum = match (terms.len(), terms.pop()) {
            // Lists and what need not be there are terms of a sum.
            (1, Some(only)) if only.get("each").or(only.get("optional")).is_none() => only,
            (_, last) => {
                terms.extend(last);
                json!({"sum": terms})
            }
        };
        let behind = &self.blocks[0].behind;
        if behind.is_empty() {
            return sum;
        }
        let steps: Vec<Value> = std::iter::once(sum).chain(behind.iter().cloned()).collect();
        json!({"seq": steps})
    }

    fn at(
        &self,
        path: &str,
        eps: Option<f64>,
        shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Option<Value> {
        let below = |name: &str| match (name.strip_prefix("{p}"), path) {
            (Some(rest), "") => rest.trim_start_matches('.').to_owned(),
            (Some(rest), path) => format!("{path}{rest}"),
            (None, _) => name.to_owned(),
        };
        let first = &self.blocks[0];
        let expr = without_eps(&renamed(&self.expression(), &below), eps);
        let module = match &*first.module {
            "" => "{p}".to_owned(),
            module => format!("{{p}}.{module}"),
        };
        let anchor = self.anchor.clone()?;
        let mut rule = Map::new();
        rule.insert("at".to_owned(), below(&anchor).into());
        if self.path == Path::AnyOfShape {
            let full = |block: &Words| match &*block.path {
                "" => anchor.trim_start_matches("{p}.").to_owned(),
                path => anchor.replacen("{p}", path, 1),
            };
            let shape = shape(&full(first))?;
            let kernel = shape.iter().skip(2).map(|n| Value::from(*n));
            let dims: Vec<Value> = ["_".into(), "_".into()].into_iter().chain(kernel).collect();
            rule.insert("where".to_owned(), json!({below(&anchor): dims}));
        }
        rule.insert("fuse".to_owned(), json!({below(&module): expr}));
        let beside: BTreeSet<String> = self
            .blocks
            .iter()
            .flat_map(|block| &block.beside)
            .map(|name| below(name))
            .collect();
        if !beside.is_empty() {
            rule.insert("beside".to_owned(), beside.into_iter().collect());
        }
        if !first.bias {
            rule.insert("bias".to_owned(), false.into());
        }
        Some(Value::Object(rule))
    }

    /// A branch as a term of the sum.
    fn term(&self, branch: &Branch) -> Value {
        // A list of which no block has a second element is none.
        let longest = branch.list.filter(|segment| {
            let second = renumbered(&branch.word, *segment, 1);
            self.blocks
                .iter()
                .any(|block| block.summands.contains(&second))
        });
        let mut term = match longest {
            Some(segment) => {
                let numbered = renamed(&branch.word, &|name| {
                    let parts = name.split('.').enumerate();
                    let parts: Vec<&str> = parts
                        .map(|(i, part)| if i == segment { "{i}" } else { part })
                        .collect();
                    parts.join(".")
                });
                json!({"each": numbered})
            }
            None => branch.word.clone(),
        };
        if branch.optional {
            term = json!({"optional": term});
        }
        term
    }
}

/// Norms that have the recipe's eps do not state their own.
fn without_eps(word: &Value, eps: Option<f64>) -> Value {
    match word {
        Value::Array(items) => items.iter().map(|item| without_eps(item, eps)).collect(),
        Value::Object(members) => {
            let is_default =
                |key: &str, value: &Value| key == "eps" && value.as_f64() == eps && eps.is_some();
            let left = members
                .iter()
                .filter(|(key, value)| !is_default(key, value));
            Value::Object(
                left.map(|(key, value)| (key.clone(), without_eps(value, eps)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}
