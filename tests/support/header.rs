//! A file of names and shapes: all that a plan asks for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;

use repfuse::tensor::Checkpoint;

/// The names, types and shapes of a file.
#[derive(Clone)]
pub struct Header(BTreeMap<String, (String, Vec<usize>, u64)>);

impl Header {
    pub fn of(file: &Checkpoint) -> Header {
        let tensors = file.tensors().iter();
        let entry = |(name, tensor): (&String, &repfuse::tensor::Tensor)| {
            let about = (
                tensor.dtype().to_string(),
                tensor.shape().to_vec(),
                tensor.byte_len(),
            );
            (name.clone(), about)
        };
        Header(tensors.map(entry).collect())
    }

    /// Adds a tensor of type F32.
    pub fn add(&mut self, name: &str, shape: &[usize]) {
        let bytes = 4 * shape.iter().product::<usize>() as u64;
        let about = ("F32".to_owned(), shape.to_vec(), bytes);
        self.0.insert(name.to_owned(), about);
    }

    /// A tensor of any type, in the place of one of this name.
    pub fn set(&mut self, name: &str, dtype: &str, shape: &[usize]) {
        let bits = repfuse::tensor::Dtype::from_name(dtype).bits();
        let bytes = bits.expect("a known type") * shape.iter().product::<usize>() / 8;
        let about = (dtype.to_owned(), shape.to_vec(), bytes as u64);
        self.0.insert(name.to_owned(), about);
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name).expect("a tensor of this name");
    }

    pub fn rename(&mut self, name: &str, to: &str) {
        let about = self.0.remove(name).expect("a tensor of this name");
        self.0.insert(to.to_owned(), about);
    }

    /// The same tensors below a path, and those of another file.
    pub fn join(&mut self, prefix: &str, other: &Header) {
        for (name, about) in &other.0 {
            self.0.insert(format!("{prefix}.{name}"), about.clone());
        }
    }

    /// A checkpoint of these tensors, whose values are zeros that take no space.
    pub fn open(&self) -> Checkpoint {
        let mut end = 0;
        let mut header = serde_json::Map::new();
        for (name, (dtype, shape, bytes)) in &self.0 {
            let offsets = [end, end + bytes];
            end += bytes;
            header.insert(
                name.clone(),
                serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
            );
        }
        let text = serde_json::to_vec(&header).expect("JSON");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("header.safetensors");
        let mut file = File::create(&path).expect("a file");
        let len = text.len() as u64;
        file.write_all(&len.to_le_bytes()).expect("space");
        file.write_all(&text).expect("space");
        file.set_len(8 + len + end).expect("space");
        Checkpoint::open(&path).expect("a checkpoint")
    }
}
