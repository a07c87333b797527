//! Shapes of what stands beside weights: factors, additions, biases and norms. As many numbers in another shape are other numbers.

use std::collections::BTreeSet;

use crate::support::file::{Place, ones, recipe as own};
use crate::support::fixtures::cases;
use crate::support::header::Header;
use globset::Glob;
use repfuse::plan::{self, Block, Options, Plan};
use repfuse::recipe;
use repfuse::tensor::{Checkpoint, Tensor};

/// Other shapes that are right, as `recipe: glob shape`, and why.
const MAY_BE: &[(&str, &str)] = &[
    (
        "orepa: *.rbr_dense.vector *",
        "the authors' own has rows that nothing is multiplied by, one or none",
    ),
    ("yolov7: *.rbr_dense.vector *", "the same"),
];

/// The tensors of a block that are no weight of a conv.
fn vectors(block: &Block) -> Vec<&Tensor> {
    let roots = || block.fused().iter().map(|conv| conv.expr().root());
    let weights: BTreeSet<&str> = roots()
        .flat_map(|root| root.convs())
        .map(|(conv, _)| conv.weight.name())
        .collect();
    let leaves = roots().flat_map(|root| root.leaves());
    let mut seen = BTreeSet::new();
    leaves
        .filter(|leaf| !weights.contains(leaf.name()) && seen.insert(leaf.name().to_owned()))
        .collect()
}

/// Shapes of as many numbers, and of others.
fn others(shape: &[usize]) -> Vec<Vec<usize>> {
    let len: usize = shape.iter().product();
    let mut all = vec![[shape, &[1]].concat(), [&[1], shape].concat()];
    if len > 1 {
        all.push(vec![1; shape.len()]);
        all.push(shape.iter().rev().copied().collect());
    } else {
        all.push([shape, &[2]].concat());
    }
    for (axis, n) in shape.iter().enumerate() {
        let with = |dims: &[usize]| [&shape[..axis], dims, &shape[axis + 1..]].concat();
        all.push(with(&[n + 1]));
        if n % 2 == 0 && *n > 2 {
            all.push(with(&[2, n / 2]));
        }
    }
    all.retain(|other| other != shape);
    all
}

/// The names of a block's tensors without their numbers: those of other blocks of its kind are the same.
fn kind(block: &Block) -> BTreeSet<String> {
    let names = block.consumed().iter().map(|tensor| {
        let name = tensor.name().strip_prefix(block.name());
        let name = name.unwrap_or(tensor.name());
        name.replace(|c: char| c.is_ascii_digit(), "")
    });
    names.collect()
}

#[test]
fn a_vector_of_another_shape_is_refused() {
    let recipes = recipe::builtin().expect("built-in recipes");
    let (mut tried, mut passed, mut excused) = (0, Vec::new(), BTreeSet::new());
    let mut seen = BTreeSet::new();
    for case in cases() {
        let recipe = recipes.iter().find(|recipe| recipe.name == case.recipe);
        let recipe = recipe.expect("a recipe");
        let planned = |file: &Checkpoint| plan::plan(file.tensors(), recipe, &Options::default());
        let file = Checkpoint::open(&case.train).expect("a checkpoint");
        let plan = planned(&file).expect("a plan");
        let header = Header::of(&file);
        for block in plan.blocks() {
            if !seen.insert((&recipe.name, kind(block))) {
                continue;
            }
            for tensor in vectors(block) {
                for shape in others(tensor.shape()) {
                    let mut other = header.clone();
                    other.set(tensor.name(), &tensor.dtype().to_string(), &shape);
                    tried += 1;
                    // What is left of a block that has another shape may be another block, or none.
                    let uses = |plan: &Plan| {
                        let all = plan.blocks().iter().flat_map(|b| b.consumed());
                        all.into_iter().any(|t| t.name() == tensor.name())
                    };
                    if !planned(&other.open()).is_ok_and(|plan| uses(&plan)) {
                        continue;
                    }
                    let what = format!("{} {shape:?}", tensor.name());
                    let excuse = MAY_BE.iter().find(|(which, _)| {
                        let (recipe, glob) = which.split_once(": ").expect("`recipe: glob`");
                        let glob = Glob::new(glob).expect("a glob").compile_matcher();
                        recipe == case.recipe && glob.is_match(&what)
                    });
                    match excuse {
                        Some((which, _)) => drop(excused.insert(which)),
                        None => {
                            passed.push(format!("{}: {what}, was {:?}", case.name, tensor.shape()))
                        }
                    }
                }
            }
        }
    }
    assert!(tried > 2000, "{tried}");
    assert!(
        passed.is_empty(),
        "{} of {tried}:\n{}",
        passed.len(),
        passed.join("\n")
    );
    assert_eq!(excused.len(), MAY_BE.len());
}

/// What is said of shapes, by a recipe that says them and one that does not.
#[test]
fn a_wrong_shape_is_named() {
    let place = Place::new();
    let said = |shapes: &str, factor: &[usize], bias: &[usize]| {
        let tensors = [
            ("a.c.weight", &[4, 2, 3, 3][..]),
            ("a.c.bias", bias),
            ("a.gamma", factor),
        ];
        ones(&tensors).write(&place.path("in.safetensors"));
        let file = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
        let block = format!(
            r#"{{"at": "{{p}}.c.weight", {shapes} "fuse": {{"{{p}}.c": [{{"conv": "{{p}}.c"}}, {{"scale": "{{p}}.gamma"}}]}}}}"#
        );
        let recipe = recipe::parse(&own(&block), "own").map_err(|e| e.to_string())?;
        let plan = plan::plan(file.tensors(), &recipe, &Options::default());
        plan.map(|_| ()).map_err(|e| e.to_string())
    };
    let shapes = r#""shapes": {"{p}.c.weight": ["o", "_", "odd", 3], "{p}.gamma": ["o", 1, 1]},"#;
    for (shapes, factor, bias) in [
        (shapes, &[4, 1, 1][..], &[4][..]),
        ("", &[4, 1, 1], &[4]),
        ("", &[1, 4, 1, 1], &[4]),
        ("", &[1], &[4]),
        (r#""shapes": {"{p}.none": [1]},"#, &[4], &[4]),
    ] {
        assert_eq!(said(shapes, factor, bias), Ok(()), "{factor:?}");
    }
    for (shapes, factor, bias, expected) in [
        (
            shapes,
            &[1, 4, 1, 1][..],
            &[4][..],
            "block `a`: `a.gamma` has shape [1, 4, 1, 1]; the recipe expects [4, 1, 1]",
        ),
        (
            shapes,
            &[1, 1, 1],
            &[4],
            "block `a`: `a.gamma` has shape [1, 1, 1]; the recipe expects [4, 1, 1]",
        ),
        (
            r#""shapes": {"{p}.gamma": ["o", "_", "odd"]},"#,
            &[4],
            &[4],
            "block `a`: `a.gamma` has shape [4]; the recipe expects [o, _, odd]",
        ),
        (
            "",
            &[2, 2],
            &[4],
            "block `a`: `a.gamma` has shape [2, 2]; expected one number for each channel, along one axis",
        ),
        (
            "",
            &[4],
            &[4, 1],
            "block `a`: `a.c.bias` has shape [4, 1]; expected one axis, with one number for each channel",
        ),
        (
            r#""shapes": {"{p}.gamma": 4},"#,
            &[4],
            &[4],
            "recipe `own`, at `blocks[0].shapes.{p}.gamma`: found a number; expected a shape such as [1, \"c\", 1, 1]",
        ),
    ] {
        let found = said(shapes, factor, bias).expect_err(expected);
        assert_eq!(found, expected);
    }
}
