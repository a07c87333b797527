//! What a file says of the modules of a block, against what a recipe makes of their names: convs and norms of other classes,
//! modules without parameters between them, and branches that are there after all.
//!
//! A state dict says nothing of this. What a module does directly in a block, as an activation behind the sum, is the
//! caller's; what stands inside of a branch is the branch's.

use std::collections::BTreeSet;

use super::closed::region_of;
use super::known::{Kind, kind};
use super::path::{is_below, modules_above, parent};
use crate::algebra::{Expr, Factor};
use crate::recipe::model::Template;
use crate::recipe::pattern::Captures;
use crate::tensor::facts::Module;
use crate::tensor::{Facts, Tensor, quoted};

/// Checks an expression, and the template that it was made of, against what the file says.
///
/// # Errors
/// A sentence that names the module and its class.
pub(super) fn agrees(
    expr: &Expr<Tensor>,
    template: &Template,
    captures: &Captures,
) -> Result<(), String> {
    let mut leaves = Vec::new();
    collect(expr, &mut leaves);
    let Some(facts) = leaves.iter().find_map(|leaf| leaf.tensor.facts()) else {
        return Ok(());
    };
    let names = || leaves.iter().map(|leaf| leaf.tensor);
    let block = Said {
        facts,
        region: region_of(names().map(Tensor::name_in_file)),
        seen_region: region_of(names().map(Tensor::name)),
        last: last(expr),
        leaves,
    };
    block.classes()?;
    block.unchanged()?;
    block.order(expr)?;
    block.inside()?;
    block.absent(template, captures, None)
}

/// A tensor of an expression, and what it is a parameter of.
struct Leaf<'a> {
    tensor: &'a Tensor,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Conv,
    Norm,
    Other,
}

impl<'a> Leaf<'a> {
    /// The path of its module in the file.
    fn module(&self) -> &'a str {
        parent(self.tensor.name_in_file())
    }
}

/// The tensors that tell the modules of an expression.
fn collect<'a>(expr: &'a Expr<Tensor>, out: &mut Vec<Leaf<'a>>) {
    let mut leaf = |tensor, role| out.push(Leaf { tensor, role });
    match expr {
        Expr::Conv(conv) => leaf(&conv.weight, Role::Conv),
        Expr::Bn(bn) => leaf(&bn.mean, Role::Norm),
        Expr::Scale(Factor::Tensor(vector)) => leaf(&vector.tensor, Role::Other),
        Expr::Shift(tensor) => leaf(tensor, Role::Other),
        Expr::Seq(xs) | Expr::Sum(xs) | Expr::Stack(xs) => {
            xs.iter().for_each(|x| collect(x, out));
        }
        _ => {}
    }
}

/// The module whose operator is the last one of all.
fn last(expr: &Expr<Tensor>) -> Option<&str> {
    match expr {
        Expr::Seq(xs) => last(xs.last()?),
        Expr::Sum(_) | Expr::Stack(_) => None,
        one => {
            let mut leaves = Vec::new();
            collect(one, &mut leaves);
            leaves.first().map(Leaf::module)
        }
    }
}

struct Said<'a> {
    facts: &'a Facts,
    /// The path of what is the block's own, in the file and as the recipe sees it.
    region: &'a str,
    seen_region: &'a str,
    last: Option<&'a str>,
    leaves: Vec<Leaf<'a>>,
}

impl Said<'_> {
    fn kind(&self, path: &str) -> Option<Kind> {
        kind(&self.facts.module(path)?.class)
    }

    /// A module as an error names it.
    fn named(&self, path: &str) -> String {
        let class = self.facts.module(path).map_or("?", |said| &said.class);
        format!("{} is a {}", quoted(path), quoted(class))
    }

    /// Checks that every conv and every norm is one, and nothing besides.
    fn classes(&self) -> Result<(), String> {
        let convs = self.leaves.iter().filter(|leaf| leaf.role == Role::Conv);
        let alone = convs.count() == 1;
        for leaf in &self.leaves {
            let path = leaf.module();
            let Some(said) = self.facts.module(path) else {
                continue;
            };
            let known = match (leaf.role, kind(&said.class)) {
                // A parameter of a block itself is what the recipe says that it is.
                (Role::Conv, _) if !leaf.tensor.name().ends_with(".weight") => true,
                (Role::Conv, Some(Kind::Conv)) => true,
                (Role::Conv, Some(Kind::SameConv)) => alone,
                (Role::Norm, Some(Kind::Norm | Kind::NormAct)) => true,
                (Role::Norm, Some(Kind::Tracked)) => said.flag("track_running_stats") == Some(true),
                (Role::Other, _) => true,
                _ => false,
            };
            if !known {
                let what = match leaf.role {
                    Role::Conv => "a plain conv",
                    _ => "a plain batch norm",
                };
                return Err(format!(
                    "the file says that {}, and the recipe takes it for {what}",
                    self.named(path)
                ));
            }
        }
        Ok(())
    }

    /// The modules of the operators, and those around them.
    fn own(&self) -> BTreeSet<&str> {
        let modules = self.leaves.iter().map(Leaf::module);
        modules
            .flat_map(|module| modules_above(module).chain([module]))
            .collect()
    }

    /// Checks that the block and its branches compute what their classes do: no hook acts on them, and no method is an
    /// instance's own.
    fn unchanged(&self) -> Result<(), String> {
        let own = self.own();
        let is_block = |path: &str| !path.is_empty() && path == self.region;
        let mut of_block = own
            .iter()
            .filter(|path| is_block(path) || self.is_inside(path));
        let changed = of_block.find_map(|path| {
            let changed = self.facts.module(path)?.changed.as_ref()?;
            Some((path, changed))
        });
        match changed {
            Some((path, changed)) => Err(format!(
                "the file says that {} has {changed}, which a folded conv would lose",
                quoted(path)
            )),
            None => Ok(()),
        }
    }

    /// Checks that what follows one another in the expression does so in a sequence of the file, too, and nothing acts between.
    fn order(&self, expr: &Expr<Tensor>) -> Result<(), String> {
        if let Expr::Seq(xs) = expr {
            for pair in xs.windows(2) {
                let [mut before, mut after] = [Vec::new(), Vec::new()];
                collect(&pair[0], &mut before);
                collect(&pair[1], &mut after);
                self.follows(&before, &after)?;
            }
        }
        match expr {
            Expr::Seq(xs) | Expr::Sum(xs) | Expr::Stack(xs) => {
                xs.iter().try_for_each(|x| self.order(x))
            }
            _ => Ok(()),
        }
    }

    fn follows(&self, before: &[Leaf<'_>], after: &[Leaf<'_>]) -> Result<(), String> {
        let modules = before.iter().chain(after).map(Leaf::module);
        let Some(shared) = modules.reduce(common) else {
            return Ok(());
        };
        let Some(sequence) = self.sequence(shared) else {
            return Ok(());
        };
        let places = |leaves: &[Leaf<'_>]| -> Vec<usize> {
            let of = |leaf: &Leaf<'_>| place(sequence, shared, leaf.module());
            leaves.iter().filter_map(of).collect()
        };
        let (first, second) = (places(before), places(after));
        let (Some(from), Some(to)) = (first.iter().max(), second.iter().min()) else {
            return Ok(());
        };
        let part = |place: usize| below(shared, &sequence.parts[place]);
        if from > to {
            return Err(format!(
                "the file says that {}, in which {} comes before {}; in the recipe it is the other way round",
                self.named(shared),
                quoted(&part(*to)),
                quoted(&part(*from))
            ));
        }
        let between = (from + 1..*to).map(part).find(|path| !self.is_idle(path));
        match between {
            Some(path) => Err(format!(
                "the file says that {}, and it stands between {} and {}, where the recipe has nothing",
                self.named(&path),
                quoted(&part(*from)),
                quoted(&part(*to))
            )),
            None => Ok(()),
        }
    }

    fn sequence(&self, path: &str) -> Option<&Module> {
        let said = self.facts.module(path)?;
        (kind(&said.class) == Some(Kind::Sequence)).then_some(said)
    }

    /// Checks that nothing acts inside of a branch besides its convs and norms. (What has parameters is checked by their names.)
    fn inside(&self) -> Result<(), String> {
        let own = self.own();
        for path in own.iter().filter(|path| self.is_inside(path)) {
            let Some(said) = self.facts.module(path) else {
                continue;
            };
            let acts = said.parts.iter().enumerate().find(|(at, part)| {
                let part = below(path, part);
                !own.contains(part.as_str())
                    && !self.holds_tensors(&part)
                    && !self.is_idle(&part)
                    && !self.is_behind_all(path, *at)
            });
            if let Some((_, part)) = acts {
                return Err(format!(
                    "the file says that {} inside of {}, where the recipe has nothing",
                    self.named(&below(path, part)),
                    quoted(path)
                ));
            }
        }
        Ok(())
    }

    /// Whether a path is that of a branch: below that of the block.
    fn is_inside(&self, path: &str) -> bool {
        match self.region {
            "" => !path.is_empty(),
            region => is_below(path, region),
        }
    }

    /// Whether a part of a module acts behind the last operator of the block, and so behind the block.
    fn is_behind_all(&self, path: &str, part: usize) -> bool {
        let Some(last) = self.last.filter(|last| is_or_below(last, path)) else {
            return false;
        };
        let sequence = self.sequence(path);
        sequence.is_none_or(|said| place(said, path, last).is_some_and(|last| last < part))
    }

    /// Checks that branches whose tensors are not there are not there as modules, either. `of` tells whether the one looked at
    /// is a term of a sum beside an identity that may be there.
    fn absent(
        &self,
        template: &Template,
        captures: &Captures,
        of: Option<bool>,
    ) -> Result<(), String> {
        match template {
            Template::Optional(x) => {
                let names = x.tensors().into_iter().map(|p| p.fill(captures));
                let names: Option<Vec<String>> = names.collect();
                let there = |name: &String| self.leaves.iter().any(|l| l.tensor.name() == name);
                match names {
                    Some(names) if !names.is_empty() && !names.iter().any(there) => {
                        names.iter().try_for_each(|name| self.lacks(name, of))
                    }
                    _ => self.absent(x, captures, of),
                }
            }
            Template::Sum(xs) => {
                let is_identity = |x: &Template| match x {
                    Template::Identity => true,
                    Template::Optional(x) => **x == Template::Identity,
                    _ => false,
                };
                let of = Some(xs.iter().any(is_identity));
                xs.iter().try_for_each(|x| self.absent(x, captures, of))
            }
            Template::Seq(xs) => xs.iter().try_for_each(|x| self.absent(x, captures, None)),
            _ => Ok(()),
        }
    }

    /// Checks that no module without parameters stands where the module of a tensor would.
    fn lacks(&self, name: &str, of: Option<bool>) -> Result<(), String> {
        let Some(end) = name.strip_prefix(self.seen_region) else {
            return Ok(());
        };
        let name = format!("{}{end}", self.region);
        let above: Vec<&str> = modules_above(&name).collect();
        let there = above
            .into_iter()
            .rev()
            .find(|path| self.is_inside(path) && self.facts.module(path).is_some());
        let Some(path) = there.filter(|path| !self.holds_tensors(path)) else {
            return Ok(());
        };
        let is_idle = self.is_idle(path);
        let fits = match of {
            // A step that does nothing is none; a term that does nothing is a bare identity.
            None => is_idle,
            Some(identity) => is_idle && identity,
        };
        match (fits, is_idle) {
            (true, _) => Ok(()),
            (_, true) => Err(format!(
                "the file says that {}: a bare identity, which the recipe does not have",
                self.named(path)
            )),
            _ => Err(format!(
                "the file says that {}, where the recipe has a branch with parameters or none",
                self.named(path)
            )),
        }
    }

    fn holds_tensors(&self, path: &str) -> bool {
        self.facts
            .module(path)
            .is_some_and(|said| said.holds_tensors)
    }

    /// Whether a module does nothing in evaluation mode.
    fn is_idle(&self, path: &str) -> bool {
        let Some(said) = self.facts.module(path) else {
            return true;
        };
        if said.changed.is_some() {
            return false;
        }
        match self.kind(path) {
            Some(Kind::Idle) => true,
            Some(Kind::Sequence | Kind::Container) => {
                let mut parts = said.parts.iter();
                parts.all(|part| self.is_idle(&below(path, part)))
            }
            _ => false,
        }
    }
}

/// Where in a module the part is that has a path.
fn place(said: &Module, module: &str, path: &str) -> Option<usize> {
    let inside = match module {
        "" => path,
        _ => path.strip_prefix(module)?.strip_prefix('.')?,
    };
    let of = |part: &&String| is_or_below(inside, part);
    let part = said.parts.iter().find(of)?;
    said.parts.iter().position(|other| other == part)
}

fn below(module: &str, part: &str) -> String {
    match module {
        "" => part.to_owned(),
        _ => format!("{module}.{part}"),
    }
}

fn is_or_below(path: &str, module: &str) -> bool {
    path == module || is_below(path, module)
}

/// The longest path that both are at or below.
fn common<'n>(a: &'n str, b: &'n str) -> &'n str {
    let mut path = a;
    while !path.is_empty() && !is_or_below(b, path) {
        path = parent(path);
    }
    path
}
