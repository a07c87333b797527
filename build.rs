//! Embeds every `src/recipes/*.json`, so that a new family is a new file and nothing else.

use std::{env, fs, path::Path};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=src/recipes");
    let mut files: Vec<_> = fs::read_dir("src/recipes")?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    files.sort();
    let mut list = String::from("[\n");
    for path in files {
        let path = path.canonicalize()?;
        list += &format!("    include_str!({path:?}),\n");
    }
    list += "]\n";
    fs::write(Path::new(&env::var("OUT_DIR")?).join("recipes.rs"), list)?;
    Ok(())
}
