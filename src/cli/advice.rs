//! What to do about an error of the library, in terms of this command's flags.
//!
//! The library says what is wrong; a remedy that is a flag is added here, once for each error that has one.

use std::error::Error;

use crate::fuse::diagnose;
use crate::graph::{Beyond, file, plan};
use crate::network::{self, maps, sample};
use crate::recipe;
use crate::report;
use crate::tensor::{self, quoted};

/// The remedy, to be put behind what an error says.
pub(super) fn of(error: &(dyn Error + 'static)) -> Option<String> {
    let error = innermost(error);
    if let Some(error) = error.downcast_ref::<tensor::Error>() {
        return of_file(error);
    }
    if let Some(diagnose::Error::Overflow { value, dtype, .. }) = error.downcast_ref() {
        let types: Vec<String> = diagnose::holding(*value, *dtype)
            .map(|float| float.to_string())
            .collect();
        return (!types.is_empty())
            .then(|| format!("store it with --dtype {}", types.join(" or ")));
    }
    if let Some(diagnose::Error::Exported { block, conv, .. }) = error.downcast_ref() {
        let [block, conv] = [block, conv].map(|name| quoted(name));
        return Some(format!(
            "--drop {conv} folds the branches all the same, --skip {block} leaves the block as it is"
        ));
    }
    if let Some(Beyond { block, .. }) = error.downcast_ref() {
        let block = quoted(block);
        return Some(format!("--skip {block} leaves the block as it is"));
    }
    let selected = "--only and --skip select them, and `repfuse inspect` shows their names";
    match (
        error.downcast_ref(),
        error.downcast_ref(),
        error.downcast_ref(),
    ) {
        (Some(recipe::Error::Ambiguous { .. }), ..) => Some("choose one with --recipe".to_owned()),
        (Some(recipe::Error::NoneSelected { .. }), ..)
        | (_, Some(plan::Error::NoneSelected { .. }), _) => Some(selected.to_owned()),
        (.., Some(network::Error::NoNetwork(_))) => {
            Some("`verify` without --end-to-end checks each of them".to_owned())
        }
        _ => None,
    }
}

fn of_file(error: &tensor::Error) -> Option<String> {
    match error {
        tensor::Error::Exists(_) | tensor::Error::SameFile(_) => {
            Some("choose another name or pass --force to replace it".to_owned())
        }
        tensor::Error::SeveralKeys { .. } => Some("choose one with --key".to_owned()),
        tensor::Error::NoKeys { key, .. } => Some(format!("leave out --key {}", quoted(key))),
        _ => None,
    }
}

/// The error that a transparent one stands for.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut error = error;
    while let Some(inner) = inside(error) {
        error = inner;
    }
    error
}

fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(diagnose::Error::Tensor(e)) = error.downcast_ref() {
        return Some(e);
    }
    if let Some(error) = error.downcast_ref::<file::Error>() {
        return match error {
            file::Error::Numbers(e) => Some(e),
            file::Error::Tensor(e) => Some(e),
            file::Error::Beyond(e) => Some(e),
            _ => None,
        };
    }
    if let Some(plan::Error::Options(e)) = error.downcast_ref() {
        return Some(e);
    }
    if let Some(error) = error.downcast_ref::<network::Error>() {
        return match error {
            network::Error::Numbers(e) => Some(e),
            network::Error::Tensor(e) => Some(e),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<maps::Error>() {
        return match error {
            maps::Error::Network(e) => Some(e),
            maps::Error::Numbers(e) => Some(e),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<sample::Error>() {
        return match error {
            sample::Error::Recipe(e) => Some(e),
            sample::Error::Tensor(e) => Some(e),
            _ => None,
        };
    }
    match error.downcast_ref() {
        Some(report::Error::Numbers(e)) => Some(e),
        _ => None,
    }
}
