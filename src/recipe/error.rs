//! Why a checkpoint cannot be planned.

use crate::algebra::GeometryError;
use crate::tensor::{plain, quoted};

/// A recipe that is wrong, or a checkpoint that does not fit one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    #[error("recipe {}{}: {message}", quoted(origin), if path.is_empty() { String::new() } else { format!(", at {}", quoted(path)) }, message = plain(message))]
    Recipe {
        origin: String,
        path: String,
        message: String,
    },
    #[error("cannot read the recipe {}", quoted(path))]
    Unreadable {
        path: String,
        source: std::io::Error,
    },
    #[error("there is no recipe {}; {}`repfuse recipes` lists them, and a path ending in `.json` names your own", quoted(name), did_you_mean(near.as_deref()))]
    Unknown { name: String, near: Option<String> },
    #[error("no block of a known family is in this file{}", list(near))]
    NoBlock { near: Vec<String> },
    #[error("no block of recipe `{recipe}` is in this file{}", list(near))]
    NoBlockOf { recipe: String, near: Vec<String> },
    #[error("nothing to fuse: the file is already in deploy form, for {tensor} is in it")]
    Deployed { tensor: String },
    #[error("the recipes `{}` fit equally well", recipes.join("` and `"))]
    Ambiguous { recipes: Vec<String> },
    #[error("the file holds blocks of the recipes `{}`; one is expected", recipes.join("` and `"))]
    Several { recipes: Vec<String> },
    #[error("an eps is given for recipe {}, which is none of this file's: `{}`", quoted(recipe), known.join("`, `"))]
    EpsOfNone { recipe: String, known: Vec<String> },
    #[error("none of the {blocks} blocks is selected")]
    NoneSelected { blocks: usize },
    #[error(
        "the file says that {} is of class {}, which recipe `{recipe}` does not know; names alone do not tell what it computes",
        quoted(module),
        quoted(class)
    )]
    UnknownClass {
        module: String,
        class: String,
        recipe: String,
    },
    #[error(
        "no block is named like {}; `repfuse inspect` shows their names",
        quoted(glob)
    )]
    NothingNamed { glob: String },
    #[error(
        "no tensor and no module is named like {}, which is to stand beside the blocks",
        quoted(glob)
    )]
    NothingBeside { glob: String },
    #[error(
        "{} names nothing but tensors that blocks fold, and what is fused does not stand beside them",
        quoted(glob)
    )]
    FusedBeside { glob: String },
    #[error("no tensor is named like {}, which is to be dropped", quoted(glob))]
    NothingDropped { glob: String },
    #[error("{} {is}: {} is there; {remedy}", quoted(module), quoted(name))]
    Parts {
        module: String,
        name: String,
        quantizer: bool,
        globs: Vec<String>,
        is: &'static str,
        remedy: &'static str,
    },
    #[error("{} is not a glob", quoted(glob))]
    Glob {
        glob: String,
        source: globset::Error,
    },
    #[error("block {}: {message}", quoted(block))]
    Block { block: String, message: String },
    #[error("{tensor} would be copied, and {why}")]
    Unread {
        tensor: String,
        name: String,
        why: String,
    },
    #[error("block {}: {message}", quoted(block))]
    Contradicted {
        block: String,
        recipe: String,
        message: String,
    },
    #[error("block {}: {message}", quoted(block))]
    NoEps { block: String, message: String },
    #[error("block {}: shapes do not fit", quoted(block))]
    Shapes {
        block: String,
        source: GeometryError,
    },
    #[error("{tensor} belongs to a block of recipe `{recipe}` that is not whole, {}{}", quoted(block), if missing.is_empty() { String::new() } else { format!(": {missing} is missing") })]
    Orphan {
        tensor: String,
        name: String,
        block: String,
        recipe: String,
        missing: Box<str>,
    },
    #[error(
        "{tensor} has the name of a part of a block of recipe `{recipe}`, {}, and {said}, which no such block has",
        quoted(block)
    )]
    Misfit {
        tensor: String,
        block: String,
        recipe: String,
        said: String,
    },
    #[error(
        "block {}: {tensor} stands among its tensors, and recipe `{recipe}` does not say what it does there",
        quoted(block)
    )]
    Stranger {
        tensor: String,
        name: String,
        block: String,
        recipe: String,
    },
    #[error(
        "{} does not begin with {}; what is taken away has to stand before every name of the output, and something behind it",
        quoted(name),
        quoted(&format!("{prefix}."))
    )]
    NoPrefix { name: String, prefix: String },
    #[error(
        "{} and {} are both {} without the segments that wrappers put into names; one of them has to go, or another name",
        quoted(first),
        quoted(second),
        quoted(name)
    )]
    Wrapped {
        first: String,
        second: String,
        name: String,
    },
    #[error(
        "two tensors would be written as {}: {first} and {second}",
        quoted(name)
    )]
    Clash {
        name: String,
        first: String,
        second: String,
    },
    #[error("{tensor} would be renamed to `{name}`, which is no name of a tensor in the format")]
    Reserved { name: &'static str, tensor: String },
}

impl Error {
    /// Whether this is an answer (there is nothing to fuse) rather than a failure to find one.
    pub fn is_nothing_to_fuse(&self) -> bool {
        matches!(
            self,
            Error::NoBlock { .. }
                | Error::NoBlockOf { .. }
                | Error::Deployed { .. }
                | Error::NoneSelected { .. }
        )
    }
}

fn list(near: &[String]) -> String {
    near.iter().map(|line| format!("\n  {line}")).collect()
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map(|near| format!("did you mean `{near}`? "))
        .unwrap_or_default()
}
