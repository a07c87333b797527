//! Recipes, globs, feature maps and special files from strangers: refused in words, whatever they ask for.
//!
//! Beside each that is refused stands one that differs in nothing else and is taken.

use std::process::Command;

use crate::support::Random;
use crate::support::file::{self, Place, checkpoint, end, recipe, start};
use crate::support::forge::{File, Held};
use repfuse::tensor::Checkpoint;

/// A directory with a conv `a.c` of four channels, one `a.d` of one tap, and a norm `a.n`.
fn prepared() -> Place {
    let place = Place::new();
    let (mut file, mut random) = (File::default(), Random(2));
    file::tensor(&mut file, "a.c.weight", &[4, 4, 3, 3], &mut random);
    file::tensor(&mut file, "a.d.weight", &[4, 4, 1, 1], &mut random);
    file::norm(&mut file, "a.n", 4, &mut random);
    file.write(&place.path("in.safetensors"));
    place
}

/// The error of planning by a recipe, without its beginning; empty if there is none.
fn refusal(place: &Place, recipe: impl AsRef<[u8]>) -> String {
    place.write("own.json", recipe);
    let ran =
        place.run("fuse in.safetensors out.safetensors --recipe own.json --quiet --verify --force");
    match ran.code() {
        Some(0) => String::new(),
        Some(1 | 2) => ran
            .stderr
            .strip_prefix("repfuse: ")
            .expect("an error")
            .to_owned(),
        other => panic!("{other:?}: {ran:?}"),
    }
}

/// A recipe that fuses `a.c` by an expression.
fn fused(expression: &str) -> String {
    recipe(&format!(
        r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.out": {expression}}}}}"#
    ))
}

const CONV: &str = r#"{"conv": "{p}.c", "bias": "optional"}"#;

#[test]
fn recipes_that_are_no_json_are_refused() {
    let place = prepared();
    let fine = fused(CONV);
    assert_eq!(refusal(&place, &fine), "");
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    for (text, expected) in [
        (
            String::new(),
            "not valid JSON: EOF while parsing a value at line 1 column 0".to_owned(),
        ),
        (
            deep,
            "not valid JSON: recursion limit exceeded at line 1 column 128".to_owned(),
        ),
        (
            fine.replace(r#""about""#, r#""name": "two", "about""#),
            "not valid JSON: the key `name` is there twice at line 1 column 29".to_owned(),
        ),
        (
            fine.replace(r#""fuse": {"#, r#""fuse": {"{p}.out": "identity", "#),
            format!(
                "not valid JSON: the key `{{p}}.out` is there twice at line 1 column {}",
                fine.len() + 20
            ),
        ),
        (
            fine.replace("1e-5", "1e999"),
            "not valid JSON: number out of range at line 1 column 47".to_owned(),
        ),
    ] {
        assert_eq!(
            refusal(&place, text),
            format!("recipe `own.json`: {expected}\n")
        );
    }
    assert_eq!(
        refusal(&place, b"\xff\xfe"),
        "cannot read the recipe `own.json`: stream did not contain valid UTF-8\n"
    );
    // A megabyte is read, and not one byte more.
    let padded = |len: usize| fine.clone() + &" ".repeat(len - fine.len());
    assert_eq!(refusal(&place, padded(1 << 20)), "");
    assert_eq!(
        refusal(&place, padded((1 << 20) + 1)),
        "cannot read the recipe `own.json`: it is longer than 1048576 bytes, which no recipe is\n"
    );
}

#[test]
fn recipes_may_come_through_a_pipe_but_must_end() {
    let place = prepared();
    place.write("own.json", fused(CONV));
    std::fs::create_dir(place.path("directory.json")).expect("a directory");
    let piped = end(start(
        place.shell("cat own.json | \"$REPFUSE\" recipes check /dev/stdin"),
    ));
    let said = "`own` is a valid recipe for 1 kind of block\n";
    assert_eq!(piped.all(), (Some(0), said, ""));
    for (path, expected) in [
        (
            "/dev/zero",
            "it is longer than 1048576 bytes, which no recipe is",
        ),
        ("directory.json", "Is a directory (os error 21)"),
        ("none.json", "No such file or directory (os error 2)"),
    ] {
        let ran = place.run(&format!("recipes check {path}"));
        let expected = format!("repfuse: cannot read the recipe `{path}`: {expected}\n");
        assert_eq!(ran.all(), (Some(2), "", &*expected));
    }
}

/// Memory is bound by what the file holds, whatever dilations and means ask for.
#[test]
fn recipes_cannot_ask_for_more_than_the_tensors_justify() {
    let place = prepared();
    let mean = |n: usize| fused(&format!(r#"{{"seq": [{CONV}, {{"mean": {n}}}]}}"#));
    let spread = |kernel: &str| {
        format!(
            "block `a`: shapes do not fit: one kernel for it would be {kernel}, far more than the 144 numbers of its \
             tensors; a dilation or a mean is too wide\n"
        )
    };
    assert_eq!(refusal(&place, mean(62)), "");
    assert_eq!(refusal(&place, mean(63)), spread("[4, 4, 65, 65]"));
    assert_eq!(refusal(&place, mean(65536)), spread("[4, 4, 65538, 65538]"));
    assert_eq!(
        refusal(&place, mean(65537)),
        "recipe `own.json`, at `blocks[0].fuse.{p}.out.seq[1].mean`: found a number; expected a whole number from 1 to 65536\n"
    );
    let dilated = |n: usize| {
        fused(&format!(
            r#"{{"conv": "{{p}}.c", "bias": "optional", "dilation": {n}}}"#
        ))
    };
    assert_eq!(refusal(&place, dilated(31)), "");
    assert_eq!(refusal(&place, dilated(32)), spread("[4, 4, 65, 65]"));
    assert_eq!(
        refusal(&place, dilated(512)),
        "block `a`: `a.c.weight` [4, 4, 3, 3] at dilation [512, 512] covers more than 1024 taps\n"
    );
    // What is folded on the way counts as well, although a mean is undone by nothing.
    let inner = |n: usize| {
        fused(&format!(
            r#"{{"seq": [{{"conv": "{{p}}.c", "bias": "optional", "groups": 1}}, {{"mean": {n}}}, {{"conv": "{{p}}.d", "bias": "optional"}}]}}"#
        ))
    };
    assert_eq!(refusal(&place, inner(9)), "");
    let too_wide = refusal(&place, inner(65));
    assert!(
        too_wide
            .contains("one kernel for it would be [4, 4, 67, 67], far more than the 160 numbers"),
        "{too_wide}"
    );
    // Wide windows one behind the other overflow nothing on the way.
    let many = r#", {"mean": 65536}"#.repeat(60);
    let chained = refusal(&place, fused(&format!(r#"{{"seq": [{CONV}{many}]}}"#)));
    assert_eq!(chained, spread("[4, 4, 65538, 65538]"));
}

/// A plan is bound by the file as well.
#[test]
fn recipes_cannot_make_many_convs_of_few_tensors() {
    let place = prepared();
    let tensors = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
    let most = 8 * tensors.tensors().len();
    let convs = |count: usize| {
        let outputs: Vec<String> = (0..count)
            .map(|i| format!(r#""{{p}}.out{i}": {{"conv": "{{p}}.c", "bias": "optional"}}"#))
            .collect();
        recipe(&format!(
            r#"{{"at": "{{p}}.c.weight", "fuse": {{{}}}}}"#,
            outputs.join(", ")
        ))
    };
    assert_eq!(refusal(&place, convs(most)), "");
    assert_eq!(
        refusal(&place, convs(most + 1)),
        format!(
            "block `a`: with it the recipe makes {} convs of {} tensors; at most {most} are planned\n",
            most + 1,
            most / 8
        )
    );
}

/// Nor may a plan look at every name for every block.
#[test]
fn recipes_cannot_look_through_a_large_file_again_and_again() {
    let place = Place::new();
    let mut file = File::default();
    for i in 0..6000 {
        let held = Held::f32(&[1, 1], &[1.0]);
        file.tensors.insert(format!("m{i}.w.weight"), held);
    }
    file.write(&place.path("in.safetensors"));
    let optional = |name: &str| {
        recipe(&format!(
            r#"{{"at": "{{s:*}}.w.weight", "fuse": {{"{{s}}.out": {{"sum": [{{"conv": "{{s}}.w", "bias": "optional"}},
                {{"optional": {{"each": {{"conv": "{name}.nothing", "bias": "optional"}}}}}}]}}}}}}"#
        ))
    };
    assert_eq!(refusal(&place, optional("{s}.{r:*}")), "");
    let again = refusal(&place, optional("{r:*}"));
    let said = "the recipe looks through the file again and again; let its names begin with what `at` captures\n";
    assert!(
        again.starts_with("block `m") && again.ends_with(said),
        "{again}"
    );
    // One block of many branches is stopped before it has looked for all of them.
    let branches =
        r#"{"optional": {"each": {"conv": "{r:*}.nothing", "bias": "optional"}}}, "#.repeat(8000);
    let many = recipe(&format!(
        r#"{{"at": "m0.w.weight", "fuse": {{"m0.out": {{"sum": [{branches}{{"conv": "m0.w", "bias": "optional"}}]}}}}}}"#
    ));
    let again = refusal(&place, many);
    assert!(again.ends_with(said), "{again}");
}

/// What would take for ever is refused, or done at once.
#[test]
fn recipes_cannot_ask_for_ever() {
    let place = prepared();
    // Sums of identities behind a conv double the products with each.
    let doubled = |n: usize| {
        let sums = r#", {"sum": ["identity", "identity"]}"#.repeat(n);
        fused(&format!(r#"{{"seq": [{CONV}{sums}]}}"#))
    };
    assert_eq!(refusal(&place, doubled(10)), "");
    assert_eq!(
        refusal(&place, doubled(60)),
        "block `a`: shapes do not fit: its sums multiply out to 2048 products; at most 1206 are folded\n"
    );
    // Nested as deep as JSON may be, each level asked once.
    let mut nested = CONV.to_owned();
    for _ in 0..58 {
        nested = format!(r#"{{"seq": ["identity", {nested}]}}"#);
    }
    assert_eq!(refusal(&place, fused(&nested)), "");
    // Hundreds of branches beside an identity.
    let branches = vec![r#"{"seq": [{"conv": "{p}.c", "bias": "optional"}, {"conv": "{p}.d", "bias": "optional"}]}"#; 300].join(", ");
    assert_eq!(
        refusal(
            &place,
            fused(&format!(r#"{{"sum": [{branches}, "identity"]}}"#))
        ),
        ""
    );
    // As many operators as a block may have, and more than a small file may.
    let scales = |n: usize| {
        fused(&format!(
            r#"{{"seq": [{CONV}{}]}}"#,
            r#", {"scale": 1}"#.repeat(n)
        ))
    };
    assert_eq!(refusal(&place, scales(4094)), "");
    assert_eq!(
        refusal(&place, scales(4095)),
        "block `a`: the block has more than 4096 operators, which no network has\n"
    );
    let outputs = format!(r#"{{"seq": [{CONV}{}]}}"#, r#", {"scale": 1}"#.repeat(2000));
    let outputs = |n: usize| {
        let one = |i| format!(r#""{{p}}.d{i}": {outputs}"#);
        let all: Vec<String> = (0..n).map(one).collect();
        recipe(&format!(
            r#"{{"at": "{{p}}.c.weight", "fuse": {{{}}}}}"#,
            all.join(", ")
        ))
    };
    assert_eq!(refusal(&place, outputs(2)), "");
    assert_eq!(
        refusal(&place, outputs(3)),
        "block `a`: with it the recipe makes 6006 operators of 6 tensors; at most 4480 are planned\n"
    );
    // Every combination of words would be tried.
    let words = |n: usize| {
        (0..n)
            .map(|i| "x".repeat(i + 1))
            .collect::<Vec<_>>()
            .join("|")
    };
    let at = |n: usize| {
        let pattern = format!("{{a:{w}}}x{{b:{w}}}", w = words(n));
        fused(CONV)
            .replace("{p}.c.weight", &format!("{pattern}.weight"))
            .replace("{p}", "a")
    };
    let few = refusal(&place, at(16));
    assert_eq!(few, "no block of recipe `own` is in this file\n");
    let many = refusal(&place, at(17));
    assert!(
        many.ends_with(" has 289 combinations of words; at most 256 are tried\n"),
        "{many}"
    );
}

#[test]
fn recipes_cannot_write_what_no_file_may_hold() {
    let place = prepared();
    let with = |more: &str| {
        recipe(&format!(
            r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.out": {CONV}}}, {more}}}"#
        ))
    };
    assert_eq!(
        refusal(&place, with(r#""set": {"{p}.n.weight": 3e38}"#)),
        ""
    );
    assert_eq!(
        refusal(&place, with(r#""set": {"{p}.n.weight": 4e38}"#)),
        "block `a`: `a.n.weight` is f32, which cannot hold the 4e38 it is set to\n"
    );
    assert_eq!(
        refusal(&place, with(r#""rename": {"{p}.d.weight": "metadata"}"#)),
        ""
    );
    assert_eq!(
        refusal(
            &place,
            with(r#""rename": {"{p}.d.weight": "__metadata__"}"#)
        ),
        "`a.d.weight` would be renamed to `__metadata__`, which is no name of a tensor in the format\n"
    );
    assert_eq!(
        refusal(
            &place,
            with(r#""rename": {"{p}.d.weight": "{p}.out.weight"}"#)
        ),
        "two tensors would be written as `a.out.weight`: a copy of `a.d.weight` and a fused tensor of block `a`\n"
    );
}

#[test]
fn globs_are_refused_in_words() {
    let place = Place::new();
    checkpoint(2, 4).write(&place.path("in.safetensors"));
    let ran = |glob: &str| {
        let args = [
            "fuse",
            "in.safetensors",
            "out.safetensors",
            "--dry-run",
            "--only",
            glob,
            "-q",
        ];
        end(start(place.command(&args)))
    };
    assert_eq!(ran("stage{0,1}.?").all(), (Some(0), "", ""));
    let none = "repfuse: none of the 2 blocks is selected; --only and --skip select them, and `repfuse inspect` shows their names\n";
    assert_eq!(ran("stage2*").all(), (Some(1), "", none));
    assert_eq!(
        ran("[").all(),
        (
            Some(2),
            "",
            "repfuse: `[` is not a glob: error parsing glob '[': unclosed character class; missing ']'\n"
        )
    );
    // A glob that is well-formed, but nested deeper than a regular expression may be.
    let nested = |depth: usize| "{a,".repeat(depth) + "*" + &"}".repeat(depth);
    assert_eq!(ran(&nested(100)).all(), (Some(0), "", ""));
    let deep = nested(300);
    let expected = format!("repfuse: `{deep}` is not a glob: error parsing pattern 0\n");
    assert_eq!(ran(&deep).all(), (Some(2), "", &*expected));
    let drawn = place.command(&["inspect", "in.safetensors", "--kernels", &deep]);
    let drawn = end(start(drawn));
    assert_eq!(drawn.code(), Some(2));
    assert!(
        drawn
            .stderr
            .ends_with("`--kernels: error parsing pattern 0\n")
            || drawn.stderr.contains("is not a glob for --kernels"),
        "{}",
        drawn.stderr
    );
}

// Feature maps

fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = b"\x93NUMPY\x01\0".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

#[test]
fn feature_maps_are_not_believed() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    let header = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
    };
    let fine = npy(&header("'<f4'", "False", "(1, 4, 3, 3)"), &[0; 144]);
    let read = |bytes: &[u8]| {
        place.write("maps.npy", bytes);
        place.run("verify in.safetensors --input maps.npy --quiet")
    };
    assert_eq!(read(&fine).all(), (Some(0), "", ""));
    let mut long_header = b"\x93NUMPY\x02\0".to_vec();
    long_header.extend(u32::MAX.to_le_bytes());
    let mut really_long = b"\x93NUMPY\x02\0\x01\0\x01\0".to_vec();
    really_long.extend([b' '; 65_537]);
    let deep = "(".repeat(60_000);
    for (bytes, expected) in [
        (&fine[..7], "its header is cut off"),
        (&fine[..9], "its header is cut off"),
        (
            &fine[..40],
            "its header has 66 bytes; the file has 30 more\n",
        ),
        (
            &fine[..100],
            "its shape [1, 4, 3, 3] needs 144 bytes; 24 follow",
        ),
        (
            &fine[..200],
            "its shape [1, 4, 3, 3] needs 144 bytes; 124 follow",
        ),
        (
            &long_header,
            "its header has 4294967295 bytes; the file has 0 more\n",
        ),
        (
            &really_long,
            "its header has 65537 bytes; at most 65536 are read\n",
        ),
        (
            b"\x93NUMPY\x04\0\0\0\0\0",
            "its format has version 4.0; 1.0, 2.0 and 3.0 are read\n",
        ),
        (&npy(&deep, b""), "its header is not valid: "),
        (
            &npy(
                &header("'<f4'", "False", &format!("({})", "1,".repeat(65))),
                &[0; 4],
            ),
            "its shape has 65 dimensions; at most 64 are read",
        ),
        (
            &npy(
                &header("'<f4'", "False", "(9223372036854775808, 2)"),
                &[0; 144],
            ),
            "its shape [9223372036854775808, 2] is too large to address",
        ),
        (
            &npy(
                &header("'<f4'", "False", "(99999999999999999999,)"),
                &[0; 144],
            ),
            "its shape is `(99999999999999999999,)`; expected a tuple of whole numbers that can be addressed",
        ),
        (
            &npy(
                &header("'<f4'", "False", "(0xffffffffffffffff, 2)"),
                &[0; 144],
            ),
            "its shape is `(0xffffffffffffffff, 2)`; expected a tuple of whole numbers that can be addressed",
        ),
        (
            &npy(&header("'<f4'", "True", "(1, 4, 3, 3)"), &[0; 144]),
            "it is in Fortran order; save `numpy.ascontiguousarray(x)` instead",
        ),
        (
            &npy(&header("'<i4'", "False", "(1, 4, 3, 3)"), &[0; 144]),
            "its numbers are `<i4`; expected float16, float32 or float64",
        ),
        (
            &npy(
                &header("'|V9223372036854775807'", "False", "(1, 4, 3, 3)"),
                &[0; 144],
            ),
            "its numbers are `|V9223372036854775807`; expected float16, float32 or float64",
        ),
        (
            &npy(&header("'<f4'", "False", "(0, 4, 3, 3)"), &[0; 144]),
            "`maps.npy` has shape [0, 4, 3, 3] and so no number",
        ),
        (
            &npy(&header("'<f4'", "False", "(36,)"), &[0; 144]),
            "`maps.npy` has shape [36]; expected [batch, channels, height, width]",
        ),
        (
            &npy("{}", b""),
            "its header is not valid: found `{}`; expected a dict of `descr`, `fortran_order` and `shape`",
        ),
        (&npy("", b""), "its header is not valid: "),
        (&npy("\u{1b}[", b""), "its header is not valid: "),
    ] {
        let ran = read(bytes);
        let begin = format!("repfuse: `maps.npy` does not hold feature maps: {expected}");
        assert_eq!(
            (ran.code(), &*ran.stdout),
            (Some(2), ""),
            "{expected}: {ran:?}"
        );
        assert!(ran.stderr.starts_with(&begin), "{expected}: {}", ran.stderr);
        assert!(!ran.stderr.contains('\u{1b}'));
    }
    // Anything else is taken for a safetensors file.
    assert_eq!(
        read(b"\x93NUMP").stderr,
        "repfuse: `maps.npy` is not a safetensors file: it has 5 bytes; a header needs at least 8\n"
    );
}

// Special files

#[test]
fn special_files_are_no_checkpoints() {
    let place = Place::new();
    checkpoint(1, 4).write(&place.path("in.safetensors"));
    std::fs::create_dir(place.path("directory")).expect("a directory");
    let made = Command::new("mkfifo").arg(place.path("pipe")).status();
    assert!(made.expect("mkfifo").success());
    for (path, expected) in [
        (
            "directory",
            "`directory` is a directory without an index of shards (`*.safetensors.index.json`, `*.bin.index.json`) and without a file of tensors (`*.safetensors`, `*.bin`, `*.pt`, `*.pth`); expected a file of tensors, or a directory with one index or one such file",
        ),
        // Nobody will ever write to it: opening it would wait for ever.
        ("pipe", "`pipe` is a pipe; expected a regular file"),
        (
            "/dev/zero",
            "`/dev/zero` is a device; expected a regular file",
        ),
        (
            "/dev/stdin",
            "`/dev/stdin` is a device; expected a regular file",
        ),
        (
            "none",
            "cannot open `none`: No such file or directory (os error 2)",
        ),
        ("/proc/self/mem", "`/proc/self/mem` is empty"),
    ] {
        for command in [
            format!("inspect {path}"),
            format!("verify {path}"),
            format!("verify in.safetensors {path}"),
            format!("verify in.safetensors --input {path}"),
            format!("fuse {path} out.safetensors"),
            format!("recipes check repvgg {path}"),
        ] {
            let ran = place.run(&command);
            // A directory may stand for a checkpoint, and never for feature maps.
            let expected = match command.contains("--input directory") {
                true => "`directory` is a directory; expected a regular file",
                false => expected,
            };
            assert_eq!(
                ran.all(),
                (Some(2), "", &*format!("repfuse: {expected}\n")),
                "{command}"
            );
        }
    }
    assert_eq!(place.names(), ["directory", "in.safetensors", "pipe"]);
    assert_eq!(
        place.run("fuse in.safetensors out.safetensors -q").all(),
        (Some(0), "", "")
    );
}
