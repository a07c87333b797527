//! One tensor of a checkpoint: its name, type and shape, and where its bytes are.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::computed::Computed;
use super::dtype::Dtype;
use super::error::quoted;
use super::facts::{Facts, Module};
use super::header;
use super::strided::View;

/// One tensor of a checkpoint; cloning it is cheap.
#[derive(Clone, PartialEq)]
pub struct Tensor(Arc<Info>);

#[derive(Clone, PartialEq)]
struct Info {
    name: String,
    /// Its name in the file, where it is looked at under another.
    name_in_file: Option<String>,
    dtype: Dtype,
    shape: Vec<usize>,
    /// The dimensions in the file, where `shape` are others for the same numbers.
    stored: Option<Vec<usize>>,
    /// Whether it is the matrix of the file with its axes exchanged.
    turned: bool,
    /// The first of its numbers among those of the tensor of the file, where it is a stretch of these.
    begins: Option<usize>,
    place: Place,
    byte_len: u64,
    /// How it lies in the file, where it is looked at with its dimensions in another order.
    lies: Option<(Vec<usize>, Place)>,
    /// What its file says of modules, if it says anything.
    facts: Option<Arc<Facts>>,
}

/// Where the bytes of a tensor are.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// In the file of this number, from this position on.
    InFile {
        /// The number of the file among those that the checkpoint has.
        file: usize,
        /// The position of its first byte.
        offset: u64,
    },
    /// In memory: a few numbers that no file holds as little-endian bytes side by side.
    InMemory(Arc<[u8]>),
    /// In a file, as a view of what is stored there.
    View(Arc<View>),
    /// In other tensors, which it is computed from.
    Computed(Arc<Computed>),
    /// In its file in a form that is not read; a sentence on it. Such a tensor has a name, and as much of a shape as is known.
    Unread(Arc<str>),
}

/// A tensor of a file whose format is read elsewhere.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name, which no other has.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// Where its bytes are, little-endian and row-major.
    pub place: Place,
}

impl Tensor {
    /// The tensor that a part describes.
    ///
    /// # Errors
    /// Says what is wrong where its element type has no fixed size, its shape overflows, or memory holds another number of bytes.
    pub fn new(part: Part) -> Result<Tensor, String> {
        let name = quoted(&part.name);
        let bits = part.dtype.bits().filter(|bits| bits % 8 == 0);
        let size = bits.ok_or_else(|| {
            format!(
                "{name} has dtype {}, whose elements are no whole bytes",
                part.dtype
            )
        })? as u64
            / 8;
        let bytes = part
            .shape
            .iter()
            .try_fold(size, |n, d| n.checked_mul(*d as u64));
        let byte_len =
            bytes.ok_or_else(|| format!("the shape {:?} of {name} overflows", part.shape))?;
        if let Place::InMemory(bytes) = &part.place
            && bytes.len() as u64 != byte_len
        {
            return Err(format!(
                "{name} has {}; its shape {:?} takes {byte_len}",
                header::in_bytes(bytes.len() as u64),
                part.shape
            ));
        }
        Ok(Tensor(Arc::new(Info {
            name: part.name,
            name_in_file: None,
            dtype: part.dtype,
            shape: part.shape,
            stored: None,
            turned: false,
            begins: None,
            place: part.place,
            byte_len,
            lies: None,
            facts: None,
        })))
    }

    /// A tensor whose number of bytes is known.
    pub(super) fn at(
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        place: Place,
        byte_len: u64,
    ) -> Tensor {
        Tensor(Arc::new(Info {
            name,
            name_in_file: None,
            dtype,
            shape,
            stored: None,
            turned: false,
            begins: None,
            place,
            byte_len,
            lies: None,
            facts: None,
        }))
    }

    /// Where its bytes are.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The element type.
    pub fn dtype(&self) -> &Dtype {
        &self.0.dtype
    }

    /// Whether this is the very same tensor of the very same checkpoint.
    pub fn is(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// The same numbers with other dimensions, of which there must be as many.
    pub fn reshaped(&self, shape: Vec<usize>) -> Tensor {
        debug_assert_eq!(shape.iter().product::<usize>(), self.len());
        Tensor(Arc::new(Info {
            shape,
            stored: Some(self.stored_shape().to_vec()),
            ..(*self.0).clone()
        }))
    }

    /// The matrix with its axes exchanged, as a view of the same bytes, and back; none of a tensor that
    /// is no matrix, or another view.
    pub(crate) fn turned(&self) -> Option<Tensor> {
        let &[rows, columns] = self.shape() else {
            return None;
        };
        // Whether the numbers of the file can be found again: a matrix of another shape is not the one that was turned.
        let of_file = self.stored_shape();
        let matches = match self.0.turned {
            true => of_file == [columns, rows],
            false => of_file == [rows, columns],
        };
        if !matches {
            return None;
        }
        let size = self.dtype().bits()? as u64 / 8;
        let place = match self.place() {
            Place::View(view) if self.0.turned => Place::InFile {
                file: view.file,
                offset: view.at,
            },
            Place::InFile { file, offset } => {
                let storage = *offset..offset.checked_add(self.byte_len())?;
                let shape = [columns as u64, rows as u64];
                let view = View::new(storage, size, 0, &shape, &[1, columns as u64]).ok()?;
                Place::View(Arc::new(view.of_file(*file)))
            }
            Place::InMemory(bytes) => {
                let at = |row: usize, column: usize| {
                    let at = (row * columns + column) * size as usize;
                    &bytes[at..at + size as usize]
                };
                let all = (0..columns).flat_map(|c| (0..rows).flat_map(move |r| at(r, c)));
                Place::InMemory(all.copied().collect())
            }
            Place::View(_) | Place::Computed(_) | Place::Unread(_) => return None,
        };
        Some(Tensor(Arc::new(Info {
            shape: vec![columns, rows],
            stored: (!self.0.turned).then(|| of_file.to_vec()),
            turned: !self.0.turned,
            place,
            ..(*self.0).clone()
        })))
    }

    /// Some numbers of a vector, one behind another; none of another tensor, or where they do not stand side by side.
    pub(crate) fn stretch(&self, range: Range<usize>) -> Option<Tensor> {
        let &[len] = self.shape() else {
            return None;
        };
        if range.start >= range.end || range.end > len || self.0.turned || self.0.lies.is_some() {
            return None;
        }
        let size = self.dtype().bits().filter(|bits| bits % 8 == 0)? / 8;
        let (first, behind) = (range.start * size, range.end * size);
        let place = match self.place() {
            Place::InFile { file, offset } => Place::InFile {
                file: *file,
                offset: offset.checked_add(first as u64)?,
            },
            Place::InMemory(bytes) => Place::InMemory(Arc::from(bytes.get(first..behind)?)),
            Place::View(view) if view.is_plain() => Place::InFile {
                file: view.file,
                offset: view.at.checked_add(first as u64)?,
            },
            Place::View(_) | Place::Computed(_) | Place::Unread(_) => return None,
        };
        Some(Tensor(Arc::new(Info {
            shape: vec![range.len()],
            stored: Some(self.stored_shape().to_vec()),
            begins: Some(self.begins().unwrap_or(0) + range.start),
            place,
            byte_len: (behind - first) as u64,
            ..(*self.0).clone()
        })))
    }

    /// The first of its numbers among those of the tensor of the file, where it is a stretch of these.
    pub(crate) fn begins(&self) -> Option<usize> {
        self.0.begins
    }

    /// Whether it is the matrix of the file with its axes exchanged.
    pub(crate) fn is_turned(&self) -> bool {
        self.0.turned
    }

    /// Its name in the file; [`name`](Self::name) is without the segments that wrappers put into it, where it is looked at so.
    pub fn name_in_file(&self) -> &str {
        self.0.name_in_file.as_deref().unwrap_or(&self.0.name)
    }

    /// The same tensor, looked at under another name than that in the file.
    pub(crate) fn seen_as(&self, name: String) -> Tensor {
        Tensor(Arc::new(Info {
            name,
            name_in_file: Some(self.name_in_file().to_owned()),
            ..(*self.0).clone()
        }))
    }

    /// The same tensor, looked at with its dimensions in another order than in the file.
    pub(super) fn seen_with(self, shape: Vec<usize>, place: Place) -> Tensor {
        Tensor(Arc::new(Info {
            lies: Some((self.shape().to_vec(), self.place().clone())),
            shape,
            place,
            ..Arc::unwrap_or_clone(self.0)
        }))
    }

    /// The tensor with its dimensions in the order of the file.
    pub fn as_it_lies(&self) -> Tensor {
        match &self.0.lies {
            None => self.clone(),
            Some((shape, place)) => Tensor(Arc::new(Info {
                lies: None,
                stored: None,
                shape: shape.clone(),
                place: place.clone(),
                ..(*self.0).clone()
            })),
        }
    }

    /// Whether its file has the second dimension last.
    pub fn is_channels_last(&self) -> bool {
        self.0.lies.is_some()
    }

    /// The same numbers under another name.
    pub(super) fn named(&self, name: String) -> Tensor {
        Tensor(Arc::new(Info {
            name,
            ..(*self.0).clone()
        }))
    }

    /// A tensor of the same type and shape that is computed.
    pub(super) fn computed_as(&self, name: String, computed: Computed) -> Tensor {
        Tensor(Arc::new(Info {
            name,
            place: Place::Computed(Arc::new(computed)),
            ..(*self.0).clone()
        }))
    }

    /// How it is computed, if it does not stand in the file.
    pub fn computed(&self) -> Option<&Computed> {
        match self.place() {
            Place::Computed(computed) => Some(computed),
            _ => None,
        }
    }

    /// Why its numbers cannot be read, if they cannot.
    pub fn unread(&self) -> Option<&str> {
        match self.place() {
            Place::Unread(why) => Some(why),
            _ => None,
        }
    }

    /// The tensors of the file that it is computed from; none for one that stands there itself.
    pub fn parts(&self) -> &[Tensor] {
        match self.computed() {
            Some(computed) => computed.parts(),
            None => &[],
        }
    }

    /// The same tensor, of a file that says this of its modules.
    pub(super) fn said(self, facts: &Arc<Facts>) -> Tensor {
        Tensor(Arc::new(Info {
            facts: (!facts.is_empty()).then(|| facts.clone()),
            ..Arc::unwrap_or_clone(self.0)
        }))
    }

    /// What its file says of modules; none for a state dict, which says nothing.
    pub fn facts(&self) -> Option<&Facts> {
        self.0.facts.as_deref()
    }

    /// What its file says of the module that it is a parameter of.
    pub fn module(&self) -> Option<&Module> {
        let (path, _) = self.name_in_file().rsplit_once('.').unwrap_or_default();
        self.facts()?.module(path)
    }

    /// The dimensions in the file, which are those of an index that a user can look up.
    pub fn stored_shape(&self) -> &[usize] {
        self.0.stored.as_ref().unwrap_or(&self.0.shape)
    }

    /// The number of bytes.
    pub fn byte_len(&self) -> u64 {
        self.0.byte_len
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.0.shape.iter().product()
    }

    /// Whether the tensor has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(self.name_in_file()))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {} {:?}", self.dtype(), self.shape())
    }
}
