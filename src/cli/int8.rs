//! `repfuse inspect --int8`: what is left of weights that are rounded to eight bits.

use rayon::prelude::*;

use super::output::{self, Cut};
use super::workers::with_workers;
use crate::plan::{Block, PlannedConv};
use crate::summary::int8::{self, Int8, Noise};
use crate::tensor::{Checkpoint, plain};
use crate::verify::Deployed;

/// The figures of every fused conv, in the order of the plan.
pub(super) fn of<'a>(
    checkpoint: &Checkpoint,
    blocks: &'a [Block],
) -> anyhow::Result<Vec<(&'a PlannedConv, Int8)>> {
    let convs: Vec<&PlannedConv> = blocks.iter().flat_map(|block| block.fused()).collect();
    let one = |fused: &'a PlannedConv| -> anyhow::Result<_> {
        Ok((fused, int8::int8(checkpoint, fused, Deployed::InMemory)?))
    };
    with_workers(|| convs.into_par_iter().map(one).collect())?
}

/// A line for each conv, and a sentence on all.
pub(super) fn text(found: &[(&PlannedConv, Int8)], all: bool) -> String {
    let header = [
        "conv",
        "tensor",
        "channel",
        "loss",
        "largest branch",
        "tensor",
        "channel",
    ];
    let mut rows = vec![header.map(output::soft).to_vec()];
    for (fused, int8) in found {
        let [tensor, channel] = pair(&int8.fused);
        let loss = format!("{:.0}", int8.fused.worst_loss);
        let loss = match int8.loses_much() {
            true => output::bad(&loss),
            false => loss,
        };
        let branch = match &int8.branch {
            Some(branch) => {
                let [tensor, channel] = pair(&branch.noise);
                [plain(&branch.label), tensor, channel]
            }
            None => ["–".to_owned(), String::new(), String::new()],
        };
        rows.push(
            [
                vec![plain(fused.module()), tensor, channel, loss],
                branch.to_vec(),
            ]
            .concat(),
        );
    }
    let cut = [(4, Cut::End), (0, Cut::Middle)];
    let mut out = output::table(&rows, &[1, 2, 3, 5, 6], &cut, output::table_width(all));
    out.push('\n');
    out += &output::line("int8", &int8::sentence(found.iter().map(|(_, int8)| int8)));
    out += &output::line(
        "tensor",
        "signal to noise in dB of the weights, rounded to int8 with one step for the whole tensor",
    );
    out += &output::line("channel", "the same with a step for each output channel");
    out += &output::line(
        "loss",
        "the most that one output channel loses if the tensor shares a step",
    );
    out + &output::line("", "from weights alone: activations are in no file")
}

fn pair(noise: &Noise) -> [String; 2] {
    [noise.per_tensor, noise.per_channel].map(|ratio| match ratio {
        Some(value) => format!("{value:.1}"),
        None => "exact".to_owned(),
    })
}
