//! The archive as a graph and its tensors.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::alias::{self, Step, effect};
use super::call::{Call, Context, Input, Opaque};
use super::error::Error;
use super::json::{Members, Tagged, read};
use super::schema::{self, NodeText, StoredSpec, TensorMeta, Versioned, names};
use super::weights::{self, Stored};
use super::{computed, fills, ops, views};
use crate::fuse::METADATA_PREFIX;
use crate::graph::border::{Around, Fills};
use crate::graph::constants::Budget;
use crate::graph::model::{self, Dim, Graph, Node, Op, Value, ValueId};
use crate::tensor::bytes::Bytes;
use crate::tensor::zip::Archive;
use crate::tensor::{Checkpoint, Dtype, Part, Tensor, quoted};

/// The longest text of a graph or a configuration that is read. (A network of ten thousand nodes has 10 MB.)
const LONGEST_TEXT: u64 = 1 << 28;

/// The entry in which the version of repfuse stands. PyTorch gives what is below `extra/` to whoever asks for it.
pub(super) const VERSION: &str = "extra/repfuse.version";

/// A version has no more letters.
const LONGEST_VERSION: u64 = 64;

/// An exported program, opened.
#[derive(Debug)]
pub struct Pt2 {
    pub(super) graph: Graph,
    pub(super) checkpoint: Checkpoint,
    /// The element types of the values.
    pub(super) dtypes: HashMap<String, Dtype>,
    /// Constants that were computed of others when it was read, by the name of their value: the tensors of the file behind each.
    pub(super) computed: HashMap<String, Vec<Tensor>>,
    /// For each node of the graph, its number among the nodes of the file.
    pub(super) positions: Vec<usize>,
    /// The nodes of the file whose results nobody reads, by number. They are not in the graph.
    pub(super) dead: HashSet<usize>,
    /// Nodes of the file that are part of a later one in the graph: that one.
    pub(super) part_of: HashMap<usize, usize>,
    pub(super) texts: Texts,
    pub(super) entries: Vec<Entry>,
    /// The folder that every entry is in, with its slash.
    pub(super) root: String,
    /// The names of its state dict.
    state: Vec<String>,
    /// The names of what stands beside the state dict: buffers that it does not hold, and other constants.
    beside: Vec<String>,
    /// Tensors that are copied as they are, and why nothing can be read of them.
    unread: HashMap<String, String>,
}

/// The parts of the archive that are read as text.
#[derive(Debug)]
pub(super) struct Texts {
    /// The name of the model, as in `models/model.json`.
    pub(super) model: String,
    pub(super) program: String,
    /// The configurations of the weights and of the constants.
    pub(super) weights: String,
    pub(super) constants: String,
}

/// An entry of the archive.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name below the root folder.
    pub(super) name: String,
    /// Where its bytes lie in the file.
    pub(super) range: Range<u64>,
}

/// Whether a file is an archive with a program in it, and no other archive of PyTorch.
///
/// # Errors
/// When it cannot be read.
pub fn is_one(path: &Path) -> Result<bool, Error> {
    let (file, metadata) = crate::tensor::open::regular(path)?;
    let mut magic = [0; 4];
    if metadata.len() < 4 {
        return Ok(false);
    }
    crate::tensor::open::read_exact_at(&file, &mut magic, 0)
        .map_err(|e| crate::tensor::Error::unreadable(path, e))?;
    if magic != *crate::tensor::zip::MAGIC {
        return Ok(false);
    }
    let archive = Archive::open(&file, metadata.len());
    // An archive of torch.save has the one, and a program of any age one of the others.
    Ok(archive.is_ok_and(|archive| {
        !archive.has("data.pkl")
            && (archive.has_any("models/")
                || archive.has("serialized_exported_program.json")
                || archive.has_any("data/aotinductor/"))
    }))
}

impl Pt2 {
    /// Opens a program: its graph is read, of its weights where they lie.
    ///
    /// # Errors
    /// When it cannot be read, is not what PyTorch writes, or holds norms in training mode.
    pub fn open(path: impl AsRef<Path>) -> Result<Pt2, Error> {
        open(path.as_ref())
    }

    /// What it computes.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its weights, buffers and constants, by the names that the program gives them.
    pub fn constants(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The names of its state dict.
    pub fn state(&self) -> impl Iterator<Item = &str> {
        self.state.iter().map(String::as_str)
    }

    /// The names of everything that is stored: of its state dict, and of what stands beside it.
    pub(super) fn stored(&self) -> impl Iterator<Item = &str> {
        self.state().chain(self.beside.iter().map(String::as_str))
    }

    /// Whether every tensor of its state dict can be written to a file of weights.
    ///
    /// # Errors
    /// Names one that cannot.
    pub fn has_plain_weights(&self) -> Result<(), Error> {
        let why = self.state.iter().find_map(|name| self.unread.get(name));
        why.map_or(Ok(()), |why| {
            Err(Error::Format {
                path: self.path().to_owned(),
                reason: format!("{why}, so its weights alone cannot be written"),
            })
        })
    }

    /// The tensors of the file that a constant was computed of when the program was read; none for one that stands in the file.
    pub fn computed_of(&self, constant: &str) -> Option<&[Tensor]> {
        self.computed.get(constant).map(Vec::as_slice)
    }

    /// The size of the file in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an archive is never empty")]
    pub fn len(&self) -> u64 {
        self.checkpoint.file_len()
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }
}

fn open(path: &Path) -> Result<Pt2, Error> {
    let (file, metadata) = crate::tensor::open::regular(path)?;
    let wrong = |reason: String| Error::Format {
        path: path.to_owned(),
        reason: crate::tensor::plain(&reason),
    };
    let archive = Archive::open(&file, metadata.len()).map_err(wrong)?;
    let root = archive.root().to_owned();
    let entries = entries(&archive).map_err(wrong)?;
    drop(archive);
    let texts = texts(&file, &entries).map_err(wrong)?;
    check_version(path, &texts.program)?;
    let mut tensors = Tensors::default();
    tensors
        .add("data/weights/", &texts.weights, &entries)
        .map_err(wrong)?;
    tensors
        .add("data/constants/", &texts.constants, &entries)
        .map_err(wrong)?;
    let Tensors { parts, unread } = tensors;
    let metadata = version_of(&file, &entries).map_err(wrong)?;
    let names = |config: &str| -> Result<Vec<String>, Error> {
        let stored = weights::config(config).map_err(wrong)?.into_iter();
        Ok(stored.map(|(name, _)| name.into_owned()).collect())
    };
    let (state, beside) = (names(&texts.weights)?, names(&texts.constants)?);
    let checkpoint = Checkpoint::of_parts(vec![(path.to_owned(), file)], parts, metadata)?;
    let Built {
        graph,
        positions,
        dead,
        part_of,
        dtypes,
        computed,
    } = graph(path, &texts.program, &checkpoint, &unread)?;
    Ok(Pt2 {
        graph,
        checkpoint,
        dtypes,
        computed,
        positions,
        dead,
        part_of,
        texts,
        entries,
        root,
        state,
        beside,
        unread,
    })
}

/// The version of repfuse that wrote it, if one did: that decides what rounding allows.
fn version_of(file: &File, entries: &[Entry]) -> Result<Vec<(String, String)>, String> {
    let Some(entry) = entries.iter().find(|entry| entry.name == VERSION) else {
        return Ok(Vec::new());
    };
    let len = (entry.range.end - entry.range.start).min(LONGEST_VERSION);
    let text = Bytes::new(file, entry.range.start, entry.range.end).take(len)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(vec![(format!("{METADATA_PREFIX}version"), text)])
}

/// Whether the text of a graph is of the version that is understood.
fn check_version(path: &Path, program: &str) -> Result<(), Error> {
    let Versioned {
        schema_version: version,
        torch_version,
    } = serde_json::from_str(program).map_err(|e| invalid(path, &e.to_string()))?;
    match version.major == schema::MAJOR {
        true => Ok(()),
        false => Err(Error::Version {
            path: path.to_owned(),
            major: version.major,
            minor: version.minor,
            torch: torch_version,
            expected: schema::MAJOR,
        }),
    }
}

fn invalid(path: &Path, reason: &str) -> Error {
    Error::Format {
        path: path.to_owned(),
        reason: crate::tensor::plain(&format!("its graph is not valid: {reason}")),
    }
}

/// Every entry of the archive; all must be stored as they are.
fn entries(archive: &Archive<'_>) -> Result<Vec<Entry>, String> {
    let named = archive.entries()?.into_iter();
    named
        .map(|name| {
            Ok(Entry {
                name: name.to_owned(),
                range: archive.range(name)?,
            })
        })
        .collect()
}

/// The texts of the archive.
fn texts(file: &File, entries: &[Entry]) -> Result<Texts, String> {
    let find = |name: &str| entries.iter().find(|entry| entry.name == name);
    let text = |name: &str| {
        let entry = find(name).ok_or_else(|| format!("{} is missing in it", quoted(name)))?;
        let len = entry.range.end - entry.range.start;
        if len > LONGEST_TEXT {
            return Err(format!(
                "{} in it has more than {LONGEST_TEXT} bytes",
                quoted(name)
            ));
        }
        let bytes = Bytes::new(file, entry.range.start, entry.range.end).take(len)?;
        String::from_utf8(bytes).map_err(|_| format!("{} in it is not UTF-8", quoted(name)))
    };
    if let Some(order) = find("byteorder") {
        let order = text(&order.name)?;
        if order.trim() != "little" {
            return Err(format!(
                "its byte order is {}; expected little",
                quoted(&order)
            ));
        }
    }
    let model_of = |entry: &Entry| {
        let name = entry.name.strip_prefix("models/")?.strip_suffix(".json")?;
        (!name.contains('/')).then(|| name.to_owned())
    };
    let models: Vec<String> = entries.iter().filter_map(model_of).collect();
    let [model] = &models[..] else {
        return Err(match models.len() {
            0 if find("serialized_exported_program.json").is_some() => {
                "it is laid out as PyTorch 2.7 and earlier do; load it and save it again with PyTorch 2.9 or later".to_owned()
            }
            0 if entries.iter().any(|entry| entry.name.starts_with("data/aotinductor/")) => {
                "it is compiled (AOTInductor); fuse the program that it was compiled from".to_owned()
            }
            0 => "it has no `models/*.json`".to_owned(),
            n => format!("it holds {n} models; save each in a file of its own"),
        });
    };
    let weights = format!("data/weights/{model}_weights_config.json");
    if find(&weights).is_none() && find(&format!("data/weights/{model}.pt")).is_some() {
        return Err(
            "its weights are pickled; load it and save it again with PyTorch 2.9 or later"
                .to_owned(),
        );
    }
    let constants = text(&format!("data/constants/{model}_constants_config.json"))?;
    Ok(Texts {
        model: model.clone(),
        program: text(&format!("models/{model}.json"))?,
        weights: text(&weights)?,
        constants,
    })
}

/// The tensors of the archive by name.
#[derive(Default)]
struct Tensors {
    parts: Vec<Part>,
    unread: HashMap<String, String>,
}

impl Tensors {
    fn add(&mut self, folder: &str, config: &str, entries: &[Entry]) -> Result<(), String> {
        let ranges: HashMap<&str, &Range<u64>> = entries
            .iter()
            .filter_map(|entry| Some((entry.name.strip_prefix(folder)?, &entry.range)))
            .collect();
        let invalid = |e| format!("the configuration in {} is not valid: {e}", quoted(folder));
        for (name, payload) in weights::config(config).map_err(invalid)? {
            let range = ranges.get(&*payload.path_name.0).ok_or_else(|| {
                format!(
                    "{} lies in {}, which is missing",
                    quoted(&name),
                    quoted(&format!("{folder}{}", payload.path_name.0))
                )
            })?;
            match weights::stored(&name, &payload, range)? {
                Stored::Tensor(part) => self.parts.push(part),
                Stored::Unread(why) => {
                    self.unread.insert(name.into_owned(), why);
                }
            }
        }
        Ok(())
    }
}

/// What is read of the text of a graph.
struct Built {
    graph: Graph,
    /// For each node of the graph, its number among the nodes of the file.
    positions: Vec<usize>,
    /// Nodes of the file whose results nobody reads.
    dead: HashSet<usize>,
    /// Nodes of the file that are part of a later one.
    part_of: HashMap<usize, usize>,
    /// The element types of the values.
    dtypes: HashMap<String, Dtype>,
    /// Constants that are computed here, and of what.
    computed: HashMap<String, Vec<Tensor>>,
}

/// Puts the graph together.
fn graph(
    path: &Path,
    text: &str,
    checkpoint: &Checkpoint,
    unread: &HashMap<String, String>,
) -> Result<Built, Error> {
    let wrong = |reason: String| invalid(path, &reason);
    let program: schema::Program<'_> =
        serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let module = program.graph_module;
    let nodes: Vec<NodeText<'_>> = read(module.graph.nodes).map_err(|e| wrong(e.to_string()))?;
    let metas: Members<'_, TensorMeta<'_>> =
        read(module.graph.tensor_values).map_err(|e| wrong(e.to_string()))?;
    let mut context = Context {
        metas: metas
            .0
            .into_iter()
            .map(|(name, meta)| (name.into_owned(), meta))
            .collect(),
        ..Context::default()
    };
    let inputs: Vec<Tagged<'_>> = read(module.graph.inputs).map_err(|e| wrong(e.to_string()))?;
    let specs: Vec<Tagged<'_>> =
        read(module.signature.input_specs).map_err(|e| wrong(e.to_string()))?;
    if inputs.len() != specs.len() {
        return Err(wrong(format!(
            "it has {} inputs, and its signature describes {}",
            inputs.len(),
            specs.len()
        )));
    }
    // The names of all inputs of the graph: weights first, then what the user gives.
    let placeholders: Vec<String> = inputs.iter().flat_map(names).collect();
    let outputs: Vec<String> = module.graph.outputs.iter().flat_map(names).collect();
    let mut steps: Vec<Step> = nodes.iter().map(|node| step(node)).collect();
    let known: HashSet<&str> = placeholders.iter().map(String::as_str).collect();
    check_steps(&nodes, &steps, known).map_err(wrong)?;
    let in_place = fills::joined(&nodes, &mut steps, &outputs);
    let part_of: HashMap<usize, usize> = (in_place.iter())
        .flat_map(|(last, one)| one.nodes().map(|node| (node, *last)))
        .filter(|(node, last)| node != last)
        .collect();
    let changed = alias::changed(&steps, &placeholders.iter().cloned().collect(), &outputs);
    let stored = stored(specs, checkpoint, unread, &mut context).map_err(wrong)?;
    for name in stored.iter().filter(|name| changed.stored.contains(*name)) {
        context.constants.remove(name);
        let why = format!("{} is changed when the network runs", quoted(name));
        context.unread.insert(name.clone(), why);
    }
    check_evaluates(path, &nodes, &context)?;
    let mut builder = Builder {
        context,
        ..Builder::default()
    };
    for name in placeholders
        .into_iter()
        .filter(|name| !stored.contains(name))
    {
        builder.value(name);
    }
    builder.read = steps
        .iter()
        .flat_map(|step| step.reads.clone())
        .chain(outputs.clone())
        .collect();
    let all = nodes.iter().zip(&steps).enumerate();
    let is_whole = |i: &usize| changed.live[*i] && !part_of.contains_key(i);
    for (position, (node, step)) in all.filter(|(i, _)| is_whole(i)) {
        let is_stale = step
            .reads
            .iter()
            .chain(&step.writes)
            .any(|name| changed.stale.contains(name));
        match in_place.get(&position) {
            Some(one) => {
                let texts = (one, &nodes[..]);
                builder.filled(checkpoint, position, texts, step, is_stale);
            }
            None => builder.node(checkpoint, position, node, step, is_stale),
        }
    }
    std::mem::take(&mut builder.fills).settle(&mut builder.nodes, checkpoint);
    for value in &mut builder.values {
        value.changes_later = changed.later.contains(&value.name);
        value.layout = builder.context.strides(&value.name);
    }
    for name in &outputs {
        if let Some(id) = builder.ids.get(name) {
            builder.values[id.0].is_output = true;
        } else if !stored.contains(name) && !builder.context.constants.contains_key(name) {
            return Err(wrong(format!(
                "it gives {}, which nothing computes",
                quoted(name)
            )));
        }
    }
    let whole = |i: usize| part_of.get(&i).copied().unwrap_or(i);
    let dead = (0..nodes.len()).filter(|i| !changed.live[whole(*i)]);
    builder
        .finish(dead.collect(), part_of)
        .map_err(|source| Error::Graph {
            path: path.to_owned(),
            source,
        })
}

/// Whether every node, also one whose results nobody reads, reads what is there and computes something new. `known` are the inputs.
fn check_steps<'s>(
    nodes: &[NodeText<'_>],
    steps: &'s [Step],
    known: HashSet<&'s str>,
) -> Result<(), String> {
    let mut there = known.clone();
    for (node, step) in nodes.iter().zip(steps) {
        if let Some(name) = step.reads.iter().find(|name| !there.contains(&***name)) {
            return Err(format!(
                "node {} reads {}, which is not there",
                quoted(node.shown()),
                quoted(name)
            ));
        }
        if let Some(name) = step.writes.iter().find(|name| known.contains(&***name)) {
            return Err(format!(
                "node {} computes {}, which is an input or a weight",
                quoted(node.shown()),
                quoted(name)
            ));
        }
        there.extend(step.writes.iter().map(String::as_str));
    }
    Ok(())
}

fn step(node: &NodeText<'_>) -> Step {
    Step {
        reads: node
            .inputs
            .iter()
            .flat_map(|input| names(&input.arg))
            .collect(),
        writes: node.outputs.iter().flat_map(names).collect(),
        effect: effect(node),
    }
}

/// The placeholders that stand for tensors of the file.
fn stored(
    specs: Vec<Tagged<'_>>,
    checkpoint: &Checkpoint,
    unread: &HashMap<String, String>,
    context: &mut Context<'_>,
) -> Result<HashSet<String>, String> {
    let mut stored = HashSet::new();
    for spec in specs {
        match &*spec.tag {
            "parameter" | "buffer" | "tensor_constant" => {}
            "user_input" | "constant_input" | "custom_obj" | "token" => continue,
            other => {
                return Err(format!(
                    "its signature has an input of the kind {}, which is not known",
                    quoted(other)
                ));
            }
        }
        let spec: StoredSpec<'_> = read(spec.value).map_err(|e| e.to_string())?;
        let (value, name) = (spec.arg.name.0.into_owned(), &*spec.name.0);
        match (checkpoint.get(name), unread.get(name)) {
            (Some(tensor), _) => {
                check(&value, tensor, context)?;
                context.constants.insert(value.clone(), tensor.clone());
            }
            (None, Some(why)) => {
                context.unread.insert(value.clone(), why.clone());
            }
            (None, None) => {
                return Err(format!(
                    "{} stands for {}, which is not among the weights",
                    quoted(&value),
                    quoted(name)
                ));
            }
        }
        stored.insert(value);
    }
    Ok(stored)
}

/// Whether the graph says the same of a tensor as the weights do.
fn check(value: &str, tensor: &Tensor, context: &Context<'_>) -> Result<(), String> {
    let (Some(shape), Some(dtype)) = (context.shape(value), context.dtype(value)) else {
        return Err(format!("it says nothing of the shape of {}", quoted(value)));
    };
    let same = shape.iter().eq(tensor
        .shape()
        .iter()
        .map(|n| Dim::Known(*n))
        .collect::<Vec<_>>()
        .iter());
    match same && dtype == *tensor.dtype() {
        true => Ok(()),
        false => Err(format!(
            "it says that {tensor} is {dtype} [{}]; the weights say {} {:?}",
            shape.iter().map(shown).collect::<Vec<_>>().join(", "),
            tensor.dtype(),
            tensor.shape()
        )),
    }
}

fn shown(dim: &Dim) -> String {
    match dim {
        Dim::Known(n) => n.to_string(),
        Dim::Named(name) => name.to_string(),
        Dim::Any => "?".to_owned(),
    }
}

/// Whether the program was exported in evaluation mode.
fn check_evaluates(
    path: &Path,
    nodes: &[NodeText<'_>],
    context: &Context<'_>,
) -> Result<(), Error> {
    let Some(node) = nodes.iter().find(|node| in_training(node, context)) else {
        return Ok(());
    };
    let node = node
        .module()
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| node.shown().to_owned());
    Err(Error::Training {
        path: path.to_owned(),
        node: quoted(&node),
    })
}

/// Whether a node is a batch norm that has running statistics and does not use them.
fn in_training(node: &NodeText<'_>, context: &Context<'_>) -> bool {
    let trains = match node.aten() {
        Some("batch_norm" | "native_batch_norm" | "cudnn_batch_norm" | "miopen_batch_norm") => {
            let training = node.inputs.iter().find(|input| input.name.0 == "training");
            training.is_some_and(|input| read::<bool>(input.arg.value).unwrap_or(false))
        }
        Some(
            "_native_batch_norm_legit"
            | "_native_batch_norm_legit_functional"
            | "_batch_norm_with_update"
            | "_batch_norm_with_update_functional",
        ) => true,
        _ => false,
    };
    trains && {
        let call = Call { node, context };
        // Statistics that are changed are no constants.
        !matches!(call.input("running_mean"), Ok(super::call::Input::Absent))
    }
}

/// The graph while it grows.
#[derive(Default)]
struct Builder<'a> {
    context: Context<'a>,
    values: Vec<Value>,
    nodes: Vec<Node>,
    positions: Vec<usize>,
    ids: HashMap<String, ValueId>,
    /// Every name that is read.
    read: HashSet<String>,
    /// Constants that are computed when the program is read, and the tensors of the file that they are computed of.
    computed: HashMap<String, Vec<Tensor>>,
    budget: Budget,
    /// Values that are a constant in a larger shape.
    spread: HashMap<String, Tensor>,
    fills: Fills,
}

impl Builder<'_> {
    fn finish(
        self,
        dead: HashSet<usize>,
        part_of: HashMap<usize, usize>,
    ) -> Result<Built, model::Error> {
        let graph = Graph::new(self.values, self.nodes)?;
        let dtypes = graph
            .values()
            .iter()
            .filter_map(|value| Some((value.name.clone(), self.context.dtype(&value.name)?)));
        Ok(Built {
            dtypes: dtypes.collect(),
            graph,
            positions: self.positions,
            dead,
            part_of,
            computed: self.computed,
        })
    }

    fn value(&mut self, name: String) -> ValueId {
        let id = ValueId(self.values.len());
        self.values
            .push(Value::new(name.clone(), self.context.shape(&name)));
        self.ids.insert(name, id);
        id
    }

    /// The statistics that a norm gives beside its result are empty in evaluation mode.
    fn without_statistics<'w>(&self, op: Op, writes: &'w [String]) -> (Op, &'w [String]) {
        match (op, writes) {
            (Op::Norm(norm), [first, others @ ..])
                if !others.iter().any(|name| self.read.contains(name)) =>
            {
                (Op::Norm(norm), std::slice::from_ref(first))
            }
            (Op::Norm(_), [_, _, ..]) => (
                Op::Opaque(Some("its statistics are read".to_owned())),
                writes,
            ),
            (op, writes) => (op, writes),
        }
    }

    /// The tensors of the file that some constants are computed of.
    fn stored(&self, of: &[Tensor]) -> Vec<Tensor> {
        let parts = of.iter().flat_map(|tensor| {
            let made = self.computed.get(tensor.name());
            made.map_or_else(|| vec![tensor.clone()], Vec::clone)
        });
        parts.collect()
    }

    fn node(
        &mut self,
        checkpoint: &Checkpoint,
        position: usize,
        node: &NodeText<'_>,
        step: &Step,
        is_stale: bool,
    ) {
        let call = Call {
            node,
            context: &self.context,
        };
        if let (Some(tensor), [name]) = (fills::spread(&call, &self.spread), &step.writes[..])
            && !is_stale
        {
            self.spread.insert(name.clone(), tensor);
        }
        let mut constant = || match views::of_constant(&call) {
            Some(tensor) => Some((tensor, Vec::new())),
            None => computed::computed(&call, checkpoint, &mut self.budget),
        };
        if let [name] = &step.writes[..]
            && !is_stale
            && let Some((tensor, of)) = constant()
        {
            if !of.is_empty() && !tensor.is_turned() {
                self.computed.insert(name.clone(), self.stored(&of));
            }
            self.context.constants.insert(name.clone(), tensor);
            return;
        }
        let (op, reads) = match ops::operator(&call) {
            _ if is_stale => (self.stale(step), None),
            Ok((op, reads)) => (op, Some(reads)),
            Err(why) => (Op::Opaque(why), None),
        };
        let reads = reads.unwrap_or_else(|| step.reads.clone());
        let inputs = reads
            .iter()
            .filter_map(|name| self.ids.get(name).copied())
            .collect();
        let (op, writes) = self.without_statistics(op, &step.writes);
        let outputs = writes.iter().map(|name| self.value(name.clone())).collect();
        self.nodes.push(Node {
            name: node.shown().to_owned(),
            module: node.module(),
            op,
            inputs,
            outputs,
        });
        self.positions.push(position);
        let at = self.nodes.len() - 1;
        if !is_stale && let Err(why) = self.follow(checkpoint, node, at) {
            self.nodes[at].op = Op::Opaque(why);
        }
    }

    /// Follows what is made of a padding.
    fn follow(
        &mut self,
        checkpoint: &Checkpoint,
        text: &NodeText<'_>,
        at: usize,
    ) -> Result<(), Opaque> {
        let node = &self.nodes[at];
        let (Some(&from), &[to]) = (node.inputs.first(), &node.outputs[..]) else {
            return Ok(());
        };
        match &node.op {
            Op::Pad(pads) => self.fills.padded(from, pads, to),
            Op::Identity => self.fills.turned(from, None, to, at),
            Op::Transpose(order) => self.fills.turned(from, Some(order), to, at),
            Op::Opaque(_) if text.aten() == Some("slice_scatter") => {
                let call = Call {
                    node: text,
                    context: &self.context,
                };
                let rows = fills::rows(&call, &self.values[from.0].name)?;
                let with = call.input("src")?;
                let with = self.around(checkpoint, with, from);
                self.fills.fill(from, rows, with, to, at)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The numbers that a padded value is filled with.
    fn around(&mut self, checkpoint: &Checkpoint, with: Input, of: ValueId) -> Option<Around> {
        let tensor = match with {
            Input::Constant(tensor) => tensor,
            Input::Value(name) => self.spread.get(&name)?.clone(),
            Input::Absent => return None,
        };
        // Another type would round it.
        let dtype = self.context.dtype(&self.values[of.0].name)?;
        let axes = self.fills.axes(of).filter(|_| dtype == *tensor.dtype())?;
        Around::read(checkpoint, &tensor, axes, &mut self.budget)
    }

    /// A padding with what is copied into it in place.
    fn filled(
        &mut self,
        checkpoint: &Checkpoint,
        position: usize,
        (one, nodes): (&fills::InPlace, &[NodeText<'_>]),
        step: &Step,
        is_stale: bool,
    ) {
        let pad = &nodes[one.pad];
        let call = Call {
            node: pad,
            context: &self.context,
        };
        let (op, pads) = match ops::operator(&call) {
            _ if is_stale => (self.stale(step), None),
            Ok((Op::Pad(pads), _)) => (Op::Opaque(None), Some(pads)),
            Ok(_) => (Op::Opaque(None), None),
            Err(why) => (Op::Opaque(why), None),
        };
        let inputs: Vec<ValueId> = (step.reads.iter())
            .filter_map(|name| self.ids.get(name).copied())
            .collect();
        let outputs = step.writes.iter().map(|name| self.value(name.clone()));
        let outputs: Vec<ValueId> = outputs.collect();
        let padded = (inputs.first().copied(), pads, outputs.first().copied());
        self.nodes.push(Node {
            name: pad.shown().to_owned(),
            module: pad.module(),
            op,
            inputs,
            outputs,
        });
        self.positions.push(position);
        let (Some(of), Some(pads), Some(to)) = padded else {
            return;
        };
        self.fills.padded(of, &pads, to);
        for fill in &one.fills {
            if let Err(why) = self.fill(checkpoint, fill, nodes, to) {
                if let Some(node) = self.nodes.last_mut() {
                    node.op = Op::Opaque(why);
                }
                return;
            }
        }
    }

    /// What is copied into a view of a padding.
    fn fill(
        &mut self,
        checkpoint: &Checkpoint,
        fill: &fills::Fill,
        nodes: &[NodeText<'_>],
        of: ValueId,
    ) -> Result<(), Opaque> {
        let call = |node: usize| Call {
            node: &nodes[node],
            context: &self.context,
        };
        let name = &self.values[of.0].name;
        let mut rows = None;
        for view in fill.views.iter().map(|view| call(*view)) {
            if fills::is_whole(&view)? {
                continue;
            }
            // Part of a part is no side.
            rows = match rows {
                None => Some(fills::rows(&view, name)?),
                Some((axis, _)) => Some((axis, None)),
            };
        }
        let rows = rows.unwrap_or((0, None));
        let with = call(fill.copy).input("src")?;
        let with = self.around(checkpoint, with, of);
        let at = self.nodes.len() - 1;
        Ok(self.fills.fill(of, rows, with, of, at)?)
    }

    /// A node whose numbers are changed in place where they must not be.
    fn stale(&self, step: &Step) -> Op {
        let weight = (step.reads.iter()).find_map(|name| self.context.unread.get(name));
        let again = "what it reads or computes is changed in place and read again";
        Op::Opaque(Some(weight.map_or(again, String::as_str).to_owned()))
    }
}
