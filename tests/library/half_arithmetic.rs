//! Deploy forms that another converter folded in half types: accepted also where its numbers are as small as the type has them.

use half::{bf16, f16};
use repfuse::plan::{self, Options};
use repfuse::recipe;
use repfuse::tensor::Checkpoint;
use repfuse::verify::{Deployed, Verdict, verify};
use safetensors::Dtype;

use crate::support::Random;
use crate::support::file::{Place, recipe};
use crate::support::forge::{File, Held};

/// A half type: how a number is rounded to it, and its bytes.
#[derive(Clone, Copy)]
struct Half {
    dtype: Dtype,
    round: fn(f64) -> f64,
    bytes: fn(f64) -> [u8; 2],
}

const HALVES: [Half; 2] = [
    Half {
        dtype: Dtype::F16,
        round: |x| f16::from_f64(x).to_f64(),
        bytes: |x| f16::from_f64(x).to_le_bytes(),
    },
    Half {
        dtype: Dtype::BF16,
        round: |x| bf16::from_f64(x).to_f64(),
        bytes: |x| bf16::from_f64(x).to_le_bytes(),
    },
];

const OUT: usize = 4;
const IN: usize = 3;
const EPS: f64 = 1e-5;

/// What the weights, the scales and the variances of a block are like.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    weight: f64,
    gamma: f64,
    variance: f64,
}

/// A branch: its weight with `taps` taps, and the four vectors of its norm.
struct Branch {
    weight: Vec<f64>,
    norm: [Vec<f64>; 4],
}

fn branch(half: Half, sizes: Sizes, taps: usize, random: &mut Random) -> Branch {
    let mut values = |n: usize, low: f64, high: f64| -> Vec<f64> {
        (0..n)
            .map(|_| (half.round)(random.between(low, high)))
            .collect()
    };
    Branch {
        weight: values(OUT * IN * taps, -sizes.weight, sizes.weight),
        norm: [
            values(OUT, 0.3 * sizes.gamma, sizes.gamma),
            values(OUT, -sizes.weight, sizes.weight),
            values(OUT, -sizes.weight, sizes.weight),
            values(OUT, 0.3 * sizes.variance, sizes.variance),
        ],
    }
}

/// Weight and bias of the fold of a branch, each operation rounded, as a script does that runs on tensors of the half type.
fn folded(half: Half, branch: &Branch) -> [Vec<f64>; 2] {
    let r = half.round;
    let [gamma, beta, mean, var] = &branch.norm;
    let per_row = branch.weight.len() / OUT;
    let t: Vec<f64> = (0..OUT)
        .map(|o| {
            let std = r(r(var[o] + EPS).sqrt());
            r(gamma[o] / std)
        })
        .collect();
    let weight = branch.weight.iter().enumerate();
    let weight = weight.map(|(i, w)| r(w * t[i / per_row])).collect();
    let bias = (0..OUT).map(|o| {
        let std = r(r(var[o] + EPS).sqrt());
        r(beta[o] - r(r(mean[o] * gamma[o]) / std))
    });
    [weight, bias.collect()]
}

fn held(half: Half, shape: &[usize], values: &[f64]) -> Held {
    Held {
        dtype: half.dtype,
        shape: shape.to_vec(),
        bytes: values.iter().flat_map(|x| (half.bytes)(*x)).collect(),
    }
}

/// The training form of a 3×3 and a 1×1 branch, and its deploy form, folded in the half type.
fn pair(half: Half, sizes: Sizes, random: &mut Random) -> [File; 2] {
    let (mut train, mut deploy) = (File::default(), File::default());
    let large = branch(half, sizes, 9, random);
    let small = branch(half, sizes, 1, random);
    for (name, of, k) in [("a", &large, 3), ("b", &small, 1)] {
        let weight = held(half, &[OUT, IN, k, k], &of.weight);
        train.tensors.insert(format!("net.{name}.weight"), weight);
        let ends = ["weight", "bias", "running_mean", "running_var"];
        for (end, values) in ends.into_iter().zip(&of.norm) {
            let vector = held(half, &[OUT], values);
            train.tensors.insert(format!("net.{name}_bn.{end}"), vector);
        }
    }
    let [mut weight, mut bias] = folded(half, &large);
    let [of_small, bias_of_small] = folded(half, &small);
    for (i, w) in of_small.iter().enumerate() {
        weight[9 * i + 4] = (half.round)(weight[9 * i + 4] + w);
    }
    for (b, more) in bias.iter_mut().zip(bias_of_small) {
        *b = (half.round)(*b + more);
    }
    let weight = held(half, &[OUT, IN, 3, 3], &weight);
    deploy.tensors.insert("net.out.weight".to_owned(), weight);
    let bias = held(half, &[OUT], &bias);
    deploy.tensors.insert("net.out.bias".to_owned(), bias);
    [train, deploy]
}

fn verdict(place: &Place, [train, deploy]: &[File; 2]) -> Verdict {
    let branch = |name: &str| {
        format!(r#"{{"seq": [{{"conv": "{{p}}.{name}"}}, {{"bn": "{{p}}.{name}_bn"}}]}}"#)
    };
    let text = recipe(&format!(
        r#"{{"at": "{{p}}.a", "fuse": {{"{{p}}.out": {{"sum": [{}, {}]}}}}}}"#,
        branch("a"),
        branch("b")
    ));
    let recipe = recipe::parse(&text, "own").expect("a recipe");
    train.write(&place.path("in.safetensors"));
    deploy.write(&place.path("out.safetensors"));
    let open = |name: &str| Checkpoint::open(place.path(name)).expect("a file");
    let (train, deploy) = (open("in.safetensors"), open("out.safetensors"));
    let plan = plan::plan(train.tensors(), &recipe, &Options::default()).expect("a plan");
    verify(&train, &plan, Deployed::File(&deploy), &Default::default()).expect("a verdict")
}

#[test]
fn arithmetic_in_half_types_is_accepted_and_a_lost_weight_is_not() {
    let (place, mut random) = (Place::new(), Random(5));
    let like = |weight: f64, gamma: f64, variance: f64| Sizes {
        weight,
        gamma,
        variance,
    };
    let sizes = [
        like(0.1, 1.0, 1.0),
        like(1e-3, 1.0, 1.0),
        // Weights, scales and variances among the subnormals of f16.
        like(1e-6, 1.0, 1.0),
        like(3e-5, 0.5, 4.0),
        like(0.1, 1e-5, 1.0),
        like(0.1, 1e-3, 2e-5),
        like(1e-4, 1e-3, 1e-2),
    ];
    for half in HALVES {
        for sizes in sizes {
            for _ in 0..20 {
                let files = pair(half, sizes, &mut random);
                let found = verdict(&place, &files);
                assert!(
                    found.accepted(),
                    "{:?} {sizes:?}: {:?}",
                    half.dtype,
                    found.blocks
                );
                // The largest weight of a row, lost.
                let [train, mut deploy] = files;
                let bytes = &mut deploy.at("net.out.weight").bytes;
                let size = |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]) & 0x7fff;
                let pairs = bytes.chunks_exact(2).enumerate();
                let (largest, _) = pairs.max_by_key(|(_, pair)| size(pair)).expect("a weight");
                bytes[2 * largest..][..2].fill(0);
                let found = verdict(&place, &[train, deploy]);
                assert!(!found.accepted(), "{:?} {sizes:?}", half.dtype);
            }
        }
    }
}
