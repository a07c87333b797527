//! What becomes of a program when regions of its graph are folded: its texts, and which of its tensors are left.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::alias::{Effect, effect};
use super::json::{Members, Raw, Tagged, place, read, splice};
use super::nodes::{New, new_nodes};
use super::read::Pt2;
use super::schema::{self, NodeText, names};
use super::weights;
use crate::graph::agree::{Agreement, Index, agree};
use crate::graph::model::ValueId;
use crate::graph::plan::{self, Error, Folding, Left};
use crate::graph::region::{Dialect, Regions};
use crate::plan::{EpsSource, Options, Plan, copy};
use crate::recipe::model::BATCH_COUNT;
use crate::tensor::{Dtype, Tensor, quoted};

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
    pub(super) weights: String,
    /// Entries below `data/weights/` that nothing refers to any more.
    pub(super) gone: HashSet<String>,
    /// For each block the entries below `data/weights/` that hold its weight and its bias.
    pub(super) fused: Vec<[Option<String>; 2]>,
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
    let invalid = |e: serde_json::Error| Error::Block {
        block: pt2.path().display().to_string(),
        message: e.to_string(),
    };
    let text = Text::new(pt2).map_err(invalid)?;
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
            let found = Kept::new(pt2, &text, regions);
            let names = found.tensors.clone();
            kept = Some(found);
            names
        },
    )?;
    let kept = kept.unwrap_or_else(|| Kept::new(pt2, &text, &regions));
    let config = weights::config(&pt2.texts.weights).map_err(|message| Error::Block {
        block: pt2.path().display().to_string(),
        message,
    })?;
    let state: Index = config
        .iter()
        .filter_map(|(name, _)| Some((name.to_string(), pt2.checkpoint.get(name)?.clone())))
        .collect();
    plan::of_parts(&mut blocks, &pt2.computed);
    let agreement = agree(&pt2.checkpoint, &state, &mut blocks, &kept.tensors);
    // Weights whose results nobody reads. (The counters of norms go with these.)
    let consumed: HashSet<&str> = blocks
        .iter()
        .flat_map(|block| &block.consumed)
        .map(Tensor::name)
        .collect();
    let is_unread = |tensor: &&Tensor| {
        let name = tensor.name();
        !kept.tensors.contains(name) && !consumed.contains(name) && !name.ends_with(BATCH_COUNT)
    };
    let dropped = state.values().filter(is_unread).cloned().collect();
    let remaining = config
        .iter()
        .filter(|(name, _)| kept.tensors.contains(&**name));
    let mut outputs: Vec<_> = remaining
        .filter_map(|(name, _)| pt2.checkpoint.get(name))
        .map(|tensor| copy(tensor, tensor.name().to_owned()))
        .collect();
    for (b, fused) in blocks.iter().map(|block| &block.fused[0]).enumerate() {
        outputs.extend(fused.outputs([b, 0]));
    }
    let plan = Plan {
        recipe: "graph".to_owned(),
        eps: None,
        eps_source: EpsSource::Recipe,
        eps_note: None,
        families: Vec::new(),
        load: agreement.load.clone(),
        network: None,
        blocks,
        skipped,
        wrappers_removed: Vec::new(),
        left: Vec::new(),
        outputs,
        dropped,
    };
    let texts = Writer {
        pt2,
        text: &text,
        kept: &kept,
        plan: &plan,
        regions: &regions,
    }
    .texts(&config)?;
    let left = plan::left(&pt2.graph, &regions);
    Ok(Edit {
        plan,
        regions,
        left,
        agreement,
        texts,
    })
}

/// The text of the graph, taken apart.
pub(super) struct Text<'a> {
    graph: schema::GraphText<'a>,
    input_specs: Raw<'a>,
    pub(super) nodes: Vec<Raw<'a>>,
    pub(super) read: Vec<NodeText<'a>>,
    pub(super) values: Members<'a, Raw<'a>>,
    inputs: Vec<Raw<'a>>,
    specs: Vec<Raw<'a>>,
    /// For each input the tensor that it stands for, and whether it is a parameter.
    stored: Vec<Option<(String, bool)>>,
}

impl<'a> Text<'a> {
    fn new(pt2: &'a Pt2) -> Result<Text<'a>, serde_json::Error> {
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
        })
    }

    /// What is said of a value.
    pub(super) fn meta(&self, name: &str) -> Option<Value> {
        let (_, meta) = self.values.0.iter().find(|(value, _)| value == name)?;
        read(meta).ok()
    }

    /// The names of the values that an input of the graph is; one, as a rule.
    fn input_names(&self, i: usize) -> Vec<String> {
        read::<Tagged<'a>>(self.inputs[i])
            .map(|input| names(&input))
            .unwrap_or_default()
    }
}

/// What is still there.
struct Kept {
    /// Of each node of the file, whether it stays.
    nodes: Vec<bool>,
    /// Of each input of the graph.
    inputs: Vec<bool>,
    /// The names of the tensors that are left.
    tensors: HashSet<String>,
    /// Values that are gone.
    gone: HashSet<String>,
}

impl Kept {
    fn new(pt2: &Pt2, text: &Text<'_>, regions: &Regions) -> Kept {
        let outputs: HashSet<String> = text.graph.outputs.iter().flat_map(names).collect();
        let bypassed = bypassed(pt2, regions);
        let reads = |node: &NodeText<'_>| -> Vec<String> {
            let names = node.inputs.iter().flat_map(|input| names(&input.arg));
            let instead = |name: String| match bypassed.get(&*name) {
                Some(instead) => (*instead).to_owned(),
                None => name,
            };
            names.map(instead).collect()
        };
        // What nothing read from the start stays, whatever it is for.
        let read_before: HashSet<String> = text
            .read
            .iter()
            .flat_map(|node| node.inputs.iter().flat_map(|input| names(&input.arg)))
            .chain(outputs.iter().cloned())
            .collect();
        let mut read: HashSet<String> = outputs;
        for region in &regions.folded {
            read.insert(pt2.graph.value(region.source).name.clone());
        }
        let stays: HashMap<usize, bool> = pt2
            .positions
            .iter()
            .copied()
            .zip(regions.stays.iter().copied())
            .collect();
        let mut nodes = vec![false; text.read.len()];
        let mut gone = HashSet::new();
        for (i, node) in text.read.iter().enumerate().rev() {
            let writes = || node.outputs.iter().flat_map(names);
            // What is not in the graph is a view of a constant, or dead.
            let asked_for =
                || writes().any(|name| read.contains(&name) || !read_before.contains(&name));
            // A size that only folded nodes asked for is gone with these.
            let superfluous = || {
                let pure = matches!(effect(node), Effect::New | Effect::View);
                pure && writes().next().is_some() && !asked_for()
            };
            if let Some(whole) = pt2.part_of.get(&i) {
                nodes[i] = nodes[*whole];
                match nodes[i] {
                    true => read.extend(reads(node)),
                    false => gone.extend(writes()),
                }
                continue;
            }
            nodes[i] = !pt2.dead.contains(&i)
                && match stays.get(&i) {
                    Some(stays) => *stays && !superfluous(),
                    None => asked_for(),
                };
            match nodes[i] {
                true => read.extend(reads(node)),
                false => gone.extend(writes()),
            }
        }
        for region in &regions.folded {
            gone.remove(&pt2.graph.value(region.value).name);
        }
        let mut kept = Kept {
            nodes,
            inputs: Vec::new(),
            tensors: HashSet::new(),
            gone,
        };
        kept.tensors(text, &read, &read_before);
        kept
    }

    /// Which tensors stay: those that are read, those that never were, and of these not the counter of a norm that is gone.
    fn tensors(&mut self, text: &Text<'_>, read: &HashSet<String>, read_before: &HashSet<String>) {
        let any = |i: usize, of: &HashSet<String>| {
            text.input_names(i).iter().any(|name| of.contains(name))
        };
        let mut went: HashSet<&str> = HashSet::new();
        let mut stayed: HashSet<&str> = HashSet::new();
        let stored = text.stored.iter().enumerate();
        for (i, (name, _)) in stored.clone().filter_map(|(i, of)| Some((i, of.as_ref()?))) {
            if any(i, read_before) {
                let to = if any(i, read) { &mut stayed } else { &mut went };
                to.insert(module_of(name));
            }
        }
        for (i, of) in stored {
            let keep = match of {
                None => true,
                Some(_) if any(i, read_before) => any(i, read),
                Some((name, _)) => {
                    !went.contains(module_of(name)) || stayed.contains(module_of(name))
                }
            };
            self.inputs.push(keep);
            match of {
                Some((name, _)) if keep => drop(self.tensors.insert(name.clone())),
                _ if !keep => self.gone.extend(text.input_names(i)),
                _ => {}
            }
        }
    }
}

/// Names that nothing computes any more, and what nodes that stay read instead.
fn bypassed<'a>(pt2: &'a Pt2, regions: &Regions) -> HashMap<&'a str, &'a str> {
    let named = |id: &ValueId| &*pt2.graph.value(*id).name;
    let pairs = regions.bypassed.iter();
    pairs
        .map(|(gone, instead)| (named(gone), named(instead)))
        .collect()
}

/// The text of a node that stays, with what it reads instead of what is gone.
fn rewired(node: Raw<'_>, read: &NodeText<'_>, bypassed: &HashMap<&str, &str>) -> String {
    let edits = read.inputs.iter().filter_map(|input| {
        let [name] = &names(&input.arg)[..] else {
            return None;
        };
        let instead = bypassed.get(&**name)?;
        let new = json!({"name": instead}).to_string();
        Some((place(node.get(), input.arg.value), new))
    });
    splice(node.get(), edits.collect())
}

fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
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
    fn texts(
        &self,
        config: &[(std::borrow::Cow<'_, str>, weights::Payload<'_>)],
    ) -> Result<NewTexts, Error> {
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
            news.push(new_nodes(pt2, text, region, &block.fused[0], &mut taken)?);
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
        let (weights, gone, fused) = self.weights(&news, config)?;
        Ok(NewTexts {
            program: splice(&pt2.texts.program, edits),
            weights,
            gone,
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

    /// The new configuration of the weights, the entries that it does not refer to any more, and those of the new weights.
    #[expect(
        clippy::type_complexity,
        reason = "three parts of one answer, taken apart at once"
    )]
    fn weights(
        &self,
        news: &[New],
        config: &[(std::borrow::Cow<'_, str>, weights::Payload<'_>)],
    ) -> Result<(String, HashSet<String>, Vec<[Option<String>; 2]>), Error> {
        let text = &self.pt2.texts.weights;
        let (whole, raw) = weights::members(text).map_err(|e| Error::Block {
            block: "weights".to_owned(),
            message: e.to_string(),
        })?;
        let known: HashSet<&str> = self
            .text
            .stored
            .iter()
            .flatten()
            .map(|(name, _)| &**name)
            .collect();
        let stays = |name: &str| self.kept.tensors.contains(name) || !known.contains(name);
        let mut free = (0u64..).map(|n| format!("weight_{n}")).filter(|path| {
            let full = format!("data/weights/{path}");
            !self.pt2.entries.iter().any(|entry| entry.name == full)
        });
        let (mut members, mut fused) = (Vec::new(), Vec::new());
        let mut at: HashMap<usize, Vec<String>> = HashMap::new();
        for (new, block) in news.iter().zip(&self.plan.blocks) {
            let consumed: HashSet<&str> =
                block.consumed.iter().map(|tensor| tensor.name()).collect();
            let first = config
                .iter()
                .position(|(name, _)| consumed.contains(&**name));
            let mut paths = [None, None];
            for (parameter, path) in new.parameters.iter().zip(&mut paths) {
                let name = free.next().unwrap_or_default();
                let payload = json!({
                    "path_name": name,
                    "is_param": true,
                    "use_pickle": false,
                    "tensor_meta": parameter.meta,
                });
                let member = format!("{}: {payload}", Value::from(&*parameter.name));
                at.entry(first.unwrap_or(config.len()))
                    .or_default()
                    .push(member);
                *path = Some(name);
            }
            fused.push(paths);
        }
        let mut used: HashSet<&str> = HashSet::new();
        let mut gone: HashSet<String> = HashSet::new();
        for i in 0..=config.len() {
            members.extend(at.remove(&i).into_iter().flatten());
            let Some(((name, payload), (_, old))) = config.get(i).zip(raw.get(i)) else {
                continue;
            };
            let path = &*payload.path_name.0;
            if stays(name) {
                used.insert(path);
                members.push(format!("{}: {}", Value::from(&**name), old.get()));
            } else {
                gone.insert(path.to_owned());
            }
        }
        gone.retain(|path| !used.contains(&**path));
        let new = format!("{{{}}}", members.join(", "));
        Ok((splice(text, vec![(place(text, whole), new)]), gone, fused))
    }
}

/// A parameter of the new program.
#[derive(Debug)]
pub(super) struct Parameter {
    /// Its name in the state dict.
    pub(super) name: String,
    /// The value that stands for it in the graph.
    pub(super) placeholder: String,
    /// What the graph and the configuration of the weights say of it.
    pub(super) meta: Value,
}

/// A tensor's description in the manner of an old one.
pub(super) fn described(like: &Value, dtype: &Dtype, shape: &[usize]) -> Result<Value, String> {
    let number = weights::number(dtype).ok_or_else(|| format!("{dtype} is no type of PyTorch"))?;
    let mut meta = like
        .as_object()
        .cloned()
        .ok_or_else(|| format!("{} is no description", quoted(&like.to_string())))?;
    let list =
        |numbers: Vec<usize>| Value::from_iter(numbers.into_iter().map(|n| json!({"as_int": n})));
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    meta.insert("dtype".to_owned(), number.into());
    meta.insert("sizes".to_owned(), list(shape.to_vec()));
    meta.insert("strides".to_owned(), list(strides));
    meta.insert("storage_offset".to_owned(), json!({"as_int": 0}));
    Ok(Value::Object(meta))
}
