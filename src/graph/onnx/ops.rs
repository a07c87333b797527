//! The nodes of an ONNX graph as operators of ours.

use super::error::Error;
use super::proto::{Attribute, Name, Node};
use super::reading::{Reading, Trouble, because, opaque};
use super::{computed, dims, floats, ints, parts, products, shapes, windows};
use crate::graph::model::{self, Dim, Norm, Op, ValueId};
use crate::graph::wanted::{FEW, is_large};
use crate::tensor::{Tensor, quoted};

impl Reading<'_> {
    /// The tensors of the file that some constants are computed of.
    fn stored(&self, of: &[Tensor]) -> Vec<Tensor> {
        let parts = of.iter().flat_map(|tensor| {
            let made = self.parts.get(tensor.name());
            made.map_or_else(|| vec![tensor.clone()], Vec::clone)
        });
        parts.collect()
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Format {
            path: self.checkpoint.path().to_owned(),
            reason,
        }
    }

    /// Whether a node reads what is there, and gives names that nothing has.
    fn check_names(&self, node: &Node) -> Result<(), Error> {
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
        Ok(())
    }

    /// Reads one node, and names what it computes.
    pub fn node(&mut self, node: &Node) -> Result<model::Node, Error> {
        self.check_names(node)?;
        let constant = match self.constant_node(node) {
            Some(tensor) => {
                let names = node.outputs.iter().flatten();
                let values = names.map(|name| (*name, tensor.clone())).collect();
                Some((values, None))
            }
            None if self.remember_ints(node) => Some((Vec::new(), None)),
            None if self.is_known(node) && !self.is_too_much(node) => {
                let mut budget = std::mem::take(&mut self.budget);
                let found = computed::computed(self, node, &mut budget);
                self.budget = budget;
                found.map(|found| (found.values, Some(found.of)))
            }
            None => None,
        };
        let shaped_by = self.shaped_by(node);
        if let Some((values, of)) = constant {
            self.made_of_constants(node, values, of, &shaped_by);
            return Ok(self.ours(node, Op::Opaque(None), Vec::new(), Vec::new()));
        }
        // What a function of the model does is not what its name says.
        let inferred = match self.is_known(node) {
            true => shapes::infer(self, node),
            false => Vec::new(),
        };
        self.remember(node);
        if self.is_known(node)
            && let Some(float) = floats::given(self, node)
        {
            // A mask beside the first output, or a statistic, may have another one.
            let count = if node.op == "Split" { usize::MAX } else { 1 };
            let outputs = node.outputs.iter().take(count).flatten();
            self.floats.extend(outputs.map(|name| (*name, float)));
        }
        let (op, inputs) = match self.op(node) {
            Ok(found) => found,
            Err(Trouble::Opaque(why)) => (Op::Opaque(why), self.all_inputs(node)),
            Err(Trouble::File(error)) => return Err(error),
        };
        // These must be there as long as it is.
        let inputs = inputs.into_iter().chain(shaped_by).collect();
        let outputs = self.name_outputs(node, inferred);
        Ok(self.ours(node, op, inputs, outputs))
    }

    /// Takes note of constants that a node makes, and of what, where they have been computed. What it gives beside these is known to be
    /// constant, and no more.
    fn made_of_constants(
        &mut self,
        node: &Node,
        constants: Vec<(Name, Tensor)>,
        of: Option<Vec<Tensor>>,
        shaped_by: &[ValueId],
    ) {
        let of = of.map(|of| self.stored(&of));
        let inputs = node.inputs.iter().flatten();
        let values = inputs.filter_map(|name| self.values.numbers.get(name));
        let needed: Vec<ValueId> = values.chain(shaped_by).copied().collect();
        for (name, tensor) in constants {
            if let Some(of) = &of {
                self.parts.insert(tensor.name().to_owned(), of.clone());
            }
            self.constants.insert(name, tensor);
        }
        for name in node.outputs.iter().flatten() {
            self.made.insert(*name);
            if !self.constants.contains_key(name) {
                self.unread.insert(*name);
            }
            if !needed.is_empty() {
                self.shaped_by.insert(*name, needed.clone());
            }
        }
    }

    /// Whether a node gives more numbers than are worked out for nobody.
    fn is_too_much(&mut self, node: &Node) -> bool {
        let mut outputs = node.outputs.iter().flatten();
        let mut inputs = node.inputs.iter().flatten();
        if outputs.any(|name| self.wanted.contains(name))
            || inputs.any(|name| self.values.numbers.contains_key(name))
        {
            return false;
        }
        let mut given = shapes::infer(self, node).into_iter().flatten();
        let read = node.inputs.iter().map(|name| self.constant(*name));
        let read = read.flatten().map(Tensor::len);
        given.any(|shape| is_large(&shape)) || read.max().is_some_and(|most| most > FEW)
    }

    /// The values that the constants which a node reads have been made in the shape of.
    fn shaped_by(&self, node: &Node) -> Vec<ValueId> {
        let names = node.inputs.iter().flatten().chain(&node.captured);
        let mut all: Vec<ValueId> = (names.filter_map(|name| self.shaped_by.get(name)))
            .flatten()
            .copied()
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The same for constants that the network gives.
    pub fn shaped_by_all(&self, names: impl Iterator<Item = Name>) -> Vec<ValueId> {
        let all = names.filter_map(|name| self.shaped_by.get(&name));
        all.flatten().copied().collect()
    }

    /// Remembers whole numbers that a node computes of constants and such numbers alone; they are constants, too.
    fn remember_ints(&mut self, node: &Node) -> bool {
        let &[Some(output)] = &node.outputs[..] else {
            return false;
        };
        let mut inputs = node.inputs.iter().flatten();
        if !self.is_known(node) || inputs.any(|name| self.values.numbers.contains_key(name)) {
            return false;
        }
        let Some(ints) = ints::computed(self, node) else {
            return false;
        };
        self.computed.insert(output, ints);
        self.made.insert(output);
        self.unread.insert(output);
        true
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
            self.made.insert(output);
        }
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
        if !self.is_known(node) {
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
            "Reshape" => {
                let shape: Vec<Dim> = shape.iter().map(|d| Dim::Known(*d)).collect();
                let wanted = ints(1, "shape")?;
                if self.attribute_int(node, "allowzero", 0) != 0 && wanted.contains(&0) {
                    return None;
                }
                let wanted: Vec<Dim> = wanted.iter().map(|i| dims::dim_of(*i)).collect();
                dims::known(&dims::reshaped(&shape, &wanted)?)?
            }
            "Unsqueeze" => dims::unsqueezed(shape, &ints(1, "axes")?)?,
            "Squeeze"
                if node.inputs.get(1).copied().flatten().is_none()
                    && !node.attributes.contains_key("axes") =>
            {
                shape.iter().copied().filter(|n| *n != 1).collect()
            }
            "Squeeze" => dims::squeezed(shape, &ints(1, "axes")?)?,
            "Flatten" => {
                let axis = self.attribute_int(node, "axis", 1);
                let rank = i64::try_from(shape.len()).ok()?;
                let at = if axis < 0 {
                    axis.checked_add(rank)?
                } else {
                    axis
                };
                let (before, behind) = shape.split_at_checked(usize::try_from(at).ok()?)?;
                let size = |of: &[usize]| of.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
                vec![size(before)?, size(behind)?]
            }
            _ => return None,
        };
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        (elements == Some(tensor.len())).then(|| tensor.reshaped(shape))
    }

    /// What a node does, and what it reads that is no constant.
    fn op(&self, node: &Node) -> Result<(Op, Vec<ValueId>), Trouble> {
        let is_number = |name: &Name| self.computed.contains_key(name);
        if !self.is_known(node) || node.outputs.iter().flatten().any(is_number) {
            return opaque();
        }
        let op = match &*node.op {
            "Conv" => Op::Conv(windows::conv(self, node, false)?),
            "ConvTranspose" => Op::Conv(windows::conv(self, node, true)?),
            "BatchNormalization" => Op::Norm(self.norm(node)?),
            "Add" | "Sub" | "Mul" | "Div" => return products::arithmetic(self, node),
            "Sum" => return products::sum(self, node),
            "Neg" => Op::Neg,
            "Concat" => return parts::concat(self, node),
            "Slice" => return parts::slice(self, node),
            "Split" => return parts::split(self, node),
            "Transpose" => return parts::transpose(self, node),
            "Gemm" => Op::Linear(products::gemm(self, node)?),
            "MatMul" => return products::product(self, node),
            "Einsum" => return products::einsum(self, node),
            "AveragePool" => Op::AvgPool(windows::average(self, node)?),
            "ReduceMean" | "ReduceSum" | "GlobalAveragePool" => return parts::reduced(self, node),
            "Pad" => Op::Pad(windows::pad(self, node)?),
            "Resize" | "Upsample" => windows::resized(self, node)?,
            "Identity" => Op::Identity,
            "Cast" | "CastLike" if floats::is_kept(self, node) => Op::Identity,
            "Shape" => Op::Shape,
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

    fn norm(&self, node: &Node) -> Result<Norm, Trouble> {
        if self.attribute_int(node, "training_mode", 0) != 0 {
            return match self.constant(node.inputs.first().copied().flatten()) {
                Some(_) => because("it standardises a weight, which is not worked out"),
                None => because(
                    "it takes its statistics from its input, as the norms of a network do before `model.eval()`",
                ),
            };
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
        let eps = self.attribute_float(node, "epsilon", 1e-5);
        if !(eps >= 0.0 && eps.is_finite()) {
            return because(&format!(
                "its `epsilon` is {eps}; expected a finite number, not negative"
            ));
        }
        // The file holds the nearest f32 to the eps that was meant; what runs the network uses that.
        Ok(Norm {
            mean,
            var,
            affine: Some([weight, bias]),
            eps: f64::from(eps),
            axis: 1,
        })
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
