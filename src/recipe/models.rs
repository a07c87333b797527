//! Which recipe covers a model of a given name.

use super::model::Recipe;

/// The recipes whose `models` fit a name best: those with the longest fitting entry; where none fits, those that have the name
/// in what they say of themselves.
///
/// Only letters and digits count, and a name may have more around the model's own, as in `timm/repvgg_a0.rvgg_in1k`.
pub fn for_model<'a>(recipes: &'a [Recipe], name: &str) -> Vec<&'a Recipe> {
    let name = letters(name);
    if name.is_empty() {
        return Vec::new();
    }
    let best = recipes
        .iter()
        .map(|recipe| fit(recipe, &name))
        .max()
        .flatten();
    let fits = |recipe: &&Recipe| match best {
        Some(_) => fit(recipe, &name) == best,
        None => letters(&recipe.name).contains(&name) || letters(&recipe.about).contains(&name),
    };
    recipes.iter().filter(fits).collect()
}

/// How many letters of its longest fitting entry a name has.
fn fit(recipe: &Recipe, name: &str) -> Option<usize> {
    let fitting = recipe.models.iter().filter_map(|model| {
        let parts: Vec<String> = model.split('*').map(letters).collect();
        let mut rest = name;
        for part in &parts {
            rest = &rest[rest.find(part.as_str())? + part.len()..];
        }
        Some(parts.iter().map(String::len).sum())
    });
    fitting.max()
}

/// Only its letters and digits, in lower case.
fn letters(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .map(|c| c.to_ascii_lowercase())
        .collect()
}
