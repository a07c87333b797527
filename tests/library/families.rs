//! Several families in one file: each recipe has its part, with its own eps, and nothing is silent.

use std::collections::BTreeSet;
use std::thread;

use crate::support::fixtures::{Case, cases};
use repfuse::plan::{self, EpsSource, Options, Plan};
use repfuse::recipe::{self, Family, Index, Recipe};
use repfuse::tensor::{Checkpoint, Float, Part, Place, Tensor};

/// Pairs that names cannot tell from one network: the blocks of the first are taken for those of the second, whose evidence is the
/// first one's with something more, or vouches for names that ask for none.
const ONE_NETWORK: &[(&str, &str)] = &[
    ("rtdetr", "dfine"),
    ("repvgg", "easycv"),
    ("repvgg", "mmyolo"),
    ("repvgg", "yolov5-lite"),
    ("repvgg", "yolov6"),
    ("ultralytics-cls", "yolov5-lite"),
    ("yolo-nas", "yolo-nas-pose"),
];

/// A network at the root of a file and one below a path that are not told apart, and what happens.
const BESIDE: &[(&str, &str)] = &[
    // OREPA is used in networks of many names, so its recipe says no modules. Its plain conv with a norm has names of others.
    ("easycv", "orepa"),
    ("orepa", "timm-efficientvit-msra"),
    ("orepa", "timm-tinyvit"),
    ("orepa", "yolov6"),
    ("orepa", "yolox"),
    ("replknet", "orepa"),
    ("timm-lcnetv2", "orepa"),
    // Refused: blocks of the one are found half in the other.
    ("fastvit", "corenet"),
    ("fmen", "rvsr"),
];

/// One file of each recipe that is detected, and its plan.
fn one_of_each(recipes: &[Recipe]) -> Vec<(Case, Index, Plan)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for case in cases() {
        if !case.detect || !seen.insert(case.recipe.clone()) {
            continue;
        }
        let file = Checkpoint::open(&case.train).expect("a checkpoint");
        let recipe = recipe::detect_one(file.tensors(), recipes).expect("one recipe");
        let plan = plan::plan(file.tensors(), recipe, &Options::default()).expect("a plan");
        found.push((case, file.tensors().clone(), plan));
    }
    found
}

/// The tensors of a file under a path of their own.
fn under(path: &str, index: &Index) -> Index {
    let tensor = |tensor: &Tensor| {
        let part = Part {
            name: format!("{path}{}", tensor.name()),
            dtype: tensor.dtype().clone(),
            shape: tensor.shape().to_vec(),
            place: Place::InFile { file: 0, offset: 0 },
        };
        Tensor::new(part).expect("a tensor")
    };
    let tensors = index.values().map(tensor);
    tensors.map(|t| (t.name().to_owned(), t)).collect()
}

/// Every conv of a plan with the eps of its norms, and every other output.
fn says(path: &str, plan: &Plan) -> BTreeSet<String> {
    let convs = plan
        .blocks()
        .iter()
        .flat_map(|block| block.fused())
        .map(|conv| {
            let norms = conv.expr().root().norms();
            let eps: Vec<String> = norms.iter().map(|norm| format!("{:e}", norm.eps)).collect();
            format!("{path}{} by {}", conv.module(), eps.join(" "))
        });
    let outputs = plan
        .outputs()
        .iter()
        .map(|o| format!("{path}{}", o.output.name));
    convs.chain(outputs).collect()
}

/// What is wrong with two families in one file, each below a path; an empty one is the root of the file.
fn trouble(
    [a, b]: [&(Case, Index, Plan); 2],
    [at, bt]: [&str; 2],
    recipes: &[Recipe],
) -> Option<String> {
    let pair = [&*a.0.recipe, &*b.0.recipe];
    let mut index = under(at, &a.1);
    index.extend(under(bt, &b.1));
    let planned = recipe::detect(&index, recipes)
        .and_then(|families| plan::plan_families(&index, &families, &Options::default()));
    let same = |(x, y): &(&str, &str)| pair == [*x, *y] || pair == [*y, *x];
    let is_excused = at.is_empty() && BESIDE.contains(&(pair[0], pair[1]));
    if is_excused || ONE_NETWORK.iter().any(same) {
        return None;
    }
    match planned {
        Err(e) => Some(format!("{pair:?} at {at:?} and {bt:?}: {e}")),
        Ok(plan) => {
            let found = says("", &plan);
            let mut expected = says(at, &a.2);
            expected.extend(says(bt, &b.2));
            (found != expected).then(|| {
                let differing = found.symmetric_difference(&expected).next();
                format!(
                    "{pair:?} at {at:?} and {bt:?} as {}: {}",
                    plan.recipe(),
                    differing.expect("a difference")
                )
            })
        }
    }
}

#[test]
fn two_families_in_one_file_are_both_fused() {
    let recipes = recipe::builtin().expect("the built-in recipes");
    let all = one_of_each(&recipes);
    let mut pairs = Vec::new();
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate() {
            if i < j {
                pairs.push(([a, b], ["one.", "two."]));
            }
            if i != j {
                pairs.push(([a, b], ["", "teacher."]));
            }
        }
    }
    assert!(pairs.len() > 5000, "{}", pairs.len());
    let halves: Vec<_> = pairs.chunks(pairs.len().div_ceil(2)).collect();
    let wrong: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = halves
            .iter()
            .map(|half| {
                let recipes = &recipes;
                scope.spawn(move || {
                    let wrong = half
                        .iter()
                        .filter_map(|(pair, at)| trouble(*pair, *at, recipes));
                    wrong.collect::<Vec<_>>()
                })
            })
            .collect();
        let done = threads
            .into_iter()
            .flat_map(|t| t.join().expect("no panic"));
        done.collect()
    });
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        pairs.len(),
        wrong.join("\n")
    );
}

/// The blocks of one conv and its norm, as another network beside this one would have them: `student` in place of the module that the
/// recipe names.
fn student(recipe: &Recipe, index: &Index, plan: &Plan) -> Index {
    let is_module = |segment: &str| {
        let mut modules = recipe.modules.iter();
        modules.any(|module| match module.strip_suffix('*') {
            Some(start) => segment.starts_with(start),
            None => module == segment,
        })
    };
    let renamed = |name: &str| {
        let (at, _) = name
            .split('.')
            .enumerate()
            .find(|(_, segment)| is_module(segment))?;
        let rest: Vec<&str> = name.split('.').skip(at + 1).collect();
        Some(format!("student.{}", rest.join(".")))
    };
    let plain = plan.blocks().iter().filter(|block| match block.fused() {
        [conv] => conv.expr().root().convs().len() == 1 && !conv.expr().root().norms().is_empty(),
        _ => false,
    });
    let tensors = plain.flat_map(|block| block.consumed());
    let named =
        tensors.filter_map(|tensor| Some((renamed(tensor.name())?, index.get(tensor.name())?)));
    let copied = named.map(|(name, tensor)| {
        let part = Part {
            name: name.clone(),
            dtype: tensor.dtype().clone(),
            shape: tensor.shape().to_vec(),
            place: Place::InFile { file: 0, offset: 0 },
        };
        (name, Tensor::new(part).expect("a tensor"))
    });
    copied.collect()
}

#[test]
fn a_network_beside_has_its_own_eps() {
    let recipes = recipe::builtin().expect("the built-in recipes");
    let mut tried = 0;
    for (case, index, plan) in one_of_each(&recipes) {
        let recipe = recipes
            .iter()
            .find(|r| r.name == case.recipe)
            .expect("a recipe");
        let beside = student(recipe, &index, &plan);
        if recipe.modules.is_empty() || beside.is_empty() {
            continue;
        }
        tried += 1;
        for at in ["", "teacher."] {
            let mut both = under(at, &index);
            both.extend(beside.clone());
            let families = recipe::detect(&both, &recipes).expect("a family");
            let planned = plan::plan_families(&both, &families, &Options::default());
            let found = says("", &planned.expect("a plan"));
            let mut expected = says(at, &plan);
            expected.extend(beside.keys().cloned());
            let differing = found.symmetric_difference(&expected).next();
            assert_eq!(differing, None, "{} at {at:?}", case.recipe);
        }
    }
    assert!(tried >= 20, "{tried}");
}

#[test]
fn a_guest_inside_has_the_eps_of_its_host_and_a_network_beside_its_own() {
    let recipes = recipe::builtin().expect("the built-in recipes");
    let all = one_of_each(&recipes);
    let of = |recipe: &str| {
        &all.iter()
            .find(|(case, ..)| case.recipe == recipe)
            .expect("a case")
            .1
    };
    for guest in ["repvgg", "timm-repvit", "timm-mobileone", "levit"] {
        for [host, at] in [
            ["ultralytics", "model.0"],
            ["yolox", "backbone.backbone.stem"],
        ] {
            // RepVGG's names speak against YOLOX: another project has both.
            if [host, guest] == ["yolox", "repvgg"] {
                continue;
            }
            let mut index = of(host).clone();
            index.retain(|name, _| !name.starts_with(&format!("{at}.")));
            index.extend(under(&format!("{at}."), of(guest)));
            index.extend(under("teacher.", of(guest)));
            let families = recipe::detect(&index, &recipes).expect("families");
            let found: BTreeSet<(&str, Option<&str>, bool)> = families
                .iter()
                .map(|family| {
                    let is_beside = family.at.iter().any(|path| path.starts_with("teacher"));
                    (
                        &*family.recipe.name,
                        family.host.map(|host| &*host.name),
                        is_beside,
                    )
                })
                .collect();
            let expected = BTreeSet::from([
                (host, None, false),
                (guest, Some(host), false),
                (guest, None, true),
            ]);
            assert_eq!(found, expected, "{guest} in {host}");
        }
    }
}

#[test]
fn a_network_of_other_modules_ends_with_its_path() {
    let recipe = recipe::parse(
        r#"{"name": "own", "about": "a", "cite": "c", "eps": 1e-5, "when": ["{p}.mixer.weight"], "modules": ["stages"], "drop": ["{p}.aux"],
            "blocks": [{"at": "{p}.conv.weight", "fuse": {"{p}.conv": {"conv": "{p}.conv", "bn": "{p}.bn"}}}]}"#,
        "own.json",
    )
    .expect("a recipe");
    let block = |path: &str| {
        let norm = ["weight", "bias", "running_mean", "running_var"];
        let norm = norm.map(|end| float(&format!("{path}.bn.{end}"), &[4]));
        let conv = float(&format!("{path}.conv.weight"), &[4, 4, 3, 3]);
        norm.into_iter().chain([conv]).collect::<Vec<_>>()
    };
    let fused = |names: &[&str]| -> Vec<String> {
        let mut index = Index::new();
        for name in names {
            index.extend(block(name));
        }
        index.extend([float("net.body1.mixer.weight", &[4])]);
        index.extend([float("net.body2.mixer.weight", &[4])]);
        index.extend([float("net.body1.aux.a.weight", &[4])]);
        index.extend([float("other.aux.a.weight", &[4])]);
        let plan = plan::plan(&index, &recipe, &Options::default()).expect("a plan");
        let outputs = plan.outputs().iter().map(|o| o.output.name.clone());
        assert!(outputs.clone().any(|name| name == "other.aux.a.weight"));
        assert!(!outputs.clone().any(|name| name == "net.body1.aux.a.weight"));
        let blocks = plan.blocks().iter();
        blocks.map(|block| block.name().to_owned()).collect()
    };
    // The modules have other names than the recipe says: what stands beside the path of the evidence is none of the network.
    let found = fused(&["net.stem", "net.body1.a", "decoder.a"]);
    assert_eq!(found, ["net.body1.a", "net.stem"]);
}

#[test]
fn what_a_recipe_drops_is_of_a_network_that_it_has_blocks_of() {
    let recipe = recipe::parse(
        r#"{"name": "own", "about": "a", "cite": "c", "drop": ["{p}.aux"], "blocks": [{"at": "{p}.big.weight", "bias": false, "fuse":
            {"{p}.big": {"sum": [{"conv": "{p}.big", "bias": false}, {"conv": "{p}.small", "bias": false}]}}}]}"#,
        "own.json",
    )
    .expect("a recipe");
    let index: Index = [
        float("one.a.big.weight", &[4, 4, 3, 3]),
        float("one.a.small.weight", &[4, 4, 1, 1]),
        float("one.aux.weight", &[4]),
        float("two.aux.weight", &[4]),
    ]
    .into();
    let plan = plan::plan(&index, &recipe, &Options::default()).expect("a plan");
    let outputs: Vec<&str> = plan.outputs().iter().map(|o| &*o.output.name).collect();
    assert_eq!(outputs, ["two.aux.weight", "one.a.big.weight"]);
}

/// A tensor of a file that nothing is read of.
fn float(name: &str, shape: &[usize]) -> (String, Tensor) {
    let part = Part {
        name: name.to_owned(),
        dtype: Float::F32.into(),
        shape: shape.to_vec(),
        place: Place::InFile { file: 0, offset: 0 },
    };
    (name.to_owned(), Tensor::new(part).expect("a tensor"))
}

#[test]
fn a_guest_keeps_its_eps_where_its_host_has_none() {
    let host_of = |eps: &str| {
        let text = format!(
            r#"{{"name": "host", "about": "a", "cite": "c"{eps}, "blocks": [{{"at": "{{p}}.big.weight", "fuse":
                {{"{{p}}.out": {{"sum": [{{"conv": "{{p}}.big", "bias": false}}, {{"conv": "{{p}}.small", "bias": false}}]}}}},
                "bias": false}}]}}"#
        );
        recipe::parse(&text, "host.json").expect("a recipe")
    };
    let guest = recipe::parse(
        r#"{"name": "guest", "about": "a", "cite": "c", "eps": 1e-3, "blocks": [{"at": "{p}.conv.weight", "fuse":
            {"{p}.out": [{"conv": "{p}.conv", "bias": false}, {"bn": "{p}.norm"}]}}]}"#,
        "guest.json",
    )
    .expect("a recipe");
    let index: Index = [
        float("net.h.big.weight", &[4, 4, 3, 3]),
        float("net.h.small.weight", &[4, 4, 1, 1]),
        float("net.g.conv.weight", &[4, 4, 3, 3]),
        float("net.g.norm.weight", &[4]),
        float("net.g.norm.bias", &[4]),
        float("net.g.norm.running_mean", &[4]),
        float("net.g.norm.running_var", &[4]),
    ]
    .into();
    for (of_host, eps, source) in [
        ("", 1e-3, EpsSource::Recipe),
        (r#", "eps": 0.01"#, 0.01, EpsSource::Host),
    ] {
        let host = host_of(of_host);
        let family = |recipe, at: &str, host| Family {
            recipe,
            at: vec![at.to_owned()],
            host,
        };
        let families = [
            family(&host, "net.h", None),
            family(&guest, "net.g", Some(&host)),
        ];
        let plan = plan::plan_families(&index, &families, &Options::default()).expect("a plan");
        let applied = &plan.families()[1];
        assert_eq!((applied.eps, applied.eps_source), (Some(eps), source));
        let norms = plan.blocks()[1].fused()[0].expr().root().norms();
        let found: Vec<f64> = norms.iter().map(|norm| norm.eps).collect();
        assert_eq!(found, [eps]);
        let names: Vec<String> = plan.blocks()[1].fused()[0]
            .bias_name()
            .into_iter()
            .collect();
        assert_eq!(names, ["net.g.out.bias"]);
        assert_eq!(plan.blocks()[0].fused()[0].bias_name(), None);
    }
}
