//! An ONNX file, opened: its graph, and where its constants are.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use super::fills::Following;
use super::ops::Reading;
use super::proto::{self, Data, InfoDim, Model, Name, Part as Piece, is_onnx};
use super::wire::Wire;
use super::write::Written;
use crate::graph::model::{self, Dim, Graph, Node, Op, Value, ValueId};
use crate::tensor::{Checkpoint, Dtype, Part, Place, Tensor, open, quoted};

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

/// The constant tensors of a file, as they are found.
struct Constants<'a> {
    path: &'a Path,
    files: Vec<(PathBuf, File)>,
    /// The numbers of external files, by location.
    external: HashMap<String, usize>,
    parts: Vec<Part>,
    by_name: HashMap<Name, String>,
    /// What nodes make.
    made: HashSet<Name>,
}

impl<'a> Constants<'a> {
    fn new(path: &'a Path, file: &File) -> Result<Constants<'a>, Error> {
        let file = file.try_clone().map_err(|e| Error::unreadable(path, e))?;
        Ok(Constants {
            path,
            files: vec![(path.to_owned(), file)],
            external: HashMap::new(),
            parts: Vec::new(),
            by_name: HashMap::new(),
            made: HashSet::new(),
        })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Format {
            path: self.path.to_owned(),
            reason,
        }
    }

    fn initializers(&mut self, model: &mut Model) -> Result<(), Error> {
        // Later versions of the format let whoever runs the network replace an initializer that is an input, too.
        let replaceable: HashSet<Name> = match model.ir_version {
            ..4 => HashSet::new(),
            _ => inputs(model).collect(),
        };
        let mut seen = HashSet::new();
        for tensor in &model.graph.tensors {
            let Some(name) = tensor.name else {
                return Err(self.wrong("one of its initializers has no name".to_owned()));
            };
            let shown = model.names.get(name);
            if !seen.insert(name) {
                let reason = format!("two of its initializers are named {}", quoted(shown));
                return Err(self.wrong(reason));
            }
            if !replaceable.contains(&name) {
                self.add(name, shown, tensor)?;
            }
        }
        Ok(())
    }

    /// Constants that nodes hold.
    fn nodes(&mut self, model: &mut Model) -> Result<(), Error> {
        for node in &model.graph.nodes {
            if node.op != "Constant" || !is_onnx(&node.domain) || node.attributes.len() != 1 {
                continue;
            }
            let (Some((key, value)), &[Some(name)]) =
                (node.attributes.iter().next(), &node.outputs[..])
            else {
                continue;
            };
            use proto::Attribute as A;
            let of = |kind, dims, numbers| proto::Tensor {
                name: Some(name),
                dims,
                kind,
                data: Data::Numbers(numbers),
            };
            let tensor = match (&**key, value) {
                ("value", A::Tensor(tensor, _)) => tensor.clone(),
                ("value_int", A::Int(number)) => of(7, vec![], vec![*number]),
                ("value_ints", A::Ints(numbers)) => {
                    of(7, vec![numbers.len() as i64], numbers.clone())
                }
                ("value_float", A::Float(number)) => {
                    of(1, vec![], vec![i64::from(number.to_bits())])
                }
                _ => continue,
            };
            if self.by_name.contains_key(&name) {
                let reason = format!("two constants are named {}", quoted(model.names.get(name)));
                return Err(self.wrong(reason));
            }
            if self.add(name, model.names.get(name), &tensor)? {
                self.made.insert(name);
            }
        }
        Ok(())
    }

    /// Adds a tensor whose numbers can be read, and says whether they can.
    fn add(&mut self, name: Name, shown: &str, tensor: &proto::Tensor) -> Result<bool, Error> {
        let Some(dtype) = dtype(tensor.kind) else {
            return Ok(false);
        };
        let size = dtype.bits().map_or(0, |bits| bits as u64 / 8);
        let mut shape = Vec::with_capacity(tensor.dims.len());
        let mut bytes = Some(size);
        for &dim in &tensor.dims {
            let Ok(dim) = usize::try_from(dim) else {
                let reason = format!("{} has a dimension of {dim}", quoted(shown));
                return Err(self.wrong(reason));
            };
            shape.push(dim);
            bytes = bytes.and_then(|bytes| bytes.checked_mul(dim as u64));
        }
        let Some(bytes) = bytes else {
            let reason = format!("the shape {shape:?} of {} overflows", quoted(shown));
            return Err(self.wrong(reason));
        };
        let found = |found: u64| {
            self.wrong(format!(
                "{} has {found} bytes; its shape {shape:?} takes {bytes}",
                quoted(shown)
            ))
        };
        let place = match &tensor.data {
            Data::Unread => return Ok(false),
            Data::Absent if bytes > 0 => return Err(found(0)),
            Data::Absent => Place::InMemory(Arc::from([])),
            Data::InFile(range) if range.end - range.start != bytes => {
                return Err(found(range.end - range.start));
            }
            Data::InFile(range) => Place::InFile {
                file: 0,
                offset: range.start,
            },
            Data::Numbers(numbers) => {
                let size = size as usize;
                if (numbers.len() * size) as u64 != bytes {
                    return Err(found((numbers.len() * size) as u64));
                }
                let bytes: Vec<u8> = numbers
                    .iter()
                    .flat_map(|number| number.to_le_bytes().into_iter().take(size))
                    .collect();
                Place::InMemory(bytes.into())
            }
            Data::External {
                location,
                offset,
                length,
            } => {
                if length.is_some_and(|length| length != bytes) {
                    return Err(found(length.unwrap_or(0)));
                }
                let file = self.external_file(location)?;
                let (path, data) = &self.files[file];
                let there = data
                    .metadata()
                    .map_err(|e| Error::unreadable(path, e))?
                    .len();
                if offset.checked_add(bytes).is_none_or(|end| end > there) {
                    return Err(self.wrong(format!(
                        "its data file {} has {there} bytes, and {} takes {bytes} from position {offset} on; it may be cut short, or that of another model",
                        quoted(location),
                        quoted(shown)
                    )));
                }
                Place::InFile {
                    file,
                    offset: *offset,
                }
            }
        };
        self.by_name.insert(name, shown.to_owned());
        self.parts.push(Part {
            name: shown.to_owned(),
            dtype,
            shape,
            place,
        });
        Ok(true)
    }

    fn external_file(&mut self, location: &str) -> Result<usize, Error> {
        if let Some(number) = self.external.get(location) {
            return Ok(*number);
        }
        let outside = || {
            self.wrong(format!(
                "its data is at {}, outside the folder of the file",
                quoted(location)
            ))
        };
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        let relative = Path::new(location);
        if location.is_empty() || location.contains('\\') || !relative.components().all(plain) {
            return Err(outside());
        }
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let path = folder.join(relative);
        // Links inside the folder may lead to where the file itself leads, as in a cache of downloads.
        let real = path
            .canonicalize()
            .map_err(|e| Error::unreadable(&path, e))?;
        let file_itself = self.path.canonicalize().ok();
        let folders = [
            folder.canonicalize().ok(),
            file_itself.and_then(|f| f.parent().map(Path::to_owned)),
        ];
        if !folders
            .iter()
            .flatten()
            .any(|folder| real.starts_with(folder))
        {
            return Err(outside());
        }
        self.file_at(location, path)
    }

    fn file_at(&mut self, location: &str, path: PathBuf) -> Result<usize, Error> {
        let (file, _) = open::regular(&path)?;
        self.files.push((path, file));
        let number = self.files.len() - 1;
        self.external.insert(location.to_owned(), number);
        Ok(number)
    }
}

/// The element type of this number in `onnx.proto`, if its elements are whole bytes.
pub(super) fn dtype(kind: i64) -> Option<Dtype> {
    use safetensors::Dtype as D;
    Some(Dtype::Known(match kind {
        1 => D::F32,
        2 => D::U8,
        3 => D::I8,
        4 => D::U16,
        5 => D::I16,
        6 => D::I32,
        7 => D::I64,
        9 => D::BOOL,
        10 => D::F16,
        11 => D::F64,
        12 => D::U32,
        13 => D::U64,
        16 => D::BF16,
        _ => return None,
    }))
}

fn inputs(model: &Model) -> impl Iterator<Item = Name> {
    model
        .graph
        .fields
        .iter()
        .filter_map(|(part, _)| match part {
            Piece::Input(at) => Some(model.graph.values[*at].name),
            _ => None,
        })
}

fn outputs(model: &Model) -> impl Iterator<Item = Name> {
    model
        .graph
        .fields
        .iter()
        .filter_map(|(part, _)| match part {
            Piece::Output(at) => Some(model.graph.values[*at].name),
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
    fn new(model: &Model, constants: &HashMap<Name, Tensor>) -> Values {
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
    fn declare(&mut self, model: &Model, constants: &HashMap<Name, Tensor>) -> Result<(), String> {
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
