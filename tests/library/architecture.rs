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

#[test]
fn fold_and_forward_share_no_code() {
    let mut looked_at = 0;
    for (path, text) in source() {
        let other = match path.to_string_lossy() {
            path if path.starts_with("algebra/fold") => "forward",
            path if path.starts_with("algebra/forward") => "fold",
            _ => continue,
        };
        looked_at += 1;
        let imports = text.lines().filter(|line| line.starts_with("use "));
        for line in imports {
            assert!(
                !line.contains(&format!("{other}::")),
                "`{}` imports `{other}`: {line}",
                path.display()
            );
        }
    }
    assert!(looked_at > 1, "{looked_at}");
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
