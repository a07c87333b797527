//! Checkpoints to be read, altered and written in a test, through the safetensors crate itself.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::Random;

/// A tensor in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A whole file in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    pub tensors: BTreeMap<String, Held>,
    pub metadata: BTreeMap<String, String>,
}

impl Held {
    pub fn f32(shape: &[usize], values: &[f32]) -> Held {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Held {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// Random numbers between two.
    pub fn random(random: &mut Random, shape: &[usize], low: f64, high: f64) -> Held {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| random.between(low, high) as f32)
            .collect();
        Held::f32(shape, &values)
    }

    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    /// Replaces the values by what `f` makes of them.
    pub fn edit(&mut self, f: impl FnOnce(&mut [f32])) {
        let mut values = self.values();
        f(&mut values);
        self.bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    }
}

impl File {
    pub fn read(path: &Path) -> File {
        let bytes = std::fs::read(path).expect("a readable file");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
        let parsed = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let held = |view: &TensorView<'_>| Held {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        File {
            tensors: parsed
                .iter()
                .map(|(name, view)| (name.to_owned(), held(&view)))
                .collect(),
            metadata: header
                .metadata()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
        }
    }

    pub fn write(&self, path: &Path) {
        let views = self.tensors.iter().map(|(name, held)| {
            let view = TensorView::new(held.dtype, held.shape.clone(), &held.bytes)
                .expect("bytes that fit the shape");
            (name.clone(), view)
        });
        let metadata =
            (!self.metadata.is_empty()).then(|| self.metadata.clone().into_iter().collect());
        std::fs::write(path, serialize(views, metadata).expect("a file"))
            .expect("a writable directory");
    }

    /// The tensor of this name.
    pub fn at(&mut self, name: &str) -> &mut Held {
        self.tensors
            .get_mut(name)
            .unwrap_or_else(|| panic!("there is no `{name}`"))
    }
}
