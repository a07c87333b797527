//! Class names as evidence: where a file says of what class a module is, a rule that names the classes of its modules
//! takes no other one for a block.

use crate::recipe::detect::Start;

/// A block that has the names of a rule's, and a class that the rule does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Its module.
    pub module: String,
    /// The class that the file says it has.
    pub class: String,
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
