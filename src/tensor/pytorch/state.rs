//! The state dict in what a pickle says: a dict of tensors, or a module with its parts.

use std::collections::{BTreeMap, HashSet};

use super::code::Code;
use super::module::{is_any_module, is_module, is_scripted, said};
use super::storage::{Meaning, OtherKind, Storages, Stored, meaning};
use super::unread::reaching;
use super::value::{Node, Pickle, Value};
use crate::tensor::dtype::Dtype;
use crate::tensor::error::quoted;
use crate::tensor::facts::{Attribute, Facts, Module};
use crate::tensor::header::{MAX_HEADER, MAX_NAME, MAX_RANK};

/// Modules in modules, or dicts in dicts, deeper than this are none.
const DEEPEST: usize = 256;

/// The part under which a compiled module has the one that it was made of.
const COMPILED: &str = "_orig_mod";

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
    /// What TorchScript has in code, in an archive.
    pub(super) code: Option<Code<'a>>,
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
        let mut reached = None;
        for (name, value) in values {
            let ended = walk.walk(value, "", 0);
            let mut unnamed = std::mem::take(&mut walk.unnamed).into_iter();
            let mut reaches = |value| {
                let reached = reached.get_or_insert_with(|| reaching(self.pickle, &HashSet::new()));
                contains(reached, value)
            };
            if std::mem::take(&mut walk.state).holds_any()
                || unnamed.any(|(_, value)| self.pickle.call(value).is_some() && reaches(value))
            {
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
        walk.refuse_unnamed();
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
    /// The nodes that were read.
    read: HashSet<u32>,
    /// What is neither a tensor nor has names for some, under the names that it has itself.
    unnamed: Vec<(String, Value)>,
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
            read: HashSet::new(),
            unnamed: Vec::new(),
        }
    }

    fn has_found(&self) -> bool {
        self.state.holds_any()
    }

    /// Adds a value that holds no others, under a name.
    fn leaf(&mut self, meaning: Meaning, name: &str) -> Result<(), String> {
        match meaning {
            Meaning::Tensor(stored) => {
                self.tensors += 1;
                self.tensor(name, stored)?;
            }
            Meaning::OtherKind(kind) => {
                self.tensors += 1;
                self.named_shortly(name, kind.shape.len())?;
                self.state.other_kinds.insert(name.to_owned(), kind);
            }
            Meaning::Unreadable(why) => {
                self.tensors += 1;
                self.state
                    .unreadable
                    .get_or_insert_with(|| format!("{} {why}", quoted(name)));
            }
            // Metrics beside a state dict are often arrays: a search for tensors does not end at one.
            Meaning::Array(_) if self.wanted.is_some() => {}
            Meaning::Array(array) => {
                self.named_shortly(name, 0)?;
                self.state.other_kinds.insert(name.to_owned(), array);
            }
            Meaning::Other => {}
        }
        Ok(())
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
        let meaning = self.source.meaning(value);
        if let (Value::Node(node), true) = (value, self.is_read(&meaning, value)) {
            self.read.insert(node);
        }
        if !matches!(meaning, Meaning::Other) {
            return self.leaf(meaning, prefix);
        }
        if self.wanted.is_some() && pickle.is_optimizer(value) {
            return Ok(());
        }
        if let Some(inner) = pickle.compiled(value) {
            let module = self.module(value, &[], prefix)?;
            let parts = vec![COMPILED.to_owned()];
            return self.around(module, prefix, parts, |walk| {
                let name = below(prefix, COMPILED);
                walk.spend(name.len() + 1)?;
                walk.walk(inner, &name, depth + 1)
            });
        }
        match pickle.attributes(value) {
            Some(attributes) if is_module(pickle, &attributes) => {
                let parts = pickle.get(&attributes, "_modules");
                let parts = parts.and_then(|parts| pickle.items(parts));
                let parts = self.named_parts(&parts.unwrap_or_default());
                let module = self.module(value, &attributes, prefix)?;
                self.around(module, prefix, parts, |walk| {
                    walk.parts(&attributes, prefix, depth)
                })
            }
            // A scripted module has its tensors and its parts as attributes.
            Some(attributes) if is_scripted(pickle, value) => {
                let module = self.scripted(value, &attributes, prefix)?;
                let mut parts = attributes.clone();
                parts.retain(|(_, value)| is_any_module(pickle, *value));
                let parts = self.named_parts(&parts);
                self.around(module, prefix, parts, |walk| {
                    walk.members(&attributes, prefix, depth, |_, value| {
                        pickle.sequence(value).is_none()
                    })
                })
            }
            _ => match pickle.items(value) {
                Some(items) => self.members(&items, prefix, depth, |_, _| true),
                None => self.unnamed(value, prefix),
            },
        }
    }

    /// Whether all tensors of a value get names of their own.
    fn is_read(&self, meaning: &Meaning, value: Value) -> bool {
        let pickle = self.source.pickle;
        !matches!(meaning, Meaning::Other)
            || pickle.items(value).is_some()
            || is_any_module(pickle, value)
    }

    /// Notes a value that may hold tensors and has no names for them.
    fn unnamed(&mut self, value: Value, name: &str) -> Result<(), String> {
        let held = matches!(
            self.source.pickle.node(value),
            Some(Node::Call(_) | Node::Tuple(_) | Node::List(_) | Node::Set(_))
        );
        if held {
            self.named_shortly(name, 0)?;
            self.spend(name.len() + 1)?;
            self.unnamed.push((name.to_owned(), value));
        }
        Ok(())
    }

    /// Makes tensors that cannot be read of what holds some which were read under no name.
    fn refuse_unnamed(&mut self) {
        if self.unnamed.is_empty() {
            return;
        }
        let pickle = self.source.pickle;
        let reached = reaching(pickle, &self.read);
        for (name, value) in std::mem::take(&mut self.unnamed) {
            if !contains(&reached, value) {
                continue;
            }
            for module in above(&name).chain([&*name]) {
                self.state.facts.hold_tensors(module);
            }
            let why = format!(
                "is {}, which keeps its tensors in a way of its own, and they are not read; save a state dict: `torch.save(model.state_dict(), PATH)`",
                pickle.kind(value)
            );
            let kind = OtherKind {
                why,
                dtype: Dtype::from_name("object"),
                shape: Vec::new(),
            };
            self.state.other_kinds.insert(name, kind);
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
        takes: impl Fn(&str, Value) -> bool,
    ) -> Result<(), String> {
        for (key, value) in items {
            let name = self.source.pickle.key(*key);
            if let Some(key) = name.filter(|key| takes(key, *value)) {
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
            self.members(&items, prefix, depth, |key, _| {
                part != "_buffers" || !passing(key)
            })?;
            if part == "_modules" {
                self.strange_parts(&items, prefix)?;
            }
        }
        Ok(())
    }

    /// Keeps the classes of parts that are pickled in ways of their own: more is not known of them.
    fn strange_parts(&mut self, items: &[(Value, Value)], prefix: &str) -> Result<(), String> {
        let pickle = self.source.pickle;
        for (key, value) in items {
            let strange = pickle.call(*value).is_some() && !is_any_module(pickle, *value);
            if let Some(key) = pickle.key(*key).filter(|_| strange) {
                let path = below(prefix, &key);
                let module = self.module(*value, &[], &path)?;
                self.state.facts.insert(path, module);
            }
        }
        Ok(())
    }

    /// The names of the parts of a module that are there.
    fn named_parts(&self, parts: &[(Value, Value)]) -> Vec<String> {
        let pickle = self.source.pickle;
        let there = parts.iter().filter(|(_, value)| *value != Value::None);
        there.filter_map(|(key, _)| pickle.key(*key)).collect()
    }

    /// Keeps what is known of a module, once its tensors and `parts` have been walked through.
    fn around(
        &mut self,
        mut module: Module,
        path: &str,
        parts: Vec<String>,
        walk: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let before = self.tensors;
        walk(self)?;
        module.holds_tensors = self.tensors > before;
        module.parts = parts;
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
        let module = said(self.source.pickle, value, attributes);
        let names = module.attributes.keys().map(String::len).sum::<usize>();
        self.spend(path.len() + module.class.len() + 2 * names)?;
        Ok(module)
    }

    /// What is known of a module of TorchScript: of a norm, the eps that its code says, besides.
    fn scripted(
        &mut self,
        value: Value,
        attributes: &[(Value, Value)],
        path: &str,
    ) -> Result<Module, String> {
        let pickle = self.source.pickle;
        let mut module = self.module(value, attributes, path)?;
        module.in_code = true;
        let is_norm = pickle.get(attributes, "running_var").is_some();
        let code = self.source.code.as_ref().filter(|_| is_norm);
        let eps = code.and_then(|code| code.eps(pickle.class(value)?));
        if let Some(eps) = eps {
            let name = "eps".to_owned();
            module
                .attributes
                .entry(name)
                .or_insert(Attribute::Number(eps));
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

/// The name of a key below a path; the path may be empty.
pub(super) fn below(prefix: &str, key: &str) -> String {
    match prefix {
        "" => key.to_owned(),
        _ => format!("{prefix}.{key}"),
    }
}

/// The paths of the modules above a name, up to the outermost.
fn above(name: &str) -> impl Iterator<Item = &str> {
    let dots = name.rmatch_indices('.').map(|(at, _)| &name[..at]);
    dots.chain([""])
}

fn contains(nodes: &HashSet<u32>, value: Value) -> bool {
    matches!(value, Value::Node(node) if nodes.contains(&node))
}
