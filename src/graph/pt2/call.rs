//! One call of an operator: its arguments by name, with the defaults of those that are left out.

use std::collections::HashMap;
use std::sync::Arc;

use super::json::{Tagged, read};
use super::schema::{NodeText, TensorMeta, names};
use super::weights;
use crate::graph::model::Dim;
use crate::tensor::{Dtype, Tensor, quoted};

/// What is known of the values of a graph.
#[derive(Default)]
pub(super) struct Context<'a> {
    /// Values that are the same in every run, by name: weights, and views of them.
    pub(super) constants: HashMap<String, Tensor>,
    /// Placeholders of tensors that are not constant, or that cannot be read, and why.
    pub(super) unread: HashMap<String, String>,
    /// Values that are a constant in a larger shape, by name.
    pub(super) spread: HashMap<String, Tensor>,
    /// The type and shape of every value.
    pub(super) metas: HashMap<String, TensorMeta<'a>>,
}

/// A call and what is known around it.
pub(super) struct Call<'c> {
    pub(super) node: &'c NodeText<'c>,
    pub(super) context: &'c Context<'c>,
}

/// What a tensor argument is.
pub(super) enum Input {
    /// `None`, or left out.
    Absent,
    /// The same in every run.
    Constant(Tensor),
    /// Computed when the network runs.
    Value(String),
}

/// Why a node is not understood; none where it is simply another operator.
pub(super) type Opaque = Option<String>;

/// More than any window, stride or padding has.
const MOST: usize = 1 << 20;

/// Says why.
pub(super) fn because<T>(why: impl Into<String>) -> Result<T, Opaque> {
    Err(Some(why.into()))
}

impl Context<'_> {
    /// The dimensions of a value.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<Dim>> {
        self.metas
            .get(name)
            .map(|meta| meta.sizes.iter().map(dim).collect())
    }

    /// The strides of a value, as text.
    pub(super) fn strides(&self, name: &str) -> Option<Vec<Dim>> {
        self.metas
            .get(name)
            .map(|meta| meta.strides.iter().map(dim).collect())
    }

    /// The element type of a value.
    pub(super) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.metas
            .get(name)
            .and_then(|meta| weights::dtype(meta.dtype))
    }
}

/// A dimension: a number, or a symbol that stands for one.
fn dim(size: &Tagged<'_>) -> Dim {
    if let Some(n) = weights::known(size).and_then(|n| usize::try_from(n).ok()) {
        return Dim::Known(n);
    }
    let symbol = read::<serde_json::Value>(size.value).ok();
    match symbol
        .as_ref()
        .and_then(|symbol| symbol.get("expr_str")?.as_str())
    {
        Some(name) => Dim::Named(Arc::from(name)),
        None => Dim::Any,
    }
}

impl Call<'_> {
    fn argument(&self, name: &str) -> Option<&Tagged<'_>> {
        let named = self.node.inputs.iter().find(|input| input.name.0 == name);
        named
            .map(|input| &input.arg)
            .filter(|arg| arg.tag != "as_none")
    }

    /// The first argument, which operators call `self` or `input`.
    pub(super) fn first(&self) -> Result<Input, Opaque> {
        match self.node.inputs.first() {
            Some(first) => self.input_of(&first.arg),
            None => Ok(Input::Absent),
        }
    }

    /// The name of the value that the first argument is.
    pub(super) fn value(&self) -> Result<String, Opaque> {
        match self.first()? {
            Input::Value(name) => Ok(name),
            Input::Constant(_) | Input::Absent => Err(None),
        }
    }

    /// A tensor argument.
    pub(super) fn input(&self, name: &str) -> Result<Input, Opaque> {
        match self.argument(name) {
            None => Ok(Input::Absent),
            Some(arg) => self.input_of(arg),
        }
    }

    fn input_of(&self, arg: &Tagged<'_>) -> Result<Input, Opaque> {
        match (&*arg.tag, &names(arg)[..]) {
            ("as_none", _) => Ok(Input::Absent),
            ("as_tensor" | "as_optional_tensor", [name]) => {
                if let Some(why) = self.context.unread.get(name) {
                    return because(why);
                }
                Ok(match self.context.constants.get(name) {
                    Some(tensor) => Input::Constant(tensor.clone()),
                    None => Input::Value(name.clone()),
                })
            }
            _ => Err(None),
        }
    }

    /// A list of constants, of which some are left out.
    pub(super) fn optional_constants(&self, name: &str) -> Result<Vec<Option<Tensor>>, Opaque> {
        let arg = self.argument(name).ok_or(None)?;
        let one = |found: Input| match found {
            Input::Absent => Ok(None),
            Input::Constant(tensor) => Ok(Some(tensor)),
            Input::Value(_) => Err(None),
        };
        match &*arg.tag {
            "as_optional_tensors" => {
                let list: Vec<Tagged<'_>> = read(arg.value).map_err(|_| None)?;
                let all = list.iter().map(|arg| one(self.input_of(arg)?));
                all.collect()
            }
            "as_tensors" => {
                let constant = |name: &String| self.context.constants.get(name).cloned();
                let all = names(arg);
                all.iter()
                    .map(|name| Ok(Some(constant(name).ok_or(None)?)))
                    .collect()
            }
            _ => Err(None),
        }
    }

    /// Whether an argument is there.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.argument(name).is_some()
    }

    /// The names of the values that a list of tensors holds.
    pub(super) fn values(&self, name: &str) -> Result<Vec<String>, Opaque> {
        let list = self
            .argument(name)
            .filter(|arg| arg.tag == "as_tensors")
            .ok_or(None)?;
        let list = names(list);
        let stored = |name: &String| {
            self.context.constants.contains_key(name) || self.context.unread.contains_key(name)
        };
        match list.iter().any(stored) {
            true => because("one of its inputs is a constant"),
            false => Ok(list),
        }
    }

    /// A tensor argument that must be constant.
    pub(super) fn weight(&self, name: &str) -> Result<Option<Tensor>, Opaque> {
        match self.input(name)? {
            Input::Absent => Ok(None),
            Input::Constant(tensor) if tensor.dtype().float().is_some() => Ok(Some(tensor)),
            Input::Constant(tensor) => {
                because(format!("its {name} {tensor} is {}", tensor.dtype()))
            }
            Input::Value(value) => because(format!(
                "its {name} {} is computed when the network runs",
                quoted(&value)
            )),
        }
    }

    /// A whole number.
    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64, Opaque> {
        match self.argument(name) {
            None => Ok(default),
            Some(arg) => integer(arg).ok_or(None),
        }
    }

    /// Whole numbers; none where they are left out. One number is a list of one.
    pub(super) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Opaque> {
        let Some(arg) = self.argument(name) else {
            return Ok(None);
        };
        let list = match &*arg.tag {
            "as_ints" => read(arg.value).ok(),
            "as_sym_ints" => read::<Vec<Tagged<'_>>>(arg.value)
                .ok()
                .and_then(|list| list.iter().map(integer).collect()),
            _ => integer(arg).map(|n| vec![n]),
        };
        list.map(Some).ok_or(None)
    }

    /// One number for each of `rank` axes, or one for all of them.
    pub(super) fn per_axis(
        &self,
        name: &str,
        rank: usize,
        default: usize,
    ) -> Result<Vec<usize>, Opaque> {
        let Some(list) = self.ints(name)?.filter(|list| !list.is_empty()) else {
            return Ok(vec![default; rank]);
        };
        let count = |n: &i64| usize::try_from(*n).ok().filter(|n| *n <= MOST);
        let list: Option<Vec<usize>> = list.iter().map(count).collect();
        match list.ok_or(None)? {
            list if list.len() == rank => Ok(list),
            list if list.len() == 1 => Ok(vec![list[0]; rank]),
            _ => Err(None),
        }
    }

    /// True or false.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, Opaque> {
        match self.argument(name) {
            None => Ok(default),
            Some(arg) if arg.tag == "as_bool" => read(arg.value).map_err(|_| None),
            Some(_) => Err(None),
        }
    }

    /// A number, none where it is left out.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, Opaque> {
        match self.argument(name) {
            None => Ok(None),
            Some(arg) if matches!(&*arg.tag, "as_float" | "as_int") => {
                read(arg.value).map(Some).map_err(|_| None)
            }
            Some(_) => Err(None),
        }
    }

    /// Whether an argument is a number that stands in the call.
    pub(super) fn is_number(&self, name: &str) -> bool {
        self.argument(name)
            .is_some_and(|arg| matches!(&*arg.tag, "as_float" | "as_int"))
    }

    /// A text, none where it is left out.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Opaque> {
        match self.argument(name) {
            None => Ok(None),
            Some(arg) if arg.tag == "as_string" => read(arg.value).map(Some).map_err(|_| None),
            Some(_) => Err(None),
        }
    }

    /// The names of everything that it reads.
    pub(super) fn reads(&self) -> Vec<String> {
        self.node
            .inputs
            .iter()
            .flat_map(|input| names(&input.arg))
            .collect()
    }

    /// The names of everything that it computes.
    pub(super) fn outputs(&self) -> Vec<String> {
        self.node.outputs.iter().flat_map(names).collect()
    }

    /// The name of the one value that it computes.
    pub(super) fn output(&self) -> Result<String, Opaque> {
        <[String; 1]>::try_from(self.outputs())
            .map(|[name]| name)
            .map_err(|_| None)
    }

    /// The dimensions of a value.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<Dim>, Opaque> {
        self.context.shape(name).ok_or(None)
    }

    /// An axis of a value of `rank` dimensions: negative ones count from the end.
    pub(super) fn axis(&self, name: &str, default: i64, rank: usize) -> Result<usize, Opaque> {
        let axis = self.int(name, default)?;
        let axis = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(axis)
            .ok()
            .filter(|axis| *axis < rank)
            .ok_or(None)
    }
}

fn integer(arg: &Tagged<'_>) -> Option<i64> {
    match &*arg.tag {
        "as_int" => read(arg.value).ok(),
        "as_sym_int" => integer(&read::<Tagged<'_>>(arg.value).ok()?),
        _ => None,
    }
}
