//! Files that `torch.save` wrote, read as data: nothing in them is executed.
//!
//! The crate `pytorch-reader` parses the pickle and finds every tensor's bytes, in the zip form, the older ones, state
//! dicts and whole pickled modules. It gives a tensor whole, so the ones that were read last are kept: a fold goes
//! through the tensors of one block in turns.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pytorch_reader::PickleValue;
use pytorch_reader::{DType, PytorchReader, Tensor};

use super::dtype::Dtype;
use super::error::{Error, plain, quoted};
use super::header::{MAX_HEADER, MAX_NAME, MAX_RANK};

/// Under these keys, projects keep the state dict or the module beside optimizer and epoch.
const WRAPPERS: [&str; 9] = [
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema",
    "params_ema",
    "params",
    "net",
    "ema_net",
];

/// What is kept of the tensors that were read last, besides the two largest of the file.
const KEPT_BYTES: usize = 32 << 20;

/// A view may repeat what is stored, as `expand` does, and so claim any size; this much more than the file has is believed.
const REPEATED_BYTES: u64 = 16 << 20;

/// How often the bytes of a file may be shared by its tensors, all in all.
const SHARED: u64 = 4;

/// A tensor's name, element type, shape and number of bytes.
pub(super) type Entry = (String, Dtype, Vec<usize>, u64);

/// Where the tensors' bytes come from.
pub(super) struct Storages {
    key: Option<String>,
    tensors: HashMap<String, Tensor>,
    kept: Mutex<Vec<(String, Arc<Vec<u8>>)>>,
    budget: usize,
}

impl fmt::Debug for Storages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storages")
            .field("key", &self.key)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// Whether a file that begins like this is a zip archive or a pickle.
///
/// A safetensors file begins with the length of its header, which the file must hold: as such a length, both of these
/// beginnings are far beyond any file.
pub(super) fn is_one(prefix: [u8; 8], file_len: u64) -> bool {
    let impossible = u64::from_le_bytes(prefix) > file_len;
    impossible
        && (prefix.starts_with(b"PK\x03\x04")
            || (prefix[0] == 0x80 && (1..=5).contains(&prefix[1])))
}

/// Opens a file and finds its state dict: under `key`, else under the one key that wraps one, else at the top.
pub(super) fn open(
    path: &Path,
    file_len: u64,
    key: Option<&str>,
) -> Result<(Storages, Vec<Entry>), Error> {
    expect_stored(path)?;
    let top = PytorchReader::read_pickle_data(path, None).map_err(|e| unread(path, &e))?;
    if name_bytes(&top, 0) > MAX_HEADER {
        let most = format!("the names in it are longer than {MAX_HEADER} bytes in all");
        return Err(wrong(path, most));
    }
    let key = match key {
        Some(key) => Some(key.to_owned()),
        None => wrapper(path, top)?,
    };
    let (first, below) = match key
        .as_deref()
        .map(|key| key.split_once('.').unwrap_or((key, "")))
    {
        Some((first, below)) => (Some(first), below),
        None => (None, ""),
    };
    let mut tensors = read(path, first)?.into_tensors();
    if !below.is_empty() {
        let prefix = format!("{below}.");
        let inside = tensors
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor)));
        tensors = inside.collect();
    }
    if tensors.is_empty() {
        let place = key
            .map(|key| format!(" under `{}`", plain(&key)))
            .unwrap_or_default();
        return Err(wrong(path, format!("it has no tensor{place}")));
    }
    let entries = tensors.iter().map(|(name, tensor)| {
        (
            name.clone(),
            element_type(tensor.dtype()),
            tensor.shape().to_vec(),
            tensor.byte_len() as u64,
        )
    });
    let entries: Vec<Entry> = entries.collect();
    // What is written is to be read again.
    for (name, _, shape, _) in &entries {
        if name.len() > MAX_NAME || shape.len() > MAX_RANK {
            let found = format!(
                "a name has {} bytes and its tensor {} dimensions; at most {MAX_NAME} and {MAX_RANK} are read",
                name.len(),
                shape.len()
            );
            return Err(wrong(path, found));
        }
    }
    let most = file_len.saturating_add(REPEATED_BYTES);
    let mut claimed: u64 = 0;
    for (name, _, _, len) in &entries {
        claimed = claimed.saturating_add(*len);
        if *len > most {
            let claim = format!(
                "{} claims {len} bytes; the file has {file_len}",
                quoted(name)
            );
            return Err(wrong(path, claim));
        }
    }
    // Names that share a storage, as tied weights do, are several tensors here, too.
    if claimed > most.saturating_mul(SHARED) {
        let claim = format!("its tensors claim {claimed} bytes; the file has {file_len}");
        return Err(wrong(path, claim));
    }
    let mut sizes: Vec<usize> = tensors.values().map(Tensor::byte_len).collect();
    sizes.sort_unstable();
    let budget = KEPT_BYTES + sizes.iter().rev().take(2).sum::<usize>();
    Ok((
        Storages {
            key,
            tensors,
            kept: Mutex::default(),
            budget,
        },
        entries,
    ))
}

/// `torch.save` puts everything into an archive as it is. A compressed part could become a thousand times the file.
fn expect_stored(path: &Path) -> Result<(), Error> {
    let failed = |e: zip::result::ZipError| wrong(path, e.to_string());
    let file = std::fs::File::open(path).map_err(|source| Error::Io {
        what: "open",
        path: path.to_owned(),
        source,
    })?;
    // What is no archive is one of the older forms.
    let Ok(mut archive) = zip::ZipArchive::new(io::BufReader::new(file)) else {
        return Ok(());
    };
    for i in 0..archive.len() {
        let part = archive.by_index_raw(i).map_err(failed)?;
        if part.compression() != zip::CompressionMethod::Stored {
            let name = quoted(&part.name().map_err(failed)?);
            return Err(wrong(
                path,
                format!("{name} in it is compressed, which torch.save never does"),
            ));
        }
    }
    Ok(())
}

/// How long the dotted names of everything in nested dicts are together: a few long keys make many long names.
fn name_bytes(value: &PickleValue, before: u64) -> u64 {
    match value {
        PickleValue::Dict(inside) => inside
            .iter()
            .map(|(key, value)| name_bytes(value, before + key.len() as u64 + 1))
            .fold(0, u64::saturating_add),
        _ => before,
    }
}

fn read(path: &Path, key: Option<&str>) -> Result<PytorchReader, Error> {
    let opened = match key {
        Some(key) => PytorchReader::with_top_level_key(path, key),
        None => PytorchReader::new(path),
    };
    opened.map_err(|e| unread(path, &e))
}

/// A pickle can hold what no reader but Python's own understands, beside the tensors.
fn unread(path: &Path, why: &dyn std::error::Error) -> Error {
    let remedy = "where PyTorch reads it, save its state dict alone";
    wrong(path, format!("{why}; {remedy}"))
}

/// The key that wraps the state dict, if the file is a dict that has one.
fn wrapper(path: &Path, top: PickleValue) -> Result<Option<String>, Error> {
    let PickleValue::Dict(top) = top else {
        return Ok(None);
    };
    let present = WRAPPERS.iter().filter(|key| top.contains_key(**key));
    let holds = |key: &&&str| read(path, Some(key)).is_ok_and(|reader| !reader.is_empty());
    let mut keys: Vec<String> = present.filter(holds).map(|key| (*key).to_owned()).collect();
    match keys.len() {
        0 => Ok(None),
        // One more step, for the averaged module that some keep as `ema.module`.
        1 => Ok(keys.pop().map(|key| match inner_key(top.get(&key)) {
            Some(inner) => format!("{key}.{inner}"),
            None => key,
        })),
        _ => Err(Error::SeveralKeys {
            path: path.to_owned(),
            keys,
        }),
    }
}

/// The names below it may be those of a module's parts, so only what no network calls a part counts.
fn inner_key(value: Option<&PickleValue>) -> Option<&'static str> {
    let Some(PickleValue::Dict(inside)) = value else {
        return None;
    };
    let wraps = |key: &&str| matches!(inside.get(*key), Some(PickleValue::Dict(_)));
    ["module", "state_dict"].into_iter().find(wraps)
}

fn wrong(path: &Path, reason: String) -> Error {
    Error::Pytorch {
        path: path.to_owned(),
        reason: plain(&reason),
    }
}

fn element_type(dtype: DType) -> Dtype {
    Dtype::Known(match dtype {
        DType::F64 => safetensors::Dtype::F64,
        DType::F32 => safetensors::Dtype::F32,
        DType::F16 => safetensors::Dtype::F16,
        DType::BF16 => safetensors::Dtype::BF16,
        DType::I64 => safetensors::Dtype::I64,
        DType::I32 => safetensors::Dtype::I32,
        DType::I16 => safetensors::Dtype::I16,
        DType::I8 => safetensors::Dtype::I8,
        DType::U64 => safetensors::Dtype::U64,
        DType::U32 => safetensors::Dtype::U32,
        DType::U16 => safetensors::Dtype::U16,
        DType::U8 => safetensors::Dtype::U8,
        DType::Bool => safetensors::Dtype::BOOL,
    })
}

impl Storages {
    /// The key under which the state dict was found.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Fills `out` with a tensor's bytes from byte `at` on.
    pub(super) fn read_at(
        &self,
        path: &Path,
        name: &str,
        at: u64,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let io = |source| Error::Io {
            what: "read",
            path: PathBuf::from(path),
            source,
        };
        let bytes = self.whole(name).map_err(io)?;
        let part = usize::try_from(at)
            .ok()
            .and_then(|at| bytes.get(at..)?.get(..out.len()));
        out.copy_from_slice(part.ok_or_else(|| io(io::ErrorKind::UnexpectedEof.into()))?);
        Ok(())
    }

    fn whole(&self, name: &str) -> io::Result<Arc<Vec<u8>>> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = lock();
        if let Some(i) = kept.iter().position(|(of, _)| of == name) {
            // Moved to the end: what is at the front was not asked for the longest.
            let found = kept.remove(i);
            let bytes = found.1.clone();
            kept.push(found);
            return Ok(bytes);
        }
        drop(kept);
        let tensor = self.tensors.get(name).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = tensor.read()?;
        if cfg!(target_endian = "big") {
            bytes
                .chunks_exact_mut(tensor.dtype().size())
                .for_each(<[u8]>::reverse);
        }
        let bytes = Arc::new(bytes);
        let mut kept = lock();
        kept.push((name.to_owned(), bytes.clone()));
        let mut total: usize = kept.iter().map(|(_, bytes)| bytes.len()).sum();
        while total > self.budget && kept.len() > 1 {
            total -= kept.remove(0).1.len();
        }
        Ok(bytes)
    }
}
