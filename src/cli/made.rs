//! What was made of a graph: another graph, or its weights alone.

use std::path::Path;

use super::graph::{open, plain};
use super::select::{self, Select};
use crate::graph::{Folded, GraphFile};
use crate::plan::{Block, Plan};
use crate::tensor::{Checkpoint, Float, plain as shown};
use crate::verify::{self, Deployed, Verdict};

/// What was made of a graph.
pub(super) enum Made {
    Graph(Box<GraphFile>),
    Weights(Box<Checkpoint>),
}

/// Opens what was made of a graph.
pub(super) fn made(path: &Path) -> anyhow::Result<Made> {
    Ok(match open(path)? {
        Some(file) => Made::Graph(Box::new(file)),
        None => Made::Weights(Box::new(select::deployed(path)?)),
    })
}

impl Made {
    /// Its tensors.
    pub(super) fn constants(&self) -> &Checkpoint {
        match self {
            Made::Graph(file) => file.constants(),
            Made::Weights(weights) => weights,
        }
    }

    /// The type that it stores all fused weights in, if it is one, and another than planned for some of them.
    fn dtype(&self, plan: &Plan) -> Option<Float> {
        let fused = plan.blocks().iter().flat_map(|block| block.fused());
        let stored = fused.map(|conv| {
            let weight = self.constants().get(&conv.weight_name())?;
            Some((weight.dtype().float()?, conv.dtype()))
        });
        let stored: Vec<(Float, Float)> = stored.collect::<Option<_>>()?;
        let (first, _) = *stored.first()?;
        let one = stored.iter().all(|(found, _)| *found == first);
        (one && stored.iter().any(|(found, planned)| found != planned)).then_some(first)
    }
}

/// Folds a graph into what was made of it: a graph that was written with `--dtype` says so by its weights.
pub(super) fn folded<'a>(
    select: &Select,
    file: &'a GraphFile,
    made: Option<&Made>,
) -> anyhow::Result<Folded<'a>> {
    let folded = select.fold(file, None)?;
    let graph = made.filter(|made| matches!(made, Made::Graph(_)));
    match graph.and_then(|made| made.dtype(folded.plan())) {
        Some(dtype) => select.fold(file, Some(dtype)),
        None => Ok(folded),
    }
}

/// Compares a graph with what was made of it.
pub(super) fn verify(
    file: &GraphFile,
    folded: &Folded<'_>,
    made: Option<&Made>,
    options: &verify::Options,
) -> anyhow::Result<Verdict> {
    match made {
        None => plain(folded.verify(None, options)),
        Some(Made::Graph(made)) => plain(folded.verify(Some(made), options)),
        Some(Made::Weights(weights)) => Ok(verify::verify(
            file.constants(),
            folded.plan(),
            Deployed::File(weights),
            options,
        )?),
    }
}

/// If only some of the blocks were fused, and those are: the flags that say which.
pub(super) fn fused_in_part(
    select: &Select,
    file: &GraphFile,
    (made, plan): (&GraphFile, &Plan),
    options: &verify::Options,
) -> anyhow::Result<Option<String>> {
    if !select.only.is_empty() || !select.skip.is_empty() {
        return Ok(None);
    }
    let there = |block: &&Block| {
        let mut fused = block.fused().iter();
        fused.all(|conv| made.constants().get(&conv.weight_name()).is_some())
    };
    let (fused, left): (Vec<&Block>, Vec<&Block>) = plan.blocks().iter().partition(there);
    if fused.is_empty() || left.is_empty() {
        return Ok(None);
    }
    let names = |of: &[&Block]| of.iter().map(|b| b.name().to_owned()).collect::<Vec<_>>();
    let mut select = select.clone();
    let flag = match fused.len() <= left.len() {
        true => {
            select.only = names(&fused);
            "--only"
        }
        false => {
            select.skip = names(&left);
            "--skip"
        }
    };
    let Ok(folded) = select.fold(file, None) else {
        return Ok(None);
    };
    let verdict = plain(folded.verify(Some(made), options))?;
    let flags = select.only.iter().chain(&select.skip);
    let flags: Vec<String> = flags
        .map(|name| format!("{flag} {}", shown(name)))
        .collect();
    Ok(verdict.accepted().then(|| {
        format!(
            "repfuse: only some of the blocks were fused, and `{}` verifies them",
            flags.join(" ")
        )
    }))
}
