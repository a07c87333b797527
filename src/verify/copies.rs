//! Source is not fused: the same names in both files, and the same bytes.

use std::collections::BTreeMap;

use super::Options;
use crate::algebra::Values;
use crate::fuse::diagnose;
use crate::plan::{Plan, Source};
use crate::tensor::Reader;
use crate::tensor::{Checkpoint, Error as TensorError, Output, Tensor, quoted};

/// How many tensors are copies, and what is wrong with the others.
pub(super) fn compare_copies(
    checkpoint: &Checkpoint,
    plan: &Plan,
    file: &Checkpoint,
    options: &Options,
) -> Result<(usize, Vec<String>), TensorError> {
    let mut failures = Vec::new();
    let mut copied = 0;
    let planned: BTreeMap<&str, _> = plan
        .outputs
        .iter()
        .map(|p| (p.output.name.as_str(), p))
        .collect();
    for (name, planned) in &planned {
        options.go_on()?;
        let Some(found) = file.get(name) else {
            failures.push(format!("{} is missing", quoted(name)));
            continue;
        };
        match &planned.what {
            Source::Copy(tensor) => match difference(checkpoint, tensor, file, found)? {
                None => copied += 1,
                Some(difference) => failures.push(difference),
            },
            Source::Fill(_) if !same_kind(&planned.output, found) => failures.push(format!(
                "{found} is {} {:?}; expected {} {:?}",
                found.dtype(),
                found.shape(),
                planned.output.dtype,
                planned.output.shape
            )),
            Source::Fill(value) => {
                let mut reader = Reader::new(file, 1 << 16);
                let values = reader.vector(found, 0, found.len())?;
                let value = found.dtype().float().map_or(*value, |f| f.round(*value));
                if let Some(x) = values.iter().find(|x| **x != value) {
                    failures.push(format!("{found} holds {x}; the recipe sets it to {value}"));
                }
            }
            // Compared as blocks.
            Source::Weight(..) | Source::Bias(..) => {}
        }
    }
    let leftovers = file
        .tensors()
        .keys()
        .filter(|name| !planned.contains_key(name.as_str()));
    failures.extend(leftovers.map(|name| {
        format!(
            "{} is left over; the deploy form has no such tensor",
            quoted(name)
        )
    }));
    Ok((copied, failures))
}

fn same_kind(output: &Output, found: &Tensor) -> bool {
    output.dtype == *found.dtype() && output.shape == found.shape()
}

fn difference(
    checkpoint: &Checkpoint,
    tensor: &Tensor,
    file: &Checkpoint,
    found: &Tensor,
) -> Result<Option<String>, TensorError> {
    if tensor.dtype() != found.dtype() || tensor.shape() != found.shape() {
        let [was, is] = [tensor, found].map(|t| format!("{} {:?}", t.dtype(), t.shape()));
        return Ok(Some(format!(
            "{found} is {is}; it was {was}, and is to be copied"
        )));
    }
    const CHUNK: u64 = 1 << 20;
    let mut at = 0;
    let mut buffers = [Vec::new(), Vec::new()];
    while at < tensor.byte_len() {
        let len = CHUNK.min(tensor.byte_len() - at) as usize;
        let [a, b] = &mut buffers;
        a.resize(len, 0);
        b.resize(len, 0);
        checkpoint.read_at(tensor, at, a)?;
        file.read_at(found, at, b)?;
        if let Some(byte) = a.iter().zip(b.iter()).position(|(a, b)| a != b) {
            let byte = at as usize + byte;
            let place = match tensor.dtype().bits() {
                Some(bits) => {
                    let flat = byte * 8 / bits.max(1);
                    format!("{:?}", diagnose::place_in(tensor.shape(), flat))
                }
                None => format!("byte {byte}"),
            };
            return Ok(Some(format!("{found} differs from its copy at {place}")));
        }
        at += len as u64;
    }
    Ok(None)
}
