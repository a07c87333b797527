//! The part of `repfuse verify --end-to-end` that runs graphs.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::output;

/// What running both graphs has shown.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::cli) struct Finding {
    /// What ran them.
    runtime: &'static str,
    /// Why they could not be run; null if they were. That is no verdict on the fused graph.
    not_run: Option<String>,
    /// What went in.
    inputs: Vec<Array>,
    /// One for each output of the graph.
    outputs: Vec<Difference>,
    /// For how many samples, in parts of 1, the largest class is the same; null if no output is `[samples, classes]`.
    top1_agreement: Option<f64>,
    /// Between the softmax of both, in nats; null likewise.
    bidirectional_kl: Option<f64>,
    /// The median time of a run.
    milliseconds_before: Option<f64>,
    milliseconds_after: Option<f64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Array {
    name: String,
    shape: Vec<usize>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Difference {
    name: String,
    shape: Vec<usize>,
    /// The largest number; null if there is one that is no number.
    largest: Option<f64>,
    largest_difference: Option<f64>,
}

#[cfg(feature = "run")]
pub(super) fn run(
    paths: [&Path; 2],
    input: Option<&Path>,
    [batch, side]: [usize; 2],
    seed: u64,
) -> anyhow::Result<Finding> {
    use crate::network::graphs::{Comparison, Error, Network, Sizes, compare};
    use crate::verify::random::SplitMix64;

    let work = || -> Result<Comparison, Trouble> {
        let before = Network::open(paths[0])?;
        let after = Network::open(paths[1])?;
        let inputs = match input {
            Some(path) => given(path, &before)?,
            None => before.made_up(Sizes { batch, side }, &mut SplitMix64::new(seed))?,
        };
        Ok(compare(&before, &after, &inputs)?)
    };
    let Comparison {
        inputs,
        outputs,
        top1_agreement,
        bidirectional_kl,
        seconds: [a, b],
    } = match work() {
        Ok(found) => found,
        // What cannot be run is still proved block by block.
        Err(Trouble::Run(error @ (Error::NotRun { .. } | Error::Input { .. }))) => {
            return Ok(not_run(error.to_string()));
        }
        Err(Trouble::Run(error)) => return Err(error.into()),
        Err(Trouble::Input(error)) => return Err(error),
    };
    let finite = |x: f64| x.is_finite().then_some(x);
    Ok(Finding {
        runtime: RUNTIME,
        not_run: None,
        inputs: inputs
            .into_iter()
            .map(|(name, shape)| Array { name, shape })
            .collect(),
        outputs: outputs
            .into_iter()
            .map(|o| Difference {
                name: o.name,
                shape: o.shape,
                largest: finite(o.largest),
                largest_difference: finite(o.difference),
            })
            .collect(),
        top1_agreement,
        bidirectional_kl,
        milliseconds_before: Some(1e3 * a),
        milliseconds_after: Some(1e3 * b),
    })
}

#[cfg(feature = "run")]
enum Trouble {
    Run(crate::network::graphs::Error),
    Input(anyhow::Error),
}

#[cfg(feature = "run")]
impl From<crate::network::graphs::Error> for Trouble {
    fn from(error: crate::network::graphs::Error) -> Trouble {
        Trouble::Run(error)
    }
}

/// The user's own arrays: one alone is the first input, several go by their names.
#[cfg(feature = "run")]
fn given(
    path: &Path,
    network: &crate::network::graphs::Network,
) -> Result<Vec<crate::network::graphs::Named>, Trouble> {
    use crate::tensor::{arrays::read_any_arrays, quoted};

    let arrays = read_any_arrays(path).map_err(|e| Trouble::Input(e.into()))?;
    let names = network.inputs()?;
    let shown = names
        .iter()
        .map(|name| quoted(name))
        .collect::<Vec<_>>()
        .join(", ");
    let count = arrays.len();
    if let ([name], Ok([(_, array)])) = (&names[..], <[_; 1]>::try_from(arrays.clone())) {
        return Ok(vec![(name.clone(), array)]);
    }
    let mut inputs = Vec::with_capacity(count);
    for (name, array) in arrays {
        match name {
            Some(name) if names.contains(&name) => inputs.push((name, array)),
            _ => {}
        }
    }
    if inputs.len() != names.len() {
        return Err(Trouble::Input(anyhow::anyhow!(
            "{} has {count} arrays, {} of them named after an input; the graph takes {shown}",
            quoted(&path.display().to_string()),
            inputs.len()
        )));
    }
    Ok(inputs)
}

#[cfg(not(feature = "run"))]
pub(super) fn run(
    _: [&Path; 2],
    _: Option<&Path>,
    _: [usize; 2],
    _: u64,
) -> anyhow::Result<Finding> {
    Ok(not_run(
        "this repfuse was built without the feature `run`".to_owned(),
    ))
}

const RUNTIME: &str = "rten";

fn not_run(why: String) -> Finding {
    Finding {
        runtime: RUNTIME,
        not_run: Some(why),
        inputs: Vec::new(),
        outputs: Vec::new(),
        top1_agreement: None,
        bidirectional_kl: None,
        milliseconds_before: None,
        milliseconds_after: None,
    }
}

/// The finding in lines of text.
pub(super) fn text(finding: &Finding) -> String {
    if let Some(why) = &finding.not_run {
        let sentence = format!("the whole graph was not run: {why}");
        return format!("\n{}\n", output::wrapped(&sentence, 0, output::width()));
    }
    let number = |x: Option<f64>| x.map_or_else(|| "–".to_owned(), |x| format!("{x:.1e}"));
    let shapes: Vec<String> = finding
        .inputs
        .iter()
        .map(|input| format!("{} {:?}", crate::tensor::plain(&input.name), input.shape))
        .collect();
    let mut out = format!(
        "\nwhole graph, run by {}: {}\n",
        finding.runtime,
        shapes.join(", ")
    );
    for o in &finding.outputs {
        out += &format!(
            "  {} {:?}: largest difference {} (largest number {})\n",
            crate::tensor::plain(&o.name),
            o.shape,
            number(o.largest_difference),
            number(o.largest)
        );
    }
    if let Some(same) = finding.top1_agreement {
        out += &format!("  same top-1 class          {:.0} %\n", 100.0 * same);
    }
    if let Some(kl) = finding.bidirectional_kl {
        out += &format!("  KL between the two forms  {kl:.1e}\n");
    }
    if let (Some(a), Some(b)) = (finding.milliseconds_before, finding.milliseconds_after) {
        out += &format!(
            "  time of a run             {a:.2} → {b:.2} ms ({:.2} ×)\n",
            a / b
        );
    }
    out
}
