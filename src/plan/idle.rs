//! What a recipe says that no tensor of a file answers to: a slip of the pen, or a part that this file does without.

use crate::recipe::Recipe;
use crate::recipe::expand::Index;
use crate::recipe::pattern::Pattern;
use crate::recipe::pattern::covers;

/// The patterns of `drop`, `rename`, `keep` and `set` that match nothing, each behind the word it stands under.
pub fn idle<'a>(recipe: &'a Recipe, index: &Index) -> Vec<(&'static str, &'a str)> {
    let of_file = recipe.drop.iter().map(|p| ("drop", p));
    let renamed = recipe.rename.iter().map(|(from, _)| ("rename", from));
    let of_blocks = recipe.blocks.iter().flat_map(|block| {
        let drop = block.drop.iter().map(|p| ("drop", p));
        let keep = block.keep.iter().map(|p| ("keep", p));
        let rename = block.rename.iter().map(|(from, _)| ("rename", from));
        let set = block.set.iter().map(|(p, _)| ("set", p));
        drop.chain(keep).chain(rename).chain(set)
    });
    let idle = |pattern: &Pattern| !index.keys().any(|name| covers(pattern, name).is_some());
    of_file
        .chain(renamed)
        .chain(of_blocks)
        .filter(|(_, pattern)| idle(pattern))
        .map(|(word, pattern)| (word, pattern.text()))
        .collect()
}
