//! The console blocks of README and docs are what the command prints, and README counts the recipes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::command::repfuse;

/// What stands for any number of lines.
const SOME_LINES: &str = "…";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    pages.extend(docs.map(|entry| entry.expect("a page").path()));
    pages.sort();
    pages
}

/// Each command of a page's console blocks, and the lines that it is said to print.
fn commands(page: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").expect("the end of a block");
        for line in block.lines() {
            match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => found.push((command.to_owned(), Vec::new())),
                (None, Some((_, lines))) => lines.push(line.to_owned()),
                (None, None) => panic!("a block begins with {line}"),
            }
        }
    }
    found
}

/// The files that the pages speak of.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for (fixture, name) in [
        ("repvgg/plain.train.safetensors", "train.safetensors"),
        ("onnx/repvgg.onnx", "model.onnx"),
        ("pt2/repvgg.pt2", "model.pt2"),
    ] {
        fs::copy(
            root().join("fixtures").join(fixture),
            place.path().join(name),
        )
        .unwrap();
    }
    place
}

/// Seconds differ from run to run.
fn timeless(line: &str) -> String {
    let words = line.split(' ').scan(false, |after_in, word| {
        let is_time = *after_in && word.parse::<f64>().is_ok();
        *after_in = word == "in";
        Some(if is_time { "0.00" } else { word })
    });
    words.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// Whether lines are as a page shows them.
fn fits(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == SOME_LINES => {
            (0..=found.len()).any(|skipped| fits(rest, &found[skipped..]))
        }
        Some((first, rest)) => found
            .split_first()
            .is_some_and(|(line, others)| timeless(line) == timeless(first) && fits(rest, others)),
    }
}

#[test]
fn console_blocks_are_what_the_command_prints() {
    let mut run = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        let place = place();
        for (command, expected) in commands(&text) {
            let mut words = command.split_whitespace();
            assert_eq!(
                words.next(),
                Some("repfuse"),
                "{}: {command}",
                page.display()
            );
            let done = repfuse()
                .args(words.map(|word| word.trim_matches('\'')))
                .current_dir(place.path())
                .output()
                .unwrap();
            let printed = String::from_utf8(done.stdout).unwrap();
            let found: Vec<String> = printed.lines().map(str::to_owned).collect();
            assert!(
                fits(&expected, &found),
                "{}: {command} prints\n{printed}{}",
                page.display(),
                String::from_utf8_lossy(&done.stderr)
            );
            run += 1;
        }
    }
    assert!(run >= 3, "{run}");
}

#[test]
fn readme_is_short_and_counts_the_recipes() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.len() <= 10_000, "{}", readme.len());
    let recipes = repfuse::recipe::builtin().unwrap().len();
    assert!(
        readme.contains(&format!("{recipes} recipes are built in")),
        "{recipes} recipes"
    );
}

#[test]
fn a_page_that_is_wrong_is_found() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let found = lines("fused 7 blocks in 0.31 s\na\nb\nc");
    assert!(fits(&lines("fused 7 blocks in 0.02 s\n…\nc"), &found));
    assert!(!fits(&lines("fused 8 blocks in 0.02 s\n…\nc"), &found));
    assert!(!fits(&lines("fused 7 blocks in 0.02 s\n…\nb"), &found));
}
