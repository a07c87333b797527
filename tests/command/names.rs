//! Names of files that are the same but for wrappers and paths before them; `--strip`, `--prefix` and `--only-under`.

use crate::support::forge::File;
use crate::support::tiny::{Ran, Tiny};

/// The small network under other names.
fn named(name: impl Fn(&str) -> String) -> Tiny {
    let mut tiny = Tiny::network();
    tiny.file = renamed(&tiny.file, name);
    tiny.write();
    tiny
}

fn renamed(file: &File, name: impl Fn(&str) -> String) -> File {
    File {
        tensors: file
            .tensors
            .iter()
            .map(|(old, held)| (name(old), held.clone()))
            .collect(),
        metadata: file.metadata.clone(),
    }
}

/// What a plain run writes.
fn plain() -> File {
    let tiny = Tiny::network();
    assert_eq!(tiny.fuse(&[]).status, 0);
    File::read(&tiny.path("out.safetensors"))
}

const NOTE: &str = "repfuse: inside of blocks the names of the output are without `_orig_mod`, which wrappers had put there\n";

#[test]
fn wrappers_inside_of_blocks_are_looked_through_and_said() {
    let inner = |name: &str| name.replace("stage1.1.rbr_dense.", "stage1.1.rbr_dense._orig_mod.");
    let tiny = named(|name| format!("module.{}", inner(name)));
    let ran = tiny.fuse(&[]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains(NOTE), "{}", ran.stderr);
    let out = File::read(&tiny.path("out.safetensors"));
    assert!(out.tensors == renamed(&plain(), |name| format!("module.{name}")).tensors);
    let ran = tiny.fuse(&["--json"]);
    let summary: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        summary["wrappers_removed"],
        serde_json::json!(["_orig_mod"])
    );
    // Around a block they stay, and nothing is said.
    let tiny = named(|name| name.replace("stage1.1.", "stage1.1._orig_mod."));
    let ran = tiny.fuse(&[]);
    assert!(
        ran.status == 0 && !ran.stderr.contains(NOTE),
        "{}",
        ran.stderr
    );
    let out = File::read(&tiny.path("out.safetensors"));
    assert!(
        out.tensors
            .contains_key("stage1.1._orig_mod.rbr_reparam.weight")
    );
    // Globs may be written either way.
    for glob in ["stage1._orig_mod.*", "stage1.*"] {
        let tiny = named(|name| name.replace("stage1.", "stage1._orig_mod."));
        let ran = tiny.fuse(&["--only", glob]);
        assert_eq!(ran.status, 0, "{glob}: {}", ran.stderr);
        assert!(ran.stdout.starts_with("fused 3 blocks"), "{}", ran.stdout);
    }
}

#[test]
fn two_tensors_of_one_name_without_wrappers_are_refused() {
    let mut tiny = named(|name| name.replace("rbr_1x1.conv.", "rbr_1x1.conv._orig_mod."));
    assert_eq!(tiny.fuse(&[]).status, 0);
    let copy = tiny.file.at("stage0.rbr_1x1.conv._orig_mod.weight").clone();
    tiny.file
        .tensors
        .insert("stage0.rbr_1x1.conv.weight".to_owned(), copy);
    tiny.write();
    let ran = tiny.fuse(&[]);
    let expected = "`stage0.rbr_1x1.conv.weight` and `stage0.rbr_1x1.conv._orig_mod.weight` are both `stage0.rbr_1x1.conv.weight` \
                    without the segments that wrappers put into names; one of them has to go, or another name";
    assert!(ran.status == 2 && ran.stderr.contains(expected), "{ran:?}");
}

/// `module` is also a name that authors give: beside other modules it is one.
#[test]
fn a_module_called_module_keeps_its_name() {
    let mut tiny = named(|name| name.replace("linear.", "head.module."));
    let old = tiny.fuse(&[]);
    assert_eq!(old.status, 0, "{}", old.stderr);
    let names = File::read(&tiny.path("out.safetensors"));
    assert!(names.tensors.contains_key("head.module.weight"));
    tiny.tensor("head.other.weight", &[2, 8], 0.0, 1.0);
    tiny.write();
    assert_eq!(tiny.fuse(&[]).status, 0);
    let names = File::read(&tiny.path("out.safetensors"));
    assert!(names.tensors.contains_key("head.module.weight"));
}

#[test]
fn a_prefix_is_stripped_and_put_before_names() {
    let tiny = named(|name| format!("net.{name}"));
    let out = |more: &[&str]| {
        let ran = tiny.fuse(more);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        File::read(&tiny.path("out.safetensors"))
    };
    assert!(out(&["--strip", "net"]).tensors == plain().tensors);
    assert!(out(&["--strip", "net."]).tensors == plain().tensors);
    let other = renamed(&plain(), |name| format!("model.backbone.{name}"));
    assert!(out(&["--strip", "net", "--prefix", "model.backbone"]).tensors == other.tensors);
    let more = renamed(&plain(), |name| format!("a.net.{name}"));
    assert!(out(&["--prefix", "a"]).tensors == more.tensors);
    let ran = tiny.fuse(&["--strip", "ne"]);
    let expected = "`net.linear.bias` does not begin with `ne.`; what is taken away has to stand before every name of the output, and \
                    something behind it";
    assert!(ran.status == 2 && ran.stderr.contains(expected), "{ran:?}");
    let ran = tiny.fuse(&["--strip", "net..a"]);
    assert!(
        ran.stderr
            .contains("expected the path of a module, such as backbone or model.encoder"),
        "{ran:?}"
    );
}

#[test]
fn a_part_of_a_checkpoint_is_taken() {
    let mut tiny = named(|name| format!("backbone.{name}"));
    tiny.block("teacher.stage0", [3, 4]);
    tiny.tensor("neck.weight", &[2, 2], 0.0, 1.0);
    tiny.write();
    let only = ["--only-under", "backbone"];
    let ran = tiny.fuse(&[&only[..], &["--strip", "backbone"]].concat());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(File::read(&tiny.path("out.safetensors")).tensors == plain().tensors);
    // The same part is verified.
    for (more, status) in [(&only[..], 0), (&[], 2)] {
        let args = ["verify", "train.safetensors", "out.safetensors"];
        let ran = tiny.run(&[&args[..], more].concat());
        assert_eq!(ran.status, status, "{ran:?}");
    }
    let ran = tiny.fuse(&["--only-under", "back"]);
    let expected = "`train.safetensors` has no tensor below `back`; its modules are `backbone`, `neck`, `teacher`";
    assert!(ran.status == 2 && ran.stderr.contains(expected), "{ran:?}");
}

/// Verifies the small network under some names with its deploy form under others.
fn verified(train: impl Fn(&str) -> String, deploy: impl Fn(&str) -> String) -> (Ran, Ran) {
    let tiny = named(train);
    renamed(&plain(), deploy).write(&tiny.path("other.safetensors"));
    let args = ["verify", "train.safetensors", "other.safetensors"];
    (
        tiny.run(&args),
        tiny.run(&[&args[..], &["--json"]].concat()),
    )
}

#[test]
fn names_that_differ_by_a_path_or_a_wrapper_are_the_same_network() {
    let same = |name: &str| name.to_owned();
    let before = |path: &'static str| move |name: &str| format!("{path}.{name}");
    let inner = |name: &str| name.replace("stage1.", "stage1._orig_mod.");
    let looked = "the segments of wrappers are looked through";
    let begin = "those of the deploy form begin with `model.`";
    let without = "those of the deploy form are without `model.`";
    let both =
        "those of the deploy form begin with `model.`; the segments of wrappers are looked through";
    type Names<'a> = &'a dyn Fn(&str) -> String;
    let cases: [(Names<'_>, Names<'_>, Option<&str>); 7] = [
        (&same, &same, None),
        (&same, &before("model"), Some(begin)),
        (&before("model"), &same, Some(without)),
        (&before("module"), &same, Some(looked)),
        (&same, &before("module._orig_mod"), Some(looked)),
        (&inner, &same, Some(looked)),
        (&inner, &before("model"), Some(both)),
    ];
    for (train, deploy, expected) in cases {
        let (text, json) = verified(train, deploy);
        assert_eq!(text.status, 0, "{expected:?} {text:?}");
        let report: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert_eq!(report["names"].as_str(), expected);
        assert_eq!(report["accepted"], true);
        if let Some(expected) = expected {
            let words: Vec<&str> = text.stdout.split_whitespace().collect();
            assert!(
                words.join(" ").contains(&format!("names {expected}")),
                "{text:?}"
            );
        }
    }
    // A weight that differs is still found.
    let tiny = Tiny::network();
    let mut other = renamed(&plain(), before("model"));
    other
        .at("model.stage0.rbr_reparam.weight")
        .edit(|x| x[5] += 0.1);
    other.write(&tiny.path("other.safetensors"));
    let ran = tiny.run(&["verify", "train.safetensors", "other.safetensors"]);
    assert!(
        ran.status == 1 && ran.stdout.contains("stage0.rbr_reparam.weight"),
        "{ran:?}"
    );
}

#[test]
fn names_that_differ_by_a_path_in_part_are_refused() {
    let partly = |name: &str| match name.starts_with("linear") {
        true => name.to_owned(),
        false => format!("model.{name}"),
    };
    let (text, _) = verified(str::to_owned, partly);
    let expected = "the names are the same but for a path or wrappers: those of the deploy form begin with `model.`; \
                    yet `linear.bias` does not fit";
    assert!(
        text.status == 2 && text.stderr.contains(expected),
        "{text:?}"
    );
    // A tensor that is not there.
    let tiny = Tiny::network();
    let mut other = renamed(&plain(), |name| format!("model.{name}"));
    other.tensors.remove("model.linear.bias");
    other.write(&tiny.path("other.safetensors"));
    let ran = tiny.run(&["verify", "train.safetensors", "other.safetensors"]);
    assert!(
        ran.status == 2 && ran.stderr.contains("yet none is for `linear.bias`"),
        "{ran:?}"
    );
}

/// A file in shards is read by the names that the shards have.
#[test]
fn wrappers_in_shards_are_looked_through() {
    let tiny = named(|name| name.replace("rbr_dense.", "rbr_dense._orig_mod."));
    let (mut shards, mut of) = ([File::default(), File::default()], serde_json::Map::new());
    for (i, (name, held)) in tiny.file.tensors.iter().enumerate() {
        let shard = format!("in-{:05}-of-00002.safetensors", i % 2 + 1);
        of.insert(name.clone(), shard.into());
        shards[i % 2].tensors.insert(name.clone(), held.clone());
    }
    for (i, shard) in shards.iter().enumerate() {
        shard.write(&tiny.path(&format!("in-{:05}-of-00002.safetensors", i + 1)));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": of}).to_string();
    std::fs::write(tiny.path("in.safetensors.index.json"), index).expect("a writable directory");
    let ran = tiny.run(&["fuse", "in.safetensors.index.json", "out.safetensors"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(File::read(&tiny.path("out.safetensors")).tensors == plain().tensors);
}
