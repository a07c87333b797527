//! What the commands say of a file's recipes: which of them, with which eps, and what rests on names alone.

use schemars::JsonSchema;
use serde::Serialize;

use super::output::{self, plural, small};
use crate::fuse::diagnose::EpsSensitivity;
use crate::plan::{Applied, EpsSource, Plan};
use crate::summary::units;
use crate::summary::warnings::Warning;
use crate::tensor::plain;

/// A recipe that was used.
#[derive(Serialize, JsonSchema)]
pub(super) struct Document {
    recipe: String,
    /// The paths that its part of the file is below; an empty one is the whole file.
    at: Vec<String>,
    /// The recipe of the network that its blocks are guests in, whose eps they have.
    host: Option<String>,
    blocks: usize,
    /// The eps of its batch norms, if there are any.
    bn_eps: Option<f64>,
    /// `recipe`, `file`, `user`, `sample` or `host`.
    bn_eps_source: &'static str,
    /// The largest relative change of a batch norm's scale if `bn_eps_other` were the eps.
    bn_eps_weight: Option<f64>,
    bn_eps_other: Option<f64>,
}

/// Something that the names of the file do not tell.
#[derive(Serialize, JsonSchema)]
pub(super) struct Warned {
    sentence: String,
    /// The tensors that it is about.
    tensors: Vec<String>,
}

fn weight_of(weights: &[EpsSensitivity], family: usize) -> Option<&EpsSensitivity> {
    weights.iter().find(|weight| weight.family == Some(family))
}

pub(super) fn documents(plan: &Plan, weights: &[EpsSensitivity]) -> Vec<Document> {
    let of = |(number, family): (usize, &Applied)| {
        let weight = weight_of(weights, number);
        Document {
            recipe: family.recipe.clone(),
            at: family.at.clone(),
            host: family.host.clone(),
            blocks: family.blocks.len(),
            bn_eps: weight.and(family.eps),
            bn_eps_source: family.eps_source.name(),
            bn_eps_weight: weight.map(|w| w.largest),
            bn_eps_other: weight.map(|w| w.other),
        }
    };
    plan.families().iter().enumerate().map(of).collect()
}

pub(super) fn warned(warnings: &[Warning]) -> Vec<Warned> {
    let of = |warning: &Warning| Warned {
        sentence: warning.sentence.clone(),
        tensors: warning.tensors.clone(),
    };
    warnings.iter().map(of).collect()
}

/// Prints what rests on names alone.
pub(super) fn warn(warnings: &[Warning]) {
    for warning in warnings {
        let remedy = warning.other_eps.map_or_else(String::new, |eps| {
            format!("; if yours is one, pass --bn-eps {eps:e}, or a recorded sample with --sample")
        });
        output::note(&format!(
            "repfuse: warning: {}{remedy}",
            plain(&warning.sentence)
        ));
    }
}

/// Prints what looks like branches and is left as it is.
pub(super) fn mention(left: &[String]) {
    if let [first, others @ ..] = left {
        let more = match others.len() {
            0 => String::new(),
            n => format!(" and {}", plural(n, "more place")),
        };
        output::note(&format!(
            "repfuse: {}{more} look like branches of a block, and no recipe covers them; they were copied",
            plain(first)
        ));
    }
}

/// The recipes, in lines for the end of a text.
pub(super) fn lines(plan: &Plan) -> String {
    if plan.families().len() < 2 {
        return output::line("recipe", plan.recipe());
    }
    let of = |(number, family): (usize, &Applied)| {
        const SHOWN: usize = 3;
        let more = family.at.len().saturating_sub(SHOWN);
        let mut at: Vec<String> = family
            .at
            .iter()
            .take(SHOWN)
            .map(|path| plain(path))
            .collect();
        if more > 0 {
            at.push(format!("{more} more"));
        }
        let place = match (&at[..], &family.host) {
            ([first, ..], Some(host)) if !first.is_empty() => {
                format!(
                    " below {}, in the network of {}",
                    at.join(", "),
                    plain(host)
                )
            }
            ([first, ..], None) if !first.is_empty() => format!(" below {}", at.join(", ")),
            _ => String::new(),
        };
        let blocks = plural(family.blocks.len(), "block");
        let name = if number == 0 { "recipes" } else { "" };
        output::line(name, &format!("{}: {blocks}{place}", plain(&family.recipe)))
    };
    plan.families().iter().enumerate().map(of).collect()
}

/// The eps of each recipe, where it comes from, and how much it matters for this file; in lines for the end of a text.
pub(super) fn eps_lines(plan: &Plan, weights: &[EpsSensitivity]) -> String {
    let several = plan.families().len() > 1;
    let mut lines = String::new();
    for (number, family) in plan.families().iter().enumerate() {
        let eps = match (family.eps, family.eps_source) {
            (Some(eps), _) => small(eps),
            (None, EpsSource::File) => "that of each norm".to_owned(),
            (None, _) => continue,
        };
        let Some(weight) = weight_of(weights, number) else {
            continue;
        };
        let source = match (family.eps_source, &family.host) {
            (EpsSource::Recipe, _) => format!("recipe {}", plain(&family.recipe)),
            (EpsSource::File, _) => "the file".to_owned(),
            (EpsSource::User, _) => "--bn-eps".to_owned(),
            (EpsSource::Sample, _) => "the sample".to_owned(),
            (EpsSource::Host, Some(host)) => format!("recipe {}, its host", plain(host)),
            (EpsSource::Host, None) => "its host".to_owned(),
        };
        let of = match several && family.eps_source != EpsSource::Recipe {
            true => format!("{}: ", plain(&family.recipe)),
            false => String::new(),
        };
        let name = if lines.is_empty() { "bn eps" } else { "" };
        lines += &output::line(
            name,
            &format!(
                "{of}{eps} from {source}; {} would change a scale by up to {}",
                small(weight.other),
                units::share(weight.largest)
            ),
        );
    }
    lines
}
