//! The stored layout of a transposed conv.
//!
//! `[in, out/groups, kh, kw]` as it is stored is `[out, in/groups, kh, kw]` with its taps turned by 180° as a plain
//! conv over a map with zeros between the pixels. (ConvTranspose2d, PyTorch.)

use super::geometry::Geometry;

/// From rows `[out, in/groups, kh, kw]` to the stored `[in, out/groups, kh, kw]`.
pub fn to_stored(rows: &[f64], g: &Geometry) -> Vec<f64> {
    let mut stored = vec![0.0; rows.len()];
    for_each_kernel(g, |row, place| {
        let from = &rows[row..row + taps(g)];
        stored[place..place + taps(g)]
            .iter_mut()
            .rev()
            .zip(from)
            .for_each(|(to, w)| *to = *w);
    });
    stored
}

/// From the stored `[in, out/groups, kh, kw]` to rows `[out, in/groups, kh, kw]`.
pub fn from_stored(stored: &[f64], g: &Geometry) -> Vec<f64> {
    let mut rows = vec![0.0; stored.len()];
    for_each_kernel(g, |row, place| {
        let from = &stored[place..place + taps(g)];
        rows[row..row + taps(g)]
            .iter_mut()
            .rev()
            .zip(from)
            .for_each(|(to, w)| *to = *w);
    });
    rows
}

fn taps(g: &Geometry) -> usize {
    g.extent[0] * g.extent[1]
}

/// Calls `f` with the position of every kernel in the rows and in the stored layout.
fn for_each_kernel(g: &Geometry, mut f: impl FnMut(usize, usize)) {
    let (taps, per_group, out_per_group) = (taps(g), g.in_per_group(), g.out / g.groups.max(1));
    for o in 0..g.out {
        for i in 0..per_group {
            let input = g.first_input(o) + i;
            f(
                (o * per_group + i) * taps,
                (input * out_per_group + o % out_per_group) * taps,
            );
        }
    }
}
