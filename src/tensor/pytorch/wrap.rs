//! Which value of a file is its state dict, and what plain data stands around it.

use super::module::{is_any_module, is_module, is_scripted};
use super::state::{Source, below};
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

/// The part under which a module that makes another one run in parallel, or averages it, has that one.
const WRAPPED: &str = "module";

/// As many members of a list are looked at.
const MEMBERS: usize = 16;

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

/// Finds the key that wraps the state dict, if the file is a dict or a list that has one.
///
/// A module is read whole, whatever its parts are called; only one that has nothing but the part `module` stands for that.
pub(super) fn find(source: &Source<'_>) -> Found {
    let top = source.pickle.root;
    let mut keys: Vec<String> = holders(source, &KEYS);
    if keys.is_empty() {
        keys = holders(source, &AVERAGES);
    }
    if keys.is_empty() {
        keys = members(source);
    }
    match keys.len() {
        0 if is_any_module(source.pickle, top) => {
            Found::At(inner(source, top).into_iter().collect())
        }
        0 => Found::At(Vec::new()),
        1 => {
            let value = held(source.pickle, top, &keys[0]);
            keys.extend(value.and_then(|value| inner(source, value)));
            Found::At(keys)
        }
        _ => Found::Several(keys),
    }
}

/// Where in a value its network is, if the value is no more than a wrapping: under a key of a dict, or in the one part that
/// has all tensors of a module.
fn inner(source: &Source<'_>, value: Value) -> Option<String> {
    let pickle = source.pickle;
    let wraps = |key: &&str| match is_any_module(pickle, value) {
        true => *key == WRAPPED && source.is_only_part(value, key),
        false => held(pickle, value, key).is_some_and(|inside| is_dict_or_module(pickle, inside)),
    };
    INNER.into_iter().find(wraps).map(str::to_owned)
}

/// Those of the keys at the top under which there are state dicts or modules. What a module has under them is a part of it.
fn holders(source: &Source<'_>, keys: &[&str]) -> Vec<String> {
    let there = |key: &&&str| {
        let value = held(source.pickle, source.pickle.root, key);
        value.is_some_and(|value| is_state(source, value))
    };
    keys.iter()
        .filter(there)
        .map(|key| (*key).to_owned())
        .collect()
}

/// The members of a list at the top that are state dicts or modules, by their numbers.
fn members(source: &Source<'_>) -> Vec<String> {
    let list = source.pickle.sequence(source.pickle.root);
    let members = list.unwrap_or(&[]).iter().take(MEMBERS).enumerate();
    let states = members.filter(|(_, value)| is_state(source, **value));
    states.map(|(i, _)| i.to_string()).collect()
}

/// Whether a value is a dict or a module with tensors. A tensor is none, and the state of an optimizer is no network's.
fn is_state(source: &Source<'_>, value: Value) -> bool {
    let pickle = source.pickle;
    is_dict_or_module(pickle, value) && !pickle.is_optimizer(value) && source.holds_tensors(value)
}

fn is_dict_or_module(pickle: &Pickle, value: Value) -> bool {
    pickle.items(value).is_some() || is_any_module(pickle, value)
}

/// What a dict has under a key, a list as a member, or an object that is no module as an attribute.
fn held(pickle: &Pickle, value: Value, key: &str) -> Option<Value> {
    match is_any_module(pickle, value) {
        true => None,
        false => child(pickle, value, key),
    }
}

/// What a dict has under a key, a list as a member, an object as an attribute, or a module as a part.
fn child(pickle: &Pickle, value: Value, key: &str) -> Option<Value> {
    let get = |items: Option<Vec<(Value, Value)>>| pickle.get(&items?, key);
    let part = || {
        let attributes = pickle.attributes(value)?;
        get(pickle.items(pickle.get(&attributes, "_modules")?))
    };
    let member = || {
        pickle
            .sequence(value)?
            .get(key.parse::<usize>().ok()?)
            .copied()
    };
    let found = get(pickle.items(value)).or_else(member).or_else(part);
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
    let beside = beside(source, path, &others);
    Wrapping {
        key: (!path.is_empty()).then(|| path.join(".")),
        others,
        beside,
        plain,
        left_out: keeper.left_out,
    }
}

/// The keys on the way to the state dict, other than its own and `others`, under which weights stand: numbers with a
/// dimension, outside of an optimizer.
fn beside(source: &Source<'_>, path: &[String], others: &[String]) -> Vec<String> {
    let pickle = source.pickle;
    let mut named = Vec::new();
    let mut value = pickle.root;
    let mut above = String::new();
    for key in path {
        let items = match is_any_module(pickle, value) {
            true => None,
            false => pickle.items(value),
        };
        for (k, v) in items.unwrap_or_default() {
            let name = pickle.key(k).filter(|name| name != key);
            let Some(name) = name.map(|name| below(&above, &name)) else {
                continue;
            };
            if !others.contains(&name) {
                named.push((name, v));
            }
        }
        match child(pickle, value, key) {
            Some(inside) => value = inside,
            None => break,
        }
        above = below(&above, key);
    }
    source.holding_weights(named.into_iter())
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

/// What to do about a value that has no tensor.
pub(super) fn instead(pickle: &Pickle, value: Value) -> &'static str {
    match is_scripted(pickle, value) {
        true => {
            "TorchScript that was frozen or optimized keeps its weights in its code, which is not read; save the state dict of the model that it was made of"
        }
        false => "save a state dict: `torch.save(model.state_dict(), PATH)`",
    }
}
