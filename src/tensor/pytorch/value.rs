//! What a pickle says, as data: values that refer to one another by number, so that one may be shared or even hold itself.

use std::iter::once;

/// A value; what is larger than a number is a [`Node`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Node(u32),
}

#[derive(Debug)]
pub(super) enum Node {
    Text(Box<str>),
    Bytes,
    /// An integer of more than 64 bits.
    Long(Box<[u8]>),
    /// A text that is longer than any name and was not kept.
    LongText,
    Tuple(Box<[Value]>),
    List(Vec<Value>),
    Set(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A class or a function: `module.name`.
    Global(Box<str>),
    Call(Box<Call>),
    /// A reference to something outside of the pickle.
    Persistent(Value),
}

/// What a class or function would be called with. Nothing is called.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) callee: Value,
    pub(super) arguments: Value,
    /// What is appended to it afterwards.
    pub(super) list: Vec<Value>,
    /// What is set in it afterwards, as in a dict.
    pub(super) items: Vec<(Value, Value)>,
    /// What its attributes become.
    pub(super) state: Option<Value>,
}

/// A pickle that has been read.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Value,
}

impl Pickle {
    pub(super) fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(i) => self.nodes.get(i as usize),
            _ => None,
        }
    }

    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match self.node(value)? {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn global(&self, value: Value) -> Option<&str> {
        match self.node(value)? {
            Node::Global(name) => Some(name),
            _ => None,
        }
    }

    pub(super) fn call(&self, value: Value) -> Option<&Call> {
        match self.node(value)? {
            Node::Call(call) => Some(call),
            _ => None,
        }
    }

    /// A call of a class or function with this name, and its arguments.
    pub(super) fn called(&self, value: Value) -> Option<(&str, &[Value])> {
        let call = self.call(value)?;
        Some((
            self.global(call.callee)?,
            self.sequence(call.arguments).unwrap_or(&[]),
        ))
    }

    /// The members of a tuple, a list or a set.
    pub(super) fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::Tuple(values) => Some(values),
            Node::List(values) | Node::Set(values) => Some(values),
            _ => None,
        }
    }

    /// The class of an object, as `module.name`; that of a class which a helper of `copyreg` makes.
    pub(super) fn class(&self, value: Value) -> Option<&str> {
        let call = self.call(value)?;
        match self.called(value) {
            Some(("copy_reg._reconstructor" | "copyreg._reconstructor", [class, ..])) => {
                self.class_named(*class)
            }
            _ => self.class_named(call.callee),
        }
    }

    /// The name of a class. The streams before archives keep that of a module beside its source: `("module", class, …)`.
    fn class_named(&self, class: Value) -> Option<&str> {
        match self.node(class)? {
            Node::Persistent(id) => match self.sequence(*id)? {
                [kind, class, ..] if self.text(*kind) == Some("module") => self.global(*class),
                _ => None,
            },
            _ => self.global(class),
        }
    }

    /// The items of a dict or of an object that is filled like one, in order.
    pub(super) fn items(&self, value: Value) -> Option<Vec<(Value, Value)>> {
        match self.node(value)? {
            Node::Dict(items) => Some(items.clone()),
            Node::Call(call) => {
                let first = self.sequence(call.arguments).and_then(|args| args.first());
                let mut items = match self.global(call.callee)? {
                    "collections.OrderedDict" => {
                        first.map_or(Vec::new(), |pairs| self.pairs(*pairs))
                    }
                    "collections.defaultdict" => Vec::new(),
                    _ if call.items.is_empty() => return None,
                    _ => Vec::new(),
                };
                items.extend(&call.items);
                Some(items)
            }
            _ => None,
        }
    }

    /// A list of pairs, as Python 2 and the oldest protocols give to `OrderedDict`.
    fn pairs(&self, list: Value) -> Vec<(Value, Value)> {
        let members = self.sequence(list).unwrap_or(&[]).iter();
        let pair = |pair: &Value| match self.sequence(*pair)? {
            [key, value] => Some((*key, *value)),
            _ => None,
        };
        members.filter_map(pair).collect()
    }

    /// The attributes of an object, where they are a dict or, with slots, a dict and another one.
    pub(super) fn attributes(&self, value: Value) -> Option<Vec<(Value, Value)>> {
        let state = self.call(value)?.state?;
        let of = |value: Value| match self.node(value) {
            Some(Node::Dict(items)) => Some(items.clone()),
            _ => None,
        };
        match self.node(state)? {
            Node::Tuple(parts) => Some(
                parts
                    .iter()
                    .filter_map(|part| of(*part))
                    .flatten()
                    .collect(),
            ),
            _ => of(state),
        }
    }

    /// The module inside of what `torch.compile` makes, which is pickled as a call with it.
    pub(super) fn compiled(&self, value: Value) -> Option<Value> {
        match self.called(value)? {
            ("torch._dynamo.eval_frame.OptimizedModule", [inner, ..]) => Some(*inner),
            _ => None,
        }
    }

    /// What stands under a key of a dict; of two the later one.
    pub(super) fn get(&self, items: &[(Value, Value)], key: &str) -> Option<Value> {
        let found = items.iter().rfind(|(k, _)| self.text(*k) == Some(key));
        found.map(|(_, value)| *value)
    }

    /// A key as a part of a name.
    pub(super) fn key(&self, key: Value) -> Option<String> {
        match key {
            Value::Int(n) => Some(n.to_string()),
            _ => self.text(key).map(str::to_owned),
        }
    }

    /// Whether a value is an optimizer or what its `state_dict()` is.
    pub(super) fn is_optimizer(&self, value: Value) -> bool {
        let items = self.items(value).or_else(|| self.attributes(value));
        items.is_some_and(|items| self.get(&items, "param_groups").is_some())
    }

    /// What an error calls a value.
    pub(super) fn kind(&self, value: Value) -> String {
        let plain = match value {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Node(_) => match self.node(value) {
                Some(Node::Text(_) | Node::LongText) => "a text",
                Some(Node::Bytes) => "bytes",
                Some(Node::Long(_)) => "an int",
                Some(Node::Tuple(_)) => "a tuple",
                Some(Node::List(_)) => "a list",
                Some(Node::Set(_)) => "a set",
                Some(Node::Dict(_)) => "a dict",
                Some(Node::Global(name)) => return format!("`{name}`"),
                Some(Node::Call(_)) => match self.class(value) {
                    Some(class) => return format!("a `{class}`"),
                    None => "an object",
                },
                Some(Node::Persistent(_)) | None => "a storage",
            },
        };
        plain.to_owned()
    }

    /// Whether a set has this text as a member, in either way in which one is pickled.
    pub(super) fn set_has(&self, set: Value, member: &str) -> bool {
        let of = |values: &[Value]| values.iter().any(|v| self.text(*v) == Some(member));
        let called = self
            .called(set)
            .and_then(|(_, arguments)| arguments.first().copied());
        let sets = once(set).chain(called);
        sets.filter_map(|set| self.sequence(set)).any(of)
    }
}
