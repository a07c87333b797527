//! Which tensor lies where in the archive: the configurations beside the weights and the constants.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;

use super::json::{Key, Members, Raw, Tagged, read};
use super::schema::{STRIDED, TensorMeta};
use crate::tensor::{Dtype, Part, Place, View, quoted};

/// The configuration of a folder of raw tensors.
#[derive(Deserialize)]
struct Config<'a> {
    #[serde(borrow)]
    config: Raw<'a>,
}

/// What it says of a tensor.
#[derive(Deserialize)]
pub(super) struct Payload<'a> {
    #[serde(borrow)]
    pub(super) path_name: Key<'a>,
    use_pickle: bool,
    #[serde(borrow)]
    pub(super) tensor_meta: Option<TensorMeta<'a>>,
}

/// A tensor of the archive, or why it cannot be read as one.
pub(super) enum Stored {
    /// One whose numbers are at hand.
    Tensor(Part),
    /// It is copied as it is, and nothing is folded from it.
    Unread(String),
}

const UNKNOWN: &str = "has an element type that is not read";

/// The tensor that a payload describes. `range` is where its entry lies in the file, of which it may take a part.
///
/// # Errors
/// Says what is wrong where the entry does not hold what the configuration promises.
pub(super) fn stored(
    name: &str,
    payload: &Payload<'_>,
    range: &Range<u64>,
) -> Result<Stored, String> {
    let unread = |why: &str| Ok(Stored::Unread(format!("{} {why}", quoted(name))));
    if payload.use_pickle {
        return unread("is stored as a pickle, as tensor subclasses are; export plain tensors");
    }
    let Some(meta) = &payload.tensor_meta else {
        return unread("has no description");
    };
    if meta.layout != STRIDED {
        return unread("is sparse");
    }
    let Some(dtype) = dtype(meta.dtype) else {
        return unread(UNKNOWN);
    };
    let numbers = |list: &[Tagged<'_>]| list.iter().map(known).collect::<Option<Vec<u64>>>();
    let (Some(sizes), Some(strides)) = (numbers(&meta.sizes), numbers(&meta.strides)) else {
        return Err(format!(
            "the shape of {} is not known before it runs",
            quoted(name)
        ));
    };
    let offset = match &meta.storage_offset {
        Some(offset) => {
            known(offset).ok_or_else(|| format!("{} has no storage offset", quoted(name)))?
        }
        None => 0,
    };
    let bits = dtype.bits().filter(|bits| bits % 8 == 0);
    let Some(size) = bits.map(|bits| bits as u64 / 8) else {
        return unread(UNKNOWN);
    };
    if !(range.end - range.start).is_multiple_of(size) {
        return Err(format!(
            "the entry of {} has {} bytes, which are no whole number of its elements of {size}",
            quoted(name),
            range.end - range.start
        ));
    }
    let view = View::new(range.clone(), size, offset, &sizes, &strides)
        .map_err(|why| format!("{} {why}", quoted(name)))?;
    if view.byte_len > range.end - range.start {
        return unread("repeats what is stored, as `expand` does");
    }
    let shape = sizes
        .iter()
        .map(|n| usize::try_from(*n))
        .collect::<Result<Vec<_>, _>>();
    let shape =
        shape.map_err(|_| format!("the shape {sizes:?} of {} is too large", quoted(name)))?;
    let place = match view.is_plain() {
        true => Place::InFile {
            file: 0,
            offset: view.at,
        },
        false => Place::View(Arc::new(view)),
    };
    Ok(Stored::Tensor(Part {
        name: name.to_owned(),
        dtype,
        shape,
        place,
    }))
}

/// A number that is there before the network runs: `{"as_int": 3}`.
pub(super) fn known(size: &Tagged<'_>) -> Option<u64> {
    match &*size.tag {
        "as_int" => read(size.value).ok(),
        _ => None,
    }
}

/// The name of an element type, by its number in the schema's `ScalarType`.
pub(super) fn dtype(number: u64) -> Option<Dtype> {
    let name = TYPES.iter().find(|(known, _)| *known == number)?.1;
    Some(Dtype::from_name(name))
}

/// The number of an element type in the schema.
pub(super) fn number(dtype: &Dtype) -> Option<u64> {
    let name = dtype.to_string();
    TYPES
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(number, _)| *number)
}

const TYPES: [(u64, &str); 16] = [
    (1, "U8"),
    (2, "I8"),
    (3, "I16"),
    (4, "I32"),
    (5, "I64"),
    (6, "F16"),
    (7, "F32"),
    (8, "F64"),
    (10, "C64"),
    (12, "BOOL"),
    (13, "BF16"),
    (28, "U16"),
    (29, "F8_E4M3"),
    (30, "F8_E5M2"),
    (34, "U32"),
    (35, "U64"),
];

/// What a configuration says of each tensor.
///
/// # Errors
/// When it is not what a configuration is.
pub(super) fn config(text: &str) -> Result<Vec<(Cow<'_, str>, Payload<'_>)>, String> {
    let (_, members) = members(text).map_err(|e| e.to_string())?;
    let members = members.into_iter();
    members
        .map(|(name, raw)| {
            let payload = read(raw).map_err(|e| format!("{}: {e}", quoted(&name)))?;
            Ok((name, payload))
        })
        .collect()
}

/// The object of a configuration as its text, and as its members.
///
/// # Errors
/// When it is not what a configuration is.
#[expect(clippy::type_complexity, reason = "a name and a text, many times")]
pub(super) fn members(
    text: &str,
) -> Result<(Raw<'_>, Vec<(Cow<'_, str>, Raw<'_>)>), serde_json::Error> {
    let Config { config } = serde_json::from_str(text)?;
    let Members(members) = read(config)?;
    Ok((config, members))
}
