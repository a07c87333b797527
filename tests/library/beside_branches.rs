//! A fused conv and the branches that it was made of in one file: as the deploy form of another converter, and as a training form.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use crate::support::fixtures::{Case, cases};
use crate::support::forge::File;
use repfuse::fuse::{self, diagnose};
use repfuse::plan::{self, Options, Plan};
use repfuse::recipe;
use repfuse::tensor::Checkpoint;
use repfuse::verify::{self, Deployed, Verdict, verify};
use serde_json::Value;
use tempfile::TempDir;

/// A fixture, its plan, and what `fuse` makes of it, without the metadata that say so.
struct Bench {
    train: Checkpoint,
    recipe: recipe::Recipe,
    plan: Plan,
    before: File,
    fused: File,
    directory: TempDir,
}

impl Bench {
    fn of(case: &Case) -> Bench {
        let recipe = recipe::source(&case.recipe).expect("a recipe").0;
        let train = Checkpoint::open(&case.train).expect("a checkpoint");
        let plan = plan::plan(train.tensors(), &recipe, &Options::default()).expect("a plan");
        let directory = tempfile::tempdir().expect("a directory");
        let out = directory.path().join("fused.safetensors");
        let go_on = |_| ControlFlow::Continue(());
        let written = fuse::fuse(&train, &plan, &out, &fuse::Options::default(), &go_on);
        written.expect("a file").finish().expect("a destination");
        let mut fused = File::read(&out);
        fused.metadata.clear();
        Bench {
            before: File::read(&case.train),
            train,
            recipe,
            plan,
            fused,
            directory,
        }
    }

    /// The names of what blocks consume, without those that other tensors of the deploy form have.
    fn unfused(&self) -> Vec<&str> {
        let blocks = self.plan.blocks().iter();
        let names = blocks.flat_map(|block| block.consumed().iter().map(|t| t.name()));
        let free = names.filter(|name| !self.fused.tensors.contains_key(*name));
        free.collect()
    }

    /// A file with what blocks consume beside it.
    fn with_branches(&self, deploy: &File) -> File {
        let mut both = deploy.clone();
        for name in self.unfused() {
            let held = self.before.tensors[name].clone();
            both.tensors.entry(name.to_owned()).or_insert(held);
        }
        both
    }

    fn path(&self, file: &File) -> std::path::PathBuf {
        let path = self.directory.path().join("edited.safetensors");
        file.write(&path);
        path
    }

    fn verify(&self, deploy: &File) -> Verdict {
        self.verify_file(&self.path(deploy))
    }

    fn verify_file(&self, path: &Path) -> Verdict {
        let file = Checkpoint::open(path).expect("a checkpoint");
        let form = Deployed::File(&file);
        verify(&self.train, &self.plan, form, &Default::default()).expect("a verdict")
    }

    /// The weights of all fused convs.
    fn weights(&self) -> Vec<String> {
        let convs = self.plan.blocks().iter().flat_map(|block| block.fused());
        convs.map(|conv| conv.weight_name()).collect()
    }

    /// What is said of a training form that has its fused convs beside their branches.
    fn as_training(&self, both: &File) -> Result<(), diagnose::Error> {
        let both = Checkpoint::open(self.path(both)).expect("a checkpoint");
        let plan = plan::plan(both.tensors(), &self.recipe, &Options::default()).expect("a plan");
        verify::expect_exported(&both, &plan, &Default::default())
    }
}

/// Moves the largest of some numbers by a part of it.
fn off_by(values: &mut [f32], part: f32) {
    let largest = (0..values.len()).max_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
    let largest = largest.expect("a number");
    values[largest] *= 1.0 + part;
}

fn is_f32(file: &File, name: &str) -> bool {
    file.tensors[name].dtype == safetensors::Dtype::F32
}

#[test]
fn branches_may_stay_beside_the_conv_that_they_gave() {
    let (mut left, mut looked_at) = (0, 0);
    for case in cases() {
        let bench = Bench::of(&case);
        let unfused: BTreeSet<&str> = bench.unfused().into_iter().collect();
        let both = bench.with_branches(&bench.fused);
        let verdict = bench.verify(&both);
        assert!(verdict.accepted(), "{}: {:?}", case.name, verdict.why_not());
        assert_eq!(verdict.unfused, unfused.len(), "{}", case.name);
        left += verdict.unfused;
        looked_at += 1;
        // What the authors' own conversion leaves is no failure either, numbers apart that no deploy form needs.
        let theirs = bench.verify_file(&case.deploy);
        for failure in theirs.failures_in_words() {
            let name = failure.split('`').nth(1).unwrap_or_default();
            assert!(!unfused.contains(name), "{}: {failure}", case.name);
        }
    }
    assert!(looked_at > 150 && left > 2000, "{looked_at}, {left}");
}

/// Whatever stands beside it, the conv must be right, and so must what stands beside it.
#[test]
fn branches_are_no_excuse() {
    let mut looked_at = 0;
    for case in cases() {
        let bench = Bench::of(&case);
        let both = bench.with_branches(&bench.fused);
        let rejected = |what: &str, edit: &dyn Fn(&mut File)| {
            let mut edited = both.clone();
            edit(&mut edited);
            let verdict = bench.verify(&edited);
            assert!(!verdict.accepted(), "{}: {what}", case.name);
        };
        let weights = bench.weights();
        let weight = weights.iter().find(|name| is_f32(&both, name));
        if let Some(weight) = weight {
            rejected("a weight is off", &|file| {
                file.at(weight).edit(|w| off_by(w, 1e-4));
            });
        }
        rejected("a conv is missing", &|file| {
            file.tensors.remove(&weights[0]);
        });
        rejected("all convs are missing", &|file| {
            for weight in &weights {
                file.tensors.remove(weight);
            }
        });
        rejected("a tensor more", &|file| {
            let held = file.at(&weights[0]).clone();
            file.tensors.insert("more.weight".to_owned(), held);
        });
        let unfused = bench.unfused();
        if let Some(name) = unfused.iter().find(|name| is_f32(&both, name)) {
            rejected("a branch is another", &|file| {
                file.at(name).edit(|values| values[0] += 1.0);
            });
            rejected("a branch has another shape", &|file| {
                file.at(name).shape.push(1);
            });
            looked_at += 1;
        }
    }
    assert!(looked_at > 140, "{looked_at}");
}

/// Names below a path of their own, as a converter that saves the network inside of another gives them.
#[test]
fn branches_may_stay_below_another_path() {
    let case = cases()
        .into_iter()
        .find(|case| case.name == "rtdetr/rtdetr");
    let bench = Bench::of(&case.expect("a fixture"));
    let both = bench.with_branches(&bench.fused);
    let below = File {
        tensors: (both.tensors.iter())
            .map(|(name, held)| (format!("encoder.{name}"), held.clone()))
            .collect(),
        metadata: both.metadata.clone(),
    };
    let file = Checkpoint::open(bench.path(&below)).expect("a checkpoint");
    let (file, said) = verify::aligned(file, &bench.plan).expect("one path");
    assert_eq!(
        said.as_deref(),
        Some("those of the deploy form begin with `encoder.`")
    );
    let form = Deployed::File(&file);
    let verdict = verify(&bench.train, &bench.plan, form, &Default::default()).expect("a verdict");
    assert!(verdict.accepted(), "{:?}", verdict.why_not());
    assert_eq!(verdict.unfused, bench.unfused().len());
}

fn blocks_of(recipe: &str) -> Vec<Value> {
    let text = recipe::source(recipe).expect("a recipe").1;
    let json: Value = serde_json::from_str(text).expect("JSON");
    json["blocks"].as_array().expect("blocks").clone()
}

/// Whether a recipe leaves out what a file has of its fused convs beside the branches.
fn drops_its_outputs(recipe: &str) -> bool {
    let is_output = |block: &Value, name: &Value| {
        name.as_str()
            .is_some_and(|name| block["fuse"].get(name).is_some())
    };
    blocks_of(recipe).iter().any(|block| {
        let mut drops = block["drop"].as_array().into_iter().flatten();
        drops.any(|name| is_output(block, name))
    })
}

/// A conv that the recipe says was computed at export has to be what the branches give; a placeholder may hold anything.
#[test]
fn an_exported_conv_is_what_its_branches_give() {
    let (mut held, mut free) = (BTreeSet::new(), BTreeSet::new());
    for case in cases() {
        let bench = Bench::of(&case);
        if !drops_its_outputs(&case.recipe) {
            continue;
        }
        let mut both = bench.with_branches(&bench.fused);
        let said = bench.as_training(&both);
        assert!(said.is_ok(), "{}: {said:?}", case.name);
        let weight = &bench.weights()[0];
        both.at(weight).edit(|w| off_by(w, 1e-4));
        match bench.as_training(&both) {
            Err(diagnose::Error::Exported { .. }) => held.insert(case.recipe),
            Err(other) => panic!("{}: {other}", case.name),
            Ok(()) => free.insert(case.recipe),
        };
    }
    let says = |name: &String| {
        blocks_of(name)
            .iter()
            .any(|block| block["exported"] == true)
    };
    assert!(held.iter().all(says), "{held:?}");
    assert!(!free.iter().any(says), "{free:?}");
    assert!(held.len() > 2 && free.len() > 4, "{held:?}, {free:?}");
}
