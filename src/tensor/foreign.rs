//! Files of other kinds, known by their first bytes and told with the way on.

use std::path::Path;

/// How many bytes of a file tell its kind.
pub(super) const TELLING: usize = 64;

/// A kind of file that is not read as a checkpoint: how it begins, what it is, and what to do.
struct Kind {
    begins: &'static [u8],
    is: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        begins: b"version https://git-lfs",
        is: "it is a Git LFS pointer, which stands for the file; fetch the file itself with `git lfs pull`",
    },
    Kind {
        begins: b"GGUF",
        is: "it is a GGUF file; fuse the PyTorch or safetensors checkpoint that it was made of, and convert the result",
    },
    Kind {
        begins: b"\x93NUMPY",
        is: "it is a NumPy array without names; save the tensors as safetensors, each under its name",
    },
    Kind {
        begins: b"\x89HDF\r\n\x1a\n",
        is: "it is an HDF5 file, as Keras writes; save its weights as safetensors, with convs as [out, in, kh, kw]",
    },
    Kind {
        begins: b"\x1f\x8b",
        is: "it is compressed by gzip; unpack it first",
    },
    Kind {
        begins: b"\xfd7zXZ\x00",
        is: "it is compressed by xz; unpack it first",
    },
    Kind {
        begins: b"\x28\xb5\x2f\xfd",
        is: "it is compressed by zstd; unpack it first",
    },
    Kind {
        begins: b"BZh",
        is: "it is compressed by bzip2; unpack it first",
    },
];

/// What a file is that begins like this and is no checkpoint; none where nothing is known of it.
///
/// Only a file whose beginning is no header of safetensors is asked, so a few letters are enough.
pub(super) fn kind(begin: &[u8], path: &Path) -> Option<&'static str> {
    if let Some(kind) = KINDS.iter().find(|kind| begin.starts_with(kind.begins)) {
        return Some(kind.is);
    }
    if begin.get(4..8) == Some(b"TFL3") {
        return Some(
            "it is a TensorFlow Lite model; save the weights of the model it was made of as safetensors",
        );
    }
    let ends = |end: &str| path.extension().is_some_and(|found| found == end);
    if ends("pb") || ends("index") {
        return Some(
            "it is a TensorFlow file; save its weights as safetensors, with convs as [out, in, kh, kw]",
        );
    }
    if ends("pdiparams") || ends("pdparams") {
        return Some(
            "it is a Paddle file; save its tensors as safetensors or as a PyTorch state dict",
        );
    }
    let text = begin.trim_ascii_start();
    let lower: Vec<u8> = text.iter().take(9).map(u8::to_ascii_lowercase).collect();
    if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") || lower.starts_with(b"<?xml")
    {
        return Some(
            "it is a page of the web, as a failed download leaves it; download the file itself",
        );
    }
    if text.starts_with(b"{") || text.starts_with(b"[") {
        return Some(
            "it is JSON; the index of a checkpoint in several files is named `….safetensors.index.json`",
        );
    }
    // The version of the intermediate representation is the first field of a model.
    if begin.first() == Some(&8)
        && begin
            .get(1)
            .is_some_and(|version| (1..32).contains(version))
    {
        return Some("it looks like an ONNX model, which has no state dict of its own");
    }
    None
}

/// What an archive without a pickle is, given whether an entry has a name that ends so.
pub(super) fn archive(any_ends: impl Fn(&str) -> bool) -> Option<&'static str> {
    const ENDS: [(&str, &str); 3] = [
        (
            "models/model.json",
            "it is a program of torch.export (`.pt2`), which is read as a graph",
        ),
        (
            ".npy",
            "it is an archive of NumPy arrays (`.npz`); save the tensors as safetensors, each under its name",
        ),
        (
            ".weights.h5",
            "it is a Keras model; save its weights as safetensors, with convs as [out, in, kh, kw]",
        ),
    ];
    ENDS.iter()
        .find(|(end, _)| any_ends(end))
        .map(|(_, is)| *is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_kind() {
        let table: [(&[u8], &str, &str); 10] = [
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "a.safetensors",
                "git lfs pull",
            ),
            (b"GGUF\x03\0\0\0", "a.gguf", "GGUF"),
            (b"\x93NUMPY\x01\0v\0{'descr'", "a.npy", "NumPy"),
            (b"\x89HDF\r\n\x1a\n\0\0", "a.h5", "HDF5"),
            (b"\x1f\x8b\x08\0\0\0\0\0", "a.pth.gz", "gzip"),
            (b"\x1c\0\0\0TFL3", "a.tflite", "TensorFlow Lite"),
            (b"\n<!DOCTYPE html><html>", "a.pth", "web"),
            (b"{\"metadata\": {}}", "a.json", "JSON"),
            (b"\x08\x09\x12\x07pytorch", "a.onnx", "ONNX"),
            (b"\x0a\x07\x0a\x01x", "a.pb", "TensorFlow"),
        ];
        for (begin, path, expected) in table {
            let found = kind(begin, Path::new(path)).unwrap_or_else(|| panic!("{path}"));
            assert!(found.contains(expected), "{path}: {found}");
        }
        assert_eq!(
            kind(b"\x10\0\0\0\0\0\0\0{}", Path::new("a.safetensors")),
            None
        );
    }

    #[test]
    fn entries_tell_what_an_archive_is() {
        let of = |name: &'static str| archive(|end| name.ends_with(end));
        assert!(of("m/models/model.json").is_some_and(|is| is.contains(".pt2")));
        assert!(of("weight.npy").is_some_and(|is| is.contains(".npz")));
        assert_eq!(of("m/version"), None);
    }
}
