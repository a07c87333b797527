//! The pickle of a state dict, as `torch.load(weights_only=True)` takes it: tensors over storages of the archive, and the plain data
//! that stands around them.

use super::storage::{DTYPES, STORAGES};
use crate::tensor::plain::Plain;
use crate::tensor::write::Output;

/// The directory of an archive that its entries are in.
pub(crate) const ROOT: &str = "archive";

/// Entries that stand beside the pickle, before and after the storages, with what is in them.
pub(crate) const BEFORE: [(&str, &str); 3] = [
    (".format_version", "1"),
    (".storage_alignment", "64"),
    ("byteorder", "little"),
];
pub(crate) const AFTER: [(&str, &str); 1] = [("version", "3\n")];

/// The pickle of outputs, of which the `i`-th has the storage `data/i`; `around` has the place of the state dict.
///
/// # Errors
/// A sentence that names an output whose type PyTorch does not have.
pub(crate) fn pickle(outputs: &[Output], around: &Plain) -> Result<Vec<u8>, String> {
    let mut writer = Pickler {
        out: vec![0x80, 2],
        memo: Vec::new(),
    };
    writer.plain(around, outputs)?;
    writer.out.push(b'.');
    Ok(writer.out)
}

struct Pickler {
    out: Vec<u8>,
    /// Classes, functions and texts that are written once and referred to.
    memo: Vec<String>,
}

impl Pickler {
    fn plain(&mut self, value: &Plain, outputs: &[Output]) -> Result<(), String> {
        match value {
            Plain::None => self.out.push(b'N'),
            Plain::Bool(true) => self.out.push(0x88),
            Plain::Bool(false) => self.out.push(0x89),
            Plain::Integer(n) => self.integer(*n),
            Plain::Number(x) => {
                self.out.push(b'G');
                self.out.extend(x.to_be_bytes());
            }
            Plain::Text(text) => self.text(text),
            Plain::Tuple(values) => {
                self.out.push(b'(');
                values.iter().try_for_each(|v| self.plain(v, outputs))?;
                self.out.push(b't');
            }
            Plain::List(values) => {
                self.out.extend(b"](");
                values.iter().try_for_each(|v| self.plain(v, outputs))?;
                self.out.push(b'e');
            }
            Plain::Dict(items) => {
                self.out.extend(b"}(");
                for (key, value) in items {
                    self.plain(key, outputs)?;
                    self.plain(value, outputs)?;
                }
                self.out.push(b'u');
            }
            Plain::StateDict => {
                self.ordered_dict();
                self.out.push(b'(');
                for (i, output) in outputs.iter().enumerate() {
                    self.text(&output.name);
                    self.tensor(i, output)?;
                }
                self.out.push(b'u');
            }
        }
        Ok(())
    }

    fn ordered_dict(&mut self) {
        self.global("collections OrderedDict");
        self.out.extend(b")R");
    }

    /// A call of a function that makes a tensor over a storage, which begins with it and lies row by row.
    fn tensor(&mut self, i: usize, output: &Output) -> Result<(), String> {
        let dtype = output.dtype.to_string();
        let has_class = STORAGES.iter().find(|(_, known, _)| *known == dtype);
        let has_none = DTYPES.iter().find(|(_, known, _)| *known == dtype);
        let (function, class, size, of) = match (has_class, has_none) {
            (Some((class, _, size)), _) => {
                ("_rebuild_tensor_v2", format!("torch {class}"), size, None)
            }
            (None, Some((torch, _, size))) => {
                let untyped = "torch.storage UntypedStorage".to_owned();
                ("_rebuild_tensor_v3", untyped, size, Some(*torch))
            }
            (None, None) => {
                return Err(format!(
                    "{} is {dtype}, a type that PyTorch's files do not have",
                    crate::tensor::error::quoted(&output.name)
                ));
            }
        };
        self.global(&format!("torch._utils {function}"));
        // The arguments: a storage, an offset, the shape, the strides, no gradient, no hooks.
        self.out.extend(b"((");
        self.shared("storage");
        self.global(&class);
        self.text(&i.to_string());
        self.shared("cpu");
        // An untyped storage has bytes; others have elements.
        let elements = output.byte_len / if of.is_some() { 1 } else { *size };
        self.integer(elements as i64);
        self.out.extend(b"tQ");
        self.integer(0);
        self.sizes(output.shape.iter().map(|n| *n as i64));
        let mut strides = vec![1i64; output.shape.len()];
        for d in (1..output.shape.len()).rev() {
            strides[d - 1] = strides[d].saturating_mul(output.shape[d].max(1) as i64);
        }
        self.sizes(strides.into_iter());
        self.out.push(0x89);
        self.ordered_dict();
        if let Some(torch) = of {
            self.global(&format!("torch {torch}"));
        }
        self.out.extend(b"tR");
        Ok(())
    }

    fn sizes(&mut self, sizes: impl Iterator<Item = i64>) {
        self.out.push(b'(');
        sizes.for_each(|n| self.integer(n));
        self.out.push(b't');
    }

    fn integer(&mut self, n: i64) {
        if let Ok(n) = u8::try_from(n) {
            self.out.extend([b'K', n]);
        } else if let Ok(n) = i32::try_from(n) {
            self.out.push(b'J');
            self.out.extend(n.to_le_bytes());
        } else {
            self.out.extend([0x8a, 8]);
            self.out.extend(n.to_le_bytes());
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push(b'X');
        self.out.extend((text.len() as u32).to_le_bytes());
        self.out.extend(text.as_bytes());
    }

    /// A text that is written often.
    fn shared(&mut self, text: &str) {
        if !self.recalled(text) {
            self.text(text);
            self.memorized();
        }
    }

    /// A class or a function: module and name.
    fn global(&mut self, name: &str) {
        if !self.recalled(name) {
            self.out.push(b'c');
            self.out.extend(name.replacen(' ', "\n", 1).as_bytes());
            self.out.push(b'\n');
            self.memorized();
        }
    }

    /// Refers to what has been written, or keeps in mind that it will be.
    fn recalled(&mut self, name: &str) -> bool {
        let found = self.memo.iter().position(|known| known == name);
        match found {
            Some(i) => {
                self.out.extend([b'h', i as u8]);
                true
            }
            None => {
                self.memo.push(name.to_owned());
                false
            }
        }
    }

    fn memorized(&mut self) {
        // A few dozen classes at most.
        self.out.extend([b'q', (self.memo.len() - 1) as u8]);
    }
}
