//! From a template and the names in a file to an expression over its tensors.
//!
//! The rule throughout: *malformed must never read as absent*. A branch of which any tensor is there must be
//! there whole.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::model::{ConvTemplate, Groups, NORM, Norm, Presence, Size, Template, Window};
use super::pattern::{Captures, Pattern};
use crate::algebra::extent::dilated;
use crate::algebra::shape::{keeps_width, weight_axes};
use crate::algebra::{Bn, Conv, Expr, Extent, Factor, Vector};
use crate::tensor::{Tensor, quoted};

/// The tensors of a file by name.
pub type Index = BTreeMap<String, Tensor>;

/// What there is to know of an expanded template besides its expression.
#[derive(Debug)]
pub(crate) struct Expanded {
    /// Every tensor the expression stands for, with the counters of its batch norms.
    pub claimed: Vec<Tensor>,
    /// Whether the expression holds a bare identity, which no file shows.
    pub assumes_identity: bool,
    /// How many operators it was made of.
    pub operators: usize,
    /// The tensors that the recipe says may be there.
    pub optional: Vec<OptionalPart>,
}

/// A tensor that may be there.
#[derive(Debug)]
pub(crate) struct OptionalPart {
    /// A bias; otherwise it is a factor or an addition of its own.
    pub is_bias: bool,
    /// As the recipe writes it: the same in all blocks of a rule.
    pub pattern: String,
    /// Its name in this block.
    pub name: String,
    /// Whether it is in the file.
    pub there: bool,
}

/// Expands a template. `eps` decides the eps of a norm, given the one that the recipe states for it alone; `budget` counts
/// the names that were tried on the way.
///
/// # Errors
/// A sentence that names the tensor that is missing.
pub(crate) fn expand(
    template: &Template,
    captures: &Captures,
    index: &Index,
    eps: &dyn Fn(Option<f64>) -> Option<f64>,
    budget: &MatchBudget,
) -> Result<(Expr<Tensor>, Expanded), String> {
    let mut expander = Expander {
        index,
        eps,
        budget,
        operators: 0,
        claimed: Vec::new(),
        assumes_identity: false,
        optional: Vec::new(),
    };
    let expr = expander.one(template, captures)?;
    let expanded = Expanded {
        claimed: expander.claimed,
        assumes_identity: expander.assumes_identity,
        operators: expander.operators,
        optional: expander.optional,
    };
    Ok((expr, expanded))
}

/// How an error names the first conv that a template asks for.
pub(crate) fn wanted_conv(template: &Template, captures: &Captures) -> Option<String> {
    let mut found = None;
    template.visit(&mut |node| {
        if let (None, Template::Conv(conv)) = (&found, node) {
            let name = conv.weight.fill(captures);
            found = Some(quoted(
                &name.unwrap_or_else(|| conv.weight.text().to_owned()),
            ));
        }
    });
    found
}

/// The tensors that a pattern can stand for, among those whose names begin with what is known of it.
pub(crate) fn names<'a, 'p>(
    index: &'a Index,
    pattern: &'p Pattern,
    captures: &'p Captures,
) -> impl Iterator<Item = (&'a Tensor, Captures)> + use<'a, 'p> {
    names_tried(index, pattern, captures, |_| ())
}

/// The same; `tried` is told for every name that is looked at in how many ways it is tried.
fn names_tried<'a, 'p, F: Fn(usize)>(
    index: &'a Index,
    pattern: &'p Pattern,
    captures: &'p Captures,
    tried: F,
) -> impl Iterator<Item = (&'a Tensor, Captures)> + use<'a, 'p, F> {
    let ((start, _), ways) = (pattern.known_start(captures), pattern.combinations());
    let range = index.range::<str, _>((Bound::Included(start.as_str()), Bound::Unbounded));
    range
        .take_while(move |(name, _)| name.starts_with(&start))
        .inspect(move |_| tried(ways))
        .filter_map(move |(name, tensor)| Some((tensor, pattern.matches(name, captures)?)))
}

/// Every tensor that a pattern matches, whatever its captures stand for.
pub(crate) fn anywhere<'a, 'p>(
    index: &'a Index,
    pattern: &'p Pattern,
) -> impl Iterator<Item = (&'a Tensor, Captures)> + use<'a, 'p> {
    names(index, pattern, &NOTHING_BOUND)
}

static NOTHING_BOUND: Captures = Captures::new();

/// How many names have been tried for a plan.
#[derive(Debug, Default)]
pub(crate) struct MatchBudget(Cell<usize>);

/// Names that begin with what the block has captured are found at once; others are looked for in the whole file. A second
/// or two of that is enough.
const MOST_MATCHES: usize = 20_000_000;

impl MatchBudget {
    /// The same as [`names`], counted.
    pub(crate) fn names<'a, 'p>(
        &'p self,
        index: &'a Index,
        pattern: &'p Pattern,
        captures: &'p Captures,
    ) -> impl Iterator<Item = (&'a Tensor, Captures)> + use<'a, 'p> {
        names_tried(index, pattern, captures, |ways| self.add(ways))
    }

    /// The same as [`anywhere`], counted; nothing once the file has been looked through too often.
    pub(crate) fn anywhere<'a, 'p>(
        &'p self,
        index: &'a Index,
        pattern: &'p Pattern,
    ) -> impl Iterator<Item = (&'a Tensor, Captures)> + use<'a, 'p> {
        let on = self.may_go_on().is_ok();
        let found = on.then(|| self.names(index, pattern, &NOTHING_BOUND));
        found.into_iter().flatten()
    }

    /// Counts what was tried elsewhere.
    pub(crate) fn add(&self, tried: usize) {
        self.0.set(self.0.get().saturating_add(tried));
    }

    /// # Errors
    /// When the file has been looked through too often.
    pub(crate) fn may_go_on(&self) -> Result<(), String> {
        match self.0.get() > MOST_MATCHES {
            false => Ok(()),
            true => Err("the recipe looks through the file again and again; let its names begin with what `at` captures".to_owned()),
        }
    }
}

/// A block of more operators than this is a mistake: each is looked at for every other.
pub(crate) const MOST_OPERATORS: usize = 4096;

struct Expander<'a> {
    index: &'a Index,
    eps: &'a dyn Fn(Option<f64>) -> Option<f64>,
    budget: &'a MatchBudget,
    operators: usize,
    claimed: Vec<Tensor>,
    assumes_identity: bool,
    optional: Vec<OptionalPart>,
}

impl Expander<'_> {
    fn find(&self, pattern: &Pattern, captures: &Captures) -> Option<Tensor> {
        self.index.get(&pattern.fill(captures)?).cloned()
    }

    /// The norm beside one that is not there, if there is one only.
    fn other_norm(&self, missing: &str) -> Option<&str> {
        let parent = missing.rsplit_once('.').map_or("", |(parent, _)| parent);
        let mut beside = self.index.keys().filter_map(|name| {
            let module = name.strip_suffix(".running_mean")?;
            let of = module.rsplit_once('.').map_or("", |(parent, _)| parent);
            (of == parent).then_some(module)
        });
        beside.next().filter(|_| beside.next().is_none())
    }

    fn claim(&mut self, pattern: &Pattern, captures: &Captures) -> Result<Tensor, String> {
        let tensor = self.find(pattern, captures).ok_or_else(|| {
            format!(
                "{} is missing",
                quoted(&pattern.fill(captures).unwrap_or_default())
            )
        })?;
        self.claimed.push(tensor.clone());
        Ok(tensor)
    }

    fn one(&mut self, template: &Template, captures: &Captures) -> Result<Expr<Tensor>, String> {
        let mut terms = self.terms(template, captures)?;
        match (terms.pop(), terms.is_empty()) {
            (Some(term), true) => Ok(term),
            (None, _) => Err(format!(
                "none of its branches is there: {} is missing",
                self.wanted(template, captures)
            )),
            (Some(last), false) => Ok(Expr::Sum(terms.into_iter().chain([last]).collect())),
        }
    }

    /// A template's terms: one, or none for an absent `optional`, or many for an `each`.
    fn terms(
        &mut self,
        template: &Template,
        captures: &Captures,
    ) -> Result<Vec<Expr<Tensor>>, String> {
        self.operators += 1;
        if self.operators > MOST_OPERATORS {
            return Err(format!(
                "the block has more than {MOST_OPERATORS} operators, which no network has"
            ));
        }
        Ok(match template {
            // `sum` decides it from the branches beside it; without any there is no width to keep.
            Template::Optional(x) if **x == Template::Identity => Vec::new(),
            Template::Optional(x) if !self.any_there(x, captures)? => Vec::new(),
            Template::Optional(x) => self.terms(x, captures)?,
            Template::Each(x) => {
                let mut terms = Vec::new();
                for captures in self.values(x, captures)? {
                    terms.extend(self.terms(x, &captures)?);
                }
                terms
            }
            Template::Sum(xs) => match self.sum(xs, captures)? {
                terms if terms.is_empty() => {
                    return Err(format!(
                        "none of its branches is there: {} is missing",
                        self.wanted(template, captures)
                    ));
                }
                terms if terms.len() == 1 => terms,
                terms => vec![Expr::Sum(terms)],
            },
            Template::Seq(xs) => {
                let mut steps = Vec::new();
                for x in xs {
                    let terms = self.terms(x, captures)?;
                    // A branch of a sum may be there or not; a factor is there in all blocks of a network or in none.
                    if let Template::Optional(inside) = x
                        && let Template::Scale(Factor::Tensor(Vector { tensor, .. }))
                        | Template::Shift(tensor) = &**inside
                    {
                        self.optional(tensor, captures, !terms.is_empty(), false);
                    }
                    steps.extend(terms);
                }
                match steps.len() {
                    0 => {
                        return Err(format!(
                            "none of its steps is there: {} is missing",
                            self.wanted(template, captures)
                        ));
                    }
                    1 => steps,
                    _ => vec![Expr::Seq(steps)],
                }
            }
            leaf => vec![self.leaf(leaf, captures)?],
        })
    }

    fn sum(&mut self, xs: &[Template], captures: &Captures) -> Result<Vec<Expr<Tensor>>, String> {
        let is_last =
            |x: &Template| matches!(x, Template::Optional(inner) if **inner == Template::Identity);
        let mut terms = Vec::new();
        for x in xs.iter().filter(|x| !is_last(x)) {
            terms.extend(self.terms(x, captures)?);
        }
        // An optional identity looks at the other branches, wherever the recipe writes it.
        let identities = xs.iter().filter(|x| is_last(x)).count();
        if identities > 0 && keeps_width(&terms) {
            self.assumes_identity = true;
            terms.extend(vec![Expr::Identity; identities]);
        }
        Ok(terms)
    }

    fn leaf(&mut self, template: &Template, captures: &Captures) -> Result<Expr<Tensor>, String> {
        Ok(match template {
            Template::Conv(conv) => Expr::Conv(self.conv(conv, captures)?),
            Template::Bn { norm, eps } => self.bn(norm, *eps, captures)?,
            Template::Scale(Factor::Number(n)) => Expr::Scale(Factor::Number(*n)),
            Template::Scale(Factor::Tensor(t)) => {
                let tensor = self.claim(&t.tensor, captures)?;
                is_vector(&tensor, t.row.is_some())?;
                Expr::Scale(Factor::Tensor(Vector {
                    tensor,
                    row: t.row,
                    through: t.through,
                }))
            }
            Template::Shift(t) => {
                let tensor = self.claim(t, captures)?;
                is_vector(&tensor, false)?;
                Expr::Shift(tensor)
            }
            Template::AvgPool(Window::Is(window)) => Expr::AvgPool(*window),
            Template::AvgPool(Window::Of(weight)) => {
                Expr::AvgPool(self.window_of(weight, captures)?)
            }
            Template::Identity => {
                self.assumes_identity = true;
                Expr::Identity
            }
            // `terms` takes these apart.
            Template::Seq(_) | Template::Sum(_) | Template::Optional(_) | Template::Each(_) => {
                self.one(template, captures)?
            }
        })
    }

    fn conv(&mut self, conv: &ConvTemplate, captures: &Captures) -> Result<Conv<Tensor>, String> {
        let ConvTemplate {
            weight,
            bias,
            presence,
            dilation,
            groups,
            transposed,
            flipped,
            axes,
        } = conv;
        let shared = axes.is_some_and(|axes| !axes.outputs);
        let mut weight = self.claim(weight, captures)?;
        if let Some(axes) = axes {
            let shape = axes.weight_shape(weight.shape()).ok_or_else(|| {
                let shape = weight.shape();
                format!("{weight} has shape {shape:?}; expected the axes `{axes}`")
            })?;
            weight = weight.reshaped(shape);
        }
        let bias = match bias {
            Some(bias) => self.bias(bias, *presence, captures)?,
            None => None,
        };
        bias.iter().try_for_each(has_one_axis)?;
        let groups = match groups {
            Some(Groups::Is(n)) => Some(*n),
            // One kernel for all channels is depthwise by itself.
            Some(Groups::Depthwise) if shared => None,
            Some(Groups::Depthwise) => weight.shape().first().copied(),
            None => None,
        };
        let [depth, height, width] = dilation;
        let dilation = [
            size(depth, captures)?,
            size(height, captures)?,
            size(width, captures)?,
        ];
        // (A kernel without taps is no kernel; that is said elsewhere.)
        if weight_axes(weight.shape()).is_some_and(|(_, taps)| {
            let extent = dilated(taps.map(|n| n.max(1)), dilation);
            extent.iter().any(|n| *n > MAX_EXTENT)
        }) {
            let axes = &dilation[usize::from(weight.shape().len() < 5)..];
            return Err(format!(
                "{weight} {:?} at dilation {axes:?} covers more than {MAX_EXTENT} taps",
                weight.shape()
            ));
        }
        Ok(Conv {
            weight,
            bias,
            dilation,
            groups,
            transposed: *transposed,
            flipped: *flipped,
            shared,
        })
    }

    /// The extent of the kernel of a weight.
    fn window_of(&self, weight: &Pattern, captures: &Captures) -> Result<Extent, String> {
        let name = weight
            .fill(captures)
            .unwrap_or_else(|| weight.text().to_owned());
        let of = quoted(&name);
        match self.index.get(&name).map(|t| weight_axes(t.shape())) {
            None => Err(format!(
                "{of} is missing, whose kernel an average pooling is as large as"
            )),
            Some(None) => Err(format!(
                "{of} has no kernel that an average pooling could be as large as"
            )),
            Some(Some((_, taps))) => Ok(taps),
        }
    }

    fn bias(
        &mut self,
        bias: &Pattern,
        presence: Presence,
        captures: &Captures,
    ) -> Result<Option<Tensor>, String> {
        let found = self.find(bias, captures);
        match (presence, found) {
            (Presence::Forbidden, Some(bias)) => Err(format!(
                "{bias} is there, and the recipe says that this conv has none; `\"bias\": true` beside it says that it has one"
            )),
            (Presence::Forbidden, None) => Ok(None),
            (Presence::Required, _) => Ok(Some(self.claim(bias, captures)?)),
            (Presence::Optional, found) => {
                self.optional(bias, captures, found.is_some(), true);
                found.map(|_| self.claim(bias, captures)).transpose()
            }
        }
    }

    /// Notes whether a tensor that may be there is.
    fn optional(&mut self, tensor: &Pattern, captures: &Captures, there: bool, is_bias: bool) {
        let name = tensor
            .fill(captures)
            .unwrap_or_else(|| tensor.text().to_owned());
        self.optional.push(OptionalPart {
            is_bias,
            pattern: tensor.text().to_owned(),
            name,
            there,
        });
    }

    /// What to say of a norm that is not there whole.
    fn incomplete(&self, name: &str, missing: &[&str]) -> String {
        let module = quoted(name);
        match missing {
            [_, _, _, _] => match self.other_norm(name) {
                Some(other) => format!(
                    "the batch norm {module} is missing; did you mean {}?",
                    quoted(other)
                ),
                None => format!("the batch norm {module} is missing"),
            },
            ["running_mean", "running_var"] => format!(
                "the norm {module} keeps no running statistics (GroupNorm, InstanceNorm or track_running_stats=False): it cannot be folded"
            ),
            _ => {
                let n = missing.len();
                let are = if n == 1 { "is" } else { "are" };
                format!(
                    "{module} has {} of the 4 batch-norm tensors; `{}` {are} missing",
                    4 - n,
                    missing.join("`, `")
                )
            }
        }
    }

    fn bn(
        &mut self,
        norm: &Norm,
        own_eps: Option<f64>,
        captures: &Captures,
    ) -> Result<Expr<Tensor>, String> {
        let module = &norm.module;
        let found = norm.tensors.each_ref().map(|p| self.find(p, captures));
        let missing: Vec<&str> = NORM
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(end, _)| *end)
            .collect();
        let (affine, mean, var) = match found {
            [Some(weight), Some(bias), Some(mean), Some(var)] => (Some([weight, bias]), mean, var),
            // `affine=False`.
            [None, None, Some(mean), Some(var)] => (None, mean, var),
            _ => {
                let name = module.fill(captures).unwrap_or_default();
                return Err(self.incomplete(&name, &missing));
            }
        };
        let eps = (self.eps)(own_eps).ok_or_else(|| {
            let name = module.fill(captures).unwrap_or_default();
            format!(
                "no eps is known of the batch norm {}; the recipe has to state one",
                quoted(&name)
            )
        })?;
        let count = self.find(&norm.count, captures);
        let vectors = affine.iter().flatten().chain([&mean, &var]);
        vectors.clone().try_for_each(has_one_axis)?;
        self.claimed.extend(vectors.chain(&count).cloned());
        Ok(Expr::Bn(Bn {
            mean,
            var,
            affine,
            eps,
        }))
    }

    /// Whether any tensor of a template is in the file.
    fn any_there(&self, template: &Template, captures: &Captures) -> Result<bool, String> {
        for pattern in template.tensors() {
            self.budget.may_go_on()?;
            let mut found = self.budget.names(self.index, pattern, captures);
            if found.next().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The values over which an `each` runs, in the order of the numbers in them.
    fn values(&self, template: &Template, captures: &Captures) -> Result<Vec<Captures>, String> {
        let free: BTreeSet<String> = template
            .captures()
            .into_iter()
            .filter(|c| !captures.has(c))
            .collect();
        let tensors = template.tensors();
        let mut found = BTreeSet::new();
        for pattern in tensors
            .iter()
            .filter(|p| free.iter().all(|c| p.captures().any(|name| name == c)))
        {
            self.budget.may_go_on()?;
            let there = self.budget.names(self.index, pattern, captures);
            found.extend(there.map(|(_, captures)| captures));
        }
        let mut found: Vec<Captures> = found.into_iter().collect();
        let number = |captures: &Captures, name: &String| {
            captures
                .get(name)
                .and_then(|text| text.parse::<usize>().ok())
        };
        found.sort_by_key(|captures| {
            free.iter()
                .map(|name| number(captures, name))
                .collect::<Vec<_>>()
        });
        if let [index] = &free.iter().collect::<Vec<_>>()[..]
            && let Some(pattern) = tensors.iter().find(|pattern| pattern.is_index(index))
            && !template.sizes().contains(*index)
        {
            // The indices of a list of modules run from 0; a gap is a branch that was lost. (Sizes are whatever they are.)
            if let Some(gap) = found
                .iter()
                .enumerate()
                .find(|(i, captures)| number(captures, index) != Some(*i))
            {
                let mut lost = captures.clone();
                lost.set(&index.as_str().into(), gap.0.to_string());
                return Err(format!(
                    "{} is missing, but later branches are there",
                    quoted(&pattern.fill(&lost).unwrap_or_default())
                ));
            }
        }
        Ok(found)
    }

    /// How an error names what a template asks for first.
    fn wanted(&self, template: &Template, captures: &Captures) -> String {
        let first = template.tensors().into_iter().next();
        first.map_or_else(
            || "a tensor".to_owned(),
            |p| quoted(&p.fill(captures).unwrap_or_else(|| p.text().to_owned())),
        )
    }
}

/// Checks that the numbers of a norm, or a bias, lie along one axis, as every framework stores them.
fn has_one_axis(tensor: &Tensor) -> Result<(), String> {
    match tensor.shape() {
        [_] => Ok(()),
        shape => Err(format!(
            "{tensor} has shape {shape:?}; expected one axis, with one number for each channel"
        )),
    }
}

/// Checks that factors lie along one axis, whichever it is of a map or a weight; or those of each row.
fn is_vector(tensor: &Tensor, in_rows: bool) -> Result<(), String> {
    let shape = tensor.shape();
    let axes = &shape[usize::from(in_rows).min(shape.len())..];
    match axes.iter().filter(|n| **n != 1).count() {
        0 | 1 => Ok(()),
        _ => Err(format!(
            "{tensor} has shape {shape:?}; expected one number for each channel, along one axis"
        )),
    }
}

/// Kernels that cover more taps than this in one direction are mistakes.
const MAX_EXTENT: usize = 1024;

fn size(size: &Size, captures: &Captures) -> Result<usize, String> {
    match size {
        Size::Is(n) => Ok(*n),
        Size::Captured(pattern) => {
            let text = pattern.fill(captures).unwrap_or_default();
            text.parse()
                .ok()
                .filter(|n| (1..=MAX_EXTENT).contains(n))
                .ok_or_else(|| {
                    format!(
                        "{} is not a dilation; expected a number from 1 to {MAX_EXTENT}",
                        quoted(&text)
                    )
                })
        }
    }
}
