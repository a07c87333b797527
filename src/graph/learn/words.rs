//! A block in the words of a recipe: its expression, with names that follow the path of the block.

use serde_json::{Value, json};

use crate::algebra::{Bn, Factor, Kernel, Layout, Op, Part, Through, describe};
use crate::plan::Block;
use crate::recipe::model::NORM;
use crate::tensor::{Checkpoint, Reader, Tensor, quoted};

/// A block in words.
#[derive(Clone, Debug)]
pub(super) struct Words {
    /// The name of the block.
    pub block: String,
    /// The dotted path that all of its names share.
    pub path: String,
    /// The module of the fused conv, below the path.
    pub module: String,
    /// The summands of the expression, and what follows the sum. A block that is no sum has one.
    pub summands: Vec<Value>,
    /// What is applied to the sum.
    pub behind: Vec<Value>,
    /// Whether the fused conv has a bias.
    pub bias: bool,
    /// The eps of its norms.
    pub eps: Vec<f64>,
    /// The tensors that go into it.
    pub consumed: Vec<String>,
    /// What stands among them and has no part in what they compute, as patterns below the path.
    pub beside: Vec<String>,
}

/// Which convs say how many groups they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Groups {
    /// Those whose shapes do not tell, as far as one sees from where they stand.
    Hidden,
    /// All that have more than one.
    All,
}

/// Says a block in words.
///
/// # Errors
/// Says what has no word.
pub(super) fn words(
    checkpoint: &Checkpoint,
    block: &Block,
    groups: Groups,
) -> Result<Words, String> {
    let conv = &block.fused[0];
    let expr = conv.expr.root();
    let path = path_of(expr, &conv.module, checkpoint)?;
    let module = match (conv.module.strip_prefix(&path), path.is_empty()) {
        (Some(""), false) => String::new(),
        (Some(rest), false) if rest.starts_with('.') => rest[1..].to_owned(),
        (_, true) => conv.module.clone(),
        _ => {
            return Err(format!(
                "its output {} is outside of it",
                quoted(&conv.module)
            ));
        }
    };
    let mut speaker = Speaker {
        checkpoint,
        path: &path,
        groups,
        eps: Vec::new(),
    };
    let (sum, behind) = match expr.op() {
        Op::Sum(xs) => (&xs[..], &[][..]),
        Op::Seq(xs) => match xs.split_first() {
            Some((first, behind)) if matches!(first.op(), Op::Sum(_)) => (first.parts(), behind),
            _ => (std::slice::from_ref(expr), &[][..]),
        },
        _ => (std::slice::from_ref(expr), &[][..]),
    };
    let place = Place {
        biased: conv.bias,
        before_conv: behind.iter().any(Part::has_conv),
    };
    // (A block of one conv with a norm behind it is a `seq`, and no sum with something behind.)
    let summands = sum
        .iter()
        .map(|x| speaker.say(x, place))
        .collect::<Result<_, _>>()?;
    let behind = speaker.steps(behind, place)?;
    Ok(Words {
        block: block.name.clone(),
        module,
        summands,
        behind,
        bias: conv.bias,
        eps: speaker.eps,
        consumed: block
            .consumed
            .iter()
            .map(|tensor| tensor.name().to_owned())
            .collect(),
        beside: Vec::new(),
        path,
    })
}

/// The path that the modules of all tensors share, at least one segment above each, and that of the output.
fn path_of(expr: &Part<Tensor>, output: &str, checkpoint: &Checkpoint) -> Result<String, String> {
    let stored = expr
        .leaves()
        .into_iter()
        .filter(|leaf| checkpoint.get(leaf.name()).is_some());
    let modules: Vec<Vec<&str>> = stored
        .map(|leaf| {
            leaf.name()
                .rsplit_once('.')
                .map_or(Vec::new(), |(module, _)| module.split('.').collect())
        })
        .collect();
    let Some(first) = modules.first() else {
        return Err("it has no tensor".to_owned());
    };
    let mut len = first.len();
    for module in &modules {
        len = len.min(module.iter().zip(first).take_while(|(a, b)| a == b).count());
    }
    // A conv and its own scale share their module; the path ends above it.
    if modules.iter().all(|module| module.len() == len) {
        len = len.saturating_sub(1);
    }
    let shared = output
        .split('.')
        .zip(first)
        .take_while(|(a, b)| a == *b)
        .count();
    Ok(first[..len.min(shared)].join("."))
}

struct Speaker<'a> {
    checkpoint: &'a Checkpoint,
    path: &'a str,
    groups: Groups,
    eps: Vec<f64>,
}

/// Where in a block an expression stands.
#[derive(Clone, Copy)]
struct Place {
    /// Whether a recipe takes a conv here to have a bias that says nothing of it.
    biased: bool,
    /// Whether another conv follows, which hides the groups.
    before_conv: bool,
}

impl Speaker<'_> {
    fn say(&mut self, expr: &Part<Tensor>, place: Place) -> Result<Value, String> {
        Ok(match expr.op() {
            Op::Conv(conv) => self.conv(conv, expr.geometry().groups(), place)?,
            Op::Bn(bn) => self.bn(bn)?,
            Op::Scale(Factor::Number(n)) => json!({"scale": n}),
            Op::Scale(Factor::Tensor(vector)) => {
                match (self.number(&vector.tensor), vector.through, vector.row) {
                    (Some(n), Through::Itself, None) => json!({"scale": n}),
                    (Some(n), Through::Reciprocal, None) => json!({"scale": 1.0 / n}),
                    (None, Through::Itself, None) => json!({"scale": self.name(&vector.tensor)?}),
                    _ => {
                        return Err(format!(
                            "{} does not stand for its factors itself",
                            vector.tensor
                        ));
                    }
                }
            }
            Op::Shift(tensor) => json!({"shift": self.name(tensor)?}),
            Op::AvgPool([1, h, w]) if h == w => json!({"mean": h}),
            Op::AvgPool([1, h, w]) => json!({"mean": [h, w]}),
            Op::AvgPool(_) | Op::Crop(_) | Op::Stack(_) | Op::Select(_) => {
                return Err(format!(
                    "recipes have no word for {}",
                    describe::expression(expr)
                ));
            }
            Op::Identity => json!("identity"),
            Op::Seq(xs) => json!({"seq": self.steps(xs, place)?}),
            Op::Sum(xs) => {
                let terms = xs.iter().map(|x| self.say(x, place));
                json!({"sum": terms.collect::<Result<Vec<_>, _>>()?})
            }
        })
    }

    /// One after the other.
    fn steps(&mut self, xs: &[Part<Tensor>], place: Place) -> Result<Vec<Value>, String> {
        let step = |(i, x): (usize, &Part<Tensor>)| {
            let rest = &xs[i + 1..];
            let norm_next = matches!(rest.first().map(Part::op), Some(Op::Bn(_)));
            let place = Place {
                biased: place.biased && !(norm_next && matches!(x.op(), Op::Conv(_))),
                before_conv: place.before_conv || rest.iter().any(Part::has_conv),
            };
            self.say(x, place)
        };
        xs.iter().enumerate().map(step).collect()
    }

    /// A tensor's name as a pattern below the path of the block.
    fn name(&self, tensor: &Tensor) -> Result<String, String> {
        if self.checkpoint.get(tensor.name()).is_none() {
            return Err(format!(
                "{tensor} is a number of the graph and in no file of weights"
            ));
        }
        if tensor.begins().is_some() {
            return Err(format!("recipes have no word for a part of {tensor}"));
        }
        if tensor.name().contains(['{', '}']) {
            return Err(format!("{tensor} has braces in its name"));
        }
        let below = match self.path {
            "" => tensor.name(),
            path => tensor
                .name()
                .strip_prefix(path)
                .map_or(tensor.name(), |rest| &rest[1..]),
        };
        Ok(format!("{{p}}.{below}"))
    }

    /// The one number of a tensor that stands in the graph itself.
    fn number(&self, tensor: &Tensor) -> Option<f64> {
        if self.checkpoint.get(tensor.name()).is_some() || tensor.len() != 1 {
            return None;
        }
        let mut reader = Reader::new(self.checkpoint, 8);
        crate::algebra::Values::vector(&mut reader, tensor, 0, 1)
            .ok()?
            .first()
            .copied()
    }

    fn conv(&self, conv: &Kernel<Tensor>, groups: usize, place: Place) -> Result<Value, String> {
        let weight = self.name(&conv.weight)?;
        let bias = conv.bias.as_ref().map(|bias| self.name(bias)).transpose()?;
        let module = weight.strip_suffix(".weight");
        let mut word = match (module, &bias) {
            (Some(module), None) if place.biased => json!({"conv": module, "bias": false}),
            (Some(module), None) => json!({"conv": module}),
            (Some(module), Some(bias)) if *bias == format!("{module}.bias") => match place.biased {
                true => json!({"conv": module}),
                false => json!({"conv": module, "bias": true}),
            },
            (_, None) => json!({"conv": {"weight": weight}}),
            (_, Some(bias)) => json!({"conv": {"weight": weight, "bias": bias}}),
        };
        let members = word.as_object_mut().ok_or("no object")?;
        match conv.dilation {
            _ if conv.taps == [1; 3] => {}
            [1, 1, 1] => {}
            [1, a, b] if a == b => drop(members.insert("dilation".to_owned(), a.into())),
            [1, a, b] => drop(members.insert("dilation".to_owned(), json!([a, b]))),
            _ => {
                return Err(format!(
                    "recipes have no word for the dilation of {}",
                    conv.weight
                ));
            }
        }
        let hidden = place.before_conv || conv.layout == Layout::Transposed;
        if groups > 1 && (hidden || self.groups == Groups::All) {
            let depthwise = conv.weight.shape().first() == Some(&groups);
            let word = match depthwise {
                true => "depthwise".into(),
                false => groups.into(),
            };
            members.insert("groups".to_owned(), word);
        }
        if conv.layout == Layout::Transposed {
            members.insert("transposed".to_owned(), true.into());
        }
        if conv.flipped || conv.layout == Layout::Shared {
            return Err(format!("{} is no plain conv", conv.weight));
        }
        Ok(word)
    }

    fn bn(&mut self, bn: &Bn<Tensor>) -> Result<Value, String> {
        let mean = self.name(&bn.mean)?;
        let module = mean
            .strip_suffix(".running_mean")
            .ok_or_else(|| format!("{} is not called running_mean", bn.mean))?;
        let parts = bn.affine.iter().flatten().chain([&bn.mean, &bn.var]);
        let ends = if bn.affine.is_some() {
            &NORM[..]
        } else {
            &NORM[2..]
        };
        for (part, end) in parts.zip(ends) {
            if self.name(part)? != format!("{module}.{end}") {
                return Err(format!("{part} is not called {end}"));
            }
        }
        self.eps.push(bn.eps);
        Ok(json!({"bn": module, "eps": bn.eps}))
    }
}
