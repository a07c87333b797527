//! The recipes that come with the program.

use super::closest;
use super::error::Error;
use super::model::Recipe;
use super::parse;

/// Every `src/recipes/*.json`, in the order of the file names.
const SOURCES: &[&str] = &include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// Every built-in recipe. That each one parses is held by a test.
pub fn builtin() -> Result<Vec<Recipe>, Error> {
    SOURCES
        .iter()
        .map(|text| parse::recipe(text, "built in"))
        .collect()
}

/// The names of the built-in recipes.
///
/// # Errors
/// As for [`builtin`].
pub fn names() -> Result<Vec<String>, Error> {
    Ok(builtin()?.into_iter().map(|recipe| recipe.name).collect())
}

/// A built-in recipe and its JSON, to start one's own from.
///
/// # Errors
/// When there is none of this name; the error proposes the closest one.
pub fn source(name: &str) -> Result<(Recipe, &'static str), Error> {
    let recipes = builtin()?;
    let names: Vec<&str> = recipes.iter().map(|r| r.name.as_str()).collect();
    let near = closest(name, names.iter().copied()).map(str::to_owned);
    let found = recipes
        .iter()
        .zip(SOURCES)
        .find(|(recipe, _)| recipe.name == name);
    found
        .map(|(recipe, text)| (recipe.clone(), *text))
        .ok_or_else(|| Error::Unknown {
            name: name.to_owned(),
            near,
        })
}
