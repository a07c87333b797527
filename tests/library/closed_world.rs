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

/// Branches that a block may lack although no recipe calls them optional, or that may have another name.
const MAY_BE_OTHER: &[(&str, &str)] = &[
    (
        "clrfdn: *.conv3x3",
        "no other block of the fixture has such a name, and what is left of this one is a plain conv",
    ),
    (
        "dbb: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "dfine: encoder.downsample_convs.0.norm",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "dfine: *.bottlenecks.0.conv[12]",
        "each of the two branches alone has the names of a plain conv + batch norm, and is one",
    ),
    (
        "fast: *1",
        "a whole block and all that is in it: what is left is a shorter network",
    ),
    (
        "fasternet: patch_embed.norm",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "fastvit: *.pe",
        "a whole block: what is left has no tensor of it",
    ),
    (
        "maf-yolo: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "mmpretrain-levit: head.head.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "orepa: shortcut.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "repadapter: blocks.0.adapter_*",
        "a layer without its adapter is a plain layer",
    ),
    (
        "sesr: *.conv_squeeze",
        "what is left of a collapsible conv has the names of a plain conv",
    ),
    (
        "timm-fastvit: *.pos_enc",
        "a whole block: what is left has no tensor of it",
    ),
    (
        "ultralytics: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "ultralytics: *.conv[12]",
        "each of the two branches alone has the names of a plain conv + batch norm, and is one",
    ),
    (
        "ultralytics: *.conv",
        "each of the two branches alone has the names of a plain conv + batch norm, and is one",
    ),
    (
        "ultralytics-cls: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "unireplknet: *.pwconv2",
        "what is left of the feed-forward layer is kept as it is",
    ),
    (
        "yolov5-lite: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "yolov6: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "yolov6-qarepvgg: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "yolov6-qarepvggv2: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
    (
        "yolox: *.bn",
        "no other block of the fixture has this name; without the norm, it has the names of a plain conv",
    ),
];

/// Branches that a block may lack.
const MAY_LACK: &[(&str, &str)] = &[
    (
        "corenet: cpe.pe.block.conv",
        "the norm that is left has the names of one that stands alone",
    ),
    (
        "orepa: stage0.rbr_dense",
        "what is left has no tensor of the branch",
    ),
    (
        "yolov7: model.2.rbr_dense",
        "the other branch alone has the names of another kind of block",
    ),
];

/// Branches that may have another name.
const MAY_BE_RENAMED: &[(&str, &str)] = &[
    (
        "repvit: classifier.classifier_dist",
        "the second of two heads under another name is something else",
    ),
    ("timm-iformer: head.head_dist", "the same"),
    ("timm-repvit: head.head_dist", "the same"),
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

/// The longest path above all modules that the block could have: those that others with a name like its own have.
fn start_of_kind(block: &Block, plan: &Plan) -> String {
    let start = common(block);
    let kind = |block: &Block| block.name().replace(|c: char| c.is_ascii_digit(), "");
    let below_name = |other: &Block| {
        let start = common(other);
        let below = start.strip_prefix(other.name())?;
        (below.is_empty() || below.starts_with('.')).then(|| below.to_owned())
    };
    let below = |of: &Block| -> BTreeSet<String> {
        let consumed = of.consumed().iter();
        let below = consumed.filter_map(|t| t.name().strip_prefix(of.name()));
        below.map(str::to_owned).collect()
    };
    let alike = plan
        .blocks()
        .iter()
        .filter(|other| kind(other) == kind(block) && below(other).is_superset(&below(block)));
    let starts = alike
        .filter_map(below_name)
        .map(|below| format!("{}{below}", block.name()));
    let shorter = starts.filter(|other| start.starts_with(&format!("{other}.")));
    shorter.min_by_key(String::len).unwrap_or(start)
}

/// The names of all tensors that the fused convs are computed from.
fn leaves(plan: &Plan) -> BTreeSet<String> {
    let convs = plan.blocks().iter().flat_map(|block| block.fused());
    let leaves = convs.flat_map(|conv| conv.expr().root().leaves());
    leaves.map(|leaf| leaf.name().to_owned()).collect()
}

/// Every module of a block, and every path between them and the path above all. A copy of the fused conv that the block leaves out is
/// one, too.
fn places(block: &Block, plan: &Plan) -> BTreeSet<String> {
    let start = start_of_kind(block, plan);
    let mut places = BTreeSet::from([start.clone()]);
    for tensor in block.consumed() {
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
        vec![("running_mean", vec![4])],
        vec![("num_batches_tracked", vec![4, 4])],
        vec![("more.weight", vec![4])],
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

    fn passed(&mut self, case: &Case, name: &str, may: &[&'static [(&str, &str)]]) {
        let excuse = may.iter().copied().flatten().find(|(which, _)| {
            let (recipe, glob) = which.split_once(": ").expect("`recipe: glob`");
            let glob = Glob::new(glob).expect("a glob").compile_matcher();
            (recipe == case.recipe || recipe == "any") && glob.is_match(name)
        });
        match excuse {
            Some((which, _)) => *self.excused.entry(which).or_default() += 1,
            None => self.passed.push(format!("{}: {name}", case.name)),
        }
    }

    fn holds(self, may: &[&[(&str, &str)]]) {
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
        for (which, _) in may.iter().copied().flatten() {
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
            for place in places(block, &plan) {
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
                        Ok(_) => sweep.passed(case, &named(added[0].0), &[MAY_BE_MORE]),
                        Err(said) if added.iter().any(|(end, _)| said.contains(&named(end))) => {}
                        Err(said) => sweep.unnamed.push(format!("{}: {said}", case.name)),
                    }
                }
            }
        }
    });
    sweep.holds(&[MAY_BE_MORE]);
}

/// The counter of a norm is one integer: what has its name and is none has been put there.
#[test]
fn a_counter_is_one_integer() {
    let sweep = swept(|case, recipes, sweep| {
        let file = Checkpoint::open(&case.train).expect("a checkpoint");
        let plan = planned(&file, case, recipes).expect("a plan");
        let header = Header::of(&file);
        for block in kinds(&plan) {
            let norms = block.consumed().iter().filter_map(|tensor| {
                let norm = tensor.name().strip_suffix("running_mean")?;
                Some(format!("{norm}num_batches_tracked"))
            });
            for count in norms {
                for (shape, dtype, counts) in [
                    (&[][..], "I64", true),
                    (&[1], "I64", true),
                    (&[], "I32", true),
                    // All tensors of the file are cast.
                    (&[], "F32", true),
                    (&[], "F16", false),
                    (&[], "BOOL", false),
                    (&[4, 4], "I64", false),
                    (&[0], "I64", false),
                ] {
                    let mut other = header.clone();
                    other.set(&count, dtype, shape);
                    sweep.tried += 1;
                    match planned(&other.open(), case, recipes) {
                        Ok(_) if counts => sweep.known += 1,
                        Ok(_) => sweep.passed(case, &count, &[]),
                        Err(said) if counts || !said.contains(&count) => {
                            sweep.unnamed.push(format!("{}: {said}", case.name));
                        }
                        Err(said) => {
                            let expected = "; expected one integer, which counts the batches that a norm has seen";
                            assert!(said.contains(expected), "{said}");
                        }
                    }
                }
            }
        }
    });
    sweep.holds(&[]);
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
                    sweep.passed(case, tensor.name(), &[MAY_BE_LESS]);
                }
            }
        }
    });
    sweep.holds(&[MAY_BE_LESS]);
}

/// Every module of a block that has modules of its own or is one, with the tensors that the block has below it.
fn branches(block: &Block, leaves: &BTreeSet<String>) -> BTreeMap<String, Vec<String>> {
    let mut branches: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let start = common(block);
    for tensor in block.consumed() {
        if !leaves.contains(tensor.name()) && !tensor.name().ends_with("num_batches_tracked") {
            continue;
        }
        let mut module = parent(tensor.name());
        while module.len() > start.len() {
            let of = branches.entry(module.to_owned()).or_default();
            of.push(tensor.name().to_owned());
            module = parent(module);
        }
    }
    branches
}

type OnBranch<'a> = dyn FnMut(&Header, &Block, &str, &[String]) + 'a;

/// Calls `f` for every branch of one block of each kind, with the header of the file, the block, the branch's module and its tensors.
fn for_each_branch(case: &Case, recipes: &[Recipe], f: &mut OnBranch<'_>) {
    let file = Checkpoint::open(&case.train).expect("a checkpoint");
    let plan = planned(&file, case, recipes).expect("a plan");
    let header = Header::of(&file);
    let used = leaves(&plan);
    for block in kinds(&plan) {
        for (module, tensors) in branches(block, &used) {
            f(&header, block, &module, &tensors);
        }
    }
}

#[test]
fn a_branch_under_another_name_is_refused() {
    let sweep = swept(|case, recipes, sweep| {
        for_each_branch(case, recipes, &mut |header, _, module, tensors| {
            let mut other = header.clone();
            for name in tensors {
                other.rename(name, &format!("{module}_other{}", &name[module.len()..]));
            }
            sweep.tried += 1;
            if planned(&other.open(), case, recipes).is_ok() {
                sweep.passed(case, module, &[MAY_BE_OTHER, MAY_BE_RENAMED]);
            }
        });
    });
    sweep.holds(&[MAY_BE_OTHER, MAY_BE_RENAMED]);
}

/// Whether a plan has this block with nothing missing but a branch that its recipe calls optional.
fn is_there_without(block: &Block, tensors: &[String], plan: &Plan) -> bool {
    let modules = |of: &Block| {
        let modules = of.fused().iter().map(|conv| conv.module().to_owned());
        modules.collect::<Vec<_>>()
    };
    let names = |of: &Block| -> BTreeSet<String> {
        of.consumed().iter().map(|t| t.name().to_owned()).collect()
    };
    let mut expected = names(block);
    expected.retain(|name| !tensors.contains(name));
    let mut blocks = plan.blocks().iter();
    blocks.any(|other| modules(other) == modules(block) && names(other) == expected)
}

#[test]
fn a_branch_less_is_refused_or_optional() {
    let sweep = swept(|case, recipes, sweep| {
        for_each_branch(case, recipes, &mut |header, block, module, tensors| {
            let mut less = header.clone();
            tensors.iter().for_each(|name| less.remove(name));
            sweep.tried += 1;
            match planned(&less.open(), case, recipes) {
                Ok(plan) if is_there_without(block, tensors, &plan) => sweep.known += 1,
                Ok(_) => sweep.passed(case, module, &[MAY_BE_OTHER, MAY_LACK]),
                Err(_) => {}
            }
        });
    });
    sweep.holds(&[MAY_BE_OTHER, MAY_LACK]);
}

#[test]
fn the_cases_are_there() {
    assert!(cases().len() > 150, "{}", cases().len());
    assert!(Path::new(&cases()[0].train).exists());
}
