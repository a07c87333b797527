//! Kernels drawn in the terminal: one character pair per tap, as dark as its mean |w|.

use anyhow::Context as _;

use super::output;
use crate::plan::{Block, Plan, PlannedConv, glob};
use crate::recipe::closest;
use crate::report::level;
use crate::summary::kernels::{Kernel, KernelMaps, kernel_maps};
use crate::summary::units;
use crate::tensor::{Checkpoint, plain, quoted};
use crate::verify::Deployed;

/// From nothing to the largest. In colour, a block of the palette; without, a shade.
const SHADES: [&str; 5] = [" ", "░", "▒", "▓", "█"];

/// The blues of the 256-colour palette, dark to bright: they read on light and on dark terminals.
const PALETTE: [u8; 8] = [237, 24, 25, 26, 32, 39, 81, 123];

/// Beyond this extent, a character stands for two taps one above the other, which keeps it square.
const PAIRED: usize = 13;

/// The blocks whose name is `wanted` or matches it as a glob.
pub(super) fn chosen<'a>(plan: &'a Plan, wanted: &str) -> anyhow::Result<Vec<&'a Block>> {
    let glob =
        glob(wanted).with_context(|| format!("{} is not a glob for --kernels", quoted(wanted)))?;
    let mut found: Vec<&Block> = plan
        .blocks()
        .iter()
        .filter(|block| block.name() == wanted || glob.is_match(block.name()))
        .collect();
    if found.is_empty() {
        let names = plan.blocks().iter().map(|b| b.name());
        let hint = match closest(wanted, names) {
            Some(near) => format!("; did you mean {}?", quoted(near)),
            None => "; `repfuse inspect FILE --all` shows the names".to_owned(),
        };
        anyhow::bail!("there is no block {}{hint}", quoted(wanted));
    }
    found.sort_by(|a, b| units::natural_order(a.name(), b.name()));
    Ok(found)
}

/// The maps of every conv of a block.
pub(super) fn maps<'a>(
    checkpoint: &Checkpoint,
    block: &'a Block,
) -> anyhow::Result<Vec<(&'a PlannedConv, KernelMaps)>> {
    let one = |fused: &'a PlannedConv| Ok((fused, maps_of(checkpoint, fused)?));
    block.fused().iter().map(one).collect()
}

/// The maps of one conv, folded in memory.
pub(super) fn maps_of(checkpoint: &Checkpoint, fused: &PlannedConv) -> anyhow::Result<KernelMaps> {
    Ok(kernel_maps(checkpoint, fused, Deployed::InMemory)?)
}

/// Draws a block: `3×3 + 1×1 + x → 3×3`, with as many maps side by side as fit.
pub(super) fn text(block: &Block, maps: &[(&PlannedConv, KernelMaps)], width: usize) -> String {
    let mut out = String::new();
    for (fused, maps) in maps {
        let all = || maps.branches.iter().chain(&maps.fused);
        let largest = all().flat_map(|k| &k.taps).copied().fold(0.0, f64::max);
        out += &format!(
            "{}  {}\n",
            plain(if block.fused().len() == 1 {
                block.name()
            } else {
                fused.module()
            }),
            output::soft(&format!("largest mean |w| {}", units::magnitude(largest)))
        );
        let [_, rows, columns] = fused.geometry().extent();
        let frame = [rows, columns];
        let mut drawn: Vec<Drawing> = Vec::new();
        for (i, kernel) in maps.branches.iter().enumerate() {
            let before = if i == 0 { " " } else { "+" };
            drawn.push(draw(kernel, frame, largest, before));
        }
        drawn.extend(
            maps.fused
                .iter()
                .map(|kernel| draw(kernel, frame, largest, "→")),
        );
        out += &side_by_side(&drawn, width);
        out.push('\n');
    }
    out
}

struct Drawing {
    before: &'static str,
    label: String,
    /// Each as wide as the kernel.
    lines: Vec<String>,
    width: usize,
}

fn draw(kernel: &Kernel, frame: [usize; 2], largest: f64, before: &'static str) -> Drawing {
    let [height, width] = frame;
    let paired = height.max(width) > PAIRED;
    let inside = |y: usize, x: usize| {
        let within = |i: usize, n: usize, own: usize| {
            let first = (n - own.min(n)) / 2;
            (first..first + own).contains(&i)
        };
        within(y, height, kernel.extent[0]) && within(x, width, kernel.extent[1])
    };
    let tap = |y: usize, x: usize| kernel.taps[y * width + x];
    let step = if paired { 2 } else { 1 };
    let mut lines = Vec::new();
    for y in (0..height).step_by(step) {
        let rows = y..(y + step).min(height);
        let mut line = String::new();
        for x in 0..width {
            let value = rows.clone().map(|y| tap(y, x)).sum::<f64>() / rows.len() as f64;
            let seen = rows.clone().any(|y| inside(y, x));
            line += &cell(value, largest, seen, if paired { 1 } else { 2 });
        }
        lines.push(line);
    }
    Drawing {
        before,
        label: plain(&kernel.label),
        lines,
        width: if paired { width } else { 2 * width },
    }
}

/// One tap. What lies outside a branch's own kernel is a dot, so that its place in the whole can be seen.
fn cell(value: f64, largest: f64, seen: bool, columns: usize) -> String {
    if !seen {
        return match columns {
            2 => output::soft("·") + " ",
            _ => " ".to_owned(),
        };
    }
    let shade = SHADES[level(value, largest, SHADES.len() - 1)].repeat(columns);
    let colour = PALETTE[level(value, largest, PALETTE.len() - 1)];
    output::coloured(&shade, colour)
}

fn side_by_side(drawn: &[Drawing], width: usize) -> String {
    let columns = |d: &Drawing| d.width.max(d.label.chars().count()) + 4;
    let mut out = String::new();
    let mut rest = drawn;
    while !rest.is_empty() {
        let mut used = 0;
        let fit = rest
            .iter()
            .take_while(|d| {
                used += columns(d);
                used <= width
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at(fit);
        let height = now.iter().map(|d| d.lines.len()).max().unwrap_or(0);
        for y in 0..height {
            let mut line = String::new();
            for d in now {
                let middle = if y == height / 2 { d.before } else { " " };
                let pad = columns(d) - 4 - d.width;
                let cells = d
                    .lines
                    .get(y)
                    .cloned()
                    .unwrap_or_else(|| " ".repeat(d.width));
                line += &format!(" {middle} {cells}{:pad$} ", "");
            }
            out += line.trim_end();
            out.push('\n');
        }
        let labels: Vec<String> = now
            .iter()
            .map(|d| format!("   {:<1$}", d.label, columns(d) - 3))
            .collect();
        out += labels.concat().trim_end();
        out.push('\n');
        rest = later;
    }
    out
}
