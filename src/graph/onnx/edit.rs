//! What becomes of every field of an ONNX file when regions of its graph are folded.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::encode::{Message, conv_attributes, int, ints, kind, list, node};
use super::open::Onnx;
use super::proto::{self, Data, Name, Part};
use crate::graph::model::ValueId;
use crate::graph::plan::{self, Folding, Left, tensor_of};
use crate::graph::region::{Behind, Dialect, Regions, Walk};
use crate::plan::{Options, Plan, PlannedConv, copy, stored_type, within};
use crate::tensor::Float;

/// A plan for an ONNX file, and the file that it makes.
#[derive(Debug)]
pub struct Edit {
    /// The blocks, and the tensors that are left: what a file of weights alone would hold.
    pub plan: Plan,
    /// Which nodes are folded.
    pub regions: Regions,
    /// Which others nearly could be.
    pub left: Vec<Left>,
    /// The fields of the new graph, in their order.
    pub(super) graph: Vec<(u32, Piece)>,
}

/// A field of the new graph.
#[derive(Debug)]
pub(super) enum Piece {
    /// A field of the old one, byte for byte.
    Kept(Range<u64>),
    /// A new one: its payload.
    New(Message),
    /// A node of the old one that reads other values than before: its field, and its new inputs.
    Rewired(Range<u64>, Vec<String>),
    /// The weight of the conv of this block, or its bias.
    Fused { block: usize, is_bias: bool },
    /// An initializer whose numbers are in another file: which one of the old graph's.
    Moved(usize),
}

/// Names after a block's.
const PRODUCT: &str = "product";
const CAST: &str = "cast";
const TURNED: &str = "turned";
const ROWS: &str = "rows";
const SHAPE: &str = "shape";
const STRAIGHT: &str = "straight";

/// The versions of the operators from which on a `Gemm` may do without what it adds, and a `Cast` knows bf16.
const ADDS_NOTHING: i64 = 11;
const CASTS_BF16: i64 = 13;

/// Whether a fused conv is stored in another type than the network computes in.
fn is_cast(fused: &PlannedConv) -> bool {
    stored_type(fused.expr.root()).is_ok_and(|computed| computed != fused.dtype)
}

/// What its operators can do.
const DIALECT: Dialect = Dialect {
    uneven_pads: true,
    linear_bias: false,
    goes_behind: true,
};

/// Plans what to fold.
///
/// # Errors
/// When the user wants none of what could be folded, or a glob is none.
pub fn edit(onnx: &Onnx, options: &Options, even_if_dearer: bool) -> Result<Edit, plan::Error> {
    let mut kept = None;
    let Folding {
        regions,
        mut blocks,
        skipped,
    } = plan::fold(
        &onnx.graph,
        DIALECT,
        options,
        even_if_dearer,
        &mut |regions| {
            let found = Kept::new(onnx, regions);
            let names = found.names(onnx);
            kept = Some(found);
            names
        },
    )?;
    let kept = kept.unwrap_or_else(|| Kept::new(onnx, &regions));
    let version = onnx.model.opset.unwrap_or_default();
    for fused in blocks.iter().flat_map(|block| &block.fused) {
        let casts = is_cast(fused) && fused.dtype == Float::Bf16;
        if casts && version < CASTS_BF16 {
            return Err(plan::Error::Block {
                block: fused.module.clone(),
                message: format!(
                    "a weight in {} is cast back when the network runs, which needs version {CASTS_BF16} of the operators of ONNX; the model has version {version}",
                    fused.dtype
                ),
            });
        }
    }
    plan::of_parts(&mut blocks, &onnx.computed);
    let mut outputs: Vec<_> = (onnx.model.graph.tensors.iter())
        .filter(|tensor| tensor.name.is_some_and(|name| kept.tensors.contains(&name)))
        .filter_map(|tensor| onnx.constants().get(onnx.model.names.get(tensor.name?)))
        .map(|tensor| copy(tensor, tensor.name().to_owned()))
        .collect();
    for (b, fused) in blocks.iter().map(|block| &block.fused[0]).enumerate() {
        outputs.extend(fused.outputs([b, 0]));
    }
    let left = plan::left(&onnx.graph, &regions);
    let plan = Plan {
        skipped,
        outputs,
        ..plan::of_blocks(blocks)
    };
    let graph = pieces(onnx, &plan, &regions, &kept);
    Ok(Edit {
        left,
        plan,
        regions,
        graph,
    })
}

/// What a graph gives.
fn outputs(graph: &proto::Graph) -> HashSet<Name> {
    let mut outputs = HashSet::new();
    for (part, _) in &graph.fields {
        if let Part::Output(at) = part {
            outputs.insert(graph.values[*at].name);
        }
    }
    outputs
}

/// Everything that a node reads, subgraphs included.
fn everything_read(node: &proto::Node) -> impl Iterator<Item = Name> {
    node.inputs.iter().flatten().chain(&node.captured).copied()
}

/// What of the old graph is still there.
struct Kept {
    nodes: Vec<bool>,
    tensors: HashSet<Name>,
    /// Names that are gone.
    gone: HashSet<Name>,
}

impl Kept {
    fn new(onnx: &Onnx, regions: &Regions) -> Kept {
        let graph = &onnx.model.graph;
        let outputs = outputs(graph);
        let bypassed = bypassed(onnx, regions);
        // What nothing read from the start stays, whatever it is for.
        let read_before: HashSet<Name> = graph
            .nodes
            .iter()
            .flat_map(everything_read)
            .chain(outputs.iter().copied())
            .collect();
        let mut replaced: HashMap<usize, Name> = HashMap::new();
        for region in &regions.folded {
            if let Some(producer) = onnx.graph.value(region.value).producer() {
                replaced.insert(producer.0, onnx.value_names[region.source.0]);
            }
        }
        let mut read = outputs;
        let mut gone = HashSet::new();
        let mut nodes = vec![false; graph.nodes.len()];
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            if let Some(source) = replaced.get(&i) {
                read.insert(*source);
                continue;
            }
            let outputs = || node.outputs.iter().flatten();
            let makes_constants = outputs().all(|name| onnx.made.contains(name));
            nodes[i] = match makes_constants {
                true => {
                    let is_read = outputs().any(|name| read.contains(name));
                    let was_read = outputs().any(|name| read_before.contains(name));
                    is_read || (!was_read && outputs().next().is_some())
                }
                false => regions.stays[i],
            };
            match nodes[i] {
                true => {
                    let instead = |name: Name| bypassed.get(&name).copied().unwrap_or(name);
                    read.extend(everything_read(node).map(instead));
                }
                false => gone.extend(node.outputs.iter().flatten()),
            }
        }
        let mut tensors = HashSet::new();
        for name in graph.tensors.iter().filter_map(|tensor| tensor.name) {
            match read.contains(&name) || !read_before.contains(&name) || onnx.model.trains {
                true => tensors.insert(name),
                false => gone.insert(name),
            };
        }
        Kept {
            nodes,
            tensors,
            gone,
        }
    }

    /// The names that are still there.
    fn names(&self, onnx: &Onnx) -> HashSet<String> {
        let names = &onnx.model.names;
        let all = (0..names.len() as Name).filter(|name| !self.gone.contains(name));
        all.map(|name| names.get(name).to_string()).collect()
    }
}

/// Names that nothing computes any more, and what nodes that stay read instead.
fn bypassed(onnx: &Onnx, regions: &Regions) -> HashMap<Name, Name> {
    let named = |id: &ValueId| onnx.value_names[id.0];
    let pairs = regions.bypassed.iter();
    pairs
        .map(|(gone, instead)| (named(gone), named(instead)))
        .collect()
}

fn pieces(onnx: &Onnx, plan: &Plan, regions: &Regions, kept: &Kept) -> Vec<(u32, Piece)> {
    let graph = &onnx.model.graph;
    let mut ends: HashMap<usize, usize> = HashMap::new();
    for (block, region) in regions.folded.iter().enumerate() {
        if let Some(producer) = onnx.graph.value(region.value).producer() {
            ends.insert(producer.0, block);
        }
    }
    let bypassed = bypassed(onnx, regions);
    let mut pieces = Vec::new();
    for (part, whole) in &graph.fields {
        let keep = Piece::Kept(whole.clone());
        let there = |at: &usize| !kept.gone.contains(&graph.values[*at].name);
        match part {
            Part::Node(i) => match ends.get(i) {
                Some(block) => {
                    let new = new_nodes(onnx, plan, regions, *block);
                    pieces.extend(new.into_iter().map(|node| (1, Piece::New(node))));
                }
                None if kept.nodes[*i] => {
                    let inputs = rewired(onnx, &graph.nodes[*i], &bypassed);
                    let piece = inputs.map_or(keep, |inputs| Piece::Rewired(whole.clone(), inputs));
                    pieces.push((1, piece));
                }
                None => {}
            },
            Part::Tensor(i) => {
                let tensor = &graph.tensors[*i];
                if tensor.name.is_some_and(|name| kept.tensors.contains(&name)) {
                    let moved = matches!(tensor.data, Data::External { .. });
                    pieces.push((5, if moved { Piece::Moved(*i) } else { keep }));
                }
            }
            Part::Input(at) if there(at) => pieces.push((11, keep)),
            Part::Output(_) => pieces.push((12, keep)),
            Part::ValueInfo(at) if there(at) => pieces.push((13, keep)),
            Part::Input(_) | Part::ValueInfo(_) => {}
            Part::Other(number) => pieces.push((*number, keep)),
        }
    }
    for (block, of) in plan.blocks.iter().enumerate() {
        let fused = &of.fused[0];
        for is_bias in [false, true].into_iter().take(1 + usize::from(fused.bias)) {
            if onnx.model.ir_version < 4 {
                // Initializers had to be inputs, too.
                pieces.push((11, Piece::New(input_of(fused, is_bias))));
            }
            pieces.push((5, Piece::Fused { block, is_bias }));
        }
    }
    pieces
}

/// The inputs of a node that stays, where they are others than before.
fn rewired(onnx: &Onnx, node: &proto::Node, bypassed: &HashMap<Name, Name>) -> Option<Vec<String>> {
    let mut read = node.inputs.iter().flatten();
    if !read.any(|name| bypassed.contains_key(name)) {
        return None;
    }
    let name_of = |name: &Option<Name>| {
        let name = name.map(|name| bypassed.get(&name).copied().unwrap_or(name));
        name.map_or(String::new(), |name| onnx.model.names.get(name).to_string())
    };
    Some(node.inputs.iter().map(name_of).collect())
}

fn input_of(fused: &PlannedConv, is_bias: bool) -> Message {
    let (name, shape) = tensor_of(fused, is_bias);
    let mut dims = Message::default();
    for dim in shape {
        let mut one = Message::default();
        one.int(1, dim as i64);
        dims.message(1, &one);
    }
    let mut tensor = Message::default();
    tensor.int(1, kind(fused.dtype));
    tensor.message(2, &dims);
    let mut of_type = Message::default();
    of_type.message(1, &tensor);
    let mut value = Message::default();
    value.text(1, &name);
    value.message(2, &of_type);
    value
}

/// The nodes that a region becomes.
fn new_nodes(onnx: &Onnx, plan: &Plan, regions: &Regions, block: usize) -> Vec<Message> {
    let (region, fused) = (&regions.folded[block], &plan.blocks[block].fused[0]);
    let (g, module) = (fused.geometry(), &fused.module);
    let name_of = |value: ValueId| &*onnx.graph.value(value).name;
    let (source, value) = (name_of(region.source), name_of(region.value));
    let mut nodes = Vec::new();
    let computed: Float = stored_type(fused.expr.root()).unwrap_or(fused.dtype);
    let mut operand = |is_bias: bool| {
        let (name, _) = tensor_of(fused, is_bias);
        if fused.dtype == computed {
            return name;
        }
        // Stored in another type than the network computes in.
        let cast = format!("{name}.{CAST}");
        nodes.push(node(
            &cast,
            "Cast",
            &[&name],
            &cast,
            &[int("to", kind(computed))],
        ));
        cast
    };
    let weight = operand(false);
    let bias = fused.bias.then(|| operand(true));
    let before = match &region.behind {
        None => value.to_owned(),
        Some(Behind::Reshape(_)) => within(module, ROWS),
        Some(Behind::Transpose(_)) => within(module, STRAIGHT),
    };
    match &region.walk {
        Walk::Conv(_) | Walk::Transposed(..) => {
            let inputs = [source, &weight].into_iter().chain(bias.as_deref());
            let (op, kernel) = (operator(&region.walk), &g.weight_shape()[2..]);
            nodes.push(node(
                &within(module, op),
                op,
                &inputs.collect::<Vec<_>>(),
                &before,
                &conv_attributes(&region.walk, kernel, g.groups()),
            ));
        }
        Walk::Linear => {
            let is_matrix = onnx.graph.value(region.source).shape.as_ref().map(Vec::len) == Some(2);
            let layer = LinearLayer {
                module,
                source,
                weight: &weight,
                bias: bias.as_deref(),
                is_matrix,
                in_first: g.transposed(),
                adds_nothing: onnx.model.opset >= Some(ADDS_NOTHING),
            };
            layer.push(&before, &mut nodes);
        }
    }
    if let Some(behind) = &region.behind {
        push_behind(behind, module, [&before, value], &mut nodes);
    }
    nodes
}

/// The nodes that give the output of an operator the axes of the value.
fn push_behind(
    behind: &Behind,
    module: &str,
    [output, value]: [&str; 2],
    nodes: &mut Vec<Message>,
) {
    match behind {
        Behind::Reshape(shape) => {
            let [to, name] = [SHAPE, "Reshape"].map(|end| within(module, end));
            nodes.push(node(&to, "Constant", &[], &to, &[list("value", shape)]));
            nodes.push(node(&name, "Reshape", &[output, &to], value, &[]));
        }
        Behind::Transpose(order) => {
            let name = within(module, "Transpose");
            let order = ints("perm", order.iter().copied());
            nodes.push(node(&name, "Transpose", &[output], value, &[order]));
        }
    }
}

/// A linear layer that is to be written.
struct LinearLayer<'a> {
    module: &'a str,
    source: &'a str,
    weight: &'a str,
    bias: Option<&'a str>,
    /// Whether its source has two axes.
    is_matrix: bool,
    /// Whether its weight is `[in, out]`.
    in_first: bool,
    /// Whether a `Gemm` may do without a bias.
    adds_nothing: bool,
}

impl LinearLayer<'_> {
    /// The nodes that compute it: a `Gemm` where there is one, else a `MatMul` and an `Add`.
    fn push(&self, output: &str, nodes: &mut Vec<Message>) {
        let &LinearLayer { module, source, .. } = self;
        let is_product = self.bias.is_none() && (self.in_first || !self.adds_nothing);
        if self.is_matrix && !is_product {
            let inputs: Vec<&str> = [source, self.weight].into_iter().chain(self.bias).collect();
            let turned = int("transB", i64::from(!self.in_first));
            let name = within(module, "Gemm");
            nodes.push(node(&name, "Gemm", &inputs, output, &[turned]));
            return;
        }
        let turned = within(module, TURNED);
        let mut weight = self.weight;
        if !self.in_first {
            // A product takes its matrix with the inputs first.
            let order = ints("perm", [1, 0]);
            nodes.push(node(&turned, "Transpose", &[weight], &turned, &[order]));
            weight = &turned;
        }
        let name = within(module, "MatMul");
        let Some(bias) = self.bias else {
            nodes.push(node(&name, "MatMul", &[source, weight], output, &[]));
            return;
        };
        let product = within(module, PRODUCT);
        nodes.push(node(&name, "MatMul", &[source, weight], &product, &[]));
        let sum = within(module, "Add");
        nodes.push(node(&sum, "Add", &[&product, bias], output, &[]));
    }
}

fn operator(walk: &Walk) -> &'static str {
    match walk {
        Walk::Conv(_) => "Conv",
        Walk::Transposed(..) => "ConvTranspose",
        Walk::Linear => "Gemm",
    }
}
