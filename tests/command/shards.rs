//! Checkpoints in shards: read as one, written whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;

use crate::support::file::{Place, checkpoint};
use crate::support::forge::File;
use repfuse::fuse::{Options, Unfinished, fuse};
use repfuse::plan;
use repfuse::recipe;
use repfuse::tensor::Checkpoint;

const INDEX: &str = "in.safetensors.index.json";

/// A directory with a checkpoint as `whole.safetensors`, and in two shards that are cut in the middle of a block.
fn place() -> Place {
    let (place, file) = (Place::new(), checkpoint(2, 4));
    file.write(&place.path("whole.safetensors"));
    let parts = halves(&file);
    for (i, part) in parts.iter().enumerate() {
        part.write(&place.path(shard(i)));
    }
    place.write(INDEX, index(&parts));
    place
}

fn shard(i: usize) -> String {
    format!("in-{:05}-of-00002.safetensors", i + 1)
}

fn halves(file: &File) -> [File; 2] {
    let mut parts = [File::default(), File::default()];
    for (i, (name, held)) in file.tensors.iter().enumerate() {
        let half = usize::from(i > file.tensors.len() / 2);
        parts[half].tensors.insert(name.clone(), held.clone());
    }
    parts
}

fn entries(parts: &[File]) -> BTreeMap<String, String> {
    let of = |(i, part): (usize, &File)| {
        let names: Vec<String> = part.tensors.keys().cloned().collect();
        names.into_iter().map(move |name| (name, shard(i)))
    };
    parts.iter().enumerate().flat_map(of).collect()
}

fn index(parts: &[File]) -> String {
    text(&entries(parts))
}

fn text(entries: &BTreeMap<String, String>) -> String {
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": entries}).to_string()
}

#[test]
fn an_index_or_its_directory_is_one_checkpoint() {
    let place = place();
    let whole = place.run("fuse whole.safetensors a.safetensors --verify --quiet");
    assert_eq!(whole.all(), (Some(0), "", ""));
    for (input, out) in [(INDEX, "b.safetensors"), (".", "c.safetensors")] {
        let ran = place.run(&format!("fuse {input} {out} --verify --quiet"));
        assert_eq!(ran.all(), (Some(0), "", ""), "{input}");
        assert_eq!(place.read(out), place.read("a.safetensors"), "{input}");
    }
    let report = place.run(&format!(
        "report {INDEX} a.safetensors -o page.html --quiet"
    ));
    assert_eq!(report.all(), (Some(0), "", ""));
    let inspect = |input: &str| {
        let ran = place.run(&format!("inspect {input} --json"));
        assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
        serde_json::from_str::<serde_json::Value>(&ran.stdout).expect("JSON")
    };
    let (joined, whole) = (inspect("."), inspect("whole.safetensors"));
    assert_eq!(joined["blocks"], whole["blocks"]);
    assert_eq!(joined["tensors"], whole["tensors"]);
}

#[test]
fn shards_that_are_written_are_read_again() {
    let place = place();
    place.run("fuse whole.safetensors one.safetensors --quiet");
    let args = format!("fuse {INDEX} out.safetensors --shard-size 700B --verify --json");
    let ran = place.run(&args);
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let summary: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(summary["output"], "out.safetensors.index.json");
    let shards: Vec<&str> = summary["shards"]
        .as_array()
        .expect("shards")
        .iter()
        .map(|shard| shard.as_str().expect("a name"))
        .collect();
    assert!(shards.len() > 1, "{shards:?}");
    let (mut joined, mut bytes) = (File::default(), 0);
    for shard in &shards {
        let part = File::read(&place.path(shard));
        let held: usize = part.tensors.values().map(|held| held.bytes.len()).sum();
        assert!(held <= 700 || part.tensors.len() == 1, "{shard}: {held}");
        bytes += held;
        joined.tensors.extend(part.tensors);
        assert_eq!(part.metadata["repfuse.recipe"], "repvgg");
    }
    assert_eq!(
        joined.tensors,
        File::read(&place.path("one.safetensors")).tensors
    );
    let index: serde_json::Value =
        serde_json::from_slice(&place.read("out.safetensors.index.json")).expect("JSON");
    assert_eq!(index["metadata"]["total_size"], bytes);
    let verified = place.run("verify whole.safetensors out.safetensors.index.json --json");
    assert_eq!(verified.code(), Some(0), "{}", verified.stdout);
    assert!(verified.stdout.contains("\"allowance\": \"one-rounding\""));
    let again = place.run(&args);
    assert_eq!(again.code(), Some(2));
    assert!(again.stderr.contains("out-00001-of-"), "{}", again.stderr);
    let forced = place.run(&format!("{args} --force"));
    assert_eq!(forced.code(), Some(0), "{}", forced.stderr);
    assert!(!place.names().iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn one_shard_is_no_checkpoint() {
    let place = place();
    let ran = place.run(&format!("fuse {} out.safetensors", shard(0)));
    let expected = format!(
        "repfuse: `{}` is one of 2 shards of a checkpoint; open `./{INDEX}` instead\n",
        shard(0)
    );
    assert_eq!(ran.all(), (Some(2), "", expected.as_str()));
    fs::remove_file(place.path(INDEX)).expect("a file");
    let ran = place.run(&format!("verify whole.safetensors {}", shard(1)));
    assert_eq!(ran.code(), Some(2));
    assert!(
        ran.stderr.contains("put the other shards"),
        "{}",
        ran.stderr
    );
    // Without the usual name, the index beside it tells.
    let mut named = entries(&halves(&checkpoint(2, 4)));
    for file in named.values_mut() {
        *file = file.replace("-of-", "-");
    }
    for i in 0..2 {
        let to = shard(i).replace("-of-", "-");
        fs::rename(place.path(shard(i)), place.path(to)).expect("a rename");
    }
    place.write(INDEX, text(&named));
    let ran = place.run("inspect in-00001-00002.safetensors");
    assert!(
        ran.stderr.contains("is one of several shards"),
        "{}",
        ran.stderr
    );
    // What an index joins with nothing is whole.
    named
        .values_mut()
        .for_each(|file| *file = "whole.safetensors".to_owned());
    place.write(INDEX, text(&named));
    assert_eq!(place.run("inspect whole.safetensors").code(), Some(0));
}

#[test]
fn index_and_shards_that_disagree_are_refused() {
    let place = place();
    let parts = halves(&checkpoint(2, 4));
    let first = parts[0].tensors.keys().next().expect("a tensor").clone();
    let refused = |index: String, expected: &str| {
        place.write(INDEX, index);
        let ran = place.run(&format!("fuse {INDEX} out.safetensors"));
        assert_eq!(ran.code(), Some(2), "{expected}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert!(!place.path("out.safetensors").exists());
    };
    let with = |change: &dyn Fn(&mut BTreeMap<String, String>)| {
        let mut entries = entries(&parts);
        change(&mut entries);
        text(&entries)
    };
    refused(
        with(&|e| drop(e.insert(first.clone(), shard(1)))),
        &format!(
            "`{first}` is in `{}`, where it is not; it is in `{}`",
            shard(1),
            shard(0)
        ),
    );
    refused(
        with(&|e| drop(e.insert("more".to_owned(), shard(1)))),
        &format!("`more` is in `{}`, where it is not\n", shard(1)),
    );
    refused(
        with(&|e| drop(e.remove(&first))),
        &format!(
            "`{first}` is in `{}`, and the index does not know it",
            shard(0)
        ),
    );
    let out = |file: &str| with(&|e| drop(e.insert(first.clone(), file.to_owned())));
    refused(out("../x.safetensors"), "expected a file beside the index");
    refused(out("/x.safetensors"), "expected a file beside the index");
    refused(out("none.safetensors"), "cannot open `none.safetensors`");
    refused(out("whole.safetensors"), "` is in `");
    refused("[]".to_owned(), "expected an object with `weight_map`");
    refused(r#"{"weight_map": {}}"#.to_owned(), "is empty");
    refused(
        r#"{"weight_map": {"a": "x", "a": "y"}}"#.to_owned(),
        "`a` is there twice",
    );
    fs::remove_file(place.path(INDEX)).expect("a file");
    let ran = place.run("fuse . out.safetensors");
    assert!(ran.stderr.contains("without an index"), "{}", ran.stderr);
    place.write(INDEX, index(&parts));
    place.write("other.safetensors.index.json", index(&parts));
    let ran = place.run("fuse . out.safetensors");
    assert!(
        ran.stderr.contains("name the one to read"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_shard_is_not_written_over_and_sizes_are_sizes() {
    let place = place();
    let ran = place.run("fuse . in.safetensors --shard-size 1GB");
    assert_eq!(ran.code(), Some(2));
    let expected = "in.safetensors.index.json` is the input itself";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    let ran = place.run("fuse . out.safetensors.index.json");
    assert!(ran.stderr.contains("--shard-size"), "{}", ran.stderr);
    let ran = place.run("fuse . out.safetensors --shard-size 0");
    assert!(ran.stderr.contains("such as 5GB"), "{}", ran.stderr);
    let one = place.run("fuse . out.safetensors.index.json --shard-size 1GB --quiet");
    assert_eq!(one.all(), (Some(0), "", ""));
    let made: Vec<String> = place
        .names()
        .into_iter()
        .filter(|n| n.starts_with("out"))
        .collect();
    assert_eq!(
        made,
        [
            "out-00001-of-00001.safetensors",
            "out.safetensors.index.json"
        ]
    );
    // It is the whole checkpoint, and so may be opened by itself.
    assert_eq!(
        place.run("verify . out-00001-of-00001.safetensors").code(),
        Some(2)
    );
    assert_eq!(
        place
            .run("verify whole.safetensors out-00001-of-00001.safetensors")
            .code(),
        Some(0)
    );
}

/// Shards that are complete and have no name yet.
fn unfinished(place: &Place, replace: bool) -> Unfinished {
    let train = Checkpoint::open(place.path("whole.safetensors")).expect("a checkpoint");
    let recipes = recipe::builtin().expect("recipes");
    let family = recipe::detect_one(train.tensors(), &recipes).expect("a family");
    let plan = plan::plan(train.tensors(), family, &plan::Options::default()).expect("a plan");
    let options = Options {
        replace,
        shard_size: Some(700),
        ..Default::default()
    };
    let out = place.path("out.safetensors");
    fuse(
        &train,
        &plan,
        &out,
        &options,
        &|_| ControlFlow::Continue(()),
    )
    .expect("shards")
}

#[test]
fn a_name_that_is_taken_meanwhile_leaves_nothing_of_it() {
    let place = place();
    let work = unfinished(&place, false);
    let last = work.paths().last().expect("an index").clone();
    fs::write(&last, "mine").expect("a file");
    let before = |place: &Place| {
        let names = place.names().into_iter();
        names
            .filter(|name| name.starts_with("out"))
            .collect::<Vec<_>>()
    };
    let error = work.finish().expect_err("a taken name");
    assert!(error.to_string().contains("exists"), "{error}");
    assert_eq!(before(&place), ["out.safetensors.index.json"]);
    assert_eq!(fs::read(&last).expect("a file"), b"mine");
}

#[cfg(unix)]
#[test]
fn what_was_there_comes_back_when_a_rename_fails() {
    let place = place();
    unfinished(&place, false).finish().expect("shards");
    let old: Vec<(String, Vec<u8>)> = place
        .names()
        .into_iter()
        .filter(|name| name.starts_with("out"))
        .map(|name| (name.clone(), place.read(&name)))
        .collect();
    // Other bytes under the same names.
    for (name, _) in &old {
        place.write(name, "old");
    }
    let work = unfinished(&place, true);
    // A directory cannot be replaced by a file.
    let last = work.paths().last().expect("an index").clone();
    let second = &work.paths()[1];
    fs::remove_file(second).expect("a file");
    fs::create_dir(second).expect("a directory");
    fs::write(second.join("in"), "").expect("a file");
    work.finish().expect_err("a directory");
    assert_eq!(fs::read(&last).expect("a file"), b"old");
    for (name, _) in &old {
        let path = place.path(name);
        assert!(
            path.is_dir() || fs::read(&path).expect("a file") == b"old",
            "{name}"
        );
    }
    assert!(!place.names().iter().any(|name| name.ends_with(".tmp")));
}

/// The files that belong to OUT.
fn out_names(place: &Place) -> Vec<String> {
    let names = place.names().into_iter();
    names.filter(|name| name.contains("out")).collect()
}

#[test]
fn older_shards_go_with_their_index() {
    let place = place();
    let small = "fuse whole.safetensors out.safetensors --shard-size 700B --quiet";
    assert_eq!(place.run(small).code(), Some(0));
    let many = out_names(&place);
    assert!(many.len() > 3, "{many:?}");
    // A file that only looks like one of them is nobody's.
    place.write("out-00009-of-00009.safetensors", "mine");
    let one = "fuse whole.safetensors out.safetensors --shard-size 1GB";
    // Without --force nothing is replaced, and nothing goes.
    assert_eq!(place.run(one).code(), Some(2));
    assert_eq!(out_names(&place).len(), many.len() + 1);
    let ran = place.run(&format!("{one} --force"));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let said = format!(
        "repfuse: removed {} older shards of the index that was replaced\n",
        many.len() - 1
    );
    assert!(ran.stderr.contains(&said), "{}", ran.stderr);
    assert_eq!(
        out_names(&place),
        [
            "out-00001-of-00001.safetensors",
            "out-00009-of-00009.safetensors",
            "out.safetensors.index.json"
        ]
    );
    // The twin: shards that are all replaced, and no word.
    let ran = place.run(&format!("{one} --force"));
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    assert!(!ran.stderr.contains("removed"), "{}", ran.stderr);
    let verified = place.run("verify whole.safetensors out.safetensors.index.json --quiet");
    assert_eq!(verified.all(), (Some(0), "", ""));
}

#[test]
fn older_shards_come_back_when_a_rename_fails() {
    let place = place();
    unfinished(&place, false).finish().expect("shards");
    // The older index names one shard more.
    let extra = "out-00001-of-00001.safetensors";
    place.write(extra, "older");
    let index = "out.safetensors.index.json";
    let mut text: serde_json::Value = serde_json::from_slice(&place.read(index)).expect("JSON");
    text["weight_map"]["older.weight"] = extra.into();
    place.write(index, text.to_string());
    let work = unfinished(&place, true);
    let second = &work.paths()[1];
    fs::remove_file(second).expect("a file");
    fs::create_dir(second).expect("a directory");
    fs::write(second.join("in"), "").expect("a file");
    let second = second.clone();
    work.finish().expect_err("a directory");
    assert_eq!(place.read(extra), b"older");
    assert_eq!(place.read(index), text.to_string().as_bytes());
    fs::remove_dir_all(second).expect("a directory");
    // The twin: nothing is in the way.
    unfinished(&place, true).finish().expect("shards");
    assert!(!place.path(extra).exists());
    assert!(!place.names().iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn files_of_another_kind_are_not_removed_with_an_index() {
    let place = place();
    let entries = serde_json::json!({"a.weight": "whole.safetensors"});
    let index = serde_json::json!({ "weight_map": entries }).to_string();
    place.write("out.safetensors.index.json", &index);
    let args = "fuse in.safetensors.index.json out.safetensors --shard-size 1GB --force --quiet";
    let ran = place.run(args);
    assert_eq!(
        ran.stderr,
        "repfuse: `out.safetensors.index.json` does not join shards to a checkpoint: it joins `whole.safetensors` as well, which the new shards would leave without an index; remove the files of this index first, or choose another name\n"
    );
    assert_eq!(out_names(&place), ["out.safetensors.index.json"]);
    // The twin: an index of files that are not there.
    fs::remove_file(place.path("whole.safetensors")).expect("a file");
    assert_eq!(place.run(args).all(), (Some(0), "", ""));
}
