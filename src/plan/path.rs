//! Dotted names: the modules above a tensor, and what stands below one.

/// The module that a tensor is a parameter of.
pub(crate) fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

/// The same, as an error names it: a tensor that is in no module is named itself.
pub(crate) fn module_or_own(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// Whether a name stands below a module.
pub(crate) fn is_below(name: &str, module: &str) -> bool {
    name.strip_prefix(module)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Every module above a tensor, the outermost first.
pub(crate) fn modules_above(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[..at])
}
