//! Class names as evidence: where a file says of what class a module is, a rule that names the classes of its modules
//! takes no other one for a block.

use super::Left;
use crate::recipe::Error;
use crate::recipe::start::Start;
use crate::tensor::plain;

/// A module that has the names of a rule's, and a class that the rule does not know.
pub(super) struct Unknown {
    pub(super) module: String,
    class: String,
}

impl Unknown {
    pub(super) fn left(&self) -> Left {
        Left {
            module: self.module.clone(),
            why: format!(
                "its class {} is none that the recipe knows",
                plain(&self.class)
            ),
        }
    }

    pub(super) fn refused(self, recipe: &str) -> Error {
        Error::UnknownClass {
            module: self.module,
            class: self.class,
            recipe: recipe.to_owned(),
        }
    }
}

/// The module of a start whose class the rule does not know, if the file says classes and the rule asks for some.
pub(super) fn unknown(start: &Start<'_>) -> Option<Unknown> {
    let facts = start.anchor.facts()?;
    start.rule.classes.iter().find_map(|(pattern, known)| {
        let path = pattern.fill(&start.captures)?;
        let class = &facts.module(&path)?.class;
        (!known.contains(class)).then(|| Unknown {
            module: path,
            class: class.clone(),
        })
    })
}
