//! `--sample FILE`: maps of the author's network decide what names leave open.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use super::output::{self, plural, small};
use super::select::{Select, named};
use super::workers::with_workers;
use crate::network::sample::{self, Choice, Sample};
use crate::plan::Plan;
use crate::summary::units;
use crate::tensor::{Checkpoint, Float, plain};

/// Which sample.
#[derive(Debug, clap::Args)]
pub(super) struct Sampled {
    /// Feature maps recorded from the running training network, `<block>.input` and `<block>.output`: they decide the recipe and
    /// the eps, and every recorded block must reproduce them
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
}

/// What `--sample` said.
#[derive(Serialize, JsonSchema)]
pub(super) struct Evidence {
    /// The file of recorded maps.
    file: String,
    /// Whether every recorded block computes what was recorded.
    pub(super) accepted: bool,
    /// Whether it chose the recipe, of several that fit the names.
    recipe_decided: bool,
    /// Whether it chose another eps than the recipe's.
    bn_eps_decided: bool,
    /// Other usual eps that it does not rule out.
    bn_eps_also: Vec<f64>,
    /// What it supports, where that is not what was asked for.
    instead: Option<Instead>,
    /// The worst ratio of all recorded blocks; null if it is not a number.
    worst_ratio: Option<f64>,
    /// One for each recorded block.
    records: Vec<Record>,
    /// Recorded modules that were not compared.
    ignored: Vec<Ignored>,
    #[serde(skip)]
    lines: String,
}

/// A recipe and an eps.
#[derive(Serialize, JsonSchema)]
struct Instead {
    recipe: String,
    bn_eps: Option<f64>,
}

/// A recorded block.
#[derive(Serialize, JsonSchema)]
struct Record {
    /// The module that was recorded.
    name: String,
    /// The conv that it becomes.
    module: String,
    accepted: bool,
    /// The type in which it was recorded.
    dtype: String,
    /// What stood between the block and the place where its output was recorded.
    activation: String,
    /// The norm beside the block that its output went through, too.
    after: Option<String>,
    stride: [usize; 2],
    /// Rows above and below, columns left and right.
    padding: [[usize; 2]; 2],
    /// How many numbers were compared, of those recorded: where a network pads otherwise than with zeros around the block, those
    /// that see the padding are left out.
    compared: u64,
    recorded: u64,
    /// The worst difference in units of what arithmetic in `dtype` may be off by; null if it is not a number.
    ratio: Option<f64>,
    /// The worst absolute difference.
    absolute: Option<f64>,
    /// Where the worst ratio is: map, channel, row, column.
    index: [usize; 4],
    /// What explains the difference, if something does.
    why: Option<String>,
}

/// A recorded module that was not compared.
#[derive(Serialize, JsonSchema)]
struct Ignored {
    name: String,
    reason: String,
}

impl Sampled {
    /// A graph says by itself what is folded.
    pub(super) fn refuse_for_a_graph(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.sample.is_none(),
            "--sample is about files of weights; leave it out for a graph"
        );
        Ok(())
    }

    /// The plan that the sample supports, or the closest one, and what it says; none without a sample.
    pub(super) fn plan(
        &self,
        select: &Select,
        checkpoint: &Checkpoint,
        dtype: Option<Float>,
    ) -> anyhow::Result<Option<(Plan, Evidence)>> {
        let Some(path) = &self.sample else {
            return Ok(None);
        };
        let sample = Sample::open(path)?;
        let options = sample::Options {
            recipe: select.recipe.as_deref().map(named).transpose()?,
            plan: select.options(dtype),
        };
        let choice = with_workers(|| sample::choose(checkpoint, &sample, &options))??;
        let evidence = evidence(path.display().to_string(), &choice);
        Ok(Some((choice.plan, evidence)))
    }
}

fn evidence(file: String, choice: &Choice) -> Evidence {
    let Choice {
        support, decided, ..
    } = choice;
    let finite = |x: f64| x.is_finite().then_some(x);
    Evidence {
        file,
        accepted: support.accepted(),
        recipe_decided: decided.recipe,
        bn_eps_decided: decided.eps,
        bn_eps_also: decided.also_eps.clone(),
        instead: decided
            .instead
            .clone()
            .map(|(recipe, bn_eps)| Instead { recipe, bn_eps }),
        worst_ratio: finite(support.worst_ratio()),
        records: support
            .records
            .iter()
            .map(|r| Record {
                name: r.name.clone(),
                module: r.module.clone(),
                accepted: r.accepted,
                dtype: r.float.to_string(),
                activation: r.activation.to_string(),
                after: r.after.clone(),
                stride: r.stride,
                padding: r.padding,
                compared: r.compared,
                recorded: r.recorded,
                ratio: finite(r.ratio),
                absolute: finite(r.absolute),
                index: r.at,
                why: r.why.clone(),
            })
            .collect(),
        ignored: support
            .ignored
            .iter()
            .map(|(name, reason)| Ignored {
                name: name.clone(),
                reason: reason.clone(),
            })
            .collect(),
        lines: failures(choice),
    }
}

/// What is wrong, a line each; nothing where the sample supports the plan.
fn failures(choice: &Choice) -> String {
    let mut lines = String::new();
    for r in choice.support.records.iter().filter(|r| !r.accepted) {
        let why = r
            .why
            .as_ref()
            .map(|why| format!("; {why}"))
            .unwrap_or_default();
        lines += &format!(
            "  {}: output {:?} is off by {:.1e}, {} times what {} arithmetic may be off by{why}\n",
            plain(&r.name),
            r.at,
            r.absolute,
            units::ratio(r.ratio),
            r.float
        );
    }
    if lines.is_empty() {
        return lines;
    }
    match &choice.decided.instead {
        Some((recipe, eps)) => {
            let eps = eps
                .map(|eps| format!(" with bn eps {}", small(eps)))
                .unwrap_or_default();
            lines += &format!("  the sample supports recipe {}{eps}\n", plain(recipe));
        }
        None => {
            lines += &format!(
                "  none of the {} that were tried is supported by the sample\n",
                plural(choice.decided.tried.len(), "recipe and eps pair")
            );
        }
    }
    lines
}

impl Evidence {
    /// That the sample does not support the plan, in a sentence.
    pub(super) fn why_not(&self) -> Option<String> {
        let differ = self.records.iter().filter(|r| !r.accepted).count();
        (!self.accepted).then(|| {
            format!(
                "{differ} of {} not as the network computed them",
                plural(self.records.len(), "recorded block")
            )
        })
    }

    /// What is wrong, a line each; nothing for a sample that supports the plan.
    pub(super) fn failures(&self) -> &str {
        &self.lines
    }

    /// What was compared and what it decided, in lines for the end of a text.
    pub(super) fn line(&self, plan: &Plan) -> String {
        let mut lines = output::line("sample", &self.compared());
        let mut chosen = Vec::new();
        if self.recipe_decided {
            chosen.push(format!("recipe {}", plain(plan.recipe())));
        }
        if let Some(eps) = plan.eps().filter(|_| self.bn_eps_decided) {
            chosen.push(format!("bn eps {}", small(eps)));
        }
        if !chosen.is_empty() && self.accepted {
            lines += &output::line("", &format!("it decided: {}", chosen.join(", ")));
        }
        if !self.bn_eps_also.is_empty() {
            let also: Vec<String> = self.bn_eps_also.iter().map(|eps| small(*eps)).collect();
            lines += &output::line(
                "",
                &format!("it does not rule out bn eps {}", also.join(", ")),
            );
        }
        lines
    }

    /// Which blocks were compared, and how well they fit.
    fn compared(&self) -> String {
        let fit = self.records.iter().filter(|r| r.accepted).count();
        let blocks = plural(self.records.len(), "recorded block");
        let mut activations: Vec<&str> =
            self.records.iter().map(|r| r.activation.as_str()).collect();
        activations.sort_unstable();
        activations.dedup();
        let mut text = match fit == self.records.len() {
            true => format!(
                "{blocks} as the network computed them, worst error {} × the bound for arithmetic",
                self.worst_ratio
                    .map_or_else(|| "–".to_owned(), units::ratio)
            ),
            false => format!("{fit} of {blocks} as the network computed them"),
        };
        text += &format!(", activation {}", activations.join(", "));
        let mut after: Vec<String> = self
            .records
            .iter()
            .filter_map(|r| r.after.as_deref().map(plain))
            .collect();
        after.sort_unstable();
        after.dedup();
        if let Some(first) = after.first() {
            let more = match after.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            text += &format!(", behind the norm {first}{more}");
        }
        let inside = self
            .records
            .iter()
            .filter(|r| r.compared < r.recorded)
            .count();
        if inside > 0 {
            text += &format!("; {inside} without their borders");
        }
        if !self.ignored.is_empty() {
            let names: Vec<String> = self.ignored.iter().map(|i| plain(&i.name)).collect();
            text += &format!("; not compared: {}", names.join(", "));
        }
        text
    }
}
