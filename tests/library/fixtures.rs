//! Every recipe against what the authors' own code writes.
//!
//! `fixtures/<recipe>/<case>.json` says which project made the pair beside it; `<case>.train.safetensors` is the
//! training form and `<case>.deploy.safetensors` what the authors' conversion gives. For each: detection finds the
//! recipe, `fuse` writes the same names and shapes and values, and `verify` accepts both files.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use crate::support::fixtures::{Case, cases, described, fixtures};
use globset::Glob;
use repfuse::algebra::Values;
use repfuse::fuse::{self, diagnose};
use repfuse::plan::{self, Options, Plan};
use repfuse::recipe;
use repfuse::tensor::Reader;
use repfuse::tensor::{Checkpoint, Tensor};
use repfuse::verify::{Deployed, verify};

/// How far the authors' f32 arithmetic may lie from the exact fold, relative to the largest value of the tensor.
const AUTHORS: f64 = 2e-6;

fn plan_of(case: &Case, checkpoint: &Checkpoint) -> Result<Plan, String> {
    let recipes = recipe::builtin().map_err(|e| e.to_string())?;
    let by_name = recipes
        .iter()
        .find(|r| r.name == case.recipe)
        .ok_or("there is no such recipe")?;
    let chosen = match (
        case.detect,
        recipe::detect_one(checkpoint.tensors(), &recipes),
    ) {
        (true, Ok(found)) if found.name == case.recipe => found,
        (true, Ok(found)) => return Err(format!("detected as `{}`", found.name)),
        (true, Err(e)) => return Err(format!("not detected: {e}")),
        (false, Ok(found)) if found.name == case.recipe => {
            return Err("detected, but marked otherwise".to_owned());
        }
        (false, _) => by_name,
    };
    plan::plan(checkpoint.tensors(), chosen, &Options::default())
        .map_err(|e| format!("{:#}", anyhow::Error::from(e)))
}

fn values(checkpoint: &Checkpoint, tensor: &Tensor) -> Vec<f64> {
    Reader::new(checkpoint, 1 << 16)
        .vector(tensor, 0, tensor.len())
        .expect("readable values")
}

fn is_leftover(name: &str, case: &Case) -> bool {
    name.ends_with("num_batches_tracked")
        || case.leftovers.iter().any(|glob| {
            Glob::new(glob)
                .expect("a glob")
                .compile_matcher()
                .is_match(name)
        })
}

/// Compares what repfuse wrote with what the authors' code did.
fn compare(case: &Case, ours: &Checkpoint, theirs: &Checkpoint) -> Result<(), String> {
    let names = |c: &Checkpoint| -> BTreeSet<String> { c.tensors().keys().cloned().collect() };
    let (our_names, their_names) = (names(ours), names(theirs));
    let extra: Vec<_> = our_names
        .difference(&their_names)
        .filter(|n| !is_leftover(n, case))
        .collect();
    let missing: Vec<_> = their_names
        .difference(&our_names)
        .filter(|n| !is_leftover(n, case))
        .collect();
    if !(extra.is_empty() && missing.is_empty()) {
        return Err(format!("extra {extra:?}, missing {missing:?}"));
    }
    for name in our_names.intersection(&their_names) {
        let (a, b) = (&ours.tensors()[name], &theirs.tensors()[name]);
        if a.shape() != b.shape() {
            return Err(format!(
                "`{name}` is {:?}; the authors' is {:?}",
                a.shape(),
                b.shape()
            ));
        }
        if a.dtype().float().is_none() {
            continue;
        }
        let (a, b) = (values(ours, a), values(theirs, b));
        let size = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let off = a
            .iter()
            .zip(&b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f64, f64::max);
        if off.is_nan() || off > AUTHORS * size {
            return Err(format!(
                "`{name}` is off by {:.1e} of its largest value",
                off / size
            ));
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<Checkpoint, String> {
    Checkpoint::open(path).map_err(|e| e.to_string())
}

/// Fuses a file and opens the result, which stays readable when its directory is gone.
fn fused(file: &Checkpoint, plan: &Plan) -> Result<Checkpoint, String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let out = directory.path().join("out.safetensors");
    let go_on = |_| ControlFlow::Continue(());
    let written = fuse::fuse(file, plan, &out, &fuse::Options::default(), &go_on)
        .map_err(|e| e.to_string())?;
    written.finish().map_err(|e| e.to_string())?;
    open(&out)
}

fn check(case: &Case) -> Result<(), String> {
    let train = open(&case.train)?;
    let plan = plan_of(case, &train)?;
    diagnose::check_norms(&train, &plan).map_err(|e| e.to_string())?;
    let (ours, theirs) = (fused(&train, &plan)?, open(&case.deploy)?);
    compare(case, &ours, &theirs)?;
    for (whose, file) in [("our", &ours), ("the authors'", &theirs)] {
        let verdict = verify(&train, &plan, Deployed::File(file), &Default::default())
            .map_err(|e| e.to_string())?;
        let worst = verdict.blocks.iter().find(|b| !b.accepted);
        if let Some(block) = worst {
            return Err(format!(
                "verify rejects {whose} file: `{}` {} {:?} {:?}",
                block.module, block.ratio, block.at, block.failure
            ));
        }
        let serious: Vec<_> = verdict
            .failures_in_words()
            .into_iter()
            .filter(|f| {
                !f.split('`')
                    .nth(1)
                    .is_some_and(|name| is_leftover(name, case))
            })
            .collect();
        if !serious.is_empty() {
            return Err(format!("verify rejects {whose} file: {serious:?}"));
        }
    }
    Ok(())
}

#[test]
fn every_recipe_reproduces_its_authors() {
    let cases = cases();
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| check(case).err().map(|e| format!("{}: {e}", case.name)))
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} fixtures fail:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    let proven: BTreeSet<&str> = cases.iter().map(|case| case.recipe.as_str()).collect();
    for name in recipe::names().expect("built-in recipes") {
        assert!(
            proven.contains(name.as_str()),
            "recipe `{name}` has no fixture"
        );
    }
}

/// Where names leave two recipes open, detection asks for one and names both.
#[test]
fn what_names_leave_open_is_asked() {
    let recipes = recipe::builtin().expect("built-in recipes");
    // Two cases are no matter of detection: mmyolo's blocks in another network, where only `alpha` tells, and an encoder without the
    // names that tell its family.
    let open_cases = cases().into_iter().filter(|case| !case.detect);
    let ambiguous: Vec<Case> = open_cases
        .filter(|c| !["mmyolo/alpha", "dfine/deim-rtdetrv2"].contains(&&*c.name))
        .collect();
    assert!(ambiguous.len() > 6);
    for case in ambiguous {
        let train = open(&case.train).expect("a checkpoint");
        let said = recipe::detect_one(train.tensors(), &recipes).map(|found| found.name.clone());
        let asked = said.expect_err(&case.name).to_string();
        let named = format!("`{}`", case.recipe);
        assert!(
            asked.contains("fit equally well") && asked.contains(&named),
            "{}: {asked}",
            case.name
        );
    }
}

/// Sequential pairs with a family's names are never fused by detection.
#[test]
fn look_alikes_are_left_alone() {
    let recipes = recipe::builtin().expect("built-in recipes");
    let all = described(&fixtures().join("look-alikes"));
    assert!(!all.is_empty());
    let fused: Vec<String> = all
        .iter()
        .filter_map(|(path, _)| {
            let file = Checkpoint::open(path.with_extension("safetensors")).expect("a checkpoint");
            let found = recipe::detect_one(file.tensors(), &recipes).ok()?;
            Some(format!("{} as `{}`", path.display(), found.name))
        })
        .collect();
    assert!(fused.is_empty(), "detected: {fused:?}");
}

/// What has been fused is refused, or, where the authors leave the branches beside the conv, gives that conv again.
#[test]
fn nothing_is_folded_twice() {
    let recipes = recipe::builtin().expect("built-in recipes");
    let mut failed = Vec::new();
    for case in cases() {
        let train = open(&case.train).expect("a checkpoint");
        let Ok(plan) = plan_of(&case, &train) else {
            continue;
        };
        let ours = fused(&train, &plan).expect("a deploy form");
        for (whose, deploy) in [
            ("our", ours),
            ("the authors'", open(&case.deploy).expect("a checkpoint")),
        ] {
            let Ok(found) = recipe::detect_one(deploy.tensors(), &recipes) else {
                continue;
            };
            let again =
                plan::plan(deploy.tensors(), found, &Options::default()).map_err(|e| e.to_string());
            let same = again
                .and_then(|plan| fused(&deploy, &plan))
                .and_then(|twice| compare(&case, &twice, &deploy));
            failed.extend(
                same.err()
                    .map(|e| format!("{}, {whose} file as `{}`: {e}", case.name, found.name)),
            );
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
