//! From what a pickle says of a tensor to where its numbers lie in the file.

use std::collections::HashMap;
use std::ops::Range;

use super::value::{Node, Pickle, Value};
use crate::tensor::dtype::Dtype;
use crate::tensor::error::quoted;
use crate::tensor::header::MAX_RANK;
use crate::tensor::strided::View;

/// Where the storages lie, by the names that a pickle refers to them by.
#[derive(Debug)]
pub(super) enum Storages<'a> {
    /// In an archive: looked up when a tensor needs one.
    Archive(&'a crate::tensor::zip::Archive<'a>),
    /// One after the other, behind the pickle.
    Listed(HashMap<String, Range<u64>>),
    /// Whole tensors, each under the number that the pickle has for it.
    Tensors(HashMap<String, Stored>),
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::tensor) struct Stored {
    pub(in crate::tensor) dtype: Dtype,
    pub(in crate::tensor) shape: Vec<usize>,
    pub(in crate::tensor) view: View,
}

/// What a value is to a reader of tensors.
#[derive(Debug)]
pub(super) enum Meaning {
    Tensor(Stored),
    /// A tensor that is broken; a sentence on it.
    Unreadable(String),
    /// A tensor of a kind that is not read.
    OtherKind(OtherKind),
    /// A NumPy array: no tensor, but numbers that would be one in a state dict.
    Array(OtherKind),
    /// No tensor.
    Other,
}

/// A tensor whose numbers cannot be read here, though PyTorch reads it.
#[derive(Clone, Debug)]
pub(in crate::tensor) struct OtherKind {
    /// What it is, and what to save in its place.
    pub(in crate::tensor) why: String,
    /// What stands for its element type.
    pub(in crate::tensor) dtype: Dtype,
    /// As far as it is known.
    pub(in crate::tensor) shape: Vec<usize>,
}

/// Kinds of tensors that are not read: the end of the function that makes one, what it is, which of the arguments is its shape
/// or a tuple that has the shape third, and what to do.
const KINDS: [(&str, &str, usize, &str); 5] = [
    (
        "qtensor",
        "quantized",
        2,
        "save `tensor.dequantize()` in its place",
    ),
    (
        "sparse_tensor",
        "sparse",
        1,
        "save `tensor.to_dense()` in its place",
    ),
    (
        "sparse_csr_tensor",
        "sparse",
        1,
        "save `tensor.to_dense()` in its place",
    ),
    (
        "nested_tensor",
        "nested",
        usize::MAX,
        "save `tensor.to_padded_tensor(0)` in its place",
    ),
    (
        "meta_tensor_no_storage",
        "meta",
        1,
        "a `meta` tensor has no numbers: load them before saving",
    ),
];

/// What a tensor is that another function of PyTorch's makes.
fn other_kind(pickle: &Pickle, function: &str, arguments: &[Value]) -> OtherKind {
    let what = function.trim_start_matches("torch._utils._rebuild_");
    let known = KINDS.iter().find(|(end, ..)| *end == what);
    let (_, is, at, remedy) =
        known
            .copied()
            .unwrap_or((what, what, usize::MAX, "save a plain tensor in its place"));
    let shape = arguments.get(at).and_then(|said| {
        let numbers = sizes(pickle, *said);
        // (Indices, values, shape.)
        numbers.or_else(|| sizes(pickle, *pickle.sequence(*said)?.get(2)?))
    });
    let shape: Option<Vec<usize>> = shape
        .unwrap_or_default()
        .into_iter()
        .map(|n| usize::try_from(n).ok())
        .collect();
    // No more than can be addressed is believed.
    let shape = shape.filter(|shape| {
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        shape.len() <= MAX_RANK && count.is_some_and(|n| n <= isize::MAX as usize / 16)
    });
    OtherKind {
        why: format!(
            "is what PyTorch's `{function}` makes: a tensor without plain numbers ({what}); {remedy}"
        ),
        dtype: Dtype::from_name(is),
        shape: shape.unwrap_or_default(),
    }
}

/// The numbers of a shape or of strides.
fn sizes(pickle: &Pickle, list: Value) -> Option<Vec<u64>> {
    let list = match pickle.called(list) {
        Some(("torch.Size", [inner, ..])) => *inner,
        _ => list,
    };
    pickle.sequence(list)?.iter().map(|n| whole(*n)).collect()
}

/// What wraps a tensor: a parameter, or a subclass.
const WRAPPERS: [&str; 4] = [
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
];

/// Wrappers of a call: the function, the type and the arguments of the function.
const TYPED: [&str; 2] = [
    "torch._tensor._rebuild_from_type_v2",
    "torch._tensor._rebuild_from_type",
];

/// More wrappers than this around one tensor are none.
const DEEPEST: usize = 8;

/// Whether a value is a tensor, and where its numbers are.
pub(super) fn meaning(
    pickle: &Pickle,
    value: Value,
    storages: &Storages<'_>,
    swapped: bool,
) -> Meaning {
    let mut value = value;
    for _ in 0..DEEPEST {
        match pickle.called(value) {
            Some((name, [inner, ..])) if WRAPPERS.contains(&name) => value = *inner,
            Some((name, [function, _, arguments, ..])) if TYPED.contains(&name) => {
                let function = pickle.global(*function).unwrap_or_default();
                let arguments = pickle.sequence(*arguments).unwrap_or(&[]);
                if WRAPPERS.contains(&function)
                    && let [inner, ..] = arguments
                {
                    value = *inner;
                } else {
                    return rebuilt(pickle, function, arguments, storages, swapped);
                }
            }
            Some((name, arguments)) => return rebuilt(pickle, name, arguments, storages, swapped),
            None => break,
        }
    }
    // In the oldest files a tensor is a number that the pickle refers to.
    match (pickle.node(value), storages) {
        (Some(Node::Persistent(id)), Storages::Tensors(tensors)) => {
            let found = pickle.key(*id).and_then(|id| tensors.get(&id));
            match found {
                Some(stored) => Meaning::Tensor(stored.clone()),
                None => Meaning::Unreadable("is a tensor that the file does not hold".to_owned()),
            }
        }
        _ => Meaning::Other,
    }
}

fn rebuilt(
    pickle: &Pickle,
    function: &str,
    arguments: &[Value],
    storages: &Storages<'_>,
    swapped: bool,
) -> Meaning {
    let found = match (function, arguments) {
        (
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
            [storage, offset, shape, strides, rest @ ..],
        ) => tensor(
            pickle,
            *storage,
            [*offset, *shape, *strides],
            None,
            storages,
        )
        // (Whether it needs a gradient, its hooks, what else there is to know of it.)
        .map(|stored| (stored, rest.get(2).copied())),
        (
            "torch._utils._rebuild_tensor_v3",
            [storage, offset, shape, strides, _, _, dtype, rest @ ..],
        ) => {
            let dtype = pickle.global(*dtype).map(dtype_of_torch);
            tensor(
                pickle,
                *storage,
                [*offset, *shape, *strides],
                dtype,
                storages,
            )
            .map(|stored| (stored, rest.first().copied()))
        }
        _ if function.starts_with("torch._utils._rebuild_") => {
            return Meaning::OtherKind(other_kind(pickle, function, arguments));
        }
        _ if function.starts_with("numpy.") && function.ends_with("_reconstruct") => {
            return Meaning::Array(OtherKind {
                why: "is a NumPy array, which is not read; save `torch.from_numpy(array)` in its place".to_owned(),
                dtype: Dtype::from_name("array"),
                shape: Vec::new(),
            });
        }
        _ => return Meaning::Other,
    };
    let (stored, metadata) = match found {
        Ok(found) => found,
        Err(why) => return Meaning::Unreadable(why),
    };
    let parts = if is_complex(&stored.dtype) { 2 } else { 1 };
    let stored = match swapped {
        true => Stored {
            view: stored.view.big_endian(parts),
            ..stored
        },
        false => stored,
    };
    said_of(pickle, stored, metadata)
}

/// A tensor, with what its metadata says of it.
fn said_of(pickle: &Pickle, stored: Stored, metadata: Option<Value>) -> Meaning {
    let (dtype, shape) = (stored.dtype.clone(), stored.shape.clone());
    let read = match metadata {
        Some(metadata) => with_bits(pickle, stored, metadata),
        None => Ok(stored),
    };
    match read {
        Ok(stored) => Meaning::Tensor(stored),
        Err(why) => Meaning::OtherKind(OtherKind { why, dtype, shape }),
    }
}

fn is_complex(dtype: &Dtype) -> bool {
    dtype.to_string().starts_with('C')
}

/// A tensor with PyTorch's lazy bits, which are stored beside its numbers: `neg`, all numbers are negative to what is stored;
/// `conj`, they are complex, and the imaginary parts are.
fn with_bits(pickle: &Pickle, stored: Stored, metadata: Value) -> Result<Stored, String> {
    let said = match metadata {
        Value::None => return Ok(stored),
        _ => pickle.items(metadata),
    };
    let said = said.ok_or("has metadata that is no dict")?;
    let (mut neg, mut conj) = (false, false);
    for (key, value) in said {
        match (pickle.text(key), value) {
            (_, Value::Bool(false)) => {}
            (Some("neg"), Value::Bool(true)) => neg = true,
            (Some("conj"), Value::Bool(true)) => conj = true,
            (key, _) => {
                return Err(format!(
                    "has the metadata {}, which is not read; save `tensor.clone()` in its place",
                    quoted(key.unwrap_or("?"))
                ));
            }
        }
    }
    let (complex, floats) = (is_complex(&stored.dtype), stored.dtype.float().is_some());
    let negated = match (neg, conj) {
        (false, false) => return Ok(stored),
        _ if complex => [neg, neg != conj],
        (true, false) if floats => [false, true],
        _ => {
            let bit = if conj { "conj" } else { "neg" };
            return Err(format!(
                "is {} and has PyTorch's `{bit}` bit; save `tensor.resolve_{bit}()` in its place",
                stored.dtype
            ));
        }
    };
    Ok(Stored {
        view: stored.view.negated(negated),
        ..stored
    })
}

/// A tensor over a storage: `[offset, shape, strides]` count elements.
fn tensor(
    pickle: &Pickle,
    storage: Value,
    [offset, shape, strides]: [Value; 3],
    dtype: Option<Result<(Dtype, u64), String>>,
    storages: &Storages<'_>,
) -> Result<Stored, String> {
    let id = match pickle.node(storage) {
        Some(Node::Persistent(id)) => pickle.sequence(*id),
        _ => None,
    };
    // (`storage`, its class, its key, its device, its elements, and in the older form which part of it is meant).
    let Some([_, class, key, _, _, rest @ ..]) = id else {
        return Err(
            "is stored as Python's `pickle` does it, and its numbers are not read; load the file in Python and write its state dict with `torch.save`".to_owned(),
        );
    };
    let class = pickle.global(*class).unwrap_or_default();
    let (dtype, size) = match dtype {
        Some(dtype) => dtype?,
        None => dtype_of_storage(class)?,
    };
    let key = pickle.key(*key).ok_or("has a storage without a key")?;
    let mut range = match storages {
        Storages::Archive(archive) => archive.range(&format!("data/{key}"))?,
        Storages::Listed(ranges) => ranges
            .get(&key)
            .cloned()
            .ok_or_else(|| format!("is in storage `{key}`, which the file does not hold"))?,
        Storages::Tensors(_) => return Err("has no storage in this file".to_owned()),
    };
    if let Some(view) = rest.first().and_then(|view| pickle.sequence(*view)) {
        let start = view
            .get(1)
            .and_then(|n| whole(*n))
            .and_then(|n| n.checked_mul(size));
        let start = start
            .and_then(|n| n.checked_add(range.start))
            .filter(|n| *n <= range.end);
        range.start = start.ok_or("is in a part of a storage that lies outside of it")?;
    }
    let (shape, strides) = (sizes(pickle, shape), sizes(pickle, strides));
    let (shape, strides) = shape
        .zip(strides)
        .ok_or("has a shape or strides that are no numbers")?;
    let offset = whole(offset).ok_or("begins at an offset that is no number")?;
    let view = View::new(range, size, offset, &shape, &strides)?;
    let shape = shape
        .iter()
        .map(|n| usize::try_from(*n))
        .collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| "has a shape that is too large to address")?;
    Ok(Stored { dtype, shape, view })
}

/// A number that is not negative.
pub(super) fn whole(value: Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(n).ok(),
        _ => None,
    }
}

/// The element type that a class of storages has, and its bytes.
pub(super) fn dtype_of_storage(class: &str) -> Result<(Dtype, u64), String> {
    let name = class
        .strip_prefix("torch.cuda.")
        .or_else(|| class.strip_prefix("torch."))
        .unwrap_or(class);
    let known = STORAGES.iter().find(|(storage, ..)| *storage == name);
    let (_, dtype, size) = known.ok_or_else(|| {
        format!("is in a `{class}`, whose numbers are of a type that is not read")
    })?;
    Ok((Dtype::from_name(dtype), *size))
}

/// The element type that PyTorch calls so.
fn dtype_of_torch(name: &str) -> Result<(Dtype, u64), String> {
    let bare = name.trim_start_matches("torch.");
    let known = DTYPES.iter().find(|(torch, ..)| *torch == bare);
    let (_, dtype, size) =
        known.ok_or_else(|| format!("is of type `{name}`, which is not read"))?;
    Ok((Dtype::from_name(dtype), *size))
}

/// Classes of storages, the element type as safetensors names it, and its bytes.
pub(super) const STORAGES: [(&str, &str, u64); 12] = [
    ("DoubleStorage", "F64", 8),
    ("FloatStorage", "F32", 4),
    ("HalfStorage", "F16", 2),
    ("BFloat16Storage", "BF16", 2),
    ("LongStorage", "I64", 8),
    ("IntStorage", "I32", 4),
    ("ShortStorage", "I16", 2),
    ("CharStorage", "I8", 1),
    ("ByteStorage", "U8", 1),
    ("BoolStorage", "BOOL", 1),
    ("ComplexFloatStorage", "C64", 8),
    ("ComplexDoubleStorage", "C128", 16),
];

/// PyTorch's element types that have no class of storages of their own, in the same way.
pub(super) const DTYPES: [(&str, &str, u64); 8] = [
    ("uint16", "U16", 2),
    ("uint32", "U32", 4),
    ("uint64", "U64", 8),
    ("float8_e4m3fn", "F8_E4M3", 1),
    ("float8_e5m2", "F8_E5M2", 1),
    ("float8_e4m3fnuz", "F8_E4M3FNUZ", 1),
    ("float8_e5m2fnuz", "F8_E5M2FNUZ", 1),
    ("float8_e8m0fnu", "F8_E8M0", 1),
];
