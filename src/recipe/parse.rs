//! Reading a recipe's JSON, with the path to every mistake.

use serde_json::{Map, Value};

use super::error::Error;
use super::model::{
    Axes, BlockRule, Dim, Groups, Network, Presence, Recipe, Size, Template, Window,
};
use super::pattern::Pattern;
use crate::algebra::{Factor, Through, Vector};

/// What is wrong at which place of the JSON.
struct Mistake {
    path: String,
    message: String,
}

type Parsed<T> = Result<T, Mistake>;

/// Reads a recipe. `origin` names it in errors: a file's path or a built-in recipe.
///
/// # Errors
/// Names the place in the JSON, what is wrong there, and the remedy.
pub fn recipe(text: &str, origin: &str) -> Result<Recipe, Error> {
    let mistake = |path: &str, message: String| Error::Recipe {
        origin: origin.to_owned(),
        path: path.to_owned(),
        message,
    };
    let value =
        super::json::from_str(text).map_err(|e| mistake("", format!("not valid JSON: {e}")))?;
    parse_recipe(&At {
        path: String::new(),
        value: &value,
    })
    .map_err(|m| mistake(&m.path, m.message))
}

/// A value and the path to it.
struct At<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> At<'a> {
    fn wrong<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(Mistake {
            path: self.path.clone(),
            message: message.into(),
        })
    }

    fn expected<T>(&self, what: &str) -> Parsed<T> {
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

    fn key(&self, key: &str, value: &'a Value) -> At<'a> {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        At { path, value }
    }

    fn object(&self, what: &str) -> Parsed<&'a Map<String, Value>> {
        self.value
            .as_object()
            .map_or_else(|| self.expected(what), Ok)
    }

    /// An object whose keys are all among `known`.
    fn object_of(&self, what: &str, known: &[&str]) -> Parsed<&'a Map<String, Value>> {
        let map = self.object(what)?;
        for key in map.keys() {
            if !known.contains(&key.as_str()) {
                let hint = super::closest(key, known.iter().copied()).map_or_else(
                    || format!("expected one of `{}`", known.join("`, `")),
                    |k| format!("did you mean `{k}`?"),
                );
                return self.wrong(format!(
                    "unknown key {}; {hint}",
                    crate::tensor::quoted(key)
                ));
            }
        }
        Ok(map)
    }

    fn get(&self, key: &str) -> Option<At<'a>> {
        self.value.get(key).map(|value| self.key(key, value))
    }

    /// A boolean that is false where it is left out.
    fn flag(&self, key: &str) -> Parsed<bool> {
        self.get(key).map_or(Ok(false), |at| at.boolean())
    }

    fn need(&self, key: &str) -> Parsed<At<'a>> {
        self.get(key)
            .map_or_else(|| self.wrong(format!("the key `{key}` is missing")), Ok)
    }

    fn entries(&self, what: &str) -> Parsed<Vec<(Pattern, At<'a>)>> {
        self.object(what)?
            .iter()
            .map(|(key, value)| Ok((self.pattern_of(key)?, self.key(key, value))))
            .collect()
    }

    /// As many entries as a recipe may have of a kind: each is looked for in the whole file.
    fn few<T>(&self, entries: Vec<T>) -> Parsed<Vec<T>> {
        match entries.len() {
            0..=MAX_ENTRIES => Ok(entries),
            found => self.wrong(format!(
                "found {found} entries; at most {MAX_ENTRIES} are taken"
            )),
        }
    }

    fn items(&self, what: &str) -> Parsed<Vec<At<'a>>> {
        let Some(items) = self.value.as_array() else {
            return self.expected(what);
        };
        Ok(items
            .iter()
            .enumerate()
            .map(|(i, value)| At {
                path: format!("{}[{i}]", self.path),
                value,
            })
            .collect())
    }

    fn string(&self) -> Parsed<&'a str> {
        self.value
            .as_str()
            .map_or_else(|| self.expected("a string"), Ok)
    }

    fn number(&self) -> Parsed<f64> {
        self.value
            .as_f64()
            .map_or_else(|| self.expected("a number"), Ok)
    }

    fn eps(&self) -> Parsed<f64> {
        match self.number()? {
            eps if eps > 0.0 && eps < 1.0 => Ok(eps),
            eps => self.wrong(format!(
                "an eps of {eps} makes no sense; expected a small positive number such as 1e-5"
            )),
        }
    }

    fn boolean(&self) -> Parsed<bool> {
        self.value
            .as_bool()
            .map_or_else(|| self.expected("true or false"), Ok)
    }

    /// A count of channels, groups or taps.
    fn count(&self) -> Parsed<usize> {
        match self.value.as_u64() {
            Some(n) if (1..=MAX_COUNT).contains(&n) => Ok(n as usize),
            _ => self.expected(&format!("a whole number from 1 to {MAX_COUNT}")),
        }
    }

    fn pattern_of(&self, text: &str) -> Parsed<Pattern> {
        Pattern::parse(text).or_else(|message| self.wrong(message))
    }

    fn pattern(&self) -> Parsed<Pattern> {
        self.pattern_of(self.string()?)
    }

    fn patterns(&self) -> Parsed<Vec<Pattern>> {
        self.few(self.items("an array of patterns")?)?
            .iter()
            .map(At::pattern)
            .collect()
    }
}

/// More blocks, or names under one key, than any family needs.
const MAX_ENTRIES: usize = 256;

/// Windows, dilations and groups beyond this are mistakes.
const MAX_COUNT: u64 = 1 << 16;

fn list<'a, T>(
    at: &At<'a>,
    key: &str,
    parse: impl Fn(&At<'a>) -> Parsed<Vec<T>>,
) -> Parsed<Vec<T>> {
    at.get(key).map_or(Ok(Vec::new()), |at| parse(&at))
}

fn renames(at: &At<'_>) -> Parsed<Vec<(Pattern, Pattern)>> {
    at.few(at.entries("an object: old name to new name")?)?
        .into_iter()
        .map(|(from, to)| Ok((from, to.pattern()?)))
        .collect()
}

fn parse_recipe(at: &At<'_>) -> Parsed<Recipe> {
    at.object_of(
        "an object with `name`, `about`, `cite` and `blocks`",
        &[
            "name",
            "about",
            "cite",
            "models",
            "load",
            "eps",
            "eps_note",
            "identity_note",
            "when",
            "unless",
            "owns",
            "deploy",
            "drop",
            "rename",
            "beside",
            "blocks",
            "network",
            "host",
        ],
    )?;
    let recipe = Recipe {
        name: at.need("name")?.string()?.to_owned(),
        about: at.need("about")?.string()?.to_owned(),
        cite: at
            .get("cite")
            .map_or(Ok(String::new()), |at| at.string().map(str::to_owned))?,
        models: list(at, "models", parse_models)?,
        load: at
            .get("load")
            .map(|at| at.string().map(str::to_owned))
            .transpose()?,
        eps: at.get("eps").map(|at| at.eps()).transpose()?,
        eps_note: at
            .get("eps_note")
            .map(|at| at.string().map(str::to_owned))
            .transpose()?,
        identity_note: at
            .get("identity_note")
            .map(|at| at.string().map(str::to_owned))
            .transpose()?,
        when: list(at, "when", parse_evidence)?,
        unless: list(at, "unless", At::patterns)?,
        owns: list(at, "owns", |at| {
            at.few(at.items("an array of path segments")?)?
                .iter()
                .map(|at| Ok(at.string()?.to_owned()))
                .collect()
        })?,
        deploy: list(at, "deploy", At::patterns)?,
        drop: list(at, "drop", At::patterns)?,
        rename: list(at, "rename", renames)?,
        beside: list(at, "beside", At::patterns)?,
        blocks: at
            .need("blocks")
            .and_then(|at| at.few(at.items("an array of blocks")?))?
            .iter()
            .map(parse_block)
            .collect::<Parsed<_>>()?,
        network: at.get("network").map(|at| parse_network(&at)).transpose()?,
        host: at.flag("host")?,
    };
    let name = at.need("name")?;
    if recipe.name.is_empty()
        || !recipe
            .name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    {
        return name.wrong(format!(
            "{} is not a recipe name; expected lowercase letters, digits, `-` and `.`",
            crate::tensor::quoted(&recipe.name)
        ));
    }
    if recipe.blocks.is_empty() {
        return at
            .need("blocks")?
            .wrong("a recipe needs at least one block");
    }
    for (from, to) in &recipe.rename {
        let bound: Vec<&str> = from.captures().collect();
        if let Some(free) = to.captures().find(|name| !bound.contains(name)) {
            return at.need("rename")?.wrong(format!(
                "`{{{free}}}` is not bound; use a capture of the old name, {}",
                crate::tensor::quoted(from.text())
            ));
        }
    }
    if recipe.eps.is_none() {
        let mut needs_eps = false;
        for (_, template) in recipe.blocks.iter().flat_map(|block| &block.fuse) {
            template.visit(&mut |node| needs_eps |= matches!(node, Template::Bn { eps: None, .. }));
        }
        if needs_eps {
            return at.wrong("the key `eps` is missing; no file stores the eps of a batch norm, so the recipe must (1e-5 is PyTorch's default)");
        }
    }
    Ok(recipe)
}

/// Beginnings of model names.
fn parse_models(at: &At<'_>) -> Parsed<Vec<String>> {
    at.few(at.items("an array of model names")?)?
        .iter()
        .map(|at| Ok(at.string()?.to_owned()))
        .collect()
}

/// An array of patterns, or of arrays of which one pattern is enough.
fn parse_evidence(at: &At<'_>) -> Parsed<Vec<Vec<Pattern>>> {
    let any_of = |at: &At<'_>| match at.value {
        Value::Array(_) => at.patterns(),
        _ => Ok(vec![at.pattern()?]),
    };
    at.few(at.items("an array of patterns")?)?
        .iter()
        .map(any_of)
        .collect()
}

fn parse_network(at: &At<'_>) -> Parsed<Network> {
    at.object_of(
        "an object with `blocks` and `head`",
        &["blocks", "squeeze", "head"],
    )?;
    let squeeze = |at: At<'_>| match at.items("the names of two convs")?.as_slice() {
        [down, up] => Ok([down.string()?.to_owned(), up.string()?.to_owned()]),
        _ => at.expected("the names of two convs"),
    };
    Ok(Network {
        blocks: at.need("blocks")?.patterns()?,
        squeeze: at.get("squeeze").map(squeeze).transpose()?,
        head: at.need("head")?.pattern()?,
    })
}

fn all_bound<'p>(
    at: &At<'_>,
    captures: impl Iterator<Item = &'p str>,
    bound: &[&str],
) -> Parsed<()> {
    for name in captures {
        if !bound.contains(&name) {
            return at.wrong(format!(
                "`{{{name}}}` is not bound; use a capture of `at`, or `each` for one term per value"
            ));
        }
    }
    Ok(())
}

fn parse_block(at: &At<'_>) -> Parsed<BlockRule> {
    at.object_of(
        "an object with `at` and `fuse`",
        &[
            "at", "where", "fuse", "bias", "drop", "rename", "keep", "set", "beside",
        ],
    )?;
    let anchor = at.need("at")?;
    let bias = at.get("bias").map_or(Ok(true), |at| at.boolean())?;
    let of_block = match bias {
        true => Presence::Required,
        false => Presence::Forbidden,
    };
    let block = BlockRule {
        at: match anchor.value {
            Value::String(_) => vec![anchor.pattern()?],
            _ => anchor.patterns()?,
        },
        shapes: list(at, "where", parse_shapes)?,
        fuse: at
            .need("fuse")?
            .entries("an object: output module to expression")?
            .into_iter()
            .map(|(module, at)| Ok((module, parse_template(&at, of_block)?)))
            .collect::<Parsed<_>>()?,
        bias,
        drop: list(at, "drop", At::patterns)?,
        rename: list(at, "rename", renames)?,
        keep: list(at, "keep", At::patterns)?,
        set: list(at, "set", |at| {
            at.few(at.entries("an object: tensor to number")?)?
                .into_iter()
                .map(|(name, at)| Ok((name, at.number()?)))
                .collect()
        })?,
        beside: list(at, "beside", At::patterns)?,
    };
    let (Some(first), false) = (block.at.first(), block.fuse.is_empty()) else {
        let empty = if block.at.is_empty() { "at" } else { "fuse" };
        return at.need(empty)?.wrong(format!(
            "`{empty}` is empty; a block needs a tensor to start at and an output"
        ));
    };
    // Only what every alternative binds is bound.
    let bound: Vec<&str> = first
        .captures()
        .filter(|name| block.at.iter().all(|p| p.captures().any(|c| c == *name)))
        .collect();
    let shapes = block.shapes.iter().map(|(p, _)| ("where", p));
    let drops = block.drop.iter().map(|p| ("drop", p));
    let renames = block
        .rename
        .iter()
        .flat_map(|(from, to)| [("rename", from), ("rename", to)]);
    let keeps = block.keep.iter().map(|p| ("keep", p));
    let sets = block.set.iter().map(|(p, _)| ("set", p));
    for (key, pattern) in shapes.chain(drops).chain(renames).chain(keeps).chain(sets) {
        all_bound(&at.need(key)?, pattern.captures(), &bound)?;
    }
    for pattern in &block.beside {
        // What stands beside a block stands at the block's own path; other captures may be anything.
        all_bound(&at.need("beside")?, pattern.prefix().into_iter(), &bound)?;
    }
    for (module, template) in &block.fuse {
        let fuse = at.need("fuse")?;
        all_bound(&fuse, module.captures(), &bound)?;
        check_bound(
            &At {
                path: format!("{}.{}", fuse.path, module.text()),
                value: fuse.value,
            },
            template,
            &bound,
        )?;
    }
    Ok(block)
}

/// Captures outside an `each` must be bound; inside, at least one tensor must bind all that are free.
fn check_bound(at: &At<'_>, template: &Template, bound: &[&str]) -> Parsed<()> {
    match template {
        Template::Seq(xs) | Template::Sum(xs) => {
            xs.iter().try_for_each(|x| check_bound(at, x, bound))
        }
        Template::Optional(x) => check_bound(at, x, bound),
        Template::Each(x) => {
            let captures = x.captures();
            let free: Vec<&str> = captures
                .iter()
                .map(String::as_str)
                .filter(|c| !bound.contains(c))
                .collect();
            if free.is_empty() {
                return at.wrong("`each` has no capture of its own to run over; use `optional`, or a capture that `at` does not bind");
            }
            if !x
                .tensors()
                .iter()
                .any(|p| free.iter().all(|c| p.captures().any(|name| name == *c)))
            {
                return at.wrong(format!(
                    "no tensor in `each` has all of `{{{}}}` in its name",
                    free.join("}`, `{")
                ));
            }
            let all: Vec<&str> = bound.iter().copied().chain(free).collect();
            check_bound(at, x, &all)
        }
        leaf => all_bound(at, leaf.captures().iter().map(String::as_str), bound),
    }
}

fn parse_shapes(at: &At<'_>) -> Parsed<Vec<(Pattern, Option<Vec<Dim>>)>> {
    let shape = |at: At<'_>| match at.value {
        Value::Null => Ok(None),
        _ => at
            .items(
                "a shape such as [\"o\", \"i\", 3, 3], or null for a tensor that must not be there",
            )?
            .iter()
            .map(parse_dim)
            .collect::<Parsed<Vec<_>>>()
            .map(Some),
    };
    at.few(at.entries("an object: tensor to shape")?)?
        .into_iter()
        .map(|(name, at)| Ok((name, shape(at)?)))
        .collect()
}

fn parse_dim(at: &At<'_>) -> Parsed<Dim> {
    match at.value {
        Value::Number(_) => Ok(Dim::Is(at.count()?)),
        Value::String(text) => Ok(match text.as_str() {
            "_" => Dim::Any,
            "odd" => Dim::Odd,
            letter if letter.len() == 1 && letter.bytes().all(|b| b.is_ascii_lowercase()) => {
                Dim::Same(letter.to_owned())
            }
            _ => return at.expected("a number, a letter, \"odd\" or \"_\""),
        }),
        _ => at.expected("a number, a letter, \"odd\" or \"_\""),
    }
}

const KINDS: [&str; 9] = [
    "conv", "bn", "scale", "shift", "mean", "seq", "sum", "optional", "each",
];

/// What may stand beside `conv`.
const CONV_OPTIONS: [&str; 6] = [
    "bias",
    "dilation",
    "groups",
    "transposed",
    "flipped",
    "axes",
];

/// `bias` is what holds for a conv that does not say whether it has one.
fn parse_template(at: &At<'_>, bias: Presence) -> Parsed<Template> {
    if let Value::String(word) = at.value {
        return match word.as_str() {
            "identity" => Ok(Template::Identity),
            _ => at.wrong(format!(
                "unknown expression {}; the only one without an object is \"identity\"",
                crate::tensor::quoted(word)
            )),
        };
    }
    let map = at.object("an expression: \"identity\" or an object such as {\"conv\": …}")?;
    let known: Vec<&str> = KINDS
        .iter()
        .copied()
        .chain(CONV_OPTIONS)
        .chain(["eps"])
        .collect();
    at.object_of("an expression", &known)?;
    let kinds: Vec<&str> = KINDS
        .iter()
        .copied()
        .filter(|kind| map.contains_key(*kind))
        .collect();
    let [kind] = kinds[..] else {
        return at.wrong(format!(
            "found {} of `{}` in one expression; expected exactly one",
            kinds.len(),
            KINDS.join("`, `")
        ));
    };
    let options: &[&str] = match kind {
        "conv" => &[&["conv"], &CONV_OPTIONS[..]].concat(),
        "bn" => &["bn", "eps"],
        _ => &KINDS,
    };
    at.object_of("an expression", options)?;
    let inside = at.need(kind)?;
    let terms = || {
        let items = inside.items("an array of expressions")?;
        if items.is_empty() {
            return inside.wrong(format!(
                "an empty `{kind}`; expected at least one expression"
            ));
        }
        // A norm takes the bias of the conv before it away: hardly any network has one there.
        let is = |i: usize, kind: &str| items.get(i).is_some_and(|at| at.get(kind).is_some());
        let bias = |i: usize| match kind == "seq" && is(i, "conv") && is(i + 1, "bn") {
            true => Presence::Forbidden,
            false => bias,
        };
        let item = |(i, at): (usize, &At<'_>)| parse_template(at, bias(i));
        items
            .iter()
            .enumerate()
            .map(item)
            .collect::<Parsed<Vec<_>>>()
    };
    Ok(match kind {
        "conv" => parse_conv(at, &inside, bias)?,
        "bn" => Template::Bn {
            module: inside.pattern()?,
            eps: at.get("eps").map(|at| at.eps()).transpose()?,
        },
        "scale" => Template::Scale(match inside.value {
            Value::Number(_) => Factor::Number(inside.number()?),
            Value::Object(_) => Factor::Tensor(parse_vector(&inside)?),
            _ => Factor::Tensor(Vector::of(inside.pattern()?)),
        }),
        "shift" => Template::Shift(inside.pattern()?),
        "mean" => Template::Mean(match inside.value {
            Value::String(_) => Window::Of(inside.pattern()?),
            Value::Number(_) => {
                let both = inside.count()?;
                Window::Is([1, both, both])
            }
            _ => Window::Is(along_axes(&inside, 1, At::count)?),
        }),
        "seq" => Template::Seq(terms()?),
        "sum" => Template::Sum(terms()?),
        "optional" => {
            let x = parse_template(&inside, bias)?;
            if x != Template::Identity && x.tensors().is_empty() {
                return at.wrong("nothing in a file tells whether it is there, for it has no tensor; only a bare identity can be optional without one");
            }
            Template::Optional(Box::new(x))
        }
        _ => Template::Each(Box::new(parse_template(&inside, bias)?)),
    })
}

fn parse_conv(at: &At<'_>, inside: &At<'_>, presence: Presence) -> Parsed<Template> {
    let (weight, bias, presence) = match inside.value {
        Value::String(text) => {
            let module = inside.pattern()?;
            if let Some(module) = [".weight", ".bias"]
                .iter()
                .find_map(|end| text.strip_suffix(end))
            {
                return inside.wrong(format!(
                    "{} is a tensor; `conv` takes the module, not its weight: {}",
                    crate::tensor::quoted(text),
                    crate::tensor::quoted(module)
                ));
            }
            let presence = at.get("bias").map_or(Ok(presence), |at| parse_bias(&at))?;
            let bias = Some(module.with_end(".bias"));
            (module.with_end(".weight"), bias, presence)
        }
        _ => {
            let what = "a module, or an object with `weight` and `bias`";
            inside.object_of(what, &["weight", "bias"])?;
            if let Some(beside) = at.get("bias") {
                return beside.wrong("the bias is named beside the weight; only a module says whether it must have one");
            }
            let bias = inside.get("bias").map(|at| at.pattern()).transpose()?;
            (inside.need("weight")?.pattern()?, bias, Presence::Required)
        }
    };
    let (transposed, flipped) = (at.flag("transposed")?, at.flag("flipped")?);
    let axes = at.get("axes").map(|at| parse_axes(&at)).transpose()?;
    if transposed && (flipped || axes.is_some() || at.get("dilation").is_some()) {
        return at.wrong("a transposed conv has `[in, out/groups, kh, kw]` and no `dilation`, is not `flipped`, and has no other `axes`");
    }
    Ok(Template::Conv {
        weight,
        bias,
        presence,
        dilation: at.get("dilation").map_or(Ok([1; 3].map(Size::Is)), |at| {
            match at.value.is_array() {
                true => along_axes(&at, Size::Is(1), parse_size),
                false => parse_size(&at).map(|all| [all.clone(), all.clone(), all]),
            }
        })?,
        groups: match at.get("groups") {
            None => None,
            Some(at) if at.value == "depthwise" => Some(Groups::Depthwise),
            Some(at) => Some(Groups::Is(at.count()?)),
        },
        transposed,
        flipped,
        axes,
    })
}

/// Whether a conv that is named by its module has a bias.
fn parse_bias(at: &At<'_>) -> Parsed<Presence> {
    match at.value {
        Value::Bool(true) => Ok(Presence::Required),
        Value::Bool(false) => Ok(Presence::Forbidden),
        Value::String(word) if word == "optional" => Ok(Presence::Optional),
        _ => at.expected("true, false or \"optional\""),
    }
}

fn parse_axes(at: &At<'_>) -> Parsed<Axes> {
    let what = "letters of \"oihw\" in this order, and no `i` without an `o`";
    let text = at.string()?;
    match Axes::of(text) {
        Some(axes) => Ok(axes),
        None => {
            let found = crate::tensor::quoted(text);
            at.wrong(format!("found {found}; expected {what}"))
        }
    }
}

/// A row of a matrix, or a tensor behind a sigmoid.
fn parse_vector(at: &At<'_>) -> Parsed<Vector<Pattern>> {
    at.object_of("an object with `tensor`", &["tensor", "row", "sigmoid"])?;
    let row = |at: At<'_>| match at.value.as_u64() {
        Some(row) if row < MAX_COUNT => Ok(row as usize),
        _ => at.expected("the number of a row, from 0"),
    };
    Ok(Vector {
        tensor: at.need("tensor")?.pattern()?,
        row: at.get("row").map(row).transpose()?,
        through: match at.flag("sigmoid")? {
            true => Through::Sigmoid,
            false => Through::Itself,
        },
    })
}

fn parse_size(at: &At<'_>) -> Parsed<Size> {
    match at.value {
        Value::String(_) => Ok(Size::Captured(at.pattern()?)),
        _ => Ok(Size::Is(at.count()?)),
    }
}

/// `[height, width]`, with this depth, or `[depth, height, width]`.
fn along_axes<'a, T>(
    at: &At<'a>,
    depth: T,
    parse: impl Fn(&At<'a>) -> Parsed<T>,
) -> Parsed<[T; 3]> {
    let what = "[height, width] or [depth, height, width]";
    match at.items(what)?.as_slice() {
        [height, width] => Ok([depth, parse(height)?, parse(width)?]),
        [depth, height, width] => Ok([parse(depth)?, parse(height)?, parse(width)?]),
        _ => at.expected(what),
    }
}
