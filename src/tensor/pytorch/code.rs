//! The code that an archive of TorchScript has beside its tensors: the eps of a norm stands there. It is read as text, and only
//! where it says one thing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::module::SCRIPTED;
use crate::tensor::zip::Archive;

/// The longest file of code that is read, and what all of them may have.
const LONGEST: usize = 1 << 20;
const MOST: usize = 64 << 20;

/// The code of an archive, file by file as it is asked for.
#[derive(Debug)]
pub(super) struct Code<'a> {
    archive: &'a Archive<'a>,
    read: RefCell<Read>,
}

#[derive(Debug, Default)]
struct Read {
    files: HashMap<String, Option<Rc<str>>>,
    bytes: usize,
}

impl<'a> Code<'a> {
    pub(super) fn of(archive: &'a Archive<'a>) -> Code<'a> {
        Code {
            archive,
            read: RefCell::default(),
        }
    }

    /// The eps with which a class, named as in a pickle, norms by running statistics.
    pub(super) fn eps(&self, class: &str) -> Option<f64> {
        let (package, class) = class
            .strip_prefix(SCRIPTED)
            .map(|_| class)?
            .rsplit_once('.')?;
        eps(&self.file(package)?, class)
    }

    /// The file in which a package has its classes.
    fn file(&self, package: &str) -> Option<Rc<str>> {
        let mut read = self.read.borrow_mut();
        if let Some(known) = read.files.get(package) {
            return known.clone();
        }
        let most = LONGEST.min(MOST - read.bytes);
        let name = format!("code/{}.py", package.replace('.', "/"));
        let text: Option<Rc<str>> = self.archive.text(&name, most).map(Rc::from);
        read.bytes += text.as_ref().map_or(0, |text| text.len());
        read.files.insert(package.to_owned(), text.clone());
        text
    }
}

/// The eps that the code of a class says: a constant of it, as scripting writes it, or an argument of `torch.batch_norm`, as
/// tracing does.
fn eps(code: &str, class: &str) -> Option<f64> {
    let mut constants = Vec::new();
    let mut arguments = Vec::new();
    for line in body(code, class)? {
        if let Some(constant) = line.strip_prefix("  eps : Final[float] = ") {
            constants.push(constant.parse().ok()?);
        }
        for (at, call) in line.match_indices(CALL) {
            arguments.push(argument(&line[at + call.len()..])?);
        }
    }
    let said = match constants.is_empty() {
        true => arguments,
        false => constants,
    };
    let first: f64 = *said.first()?;
    (said.iter().all(|eps| *eps == first) && first.is_finite() && first >= 0.0).then_some(first)
}

const CALL: &str = "torch.batch_norm(";

/// The lines of a class.
fn body<'c>(code: &'c str, class: &str) -> Option<impl Iterator<Item = &'c str>> {
    let begins = format!("class {class}(Module):");
    let mut lines = code.lines();
    lines.find(|line| *line == begins)?;
    Some(lines.take_while(|line| line.is_empty() || line.starts_with(' ')))
}

/// The eps among the arguments behind a parenthesis: input, weight, bias, running mean and variance, whether it trains,
/// momentum, eps. In training, the statistics are not those of the file.
fn argument(call: &str) -> Option<f64> {
    let mut depth = 0usize;
    let mut split = call.split(|c| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    let mut next = || split.next().map(str::trim);
    let [_, _, _, mean, variance, trains, _, eps] = [
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
        next()?,
    ];
    let is = |value: &str, name: &str| {
        let digits = value.strip_prefix(name);
        digits.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
    };
    let fits = is(mean, "running_mean") && is(variance, "running_var") && trains == "False";
    eps.parse().ok().filter(|_| fits)
}

#[cfg(test)]
mod tests {
    use super::eps;

    const TRACED: &str = "class Norm(Module):\n  weight : Tensor\n  def forward(self: __torch__.Norm,\n    x: Tensor) -> Tensor:\n    _0 = torch.batch_norm((conv).forward(x, ), weight, None, running_mean, running_var0, False, 0.10000000000000001, 0.001, True)\n    return _0\nclass Other(Module):\n  eps : Final[float] = 2.0000000000000002e-05\n";

    #[test]
    fn an_eps_is_a_constant_or_an_argument() {
        assert_eq!(eps(TRACED, "Norm"), Some(1e-3));
        assert_eq!(eps(TRACED, "Other"), Some(2e-5));
        let twice = TRACED.replace("    return", "    _1 = torch.batch_norm(_0, weight, None, running_mean, running_var, False, 0.1, 0.001, True)\n    return");
        assert_eq!(eps(&twice, "Norm"), Some(1e-3));
    }

    #[test]
    fn what_is_not_certain_is_none() {
        assert_eq!(eps(TRACED, "Nor"), None);
        for (from, to) in [
            ("False", "True"),
            ("False", "training"),
            ("running_mean", "mean"),
            ("0.001", "eps"),
            ("0.001", "nan"),
            ("0.001", "-0.001"),
            (", 0.10000000000000001, 0.001, True", ""),
            ("batch_norm", "instance_norm"),
        ] {
            assert_eq!(eps(&TRACED.replace(from, to), "Norm"), None, "{to}");
        }
        let other = TRACED.replace("    return", "    _1 = torch.batch_norm(_0, weight, None, running_mean, running_var, False, 0.1, 0.1, True)\n    return");
        assert_eq!(eps(&other, "Norm"), None);
    }
}
