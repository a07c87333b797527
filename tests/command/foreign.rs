//! Files of other kinds and checkpoints that contradict themselves: what is said of each, and beside it a file that is read.

use std::fs::File as Opened;
use std::io::Write as _;

use crate::support::file::{Place, bytes, checkpoint, ones};
use crate::support::forge::Held;
use crate::support::torch::{archive, state_dict};
use repfuse::tensor::{self, Checkpoint, Dtype, Part};

/// The bytes of a checkpoint of one tensor.
fn fine(place: &Place) -> Vec<u8> {
    ones(&[("a.weight", &[1])]).write(&place.path("fine"));
    place.read("fine")
}

#[test]
fn files_of_other_kinds_are_told() {
    let place = Place::new();
    let fine = fine(&place);
    let table: [(&[u8], &str, &str); 9] = [
        (
            b"\x89HDF\r\n\x1a\n\0\0\0\0",
            "a.h5",
            "it is an HDF5 file, as Keras writes; save its weights as safetensors, with convs as [out, in, kh, kw]",
        ),
        (
            b"\xfd7zXZ\x00\0\x04",
            "a.pth.xz",
            "it is compressed by xz; unpack it first",
        ),
        (
            b"\x28\xb5\x2f\xfd\x04\x58\0\x01",
            "a.pth.zst",
            "it is compressed by zstd; unpack it first",
        ),
        (
            b"BZh91AY&SY",
            "a.pth.bz2",
            "it is compressed by bzip2; unpack it first",
        ),
        (
            b"\x1c\0\0\0TFL3\x14\0",
            "a.tflite",
            "it is a TensorFlow Lite model; save the weights of the model it was made of as safetensors",
        ),
        (
            b"\x0a\x07\x0a\x01x\x12\x01\x02",
            "a.pb",
            "it is a TensorFlow file; save its weights as safetensors, with convs as [out, in, kh, kw]",
        ),
        (
            b"parameters",
            "a.pdiparams",
            "it is a Paddle file; save its tensors as safetensors or as a PyTorch state dict",
        ),
        // A number that is small enough for the length of a header.
        (
            &[0; 64],
            "b.pdiparams",
            "it is a Paddle file; save its tensors as safetensors or as a PyTorch state dict",
        ),
        (
            b"\x08\x09\x12\x07pytorch",
            "a.model",
            "it looks like an ONNX model, which has no state dict of its own",
        ),
    ];
    for (begin, name, expected) in table {
        place.write(name, begin);
        let path = place.path(name);
        let error = Checkpoint::open(&path).expect_err(expected).to_string();
        assert!(error.ends_with(expected), "{name}: {error}");
        // The bytes tell, and not the name.
        place.write(name, &fine);
        Checkpoint::open(&path).expect(name);
    }
}

#[test]
fn archives_of_other_kinds_are_told() {
    let place = Place::new();
    for (entry, expected) in [
        (
            "models/model.json",
            "it is a program of torch.export (`.pt2`), which is read as a graph",
        ),
        (
            "weight.npy",
            "it is an archive of NumPy arrays (`.npz`); save the tensors as safetensors, each under its name",
        ),
        (
            "model.weights.h5",
            "it is a Keras model; save its weights as safetensors, with convs as [out, in, kh, kw]",
        ),
    ] {
        place.write("a.zip", archive(&[(entry, b"")]));
        let error = Checkpoint::open(place.path("a.zip")).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        // Beside a pickle it is nothing to look at.
        let pickle = state_dict(b"");
        let parts = [
            ("data.pkl", &pickle[..]),
            ("data/0", &[0; 4]),
            (entry, b"" as &[u8]),
        ];
        place.write("a.zip", archive(&parts));
        Checkpoint::open(place.path("a.zip")).expect(entry);
    }
}

#[test]
fn metadata_beside_a_pickle_is_an_object_of_strings() {
    let place = Place::new();
    let pickle = state_dict(b"");
    let open = |json: &[u8]| {
        let parts = [
            ("data.pkl", &pickle[..]),
            ("data/0", &[0; 4]),
            ("repfuse.json", json),
        ];
        place.write("a.pt", archive(&parts));
        Checkpoint::open(place.path("a.pt"))
    };
    let error = open(b"[]").expect_err("a list");
    assert!(
        error.to_string().contains("its metadata is not valid: "),
        "{error}"
    );
    let file = open(br#"{"a": "b"}"#).expect("an object");
    assert_eq!(file.metadata(), [("a".to_owned(), "b".to_owned())]);
}

#[test]
fn an_index_names_files_beside_it() {
    let place = Place::new();
    ones(&[("a", &[1])]).write(&place.path("x.safetensors"));
    let index = "m.safetensors.index.json";
    let long = "n".repeat((1 << 16) + 1);
    let whole = r#"{"weight_map": {"a": "x.safetensors"}}"#;
    for (text, expected) in [
        (
            r#"{"weight_map": {"a": "../x.safetensors"}}"#.to_owned(),
            "it says that `a` is in `../x.safetensors`; expected a file beside the index",
        ),
        (
            r#"{"weight_map": {}}"#.to_owned(),
            "its `weight_map` is empty",
        ),
        (
            r#"{"weight_map": []}"#.to_owned(),
            "expected an object of file names",
        ),
        (
            whole.replace("\"a\"", &format!("\"{long}\"")),
            "a name has more than 65536 bytes",
        ),
    ] {
        place.write(index, text);
        let error = Checkpoint::open(place.path(index)).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    place.write(index, whole);
    Checkpoint::open(place.path("")).expect("one index");
    place.write("n.safetensors.index.json", whole);
    let error = Checkpoint::open(place.path("")).expect_err("two indexes");
    let error = error.to_string();
    assert!(error.contains("it holds several, "), "{error}");
    assert!(
        error.ends_with(" among them; name the one to read"),
        "{error}"
    );
}

#[test]
fn a_shard_without_its_index_says_what_is_missing() {
    let place = Place::new();
    let shard = "in-00001-of-00002.safetensors";
    checkpoint(1, 4).write(&place.path(shard));
    let error = Checkpoint::open(place.path(shard)).expect_err("a shard");
    let expected = "put the other shards and their index (`*.safetensors.index.json`) beside it and open the index";
    assert!(error.to_string().contains(expected), "{error}");
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    Checkpoint::open(place.path("in.safetensors")).expect("a whole file");
}

#[test]
fn there_are_no_more_shards_than_a_directory_takes_well() {
    let place = Place::new();
    let mut file = checkpoint(1, 4);
    for i in 0..600 {
        let name = format!("more{i}.weight");
        file.tensors.insert(name, Held::f32(&[1], &[1.0]));
    }
    file.write(&place.path("in.safetensors"));
    let ran = place.run("fuse in.safetensors out.safetensors --quiet --shard-size 4B");
    assert_eq!(ran.code(), Some(2), "{}", ran.stderr);
    let expected = " shards; at most 500 are written, so let them be larger";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    let ran = place.run("fuse in.safetensors out.safetensors --quiet --shard-size 2KB");
    assert_eq!(ran.all(), (Some(0), "", ""));
}

#[test]
fn copies_that_metadata_names_are_bound_by_the_file() {
    let place = Place::new();
    let open = |copies: usize| {
        let names: Vec<String> = (0..copies).map(|i| format!(r#""c{i}": "a""#)).collect();
        let header = format!(
            r#"{{"__metadata__": {{{}}}, "a": {{"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}}}"#,
            names.join(", ")
        );
        place.write("a.safetensors", bytes(header, &[0; 4000]));
        Checkpoint::open(place.path("a.safetensors"))
    };
    let error = open(8).expect_err("32 kilobytes").to_string();
    let expected =
        "the tensors that its metadata names as copies of others claim 20000 bytes; the file has ";
    assert!(error.contains(expected), "{error}");
    assert_eq!(open(2).expect("8 kilobytes").tensors().len(), 3);
}

#[test]
fn parts_of_files_lie_in_them() {
    let place = Place::new();
    place.write("a", [0; 8]);
    let path = place.path("a");
    let part = |name: &str, file: usize, offset: u64| Part {
        name: name.to_owned(),
        dtype: Dtype::from_name("F32"),
        shape: vec![1],
        place: tensor::Place::InFile { file, offset },
    };
    let open = |parts: Vec<Part>| {
        let file = Opened::open(&path).expect("a file");
        Checkpoint::of_parts(vec![(path.clone(), file)], parts, Vec::new())
    };
    for (parts, expected) in [
        (
            vec![part("w", 0, 5)],
            "`w` has 4 bytes from position 5 on, which is beyond the end of the file",
        ),
        (
            vec![part("w", 0, 0), part("w", 0, 4)],
            "two tensors are named `w`",
        ),
    ] {
        let error = open(parts).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let none = Checkpoint::of_parts(Vec::new(), vec![part("w", 0, 0)], Vec::new());
    let error = none.expect_err("no file").to_string();
    assert!(error.contains("there is no file"), "{error}");
    let one = open(vec![part("v", 0, 0), part("w", 0, 4)]).expect("two tensors");
    let mut out = [1; 4];
    one.read_at(&one.tensors()["w"], 0, &mut out)
        .expect("its bytes");
    assert_eq!(out, [0; 4]);
    // A tensor of a checkpoint of two files is none of this one.
    let mut second = Opened::create(place.path("b")).expect("a file");
    second.write_all(&[0; 8]).expect("space");
    let names = [path.clone(), place.path("b")];
    let files = names.map(|path| (path.clone(), Opened::open(path).expect("a file")));
    let two = Checkpoint::of_parts(files.into(), vec![part("x", 1, 0)], Vec::new());
    let two = two.expect("two files");
    let elsewhere = two.tensors()["x"].clone();
    two.read_at(&elsewhere, 0, &mut out).expect("its bytes");
    let error = one.read_at(&elsewhere, 0, &mut out).expect_err("another");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    let said = format!("{error}: {}", cause.unwrap_or_default());
    assert!(said.contains("`x` is of another file"), "{said}");
}
