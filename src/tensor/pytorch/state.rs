//! The state dict in what a pickle says: a dict of tensors, or a module with its parts.

use std::collections::BTreeMap;

use super::storage::{Meaning, OtherKind, Storages, Stored, meaning};
use super::value::{Pickle, Value};
use crate::tensor::error::quoted;
use crate::tensor::facts::{Attribute, Facts, Module};
use crate::tensor::header::{MAX_HEADER, MAX_NAME, MAX_RANK};

/// Modules in modules, or dicts in dicts, deeper than this are none.
const DEEPEST: usize = 256;

/// The longest text and the longest list that is kept as an attribute.
const LONGEST_ATTRIBUTE: usize = 256;

/// What the modules of TorchScript are called begins with this.
const SCRIPTED: &str = "__torch__.";

/// Every tensor of a state dict, and what the file says of its modules.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) tensors: BTreeMap<String, Stored>,
    pub(super) facts: Facts,
    /// Tensors of kinds that are not read, and arrays.
    pub(super) other_kinds: BTreeMap<String, OtherKind>,
    /// A tensor that is broken; a sentence on it.
    pub(super) unreadable: Option<String>,
}

/// What is needed to read the tensors of a pickle.
pub(super) struct Source<'a> {
    pub(super) pickle: &'a Pickle,
    pub(super) storages: &'a Storages<'a>,
    pub(super) swapped: bool,
}

impl Source<'_> {
    /// What a value is to a reader of tensors.
    fn meaning(&self, value: Value) -> Meaning {
        meaning(self.pickle, value, self.storages, self.swapped)
    }

    /// Whether a value holds a tensor anywhere where a state dict would.
    pub(super) fn holds_tensors(&self, value: Value) -> bool {
        let mut walk = Walk::new(self, Some(|_| true));
        walk.walk(value, "", 0).is_err() || walk.has_found()
    }

    /// Those of the names whose values hold weights, outside of optimizers: numbers with a dimension.
    pub(super) fn holding_weights(
        &self,
        values: impl Iterator<Item = (String, Value)>,
    ) -> Vec<String> {
        let is_weight =
            |stored: &Stored| stored.dtype.float().is_some() && !stored.shape.is_empty();
        // One search for all of them, which ends when too much has been looked at.
        let mut walk = Walk::new(self, Some(is_weight));
        let mut names = Vec::new();
        for (name, value) in values {
            let ended = walk.walk(value, "", 0);
            if std::mem::take(&mut walk.state).holds_any() {
                names.push(name);
            }
            if ended.is_err() {
                break;
            }
        }
        names
    }

    /// Whether all tensors of a module are those of one part of it.
    pub(super) fn is_only_part(&self, module: Value, part: &str) -> bool {
        let below = format!("{part}.");
        let found = self.state(module);
        found.is_ok_and(|state| {
            let mut names = state.tensors.keys().chain(state.other_kinds.keys());
            !state.tensors.is_empty() && names.all(|name| name.starts_with(&below))
        })
    }

    /// Every tensor below a value, under its dotted name.
    ///
    /// # Errors
    /// When names or nesting are beyond those of any network.
    pub(super) fn state(&self, value: Value) -> Result<State, String> {
        let mut walk = Walk::new(self, None);
        walk.walk(value, "", 0)?;
        Ok(walk.state)
    }
}

struct Walk<'a> {
    source: &'a Source<'a>,
    state: State,
    /// What is searched for, where the first one ends the search.
    wanted: Option<fn(&Stored) -> bool>,
    /// What may still be written of names: a few long keys, or modules that hold one another, make many long ones.
    name_bytes: u64,
    /// How many tensors there were so far.
    tensors: usize,
}

impl State {
    fn holds_any(&self) -> bool {
        !self.tensors.is_empty() || !self.other_kinds.is_empty() || self.unreadable.is_some()
    }
}

impl<'a> Walk<'a> {
    fn new(source: &'a Source<'a>, wanted: Option<fn(&Stored) -> bool>) -> Walk<'a> {
        Walk {
            source,
            state: State::default(),
            wanted,
            name_bytes: MAX_HEADER,
            tensors: 0,
        }
    }

    fn has_found(&self) -> bool {
        self.state.holds_any()
    }

    /// Adds what is below a value, under names that begin with `prefix`.
    fn walk(&mut self, value: Value, prefix: &str, depth: usize) -> Result<(), String> {
        let pickle = self.source.pickle;
        if self.wanted.is_some() && self.has_found() {
            return Ok(());
        }
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} deep"));
        }
        match self.source.meaning(value) {
            Meaning::Tensor(stored) => {
                self.tensors += 1;
                return self.tensor(prefix, stored);
            }
            Meaning::OtherKind(kind) => {
                self.tensors += 1;
                self.named_shortly(prefix, kind.shape.len())?;
                self.state.other_kinds.insert(prefix.to_owned(), kind);
                return Ok(());
            }
            Meaning::Unreadable(why) => {
                self.tensors += 1;
                self.state
                    .unreadable
                    .get_or_insert_with(|| format!("{} {why}", quoted(prefix)));
                return Ok(());
            }
            // Metrics beside a state dict are often arrays: a search for tensors does not end at one.
            Meaning::Array(_) if self.wanted.is_some() => return Ok(()),
            Meaning::Array(array) => {
                self.named_shortly(prefix, 0)?;
                self.state.other_kinds.insert(prefix.to_owned(), array);
                return Ok(());
            }
            Meaning::Other => {}
        }
        if self.wanted.is_some() && pickle.is_optimizer(value) {
            return Ok(());
        }
        match pickle.attributes(value) {
            Some(attributes) if is_module(pickle, &attributes) => {
                let parts = pickle.get(&attributes, "_modules");
                let parts = parts.and_then(|parts| pickle.items(parts));
                let module = self.module(value, &attributes, prefix)?;
                self.around(module, prefix, &parts.unwrap_or_default(), |walk| {
                    walk.parts(&attributes, prefix, depth)
                })
            }
            // A scripted module has its tensors and its parts as attributes.
            Some(attributes) if is_scripted(pickle, value) => {
                let module = self.module(value, &attributes, prefix)?;
                self.around(module, prefix, &attributes, |walk| {
                    walk.members(&attributes, prefix, depth, |_| true)
                })
            }
            _ => match pickle.items(value) {
                Some(items) => self.members(&items, prefix, depth, |_| true),
                None => Ok(()),
            },
        }
    }

    fn tensor(&mut self, name: &str, stored: Stored) -> Result<(), String> {
        self.named_shortly(name, stored.shape.len())?;
        if self.wanted.is_none_or(|wanted| wanted(&stored)) {
            self.state.tensors.insert(name.to_owned(), stored);
        }
        Ok(())
    }

    fn named_shortly(&self, name: &str, rank: usize) -> Result<(), String> {
        // What is written is to be read again.
        if name.len() > MAX_NAME || rank > MAX_RANK {
            return Err(format!(
                "a name has {} bytes and its tensor {rank} dimensions; at most {MAX_NAME} and {MAX_RANK} are read",
                name.len()
            ));
        }
        Ok(())
    }

    /// Every member of a dict that `takes` its key.
    fn members(
        &mut self,
        items: &[(Value, Value)],
        prefix: &str,
        depth: usize,
        takes: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        for (key, value) in items {
            if let Some(key) = self.source.pickle.key(*key).filter(|key| takes(key)) {
                let name = below(prefix, &key);
                self.spend(name.len() + 1)?;
                self.walk(*value, &name, depth + 1)?;
            }
        }
        Ok(())
    }

    /// The parameters, the persistent buffers and the parts of a module, as its `state_dict()` has them.
    fn parts(
        &mut self,
        attributes: &[(Value, Value)],
        prefix: &str,
        depth: usize,
    ) -> Result<(), String> {
        let pickle = self.source.pickle;
        let passing = pickle.get(attributes, "_non_persistent_buffers_set");
        let passing = |key: &str| passing.is_some_and(|set| pickle.set_has(set, key));
        for part in ["_parameters", "_buffers", "_modules"] {
            let items = pickle
                .get(attributes, part)
                .and_then(|value| pickle.items(value))
                .unwrap_or_default();
            self.members(&items, prefix, depth, |key| {
                part != "_buffers" || !passing(key)
            })?;
        }
        Ok(())
    }

    /// Keeps what is known of a module, once its tensors and `parts` have been walked through.
    fn around(
        &mut self,
        mut module: Module,
        path: &str,
        parts: &[(Value, Value)],
        walk: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let before = self.tensors;
        walk(self)?;
        module.holds_tensors = self.tensors > before;
        let pickle = self.source.pickle;
        let parts = parts
            .iter()
            .filter(|(_, value)| is_any_module(pickle, *value));
        module.parts = parts.filter_map(|(key, _)| pickle.key(*key)).collect();
        self.spend(module.parts.iter().map(String::len).sum())?;
        self.state.facts.insert(path.to_owned(), module);
        Ok(())
    }

    /// What is known of a module by itself: its class, and its plain attributes.
    fn module(
        &mut self,
        value: Value,
        attributes: &[(Value, Value)],
        path: &str,
    ) -> Result<Module, String> {
        let pickle = self.source.pickle;
        let mut module = Module {
            class: pickle
                .class(value)
                .map(class_name)
                .unwrap_or_else(|| "?".to_owned()),
            ..Module::default()
        };
        self.spend(path.len() + module.class.len())?;
        for (key, value) in attributes {
            let name = pickle
                .text(*key)
                .filter(|name| !name.starts_with('_') && name.len() <= LONGEST_ATTRIBUTE);
            if let (Some(name), Some(attribute)) = (name, attribute(pickle, *value)) {
                self.spend(2 * name.len())?;
                module.attributes.insert(name.to_owned(), attribute);
            }
        }
        Ok(module)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.name_bytes.checked_sub(bytes as u64);
        self.name_bytes = left
            .ok_or_else(|| format!("the names in it are longer than {MAX_HEADER} bytes in all"))?;
        Ok(())
    }
}

fn below(prefix: &str, key: &str) -> String {
    match prefix {
        "" => key.to_owned(),
        _ => format!("{prefix}.{key}"),
    }
}

/// Whether attributes are those of a `torch.nn.Module`.
pub(super) fn is_module(pickle: &Pickle, attributes: &[(Value, Value)]) -> bool {
    ["_parameters", "_modules"]
        .iter()
        .all(|name| pickle.get(attributes, name).is_some())
}

/// Whether a value is a module, pickled or of TorchScript.
pub(super) fn is_any_module(pickle: &Pickle, value: Value) -> bool {
    let pickled = || {
        pickle
            .attributes(value)
            .is_some_and(|attributes| is_module(pickle, &attributes))
    };
    is_scripted(pickle, value) || pickled()
}

/// Whether a value is a module of TorchScript.
pub(super) fn is_scripted(pickle: &Pickle, value: Value) -> bool {
    let class = pickle.class(value);
    class.is_some_and(|class| class.starts_with(SCRIPTED))
}

/// A class as its author calls it: TorchScript puts a prefix before it, and a number into it where two have one name.
fn class_name(class: &str) -> String {
    let Some(class) = class.strip_prefix(SCRIPTED) else {
        return class.to_owned();
    };
    let parts = class
        .split('.')
        .filter(|part| !part.starts_with("___torch_mangle_"));
    parts.collect::<Vec<_>>().join(".")
}

fn attribute(pickle: &Pickle, value: Value) -> Option<Attribute> {
    Some(match value {
        Value::Bool(flag) => Attribute::Bool(flag),
        Value::Int(n) => Attribute::Integer(n),
        Value::Float(x) => Attribute::Number(x),
        _ => match (pickle.text(value), pickle.sequence(value)) {
            (Some(text), _) if text.len() <= LONGEST_ATTRIBUTE => Attribute::Text(text.to_owned()),
            (_, Some(list)) if list.len() <= LONGEST_ATTRIBUTE => {
                let integer = |value: &Value| match value {
                    Value::Int(n) => Some(*n),
                    _ => None,
                };
                Attribute::Integers(list.iter().map(integer).collect::<Option<_>>()?)
            }
            _ => return None,
        },
    })
}
