//! The proof for an ONNX file: what was folded computes the same, and everything else is what it was.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::ops::Range;

use super::edit::{Edit, Piece};
use super::encode::Message;
use super::error::Error;
use super::open::Onnx;
use super::proto::{Name, Part};
use super::wire::Wire;
use super::write::rewired;
use crate::fuse::diagnose;
use crate::graph::fits::beyond;
use crate::graph::plan::tensor_of;
use crate::tensor::{Error as TensorError, open::read_exact_at, quoted};
use crate::verify::{
    Deployed, Failure as Wrong, Options, Verdict, allowance_of, fits, verify_blocks,
};

/// What went wrong with verifying a model, which is not that it differs.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Numbers, or the files.
    #[error(transparent)]
    Numbers(#[from] diagnose::Error),
    /// One of the models.
    #[error(transparent)]
    Onnx(#[from] Error),
}

/// Compares a model with what was made of it; without one, with what would be.
///
/// # Errors
/// When a file cannot be read, or the original cannot be folded. That the two differ is no error but a [`Verdict`].
pub fn verify(
    onnx: &Onnx,
    edit: &Edit,
    made: Option<&Onnx>,
    options: &Options,
) -> Result<Verdict, Failure> {
    let deployed = made.map_or(Deployed::InMemory, |made| Deployed::File(made.constants()));
    let blocks = verify_blocks(onnx.constants(), &edit.plan, deployed, options)?;
    let (copied, mut failures) = match made {
        Some(made) => Compare::new(onnx, edit, made).run(options)?,
        None => (0, Vec::new()),
    };
    // Stored in a wider type than the network computes in, it has to fit that, too.
    if let Some(made) = made {
        let found = beyond(&edit.plan, made.constants()).map_err(Error::from)?;
        failures.extend(found.map(|beyond| beyond.to_string()));
    }
    Ok(Verdict {
        blocks,
        copied,
        rounded: 0,
        unfused: 0,
        failures: failures.into_iter().map(Wrong::Differs).collect(),
        fits: made.map(|_| fits(&edit.plan, deployed)),
        allowance: allowance_of(deployed),
        tolerance: options.tolerance,
    })
}

struct Compare<'a> {
    onnx: &'a Onnx,
    edit: &'a Edit,
    made: &'a Onnx,
    wires: [Wire<'a>; 2],
    copied: usize,
    failures: Vec<String>,
}

/// What a field of a graph is called.
fn called(number: u32) -> &'static str {
    match number {
        1 => "node",
        11 => "input",
        12 => "output",
        13 => "shape of a value",
        _ => "field",
    }
}

impl<'a> Compare<'a> {
    fn new(onnx: &'a Onnx, edit: &'a Edit, made: &'a Onnx) -> Compare<'a> {
        let wire = |of: &'a Onnx| Wire::new(&of.file, &of.path, of.file_len());
        Compare {
            onnx,
            edit,
            made,
            wires: [wire(onnx), wire(made)],
            copied: 0,
            failures: Vec::new(),
        }
    }

    fn run(mut self, options: &Options) -> Result<(usize, Vec<String>), Failure> {
        self.file_fields()?;
        self.graph_fields()?;
        self.tensors(options)?;
        Ok((self.copied, self.failures))
    }

    /// The fields around the graph, number by number.
    fn file_fields(&mut self) -> Result<(), Error> {
        let by_number = |of: &Onnx| {
            let mut fields: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
            for (number, range) in &of.model.fields {
                if !of.model.ours.contains(range) {
                    fields.entry(*number).or_default().push(range.clone());
                }
            }
            fields
        };
        let (expected, found) = (by_number(self.onnx), by_number(self.made));
        let numbers: Vec<u32> = expected.keys().chain(found.keys()).copied().collect();
        for number in numbers {
            let [a, b] = [&expected, &found].map(|of| of.get(&number).map_or(&[][..], |of| of));
            let mut same = a.len() == b.len();
            for (a, b) in a.iter().zip(b) {
                same = same && self.same(a, b)?;
            }
            let failure = format!("field {number} of the file differs from that of the original");
            if !same && !self.failures.contains(&failure) {
                self.failures.push(failure);
            }
        }
        Ok(())
    }

    /// The fields of the graph but its tensors: the same, in the same order.
    fn graph_fields(&mut self) -> Result<(), Error> {
        let mut found: BTreeMap<u32, VecDeque<(Part, Range<u64>)>> = BTreeMap::new();
        for (part, range) in &self.made.model.graph.fields {
            let number = match part {
                Part::Node(_) => 1,
                Part::Tensor(_) => continue,
                Part::Input(_) => 11,
                Part::Output(_) => 12,
                Part::ValueInfo(_) => 13,
                Part::Other(number) => *number,
            };
            found
                .entry(number)
                .or_default()
                .push_back((*part, range.clone()));
        }
        for (number, piece) in &self.edit.graph {
            if *number == 5 {
                continue;
            }
            let Some((part, range)) = found.get_mut(number).and_then(VecDeque::pop_front) else {
                self.failures
                    .push(format!("a {} of the graph is missing", called(*number)));
                continue;
            };
            let same = match piece {
                Piece::Kept(expected) => self.same(expected, &range)?,
                Piece::New(message) => self.is(range, message)?,
                Piece::Rewired(whole, inputs) => {
                    let message = rewired(&mut self.wires[0], whole, inputs)?;
                    self.is(range, &message)?
                }
                Piece::Fused { .. } | Piece::Moved(_) => true,
            };
            if !same {
                let what = called(*number);
                let shown = self.shown(part);
                self.failures
                    .push(format!("{what}{shown} is not what it should be"));
            }
        }
        for (number, left) in found {
            for (part, _) in left {
                let (what, shown) = (called(number), self.shown(part));
                self.failures.push(format!("{what}{shown} is left over"));
            }
        }
        Ok(())
    }

    /// Whether this field of the graph that was made is that message.
    fn is(&mut self, range: Range<u64>, message: &Message) -> Result<bool, Error> {
        let field = self.wires[1].field_at(range)?;
        let payload = self.wires[1].range(&field)?;
        Ok(payload.end - payload.start == message.0.len() as u64
            && self.wires[1].bytes(payload)? == message.0)
    }

    /// The name of a part of the graph that was made.
    fn shown(&self, part: Part) -> String {
        let (names, graph) = (&self.made.model.names, &self.made.model.graph);
        let name = match part {
            Part::Node(i) => Some(&*graph.nodes[i].name),
            Part::Input(i) | Part::Output(i) | Part::ValueInfo(i) => {
                Some(&**names.get(graph.values[i].name))
            }
            Part::Tensor(_) | Part::Other(_) => None,
        };
        name.map_or(String::new(), |name| format!(" {}", quoted(name)))
    }

    fn tensors(&mut self, options: &Options) -> Result<(), Failure> {
        let places = |of: &Onnx| -> HashMap<String, (usize, Range<u64>)> {
            let fields = of.model.graph.fields.iter();
            let shown = |name: Name| of.model.names.get(name).to_string();
            fields
                .filter_map(|(part, range)| match part {
                    Part::Tensor(i) => {
                        Some((shown(of.model.graph.tensors[*i].name?), (*i, range.clone())))
                    }
                    _ => None,
                })
                .collect()
        };
        let (before, mut after) = (places(self.onnx), places(self.made));
        let by_number: HashMap<usize, &String> =
            before.iter().map(|(name, (i, _))| (*i, name)).collect();
        let by_start: HashMap<u64, &String> = before
            .iter()
            .map(|(name, (_, range))| (range.start, name))
            .collect();
        for (number, piece) in &self.edit.graph {
            let name = match piece {
                Piece::Fused { block, is_bias } => {
                    let fused = &self.edit.plan.blocks[*block].fused[0];
                    // Compared as a block, where it is there.
                    after.remove(&tensor_of(fused, *is_bias).0);
                    continue;
                }
                Piece::Kept(range) if *number == 5 => by_start.get(&range.start),
                Piece::Moved(i) => by_number.get(i),
                _ => continue,
            };
            options.go_on().map_err(diagnose::Error::from)?;
            let Some(name) = name else {
                continue;
            };
            let Some((_, range)) = after.remove(*name) else {
                self.failures.push(format!("{} is missing", quoted(name)));
                continue;
            };
            match self.difference(name, &before[*name].1, &range)? {
                None => self.copied += 1,
                Some(difference) => self.failures.push(difference),
            }
        }
        let mut left: Vec<&String> = after.keys().collect();
        left.sort();
        let left = left
            .into_iter()
            .map(|name| format!("{} is left over", quoted(name)));
        self.failures.extend(left);
        Ok(())
    }

    fn difference(
        &mut self,
        name: &str,
        before: &Range<u64>,
        after: &Range<u64>,
    ) -> Result<Option<String>, Error> {
        let [a, b] = [self.onnx, self.made].map(|of| of.constants().get(name));
        let differs = Some(format!(
            "{} differs from that of the original",
            quoted(name)
        ));
        let (Some(a), Some(b)) = (a, b) else {
            return Ok(if self.same(before, after)? {
                None
            } else {
                differs
            });
        };
        if a.dtype() != b.dtype() || a.shape() != b.shape() {
            return Ok(differs);
        }
        let mut at = 0;
        while at < a.byte_len() {
            let len = CHUNK.min(a.byte_len() - at) as usize;
            let mut bytes = [vec![0; len], vec![0; len]];
            self.onnx.constants().read_at(a, at, &mut bytes[0])?;
            self.made.constants().read_at(b, at, &mut bytes[1])?;
            if bytes[0] != bytes[1] {
                return Ok(differs);
            }
            at += len as u64;
        }
        Ok(None)
    }

    /// Whether the same bytes stand in both files.
    fn same(&self, a: &Range<u64>, b: &Range<u64>) -> Result<bool, Error> {
        if a.end - a.start != b.end - b.start {
            return Ok(false);
        }
        let (mut at, len) = (0, a.end - a.start);
        while at < len {
            let part = CHUNK.min(len - at) as usize;
            let read = |of: &Onnx, from: u64| -> Result<Vec<u8>, Error> {
                let (file, mut bytes): (&File, _) = (&of.file, vec![0; part]);
                read_exact_at(file, &mut bytes, from)
                    .map_err(|e| TensorError::unreadable(&of.path, e))?;
                Ok(bytes)
            };
            if read(self.onnx, a.start + at)? != read(self.made, b.start + at)? {
                return Ok(false);
            }
            at += part as u64;
        }
        Ok(true)
    }
}

/// What is compared at a time.
const CHUNK: u64 = 1 << 18;
