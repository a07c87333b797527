//! A verdict in text: the answer first; of a file that fails, what is wrong with it.

use super::families;
use super::inspect::times;
use super::output::{self, Cut, plural};
use super::runs::runs;
use super::sample::Evidence;
use super::whole::{self, Findings};
use crate::fuse::diagnose::EpsSensitivity;
use crate::plan::Plan;
use crate::summary::order::FileOrder;
use crate::summary::units;
use crate::tensor::plain;
use crate::verify::shown::{list, worse};
use crate::verify::{Allowance, BlockVerdict, Failure, Verdict};

/// What a verdict is told by.
pub(super) struct Told<'a> {
    pub plan: &'a Plan,
    pub weights: &'a [EpsSensitivity],
    pub verdict: &'a Verdict,
    pub findings: &'a Findings,
    pub sample: Option<&'a Evidence>,
    /// Why the second file cannot be a deploy form at all, where that is known.
    pub no_deploy_form: Option<&'a str>,
    /// How the names of the deploy form differ from the expected ones.
    pub names: Option<&'a str>,
    pub order: &'a FileOrder,
    /// One row for each conv and every failure.
    pub all: bool,
}

/// Rows and lines that are shown without `--all`.
const MOST_SHOWN: usize = 12;

impl Told<'_> {
    /// Whether everything that was compared agrees.
    pub(super) fn accepted(&self) -> bool {
        let supported = self.sample.is_none_or(|evidence| evidence.accepted);
        self.verdict.accepted() && self.findings.accepted() && supported
    }

    /// The whole verdict in a sentence, without colour: `NOT equivalent: 1 of 43 convs differs: …`.
    pub(super) fn sentence(&self) -> String {
        match self.accepted() {
            true => format!("equivalent: {}", self.passed()),
            false => format!("NOT equivalent: {}", self.failed()),
        }
    }

    /// Everything that is printed.
    pub(super) fn text(&self) -> String {
        match self.accepted() {
            true => self.of_equal(),
            false => self.of_different(),
        }
    }

    fn of_equal(&self) -> String {
        let shown: Vec<&BlockVerdict> = self.verdict.blocks.iter().collect();
        let mut text = self.table(&shown, !self.all);
        text += &whole::text(self.findings);
        let sentence = format!("{}: {}", output::good("equivalent"), self.passed());
        text += &format!("\n{}\n", output::wrapped(&sentence, 0, output::width()));
        text + &self.lines(&shown)
    }

    fn of_different(&self) -> String {
        // The first line is one line, however long it is.
        let mut text = format!("{}: {}\n", output::bad("NOT equivalent"), self.failed());
        let another = self.no_deploy_form.is_some() || self.verdict.is_of_another_network();
        let blocks = self.verdict.blocks.iter();
        let shown: Vec<&BlockVerdict> = match (self.all, another) {
            (true, _) => blocks.collect(),
            (false, true) => Vec::new(),
            (false, false) => blocks.filter(|b| !b.accepted).collect(),
        };
        if !shown.is_empty() {
            text += &format!("\n{}", self.table(&shown, false));
        }
        if self.all || !another {
            text += &self.reasons();
        }
        text += &whole::text(self.findings);
        text += self.sample.map_or("", Evidence::failures);
        text + "\n" + &self.lines(&shown)
    }

    /// What stands behind `equivalent: `.
    fn passed(&self) -> String {
        let verdict = self.verdict;
        let bound = match verdict.allowance {
            Allowance::OneRounding => "the rounding bound",
            Allowance::Arithmetic => {
                "the bound for arithmetic in the stored type (repfuse did not write this file)"
            }
        };
        let rounded = match verdict.rounded {
            0 => String::new(),
            n => format!(
                ", {} rounded once to the file's type",
                plural(n, "copied tensor")
            ),
        };
        let unfused = match verdict.unfused {
            0 => String::new(),
            1 => ", 1 training tensor is still in the file".to_owned(),
            n => format!(", {n} training tensors are still in the file"),
        };
        format!(
            "{}, worst error {} × {bound}, {} copied{rounded}{unfused}",
            plural(verdict.blocks.len(), "conv"),
            units::ratio(verdict.worst_ratio()),
            plural(verdict.copied, "tensor")
        )
    }

    /// What stands behind `NOT equivalent: `.
    fn failed(&self) -> String {
        let mut parts: Vec<String> = match self.no_deploy_form {
            Some(why) => vec![why.to_owned()],
            None => self.verdict.why_not().into_iter().collect(),
        };
        parts.extend(self.findings.why_not());
        parts.extend(self.sample.and_then(Evidence::why_not));
        plain(&parts.join("; "))
    }

    /// A row for each conv, or for a run of equal ones.
    fn table(&self, blocks: &[&BlockVerdict], join: bool) -> String {
        let things = blocks.iter().map(|b| (b.module.as_str(), *b)).collect();
        let key = |b: &&BlockVerdict| (b.expression.clone(), b.accepted);
        let found = runs(things, self.order, key, join);
        let header = ["", "conv", "", "ratio", "worst", "expression"];
        let mut rows = vec![header.map(output::soft).to_vec()];
        let most = match self.all || self.accepted() {
            true => found.len(),
            false => MOST_SHOWN,
        };
        for (name, members) in found.iter().take(most) {
            rows.push(row(name, members));
        }
        // Where no row stands for several, none says so.
        let counted = !output::without_empty(&mut rows, 2);
        let names = 1;
        let last = rows[0].len() - 1;
        let cut = [(names, Cut::Middle), (last, Cut::End)];
        let right = [last - 3, last - 2, last - 1];
        let right = if counted { &right[..] } else { &right[1..] };
        let mut text = output::table(&rows, right, &cut, output::table_width(self.all));
        if found.len() > most {
            text += &format!(
                "      and {}; --all shows them\n",
                plural(found.len() - most, "more conv")
            );
        }
        text
    }

    /// What is wrong, a line each, where the first line does not say it all.
    fn reasons(&self) -> String {
        let mut failed: Vec<&BlockVerdict> =
            self.verdict.blocks.iter().filter(|b| !b.accepted).collect();
        failed.sort_by(|a, b| self.order.compare(&a.module, &b.module));
        let mut lines: Vec<String> = failed.iter().filter_map(|b| b.why_not()).collect();
        let others = self.verdict.other_failures();
        let most = if self.all { usize::MAX } else { MOST_SHOWN };
        lines.extend(failure_lines(&others, most));
        if lines.len() < 2 && failed.len() + others.len() < 2 {
            return String::new();
        }
        let more = lines.len().saturating_sub(most);
        let mut text = String::from("\n");
        for line in lines.iter().take(most) {
            text += &format!("  {}\n", plain(line));
        }
        if more > 0 {
            text += &format!("  and {more} more; --all shows them\n");
        }
        text
    }

    /// What stands at the end: what was verified by what, and what the columns mean.
    fn lines(&self, shown: &[&BlockVerdict]) -> String {
        let mut text = families::lines(self.plan);
        text += &self
            .names
            .map_or(String::new(), |names| output::line("names", names));
        if let Some(types) = other_types(self.verdict) {
            text += &output::line("types", &types);
        }
        text += &families::eps_lines(self.plan, self.weights);
        if let Some(evidence) = self.sample {
            text += &evidence.line(self.plan);
        }
        if shown.iter().any(|b| b.failure.is_none()) {
            text += &output::line(
                "ratio",
                "the error over the rounding bound; above 1 it fails",
            );
            text += &output::line("worst", "the largest error of an output for inputs up to 1");
        }
        let expressions: Vec<String> = shown.iter().map(|b| b.expression.clone()).collect();
        text + &output::legend(&expressions, self.plan.assumes_identities())
    }
}

/// What is wrong with what is not fused: names in lists, and a line for each difference.
fn failure_lines(failures: &[&Failure], most: usize) -> Vec<String> {
    let (mut missing, mut left_over, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for failure in failures {
        match failure {
            Failure::Missing(name) => missing.push(name.as_str()),
            Failure::LeftOver(name) => left_over.push(name.as_str()),
            Failure::Differs(text) => lines.push(text.clone()),
        }
    }
    for (names, what) in [(missing, "missing"), (left_over, "left over")] {
        if !names.is_empty() {
            lines.push(format!("{what}: {}", list(&names, most)));
        }
    }
    lines
}

/// The row of convs with the same expression and outcome.
fn row(name: &str, members: &[&BlockVerdict]) -> Vec<String> {
    let worst = |of: fn(&BlockVerdict) -> f64| members.iter().map(|b| of(b)).fold(0.0, worse);
    let (ratio, absolute) = (worst(|b| b.ratio), worst(|b| b.absolute));
    let first = members[0];
    vec![
        match first.accepted {
            true => output::good("ok"),
            false => output::bad("FAIL"),
        },
        plain(name),
        times(members.len()),
        units::ratio(ratio),
        match absolute.is_finite() {
            true => format!("{absolute:.1e}"),
            false => units::ratio(absolute),
        },
        first.expression.clone(),
    ]
}

/// In which types convs are stored, where they are not those of the training form: what rounding allows depends on them.
fn other_types(verdict: &Verdict) -> Option<String> {
    let types = verdict.blocks.iter().filter_map(|b| b.types);
    let other: std::collections::BTreeSet<String> = types
        .filter(|[trained, stored]| trained != stored)
        .map(|[trained, stored]| format!("{stored}, trained as {trained}"))
        .collect();
    let other: Vec<String> = other.into_iter().collect();
    (!other.is_empty()).then(|| format!("convs are {}", other.join("; convs are ")))
}
