//! Arithmetic on the taps of kernels: adding in the middle, spreading, averaging.

/// Puts zeros between the taps of a dilated kernel.
pub(super) fn spread<'a>(
    weight: &[f64],
    kernel: [usize; 2],
    extent: [usize; 2],
    dilation: [usize; 2],
    out: &'a mut Vec<f64>,
) -> &'a [f64] {
    let (taps, area) = (kernel[0] * kernel[1], extent[0] * extent[1]);
    out.clear();
    out.resize(weight.len() / taps * area, 0.0);
    for (kernel_taps, map) in weight.chunks_exact(taps).zip(out.chunks_exact_mut(area)) {
        for (i, w) in kernel_taps.iter().enumerate() {
            map[i / kernel[1] * dilation[0] * extent[1] + i % kernel[1] * dilation[1]] = *w;
        }
    }
    out
}

/// Averages a kernel over each window in turn; it grows by the window's extent less one.
pub(super) fn blur<'a>(
    taps: &'a [f64],
    extent: [usize; 2],
    means: &[[usize; 2]],
    buffers: &'a mut [Vec<f64>; 2],
) -> (&'a [f64], [usize; 2]) {
    if means.is_empty() {
        return (taps, extent);
    }
    let [result, next] = buffers;
    result.clear();
    result.extend_from_slice(taps);
    let mut extent = extent;
    for window in means {
        let grown = [extent[0] + window[0] - 1, extent[1] + window[1] - 1];
        let weight = 1.0 / (window[0] * window[1]) as f64;
        next.clear();
        next.resize(
            result.len() / (extent[0] * extent[1]) * grown[0] * grown[1],
            0.0,
        );
        for (from, to) in result
            .chunks_exact(extent[0] * extent[1])
            .zip(next.chunks_exact_mut(grown[0] * grown[1]))
        {
            for y in 0..window[0] {
                for x in 0..window[1] {
                    add_at(
                        from,
                        extent[1],
                        weight,
                        &mut to[y * grown[1] + x..],
                        grown[1],
                    );
                }
            }
        }
        std::mem::swap(result, next);
        extent = grown;
    }
    (result, extent)
}

/// Adds `scale · taps` to the middle of a larger kernel, from input channel `channel` on.
pub(super) fn add_centred(
    taps: &[f64],
    extent: [usize; 2],
    channel: usize,
    scale: f64,
    out: &mut [f64],
    into: [usize; 2],
) {
    let area = into[0] * into[1];
    let out = &mut out[channel * area..];
    if extent == into {
        add_scaled(taps, scale, out);
        return;
    }
    let at = (into[0] - extent[0]) / 2 * into[1] + (into[1] - extent[1]) / 2;
    if extent == [1, 1] {
        let middles = out[at..].iter_mut().step_by(area);
        middles.zip(taps).for_each(|(o, w)| *o += scale * w);
        return;
    }
    for (map, kernel) in out
        .chunks_exact_mut(area)
        .zip(taps.chunks_exact(extent[0] * extent[1]))
    {
        add_at(kernel, extent[1], scale, &mut map[at..], into[1]);
    }
}

/// What adding to zeros gives, which makes a −0 a +0.
pub(super) fn set_scaled(from: &[f64], scale: f64, to: &mut [f64]) {
    from.iter().zip(to).for_each(|(w, o)| *o = 0.0 + scale * w);
}

pub(super) fn add_scaled(from: &[f64], scale: f64, to: &mut [f64]) {
    from.iter().zip(to).for_each(|(w, o)| *o += scale * w);
}

/// Adds `scale` times a map of rows of `width` to one whose rows are `stride` apart.
pub(super) fn add_at(from: &[f64], width: usize, scale: f64, to: &mut [f64], stride: usize) {
    if width == stride {
        to.iter_mut().zip(from).for_each(|(o, w)| *o += scale * w);
        return;
    }
    for (from, to) in from.chunks_exact(width).zip(to.chunks_mut(stride)) {
        add_scaled(from, scale, to);
    }
}
