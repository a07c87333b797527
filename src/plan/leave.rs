//! What a plan leaves as it is: blocks that the user skips, before anything of them is checked, and modules whose weights are
//! no plain numbers.

use super::closed::{Beside, Region};
use super::leftover::bound;
use super::select::Select;
use super::{Fate, Ledger, Left, parts};
use crate::recipe::Error;
use crate::recipe::model::{BATCH_COUNT, BlockRule, NORM};
use crate::recipe::pattern::{Captures, covers};
use crate::recipe::start::Start;

impl Ledger<'_> {
    /// Refuses weights that are no plain numbers and what folding makes stale, where the user does not leave them as they are.
    pub(super) fn refuse_parts(&mut self, select: &Select) -> Result<(), Error> {
        // A recipe's own `beside` says nothing of them: it was written for files without.
        let beside = Beside::new(&[], &self.options.beside)?;
        for found in parts::find(self.index) {
            let name = found.tensor.name();
            let drops = self.recipe.drop.iter().any(|p| covers(p, name).is_some());
            if drops || beside.covers(name) {
                continue;
            }
            let Some(path) = select.skips(&found.module) else {
                return Err(found.refused());
            };
            self.leave_blocks_of(&found.module)?;
            if !found.is_quantizer() {
                self.regions.push(Region::below(path, &found.module));
                self.left.push(Left {
                    why: found.short().to_owned(),
                    module: found.module,
                });
            }
        }
        Ok(())
    }

    /// Leaves every block that has a module of this name: without one of its parts, the others are no block.
    fn leave_blocks_of(&mut self, module: &str) -> Result<(), Error> {
        let recipe = self.recipe;
        for rule in &recipe.blocks {
            let mut patterns = rule
                .fuse
                .iter()
                .flat_map(|(_, template)| template.tensors());
            let of_module = patterns.find_map(|pattern| {
                let (_, end) = pattern.text().rsplit_once('.')?;
                let pattern = pattern.with_kinds_of(rule.at.iter());
                pattern.matches(&format!("{module}.{end}"), &Captures::new())
            });
            let Some(captures) = of_module.map(|captures| bound(rule, captures)) else {
                continue;
            };
            let own = self.names_of(rule, &captures);
            if !own.is_empty() {
                let name = self.name_of(rule, &captures)?;
                self.leave_names(rule, &captures, &name, own);
                self.skipped.push(name);
            }
        }
        Ok(())
    }

    /// Leaves every tensor that has the name of a part of a block as it is, whether or not the block is whole.
    pub(super) fn leave(&mut self, start: &Start<'_>, name: &str) {
        let Start { rule, captures, .. } = start;
        let mut own = vec![start.anchor.name().to_owned()];
        own.extend(self.names_of(rule, captures));
        self.leave_names(rule, captures, name, own);
    }

    /// The tensors that have the names of a block's parts.
    fn names_of(&self, rule: &BlockRule, captures: &Captures) -> Vec<String> {
        let mut own = Vec::new();
        for (_, template) in &rule.fuse {
            for pattern in template.tensors() {
                let found = self.budget.names(self.index, pattern, captures);
                own.extend(found.map(|(tensor, _)| tensor.name().to_owned()));
            }
        }
        own
    }

    /// Leaves tensors, and the counters of the norms among them.
    fn leave_names(
        &mut self,
        rule: &BlockRule,
        captures: &Captures,
        block: &str,
        mut own: Vec<String>,
    ) {
        let counts = own.iter().filter_map(|name| {
            let count = format!("{}{BATCH_COUNT}", name.strip_suffix(NORM[2])?);
            self.index.contains_key(&count).then_some(count)
        });
        let counts: Vec<String> = counts.collect();
        own.extend(counts);
        let region = Region::of(block, rule, captures, own.iter().map(String::as_str));
        self.regions.push(region.left());
        for name in own {
            self.taken.entry(name).or_insert(Fate::Kept);
        }
    }
}
