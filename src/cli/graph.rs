//! What the commands do with a graph instead of a file of weights.

use std::path::Path;

use super::output;
use super::select::{self, Select};
use crate::graph::file::Error;
use crate::graph::plan::Left;
use crate::graph::{Agreement, Folded, GraphFile, numbers, pt2};
use crate::plan::{Options, Plan};
use crate::summary::inspect::{Form, Inspection, of_plan};
use crate::tensor::{Checkpoint, Float, quoted};
use crate::verify::{self, Deployed, Verdict};

/// Opens a file if its bytes say that it is a graph.
pub(super) fn open(path: &Path) -> anyhow::Result<Option<GraphFile>> {
    plain(GraphFile::open(path))
}

/// The error itself, which decides the exit status, without what says of which format the file is.
pub(super) fn plain<T>(result: Result<T, Error>) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        Error::Numbers(e) => e.into(),
        Error::Tensor(e) => e.into(),
        other => other.into(),
    })
}

/// Whether a file of this name is to hold weights alone.
pub(super) fn names_weights(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "safetensors")
}

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
        let fused = plan.blocks.iter().flat_map(|block| &block.fused);
        let stored = fused.map(|conv| {
            let weight = self.constants().get(&format!("{}.weight", conv.module))?;
            Some((weight.dtype().float()?, conv.dtype))
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

/// What is known about a graph, and what of it stays although it nearly could be folded.
pub(super) fn inspect(file: &GraphFile) -> anyhow::Result<(Inspection, Vec<Left>)> {
    let folded = file.fold(&Options::default(), false)?;
    let left = folded.left().to_vec();
    let plan = folded.into_plan();
    let (plan, form) = match plan.blocks.is_empty() {
        true => (None, Form::Deploy),
        false => (Some(plan), Form::Training),
    };
    Ok((of_plan(file.constants(), plan, form), left))
}

/// Says where a built-in recipe and the graph differ.
pub(super) fn differences(folded: &Folded<'_>) {
    folded.agreement().into_iter().for_each(tell);
}

fn tell(agreement: &Agreement) {
    for difference in &agreement.differences {
        output::note(&format!("repfuse: {difference}"));
    }
}

/// The plan for a file of weights by a graph of the same model.
pub(super) fn with_numbers(
    path: &Path,
    select: &Select,
    checkpoint: &Checkpoint,
    dtype: Option<Float>,
) -> anyhow::Result<Plan> {
    let Some(GraphFile::Pt2(pt2)) = open(path)? else {
        anyhow::bail!(
            "{} is no program of torch.export; expected a `.pt2` that torch.export.save wrote",
            quoted(&path.display().to_string())
        );
    };
    let edit = pt2::edit(&pt2, &select.options(None), select.even_if_dearer)?;
    tell(&edit.agreement);
    Ok(numbers::with_numbers(&pt2, edit.plan, checkpoint, dtype)?)
}
