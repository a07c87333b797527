//! A plan as data: blocks, what each becomes, and what is written in which order.

use super::within;
use super::{Applied, planned};
use crate::algebra::{Geometry, Resolved};
use crate::recipe::model::Network;
use crate::tensor::channels_last::channels_last;
use crate::tensor::{Dtype, Float, Output, Tensor};

/// What a user may decide about a plan.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The eps of every batch norm, instead of the recipe's.
    pub bn_eps: Option<f64>,
    /// The eps of the batch norms in blocks of these recipes, instead of that.
    pub bn_eps_of: Vec<(String, f64)>,
    /// Globs on block names: only these are fused. Empty means all.
    pub only: Vec<String>,
    /// Globs on block names: these are not fused.
    pub skip: Vec<String>,
    /// Globs on names: these tensors and modules stand beside the blocks, and have no part in what they compute.
    pub beside: Vec<String>,
    /// Globs on names: these tensors and modules are left out, as if the file did not have them.
    pub drop: Vec<String>,
    /// The element type of fused tensors, instead of that of the block's conv weights.
    pub dtype: Option<Float>,
    /// Whether the recipe is the user's choice: names then tell the blocks, whatever classes the file says.
    pub by_names: bool,
}

/// Where the eps of the batch norms comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub enum EpsSource {
    /// The recipe states it.
    Recipe,
    /// The file says it of every norm, as a pickled module does.
    File,
    /// The user does.
    User,
    /// Feature maps of the author's network decided it.
    Sample,
    /// The recipe of the network that holds the blocks states it.
    Host,
}

impl EpsSource {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            EpsSource::Recipe => "recipe",
            EpsSource::File => "file",
            EpsSource::User => "user",
            EpsSource::Sample => "sample",
            EpsSource::Host => "host",
        }
    }
}

/// What becomes of every tensor.
///
/// Only planning makes one, so that what it says of one tensor holds beside what it says of the others.
#[derive(Debug)]
pub struct Plan {
    /// The name of the recipe; of several, all names with ` + ` between them.
    pub(crate) recipe: String,
    /// The eps of the batch norms, if there are any and it is one for all of them.
    pub(crate) eps: Option<f64>,
    /// Who decided it.
    pub(crate) eps_source: EpsSource,
    /// Who else uses these names with another eps.
    pub(crate) eps_note: Option<String>,
    /// The recipes, each with its eps and its blocks. (A graph needs none.)
    pub(crate) families: Vec<Applied>,
    /// How to load the deploy form in Python, if the recipe says so.
    pub(crate) load: Option<String>,
    /// How the blocks make up a whole network, if the recipe says so.
    pub(crate) network: Option<Network>,
    /// The blocks that are fused.
    pub(crate) blocks: Vec<Block>,
    /// The names of the blocks that are left as they are, by the user's wish.
    pub(crate) skipped: Vec<String>,
    /// Segments of wrappers that stood inside of blocks: the names of the output are without them there.
    pub(crate) wrappers_removed: Vec<String>,
    /// Modules that nearly were folded, and why they are left as they are.
    pub(crate) left: Vec<Left>,
    /// Every tensor of the output.
    pub(crate) outputs: Vec<Planned>,
    /// Tensors that are dropped by name, without a part in any fused tensor.
    pub(crate) dropped: Vec<Tensor>,
}

/// A module that is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its path.
    pub module: String,
    /// Why, in a few words.
    pub why: String,
}

/// One block.
#[derive(Debug)]
pub struct Block {
    /// The path that its names share, or the output's name if there is none.
    pub(crate) name: String,
    /// What it writes.
    pub(crate) fused: Vec<PlannedConv>,
    /// The tensors that went into it, or that it makes superfluous.
    pub(crate) consumed: Vec<Tensor>,
    /// Whether it holds a bare identity, which no file shows and the recipe's rule assumes.
    pub(crate) assumes_identity: bool,
}

/// One fused conv.
#[derive(Debug)]
pub struct PlannedConv {
    /// The output's module; its tensors are `<module>.weight` and, if it has one, `<module>.bias`.
    pub(crate) module: String,
    /// What it is fused from.
    pub(crate) expr: Resolved<Tensor>,
    /// Whether a bias is written; where none is, nothing adds a constant.
    pub(crate) bias: bool,
    /// The element type in which it is stored.
    pub(crate) dtype: Float,
    /// What the file has of it already, beside the branches that it was computed from; empty where the file has nothing or a
    /// placeholder.
    pub(crate) exported: Vec<Tensor>,
}

/// One of the two tensors that a fused conv may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightOrBias {
    Weight,
    Bias,
}

/// A tensor of the output and where its bytes come from.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What is written.
    pub output: Output,
    /// Where it comes from.
    pub what: Source,
}

/// Where the bytes of an output tensor come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A tensor of the input, byte for byte.
    Copy(Tensor),
    /// A tensor of the input, each number rounded once to this type, which is the output's.
    Round(Tensor, Float),
    /// The weight of a fused conv: the numbers of block and conv in the plan.
    Weight(usize, usize),
    /// The same, with the channels innermost in memory while its shape says otherwise: PyTorch's memory format `channels_last`.
    WeightChannelsLast(usize, usize),
    /// Its bias.
    Bias(usize, usize),
    /// One number everywhere, in this type, which is the output's.
    Fill(f64, Float),
}

impl Plan {
    /// The name of the recipe; of several, all names with ` + ` between them.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// The eps of the batch norms, if there are any and it is one for all of them.
    pub fn eps(&self) -> Option<f64> {
        self.eps
    }

    /// Who decided it.
    pub fn eps_source(&self) -> EpsSource {
        self.eps_source
    }

    /// Who else uses these names with another eps.
    pub fn eps_note(&self) -> Option<&str> {
        self.eps_note.as_deref()
    }

    /// The recipes, each with its eps and its blocks. (A graph needs none.)
    pub fn families(&self) -> &[Applied] {
        &self.families
    }

    /// How to load the deploy form in Python, if the recipe says so.
    pub fn load(&self) -> Option<&str> {
        self.load.as_deref()
    }

    /// How the blocks make up a whole network, if the recipe says so.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The blocks that are fused.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The blocks of one of the recipes of this plan.
    pub(crate) fn blocks_of(&self, family: &Applied) -> &[Block] {
        &self.blocks[family.blocks.clone()]
    }

    /// The names of the blocks that are left as they are, by the user's wish.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Segments of wrappers that stood inside of blocks: the names of the output are without them there.
    pub fn wrappers_removed(&self) -> &[String] {
        &self.wrappers_removed
    }

    /// Modules that nearly were folded, and why they are left as they are.
    pub fn left(&self) -> &[Left] {
        &self.left
    }

    /// Every tensor of the output. No two share a name.
    pub fn outputs(&self) -> &[Planned] {
        &self.outputs
    }

    /// Tensors that are dropped by name, without a part in any fused tensor.
    pub fn dropped(&self) -> &[Tensor] {
        &self.dropped
    }

    /// Whether a block holds a bare identity, which no file shows.
    pub fn assumes_identities(&self) -> bool {
        self.blocks.iter().any(|block| block.assumes_identity)
    }

    /// Gives the module of each fused conv another name, and with it the outputs that are its tensors.
    pub(super) fn rename_convs<E>(
        &mut self,
        to: impl Fn(&str) -> Result<String, E>,
    ) -> Result<(), E> {
        for conv in self.blocks.iter_mut().flat_map(|block| &mut block.fused) {
            conv.module = to(&conv.module)?;
        }
        for Planned { output, what } in &mut self.outputs {
            output.name = match *what {
                Source::Weight(b, f) | Source::WeightChannelsLast(b, f) => {
                    self.blocks[b].fused[f].name_of(WeightOrBias::Weight)
                }
                Source::Bias(b, f) => self.blocks[b].fused[f].name_of(WeightOrBias::Bias),
                Source::Copy(_) | Source::Round(..) | Source::Fill(..) => continue,
            };
        }
        Ok(())
    }

    /// Stores all floating-point tensors in one type: copied ones are rounded, too.
    pub fn store_all(&mut self, float: Float) {
        let blocks = self.blocks.iter_mut();
        for fused in blocks.flat_map(|block| &mut block.fused) {
            fused.dtype = float;
        }
        for Planned { output, what } in &mut self.outputs {
            let Some(of) = output.dtype.float().filter(|of| *of != float) else {
                continue;
            };
            output.byte_len = output.byte_len / of.size() as u64 * float.size() as u64;
            output.dtype = Dtype::from(float);
            match what {
                Source::Copy(tensor) | Source::Round(tensor, _) => {
                    *what = Source::Round(tensor.clone(), float);
                }
                Source::Fill(_, of) => *of = float,
                Source::Weight(..) | Source::WeightChannelsLast(..) | Source::Bias(..) => {}
            }
        }
    }
}

fn end_of(which: WeightOrBias) -> &'static str {
    match which {
        WeightOrBias::Weight => "weight",
        WeightOrBias::Bias => "bias",
    }
}

impl Block {
    /// The path that its names share, or the output's name if there is none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it writes.
    pub fn fused(&self) -> &[PlannedConv] {
        &self.fused
    }

    /// The tensors that went into it, or that it makes superfluous.
    pub fn consumed(&self) -> &[Tensor] {
        &self.consumed
    }

    /// Whether it holds a bare identity, which no file shows and the recipe's rule assumes.
    pub fn assumes_identity(&self) -> bool {
        self.assumes_identity
    }
}

impl PlannedConv {
    /// The output's module; its tensors are `<module>.weight` and, if it has one, `<module>.bias`.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The name of its weight in the output.
    pub fn weight_name(&self) -> String {
        self.name_of(WeightOrBias::Weight)
    }

    /// The name of its bias in the output, if it has one.
    pub fn bias_name(&self) -> Option<String> {
        self.bias.then(|| self.name_of(WeightOrBias::Bias))
    }

    /// The names of both, as far as they are there.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.weight_name()).chain(self.bias_name())
    }

    /// The name of one of its tensors. (Only here is it put together.)
    pub(crate) fn name_of(&self, which: WeightOrBias) -> String {
        within(&self.module, end_of(which))
    }

    /// What is written of it; `place` are the numbers of its block and of itself in the plan.
    pub(crate) fn outputs(&self, [b, f]: [usize; 2]) -> impl Iterator<Item = Planned> {
        let weight = planned(
            self.weight_name(),
            self.dtype,
            self.stored_shape(),
            Source::Weight(b, f),
        );
        let channels = vec![self.geometry().out()];
        let bias = self
            .bias_name()
            .map(|name| planned(name, self.dtype, channels, Source::Bias(b, f)));
        std::iter::once(weight).chain(bias)
    }

    /// One of its tensors as the file has it already, beside the branches.
    pub(crate) fn exported(&self, which: WeightOrBias) -> Option<&Tensor> {
        let end = end_of(which);
        let mut all = self.exported.iter();
        all.find(|tensor| tensor.name().rsplit('.').next() == Some(end))
    }

    /// What it is fused from.
    pub fn expr(&self) -> &Resolved<Tensor> {
        &self.expr
    }

    /// Whether a bias is written; where none is, nothing adds a constant.
    pub fn has_bias(&self) -> bool {
        self.bias
    }

    /// The element type in which it is stored.
    pub fn dtype(&self) -> Float {
        self.dtype
    }

    /// The shapes of the fused conv.
    pub fn geometry(&self) -> &Geometry {
        self.expr.geometry()
    }

    /// Whether its weight is written with the channels last, as MLX does: so are those that it is fused from.
    pub fn is_channels_last(&self) -> bool {
        let leaves = self.expr.root().leaves();
        leaves.iter().any(|leaf| leaf.is_channels_last())
    }

    /// The shape in which its weight is written.
    pub fn stored_shape(&self) -> Vec<usize> {
        let shape = self.geometry().weight_shape();
        match self.is_channels_last() {
            true => channels_last(&shape),
            false => shape,
        }
    }

    /// How many numbers its tensors hold.
    pub fn numbers(&self) -> u64 {
        let g = self.geometry();
        let bias = if self.bias { g.out() } else { 0 };
        (g.out() * g.row_len() + bias) as u64
    }
}
