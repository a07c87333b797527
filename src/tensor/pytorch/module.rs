//! What a pickle says of one module besides its tensors: its class, its plain attributes, and what makes it compute something
//! else than its class does.

use super::value::{Pickle, Value};
use crate::tensor::error::quoted;
use crate::tensor::facts::{Attribute, Module};

/// The longest text and the longest list that is kept as an attribute.
const LONGEST_ATTRIBUTE: usize = 256;

/// What the modules of TorchScript are called begins with this.
pub(super) const SCRIPTED: &str = "__torch__.";

/// What is known of a module by itself.
pub(super) fn said(pickle: &Pickle, value: Value, attributes: &[(Value, Value)]) -> Module {
    let class = pickle.class(value).map(class_name);
    let plain = attributes.iter().filter_map(|(key, value)| {
        let name = pickle
            .text(*key)
            .filter(|name| !name.starts_with('_') && name.len() <= LONGEST_ATTRIBUTE)?;
        Some((name.to_owned(), attribute(pickle, *value)?))
    });
    Module {
        class: class.unwrap_or_else(|| "?".to_owned()),
        attributes: plain.collect(),
        changed: changed(pickle, attributes),
        ..Module::default()
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
    is_scripted(pickle, value) || pickle.compiled(value).is_some() || pickled()
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

/// Hooks that act on what a module is given and on what it returns.
const HOOKS: [(&str, &str); 2] = [
    ("_forward_pre_hooks", "a forward pre-hook"),
    ("_forward_hooks", "a forward hook"),
];

/// Hooks of PyTorch's own that compute a weight of parts, which have names of their own: weight norm, spectral norm, pruning.
const OF_PARTS: &str = "torch.nn.utils.";

/// Methods that an instance may have in place of those of its class.
const METHODS: [&str; 2] = ["forward", "_call_impl"];

/// What makes a module compute something else than its class does.
fn changed(pickle: &Pickle, attributes: &[(Value, Value)]) -> Option<String> {
    let hook = |(name, is): &(&str, &str)| {
        let hooks = pickle.items(pickle.get(attributes, name)?)?;
        let called = |value| match pickle.called(value) {
            Some(("builtins.getattr" | "__builtin__.getattr", [_, method, ..])) => {
                pickle.text(*method).map(str::to_owned)
            }
            _ => pickle
                .global(value)
                .or_else(|| pickle.class(value))
                .map(str::to_owned),
        };
        hooks.iter().find_map(|(_, hook)| match called(*hook) {
            Some(name) if name.starts_with(OF_PARTS) => None,
            Some(name) => Some(format!("{is}, {}", quoted(&name))),
            None => Some((*is).to_owned()),
        })
    };
    let method = |name: &&str| {
        pickle
            .get(attributes, name)
            .is_some_and(|value| value != Value::None)
    };
    let own = || METHODS.iter().copied().find(method);
    HOOKS
        .iter()
        .find_map(hook)
        .or_else(|| own().map(|name| format!("a method {} of its own", quoted(name))))
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
