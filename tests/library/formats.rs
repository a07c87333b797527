//! Files of every kind that people hand over: what is read, and what is told with the way on.

use std::fs;
use std::path::PathBuf;

use repfuse::tensor::Checkpoint;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).expect("written");
        path
    }
}

/// A safetensors file of two tensors, with this metadata.
fn safetensors(metadata: &str) -> Vec<u8> {
    let header = format!(
        r#"{{"__metadata__":{metadata},"a.weight":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"b.bias":{{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([1.5f32, -2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

#[test]
fn other_kinds_of_files_are_told_with_the_way_on() {
    let folder = Folder::new();
    let table: [(&str, &[u8], &str); 7] = [
        (
            "short.safetensors",
            b"abc",
            "it has 3 bytes; a header needs at least 8",
        ),
        (
            "pointer.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a Git LFS pointer, which stands for the file; fetch the file itself with `git lfs pull`",
        ),
        (
            "page.pth",
            b"<!doctype html><html><body>404</body></html>",
            "it is a page of the web, as a failed download leaves it; download the file itself",
        ),
        (
            "model.gguf",
            b"GGUF\x03\0\0\0\0\0\0\0",
            "it is a GGUF file; fuse the PyTorch or safetensors checkpoint that it was made of, and convert the result",
        ),
        (
            "weights.pth.gz",
            b"\x1f\x8b\x08\0\0\0\0\0\0\0",
            "it is compressed by gzip; unpack it first",
        ),
        (
            "index.json",
            b"{\"weight_map\": {}, \"metadata\": {}}",
            "it is JSON; the index of a checkpoint in several files is named `….safetensors.index.json`",
        ),
        (
            "array.npy",
            b"\x93NUMPY\x01\0v\0{'descr': '<f4'}",
            "it is a NumPy array without names; save the tensors as safetensors, each under its name",
        ),
    ];
    for (name, bytes, expected) in table {
        let error = Checkpoint::open(folder.file(name, bytes))
            .expect_err(name)
            .to_string();
        assert!(
            error.ends_with(&format!("is not a safetensors file: {expected}")),
            "{name}: {error}"
        );
    }
    // Of what kind an empty file would be, no name tells.
    for name in ["e.safetensors", "e.pt", "e.bin"] {
        let error = Checkpoint::open(folder.file(name, b"")).expect_err(name);
        assert!(
            error.to_string().ends_with(&format!("{name}` is empty")),
            "{error}"
        );
    }
}

/// A directory is read as the only file of tensors in it, as a repository of models holds one beside what describes it.
#[test]
fn a_directory_is_read_as_its_only_file() {
    let folder = Folder::new();
    let path = folder.file("config.json", b"{}");
    let directory = path.parent().expect("a directory");
    let none = Checkpoint::open(directory).expect_err("no checkpoint");
    assert!(
        none.to_string().contains("and without a file of tensors"),
        "{none}"
    );
    folder.file("model.safetensors", &safetensors(r#"{"format":"pt"}"#));
    // What PyTorch wrote beside it is the same again, or the state of an optimizer.
    folder.file("training_args.bin", b"of no interest");
    let file = Checkpoint::open(directory).expect("a checkpoint");
    assert_eq!(file.tensors().len(), 2);
    assert_eq!(file.path(), directory.join("model.safetensors"));
    folder.file("other.safetensors", b"");
    let several = Checkpoint::open(directory)
        .expect_err("two files")
        .to_string();
    let [a, b] = ["model", "other"].map(|name| directory.join(format!("{name}.safetensors")));
    let said = format!(
        "`{}` is a directory without an index of shards, and holds `{}` and `{}`; name the one to read",
        directory.display(),
        a.display(),
        b.display()
    );
    assert_eq!(several, said);
    for name in ["x", "y"] {
        folder.file(&format!("{name}.safetensors"), b"");
    }
    let many = Checkpoint::open(directory)
        .expect_err("four files")
        .to_string();
    assert!(
        many.contains("x.safetensors` and 1 more; name the one"),
        "{many}"
    );
}

/// `save_model` of safetensors writes numbers that several tensors share once, and notes the others in the metadata.
#[test]
fn shared_tensors_are_there_under_all_their_names() {
    let folder = Folder::new();
    let bytes = safetensors(r#"{"format":"pt","c.weight":"a.weight","note":"of nothing"}"#);
    let file = Checkpoint::open(folder.file("shared.safetensors", &bytes)).expect("a checkpoint");
    let names: Vec<&str> = file.tensors().keys().map(String::as_str).collect();
    assert_eq!(names, ["a.weight", "b.bias", "c.weight"]);
    let read = |name: &str| {
        let mut bytes = [0; 8];
        file.read_at(file.get(name).expect(name), 0, &mut bytes)
            .expect("bytes");
        bytes
    };
    assert_eq!(read("c.weight"), read("a.weight"));
    let keys: Vec<&str> = file
        .metadata()
        .iter()
        .map(|(key, _)| key.as_str())
        .collect();
    assert_eq!(keys, ["format", "note"]);
}

/// Aliases cost nothing in the file, so they may not claim much more than it has.
#[test]
fn aliases_claim_no_more_than_a_few_times_the_file() {
    let folder = Folder::new();
    let aliases: Vec<String> = (0..4000).map(|i| format!(r#""x{i}":"a.weight""#)).collect();
    let few = safetensors(&format!("{{{}}}", aliases.join(",")));
    assert!(Checkpoint::open(folder.file("few.safetensors", &few)).is_ok());
    let mut many = safetensors(&format!(r#"{{{}}}"#, aliases[..9].join(",")));
    let header = String::from_utf8(many[8..many.len() - 12].to_vec()).expect("text");
    let header = header
        .replace(
            "\"shape\":[2],\"data_offsets\":[0,8]",
            "\"shape\":[2000],\"data_offsets\":[0,8000]",
        )
        .replace("[8,12]", "[8000,8004]");
    many = (header.len() as u64).to_le_bytes().to_vec();
    many.extend(header.as_bytes());
    many.extend(vec![0; 8004]);
    let error = Checkpoint::open(folder.file("many.safetensors", &many))
        .expect_err("too much")
        .to_string();
    assert!(
        error.contains("the tensors that its metadata names as copies of others claim"),
        "{error}"
    );
}

#[test]
fn a_tensor_of_half_bytes_is_no_part_of_a_file() {
    use repfuse::tensor::{Dtype, Part, Place, Tensor};
    let part = |dtype: &str, bytes: usize| Part {
        name: "a".to_owned(),
        dtype: Dtype::from_name(dtype),
        shape: vec![2],
        place: Place::InMemory(vec![0; bytes].into()),
    };
    let refused = Tensor::new(part("F4", 1));
    let expected = "`a` has dtype F4, whose elements are no whole bytes";
    assert_eq!(refused.map(|_| ()), Err(expected.to_owned()));
    assert!(Tensor::new(part("F16", 4)).is_ok());
}
