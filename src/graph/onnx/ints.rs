//! Whole numbers that a graph computes of constants alone: paddings, sizes and bounds, as exporters write them.

use super::dims::{axis_of, first_axes, known, squeezed, taken, unsqueezed};
use super::proto::{Attribute, Data, Node};
use super::reading::{Ints, MOST_INTS, Reading};

/// What a node computes, if it is a few whole numbers that follow from constants.
pub(super) fn computed(reading: &Reading<'_>, node: &Node) -> Option<Ints> {
    let of = |index: usize| reading.whole(node.inputs.get(index).copied().flatten()?);
    let list = |index: usize, key: &str| match (node.inputs.get(index), node.attributes.get(key)) {
        (Some(Some(_)), _) => Some(of(index)?.numbers),
        (_, Some(Attribute::Ints(ints))) => Some(ints.clone()),
        _ => None,
    };
    let ints = match &*node.op {
        "Shape" => {
            let name = node.inputs.first().copied().flatten();
            let shape = match (reading.constant(name), reading.whole(name?)) {
                (Some(tensor), _) => tensor.shape().to_vec(),
                (None, Some(ints)) => ints.shape,
                (None, None) => {
                    let id = reading.value(node, 0)?;
                    known(reading.values.values[id.0].shape.as_ref()?)?
                }
            };
            let shape = part_of_shape(reading, node, &shape)?;
            let numbers = shape.iter().map(|n| i64::try_from(*n).ok());
            Ints {
                shape: vec![shape.len()],
                numbers: numbers.collect::<Option<_>>()?,
            }
        }
        "Expand" => expanded(of(0)?, &of(1)?.numbers)?,
        "ReduceProd" => {
            let ints = of(0)?;
            let axes = reading.list_or(node, 1, "axes", Vec::new)?;
            let noop = reading.attribute_int(node, "noop_with_empty_axes", 0) != 0;
            if ints.shape.len() != 1 || axes.is_empty() && noop {
                return None;
            }
            let product = (ints.numbers.iter()).try_fold(1i64, |n, m| n.checked_mul(*m))?;
            let keep = reading.attribute_int(node, "keepdims", 1) != 0;
            Ints {
                shape: if keep { vec![1] } else { Vec::new() },
                numbers: vec![product],
            }
        }
        "ConstantOfShape" => {
            let shape = sizes(&of(0)?.numbers)?;
            let count = volume(&shape)?;
            let numbers = vec![filling(node)?; count];
            Ints { shape, numbers }
        }
        "Identity" => of(0)?,
        "Cast" => match node.attributes.get("to") {
            Some(Attribute::Int(7)) => of(0)?,
            Some(Attribute::Int(6)) => each(of(0)?, |n| i32::try_from(n).ok().map(i64::from))?,
            _ => return None,
        },
        "Neg" => each(of(0)?, |n| n.checked_neg())?,
        "Add" => pairs(of(0)?, of(1)?, i64::checked_add)?,
        "Sub" => pairs(of(0)?, of(1)?, i64::checked_sub)?,
        "Mul" => pairs(of(0)?, of(1)?, i64::checked_mul)?,
        "Div" => pairs(of(0)?, of(1)?, i64::checked_div)?,
        // True is one.
        "Equal" => pairs(of(0)?, of(1)?, |a, b| Some((a == b).into()))?,
        "Where" => {
            let (chosen, a, b) = (of(0)?, of(1)?, of(2)?);
            let fits = chosen.shape == a.shape && a.shape == b.shape;
            let all = chosen.numbers.iter().zip(a.numbers.iter().zip(&b.numbers));
            let numbers = all.map(|(chosen, (a, b))| if *chosen == 0 { *b } else { *a });
            fits.then(|| Ints {
                shape: a.shape.clone(),
                numbers: numbers.collect(),
            })?
        }
        "Concat" => {
            let parts: Option<Vec<Ints>> = (0..node.inputs.len()).map(of).collect();
            joined(parts?, reading.attribute_int(node, "axis", 0))?
        }
        "Reshape" => reshaped(of(0)?, &of(1)?.numbers)?,
        "Unsqueeze" => {
            let ints = of(0)?;
            let shape = unsqueezed(&ints.shape, &list(1, "axes")?)?;
            Ints { shape, ..ints }
        }
        "Squeeze" => {
            let ints = of(0)?;
            let shape = squeezed(&ints.shape, &list(1, "axes")?)?;
            Ints { shape, ..ints }
        }
        "Transpose" => turned(&of(0)?, node.attributes.get("perm"))?,
        "Gather" if reading.attribute_int(node, "axis", 0) == 0 => gathered(&of(0)?, &of(1)?)?,
        "Slice" => {
            let ints = of(0)?;
            let (starts, ends) = (list(1, "starts")?, list(2, "ends")?);
            let axes = reading.list_or(node, 3, "axes", || first_axes(starts.len()))?;
            let steps = reading.list_or(node, 4, "steps", || vec![1; starts.len()])?;
            cut(ints, &starts, &ends, &axes, &steps)?
        }
        _ => return None,
    };
    (ints.numbers.len() <= MOST_INTS && volume(&ints.shape) == Some(ints.numbers.len()))
        .then_some(ints)
}

fn volume(shape: &[usize]) -> Option<usize> {
    let volume = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    (volume <= MOST_INTS).then_some(volume)
}

fn sizes(numbers: &[i64]) -> Option<Vec<usize>> {
    numbers.iter().map(|n| usize::try_from(*n).ok()).collect()
}

/// The number that `ConstantOfShape` repeats, where it is a whole one.
fn filling(node: &Node) -> Option<i64> {
    let Some(Attribute::Tensor(tensor, bytes)) = node.attributes.get("value") else {
        return None;
    };
    match (tensor.kind, &tensor.data, bytes) {
        (6 | 7, Data::Numbers(numbers), _) => match numbers[..] {
            [number] => Some(number),
            _ => None,
        },
        (7, Data::InFile(_), Some(bytes)) => Some(i64::from_le_bytes(bytes[..].try_into().ok()?)),
        (6, Data::InFile(_), Some(bytes)) => {
            Some(i32::from_le_bytes(bytes[..].try_into().ok()?).into())
        }
        _ => None,
    }
}

fn each(ints: Ints, f: impl Fn(i64) -> Option<i64>) -> Option<Ints> {
    let numbers = ints.numbers.iter().map(|n| f(*n)).collect::<Option<_>>()?;
    Some(Ints { numbers, ..ints })
}

/// Two lists number by number; one alone goes with each.
fn pairs(a: Ints, b: Ints, f: impl Fn(i64, i64) -> Option<i64>) -> Option<Ints> {
    match (&a.numbers[..], &b.numbers[..]) {
        (_, &[one]) if b.shape.len() <= a.shape.len() => each(a, |n| f(n, one)),
        (&[one], _) if a.shape.len() <= b.shape.len() => each(b, |n| f(one, n)),
        (x, y) if a.shape == b.shape => {
            let both = x.iter().zip(y).map(|(x, y)| f(*x, *y));
            let numbers = both.collect::<Option<_>>()?;
            Some(Ints {
                shape: a.shape,
                numbers,
            })
        }
        _ => None,
    }
}

/// Lists one behind the other; tables only along their first axis.
fn joined(parts: Vec<Ints>, axis: i64) -> Option<Ints> {
    let mut parts = parts.into_iter();
    let mut all = parts.next()?;
    if axis_of(axis, all.shape.len())? != 0 {
        return None;
    }
    for part in parts {
        if part.shape.get(1..)? != all.shape.get(1..)? {
            return None;
        }
        all.shape[0] = all.shape[0].checked_add(part.shape[0])?;
        all.numbers.extend(part.numbers);
        if all.numbers.len() > MOST_INTS {
            return None;
        }
    }
    Some(all)
}

fn reshaped(ints: Ints, wanted: &[i64]) -> Option<Ints> {
    if wanted.contains(&0) {
        return None;
    }
    let told = sizes(
        &wanted
            .iter()
            .copied()
            .filter(|n| *n != -1)
            .collect::<Vec<_>>(),
    )?;
    let rest = volume(&told)?;
    let left = ints.numbers.len().checked_div(rest)?;
    let shape = wanted.iter().map(|n| {
        if *n == -1 {
            Some(left)
        } else {
            usize::try_from(*n).ok()
        }
    });
    let shape: Vec<usize> = shape.collect::<Option<_>>()?;
    (volume(&shape)? == ints.numbers.len()).then_some(Ints { shape, ..ints })
}

/// The dimensions that a node asks for, as `Shape` says it.
pub(super) fn part_of_shape<T: Clone>(
    reading: &Reading<'_>,
    node: &Node,
    shape: &[T],
) -> Option<Vec<T>> {
    let rank = i64::try_from(shape.len()).ok()?;
    let bound = |axis: i64| {
        let axis = if axis < 0 {
            axis.saturating_add(rank)
        } else {
            axis
        };
        usize::try_from(axis.clamp(0, rank)).ok()
    };
    let start = bound(reading.attribute_int(node, "start", 0))?;
    let end = bound(reading.attribute_int(node, "end", rank))?;
    Some(shape.get(start..end)?.to_vec())
}

/// Numbers that stay as they are, or one that is repeated.
fn expanded(ints: Ints, wanted: &[i64]) -> Option<Ints> {
    if wanted.len() <= ints.shape.len() && wanted.iter().all(|n| *n == 1) {
        return Some(ints);
    }
    let (&[number], true) = (&ints.numbers[..], wanted.len() >= ints.shape.len()) else {
        return None;
    };
    let shape = sizes(wanted)?;
    let count = volume(&shape)?;
    Some(Ints {
        shape,
        numbers: vec![number; count],
    })
}

/// A table with its two axes exchanged.
fn turned(ints: &Ints, order: Option<&Attribute>) -> Option<Ints> {
    let &[rows, columns] = &ints.shape[..] else {
        return None;
    };
    match order {
        None => {}
        Some(Attribute::Ints(order)) if order[..] == [1, 0] => {}
        Some(_) => return None,
    }
    let at = |i: usize| ints.numbers[i % rows * columns + i / rows];
    Some(Ints {
        shape: vec![columns, rows],
        numbers: (0..rows * columns).map(at).collect(),
    })
}

fn gathered(ints: &Ints, at: &Ints) -> Option<Ints> {
    let &[len] = &ints.shape[..] else {
        return None;
    };
    let numbers = at
        .numbers
        .iter()
        .map(|i| Some(ints.numbers[axis_of(*i, len)?]));
    Some(Ints {
        shape: at.shape.clone(),
        numbers: numbers.collect::<Option<_>>()?,
    })
}

fn cut(ints: Ints, starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]) -> Option<Ints> {
    let (&[start], &[end], &[axis], &[step]) = (starts, ends, axes, steps) else {
        return None;
    };
    if axis_of(axis, ints.shape.len())? != 0 {
        return None;
    }
    let taken = taken(ints.shape[0], start, end, step)?;
    let row: usize = ints.shape[1..].iter().product();
    let mut shape = ints.shape.clone();
    shape[0] = taken.len();
    let numbers = taken
        .iter()
        .flat_map(|i| &ints.numbers[i * row..(i + 1) * row])
        .copied()
        .collect();
    Some(Ints { shape, numbers })
}
