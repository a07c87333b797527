//! Which value of a file is its state dict, and what plain data stands around it.

use super::state::{Source, is_module};
use super::value::{Node, Pickle, Value};
use crate::tensor::plain::{Plain, Wrapping};

/// Under these keys, projects keep the state dict or the module beside optimizer and epoch.
const KEYS: [&str; 9] = [
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema",
    "params_ema",
    "params",
    "net",
    "ema_net",
];

/// Under these, some of them keep a running average of it, which their loaders read only where one asks for it.
const AVERAGES: [&str; 3] = ["state_dict_ema", "model_ema", "model_state_dict_ema"];

/// Within a value under such a key: the averaged module that some keep as `ema.module`. (Other names may be those of a
/// module's parts.)
const INNER: [&str; 2] = ["module", "state_dict"];

/// Plain data beyond this is not kept.
const MOST_PLAIN: usize = 1 << 20;
const DEEPEST_PLAIN: usize = 32;

/// Where the state dict is.
pub(super) enum Found {
    /// Under this key, which may be a path; an empty one for the whole file.
    At(Vec<String>),
    /// Under one of these keys; which one cannot be told.
    Several(Vec<String>),
}

/// Finds the key that wraps the state dict, if the file is a dict that has one.
pub(super) fn find(source: &Source<'_>) -> Found {
    let top = source.pickle.root;
    let mut keys: Vec<String> = holders(source, &KEYS);
    if keys.is_empty() {
        keys = holders(source, &AVERAGES);
    }
    match keys.len() {
        0 => Found::At(Vec::new()),
        1 => {
            let inner = child(source.pickle, top, &keys[0]).and_then(|value| {
                let items = source.pickle.items(value)?;
                let wraps = |key: &&&str| {
                    let value = source.pickle.get(&items, key);
                    value.is_some_and(|value| is_dict_or_module(source.pickle, value))
                };
                INNER.iter().find(wraps)
            });
            keys.extend(inner.map(|key| (*key).to_owned()));
            Found::At(keys)
        }
        _ => Found::Several(keys),
    }
}

/// Those of the keys at the top under which there are tensors.
fn holders(source: &Source<'_>, keys: &[&str]) -> Vec<String> {
    let there = |key: &&&str| {
        let value = child(source.pickle, source.pickle.root, key);
        value.is_some_and(|value| source.holds_tensors(value))
    };
    keys.iter()
        .filter(there)
        .map(|key| (*key).to_owned())
        .collect()
}

fn is_dict_or_module(pickle: &Pickle, value: Value) -> bool {
    let module = || {
        pickle
            .attributes(value)
            .is_some_and(|attributes| is_module(pickle, &attributes))
    };
    pickle.items(value).is_some() || module()
}

/// What a dict has under a key, an object as an attribute, or a module as a part.
fn child(pickle: &Pickle, value: Value, key: &str) -> Option<Value> {
    let get = |items: Option<Vec<(Value, Value)>>| pickle.get(&items?, key);
    let part = || {
        let attributes = pickle.attributes(value)?;
        get(pickle.items(pickle.get(&attributes, "_modules")?))
    };
    let found = get(pickle.items(value)).or_else(part);
    found.or_else(|| get(pickle.attributes(value)))
}

/// Follows a path as the user writes it: keys with dots between them, which a key may have itself.
///
/// # Errors
/// A sentence that names what is there instead.
pub(super) fn follow(pickle: &Pickle, key: &str) -> Result<(Vec<String>, Value), String> {
    let (mut path, mut value, mut rest) = (Vec::new(), pickle.root, key);
    while !rest.is_empty() {
        let ends = rest
            .match_indices('.')
            .map(|(at, _)| at)
            .chain([rest.len()]);
        let ends: Vec<usize> = ends.collect();
        let next = ends
            .iter()
            .rev()
            .find_map(|end| Some((*end, child(pickle, value, &rest[..*end])?)));
        let Some((end, inside)) = next else {
            let keys = pickle
                .items(value)
                .or_else(|| pickle.attributes(value))
                .unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .filter_map(|(key, _)| pickle.key(*key))
                .take(SHOWN)
                .collect();
            return Err(match keys.is_empty() {
                true => format!("there is nothing under `{key}`"),
                false => format!(
                    "there is nothing under `{key}`; its keys are `{}`",
                    keys.join("`, `")
                ),
            });
        };
        path.push(rest[..end].to_owned());
        (value, rest) = (inside, rest.get(end + 1..).unwrap_or_default());
    }
    Ok((path, value))
}

/// As many keys as an error names.
const SHOWN: usize = 12;

/// The plain data around the state dict at a path.
pub(super) fn wrapping(source: &Source<'_>, path: &[String]) -> Wrapping {
    let pickle = source.pickle;
    let mut keeper = Keeper {
        pickle,
        left: MOST_PLAIN,
        left_out: Vec::new(),
    };
    let plain = keeper.around(pickle.root, path);
    let candidates: Vec<&str> = KEYS.iter().chain(&AVERAGES).copied().collect();
    let mut others = match path.is_empty() {
        true => Vec::new(),
        false => holders(source, &candidates),
    };
    others.retain(|key| path.first() != Some(key));
    Wrapping {
        key: (!path.is_empty()).then(|| path.join(".")),
        others,
        plain,
        left_out: keeper.left_out,
    }
}

struct Keeper<'a> {
    pickle: &'a Pickle,
    /// How many values may still be kept.
    left: usize,
    left_out: Vec<String>,
}

impl Keeper<'_> {
    /// A dict on the way to the state dict: what is plain in it, and the way.
    fn around(&mut self, value: Value, path: &[String]) -> Plain {
        let Some((key, rest)) = path.split_first() else {
            return Plain::StateDict;
        };
        let Some(items) = self.pickle.items(value) else {
            return Plain::StateDict;
        };
        let (mut kept, mut inside) = (Vec::new(), None);
        for (k, v) in items {
            let Some(name) = self.pickle.key(k) else {
                continue;
            };
            if name == *key {
                kept.push((Plain::Text(name), self.around(v, rest)));
                inside = Some(v);
            } else if let (Some(k), Some(v)) = (self.plain(k, 0), self.plain(v, 0)) {
                kept.push((k, v));
            } else {
                self.left_out.push(name);
            }
        }
        // Where a module becomes a state dict, the plain attributes of its own go beside it.
        let attributes = inside
            .filter(|_| rest.is_empty())
            .and_then(|v| self.pickle.attributes(v));
        for (k, v) in attributes
            .filter(|attributes| is_module(self.pickle, attributes))
            .unwrap_or_default()
        {
            let name = self
                .pickle
                .text(k)
                .filter(|name| !name.starts_with('_') && *name != "training");
            let Some(name) = name.map(|name| Plain::Text(name.to_owned())) else {
                continue;
            };
            if kept.iter().all(|(k, _)| *k != name)
                && let Some(value) = self.plain(v, 0)
            {
                kept.push((name, value));
            }
        }
        Plain::Dict(kept)
    }

    /// A value that is plain as a whole.
    fn plain(&mut self, value: Value, depth: usize) -> Option<Plain> {
        self.left = self.left.checked_sub(1)?;
        if depth > DEEPEST_PLAIN {
            return None;
        }
        let pickle = self.pickle;
        let mut all = |values: &[Value]| {
            values
                .iter()
                .map(|v| self.plain(*v, depth + 1))
                .collect::<Option<Vec<_>>>()
        };
        Some(match value {
            Value::None => Plain::None,
            Value::Bool(flag) => Plain::Bool(flag),
            Value::Int(n) => Plain::Integer(n),
            Value::Float(x) => Plain::Number(x),
            Value::Node(_) => match pickle.node(value)? {
                Node::Text(text) => Plain::Text(text.to_string()),
                Node::Tuple(values) => Plain::Tuple(all(values)?),
                Node::List(values) => Plain::List(all(values)?),
                Node::Dict(items) => {
                    let pair = |(k, v): &(Value, Value)| {
                        Some((self.plain(*k, depth + 1)?, self.plain(*v, depth + 1)?))
                    };
                    Plain::Dict(items.iter().map(pair).collect::<Option<_>>()?)
                }
                _ => return None,
            },
        })
    }
}
