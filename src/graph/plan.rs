//! From regions to blocks: what each is called, and what it is stored as.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::model::{Graph, NodeId, Op};
use super::region::{Dialect, Region, Regions};
use super::sink::regions;
use crate::plan::select::Select;
use crate::plan::{
    Block, EpsSource, Options, Plan, PlannedConv, WeightOrBias, stored_type, within,
};
use crate::recipe;
use crate::tensor::Tensor;

/// What of a graph is folded.
#[derive(Debug)]
pub struct Folding {
    /// The regions, one for each block.
    pub regions: Regions,
    /// What each becomes; one conv in each.
    pub blocks: Vec<Block>,
    /// The names of the blocks that are left as they are, by the user's wish.
    pub skipped: Vec<String>,
}

/// A graph that cannot be folded as the user wishes.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("none of the {blocks} blocks is selected")]
    NoneSelected { blocks: usize },
    #[error(transparent)]
    Options(#[from] recipe::Error),
    #[error("block {block}: {message}")]
    Block { block: String, message: String },
}

impl Error {
    /// Whether the file is all right, and the answer is that nothing is left to do.
    pub fn is_nothing_to_fuse(&self) -> bool {
        matches!(self, Error::NoneSelected { .. })
    }
}

/// A node that stays although it nearly could be folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name, or that of what it computes.
    pub node: String,
    /// What stopped it.
    pub why: String,
}

/// What stays, by name.
pub fn left(graph: &Graph, regions: &Regions) -> Vec<Left> {
    let one = |(id, why): &(NodeId, String)| {
        let node = graph.node(*id);
        let output = node.outputs.first().map(|id| &*graph.value(*id).name);
        let name = Some(&*node.name).filter(|name| !name.is_empty()).or(output);
        Left {
            node: name.map_or_else(|| format!("node {}", id.0), str::to_owned),
            why: why.clone(),
        }
    };
    regions.left.iter().map(one).collect()
}

/// Chooses what to fold. `taken` says which names the file will still have; `bytes` are of the constants.
///
/// # Errors
/// When the user wants none of what could be folded, or a glob is none or names no block.
pub fn fold(
    graph: &Graph,
    dialect: Dialect,
    options: &Options,
    even_if_dearer: bool,
    kept_names: &mut dyn FnMut(&Regions) -> HashSet<String>,
) -> Result<Folding, Error> {
    let select = Select::new(&options.only, &options.skip)?;
    let mut skipped: BTreeMap<String, ()> = BTreeMap::new();
    let mut frozen: HashSet<NodeId> = HashSet::new();
    let mut takes = |region: &Region| {
        if region.nodes.iter().any(|node| frozen.contains(node)) {
            return false;
        }
        let name = called(base_name(graph, region));
        let takes = select.takes(&name);
        if !takes {
            frozen.extend(&region.nodes);
            skipped.insert(name, ());
        }
        takes
    };
    let regions = regions(graph, dialect, even_if_dearer, &mut takes);
    if regions.folded.is_empty() && !skipped.is_empty() {
        return Err(Error::NoneSelected {
            blocks: skipped.len(),
        });
    }
    select.expect_used()?;
    let mut taken = kept_names(&regions);
    let mut blocks = Vec::with_capacity(regions.folded.len());
    for region in &regions.folded {
        blocks.push(block(graph, region, options, &mut taken)?);
    }
    Ok(Folding {
        regions,
        blocks,
        skipped: skipped.into_keys().collect(),
    })
}

/// Blocks that are made of what other tensors are computed to, as blocks of these.
pub(super) fn of_parts(blocks: &mut [Block], computed: &HashMap<String, Vec<Tensor>>) {
    for block in blocks {
        let of = |tensor: &Tensor| match computed.get(tensor.name()) {
            Some(parts) => parts.clone(),
            None => vec![tensor.clone()],
        };
        block.consumed = block.consumed.iter().flat_map(of).collect();
        block.consumed.sort_by(|a, b| a.name().cmp(b.name()));
        block.consumed.dedup_by(|a, b| a.name() == b.name());
    }
}

fn block(
    graph: &Graph,
    region: &Region,
    options: &Options,
    taken: &mut HashSet<String>,
) -> Result<Block, Error> {
    let module = free_name(base_name(graph, region), taken);
    let name = called(module.clone());
    let expr = region.expr.root();
    let stored = stored_type(expr).map_err(|message| Error::Block {
        block: name.clone(),
        message,
    })?;
    let mut consumed: Vec<Tensor> = expr.leaves().into_iter().cloned().collect();
    consumed.sort_by(|a, b| a.name().cmp(b.name()));
    consumed.dedup_by(|a, b| a.name() == b.name());
    Ok(Block {
        fused: vec![PlannedConv {
            module,
            expr: region.expr.clone(),
            bias: expr.constant().is_some(),
            dtype: options.dtype.unwrap_or(stored),
            exported: Vec::new(),
        }],
        name,
        consumed,
        assumes_identity: false,
    })
}

/// The plan of a graph that is folded to these blocks, without its outputs. No recipe has a say in it.
pub(super) fn of_blocks(blocks: Vec<Block>) -> Plan {
    Plan {
        recipe: "graph".to_owned(),
        eps: None,
        eps_source: EpsSource::Recipe,
        eps_note: None,
        families: Vec::new(),
        load: None,
        network: None,
        blocks,
        skipped: Vec::new(),
        wrappers_removed: Vec::new(),
        left: Vec::new(),
        outputs: Vec::new(),
        dropped: Vec::new(),
    }
}

/// The name and the shape of a fused tensor.
pub(super) fn tensor_of(fused: &PlannedConv, is_bias: bool) -> (String, Vec<usize>) {
    let g = fused.geometry();
    match is_bias {
        false => (fused.weight_name(), g.weight_shape()),
        true => (fused.name_of(WeightOrBias::Bias), vec![g.out()]),
    }
}

/// What is written for a block of this name: tensors, and values between its nodes.
const ENDS: [&str; 9] = [
    "weight",
    "bias",
    "weight.cast",
    "bias.cast",
    "product",
    "turned",
    "rows",
    "shape",
    "straight",
];

fn free_name(base: String, taken: &mut HashSet<String>) -> String {
    let is_free = |name: &String| !ENDS.iter().any(|end| taken.contains(&within(name, end)));
    let mut name = base.clone();
    let mut n = 1;
    while !is_free(&name) {
        n += 1;
        name = within(&base, &format!("fused{n}"));
    }
    taken.extend(ENDS.map(|end| within(&name, end)));
    name
}

/// What a block is called: as its module, or, where that is the whole network, as its weight.
fn called(module: String) -> String {
    match module.is_empty() {
        true => within(&module, ENDS[0]),
        false => module,
    }
}

/// The name of a region: its conv's module if it has one conv, else the path that its tensors share, else that of its nodes.
fn base_name(graph: &Graph, region: &Region) -> String {
    let expr = region.expr.root();
    let convs = expr.convs();
    let of_nodes = || {
        let modules = region
            .nodes
            .iter()
            .filter_map(|id| graph.node(*id).module.as_deref());
        common(modules.map(str::to_owned))
    };
    let of_only_node = || {
        let nodes = region.nodes.iter().map(|id| graph.node(*id));
        let mut convs = nodes.filter(|node| matches!(node.op, Op::Conv(_) | Op::Linear(_)));
        convs.next().and_then(|node| node.module.clone())
    };
    let of_tensors = match convs[..] {
        [(conv, _)] => {
            let of_tensor = module_of(conv.weight.name()).map(str::to_owned);
            of_tensor.or_else(of_only_node)
        }
        _ => {
            let named = expr.leaves().into_iter().filter(|leaf| leaf.len() > 1);
            common(
                named
                    .filter_map(|leaf| module_of(leaf.name()))
                    .map(str::to_owned),
            )
        }
    };
    let of_last = || {
        let last = convs.iter().rev();
        let mut modules = last.filter_map(|(conv, _)| module_of(conv.weight.name()));
        modules.next().map(str::to_owned)
    };
    let found = of_tensors.or_else(of_nodes).or_else(of_last);
    found.unwrap_or_else(|| {
        let name = &graph.value(region.value).name;
        name.trim_matches(['/', '.']).replace('/', ".")
    })
}

/// The module of a parameter's name. Names that an exporter made up have none.
fn module_of(name: &str) -> Option<&str> {
    let (module, _) = name.rsplit_once('.')?;
    let path = !name.contains("::") && !name.contains('/');
    (path && !module.is_empty()).then_some(module)
}

/// The dotted path that names share.
fn common(names: impl Iterator<Item = String>) -> Option<String> {
    let shared = names.reduce(|a, b| {
        let both = a.split('.').zip(b.split('.'));
        let same: Vec<&str> = both.take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
        same.join(".")
    });
    shared.filter(|name| !name.is_empty())
}
