//! What a file says of its modules, besides their tensors: a pickled module tells its class and its plain attributes.

use std::collections::BTreeMap;

/// The modules of a file by their dotted paths; the outermost has the empty path.
///
/// A state dict tells nothing of them: then there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    modules: BTreeMap<String, Module>,
}

/// What is known of one module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// Its class, as in `torch.nn.modules.conv.Conv2d`.
    pub class: String,
    /// Its attributes that are plain: numbers, texts and short lists of integers.
    pub attributes: BTreeMap<String, Attribute>,
    /// The names of the modules in it, in their order.
    pub parts: Vec<String>,
    /// Whether there is a tensor in it or in one of its parts.
    pub holds_tensors: bool,
    /// What makes it compute something else than its class does, as an error names it: `a forward hook, ...`.
    pub changed: Option<String>,
    /// Whether what else there is to know of it stands in code, as TorchScript keeps it.
    pub in_code: bool,
}

/// A plain attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A floating-point number.
    Number(f64),
    /// Integers in a tuple or a list, as in `stride=(2, 2)`.
    Integers(Vec<i64>),
    /// A text, as in `padding="same"`.
    Text(String),
}

impl Facts {
    /// Whether the file says anything of any module.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The module at a path.
    pub fn module(&self, path: &str) -> Option<&Module> {
        self.modules.get(path)
    }

    /// Every module, in the order of the paths.
    pub fn modules(&self) -> impl Iterator<Item = (&str, &Module)> {
        self.modules
            .iter()
            .map(|(path, module)| (path.as_str(), module))
    }

    /// Notes that a module has tensors in it, if it is known.
    pub(crate) fn hold_tensors(&mut self, path: &str) {
        if let Some(module) = self.modules.get_mut(path) {
            module.holds_tensors = true;
        }
    }

    /// Adds what is known of a module.
    pub fn insert(&mut self, path: String, module: Module) {
        self.modules.insert(path, module);
    }
}

impl Module {
    /// A number among the attributes, as in `eps`.
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.attributes.get(name)? {
            Attribute::Number(x) => Some(*x),
            Attribute::Integer(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// A count among the attributes, as in `groups`.
    pub fn count(&self, name: &str) -> Option<usize> {
        match self.attributes.get(name)? {
            Attribute::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Counts among the attributes, as in `stride`.
    pub fn counts(&self, name: &str) -> Option<Vec<usize>> {
        match self.attributes.get(name)? {
            Attribute::Integers(list) => list.iter().map(|n| usize::try_from(*n).ok()).collect(),
            _ => None,
        }
    }

    /// Whether an attribute is `True`, as in `transposed`.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.attributes.get(name)? {
            Attribute::Bool(flag) => Some(*flag),
            _ => None,
        }
    }
}
