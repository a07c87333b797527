//! What a recipe says, once its JSON has been read.

use std::collections::BTreeSet;
use std::fmt;

use super::pattern::{Captures, Pattern};
use crate::algebra::{Extent, Factor, Vector};

/// A family of re-parameterizable blocks, in tensor names.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// What `--recipe` calls it.
    pub name: String,
    /// One line on what it covers.
    pub about: String,
    /// The paper or project it comes from.
    pub cite: String,
    /// Beginnings of model names that it covers, as lowercase letters and digits; `*` stands for anything.
    pub models: Vec<String>,
    /// How to load the deploy form in Python, in one line; `{weights}` stands for its state dict.
    pub load: Option<String>,
    /// The eps of its batch norms, which no file stores.
    pub eps: Option<f64>,
    /// Who else uses the same names with another eps.
    pub eps_note: Option<String>,
    /// Who else uses the same names with or without a bare identity.
    pub identity_note: Option<String>,
    /// What decides a factor that no file holds, and that the recipe takes for 1.
    pub factor_note: Option<String>,
    /// Detection: of each list, one must match some tensor.
    pub when: Vec<Vec<Pattern>>,
    /// The modules that its network consists of: its blocks are in these, below the path at which they have the evidence. A `*` at the
    /// end of a name stands for any end.
    pub modules: Vec<String>,
    /// Detection: none may match a tensor.
    pub unless: Vec<Pattern>,
    /// Path segments of the training form that must not be left over.
    pub owns: Vec<String>,
    /// Names that only the deploy form has.
    pub deploy: Vec<Pattern>,
    /// Tensors and modules that only training needs.
    pub drop: Vec<Pattern>,
    /// Tensors and modules that are copied under another name.
    pub rename: Vec<(Pattern, Pattern)>,
    /// Tensors and modules that are in no block, though they have the names of a part of one.
    pub beside: Vec<Pattern>,
    /// The blocks, tried in this order.
    pub blocks: Vec<BlockRule>,
    /// How the blocks make up a whole network, where they follow one another and nothing else does.
    pub network: Option<Network>,
    /// Whether its network may hold blocks of other recipes; its initializer then sets the eps of all norms.
    pub host: bool,
}

/// A network of blocks one after the other: each is a conv with "same" padding (stride 2 where it is larger than
/// 1×1 and has no identity), squeeze and excitation where its tensors are, and ReLU; then average pooling and a linear head.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Block names, first to last: in the order of the patterns, then of the numbers in them.
    pub blocks: Vec<Pattern>,
    /// The two 1×1 convs of squeeze and excitation, below the block's name.
    pub squeeze: Option<[String; 2]>,
    /// The linear classifier.
    pub head: Pattern,
}

impl Network {
    /// Where a block stands: the number of its pattern, and the numbers in its name.
    pub fn place(&self, block: &str) -> Option<(usize, Vec<usize>)> {
        self.blocks.iter().enumerate().find_map(|(i, pattern)| {
            let captures = pattern.matches(block, &Captures::new())?;
            // The captures of one pattern stand in the order of their names: `{i}` before `{j}`.
            let numbers = captures.texts().filter_map(|text| text.parse().ok());
            Some((i, numbers.collect()))
        })
    }

    /// The classifier's module, given the name of any block, which tells the path before both.
    pub fn head_of(&self, block: &str) -> Option<String> {
        let captures = self
            .blocks
            .iter()
            .find_map(|pattern| pattern.matches(block, &Captures::new()))?;
        self.head.fill(&captures)
    }
}

/// One kind of block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRule {
    /// Every tensor that matches one of these starts a block.
    pub at: Vec<Pattern>,
    /// Tensors that must be there with a shape, or (`None`) must not be there.
    pub shapes: Vec<(Pattern, Option<Vec<Dim>>)>,
    /// The shapes that tensors of a block have, where they are there. One that has another is an error, and not another kind of block.
    pub forms: Vec<(Pattern, Vec<Dim>)>,
    /// Output modules and what each is fused from.
    pub fuse: Vec<(Pattern, Template)>,
    /// Whether the outputs have a bias; without one, nothing in the block may add a constant.
    pub bias: bool,
    /// Tensors and modules of this block that are not written.
    pub drop: Vec<Pattern>,
    /// Whether a fused conv that is in the file beside its branches was computed from them when the network was exported, and has to
    /// be what they give. Otherwise it is a placeholder that training leaves alone, and may hold anything.
    pub exported: bool,
    /// Tensors and modules of this block that are copied under another name.
    pub rename: Vec<(Pattern, Pattern)>,
    /// Tensors that the block uses and that are copied all the same.
    pub keep: Vec<Pattern>,
    /// Tensors that are written with their own shape and one number everywhere.
    pub set: Vec<(Pattern, f64)>,
    /// Tensors and modules that stand beside the block's own, and have no part in what it computes.
    pub beside: Vec<Pattern>,
    /// Modules and the classes of which one is theirs. Only a file that says classes, as a pickled module does, is held to it.
    pub classes: Vec<(Pattern, Vec<String>)>,
}

impl BlockRule {
    /// The name of the capture that stands for the path before all names of a block.
    pub(crate) fn prefix(&self) -> Option<&str> {
        self.at.iter().find_map(Pattern::prefix)
    }

    /// That path, of a block with these captures.
    pub(crate) fn path<'c>(&self, captures: &'c Captures) -> Option<&'c str> {
        captures.get(self.prefix()?)
    }
}

/// One number of a shape in `where`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// This number.
    Is(usize),
    /// The same number wherever the letter stands in the block.
    Same(String),
    /// An odd number.
    Odd,
    /// Any number.
    Any,
}

/// A convolution as a recipe describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTemplate {
    /// The weight's name.
    pub weight: Pattern,
    /// The bias's name, if it can have one.
    pub bias: Option<Pattern>,
    /// Whether it has one.
    pub presence: Presence,
    /// Distance between taps, `[depth, height, width]`.
    pub dilation: [Size; 3],
    /// Declared groups.
    pub groups: Option<Groups>,
    /// Whether it is a transposed conv.
    pub transposed: bool,
    /// Whether its taps are applied turned by 180°.
    pub flipped: bool,
    /// The axes of the weight, where they are not those of its number of dimensions.
    pub axes: Option<Axes>,
}

/// An expression with name patterns at its leaves, and sugar that is gone once names are known.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// A convolution.
    Conv(Box<ConvTemplate>),
    /// A batch norm.
    Bn {
        /// The names of its module and tensors.
        norm: Box<Norm>,
        /// An eps of its own.
        eps: Option<f64>,
    },
    /// A multiplication.
    Scale(Factor<Pattern>),
    /// An addition per channel.
    Shift(Pattern),
    /// Average pooling, over a window or over the extent of a weight's kernel.
    AvgPool(Window),
    /// A bare identity.
    Identity,
    /// One after the other.
    Seq(Vec<Template>),
    /// Branches added up.
    Sum(Vec<Template>),
    /// There if its tensors are there; for a bare identity, if the block keeps its width.
    Optional(Box<Template>),
    /// One term for every value of the captures that the block has not bound.
    Each(Box<Template>),
}

/// The names of a batch norm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Norm {
    /// The module's name, without `.weight` and the like.
    pub module: Pattern,
    /// Its four vectors, in the order of their ends: weight, bias, running mean, running variance.
    pub tensors: [Pattern; 4],
    /// The counter that belongs to it and no deploy form needs.
    pub count: Pattern,
}

impl Norm {
    /// The names of a norm's tensors, given that of its module.
    pub fn of(module: Pattern) -> Norm {
        Norm {
            tensors: NORM.map(|end| module.with_end(&format!(".{end}"))),
            count: module.with_end(&format!(".{BATCH_COUNT}")),
            module,
        }
    }
}

/// Whether a conv has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It must be there.
    Required,
    /// It must not be there.
    Forbidden,
    /// It may be there; the blocks of one rule agree.
    Optional,
}

/// A number, or the digits of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// A number.
    Is(usize),
    /// The number that this pattern of one capture stands for.
    Captured(Pattern),
}

/// Declared groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// This many.
    Is(usize),
    /// One input channel per group.
    Depthwise,
}

/// The axes that a kernel is stored with, of `[out, in/groups, kh, kw]`; one that it lacks is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// Whether there is an axis of output channels; without one there is one kernel for all channels.
    pub outputs: bool,
    /// Whether there is an axis of input channels; without one the conv is depthwise.
    pub inputs: bool,
    /// Whether there is a height.
    pub height: bool,
    /// Whether there is a width.
    pub width: bool,
}

impl Axes {
    /// Reads a part of `oihw`: letters in this order, no `i` without its `o`.
    pub fn of(text: &str) -> Option<Axes> {
        let has = |letter| text.contains(letter);
        let axes = Axes {
            outputs: has('o'),
            inputs: has('i'),
            height: has('h'),
            width: has('w'),
        };
        let ordered = !text.is_empty() && axes.to_string() == text;
        (ordered && (axes.outputs || !axes.inputs)).then_some(axes)
    }

    /// The shape of a conv's weight that is stored with these axes, or `None` if it has another number of them.
    pub fn weight_shape(self, stored: &[usize]) -> Option<Vec<usize>> {
        let mut stored = stored.iter().copied();
        let mut axis = |there| if there { stored.next() } else { Some(1) };
        let (o, i) = (axis(self.outputs)?, axis(self.inputs)?);
        let (h, w) = (axis(self.height)?, axis(self.width)?);
        let shape = match (self.height, self.width) {
            (false, false) => vec![o, i],
            (false, true) => vec![o, i, w],
            (true, _) => vec![o, i, h, w],
        };
        stored.next().is_none().then_some(shape)
    }
}

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |there, letter| if there { letter } else { "" };
        let [o, i, h, w] = [
            part(self.outputs, "o"),
            part(self.inputs, "i"),
            part(self.height, "h"),
            part(self.width, "w"),
        ];
        write!(f, "{o}{i}{h}{w}")
    }
}

/// The window of an average pooling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Window {
    /// `[depth, height, width]`.
    Is(Extent),
    /// The kernel extent of this weight.
    Of(Pattern),
}

/// The four vectors of a batch norm, by the ends of their names.
pub(crate) const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// The counter that belongs to a batch norm and no deploy form needs.
pub(crate) const BATCH_COUNT: &str = "num_batches_tracked";

impl Template {
    /// The names of all tensors that the template may use, as patterns.
    ///
    /// A batch norm's counter is not among them: alone it is no evidence of a branch.
    pub fn tensors(&self) -> Vec<&Pattern> {
        let mut tensors = Vec::new();
        self.visit_tensors(&mut |pattern| tensors.push(pattern));
        tensors
    }

    /// Calls `f` with the name of each tensor that the template may use.
    pub(crate) fn visit_tensors<'a>(&'a self, f: &mut impl FnMut(&'a Pattern)) {
        match self {
            Template::Conv(conv) => {
                f(&conv.weight);
                let can_be = conv.presence != Presence::Forbidden;
                conv.bias.iter().filter(|_| can_be).for_each(f);
            }
            Template::Bn { norm, .. } => norm.tensors.iter().for_each(f),
            Template::Scale(Factor::Tensor(Vector { tensor, .. })) | Template::Shift(tensor) => {
                f(tensor);
            }
            Template::Scale(Factor::Number(_)) | Template::AvgPool(_) | Template::Identity => {}
            Template::Seq(xs) | Template::Sum(xs) => {
                xs.iter().for_each(|x| x.visit_tensors(f));
            }
            Template::Optional(x) | Template::Each(x) => x.visit_tensors(f),
        }
    }

    /// The names of all captures in it.
    pub fn captures(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self
            .tensors()
            .iter()
            .flat_map(|p| p.captures().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        names.extend(self.sizes());
        self.visit(&mut |node| {
            if let Template::AvgPool(Window::Of(p)) = node {
                names.extend(p.captures().map(str::to_owned));
            }
        });
        names
    }

    /// The captures whose text is a size: `"dilation": "{r}"`.
    pub fn sizes(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        self.visit(&mut |node| {
            if let Template::Conv(conv) = node {
                for size in &conv.dilation {
                    if let Size::Captured(p) = size {
                        names.extend(p.captures().map(str::to_owned));
                    }
                }
            }
        });
        names
    }

    /// Calls `f` on this node and every node below it.
    pub fn visit<'a>(&'a self, f: &mut impl FnMut(&'a Template)) {
        f(self);
        match self {
            Template::Seq(xs) | Template::Sum(xs) => xs.iter().for_each(|x| x.visit(f)),
            Template::Optional(x) | Template::Each(x) => x.visit(f),
            _ => {}
        }
    }
}
