//! A deploy form as PyTorch's own file: an archive of a pickle and of one entry for the numbers of each tensor.

use std::path::Path;

use super::archive::{Entry, text};
use super::metadata;
use crate::plan::Plan;
use crate::tensor::pytorch::METADATA_ENTRY;
use crate::tensor::pytorch::write::{AFTER, BEFORE, ROOT, pickle};
use crate::tensor::{Checkpoint, Error, Output, Plain};

/// The entries of the file. What is plain around the state dict of the input stands around that of the output.
///
/// # Errors
/// When a tensor is of a type that PyTorch does not have.
pub(super) fn entries(
    checkpoint: &Checkpoint,
    plan: &Plan,
    destination: &Path,
) -> Result<Vec<Entry>, Error> {
    let mut items: Vec<_> = plan.outputs.iter().collect();
    items.sort_by(|a, b| a.output.name.cmp(&b.output.name));
    let outputs: Vec<Output> = items.iter().map(|item| item.output.clone()).collect();
    let around = match checkpoint.wrapping() {
        Some(wrapping) => &wrapping.plain,
        None => &Plain::StateDict,
    };
    let pickle = pickle(&outputs, around).map_err(|reason| Error::Unwritable {
        path: destination.to_owned(),
        reason,
    })?;
    let metadata = metadata(checkpoint, plan).into_iter();
    let metadata: serde_json::Map<_, _> =
        metadata.map(|(key, value)| (key, value.into())).collect();
    let metadata = serde_json::Value::Object(metadata).to_string();
    let entry = |name: &str, item| Entry {
        name: format!("{ROOT}/{name}"),
        item,
    };
    let texts = |all: &[(&str, &str)]| -> Vec<Entry> {
        let all = all.iter();
        all.map(|(name, is)| entry(name, text(is.as_bytes())))
            .collect()
    };
    let mut entries = vec![entry("data.pkl", text(&pickle))];
    entries.extend(texts(&BEFORE));
    let numbers = items.into_iter().enumerate();
    entries.extend(numbers.map(|(i, item)| entry(&format!("data/{i}"), item.clone())));
    entries.extend(texts(&AFTER));
    entries.push(entry(METADATA_ENTRY, text(metadata.as_bytes())));
    Ok(entries)
}
