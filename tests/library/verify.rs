//! What `verify` must reject, each on a real checkpoint, and what it must accept.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::support::Random;
use crate::support::file::{norm, tensor};
use crate::support::forge::File;
use repfuse::fuse;
use repfuse::plan::{self, Options};
use repfuse::recipe::{self, Recipe};
use repfuse::tensor::Checkpoint;
use repfuse::verify::{Allowance, Deployed, Verdict, verify};
use tempfile::TempDir;

/// A network with blocks that have an identity and blocks that have none.
const TRAIN: &str = "repvgg/plain.train.safetensors";
const DEPLOY: &str = "repvgg/plain.deploy.safetensors";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// A training form, its recipe, and a directory for what becomes of it.
struct Bench {
    train: PathBuf,
    recipe: Recipe,
    directory: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let recipe = recipe::source("repvgg").expect("a recipe").0;
        Bench {
            train: fixture(TRAIN),
            recipe,
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Fuses `train` by `recipe`.
    fn fuse(&self, train: &Path, recipe: &Recipe) -> File {
        let checkpoint = Checkpoint::open(train).expect("a checkpoint");
        let plan = plan::plan(checkpoint.tensors(), recipe, &Options::default()).expect("a plan");
        let out = self.path("fused.safetensors");
        let options = fuse::Options {
            shard_size: None,
            replace: true,
            threads: None,
        };
        let written = fuse::fuse(&checkpoint, &plan, &out, &options, &|_| {
            ControlFlow::Continue(())
        });
        written.expect("a file").finish().expect("a destination");
        File::read(&out)
    }

    fn fused(&self) -> File {
        self.fuse(&self.train, &self.recipe)
    }

    fn verify(&self, deployed: &File) -> Verdict {
        let path = self.path("altered.safetensors");
        deployed.write(&path);
        let checkpoint = Checkpoint::open(&self.train).expect("a checkpoint");
        let plan =
            plan::plan(checkpoint.tensors(), &self.recipe, &Options::default()).expect("a plan");
        let file = Checkpoint::open(&path).expect("a checkpoint");
        verify(
            &checkpoint,
            &plan,
            Deployed::File(&file),
            &Default::default(),
        )
        .expect("a verdict")
    }

    /// The module of a block with an identity and as many input as output channels.
    fn square(&self) -> String {
        let train = File::read(&self.train);
        let identity = train
            .tensors
            .keys()
            .find_map(|name| name.strip_suffix(".rbr_identity.weight"));
        format!(
            "{}.rbr_reparam",
            identity.expect("a block with an identity")
        )
    }
}

fn rejects(verdict: &Verdict, module: &str) -> (String, Vec<usize>) {
    assert!(!verdict.accepted());
    let failed: Vec<&str> = verdict
        .blocks
        .iter()
        .filter(|b| !b.accepted)
        .map(|b| b.module.as_str())
        .collect();
    assert_eq!(failed, [module], "only this block fails");
    let block = verdict
        .blocks
        .iter()
        .find(|b| b.module == module)
        .expect("the block");
    let at = block.at.clone().expect("a place");
    (at.tensor, at.index)
}

#[test]
fn accepts_what_fuse_writes_and_allows_it_one_rounding() {
    let bench = Bench::new();
    let verdict = bench.verify(&bench.fused());
    assert!(verdict.accepted(), "{verdict:?}");
    assert_eq!(verdict.allowance, Allowance::OneRounding);
    // A fold that is rounded once comes close to the bound and cannot exceed it.
    assert!(
        verdict.worst_ratio() > 0.5 && verdict.worst_ratio() <= 1.0,
        "{}",
        verdict.worst_ratio()
    );
    assert!(
        verdict
            .blocks
            .iter()
            .all(|b| b.impulses[0] == b.impulses[1])
    );
}

#[test]
fn accepts_the_authors_file_and_says_what_it_was_allowed() {
    let bench = Bench::new();
    let verdict = bench.verify(&File::read(&fixture(DEPLOY)));
    assert!(verdict.accepted(), "{verdict:?}");
    assert_eq!(verdict.allowance, Allowance::Arithmetic);
}

#[test]
fn rejects_a_bias_of_zero() {
    let bench = Bench::new();
    let (mut file, module) = (bench.fused(), bench.square());
    file.at(&format!("{module}.bias")).edit(|b| b.fill(0.0));
    let (tensor, index) = rejects(&bench.verify(&file), &module);
    assert_eq!((tensor, index.len()), (format!("{module}.bias"), 1));
}

/// Wherever the weight is, and whoever wrote the file.
#[test]
fn rejects_any_one_weight_off_by_1e_5_and_names_it() {
    let bench = Bench::new();
    let module = bench.square();
    for mut file in [bench.fused(), File::read(&fixture(DEPLOY))] {
        let name = format!("{module}.weight");
        let whole = file.at(&name).clone();
        let count = whole.values().len();
        for at in (0..count).step_by(37) {
            file.at(&name).edit(|w| w[at] *= 1.0 + 1e-5);
            let (tensor, index) = rejects(&bench.verify(&file), &module);
            assert_eq!(tensor, name);
            let flat = index
                .iter()
                .zip(&whole.shape)
                .fold(0, |flat, (i, n)| flat * n + i);
            assert_eq!(flat, at, "{index:?} of {:?}", whole.shape);
            *file.at(&name) = whole.clone();
        }
        assert!(bench.verify(&file).accepted());
    }
}

/// How wide a conv is makes no difference to what its weights may be off by, for each of them is folded by itself.
#[test]
fn rejects_a_weight_off_by_1e_5_in_a_wide_conv_of_another_converter() {
    let mut bench = Bench::new();
    let (mut train, mut random) = (File::default(), Random(6));
    for (branch, k) in [("rbr_dense", 3), ("rbr_1x1", 1)] {
        let weight = format!("stage0.{branch}.conv.weight");
        tensor(&mut train, &weight, &[2, 4096, k, k], &mut random);
        norm(&mut train, &format!("stage0.{branch}.bn"), 2, &mut random);
    }
    bench.train = bench.path("wide.safetensors");
    train.write(&bench.train);
    let mut file = bench.fused();
    file.metadata.clear();
    let name = "stage0.rbr_reparam.weight";
    let whole = file.at(name).clone();
    for at in [0, 40_000, 2 * 4096 * 9 - 1] {
        file.at(name).edit(|w| w[at] *= 1.0 + 1e-5);
        let verdict = bench.verify(&file);
        assert_eq!(verdict.allowance, Allowance::Arithmetic);
        rejects(&verdict, "stage0.rbr_reparam");
        *file.at(name) = whole.clone();
    }
    assert!(bench.verify(&file).accepted());
}

/// A sum of a thousand products has a worst case beyond any of its values; nobody's arithmetic comes near it.
#[test]
fn rejects_another_kernel_of_another_converter_behind_an_inner_conv() {
    let (mut train, mut random) = (File::default(), Random(8));
    tensor(&mut train, "a.first.weight", &[1024, 4], &mut random);
    tensor(&mut train, "a.then.weight", &[4, 1024, 3, 3], &mut random);
    for held in train.tensors.values_mut() {
        let values = held.values();
        held.dtype = safetensors::Dtype::BF16;
        held.bytes = values
            .iter()
            .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
            .collect();
    }
    let mut bench = Bench::new();
    bench.recipe = recipe::parse(
        r#"{"name": "own", "about": "a test", "blocks": [{"at": "{p}.first.weight",
            "fuse": {"{p}.out": {"seq": [{"conv": "{p}.first", "bias": "optional", "groups": 1}, {"conv": "{p}.then", "bias": "optional"}]}}}]}"#,
        "own",
    )
    .expect("a recipe");
    bench.train = bench.path("inner.safetensors");
    train.write(&bench.train);
    let mut file = bench.fused();
    file.metadata.clear();
    let accepted = bench.verify(&file);
    assert!(accepted.accepted(), "{accepted:?}");
    assert_eq!(accepted.allowance, Allowance::Arithmetic);
    let whole = file.at("a.out.weight").bytes.clone();
    for change in [|_: u8| 0, |high: u8| high ^ 0x80] {
        // The high byte of each number: its sign and most of its exponent.
        let bytes = &mut file.at("a.out.weight").bytes;
        bytes.clone_from(&whole);
        bytes
            .iter_mut()
            .skip(1)
            .step_by(2)
            .for_each(|b| *b = change(*b));
        rejects(&bench.verify(&file), "a.out");
    }
}

/// A coarse bias is no excuse for the weights beside it.
#[test]
fn holds_kernel_and_bias_each_to_its_own_type() {
    let bench = Bench::new();
    let module = bench.square();
    let mut file = bench.fused();
    let bias = file.at(&format!("{module}.bias"));
    let values = bias.values();
    bias.dtype = safetensors::Dtype::F16;
    bias.bytes = values
        .iter()
        .flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
        .collect();
    // repfuse itself stores the tensors of a conv in one type.
    let verdict = bench.verify(&file);
    assert!(!verdict.accepted());
    let said: Vec<String> = verdict.failures.iter().map(ToString::to_string).collect();
    assert!(
        said[0].ends_with(
            "is f16; expected f32, the type of the training form, or one type for all convs"
        ),
        "{said:?}"
    );
    file.metadata.clear();
    assert!(bench.verify(&file).accepted());
    file.at(&format!("{module}.weight"))
        .edit(|w| w[5] *= 1.0 + 1e-5);
    let (tensor, index) = rejects(&bench.verify(&file), &module);
    assert_eq!((tensor, index.len()), (format!("{module}.weight"), 4));
}

#[test]
fn rejects_a_transposed_kernel() {
    let bench = Bench::new();
    let (mut file, module) = (bench.fused(), bench.square());
    file.at(&format!("{module}.weight")).edit(|w| {
        for kernel in w.chunks_exact_mut(9) {
            kernel.swap(1, 3);
            kernel.swap(2, 6);
            kernel.swap(5, 7);
        }
    });
    rejects(&bench.verify(&file), &module);
}

#[test]
fn rejects_an_identity_tap_shifted_by_one_channel() {
    let bench = Bench::new();
    let (mut file, module) = (bench.fused(), bench.square());
    let place = module.strip_suffix(".rbr_reparam").expect("a module");
    let train = File::read(&bench.train);
    let norm = |end: &str| train.tensors[&format!("{place}.rbr_identity.{end}")].values();
    let (gamma, var) = (norm("weight"), norm("running_var"));
    let weight = file.at(&format!("{module}.weight"));
    let inputs = weight.shape[1];
    weight.edit(|w| {
        for o in 0..gamma.len() {
            let tap = gamma[o] / (var[o] + 1e-5).sqrt();
            w[(o * inputs + o % inputs) * 9 + 4] -= tap;
            w[(o * inputs + (o + 1) % inputs) * 9 + 4] += tap;
        }
    });
    let (_, index) = rejects(&bench.verify(&file), &module);
    assert_eq!(index[2..], [1, 1], "the centre tap");
}

#[test]
fn rejects_branches_whose_norms_are_swapped() {
    let bench = Bench::new();
    let module = bench.square();
    let place = module.strip_suffix(".rbr_reparam").expect("a module");
    let mut swapped = File::read(&bench.train);
    for end in ["weight", "bias", "running_mean", "running_var"] {
        let [a, b] = ["rbr_dense", "rbr_1x1"].map(|branch| format!("{place}.{branch}.bn.{end}"));
        let held = swapped.at(&a).clone();
        *swapped.at(&a) = std::mem::replace(swapped.at(&b), held);
    }
    let path = bench.path("swapped.safetensors");
    swapped.write(&path);
    let fused = bench.fuse(&path, &bench.recipe);
    rejects(&bench.verify(&fused), &module);
}

#[test]
fn rejects_another_eps_in_one_branch() {
    let bench = Bench::new();
    let (_, text) = recipe::source("repvgg").expect("a recipe");
    let other = text.replace(
        r#""bn": "{p}.rbr_1x1.bn" }"#,
        r#""bn": "{p}.rbr_1x1.bn", "eps": 1e-3 }"#,
    );
    assert_ne!(text, other, "the recipe is written as this test expects");
    let fused = bench.fuse(
        &bench.train,
        &recipe::parse(&other, "other").expect("a recipe"),
    );
    let verdict = bench.verify(&fused);
    assert!(
        verdict
            .blocks
            .iter()
            .all(|b| !b.accepted && b.ratio > 100.0),
        "{verdict:?}"
    );
}

#[test]
fn rejects_bf16_rounding_in_an_f32_file() {
    let bench = Bench::new();
    let (mut file, module) = (bench.fused(), bench.square());
    file.at(&format!("{module}.weight")).edit(|w| {
        w.iter_mut()
            .for_each(|x| *x = half::bf16::from_f32(*x).to_f32())
    });
    rejects(&bench.verify(&file), &module);
}

#[test]
fn rejects_nan() {
    let bench = Bench::new();
    let (mut file, module) = (bench.fused(), bench.square());
    for end in ["weight", "bias"] {
        let name = format!("{module}.{end}");
        let whole = file.at(&name).clone();
        file.at(&name).edit(|x| x[3] = f32::NAN);
        let verdict = bench.verify(&file);
        let at = if end == "weight" {
            vec![0, 0, 1, 0]
        } else {
            vec![3]
        };
        assert_eq!(rejects(&verdict, &module), (name.clone(), at));
        assert!(verdict.worst_ratio().is_nan());
        *file.at(&name) = whole;
    }
}

#[test]
fn rejects_a_missing_conv() {
    let bench = Bench::new();
    let (mut file, module) = (bench.fused(), bench.square());
    file.tensors.remove(&format!("{module}.weight"));
    let verdict = bench.verify(&file);
    assert!(!verdict.accepted());
    assert!(
        verdict
            .failures_in_words()
            .contains(&format!("`{module}.weight` is missing")),
        "{:?}",
        verdict.failures
    );
}

#[test]
fn rejects_a_left_over_branch() {
    let bench = Bench::new();
    let mut file = bench.fused();
    let train = File::read(&bench.train);
    let (name, held) = train
        .tensors
        .iter()
        .find(|(name, _)| name.ends_with("rbr_1x1.conv.weight"))
        .expect("a branch");
    file.tensors.insert(name.clone(), held.clone());
    let verdict = bench.verify(&file);
    assert!(verdict.blocks.iter().all(|b| b.accepted));
    assert_eq!(
        verdict.failures_in_words(),
        [format!(
            "`{name}` is left over; the deploy form has no such tensor"
        )]
    );
}

#[test]
fn rejects_one_bit_of_a_copied_tensor() {
    let bench = Bench::new();
    let mut file = bench.fused();
    let copied = |name: &&String| !name.contains("rbr_reparam");
    let name = file
        .tensors
        .keys()
        .find(copied)
        .expect("a copied tensor")
        .clone();
    file.at(&name).bytes[5] ^= 1;
    let verdict = bench.verify(&file);
    assert!(verdict.blocks.iter().all(|b| b.accepted));
    assert_eq!(verdict.failures.len(), 1, "{:?}", verdict.failures);
    assert!(
        verdict.failures_in_words()[0].starts_with(&format!("`{name}[1]` is ")),
        "{:?}",
        verdict.failures
    );
    file.at(&name).bytes[5] ^= 1;
    assert!(bench.verify(&file).accepted());
}

#[test]
fn rejects_a_copied_tensor_in_another_type_or_shape() {
    let bench = Bench::new();
    let mut file = bench.fused();
    let name = file
        .tensors
        .iter()
        .find(|(name, held)| !name.contains("rbr_reparam") && held.shape.len() == 2);
    let name = name.expect("a matrix").0.clone();
    file.at(&name).shape.reverse();
    let verdict = bench.verify(&file);
    assert_eq!(verdict.failures.len(), 1);
    assert!(
        verdict.failures_in_words()[0].starts_with(&format!("`{name}` is F32 [")),
        "{:?}",
        verdict.failures
    );
}
