//! An ONNX file, opened: its graph, and where its constants are.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::constants::Constants;
use super::error::Error;
use super::fills::Following;
use super::proto::{self, Model, Name, Part};
use super::reading::Reading;
use super::values::Values;
use super::wire::Wire;
use super::written::Written;
use crate::graph::model::{self, Graph, Node, Op, Value, ValueId};
use crate::graph::{masks, stacks};
use crate::tensor::{Checkpoint, Tensor, open};

/// An ONNX file, opened; no weight has been read.
#[derive(Debug)]
pub struct Onnx {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// The size of the file in bytes.
    len: u64,
    pub(super) model: Model,
    pub(super) graph: Graph,
    /// Its constant tensors.
    constants: Checkpoint,
    /// For each value of the graph, its name among the names of the file.
    pub(super) value_names: Vec<Name>,
    /// What is constant although a node makes it, by name.
    pub(super) made: HashSet<Name>,
    /// Constants that were computed of others when the file was read, by name: the tensors of the file behind each.
    pub(super) computed: HashMap<String, Vec<Tensor>>,
}

impl Onnx {
    /// Opens a file and reads everything but the weights.
    ///
    /// # Errors
    /// When it cannot be read, is cut short, or contradicts itself.
    pub fn open(path: impl Into<PathBuf>) -> Result<Onnx, Error> {
        Onnx::open_with(path.into(), None)
    }

    /// Opens a model that has not become its destination yet.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_written(written: &Written) -> Result<Onnx, Error> {
        Onnx::open_with(written.path().to_owned(), written.data())
    }

    /// `elsewhere`: a location of external data, and the path at which it is instead.
    fn open_with(path: PathBuf, elsewhere: Option<(&str, &Path)>) -> Result<Onnx, Error> {
        let (file, metadata) = open::regular(&path)?;
        let mut wire = Wire::new(&file, &path, metadata.len());
        let mut model = proto::model(&mut wire)?;
        let wrong = |reason| Error::Format {
            path: path.clone(),
            reason,
        };
        let mut constants = Constants::new(&path, &file)?;
        if let Some((location, path)) = elsewhere {
            constants.file_at(location, path.to_owned())?;
        }
        constants.initializers(&mut model)?;
        constants.nodes(&mut model)?;
        let Constants {
            files,
            parts,
            mut by_name,
            mut made,
            ..
        } = constants;
        let checkpoint = Checkpoint::of_parts(files, parts, model.metadata.clone())?;
        let mut tensors: HashMap<Name, Tensor> = HashMap::new();
        for (number, name) in by_name.drain() {
            if let Some(tensor) = checkpoint.get(&name) {
                tensors.insert(number, tensor.clone());
            }
        }
        let mut values = Values::new(&model, &tensors);
        values.declare(&model, &tensors).map_err(wrong)?;
        let mut reading = Reading::new(&model, &checkpoint, tensors, &mut values);
        let mut nodes = Vec::with_capacity(model.graph.nodes.len());
        let mut following = Following::default();
        for node in &model.graph.nodes {
            let mut read = reading.node(node)?;
            let at = (&read, nodes.len());
            if let Err(why) = following.node(&reading, node, at) {
                read.op = Op::Opaque(Some(why));
            }
            nodes.push(read);
        }
        following.fills.settle(&mut nodes, &checkpoint);
        let given = reading.shaped_by_all(outputs(&model));
        let (names_made, computed) = reading.made();
        made.extend(names_made);
        let Values { values, names, .. } = values;
        stacks::as_sums(&mut nodes, &values);
        masks::leave(&mut nodes, &checkpoint);
        let graph = graph_of(values, nodes, (&model, &given)).map_err(|source| Error::Graph {
            path: path.clone(),
            source,
        })?;
        Ok(Onnx {
            file,
            path,
            len: metadata.len(),
            model,
            graph,
            constants: checkpoint,
            value_names: names,
            made,
            computed,
        })
    }

    /// What it computes.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its constant tensors, by the names of the values that they are.
    pub fn constants(&self) -> &Checkpoint {
        &self.constants
    }

    /// The size of the file in bytes, weights in other files left out.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn graph_of(
    mut values: Vec<Value>,
    nodes: Vec<Node>,
    (model, given): (&Model, &[ValueId]),
) -> Result<Graph, model::Error> {
    let outputs: HashSet<&str> = outputs(model)
        .map(|name| &**model.names.get(name))
        .collect();
    for value in &mut values {
        value.is_output = outputs.contains(&*value.name);
    }
    // A constant that is given in the shape of a value needs it.
    for id in given {
        values[id.0].is_output = true;
    }
    Graph::new(values, nodes)
}

fn outputs(model: &Model) -> impl Iterator<Item = Name> {
    let fields = model.graph.fields.iter();
    fields.filter_map(|(part, _)| match part {
        Part::Output(at) => Some(model.graph.values[*at].name),
        _ => None,
    })
}

/// Whether a file begins as an ONNX file does and as no other that is read here.
///
/// # Errors
/// When it cannot be read.
pub fn is_one(path: &Path) -> Result<bool, Error> {
    let (file, metadata) = open::regular(path)?;
    let mut start = [0; 9];
    if metadata.len() < start.len() as u64 {
        return Ok(false);
    }
    open::read_exact_at(&file, &mut start, 0).map_err(|e| Error::unreadable(path, e))?;
    let [prefix @ .., first] = start;
    let safetensors = first == b'{' || u64::from_le_bytes(prefix) <= metadata.len();
    // The keys of the fields that a model has.
    let key = matches!(
        start[0],
        0x08 | 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72
    );
    Ok(key && !safetensors && !start.starts_with(b"PK"))
}
