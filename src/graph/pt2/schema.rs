//! What is read of `models/*.json`: the part of PyTorch's `torch/_export/serde/schema.py` that folding needs.

use std::borrow::Cow;

use serde::Deserialize;

use super::json::{Key, Members, Raw, Tagged, read};

/// The major version of the schema that is understood. Minor versions add what may be ignored.
pub(super) const MAJOR: u64 = 8;

/// The whole program.
#[derive(Deserialize)]
pub(super) struct Program<'a> {
    #[serde(borrow)]
    pub(super) graph_module: GraphModule<'a>,
}

/// What is read before anything else.
#[derive(Deserialize)]
pub(super) struct Versioned {
    pub(super) schema_version: Version,
    pub(super) torch_version: Option<String>,
}

/// The version of the schema.
#[derive(Deserialize)]
pub(super) struct Version {
    pub(super) major: u64,
    pub(super) minor: u64,
}

#[derive(Deserialize)]
pub(super) struct GraphModule<'a> {
    #[serde(borrow)]
    pub(super) graph: GraphText<'a>,
    #[serde(borrow)]
    pub(super) signature: Signature<'a>,
}

/// The graph; its lists are edited as text.
#[derive(Deserialize)]
pub(super) struct GraphText<'a> {
    #[serde(borrow)]
    pub(super) inputs: Raw<'a>,
    #[serde(borrow)]
    pub(super) outputs: Vec<Tagged<'a>>,
    #[serde(borrow)]
    pub(super) nodes: Raw<'a>,
    #[serde(borrow)]
    pub(super) tensor_values: Raw<'a>,
}

#[derive(Deserialize)]
pub(super) struct Signature<'a> {
    #[serde(borrow)]
    pub(super) input_specs: Raw<'a>,
    #[serde(borrow)]
    pub(super) output_specs: Raw<'a>,
}

/// A placeholder that stands for a tensor of the file.
#[derive(Deserialize)]
pub(super) struct StoredSpec<'a> {
    #[serde(borrow)]
    pub(super) arg: Named<'a>,
    #[serde(
        borrow,
        alias = "parameter_name",
        alias = "buffer_name",
        alias = "tensor_constant_name"
    )]
    pub(super) name: Key<'a>,
}

/// An output whose numbers are written back to a tensor of the file when the network has run.
#[derive(Deserialize)]
pub(super) struct WrittenBackSpec<'a> {
    #[serde(borrow, alias = "parameter_name", alias = "buffer_name")]
    pub(super) name: Key<'a>,
}

/// The name of a value.
#[derive(Deserialize)]
pub(super) struct Named<'a> {
    #[serde(borrow)]
    pub(super) name: Key<'a>,
}

/// One call of an operator.
#[derive(Deserialize)]
pub(super) struct NodeText<'a> {
    #[serde(borrow)]
    pub(super) target: Key<'a>,
    #[serde(borrow)]
    pub(super) inputs: Vec<Argument<'a>>,
    #[serde(borrow)]
    pub(super) outputs: Vec<Tagged<'a>>,
    #[serde(borrow)]
    pub(super) metadata: Members<'a, Raw<'a>>,
    #[serde(borrow)]
    pub(super) name: Option<Key<'a>>,
}

/// One argument of a call.
#[derive(Deserialize)]
pub(super) struct Argument<'a> {
    #[serde(borrow)]
    pub(super) name: Key<'a>,
    #[serde(borrow)]
    pub(super) arg: Tagged<'a>,
}

/// What is known of the tensor that a value is.
#[derive(Clone, Deserialize)]
pub(super) struct TensorMeta<'a> {
    pub(super) dtype: u64,
    #[serde(borrow)]
    pub(super) sizes: Vec<Tagged<'a>>,
    #[serde(borrow)]
    pub(super) strides: Vec<Tagged<'a>>,
    #[serde(borrow)]
    pub(super) storage_offset: Option<Tagged<'a>>,
    pub(super) layout: u64,
    /// Of a parameter, whether it can be trained.
    pub(super) requires_grad: Option<bool>,
}

/// The layout of a tensor whose numbers lie in memory by strides.
pub(super) const STRIDED: u64 = 7;

impl<'a> NodeText<'a> {
    /// The operator without `torch.ops.aten.` and without its overload: `conv2d`; none for an operator of another library.
    pub(super) fn aten(&self) -> Option<&str> {
        let name = self.target.0.strip_prefix("torch.ops.aten.")?;
        Some(name.split_once('.').map_or(name, |(name, _)| name))
    }

    /// The overload of the operator: `default`.
    pub(super) fn overload(&self) -> &str {
        self.target.0.rsplit_once('.').map_or("", |(_, end)| end)
    }

    /// The dotted path of the module in whose `forward` it was called.
    pub(super) fn module(&self) -> Option<String> {
        let (_, stack) = self
            .metadata
            .0
            .iter()
            .find(|(key, _)| key == "nn_module_stack")?;
        let stack: Cow<'_, str> = read::<Key<'_>>(stack).ok()?.0;
        // `key,path,class;key,path,class`, outermost first.
        let path = stack.rsplit(';').next()?.split(',').nth(1)?;
        Some(path.to_owned())
    }

    /// What it is called in messages.
    pub(super) fn shown(&self) -> &str {
        self.name.as_ref().map_or(&*self.target.0, |name| &*name.0)
    }
}

/// The names of values that a tagged argument holds, in order: of tensors, and of numbers that are computed.
pub(super) fn names(argument: &Tagged<'_>) -> Vec<String> {
    let mut out = Vec::new();
    if let Ok(value) = read::<serde_json::Value>(argument.value) {
        collect(&argument.tag, &value, &mut out);
    }
    out
}

/// The value of an argument with other names for some of those that it holds; none where all keep theirs.
pub(super) fn renamed(
    argument: &Tagged<'_>,
    instead: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    let mut value = read::<serde_json::Value>(argument.value).ok()?;
    rename(&argument.tag, &mut value, instead).then(|| value.to_string())
}

fn rename(
    tag: &str,
    value: &mut serde_json::Value,
    instead: &dyn Fn(&str) -> Option<String>,
) -> bool {
    use serde_json::Value;
    match (tag, value) {
        ("as_graph" | "as_string" | "as_strings" | "as_operator", _) => false,
        ("name" | "as_name", Value::String(name)) => match instead(name) {
            Some(new) => {
                *name = new;
                true
            }
            None => false,
        },
        (_, Value::Object(members)) => members
            .iter_mut()
            .fold(false, |any, (key, value)| rename(key, value, instead) | any),
        (_, Value::Array(items)) => items
            .iter_mut()
            .fold(false, |any, item| rename(tag, item, instead) | any),
        _ => false,
    }
}

fn collect(tag: &str, value: &serde_json::Value, out: &mut Vec<String>) {
    use serde_json::Value;
    match (tag, value) {
        // A subgraph reads what is given to it beside it.
        ("as_graph" | "as_string" | "as_strings" | "as_operator", _) => {}
        ("name" | "as_name", Value::String(name)) => out.push(name.clone()),
        (_, Value::Object(members)) => {
            for (key, value) in members {
                collect(key, value, out);
            }
        }
        (_, Value::Array(items)) => items.iter().for_each(|item| collect(tag, item, out)),
        _ => {}
    }
}
