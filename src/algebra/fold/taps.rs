//! Arithmetic on the taps of kernels: adding in the middle, spreading, seeing through windows.

use crate::algebra::extent::{Extent, Margins, flat, grown, position, volume};

/// Puts zeros between the taps of a dilated kernel.
pub(super) fn spread<'a>(
    weight: &[f64],
    taps: Extent,
    extent: Extent,
    dilation: Extent,
    out: &'a mut Vec<f64>,
) -> &'a [f64] {
    let (count, area) = (volume(taps), volume(extent));
    out.clear();
    out.resize(weight.len() / count * area, 0.0);
    for (kernel, map) in weight.chunks_exact(count).zip(out.chunks_exact_mut(area)) {
        for (i, w) in kernel.iter().enumerate() {
            let at = position(i, taps);
            map[flat([0, 1, 2].map(|axis| at[axis] * dilation[axis]), extent)] = *w;
        }
    }
    out
}

/// What stands behind a kernel and maps every channel by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Window {
    /// The mean over so many positions.
    Mean(Extent),
    /// The one position that the margins leave.
    Crop(Margins),
}

impl Window {
    fn extent(&self) -> Extent {
        match self {
            Window::Mean(extent) => *extent,
            Window::Crop(margins) => margins.extent(),
        }
    }

    /// How many positions count. All have the same factor.
    fn count(&self) -> usize {
        match self {
            Window::Mean(extent) => volume(*extent),
            Window::Crop(_) => 1,
        }
    }

    /// The position that counts as the one of this number.
    fn position(&self, number: usize) -> Extent {
        match self {
            Window::Mean(extent) => position(number, *extent),
            Window::Crop(margins) => margins.before,
        }
    }
}

/// Sees a kernel through each window in turn; it grows by the window's extent less one.
pub(super) fn seen_through<'a>(
    taps: &'a [f64],
    extent: Extent,
    windows: &[Window],
    buffers: &'a mut [Vec<f64>; 2],
) -> (&'a [f64], Extent) {
    if windows.is_empty() {
        return (taps, extent);
    }
    let [result, next] = buffers;
    result.clear();
    result.extend_from_slice(taps);
    let mut extent = extent;
    for window in windows {
        let to = grown(extent, window.extent());
        let weight = 1.0 / window.count() as f64;
        next.clear();
        next.resize(result.len() / volume(extent) * volume(to), 0.0);
        for (kernel, map) in result
            .chunks_exact(volume(extent))
            .zip(next.chunks_exact_mut(volume(to)))
        {
            for i in 0..window.count() {
                let at = flat(window.position(i), to);
                add_at(kernel, extent, weight, &mut map[at..], to);
            }
        }
        std::mem::swap(result, next);
        extent = to;
    }
    (result, extent)
}

/// Adds `scale · taps` to the middle of a larger kernel, from input channel `channel` on.
pub(super) fn add_centred(
    taps: &[f64],
    extent: Extent,
    channel: usize,
    scale: f64,
    out: &mut [f64],
    into: Extent,
) {
    let area = volume(into);
    let out = &mut out[channel * area..];
    if extent == into {
        add_scaled(taps, scale, out);
        return;
    }
    let middle = [0, 1, 2].map(|axis| (into[axis] - extent[axis]) / 2);
    let at = flat(middle, into);
    if extent == [1, 1, 1] {
        let middles = out[at..].iter_mut().step_by(area);
        middles.zip(taps).for_each(|(o, w)| *o += scale * w);
        return;
    }
    for (map, kernel) in out
        .chunks_exact_mut(area)
        .zip(taps.chunks_exact(volume(extent)))
    {
        add_at(kernel, extent, scale, &mut map[at..], into);
    }
}

/// What adding to zeros gives, which makes a −0 a +0.
pub(super) fn set_scaled(from: &[f64], scale: f64, to: &mut [f64]) {
    from.iter().zip(to).for_each(|(w, o)| *o = 0.0 + scale * w);
}

pub(super) fn add_scaled(from: &[f64], scale: f64, to: &mut [f64]) {
    from.iter().zip(to).for_each(|(w, o)| *o += scale * w);
}

/// Adds `scale` times a map of this extent to the corner of one of the extent `into`, which may be cut off behind it.
pub(super) fn add_at(from: &[f64], extent: Extent, scale: f64, to: &mut [f64], into: Extent) {
    let ([_, h, w], [_, height, width]) = (extent, into);
    if w == width && (h == height || extent[0] == 1) {
        add_scaled(from, scale, to);
        return;
    }
    let planes = to.chunks_mut(height * width);
    for (from, to) in from.chunks_exact(h * w).zip(planes) {
        for (from, to) in from.chunks_exact(w).zip(to.chunks_mut(width)) {
            add_scaled(from, scale, to);
        }
    }
}
