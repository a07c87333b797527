//! The one-way order of the modules, read from the `crate::` paths in `src`.
//!
//! `algebra ⟂ tensor ⟂ engine → recipe → values, numbers → fuse → verify → run, network → cost → inspect, report → cli → main`

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use support::file::files_below;

/// Every module with the modules it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("algebra", &[]),
    ("tensor", &[]),
    ("engine", &[]),
    ("random", &[]),
    ("consistency", &["random"]),
    ("units", &[]),
    ("describe", &["algebra"]),
    ("recipe", &["algebra", "tensor"]),
    ("graph", &["tensor"]),
    ("values", &["algebra", "tensor", "recipe"]),
    ("numbers", &["algebra", "tensor", "recipe", "values"]),
    (
        "fuse",
        &["algebra", "tensor", "recipe", "values", "numbers"],
    ),
    (
        "verify",
        &[
            "algebra", "tensor", "recipe", "values", "numbers", "describe", "fuse", "random",
            "units",
        ],
    ),
    ("run", &["algebra", "tensor", "engine"]),
    (
        "network",
        &[
            "algebra", "tensor", "engine", "recipe", "values", "numbers", "verify", "run",
        ],
    ),
    (
        "maps",
        &[
            "algebra", "tensor", "engine", "recipe", "values", "numbers", "verify", "run",
            "network",
        ],
    ),
    ("cost", &["algebra", "tensor", "recipe", "network"]),
    (
        "inspect",
        &["algebra", "tensor", "recipe", "describe", "fuse", "cost"],
    ),
    (
        "report",
        &[
            "algebra", "tensor", "recipe", "values", "numbers", "describe", "units", "fuse",
            "verify", "cost",
        ],
    ),
    (
        "cli",
        &[
            "algebra",
            "tensor",
            "engine",
            "random",
            "consistency",
            "recipe",
            "values",
            "numbers",
            "describe",
            "fuse",
            "verify",
            "inspect",
            "run",
            "network",
            "maps",
            "units",
            "cost",
            "report",
        ],
    ),
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
fn modules_use_only_what_lies_below_them() {
    let mut checked = BTreeSet::new();
    for (path, text) in source() {
        let module = module_of(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        let (_, allowed) = MAY_USE.iter().find(|(name, _)| *name == module).unwrap_or_else(|| {
            panic!("`{module}` has no place in the order; give it one in this test and in ARCHITECTURE.md")
        });
        assert!(
            !text.contains("crate::{"),
            "{}: one `use` for each module",
            path.display()
        );
        for other in used(&text) {
            assert!(
                other == module || allowed.contains(&other.as_str()),
                "`{}` uses `crate::{other}`, which does not lie below `{module}`",
                path.display()
            );
        }
        checked.insert(module);
    }
    for (i, (module, allowed)) in MAY_USE.iter().enumerate() {
        let above: Vec<&str> = MAY_USE[..i].iter().map(|(name, _)| *name).collect();
        let later = allowed.iter().find(|other| !above.contains(other));
        assert_eq!(later, None, "`{module}` stands before what it uses");
    }
    assert_eq!(
        checked.len(),
        MAY_USE.len(),
        "every module in the order exists"
    );
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
