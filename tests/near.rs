//! The built-in recipes that are looked at for a file are enough: the others would change nothing.

use std::fs;
use std::path::{Path, PathBuf};

use repfuse::recipe::{self, Recipe};
use repfuse::tensor::Checkpoint;

fn checkpoints(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            checkpoints(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "safetensors") {
            into.push(path);
        }
    }
}

fn outcome(found: Result<recipe::Detected<'_>, recipe::Error>) -> Result<String, String> {
    found
        .map(|found| found.recipe.name.clone())
        .map_err(|e| e.to_string())
}

#[test]
fn recipes_that_are_not_looked_at_would_change_nothing() {
    let all = recipe::builtin().expect("the built-in recipes");
    let mut paths = Vec::new();
    checkpoints(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"),
        &mut paths,
    );
    let (mut looked_at, mut found, mut refused) = (0, 0, 0);
    for path in &paths {
        let file = Checkpoint::open(path).expect("a checkpoint");
        let index = file.tensors();
        let near = recipe::builtin_near(index).expect("the built-in recipes");
        let expected = outcome(recipe::detect(index, &all));
        assert_eq!(
            outcome(recipe::detect_builtin(index, &near)),
            expected,
            "{}",
            path.display()
        );
        let deployed = |recipes: &[Recipe]| {
            recipe::deployed(recipes, index).map(|(recipe, _)| recipe.name.clone())
        };
        assert_eq!(deployed(&near), deployed(&all), "{}", path.display());
        looked_at += near.len();
        found += usize::from(expected.is_ok());
        refused += usize::from(expected.is_err());
    }
    // Of some sixty recipes a file has the words of a few; without that the shortcut would be none.
    assert!(looked_at < paths.len() * all.len() / 4);
    assert!(
        found > 10 && refused > 10,
        "{found} found, {refused} refused"
    );
}
