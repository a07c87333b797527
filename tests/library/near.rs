//! The built-in recipes that are looked at for a file are enough: the others would change nothing.

use std::path::Path;

use crate::support::file::{Place, files_below, ones};
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

/// Names that any network has are no sign of a family: half of a pattern's own words are asked for, and `conv` is none of them.
#[test]
fn words_of_any_network_are_no_near_miss() {
    let place = Place::new();
    let names = |network: &str, block: &str| {
        let mut all = vec![(format!("{network}.{block}.conv.weight"), vec![4, 4, 3, 3])];
        for end in ["weight", "bias", "running_mean", "running_var"] {
            all.push((format!("{network}.{block}.bn.{end}"), vec![4]));
        }
        all
    };
    let said = |tensors: &[(String, Vec<usize>)]| {
        let tensors: Vec<(&str, &[usize])> = tensors
            .iter()
            .map(|(name, shape)| (name.as_str(), shape.as_slice()))
            .collect();
        ones(&tensors).write(&place.path("x.safetensors"));
        let file = Checkpoint::open(place.path("x.safetensors")).expect("a checkpoint");
        let near = recipe::builtin_near(file.tensors()).expect("the built-in recipes");
        let found = recipe::detect_builtin(file.tensors(), &near);
        found.expect_err("no family").to_string()
    };
    for network in [
        "stages_0.blocks.0.aggregation.0",
        "model.stages.0",
        "backbone.model.conv",
    ] {
        let said = said(&names(network, "conv1"));
        assert!(!said.contains("looks like"), "{said}");
    }
    // A word of the family's own is one.
    let mut half = names("stages.0", "conv_kxk.0");
    half.retain(|(name, _)| !name.ends_with("conv.weight"));
    let said = said(&half);
    assert!(said.contains("looks like `timm-mobileone`"), "{said}");
}
