//! What the captures of a pattern stand for.

use std::sync::Arc;

/// The captures that are bound, by name, and what each stands for.
///
/// They are a handful, made anew for every name that matches: a sorted list costs less than a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Captures(Vec<(Arc<str>, String)>);

impl Captures {
    /// Nothing is bound.
    pub(crate) const fn new() -> Captures {
        Captures(Vec::new())
    }

    /// One capture is bound.
    pub(crate) fn one(name: &str, text: &str) -> Captures {
        Captures(vec![(name.into(), text.to_owned())])
    }

    /// What a capture stands for.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let at = self.place(name).ok()?;
        Some(&self.0[at].1)
    }

    /// Whether a capture is bound.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.place(name).is_ok()
    }

    /// Binds a capture, also one that is bound to something else.
    pub(crate) fn set(&mut self, name: &Arc<str>, text: String) {
        match self.place(name) {
            Ok(at) => self.0[at].1 = text,
            Err(at) => self.0.insert(at, (name.clone(), text)),
        }
    }

    /// Takes what a capture stands for back.
    pub(crate) fn unset(&mut self, name: &str) {
        if let Ok(at) = self.place(name) {
            self.0.remove(at);
        }
    }

    /// What the captures stand for, in the order of their names.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, text)| text.as_str())
    }

    /// Keeps the captures whose names are wanted.
    pub(crate) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.0.retain(|(name, _)| wanted(name));
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(bound, _)| (**bound).cmp(name))
    }
}
