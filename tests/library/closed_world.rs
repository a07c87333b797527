//! Nothing ignored, nothing guessed: every fixture with one tensor more, and with one tensor less, is refused.
//!
//! Only headers are read: a file is planned, and nothing of it is fused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::fixtures::{Case, cases};
use crate::support::header::Header;
use globset::Glob;
use repfuse::algebra::describe;
use repfuse::plan::{self, Block, Options, Plan};
use repfuse::recipe::{self, Recipe};
use repfuse::tensor::Checkpoint;

/// Added tensors that are not refused, as `recipe: glob`, and why.
const MAY_BE_MORE: &[(&str, &str)] = &[];

/// Consumed tensors that may be gone, as `recipe: glob`, and why.
const MAY_BE_LESS: &[(&str, &str)] = &[
    (
        "corenet: *.layer_scale",
        "RepMixer can be built without it, and no other block of the fixture says that this one was not",
    ),
    (
        "csla: *.scale_identity.weight",
        "a branch of one tensor, which blocks of unequal widths do without",
    ),
    (
        "shiftwise: *.LoRAs.*.weight",
        "a list of branches of one tensor each says of none but the last that it was longer",
    ),
    (
        "ultralytics: model.*.cv2.weight",
        "Conv2 without its 1×1 has the names of a plain conv + batch norm, and is one",
    ),
];

fn planned(index: &Checkpoint, case: &Case, recipes: &[Recipe]) -> Result<Plan, String> {
    let by_name = || recipes.iter().find(|r| r.name == case.recipe);
    let chosen = match case.detect {
        true => recipe::detect_one(index.tensors(), recipes).map_err(|e| e.to_string())?,
        false => by_name().ok_or("there is no such recipe")?,
    };
    plan::plan(index.tensors(), chosen, &Options::default()).map_err(|e| e.to_string())
}

/// One block of each kind that a file has: those whose names and expressions are alike are of one kind.
fn kinds(plan: &Plan) -> Vec<&Block> {
    let kind = |block: &Block| {
        let start = common(block);
        let names = block.consumed().iter().map(|t| &t.name()[start.len()..]);
        let convs = block.fused().iter();
        let what = convs.map(|conv| describe::expression(conv.expr().root()));
        names.map(str::to_owned).chain(what).collect::<Vec<_>>()
    };
    let mut seen = BTreeSet::new();
    plan.blocks()
        .iter()
        .filter(|b| seen.insert(kind(b)))
        .collect()
}

fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

/// The longest path above all modules of a block.
fn common(block: &Block) -> String {
    let above = |name: &str| {
        let ends = [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ];
        let module = parent(name);
        let of_module = ends.iter().any(|end| name.ends_with(&format!(".{end}")));
        if of_module { parent(module) } else { module }.to_owned()
    };
    let mut paths = block.consumed().iter().map(|t| above(t.name()));
    let mut path: Vec<String> = Vec::new();
    if let Some(first) = paths.next() {
        path = first.split('.').map(str::to_owned).collect();
    }
    for other in paths {
        let same = path
            .iter()
            .zip(other.split('.'))
            .take_while(|(a, b)| a == b);
        let same = same.count();
        path.truncate(same);
    }
    path.join(".")
}

/// The names of all tensors that the fused convs are computed from.
fn leaves(plan: &Plan) -> BTreeSet<String> {
    let convs = plan.blocks().iter().flat_map(|block| block.fused());
    let leaves = convs.flat_map(|conv| conv.expr().root().leaves());
    leaves.map(|leaf| leaf.name().to_owned()).collect()
}

/// Every module of a block, and every path between them and the path above all. (A stale copy of the fused conv, which is
/// dropped with all that is in it, is no module of the block.)
fn places(block: &Block, leaves: &BTreeSet<String>) -> BTreeSet<String> {
    let start = common(block);
    let mut places = BTreeSet::from([start.clone()]);
    for tensor in block
        .consumed()
        .iter()
        .filter(|t| leaves.contains(t.name()))
    {
        let mut module = parent(tensor.name());
        while module.len() > start.len() {
            places.insert(module.to_owned());
            module = parent(module);
        }
    }
    places
}

/// What is added to a block, by the names below a path.
fn additions() -> Vec<Vec<(&'static str, Vec<usize>)>> {
    let norm = |name: [&'static str; 4]| name.map(|n| (n, vec![4])).to_vec();
    let mut branch = norm([
        "more_bn.weight",
        "more_bn.bias",
        "more_bn.running_mean",
        "more_bn.running_var",
    ]);
    branch.push(("more_conv.weight", vec![4, 4, 1, 1]));
    vec![
        vec![("alpha", vec![1])],
        vec![("gamma", vec![4])],
        vec![("layer_scale", vec![4, 1, 1])],
        branch,
        norm([
            "more_norm.weight",
            "more_norm.bias",
            "more_norm.running_mean",
            "more_norm.running_var",
        ]),
    ]
}

/// Counts what passed, but for what may.
#[derive(Default)]
struct Sweep {
    tried: usize,
    excused: BTreeMap<&'static str, usize>,
    passed: Vec<String>,
    known: usize,
    /// Refused, but not because of what was added.
    unnamed: Vec<String>,
}

impl Sweep {
    fn and(mut self, other: Sweep) -> Sweep {
        self.tried += other.tried;
        self.known += other.known;
        for (which, times) in other.excused {
            *self.excused.entry(which).or_default() += times;
        }
        self.passed.extend(other.passed);
        self.unnamed.extend(other.unnamed);
        self
    }

    fn passed(&mut self, case: &Case, name: &str, may: &'static [(&str, &str)]) {
        let excuse = may.iter().find(|(which, _)| {
            let (recipe, glob) = which.split_once(": ").expect("`recipe: glob`");
            let glob = Glob::new(glob).expect("a glob").compile_matcher();
            (recipe == case.recipe || recipe == "any") && glob.is_match(name)
        });
        match excuse {
            Some((which, _)) => *self.excused.entry(which).or_default() += 1,
            None => self.passed.push(format!("{}: {name}", case.name)),
        }
    }

    fn holds(self, may: &[(&str, &str)]) {
        let [tried, passed] = [self.tried, self.passed.len()];
        assert!(tried > 1000, "{tried}");
        assert!(
            self.passed.is_empty(),
            "{passed} of {tried} passed:\n{}",
            self.passed.join("\n")
        );
        assert!(
            self.unnamed.is_empty(),
            "refused for another reason:\n{}",
            self.unnamed.join("\n")
        );
        for (which, _) in may {
            let idle = "is on the list and never needed";
            assert!(self.excused.contains_key(which), "`{which}` {idle}");
        }
    }
}

/// Runs a sweep over every fixture, on all cores.
fn swept(of_case: impl Fn(&Case, &[Recipe], &mut Sweep) + Sync) -> Sweep {
    let recipes = recipe::builtin().expect("built-in recipes");
    let cases = cases();
    let next = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut sweep = Sweep::default();
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            of_case(case, &recipes, &mut sweep);
        }
        sweep
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let sweeps = workers.into_iter().map(|w| w.join().expect("no panic"));
        sweeps.fold(Sweep::default(), Sweep::and)
    })
}

#[test]
fn one_tensor_more_is_refused() {
    let sweep = swept(|case, recipes, sweep| {
        let file = Checkpoint::open(&case.train).expect("a checkpoint");
        let plan = planned(&file, case, recipes).expect("a plan");
        let header = Header::of(&file);
        for block in kinds(&plan) {
            for place in places(block, &leaves(&plan)) {
                for added in additions() {
                    let named = |end: &str| match place.is_empty() {
                        true => end.to_owned(),
                        false => format!("{place}.{end}"),
                    };
                    if file.tensors().contains_key(&named(added[0].0)) {
                        continue;
                    }
                    let mut more = header.clone();
                    for (end, shape) in &added {
                        more.add(&named(end), shape);
                    }
                    sweep.tried += 1;
                    match planned(&more.open(), case, recipes) {
                        // The recipe knows it as a part that may be there.
                        Ok(plan) if leaves(&plan).contains(&named(added[0].0)) => sweep.known += 1,
                        Ok(_) => sweep.passed(case, &named(added[0].0), MAY_BE_MORE),
                        Err(said) if added.iter().any(|(end, _)| said.contains(&named(end))) => {}
                        Err(said) => sweep.unnamed.push(format!("{}: {said}", case.name)),
                    }
                }
            }
        }
    });
    sweep.holds(MAY_BE_MORE);
}

#[test]
fn one_tensor_less_is_refused() {
    let sweep = swept(|case, recipes, sweep| {
        let file = Checkpoint::open(&case.train).expect("a checkpoint");
        let plan = planned(&file, case, recipes).expect("a plan");
        let header = Header::of(&file);
        let used = leaves(&plan);
        for block in kinds(&plan) {
            for tensor in block.consumed() {
                // A counter, or a stale copy of the fused conv that is dropped.
                if !used.contains(tensor.name()) {
                    continue;
                }
                let mut less = header.clone();
                less.remove(tensor.name());
                sweep.tried += 1;
                if planned(&less.open(), case, recipes).is_ok() {
                    sweep.passed(case, tensor.name(), MAY_BE_LESS);
                }
            }
        }
    });
    sweep.holds(MAY_BE_LESS);
}

#[test]
fn the_cases_are_there() {
    assert!(cases().len() > 150, "{}", cases().len());
    assert!(Path::new(&cases()[0].train).exists());
}
