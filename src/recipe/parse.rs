//! Reading a recipe's JSON, with the path to every mistake.

use serde_json::Value;

use super::error::Error;
use super::model::{BlockRule, Dim, Network, Presence, Recipe, Template};
use super::pattern::Pattern;
use super::place::{At, Parsed};
use super::template::parse_template;
use crate::algebra::{Factor, Vector};
use crate::tensor::quoted;

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
        module: None,
    })
    .map_err(|m| mistake(&m.path, m.message))
}

/// The keys of a recipe.
const RECIPE: &[&str] = &[
    "$schema",
    "name",
    "about",
    "cite",
    "models",
    "load",
    "eps",
    "eps_note",
    "identity_note",
    "factor_note",
    "when",
    "modules",
    "unless",
    "owns",
    "deploy",
    "drop",
    "rename",
    "beside",
    "blocks",
    "network",
    "host",
];

fn parse_recipe(at: &At<'_>) -> Parsed<Recipe> {
    at.object_of(
        "an object with `name`, `about`, `cite` and `blocks`",
        RECIPE,
    )?;
    let recipe = Recipe {
        name: at.need("name")?.string()?.to_owned(),
        about: at.need("about")?.string()?.to_owned(),
        cite: at.text("cite")?.unwrap_or_default(),
        models: at.list("models", |at| at.strings("an array of model names"))?,
        load: at.text("load")?,
        eps: at.get("eps").map(|at| at.eps()).transpose()?,
        eps_note: at.text("eps_note")?,
        identity_note: at.text("identity_note")?,
        factor_note: at.text("factor_note")?,
        when: at.list("when", parse_evidence)?,
        modules: at.list("modules", |at| at.strings("an array of module names"))?,
        unless: at.list("unless", At::patterns)?,
        owns: at.list("owns", |at| at.strings("an array of path segments"))?,
        deploy: at.list("deploy", At::patterns)?,
        drop: at.list("drop", At::patterns)?,
        rename: at.list("rename", renames)?,
        beside: at.list("beside", At::patterns)?,
        blocks: at
            .need("blocks")
            .and_then(|at| at.few(at.items("an array of blocks")?))?
            .iter()
            .map(parse_block)
            .collect::<Parsed<_>>()?,
        network: at.get("network").map(|at| parse_network(&at)).transpose()?,
        host: at.flag("host")?,
    };
    check_recipe(at, &recipe)?;
    Ok(recipe)
}

/// What no key can say by itself.
fn check_recipe(at: &At<'_>, recipe: &Recipe) -> Parsed<()> {
    let name = at.need("name")?;
    if recipe.name.is_empty()
        || !recipe
            .name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    {
        return name.wrong(format!(
            "{} is not a recipe name; expected lowercase letters, digits, `-` and `.`",
            quoted(&recipe.name)
        ));
    }
    if recipe.blocks.is_empty() {
        return at
            .need("blocks")?
            .wrong("a recipe needs at least one block");
    }
    check_modules(at, recipe)?;
    for (from, to) in &recipe.rename {
        let bound: Vec<&str> = from.captures().collect();
        if let Some(free) = to.captures().find(|name| !bound.contains(name)) {
            return at.need("rename")?.wrong(format!(
                "`{{{free}}}` is not bound; use a capture of the old name, {}",
                quoted(from.text())
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
    Ok(())
}

/// Modules are found by evidence, and are the outermost ones of a network.
fn check_modules(at: &At<'_>, recipe: &Recipe) -> Parsed<()> {
    let Some(modules) = at.get("modules") else {
        return Ok(());
    };
    if recipe.when.is_empty() {
        return modules.wrong(
            "the key `when` is missing; `modules` says in which modules its evidence stands",
        );
    }
    let is_name = |name: &String| {
        let start = name.strip_suffix('*').unwrap_or(name);
        !start.is_empty() && !start.contains(['.', '{', '}', '*'])
    };
    match recipe.modules.iter().find(|name| !is_name(name)) {
        None => Ok(()),
        Some(name) => modules.wrong(format!(
            "{} is not the name of one module; expected one segment of a path, such as `backbone`, or its beginning and `*`",
            quoted(name)
        )),
    }
}

fn renames(at: &At<'_>) -> Parsed<Vec<(Pattern, Pattern)>> {
    at.few(at.entries("an object: old name to new name")?)?
        .into_iter()
        .map(|(from, to)| Ok((from, to.name_of(to.string()?)?)))
        .collect()
}

fn numbers(at: &At<'_>) -> Parsed<Vec<(Pattern, f64)>> {
    at.few(at.entries("an object: tensor to number")?)?
        .into_iter()
        .map(|(name, at)| Ok((name, at.number()?)))
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

fn parse_block(at: &At<'_>) -> Parsed<BlockRule> {
    at.object_of(
        "an object with `at` and `fuse`",
        &[
            "at", "where", "shapes", "fuse", "bias", "drop", "exported", "rename", "keep", "set",
            "beside", "classes",
        ],
    )?;
    let anchor = at.need("at")?;
    let starts = match anchor.value {
        Value::String(_) => vec![anchor.pattern()?],
        _ => anchor.patterns()?,
    };
    let module = starts.first().map(Pattern::bare);
    let at = &At {
        path: at.path.clone(),
        value: at.value,
        module: module.as_deref(),
    };
    let bias = at.get("bias").map_or(Ok(true), |at| at.boolean())?;
    let of_block = match bias {
        true => Presence::Required,
        false => Presence::Forbidden,
    };
    let mut block = BlockRule {
        at: starts,
        shapes: at.list("where", parse_shapes)?,
        forms: at.list("shapes", parse_forms)?,
        fuse: at
            .need("fuse")?
            .written_entries("an object: output module to expression")?
            .into_iter()
            .map(|(module, at)| Ok((module, parse_template(&at, of_block)?)))
            .collect::<Parsed<_>>()?,
        bias,
        drop: at.list("drop", At::patterns)?,
        exported: at.flag("exported")?,
        rename: at.list("rename", renames)?,
        keep: at.list("keep", At::patterns)?,
        set: at.list("set", numbers)?,
        beside: at.list("beside", At::patterns)?,
        classes: at.list("classes", parse_classes)?,
    };
    if block.at.is_empty() || block.fuse.is_empty() {
        let empty = if block.at.is_empty() { "at" } else { "fuse" };
        return at.need(empty)?.wrong(format!(
            "`{empty}` is empty; a block needs a tensor to start at and an output"
        ));
    }
    block.at = block
        .at
        .iter()
        .flat_map(|at| anchors(at, &block.fuse))
        .collect();
    check_written(at, &block)?;
    check_captures(at, &block)?;
    Ok(block)
}

/// What a block writes has names, and nothing else is written under them.
fn check_written(at: &At<'_>, block: &BlockRule) -> Parsed<()> {
    for (module, _) in &block.fuse {
        has_digits(&at.need("fuse")?, module, &block.at)?;
    }
    for (_, to) in &block.rename {
        has_digits(&at.need("rename")?, to, &block.at)?;
    }
    exported_is_dropped(at, block)
}

/// A fused conv that is in the file and is written anew has to be dropped.
fn exported_is_dropped(at: &At<'_>, block: &BlockRule) -> Parsed<()> {
    let mut outputs = block.fuse.iter().map(|(module, _)| module);
    let kept = outputs.find(|module| !block.drop.contains(module));
    match kept.filter(|_| block.exported) {
        None => Ok(()),
        Some(module) => at.need("exported")?.wrong(format!(
            "{module} is not in `drop`; what the file has of a fused conv is left out where that is written"
        )),
    }
}

/// Every name of a block can be told from what it is found by.
fn check_captures(at: &At<'_>, block: &BlockRule) -> Parsed<()> {
    let Some(first) = block.at.first() else {
        return at.need("at")?.wrong("`at` is empty");
    };
    // Only what every alternative binds is bound.
    let bound: Vec<&str> = first
        .captures()
        .filter(|name| block.at.iter().all(|p| p.captures().any(|c| c == *name)))
        .collect();
    let shapes = block.shapes.iter().map(|(p, _)| ("where", p));
    let forms = block.forms.iter().map(|(p, _)| ("shapes", p));
    let drops = block.drop.iter().map(|p| ("drop", p));
    let renames = block
        .rename
        .iter()
        .flat_map(|(from, to)| [("rename", from), ("rename", to)]);
    let keeps = block.keep.iter().map(|p| ("keep", p));
    let sets = block.set.iter().map(|(p, _)| ("set", p));
    let classes = block.classes.iter().map(|(p, _)| ("classes", p));
    let of_block = shapes.chain(forms).chain(drops).chain(renames).chain(keeps);
    for (key, pattern) in of_block.chain(sets).chain(classes) {
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
                ..fuse
            },
            template,
            &bound,
        )?;
    }
    Ok(())
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

/// The names that start a block: what `at` says, or where that is a module with operators below it, what tells each of those.
fn anchors(at: &Pattern, fuse: &[(Pattern, Template)]) -> Vec<Pattern> {
    let module = at.bare() + ".";
    let mut found: Vec<Pattern> = Vec::new();
    for (_, template) in fuse {
        template.visit(&mut |node| {
            let tells = match node {
                Template::Conv(conv) => &conv.weight,
                // A norm of another kind has no such statistics.
                Template::Bn { norm, .. } => &norm.tensors[2],
                Template::Scale(Factor::Tensor(Vector { tensor, .. }))
                | Template::Shift(tensor) => tensor,
                _ => return,
            };
            let below = tells.text().strip_prefix(&module);
            let mut captures = tells.captures();
            if let Some(rest) = below
                && captures.all(|name| at.captures().any(|c| c == name))
            {
                let start = at.with_end(&format!(".{rest}"));
                if !found.contains(&start) {
                    found.push(start);
                }
            }
        });
    }
    match found.is_empty() {
        true => vec![at.clone()],
        false => found,
    }
}

/// What a written name counts on from must be digits wherever the block is found.
fn has_digits(at: &At<'_>, written: &Pattern, starts: &[Pattern]) -> Parsed<()> {
    match written
        .counts()
        .find(|name| !starts.iter().all(|start| start.has_digits(name)))
    {
        None => Ok(()),
        Some(name) => at.wrong(format!(
            "{written} counts on from `{{{name}}}`, which is no number; let `at` capture digits, as `{{i}}` does"
        )),
    }
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

/// Modules, and the names of the classes that one of them may have.
fn parse_classes(at: &At<'_>) -> Parsed<Vec<(Pattern, Vec<String>)>> {
    let names = |at: &At<'_>| at.strings("an array of class names");
    at.few(at.entries("an object: module to the names of classes")?)?
        .into_iter()
        .map(|(module, at)| Ok((module, names(&at)?)))
        .collect()
}

fn parse_forms(at: &At<'_>) -> Parsed<Vec<(Pattern, Vec<Dim>)>> {
    let shape = |at: At<'_>| {
        let dims = at.items("a shape such as [1, \"c\", 1, 1]")?;
        dims.iter().map(parse_dim).collect::<Parsed<Vec<_>>>()
    };
    at.few(at.entries("an object: tensor to shape")?)?
        .into_iter()
        .map(|(name, at)| Ok((name, shape(at)?)))
        .collect()
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
