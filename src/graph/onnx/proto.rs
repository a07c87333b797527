//! The messages of an ONNX file, as far as they are looked at. Numbers of fields are those of `onnx.proto`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::error::Error;
use super::wire::{Field, Payload, Wire};

/// The number of a name in [`Names`].
pub(super) type Name = u32;

/// Every name of values and tensors, once.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<Arc<str>, Name>,
    names: Vec<Arc<str>>,
}

impl Names {
    pub fn number(&mut self, name: &str) -> Name {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let (name, number): (Arc<str>, _) = (name.into(), self.names.len() as Name);
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    pub fn get(&self, number: Name) -> &Arc<str> {
        &self.names[number as usize]
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }
}

/// The whole file.
#[derive(Debug)]
pub(super) struct Model {
    pub names: Names,
    pub ir_version: i64,
    /// The version of the operators that are ONNX's own.
    pub opset: Option<i64>,
    /// Every field of the file but the graph, in their order: their numbers and where they are.
    pub fields: Vec<(u32, Range<u64>)>,
    /// How many of them stand before the graph.
    pub before_graph: usize,
    /// Whether the file says how to train it.
    pub trains: bool,
    /// Operators of ONNX's own that the file defines anew.
    pub redefined: Vec<String>,
    /// Metadata of the file.
    pub metadata: Vec<(String, String)>,
    /// Where metadata is that an earlier run has written.
    pub ours: Vec<Range<u64>>,
    pub graph: Graph,
}

/// What the metadata that repfuse adds begins with.
const OURS: &str = "repfuse.";

/// The graph.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Every field, in their order.
    pub fields: Vec<(Part, Range<u64>)>,
    pub nodes: Vec<Node>,
    pub tensors: Vec<Tensor>,
    pub values: Vec<Info>,
    /// Names of sparse initializers.
    pub sparse: Vec<Name>,
}

/// What a field of a graph is, with its number in the lists of [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Node(usize),
    Tensor(usize),
    Input(usize),
    Output(usize),
    ValueInfo(usize),
    /// Something else, by the number of the field.
    Other(u32),
}

/// One node.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub name: String,
    pub op: String,
    pub domain: String,
    /// Empty names are inputs that are left out.
    pub inputs: Vec<Option<Name>>,
    pub outputs: Vec<Option<Name>>,
    pub attributes: HashMap<String, Attribute>,
    /// What its subgraphs may read of the graph that it is in.
    pub captured: Vec<Name>,
    /// The modules that it is in, outermost first, as PyTorch's newer exporter writes them.
    pub scopes: Option<String>,
}

/// An attribute of a node.
#[derive(Debug)]
pub(super) enum Attribute {
    Float(f32),
    Int(i64),
    Text(Vec<u8>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    /// With its bytes, where they are few and lie side by side in the file.
    Tensor(Tensor, Option<Vec<u8>>),
    /// Something that nothing here asks for.
    Other,
}

/// A constant tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub name: Option<Name>,
    pub dims: Vec<i64>,
    pub kind: i64,
    pub data: Data,
}

/// Where the numbers of a tensor are.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// Nowhere.
    Absent,
    /// Side by side in the file, little-endian.
    InFile(Range<u64>),
    /// One by one in the file, and read.
    Numbers(Vec<i64>),
    /// In another file.
    External {
        location: String,
        offset: u64,
        length: Option<u64>,
    },
    /// In a way that nothing here reads.
    Unread,
}

/// A value of which the file tells the shape.
#[derive(Debug)]
pub(super) struct Info {
    pub name: Name,
    /// Its dimensions, where it is a tensor and has some.
    pub dims: Option<Vec<InfoDim>>,
    /// The number of its element type, where it is a tensor.
    pub kind: Option<i64>,
}

#[derive(Clone, Debug)]
pub(super) enum InfoDim {
    Known(i64),
    Named(String),
    Any,
}

/// No graph has more nodes, tensors and values than this, and no node more inputs.
const MOST_PARTS: usize = 1 << 20;

/// No tensor has more dimensions.
const MOST_DIMS: usize = 64;

/// Tensors whose numbers stand one by one are read up to this many.
const MOST_NUMBERS: usize = 1 << 20;

/// The bytes of an attribute that are read with it.
const FEW_BYTES: u64 = 64;

/// Subgraphs within subgraphs.
const DEEPEST: usize = 16;

/// A set of operators: its domain, and its version.
fn operators(wire: &mut Wire<'_>, range: Range<u64>) -> Result<(String, Option<i64>), Error> {
    let (mut domain, mut version) = (String::new(), None);
    wire.fields(range, |wire, field| {
        match field.number {
            1 => domain = wire.text(&field)?,
            2 => version = Some(wire.number(&field)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((domain, version))
}

/// The name of a function that the file defines, and its domain.
fn function(wire: &mut Wire<'_>, range: Range<u64>) -> Result<(String, String), Error> {
    let (mut name, mut domain) = (String::new(), String::new());
    wire.fields(range, |wire, field| {
        match field.number {
            1 => name = wire.text(&field)?,
            10 => domain = wire.text(&field)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, domain))
}

/// The graph, of which there is one.
fn only<T: Clone>(wire: &Wire<'_>, graphs: &[T]) -> Result<T, Error> {
    match graphs {
        [one] => Ok(one.clone()),
        [] => Err(wire.wrong("it has no graph".to_owned())),
        _ => Err(wire.wrong("it has several graphs; expected one".to_owned())),
    }
}

/// Reads the whole file but the weights.
pub(super) fn model(wire: &mut Wire<'_>) -> Result<Model, Error> {
    let mut names = Names::default();
    let (mut fields, mut graphs) = (Vec::new(), Vec::new());
    let (mut ir_version, mut opset, mut trains) = (0, None, false);
    let (mut metadata, mut ours, mut redefined) = (Vec::new(), Vec::new(), Vec::new());
    wire.fields(0..wire.len(), |wire, field| {
        match field.number {
            1 => ir_version = wire.number(&field)?,
            8 => {
                let range = wire.range(&field)?;
                let (domain, version) = operators(wire, range)?;
                if is_onnx(&domain) {
                    opset = version;
                }
            }
            14 => {
                let range = wire.range(&field)?;
                if let Some((key, value)) = entry(wire, range)? {
                    if key.starts_with(OURS) {
                        ours.push(field.whole.clone());
                    }
                    metadata.push((key, value));
                }
            }
            20 => trains = true,
            25 => {
                let range = wire.range(&field)?;
                let (name, domain) = function(wire, range)?;
                if is_onnx(&domain) {
                    redefined.push(name);
                }
            }
            _ => {}
        }
        match field.number {
            7 => graphs.push((wire.range(&field)?, fields.len())),
            number => fields.push((number, field.whole)),
        }
        if fields.len() > MOST_PARTS {
            return Err(wire.wrong(format!("it has more than {MOST_PARTS} fields")));
        }
        Ok(())
    })?;
    let (range, before_graph) = only(wire, &graphs)?;
    let graph = graph(wire, range, &mut names)?;
    Ok(Model {
        names,
        ir_version,
        opset,
        fields,
        before_graph,
        trains,
        redefined,
        metadata,
        ours,
        graph,
    })
}

/// Whether the operators of a domain are ONNX's own.
pub(super) fn is_onnx(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn graph(wire: &mut Wire<'_>, range: Range<u64>, names: &mut Names) -> Result<Graph, Error> {
    let mut graph = Graph::default();
    let mut references = 0;
    wire.fields(range, |wire, field| {
        let part = match field.number {
            1 => {
                let range = wire.range(&field)?;
                let node = node(wire, range, names)?;
                references += node.inputs.len() + node.outputs.len() + node.captured.len();
                graph.nodes.push(node);
                Part::Node(graph.nodes.len() - 1)
            }
            5 => {
                let range = wire.range(&field)?;
                graph.tensors.push(tensor(wire, range, names)?);
                Part::Tensor(graph.tensors.len() - 1)
            }
            11..=13 => {
                let range = wire.range(&field)?;
                graph.values.push(info(wire, range, names)?);
                let at = graph.values.len() - 1;
                match field.number {
                    11 => Part::Input(at),
                    12 => Part::Output(at),
                    _ => Part::ValueInfo(at),
                }
            }
            15 => {
                let range = wire.range(&field)?;
                graph.sparse.extend(sparse(wire, range, names)?);
                Part::Other(15)
            }
            number => Part::Other(number),
        };
        graph.fields.push((part, field.whole));
        if graph.fields.len() > MOST_PARTS || references > 4 * MOST_PARTS {
            return Err(wire.wrong(format!(
                "its graph has more than {MOST_PARTS} nodes, tensors and values"
            )));
        }
        Ok(())
    })?;
    Ok(graph)
}

fn node(wire: &mut Wire<'_>, range: Range<u64>, names: &mut Names) -> Result<Node, Error> {
    let mut node = Node::default();
    wire.fields(range, |wire, field| {
        match field.number {
            1 | 2 => {
                let name = wire.text(&field)?;
                let name = (!name.is_empty()).then(|| names.number(&name));
                match field.number {
                    1 => node.inputs.push(name),
                    _ => node.outputs.push(name),
                }
                if node.inputs.len() + node.outputs.len() > MOST_PARTS {
                    return Err(wire.wrong("a node has too many inputs".to_owned()));
                }
            }
            3 => node.name = wire.text(&field)?,
            4 => node.op = wire.text(&field)?,
            5 => {
                let range = wire.range(&field)?;
                let (name, value) = attribute(wire, range, names, &mut node.captured, 0)?;
                if node.attributes.insert(name.clone(), value).is_some() {
                    let reason = format!("a node has two attributes `{name}`");
                    return Err(wire.wrong(reason));
                }
            }
            7 => node.domain = wire.text(&field)?,
            9 => {
                let range = wire.range(&field)?;
                if let Some((key, value)) = entry(wire, range)?
                    && key == "pkg.torch.onnx.name_scopes"
                {
                    node.scopes = Some(value);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(node)
}

/// A pair of strings, where they are not too long to be looked at.
fn entry(wire: &mut Wire<'_>, range: Range<u64>) -> Result<Option<(String, String)>, Error> {
    if range.end - range.start > 1 << 12 {
        return Ok(None);
    }
    let (mut key, mut value) = (String::new(), String::new());
    wire.fields(range, |wire, field| {
        match field.number {
            1 => key = wire.text(&field)?,
            2 => value = wire.text(&field)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(Some((key, value)))
}

fn attribute(
    wire: &mut Wire<'_>,
    range: Range<u64>,
    names: &mut Names,
    captured: &mut Vec<Name>,
    depth: usize,
) -> Result<(String, Attribute), Error> {
    let mut name = String::new();
    let mut value = Attribute::Other;
    let mut ints: Option<Vec<i64>> = None;
    let mut floats: Option<Vec<f32>> = None;
    wire.fields(range, |wire, field| {
        match (field.number, &field.payload) {
            (1, _) => name = wire.text(&field)?,
            (2, Payload::Fixed32(bits)) => value = Attribute::Float(f32::from_bits(*bits)),
            (3, Payload::Varint(number)) => value = Attribute::Int(*number as i64),
            (4, Payload::Bytes(range)) if range.end - range.start <= 256 => {
                value = Attribute::Text(wire.bytes(range.clone())?);
            }
            (5, Payload::Bytes(range)) => {
                let tensor = tensor(wire, range.clone(), names)?;
                let bytes = match &tensor.data {
                    Data::InFile(range) if range.end - range.start <= FEW_BYTES => {
                        Some(wire.bytes(range.clone())?)
                    }
                    _ => None,
                };
                value = Attribute::Tensor(tensor, bytes);
            }
            (6 | 11, Payload::Bytes(range)) => {
                reads(wire, range.clone(), names, captured, depth + 1)?;
            }
            (7, _) => wire.floats(&field, MOST_NUMBERS, floats.get_or_insert_default())?,
            (8, _) => wire.numbers(&field, MOST_NUMBERS, ints.get_or_insert_default())?,
            _ => {}
        }
        Ok(())
    })?;
    let value = floats.map_or(value, Attribute::Floats);
    Ok((name, ints.map_or(value, Attribute::Ints)))
}

/// What a subgraph may read of the graph around it: more names than that, for its own are among them.
fn reads(
    wire: &mut Wire<'_>,
    range: Range<u64>,
    names: &mut Names,
    captured: &mut Vec<Name>,
    depth: usize,
) -> Result<(), Error> {
    if depth > DEEPEST {
        let reason = format!("its subgraphs are nested more than {DEEPEST} deep");
        return Err(wire.wrong(reason));
    }
    wire.fields(range, |wire, field| {
        let range = match (field.number, &field.payload) {
            (1 | 12, Payload::Bytes(range)) => range.clone(),
            _ => return Ok(()),
        };
        let of_node = field.number == 1;
        wire.fields(range, |wire, field| {
            match (field.number, of_node) {
                (1, _) => captured.push(names.number(&wire.text(&field)?)),
                (5, true) => {
                    let range = wire.range(&field)?;
                    attribute(wire, range, names, captured, depth)?;
                }
                _ => {}
            }
            if captured.len() > MOST_PARTS {
                return Err(wire.wrong("the subgraphs of a node are too large".to_owned()));
            }
            Ok(())
        })
    })
}

fn tensor(wire: &mut Wire<'_>, range: Range<u64>, names: &mut Names) -> Result<Tensor, Error> {
    let mut tensor = Tensor {
        name: None,
        dims: Vec::new(),
        kind: 0,
        data: Data::Absent,
    };
    let (mut external, mut is_external) = (HashMap::new(), false);
    let start = range.start;
    wire.fields(range, |wire, field| {
        match field.number {
            1 => wire.numbers(&field, MOST_DIMS, &mut tensor.dims)?,
            2 => tensor.kind = wire.number(&field)?,
            // Numbers of a fixed size lie side by side, as raw data does.
            9 | 4 | 10 => {
                tensor.data = match (&tensor.data, &field.payload) {
                    (Data::Absent, Payload::Bytes(range)) => Data::InFile(range.clone()),
                    _ => Data::Unread,
                }
            }
            5 | 7 | 11 => {
                let mut numbers = match std::mem::replace(&mut tensor.data, Data::Unread) {
                    Data::Absent => Vec::new(),
                    Data::Numbers(numbers) => numbers,
                    _ => return Ok(()),
                };
                let long = matches!(&field.payload, Payload::Bytes(r) if (r.end - r.start) > 10 * MOST_NUMBERS as u64);
                if !long && wire.numbers(&field, MOST_NUMBERS, &mut numbers).is_ok() {
                    tensor.data = Data::Numbers(numbers);
                }
            }
            3 | 6 => tensor.data = Data::Unread,
            8 => {
                let name = wire.text(&field)?;
                tensor.name = (!name.is_empty()).then(|| names.number(&name));
            }
            13 => {
                let range = wire.range(&field)?;
                if let Some((key, value)) = entry(wire, range)?
                    && external.insert(key.clone(), value).is_some()
                {
                    return Err(wire.wrong(format!("a tensor has two entries `{key}` of external data")));
                }
            }
            14 => is_external = wire.number(&field)? == 1,
            _ => {}
        }
        Ok(())
    })?;
    if is_external {
        tensor.data = external_data(wire, start, &external)?;
    }
    Ok(tensor)
}

/// Where the tensor at byte `start` says that its data is.
fn external_data(
    wire: &Wire<'_>,
    start: u64,
    entries: &HashMap<String, String>,
) -> Result<Data, Error> {
    let number = |key: &str| {
        match entries.get(key) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                wire.wrong(format!(
                    "the tensor at byte {start} has external data at the {key} `{text}`, which is no number"
                ))
            }),
        }
    };
    let (offset, length) = (number("offset")?, number("length")?);
    let Some(location) = entries.get("location") else {
        return Err(wire.wrong(format!(
            "the tensor at byte {start} has external data, and no location"
        )));
    };
    Ok(Data::External {
        location: location.clone(),
        offset: offset.unwrap_or(0),
        length,
    })
}

fn sparse(
    wire: &mut Wire<'_>,
    range: Range<u64>,
    names: &mut Names,
) -> Result<Option<Name>, Error> {
    let mut name = None;
    wire.fields(range, |wire, field| {
        if let (1, Payload::Bytes(range)) = (field.number, &field.payload) {
            name = tensor(wire, range.clone(), names)?.name;
        }
        Ok(())
    })?;
    Ok(name)
}

fn info(wire: &mut Wire<'_>, range: Range<u64>, names: &mut Names) -> Result<Info, Error> {
    let (mut name, mut dims, mut kind) = (String::new(), None, None);
    // ValueInfoProto → TypeProto → Tensor → TensorShapeProto → Dimension
    let inner =
        |wire: &Wire<'_>, field: &Field, number: u32| -> Result<Option<Range<u64>>, Error> {
            match field.number == number {
                true => wire.range(field).map(Some),
                false => Ok(None),
            }
        };
    wire.fields(range, |wire, field| {
        if field.number == 1 {
            name = wire.text(&field)?;
        }
        let Some(of_type) = inner(wire, &field, 2)? else {
            return Ok(());
        };
        wire.fields(of_type, |wire, field| {
            let Some(of_tensor) = inner(wire, &field, 1)? else {
                return Ok(());
            };
            wire.fields(of_tensor, |wire, field| {
                if field.number == 1 {
                    kind = Some(wire.number(&field)?);
                }
                let Some(of_shape) = inner(wire, &field, 2)? else {
                    return Ok(());
                };
                let found: &mut Vec<InfoDim> = dims.get_or_insert_default();
                wire.fields(of_shape, |wire, field| {
                    let Some(of_dim) = inner(wire, &field, 1)? else {
                        return Ok(());
                    };
                    let mut dim = InfoDim::Any;
                    wire.fields(of_dim, |wire, field| {
                        match field.number {
                            1 => dim = InfoDim::Known(wire.number(&field)?),
                            2 => dim = InfoDim::Named(wire.text(&field)?),
                            _ => {}
                        }
                        Ok(())
                    })?;
                    found.push(dim);
                    match found.len() > MOST_DIMS {
                        true => {
                            Err(wire.wrong(format!("a value has more than {MOST_DIMS} dimensions")))
                        }
                        false => Ok(()),
                    }
                })
            })
        })
    })?;
    Ok(Info {
        name: names.number(&name),
        dims,
        kind,
    })
}
