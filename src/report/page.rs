//! The report as one HTML page that needs no network.

use askama::Template;

use super::model::{Block, Conv, Error, Report};
use super::{chart, heat};
use crate::summary::cost::Change;
use crate::summary::kernels::Kernel;
use crate::summary::units;
use crate::tensor::plain;

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
    wide: String,
    narrow: String,
    ramp: String,
    cut: bool,
    blocks: Vec<Section<'a>>,
    version: &'static str,
}

/// A line of the table of totals.
struct Row {
    what: String,
    before: String,
    after: String,
    change: String,
}

struct Section<'a> {
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
    let page = Page {
        title: file_name(&report.input),
        from: plain(&report.input),
        to: report.output.as_deref().map(plain),
        totals: totals(report),
        eps: eps(report),
        wide: chart::ratios(report, [880, 190])?,
        narrow: chart::ratios(report, [360, 170])?,
        ramp: ramp(),
        cut: report
            .convs()
            .any(|c| c.ratio.is_none_or(|r| r > 2.0 * report.verified.tolerance)),
        blocks: report
            .blocks
            .iter()
            .map(|block| section(block, report))
            .collect(),
        version: env!("CARGO_PKG_VERSION"),
        report,
    };
    page.render().map_err(|e| Error::Page(e.to_string()))
}

impl Page<'_> {
    fn verdict(&self) -> String {
        let Some(worst) = self.report.verified.worst_ratio.map(units::ratio) else {
            return "there is a conv that cannot be compared".to_owned();
        };
        let against = match self.report.verified.allowance.as_str() {
            "one-rounding" => "rounding once allows",
            _ => "arithmetic in the stored type allows",
        };
        format!("worst difference {worst} of what {against}")
    }

    /// What the line in the chart stands for.
    fn bound(&self) -> String {
        let rounding = "u·(|K| ∗ |x| + |b|): what storing kernel and bias with unit roundoff u can change an output by";
        let times = match self.report.verified.tolerance {
            1.0 => String::new(),
            tolerance => format!("{tolerance} times "),
        };
        let more = match self.report.verified.allowance.as_str() {
            "one-rounding" => "",
            _ => {
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
    let name = std::path::Path::new(path).file_name().unwrap_or_default();
    plain(&name.to_string_lossy())
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
    let source = match eps.source.as_str() {
        "user" => "from --bn-eps".to_owned(),
        _ => format!("from recipe {}", plain(&report.recipe)),
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

fn section<'a>(block: &'a Block, report: &Report) -> Section<'a> {
    Section {
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

fn drawn<'a>(conv: &'a Conv, of: usize, report: &Report) -> Drawn<'a> {
    let all = || conv.branches.iter().chain(&conv.fused);
    let largest = all().flat_map(|k| &k.taps).copied().fold(0.0, f64::max);
    let frame = all()
        .map(|k| k.extent)
        .reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])]);
    let tile = |kernel: &Kernel| {
        let most = kernel.taps.iter().copied().fold(0.0, f64::max);
        let label = plain(&kernel.label);
        let described = format!("{label}: mean |w| up to {}", units::magnitude(most));
        let frame = frame.unwrap_or(kernel.extent);
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
    let ratio = conv.ratio.unwrap_or(f64::NAN);
    Drawn {
        module: (of > 1).then(|| plain(&conv.module)),
        height: heat::height(frame.unwrap_or([0, 0])),
        branches: conv.branches.iter().map(tile).collect(),
        fused: conv.fused.as_ref().map(|kernel| Tile {
            label: format!("{} {}", units::shape(&conv.weight_shape), conv.dtype),
            ..tile(kernel)
        }),
        macs: row("MACs per pixel", conv.macs_per_pixel, units::count),
        ratio: units::ratio(ratio),
        filled: (100.0 * (ratio / report.verified.tolerance).clamp(0.0, 1.25)).round(),
        largest: units::magnitude(largest),
        failure: conv.failure.as_deref().map(plain),
        conv,
    }
}

/// Text for an attribute of the SVG that is put into the page as it is.
fn escaped(text: &str) -> String {
    use askama::filters::{Html, escape};
    escape(text, Html)
        .map(|safe| safe.to_string())
        .unwrap_or_default()
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
