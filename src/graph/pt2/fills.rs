//! Paddings that a program fills side by side: in place, through views, or as one value after another.
//!
//! A program of torch.export keeps `out[:, :, 0:1, :] = v` as a copy into a view of `out`. As long as nothing else reads `out` or
//! the views in between, the padding and its fills are one step that computes `out`: as such they are looked at.

use std::collections::{HashMap, HashSet};

use super::alias::{Effect, Step};
use super::call::{Call, Input, Opaque};
use super::schema::NodeText;
use crate::graph::border::Rows;
use crate::graph::model::Dim;
use crate::tensor::Tensor;

/// A padding and what is copied into it in place, which are one step.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InPlace {
    /// The number of the node that pads.
    pub pad: usize,
    /// What is copied into views of it.
    pub fills: Vec<Fill>,
}

/// A copy into a view.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fill {
    /// The nodes that take the view, each of what the one before has taken.
    pub views: Vec<usize>,
    /// The node that copies.
    pub copy: usize,
}

impl InPlace {
    /// All of its nodes.
    pub fn nodes(&self) -> impl Iterator<Item = usize> {
        let fills = self.fills.iter();
        let fills = fills.flat_map(|fill| fill.views.iter().copied().chain([fill.copy]));
        std::iter::once(self.pad).chain(fills)
    }
}

/// Finds such paddings, by the number of their last node, where they stand as one step from then on.
pub(super) fn joined(
    nodes: &[NodeText<'_>],
    steps: &mut [Step],
    outputs: &[String],
) -> HashMap<usize, InPlace> {
    let found = found(nodes, steps, outputs);
    for (last, one) in &found {
        let pad = &steps[one.pad];
        let copies = one.fills.iter().map(|fill| &steps[fill.copy]);
        let others = copies.flat_map(|copy| copy.reads.iter().skip(1));
        let step = Step {
            reads: pad.reads.iter().chain(others).cloned().collect(),
            writes: pad.writes.clone(),
            effect: Effect::New,
        };
        for node in one.nodes() {
            steps[node] = Step {
                reads: Vec::new(),
                writes: Vec::new(),
                effect: Effect::New,
            };
        }
        steps[*last] = step;
    }
    found
}

fn found(nodes: &[NodeText<'_>], steps: &[Step], outputs: &[String]) -> HashMap<usize, InPlace> {
    let is = |i: usize, names: &[&str]| nodes[i].aten().is_some_and(|name| names.contains(&name));
    let mut found = HashMap::new();
    if !(0..nodes.len()).any(|i| is(i, &["copy_"])) {
        return found;
    }
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, step) in steps.iter().enumerate() {
        for name in &step.reads {
            readers.entry(name).or_default().push(i);
        }
    }
    let given: HashSet<&str> = outputs.iter().map(String::as_str).collect();
    let readers = |name: &str| readers.get(name).map_or(&[][..], Vec::as_slice);
    // The one value that a step computes, which the program does not give.
    let inner = |i: usize| match &steps[i].writes[..] {
        [name] if !given.contains(&**name) => Some(&**name),
        _ => None,
    };
    for pad in (0..nodes.len()).filter(|i| is(*i, &["pad", "constant_pad_nd"])) {
        let [padded] = &steps[pad].writes[..] else {
            continue;
        };
        // What is copied into the view that this node takes, and nothing else is done with.
        let fill = |view: usize| {
            let mut views = vec![view];
            loop {
                let last = *views.last()?;
                let name =
                    inner(last).filter(|_| is(last, &["slice"]) && steps[last].reads.len() == 1)?;
                let &[next] = readers(name) else {
                    return None;
                };
                let copies =
                    is(next, &["copy_"]) && steps[next].reads.first().is_some_and(|of| of == name);
                match copies {
                    true if inner(next).is_some_and(|name| readers(name).is_empty()) => {
                        return Some(Fill { views, copy: next });
                    }
                    true => return None,
                    false => views.push(next),
                }
            }
        };
        let mut fills = Vec::new();
        let mut next = None;
        for view in readers(padded) {
            match fill(*view) {
                Some(fill) => fills.push(fill),
                None => {
                    next = Some(*view);
                    break;
                }
            }
        }
        let Some(last) = fills.iter().map(|fill| fill.copy).max() else {
            continue;
        };
        if next.is_none_or(|next| next > last) {
            found.insert(last, InPlace { pad, fills });
        }
    }
    found
}

/// Whether a slice of a value takes all of it, or a scatter fills all.
pub(super) fn is_whole(call: &Call<'_>) -> Result<bool, Opaque> {
    let (start, end) = (call.int("start", 0)?, call.int("end", i64::MAX)?);
    Ok((start, end, call.int("step", 1)?) == (0, i64::MAX, 1))
}

/// Which rows of which axis a slice of a value takes, or a scatter fills.
pub(super) fn rows(call: &Call<'_>, of: &str) -> Result<(usize, Option<Rows>), Opaque> {
    let shape = call.shape(of)?;
    let axis = call.axis("dim", 0, shape.len())?;
    let len = shape.get(axis).and_then(Dim::known);
    if call.int("step", 1)? != 1 {
        return Ok((axis, None));
    }
    let (start, end) = (call.int("start", 0)?, call.int("end", i64::MAX)?);
    Ok((axis, Rows::of(start, end, len)))
}

/// The constant that a call gives in the place of what it reads first, or in a larger shape.
pub(super) fn spread(call: &Call<'_>) -> Option<Tensor> {
    let context = call.context;
    let constant = |input: Input| match input {
        Input::Constant(tensor) => Some(tensor),
        Input::Value(name) => context.spread.get(&name).cloned(),
        Input::Absent => None,
    };
    let what = match (call.node.aten()?, call.node.overload()) {
        ("expand", "default") => call.first().ok()?,
        ("copy", "default") => call.input("src").ok()?,
        ("view", "default") => {
            let reads = call.reads();
            let [of] = &reads[..] else { return None };
            let kept = context.shape(of) == context.shape(&call.output().ok()?);
            return context.spread.get(of).filter(|_| kept).cloned();
        }
        ("slice_scatter", "default") if is_whole(call).ok()? => call.input("src").ok()?,
        _ => return None,
    };
    let tensor = constant(what)?;
    // Another type may round it.
    let kept = call.context.dtype(&call.output().ok()?)? == *tensor.dtype();
    kept.then_some(tensor)
}
