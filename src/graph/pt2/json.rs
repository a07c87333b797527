//! The text of a graph in JSON: what is understood is read, all else stays the text it is.
//!
//! Editing replaces ranges of the text, so that nothing that is not understood is lost or written anew.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::tensor::quoted;

/// A part of a JSON text, not read yet.
pub(super) type Raw<'a> = &'a RawValue;

/// An object as its members, in their order; no key is there twice.
pub(super) struct Members<'a, T>(pub(super) Vec<(Cow<'a, str>, T)>);

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for Members<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'a, T>, D::Error> {
        struct Pairs<'a, T>(PhantomData<(&'a (), T)>);
        impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for Pairs<'a, T> {
            type Value = Members<'a, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut members, mut seen) = (Vec::new(), HashSet::new());
                while let Some(Key(key)) = map.next_key()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!(
                            "the key {} is there twice",
                            quoted(&key)
                        )));
                    }
                    members.push((key, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

/// A string that is borrowed where it has no escapes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(transparent)]
pub(super) struct Key<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// The one value of an object with one key, which tells its kind, as in `{"as_int": 3}`.
#[derive(Clone, Debug)]
pub(super) struct Tagged<'a> {
    /// The key.
    pub(super) tag: Cow<'a, str>,
    /// What stands under it.
    pub(super) value: Raw<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Tagged<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tagged<'a>, D::Error> {
        let Members(members) = Members::<Raw<'a>>::deserialize(deserializer)?;
        let count = members.len();
        match <[_; 1]>::try_from(members) {
            Ok([(tag, value)]) => Ok(Tagged { tag, value }),
            Err(_) => Err(D::Error::custom(format!(
                "found an object with {count} keys; expected one, which tells what it is"
            ))),
        }
    }
}

/// Reads a part of the text.
///
/// # Errors
/// When it is something else than expected.
pub(super) fn read<'a, T: Deserialize<'a>>(raw: Raw<'a>) -> Result<T, serde_json::Error> {
    serde_json::from_str(raw.get())
}

/// Where a part stands in the text that it was read from.
pub(super) fn place(text: &str, part: Raw<'_>) -> Range<usize> {
    let start = part.get().as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.get().len()
}

/// The text with some ranges of it replaced; they do not overlap.
pub(super) fn splice(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (range, new) in edits {
        out += &text[at..range.start];
        out += &new;
        at = range.end;
    }
    out += &text[at..];
    out
}
