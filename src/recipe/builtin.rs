//! The recipes that come with the program.

use super::closest;
use super::detect::{detect, nothing};
use super::error::Error;
use super::expand::Index;
use super::model::Recipe;
use super::parse;
use super::regions::Family;
use super::segments::Segments;
use super::wrappers::seen_by_any;

/// A built-in recipe that has not been parsed.
struct Source {
    /// Its JSON.
    text: &'static str,
    /// The anchors of its blocks.
    anchors: &'static [&'static str],
    /// Of each list of its `when`, the patterns.
    evidence: &'static [&'static [&'static str]],
    /// The names that only the deploy form has.
    deploy: &'static [&'static str],
}

/// Every `src/recipes/*.json`, in the order of the file names.
const SOURCES: &[Source] = &include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

impl Source {
    fn parse(&self) -> Result<Recipe, Error> {
        parse::recipe(self.text, "built in")
    }

    /// Whether a file with these segments may hold what the recipe is about.
    fn may_concern(&self, segments: &Segments<'_>) -> bool {
        let any = |patterns: &[&str]| patterns.iter().any(|text| segments.allow_text(text));
        any(self.deploy) || any(self.anchors) && self.evidence.iter().all(|of| any(of))
    }
}

/// Every built-in recipe. That each one parses is held by a test.
pub fn builtin() -> Result<Vec<Recipe>, Error> {
    SOURCES.iter().map(Source::parse).collect()
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
        .filter(|source| source.may_concern(&segments))
        .map(Source::parse)
        .collect()
}

/// Finds the built-in recipes, of those [near](builtin_near), whose blocks are in the file.
///
/// # Errors
/// As for [`detect`](super::detect) with every built-in recipe.
pub fn detect_builtin<'a>(index: &Index, near: &'a [Recipe]) -> Result<Vec<Family<'a>>, Error> {
    detect(index, near).map_err(|error| match (error, builtin()) {
        // Why it is none of them can lie with any of them.
        (Error::NoBlock { .. } | Error::Deployed { .. }, Ok(all)) => {
            match seen_by_any(index, near, &Segments::of(index)) {
                Ok(seen) => nothing(&seen, &all),
                Err(error) => error,
            }
        }
        (error, _) => error,
    })
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
        .map(|(recipe, source)| (recipe.clone(), source.text))
        .ok_or_else(|| Error::Unknown {
            name: name.to_owned(),
            near,
        })
}
