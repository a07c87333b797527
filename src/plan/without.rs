//! A file without what the user wants left out of it.

use super::closed::Beside;
use crate::recipe::expand::Index;
use crate::recipe::{Error, without_wrappers};
use crate::tensor::Tensor;

/// The tensors that globs on tensors and modules take out, and the others; none of the latter where there is no glob.
///
/// # Errors
/// When a glob is none, or matches nothing.
pub(super) fn split(index: &Index, drop: &[String]) -> Result<(Vec<Tensor>, Option<Index>), Error> {
    if drop.is_empty() {
        return Ok((Vec::new(), None));
    }
    let covers =
        |wish: &Beside<'_>, name: &str| wish.covers(name) || wish.covers(&without_wrappers(name));
    if let Some(glob) = Beside::idle(drop, index, covers)? {
        return Err(Error::NothingDropped { glob });
    }
    let wish = Beside::new(&[], drop)?;
    let takes = |name: &str| covers(&wish, name);
    let (out, rest): (Index, Index) = index
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.clone()))
        .partition(|(name, _)| takes(name));
    Ok((out.into_values().collect(), Some(rest)))
}
