//! Deploy forms that another converter folded in half types: accepted also where its numbers are as small as the type has them.

use half::{bf16, f16};
use repfuse::plan::{self, Options};
use repfuse::recipe;
use repfuse::tensor::{Checkpoint, Float};
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

/// The same numbers in tensors of f32, as a converter leaves them that computes in half and fills layers of the default type.
fn widened(half: Half, file: &File) -> File {
    let mut wide = file.clone();
    for held in wide.tensors.values_mut() {
        let number = |pair: &[u8]| {
            let pair = [pair[0], pair[1]];
            match half.dtype {
                Dtype::F16 => f16::from_le_bytes(pair).to_f32(),
                _ => bf16::from_le_bytes(pair).to_f32(),
            }
        };
        let values: Vec<f32> = held.bytes.chunks_exact(2).map(number).collect();
        *held = Held::f32(&held.shape, &values);
    }
    wide
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

#[test]
fn half_numbers_in_f32_are_allowed_half_arithmetic_and_no_more() {
    let (place, mut random) = (Place::new(), Random(6));
    let sizes = Sizes {
        weight: 0.1,
        gamma: 1.0,
        variance: 1.0,
    };
    for half in HALVES {
        for _ in 0..20 {
            let [train, deploy] = pair(half, sizes, &mut random);
            let deploy = widened(half, &deploy);
            let found = verdict(&place, &[train.clone(), deploy.clone()]);
            assert!(found.accepted(), "{:?}: {:?}", half.dtype, found.blocks);
            // As numbers of f32 they are off by far.
            assert_eq!(
                found.blocks[0].types.map(|[_, of_file]| of_file),
                Some(Float::F32)
            );
            let changed = |change: &dyn Fn(&mut File)| {
                let mut deploy = deploy.clone();
                change(&mut deploy);
                verdict(&place, &[train.clone(), deploy]).accepted()
            };
            // A weight that is lost is a half number, too.
            let largest = |file: &mut File| {
                let bytes = &mut file.at("net.out.weight").bytes;
                let size =
                    |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]).abs();
                let weights = bytes.chunks_exact(4).enumerate();
                let (at, _) = weights
                    .max_by(|a, b| size(a.1).total_cmp(&size(b.1)))
                    .expect("a weight");
                bytes[4 * at..][..4].fill(0);
            };
            assert!(!changed(&largest), "{:?}: a lost weight", half.dtype);
            // One number that is none of the half type: the others were not computed in it.
            let finer = |file: &mut File| file.at("net.out.bias").bytes[0] ^= 1;
            assert!(!changed(&finer), "{:?}: a number of f32", half.dtype);
            // What repfuse wrote is rounded once.
            let ours = |file: &mut File| {
                let said = ("repfuse.version".to_owned(), "0.1.0".to_owned());
                file.metadata.extend([said]);
            };
            assert!(!changed(&ours), "{:?}: a file of repfuse", half.dtype);
        }
    }
}

#[test]
fn half_numbers_that_are_folded_from_f32_are_allowed_none_of_it() {
    let (place, mut random) = (Place::new(), Random(7));
    let sizes = Sizes {
        weight: 0.1,
        gamma: 1.0,
        variance: 1.0,
    };
    for half in HALVES {
        let [train, deploy] = pair(half, sizes, &mut random);
        let files = [widened(half, &train), widened(half, &deploy)];
        assert!(!verdict(&place, &files).accepted(), "{:?}", half.dtype);
    }
}
