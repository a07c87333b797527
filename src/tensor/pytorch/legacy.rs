//! The forms that `torch.save` wrote before it wrote archives.
//!
//! Since 2017: several pickles one after the other, then the storages. Before that: a tar archive of four files, in which
//! the tensors stand in a table of their own.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use super::pickle;
use super::storage::{Storages, Stored, dtype_of_storage, whole};
use super::value::{Node, Pickle, Value};
use crate::tensor::bytes::Bytes;
use crate::tensor::header::MAX_RANK;
use crate::tensor::strided::View;

/// The first pickle of the stream.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// A tar archive has this at byte 257.
pub(super) const TAR_MAGIC: (u64, &[u8; 5]) = (257, b"ustar");

/// A pickle with what it refers to.
pub(super) struct Loaded<'a> {
    pub(super) pickle: Pickle,
    pub(super) storages: Storages<'a>,
    pub(super) swapped: bool,
}

/// Reads a file that begins with a pickle.
///
/// # Errors
/// A sentence on what is wrong with it.
pub(super) fn stream(file: &File, file_len: u64) -> Result<Loaded<'static>, String> {
    let mut bytes = Bytes::new(file, 0, file_len);
    let first = pickle::read(&mut bytes)?;
    if !matches!(first.node(first.root), Some(Node::Long(long)) if **long == MAGIC) {
        // A pickle of something else; where there are tensors in it, their storages are not.
        return Ok(Loaded {
            pickle: first,
            storages: Storages::Listed(HashMap::new()),
            swapped: false,
        });
    }
    let version = pickle::read(&mut bytes)?.root;
    if version != Value::Int(1001) {
        return Err("its version is none that PyTorch has written".to_owned());
    }
    let system = pickle::read(&mut bytes)?;
    let items = system.items(system.root).unwrap_or_default();
    let swapped = system.get(&items, "little_endian") == Some(Value::Bool(false));
    let pickle = pickle::read(&mut bytes)?;
    let keys = pickle::read(&mut bytes)?;
    let keys = keys
        .sequence(keys.root)
        .ok_or("the list of its storages is none")?
        .iter()
        .map(|key| keys.key(*key));
    let sizes = element_sizes(&pickle);
    let mut ranges = HashMap::new();
    for key in keys {
        let key = key.ok_or("a storage has no name")?;
        let count = match swapped {
            false => u64::from_le_bytes(bytes.array()?),
            true => u64::from_be_bytes(bytes.array()?),
        };
        let size = sizes
            .get(&key)
            .copied()
            .ok_or_else(|| format!("storage `{key}` belongs to no tensor"))?;
        let range = storage(&mut bytes, &key, count, size)?;
        ranges.insert(key, range);
    }
    Ok(Loaded {
        pickle,
        storages: Storages::Listed(ranges),
        swapped,
    })
}

fn storage(bytes: &mut Bytes<'_>, key: &str, count: u64, size: u64) -> Result<Range<u64>, String> {
    let start = bytes.at();
    let len = count.checked_mul(size).filter(|len| *len <= bytes.left());
    let len = len.ok_or_else(|| {
        format!(
            "storage `{key}` claims {count} numbers, and only {} bytes follow",
            bytes.left()
        )
    })?;
    bytes.skip(len)?;
    Ok(start..start + len)
}

/// The bytes of a number in each storage that a pickle refers to.
fn element_sizes(pickle: &Pickle) -> HashMap<String, u64> {
    let referred = pickle.nodes.iter().filter_map(|node| match node {
        Node::Persistent(id) => pickle.sequence(*id),
        _ => None,
    });
    let sizes = referred.filter_map(|id| {
        let (class, key) = (pickle.global(*id.get(1)?)?, pickle.key(*id.get(2)?)?);
        // A storage of a class that is not known may belong to a tensor that is not needed; but where it ends decides
        // where the next one begins.
        let size = match dtype_of_storage(class) {
            Ok((_, size)) => size,
            Err(_) if class.ends_with("QInt32Storage") => 4,
            Err(_) => 1,
        };
        Some((key, size))
    });
    sizes.collect()
}

/// Reads a tar archive.
///
/// # Errors
/// A sentence on what is wrong with it.
pub(super) fn tar(file: &File, file_len: u64) -> Result<Loaded<'static>, String> {
    let parts = tar_directory(file, file_len)?;
    let part = |name: &str| {
        let range = parts
            .get(name)
            .ok_or_else(|| format!("`{name}` is missing in it"))?;
        Ok::<_, String>(Bytes::new(file, range.start, range.end))
    };
    let system = pickle::read(&mut part("sys_info")?)?;
    let items = system.items(system.root).unwrap_or_default();
    if system.get(&items, "little_endian") == Some(Value::Bool(false)) {
        return Err(
            "it was written by a big-endian machine; load it with PyTorch and save it again"
                .to_owned(),
        );
    }
    let storages = tar_storages(&mut part("storages")?)?;
    let tensors = tar_tensors(&mut part("tensors")?, &storages)?;
    Ok(Loaded {
        pickle: pickle::read(&mut part("pickle")?)?,
        storages: Storages::Tensors(tensors),
        swapped: false,
    })
}

/// The files of a tar archive by name. PyTorch wrote four.
fn tar_directory(file: &File, file_len: u64) -> Result<HashMap<String, Range<u64>>, String> {
    const MOST: usize = 64;
    let mut parts = HashMap::new();
    let mut bytes = Bytes::new(file, 0, file_len);
    while bytes.left() >= 512 && parts.len() < MOST {
        let header: [u8; 512] = bytes.array()?;
        let text = |range: Range<usize>| {
            let text = header[range].split(|b| *b == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).trim().to_owned()
        };
        let name = text(0..100);
        if name.is_empty() {
            break;
        }
        let len = u64::from_str_radix(&text(124..136), 8)
            .map_err(|_| "a size in it is no number".to_owned())?;
        let start = bytes.at();
        bytes.skip(len.min(bytes.left()))?;
        let end = bytes.at();
        bytes.skip((len.next_multiple_of(512) - len).min(bytes.left()))?;
        parts.insert(name.trim_start_matches("./").to_owned(), start..end);
    }
    Ok(parts)
}

/// The storages: a count, and for each a pickle of key, device and class, the number of its elements, and these; then
/// which of them are parts of others.
fn tar_storages(bytes: &mut Bytes<'_>) -> Result<HashMap<String, (String, Range<u64>)>, String> {
    let mut storages = HashMap::new();
    let count = pickle::read(bytes)?.root;
    for _ in 0..whole(count).ok_or("it counts its storages by what is no number")? {
        let about = pickle::read(bytes)?;
        let Some([key, _, class]) = about.sequence(about.root) else {
            return Err("a storage is not described as one".to_owned());
        };
        let key = about.key(*key).ok_or("a storage has no name")?;
        let class = about.global(*class).unwrap_or_default().to_owned();
        let (_, size) = dtype_of_storage(&class).map_err(|why| format!("storage `{key}` {why}"))?;
        let count = u64::from_le_bytes(bytes.array()?);
        let range = storage(bytes, &key, count, size)?;
        storages.insert(key, (class, range));
    }
    let views = pickle::read(bytes)?;
    for view in views.sequence(views.root).unwrap_or(&[]) {
        let broken = || "a part of a storage is not described as one".to_owned();
        let Some([key, of, offset, count]) = views.sequence(*view) else {
            return Err(broken());
        };
        let (key, of) = views.key(*key).zip(views.key(*of)).ok_or_else(broken)?;
        let (class, range) = storages.get(&of).cloned().ok_or_else(broken)?;
        let (_, size) = dtype_of_storage(&class)?;
        let bytes = |n: &Value| whole(*n)?.checked_mul(size);
        let (offset, len) = bytes(offset).zip(bytes(count)).ok_or_else(broken)?;
        let start = range.start.checked_add(offset).ok_or_else(broken)?;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= range.end)
            .ok_or_else(broken)?;
        storages.insert(key, (class, start..end));
    }
    Ok(storages)
}

/// The tensors: a count, and for each a pickle of key, storage and class, its rank, its shape, its strides and its offset.
fn tar_tensors(
    bytes: &mut Bytes<'_>,
    storages: &HashMap<String, (String, Range<u64>)>,
) -> Result<HashMap<String, Stored>, String> {
    let mut tensors = HashMap::new();
    let count = pickle::read(bytes)?.root;
    for _ in 0..whole(count).ok_or("it counts its tensors by what is no number")? {
        let about = pickle::read(bytes)?;
        let Some([key, storage, _]) = about.sequence(about.root) else {
            return Err("a tensor is not described as one".to_owned());
        };
        let (key, storage) = about
            .key(*key)
            .zip(about.key(*storage))
            .ok_or("a tensor has no name")?;
        let rank = u32::from_le_bytes(bytes.array()?) as usize;
        bytes.skip(4)?;
        if rank > MAX_RANK {
            return Err(format!(
                "tensor `{key}` has {rank} dimensions; at most {MAX_RANK} are read"
            ));
        }
        let mut numbers = |n: usize| {
            (0..n)
                .map(|_| bytes.array().map(u64::from_le_bytes))
                .collect::<Result<Vec<_>, _>>()
        };
        let (shape, strides, offset) = (numbers(rank)?, numbers(rank)?, numbers(1)?[0]);
        let (class, range) = storages
            .get(&storage)
            .ok_or_else(|| format!("storage `{storage}` is missing"))?;
        let (dtype, size) = dtype_of_storage(class)?;
        let view = View::new(range.clone(), size, offset, &shape, &strides)
            .map_err(|why| format!("tensor `{key}` {why}"))?;
        let shape = shape.into_iter().map(|n| n as usize).collect();
        tensors.insert(key, Stored { dtype, shape, view });
    }
    Ok(tensors)
}
