//! The format of a file that is to be written, which its name decides.

use std::path::Path;

use super::error::Error;

/// A format in which checkpoints are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What a name says that promises no other.
    Safetensors,
    /// An archive as `torch.save` writes it.
    Pytorch,
}

/// How names of PyTorch's files end.
const PYTORCH: [&str; 4] = ["pt", "pth", "bin", "ckpt"];

/// How names end that promise a format in which no state dict is written.
const OTHERS: [(&str, &str); 16] = [
    ("onnx", "an ONNX model"),
    ("pt2", "a program of torch.export"),
    ("gguf", "a GGUF file"),
    ("ggml", "a GGML file"),
    ("h5", "an HDF5 file"),
    ("hdf5", "an HDF5 file"),
    ("keras", "a Keras model"),
    ("npy", "a NumPy array"),
    ("npz", "an archive of NumPy arrays"),
    ("pb", "a TensorFlow file"),
    ("tflite", "a TensorFlow Lite model"),
    ("msgpack", "a file of Flax"),
    ("pdparams", "a Paddle file"),
    ("mlmodel", "a Core ML model"),
    ("zip", "a zip archive"),
    ("gz", "a compressed file"),
];

impl Format {
    /// The format that a name promises.
    ///
    /// # Errors
    /// When it is one that is not written.
    pub fn of(path: &Path) -> Result<Format, Error> {
        let end = path.extension().unwrap_or_default().to_ascii_lowercase();
        if PYTORCH.iter().any(|known| end == *known) {
            return Ok(Format::Pytorch);
        }
        match OTHERS.iter().find(|(known, _)| end == *known) {
            None => Ok(Format::Safetensors),
            Some((_, is)) => Err(Error::OtherFormat {
                path: path.to_owned(),
                is,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_decides_the_format() {
        for (name, format) in [
            ("a.safetensors", Format::Safetensors),
            ("a", Format::Safetensors),
            ("yolo.v8", Format::Safetensors),
            ("a.pt", Format::Pytorch),
            ("b.safetensors.PTH", Format::Pytorch),
            ("pytorch_model.bin", Format::Pytorch),
            ("last.ckpt", Format::Pytorch),
        ] {
            let found = Format::of(Path::new(name));
            assert_eq!(found.ok(), Some(format), "{name}");
        }
        for (name, is) in OTHERS.map(|(end, is)| (format!("a.{end}"), is)) {
            let error = Format::of(Path::new(&name)).map_err(|e| e.to_string());
            let expected = format!(
                "`{name}` is the name of {is}; a state dict is written as `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`"
            );
            assert_eq!(error, Err(expected));
        }
    }
}
