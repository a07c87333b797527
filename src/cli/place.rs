//! Where a file is to go, looked at before any work.

use std::path::Path;

use crate::tensor::Destination;

/// The place of a file that an argument names. Other commands write to the standard output where a file is called `-`; this one
/// needs a file, which it reads again and renames, and makes none of that name by accident.
///
/// # Errors
/// When nothing can be written there, or the name is `-`.
pub(super) fn of(path: &Path) -> anyhow::Result<Destination> {
    anyhow::ensure!(
        path != Path::new("-"),
        "`-` would be the standard output, and only files are written; choose a name (`./-` for a file called `-`)"
    );
    Ok(Destination::new(path)?)
}
