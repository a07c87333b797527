//! The ratios of all convs as a bar chart with the bound drawn in.

use plotters::prelude::*;

use super::model::{Error, Report};

/// The colours of a chart are names: the style sheet finds them as attributes and gives each its colour by day and by night.
mod ink {
    use plotters::style::RGBColor;
    pub(super) const PASSES: RGBColor = RGBColor(0x2f, 0x6f, 0xd0);
    pub(super) const FAILS: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
    pub(super) const BOUND: RGBColor = RGBColor(0x20, 0x20, 0x20);
    pub(super) const RULE: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
    pub(super) const TEXT: RGBColor = RGBColor(0x66, 0x66, 0x66);
}

/// Bars higher than this many bounds are cut.
const HIGHEST: f64 = 2.0;

/// Room for at least this many bars.
const FEW: usize = 16;

/// Draws one bar for each conv, in the order of the report.
///
/// # Errors
/// When the plotting library refuses, which it has no reason to.
pub(super) fn ratios(report: &Report, [width, height]: [u32; 2]) -> Result<String, Error> {
    let mut svg = String::new();
    draw(report, &mut svg, [width, height]).map_err(|e| Error::Chart(e.to_string()))?;
    // The page sets the size; what is inside scales.
    let fixed = format!("width=\"{width}\" height=\"{height}\" ");
    Ok(svg.replacen(&fixed, "", 1))
}

fn draw(
    report: &Report,
    svg: &mut String,
    [width, height]: [u32; 2],
) -> Result<(), Box<dyn std::error::Error>> {
    let convs: Vec<_> = report.convs().collect();
    let bound = report.verified.tolerance;
    // What is no number is as bad as can be.
    let heights: Vec<f64> = convs
        .iter()
        .map(|c| c.ratio.unwrap_or(f64::INFINITY) / bound)
        .collect();
    let largest = heights.iter().copied().fold(0.0, f64::max);
    let top = (1.08 * largest).clamp(1.2, HIGHEST);
    // Few bars stand at the left rather than grow into walls.
    let places = convs.len().max(FEW) as f64;
    let root = SVGBackend::with_string(svg, (width, height)).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin_top(6)
        .margin_right(2)
        .margin_bottom(4)
        .y_label_area_size(38)
        .build_cartesian_2d(0.0..places, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .axis_style(TRANSPARENT)
        .y_labels(5)
        .y_label_formatter(&|y| format!("{y:.1}"))
        .y_label_style(("sans-serif", 13).into_font().color(&ink::TEXT))
        .light_line_style(TRANSPARENT)
        .bold_line_style(ink::RULE)
        .draw()?;
    // Coordinates are whole pixels: where a gap would be less than a few of them, it would come and go.
    let gap = if convs.len() > 60 { 0.0 } else { 0.13 };
    chart.draw_series(
        convs
            .iter()
            .zip(&heights)
            .enumerate()
            .map(|(i, (conv, y))| {
                let colour = if conv.accepted {
                    ink::PASSES
                } else {
                    ink::FAILS
                };
                let x = i as f64;
                Rectangle::new(
                    [(x + gap, 0.0), (x + 1.0 - gap, y.min(top))],
                    colour.filled(),
                )
            }),
    )?;
    let ends = [(0.0, 1.0), (places, 1.0)];
    let line = PathElement::new(ends, ink::BOUND.stroke_width(1));
    chart.draw_series(std::iter::once(line))?;
    root.present()?;
    Ok(())
}
