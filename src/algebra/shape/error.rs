//! What can be wrong with the shapes of an expression.

use crate::algebra::extent::Extent;

/// Why the shapes of an expression do not fit. Leaves are named by their labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum GeometryError {
    #[error(
        "{leaf} has shape {shape:?}; expected a conv weight with 2 to 5 dimensions and no zero"
    )]
    NotAWeight { leaf: String, shape: Vec<usize> },
    #[error("{leaf} has {found} values; expected {expected}, one per channel")]
    Length {
        leaf: String,
        found: usize,
        expected: usize,
    },
    #[error(
        "{leaf} has shape {shape:?}: {per_group} input channels per group do not divide the {inputs} channels {source_of_inputs}"
    )]
    Inputs {
        leaf: String,
        shape: Vec<usize>,
        per_group: usize,
        inputs: usize,
        source_of_inputs: String,
    },
    #[error(
        "{leaf} has shape {shape:?}: its {out} output channels do not divide into {groups} groups"
    )]
    Groups {
        leaf: String,
        shape: Vec<usize>,
        out: usize,
        groups: usize,
    },
    #[error(
        "{leaf} has shape {shape:?}: its {} input channels do not divide into {groups} groups",
        shape[0]
    )]
    TransposedGroups {
        leaf: String,
        shape: Vec<usize>,
        groups: usize,
    },
    #[error(
        "{leaf} has shape {shape:?}: a transposed conv of {} input channels, applied to {inputs}",
        shape[0]
    )]
    TransposedInputs {
        leaf: String,
        shape: Vec<usize>,
        inputs: usize,
    },
    #[error("{leaf} has shape {shape:?}, so {found} groups; the recipe declares {declared}")]
    Declared {
        leaf: String,
        shape: Vec<usize>,
        found: usize,
        declared: usize,
    },
    #[error(
        "{left} gives {left_out} channels and {right} gives {right_out}; branches that are added need the same number"
    )]
    Outputs {
        left: String,
        left_out: usize,
        right: String,
        right_out: usize,
    },
    #[error(
        "{left} has {left_in} input channels per group and {right} has {right_in}; branches that are added need the same number"
    )]
    Widths {
        left: String,
        left_in: usize,
        right: String,
        right_in: usize,
    },
    #[error(
        "{left} covers {left_extent:?} taps and {right} covers {right_extent:?}: they have no common centre; each axis needs both odd or both even"
    )]
    Centre {
        left: String,
        left_extent: Vec<usize>,
        right: String,
        right_extent: Vec<usize>,
    },
    #[error(
        "{leaf} has shape {shape:?}: an identity needs as many output as input channels, and this conv gives {out} from {inputs}"
    )]
    Identity {
        leaf: String,
        shape: Vec<usize>,
        out: usize,
        inputs: usize,
    },
    #[error(
        "{leaf} has shape {shape:?}, and nothing in the block says how many groups it has; declare it with `\"groups\"` in the recipe"
    )]
    Ambiguous { leaf: String, shape: Vec<usize> },
    #[error("a block needs at least one conv; this one has none")]
    NoConv,
    #[error(
        "{leaf} is the weight of a transposed conv, which can only be followed by batch norms, scales and shifts"
    )]
    Transposed { leaf: String },
    #[error("an empty sequence or sum, or no channels")]
    Empty,
    #[error("an average pooling over a window of {0:?}; expected at least 1 along each axis")]
    Window(Extent),
    #[error("{leaf} has dilation {dilation:?}; expected at least 1 along each axis")]
    Dilation { leaf: String, dilation: Extent },
    #[error("channels {channels:?} of {of} are selected from {inputs}")]
    Select {
        channels: Vec<usize>,
        of: usize,
        inputs: usize,
    },
    #[error("its dilations and means cover more than this machine can address")]
    TooLarge,
    #[error(
        "one kernel for it would be {kernel:?}, far more than the {stored} numbers of its tensors; a dilation or a mean is too wide"
    )]
    Spread { kernel: Vec<usize>, stored: usize },
    #[error(
        "running it takes {found} multiply-adds for one map; at most {most} are taken for the {stored} numbers of its tensors: too many convs or means \
         stand one behind another"
    )]
    Run {
        found: usize,
        most: usize,
        stored: usize,
    },
    #[error("{found} convs stand one behind another; at most {most} are folded into one")]
    InARow { found: usize, most: usize },
    #[error("its sums multiply out to {found} products; at most {most} are folded")]
    Products { found: usize, most: usize },
}
