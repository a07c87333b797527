//! The promise on memory: fusing holds a few slabs at a time, whatever the number and the size of blocks and tensors.

mod support;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use peak_alloc::PeakAlloc;
use repfuse::algebra::fold;
use repfuse::plan::{self, Plan};
use repfuse::recipe;
use repfuse::tensor::Checkpoint;
use repfuse::tensor::Reader;
use repfuse::{fuse, verify};
use support::Random;
use support::file::{Place, block, norm, recipe as recipe_of, tensor};
use support::forge::File;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// The allocator counts for the whole program, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const MEGABYTE: usize = 1 << 20;

/// What two workers may hold: for each of them a slab of 256 KiB of every weight that it folds, and of the output; and
/// what waits to be written.
const BUDGET: usize = 4 * MEGABYTE;

/// The most bytes that `f` held at once, beyond what was held before.
fn peak<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let result = f();
    (ALLOCATED.peak_usage().saturating_sub(before), result)
}

fn fuse(file: &Checkpoint, plan: &Plan, out: &Path) {
    let options = fuse::Options {
        shard_size: None,
        replace: false,
        threads: Some(2),
    };
    fuse::fuse(file, plan, out, &options, &|_| ControlFlow::Continue(()))
        .and_then(|unfinished| Ok(unfinished.finish()?))
        .expect("a file that fuses");
}

/// The most that fusing `made` holds, and the bytes of its largest tensor.
fn held_by_fusing(made: &File, own_recipe: Option<&str>) -> (usize, usize) {
    let place = Place::new();
    made.write(&place.path("train"));
    let largest = made.tensors.values().map(|t| t.bytes.len()).max();
    let file = Checkpoint::open(place.path("train")).expect("a checkpoint");
    let plan = plan(&file, own_recipe);
    let (held, ()) = peak(|| fuse(&file, &plan, &place.path("deploy")));
    (held, largest.expect("a tensor"))
}

fn plan(file: &Checkpoint, own_recipe: Option<&str>) -> Plan {
    let recipe = match own_recipe {
        Some(text) => recipe::parse(text, "own").expect("a recipe"),
        None => recipe::source("repvgg").expect("a recipe").0,
    };
    plan::plan(file.tensors(), &recipe, &plan::Options::default()).expect("a plan")
}

fn blocks(count: usize, channels: usize) -> File {
    let (mut file, mut random) = (File::default(), Random(7));
    for i in 0..count {
        block(&mut file, &format!("stage{i}.0"), channels, &mut random);
    }
    file
}

#[test]
fn fusing_holds_a_few_slabs() {
    let _alone = ALONE.lock();
    let (few, _) = held_by_fusing(&blocks(2, 128), None);
    // Guards against a counter that does not count: a slab is held at the least.
    assert!(few > MEGABYTE / 4, "{few}");
    assert!(few < BUDGET, "{few}");
    // More blocks, of which all the weights together would not fit.
    let made = blocks(24, 128);
    let all: usize = made.tensors.values().map(|t| t.bytes.len()).sum();
    let (many, _) = held_by_fusing(&made, None);
    assert!(all > 3 * BUDGET, "{all}");
    assert!(many < BUDGET, "{many} for {all} bytes");
    // Wider blocks: sixteen times the bytes, of which only the longer rows are seen.
    let (wide, largest) = held_by_fusing(&blocks(2, 512), None);
    assert!(largest > 2 * BUDGET, "{largest}");
    assert!(wide < BUDGET, "{wide} for a weight of {largest} bytes");
}

#[test]
fn copying_holds_a_few_slabs() {
    let _alone = ALONE.lock();
    let (mut file, mut random) = (blocks(1, 8), Random(3));
    tensor(&mut file, "head.weight", &[1000, 4096], &mut random);
    let (held, largest) = held_by_fusing(&file, None);
    assert!(largest > 3 * BUDGET, "{largest}");
    assert!(held < BUDGET, "{held} for a tensor of {largest} bytes");
}

#[test]
fn fusing_a_transposed_conv_holds_a_few_slabs() {
    let _alone = ALONE.lock();
    let (mut file, mut random) = (File::default(), Random(5));
    tensor(&mut file, "up.weight", &[384, 384, 4, 4], &mut random);
    norm(&mut file, "bn", 384, &mut random);
    let recipe = recipe_of(
        r#"{ "at": "up.weight", "fuse": { "up": { "seq": [{ "conv": "up", "transposed": true }, { "bn": "bn" }] } } }"#,
    );
    let (held, largest) = held_by_fusing(&file, Some(&recipe));
    assert!(largest > 2 * BUDGET, "{largest}");
    assert!(held < BUDGET, "{held} for a weight of {largest} bytes");
}

#[test]
fn an_inner_conv_is_held_once_and_the_outer_never() {
    let _alone = ALONE.lock();
    let (mut file, mut random) = (File::default(), Random(5));
    let channels = 384;
    tensor(&mut file, "a.weight", &[channels, channels], &mut random);
    tensor(
        &mut file,
        "b.weight",
        &[channels, channels, 3, 3],
        &mut random,
    );
    let recipe = recipe_of(
        r#"{ "at": "a.weight", "fuse": { "c": { "seq": [{ "conv": "a", "bias": "optional", "groups": 1 }, { "conv": "b", "bias": "optional" }] } } }"#,
    );
    let (held, largest) = held_by_fusing(&file, Some(&recipe));
    let inner = channels * channels * size_of::<f64>();
    assert!(largest > BUDGET, "{largest}");
    assert!(held > inner, "the inner kernel is held in f64: {held}");
    assert!(
        held < inner + BUDGET,
        "{held} with an inner kernel of {inner}"
    );
}

#[test]
fn verifying_holds_less_than_three_of_the_largest_block() {
    let _alone = ALONE.lock();
    let place = Place::new();
    let made = blocks(2, 512);
    made.write(&place.path("train"));
    let file = Checkpoint::open(place.path("train")).expect("a checkpoint");
    let plan = plan(&file, None);
    fuse(&file, &plan, &place.path("deploy"));
    let deployed = Checkpoint::open(place.path("deploy")).expect("a checkpoint");
    let block = made
        .tensors
        .iter()
        .filter(|(name, _)| name.starts_with("stage0"));
    let block: usize = block.map(|(_, tensor)| tensor.bytes.len()).sum();
    for form in [
        verify::Deployed::File(&deployed),
        verify::Deployed::InMemory,
    ] {
        let (held, verdict) =
            peak(|| verify::verify(&file, &plan, form, &verify::Options::default()));
        assert!(verdict.expect("a verdict").accepted());
        assert!(held > MEGABYTE / 4, "{held}");
        assert!(held < 3 * block, "{held} for a block of {block} bytes");
    }
    // The twin: folding a block whole holds it all in f64, and is counted.
    let whole = peak(|| {
        fold(
            plan.blocks()[0].fused()[0].expr(),
            &mut Reader::new(&file, 1 << 18),
        )
    });
    assert!(whole.0 > block, "{} for a block of {block} bytes", whole.0);
}
