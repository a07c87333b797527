//! Plain data that stands around a state dict in a file of PyTorch: an epoch, the names of the classes, a configuration.

/// A value as `torch.load(weights_only=True)` takes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Plain {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Integer(i64),
    /// A floating-point number.
    Number(f64),
    /// A text.
    Text(String),
    /// A tuple.
    Tuple(Vec<Plain>),
    /// A list.
    List(Vec<Plain>),
    /// A dict, in its order.
    Dict(Vec<(Plain, Plain)>),
    /// The place of the state dict.
    StateDict,
}

/// What stands around the state dict of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrapping {
    /// The key of the state dict, as in `ema.module`; none if it is not wrapped.
    pub key: Option<String>,
    /// Other keys at the top under which there is a state dict or a module, too.
    pub others: Vec<String>,
    /// Keys at the top under which other weights stand, which are not read: a head beside its backbone's state dict.
    pub beside: Vec<String>,
    /// The file as a whole: what in it is plain, and the place of the state dict.
    pub plain: Plain,
    /// The keys beside the state dict of what is not plain, as an optimizer is.
    pub left_out: Vec<String>,
}
