//! Paddings that a graph fills side by side: `ScatterND` of rows into what a `Pad` has made, as exporters write `out[:, :, 0:1, :] = v`.

use super::grids::Grids;
use super::proto::{Attribute, Name, Node};
use super::reading::{Ints, Reading};
use crate::graph::border::{Fills, Rows};
use crate::graph::constants::Budget;
use crate::graph::model::{self, Dim, Op, ValueId};

/// What is followed while the nodes of a graph are read.
#[derive(Debug, Default)]
pub(super) struct Following {
    pub fills: Fills,
    grids: Grids,
    budget: Budget,
}

impl Following {
    /// The rows of a value of this shape that a constant lists number by number, and their axis, as optimizers of graphs leave them.
    fn listed(
        &mut self,
        reading: &Reading<'_>,
        name: Name,
        shape: &[Dim],
    ) -> Option<(usize, Rows)> {
        let tensor = reading.constant(Some(name))?;
        let listed = tensor.shape().len() == shape.len() + 1;
        if !listed || !self.budget.allows(tensor.len()) {
            return None;
        }
        block(&reading.stored_ints(tensor)?, shape)
    }

    /// Follows what a node makes of a padding; `read` is the node, which will have the number `at`.
    ///
    /// # Errors
    /// Says why what it fills is no side of a padding.
    pub fn node(
        &mut self,
        reading: &Reading<'_>,
        node: &Node,
        (read, at): (&model::Node, usize),
    ) -> Result<(), String> {
        self.grids.follow(reading, node);
        let (Some(&from), &[to]) = (read.inputs.first(), &read.outputs[..]) else {
            return Ok(());
        };
        if node.op != "ScatterND" || !matches!(read.op, Op::Opaque(_)) || !reading.is_known(node) {
            self.fills.follow(&read.op, [from, to], at);
            return Ok(());
        }
        let &[Some(data), Some(indices), Some(numbers)] = &node.inputs[..] else {
            return Ok(());
        };
        let Some(from) = reading.values.numbers.get(&data).copied() else {
            return Ok(());
        };
        let Some(axes) = self.fills.axes(from) else {
            return Ok(());
        };
        let (axis, rows) = match self.rows(reading, node, (from, indices)) {
            Some((axis, rows)) => (axis, Some(rows)),
            None => (0, None),
        };
        let around = self.grids.around(reading, numbers, axes, &mut self.budget);
        self.fills.fill(from, (axis, rows), around, to, at)
    }

    /// The rows that a node replaces, and their axis.
    fn rows(
        &mut self,
        reading: &Reading<'_>,
        node: &Node,
        (from, indices): (ValueId, Name),
    ) -> Option<(usize, Rows)> {
        let replaces = match node.attributes.get("reduction") {
            None => true,
            Some(Attribute::Text(text)) => text == b"none",
            Some(_) => false,
        };
        if !replaces {
            return None;
        }
        let shape = reading.values.values[from.0].shape.as_ref()?;
        let whole = self.grids.rows(indices, shape);
        if let Some(found) = whole.or_else(|| self.listed(reading, indices, shape)) {
            return Some(found);
        }
        let ints = reading.whole(indices)?;
        // Whole rows, by the first axis.
        let [count, 1] = ints.shape[..] else {
            return None;
        };
        let first = *ints.numbers.first()?;
        let counted = (0..).zip(&ints.numbers);
        let follow = counted.fold(true, |all, (i, n)| all && first.checked_add(i) == Some(*n));
        let end = match ints.numbers.last()?.checked_add(1)? {
            0 => i64::MAX,
            end => end,
        };
        let len = shape.first()?.known();
        let fits = follow && count == ints.numbers.len();
        fits.then(|| Some((0, Rows::of(first, end, len)?)))?
    }
}

/// The rows of a shape that places `[.., rank]` make up, and their axis: every place of a block that is whole along all other axes.
fn block(places: &Ints, shape: &[Dim]) -> Option<(usize, Rows)> {
    let (rank, size) = (shape.len(), &places.shape[..shape.len()]);
    let lens: Vec<usize> = shape.iter().map(Dim::known).collect::<Option<_>>()?;
    if places.shape.last() != Some(&rank) || places.numbers.is_empty() {
        return None;
    }
    let from_front = |axis: usize, n: i64| match (n, i64::try_from(lens[axis])) {
        (..0, Ok(len)) => n.checked_add(len),
        _ => Some(n),
    };
    let start: Vec<i64> = (0..rank)
        .map(|axis| from_front(axis, places.numbers[axis]))
        .collect::<Option<_>>()?;
    let is_there = |(i, place): (usize, &[i64])| {
        let at = unravelled(i, size);
        let mut axes = at.iter().zip(place).enumerate();
        axes.all(|(axis, (at, n))| {
            let expected = i64::try_from(*at)
                .ok()
                .and_then(|at| start[axis].checked_add(at));
            expected.is_some() && from_front(axis, *n) == expected
        })
    };
    let in_order = places.numbers.chunks_exact(rank).enumerate().all(is_there);
    let mut parts = (0..rank).filter(|axis| size[*axis] != lens[*axis]);
    let (axis, None) = (parts.next()?, parts.next()) else {
        return None;
    };
    let others = (0..rank).filter(|other| *other != axis);
    let whole = others.into_iter().all(|other| start[other] == 0);
    let end = start[axis].checked_add(i64::try_from(size[axis]).ok()?)?;
    let rows = (in_order && whole).then(|| Rows::of(start[axis], end, Some(lens[axis])))?;
    Some((axis, rows?))
}

/// The place along each axis of what has this number in a shape.
fn unravelled(number: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = number;
    let mut at: Vec<usize> = shape
        .iter()
        .rev()
        .map(|n| {
            let place = rest % n;
            rest /= n;
            place
        })
        .collect();
    at.reverse();
    at
}
