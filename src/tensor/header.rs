//! The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes.
//!
//! Read by hand rather than through the crate's `Metadata`, which refuses a file for a dtype it does not
//! know even where that tensor is only copied, lets a later duplicate of a name win, and names no tensor in its
//! errors. Every number in it is a stranger's claim: nothing is allocated or trusted before it is checked
//! against the file's length.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};

use super::dtype::Dtype;
use super::error::quoted;

/// The longest header that is read, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;

/// The key of the header under which no tensor stands.
pub const METADATA: &str = "__metadata__";

/// The longest name of a tensor or a metadata string. (A name of fifty megabytes is no name, and every pattern would be tried on it.)
pub(super) const MAX_NAME: usize = 1 << 16;

/// The most dimensions of a tensor, as in NumPy.
pub(super) const MAX_RANK: usize = 64;

/// A tensor as the header describes it; `start..end` counts from the end of the header.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// What a header says, in the order in which it is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Every tensor.
    pub entries: Vec<Entry>,
    /// The `__metadata__` strings.
    pub metadata: Vec<(String, String)>,
}

/// Parses the JSON and checks it against the number of bytes that follow it.
///
/// # Errors
/// A sentence that says what is wrong, naming the tensor.
pub fn parse(json: &[u8], data_len: u64) -> Result<Header, String> {
    let header: Header =
        serde_json::from_slice(json).map_err(|e| format!("its header is not valid: {e}"))?;
    let mut names: Vec<&str> = header.entries.iter().map(|e| &*e.name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("{} is there twice", quoted(twice[0])));
    }
    for entry in &header.entries {
        check(entry)?;
    }
    let mut by_place: Vec<&Entry> = header.entries.iter().collect();
    by_place.sort_by_key(|e| (e.start, e.end));
    let mut end = 0;
    for entry in by_place {
        if entry.start != end {
            let what = if entry.start < end {
                "overlaps"
            } else {
                "leaves a gap behind"
            };
            return Err(format!(
                "{} starts at byte {} and {what} the tensor before it, which ends at {end}",
                quoted(&entry.name),
                entry.start
            ));
        }
        end = entry.end;
    }
    if end != data_len {
        return Err(format!(
            "its tensors need {} after the header; the file has {data_len}",
            in_bytes(end)
        ));
    }
    Ok(header)
}

/// Parses metadata that stands by itself, as an object of strings.
///
/// # Errors
/// A sentence that says what is wrong.
pub(super) fn parse_metadata(json: &[u8]) -> Result<Vec<(String, String)>, String> {
    let strings: Strings =
        serde_json::from_slice(json).map_err(|e| format!("its metadata is not valid: {e}"))?;
    Ok(strings.0)
}

fn check(entry: &Entry) -> Result<(), String> {
    let Entry {
        name,
        dtype,
        shape,
        start,
        end,
    } = entry;
    if shape.len() > MAX_RANK {
        return Err(format!(
            "{} has {} dimensions; at most {MAX_RANK} are read",
            quoted(name),
            shape.len()
        ));
    }
    let Some(len) = end.checked_sub(*start) else {
        return Err(format!(
            "{} ends at byte {end}, before its start {start}",
            quoted(name)
        ));
    };
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let Some(count) = count.filter(|n| *n <= isize::MAX as usize / 8) else {
        return Err(format!(
            "the shape {shape:?} of {} is too large to address",
            quoted(name)
        ));
    };
    if let Some(bits) = dtype.bits() {
        // A shape that passed the check above times 64 bits fits in 128 bits.
        let needed = count as u128 * bits as u128;
        if !needed.is_multiple_of(8) {
            return Err(format!(
                "{} is {dtype} {shape:?}, {needed} bits; expected whole bytes",
                quoted(name)
            ));
        }
        if needed != u128::from(len) * 8 {
            return Err(format!(
                "{} is {dtype} {shape:?}, {}; its range has {len}",
                quoted(name),
                in_bytes((needed / 8) as u64)
            ));
        }
    }
    Ok(())
}

/// `1 byte`, `3 bytes`.
pub(super) fn in_bytes(n: u64) -> String {
    match n {
        1 => "1 byte".to_owned(),
        n => format!("{n} bytes"),
    }
}

/// The bytes before the tensors: length and JSON, padded with spaces so that the data is aligned to 8.
pub fn serialize(header: &Header) -> Vec<u8> {
    let mut json = serde_json::to_vec(header).unwrap_or_default();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.append(&mut json);
    out
}

#[derive(Deserialize, Serialize)]
#[serde(expecting = "an object with `dtype`, `shape` and `data_offsets`")]
struct Description<'a> {
    #[serde(borrow)]
    dtype: std::borrow::Cow<'a, str>,
    shape: std::borrow::Cow<'a, [usize]>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that describes tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut header, mut described) = (Header::default(), false);
                while let Some(Name(name)) = map.next_key()? {
                    if name == METADATA {
                        if std::mem::replace(&mut described, true) {
                            return Err(A::Error::custom(format!("`{METADATA}` is there twice")));
                        }
                        let metadata: Option<Strings> = map.next_value()?;
                        header.metadata = metadata.map(|strings| strings.0).unwrap_or_default();
                        continue;
                    }
                    let about: Description<'_> = map
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("{}: {e}", quoted(&name))))?;
                    header.entries.push(Entry {
                        dtype: Dtype::from_name(&about.dtype),
                        shape: about.shape.into_owned(),
                        start: about.data_offsets[0],
                        end: about.data_offsets[1],
                        name,
                    });
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A key that is short enough to be shown.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.len() {
            0..=MAX_NAME => Ok(Name(name)),
            len => Err(D::Error::custom(format!(
                "a name has {len} bytes; at most {MAX_NAME} are read"
            ))),
        }
    }
}

/// The `__metadata__` strings in their order; a key that is there twice is refused, as a tensor's name is.
struct Strings(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strings, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let (mut strings, mut seen) = (Vec::new(), HashSet::new());
                while let Some(Name(key)) = map.next_key()? {
                    let value = map.next_value().map_err(|e| {
                        A::Error::custom(format!("the metadata {}: {e}", quoted(&key)))
                    })?;
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!(
                            "the metadata {} is there twice",
                            quoted(&key)
                        )));
                    }
                    strings.push((key, value));
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            let metadata: serde_json::Map<_, _> = self
                .metadata
                .iter()
                .map(|(k, v)| (k.clone(), v.clone().into()))
                .collect();
            map.serialize_entry(METADATA, &metadata)?;
        }
        for entry in &self.entries {
            let dtype = match &entry.dtype {
                Dtype::Known(dtype) => dtype.to_string(),
                Dtype::Unknown(name) => name.clone(),
            };
            let about = Description {
                dtype: dtype.into(),
                shape: (&entry.shape).into(),
                data_offsets: [entry.start, entry.end],
            };
            map.serialize_entry(&entry.name, &about)?;
        }
        map.end()
    }
}
