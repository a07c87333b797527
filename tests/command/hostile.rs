//! No input can crash the program, hang it, or make it allocate what the file merely claims.
//!
//! Beside each file that is refused stands one that differs in nothing else and is read.

use std::fs::OpenOptions;

use crate::support::Random;
use crate::support::file::{self, Place, bytes, checkpoint, recipe};
use crate::support::forge::{File, Held};
use repfuse::tensor::Checkpoint;
use serde_json::Value;

/// A description of a tensor of four bytes.
const FOUR: &str = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;

/// Opens bytes as a file; the error without the file's name.
fn open(place: &Place, bytes: impl AsRef<[u8]>) -> Result<Checkpoint, String> {
    place.write("x", bytes);
    Checkpoint::open(place.path("x")).map_err(|error| {
        let text = error.to_string();
        let prefix = format!(
            "`{}` is not a safetensors file: ",
            place.path("x").display()
        );
        let empty = format!("`{}` is empty", place.path("x").display());
        match text == empty {
            true => "it is empty".to_owned(),
            false => text.strip_prefix(&prefix).unwrap_or(&text).to_owned(),
        }
    })
}

/// A header with something wrong in it, the error, a header without it, and the bytes of data behind either.
type Case<'a> = (&'a str, &'a str, &'a str, usize);

fn hold(cases: &[Case<'_>]) {
    let place = Place::new();
    for (header, expected, twin, data) in cases {
        let data = vec![0; *data];
        let error = open(&place, bytes(header, &data)).expect_err(header);
        assert_eq!(error, *expected, "{header}");
        if let Err(error) = open(&place, bytes(twin, &data)) {
            panic!("{twin}: {error}");
        }
    }
}

#[test]
fn lengths_are_not_believed() {
    let place = Place::new();
    let at_most = |len: u64| len.to_le_bytes();
    for (start, expected) in [
        (&b""[..], "it is empty"),
        (b"\x02", "it has 1 byte; a header needs at least 8"),
        (
            b"\x02\0\0\0\0\0\0",
            "it has 7 bytes; a header needs at least 8",
        ),
        (
            &at_most(2),
            "its header has 2 bytes, and the file has only 0 more; it is cut short: copy or download it again",
        ),
        (
            &at_most(u64::MAX),
            r"it begins with `\xff\xff\xff\xff\xff\xff\xff\xff`, and not with the length of a header, which is at most 100000000 bytes; it is damaged, or a file of another kind",
        ),
        (
            &at_most(1 << 40),
            r"it begins with `\x00\x00\x00\x00\x00\x01\x00\x00`, and not with the length of a header, which is at most 100000000 bytes; it is damaged, or a file of another kind",
        ),
        (
            &at_most(0),
            "its header is not valid: EOF while parsing a value at line 1 column 0",
        ),
    ] {
        assert_eq!(open(&place, start).expect_err("a lie"), expected);
    }
    assert!(open(&place, bytes("{}", b"")).is_ok());

    // A hole in the file is no data, but counts as its length.
    let sparse = |len: u64| {
        place.write("sparse", at_most(len));
        let file = OpenOptions::new().write(true).open(place.path("sparse"));
        file.and_then(|f| f.set_len(8 + len)).expect("a hole");
        Checkpoint::open(place.path("sparse"))
            .expect_err("a hole")
            .to_string()
    };
    let name = place.path("sparse").display().to_string();
    assert_eq!(
        sparse(100_000_001),
        format!(
            r"`{name}` is not a safetensors file: it begins with `\x01\xe1\xf5\x05\x00\x00\x00\x00`, and not with the length of a header, which is at most 100000000 bytes; it is damaged, or a file of another kind"
        )
    );
    assert_eq!(
        sparse(100_000),
        format!(
            "`{name}` is not a safetensors file: its header is not valid: expected value at line 1 column 1"
        )
    );
}

#[test]
fn what_is_not_json_of_tensors_is_refused() {
    let place = Place::new();
    let error = open(&place, bytes(b"{\"\xff\":1}", b"")).expect_err("no UTF-8");
    assert_eq!(
        error,
        "its header is not valid: invalid unicode code point at line 1 column 3"
    );
    hold(&[
        (
            "",
            "its header is not valid: EOF while parsing a value at line 1 column 0",
            "{}",
            0,
        ),
        (
            "{",
            "its header is not valid: EOF while parsing an object at line 1 column 1",
            "{}",
            0,
        ),
        (
            "{}x",
            "its header is not valid: trailing characters at line 1 column 3",
            "{} ",
            0,
        ),
        (
            "[]",
            "its header is not valid: invalid type: sequence, expected an object that describes tensors at line 1 column 0",
            "{}",
            0,
        ),
        (
            "null",
            "its header is not valid: invalid type: null, expected an object that describes tensors at line 1 column 4",
            "{}",
            0,
        ),
        (
            r#"{"a":7}"#,
            "its header is not valid: `a`: invalid type: integer `7`, expected an object with `dtype`, `shape` and `data_offsets` at line 1 column 6",
            r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#,
            0,
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1]}}"#,
            "its header is not valid: `a`: missing field `data_offsets` at line 1 column 32",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#,
            "its header is not valid: `a`: missing field `shape` at line 1 column 41",
            r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#,
            "its header is not valid: `a`: trailing characters at line 1 column 53",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            "its header is not valid: `a`: invalid value: integer `-1`, expected usize at line 1 column 31",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#,
            "its header is not valid: `a`: invalid type: floating point `1.0`, expected usize at line 1 column 32",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}"#,
            "its header is not valid: `a`: invalid type: floating point `1e+20`, expected usize at line 1 column 49",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        (
            r#"{"__metadata__":{"k":1}}"#,
            "its header is not valid: the metadata `k`: invalid type: integer `1`, expected a string at line 1 column 22",
            r#"{"__metadata__":{"k":"1"}}"#,
            0,
        ),
        (
            r#"{"__metadata__":[]}"#,
            "its header is not valid: invalid type: sequence, expected an object of strings at line 1 column 16",
            r#"{"__metadata__":null}"#,
            0,
        ),
    ]);
}

#[test]
fn deep_nesting_is_refused_or_skipped_and_never_recursed_into() {
    let place = Place::new();
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let deep = nested(200_000);
    for header in [
        deep.clone(),
        format!(r#"{{"a":{deep}}}"#),
        format!(r#"{{"a":{{"dtype":"F32","shape":{deep},"data_offsets":[0,4]}}}}"#),
        format!(r#"{{"__metadata__":{{"k":{deep}}}}}"#),
        "{\"a\":".repeat(200_000) + &"}".repeat(200_000),
    ] {
        let error = open(&place, bytes(&header, &[0; 4])).expect_err("deep");
        assert!(error.starts_with("its header is not valid: "), "{error}");
        assert!(error.len() < 200, "{error}");
    }
    // What the format does not define is passed over, however deep.
    let ignored =
        format!(r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":{deep}}}}}"#);
    assert!(open(&place, bytes(&ignored, &[0; 4])).is_ok());
}

#[test]
fn no_name_is_there_twice() {
    let twice = |a: &str, b: &str| {
        format!(r#"{{"{a}":{FOUR},"{b}":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}}}"#)
    };
    hold(&[
        (&twice("a", "a"), "`a` is there twice", &twice("a", "b"), 8),
        // The same name, once with an escape.
        (
            &twice("a", r"\u0061"),
            "`a` is there twice",
            &twice("a", r"\u0062"),
            8,
        ),
        (&twice("", ""), "`` is there twice", &twice("", "a"), 8),
        (
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            "its header is not valid: `__metadata__` is there twice at line 1 column 33",
            r#"{"__metadata__":{}}"#,
            0,
        ),
        (
            r#"{"__metadata__":{"k":"1","k":"2"}}"#,
            "its header is not valid: the metadata `k` is there twice at line 1 column 33",
            r#"{"__metadata__":{"k":"1","j":"2"}}"#,
            0,
        ),
        (
            r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            "its header is not valid: `a`: duplicate field `dtype` at line 1 column 27",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
    ]);
}

#[test]
fn ranges_cover_the_data_once() {
    let two = |a: [u64; 2], b: [u64; 2]| {
        let one = |r: [u64; 2]| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{r:?}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, one(a), one(b))
    };
    let fine = two([0, 4], [4, 8]);
    let one = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    hold(&[
        (
            &two([0, 4], [2, 6]),
            "`b` starts at byte 2 and overlaps the tensor before it, which ends at 4",
            &fine,
            8,
        ),
        (
            &two([0, 4], [0, 4]),
            "`b` starts at byte 0 and overlaps the tensor before it, which ends at 4",
            &fine,
            8,
        ),
        (
            &two([0, 4], [5, 9]),
            "`b` starts at byte 5 and leaves a gap behind the tensor before it, which ends at 4",
            &two([4, 8], [0, 4]),
            8,
        ),
        (
            &two([4, 0], [4, 8]),
            "`a` ends at byte 0, before its start 4",
            &fine,
            8,
        ),
        (
            &two([0, 4], [4, u64::MAX]),
            "`b` is F32 [1], 4 bytes; its range has 18446744073709551611",
            &fine,
            8,
        ),
        (
            &two([0, 8], [4, 8]),
            "`a` is F32 [1], 4 bytes; its range has 8",
            &fine,
            8,
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,0]}}"#,
            "`a` is U8 [1], 1 byte; its range has 0",
            r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            0,
        ),
        // Trailing bytes, and too few.
        (
            one,
            "its tensors need 4 bytes after the header; the file has 8",
            &fine,
            8,
        ),
        (
            &fine,
            "its tensors need 8 bytes after the header; the file has 4",
            one,
            4,
        ),
    ]);
}

#[test]
fn shapes_are_multiplied_with_care() {
    let of = |dtype: &str, shape: &str, len: u64| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{len}]}}}}"#)
    };
    let most = usize::MAX;
    let fine = of("F32", "[2,1]", 8);
    hold(&[
        (
            &of("F32", &format!("[{most},{most}]"), 8),
            &format!("the shape [{most}, {most}] of `a` is too large to address"),
            &fine,
            8,
        ),
        (
            &of("F32", &format!("[{most},3,0]"), 8),
            &format!("the shape [{most}, 3, 0] of `a` is too large to address"),
            &fine,
            8,
        ),
        (
            &of("F32", "[4611686018427387904,4]", 8),
            "the shape [4611686018427387904, 4] of `a` is too large to address",
            &fine,
            8,
        ),
        (
            &of("mine", "[4611686018427387904]", 8),
            "the shape [4611686018427387904] of `a` is too large to address",
            &of("mine", "[1000000000000000000]", 8),
            8,
        ),
        (
            &of("F32", "[1000000000000000000]", 8),
            "`a` is F32 [1000000000000000000], 4000000000000000000 bytes; its range has 8",
            &fine,
            8,
        ),
        (
            &of("F4", "[15]", 8),
            "`a` is F4 [15], 60 bits; expected whole bytes",
            &of("F4", "[16]", 8),
            8,
        ),
        (
            &of("F32", &format!("{:?}", [1; 65]), 4),
            "`a` has 65 dimensions; at most 64 are read",
            &of("F32", &format!("{:?}", [1; 64]), 4),
            4,
        ),
    ]);
}

#[test]
fn names_that_are_no_names_are_not_shown() {
    let named = |len: usize| format!(r#"{{"{}":{FOUR}}}"#, "a".repeat(len));
    let keyed = |len: usize| format!(r#"{{"__metadata__":{{"{}":""}}}}"#, "a".repeat(len));
    hold(&[
        (
            &named(65537),
            "its header is not valid: a name has 65537 bytes; at most 65536 are read at line 1 column 65540",
            &named(65536),
            4,
        ),
        (
            &keyed(65537),
            "its header is not valid: a name has 65537 bytes; at most 65536 are read at line 1 column 65556",
            &keyed(65536),
            0,
        ),
    ]);
}

/// Unknown element types, empty tensors, scalars and an empty name: nothing that a block needs, so all are copied.
#[test]
fn strange_tensors_are_copied_untouched() {
    let place = Place::new();
    let header = |dtype: &str| {
        format!(
            r#"{{"__metadata__":{{"format":"pt"}},"":{{"dtype":"{dtype}","shape":[3],"data_offsets":[0,5]}},
            "empty":{{"dtype":"F32","shape":[7,0,{max}],"data_offsets":[5,5]}},
            "scalar":{{"dtype":"I64","shape":[],"data_offsets":[5,13]}},
            "b.rbr_dense.conv.weight":{{"dtype":"F16","shape":[1,1,3,3],"data_offsets":[13,31]}},
            "b.rbr_dense.bn.weight":{{"dtype":"F16","shape":[1],"data_offsets":[31,33]}},
            "b.rbr_dense.bn.bias":{{"dtype":"F16","shape":[1],"data_offsets":[33,35]}},
            "b.rbr_dense.bn.running_mean":{{"dtype":"F16","shape":[1],"data_offsets":[35,37]}},
            "b.rbr_dense.bn.running_var":{{"dtype":"F16","shape":[1],"data_offsets":[37,39]}},
            "b.rbr_1x1.conv.weight":{{"dtype":"F16","shape":[1,1,1,1],"data_offsets":[39,41]}},
            "b.rbr_1x1.bn.weight":{{"dtype":"F16","shape":[1],"data_offsets":[41,43]}},
            "b.rbr_1x1.bn.bias":{{"dtype":"F16","shape":[1],"data_offsets":[43,45]}},
            "b.rbr_1x1.bn.running_mean":{{"dtype":"F16","shape":[1],"data_offsets":[45,47]}},
            "b.rbr_1x1.bn.running_var":{{"dtype":"F16","shape":[1],"data_offsets":[47,49]}}}}"#,
            max = usize::MAX / 7
        )
    };
    let data: Vec<u8> = (1..50)
        .map(|i| {
            if i > 13 {
                [0, 0x3c][usize::from(i % 2 == 1)]
            } else {
                i
            }
        })
        .collect();
    place.write("in.safetensors", bytes(header("F3_E1M1"), &data));
    let ran = place.run("fuse in.safetensors out.safetensors --verify --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
    let out = Checkpoint::open(place.path("out.safetensors")).expect("a file");
    let names: Vec<&str> = out.tensors().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "",
            "b.rbr_reparam.bias",
            "b.rbr_reparam.weight",
            "empty",
            "scalar"
        ]
    );
    let held = |name: &str| {
        let tensor = out.get(name).expect("a tensor");
        let mut bytes = vec![0; tensor.byte_len() as usize];
        out.read_at(tensor, 0, &mut bytes).expect("bytes");
        (tensor.dtype().to_string(), tensor.shape().to_vec(), bytes)
    };
    assert_eq!(
        held(""),
        ("F3_E1M1".to_owned(), vec![3], vec![1, 2, 3, 4, 5])
    );
    assert_eq!(
        held("empty"),
        ("F32".to_owned(), vec![7, 0, usize::MAX / 7], vec![])
    );
    assert_eq!(
        held("scalar"),
        ("I64".to_owned(), vec![], (6..14).collect())
    );
    assert_eq!(out.metadata()[0], ("format".to_owned(), "pt".to_owned()));

    // What a block needs must be numbers that arithmetic is defined for.
    let strange = header("F3_E1M1").replacen(r#""dtype":"F16""#, r#""dtype":"F17""#, 1);
    place.write("in.safetensors", bytes(&strange, &data));
    let ran = place.run("fuse in.safetensors new.safetensors");
    let expected = "repfuse: taken for a file of recipe `repvgg`: block `b`: `b.rbr_dense.conv.weight` has dtype F17, which no arithmetic is defined for; \
                    expected F64, F32, F16 or BF16\n";
    assert_eq!(ran.all(), (Some(2), "", expected));
}

/// The shapes of tensors of unknown types say anything; nothing adds them up beyond what a number holds.
#[test]
fn impossible_totals_are_no_panic() {
    let place = Place::new();
    let tensors: Vec<String> = (0..40)
        .map(|i| {
            format!(r#""{i}":{{"dtype":"X","shape":[1152921504606846975],"data_offsets":[0,0]}}"#)
        })
        .collect();
    place.write(
        "in.safetensors",
        bytes(format!("{{{}}}", tensors.join(",")), b""),
    );
    let ran = place.run("inspect in.safetensors --json");
    assert_eq!((ran.code(), &*ran.stderr), (Some(0), ""));
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["elements"]["X"], u64::MAX);
    assert_eq!(json["tensors"], 40);
}

/// A hundred thousand blocks and tensors are a matter of seconds, and a deploy form of them is written and verified.
#[test]
fn a_hundred_thousand_tensors() {
    let place = Place::new();
    let (mut names, mut at) = (Vec::new(), 0);
    let mut add = |name: String, shape: &str, count: u64| {
        let end = at + 4 * count;
        names.push(format!(
            r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{at},{end}]}}"#
        ));
        at = end;
    };
    for i in 0..5_000 {
        for (branch, k) in [("dense", 3), ("1x1", 1)] {
            add(
                format!("b{i}.rbr_{branch}.conv.weight"),
                &format!("[1,1,{k},{k}]"),
                k * k,
            );
            for end in ["weight", "bias", "running_mean", "running_var"] {
                add(format!("b{i}.rbr_{branch}.bn.{end}"), "[1]", 1);
            }
        }
        for j in 0..10 {
            add(format!("other.{i}.{j}"), "[]", 1);
        }
    }
    let data = 1f32.to_le_bytes().repeat(at as usize / 4);
    place.write(
        "in.safetensors",
        bytes(format!("{{{}}}", names.join(",")), &data),
    );
    let ran = place.run("fuse in.safetensors out.safetensors --verify --json");
    assert_eq!((ran.code(), &*ran.stderr), (Some(0), ""));
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        (&json["tensors_before"], &json["tensors_after"]),
        (&100_000.into(), &60_000.into())
    );
    assert_eq!(json["blocks_fused"], 5_000);
}

// What a terminal would act on

/// An escape sequence, a bell, a delete, a C1 control sequence introducer, a line break and a mark that turns the line round.
const NASTY: &str = "\u{1b}[31m\u{7}\u{7f}\u{9b}2J\n\u{202e}";

fn acts_on_a_terminal(c: char) -> bool {
    c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c))
}

#[test]
fn no_command_sends_a_control_character() {
    let place = Place::new();
    let mut file = checkpoint(1, 4);
    let mut random = Random(5);
    file::block(&mut file, &format!("x{NASTY}"), 4, &mut random);
    file::tensor(
        &mut file,
        &format!("{NASTY}.weight"),
        &[4, 4, 3, 3],
        &mut random,
    );
    file.metadata
        .insert(format!("k{NASTY}"), format!("v{NASTY}"));
    file.write(&place.path("in.safetensors"));
    // Half a block, whose names stand in errors.
    let mut half = file.clone();
    half.tensors
        .remove(&format!("x{NASTY}.rbr_1x1.bn.running_var"));
    half.write(&place.path("half.safetensors"));
    // A variance that cannot be, and a number that does not fit.
    let mut negative = file.clone();
    negative
        .at(&format!("x{NASTY}.rbr_1x1.bn.running_var"))
        .edit(|var| var[2] = -1.0);
    negative.write(&place.path("negative.safetensors"));
    let mut large = file.clone();
    large
        .at(&format!("x{NASTY}.rbr_1x1.conv.weight"))
        .edit(|w| w[2] = 1e6);
    large.write(&place.path("large.safetensors"));
    // Not a block at all, an element type of the kind, and a file that is none.
    let mut other = File::default();
    other.tensors.insert(
        format!("{NASTY}.rbr_dense.conv.weight"),
        Held::f32(&[1, 1, 3, 3], &[0.0; 9]),
    );
    other.write(&place.path("other.safetensors"));
    let json = |text: &str| serde_json::to_string(text).expect("JSON");
    let strange = format!(
        r#"{{{}:{{"dtype":{},"shape":[1],"data_offsets":[0,4]}}}}"#,
        json(NASTY),
        json(&format!("T{NASTY}"))
    );
    place.write("strange.safetensors", bytes(&strange, &[0; 4]));
    place.write("lie.safetensors", bytes(&strange, &[0; 5]));
    // A recipe whose every text is of the kind.
    let mut own = recipe(
        r#"{"at": "{p}.rbr_1x1.conv.weight", "fuse": {"{p}.out": {"conv": "{p}.rbr_1x1.conv", "bias": "optional"}}}"#,
    );
    own = own.replacen(r#""a test""#, &json(NASTY), 1);
    own = own.replacen('{', &format!(r#"{{"eps_note": {}, "#, json(NASTY)), 1);
    place.write("own.json", &own);
    let wrong = own.replace(
        "rbr_1x1.conv\", ",
        &format!("{{{}\", ", json(NASTY).trim_matches('"')),
    );
    assert_ne!(wrong, own);
    place.write("wrong.json", wrong);
    place.write("unknown.json", own.replacen(r#""about""#, &json(NASTY), 1));

    let deployed = place.run("fuse in.safetensors out.safetensors --quiet");
    assert_eq!(deployed.all(), (Some(0), "", ""));
    let spoilt = {
        let mut spoilt = File::read(&place.path("out.safetensors"));
        spoilt
            .at(&format!("x{NASTY}.rbr_reparam.weight"))
            .edit(|w| w[3] += 1.0);
        spoilt.at(&format!("{NASTY}.weight")).edit(|w| w[3] += 1.0);
        spoilt
    };
    spoilt.write(&place.path("spoilt.safetensors"));
    let mut escaped = 0;
    for (args, code) in [
        ("inspect in.safetensors", 0),
        ("inspect in.safetensors --json", 0),
        ("inspect in.safetensors --recipe own.json", 0),
        ("inspect half.safetensors", 0),
        ("inspect other.safetensors", 0),
        ("inspect other.safetensors --json", 0),
        ("inspect strange.safetensors", 0),
        ("inspect strange.safetensors --json", 0),
        ("inspect lie.safetensors", 2),
        ("inspect out.safetensors", 0),
        ("fuse in.safetensors new.safetensors --dry-run", 0),
        ("fuse in.safetensors new.safetensors --dry-run --json", 0),
        (
            "fuse in.safetensors new.safetensors --recipe own.json --dry-run",
            0,
        ),
        (
            "fuse in.safetensors new.safetensors --recipe own.json --json --dry-run",
            0,
        ),
        ("fuse in.safetensors new.safetensors --recipe wrong.json", 2),
        (
            "fuse in.safetensors new.safetensors --recipe unknown.json",
            2,
        ),
        ("fuse in.safetensors new.safetensors --json", 0),
        ("fuse half.safetensors new2.safetensors", 2),
        ("fuse other.safetensors new2.safetensors", 2),
        ("fuse negative.safetensors new2.safetensors", 2),
        ("fuse large.safetensors new2.safetensors --dtype f16", 2),
        ("verify in.safetensors", 0),
        ("verify in.safetensors --json", 0),
        ("verify in.safetensors out.safetensors", 0),
        ("verify in.safetensors spoilt.safetensors", 1),
        ("verify in.safetensors spoilt.safetensors --json", 1),
        ("verify in.safetensors strange.safetensors", 1),
        ("verify negative.safetensors", 2),
        ("recipes check own.json in.safetensors", 0),
        ("recipes check wrong.json in.safetensors", 2),
        ("recipes check own.json half.safetensors", 0),
    ] {
        let ran = place.run(args);
        assert_eq!(ran.code(), Some(code), "{args}: {ran:?}");
        for text in [&ran.stdout, &ran.stderr] {
            assert_eq!(
                text.chars().find(|c| acts_on_a_terminal(*c)),
                None,
                "{args}: {text:?}"
            );
        }
        let both = ran.stdout + &ran.stderr;
        escaped += usize::from(both.contains(r"\u{9b}") || both.contains(r"\u009b"));
    }
    // The twin: nearly all of them had something to say about such a name, and said it.
    assert!(escaped >= 28, "{escaped}");

    // JSON says the very name.
    let ran = place.run("inspect in.safetensors --json");
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let blocks = json["blocks"].as_array().expect("blocks");
    assert!(
        blocks
            .iter()
            .any(|block| block["name"] == format!("x{NASTY}"))
    );
    assert_eq!(json["metadata"][format!("k{NASTY}")], format!("v{NASTY}"));
}
