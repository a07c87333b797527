//! A kernel as a heat map in SVG.
//!
//! A grid of squares needs no axis and no scale, and a 31×31 kernel has 961 of them: a plotting library writes an
//! element with a colour for each, ten times as much as this, in colours that a dark page cannot change. Here the squares of one shade are one
//! path, and the style sheet gives every shade its colour.

use std::fmt::Write as _;

/// Shades above zero.
pub(super) const SHADES: usize = 12;

/// The shade of a tap, from 0 for nothing to `shades` for the largest of its block, on a square-root scale: the small
/// taps far from the centre are what distinguishes large kernels. What is not a number gets the largest.
pub fn level(tap: f64, largest: f64, shades: usize) -> usize {
    if tap == 0.0 {
        return 0;
    }
    let part = (tap / largest).sqrt();
    if part.is_nan() {
        return shades;
    }
    ((part * shades as f64).ceil() as usize).clamp(1, shades)
}

/// Side of a square and the gap between two, in pixels, for a kernel of this extent.
fn cell(extent: [usize; 2]) -> [usize; 2] {
    match extent[0].max(extent[1]) {
        0..=3 => [34, 1],
        4..=5 => [22, 1],
        6..=7 => [16, 1],
        8..=11 => [10, 1],
        12..=17 => [7, 1],
        18..=31 => [4, 0],
        _ => [2, 0],
    }
}

/// The height of the heat map of a kernel of this extent, in pixels.
pub(super) fn height(extent: [usize; 2]) -> usize {
    let [side, gap] = cell(extent);
    (extent[0] * side).saturating_sub(gap)
}

/// Draws taps `[kh, kw]`, row by row. Only `own`, in the middle, is the kernel's; the rest of the frame is left empty.
pub(super) fn svg(
    taps: &[f64],
    extent: [usize; 2],
    own: [usize; 2],
    largest: f64,
    label: &str,
) -> String {
    let [side, gap] = cell(extent);
    let [height, width] = extent.map(|n| (n * side).saturating_sub(gap));
    let mut paths = vec![String::new(); SHADES + 1];
    for (y, row) in taps.chunks_exact(extent[1].max(1)).enumerate() {
        let shades: Vec<usize> = row.iter().map(|t| level(*t, largest, SHADES)).collect();
        let mut x = 0;
        while x < shades.len() {
            let shade = shades[x];
            let inside = within(y, extent[0], own[0]) && within(x, extent[1], own[1]);
            // Without a gap, neighbours of one shade are one rectangle.
            let same = |i: &usize| {
                gap == 0 && shades[*i] == shade && within(*i, extent[1], own[1]) == inside
            };
            let run = 1 + (x + 1..shades.len()).take_while(same).count();
            if inside {
                let _ = write!(
                    paths[shade],
                    "M{} {}h{}v{}h-{2}z",
                    x * side,
                    y * side,
                    run * side - gap,
                    side - gap
                );
            }
            x += run;
        }
    }
    let mut out = format!(
        "<svg class=\"heat\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{label}\">"
    );
    for (shade, path) in paths
        .iter()
        .enumerate()
        .filter(|(_, path)| !path.is_empty())
    {
        let _ = write!(out, "<path class=\"q{shade}\" d=\"{path}\"/>");
    }
    out + "</svg>"
}

/// Whether place `i` of `n` lies in the `own` ones in the middle.
fn within(i: usize, n: usize, own: usize) -> bool {
    let before = (n - own.min(n)) / 2;
    (before..before + own).contains(&i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_rise_with_the_root_and_nothing_is_zero_but_zero() {
        assert_eq!(level(0.0, 1.0, 12), 0);
        assert_eq!(level(1e-30, 1.0, 12), 1);
        assert_eq!(level(0.25, 1.0, 12), 6);
        assert_eq!(level(1.0, 1.0, 12), 12);
        assert_eq!(level(f64::NAN, 1.0, 12), 12);
        assert_eq!(level(0.0, 0.0, 12), 0);
    }

    #[test]
    fn a_branch_of_one_tap_is_one_square_in_the_middle() {
        let taps = [0., 0., 0., 0., 2., 0., 0., 0., 0.];
        let drawn = svg(&taps, [3, 3], [1, 1], 2.0, "bn");
        assert_eq!(
            drawn,
            "<svg class=\"heat\" viewBox=\"0 0 101 101\" width=\"101\" height=\"101\" role=\"img\" aria-label=\"bn\">\
             <path class=\"q12\" d=\"M34 34h33v33h-33z\"/></svg>"
        );
    }

    #[test]
    fn equal_neighbours_of_a_large_kernel_are_one_rectangle() {
        let drawn = svg(&[1.0; 31 * 31], [31, 31], [31, 31], 1.0, "31×31");
        assert_eq!(drawn.matches("h124v4h-124z").count(), 31);
        assert_eq!(drawn.matches('M').count(), 31);
    }
}
