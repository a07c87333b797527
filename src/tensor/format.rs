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

/// How names end that promise a format in which no state dict is written. Any other ending promises nothing: authors call weights
/// `model.weights` and `yolo.v8`.
const OTHERS: &[(&str, &str)] = &[
    ("onnx", "an ONNX model"),
    ("pt2", "a program of torch.export"),
    ("ptl", "a program of PyTorch Mobile"),
    ("pte", "an ExecuTorch program"),
    ("gguf", "a GGUF file"),
    ("ggml", "a GGML file"),
    ("h5", "an HDF5 file"),
    ("hdf5", "an HDF5 file"),
    ("keras", "a Keras model"),
    ("npy", "a NumPy array"),
    ("npz", "an archive of NumPy arrays"),
    ("pkl", "a pickle"),
    ("pickle", "a pickle"),
    ("pb", "a TensorFlow file"),
    ("tflite", "a TensorFlow Lite model"),
    ("msgpack", "a file of Flax"),
    ("pdparams", "a Paddle file"),
    ("pdiparams", "a Paddle file"),
    ("mlmodel", "a Core ML model"),
    ("mlpackage", "a Core ML model"),
    ("engine", "a TensorRT engine"),
    ("json", "a JSON file"),
    ("jsonl", "a JSON file"),
    ("yaml", "a YAML file"),
    ("yml", "a YAML file"),
    ("toml", "a TOML file"),
    ("xml", "an XML file"),
    ("html", "a web page"),
    ("csv", "a table"),
    ("txt", "a text"),
    ("md", "a text"),
    ("log", "a log"),
    ("py", "a Python program"),
    ("zip", "a zip archive"),
    ("tar", "a tar archive"),
    ("7z", "a 7z archive"),
    ("gz", "a compressed file"),
    ("tgz", "a compressed file"),
    ("xz", "a compressed file"),
    ("bz2", "a compressed file"),
    ("zst", "a compressed file"),
    ("png", "an image"),
    ("jpg", "an image"),
];

/// What the name of the index of shards ends in, which is JSON and stands for safetensors.
const INDEX: &str = ".index.json";

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
        if is_index(path) {
            return Ok(Format::Safetensors);
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

fn is_index(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(INDEX)
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
            ("model.weights", Format::Safetensors),
            ("a.safetensors.index.json", Format::Safetensors),
            ("a.json/b", Format::Safetensors),
            ("a.pt", Format::Pytorch),
            ("b.safetensors.PTH", Format::Pytorch),
            ("pytorch_model.bin", Format::Pytorch),
            ("last.ckpt", Format::Pytorch),
        ] {
            let found = Format::of(Path::new(name));
            assert_eq!(found.ok(), Some(format), "{name}");
        }
        for (name, is) in OTHERS.iter().map(|(end, is)| (format!("a.{end}"), is)) {
            let error = Format::of(Path::new(&name)).map_err(|e| e.to_string());
            let expected = format!(
                "`{name}` is the name of {is}; a state dict is written as `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt`"
            );
            assert_eq!(error, Err(expected));
        }
    }
}
