//! Which constants flow into the weights of layers. Others need not be worked out, however many numbers they have: a table of positions
//! that is added to the scores of attention is no part of any layer.

use std::collections::HashSet;
use std::hash::Hash;

use super::model::Dim;

/// Constants of no more numbers are worked out in any case: a vector may be combined with a value, and a list may say a shape.
pub(super) const FEW: usize = 1 << 16;

/// Whether a shape certainly has more.
pub(super) fn is_large(shape: &[Dim]) -> bool {
    let known = shape.iter().filter_map(Dim::known);
    known.fold(1, usize::saturating_mul) > FEW
}

/// What a node reads and writes, by name.
pub(super) struct Flow<N> {
    pub reads: Vec<N>,
    /// What it gives, and what it changes in place.
    pub writes: Vec<N>,
    /// Whether it is a layer, which multiplies with a weight.
    pub is_layer: bool,
}

/// The constants that layers read, and those that these are made of. `stored` are the tensors of the file.
pub(super) fn wanted<N: Copy + Eq + Hash>(
    flows: &[Flow<N>],
    stored: impl IntoIterator<Item = N>,
) -> HashSet<N> {
    let mut fixed: HashSet<N> = stored.into_iter().collect();
    let mut makes_constants = Vec::with_capacity(flows.len());
    for flow in flows {
        let all = flow.reads.iter().all(|name| fixed.contains(name));
        if all {
            fixed.extend(&flow.writes);
        }
        makes_constants.push(all);
    }
    let mut wanted = HashSet::new();
    for (flow, makes) in flows.iter().zip(makes_constants).rev() {
        let passes_on = makes && flow.writes.iter().any(|name| wanted.contains(name));
        if flow.is_layer || passes_on {
            let constants = flow.reads.iter().filter(|name| fixed.contains(*name));
            wanted.extend(constants);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::{Flow, wanted};

    fn flow(reads: &[&'static str], write: &'static str, is_layer: bool) -> Flow<&'static str> {
        Flow {
            reads: reads.to_vec(),
            writes: vec![write],
            is_layer,
        }
    }

    #[test]
    fn what_a_weight_is_made_of_is_wanted_and_what_is_added_to_a_value_is_not() {
        let flows = [
            flow(&["w"], "half", false),
            flow(&["half", "mask"], "masked", false),
            flow(&["x", "masked"], "y", true),
            flow(&["table", "index"], "bias", false),
            flow(&["y", "bias"], "z", false),
            flow(&["z", "v"], "out", true),
        ];
        let found = wanted(&flows, ["w", "mask", "table", "index", "v"]);
        let mut found: Vec<&str> = found.into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, ["half", "mask", "masked", "v", "w"]);
    }
}
