//! The recipes that come with the program.

use serde::Deserialize;

use super::closest;
use super::detect::{Segments, detect, nothing};
use super::error::Error;
use super::expand::Index;
use super::model::Recipe;
use super::parse;
use super::regions::Family;

/// Every `src/recipes/*.json`, in the order of the file names.
const SOURCES: &[&str] = &include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// Every built-in recipe. That each one parses is held by a test.
pub fn builtin() -> Result<Vec<Recipe>, Error> {
    SOURCES
        .iter()
        .map(|text| parse::recipe(text, "built in"))
        .collect()
}

/// The built-in recipes that are worth a closer look: those of which the file may hold blocks or the deploy form.
///
/// The others are not even parsed. (Parsing all recipes takes half of the time in which a file of 1 MB is fused.)
///
/// # Errors
/// As for [`builtin`].
pub fn builtin_near(index: &Index) -> Result<Vec<Recipe>, Error> {
    let segments = Segments::of(index);
    SOURCES
        .iter()
        .filter(|text| Sketch::may_concern(text, &segments))
        .map(|text| parse::recipe(text, "built in"))
        .collect()
}

/// Finds the built-in recipes, of those [near](builtin_near), whose blocks are in the file.
///
/// # Errors
/// As for [`detect`](super::detect) with every built-in recipe.
pub fn detect_builtin<'a>(index: &Index, near: &'a [Recipe]) -> Result<Vec<Family<'a>>, Error> {
    detect(index, near).map_err(|error| match (error, builtin()) {
        // Why it is none of them can lie with any of them.
        (Error::NoBlock { .. } | Error::Deployed { .. }, Ok(all)) => nothing(index, &all),
        (error, _) => error,
    })
}

/// Of a recipe's JSON, what tells whether a file can hold its blocks or its deploy form.
#[derive(Deserialize)]
struct Sketch {
    blocks: Vec<Anchor>,
    #[serde(default)]
    when: Vec<OneOrMore>,
    #[serde(default)]
    deploy: Vec<String>,
}

#[derive(Deserialize)]
struct Anchor {
    at: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Sketch {
    /// Whether a file with these segments may hold what the recipe is about. A text that makes no sense may be about anything.
    fn may_concern(text: &str, segments: &Segments<'_>) -> bool {
        let Ok(sketch) = serde_json::from_str::<Sketch>(text) else {
            return true;
        };
        let allowed = |pattern: &String| segments.allow_text(pattern);
        let any = |patterns: &OneOrMore| match patterns {
            OneOrMore::One(pattern) => allowed(pattern),
            OneOrMore::More(patterns) => patterns.iter().any(allowed),
        };
        sketch.deploy.iter().any(allowed)
            || sketch.blocks.iter().any(|block| any(&block.at)) && sketch.when.iter().all(any)
    }
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
