//! The one-way order of the modules, read from the `crate::` paths in `src`.
//!
//! `algebra → tensor → conv2d → recipe → plan → fuse → verify → network → summary → report → cli → main`

use std::collections::{BTreeMap, BTreeSet};
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

/// Functions of more lines than this say why.
const LONG: usize = 60;

/// Those that do, and the reason.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    // The loop in which a fold spends its time: each step lends its buffer to the next.
    ("algebra/fold/mod.rs", "row"),
    // One kind of conv after the other, each with what is wrong with its shape.
    ("algebra/shape/annotate.rs", "conv"),
    // One arm for each error that has a remedy.
    ("cli/select.rs", "advised"),
    // Maps are made, run in parts and compared, with what all three share.
    ("cli/whole.rs", "end_to_end"),
    // Four loops, one in the other, that share buffers and how the work is cut.
    ("conv2d/dense.rs", "accumulate"),
    // Every check of a conv's arguments, then the plan that they make.
    ("conv2d/plan.rs", "new"),
    // One arm for each way to make a constant.
    ("graph/constants.rs", "of_numbers"),
    // One arm for each operator.
    ("graph/onnx/computed.rs", "plan"),
    ("graph/onnx/ints.rs", "computed"),
    ("graph/onnx/shapes.rs", "one"),
    ("graph/pt2/computed.rs", "plan"),
    // One check of a tensor's description after the other.
    ("graph/onnx/constants.rs", "add"),
    ("graph/pt2/weights.rs", "stored"),
    // One attribute of a window after the other; the size of an axis follows from all of them.
    ("graph/onnx/shapes.rs", "windows"),
    // Several looks at the same steps, over one table of moments.
    ("graph/pt2/alias.rs", "changed"),
    // One field of the format after the other; each is checked against those before it.
    ("graph/pt2/build.rs", "built"),
    // One source after the other against the best so far; whatever rules one out is noted.
    ("graph/region.rs", "best"),
    // Both forms run on the same maps, with what all readings share.
    ("network/maps.rs", "one"),
    // One check of a planned conv after the other.
    ("plan/ledger.rs", "fused"),
    // One rule of the pattern language after the other, along one text.
    ("recipe/pattern.rs", "parse"),
    // One arm for each opcode.
    ("tensor/pytorch/pickle.rs", "step"),
    // One arm for each layer that can stand before a border.
    ("graph/border.rs", "layer"),
    // The nodes of a region, in the order in which they stand.
    ("graph/onnx/edit.rs", "new_nodes"),
    // One step back through a table of indices after the other, each with what it must be.
    ("graph/onnx/grids.rs", "line"),
    // A file from its bytes to its graph, in the order in which one part needs another.
    ("graph/onnx/open.rs", "open_with"),
    // What makes a padding one that is filled: one condition after the other.
    ("graph/pt2/fills.rs", "found"),
    // One walk from the last node to the first, with what each node decides for those before it.
    ("graph/pt2/kept.rs", "new"),
    // The nodes of a region, in the order in which they stand.
    ("graph/pt2/nodes.rs", "new_nodes"),
    // One arm for each operator that a norm may be moved through.
    ("graph/sink.rs", "node"),
];

/// Every function of a file, with the number of its lines.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = &line[..line.len() - code.len()];
        let words: Vec<&str> = code.split([' ', '(', '<']).collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else {
            continue;
        };
        let leads = |word: &&str| matches!(*word, "pub" | "crate)" | "super)" | "const" | "async");
        if !words[..at].iter().all(leads) || code.ends_with(';') || code.ends_with('}') {
            continue;
        }
        let end = format!("{indent}}}");
        let len = lines[begin..].iter().take_while(|line| **line != end);
        found.push((words[at + 1].to_owned(), len.count() + 1));
    }
    found
}

#[test]
fn long_functions_say_why() {
    let mut long = BTreeSet::new();
    for (path, text) in source() {
        for (name, lines) in functions(&text) {
            if lines > LONG {
                long.insert((path.to_string_lossy().replace('\\', "/"), name));
            }
        }
    }
    let listed: BTreeSet<(String, String)> = LONG_FUNCTIONS
        .iter()
        .map(|(path, name)| ((*path).to_owned(), (*name).to_owned()))
        .collect();
    let unknown: Vec<_> = long.difference(&listed).collect();
    assert!(
        unknown.is_empty(),
        "longer than {LONG} lines, and no reason is given: {unknown:?}"
    );
    // A function that has become short needs no reason any more.
    let short: Vec<_> = listed.difference(&long).collect();
    assert!(short.is_empty(), "no longer than {LONG} lines: {short:?}");
}

/// Files of one room that import each other. No other file may come to them.
const CIRCLES: &[&[&str]] = &[
    // The type is its own: a shard is a checkpoint, with its facts and its path, and a checkpoint may have shards.
    &["tensor/checkpoint", "tensor/shards"],
    // The type is its own: a computed tensor has the tensors that it is computed from.
    &["tensor/computed", "tensor/single"],
];

/// The paths that a file's `use` lines name, whole.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap_or_default();
        if line.starts_with("pub") || line.is_empty() {
            let end = code[at..].find(';').map_or(code.len(), |end| at + end);
            let path: String = code[at + 4..end].split_whitespace().collect();
            expand("", &path, &mut found);
        }
    }
    found
}

/// `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expand(before: &str, path: &str, found: &mut Vec<String>) {
    let Some((begin, inside)) = path.split_once('{') else {
        return found.push(format!("{before}{path}"));
    };
    let before = format!("{before}{begin}");
    let (mut depth, mut from) = (0, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                expand(&before, &inside[from..at], found);
                from = at + 1;
                if c == '}' {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// The file that an import of the file `own` is found in, if it is one of these.
fn file_of(import: &str, own: &str, files: &BTreeSet<String>) -> Option<String> {
    let mut parts: Vec<&str> = import.split("::").collect();
    let mut path: Vec<&str> = own.split('/').collect();
    match parts[0] {
        "crate" => {
            path.clear();
            parts.remove(0);
        }
        "super" => {
            while parts.first() == Some(&"super") {
                path.pop();
                parts.remove(0);
            }
        }
        _ => return None,
    }
    path.extend(parts);
    (1..=path.len())
        .rev()
        .map(|len| path[..len].join("/"))
        .find(|path| files.contains(path))
}

/// Every file that a file imports, or one of those does.
fn reached<'a>(from: &str, uses: &'a BTreeMap<&str, BTreeSet<String>>) -> BTreeSet<&'a str> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut left: Vec<&str> = uses[from].iter().map(String::as_str).collect();
    while let Some(file) = left.pop() {
        if seen.insert(file) {
            left.extend(uses[file].iter().map(String::as_str));
        }
    }
    seen
}

#[test]
fn files_do_not_import_each_other() {
    // A `mod.rs` stands for its folder, and may use what is in it.
    let texts: Vec<(String, String)> = source()
        .into_iter()
        .map(|(path, text)| (path.to_string_lossy().replace('\\', "/"), text))
        .filter(|(path, _)| path.contains('/') && !path.ends_with("mod.rs"))
        .map(|(path, text)| (path.trim_end_matches(".rs").to_owned(), text))
        .collect();
    let files: BTreeSet<String> = texts.iter().map(|(path, _)| path.clone()).collect();
    let uses: BTreeMap<&str, BTreeSet<String>> = texts
        .iter()
        .map(|(path, text)| {
            let imports = imports(text);
            let found = imports.iter().filter_map(|i| file_of(i, path, &files));
            (path.as_str(), found.filter(|other| other != path).collect())
        })
        .collect();
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 200);
    let all: BTreeMap<&str, BTreeSet<&str>> =
        uses.keys().map(|f| (*f, reached(f, &uses))).collect();
    for (file, reached) in &all {
        let circle: Vec<&str> = reached
            .iter()
            .copied()
            .filter(|other| all[other].contains(file))
            .collect();
        assert!(
            circle.is_empty()
                || CIRCLES
                    .iter()
                    .any(|known| circle.iter().all(|f| known.contains(f))),
            "{circle:?} import each other"
        );
    }
}
