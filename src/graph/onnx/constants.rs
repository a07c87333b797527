//! The constant tensors of an ONNX file: which there are, and where their numbers are.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use super::proto::{self, Data, Model, Name, is_onnx};
use super::values::inputs;
use crate::tensor::{Dtype, Part, Place, open, quoted};

/// The constant tensors of a file, as they are found.
pub(super) struct Constants<'a> {
    path: &'a Path,
    pub files: Vec<(PathBuf, File)>,
    /// The numbers of external files, by location.
    external: HashMap<String, usize>,
    pub parts: Vec<Part>,
    pub by_name: HashMap<Name, String>,
    /// What nodes make.
    pub made: HashSet<Name>,
}

impl<'a> Constants<'a> {
    pub fn new(path: &'a Path, file: &File) -> Result<Constants<'a>, Error> {
        let file = file.try_clone().map_err(|e| Error::unreadable(path, e))?;
        Ok(Constants {
            path,
            files: vec![(path.to_owned(), file)],
            external: HashMap::new(),
            parts: Vec::new(),
            by_name: HashMap::new(),
            made: HashSet::new(),
        })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Format {
            path: self.path.to_owned(),
            reason,
        }
    }

    pub fn initializers(&mut self, model: &mut Model) -> Result<(), Error> {
        // Later versions of the format let whoever runs the network replace an initializer that is an input, too.
        let replaceable: HashSet<Name> = match model.ir_version {
            ..4 => HashSet::new(),
            _ => inputs(model).collect(),
        };
        let mut seen = HashSet::new();
        for tensor in &model.graph.tensors {
            let Some(name) = tensor.name else {
                return Err(self.wrong("one of its initializers has no name".to_owned()));
            };
            let shown = model.names.get(name);
            if !seen.insert(name) {
                let reason = format!("two of its initializers are named {}", quoted(shown));
                return Err(self.wrong(reason));
            }
            if !replaceable.contains(&name) {
                self.add(name, shown, tensor)?;
            }
        }
        Ok(())
    }

    /// Constants that nodes hold.
    pub fn nodes(&mut self, model: &mut Model) -> Result<(), Error> {
        for node in &model.graph.nodes {
            if node.op != "Constant" || !is_onnx(&node.domain) || node.attributes.len() != 1 {
                continue;
            }
            let (Some((key, value)), &[Some(name)]) =
                (node.attributes.iter().next(), &node.outputs[..])
            else {
                continue;
            };
            use proto::Attribute as A;
            let of = |kind, dims, numbers| proto::Tensor {
                name: Some(name),
                dims,
                kind,
                data: Data::Numbers(numbers),
            };
            let tensor = match (&**key, value) {
                ("value", A::Tensor(tensor, _)) => tensor.clone(),
                ("value_int", A::Int(number)) => of(7, vec![], vec![*number]),
                ("value_ints", A::Ints(numbers)) => {
                    of(7, vec![numbers.len() as i64], numbers.clone())
                }
                ("value_float", A::Float(number)) => {
                    of(1, vec![], vec![i64::from(number.to_bits())])
                }
                ("value_floats", A::Floats(numbers)) => {
                    let bits = numbers.iter().map(|number| i64::from(number.to_bits()));
                    of(1, vec![numbers.len() as i64], bits.collect())
                }
                _ => continue,
            };
            if self.by_name.contains_key(&name) {
                let reason = format!("two constants are named {}", quoted(model.names.get(name)));
                return Err(self.wrong(reason));
            }
            if self.add(name, model.names.get(name), &tensor)? {
                self.made.insert(name);
            }
        }
        Ok(())
    }

    /// Adds a tensor whose numbers can be read, and says whether they can.
    fn add(&mut self, name: Name, shown: &str, tensor: &proto::Tensor) -> Result<bool, Error> {
        let Some(dtype) = dtype(tensor.kind) else {
            return Ok(false);
        };
        let size = dtype.bits().map_or(0, |bits| bits as u64 / 8);
        let mut shape = Vec::with_capacity(tensor.dims.len());
        let mut bytes = Some(size);
        for &dim in &tensor.dims {
            let Ok(dim) = usize::try_from(dim) else {
                let reason = format!("{} has a dimension of {dim}", quoted(shown));
                return Err(self.wrong(reason));
            };
            shape.push(dim);
            bytes = bytes.and_then(|bytes| bytes.checked_mul(dim as u64));
        }
        let Some(bytes) = bytes else {
            let reason = format!("the shape {shape:?} of {} overflows", quoted(shown));
            return Err(self.wrong(reason));
        };
        let found = |found: u64| {
            self.wrong(format!(
                "{} has {found} bytes; its shape {shape:?} takes {bytes}",
                quoted(shown)
            ))
        };
        let place = match &tensor.data {
            Data::Unread => return Ok(false),
            Data::Absent if bytes > 0 => return Err(found(0)),
            Data::Absent => Place::InMemory(Arc::from([])),
            Data::InFile(range) if range.end - range.start != bytes => {
                return Err(found(range.end - range.start));
            }
            Data::InFile(range) => Place::InFile {
                file: 0,
                offset: range.start,
            },
            Data::Numbers(numbers) => {
                let size = size as usize;
                if (numbers.len() * size) as u64 != bytes {
                    return Err(found((numbers.len() * size) as u64));
                }
                let bytes: Vec<u8> = numbers
                    .iter()
                    .flat_map(|number| number.to_le_bytes().into_iter().take(size))
                    .collect();
                Place::InMemory(bytes.into())
            }
            Data::External {
                location,
                offset,
                length,
            } => {
                if let Some(length) = length.filter(|length| *length != bytes) {
                    return Err(found(length));
                }
                let file = self.external_file(location)?;
                let (path, data) = &self.files[file];
                let there = data
                    .metadata()
                    .map_err(|e| Error::unreadable(path, e))?
                    .len();
                if offset.checked_add(bytes).is_none_or(|end| end > there) {
                    return Err(self.wrong(format!(
                        "its data file {} has {there} bytes, and {} takes {bytes} from position {offset} on; it may be cut short, or that of another model",
                        quoted(location),
                        quoted(shown)
                    )));
                }
                Place::InFile {
                    file,
                    offset: *offset,
                }
            }
        };
        self.by_name.insert(name, shown.to_owned());
        self.parts.push(Part {
            name: shown.to_owned(),
            dtype,
            shape,
            place,
        });
        Ok(true)
    }

    fn external_file(&mut self, location: &str) -> Result<usize, Error> {
        if let Some(number) = self.external.get(location) {
            return Ok(*number);
        }
        let outside = || {
            self.wrong(format!(
                "its data is at {}, outside the folder of the file",
                quoted(location)
            ))
        };
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        let relative = Path::new(location);
        if location.is_empty() || location.contains('\\') || !relative.components().all(plain) {
            return Err(outside());
        }
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let path = folder.join(relative);
        // Links inside the folder may lead to where the file itself leads, as in a cache of downloads.
        let real = path
            .canonicalize()
            .map_err(|e| Error::unreadable(&path, e))?;
        let file_itself = self.path.canonicalize().ok();
        let folders = [
            folder.canonicalize().ok(),
            file_itself.and_then(|f| f.parent().map(Path::to_owned)),
        ];
        if !folders
            .iter()
            .flatten()
            .any(|folder| real.starts_with(folder))
        {
            return Err(outside());
        }
        self.file_at(location, path)
    }

    pub fn file_at(&mut self, location: &str, path: PathBuf) -> Result<usize, Error> {
        let (file, _) = open::regular(&path)?;
        self.files.push((path, file));
        let number = self.files.len() - 1;
        self.external.insert(location.to_owned(), number);
        Ok(number)
    }
}

/// The element type of this number in `onnx.proto`, if its elements are whole bytes.
pub(super) fn dtype(kind: i64) -> Option<Dtype> {
    use safetensors::Dtype as D;
    Some(Dtype::Known(match kind {
        1 => D::F32,
        2 => D::U8,
        3 => D::I8,
        4 => D::U16,
        5 => D::I16,
        6 => D::I32,
        7 => D::I64,
        9 => D::BOOL,
        10 => D::F16,
        11 => D::F64,
        12 => D::U32,
        13 => D::U64,
        16 => D::BF16,
        _ => return None,
    }))
}
