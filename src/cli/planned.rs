//! `repfuse fuse --dry-run`: what would be written, in a table.

use super::inspect::times;
use super::output::{self, Cut, plural};
use super::runs::runs;
use crate::algebra::describe;
use crate::plan::{Plan, Source};
use crate::summary::order::FileOrder;
use crate::summary::units;
use crate::tensor::{Checkpoint, plain};

/// A line for every conv, or for a run of equal ones; with `all`, none stands for several and nothing is shortened.
pub(super) fn table(checkpoint: &Checkpoint, plan: &Plan, all: bool) -> String {
    let convs = plan.blocks().iter().flat_map(|block| block.fused());
    let cells = convs.map(|fused| {
        let shape = units::shape(&fused.stored_shape());
        let from = describe::expression(fused.expr().root());
        (fused.module(), (shape, from))
    });
    let mut rows = Vec::new();
    for (name, equal) in runs(
        cells.collect(),
        &FileOrder::new(checkpoint),
        Clone::clone,
        !all,
    ) {
        let (shape, from) = equal[0].clone();
        rows.push(vec![
            plain(&name),
            times(equal.len()),
            shape,
            "=".to_owned(),
            from,
        ]);
    }
    let copied = plan
        .outputs()
        .iter()
        .filter(|p| matches!(p.what, Source::Copy(_) | Source::Round(..)))
        .count();
    let (from, right) = match output::without_empty(&mut rows, 1) {
        true => (3, &[][..]),
        false => (4, &[1][..]),
    };
    let cut = [(0, Cut::Middle), (from, Cut::End)];
    let table = output::table(&rows, right, &cut, output::table_width(all));
    let expressions: Vec<String> = rows.into_iter().filter_map(|mut row| row.pop()).collect();
    format!(
        "{table}{}{} copied, {} dropped by name\n",
        output::legend(&expressions, plan.assumes_identities()),
        plural(copied, "tensor"),
        plan.dropped().len()
    )
}
