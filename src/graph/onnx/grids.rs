//! Indices that count along axes, and constants in a larger shape, without a number of theirs: where an exporter's `ScatterND` writes.
//!
//! `out[:, :, 0:1, :] = v` becomes a table of the indices of every number that is replaced: a range for each axis, repeated along
//! the others, and these side by side. What counts is which part of its axis each range is.

use std::collections::HashMap;

use super::dims::axis_of;
use super::proto::{Attribute, Name, Node};
use super::reading::{MOST_INTS, Reading};
use crate::graph::border::{Around, Rows};
use crate::graph::constants::Budget;
use crate::graph::model::Dim;
use crate::tensor::Tensor;

/// Whole numbers, each one more than the one before, along an axis of a table that are the same along all others.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// The axes of the table.
    rank: usize,
    /// The one that it counts along.
    axis: usize,
    /// How far it was counted, from 0 on.
    len: Dim,
    /// What of that is there: all of it, or some rows.
    part: Option<Rows>,
    /// Whether the last axis of the table has been put there for others beside it.
    is_column: bool,
}

/// A constant that is broadcast to more axes, in another order.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    tensor: Tensor,
    /// Axis `i` is axis `order[i]` of the larger shape.
    order: Vec<usize>,
}

/// What is known of the tables of a graph.
#[derive(Debug, Default)]
pub(super) struct Grids {
    lines: HashMap<Name, Line>,
    /// Lines side by side, one for each of the first axes of what they point into.
    grids: HashMap<Name, Vec<Line>>,
    spread: HashMap<Name, Spread>,
}

impl Grids {
    /// Takes note of what a node makes.
    pub fn follow(&mut self, reading: &Reading<'_>, node: &Node) {
        let &[Some(output)] = &node.outputs[..] else {
            return;
        };
        if !reading.is_known(node) {
            return;
        }
        if let Some(line) = self.line(reading, node) {
            self.lines.insert(output, line);
        }
        if node.op == "Concat"
            && let Some(grid) = self.grid(reading, node)
        {
            self.grids.insert(output, grid);
        }
        if let Some(spread) = self.spread(reading, node) {
            self.spread.insert(output, spread);
        }
    }

    fn line(&self, reading: &Reading<'_>, node: &Node) -> Option<Line> {
        let name = |index: usize| node.inputs.get(index).copied().flatten();
        if node.op == "Range" {
            let is = |index: usize, number: i64| {
                let ints = reading.whole(name(index)?)?;
                Some(ints.numbers == [number])
            };
            let counts = is(0, 0)? && is(2, 1)?;
            return counts.then(|| {
                Some(Line {
                    rank: 1,
                    axis: 0,
                    len: length(reading, name(1)?)?,
                    part: None,
                    is_column: false,
                })
            })?;
        }
        let line = self.lines.get(&name(0)?)?;
        if line.is_column && node.op != "Identity" {
            return None;
        }
        Some(match &*node.op {
            "Identity" => line.clone(),
            "Cast" => match node.attributes.get("to") {
                Some(Attribute::Int(7)) => line.clone(),
                _ => return None,
            },
            "Slice" if line.rank == 1 && line.part.is_none() => Line {
                part: rows(reading, node, &line.len)?,
                ..line.clone()
            },
            // All other axes have one element.
            "Reshape" if line.rank == 1 => {
                let wanted = reading.ints(name(1)?)?;
                let axis = wanted.iter().position(|n| *n == -1)?;
                let others = wanted.iter().filter(|n| **n == 1).count();
                (others + 1 == wanted.len()).then(|| Line {
                    rank: wanted.len(),
                    axis,
                    ..line.clone()
                })?
            }
            "Expand" => {
                let more = wanted(reading, name(1)?)?.saturating_sub(line.rank);
                Line {
                    rank: line.rank + more,
                    axis: line.axis + more,
                    ..line.clone()
                }
            }
            "Unsqueeze" => {
                let &[at] = &reading.list(node, 1, "axes")?[..] else {
                    return None;
                };
                let last = axis_of(at, line.rank + 1)? == line.rank;
                last.then(|| Line {
                    rank: line.rank + 1,
                    is_column: true,
                    ..line.clone()
                })?
            }
            _ => return None,
        })
    }

    /// Columns side by side.
    fn grid(&self, reading: &Reading<'_>, node: &Node) -> Option<Vec<Line>> {
        let of = |name: &Option<Name>| self.lines.get(&(*name)?).filter(|line| line.is_column);
        let lines: Vec<Line> = (node.inputs.iter())
            .map(|name| of(name).cloned())
            .collect::<Option<_>>()?;
        let rank = lines.first()?.rank;
        let last = axis_of(reading.attribute_int(node, "axis", 0), rank)? == rank - 1;
        (last && lines.iter().all(|line| line.rank == rank)).then_some(lines)
    }

    fn spread(&self, reading: &Reading<'_>, node: &Node) -> Option<Spread> {
        let first = (*node.inputs.first()?)?;
        match &*node.op {
            "Expand" => {
                let tensor = reading.constant(Some(first))?;
                let rank = wanted(reading, (*node.inputs.get(1)?)?)?;
                Some(Spread {
                    tensor: tensor.clone(),
                    order: (0..rank.max(tensor.shape().len())).collect(),
                })
            }
            "Identity" => self.spread.get(&first).cloned(),
            "Transpose" => {
                let Spread { tensor, order } = self.spread.get(&first)?.clone();
                let Some(Attribute::Ints(turned)) = node.attributes.get("perm") else {
                    return None;
                };
                let turned = turned.iter().map(|axis| axis_of(*axis, order.len()));
                let turned: Vec<usize> = turned.collect::<Option<_>>()?;
                Some(Spread {
                    tensor,
                    order: turned.iter().map(|axis| order[*axis]).collect(),
                })
            }
            _ => None,
        }
    }

    /// The rows of a value of this shape that indices point at, and their axis.
    pub fn rows(&self, indices: Name, shape: &[Dim]) -> Option<(usize, Rows)> {
        let lines = match (self.grids.get(&indices), self.lines.get(&indices)) {
            (Some(grid), _) => grid,
            (None, Some(line)) if line.is_column => std::slice::from_ref(line),
            _ => return None,
        };
        let mut found = None;
        for (axis, line) in lines.iter().enumerate() {
            // A single index is the same along all axes.
            let along = line.axis == axis || line.len == Dim::Known(1);
            if !along || line.rank != lines.len() + 1 || !line.len.same(shape.get(axis)?) {
                return None;
            }
            match (line.part, found) {
                (None, _) => {}
                (Some(rows), None) => found = Some((axis, rows)),
                (Some(_), Some(_)) => return None,
            }
        }
        found
    }

    /// The numbers of a constant for each channel, also of one in a larger shape.
    pub fn around(
        &self,
        reading: &Reading<'_>,
        name: Name,
        (rank, channels): (usize, usize),
        budget: &mut Budget,
    ) -> Option<Around> {
        let (tensor, axis) = match (self.spread.get(&name), reading.constant(Some(name))) {
            (Some(spread), _) if spread.order.len() == rank => {
                (&spread.tensor, *spread.order.get(channels)?)
            }
            (_, Some(tensor)) => (tensor, channels),
            _ => return None,
        };
        Around::read(reading.checkpoint(), tensor, (rank, axis), budget)
    }
}

/// The number that a value is, as the length of an axis.
fn length(reading: &Reading<'_>, name: Name) -> Option<Dim> {
    if let Some(ints) = reading.whole(name) {
        let &[number] = &ints.numbers[..] else {
            return None;
        };
        return Some(Dim::Known(usize::try_from(number).ok()?));
    }
    match &reading.shapes.get(&name)?[..] {
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// How many axes a shape has that a node is given.
fn wanted(reading: &Reading<'_>, name: Name) -> Option<usize> {
    if let Some(ints) = reading.ints(name) {
        return Some(ints.len());
    }
    if let Some(dims) = reading.shapes.get(&name) {
        return Some(dims.len());
    }
    let id = reading.values.numbers.get(&name)?;
    match reading.values.values[id.0].shape.as_ref()?[..] {
        // No shape has more axes than there are numbers in one.
        [Dim::Known(n)] => (n <= MOST_INTS).then_some(n),
        _ => None,
    }
}

/// The rows that a slice of an axis of this length takes; none for all of them.
fn rows(reading: &Reading<'_>, node: &Node, len: &Dim) -> Option<Option<Rows>> {
    let one = |list: Vec<i64>| match list[..] {
        [number] => Some(number),
        _ => None,
    };
    let start = one(reading.list(node, 1, "starts")?)?;
    let end = one(reading.list(node, 2, "ends")?)?;
    let axis = one(reading.list_or(node, 3, "axes", || vec![0])?)?;
    let step = one(reading.list_or(node, 4, "steps", || vec![1])?)?;
    if axis_of(axis, 1)? != 0 || step != 1 {
        return None;
    }
    let reaches = |len: usize| usize::try_from(end).is_ok_and(|end| end >= len);
    let all = start == 0 && (end == i64::MAX || len.known().is_some_and(reaches));
    match all {
        true => Some(None),
        false => Rows::of(start, end, len.known()).map(Some),
    }
}
