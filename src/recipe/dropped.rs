//! What a block leaves out: the tensors that a conv or a norm has, and no others. One more in such a module has a part in what it
//! computes, or is a mistake, and must not vanish.

use super::expand::Index;
use super::model::{BATCH_COUNT, BlockRule, NORM};
use super::pattern::{Captures, Pattern, within};
use crate::tensor::Tensor;

/// The tensors that go with the names in a rule's `drop`: for each, the tensor of this name, and those of the module of this name.
pub(crate) fn dropped<'a>(
    rule: &BlockRule,
    captures: &Captures,
    index: &'a Index,
) -> Vec<&'a Tensor> {
    let named = |pattern: &Pattern| pattern.fill(captures);
    let fused: Vec<String> = (rule.fuse.iter())
        .filter_map(|(module, _)| named(module))
        .collect();
    let mut found = Vec::new();
    for name in rule.drop.iter().filter_map(named) {
        // What the file has of a fused conv is that conv.
        let [counter, vectors] = match (fused.contains(&name), rule.bias) {
            (true, true) => [&[][..], &NORM[..2]],
            (true, false) => [&[][..], &NORM[..1]],
            (false, _) => [&[BATCH_COUNT][..], &NORM[..]],
        };
        let inside = counter.iter().chain(vectors).map(|end| within(&name, end));
        found.extend(inside.filter_map(|name| index.get(&name)));
        found.extend(index.get(&name));
    }
    found
}
