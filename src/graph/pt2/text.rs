//! The text of a program, taken apart: what is edited stays text.

use std::borrow::Cow;

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
}

impl<'a> Text<'a> {
    pub(super) fn new(pt2: &'a Pt2) -> Result<Text<'a>, String> {
        let text = Text::of(pt2).map_err(|e| e.to_string())?;
        Ok(Text {
            weights: weights::config(&pt2.texts.weights)?,
            constants: weights::config(&pt2.texts.constants)?,
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
        })
    }

    /// What is said of a value.
    pub(super) fn meta(&self, name: &str) -> Option<Value> {
        let (_, meta) = self.values.0.iter().find(|(value, _)| value == name)?;
        read(meta).ok()
    }

    /// What is said of a tensor that stands in the file, or that is computed of such.
    pub(super) fn tensor_meta(&self, name: &str) -> Option<TensorMeta<'a>> {
        let mut all = self.weights.iter().chain(&self.constants);
        match all.find(|(stored, _)| stored == name) {
            Some((_, payload)) => payload.tensor_meta.clone(),
            None => {
                let (_, meta) = self.values.0.iter().find(|(value, _)| value == name)?;
                read(meta).ok()
            }
        }
    }

    /// The names of the values that an input of the graph is; one, as a rule.
    pub(super) fn input_names(&self, i: usize) -> Vec<String> {
        read::<Tagged<'a>>(self.inputs[i])
            .map(|input| names(&input))
            .unwrap_or_default()
    }
}
