//! The built-in recipes that are looked at for a file are enough: the others would change nothing.

use std::path::Path;

use crate::support::file::files_below;
use repfuse::recipe::{self, Family, Recipe};
use repfuse::tensor::Checkpoint;

fn outcome(found: Result<Vec<Family<'_>>, recipe::Error>) -> Result<Vec<String>, String> {
    found
        .map(|found| found.iter().map(|f| f.recipe.name.clone()).collect())
        .map_err(|e| e.to_string())
}

#[test]
fn recipes_that_are_not_looked_at_would_change_nothing() {
    let all = recipe::builtin().expect("the built-in recipes");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let paths = files_below(&fixtures, "safetensors");
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
            recipe::deployed(recipes, index).map(|tensor| tensor.name().to_owned())
        };
        assert_eq!(deployed(&near), deployed(&all), "{}", path.display());
        looked_at += near.len();
        found += usize::from(expected.is_ok());
        refused += usize::from(expected.is_err());
    }
    // A file has the words of a few recipes; without that the shortcut would be none.
    assert!(looked_at < paths.len() * all.len() / 4);
    assert!(
        found > 10 && refused > 10,
        "{found} found, {refused} refused"
    );
}
