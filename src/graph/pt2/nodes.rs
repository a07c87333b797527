//! The nodes that compute a region anew: one conv, and zeros around its input where they are not the same on both sides.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::json::{Members, Raw, Tagged, read};
use super::read::Pt2;
use super::schema::TensorMeta;
use super::text::Text;
use super::weights;
use crate::graph::plan::Error;
use crate::graph::plan::tensor_of;
use crate::graph::region::{Region, Step, Walk};
use crate::plan::{Block, PlannedConv};
use crate::tensor::{Dtype, Tensor, quoted};

/// What a region becomes.
#[derive(Debug, Default)]
pub(super) struct New {
    pub(super) nodes: Vec<Value>,
    pub(super) parameters: Vec<Parameter>,
    /// The values that are new, and what is known of them.
    pub(super) values: Vec<(String, Value)>,
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
    /// How its numbers lie.
    pub(super) lies: Lies,
}

/// How the numbers of a tensor lie in memory, and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// In the order of its axes.
    InOrder,
    /// The axis of the channels, the second one, innermost: PyTorch's memory formats `channels_last` and `channels_last_3d`.
    ChannelsLast,
}

/// The nodes and parameters that a region becomes. `taken` are the names that the graph has.
///
/// # Errors
/// When the text of the graph does not say what the new values are like.
pub(super) fn new_nodes(
    pt2: &Pt2,
    text: &Text<'_>,
    region: &Region,
    block: &Block,
    taken: &mut HashSet<String>,
) -> Result<New, Error> {
    let fused = &block.fused[0];
    let fail = |message: String| Error::Block {
        block: fused.module.clone(),
        message,
    };
    cuts_the_same(&region.walk).map_err(fail)?;
    let [source, value] = [region.source, region.value].map(|id| &*pt2.graph.value(id).name);
    let unsaid = |name: &str| fail(format!("the graph says nothing of `{name}`"));
    let meta = |name: &str| text.meta(name).ok_or_else(|| unsaid(name));
    // A parameter is described like the value, and can be trained if something that it replaces could.
    let mut like = meta(value)?;
    let trains = |tensor: &Tensor| {
        let meta = text.tensor_meta(tensor.name());
        meta.is_some_and(|meta| meta.requires_grad == Some(true))
    };
    if let Some(members) = like.as_object_mut() {
        let trains = block.consumed.iter().any(trains);
        members.insert("requires_grad".to_owned(), trains.into());
    }
    let mut new = New::default();
    new.parameters(fused, (&like, lies(text, fused)), taken)
        .map_err(fail)?;
    let mut maker = Maker {
        pt2,
        text,
        region,
        nodes: Vec::new(),
    };
    let input = match pads(&region.walk) {
        Some(pads) => {
            let padded = free(&format!("{value}_padded"), taken);
            let padded_meta = padded_meta(&meta(source)?, &region.walk);
            let meta = padded_meta.ok_or_else(|| unsaid(source))?;
            new.values.push((padded.clone(), meta));
            maker.pad([source, &padded], &pads).map_err(fail)?;
            padded
        }
        None => source.to_owned(),
    };
    let parameter = |i: usize| match new.parameters.get(i) {
        Some(parameter) => tensor(&parameter.placeholder),
        None => json!({"as_none": true}),
    };
    let mut arguments = vec![
        argument("input", tensor(&input)),
        argument("weight", parameter(0)),
        argument("bias", parameter(1)),
    ];
    arguments.extend(walk(&region.walk, fused.geometry().groups()));
    let target = operator(&region.walk, fused.geometry().weight_shape().len());
    let target = target.ok_or_else(|| fail("it has no operator".to_owned()))?;
    maker.call(&target, value, arguments).map_err(fail)?;
    new.nodes = maker.nodes;
    Ok(new)
}

/// A tensor's description in the manner of an old one.
fn described(like: &Value, dtype: &Dtype, shape: &[usize], lies: Lies) -> Result<Value, String> {
    let number = weights::number(dtype).ok_or_else(|| format!("{dtype} is no type of PyTorch"))?;
    let mut meta = like
        .as_object()
        .cloned()
        .ok_or_else(|| format!("{} is no description", quoted(&like.to_string())))?;
    let list =
        |numbers: Vec<usize>| Value::from_iter(numbers.into_iter().map(|n| json!({"as_int": n})));
    // The axes from the innermost one on.
    let mut axes: Vec<usize> = (0..shape.len()).rev().collect();
    if lies == Lies::ChannelsLast {
        axes.retain(|axis| *axis != CHANNELS);
        axes.insert(0, CHANNELS);
    }
    let mut strides = vec![1; shape.len()];
    for pair in axes.windows(2) {
        strides[pair[1]] = strides[pair[0]] * shape[pair[0]];
    }
    meta.insert("dtype".to_owned(), number.into());
    meta.insert("sizes".to_owned(), list(shape.to_vec()));
    meta.insert("strides".to_owned(), list(strides));
    meta.insert("storage_offset".to_owned(), json!({"as_int": 0}));
    Ok(Value::Object(meta))
}

/// A transposed conv has one number for what it cuts off both sides of an axis.
fn cuts_the_same(walk: &Walk) -> Result<(), String> {
    match walk {
        Walk::Transposed(steps, _) if steps.iter().any(|step| step.before != step.after) => {
            Err("a transposed conv cuts the same on both sides".to_owned())
        }
        _ => Ok(()),
    }
}

impl New {
    /// Adds a weight, which lies as `lies` says, and, where there is one, a bias, each described like `like`.
    fn parameters(
        &mut self,
        fused: &PlannedConv,
        (like, lies): (&Value, Lies),
        taken: &mut HashSet<String>,
    ) -> Result<(), String> {
        for is_bias in [false, true].into_iter().take(1 + usize::from(fused.bias)) {
            let (name, shape) = tensor_of(fused, is_bias);
            let placeholder = free(&format!("p_{}", identifier(&name)), taken);
            let lies = match is_bias {
                true => Lies::InOrder,
                false => lies,
            };
            let meta = described(like, &Dtype::from(fused.dtype), &shape, lies)?;
            self.values.push((placeholder.clone(), meta.clone()));
            self.parameters.push(Parameter {
                name,
                placeholder,
                meta,
                lies,
            });
        }
        Ok(())
    }
}

/// The axis of a conv's weight that its memory format puts last.
const CHANNELS: usize = 1;

/// How the weight of a region lies: as the largest kernel that it replaces. What a conv gives lies as its weight does, and what reads it may
/// ask for that.
fn lies(text: &Text<'_>, fused: &PlannedConv) -> Lies {
    let rank = fused.geometry().weight_shape().len();
    let convs = fused.expr.root().convs().into_iter();
    let kernels = convs.map(|(conv, _)| {
        let taps: usize = conv.weight.shape().iter().skip(2).product();
        let meta = text.tensor_meta(conv.weight.name());
        (taps, meta.is_some_and(|meta| channels_last(&meta, rank)))
    });
    match kernels.max() {
        Some((_, true)) => Lies::ChannelsLast,
        _ => Lies::InOrder,
    }
}

/// Whether PyTorch takes a tensor to be in one of its memory formats with the channels last: of a tensor whose numbers lie the same in both
/// orders, the strides of its axes of one element tell.
fn channels_last(meta: &TensorMeta<'_>, rank: usize) -> bool {
    let known = |list: &[Tagged<'_>]| list.iter().map(weights::known).collect::<Option<Vec<_>>>();
    let (Some(sizes), Some(strides)) = (known(&meta.sizes), known(&meta.strides)) else {
        return false;
    };
    if !(rank == 4 || rank == 5) || sizes.len() != rank || strides.len() != rank {
        return false;
    }
    let mut least = 0;
    for axis in [CHANNELS].into_iter().chain((2..rank).rev()).chain([0]) {
        let ambiguous = axis == 0 && least == strides[CHANNELS];
        if sizes[axis] == 0 || strides[axis] < least || ambiguous {
            return false;
        }
        least = strides[axis].saturating_mul(sizes[axis].max(1));
    }
    true
}

/// The operator of a region whose weight has this many dimensions.
fn operator(walk: &Walk, rank: usize) -> Option<String> {
    let spatial = rank.checked_sub(2).filter(|n| *n <= 3)?;
    Some(match (walk, spatial) {
        (Walk::Linear, _) => "torch.ops.aten.linear.default".to_owned(),
        (_, 0) => return None,
        (Walk::Conv(_), n) => format!("torch.ops.aten.conv{n}d.default"),
        (Walk::Transposed(..), 2) => "torch.ops.aten.conv_transpose2d.input".to_owned(),
        (Walk::Transposed(..), 3) => "torch.ops.aten.conv_transpose3d.input".to_owned(),
        (Walk::Transposed(..), n) => format!("torch.ops.aten.conv_transpose{n}d.default"),
    })
}

/// What follows the bias: `stride`, `padding` and so on.
fn walk(walk: &Walk, groups: usize) -> Vec<Value> {
    let list = |steps: &[Step], of: fn(&Step) -> usize| json!({"as_ints": steps.iter().map(of).collect::<Vec<_>>()});
    let groups = argument("groups", json!({"as_int": groups}));
    let padding = |step: &Step| {
        if step.before == step.after {
            step.before
        } else {
            0
        }
    };
    match walk {
        Walk::Conv(steps) => {
            let padding: Vec<usize> = match pads(walk) {
                Some(_) => vec![0; steps.len()],
                None => steps.iter().map(padding).collect(),
            };
            vec![
                argument("stride", list(steps, |step| step.stride)),
                argument("padding", json!({"as_ints": padding})),
                argument("dilation", list(steps, |step| step.dilation)),
                groups,
            ]
        }
        Walk::Transposed(steps, added) => vec![
            argument("stride", list(steps, |step| step.stride)),
            argument("padding", list(steps, |step| step.before)),
            argument("output_padding", json!({"as_ints": added})),
            groups,
            argument("dilation", list(steps, |step| step.dilation)),
        ],
        Walk::Linear => Vec::new(),
    }
}

/// What a conv cannot pad itself: the last axis first, before and behind, as `pad` takes it.
fn pads(walk: &Walk) -> Option<Vec<usize>> {
    let Walk::Conv(steps) = walk else {
        return None;
    };
    walk.is_uneven().then(|| {
        steps
            .iter()
            .rev()
            .flat_map(|step| [step.before, step.after])
            .collect()
    })
}

/// What is known of a value once it is padded.
fn padded_meta(meta: &Value, walk: &Walk) -> Option<Value> {
    let Walk::Conv(steps) = walk else {
        return None;
    };
    let mut sizes = meta.get("sizes")?.as_array()?.clone();
    let first = sizes.len().checked_sub(steps.len())?;
    for (size, step) in sizes[first..].iter_mut().zip(steps) {
        let padded = size
            .get("as_int")?
            .as_u64()?
            .checked_add((step.before + step.after) as u64)?;
        *size = json!({"as_int": padded});
    }
    // Of a size that varies the strides are not known either, unless it is the outermost.
    let mut strides = vec![json!({"as_int": 1})];
    let mut dense = 1u64;
    for size in sizes.iter().skip(1).rev() {
        dense = dense.checked_mul(size.get("as_int")?.as_u64()?)?;
        strides.insert(0, json!({"as_int": dense}));
    }
    let mut meta = meta.as_object()?.clone();
    meta.insert("sizes".to_owned(), sizes.into());
    meta.insert("strides".to_owned(), strides.into());
    meta.insert("storage_offset".to_owned(), json!({"as_int": 0}));
    Some(Value::Object(meta))
}

fn tensor(name: &str) -> Value {
    json!({"as_tensor": {"name": name}})
}

fn argument(name: &str, arg: Value) -> Value {
    json!({"name": name, "arg": arg, "kind": 1})
}

/// Calls in the manner of the node that computes the region's value now: its metadata, and whatever else a node has.
struct Maker<'a> {
    pt2: &'a Pt2,
    text: &'a Text<'a>,
    region: &'a Region,
    nodes: Vec<Value>,
}

impl Maker<'_> {
    /// Zeros around a value, which become another one.
    fn pad(&mut self, [source, padded]: [&str; 2], pads: &[usize]) -> Result<(), String> {
        let arguments = vec![
            argument("self", tensor(source)),
            argument("pad", json!({"as_ints": pads})),
        ];
        self.call("torch.ops.aten.pad.default", padded, arguments)
    }

    fn call(&mut self, target: &str, output: &str, inputs: Vec<Value>) -> Result<(), String> {
        let producer = self.pt2.graph.value(self.region.value).producer();
        let last = producer.map(|id| self.text.nodes[self.pt2.positions[id.0]]);
        let last = last.ok_or("nothing computes it")?;
        let Members(members): Members<'_, Raw<'_>> = read(last).map_err(|e| e.to_string())?;
        let mut node = Map::new();
        for (key, old) in members {
            let new = match &*key {
                "target" => target.into(),
                "inputs" => Value::Array(inputs.clone()),
                "outputs" => json!([{"as_tensor": {"name": output}}]),
                "name" => output.into(),
                _ => read(old).map_err(|e| e.to_string())?,
            };
            node.insert(key.into_owned(), new);
        }
        self.nodes.push(Value::Object(node));
        Ok(())
    }
}

/// A name as Python has them.
fn identifier(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    name.chars().map(fits).collect()
}

/// A name like this that the graph does not have yet.
fn free(name: &str, taken: &mut HashSet<String>) -> String {
    let mut free = name.to_owned();
    let mut n = 0;
    while !taken.insert(free.clone()) {
        n += 1;
        free = format!("{name}_{n}");
    }
    free
}
