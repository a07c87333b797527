//! What a block leaves out: the tensors that a conv or a norm has, and no others. One more in such a module has a part in what it
//! computes, or is a mistake, and must not vanish.

use foldhash::{HashMap, HashMapExt};

use super::PlannedConv;
use super::path::within;
use crate::recipe::expand::Index;
use crate::recipe::model::{BATCH_COUNT, NORM};
use crate::tensor::{Dtype, Tensor};

/// The tensors that go with a name of `drop`: the tensor of this name, or those of the module of this name.
pub(super) fn dropped<'a>(index: &'a Index, name: &str, fused: &[PlannedConv]) -> Vec<&'a Tensor> {
    let names = match fused.iter().find(|conv| conv.module == name) {
        // What the file has of a fused conv is that conv.
        Some(conv) => conv.names().collect(),
        None => parts_of(name),
    };
    let own = std::iter::once(name.to_owned());
    let named = own.chain(names);
    named.filter_map(|name| index.get(&name)).collect()
}

/// The names that the tensors of a conv or a norm may have.
fn parts_of(module: &str) -> Vec<String> {
    let ends = NORM.into_iter().chain([BATCH_COUNT]);
    ends.map(|end| within(module, end)).collect()
}

/// Checks that the counters among the tensors of a block are some: one integer each, or one number of the type of the whole norm where
/// somebody has cast all tensors of a file.
///
/// # Errors
/// A sentence on one that is none.
pub(super) fn expect_counters(consumed: &[Tensor]) -> Result<(), String> {
    let norm_of = |tensor: &Tensor, end: &str| {
        let module = tensor.name().strip_suffix(end)?;
        (module.is_empty() || module.ends_with('.')).then(|| module.to_owned())
    };
    let mut types: HashMap<String, &Dtype> = HashMap::new();
    for mean in consumed {
        if let Some(norm) = norm_of(mean, NORM[2]) {
            types.insert(norm, mean.dtype());
        }
    }
    for count in consumed {
        let Some(norm) = norm_of(count, BATCH_COUNT) else {
            continue;
        };
        let cast = types.get(&norm) == Some(&count.dtype());
        if count.len() != 1 || !(count.dtype().is_integer() || cast) {
            return Err(format!(
                "{count} is {} {:?}; expected one integer, which counts the batches that a norm has seen",
                count.dtype(),
                count.shape()
            ));
        }
    }
    Ok(())
}
