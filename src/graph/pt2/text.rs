//! The text of a program, taken apart: what is edited stays text.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::json::{Members, Raw, Tagged, read};
use super::read::Pt2;
use super::schema::{self, NodeText, TensorMeta, names};
use super::weights::{self, Payload};

/// What stands in a folder of raw tensors, in the order of its configuration.
pub(super) type Stored<'a> = Vec<(Cow<'a, str>, Payload<'a>)>;

/// The text of the graph, taken apart, and the configurations of what is stored.
pub(super) struct Text<'a> {
    pub(super) graph: schema::GraphText<'a>,
    pub(super) input_specs: Raw<'a>,
    pub(super) nodes: Vec<Raw<'a>>,
    pub(super) read: Vec<NodeText<'a>>,
    pub(super) values: Members<'a, Raw<'a>>,
    pub(super) inputs: Vec<Raw<'a>>,
    pub(super) specs: Vec<Raw<'a>>,
    /// For each input the tensor that it stands for, and whether it is a parameter.
    pub(super) stored: Vec<Option<(String, bool)>>,
    pub(super) weights: Stored<'a>,
    pub(super) constants: Stored<'a>,
    /// Where each value is described.
    described: HashMap<Cow<'a, str>, usize>,
    /// Where each stored tensor is, weights first.
    numbers: HashMap<Cow<'a, str>, usize>,
}

impl<'a> Text<'a> {
    pub(super) fn new(pt2: &'a Pt2) -> Result<Text<'a>, String> {
        let text = Text::of(pt2).map_err(|e| e.to_string())?;
        let weights = weights::config(&pt2.texts.weights)?;
        let constants = weights::config(&pt2.texts.constants)?;
        let names = weights.iter().chain(&constants).map(|(name, _)| name);
        Ok(Text {
            described: places(text.values.0.iter().map(|(name, _)| name)),
            numbers: places(names),
            weights,
            constants,
            ..text
        })
    }

    /// The graph alone.
    fn of(pt2: &'a Pt2) -> Result<Text<'a>, serde_json::Error> {
        let program: schema::Program<'a> = serde_json::from_str(&pt2.texts.program)?;
        let schema::GraphModule { graph, signature } = program.graph_module;
        let nodes: Vec<Raw<'a>> = read(graph.nodes)?;
        let specs: Vec<Raw<'a>> = read(signature.input_specs)?;
        let stored = specs.iter().map(|spec| {
            let spec: Tagged<'a> = read(spec)?;
            Ok(match &*spec.tag {
                "parameter" | "buffer" | "tensor_constant" => {
                    let of: schema::StoredSpec<'a> = read(spec.value)?;
                    Some((of.name.0.into_owned(), spec.tag == "parameter"))
                }
                _ => None,
            })
        });
        Ok(Text {
            read: nodes
                .iter()
                .map(|node| read(node))
                .collect::<Result<_, _>>()?,
            values: read(graph.tensor_values)?,
            inputs: read(graph.inputs)?,
            stored: stored.collect::<Result<_, serde_json::Error>>()?,
            input_specs: signature.input_specs,
            graph,
            nodes,
            specs,
            weights: Vec::new(),
            constants: Vec::new(),
            described: HashMap::new(),
            numbers: HashMap::new(),
        })
    }

    /// What is said of a value.
    pub(super) fn meta(&self, name: &str) -> Option<Value> {
        self.described_as(name)
    }

    fn described_as<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        let (_, meta) = &self.values.0[*self.described.get(name)?];
        read(meta).ok()
    }

    /// What is said of a tensor that stands in the file, or that is computed of such.
    pub(super) fn tensor_meta(&self, name: &str) -> Option<TensorMeta<'a>> {
        let Some(&at) = self.numbers.get(name) else {
            return self.described_as(name);
        };
        let (weights, constants) = (&self.weights, &self.constants);
        let (_, payload) = match weights.get(at) {
            Some(weight) => weight,
            None => &constants[at - weights.len()],
        };
        payload.tensor_meta.clone()
    }

    /// The names of the values that an input of the graph is; one, as a rule.
    pub(super) fn input_names(&self, i: usize) -> Vec<String> {
        read::<Tagged<'a>>(self.inputs[i])
            .map(|input| names(&input))
            .unwrap_or_default()
    }
}

/// The place of each name among others; the first of two.
fn places<'n, 'a: 'n>(
    names: impl Iterator<Item = &'n Cow<'a, str>>,
) -> HashMap<Cow<'a, str>, usize> {
    let mut places = HashMap::new();
    for (at, name) in names.enumerate() {
        places.entry(name.clone()).or_insert(at);
    }
    places
}
