//! The proof for a program: what was folded computes the same, and everything else is what it was.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde_json::Value;

use super::edit::Edit;
use super::error;
use super::json::{Members, Raw, place, read, splice};
use super::read::{Pt2, VERSION};
use super::{schema, weights};
use crate::fuse::diagnose;
use crate::graph::file::Error;
use crate::graph::model::{Conv, Node, Op, Pads};
use crate::graph::region::{Region, Step, Walk};
use crate::plan::PlannedConv;
use crate::tensor::{Error as TensorError, Part, Place, Tensor, quoted};
use crate::verify::{
    Deployed, Failure as Wrong, Options, Verdict, allowance_of, fits, verify_blocks,
};

/// Compares a program with what was made of it; without one, with what would be.
///
/// # Errors
/// When a file cannot be read, or the original cannot be folded. That the two differ is no error but a [`Verdict`].
pub fn verify(
    pt2: &Pt2,
    edit: &Edit,
    made: Option<&Pt2>,
    options: &Options,
) -> Result<Verdict, Error> {
    let deployed = made.map_or(Deployed::InMemory, |made| Deployed::File(made.constants()));
    let blocks = verify_blocks(pt2.constants(), &edit.plan, deployed, options)?;
    let mut compare = Compare {
        pt2,
        edit,
        failures: Vec::new(),
        copied: 0,
    };
    if let Some(made) = made {
        compare.program(made)?;
        compare.wiring(made);
        compare.tensors(made, options)?;
        compare.entries(made, options)?;
    }
    Ok(Verdict {
        blocks,
        copied: compare.copied,
        rounded: 0,
        unfused: 0,
        failures: compare.failures.into_iter().map(Wrong::Differs).collect(),
        fits: made.map(|_| fits(&edit.plan, deployed)),
        allowance: allowance_of(deployed),
        tolerance: options.tolerance,
    })
}

struct Compare<'a> {
    pt2: &'a Pt2,
    edit: &'a Edit,
    failures: Vec<String>,
    copied: usize,
}

/// A program's text in parts.
struct Parts<'a> {
    /// All but the lists.
    rest: String,
    nodes: Vec<Raw<'a>>,
    inputs: Vec<Raw<'a>>,
    specs: Vec<Raw<'a>>,
    values: Members<'a, Raw<'a>>,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Parts<'a>, serde_json::Error> {
        let program: schema::Program<'a> = serde_json::from_str(text)?;
        let schema::GraphModule { graph, signature } = program.graph_module;
        let lists = [
            graph.nodes,
            graph.inputs,
            signature.input_specs,
            graph.tensor_values,
        ];
        let null = |raw| (place(text, raw), "null".to_owned());
        Ok(Parts {
            rest: splice(text, lists.map(null).to_vec()),
            nodes: read(graph.nodes)?,
            inputs: read(graph.inputs)?,
            specs: read(signature.input_specs)?,
            values: read(graph.tensor_values)?,
        })
    }
}

/// What a configuration says of each tensor, but not which entry holds it.
fn described<T: FromIterator<(String, Value)>>(config: &str) -> Result<T, String> {
    let (_, members) = weights::members(config).map_err(|e| e.to_string())?;
    let one = |(name, raw): (std::borrow::Cow<'_, str>, Raw<'_>)| {
        let mut payload: Value = read(raw).map_err(|e| e.to_string())?;
        payload
            .as_object_mut()
            .and_then(|of| of.remove("path_name"));
        Ok((name.into_owned(), payload))
    };
    members.into_iter().map(one).collect()
}

/// Whether two texts say the same.
fn same(a: &str, b: &str) -> bool {
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    a == b || value(a).is_some_and(|a| Some(a) == value(b))
}

impl Compare<'_> {
    /// The text of the graph: the nodes that stayed, what is said of values, inputs and everything around them.
    fn program(&mut self, made: &Pt2) -> Result<(), error::Error> {
        let (expected, found) = (&self.edit.texts.program, &made.texts.program);
        if expected == found {
            return Ok(());
        }
        let parts = |text| {
            Parts::of(text).map_err(|e| error::Error::Format {
                path: made.path().to_owned(),
                reason: e.to_string(),
            })
        };
        let (expected, found) = (parts(expected)?, parts(found)?);
        if !same(&expected.rest, &found.rest) {
            self.failures
                .push("the program differs from the original around its nodes".to_owned());
        }
        let lists = [
            ("node", &expected.nodes, &found.nodes),
            ("input", &expected.inputs, &found.inputs),
            ("input specification", &expected.specs, &found.specs),
        ];
        for (what, expected, found) in lists {
            if expected.len() != found.len() {
                self.failures.push(format!(
                    "the graph has {} {what}s; expected {}",
                    found.len(),
                    expected.len()
                ));
                continue;
            }
            let differs = expected
                .iter()
                .zip(found)
                .position(|(a, b)| !same(a.get(), b.get()));
            if let Some(i) = differs {
                let name = read::<Value>(found[i])
                    .ok()
                    .and_then(|node| Some(node.get("name")?.as_str()?.to_owned()));
                let shown = name.map_or(format!("{i}"), |name| quoted(&name));
                self.failures.push(format!(
                    "{what} {shown} of the graph is not what it should be"
                ));
            }
        }
        self.described(&expected, &found);
        Ok(())
    }

    /// What is said of each value.
    fn described(&mut self, expected: &Parts<'_>, found: &Parts<'_>) {
        let mut values: HashMap<&str, Raw<'_>> = found
            .values
            .0
            .iter()
            .map(|(name, raw)| (&**name, *raw))
            .collect();
        for (name, raw) in &expected.values.0 {
            match values.remove(&**name) {
                Some(found) if same(raw.get(), found.get()) => {}
                Some(_) => self
                    .failures
                    .push(format!("what is said of value {} differs", quoted(name))),
                None => self
                    .failures
                    .push(format!("nothing is said of value {}", quoted(name))),
            }
        }
        let mut left: Vec<&str> = values.into_keys().collect();
        left.sort_unstable();
        self.failures.extend(
            left.iter()
                .map(|name| format!("value {} is left over", quoted(name))),
        );
    }

    /// Each region's value, as the graph that was made has it: read, not written.
    fn wiring(&mut self, made: &Pt2) {
        let named: HashMap<&str, usize> = made
            .graph()
            .values()
            .iter()
            .enumerate()
            .map(|(i, value)| (&*value.name, i))
            .collect();
        for (region, block) in self.edit.regions.folded.iter().zip(&self.edit.plan.blocks) {
            let value = &self.pt2.graph().value(region.value).name;
            let producer = named
                .get(&**value)
                .and_then(|i| made.graph().values()[*i].producer());
            let fits = producer.is_some_and(|id| {
                self.computes(made, made.graph().node(id), region, &block.fused[0])
            });
            if !fits {
                self.failures.push(format!(
                    "{} is not computed by the conv of block {}",
                    quoted(value),
                    quoted(&block.name)
                ));
            }
        }
    }

    fn computes(&self, made: &Pt2, node: &Node, region: &Region, fused: &PlannedConv) -> bool {
        // Another operator may read it across.
        let is_weight =
            |tensor: &Tensor| *tensor.name() == *fused.weight_name() && !tensor.is_turned();
        let bias = |bias: &Option<Tensor>| match (bias, fused.bias_name()) {
            (Some(tensor), Some(name)) => *tensor.name() == *name,
            (bias, name) => bias.is_none() && name.is_none(),
        };
        let list =
            |steps: &[Step], of: fn(&Step) -> usize| steps.iter().map(of).collect::<Vec<_>>();
        let mut input = node.inputs.first().map(|id| made.graph().value(*id));
        // Zeros that a conv cannot add itself stand before it.
        let mut before: Option<&Pads> = None;
        if let Some(id) = input.and_then(|value| value.producer())
            && let Op::Pad(pads) = &made.graph().node(id).op
            && region.walk.is_uneven()
        {
            before = Some(pads);
            let inputs = &made.graph().node(id).inputs;
            input = inputs.first().map(|id| made.graph().value(*id));
        }
        let source = &self.pt2.graph().value(region.source).name;
        let walks = |conv: &Conv, steps: &[Step]| {
            let zeros = before.unwrap_or(&conv.pads);
            conv.stride == list(steps, |step| step.stride)
                && conv.dilation == list(steps, |step| step.dilation)
                && zeros.before == list(steps, |step| step.before)
                && zeros.after == list(steps, |step| step.after)
                && (before.is_none()
                    || conv
                        .pads
                        .before
                        .iter()
                        .chain(&conv.pads.after)
                        .all(|n| *n == 0))
                && conv.groups == fused.geometry().groups()
        };
        let fits = match (&node.op, &region.walk) {
            (Op::Conv(conv), Walk::Conv(steps)) => {
                conv.transposed.is_none()
                    && walks(conv, steps)
                    && is_weight(&conv.weight)
                    && bias(&conv.bias)
            }
            (Op::Conv(conv), Walk::Transposed(steps, added)) => {
                conv.transposed.as_ref() == Some(added)
                    && walks(conv, steps)
                    && is_weight(&conv.weight)
                    && bias(&conv.bias)
            }
            (Op::Linear(linear), Walk::Linear) => {
                let as_it_is = !linear.in_first && [linear.alpha, linear.beta] == [1.0, 1.0];
                as_it_is && is_weight(&linear.weight) && bias(&linear.bias)
            }
            _ => false,
        };
        fits && input.is_some_and(|value| value.name == *source)
    }

    /// The tensors that are left, byte for byte; those of blocks have been compared as such.
    fn tensors(&mut self, made: &Pt2, options: &Options) -> Result<(), Error> {
        let mut after: HashSet<&str> = made
            .constants()
            .tensors()
            .keys()
            .map(String::as_str)
            .collect();
        let convs = self.edit.plan.blocks.iter().flat_map(|block| &block.fused);
        let fused: HashSet<String> = convs.flat_map(PlannedConv::names).collect();
        after.retain(|name| !fused.contains(*name));
        let texts = &self.edit.texts;
        let wrong = |reason| error::Error::Format {
            path: self.pt2.path().to_owned(),
            reason,
        };
        let mut expected: Vec<&Tensor> = Vec::new();
        for [new, found] in [
            [&texts.weights.config, &made.texts.weights],
            [&texts.constants.config, &made.texts.constants],
        ] {
            let found: HashMap<String, Value> = described(found).map_err(wrong)?;
            let new: Vec<(String, Value)> = described(new).map_err(wrong)?;
            for (name, meta) in new {
                if found.get(&name).is_some_and(|found| *found != meta) {
                    let name = quoted(&name);
                    self.failures
                        .push(format!("{name} is not stored as it should be"));
                }
                let copied = Some(&name).filter(|name| !fused.contains(*name));
                expected.extend(copied.and_then(|name| self.pt2.checkpoint.get(name)));
            }
        }
        for tensor in expected {
            options.go_on().map_err(diagnose::Error::from)?;
            if !after.remove(tensor.name()) {
                self.failures.push(format!("{tensor} is missing"));
                continue;
            }
            let Some(other) = made.constants().get(tensor.name()) else {
                continue;
            };
            match other.dtype() == tensor.dtype()
                && other.shape() == tensor.shape()
                && self.same_numbers(tensor, made, other)?
            {
                true => self.copied += 1,
                false => self
                    .failures
                    .push(format!("{tensor} differs from that of the original")),
            }
        }
        let mut left: Vec<&str> = after.into_iter().collect();
        left.sort_unstable();
        self.failures.extend(
            left.iter()
                .map(|name| format!("{} is left over", quoted(name))),
        );
        Ok(())
    }

    fn same_numbers(&self, a: &Tensor, made: &Pt2, b: &Tensor) -> Result<bool, TensorError> {
        let mut at = 0;
        while at < a.byte_len() {
            let len = CHUNK.min(a.byte_len() - at) as usize;
            let mut bytes = [vec![0; len], vec![0; len]];
            self.pt2.constants().read_at(a, at, &mut bytes[0])?;
            made.constants().read_at(b, at, &mut bytes[1])?;
            if bytes[0] != bytes[1] {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }

    /// Every entry of the archive that is neither the graph nor a weight.
    fn entries(&mut self, made: &Pt2, options: &Options) -> Result<(), Error> {
        fn others(of: &Pt2) -> HashMap<&str, &Range<u64>> {
            let model = &of.texts.model;
            let read = [
                format!("models/{model}.json"),
                format!("data/constants/{model}_constants_config.json"),
                VERSION.to_owned(),
            ];
            let is_other = |name: &str| {
                !name.starts_with("data/weights/") && read.iter().all(|read| read != name)
            };
            let entries = of.entries.iter().filter(|entry| is_other(&entry.name));
            entries.map(|entry| (&*entry.name, &entry.range)).collect()
        }
        let (mut before, mut after) = (others(self.pt2), others(made));
        let gone = &self.edit.texts.constants.gone;
        before.retain(|name, _| {
            let constant = name.strip_prefix("data/constants/");
            !constant.is_some_and(|path| gone.contains(path))
        });
        let mut names: Vec<&str> = before.keys().copied().collect();
        names.sort_unstable();
        for name in names {
            options.go_on().map_err(diagnose::Error::from)?;
            let Some(found) = after.remove(name) else {
                self.failures
                    .push(format!("{} is missing in the archive", quoted(name)));
                continue;
            };
            let (Some(a), Some(b)) = (raw(before[name]), raw(found)) else {
                continue;
            };
            if a.byte_len() != b.byte_len() || !self.same_numbers(&a, made, &b)? {
                self.failures.push(format!(
                    "{} in the archive differs from that of the original",
                    quoted(name)
                ));
            }
        }
        let mut left: Vec<&str> = after.into_keys().collect();
        left.sort_unstable();
        self.failures.extend(
            left.iter()
                .map(|name| format!("{} in the archive is left over", quoted(name))),
        );
        Ok(())
    }
}

/// What is compared at a time.
const CHUNK: u64 = 1 << 18;

/// A range of the file as bytes.
fn raw(range: &Range<u64>) -> Option<Tensor> {
    let part = Part {
        name: String::new(),
        dtype: crate::tensor::Dtype::Known(safetensors::Dtype::U8),
        shape: vec![usize::try_from(range.end - range.start).ok()?],
        place: Place::InFile {
            file: 0,
            offset: range.start,
        },
    };
    Tensor::new(part).ok()
}
