//! The one-way order of the modules, read from the `crate::` paths in `src`.
//!
//! `algebra → tensor → conv2d → recipe → plan → fuse → verify → network → summary → report → cli → main`

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::file::files_below;

/// Every room, from the ground up; each may use those before it.
const ROOMS: &[&str] = &[
    "algebra", "tensor", "conv2d", "recipe", "plan", "fuse", "verify", "graph", "network",
    "summary", "report", "cli",
];

fn source() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let text = |path: &PathBuf| fs::read_to_string(path).expect("a readable file");
    files_below(&src, "rs")
        .iter()
        .map(|path| {
            (
                path.strip_prefix(&src).expect("below src").to_owned(),
                text(path),
            )
        })
        .collect()
}

/// The top-level module a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path
        .components()
        .next()
        .expect("a component")
        .as_os_str()
        .to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules named behind `crate::` in code, comments left out.
fn used(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let names = code.split("crate::").skip(1).map(|rest| {
        rest.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
    });
    names
        .flatten()
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn rooms_use_only_what_lies_below_them() {
    let mut checked = BTreeSet::new();
    for (path, text) in source() {
        let room = module_of(&path);
        if room == "lib" || room == "main" {
            continue;
        }
        let floor = |name: &str| ROOMS.iter().position(|room| *room == name);
        let Some(own) = floor(&room) else {
            panic!(
                "`{room}` has no place in the order; give it one in this test and in ARCHITECTURE.md"
            )
        };
        assert!(
            !text.contains("crate::{"),
            "{}: one `use` for each room",
            path.display()
        );
        for other in used(&text) {
            assert!(
                floor(&other).is_some_and(|floor| floor <= own),
                "`{}` uses `crate::{other}`, which does not lie below `{room}`",
                path.display()
            );
        }
        checked.insert(room);
    }
    assert_eq!(checked.len(), ROOMS.len(), "every room in the order exists");
}

/// Code without its comments, with the words of its paths: `a::b(…)` gives `a`, `::`, `b`.
fn words(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| match line.find("//") {
        Some(comment) => &line[..comment],
        None => line,
    });
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut words: Vec<String> = Vec::new();
    for c in code.chars() {
        let in_name = |c: char| c.is_alphanumeric() || c == '_';
        match words.last_mut() {
            Some(last) if in_name(c) && last.chars().all(in_name) => last.push(c),
            Some(last) if c == ':' && last == ":" => last.push(c),
            _ if c.is_whitespace() => words.push(" ".to_owned()),
            _ => words.push(c.to_string()),
        }
    }
    words.retain(|word| word != " ");
    words
}

/// Whether code names a module: in a path, or alone in the braces of a `use`.
fn names_module(text: &str, module: &str) -> bool {
    let words = words(text);
    let is = |i: Option<usize>, of: &[&str]| {
        let word = i.and_then(|i| words.get(i));
        word.is_some_and(|word| of.contains(&word.as_str()))
    };
    let mut places = words.iter().enumerate().filter(|(_, word)| *word == module);
    places.any(|(i, _)| {
        let before = i.checked_sub(1);
        is(Some(i + 1), &["::"])
            || is(before, &["::", "mod", "use", "{"])
            || is(before, &[","]) && is(Some(i + 1), &[",", "}"])
    })
}

#[test]
fn a_path_names_its_module() {
    for code in [
        "use super::fold;",
        "use super::{expr, fold, part};",
        "use super::{fold::Folded};",
        "let x = crate::algebra::fold::row(y);",
        "let x = super::super::fold :: row(y);",
        "mod fold;",
    ] {
        assert!(names_module(code, "fold"), "{code}");
    }
    for code in [
        "x.fold(0, f)",
        "// fold::row",
        "let a = b; // fold::x",
        "unfold::x",
        "fold(x, y)",
    ] {
        assert!(!names_module(code, "fold"), "{code}");
    }
}

#[test]
fn fold_and_forward_share_no_code() {
    let (mut looked_at, all) = (0, source());
    let mut used = [BTreeSet::new(), BTreeSet::new()];
    for (path, text) in &all {
        let (own, other) = match path.to_string_lossy() {
            path if path.starts_with("algebra/fold") => (0, "forward"),
            path if path.starts_with("algebra/forward") => (1, "fold"),
            _ => continue,
        };
        looked_at += 1;
        assert!(
            !names_module(text, other),
            "`{}` names `{other}`",
            path.display()
        );
        // What of the algebra beside it is used.
        for module in [
            "branches",
            "canonical",
            "describe",
            "expr",
            "extent",
            "part",
            "shape",
        ] {
            if names_module(text, module) {
                used[own].insert(module);
            }
        }
    }
    assert!(looked_at > 1, "{looked_at}");
    // What both use knows shapes and reads numbers, and computes none.
    let [of_fold, of_forward] = used;
    let both: BTreeSet<&str> = of_fold.intersection(&of_forward).copied().collect();
    assert_eq!(both, BTreeSet::from(["expr", "extent", "part", "shape"]));
    for (path, text) in &all {
        let shared = ["algebra/extent", "algebra/part", "algebra/shape"];
        if shared
            .iter()
            .any(|room| path.starts_with(format!("{room}.rs")) || path.starts_with(room))
        {
            let floats = words(text).iter().any(|word| word == "f64");
            assert!(!floats, "`{}` has numbers", path.display());
        }
    }
}

/// The two sides of a verdict read rows of transposed convs by code of their own, and the deploy side never by that of the fold.
#[test]
fn the_sides_of_a_verdict_share_no_rows() {
    for (path, text) in source() {
        if path.starts_with("verify") || path.starts_with("algebra/forward") {
            for reader in ["read_row", "transposed_row", "Folded"] {
                let named = words(&text).iter().any(|word| word == reader);
                assert!(!named, "`{}` uses `{reader}`", path.display());
            }
        }
    }
}

#[test]
fn only_the_command_prints_or_exits() {
    for (path, text) in source() {
        if module_of(&path) == "cli" || path == Path::new("main.rs") {
            continue;
        }
        for word in [
            "println!",
            "eprintln!",
            "std::io::stdout",
            "std::io::stderr",
            "process::exit",
        ] {
            assert!(!text.contains(word), "`{}` has `{word}`", path.display());
        }
    }
}

/// Families are data: no recipe's name stands in the code.
#[test]
fn no_rust_knows_a_family() {
    let recipes = repfuse::recipe::names().expect("built-in recipes");
    assert!(!recipes.is_empty());
    for (path, text) in source() {
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        for name in &recipes {
            let literal = format!("\"{name}\"");
            assert!(
                !code.iter().any(|line| line.contains(&literal)),
                "`{}` knows {literal}",
                path.display()
            );
        }
    }
}
