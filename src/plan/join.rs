//! Plans of several parts of a file become one, in which no two outputs share a name.

use foldhash::{HashMap, HashMapExt};

use super::{Applied, Block, Plan, Planned, Source};
use crate::recipe::Error;
use crate::tensor::header::METADATA as RESERVED;
use crate::tensor::quoted;

impl Plan {
    /// Takes in the plan of another part of the file.
    pub(super) fn append(&mut self, other: Plan) {
        let offset = self.blocks.len();
        let moved = |what| match what {
            Source::Weight(b, f) => Source::Weight(b + offset, f),
            Source::WeightChannelsLast(b, f) => Source::WeightChannelsLast(b + offset, f),
            Source::Bias(b, f) => Source::Bias(b + offset, f),
            other => other,
        };
        self.recipe += &format!(" + {}", other.recipe);
        self.eps = self.eps.filter(|eps| other.eps == Some(*eps));
        self.eps_note = None;
        self.load = None;
        self.network = None;
        self.families
            .extend(other.families.into_iter().map(|applied| Applied {
                blocks: applied.blocks.start + offset..applied.blocks.end + offset,
                ..applied
            }));
        self.blocks.extend(other.blocks);
        self.skipped.extend(other.skipped);
        self.left.extend(other.left);
        self.outputs
            .extend(other.outputs.into_iter().map(|planned| Planned {
                what: moved(planned.what),
                ..planned
            }));
        self.dropped.extend(other.dropped);
    }

    /// The plan itself, if no two outputs share a name.
    pub(super) fn without_clashes(self) -> Result<Plan, Error> {
        refuse_clashes(&self.outputs, &self.blocks)?;
        refuse_unread(&self.outputs)?;
        Ok(self)
    }
}

/// Checks that what is to be copied can be read.
fn refuse_unread(outputs: &[Planned]) -> Result<(), Error> {
    let copied = outputs.iter().filter_map(|planned| match &planned.what {
        Source::Copy(tensor) | Source::Round(tensor, _) => Some((tensor, tensor.unread()?)),
        _ => None,
    });
    match copied.into_iter().next() {
        None => Ok(()),
        Some((tensor, why)) => Err(Error::Unread {
            tensor: tensor.to_string(),
            name: tensor.name_in_file().to_owned(),
            why: why.to_owned(),
        }),
    }
}

/// Checks that no two outputs share a name.
pub(super) fn refuse_clashes(outputs: &[Planned], blocks: &[Block]) -> Result<(), Error> {
    let mut seen: HashMap<&str, &Planned> = HashMap::new();
    for planned in outputs {
        if let (RESERVED, Source::Copy(tensor)) = (&*planned.output.name, &planned.what) {
            return Err(Error::Reserved {
                name: RESERVED,
                tensor: tensor.to_string(),
            });
        }
        if let Some(other) = seen.insert(&planned.output.name, planned) {
            let [first, second] = [other, planned].map(|p| match &p.what {
                Source::Copy(tensor) | Source::Round(tensor, _) => format!("a copy of {tensor}"),
                Source::Weight(b, _) | Source::WeightChannelsLast(b, _) | Source::Bias(b, _) => {
                    format!("a fused tensor of block {}", quoted(&blocks[*b].name))
                }
                Source::Fill(..) => "a tensor that the recipe sets".to_owned(),
            });
            return Err(Error::Clash {
                name: planned.output.name.clone(),
                first,
                second,
            });
        }
    }
    Ok(())
}
