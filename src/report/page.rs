//! The report as one HTML page that needs no network.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use askama::Template;

use super::model::{Block, Conv, Error, Report};
use super::{chart, heat};
use crate::plan::EpsSource;
use crate::summary::cost::Change;
use crate::summary::int8;
use crate::summary::kernels::Kernel;
use crate::summary::units;
use crate::tensor::plain;
use crate::verify::Allowance;

/// The page's template. Whatever it interpolates is escaped, unless it says `safe`: that is for SVG made here.
#[derive(Template)]
#[template(path = "report.html", config = "src/report/askama.toml")]
struct Page<'a> {
    report: &'a Report,
    title: String,
    from: String,
    to: Option<String>,
    totals: Vec<Row>,
    eps: Option<[String; 2]>,
    /// The chart, wide and narrow, where a conv fails.
    chart: Option<[String; 2]>,
    ramp: String,
    cut: bool,
    /// The parts of the network, where there are many blocks: a name, and the block that is the first.
    stages: Vec<(String, usize)>,
    failed: Vec<(usize, String, String)>,
    groups: Vec<Group<'a>>,
    version: &'static str,
}

/// A line of the table of totals.
struct Row {
    what: String,
    before: String,
    after: String,
    change: String,
}

/// Equal blocks: the first is shown, the others unfold.
struct Group<'a> {
    first: Section<'a>,
    others: Vec<Section<'a>>,
    /// Their names, in a line.
    names: String,
}

struct Section<'a> {
    /// Its place in the report, which links lead to.
    id: usize,
    name: String,
    block: &'a Block,
    convs: Vec<Drawn<'a>>,
    parameters: Row,
}

struct Drawn<'a> {
    conv: &'a Conv,
    /// Its module, where the block becomes several.
    module: Option<String>,
    /// Height of the heat maps, in pixels.
    height: usize,
    branches: Vec<Tile>,
    fused: Option<Tile>,
    macs: Row,
    ratio: String,
    /// How much of the bar's width is filled, in per cent; the bound is at 100.
    filled: f64,
    largest: String,
    /// Signal to noise of its weights in int8: per tensor, per channel, and whether an output channel loses much.
    int8: Option<(String, String, bool)>,
    failure: Option<String>,
}

struct Tile {
    label: String,
    svg: String,
}

/// Draws a report.
///
/// # Errors
/// When the plotting or the template library refuses, which they have no reason to.
pub fn page(report: &Report) -> Result<String, Error> {
    let failed = report.blocks.iter().enumerate().flat_map(|(id, block)| {
        block
            .convs
            .iter()
            .filter(|conv| !conv.accepted)
            .map(move |conv| {
                let why = conv.failure.as_deref().unwrap_or("it differs");
                (id, plain(&block.name), plain(why))
            })
    });
    let failed: Vec<_> = failed.collect();
    let page = Page {
        title: file_name(&report.input),
        from: plain(&report.input),
        to: report.output.as_deref().map(plain),
        totals: totals(report),
        eps: eps(report),
        chart: report
            .convs()
            .any(|conv| !conv.accepted)
            .then(|| [[880, 190], [360, 170]].map(|size| chart::ratios(report, size))),
        ramp: ramp(),
        cut: report.convs().any(|c| {
            c.ratio
                .is_none_or(|r| r > chart::HIGHEST * report.verified.tolerance)
        }),
        stages: stages(report),
        failed,
        groups: groups(report),
        version: env!("CARGO_PKG_VERSION"),
        report,
    };
    page.render().map_err(|e| Error::Page(e.to_string()))
}

/// Blocks that are looked for rather than seen at once.
const MANY: usize = 12;

/// The parts of a network by the beginnings of names: `stages.2` of `stages.2.blocks.1`, `stem` of `stem.0`.
fn stages(report: &Report) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    if report.blocks.len() <= MANY {
        return found;
    }
    for (id, block) in report.blocks.iter().enumerate() {
        let segments: Vec<&str> = block.name.split('.').collect();
        let is_number = |s: &&str| s.bytes().all(|b| b.is_ascii_digit());
        let inner = &segments[..segments.len() - 1];
        let end = match inner.iter().position(is_number) {
            Some(at) => at + 1,
            None => 1,
        };
        let stage = plain(&segments[..end].join("."));
        if found.iter().all(|(name, _)| *name != stage) {
            found.push((stage, id));
        }
    }
    found
}

/// Blocks that fail come first, each by itself; those that pass stand with their equals, in the order of the first.
fn groups(report: &Report) -> Vec<Group<'_>> {
    let key = |block: &Block| {
        let convs = block.convs.iter();
        let convs: Vec<_> = convs
            .map(|c| {
                (
                    c.expression.clone(),
                    c.weight_shape.clone(),
                    c.dtype.clone(),
                )
            })
            .collect();
        (convs, block.assumes_identity)
    };
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut by_key = HashMap::new();
    let (passing, failing): (Vec<_>, Vec<_>) = report
        .blocks
        .iter()
        .enumerate()
        .partition(|(_, block)| block.convs.iter().all(|conv| conv.accepted));
    let first = |section| Group {
        first: section,
        others: Vec::new(),
        names: String::new(),
    };
    for (id, block) in failing {
        groups.push(first(section(id, block, report)));
    }
    for (id, block) in passing {
        match by_key.entry(key(block)) {
            Entry::Vacant(place) => {
                place.insert(groups.len());
                groups.push(first(section(id, block, report)));
            }
            Entry::Occupied(place) => {
                let group = &mut groups[*place.get()];
                group.others.push(section(id, block, report));
            }
        }
    }
    for group in &mut groups {
        let names = group.others.iter().map(|section| section.name.as_str());
        group.names = names.take(NAMED).collect::<Vec<_>>().join(", ");
        if group.others.len() > NAMED {
            group.names += ", …";
        }
    }
    groups
}

/// Names of equal blocks that are shown before they are unfolded.
const NAMED: usize = 4;

impl Page<'_> {
    fn verdict(&self) -> String {
        let convs = units::plural(self.report.convs().count(), "conv");
        let limit = match self.report.verified.allowance {
            Allowance::OneRounding => "the rounding bound",
            Allowance::Arithmetic => "the bound for arithmetic in the stored type",
        };
        let failing = self.report.convs().filter(|conv| !conv.accepted).count();
        let worst = self.report.verified.worst_ratio.map(units::ratio);
        match (failing, worst) {
            (0, Some(worst)) => {
                format!("all {convs} pass; worst error: {worst} × {limit} (limit 1)")
            }
            (0, None) => format!("no error can be given for {convs}"),
            (_, Some(worst)) => {
                format!("{failing} of {convs} fail; worst error: {worst} × {limit} (limit 1)")
            }
            (_, None) => {
                format!("{failing} of {convs} fail; for one or more no error can be given")
            }
        }
    }

    /// What int8 would cost, in a sentence.
    fn int8(&self) -> String {
        let rounded: Vec<_> = self
            .report
            .convs()
            .filter_map(|conv| conv.int8.as_ref())
            .collect();
        int8::sentence(rounded.into_iter())
    }

    /// What the line in the chart stands for.
    fn bound(&self) -> String {
        let rounding = "u·(|K| ∗ |x| + |b|): what storing kernel and bias with unit roundoff u can change an output by";
        let times = match self.report.verified.tolerance {
            1.0 => String::new(),
            tolerance => format!("{tolerance} times "),
        };
        let more = match self.report.verified.allowance {
            Allowance::OneRounding => "",
            Allowance::Arithmetic => {
                ", and, since another program folded this file, what folding in the stored type can add to that"
            }
        };
        format!("The line at 1.0 is {times}the bound {rounding}{more}")
    }

    fn counts(&self) -> String {
        let convs = self.report.convs().count();
        let blocks = units::plural(self.report.blocks.len(), "block");
        format!(
            "{blocks} of {} → {}",
            plain(&self.report.recipe),
            units::plural(convs, "plain conv")
        )
    }
}

fn file_name(path: &str) -> String {
    // A path such as `..` has none, and stands for itself.
    let name = std::path::Path::new(path).file_name();
    plain(&name.map_or(path.into(), |name| name.to_string_lossy()))
}

fn row(what: &str, of: Change, show: fn(u64) -> String) -> Row {
    Row {
        what: what.to_owned(),
        before: show(of.before),
        after: show(of.after),
        change: units::change(of.before, of.after),
    }
}

fn totals(report: &Report) -> Vec<Row> {
    let mut rows = vec![
        row("tensors", report.tensors, |n| n.to_string()),
        row("parameters", report.parameters, units::count),
        row("bytes", report.bytes, units::bytes),
    ];
    if let Some(total) = report.macs.total {
        let size = report.macs.input_size;
        rows.push(row(
            &format!("multiply-adds at {size}×{size}"),
            total,
            units::count,
        ));
    }
    rows
}

/// Which eps, and what another would do.
fn eps(report: &Report) -> Option<[String; 2]> {
    let eps = report.eps.as_ref()?;
    let source = match eps.source {
        EpsSource::Recipe => format!("from recipe {}", plain(&report.recipe)),
        EpsSource::User => "as given".to_owned(),
        EpsSource::File => "from the file".to_owned(),
        EpsSource::Sample => "from the recorded sample".to_owned(),
        EpsSource::Host => "from the recipe of the whole network".to_owned(),
    };
    let mut weight = format!(
        "No file stores it. With {} instead, a batch norm’s scale would change by up to {} (in {}).",
        units::small(eps.other),
        units::share(eps.weight),
        plain(&eps.tensor)
    );
    if let Some(note) = &eps.note {
        weight += &format!(" Beware: {}.", plain(note));
    }
    Some([format!("{} {source}", units::small(eps.value)), weight])
}

fn section<'a>(id: usize, block: &'a Block, report: &Report) -> Section<'a> {
    Section {
        id,
        name: plain(&block.name),
        parameters: row("parameters", block.parameters, units::count),
        convs: block
            .convs
            .iter()
            .map(|conv| drawn(conv, block.convs.len(), report))
            .collect(),
        block,
    }
}

/// A branch without a conv is one on the identity: `x` is `identity`, and `bn` is `bn(identity)`.
fn named(label: &str) -> String {
    if label.contains('×') {
        return label.to_owned();
    }
    let open = label.trim_end_matches(')');
    let closed = &label[open.len()..];
    match open.strip_suffix('x') {
        Some(before) => format!("{before}identity{closed}"),
        None => format!("{open}(identity){closed}"),
    }
}

fn decibels(ratio: Option<f64>) -> String {
    match ratio {
        Some(ratio) => format!("{ratio:.0}"),
        None => "exact".to_owned(),
    }
}

/// How far a bar goes, in percent of the bound.
const FULL: f64 = 125.0;

fn drawn<'a>(conv: &'a Conv, of: usize, report: &Report) -> Drawn<'a> {
    let all = || conv.branches.iter().chain(&conv.fused);
    let largest = all().flat_map(|k| &k.taps).copied().fold(0.0, f64::max);
    // As large as the largest; of no kernels, nothing.
    let frame = all()
        .map(|k| k.extent)
        .fold([0, 0], |a, b| [a[0].max(b[0]), a[1].max(b[1])]);
    let tile = |kernel: &Kernel| {
        let most = kernel.taps.iter().copied().fold(0.0, f64::max);
        let label = named(&plain(&kernel.label));
        let described = format!("{label}: mean |w| up to {}", units::magnitude(most));
        Tile {
            svg: heat::svg(
                &kernel.taps,
                frame,
                kernel.extent,
                largest,
                &escaped(&described),
            ),
            label,
        }
    };
    Drawn {
        module: (of > 1).then(|| plain(&conv.module)),
        height: heat::height(frame),
        branches: conv.branches.iter().map(tile).collect(),
        fused: conv.fused.as_ref().map(|kernel| Tile {
            label: format!("{} {}", units::shape(&conv.weight_shape), conv.dtype),
            ..tile(kernel)
        }),
        macs: row("MACs per pixel", conv.macs_per_pixel, units::count),
        // Where there is no number, the bar is as full as it can be.
        ratio: conv.ratio.map_or_else(|| "–".to_owned(), units::ratio),
        filled: conv.ratio.map_or(FULL, |ratio| {
            (100.0 * (ratio / report.verified.tolerance).clamp(0.0, FULL / 100.0)).round()
        }),
        largest: units::magnitude(largest),
        int8: conv.int8.as_ref().map(|int8| {
            let [tensor, channel] = [int8.fused.per_tensor, int8.fused.per_channel];
            (decibels(tensor), decibels(channel), int8.loses_much())
        }),
        failure: conv.failure.as_deref().map(plain),
        conv,
    }
}

/// Text for an attribute of the SVG that is put into the page as it is.
fn escaped(text: &str) -> String {
    use askama::filters::{Html, escape};
    let Ok(safe) = escape(text, Html);
    safe.to_string()
}

/// Every shade side by side, for the legend.
fn ramp() -> String {
    let n = heat::SHADES;
    let mut svg = format!(
        "<svg class=\"heat ramp\" viewBox=\"0 0 {} 10\" width=\"{0}\" height=\"10\" aria-hidden=\"true\">",
        10 * n
    );
    for shade in 1..=n {
        svg += &format!(
            "<path class=\"q{shade}\" d=\"M{} 0h10v10h-10z\"/>",
            10 * (shade - 1)
        );
    }
    svg + "</svg>"
}
