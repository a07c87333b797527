//! A value of a recipe's JSON with the path to it, so that every mistake says where it is.

use serde_json::{Map, Value};

use super::pattern::Pattern;
use crate::tensor::quoted;

/// What is wrong at which place of the JSON.
pub(super) struct Mistake {
    pub(super) path: String,
    pub(super) message: String,
}

pub(super) type Parsed<T> = Result<T, Mistake>;

/// A value and the path to it.
pub(super) struct At<'a> {
    pub(super) path: String,
    pub(super) value: &'a Value,
    /// In a block, the module that names which begin with `.` are below.
    pub(super) module: Option<&'a str>,
}

impl<'a> At<'a> {
    pub(super) fn wrong<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(Mistake {
            path: self.path.clone(),
            message: message.into(),
        })
    }

    pub(super) fn expected<T>(&self, what: &str) -> Parsed<T> {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        self.wrong(format!("found {found}; expected {what}"))
    }

    pub(super) fn key(&self, key: &str, value: &'a Value) -> At<'a> {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        let module = self.module;
        At {
            path,
            value,
            module,
        }
    }

    pub(super) fn object(&self, what: &str) -> Parsed<&'a Map<String, Value>> {
        self.value
            .as_object()
            .map_or_else(|| self.expected(what), Ok)
    }

    /// An object whose keys are all among `known`.
    pub(super) fn object_of(&self, what: &str, known: &[&str]) -> Parsed<&'a Map<String, Value>> {
        let map = self.object(what)?;
        for key in map.keys() {
            if !known.contains(&key.as_str()) {
                let hint = super::closest(key, known.iter().copied()).map_or_else(
                    || format!("expected one of `{}`", known.join("`, `")),
                    |k| format!("did you mean `{k}`?"),
                );
                return self.wrong(format!("unknown key {}; {hint}", quoted(key)));
            }
        }
        Ok(map)
    }

    pub(super) fn get(&self, key: &str) -> Option<At<'a>> {
        self.value.get(key).map(|value| self.key(key, value))
    }

    /// A boolean that is false where it is left out.
    pub(super) fn flag(&self, key: &str) -> Parsed<bool> {
        self.get(key).map_or(Ok(false), |at| at.boolean())
    }

    pub(super) fn need(&self, key: &str) -> Parsed<At<'a>> {
        self.get(key)
            .map_or_else(|| self.wrong(format!("the key `{key}` is missing")), Ok)
    }

    pub(super) fn entries(&self, what: &str) -> Parsed<Vec<(Pattern, At<'a>)>> {
        let found = |(key, at): (&str, At<'a>)| Ok((self.pattern_of(key)?, at));
        self.pairs(what)?.map(found).collect()
    }

    /// The same, where the keys are names that are written.
    pub(super) fn written_entries(&self, what: &str) -> Parsed<Vec<(Pattern, At<'a>)>> {
        let written = |(key, at): (&str, At<'a>)| Ok((self.name_of(key)?, at));
        self.pairs(what)?.map(written).collect()
    }

    pub(super) fn pairs(&self, what: &str) -> Parsed<impl Iterator<Item = (&'a str, At<'a>)>> {
        let entries = self.object(what)?.iter();
        Ok(entries.map(|(key, value)| (key.as_str(), self.key(key, value))))
    }

    /// As many entries as a recipe may have of a kind: each is looked for in the whole file.
    pub(super) fn few<T>(&self, entries: Vec<T>) -> Parsed<Vec<T>> {
        match entries.len() {
            0..=MAX_ENTRIES => Ok(entries),
            found => self.wrong(format!(
                "found {found} entries; at most {MAX_ENTRIES} are taken"
            )),
        }
    }

    pub(super) fn items(&self, what: &str) -> Parsed<Vec<At<'a>>> {
        let Some(items) = self.value.as_array() else {
            return self.expected(what);
        };
        Ok(items
            .iter()
            .enumerate()
            .map(|(i, value)| At {
                path: format!("{}[{i}]", self.path),
                value,
                module: self.module,
            })
            .collect())
    }

    pub(super) fn string(&self) -> Parsed<&'a str> {
        self.value
            .as_str()
            .map_or_else(|| self.expected("a string"), Ok)
    }

    pub(super) fn number(&self) -> Parsed<f64> {
        self.value
            .as_f64()
            .map_or_else(|| self.expected("a number"), Ok)
    }

    pub(super) fn eps(&self) -> Parsed<f64> {
        match self.number()? {
            eps if eps > 0.0 && eps < 1.0 => Ok(eps),
            eps => self.wrong(format!(
                "an eps of {eps} makes no sense; expected a small positive number such as 1e-5"
            )),
        }
    }

    pub(super) fn boolean(&self) -> Parsed<bool> {
        self.value
            .as_bool()
            .map_or_else(|| self.expected("true or false"), Ok)
    }

    /// A count of channels, groups or taps.
    pub(super) fn count(&self) -> Parsed<usize> {
        match self.value.as_u64() {
            Some(n) if (1..=MAX_COUNT).contains(&n) => Ok(n as usize),
            _ => self.expected(&format!("a whole number from 1 to {MAX_COUNT}")),
        }
    }

    pub(super) fn pattern_of(&self, text: &str) -> Parsed<Pattern> {
        let pattern = self.name_of(text)?;
        if let Some(name) = pattern.counts().next() {
            return self.wrong(format!(
                "{pattern} counts on from `{{{name}}}`, which only a name that is written does: an output of `fuse`, or a new name in `rename`"
            ));
        }
        Ok(pattern)
    }

    /// The name of a tensor or module that is written.
    pub(super) fn name_of(&self, text: &str) -> Parsed<Pattern> {
        let full = match (text.strip_prefix('.'), self.module) {
            (None, _) => text.to_owned(),
            (Some(""), Some(module)) => module.to_owned(),
            (Some(_), Some(module)) => format!("{module}{text}"),
            (Some(_), None) => {
                return self.wrong(format!(
                    "{} begins with a dot, which stands for the module that `at` of a block names; here is none",
                    quoted(text)
                ));
            }
        };
        Pattern::parse(&full).or_else(|message| self.wrong(message))
    }

    pub(super) fn pattern(&self) -> Parsed<Pattern> {
        self.pattern_of(self.string()?)
    }

    /// The strings of an array; `what` says of what.
    pub(super) fn strings(&self, what: &str) -> Parsed<Vec<String>> {
        let items = self.few(self.items(what)?)?;
        let texts = items.iter().map(|at| Ok(at.string()?.to_owned()));
        texts.collect()
    }

    /// What stands under a key, if anything does.
    pub(super) fn text(&self, key: &str) -> Parsed<Option<String>> {
        let text = |at: At<'a>| at.string().map(str::to_owned);
        self.get(key).map(text).transpose()
    }

    /// The list under a key; nothing is an empty one.
    pub(super) fn list<T>(
        &self,
        key: &str,
        parse: impl Fn(&At<'a>) -> Parsed<Vec<T>>,
    ) -> Parsed<Vec<T>> {
        self.get(key).map_or(Ok(Vec::new()), |at| parse(&at))
    }

    pub(super) fn patterns(&self) -> Parsed<Vec<Pattern>> {
        self.few(self.items("an array of patterns")?)?
            .iter()
            .map(At::pattern)
            .collect()
    }
}

/// More blocks, or names under one key, than any family needs.
const MAX_ENTRIES: usize = 256;

/// Windows, dilations and groups beyond this are mistakes.
pub(super) const MAX_COUNT: u64 = 1 << 16;
