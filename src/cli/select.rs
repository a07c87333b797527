//! What every command asks first: which file, which recipe, which eps.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::stranger;
use super::{graph, output};
use crate::graph::{Folded, GraphFile};
use crate::plan::{self, Block, Options, Plan};
use crate::recipe::{self, Family, Index, Recipe};
use crate::tensor::{Checkpoint, Float, Wrapping, plain, quoted};

/// Which blocks of which recipe.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Select {
    /// The recipe: a built-in name, or the path of a JSON file [default: detect]
    #[arg(long, value_name = "NAME|FILE")]
    pub(super) recipe: Option<String>,
    /// The eps of every batch norm, instead of the recipe's; `repvgg=1e-5` sets it for the blocks of one recipe
    #[arg(long, allow_negative_numbers = true, value_name = "E", value_parser = eps)]
    pub(super) bn_eps: Vec<(Option<String>, f64)>,
    /// Take the structure from this program of torch.export, and the numbers from the checkpoint
    #[arg(long, value_name = "MODEL.pt2", conflicts_with_all = ["recipe", "bn_eps"])]
    pub(super) graph: Option<PathBuf>,
    /// Fuse only blocks whose name matches; may be repeated
    #[arg(long, value_name = "GLOB", hide_short_help = true)]
    pub(super) only: Vec<String>,
    /// Leave blocks as they are whose name matches; may be repeated
    #[arg(long, value_name = "GLOB", hide_short_help = true)]
    pub(super) skip: Vec<String>,
    #[command(flatten)]
    pub(super) beside: Beside,
    /// Leave out tensors or modules, such as the state of a quantizer; may be repeated
    #[arg(long, value_name = "GLOB", hide_short_help = true)]
    pub(super) drop: Vec<String>,
    /// For a graph: fold also where one operator has more parameters or multiply-adds than the branches
    #[arg(long, hide_short_help = true)]
    pub(super) even_if_dearer: bool,
}

/// What stands beside blocks.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Beside {
    /// Tensors or modules that stand among a block's own and act after it: they are copied; may be repeated
    #[arg(long, value_name = "GLOB", hide_short_help = true)]
    pub(super) beside: Vec<String>,
}

/// An eps, and the recipe that it is for.
fn eps(text: &str) -> Result<(Option<String>, f64), String> {
    let (recipe, number) = match text.split_once('=') {
        Some((recipe, number)) => (Some(recipe.to_owned()), number),
        None => (None, text),
    };
    match number.parse::<f64>() {
        Ok(eps) if eps > 0.0 && eps < 1.0 => Ok((recipe, eps)),
        _ => Err("expected a small positive number such as 1e-5".to_owned()),
    }
}

impl Select {
    /// Plans what to fold of a graph, which needs no recipe.
    pub(super) fn fold<'a>(
        &self,
        file: &'a GraphFile,
        dtype: Option<Float>,
    ) -> anyhow::Result<Folded<'a>> {
        for (flag, given) in [
            ("--recipe", self.recipe.is_some()),
            ("--bn-eps", !self.bn_eps.is_empty()),
            ("--beside", !self.beside.beside.is_empty()),
            ("--drop", !self.drop.is_empty()),
            ("--graph", self.graph.is_some()),
        ] {
            if given {
                anyhow::bail!("a graph says by itself what is folded; leave out {flag}");
            }
        }
        Ok(file.fold(&self.options(dtype), self.even_if_dearer)?)
    }

    /// Plans a file by the chosen recipe, or by the one that is detected.
    pub(super) fn plan(
        &self,
        checkpoint: &Checkpoint,
        dtype: Option<Float>,
    ) -> anyhow::Result<Plan> {
        if let Some(graph) = &self.graph {
            anyhow::ensure!(
                !checkpoint.is_channels_last(),
                "--graph is about files of PyTorch; this one has `format: mlx`"
            );
            let by = (&self.options(None), self.even_if_dearer);
            return graph::with_numbers(graph, by, checkpoint, dtype);
        }
        if self.even_if_dearer {
            anyhow::bail!("--even-if-dearer is about graphs; leave it out for a file of weights");
        }
        let options = self.options(dtype);
        let index = checkpoint.tensors();
        match &self.recipe {
            Some(name) => {
                let recipe = named(name)?;
                let families = [Family::whole(&recipe)];
                let planned = plan::plan_families(index, &families, &options);
                planned.map_err(|e| advised(e.into(), index, &families, &options))
            }
            None => {
                let near = recipe::builtin_near(index)?;
                let found = recipe::detect_builtin(index, &near)?;
                let names: Vec<&str> = found.iter().map(|f| f.recipe.name.as_str()).collect();
                let planned = plan::plan_families(index, &found, &options);
                planned.map_err(|e| {
                    advised(
                        detected_as(&names.join("` and `"), e),
                        index,
                        &found,
                        &options,
                    )
                })
            }
        }
    }

    /// If a deploy form says that it was made by another recipe or eps than those of the plan: the flags for what it says, and what they
    /// select.
    pub(super) fn as_made(&self, deployed: &Checkpoint, plan: &Plan) -> Option<(String, Select)> {
        let said = |key: &str| {
            let key = format!("{}{key}", crate::fuse::METADATA_PREFIX);
            let mut metadata = deployed.metadata().iter();
            metadata.find_map(|(k, value)| (*k == key).then(|| plain(value)))
        };
        let mut select = self.clone();
        let mut flags = Vec::new();
        if let Some(recipe) = said("recipe").filter(|recipe| *recipe != plan.recipe()) {
            flags.push(format!("--recipe {recipe}"));
            select.recipe = Some(recipe);
        }
        if let Some(said) =
            said("eps").filter(|e| plan.eps().map(output::small).as_ref() != Some(e))
        {
            for of in said.split(", ") {
                flags.push(format!("--bn-eps {of}"));
                select.bn_eps.push(eps(of).ok()?);
            }
        }
        (!flags.is_empty()).then(|| (flags.join(" "), select))
    }

    /// If a deploy form looks as if other blocks had been chosen: how to choose them, and what that selects.
    pub(super) fn as_chosen(&self, deployed: &Checkpoint, plan: &Plan) -> Option<(String, Select)> {
        let mut select = self.clone();
        if !self.only.is_empty() || !self.skip.is_empty() {
            (select.only, select.skip) = (Vec::new(), Vec::new());
            return Some(("leaving out --only and --skip".to_owned(), select));
        }
        let as_it_was = |block: &&Block| {
            let mut consumed = block.consumed().iter();
            consumed.all(|tensor| deployed.get(tensor.name()).is_some())
        };
        let (left, folded): (Vec<&Block>, Vec<&Block>) = plan.blocks().iter().partition(as_it_was);
        if left.is_empty() || folded.is_empty() {
            return None;
        }
        let (flag, names) = match left.len() <= folded.len() {
            true => ("--skip", left),
            false => ("--only", folded),
        };
        let names: Vec<String> = names.iter().map(|block| block.name().to_owned()).collect();
        let flags = names.iter().map(|name| format!("{flag} '{}'", plain(name)));
        let how = flags.collect::<Vec<_>>().join(" ");
        match flag {
            "--skip" => select.skip = names,
            _ => select.only = names,
        }
        Some((format!("`{how}`"), select))
    }

    /// What the user decided about a plan.
    pub(super) fn options(&self, dtype: Option<Float>) -> Options {
        let of_all = self.bn_eps.iter().rfind(|(recipe, _)| recipe.is_none());
        let of_one = |(recipe, eps): &(Option<String>, f64)| Some((recipe.clone()?, *eps));
        Options {
            bn_eps: of_all.map(|(_, eps)| *eps),
            bn_eps_of: self.bn_eps.iter().filter_map(of_one).collect(),
            only: self.only.clone(),
            skip: self.skip.clone(),
            beside: self.beside.beside.clone(),
            dtype,
            by_names: self.recipe.is_some(),
            drop: self.drop.clone(),
        }
    }

    /// Plans a training form that is to be compared with its deploy form; says so if the two are the wrong way round.
    pub(super) fn plan_first(
        &self,
        training: &Checkpoint,
        deployed: Option<&Checkpoint>,
    ) -> anyhow::Result<Plan> {
        let planned = self.plan(training, None);
        let nothing = |e: &anyhow::Error| {
            e.downcast_ref::<recipe::Error>()
                .is_some_and(recipe::Error::is_nothing_to_fuse)
        };
        if planned.as_ref().is_err_and(nothing)
            && deployed.is_some_and(|other| self.plan(other, None).is_ok())
        {
            anyhow::bail!(
                "the files are the wrong way round; the training form comes first, then its deploy form"
            );
        }
        planned
    }
}

/// Says what to do about what does not fit.
fn advised(
    error: anyhow::Error,
    index: &Index,
    families: &[Family<'_>],
    options: &Options,
) -> anyhow::Error {
    match error.downcast_ref() {
        Some(recipe::Error::Orphan { block, .. } | recipe::Error::Misfit { block, .. }) => {
            match to_skip(block, index, families, options) {
                Some(flags) => anyhow::anyhow!("{error:#}; `{flags}` leaves the block as it is"),
                None => error,
            }
        }
        Some(recipe::Error::Stranger {
            name,
            recipe,
            block,
            ..
        }) => {
            let of = families.iter().find(|f| f.recipe.name == *recipe);
            let advice = stranger::advice([name, recipe, block], of, index, options);
            anyhow::anyhow!("{error:#}; {advice}")
        }
        Some(recipe::Error::UnknownClass { recipe, .. }) => {
            anyhow::anyhow!("{error:#}; `--recipe {recipe}` folds it all the same")
        }
        Some(recipe::Error::Unread { name, .. }) => {
            anyhow::anyhow!("{error:#}; `--drop '{}'` leaves it out", plain(name))
        }
        Some(recipe::Error::Contradicted { block, recipe, .. }) => {
            anyhow::anyhow!(
                "{error:#}; `--skip '{}'` leaves the block as it is, `--recipe {recipe}` folds it all the same",
                plain(block)
            )
        }
        Some(recipe::Error::NoEps { block, .. }) => {
            anyhow::anyhow!(
                "{error:#}; `--bn-eps EPS` gives it, `--skip '{}'` leaves the block as it is",
                plain(block)
            )
        }
        Some(recipe::Error::Parts {
            quantizer: true,
            globs,
            ..
        }) => {
            let drops: Vec<String> = globs
                .iter()
                .map(|glob| format!("--drop '{}'", plain(glob)))
                .collect();
            anyhow::anyhow!("{error:#}; `{}` leaves it out", drops.join(" "))
        }
        Some(recipe::Error::Parts { module, .. }) => {
            anyhow::anyhow!("{error:#}; `--skip '{}'` leaves it as it is", plain(module))
        }
        Some(recipe::Error::Block { block, .. } | recipe::Error::Shapes { block, .. })
            if helps_to_skip(block, &format!("{error:#}"), index, families, options) =>
        {
            anyhow::anyhow!(
                "{error:#}; `--skip '{}'` leaves the block as it is",
                plain(block)
            )
        }
        _ => error,
    }
}

/// So many blocks are named together that have to be left as they are.
const SKIPPED_AT_ONCE: usize = 8;

/// The flags that leave a half block as it is, and with it the others that then stand in the way of a plan; that block alone where
/// there are too many of those.
fn to_skip(
    block: &str,
    index: &Index,
    families: &[Family<'_>],
    options: &Options,
) -> Option<String> {
    let given = options.skip.len();
    let mut options = options.clone();
    options.skip.push(block.to_owned());
    while options.skip.len() - given <= SKIPPED_AT_ONCE {
        let next = match plan::plan_families(index, families, &options) {
            Ok(_) => return Some(flags(&options.skip[given..])),
            Err(
                recipe::Error::Orphan { block, .. }
                | recipe::Error::Misfit { block, .. }
                | recipe::Error::Block { block, .. }
                | recipe::Error::Shapes { block, .. }
                | recipe::Error::Stranger { block, .. },
            ) => block,
            Err(_) => return None,
        };
        if options.skip.contains(&next) {
            return None;
        }
        options.skip.push(next);
    }
    Some(flags(&options.skip[given..=given]))
}

fn flags(blocks: &[String]) -> String {
    let flags = blocks
        .iter()
        .map(|block| format!("--skip '{}'", plain(block)));
    flags.collect::<Vec<_>>().join(" ")
}

/// Whether more of the file can be folded, or another block is what stands in the way, without this one.
fn helps_to_skip(
    block: &str,
    said: &str,
    index: &Index,
    families: &[Family<'_>],
    options: &Options,
) -> bool {
    let mut options = options.clone();
    options.skip.push(block.to_owned());
    match plan::plan_families(index, families, &options) {
        Ok(_) => true,
        // The same of another block is said of the recipe, not of blocks.
        Err(recipe::Error::Block { message, .. }) => !said.contains(&message),
        Err(recipe::Error::Shapes { block: other, .. }) => other != block,
        Err(_) => false,
    }
}

/// Says which recipe a file was taken for, where it turns out not to fit.
fn detected_as(name: &str, error: recipe::Error) -> anyhow::Error {
    let blames_the_file = matches!(
        error,
        recipe::Error::Block { .. }
            | recipe::Error::Contradicted { .. }
            | recipe::Error::NoEps { .. }
            | recipe::Error::Shapes { .. }
    );
    let error = anyhow::Error::from(error);
    match blames_the_file {
        true => error.context(format!("taken for a file of recipe `{name}`")),
        false => error,
    }
}

/// The recipe of a name, or in a file.
pub(super) fn named(name: &str) -> anyhow::Result<Recipe> {
    if !is_path(name) {
        return Ok(recipe::source(name)?.0);
    }
    if is_named_pipe(name) {
        anyhow::bail!(
            "{} is a named pipe, which may wait for ever; pass a file, or `/dev/stdin`",
            quoted(name)
        );
    }
    let text = read_text(name).map_err(|source| recipe::Error::Unreadable {
        path: name.to_owned(),
        source,
    })?;
    Ok(recipe::parse(&text, name)?)
}

/// Whether opening a path may wait for a writer that never comes.
#[cfg(unix)]
fn is_named_pipe(path: &str) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_named_pipe(_: &str) -> bool {
    false
}

/// A recipe has some dozen lines; what is longer than this is something else, or has no end.
const LONGEST_RECIPE: u64 = 1 << 20;

/// Reads a short text from a file or a pipe.
fn read_text(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    let mut file = std::fs::File::open(path)?.take(LONGEST_RECIPE + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_RECIPE {
        let reason = format!("it is longer than {LONGEST_RECIPE} bytes, which no recipe is");
        return Err(std::io::Error::new(ErrorKind::FileTooLarge, reason));
    }
    Ok(text)
}

fn is_path(name: &str) -> bool {
    name.ends_with(".json") || name.contains(std::path::MAIN_SEPARATOR)
}

/// Which state dict of a file.
#[derive(Debug, clap::Args)]
pub(super) struct Key {
    /// For a `.pt` file: the key of the state dict, such as `ema` or `ema.module` [default: detect]
    #[arg(long, hide_short_help = true, value_name = "KEY")]
    key: Option<String>,
    /// Read only the tensors below this path, as in `backbone`
    #[arg(long, hide_short_help = true, value_name = "PREFIX", value_parser = path)]
    only_under: Option<String>,
}

impl Key {
    pub(super) fn refuse_for_a_graph(&self) -> anyhow::Result<()> {
        if let Some(key) = &self.key {
            anyhow::bail!("a graph has no keys; leave out --key {}", quoted(key));
        }
        if let Some(path) = &self.only_under {
            anyhow::bail!(
                "a graph is read as a whole; leave out --only-under {}",
                quoted(path)
            );
        }
        Ok(())
    }

    /// Opens a checkpoint; unless quiet, says which state dict was found.
    pub(super) fn open(&self, path: &Path, quiet: bool) -> anyhow::Result<Checkpoint> {
        let checkpoint = Checkpoint::open_key(path, self.key.as_deref())?;
        if let Some(wrapping) = checkpoint.wrapping().filter(|_| !quiet) {
            say_which(wrapping);
        }
        match &self.only_under {
            Some(path) => Ok(checkpoint.only_under(path)?),
            None => Ok(checkpoint),
        }
    }
}

/// Says which state dict is read, and what stands beside it.
fn say_which(wrapping: &Wrapping) {
    let Some(key) = &wrapping.key else {
        return;
    };
    let named = |keys: &[String]| plain(&keys[..keys.len().min(NAMED)].join("`, `"));
    let more = |keys: &[String]| match keys.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let mut text = format!("repfuse: reading the state dict under `{}`", plain(key));
    if !wrapping.others.is_empty() {
        text += &format!("; --key chooses another: `{}`", named(&wrapping.others));
    }
    if !wrapping.beside.is_empty() {
        text += &format!(
            "; the tensors beside it, under `{}`{}, are left out, and --key '' reads the whole file",
            named(&wrapping.beside),
            more(&wrapping.beside)
        );
    }
    output::note(&text);
}

/// As many keys as a note names.
const NAMED: usize = 12;

/// A path before names, as in `backbone` or `backbone.`.
pub(super) fn path(text: &str) -> Result<String, String> {
    let path = text.strip_suffix('.').unwrap_or(text);
    match path.split('.').all(|segment| !segment.is_empty()) {
        true => Ok(path.to_owned()),
        false => Err("expected the path of a module, such as backbone or model.encoder".to_owned()),
    }
}

/// Opens a deploy form, which is a file of one state dict: `--key` is about the other file.
pub(super) fn deployed(path: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(path).map_err(|e| match e {
        crate::tensor::Error::SeveralKeys { path, keys } => anyhow::anyhow!(
            "{} holds several state dicts, `{}`; save the one to compare by itself",
            quoted(&path.display().to_string()),
            keys.join("`, `")
        ),
        other => other.into(),
    })
}
