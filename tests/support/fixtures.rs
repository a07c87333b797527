//! The fixtures: pairs of files that the authors' own code made.

use std::fs;
use std::path::{Path, PathBuf};

/// A pair of files, and what is said of it.
pub struct Case {
    pub name: String,
    pub recipe: String,
    pub detect: bool,
    pub leftovers: Vec<String>,
    pub train: PathBuf,
    pub deploy: PathBuf,
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn directories() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures())
        .expect("fixtures")
        .map(|entry| entry.expect("an entry").path());
    let mut all: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

/// The JSON files of a directory, with what they say.
pub fn described(directory: &Path) -> Vec<(PathBuf, serde_json::Value)> {
    let mut all: Vec<PathBuf> = fs::read_dir(directory)
        .expect("a directory")
        .map(|e| e.expect("an entry").path())
        .collect();
    all.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    all.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a readable file");
        let value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (path, value)
    };
    all.into_iter().map(read).collect()
}

/// Every fixture.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for directory in directories() {
        for (path, about) in described(&directory) {
            let Some(recipe) = about["recipe"].as_str() else {
                continue;
            };
            let leftovers = about["leftovers"].as_array().into_iter().flatten();
            cases.push(Case {
                name: path
                    .strip_prefix(fixtures())
                    .expect("below")
                    .with_extension("")
                    .display()
                    .to_string(),
                recipe: recipe.to_owned(),
                detect: about["detect"]
                    .as_bool()
                    .expect("`detect` is true or false"),
                leftovers: leftovers
                    .map(|glob| glob.as_str().expect("a glob").to_owned())
                    .collect(),
                train: path.with_extension("train.safetensors"),
                deploy: path.with_extension("deploy.safetensors"),
            });
            for key in ["project", "made"] {
                assert!(
                    about[key].is_string(),
                    "{}: `{key}` is missing",
                    path.display()
                );
            }
            let dated = about["commit"].is_string() || about["version"].is_string();
            assert!(dated, "{}: neither `commit` nor `version`", path.display());
        }
    }
    cases
}
