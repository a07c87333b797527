//! One channel of the map, padded and separated into the phases of the stride.
//!
//! A plane holds `s_h · s_w` smaller planes: phase `(p, q)` has the padded positions `(p + s_h·i, q + s_w·j)`. Tap
//! `(u, v)` of output `(i, j)` reads padded position `(i·s_h + u·d_h, j·s_w + v·d_w)`, which is position
//! `(i + ⌊u·d_h / s_h⌋, j + ⌊v·d_w / s_w⌋)` of one phase. So a tap is a fixed offset, an output position another, and
//! their sum is where the value lies: as in a convolution of stride 1, whatever the stride and the dilation.

use super::PaddingMode;
use super::element::Element;
use super::plan::{Axis, Plan};

/// Where everything lies in a plane.
pub(super) struct Layout {
    /// Values in one plane.
    pub len: usize,
    /// The offset of each tap, row by row.
    pub taps: Vec<usize>,
    /// The distance between two output rows; neighbours in a row are 1 apart.
    pub pitch: usize,
    /// For each padded row that is not zero: its offset, and the row of the map it copies.
    rows: Vec<(usize, usize)>,
    /// The offset of each column of the map, and for each border column its offset and the column it copies.
    columns: Vec<usize>,
    border: Vec<(usize, usize)>,
    /// Whether the map's columns lie side by side, and whether the plane is the map itself.
    contiguous: bool,
    pub identity: bool,
}

impl Layout {
    pub(super) fn new(plan: &Plan, mode: PaddingMode) -> Self {
        let (rows, columns) = (&plan.rows, &plan.columns);
        let pitch = columns.phase_len();
        let phase = rows.phase_len() * pitch;
        let row =
            |at: usize| at % rows.stride * columns.phases() * phase + at / rows.stride * pitch;
        let column = |at: usize| at % columns.stride * phase + at / columns.stride;
        let inside = columns.before..columns.before + columns.input;
        Self {
            len: rows.phases() * columns.phases() * phase,
            taps: (0..rows.kernel * columns.kernel)
                .map(|tap| {
                    row(tap / columns.kernel * rows.dilation)
                        + column(tap % columns.kernel * columns.dilation)
                })
                .collect(),
            pitch,
            rows: sources(rows, mode)
                .map(|(at, source)| (row(at), source))
                .collect(),
            columns: inside.clone().map(column).collect(),
            border: sources(columns, mode)
                .filter(|(at, _)| !inside.contains(at))
                .map(|(at, source)| (column(at), source))
                .collect(),
            contiguous: columns.stride == 1,
            identity: [rows, columns]
                .iter()
                .all(|axis| axis.stride == 1 && axis.padded == axis.input),
        }
    }

    /// Writes one channel of the map into its plane, whose zero borders are there already.
    pub(super) fn fill<F: Element>(&self, map: &[F], plane: &mut [F]) {
        let width = self.columns.len();
        for &(at, source) in &self.rows {
            let values = &map[source * width..][..width];
            let row = &mut plane[at..];
            if self.contiguous {
                row[self.columns[0]..][..width].copy_from_slice(values);
            } else {
                for (&column, &value) in self.columns.iter().zip(values) {
                    row[column] = value;
                }
            }
            for &(column, source) in &self.border {
                row[column] = values[source];
            }
        }
    }
}

/// The padded positions that are not zero, each with the position of the map it copies.
fn sources(axis: &Axis, mode: PaddingMode) -> impl Iterator<Item = (usize, usize)> {
    (0..axis.padded).filter_map(move |at| Some((at, axis.source(at, mode)?)))
}
