//! The values of an ONNX graph, as they are found.

use std::collections::HashMap;

use super::proto::{InfoDim, Model, Name, Part};
use crate::graph::model::{Dim, Value, ValueId};
use crate::tensor::{Tensor, quoted};

/// The inputs that a file names, those with an initializer too.
pub(super) fn inputs(model: &Model) -> impl Iterator<Item = Name> {
    model
        .graph
        .fields
        .iter()
        .filter_map(|(part, _)| match part {
            Part::Input(at) => Some(model.graph.values[*at].name),
            _ => None,
        })
}

/// The values of the graph, as they are found.
pub(super) struct Values {
    pub values: Vec<Value>,
    pub names: Vec<Name>,
    /// By name.
    pub numbers: HashMap<Name, ValueId>,
    /// The shapes that the file tells.
    told: HashMap<Name, Vec<Dim>>,
    /// The element types that the file tells.
    pub kinds: HashMap<Name, i64>,
    /// How many dimensions have got a name.
    named: usize,
}

impl Values {
    pub fn new(model: &Model, constants: &HashMap<Name, Tensor>) -> Values {
        let mut told = HashMap::new();
        for info in &model.graph.values {
            if let Some(dims) = info
                .dims
                .as_ref()
                .filter(|_| !constants.contains_key(&info.name))
            {
                told.insert(info.name, dims.iter().map(dim).collect());
            }
        }
        Values {
            values: Vec::new(),
            names: Vec::new(),
            numbers: HashMap::new(),
            told,
            kinds: (model.graph.values.iter())
                .filter_map(|info| Some((info.name, info.kind?)))
                .collect(),
            named: 0,
        }
    }

    /// The inputs of the network.
    pub fn declare(
        &mut self,
        model: &Model,
        constants: &HashMap<Name, Tensor>,
    ) -> Result<(), String> {
        for name in inputs(model).filter(|name| !constants.contains_key(name)) {
            if self.numbers.contains_key(&name) {
                let name = quoted(model.names.get(name));
                return Err(format!("two of its inputs are named {name}"));
            }
            self.add(model, name, None);
        }
        Ok(())
    }

    /// A dimension of which nothing is known gets a name, so that it can be followed.
    fn named(&mut self, dim: Dim) -> Dim {
        match dim {
            Dim::Any => {
                self.named += 1;
                Dim::Named(format!("?{}", self.named).into())
            }
            dim => dim,
        }
    }

    /// A value that is new; its shape is what the file says, else `inferred`.
    pub fn add(&mut self, model: &Model, name: Name, inferred: Option<Vec<Dim>>) -> ValueId {
        let id = ValueId(self.values.len());
        let shape = match (self.told.get(&name).cloned(), inferred) {
            // Each may know what the other does not.
            (Some(told), Some(inferred)) if told.len() == inferred.len() => {
                let better = |(told, inferred)| match (told, inferred) {
                    (Dim::Known(n), _) => Dim::Known(n),
                    (Dim::Any, other) => other,
                    (_, Dim::Known(n)) => Dim::Known(n),
                    (told, _) => told,
                };
                Some(told.into_iter().zip(inferred).map(better).collect())
            }
            (told, inferred) => told.or(inferred),
        };
        let shape = shape.map(|shape| shape.into_iter().map(|dim| self.named(dim)).collect());
        let shown = model.names.get(name).to_string();
        self.values.push(Value::new(shown, shape));
        self.names.push(name);
        self.numbers.insert(name, id);
        id
    }
}

fn dim(dim: &InfoDim) -> Dim {
    match dim {
        InfoDim::Known(n) => usize::try_from(*n).map_or(Dim::Any, Dim::Known),
        // A name of its own begins with something else.
        InfoDim::Named(name) => Dim::Named(format!("={name}").into()),
        InfoDim::Any => Dim::Any,
    }
}
