//! Embeds every `src/recipes/*.json`, so that a new family is a new file and nothing else.
//!
//! Beside the text of each stands what tells whether a file can be of its family, so that at run time only the recipes that may
//! fit are parsed.

use std::error::Error;
use std::{env, fs, path::Path};

use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/recipes");
    let mut files: Vec<_> = fs::read_dir("src/recipes")?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    files.sort();
    let mut list = String::from("[\n");
    for path in files {
        let path = path.canonicalize()?;
        let recipe: Value = serde_json::from_str(&fs::read_to_string(&path)?)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let anchors: Vec<_> = each(&recipe["blocks"])
            .flat_map(|b| words(&b["at"]))
            .collect();
        let evidence: Vec<_> = each(&recipe["when"]).map(words).collect();
        let deploy = words(&recipe["deploy"]);
        list += &format!(
            "    Source {{ text: include_str!({path:?}), anchors: &{anchors:?}, evidence: &["
        );
        for any in evidence {
            list += &format!("&{any:?}, ");
        }
        list += &format!("], deploy: &{deploy:?} }},\n");
    }
    list += "]\n";
    fs::write(Path::new(&env::var("OUT_DIR")?).join("recipes.rs"), list)?;
    Ok(())
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A string, or each string of an array.
fn words(value: &Value) -> Vec<&str> {
    let one = value.as_str();
    one.into_iter()
        .chain(each(value).filter_map(Value::as_str))
        .collect()
}
