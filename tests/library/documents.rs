//! The pages of `docs/` say what the recipes and the fixtures say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The schema of recipes accepts every built-in one, and knows the words that the reader knows, and no others.
#[test]
fn the_schema_of_recipes_is_that_of_the_reader() {
    let schema: Value = serde_json::from_str(repfuse::recipe::SCHEMA).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a valid schema");
    for name in repfuse::recipe::names().expect("recipes") {
        let (_, text) = repfuse::recipe::source(&name).expect("a recipe");
        let recipe: Value = serde_json::from_str(text).expect("JSON");
        let wrong: Vec<String> = validator
            .iter_errors(&recipe)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert_eq!(wrong, Vec::<String>::new(), "{name}");
    }
    let keys = |of: &Value| -> BTreeSet<String> {
        let object = of["properties"].as_object();
        object.into_iter().flat_map(|o| o.keys().cloned()).collect()
    };
    let defs = &schema["$defs"];
    let expressions = defs["expression"]["anyOf"].as_array().expect("an array");
    let of_block = |block: &str| format!(r#"{{"name": "a", "about": "", "blocks": [{block}]}}"#);
    for (text, expected) in [
        (r#"{"zzzzzzzz": 1}"#.to_owned(), keys(&schema)),
        (of_block(r#"{"zzzzzzzz": 1}"#), keys(&defs["block"])),
        (
            of_block(r#"{"at": "a", "fuse": {"b": {"zzzzzzzz": 1}}}"#),
            expressions
                .iter()
                .chain([&defs["conv"]])
                .flat_map(keys)
                .collect(),
        ),
    ] {
        let recipe: Value = serde_json::from_str(&text).expect("JSON");
        assert!(!validator.is_valid(&recipe), "{text}");
        let said = repfuse::recipe::parse(&text, "own.json").expect_err(&text);
        let said = said.to_string();
        let (_, known) = said.split_once("expected one of ").expect("a list");
        let known = known
            .split(", ")
            .map(|key| key.trim_matches('`').to_owned());
        assert_eq!(known.collect::<BTreeSet<_>>(), expected);
    }
}

const BEGIN: &str = "<!-- table: begin -->\n";
const END: &str = "<!-- table: end -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sidecars of all fixture pairs, by recipe: what each pair was made by.
fn sidecars() -> BTreeMap<String, Vec<Value>> {
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let folders = fs::read_dir(root().join("fixtures")).expect("fixtures");
    let mut files: Vec<PathBuf> = folders
        .map(|entry| entry.expect("a folder").path())
        .filter(|path| path.is_dir())
        .flat_map(|folder| fs::read_dir(folder).expect("a folder"))
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    files.sort();
    for path in files {
        let text = fs::read_to_string(&path).expect("a sidecar");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        if let (Some(recipe), Some(_)) = (value["recipe"].as_str(), value["project"].as_str()) {
            found.entry(recipe.to_owned()).or_default().push(value);
        }
    }
    found
}

/// `[owner/name](address) 0123456`, or the version of a package.
fn made_by(sidecar: &Value) -> String {
    let project = sidecar["project"].as_str().expect("a project");
    let state = match (sidecar["commit"].as_str(), sidecar["version"].as_str()) {
        (_, Some(version)) => version,
        (Some(commit), None) => &commit[..7],
        (None, None) => panic!("{project}: neither commit nor version"),
    };
    match project.split_once("github.com/") {
        Some((_, name)) => format!("[{name}]({project}) {state}"),
        None => format!("{project} {state}"),
    }
}

fn table() -> String {
    let sidecars = sidecars();
    let mut out =
        "| recipe | covers | eps | fixtures made by | pairs |\n|---|---|---|---|---|\n".to_owned();
    let mut recipes = repfuse::recipe::builtin().expect("built-in recipes");
    recipes.sort_by(|a, b| a.name.cmp(&b.name));
    for recipe in recipes {
        let pairs = sidecars
            .get(&recipe.name)
            .unwrap_or_else(|| panic!("`{}` has no fixture", recipe.name));
        let mut projects: Vec<String> = Vec::new();
        for project in pairs.iter().map(made_by) {
            if !projects.contains(&project) {
                projects.push(project);
            }
        }
        let eps = recipe.eps.map(|eps| format!("{eps:e}"));
        out += &format!(
            "| `{}` | {} | {} | {} | {} |\n",
            recipe.name,
            recipe.about.replace('|', "\\|"),
            eps.as_deref().unwrap_or("–"),
            projects.join("; "),
            pairs.len()
        );
    }
    out
}

#[test]
fn the_page_of_families_is_up_to_date() {
    let path = root().join("docs/families.md");
    let page = fs::read_to_string(&path).expect("docs/families.md");
    let (before, rest) = page.split_once(BEGIN).expect("the beginning of the table");
    let (found, after) = rest.split_once(END).expect("the end of the table");
    let expected = table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).expect("written");
        return;
    }
    assert!(
        found == expected,
        "docs/families.md is stale; run `UPDATE_DOCS=1 cargo test --test library documents`"
    );
}

/// A link to a file of the repository leads somewhere.
#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    pages.extend(docs.map(|entry| entry.expect("a page").path()));
    let mut links = 0;
    for page in pages
        .iter()
        .filter(|page| page.extension().is_some_and(|end| end == "md"))
    {
        let text = fs::read_to_string(page).expect("a page");
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let path = page.parent().expect("a folder").join(target);
            assert!(path.exists(), "{}: no {target}", page.display());
        }
    }
    assert!(links > 10, "{links}");
}
