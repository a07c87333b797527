//! Segments of wrappers in names: every fixture with some of them is folded to the same tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use crate::support::Random;
use crate::support::fixtures::cases;
use crate::support::forge::File;
use repfuse::fuse;
use repfuse::plan::{Options, Plan, plan_families};
use repfuse::recipe::{self, Family};
use repfuse::tensor::Checkpoint;

const WRAPPERS: [&str; 5] = [
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// Every module of a file that holds something, by its path.
fn modules(file: &File) -> Vec<String> {
    let above = |name: &String| {
        let ends: Vec<usize> = name.match_indices('.').map(|(at, _)| at).collect();
        ends.into_iter()
            .map(|at| name[..at].to_owned())
            .collect::<Vec<_>>()
    };
    let all: BTreeSet<String> = file.tensors.keys().flat_map(above).collect();
    all.into_iter().collect()
}

/// A name as it is when some modules are wrapped.
fn wrapped(name: &str, around: &BTreeMap<String, &str>) -> String {
    let mut out = String::new();
    let mut at = 0;
    for segment in name.split('.') {
        let above = name[..at].trim_end_matches('.');
        if let Some(wrapper) = around.get(above).filter(|_| at > 0) {
            out += &format!("{wrapper}.");
        }
        out += segment;
        at += segment.len() + 1;
        if at <= name.len() {
            out.push('.');
        }
    }
    out
}

fn renamed(file: &File, name: impl Fn(&str) -> String) -> File {
    let tensors = file.tensors.iter();
    File {
        tensors: tensors
            .map(|(old, held)| (name(old), held.clone()))
            .collect(),
        metadata: file.metadata.clone(),
    }
}

/// Detects, plans and fuses.
fn fused(file: &File, recipe: Option<&str>, at: &Path) -> Result<(Plan, File), String> {
    let (from, to) = (at.join("in.safetensors"), at.join("out.safetensors"));
    file.write(&from);
    let checkpoint = Checkpoint::open(&from).map_err(|e| e.to_string())?;
    let near = recipe::builtin().map_err(|e| e.to_string())?;
    let found = match recipe {
        Some(name) => vec![Family::whole(
            near.iter().find(|r| r.name == name).ok_or("no recipe")?,
        )],
        None => recipe::detect_builtin(checkpoint.tensors(), &near).map_err(|e| e.to_string())?,
    };
    let plan = plan_families(checkpoint.tensors(), &found, &Options::default())
        .map_err(|e| format!("{:#}", anyhow::Error::from(e)))?;
    let options = fuse::Options {
        replace: true,
        ..Default::default()
    };
    let go_on = |_| ControlFlow::Continue(());
    let written =
        fuse::fuse(&checkpoint, &plan, &to, &options, &go_on).map_err(|e| e.to_string())?;
    written.finish().map_err(|e| e.to_string())?;
    Ok((plan, File::read(&to)))
}

/// A name without what was put into it.
fn clean(name: &str) -> String {
    let kept = name.split('.').filter(|s| !WRAPPERS.contains(s));
    kept.collect::<Vec<_>>().join(".")
}

#[test]
fn fixtures_fold_the_same_with_wrapped_modules() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut random = Random(11);
    let (mut tried, mut inside) = (0, 0);
    for case in cases() {
        let file = File::read(&case.train);
        // A recipe that has such a segment itself cannot tell.
        if file.tensors.keys().any(|name| clean(name) != *name) {
            continue;
        }
        let recipe = (!case.detect).then_some(case.recipe.as_str());
        let (plan, plain) =
            fused(&file, recipe, directory.path()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let modules = modules(&file);
        for some in [1, 4] {
            let around: BTreeMap<String, &str> = (0..some)
                .map(|_| {
                    let module = modules[random.below(modules.len())].clone();
                    (module, random.pick(&WRAPPERS))
                })
                .collect();
            let changed = renamed(&file, |name| wrapped(name, &around));
            let (_, out) = fused(&changed, recipe, directory.path())
                .unwrap_or_else(|e| panic!("{}, {around:?}: {e}", case.name));
            let cleaned = renamed(&out, clean);
            assert_eq!(out.tensors.len(), cleaned.tensors.len(), "{}", case.name);
            assert!(
                cleaned.tensors == plain.tensors,
                "{}, {around:?}",
                case.name
            );
            tried += 1;
            for (module, wrapper) in &around {
                let within = plan.blocks().iter().any(|block| {
                    let of_block =
                        |path: &String| path.strip_prefix(block.name()).map(str::to_owned);
                    let below =
                        |path: &String| of_block(path).is_some_and(|rest| rest.starts_with('.'));
                    let consumed = block.consumed().iter();
                    let branch = consumed
                        .clone()
                        .any(|t| t.name().starts_with(&format!("{module}.")));
                    let whole = consumed
                        .clone()
                        .all(|t| t.name().starts_with(&format!("{module}.")));
                    !block.name().is_empty() && below(module) && branch && !whole
                });
                if within {
                    inside += 1;
                    let still = |name: &&String| {
                        wrapped(&clean(name), &around) != clean(name)
                            && name.contains(&format!(
                                "{}.{wrapper}.",
                                module.rsplit('.').next().expect("a segment")
                            ))
                            && clean(name).starts_with(&format!("{module}."))
                    };
                    let left = out.tensors.keys().find(still);
                    assert_eq!(left, None, "{}: {module} {wrapper}", case.name);
                }
            }
        }
    }
    assert!(tried > 150 && inside > 50, "{tried} {inside}");
}
