//! What is said of deploy forms, maps and networks that do not match their recipe, and beside it one that does.

use crate::support::file::{Place, ones, recipe};
use crate::support::forge::{File, Held};
use serde_json::Value;

/// What is not fused must be there as it was, and what a recipe sets as it says.
#[test]
fn deploy_forms_that_differ() {
    let place = Place::new();
    let mut tensors = ones(&[("a.c.weight", &[1, 1, 1, 1]), ("a.s", &[2]), ("head", &[3])]);
    let zero = Held::f32(&[2], &[0.0; 2]);
    tensors.tensors.insert("zero".to_owned(), zero);
    tensors.write(&place.path("in.safetensors"));
    place.write(
        "own.json",
        recipe(r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}, "set": {"{p}.s": 0.1}}"#),
    );
    let ran = place.run("fuse in.safetensors out.safetensors --recipe own.json --verify --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
    let verify = |edit: &dyn Fn(&mut File)| {
        let mut out = File::read(&place.path("out.safetensors"));
        edit(&mut out);
        out.write(&place.path("edited.safetensors"));
        let ran = place.run("verify in.safetensors edited.safetensors --recipe own.json --json");
        let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let mut said: Vec<&str> = json["failures"]
            .as_array()
            .expect("failures")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        said.extend(json["blocks"][0]["failure"].as_str());
        (ran.code(), said.join("; "))
    };
    let halves = |held: &mut Held| {
        held.dtype = safetensors::Dtype::I16;
        held.bytes.truncate(held.bytes.len() / 2);
    };
    assert_eq!(verify(&|_| ()).0, Some(0));
    for (edit, expected) in [
        (
            &(|out: &mut File| out.at("a.s").edit(|s| s[1] = 2.0)) as &dyn Fn(&mut File),
            "`a.s[1]` is 2, expected 0.1, to which the recipe sets it",
        ),
        (
            &|out| out.at("a.s").shape = vec![2, 1],
            "`a.s` is F32 [2, 1]; expected F32 [2]",
        ),
        (
            &|out| halves(out.at("a.s")),
            "`a.s` is I16 [2]; expected F32 [2]",
        ),
        (
            &|out| out.at("head").edit(|x| x[1] = 2.0),
            "`head[1]` is 2, expected 1, as it was",
        ),
        (
            &|out| out.at("zero").edit(|x| x[1] = -0.0),
            "`zero` differs from its copy at [1]",
        ),
        (
            &|out| out.at("head").edit(|x| x[1] = f32::NAN),
            "`head[1]` is not a number, as it was",
        ),
        (
            &|out| halves(out.at("head")),
            "`head` is I16 [3]; it was F32 [3], and is to be copied",
        ),
        (&|out| drop(out.tensors.remove("head")), "`head` is missing"),
        (
            &|out| {
                drop(
                    out.tensors
                        .insert("more".to_owned(), Held::f32(&[1], &[0.0])),
                )
            },
            "`more` is left over; the deploy form has no such tensor",
        ),
        (
            &|out| drop(out.tensors.remove("a.out.bias")),
            "`a.out.bias` is missing; `a.out.bias` is missing",
        ),
        (
            &|out| halves(out.at("a.out.bias")),
            "`a.out.bias` is I16; expected a floating-point type",
        ),
        (
            &|out| out.at("a.out.weight").shape = vec![1, 1],
            "`a.out.weight` has shape [1, 1]; expected [1, 1, 1, 1]",
        ),
    ] {
        assert_eq!(verify(edit), (Some(1), expected.to_owned()));
    }
}

#[test]
fn maps_that_cannot_be_run() {
    let place = Place::new();
    let c = [("a.c.weight", &[4, 4, 3, 3][..])];
    ones(&c).write(&place.path("in.safetensors"));
    let maps = |name: &str, channels: usize| {
        ones(&[(name, &[1, channels, 5, 5])]).write(&place.path("maps.safetensors"));
    };
    let run = |expression: &str, more: &str| {
        let block = format!(r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.out": {expression}}}}}"#);
        place.write("own.json", recipe(&block));
        let args = format!(
            "verify in.safetensors --recipe own.json --quiet --input maps.safetensors {more}"
        );
        let ran = place.run(&args);
        (ran.code(), ran.stderr)
    };
    let said = |text: &str| (Some(2), format!("repfuse: {text}\n"));
    let fine = (Some(0), String::new());
    let plain = r#"{"conv": "{p}.c", "bias": "optional"}"#;

    File::default().write(&place.path("maps.safetensors"));
    assert_eq!(run(plain, ""), said("the file of maps is empty"));
    maps("x", 4);
    assert_eq!(run(plain, ""), fine);
    maps("x", 5);
    assert_eq!(
        run(plain, ""),
        said("no block takes maps of 5 channels; the blocks take [4]")
    );
    maps("a", 5);
    assert_eq!(
        run(plain, ""),
        said(
            "block `a.out`: the maps do not fit the block: `a.c.weight` has shape [4, 4, 3, 3]: 4 input channels per group do not \
             divide the 5 channels it is applied to"
        )
    );
    maps("a", 4);
    assert_eq!(run(plain, "--padding valid"), fine);
    assert_eq!(
        run(
            r#"{"conv": "{p}.c", "bias": "optional", "dilation": 4}"#,
            "--padding valid"
        ),
        said(
            "block `a.out`: a map of [5, 5] is smaller than the block's kernel [9, 9] with its padding"
        )
    );
    assert_eq!(
        run(plain, "--padding 5 --padding-mode reflect"),
        said("block `a.out`: padding mode `reflect` cannot add 5 along an axis of 5")
    );
    assert_eq!(run(plain, "--padding 4 --padding-mode reflect"), fine);
    let mut held = ones(&[("a", &[64, 4, 2, 2])]);
    held.write(&place.path("maps.safetensors"));
    assert_eq!(
        run(plain, "--padding 512"),
        said(
            "block `a.out`: a border makes maps of [1026, 1026] of maps of [2, 2]; it is too wide for them"
        )
    );
    assert_eq!(run(plain, "--padding 4"), fine);
    held.at("a").edit(|x| x[9] = f32::NAN);
    held.write(&place.path("maps.safetensors"));
    assert_eq!(
        run(plain, ""),
        said("the maps hold NaN at [0, 2, 0, 1]; expected finite numbers")
    );
    maps("a", 4);
    let mean = r#"{"seq": [{"conv": "{p}.c", "bias": "optional"}, {"mean": 3}]}"#;
    assert_eq!(
        run(mean, "--stride 2"),
        said("block `a.out`: an average pooling behind a strided conv is not run on maps")
    );
    assert_eq!(run(mean, ""), fine);
    assert_eq!(
        run(
            r#"{"conv": "{p}.c", "bias": "optional", "transposed": true}"#,
            ""
        ),
        said("block `a.out`: `a.c.weight` is a transposed conv, which is not run on maps")
    );
}

#[test]
fn networks_that_are_not_whole() {
    let place = Place::new();
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/network/repvgg-se.safetensors");
    let whole = File::read(&fixture);
    let run = |file: &File| {
        file.write(&place.path("in.safetensors"));
        let ran = place.run("verify in.safetensors --end-to-end --size 32 --images 1 --quiet");
        (ran.code(), ran.stderr)
    };
    assert_eq!(run(&whole), (Some(0), String::new()));
    let mut headless = whole.clone();
    assert!(headless.tensors.remove("linear.bias").is_some());
    assert_eq!(
        run(&headless),
        (
            Some(2),
            "repfuse: `linear.bias` is missing, which the network needs\n".to_owned()
        )
    );
}
