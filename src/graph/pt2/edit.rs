//! What becomes of a program when regions of its graph are folded: its texts, and which of its tensors are left.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::json::{Raw, place, splice};
use super::kept::{Kept, bypassed};
use super::nodes::{Lies, New, Parameter, new_nodes};
use super::read::Pt2;
use super::schema::{NodeText, renamed};
use super::text::{Stored, Text};
use super::weights;
use crate::graph::agree::{Agreement, Index, agree};
use crate::graph::plan::{self, Error, Folding, Left};
use crate::graph::region::{Dialect, Regions};
use crate::plan::{Block, Options, Plan, Planned, copy};
use crate::recipe::model::BATCH_COUNT;
use crate::tensor::Tensor;

/// A plan for a program, and the archive that it makes.
#[derive(Debug)]
pub struct Edit {
    /// The blocks, and the tensors that are left: the state dict of the deploy form.
    pub plan: Plan,
    /// Which nodes are folded.
    pub regions: Regions,
    /// Which others nearly could be.
    pub left: Vec<Left>,
    /// What a built-in recipe says of the same blocks.
    pub agreement: Agreement,
    pub(super) texts: NewTexts,
}

/// The texts of the new archive.
#[derive(Debug)]
pub(super) struct NewTexts {
    pub(super) program: String,
    pub(super) weights: Folder,
    pub(super) constants: Folder,
    /// For each block what holds its weight and its bias.
    pub(super) fused: Vec<[Option<Fused>; 2]>,
}

/// A folder of raw tensors.
#[derive(Debug)]
pub(super) struct Folder {
    /// Its configuration.
    pub(super) config: String,
    /// The entries of it that nothing refers to any more.
    pub(super) gone: HashSet<String>,
}

/// The entry of a new tensor.
#[derive(Debug)]
pub(super) struct Fused {
    /// Its name below `data/weights/`.
    pub(super) path: String,
    /// How its numbers lie.
    pub(super) lies: Lies,
}

/// What its operators can do.
const DIALECT: Dialect = Dialect {
    uneven_pads: false,
    linear_bias: true,
    goes_behind: false,
};

/// Plans what to fold.
///
/// # Errors
/// When nothing is left to fold, a glob is none, or the text of the graph cannot be edited.
pub fn edit(pt2: &Pt2, options: &Options, even_if_dearer: bool) -> Result<Edit, Error> {
    let fail = |message: String| Error::Block {
        block: pt2.path().display().to_string(),
        message,
    };
    let text = Text::new(pt2).map_err(fail)?;
    let mut kept = None;
    let Folding {
        regions,
        mut blocks,
        skipped,
    } = plan::fold(
        &pt2.graph,
        DIALECT,
        options,
        even_if_dearer,
        &mut |regions| {
            let found = kept.insert(Kept::new(pt2, &text, regions));
            found.tensors.clone()
        },
    )?;
    let kept = kept.unwrap_or_else(|| Kept::new(pt2, &text, &regions));
    let state: Index = (text.weights.iter())
        .filter_map(|(name, _)| Some((name.to_string(), pt2.checkpoint.get(name)?.clone())))
        .collect();
    plan::of_parts(&mut blocks, &pt2.computed);
    let agreement = agree(&pt2.checkpoint, &state, &mut blocks, &kept.tensors);
    let dropped = dropped(&state, &kept, &blocks);
    let mut outputs = copies(pt2, &text.weights, &kept);
    for (b, fused) in blocks.iter().map(|block| &block.fused[0]).enumerate() {
        outputs.extend(fused.outputs([b, 0]));
    }
    let plan = Plan {
        load: agreement.load.clone(),
        skipped,
        outputs,
        dropped,
        ..plan::of_blocks(blocks)
    };
    let texts = Writer {
        pt2,
        text: &text,
        kept: &kept,
        plan: &plan,
        regions: &regions,
    }
    .texts()?;
    let left = plan::left(&pt2.graph, &regions);
    Ok(Edit {
        plan,
        regions,
        left,
        agreement,
        texts,
    })
}

/// The text of a node that stays, with what it reads instead of what is gone.
fn rewired(node: Raw<'_>, read: &NodeText<'_>, bypassed: &HashMap<&str, &str>) -> String {
    let edits = read.inputs.iter().filter_map(|input| {
        let instead = |name: &str| bypassed.get(name).map(|instead| (*instead).to_owned());
        let new = renamed(&input.arg, &instead)?;
        Some((place(node.get(), input.arg.value), new))
    });
    splice(node.get(), edits.collect())
}

/// The weights that are left, in the order of the file.
fn copies(pt2: &Pt2, config: &Stored<'_>, kept: &Kept) -> Vec<Planned> {
    let remaining = config
        .iter()
        .filter(|(name, _)| kept.tensors.contains(&**name));
    remaining
        .filter_map(|(name, _)| pt2.checkpoint.get(name))
        .map(|tensor| copy(tensor, tensor.name().to_owned()))
        .collect()
}

/// Weights whose results nobody reads. (The counters of norms go with these.)
fn dropped(state: &Index, kept: &Kept, blocks: &[Block]) -> Vec<Tensor> {
    let consumed: HashSet<&str> = blocks
        .iter()
        .flat_map(|block| &block.consumed)
        .map(Tensor::name)
        .collect();
    let is_unread = |tensor: &&Tensor| {
        let name = tensor.name();
        !kept.tensors.contains(name) && !consumed.contains(name) && !name.ends_with(BATCH_COUNT)
    };
    state.values().filter(is_unread).cloned().collect()
}

/// What puts the new texts together.
struct Writer<'a> {
    pt2: &'a Pt2,
    text: &'a Text<'a>,
    kept: &'a Kept,
    plan: &'a Plan,
    regions: &'a Regions,
}

impl Writer<'_> {
    fn texts(&self) -> Result<NewTexts, Error> {
        let (pt2, text) = (self.pt2, self.text);
        let gone = &self.kept.gone;
        let mut taken: HashSet<String> = text
            .values
            .0
            .iter()
            .map(|(name, _)| name.to_string())
            .filter(|name| !gone.contains(name))
            .collect();
        taken.extend(text.read.iter().map(|node| node.shown().to_owned()));
        let mut news = Vec::new();
        for (block, region) in self.plan.blocks.iter().zip(&self.regions.folded) {
            news.push(new_nodes(pt2, text, region, block, &mut taken)?);
        }
        let at = |part: Raw<'_>| place(&pt2.texts.program, part);
        let edits = vec![
            (at(text.graph.nodes), self.nodes(&news)),
            (at(text.graph.tensor_values), self.values(&news)),
            (at(text.graph.inputs), self.inputs(&news, &text.inputs, |new| {
                json!({"as_tensor": {"name": new.placeholder}})
            })),
            (at(text.input_specs), self.inputs(&news, &text.specs, |new| {
                json!({"parameter": {"arg": {"name": new.placeholder}, "parameter_name": new.name}})
            })),
        ];
        let (at, fused) = self.fused(&news);
        Ok(NewTexts {
            program: splice(&pt2.texts.program, edits),
            weights: self.folder(&pt2.texts.weights, &text.weights, at)?,
            constants: self.folder(&pt2.texts.constants, &text.constants, HashMap::new())?,
            fused,
        })
    }

    fn nodes(&self, news: &[New]) -> String {
        // The new nodes stand where the first of the old ones stood: what they read may be changed in place later.
        let mut at: HashMap<usize, Vec<&New>> = HashMap::new();
        for (new, region) in news.iter().zip(&self.regions.folded) {
            // Some regions count what computes their source among their nodes.
            let source = self.pt2.graph.value(region.source).producer();
            let behind = region
                .nodes
                .iter()
                .filter(|id| source.is_none_or(|source| **id > source));
            let first = behind.map(|id| self.pt2.positions[id.0]).min();
            at.entry(first.unwrap_or(0)).or_default().push(new);
        }
        let bypassed = bypassed(self.pt2, self.regions);
        let mut parts: Vec<String> = Vec::new();
        for (i, node) in self.text.nodes.iter().enumerate() {
            for new in at.get(&i).into_iter().flatten() {
                parts.extend(new.nodes.iter().map(Value::to_string));
            }
            if self.kept.nodes[i] {
                parts.push(rewired(node, &self.text.read[i], &bypassed));
            }
        }
        format!("[{}]", parts.join(", "))
    }

    fn values(&self, news: &[New]) -> String {
        let old = self
            .text
            .values
            .0
            .iter()
            .filter(|(name, _)| !self.kept.gone.contains(&**name));
        let mut parts: Vec<String> = old
            .map(|(name, meta)| format!("{}: {}", Value::from(&**name), meta.get()))
            .collect();
        for (name, meta) in news.iter().flat_map(|new| &new.values) {
            parts.push(format!("{}: {meta}", Value::from(&**name)));
        }
        format!("{{{}}}", parts.join(", "))
    }

    /// A list with an item for each input of the graph, where the new parameters stand before the first that they replace.
    fn inputs(&self, news: &[New], old: &[Raw<'_>], item: impl Fn(&Parameter) -> Value) -> String {
        let stored = &self.text.stored;
        let behind = stored
            .iter()
            .rposition(|of| of.as_ref().is_some_and(|(_, is_parameter)| *is_parameter));
        let behind = behind.map_or(0, |i| i + 1);
        let mut at: HashMap<usize, Vec<&Parameter>> = HashMap::new();
        for (new, block) in news.iter().zip(&self.plan.blocks) {
            let consumed: HashSet<&str> =
                block.consumed.iter().map(|tensor| tensor.name()).collect();
            let first = stored.iter().position(|of| {
                of.as_ref()
                    .is_some_and(|(name, is_parameter)| *is_parameter && consumed.contains(&**name))
            });
            at.entry(first.unwrap_or(behind))
                .or_default()
                .extend(&new.parameters);
        }
        let mut parts = Vec::new();
        // One more place than there are inputs: behind the last one.
        for (i, old) in old.iter().map(Some).chain([None]).enumerate() {
            parts.extend(
                at.get(&i)
                    .into_iter()
                    .flatten()
                    .map(|new| item(new).to_string()),
            );
            if let Some(old) = old.filter(|_| self.kept.inputs.get(i) == Some(&true)) {
                parts.push(old.get().to_owned());
            }
        }
        format!("[{}]", parts.join(", "))
    }

    /// The new weights: what the configuration says of them, by where in it that stands, and their entries.
    #[expect(
        clippy::type_complexity,
        reason = "two parts of one answer, taken apart at once"
    )]
    fn fused(&self, news: &[New]) -> (HashMap<usize, Vec<String>>, Vec<[Option<Fused>; 2]>) {
        let config = &self.text.weights;
        let taken: HashSet<&str> = self.pt2.entries.iter().map(|entry| &*entry.name).collect();
        let free = (0u64..).map(|n| format!("weight_{n}"));
        let mut free = free.filter(|path| !taken.contains(&*format!("data/weights/{path}")));
        let (mut at, mut fused): (HashMap<usize, Vec<String>>, _) = (HashMap::new(), Vec::new());
        for (new, block) in news.iter().zip(&self.plan.blocks) {
            let consumed: HashSet<&str> =
                block.consumed.iter().map(|tensor| tensor.name()).collect();
            let first = config
                .iter()
                .position(|(name, _)| consumed.contains(&**name));
            let mut paths = [None, None];
            let parameters = new.parameters.iter().zip(&mut paths);
            for ((parameter, entry), path) in parameters.zip(&mut free) {
                let member = member(parameter, &path);
                at.entry(first.unwrap_or(config.len()))
                    .or_default()
                    .push(member);
                let lies = parameter.lies;
                *entry = Some(Fused { path, lies });
            }
            fused.push(paths);
        }
        (at, fused)
    }

    /// A folder without what is gone, and with new tensors at some places of its configuration.
    fn folder(
        &self,
        text: &str,
        config: &Stored<'_>,
        mut new: HashMap<usize, Vec<String>>,
    ) -> Result<Folder, Error> {
        let (whole, raw) = weights::members(text).map_err(|e| Error::Block {
            block: "weights".to_owned(),
            message: e.to_string(),
        })?;
        let (mut members, mut used, mut gone) = (Vec::new(), HashSet::new(), HashSet::new());
        for i in 0..=config.len() {
            members.extend(new.remove(&i).into_iter().flatten());
            let Some(((name, payload), (_, old))) = config.get(i).zip(raw.get(i)) else {
                continue;
            };
            let path = &*payload.path_name.0;
            if self.kept.tensors.contains(&**name) {
                used.insert(path);
                members.push(format!("{}: {}", Value::from(&**name), old.get()));
            } else {
                gone.insert(path.to_owned());
            }
        }
        gone.retain(|path| !used.contains(&**path));
        let new = format!("{{{}}}", members.join(", "));
        let config = splice(text, vec![(place(text, whole), new)]);
        Ok(Folder { config, gone })
    }
}

/// What the configuration of the weights says of a new one, which is in this entry.
fn member(parameter: &Parameter, path: &str) -> String {
    let payload = json!({
        "path_name": path,
        "is_param": true,
        "use_pickle": false,
        "tensor_meta": parameter.meta,
    });
    format!("{}: {payload}", Value::from(&*parameter.name))
}
