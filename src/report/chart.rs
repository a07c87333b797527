//! The ratios of all convs as a bar chart with the bound drawn in.

use std::fmt::Write as _;

use super::model::Report;

/// Bars higher than this many bounds are cut.
pub(super) const HIGHEST: f64 = 2.0;

/// Room for at least this many bars.
const FEW: usize = 16;

/// The space left of the bars, for the numbers.
const LEFT: f64 = 34.0;

/// The space above and below them.
const EDGE: f64 = 8.0;

/// Draws one bar for each conv, in the order of the report. The style sheet gives the classes their colours.
pub(super) fn ratios(report: &Report, [width, height]: [u32; 2]) -> String {
    let bound = report.verified.tolerance;
    // What is no number is as bad as can be.
    let bars: Vec<(f64, bool)> = report
        .convs()
        .map(|c| (c.ratio.unwrap_or(f64::INFINITY) / bound, c.accepted))
        .collect();
    let largest = bars.iter().map(|(bar, _)| *bar).fold(0.0, f64::max);
    let top = (1.08 * largest).clamp(1.2, HIGHEST);
    // Few bars stand at the left rather than grow into walls.
    let step = (f64::from(width) - LEFT) / bars.len().max(FEW) as f64;
    let tall = f64::from(height) - 2.0 * EDGE;
    let y = |value: f64| EDGE + tall * (1.0 - value.min(top) / top);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"one bar for each conv\">"
    );
    for tick in [0.0, 0.5, 1.0, 1.5, 2.0] {
        if tick > top {
            continue;
        }
        let class = if tick == 1.0 { "bound" } else { "rule" };
        let at = y(tick);
        let _ = write!(
            svg,
            "<path class=\"{class}\" d=\"M{LEFT} {at:.1}H{width}\"/><text x=\"{:.0}\" y=\"{:.1}\">{tick:.1}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (i, (bar, accepted)) in bars.iter().enumerate() {
        let class = if *accepted { "passes" } else { "fails" };
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            LEFT + step * (i as f64 + 0.15),
            y(*bar),
            0.7 * step,
            y(0.0) - y(*bar)
        );
    }
    svg + "</svg>"
}
