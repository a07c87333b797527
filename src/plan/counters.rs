//! Counters of batch norms: one integer each, and no other tensor of that name.

use foldhash::{HashMap, HashMapExt};

use crate::recipe::model::{BATCH_COUNT, NORM};
use crate::tensor::{Dtype, Tensor};

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
