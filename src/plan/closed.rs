//! A block is a closed world: a tensor that stands among its own must have a place in what it computes, or be said
//! to stand beside it.

use foldhash::{HashMap, HashMapExt, HashSet};
use globset::GlobSet;

use super::Block;
use super::path::{is_below, modules_above, parent};
use super::select::compile;
use crate::recipe::Error;
use crate::recipe::expand::Index;
use crate::recipe::model::{BATCH_COUNT, BlockRule, NORM};
use crate::recipe::pattern::{Captures, Pattern};
use crate::tensor::Tensor;

/// What of a file is a block's own: everything below one path.
pub(super) struct Region {
    /// The name of the block.
    block: String,
    /// The longest dotted path above all modules of the block; empty for the whole file.
    path: String,
    /// The modules below the path that hold its tensors: convs, norms, and what else has parameters.
    modules: Vec<String>,
    /// The rule's names of what stands beside the block.
    beside: Vec<Pattern>,
    captures: Captures,
    /// Whether the block is left as it is, with all that stands in it.
    left: bool,
}

impl Region {
    /// Everything below a path, which is left as it is; for a module that has been asked for itself, with what stands beside
    /// it: the norm behind a conv, for one.
    pub(super) fn below(path: &str, module: &str) -> Region {
        let path = if path == module { parent(path) } else { path };
        Region {
            block: module.to_owned(),
            path: path.to_owned(),
            modules: Vec::new(),
            beside: Vec::new(),
            captures: Captures::new(),
            left: true,
        }
    }

    /// The region of a block that is left as it is.
    pub(super) fn left(self) -> Region {
        Region { left: true, ..self }
    }

    /// The region of a block, given the names of the tensors that it consumes or keeps. Branches that the rule knows and the block
    /// does without count, too: what else stands where they would is none of the block's.
    pub(super) fn of<'n>(
        block: &str,
        rule: &BlockRule,
        captures: &Captures,
        tensors: impl Iterator<Item = &'n str> + Clone,
    ) -> Region {
        let path = path_of(tensors.clone(), rule, captures);
        let mut modules: Vec<String> = tensors
            .map(parent)
            .filter(|module| module.len() > path.len())
            .map(str::to_owned)
            .collect();
        modules.sort();
        modules.dedup();
        Region {
            block: block.to_owned(),
            path: path.to_owned(),
            modules,
            beside: rule.beside.clone(),
            captures: captures.clone(),
            left: false,
        }
    }

    /// Whether a tensor stands beside the block.
    ///
    /// A module that does holds nothing inside a module of the block itself: what is there changes what that one computes.
    /// Only the tensor's own name says otherwise.
    fn has_beside(&self, name: &str, of_file: &Beside<'_>) -> bool {
        let by_rule = |name: &str| {
            let mut patterns = self.beside.iter();
            patterns.any(|pattern| pattern.matches(name, &self.captures).is_some())
        };
        match self.modules.iter().any(|module| is_below(name, module)) {
            true => by_rule(name) || of_file.says(name),
            false => modules_above(name)
                .chain([name])
                .any(|above| by_rule(above) || of_file.names(above)),
        }
    }
}

/// What stands beside blocks wherever it is: names of a recipe, and a user's globs on tensors and modules.
pub(super) struct Beside<'a> {
    patterns: &'a [Pattern],
    texts: &'a [String],
    globs: Vec<GlobSet>,
}

impl<'a> Beside<'a> {
    pub(super) fn new(patterns: &'a [Pattern], wish: &'a [String]) -> Result<Beside<'a>, Error> {
        Ok(Beside {
            patterns,
            texts: wish,
            globs: compile(wish)?,
        })
    }

    /// The first of the user's globs that covers no tensor and no module.
    ///
    /// # Errors
    /// When one is none.
    pub(super) fn idle(
        wish: &[String],
        index: &Index,
        covers: impl Fn(&Beside<'_>, &str) -> bool,
    ) -> Result<Option<String>, Error> {
        for glob in wish {
            let one = Beside::new(&[], std::slice::from_ref(glob))?;
            if !index.keys().any(|name| covers(&one, name)) {
                return Ok(Some(glob.clone()));
            }
        }
        Ok(None)
    }

    fn names(&self, name: &str) -> bool {
        self.by_recipe(name) || self.globs.iter().any(|glob| glob.is_match(name))
    }

    /// Whether this very name is given, and not by a wildcard.
    fn says(&self, name: &str) -> bool {
        self.by_recipe(name) || self.texts.iter().any(|text| text == name)
    }

    /// Whether a tensor or a module above it is named.
    pub(super) fn covers(&self, name: &str) -> bool {
        modules_above(name).chain([name]).any(|n| self.names(n))
    }

    fn by_recipe(&self, name: &str) -> bool {
        let mut patterns = self.patterns.iter();
        patterns.any(|pattern| pattern.matches(name, &Captures::new()).is_some())
    }
}

/// Checks that each of the user's globs covers a tensor or a module.
///
/// # Errors
/// When one covers none, or is none.
pub(super) fn expect_beside(wish: &[String], index: &Index) -> Result<(), Error> {
    match Beside::idle(wish, index, |one, name| one.covers(name))? {
        Some(glob) => Err(Error::NothingBeside { glob }),
        None => Ok(()),
    }
}

/// Checks that each of them covers something that no block fuses.
///
/// # Errors
/// When all that one covers is fused.
pub(super) fn expect_not_fused(
    wish: &[String],
    index: &Index,
    blocks: &[Block],
) -> Result<(), Error> {
    if wish.is_empty() {
        return Ok(());
    }
    let consumed = blocks.iter().flat_map(|block| block.consumed());
    let fused: HashSet<&str> = consumed.map(Tensor::name).collect();
    match Beside::idle(wish, index, |one, name| {
        !fused.contains(name) && one.covers(name)
    })? {
        Some(glob) => Err(Error::FusedBeside { glob }),
        None => Ok(()),
    }
}

/// All regions of a plan, by their paths.
pub(super) struct Regions {
    regions: Vec<Region>,
    at: HashMap<String, Vec<usize>>,
}

impl Regions {
    pub(super) fn of(regions: Vec<Region>) -> Regions {
        let mut at: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, region) in regions.iter().enumerate() {
            at.entry(region.path.clone()).or_default().push(i);
        }
        Regions { regions, at }
    }

    /// The regions that a tensor is in, the innermost first.
    fn around<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Region> {
        let paths = modules_above(name).collect::<Vec<_>>().into_iter().rev();
        let here = |path: &str| self.at.get(path).into_iter().flatten();
        paths
            .chain([""])
            .flat_map(here)
            .map(|region| &self.regions[*region])
    }

    /// Whether the innermost block that a tensor stands in is left as it is.
    pub(super) fn are_left(&self, name: &str) -> bool {
        self.around(name).next().is_some_and(|region| region.left)
    }

    /// Checks a tensor that no block has.
    ///
    /// # Errors
    /// When it stands in a block that does not know it.
    pub(super) fn check(
        &self,
        tensor: &Tensor,
        recipe: &str,
        of_file: &Beside<'_>,
        tried: &dyn Fn(usize),
    ) -> Result<(), Error> {
        for region in self.around(tensor.name()).filter(|region| !region.left) {
            tried(1 + region.beside.len() + region.modules.len());
            if !region.has_beside(tensor.name(), of_file) {
                return Err(Error::Stranger {
                    tensor: tensor.to_string(),
                    name: tensor.name().to_owned(),
                    block: region.block.clone(),
                    recipe: recipe.to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// The longest path above the tensors of a block and all modules that its rule knows, as far as the captures of the block tell them.
pub(super) fn path_of<'n>(
    tensors: impl Iterator<Item = &'n str>,
    rule: &BlockRule,
    captures: &Captures,
) -> &'n str {
    let mut path = region_of(tensors);
    for (_, template) in &rule.fuse {
        template.visit_tensors(&mut |pattern| {
            if pattern.prefix().is_none_or(|prefix| captures.has(prefix)) {
                let (known, complete) = pattern.known_start(captures);
                let known = match complete {
                    true => above(&known),
                    false => parent(&known),
                };
                path = common(path, known);
            }
        });
    }
    path
}

/// The path of what is the own of a block that has these tensors; empty for the whole file.
pub(crate) fn region_of<'n>(tensors: impl Iterator<Item = &'n str>) -> &'n str {
    tensors.map(above).reduce(common).unwrap_or("")
}

/// The path above the module of a tensor; a parameter that is no part of a conv or norm is its own module.
fn above(name: &str) -> &str {
    let (module, end) = name.rsplit_once('.').unwrap_or(("", name));
    match NORM.contains(&end) || end == BATCH_COUNT {
        true => parent(module),
        false => module,
    }
}

/// The longest path that is above both, or is both.
fn common<'n>(a: &'n str, b: &str) -> &'n str {
    let is_above = |path: &&str| path.is_empty() || *path == b || is_below(b, path);
    let mut path = a;
    while !is_above(&path) {
        path = parent(path);
    }
    path
}
