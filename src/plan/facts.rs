//! What a file says of its modules, in the expression of a block: the eps of every norm, the groups of every conv. What
//! contradicts the recipe or the user is an error.

use super::Block;
use super::padding::{self, all_convs};
use super::path::module_or_own;
use crate::algebra::extent::POINT;
use crate::algebra::shape::weight_axes;
use crate::algebra::{Bn, Conv, Expr};
use crate::tensor::{Tensor, quoted};

/// Puts what the file says into an expression. `wish` is the eps that the user gave, which the file may not contradict.
///
/// # Errors
/// A sentence on what the file says and what else was said.
pub(super) fn told(expr: &mut Expr<Tensor>, wish: Option<f64>) -> Result<(), String> {
    each(expr, &mut |leaf| match leaf {
        Leaf::Conv(conv) => conv_told(conv),
        Leaf::Bn(bn) => bn_told(bn, wish),
    })?;
    one_dilation(expr)?;
    padding::agree(expr)?;
    stride(expr).map(|_| ())
}

/// The eps of all norms where the file says every one of them: `Some(None)` if they differ.
pub(super) fn all_eps(blocks: &[Block]) -> Option<Option<f64>> {
    let convs = blocks.iter().flat_map(|block| &block.fused);
    let norms = convs.flat_map(|conv| conv.expr.root().norms());
    let mut all: Option<Option<f64>> = None;
    for bn in norms {
        let eps = bn.mean.module()?.number("eps")?;
        all = match all {
            None => Some(Some(eps)),
            Some(one) => Some(one.filter(|one| *one == eps)),
        };
    }
    all
}

/// The eps that the file says a norm has.
fn eps_of(bn: &Bn<Tensor>) -> Option<f64> {
    bn.mean.module()?.number("eps")
}

/// The first norm whose eps only its code tells, as a sentence on it: a module without the attribute. (TorchScript keeps all of
/// that in code.)
pub(super) fn without_eps(expr: &Expr<Tensor>) -> Option<String> {
    let mut norms = Vec::new();
    expr.visit(&mut |part| {
        if let Expr::Bn(bn) = part {
            norms.push(bn);
        }
    });
    norms.into_iter().find_map(|bn| {
        let said = bn.mean.module()?;
        let hidden = !said.in_code && said.number("eps").is_none();
        hidden.then(|| {
            format!(
                "the file says that the norm {} is a {}, and no eps of it, which its code has",
                module(&bn.mean),
                quoted(&said.class)
            )
        })
    })
}

enum Leaf<'a> {
    Conv(&'a mut Conv<Tensor>),
    Bn(&'a mut Bn<Tensor>),
}

fn each(
    expr: &mut Expr<Tensor>,
    f: &mut dyn FnMut(Leaf<'_>) -> Result<(), String>,
) -> Result<(), String> {
    match expr {
        Expr::Conv(conv) => f(Leaf::Conv(conv)),
        Expr::Bn(bn) => f(Leaf::Bn(bn)),
        Expr::Seq(xs) | Expr::Sum(xs) | Expr::Stack(xs) => {
            xs.iter_mut().try_for_each(|x| each(x, f))
        }
        _ => Ok(()),
    }
}

/// The module of a tensor, as an error names it.
fn module(tensor: &Tensor) -> String {
    quoted(module_or_own(tensor.name()))
}

/// Numbers that are read and written in other places are the same up to so much of them.
const SAME: f64 = 1e-9;

fn bn_told(bn: &mut Bn<Tensor>, wish: Option<f64>) -> Result<(), String> {
    let Some(eps) = eps_of(bn) else {
        return Ok(());
    };
    if let Some(wish) = wish.filter(|wish| (wish - eps).abs() > SAME * eps) {
        return Err(format!(
            "the file says that the norm {} has eps {eps:e}, and {wish:e} was asked for; leave that out",
            module(&bn.mean)
        ));
    }
    bn.eps = eps;
    Ok(())
}

fn conv_told(conv: &mut Conv<Tensor>) -> Result<(), String> {
    let Some(said) = conv.weight.module() else {
        return Ok(());
    };
    let name = module(&conv.weight);
    if let Some(transposed) = said.flag("transposed").filter(|t| *t != conv.transposed) {
        let kind = |transposed| match transposed {
            true => "a transposed conv",
            false => "a plain conv",
        };
        return Err(format!(
            "the file says that {name} is {}; the recipe takes it for {}",
            kind(transposed),
            kind(conv.transposed)
        ));
    }
    let Some(groups) = said.count("groups").filter(|_| !conv.shared) else {
        return Ok(());
    };
    match conv.groups {
        Some(declared) if declared != groups => Err(format!(
            "the file says that {name} has groups {groups}; the recipe says {declared}"
        )),
        _ => {
            conv.groups = Some(groups);
            Ok(())
        }
    }
}

/// An attribute such as `stride=(2, 2)` of the conv of a weight, in three dimensions.
pub(super) fn axes(weight: &Tensor, name: &str) -> Option<[usize; 3]> {
    let counts = weight.module()?.counts(name)?;
    let mut axes = POINT;
    let first = axes.len().checked_sub(counts.len())?;
    axes[first..].copy_from_slice(&counts);
    Some(axes)
}

/// Checks that the kernels of a block are spread alike: those of the recipe, or all of them wider by one factor, which is
/// then that of the fused conv.
fn one_dilation(expr: &Expr<Tensor>) -> Result<(), String> {
    let mut convs = Vec::new();
    all_convs(expr, &mut convs);
    for axis in 0..3 {
        let taps = |conv: &Conv<Tensor>| {
            weight_axes(conv.weight.shape()).map_or(1, |(_, taps)| taps[axis])
        };
        let told = convs
            .iter()
            .filter(|conv| taps(conv) > 1)
            .filter_map(|conv| {
                let said = axes(&conv.weight, "dilation")?;
                Some((*conv, said[axis], conv.dilation[axis]))
            });
        let told: Vec<_> = told.collect();
        let Some((first, said, declared)) = told.first() else {
            continue;
        };
        let other = told.iter().find(|(_, s, d)| s * declared != said * d);
        if let Some((other, s, _)) = other {
            return Err(format!(
                "the file says that {} has dilation {said} and {} has {s}; by the recipe their taps do not lie like that",
                module(&first.weight),
                module(&other.weight)
            ));
        }
        if said % declared != 0 {
            return Err(format!(
                "the file says that {} has dilation {said}; the recipe says {declared}",
                module(&first.weight)
            ));
        }
        let mut pools = false;
        expr.visit(&mut |part| pools |= matches!(part, Expr::AvgPool(_)));
        if pools && said != declared {
            return Err(format!(
                "the file says that {} has dilation {said}, where the recipe has {declared} beside a pooling, whose taps do not lie like that",
                module(&first.weight)
            ));
        }
    }
    Ok(())
}

/// The stride of an expression as far as the file says it.
///
/// # Errors
/// When a kernel of more than one tap comes after a stride, which no single conv computes with the strides that a recipe
/// leaves to the caller; or when branches step differently.
fn stride(expr: &Expr<Tensor>) -> Result<Option<[usize; 3]>, String> {
    match expr {
        Expr::Conv(conv) => Ok(axes(&conv.weight, "stride")),
        Expr::Seq(xs) => {
            let mut so_far = None;
            for x in xs {
                let widened = so_far.filter(|stride: &[usize; 3]| stride.iter().any(|n| *n > 1));
                let mut convs = Vec::new();
                all_convs(x, &mut convs);
                let wide = convs.iter().find(|conv| {
                    let taps = weight_axes(conv.weight.shape()).map(|(_, taps)| taps);
                    taps.is_some_and(|taps| taps.iter().any(|n| *n > 1))
                });
                if let (Some(stride), Some(conv)) = (widened, wide) {
                    return Err(format!(
                        "the file says that a stride of {:?} comes before {}; the recipe takes it for one of the whole block",
                        &stride[1..],
                        module(&conv.weight)
                    ));
                }
                if let Some(more) = stride(x)? {
                    let before = so_far.unwrap_or(POINT);
                    so_far = Some([0, 1, 2].map(|i| before[i].saturating_mul(more[i])));
                }
            }
            Ok(so_far)
        }
        Expr::Sum(xs) | Expr::Stack(xs) => {
            let mut found: Option<[usize; 3]> = None;
            for x in xs {
                match (found, stride(x)?) {
                    (Some(one), Some(other)) if one != other => {
                        return Err(format!(
                            "the file says that its branches have strides {:?} and {:?}; they cannot be added up",
                            &one[1..],
                            &other[1..]
                        ));
                    }
                    (one, other) => found = one.or(other),
                }
            }
            Ok(found)
        }
        _ => Ok(None),
    }
}
