//! Which blocks a user chooses: globs on their names.

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::recipe::Error;

/// Compiles a glob.
///
/// # Errors
/// When it is none, or too large. (A set says so; a matcher by itself would panic.)
pub fn glob(text: &str) -> Result<GlobSet, globset::Error> {
    GlobSetBuilder::new().add(Glob::new(text)?).build()
}

/// The blocks that `--only` and `--skip` leave.
pub(crate) struct Select {
    only: Vec<GlobSet>,
    skip: Vec<GlobSet>,
}

impl Select {
    pub(crate) fn new(only: &[String], skip: &[String]) -> Result<Select, Error> {
        let compile = |globs: &[String]| {
            let one = |text: &String| {
                glob(text).map_err(|source| Error::Glob {
                    glob: text.clone(),
                    source,
                })
            };
            globs.iter().map(one).collect::<Result<Vec<_>, _>>()
        };
        Ok(Select {
            only: compile(only)?,
            skip: compile(skip)?,
        })
    }

    pub(crate) fn takes(&self, name: &str) -> bool {
        let any = |globs: &[GlobSet]| globs.iter().any(|glob| glob.is_match(name));
        (self.only.is_empty() || any(&self.only)) && !any(&self.skip)
    }
}
