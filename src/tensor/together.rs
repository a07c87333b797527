//! Several files that get their names together or not at all.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tempfile::TempPath;

use super::destination::Destination;
use super::error::Error;
use super::scratch::{Scratch, set_aside, synced};

/// Syncs files and gives them their names, all or none; the last is the one without which the others are nothing.
///
/// What they replace is set aside first, the last file first of all, and comes back on any error. So whoever ends the process
/// at any time leaves no mixture of old and new that the last file would join. Where files may be replaced, the `stale` ones are set
/// aside with them, and are gone when all is done.
///
/// # Errors
/// As for [`Scratch::finish`](super::Scratch::finish); every destination is then what it was.
pub(super) fn finish_together(
    files: Vec<Scratch>,
    stale: &[Destination],
    replace: bool,
) -> Result<(), Error> {
    for file in &files {
        file.sync()?;
    }
    let mut steps = Steps::default();
    let directories: BTreeSet<PathBuf> =
        files.iter().map(|f| f.destination().directory()).collect();
    if replace {
        let replaced = files.iter().rev().map(Scratch::destination);
        for destination in replaced.chain(stale) {
            if let Some(aside) = set_aside(destination)? {
                let place = destination.path().to_owned();
                steps.replaced.push((place, aside));
            }
        }
    }
    for file in files {
        let path = file.rename(replace)?;
        steps.named.push(path);
    }
    directories.into_iter().try_for_each(synced)?;
    steps.done = true;
    Ok(())
}

/// What has been done to destinations so far, undone when it is dropped before all is done.
#[derive(Default)]
struct Steps {
    /// New files that have their names.
    named: Vec<PathBuf>,
    /// Old files that have been set aside: where each belongs, and where it is.
    replaced: Vec<(PathBuf, TempPath)>,
    done: bool,
}

impl Drop for Steps {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // The error that led here is the one to tell.
        for path in self.named.drain(..) {
            let _ = std::fs::remove_file(path);
        }
        // The last file was set aside first, and comes back last.
        while let Some((place, aside)) = self.replaced.pop() {
            let _ = aside.persist(place);
        }
    }
}
