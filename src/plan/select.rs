//! Which blocks a user chooses: globs on their names.

use std::cell::Cell;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::path::modules_above;
use crate::recipe::{Error, without_wrappers};

/// Compiles a glob.
///
/// # Errors
/// When it is none, or too large. (A set says so; a matcher by itself would panic.)
pub fn glob(text: &str) -> Result<GlobSet, globset::Error> {
    GlobSetBuilder::new().add(Glob::new(text)?).build()
}

/// Each glob as it is written, and as it is without the segments of wrappers.
pub(super) fn compile(globs: &[String]) -> Result<Vec<GlobSet>, Error> {
    let one = |text: &String| {
        let either = |text: &String| {
            let mut set = GlobSetBuilder::new();
            set.add(Glob::new(text)?);
            set.add(Glob::new(&without_wrappers(text))?).build()
        };
        either(text).map_err(|source| Error::Glob {
            glob: text.clone(),
            source,
        })
    };
    globs.iter().map(one).collect()
}

/// The blocks that `--only` and `--skip` leave.
pub(crate) struct Select {
    only: Vec<GlobSet>,
    skip: Vec<GlobSet>,
    /// The globs as they are written, `--only` first, and whether a name has matched each.
    texts: Vec<(String, Cell<bool>)>,
}

impl Select {
    pub(crate) fn new(only: &[String], skip: &[String]) -> Result<Select, Error> {
        let texts = only.iter().chain(skip);
        Ok(Select {
            only: compile(only)?,
            skip: compile(skip)?,
            texts: texts.map(|text| (text.clone(), Cell::new(false))).collect(),
        })
    }

    pub(crate) fn takes(&self, name: &str) -> bool {
        let [only, skip] = self.matches(name);
        (self.only.is_empty() || only) && !skip
    }

    /// The outermost path above a module, or itself, that is skipped by name.
    pub(crate) fn skips<'n>(&self, module: &'n str) -> Option<&'n str> {
        modules_above(module)
            .chain([module])
            .find(|name| self.matches(name)[1])
    }

    /// Whether what is left of a half block is to be left as it is: it, or a module above it, is skipped by name, or others are chosen.
    pub(crate) fn leaves(&self, tensor: &str) -> bool {
        let mut named = modules_above(tensor).chain([tensor]);
        let chosen = named.any(|name| self.matches(name)[0]);
        self.skips(tensor).is_some() || !(self.only.is_empty() || chosen)
    }

    /// Whether a name is matched by `--only`, and whether by `--skip`.
    fn matches(&self, name: &str) -> [bool; 2] {
        let mut matched = [false; 2];
        let globs = self.only.iter().chain(&self.skip).zip(&self.texts);
        for (i, (glob, (_, seen))) in globs.enumerate() {
            if glob.is_match(name) {
                seen.set(true);
                matched[usize::from(i >= self.only.len())] = true;
            }
        }
        matched
    }

    /// # Errors
    /// When no name has matched a glob.
    pub(crate) fn expect_used(&self) -> Result<(), Error> {
        match self.texts.iter().find(|(_, seen)| !seen.get()) {
            None => Ok(()),
            Some((glob, _)) => Err(Error::NothingNamed { glob: glob.clone() }),
        }
    }
}
