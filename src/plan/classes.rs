//! Class names as evidence: where a file says of what class a module is, a rule that names the classes of its modules
//! takes no other one for a block.

use super::Left;
use crate::recipe::Error;
use crate::recipe::start::Start;
use crate::tensor::{Tensor, plain};

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
        let class = &facts.module(&in_file(start.anchor, &path))?.class;
        (!known.contains(class)).then(|| Unknown {
            module: path,
            class: class.clone(),
        })
    })
}

/// The path in the file of a module above a tensor. A wrapper's segments, which names are read without, stand in it; of a
/// module that is wrapped, the path is that inside of its wrapper.
fn in_file(tensor: &Tensor, module: &str) -> String {
    in_file_of([tensor.name(), tensor.name_in_file()], module)
}

/// The same by the names of a tensor: as it is read, and in the file.
fn in_file_of([name, file]: [&str; 2], module: &str) -> String {
    let below = name.strip_prefix(module);
    let Some(below) = below.filter(|below| below.starts_with('.')) else {
        return module.to_owned();
    };
    let mut kept = Vec::new();
    let mut rest = module.split('.').peekable();
    let next = below.split('.').nth(1);
    for segment in file.split('.') {
        match rest.peek() {
            Some(wanted) if *wanted == segment => drop(rest.next()),
            None if next == Some(segment) => break,
            _ => {}
        }
        kept.push(segment);
    }
    kept.join(".")
}

#[cfg(test)]
mod tests {
    use super::in_file_of;

    #[test]
    fn paths_in_the_file_have_the_segments_of_wrappers() {
        let of = |file: &str, module: &str| in_file_of(["a.b.conv.weight", file], module);
        assert_eq!(of("a.b.conv.weight", "a.b"), "a.b");
        assert_eq!(of("_orig_mod.a.b.conv.weight", "a.b"), "_orig_mod.a.b");
        assert_eq!(of("a.b._orig_mod.conv.weight", "a.b"), "a.b._orig_mod");
        assert_eq!(of("a.module.b.conv.weight", "a"), "a.module");
        assert_eq!(of("a.module.b.conv.weight", "a.c"), "a.c");
    }
}
