//! A small file that claims much makes nobody allocate much: counted by the allocator itself.

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};

use peak_alloc::PeakAlloc;
use repfuse::plan;
use repfuse::recipe;
use repfuse::tensor::Checkpoint;
use repfuse::tensor::arrays::read_arrays;
use repfuse::verify::{self, Deployed};
use support::Random;
use support::file::{self, Place, bytes};
use support::forge::File;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// The allocator counts for the whole program, so one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most bytes that `f` held at once, beyond what was held before.
fn peak<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let result = f();
    (ALLOCATED.peak_usage().saturating_sub(before), result)
}

const MEGABYTE: usize = 1 << 20;

#[test]
fn opening_allocates_no_claims() {
    let _alone = alone();
    let place = Place::new();
    let open = |bytes: &[u8]| {
        place.write("x", bytes);
        peak(|| Checkpoint::open(place.path("x")))
    };
    let tensor = |shape: &str, len: u64| {
        bytes(
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{len}]}}}}"#),
            b"",
        )
    };
    let promise = |len: u64| [&len.to_le_bytes()[..], b"{}"].concat();
    for claim in [
        promise(99_999_999),
        promise(u64::MAX / 2),
        tensor("[1000000000]", 4_000_000_000),
        tensor("[18446744073709551615,1]", 4),
        bytes(
            r#"{"a":{"dtype":"mine","shape":[1000000000000],"data_offsets":[0,4]}}"#,
            b"",
        ),
    ] {
        let (held, result) = open(&claim);
        assert!(result.is_err());
        assert!(held < MEGABYTE / 8, "{held}");
    }
    // A tensor of an unknown type may claim any shape, and is opened; its shape is only a number.
    let (held, result) = open(&bytes(
        r#"{"a":{"dtype":"mine","shape":[1000000000000],"data_offsets":[0,4]}}"#,
        b"1234",
    ));
    assert!(result.is_ok());
    assert!(held < MEGABYTE / 8, "{held}");
    // The twin: a header that is really there is really read.
    let (held, result) = open(&bytes(format!("{{}}{}", " ".repeat(3 * MEGABYTE)), b""));
    assert!(result.is_ok());
    assert!((3 * MEGABYTE..4 * MEGABYTE).contains(&held), "{held}");
}

#[test]
fn feature_maps_allocate_no_claims() {
    let _alone = alone();
    let place = Place::new();
    let npy = |version: u8, len: &[u8], rest: &[u8]| {
        [b"\x93NUMPY", &[version, 0][..], len, rest].concat()
    };
    let read = |bytes: &[u8]| {
        place.write("x.npy", bytes);
        peak(|| read_arrays(&place.path("x.npy")))
    };
    let header =
        |shape: &str| format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}");
    for claim in [
        npy(2, &u32::MAX.to_le_bytes(), b"{}"),
        npy(
            3,
            &(1u32 << 30).to_le_bytes(),
            header("(1,1,1,1)").as_bytes(),
        ),
        npy(1, &[62, 0], header("(1,1,30000,30000)").as_bytes()),
    ] {
        let (held, result) = read(&claim);
        assert!(result.is_err());
        assert!(held < MEGABYTE / 8, "{held}");
    }
    let header = header("(1,1,400,500)");
    let data = [header.as_bytes(), &vec![0; 8 * 200_000]].concat();
    let (held, result) = read(&npy(1, &[header.len() as u8, 0], &data));
    assert_eq!(result.expect("maps")[0].1.dim(), (1, 1, 400, 500));
    assert!(held >= 8 * 200_000, "{held}");
}

/// Dilations, means and sums ask for kernels of many gigabytes from a file of a kilobyte.
#[test]
fn planning_and_folding_are_bound_by_the_tensors() {
    let _alone = alone();
    let place = Place::new();
    let (mut file, mut random) = (File::default(), Random(4));
    file::tensor(&mut file, "a.c.weight", &[4, 4, 3, 3], &mut random);
    file::tensor(&mut file, "a.d.weight", &[4, 4, 1, 1], &mut random);
    file.write(&place.path("in.safetensors"));
    let checkpoint = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
    let attempt = |expression: &str| {
        let block = format!(r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.out": {expression}}}}}"#);
        peak(|| -> Result<bool, String> {
            let recipe =
                recipe::parse(&file::recipe(&block), "own.json").map_err(|e| e.to_string())?;
            let options = plan::Options::default();
            let plan =
                plan::plan(checkpoint.tensors(), &recipe, &options).map_err(|e| e.to_string())?;
            let options = verify::Options::default();
            let verdict = verify::verify(&checkpoint, &plan, Deployed::InMemory, &options);
            verdict.map(|v| v.accepted()).map_err(|e| e.to_string())
        })
    };
    let identities = r#", {"sum": ["identity", "identity"]}"#.repeat(60);
    for expression in [
        r#"{"conv": "{p}.c", "dilation": [400, 400]}"#,
        r#"{"seq": [{"conv": "{p}.c"}, {"mean": 65536}]}"#,
        r#"{"seq": [{"conv": "{p}.c", "groups": 1}, {"mean": 4000}, {"conv": "{p}.d"}]}"#,
        &format!(r#"{{"seq": [{{"conv": "{{p}}.c"}}{identities}]}}"#),
    ] {
        let (held, result) = attempt(expression);
        assert!(result.is_err(), "{expression}");
        assert!(held < MEGABYTE, "{held} for {expression}");
    }
    // What is allowed is bound as well: 65,536 numbers, several times over.
    let (held, result) = attempt(r#"{"seq": [{"conv": "{p}.c"}, {"mean": 62}]}"#);
    assert_eq!(result, Ok(true));
    assert!((MEGABYTE / 2..64 * MEGABYTE).contains(&held), "{held}");
}
