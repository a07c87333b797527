//! Dimensions and axes as ONNX counts them.

use crate::graph::model::Dim;

pub(super) type Shape = Vec<Dim>;

/// A dimension of a shape that a network is asked for: −1 stands for what is left over.
pub(super) fn dim_of(int: i64) -> Dim {
    usize::try_from(int).map_or(Dim::Any, Dim::Known)
}

/// All dimensions, if all are known.
pub(super) fn known(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(Dim::known).collect()
}

pub(super) fn product(shape: &[Dim]) -> Option<usize> {
    known(shape)?
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
}

/// What `shape` becomes when `wanted` is asked for: 0 keeps a dimension, and one that is not known is what is left over.
pub(super) fn reshaped(shape: &[Dim], wanted: &[Dim]) -> Option<Shape> {
    let mut out: Shape = Vec::with_capacity(wanted.len());
    for (i, dim) in wanted.iter().enumerate() {
        out.push(match dim {
            Dim::Known(0) => shape.get(i)?.clone(),
            dim => dim.clone(),
        });
    }
    let open: Vec<usize> = (0..out.len()).filter(|i| out[*i] == Dim::Any).collect();
    if let [at] = open[..] {
        let others: Shape = out
            .iter()
            .filter(|dim| **dim != Dim::Any)
            .cloned()
            .collect();
        if let (Some(all), Some(others)) = (product(shape), product(&others))
            && others > 0
            && all.is_multiple_of(others)
        {
            out[at] = Dim::Known(all / others);
        }
    }
    Some(out)
}

pub(super) fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 {
        axis.checked_add(rank as i64)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|axis| *axis < rank)
}

/// A shape with axes of one element put in.
pub(super) fn unsqueezed<T: Clone + From<One>>(shape: &[T], axes: &[i64]) -> Option<Vec<T>> {
    let rank = shape.len() + axes.len();
    let mut at = axes
        .iter()
        .map(|axis| axis_of(*axis, rank))
        .collect::<Option<Vec<_>>>()?;
    at.sort_unstable();
    at.dedup();
    if at.len() != axes.len() {
        return None;
    }
    let mut rest = shape.iter().cloned();
    (0..rank)
        .map(|i| {
            if at.contains(&i) {
                Some(T::from(One))
            } else {
                rest.next()
            }
        })
        .collect()
}

/// A shape without some axes, each of one element.
pub(super) fn squeezed<T: Clone>(shape: &[T], axes: &[i64]) -> Option<Vec<T>> {
    let at = axes
        .iter()
        .map(|axis| axis_of(*axis, shape.len()))
        .collect::<Option<Vec<_>>>()?;
    let kept = shape.iter().enumerate().filter(|(i, _)| !at.contains(i));
    Some(kept.map(|(_, dim)| dim.clone()).collect())
}

/// One element.
pub(super) struct One;

impl From<One> for usize {
    fn from(_: One) -> usize {
        1
    }
}

impl From<One> for Dim {
    fn from(_: One) -> Dim {
        Dim::Known(1)
    }
}

/// Paddings of some axes as paddings of all.
pub(super) fn on_axes(pads: &[i64], axes: &[i64], rank: usize) -> Option<Vec<i64>> {
    if pads.len() != 2 * axes.len() {
        return None;
    }
    let mut all = vec![0; 2 * rank];
    for (i, axis) in axes.iter().enumerate() {
        let axis = axis_of(*axis, rank)?;
        all[axis] = pads[i];
        all[rank + axis] = pads[axes.len() + i];
    }
    Some(all)
}

/// The axes that a slice cuts if it does not say which.
pub(super) fn first_axes(count: usize) -> Vec<i64> {
    (0..).take(count).collect()
}

/// The indices of an axis that a slice takes.
pub(super) fn taken(len: usize, start: i64, end: i64, step: i64) -> Option<Vec<usize>> {
    let size = i64::try_from(len).ok()?;
    let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
    let (mut at, end) = match step {
        1.. => (from_end(start).clamp(0, size), from_end(end).clamp(0, size)),
        ..=-1 => (
            from_end(start).clamp(-1, size - 1),
            from_end(end).clamp(-1, size - 1),
        ),
        0 => return None,
    };
    let mut taken = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        taken.push(usize::try_from(at).ok()?);
        at = at.checked_add(step)?;
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::taken;

    #[test]
    fn slices_take_what_onnx_says() {
        assert_eq!(taken(5, 1, -1, 2), Some(vec![1, 3]));
        assert_eq!(taken(4, -1, i64::MIN + 1, -1), Some(vec![3, 2, 1, 0]));
        assert_eq!(taken(4, 0, i64::MAX, 1), Some(vec![0, 1, 2, 3]));
        assert_eq!(taken(0, 0, 3, 1), Some(vec![]));
        assert_eq!(taken(0, -1, -9, -1), Some(vec![]));
        assert_eq!(taken(3, 0, 1, 0), None);
    }
}
