//! Expressions of a recipe: what a block computes, read from JSON.

use serde_json::Value;

use super::model::{Axes, ConvTemplate, Groups, Norm, Presence, Size, Template, Window};
use super::pattern::Pattern;
use super::place::{At, MAX_COUNT, Parsed};
use crate::algebra::{Factor, Through, Vector};
use crate::tensor::quoted;

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
pub(super) fn parse_template(at: &At<'_>, bias: Presence) -> Parsed<Template> {
    if at.value.is_array() {
        return Ok(Template::Seq(parse_terms(at, "seq", bias)?));
    }
    if let Value::String(word) = at.value {
        return match word.as_str() {
            "identity" => Ok(Template::Identity),
            _ => at.wrong(format!(
                "unknown expression {}; the only one without an object is \"identity\"",
                quoted(word)
            )),
        };
    }
    let map =
        at.object("an expression: \"identity\", an array, or an object such as {\"conv\": …}")?;
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
    if kinds == ["conv", "bn"] {
        let [conv, norm] = parse_pair(at)?;
        return Ok(Template::Seq(vec![conv, norm]));
    }
    let [kind] = kinds[..] else {
        return at.wrong(format!(
            "found {} of `{}` in one expression; expected exactly one, or `conv` and `bn`",
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
    parse_kind(at, kind, bias)
}

/// An expression of one kind, whose keys are known.
fn parse_kind(at: &At<'_>, kind: &str, bias: Presence) -> Parsed<Template> {
    let inside = at.need(kind)?;
    Ok(match kind {
        "conv" => parse_conv(at, &inside, bias)?,
        "bn" => parse_norm(at, &inside)?,
        "scale" => Template::Scale(match inside.value {
            Value::Number(_) => Factor::Number(inside.number()?),
            Value::Object(_) => Factor::Tensor(parse_vector(&inside)?),
            _ => Factor::Tensor(Vector::of(inside.pattern()?)),
        }),
        "shift" => Template::Shift(inside.pattern()?),
        "mean" => Template::AvgPool(match inside.value {
            Value::String(_) => Window::Of(inside.pattern()?),
            Value::Number(_) => {
                let both = inside.count()?;
                Window::Is([1, both, both])
            }
            _ => Window::Is(along_axes(&inside, 1, At::count)?),
        }),
        "seq" => Template::Seq(parse_terms(&inside, kind, bias)?),
        "sum" => Template::Sum(parse_terms(&inside, kind, bias)?),
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

/// The parts of a `seq` or `sum`.
fn parse_terms(at: &At<'_>, kind: &str, bias: Presence) -> Parsed<Vec<Template>> {
    let items = at.items("an array of expressions")?;
    if items.is_empty() {
        return at.wrong(format!(
            "an empty `{kind}`; expected at least one expression"
        ));
    }
    let is = |at: &At<'_>, kind: &str| at.get(kind).is_some();
    let mut terms = Vec::new();
    for (i, item) in items.iter().enumerate() {
        if kind == "seq" && is(item, "conv") && is(item, "bn") {
            terms.extend(parse_pair(item)?);
            continue;
        }
        // A norm takes the bias of the conv before it away: hardly any network has one there.
        let norm_next = items
            .get(i + 1)
            .is_some_and(|next| is(next, "bn") && !is(next, "conv"));
        let bias = match kind == "seq" && is(item, "conv") && norm_next {
            true => Presence::Forbidden,
            false => bias,
        };
        terms.push(parse_template(item, bias)?);
    }
    Ok(terms)
}

/// A conv and the norm behind it, in one object.
fn parse_pair(at: &At<'_>) -> Parsed<[Template; 2]> {
    at.object_of(
        "an expression",
        &[&["conv", "bn", "eps"], &CONV_OPTIONS[..]].concat(),
    )?;
    let conv = parse_conv(at, &at.need("conv")?, Presence::Forbidden)?;
    Ok([conv, parse_norm(at, &at.need("bn")?)?])
}

fn parse_norm(at: &At<'_>, inside: &At<'_>) -> Parsed<Template> {
    Ok(Template::Bn {
        norm: Box::new(Norm::of(inside.pattern()?)),
        eps: at.get("eps").map(|at| at.eps()).transpose()?,
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
                    quoted(text),
                    quoted(module)
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
    Ok(Template::Conv(Box::new(ConvTemplate {
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
    })))
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
            let found = quoted(text);
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
