//! The nodes of an ONNX graph as operators of ours.

use std::collections::{HashMap, HashSet};

use super::error::Error;
use super::ints::{self, Ints, MOST_INTS};
use super::open::Values;
use super::parts;
use super::proto::{Attribute, Model, Name, Node, is_onnx};
use super::shapes;
use crate::algebra::Values as _;
use crate::graph::model::{self, Arithmetic, Conv, Dim, Linear, Norm, Op, Pads, ValueId, Window};
use crate::tensor::{Checkpoint, Reader, Tensor, quoted};

/// What is known while the nodes are read one after the other.
pub(super) struct Reading<'a> {
    model: &'a Model,
    checkpoint: &'a Checkpoint,
    /// Constants by name, also those that nodes make of others.
    constants: HashMap<Name, Tensor>,
    pub values: &'a mut Values,
    /// Constants that nodes make.
    made: HashSet<Name>,
    /// Names that stand for something, but for nothing that is read here.
    unread: HashSet<Name>,
    /// What values that hold shapes hold.
    pub shapes: HashMap<Name, Vec<Dim>>,
    /// Whole numbers that nodes compute of constants alone.
    computed: HashMap<Name, Ints>,
    /// Values that are constant matrices with their axes exchanged: the matrices.
    turned: HashMap<Name, Tensor>,
}

/// Why a node is opaque, or what went wrong with the file.
pub(super) enum Trouble {
    Opaque(Option<String>),
    File(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::File(error)
    }
}

pub(super) fn because<T>(why: &str) -> Result<T, Trouble> {
    Err(Trouble::Opaque(Some(why.to_owned())))
}

pub(super) fn opaque<T>() -> Result<T, Trouble> {
    Err(Trouble::Opaque(None))
}

impl<'a> Reading<'a> {
    pub fn new(
        model: &'a Model,
        checkpoint: &'a Checkpoint,
        constants: HashMap<Name, Tensor>,
        values: &'a mut Values,
    ) -> Reading<'a> {
        let named = model.graph.tensors.iter().filter_map(|tensor| tensor.name);
        let unread = named.chain(model.graph.sparse.iter().copied()).collect();
        Reading {
            model,
            checkpoint,
            constants,
            values,
            made: HashSet::new(),
            unread,
            shapes: HashMap::new(),
            computed: HashMap::new(),
            turned: HashMap::new(),
        }
    }

    pub fn made(self) -> HashSet<Name> {
        self.made
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Format {
            path: self.checkpoint.path().to_owned(),
            reason,
        }
    }

    /// Reads one node, and names what it computes.
    pub fn node(&mut self, node: &Node) -> Result<model::Node, Error> {
        for name in node.inputs.iter().flatten() {
            if !self.values.numbers.contains_key(name)
                && !self.constants.contains_key(name)
                && !self.unread.contains(name)
            {
                return Err(self.wrong(format!(
                    "node {} reads {}, which nothing before it computes",
                    quoted(&node.name),
                    quoted(self.model.names.get(*name))
                )));
            }
        }
        for name in node.outputs.iter().flatten() {
            let constant = self.constants.contains_key(name) || self.unread.contains(name);
            let own = node.op == "Constant" && node.inputs.is_empty();
            if self.values.numbers.contains_key(name) || constant && !own {
                return Err(self.wrong(format!(
                    "two things are named {}; the name of a value must be its own",
                    quoted(self.model.names.get(*name))
                )));
            }
        }
        if let Some(tensor) = self.constant_node(node) {
            for name in node.outputs.iter().flatten() {
                self.constants.insert(*name, tensor.clone());
                self.made.insert(*name);
            }
            return Ok(self.ours(node, Op::Opaque(None), Vec::new(), Vec::new()));
        }
        let inferred = shapes::infer(self, node);
        self.remember(node);
        let (op, inputs) = match self.op(node) {
            Ok(found) => found,
            Err(Trouble::Opaque(why)) => (Op::Opaque(why), self.all_inputs(node)),
            Err(Trouble::File(error)) => return Err(error),
        };
        let outputs = self.name_outputs(node, inferred);
        Ok(self.ours(node, op, inputs, outputs))
    }

    /// What other nodes may ask of this one's output, which follows from constants.
    fn remember(&mut self, node: &Node) {
        let &[Some(output)] = &node.outputs[..] else {
            return;
        };
        if !self.is_known(node) {
            return;
        }
        if let Some(ints) = ints::computed(self, node) {
            self.computed.insert(output, ints);
        }
        let exchanges = match node.attributes.get("perm") {
            None => true,
            Some(Attribute::Ints(order)) => order[..] == [1, 0],
            Some(_) => false,
        };
        if node.op == "Transpose"
            && exchanges
            && let Some(matrix) = self.constant(node.inputs.first().copied().flatten())
            && matrix.shape().len() == 2
        {
            self.turned.insert(output, matrix.clone());
        }
    }

    /// Whether a node is one of ONNX's own, as they are read here.
    fn is_known(&self, node: &Node) -> bool {
        is_onnx(&node.domain)
            && node.captured.is_empty()
            && self.opset() >= 7
            && !self.model.redefined.contains(&node.op)
    }

    fn ours(
        &self,
        node: &Node,
        op: Op,
        inputs: Vec<ValueId>,
        outputs: Vec<ValueId>,
    ) -> model::Node {
        model::Node {
            name: node.name.clone(),
            module: module_of(node),
            op,
            inputs,
            outputs,
        }
    }

    fn name_outputs(&mut self, node: &Node, inferred: Vec<Option<Vec<Dim>>>) -> Vec<ValueId> {
        let names = node.outputs.iter().enumerate();
        names
            .filter_map(|(i, name)| Some((i, (*name)?)))
            .map(|(i, name)| {
                let shape = inferred.get(i).cloned().flatten();
                self.values.add(self.model, name, shape)
            })
            .collect()
    }

    /// Everything that a node reads, subgraphs included.
    fn all_inputs(&self, node: &Node) -> Vec<ValueId> {
        let names = node.inputs.iter().flatten().chain(&node.captured);
        names
            .filter_map(|name| self.values.numbers.get(name).copied())
            .collect()
    }

    /// The tensor that a node makes of constants alone, where the numbers stay what they are.
    fn constant_node(&self, node: &Node) -> Option<Tensor> {
        let [Some(output)] = node.outputs[..] else {
            return None;
        };
        if node.op == "Constant" && node.inputs.is_empty() {
            return self.constants.get(&output).cloned();
        }
        if !is_onnx(&node.domain) {
            return None;
        }
        let tensor = self.constants.get(&(*node.inputs.first()?)?)?;
        let shape = tensor.shape();
        let ints = |index: usize, key: &str| match node.inputs.get(index) {
            Some(Some(name)) => self.ints(*name),
            _ => node.attributes.get(key).and_then(|a| match a {
                Attribute::Ints(ints) => Some(ints.clone()),
                _ => None,
            }),
        };
        let shape = match &*node.op {
            "Identity" => shape.to_vec(),
            "Reshape" if self.attribute_int(node, "allowzero", 0) == 0 => {
                let shape: Vec<Dim> = shape.iter().map(|d| Dim::Known(*d)).collect();
                let wanted: Vec<Dim> = ints(1, "shape")?
                    .iter()
                    .map(|i| shapes::dim_of(*i))
                    .collect();
                shapes::known(&shapes::reshaped(&shape, &wanted)?)?
            }
            "Unsqueeze" => shapes::unsqueezed(shape, &ints(1, "axes")?)?,
            "Squeeze" => shapes::squeezed(shape, &ints(1, "axes")?)?,
            _ => return None,
        };
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        (elements == Some(tensor.len())).then(|| tensor.reshaped(shape))
    }

    /// The numbers of a constant, or of what follows from constants, that is a short list of whole numbers.
    pub fn ints(&self, name: Name) -> Option<Vec<i64>> {
        let ints = self.whole(name)?;
        (ints.shape.len() <= 1).then_some(ints.numbers)
    }

    /// A list that is an input or, in older versions of the format, an attribute.
    pub fn list(&self, node: &Node, index: usize, key: &str) -> Option<Vec<i64>> {
        match (node.inputs.get(index), node.attributes.get(key)) {
            (Some(Some(name)), _) => self.ints(*name),
            (_, Some(Attribute::Ints(ints))) => Some(ints.clone()),
            _ => None,
        }
    }

    /// The same with their shape.
    pub fn whole(&self, name: Name) -> Option<Ints> {
        if let Some(ints) = self.computed.get(&name) {
            return Some(ints.clone());
        }
        let tensor = self.constants.get(&name)?;
        let size = match tensor.dtype().to_string().as_str() {
            "I64" => 8,
            "I32" => 4,
            _ => return None,
        };
        if tensor.len() > MOST_INTS {
            return None;
        }
        let mut bytes = vec![0; tensor.len() * size];
        self.checkpoint.read_at(tensor, 0, &mut bytes).ok()?;
        let number = |b: &[u8]| match *b {
            [a, b, c, d] => Some(i64::from(i32::from_le_bytes([a, b, c, d]))),
            _ => b.first_chunk().map(|b| i64::from_le_bytes(*b)),
        };
        Some(Ints {
            shape: tensor.shape().to_vec(),
            numbers: bytes
                .chunks_exact(size)
                .map(number)
                .collect::<Option<_>>()?,
        })
    }

    /// The one number of a constant.
    fn number(&self, tensor: &Tensor) -> Option<f64> {
        if tensor.len() != 1 || tensor.dtype().float().is_none() {
            return None;
        }
        let mut reader = Reader::new(self.checkpoint, 0);
        let numbers = reader.vector(tensor, 0, 1).ok()?;
        numbers.first().copied()
    }

    pub fn constant(&self, name: Option<Name>) -> Option<&Tensor> {
        self.constants.get(&name?)
    }

    pub fn value(&self, node: &Node, index: usize) -> Option<ValueId> {
        let name = (*node.inputs.get(index)?)?;
        self.values.numbers.get(&name).copied()
    }

    pub fn attribute_int(&self, node: &Node, key: &str, default: i64) -> i64 {
        match node.attributes.get(key) {
            Some(Attribute::Int(value)) => *value,
            _ => default,
        }
    }

    fn attribute_float(&self, node: &Node, key: &str, default: f32) -> f32 {
        match node.attributes.get(key) {
            Some(Attribute::Float(value)) => *value,
            _ => default,
        }
    }

    fn attribute_text<'n>(&self, node: &'n Node, key: &str) -> Option<&'n [u8]> {
        match node.attributes.get(key) {
            Some(Attribute::Text(value)) => Some(value),
            _ => None,
        }
    }

    pub fn opset(&self) -> i64 {
        self.model.opset.unwrap_or(0)
    }

    /// What a node does, and what it reads that is no constant.
    fn op(&self, node: &Node) -> Result<(Op, Vec<ValueId>), Trouble> {
        if !self.is_known(node) {
            return opaque();
        }
        let op = match &*node.op {
            "Conv" => Op::Conv(self.conv(node, false)?),
            "ConvTranspose" => Op::Conv(self.conv(node, true)?),
            "BatchNormalization" => Op::Norm(self.norm(node)?),
            "Add" | "Sub" | "Mul" | "Div" => return self.arithmetic(node),
            "Neg" => Op::Neg,
            "Concat" => return parts::concat(self, node),
            "Slice" => return parts::slice(self, node),
            "Split" => return parts::split(self, node),
            "Transpose" => return parts::transpose(self, node),
            "Gemm" => Op::Linear(self.gemm(node)?),
            "MatMul" => Op::Linear(self.product(node)?),
            "AveragePool" => Op::AvgPool(self.average(node)?),
            "Pad" => Op::Pad(self.pad(node)?),
            "Identity" => Op::Identity,
            "Dropout" => self.dropout(node)?,
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => {
                let Some(input) = self.value(node, 0) else {
                    return opaque();
                };
                let shape = self.value(node, 1);
                return Ok((Op::Reshape, [input].into_iter().chain(shape).collect()));
            }
            _ => return opaque(),
        };
        let Some(input) = self.value(node, 0) else {
            return because("its input is a constant");
        };
        if node.outputs.iter().skip(1).any(Option::is_some) && node.op != "Dropout" {
            return because("it has several outputs");
        }
        // What follows from constants is no constant of the file; whoever asked for it reads it.
        let rest = (1..node.inputs.len()).filter_map(|i| self.value(node, i));
        Ok((op, [input].into_iter().chain(rest).collect()))
    }

    /// A float tensor that is constant.
    fn weight(&self, node: &Node, index: usize, what: &str) -> Result<Tensor, Trouble> {
        match self.constant(node.inputs.get(index).copied().flatten()) {
            Some(tensor) if tensor.dtype().float().is_some() => Ok(tensor.clone()),
            Some(_) => because(&format!("its {what} is no floating-point tensor")),
            None => because(&format!("its {what} is no constant")),
        }
    }

    fn optional_weight(
        &self,
        node: &Node,
        index: usize,
        what: &str,
    ) -> Result<Option<Tensor>, Trouble> {
        match node.inputs.get(index).copied().flatten() {
            None => Ok(None),
            Some(_) => self.weight(node, index, what).map(Some),
        }
    }

    /// An attribute of one number for each axis, none of them negative.
    fn axes(
        &self,
        node: &Node,
        key: &str,
        axes: usize,
        default: usize,
    ) -> Result<Vec<usize>, Trouble> {
        let ints = match node.attributes.get(key) {
            None => return Ok(vec![default; axes]),
            Some(Attribute::Ints(ints)) => ints,
            Some(_) => return because(&format!("its `{key}` are no whole numbers")),
        };
        let numbers: Result<Vec<usize>, _> = ints.iter().map(|i| usize::try_from(*i)).collect();
        match numbers {
            Ok(numbers) if numbers.len() == axes => Ok(numbers),
            _ => because(&format!("its `{key}` do not fit its axes")),
        }
    }

    fn conv(&self, node: &Node, transposed: bool) -> Result<Conv, Trouble> {
        let weight = self.weight(node, 1, "weight")?;
        let bias = self.optional_weight(node, 2, "bias")?;
        let axes = match weight.shape().len() {
            rank @ 3..=5 => rank - 2,
            _ => return because("its weight has another number of axes than that of a conv"),
        };
        let stride = self.axes(node, "strides", axes, 1)?;
        let dilation = self.axes(node, "dilations", axes, 1)?;
        let kernel = &weight.shape()[2..];
        if stride.contains(&0) || dilation.contains(&0) || kernel.contains(&0) {
            return because("a stride, a dilation or an extent of it is zero");
        }
        if self
            .axes(node, "kernel_shape", axes, 0)?
            .iter()
            .zip(kernel)
            .any(|(a, k)| *a != 0 && a != k)
        {
            return because("its `kernel_shape` is not that of its weight");
        }
        let Ok(groups) = usize::try_from(self.attribute_int(node, "group", 1)) else {
            return because("its number of groups is negative");
        };
        let first = weight.shape()[0];
        if groups == 0 || !first.is_multiple_of(groups) {
            return because("its channels cannot be cut into its groups");
        }
        let outputs = if transposed {
            weight.shape()[1].saturating_mul(groups)
        } else {
            first
        };
        if bias.as_ref().is_some_and(|bias| bias.shape() != [outputs]) {
            return because("its bias is not one number for each output channel");
        }
        let added = self.axes(node, "output_padding", axes, 0)?;
        if transposed && node.attributes.contains_key("output_shape") {
            return because("its padding follows from its `output_shape`");
        }
        let extents: Vec<usize> = kernel
            .iter()
            .zip(&dilation)
            .map(|(k, d)| (k - 1).saturating_mul(*d).saturating_add(1))
            .collect();
        Ok(Conv {
            pads: self.pads(node, axes, &extents, &stride, transposed)?,
            weight,
            bias,
            stride,
            dilation,
            groups,
            transposed: transposed.then_some(added),
        })
    }

    /// Explicit paddings, also those that `auto_pad` comes to.
    fn pads(
        &self,
        node: &Node,
        axes: usize,
        extents: &[usize],
        stride: &[usize],
        transposed: bool,
    ) -> Result<Pads, Trouble> {
        let upper = match self.attribute_text(node, "auto_pad") {
            None | Some(b"NOTSET") => {
                let mut before = self.axes(node, "pads", 2 * axes, 0)?;
                let after = before.split_off(axes);
                return Ok(Pads { before, after });
            }
            Some(b"VALID") => {
                let none = vec![0; axes];
                return Ok(Pads {
                    before: none.clone(),
                    after: none,
                });
            }
            Some(b"SAME_UPPER") => true,
            Some(b"SAME_LOWER") => false,
            Some(_) => return because("its `auto_pad` is none that ONNX knows"),
        };
        if transposed {
            return because("its padding follows from the shape of its output");
        }
        let shape = self
            .value(node, 0)
            .and_then(|id| self.values.values[id.0].shape.as_ref());
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (i, (&extent, &stride)) in extents.iter().zip(stride).enumerate() {
            let total = match (stride, shape.and_then(|shape| shape.get(i + 2))) {
                (1, _) => extent - 1,
                (_, Some(Dim::Known(size))) => {
                    let windows = size.div_ceil(stride).max(1);
                    ((windows - 1).saturating_mul(stride).saturating_add(extent))
                        .saturating_sub(*size)
                }
                _ => return because("its padding follows from a size that is not known"),
            };
            let (less, more) = (total / 2, total - total / 2);
            before.push(if upper { less } else { more });
            after.push(if upper { more } else { less });
        }
        Ok(Pads { before, after })
    }

    fn norm(&self, node: &Node) -> Result<Norm, Trouble> {
        if self.attribute_int(node, "training_mode", 0) != 0 {
            return because("it is in training mode; export the network after `model.eval()`");
        }
        if self.attribute_int(node, "spatial", 1) != 1 {
            return because("it has numbers for each pixel");
        }
        let tensor = |index, what| self.weight(node, index, what);
        let (weight, bias) = (tensor(1, "scale")?, tensor(2, "bias")?);
        let (mean, var) = (tensor(3, "mean")?, tensor(4, "variance")?);
        let shape = weight.shape();
        if shape.len() != 1 || [&bias, &mean, &var].iter().any(|t| t.shape() != shape) {
            return because("its tensors are not one number for each channel");
        }
        // The file holds the nearest f32 to the eps that was meant; what runs the network uses that.
        Ok(Norm {
            mean,
            var,
            affine: Some([weight, bias]),
            eps: f64::from(self.attribute_float(node, "epsilon", 1e-5)),
        })
    }

    fn arithmetic(&self, node: &Node) -> Result<(Op, Vec<ValueId>), Trouble> {
        let &[Some(a), Some(b)] = &node.inputs[..] else {
            return opaque();
        };
        let [x, y] = [a, b].map(|name| self.values.numbers.get(&name).copied());
        let [c, d] = [a, b].map(|name| self.constants.get(&name).cloned());
        let (input, constant, first) = match (x, y, c, d) {
            (Some(x), Some(y), _, _) => {
                return match &*node.op {
                    "Add" => Ok((Op::Add, vec![x, y])),
                    "Sub" => Ok((Op::Sub, vec![x, y])),
                    _ => opaque(),
                };
            }
            (Some(x), _, _, Some(d)) => (x, d, false),
            (_, Some(y), Some(c), _) => (y, c, true),
            _ => return opaque(),
        };
        if constant.dtype().float().is_none() {
            return opaque();
        }
        use Arithmetic as A;
        let how = match (&*node.op, first) {
            ("Add", _) => A::Add,
            ("Sub", false) => A::Sub,
            ("Sub", true) => A::SubFrom,
            ("Mul", _) => A::Mul,
            ("Div", false) => A::Div,
            _ => return opaque(),
        };
        // Sums that start at 0 are exported as such.
        let nothing = match how {
            A::Add | A::Sub => Some(0.0),
            A::Mul | A::Div => Some(1.0),
            A::SubFrom => None,
        };
        let rank = self.values.values[input.0].shape.as_ref().map(Vec::len);
        let op = match self.number(&constant) {
            found
                if found.is_some()
                    && found == nothing
                    && constant.shape().len() <= rank.unwrap_or(1) =>
            {
                Op::Identity
            }
            _ => Op::WithConstant(how, constant),
        };
        Ok((op, vec![input]))
    }

    fn gemm(&self, node: &Node) -> Result<Linear, Trouble> {
        if self.attribute_float(node, "alpha", 1.0) != 1.0
            || self.attribute_float(node, "beta", 1.0) != 1.0
            || self.attribute_int(node, "transA", 0) != 0
        {
            return because("it scales or transposes what it multiplies");
        }
        let linear = Linear {
            weight: self.weight(node, 1, "matrix")?,
            in_first: self.attribute_int(node, "transB", 0) == 0,
            bias: self.optional_weight(node, 2, "bias")?,
        };
        if linear.weight.shape().len() != 2 {
            return because("its matrix has another number of axes");
        }
        let outputs = linear.weight.shape()[usize::from(linear.in_first)];
        let bias = match &linear.bias {
            Some(bias) if bias.len() == outputs && bias.shape().last() == Some(&outputs) => {
                Some(bias.reshaped(vec![outputs]))
            }
            Some(_) => return because("its bias is not one number for each output"),
            None => None,
        };
        Ok(Linear { bias, ..linear })
    }

    fn product(&self, node: &Node) -> Result<Linear, Trouble> {
        let name = node.inputs.get(1).copied().flatten();
        if let Some(matrix) = name.and_then(|name| self.turned.get(&name))
            && matrix.dtype().float().is_some()
        {
            return Ok(Linear {
                weight: matrix.clone(),
                in_first: false,
                bias: None,
            });
        }
        if self.constant(name).is_none() {
            return opaque();
        }
        let weight = self.weight(node, 1, "matrix")?;
        match weight.shape().len() {
            2 => Ok(Linear {
                weight,
                in_first: true,
                bias: None,
            }),
            _ => because("its matrix has another number of axes"),
        }
    }

    fn average(&self, node: &Node) -> Result<Window, Trouble> {
        let Some(Attribute::Ints(kernel)) = node.attributes.get("kernel_shape") else {
            return opaque();
        };
        let axes = kernel.len();
        if !(1..=3).contains(&axes) {
            return opaque();
        }
        let kernel = self.axes(node, "kernel_shape", axes, 1)?;
        let stride = self.axes(node, "strides", axes, 1)?;
        if kernel.contains(&0) || stride.contains(&0) {
            return because("a stride or an extent of it is zero");
        }
        if self.attribute_int(node, "ceil_mode", 0) != 0 {
            return because("its last window may reach beyond the padding");
        }
        if self
            .axes(node, "dilations", axes, 1)?
            .iter()
            .any(|d| *d != 1)
        {
            return because("its window is dilated");
        }
        let pads = self.pads(node, axes, &kernel, &stride, false)?;
        let padded = pads.before.iter().chain(&pads.after).any(|p| *p > 0);
        if padded && self.attribute_int(node, "count_include_pad", 0) == 0 {
            return because("it leaves its padding out of the average");
        }
        Ok(Window {
            kernel,
            stride,
            pads,
        })
    }

    fn pad(&self, node: &Node) -> Result<Pads, Trouble> {
        if !matches!(self.attribute_text(node, "mode"), None | Some(b"constant")) {
            return because("it pads with what is at the border");
        }
        let (ints, value) = if self.opset() >= 11 {
            let Some(ints) = node
                .inputs
                .get(1)
                .copied()
                .flatten()
                .and_then(|n| self.ints(n))
            else {
                return because("how much it pads is no constant");
            };
            let value = match node.inputs.get(2).copied().flatten() {
                None => Some(0.0),
                Some(name) => self
                    .constants
                    .get(&name)
                    .and_then(|tensor| self.number(tensor)),
            };
            (ints, value)
        } else {
            let Some(Attribute::Ints(ints)) = node.attributes.get("pads") else {
                return opaque();
            };
            (
                ints.clone(),
                Some(f64::from(self.attribute_float(node, "value", 0.0))),
            )
        };
        if value != Some(0.0) {
            return because("it pads with something else than zeros");
        }
        let (mut all, named) = (ints, node.inputs.get(3).copied().flatten());
        if let Some(name) = named {
            let rank = self
                .value(node, 0)
                .and_then(|id| self.values.values[id.0].shape.as_ref());
            let (Some(axes), Some(rank)) = (self.ints(name), rank.map(Vec::len)) else {
                return because("which axes it pads is not known");
            };
            let Some(spread) = shapes::on_axes(&all, &axes, rank) else {
                return because("its axes do not fit what it pads");
            };
            all = spread;
        }
        let numbers: Result<Vec<usize>, _> = all.iter().map(|i| usize::try_from(*i)).collect();
        let rank = all.len() / 2;
        match numbers {
            Ok(numbers) if (3..=5).contains(&rank) && all.len() % 2 == 0 => {
                let (before, after) = numbers.split_at(rank);
                if [before, after].iter().any(|of| of[..2] != [0, 0]) {
                    return because("it pads channels");
                }
                Ok(Pads {
                    before: before[2..].to_vec(),
                    after: after[2..].to_vec(),
                })
            }
            Ok(_) => because("it pads another number of axes than a conv has"),
            Err(_) => because("it cuts off a border"),
        }
    }

    fn dropout(&self, node: &Node) -> Result<Op, Trouble> {
        if node.outputs.len() > 1 && node.outputs[1].is_some() {
            return because("it gives its mask, too");
        }
        if node.inputs.len() > 2 && node.inputs[2].is_some() {
            let training = self.constant(node.inputs[2]);
            let mut byte = [1];
            let off = training.is_some_and(|tensor| {
                tensor.byte_len() == 1
                    && self.checkpoint.read_at(tensor, 0, &mut byte).is_ok()
                    && byte == [0]
            });
            if !off {
                return because("it may be in training mode");
            }
        }
        Ok(Op::Identity)
    }
}

/// The dotted path of the module that a node belongs to, as PyTorch's exporters tell it.
fn module_of(node: &Node) -> Option<String> {
    if let Some(scopes) = &node.scopes {
        // `['', 'stem', 'stem.conv', 'conv2d']`: the last is the operator.
        let quoted: Vec<&str> = scopes.split('\'').skip(1).step_by(2).collect();
        let (_, modules) = quoted.split_last()?;
        return modules
            .last()
            .filter(|m| !m.is_empty())
            .map(|m| (*m).to_owned());
    }
    // `/stem/conv/Conv`: a module within a list is named after the list, too.
    let mut parts = node.name.strip_prefix('/')?.split('/').collect::<Vec<_>>();
    parts.pop()?;
    let mut path: Vec<String> = Vec::new();
    for part in parts {
        match path.last_mut() {
            Some(last)
                if part
                    .strip_prefix(&**last)
                    .is_some_and(|rest| rest.starts_with('.')) =>
            {
                *last = part.to_owned();
            }
            _ => path.push(part.to_owned()),
        }
    }
    (!path.is_empty()).then(|| path.join("."))
}
