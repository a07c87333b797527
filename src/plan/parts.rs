//! Weights that are no plain numbers: what stands beside a conv, or in its place, that folding would make stale or cannot read.
//! It is known by the names that PyTorch and the usual libraries give it.

use std::collections::{BTreeMap, BTreeSet};

use super::path::parent;
use crate::recipe::Error;
use crate::recipe::expand::Index;
use crate::tensor::Tensor;

/// A kind of such parts: what errors and summaries call it, and what to do.
struct Kind {
    is: &'static str,
    short: &'static str,
    remedy: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        is: "has the state of a quantizer, which fits the weights before folding and not those after",
        short: "quantizer",
        remedy: "remove the quantizers, or drop their state, and quantize the folded network",
    },
    Kind {
        is: "is stored as a base weight and LoRA parts",
        short: "LoRA parts",
        remedy: "merge them first, as `merge_and_unload()` of peft does",
    },
    Kind {
        is: "has a weight under spectral norm",
        short: "spectral norm",
        remedy: "remove it first, as `torch.nn.utils.remove_spectral_norm` or `parametrize.remove_parametrizations` does",
    },
    // Over the first axis, and masks of numbers, are computed before this is asked.
    Kind {
        is: "has a weight in parts that are not put together here",
        short: "weight in parts",
        remedy: "remove the weight norm, pruning or parametrization first, as `remove_weight_norm`, `prune.remove` or `parametrize.remove_parametrizations` does",
    },
];

const QUANTIZER: usize = 0;
const LORA: usize = 1;
const SPECTRAL: usize = 2;
const IN_PARTS: usize = 3;

/// The kind of the parts that have this path segment; their module is what stands before it.
fn kind_of(segment: &str) -> Option<usize> {
    Some(match segment {
        "_amax"
        | "_pre_quant_scale"
        | "_input_quantizer"
        | "_weight_quantizer"
        | "_output_quantizer"
        | "input_quantizer"
        | "weight_quantizer"
        | "output_quantizer"
        | "act_quantizer"
        | "weight_fake_quant"
        | "act_fake_quant"
        | "fake_quant_enabled"
        | "observer_enabled"
        | "activation_post_process"
        | "weight_observer"
        | "act_observer"
        | "weight_quant"
        | "input_quant"
        | "output_quant" => QUANTIZER,
        "lora_A"
        | "lora_B"
        | "lora_down"
        | "lora_up"
        | "lora_mid"
        | "lora_magnitude_vector"
        | "base_layer" => LORA,
        "parametrizations" => IN_PARTS,
        _ => return None,
    })
}

/// A module whose weight is no plain numbers, or has a quantizer.
pub(super) struct Found {
    pub(super) module: String,
    /// The first of the tensors that say so.
    pub(super) tensor: Tensor,
    kind: usize,
    /// Globs of all parts of this kind in the file.
    globs: Vec<String>,
}

impl Found {
    /// What a summary calls it.
    pub(super) fn short(&self) -> &'static str {
        KINDS[self.kind].short
    }

    /// Whether the weight itself is as it should be.
    pub(super) fn is_quantizer(&self) -> bool {
        self.kind == QUANTIZER
    }

    /// The error that refuses it.
    pub(super) fn refused(&self) -> Error {
        let Kind { is, remedy, .. } = KINDS[self.kind];
        Error::Parts {
            module: self.module.clone(),
            name: self.tensor.name_in_file().to_owned(),
            quantizer: self.is_quantizer(),
            globs: self.globs.clone(),
            is,
            remedy,
        }
    }
}

/// Every such module of a file, in the order of the names.
pub(super) fn find(index: &Index) -> Vec<Found> {
    let mut found: BTreeMap<(&str, usize), &Tensor> = BTreeMap::new();
    for tensor in index.values() {
        if let Some(at) = in_parts(tensor.name(), index).or_else(|| {
            let (module, _, kind) = of_segments(tensor.name())?;
            Some((module, kind))
        }) {
            found.entry(at).or_insert(tensor);
        }
    }
    let globs = |kind: usize| -> Vec<String> {
        let of_kind = index.keys().filter_map(|name| of_segments(name));
        let globs =
            of_kind
                .filter(|(_, _, of)| *of == kind)
                .map(|(module, segment, _)| match module {
                    "" => segment.to_owned(),
                    _ => format!("*.{segment}"),
                });
        globs.collect::<BTreeSet<String>>().into_iter().collect()
    };
    let mut of_kinds: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (_, kind) in found.keys() {
        of_kinds.entry(*kind).or_insert_with(|| globs(*kind));
    }
    let found = found.into_iter().map(|((module, kind), tensor)| Found {
        module: module.to_owned(),
        tensor: tensor.clone(),
        globs: of_kinds.get(&kind).cloned().into_iter().flatten().collect(),
        kind,
    });
    found.collect()
}

/// The module of a tensor with a segment that only such parts have, the segment, and the kind.
fn of_segments(name: &str) -> Option<(&str, &str, usize)> {
    let mut at = 0;
    for segment in name.split('.') {
        if let Some(kind) = kind_of(segment) {
            return Some((name[..at].trim_end_matches('.'), segment, kind));
        }
        at += segment.len() + 1;
    }
    None
}

/// The original weight of a module under spectral norm, which has the vectors of its power iteration beside it; one of two parts
/// of a weight.
fn in_parts<'n>(name: &'n str, index: &Index) -> Option<(&'n str, usize)> {
    let has = |name: String| index.contains_key(&name);
    if let Some(weight) = name.strip_suffix("_orig") {
        let kind = match (has(format!("{weight}_u")), has(format!("{weight}_mask"))) {
            (true, _) => SPECTRAL,
            (_, true) => IN_PARTS,
            _ => return None,
        };
        return Some((parent(weight), kind));
    }
    if let Some(weight) = name.strip_suffix("_g") {
        return has(format!("{weight}_v")).then(|| (parent(weight), IN_PARTS));
    }
    let (module, weight) = name
        .strip_suffix(".original")?
        .rsplit_once(".parametrizations.")?;
    has(format!("{module}.parametrizations.{weight}.0._u")).then_some((module, SPECTRAL))
}
