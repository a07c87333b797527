//! Files of PyTorch's that are broken in one place: what is said of each, and the file that is not.

use repfuse::tensor::Checkpoint;

use crate::support::file::Place;
use crate::support::torch::{ONE, Tensor, holding, state_dict, whole};

/// Opens a file of these bytes.
fn open(bytes: &[u8]) -> Result<Checkpoint, String> {
    let place = Place::new();
    place.write("a.pt", bytes);
    Checkpoint::open(place.path("a.pt")).map_err(|error| error.to_string())
}

fn refused(bytes: &[u8], expected: &str) {
    let error = open(bytes).expect_err(expected);
    assert!(
        error.contains("cannot be read as a PyTorch file: "),
        "{error}"
    );
    assert!(error.contains(expected), "{expected}: {error}");
}

fn read(bytes: &[u8], beside: &str) {
    let file = open(bytes).unwrap_or_else(|error| panic!("beside {beside:?}: {error}"));
    assert_eq!(file.tensors()["a.weight"].shape(), [1], "{beside}");
}

#[test]
fn pickles_with_one_mistake() {
    let long = |n: usize| [b"V", &b"v".repeat(n)[..], b"\n0"].concat();
    let table: [(&[u8], &str, &[u8]); 16] = [
        (
            b"\x80\x06",
            "its pickle has protocol 6; up to 5 are known",
            b"\x80\x05",
        ),
        (
            b"\x82\x010",
            "it uses an extension code, which only the program that wrote it can tell",
            b"K\x010",
        ),
        (
            b"\x970",
            "it refers to a buffer outside of the file",
            b"\x96\0\0\0\0\0\0\0\x000",
        ),
        (
            b"\xff",
            "it is no pickle at byte 48: there is no opcode 0xff",
            b"N0",
        ),
        (
            &b")0".repeat(1 << 20),
            "its pickle holds more values than any checkpoint of its size",
            &b")0".repeat(1 << 10),
        ),
        (
            b"K\x01K\x02a0",
            "it appends to what is no list",
            b"]K\x02a0",
        ),
        (
            b"}(K\x01u0",
            "it sets a key without a value",
            b"}(K\x01K\x02u0",
        ),
        (
            b"K\x01K\x02K\x03s0",
            "it sets a key of what is no dict",
            b"}K\x02K\x03s0",
        ),
        (
            b"K\x01q\x05h\x0600",
            "it takes value 6, which it has not put anywhere",
            b"K\x01q\x05h\x0500",
        ),
        (b"Fabc\n0", "it has a number that is none", b"F1.5\n0"),
        (
            b"K\x01pabc\n0",
            "it numbers a value with what is no number",
            b"K\x01p7\n0",
        ),
        (
            b"K\x01K\x01\x930",
            "it names a class by what is no text",
            b"U\x01aU\x01b\x930",
        ),
        (
            b"]]\x930",
            "it names a class by what is no text",
            b"U\x01aU\x01b\x930",
        ),
        (b"0", "it takes more values than it has given", b"N0"),
        (
            &long((1 << 20) + 1),
            "a line of it has more than 1048576 bytes",
            &long(1 << 20),
        ),
        (
            b"K\x01(\x850",
            "it takes more values than it has given",
            b"K\x01\x850",
        ),
    ];
    for (mistake, expected, twin) in table {
        refused(&whole(&state_dict(mistake)), expected);
        read(&whole(&state_dict(twin)), expected);
    }
}

#[test]
fn tensors_with_one_mistake() {
    let huge = [&b"J\xff\xff\xff\x7f".repeat(3)[..], b"\x87"].concat();
    for (tensor, expected) in [
        (Tensor { key: b"N", ..ONE }, "has a storage without a key"),
        (
            Tensor {
                part: b"(U\x01vK\x02K\x01t",
                ..ONE
            },
            "is in a part of a storage that lies outside of it",
        ),
        (
            Tensor { shape: b"N", ..ONE },
            "has a shape or strides that are no numbers",
        ),
        (
            Tensor {
                strides: b"N\x85",
                ..ONE
            },
            "has a shape or strides that are no numbers",
        ),
        (
            Tensor {
                offset: b"N",
                ..ONE
            },
            "begins at an offset that is no number",
        ),
        (
            Tensor {
                shape: &huge,
                strides: b"K\x00K\x00K\x00\x87",
                ..ONE
            },
            "has the shape [2147483647, 2147483647, 2147483647], which is too large to address",
        ),
        (
            Tensor {
                class: "QInt8Storage",
                ..ONE
            },
            "is in a `torch.QInt8Storage`, whose numbers are of a type that is not read",
        ),
        (
            Tensor {
                metadata: b"K\x01",
                ..ONE
            },
            "has metadata that is no dict",
        ),
        (
            Tensor {
                class: "IntStorage",
                metadata: b"}U\x03neg\x88s",
                ..ONE
            },
            "is I32 and has PyTorch's `neg` bit; save `tensor.resolve_neg()` in its place",
        ),
    ] {
        refused(&whole(&holding(b"", &tensor.pickled())), expected);
    }
    for twin in [
        ONE,
        Tensor {
            part: b"(U\x01vK\x00K\x01t",
            ..ONE
        },
        Tensor {
            class: "IntStorage",
            ..ONE
        },
        Tensor {
            metadata: b"}U\x03neg\x88s",
            ..ONE
        },
    ] {
        read(&whole(&holding(b"", &twin.pickled())), "nothing");
    }
    for (function, what, remedy) in [
        (
            "sparse_tensor",
            "sparse_tensor",
            "save `tensor.to_dense()` in its place",
        ),
        (
            "sparse_csr_tensor",
            "sparse_csr_tensor",
            "save `tensor.to_dense()` in its place",
        ),
        (
            "nested_tensor",
            "nested_tensor",
            "save `tensor.to_padded_tensor(0)` in its place",
        ),
        (
            "meta_tensor_no_storage",
            "meta_tensor_no_storage",
            "a `meta` tensor has no numbers: load them before saving",
        ),
        (
            "other_tensor",
            "other_tensor",
            "save a plain tensor in its place",
        ),
    ] {
        let call = format!("ctorch._utils\n_rebuild_{function}\n)R");
        let expected = format!(
            "`a.weight` is what PyTorch's `torch._utils._rebuild_{function}` makes: a tensor without plain numbers ({what}); {remedy}"
        );
        refused(&whole(&holding(b"", call.as_bytes())), &expected);
    }
    // A stream that is no more than the pickle has no storages behind it.
    refused(
        &state_dict(b""),
        "is in storage `0`, which the file does not hold",
    );
}

#[test]
fn keys_that_are_not_there() {
    let place = Place::new();
    place.write("a.pt", whole(&state_dict(b"")));
    let open = |key| Checkpoint::open_key(place.path("a.pt"), Some(key));
    for (key, expected) in [
        (
            "nets",
            "there is nothing under `nets`; its keys are `a.weight`",
        ),
        ("a.weight.b", "there is nothing under `a.weight.b`"),
    ] {
        let error = open(key).expect_err(expected).to_string();
        assert!(error.ends_with(expected), "{error}");
    }
    let inside = [b"\x80\x02}U\x04nets", &state_dict(b"")[2..], b"s."].concat();
    let inside = inside.strip_suffix(b".s.").expect("two ends").to_vec();
    place.write("a.pt", whole(&[&inside[..], b"s."].concat()));
    assert_eq!(open("nets").expect("a key").tensors().len(), 1);
}

/// The stream of pickles that was written before archives: version, system, state dict, keys, storages.
fn stream(version: &[u8], keys: &[u8], count: u64) -> Vec<u8> {
    let pickle = |opcodes: &[u8]| [b"\x80\x02", opcodes, b"."].concat();
    [
        pickle(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"),
        pickle(version),
        pickle(b"}"),
        state_dict(b""),
        pickle(keys),
        count.to_le_bytes().to_vec(),
        vec![0; 4],
    ]
    .concat()
}

#[test]
fn streams_with_one_mistake() {
    for (bytes, expected) in [
        (
            stream(b"K\x01", b"]U\x010a", 1),
            "its version is none that PyTorch has written",
        ),
        (
            stream(b"M\xe9\x03", b"N", 1),
            "the list of its storages is none",
        ),
        (stream(b"M\xe9\x03", b"]Na", 1), "a storage has no name"),
        (
            stream(b"M\xe9\x03", b"]U\x019a", 1),
            "storage `9` belongs to no tensor",
        ),
        (
            stream(b"M\xe9\x03", b"]U\x010a", 1000),
            "storage `0` claims 1000 numbers, and only 4 bytes follow",
        ),
    ] {
        refused(&bytes, expected);
    }
    read(&stream(b"M\xe9\x03", b"]U\x010a", 1), "the others");
}

/// The four files of the oldest form, one of which is broken.
fn tar(broken: &str, with: &[u8]) -> Vec<u8> {
    let pickle = |opcodes: &[u8]| [b"\x80\x02", opcodes, b"."].concat();
    let mut storages = [
        &pickle(b"K\x01")[..],
        &pickle(b"(U\x010U\x03cpuctorch\nFloatStorage\nt"),
        &1u64.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    storages.extend(pickle(b"](U\x01vU\x010K\x00K\x01ta"));
    let mut tensors = pickle(b"K\x01");
    tensors.extend(pickle(b"(U\x01tU\x01vctorch\nFloatTensor\nt"));
    tensors.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    for n in [1u64, 1, 0] {
        tensors.extend(n.to_le_bytes());
    }
    let mut out = Vec::new();
    for (name, bytes) in [
        ("sys_info", pickle(b"}U\x0dlittle_endian\x88s")),
        ("storages", storages),
        ("tensors", tensors),
        ("pickle", holding(b"", b"U\x01tQ")),
    ] {
        let bytes = if name == broken { with.to_vec() } else { bytes };
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        header[257..262].copy_from_slice(b"ustar");
        out.extend(header);
        out.extend(&bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

#[test]
fn tar_archives_with_one_mistake() {
    let one = b"\x80\x02K\x01.";
    let storage: &[u8] =
        b"\x80\x02(U\x010U\x03cpuctorch\nFloatStorage\nt.\x01\0\0\0\0\0\0\0\0\0\0\0";
    let after = |rest: &[u8]| [one, rest].concat();
    for (part, bytes, expected) in [
        (
            "sys_info",
            b"\x80\x02}U\x0dlittle_endian\x89s.".to_vec(),
            "it was written by a big-endian machine; load it with PyTorch and save it again",
        ),
        (
            "storages",
            b"\x80\x02N.".to_vec(),
            "it counts its storages by what is no number",
        ),
        ("storages", after(one), "a storage is not described as one"),
        (
            "storages",
            after(b"\x80\x02NNN\x87."),
            "a storage has no name",
        ),
        (
            "storages",
            after(&[storage, b"\x80\x02]K\x01a."].concat()),
            "a part of a storage is not described as one",
        ),
        (
            "tensors",
            b"\x80\x02N.".to_vec(),
            "it counts its tensors by what is no number",
        ),
        ("tensors", after(one), "a tensor is not described as one"),
        (
            "tensors",
            after(b"\x80\x02NNN\x87."),
            "a tensor has no name",
        ),
        (
            "pickle",
            holding(b"", b"U\x01uQ"),
            "is a tensor that the file does not hold",
        ),
        ("pickle", state_dict(b""), "has no storage in this file"),
    ] {
        refused(&tar(part, &bytes), expected);
    }
    let fine = tar("none", b"");
    read(&fine, "the others");
    let mut size = fine;
    size[124..127].copy_from_slice(b"9z9");
    refused(&size, "a size in it is no number");
}

#[test]
fn zip_archives_with_one_mistake() {
    let fine = whole(&state_dict(b""));
    read(&fine, "the others");
    let at = |magic: &[u8]| fine.windows(4).position(|four| four == magic).expect("it");
    let (entry, end) = (at(b"PK\x01\x02"), at(b"PK\x05\x06"));
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = fine.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let locator = [b"PK\x06\x07" as &[u8], &[0; 16]].concat();
    let wide = [&fine[..end], &locator, &fine[end..]].concat();
    for (bytes, expected) in [
        (
            changed(entry, b"pk"),
            "its directory is broken: an entry does not begin like one",
        ),
        (
            changed(entry + 24, &[0xff; 4]),
            "its directory is broken: a 64-bit length is missing",
        ),
        (
            changed(entry + 42, &[1]),
            "the header of `archive/data.pkl` in it is broken",
        ),
        (
            changed(26, &[0xff, 0xff]),
            "`archive/data.pkl` in it ends behind the file",
        ),
        (
            fine[..fine.len() - 1].to_vec(),
            "it begins like a zip archive and has no directory at its end; it may have been cut off",
        ),
        (
            wide,
            "the 64-bit record of its directory is not where it should be",
        ),
        (
            changed(end + 16, &[0xff, 0xff, 0xff, 0x7f]),
            "its directory lies outside of the file or is longer than any",
        ),
    ] {
        refused(&bytes, expected);
    }
}
