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
    for entry in &header.entries {
        check(entry)?;
    }
    let mut by_place: Vec<&Entry> = header.entries.iter().collect();
    by_place.sort_by_key(|e| (e.start, e.end));
    let mut end = 0;
    for entry in by_place {
        if entry.start != end {
            let what = if entry.start < end {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            return Err(format!(
                "{} starts at byte {} and {what}, which ends at {end}",
                quoted(&entry.name),
                entry.start
            ));
        }
        end = entry.end;
    }
    if end != data_len {
        return Err(format!(
            "its tensors need {end} bytes after the header; the file has {data_len}"
        ));
    }
    Ok(header)
}

fn check(entry: &Entry) -> Result<(), String> {
    let Entry {
        name,
        dtype,
        shape,
        start,
        end,
    } = entry;
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
        if needed != u128::from(len) * 8 {
            return Err(format!(
                "{} is {dtype} {shape:?}, {} bytes; its range has {len}",
                quoted(name),
                needed.div_ceil(8)
            ));
        }
    }
    Ok(())
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
struct Description<'a> {
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
                let (mut header, mut seen) = (Header::default(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!(
                            "{} is there twice",
                            quoted(&name)
                        )));
                    }
                    if name == "__metadata__" {
                        let metadata: Option<serde_json::Map<String, serde_json::Value>> =
                            map.next_value()?;
                        for (key, value) in metadata.into_iter().flatten() {
                            let serde_json::Value::String(value) = value else {
                                return Err(A::Error::custom(format!(
                                    "the metadata {} is not a string",
                                    quoted(&key)
                                )));
                            };
                            header.metadata.push((key, value));
                        }
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

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            let metadata: serde_json::Map<_, _> = self
                .metadata
                .iter()
                .map(|(k, v)| (k.clone(), v.clone().into()))
                .collect();
            map.serialize_entry("__metadata__", &metadata)?;
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
