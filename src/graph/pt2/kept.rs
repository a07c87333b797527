//! What of a program is still there when regions of its graph are folded: its nodes, inputs and tensors.

use std::collections::{HashMap, HashSet};

use super::alias::{Effect, effect};
use super::read::Pt2;
use super::schema::{NodeText, names};
use super::text::Text;
use crate::graph::model::ValueId;
use crate::graph::region::Regions;
use crate::plan::path::parent;
use crate::recipe::model::BATCH_COUNT;
use crate::tensor::Tensor;

/// What is still there.
pub(super) struct Kept {
    /// Of each node of the file, whether it stays.
    pub(super) nodes: Vec<bool>,
    /// Of each input of the graph.
    pub(super) inputs: Vec<bool>,
    /// The names of the tensors that are left.
    pub(super) tensors: HashSet<String>,
    /// Values that are gone.
    pub(super) gone: HashSet<String>,
}

impl Kept {
    pub(super) fn new(pt2: &Pt2, text: &Text<'_>, regions: &Regions) -> Kept {
        let outputs: HashSet<String> = text.graph.outputs.iter().flat_map(names).collect();
        let bypassed = bypassed(pt2, regions);
        let reads = |node: &NodeText<'_>| -> Vec<String> {
            let instead = |name: String| match bypassed.get(&*name) {
                Some(instead) => (*instead).to_owned(),
                None => name,
            };
            inputs_of(node).map(instead).collect()
        };
        // What nothing read from the start stays, whatever it is for.
        let read_before: HashSet<String> = text
            .read
            .iter()
            .flat_map(inputs_of)
            .chain(outputs.iter().cloned())
            .collect();
        let name_of = |value: ValueId| &pt2.graph.value(value).name;
        let mut read: HashSet<String> = outputs;
        read.extend(regions.folded.iter().map(|of| name_of(of.source).clone()));
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
            let asked_for = || {
                let is_read = writes().any(|name| read.contains(&name));
                let was_read = writes().any(|name| read_before.contains(&name));
                is_read || (!was_read && writes().next().is_some())
            };
            // A size that only folded nodes asked for is gone with these.
            let superfluous = || {
                let pure = matches!(effect(node), Effect::New | Effect::View);
                pure && writes().next().is_some() && !asked_for()
            };
            nodes[i] = match (pt2.part_of.get(&i), stays.get(&i)) {
                (Some(whole), _) => nodes[*whole],
                (None, _) if pt2.dead.contains(&i) => false,
                (None, Some(stays)) => *stays && !superfluous(),
                (None, None) => asked_for(),
            };
            match nodes[i] {
                true => read.extend(reads(node)),
                false => gone.extend(writes()),
            }
        }
        for region in &regions.folded {
            gone.remove(name_of(region.value));
        }
        let mut kept = Kept {
            nodes,
            inputs: Vec::new(),
            tensors: HashSet::new(),
            gone,
        };
        kept.tensors(pt2, text, [&read, &read_before]);
        kept
    }

    /// Which tensors stay: those that are read, and those that nothing read from the start, whether the program names them or only
    /// stores them. Of the latter neither the counter of a norm that is gone stays, nor another name of a weight that is.
    fn tensors(&mut self, pt2: &Pt2, text: &Text<'_>, [read, read_before]: [&HashSet<String>; 2]) {
        let any = |i: usize, of: &HashSet<String>| {
            text.input_names(i).iter().any(|name| of.contains(name))
        };
        let named = || {
            let all = text.stored.iter().enumerate();
            all.filter_map(|(i, of)| Some((i, &*of.as_ref()?.0)))
        };
        let was_read = named().filter(|(i, _)| any(*i, read_before));
        let (stayed, went): (Vec<_>, Vec<_>) = was_read.partition(|(i, _)| any(*i, read));
        let [stayed, went] = [stayed, went].map(|of| Group::new(pt2, of.iter().map(|(_, n)| *n)));
        let stays_unread = |name: &str| match name.rsplit('.').next() {
            Some(BATCH_COUNT) => !went.has_module(name) || stayed.has_module(name),
            _ => !went.has_bytes(pt2, name) || stayed.has_bytes(pt2, name),
        };
        for (i, of) in text.stored.iter().enumerate() {
            let keep = match of {
                None => true,
                Some(_) if any(i, read_before) => any(i, read),
                Some((name, _)) => stays_unread(name),
            };
            self.inputs.push(keep);
            match of {
                Some((name, _)) if keep => drop(self.tensors.insert(name.clone())),
                _ if !keep => self.gone.extend(text.input_names(i)),
                _ => {}
            }
        }
        let named: HashSet<&str> = named().map(|(_, name)| name).collect();
        let unnamed = pt2.stored().filter(|name| !named.contains(name));
        let kept = unnamed.filter(|name| stays_unread(name));
        self.tensors.extend(kept.map(str::to_owned));
    }
}

/// Some tensors: the modules that have them, and where they lie.
struct Group<'a> {
    modules: HashSet<&'a str>,
    lie: Vec<&'a Tensor>,
}

impl<'a> Group<'a> {
    fn new(pt2: &'a Pt2, names: impl Iterator<Item = &'a str>) -> Group<'a> {
        let (mut modules, mut lie) = (HashSet::new(), Vec::new());
        for name in names {
            modules.insert(parent(name));
            lie.extend(pt2.checkpoint.get(name));
        }
        Group { modules, lie }
    }

    fn has_module(&self, name: &str) -> bool {
        self.modules.contains(parent(name))
    }

    /// Whether one of them is the same bytes as a tensor of the file.
    fn has_bytes(&self, pt2: &Pt2, name: &str) -> bool {
        let Some(tensor) = pt2.checkpoint.get(name).filter(|t| t.byte_len() > 0) else {
            return false;
        };
        let is_same = |of: &&Tensor| {
            of.place() == tensor.place()
                && of.shape() == tensor.shape()
                && of.dtype() == tensor.dtype()
        };
        self.lie.iter().any(is_same)
    }
}

/// The names of all values that a node reads.
fn inputs_of(node: &NodeText<'_>) -> impl Iterator<Item = String> {
    node.inputs.iter().flat_map(|input| names(&input.arg))
}

/// Names that nothing computes any more, and what nodes that stay read instead.
pub(super) fn bypassed<'a>(pt2: &'a Pt2, regions: &Regions) -> HashMap<&'a str, &'a str> {
    let named = |id: &ValueId| &*pt2.graph.value(*id).name;
    let pairs = regions.bypassed.iter();
    pairs
        .map(|(gone, instead)| (named(gone), named(instead)))
        .collect()
}
