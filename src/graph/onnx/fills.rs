//! Paddings that a graph fills side by side: `ScatterND` of rows into what a `Pad` has made, as exporters write `out[:, :, 0:1, :] = v`.

use super::grids::Grids;
use super::proto::{Attribute, Name, Node};
use super::reading::Reading;
use crate::graph::border::{Fills, Rows};
use crate::graph::constants::Budget;
use crate::graph::model::{self, Op, ValueId};

/// What is followed while the nodes of a graph are read.
#[derive(Debug, Default)]
pub(super) struct Following {
    pub fills: Fills,
    grids: Grids,
    budget: Budget,
}

impl Following {
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
        &self,
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
        let Some(ints) = reading.whole(indices) else {
            return self.grids.rows(indices, shape);
        };
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
