//! One number of a deploy form off by a hundred-thousandth: rejected whatever the kind of conv and whoever folded it, and named by its index.

use std::ops::ControlFlow;

use crate::support::Random;
use crate::support::file::{Place, norm, recipe, tensor};
use crate::support::fixtures::cases;
use crate::support::forge::File;
use repfuse::fuse;
use repfuse::plan::{self, Options, Source};
use repfuse::recipe;
use repfuse::tensor::Checkpoint;
use repfuse::verify::{Allowance, Deployed, Verdict, verify};
use safetensors::Dtype;

/// A kind of conv: two branches of it, each with its norm, or one behind another.
struct Kind {
    name: &'static str,
    /// What stands in both convs of the recipe.
    conv: &'static str,
    shapes: [&'static [usize]; 2],
    /// The channels of both norms.
    channels: [usize; 2],
    /// The axis of the weight that counts output channels.
    row: usize,
    in_a_row: bool,
}

const PLAIN: Kind = Kind {
    name: "dense",
    conv: "",
    shapes: [&[4, 3, 3, 3], &[4, 3, 1, 1]],
    channels: [4, 4],
    row: 0,
    in_a_row: false,
};

const KINDS: [Kind; 8] = [
    PLAIN,
    Kind {
        name: "grouped",
        conv: r#", "groups": 3"#,
        shapes: [&[6, 2, 3, 3], &[6, 2, 1, 1]],
        channels: [6, 6],
        ..PLAIN
    },
    Kind {
        name: "depthwise",
        conv: r#", "groups": 5"#,
        shapes: [&[5, 1, 5, 5], &[5, 1, 3, 3]],
        channels: [5, 5],
        ..PLAIN
    },
    Kind {
        name: "transposed",
        conv: r#", "transposed": true"#,
        shapes: [&[4, 3, 4, 4], &[4, 3, 2, 2]],
        channels: [3, 3],
        row: 1,
        ..PLAIN
    },
    Kind {
        name: "1-D",
        shapes: [&[4, 3, 5], &[4, 3, 1]],
        ..PLAIN
    },
    Kind {
        name: "3-D",
        shapes: [&[3, 2, 3, 3, 3], &[3, 2, 1, 1, 1]],
        channels: [3, 3],
        ..PLAIN
    },
    Kind {
        name: "linear",
        shapes: [&[6, 5], &[6, 5]],
        channels: [6, 6],
        ..PLAIN
    },
    Kind {
        name: "behind another",
        conv: r#", "groups": 1"#,
        shapes: [&[6, 3, 1, 1], &[4, 6, 3, 3]],
        channels: [6, 4],
        in_a_row: true,
        ..PLAIN
    },
];

impl Kind {
    fn recipe(&self) -> String {
        let conv = self.conv;
        let branch = |name: &str| {
            format!(
                r#"{{"seq": [{{"conv": "{{p}}.{name}", "bias": "optional"{conv}}}, {{"bn": "{{p}}.{name}_bn"}}]}}"#
            )
        };
        let how = if self.in_a_row { "seq" } else { "sum" };
        recipe(&format!(
            r#"{{"at": "{{p}}.a", "fuse": {{"{{p}}.out": {{"{how}": [{}, {}]}}}}}}"#,
            branch("a"),
            branch("b")
        ))
    }

    fn file(&self, random: &mut Random) -> File {
        let mut file = File::default();
        for (i, name) in ["net.a", "net.b"].into_iter().enumerate() {
            tensor(&mut file, &format!("{name}.weight"), self.shapes[i], random);
            norm(&mut file, &format!("{name}_bn"), self.channels[i], random);
        }
        file
    }
}

/// Where in the weight the number `flat` is.
fn index_of(flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = flat;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|n| {
            let at = rest % n;
            rest /= n;
            at
        })
        .collect();
    index.reverse();
    index
}

#[test]
fn any_weight_of_any_kind_is_found_and_named() {
    const TRIED: usize = 40;
    let mut random = Random(23);
    for kind in &KINDS {
        let place = Place::new();
        kind.file(&mut random).write(&place.path("in.safetensors"));
        let recipe = recipe::parse(&kind.recipe(), "own").expect("a recipe");
        let train = Checkpoint::open(place.path("in.safetensors")).expect("a checkpoint");
        let plan = plan::plan(train.tensors(), &recipe, &Options::default()).expect("a plan");
        let out = place.path("out.safetensors");
        let go_on = |_| ControlFlow::Continue(());
        let written = fuse::fuse(&train, &plan, &out, &fuse::Options::default(), &go_on);
        written.expect("a file").finish().expect("a destination");
        let verdict = |file: &File| -> Verdict {
            file.write(&place.path("edited.safetensors"));
            let file = Checkpoint::open(place.path("edited.safetensors")).expect("a file");
            verify(&train, &plan, Deployed::File(&file), &Default::default()).expect("a verdict")
        };
        let ours = File::read(&out);
        let mut others = ours.clone();
        others.metadata.clear();
        for (file, allowance) in [
            (ours, Allowance::OneRounding),
            (others, Allowance::Arithmetic),
        ] {
            let first = verdict(&file);
            assert!(first.accepted(), "{}: {first:?}", kind.name);
            assert_eq!(first.allowance, allowance);
            let whole = file.tensors["net.out.weight"].clone();
            let (weights, shape) = (whole.values(), &whole.shape);
            let row = |flat: usize| index_of(flat, shape)[kind.row];
            for _ in 0..TRIED {
                let at = random.below(weights.len());
                let of_row = (0..weights.len()).filter(|i| row(*i) == row(at));
                let scale = of_row.fold(0.0, |most: f32, i| most.max(weights[i].abs()));
                let sign = if random.below(2) == 0 { 1.0 } else { -1.0 };
                let mut edited = file.clone();
                let changed = weights[at] + sign * 1e-5 * scale;
                edited.at("net.out.weight").edit(|w| w[at] = changed);
                let found = verdict(&edited);
                let [block] = &found.blocks[..] else {
                    panic!("{}: one conv", kind.name);
                };
                let context = format!("{}, {allowance:?}, {at}: {block:?}", kind.name);
                assert!(!block.accepted, "{context}");
                let place = block.at.as_ref().expect("a place");
                assert_eq!(place.tensor, "net.out.weight", "{context}");
                assert_eq!(place.index, index_of(at, shape), "{context}");
                assert_eq!(place.found as f32, changed, "{context}");
                let expected = place.expected.expect("a number");
                assert!(
                    (expected - f64::from(weights[at])).abs() < f64::from(1e-6 * scale),
                    "{context}"
                );
            }
        }
    }
}

/// Files that the authors' own code folded, in f32: each is accepted, and no weight and no bias may be off by 1e-5, where the tensor's
/// numbers are no larger than 1. (An f32 near 100 is 1e-5 from the next.)
#[test]
fn any_number_of_an_authors_file_is_found() {
    let (place, mut random) = (Place::new(), Random(41));
    let recipes = recipe::builtin().expect("the recipes");
    let (mut weights, mut biases) = (0, 0);
    for case in cases() {
        let recipe = recipes.iter().find(|recipe| recipe.name == case.recipe);
        let train = Checkpoint::open(&case.train).expect("a checkpoint");
        let recipe = recipe.expect("a recipe");
        let plan = plan::plan(train.tensors(), recipe, &Options::default()).expect("a plan");
        let theirs = File::read(&case.deploy);
        for output in plan.outputs() {
            let count = match output.what {
                Source::Weight(..) => &mut weights,
                Source::Bias(..) => &mut biases,
                _ => continue,
            };
            let name = &output.output.name;
            let held = theirs.tensors.get(name);
            let Some(held) = held.filter(|held| held.dtype == Dtype::F32) else {
                continue;
            };
            let values = held.values();
            if values.iter().any(|x| x.abs() > 1.0) {
                continue;
            }
            let at = random.below(values.len());
            let mut edited = theirs.clone();
            edited.at(name).edit(|w| w[at] += 1e-5);
            edited.write(&place.path("edited.safetensors"));
            let file = Checkpoint::open(place.path("edited.safetensors")).expect("a file");
            let found = verify(&train, &plan, Deployed::File(&file), &Default::default());
            let found = found.expect("a verdict");
            assert!(!found.accepted(), "{}: `{name}`, {at}", case.name);
            *count += 1;
        }
    }
    assert!(
        weights > 250 && biases > 450,
        "{weights} weights, {biases} biases"
    );
}
