//! Nodes whose inputs are all constant: what they compute is constant, too.

use ndarray::{ArrayD, IxDyn};

use super::constants::dtype;
use super::dims::{axis_of, first_axes, taken};
use super::proto::{Attribute, Data, Name, Node};
use super::reading::{Reading, Trouble};
use super::windows;
use crate::graph::arrays::{Reduction, larger, smaller, within};
use crate::graph::constants::{Budget, Constant, Make, make};
use crate::graph::contract::Equation;
use crate::graph::convolve::{Slide, linear, repeats};
use crate::graph::kinds::{Kind, is_exact};
use crate::tensor::{Float, Tensor};

/// What a node computes of constants alone.
pub(super) struct Computed {
    /// The values, each with its name; of an output that is missing here nothing is known.
    pub values: Vec<(Name, Tensor)>,
    /// The tensors of the file, and constants computed before, that they are made of.
    pub of: Vec<Tensor>,
}

/// A constant that a node reads.
#[derive(Clone)]
struct Operand {
    tensor: Tensor,
    /// Whether it is one that follows from shapes and the like, and not from tensors.
    is_free: bool,
}

/// How an output is made.
type Plan = (Name, Make, Vec<Operand>);

/// The tensors that a node computes of constants alone, and what they are made of.
pub(super) fn computed(
    reading: &Reading<'_>,
    node: &Node,
    budget: &mut Budget,
) -> Option<Computed> {
    let &[Some(output), ref others @ ..] = &node.outputs[..] else {
        return None;
    };
    if others.is_empty()
        && let Some(made) = of_ints(reading, node, budget)
    {
        let tensor = fitting(reading, output, &made)?;
        return Some(Computed {
            values: vec![(output, tensor)],
            of: Vec::new(),
        });
    }
    let plans = match &*node.op {
        "Split" => split(reading, node)?,
        "BatchNormalization" => vec![normalised(reading, node, output)?],
        _ if others.is_empty() => {
            let (how, of) = plan(reading, node)?;
            vec![(output, how, of)]
        }
        _ => return None,
    };
    let mut found = Computed {
        values: Vec::new(),
        of: Vec::new(),
    };
    for (name, how, of) in plans {
        let read = |one: &Operand| Constant::read(reading.checkpoint(), &one.tensor, budget);
        let numbers = of.iter().map(read).collect::<Option<Vec<_>>>()?;
        let made = make(&how, &numbers, budget)?;
        found.values.push((name, fitting(reading, name, &made)?));
        let of = of.into_iter().filter(|one| !one.is_free);
        found.of.extend(of.map(|one| one.tensor));
    }
    Some(found)
}

/// The tensor of what has been made; none where the file says another type.
fn fitting(reading: &Reading<'_>, name: Name, made: &Constant) -> Option<Tensor> {
    let told = reading.values.kinds.get(&name);
    let fits = told.is_none_or(|told| dtype(*told) == made.kind.map(Kind::dtype));
    fits.then(|| made.tensor(reading.name(name)))?
}

/// A constant that a node reads, also one of a few whole numbers, or a matrix across.
fn operand(reading: &Reading<'_>, node: &Node, index: usize) -> Option<Operand> {
    let name = (*node.inputs.get(index)?)?;
    let turned = || reading.turned.get(&name)?.turned();
    let known = match reading.constants.get(&name) {
        Some(tensor) => Some(tensor.clone()),
        None => turned(),
    };
    let operand = match known {
        Some(tensor) => Operand {
            tensor,
            is_free: false,
        },
        None => {
            let ints = reading.known_ints(name)?;
            let numbers = ints.numbers.iter().map(|n| *n as f64).collect();
            let constant = Constant {
                numbers: ArrayD::from_shape_vec(IxDyn(&ints.shape), numbers).ok()?,
                kind: Some(Kind::I64),
            };
            let exact = ints
                .numbers
                .iter()
                .all(|n| Kind::I64.rounded(*n as f64).is_some());
            Operand {
                tensor: exact.then(|| constant.tensor(reading.name(name)))??,
                is_free: true,
            }
        }
    };
    within(operand.tensor.shape()).then_some(operand)
}

/// Whether a node says nothing but what is looked at.
fn says_only(node: &Node, keys: &[&str]) -> bool {
    node.attributes.keys().all(|key| keys.contains(&&**key))
}

/// How a node makes its one output.
fn plan(reading: &Reading<'_>, node: &Node) -> Option<(Make, Vec<Operand>)> {
    let first = operand(reading, node, 0)?;
    let shape = first.tensor.shape().to_vec();
    let rank = shape.len();
    let all = || (0..node.inputs.len()).map(|i| operand(reading, node, i));
    let alone = |make: Make| Some((make, vec![first.clone()]));
    let axis = |default: i64| axis_of(reading.attribute_int(node, "axis", default), rank);
    match &*node.op {
        // A matrix across is read as such by whoever multiplies with it.
        "Transpose" if rank != 2 => {
            let order = match node.attributes.get("perm") {
                None => (0..rank).rev().collect(),
                Some(Attribute::Ints(order)) => axes(order, rank)?,
                Some(_) => return None,
            };
            alone(Make::Permute(order))
        }
        "Expand" => {
            let wanted = numbers(&reading.list(node, 1, "shape")?)?;
            // Either of the two may be broadcast to the other.
            let len = wanted.len().max(rank);
            let at = |of: &[usize], i: usize| match (i + of.len()).checked_sub(len) {
                Some(i) => of[i],
                None => 1,
            };
            let dim = |i: usize| match (at(&wanted, i), at(&shape, i)) {
                (1, n) => n,
                (n, _) => n,
            };
            alone(Make::Expand((0..len).map(dim).collect()))
        }
        "Tile" => {
            let times = numbers(&reading.list(node, 1, "repeats")?)?;
            alone((times.len() == rank).then_some(Make::Repeat(times))?)
        }
        "Cast" | "CastLike" => alone(Make::Cast(target(reading, node)?)),
        "Concat" => Some((Make::Concat(axis(0)?), all().collect::<Option<_>>()?)),
        "Einsum" => {
            let text = std::str::from_utf8(reading.attribute_text(node, "equation")?).ok()?;
            let equation = Equation::parse(text)?;
            Some((Make::Contract(equation), all().collect::<Option<_>>()?))
        }
        "Pad" if reading.opset() >= 11 => alone(padding(reading, node, rank)?),
        "Slice" => alone(cut(reading, node, &shape)?),
        "Gather" if says_only(node, &["axis"]) => {
            Some((Make::Gather(axis(0)?), all().collect::<Option<_>>()?))
        }
        "GatherND" if reading.attribute_int(node, "batch_dims", 0) == 0 => {
            Some((Make::GatherRows, all().collect::<Option<_>>()?))
        }
        "ScatterND"
            if matches!(
                reading.attribute_text(node, "reduction"),
                None | Some(b"none")
            ) =>
        {
            Some((Make::PutRows, all().collect::<Option<_>>()?))
        }
        "Softmax" | "LogSoftmax" if says_only(node, &["axis"]) => {
            // Earlier versions take all axes from this one on as one.
            let (one, default) = (reading.opset() >= 13, [1, -1]);
            let axis = axis(default[usize::from(one)])?;
            let log = node.op != "Softmax";
            alone((one || axis + 1 == rank).then_some(Make::Softmax { axis, log })?)
        }
        "CumSum"
            if ["exclusive", "reverse"]
                .iter()
                .all(|key| reading.attribute_int(node, key, 0) == 0) =>
        {
            let &[axis] = &reading.list(node, 1, "axis")?[..] else {
                return None;
            };
            alone(Make::Cumulate(axis_of(axis, rank)?))
        }
        "Trilu" => {
            let diagonal = reading.list_or(node, 1, "k", || vec![0])?;
            let upper = reading.attribute_int(node, "upper", 1) != 0;
            alone(Make::Triangle {
                diagonal: *diagonal.first()?,
                upper,
            })
        }
        "Clip" => alone(clip(reading, node)?),
        "Conv" => slid(reading, node),
        "Resize" => alone(resized(reading, node, &shape)?),
        "Where" => Some((Make::Choose, all().collect::<Option<_>>()?)),
        "Not" => alone(Make::Holds(|a, b| a == b)),
        "Mod" => {
            let make = match reading.attribute_int(node, "fmod", 0) {
                0 => Make::Both(|a, b| a - b * (a / b).floor()),
                _ => Make::Both(|a, b| a % b),
            };
            Some((make, all().collect::<Option<_>>()?))
        }
        op => match reduction(reading, node, rank) {
            Some(make) => alone(make),
            None => Some((by_number(op)?, all().collect::<Option<_>>()?)),
        },
    }
}

/// The type that a node casts to.
pub(super) fn target(reading: &Reading<'_>, node: &Node) -> Option<Kind> {
    let of = |kind: i64| Kind::of(&dtype(kind)?);
    if node.op == "Cast" {
        return match node.attributes.get("to") {
            Some(Attribute::Int(kind)) => of(*kind),
            _ => None,
        };
    }
    let like = (*node.inputs.get(1)?)?;
    match reading.constant(Some(like)) {
        Some(tensor) => Kind::of(tensor.dtype()),
        None => of(*reading.values.kinds.get(&like)?),
    }
}

/// Numbers that a node makes of whole ones: in as many places as these say, that count, or with ones on a diagonal.
fn of_ints(reading: &Reading<'_>, node: &Node, budget: &mut Budget) -> Option<Constant> {
    let input = |index: usize| node.inputs.get(index).copied().flatten();
    match &*node.op {
        "ConstantOfShape" => {
            let shape = numbers(&reading.known_ints(input(0)?)?.numbers)?;
            let (number, kind) = filling(node)?;
            Constant::filled(|_| number, &shape, kind, budget)
        }
        "Range" => {
            let kind = match reading.constant(input(0)) {
                Some(tensor) => Kind::of(tensor.dtype())?,
                None => Kind::I64,
            };
            let of = |index: usize| {
                let number = match (reading.known_ints(input(index)?), kind) {
                    (Some(ints), _) => {
                        let &[number] = &ints.numbers[..] else {
                            return None;
                        };
                        number as f64
                    }
                    (None, _) => reading.number(reading.constant(input(index))?)?,
                };
                is_exact(number).then_some(number)
            };
            let (start, limit, step) = (of(0)?, of(1)?, of(2)?);
            let count = ((limit - start) / step).ceil().max(0.0);
            let shape = (step != 0.0).then_some([count as usize])?;
            Constant::filled(|at| start + at[0] as f64 * step, &shape, kind, budget)
        }
        "EyeLike" => {
            let ints = reading.known_ints(input(0)?);
            let like = reading.constant(input(0));
            let shape = match (ints, like) {
                (Some(ints), _) => ints.shape,
                (None, like) => like?.shape().to_vec(),
            };
            let kind = match node.attributes.get("dtype") {
                None => Kind::of(like?.dtype())?,
                Some(Attribute::Int(kind)) => Kind::of(&dtype(*kind)?)?,
                Some(_) => return None,
            };
            let above = i128::from(reading.attribute_int(node, "k", 0));
            let on = |at: &[usize]| f64::from(at[1] as i128 - at[0] as i128 == above);
            (shape.len() == 2).then(|| Constant::filled(on, &shape, kind, budget))?
        }
        _ => None,
    }
}

/// The number that `ConstantOfShape` repeats.
fn filling(node: &Node) -> Option<(f64, Kind)> {
    let (tensor, bytes) = match node.attributes.get("value") {
        None => return Some((0.0, Kind::Float(Float::F32))),
        Some(Attribute::Tensor(tensor, bytes)) => (tensor, bytes),
        Some(_) => return None,
    };
    let kind = Kind::of(&dtype(tensor.kind)?)?;
    let bytes = match (&tensor.data, bytes) {
        (Data::InFile(_), Some(bytes)) => bytes.clone(),
        (Data::Numbers(numbers), _) => match numbers[..] {
            [number] => number.to_le_bytes()[..kind.size()].to_vec(),
            _ => return None,
        },
        _ => return None,
    };
    let numbers = (bytes.len() == kind.size()).then(|| kind.decode(&bytes))??;
    Some((*numbers.first()?, kind))
}

/// Operators that go number by number, and the product of matrices.
fn by_number(op: &str) -> Option<Make> {
    Some(match op {
        "Add" => Make::Both(|a, b| a + b),
        "Sub" => Make::Both(|a, b| a - b),
        "Mul" => Make::Both(|a, b| a * b),
        "Div" => Make::Both(|a, b| a / b),
        "Pow" => Make::Both(f64::powf),
        "Sum" => Make::All(|a, b| a + b),
        "Max" => Make::All(larger),
        "Min" => Make::All(smaller),
        "Equal" => Make::Holds(|a, b| a == b),
        "Greater" => Make::Holds(|a, b| a > b),
        "GreaterOrEqual" => Make::Holds(|a, b| a >= b),
        "Less" => Make::Holds(|a, b| a < b),
        "LessOrEqual" => Make::Holds(|a, b| a <= b),
        "And" => Make::Holds(|a, b| a != 0.0 && b != 0.0),
        "Or" => Make::Holds(|a, b| a != 0.0 || b != 0.0),
        "Xor" => Make::Holds(|a, b| (a != 0.0) != (b != 0.0)),
        "Neg" => Make::Each(|x| -x),
        "Sqrt" => Make::Each(f64::sqrt),
        "Reciprocal" => Make::Each(|x| 1.0 / x),
        "Abs" => Make::Each(f64::abs),
        "Sign" => Make::Each(|x| f64::from(x > 0.0) - f64::from(x < 0.0)),
        "Exp" => Make::Each(f64::exp),
        "Log" => Make::Each(f64::ln),
        "Softplus" => Make::Each(|x| larger(x, 0.0) + (-x.abs()).exp().ln_1p()),
        "Sin" => Make::Each(f64::sin),
        "Cos" => Make::Each(f64::cos),
        "Tanh" => Make::Each(f64::tanh),
        "Erf" => Make::Each(libm::erf),
        "Sigmoid" => Make::Each(|x| 1.0 / (1.0 + (-x).exp())),
        "Relu" => Make::Each(|x| larger(x, 0.0)),
        "Floor" => Make::Each(f64::floor),
        "Ceil" => Make::Each(f64::ceil),
        "Round" => Make::Each(f64::round_ties_even),
        "MatMul" => Make::Product,
        _ => return None,
    })
}

/// Parts one behind the other along an axis.
fn split(reading: &Reading<'_>, node: &Node) -> Option<Vec<Plan>> {
    let first = operand(reading, node, 0)?;
    let shape = first.tensor.shape();
    let axis = axis_of(reading.attribute_int(node, "axis", 0), shape.len())?;
    let (len, parts) = (shape[axis], node.outputs.len());
    let sizes = match reading.list_or(node, 1, "split", Vec::new)? {
        sizes if sizes.is_empty() => {
            // All of one size, the last one perhaps of less.
            let size = len.div_ceil(parts);
            let even = node.attributes.contains_key("num_outputs") || len.is_multiple_of(parts);
            let size = |i: usize| len.saturating_sub(i * size).min(size);
            even.then(|| (0..parts).map(size).collect())?
        }
        sizes => numbers(&sizes)?,
    };
    if sizes.len() != parts || sizes.iter().try_fold(0usize, |n, m| n.checked_add(*m)) != Some(len)
    {
        return None;
    }
    let mut at = 0;
    let part = |(name, size): (&Option<Name>, usize)| {
        let indices = (at..at + size).collect();
        at += size;
        Some((
            (*name)?,
            Make::Take(vec![(axis, indices)]),
            vec![first.clone()],
        ))
    };
    // An output without a name is left out.
    Some(node.outputs.iter().zip(sizes).filter_map(part).collect())
}

/// A norm of a constant. In training mode its statistics are those of what it reads.
fn normalised(reading: &Reading<'_>, node: &Node, output: Name) -> Option<Plan> {
    let known = ["epsilon", "momentum", "training_mode", "spatial"];
    let eps = f64::from(reading.attribute_float(node, "epsilon", 1e-5));
    let is_plain = eps >= 0.0 && reading.attribute_int(node, "spatial", 1) == 1;
    if !is_plain || !says_only(node, &known) {
        return None;
    }
    let (count, how) = match reading.attribute_int(node, "training_mode", 0) {
        0 if node.outputs.len() == 1 => (5, Make::Normalise { eps }),
        1 => (3, Make::Standardise { eps, factors: true }),
        _ => return None,
    };
    let of = (0..count).map(|i| operand(reading, node, i));
    Some((output, how, of.collect::<Option<_>>()?))
}

/// A conv of constants.
fn slid(reading: &Reading<'_>, node: &Node) -> Option<(Make, Vec<Operand>)> {
    let conv = match windows::conv(reading, node, false) {
        Ok(conv) => conv,
        Err(Trouble::Opaque(_) | Trouble::File(_)) => return None,
    };
    let given = (0..node.inputs.len()).filter(|i| node.inputs[*i].is_some());
    let of = given.map(|i| operand(reading, node, i));
    Some((Make::Slide(Slide::of(&conv)), of.collect::<Option<_>>()?))
}

/// Maps that are stretched to a size by lines between neighbours.
fn resized(reading: &Reading<'_>, node: &Node, shape: &[usize]) -> Option<Make> {
    let text = |key: &str| reading.attribute_text(node, key);
    let given = |index: usize| node.inputs.get(index).copied().flatten();
    let stay = match text("coordinate_transformation_mode") {
        None | Some(b"half_pixel" | b"pytorch_half_pixel") => false,
        Some(b"align_corners") => true,
        // Of the nearest ones.
        Some(b"asymmetric") => false,
        Some(_) => return None,
    };
    let known = [
        "mode",
        "coordinate_transformation_mode",
        // Of other modes.
        "cubic_coeff_a",
        "nearest_mode",
        "extrapolation_value",
        "exclude_outside",
        "antialias",
        "keep_aspect_ratio_policy",
    ];
    let off = |key: &str| reading.attribute_int(node, key, 0) == 0;
    let stretches = matches!(text("keep_aspect_ratio_policy"), None | Some(b"stretch"));
    let nearest = match (text("mode"), text("nearest_mode")) {
        (Some(b"linear"), _) => false,
        (None | Some(b"nearest"), Some(b"floor")) => true,
        _ => return None,
    };
    if given(2).is_some() || !says_only(node, &known) {
        return None;
    }
    if !off("antialias") || !off("exclude_outside") || !stretches {
        return None;
    }
    let sizes = numbers(&reading.ints(given(3)?)?)?;
    if nearest {
        let counts = text("coordinate_transformation_mode") == Some(b"asymmetric");
        return (counts && sizes.len() == shape.len())
            .then(|| repeats(shape, &sizes).map(Make::Take))?;
    }
    let mut axes = Vec::new();
    for (axis, (len, size)) in shape.iter().zip(&sizes).enumerate() {
        let one_pixel =
            *size == 1 && text("coordinate_transformation_mode") != Some(b"align_corners");
        let is_asymmetric = text("coordinate_transformation_mode") == Some(b"asymmetric");
        if len != size && (one_pixel || is_asymmetric) {
            // The two ways of half a pixel differ.
            return None;
        }
        if len != size {
            axes.push((axis, linear(*len, *size, stay)?));
        }
    }
    (sizes.len() == shape.len()).then_some(Make::Blend(axes))
}

/// Bounds, which are inputs or, in older versions, attributes.
fn clip(reading: &Reading<'_>, node: &Node) -> Option<Make> {
    let bound = |index: usize, key: &str| -> Option<Option<f64>> {
        match (
            node.inputs.get(index).copied().flatten(),
            node.attributes.get(key),
        ) {
            (Some(name), None) => Some(Some(reading.number(reading.constant(Some(name))?)?)),
            (None, Some(Attribute::Float(number))) => Some(Some(f64::from(*number))),
            (None, None) => Some(None),
            _ => None,
        }
    };
    Some(Make::Clamp([bound(1, "min")?, bound(2, "max")?]))
}

/// Zeros around a constant.
fn padding(reading: &Reading<'_>, node: &Node, rank: usize) -> Option<Make> {
    if !matches!(
        reading.attribute_text(node, "mode"),
        None | Some(b"constant")
    ) || node.inputs.get(3).copied().flatten().is_some()
    {
        return None;
    }
    if let Some(value) = node.inputs.get(2).copied().flatten() {
        let value = reading.constant(Some(value))?;
        (reading.number(value)? == 0.0).then_some(())?;
    }
    let pads = numbers(&reading.list(node, 1, "pads")?)?;
    let around = (0..rank).map(|i| Some([*pads.get(i)?, *pads.get(rank + i)?]));
    (pads.len() == 2 * rank).then(|| around.collect::<Option<_>>().map(Make::Pad))?
}

/// Elements of some axes, also from the end.
fn cut(reading: &Reading<'_>, node: &Node, shape: &[usize]) -> Option<Make> {
    let (starts, ends) = (
        reading.list(node, 1, "starts")?,
        reading.list(node, 2, "ends")?,
    );
    let list = reading.list_or(node, 3, "axes", || first_axes(starts.len()))?;
    let steps = reading.list_or(node, 4, "steps", || vec![1; starts.len()])?;
    if [&ends, &list, &steps]
        .iter()
        .any(|all| all.len() != starts.len())
    {
        return None;
    }
    let list = axes(&list, shape.len())?;
    let one = |i: usize| {
        Some((
            list[i],
            taken(shape[list[i]], starts[i], ends[i], steps[i])?,
        ))
    };
    let differ = (0..list.len()).all(|i| !list[..i].contains(&list[i]));
    differ.then(|| {
        (0..list.len())
            .map(one)
            .collect::<Option<_>>()
            .map(Make::Take)
    })?
}

fn reduction(reading: &Reading<'_>, node: &Node, rank: usize) -> Option<Make> {
    let how = match &*node.op {
        "ReduceSum" => Reduction::Sum,
        "ReduceMean" => Reduction::Mean,
        "ReduceProd" => Reduction::Product,
        "ReduceMax" => Reduction::Max,
        "ReduceMin" => Reduction::Min,
        "ReduceL1" => Reduction::Absolute,
        "ReduceL2" => Reduction::Norm,
        "ReduceSumSquare" => Reduction::Squares,
        _ => return None,
    };
    let told = node.inputs.get(1).copied().flatten().is_some();
    let list = match told || node.attributes.contains_key("axes") {
        true => reading.list(node, 1, "axes")?,
        false => Vec::new(),
    };
    let axes = match list.is_empty() {
        true if reading.attribute_int(node, "noop_with_empty_axes", 0) != 0 => return None,
        true => (0..rank).collect(),
        false => axes(&list, rank)?,
    };
    let keep = reading.attribute_int(node, "keepdims", 1) != 0;
    Some(Make::Reduce { how, axes, keep })
}

fn axes(list: &[i64], rank: usize) -> Option<Vec<usize>> {
    list.iter().map(|axis| axis_of(*axis, rank)).collect()
}

fn numbers(list: &[i64]) -> Option<Vec<usize>> {
    list.iter().map(|n| usize::try_from(*n).ok()).collect()
}
