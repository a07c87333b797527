//! What `fuse` writes is the plain fold, whatever the slabs and the workers: in f64, in the order of the terms, rounded once.

use std::ops::ControlFlow;

use crate::support::Random;
use crate::support::file::{Place, block, norm, recipe as recipe_of, tensor};
use crate::support::forge::File;
use repfuse::algebra::{Geometry, Values, fold};
use repfuse::fuse;
use repfuse::plan::{self, Options, Plan};
use repfuse::recipe;
use repfuse::tensor::Reader;
use repfuse::tensor::{Checkpoint, Float};

fn fused(place: &Place, file: &Checkpoint, plan: &Plan, threads: usize) -> Vec<u8> {
    let name = format!("deploy-{threads}");
    let options = fuse::Options {
        shard_size: None,
        replace: false,
        threads: Some(threads),
    };
    fuse::fuse(file, plan, &place.path(&name), &options, &|_| {
        ControlFlow::Continue(())
    })
    .and_then(|unfinished| Ok(unfinished.finish()?))
    .expect("a file that fuses");
    place.read(&name)
}

fn plan(file: &Checkpoint, recipe: &str, dtype: Option<Float>) -> Plan {
    let recipe = recipe::parse(recipe, "own").expect("a recipe");
    let options = Options {
        dtype,
        ..Options::default()
    };
    plan::plan(file.tensors(), &recipe, &options).expect("a plan")
}

/// One number, rounded by the language. (How the half types round is tested beside them.)
fn stored(x: f64, float: Float) -> Vec<u8> {
    match float {
        Float::F64 => x.to_le_bytes().to_vec(),
        _ => (x as f32).to_le_bytes().to_vec(),
    }
}

/// The scale and shift of a batch norm, from its four vectors.
fn affine(file: &File, module: &str, o: usize) -> [f64; 2] {
    let [weight, bias, mean, var] = ["weight", "bias", "running_mean", "running_var"]
        .map(|end| f64::from(file.tensors[&format!("{module}.{end}")].values()[o]));
    let scale = weight / (var + 1e-5).sqrt();
    [scale, bias - mean * scale]
}

#[test]
fn a_block_of_many_slabs_is_folded_as_on_paper() {
    let (channels, mut random) = (160, Random(11));
    let mut made = File::default();
    block(&mut made, "stage0.0", channels, &mut random);
    norm(&mut made, "stage0.0.rbr_identity", channels, &mut random);
    let place = Place::new();
    made.write(&place.path("train"));
    let file = Checkpoint::open(place.path("train")).expect("a checkpoint");
    let (recipe, text) = recipe::source("repvgg").expect("a recipe");
    assert_eq!(recipe.eps, Some(1e-5));

    let dense = made.tensors["stage0.0.rbr_dense.conv.weight"].values();
    let point = made.tensors["stage0.0.rbr_1x1.conv.weight"].values();
    for float in [Float::F32, Float::F64] {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for o in 0..channels {
            let [dense_bn, point_bn, identity_bn] = ["rbr_dense.bn", "rbr_1x1.bn", "rbr_identity"]
                .map(|branch| affine(&made, &format!("stage0.0.{branch}"), o));
            for i in 0..channels {
                for tap in 0..9 {
                    let mut w = dense_bn[0] * f64::from(dense[(o * channels + i) * 9 + tap]);
                    if tap == 4 {
                        w += point_bn[0] * f64::from(point[o * channels + i]);
                        if i == o {
                            w += identity_bn[0];
                        }
                    }
                    weights.extend(stored(w, float));
                }
            }
            biases.extend(stored(dense_bn[1] + point_bn[1] + identity_bn[1], float));
        }
        let bytes = fused(&place, &file, &plan(&file, text, Some(float)), 3);
        std::fs::remove_file(place.path("deploy-3")).expect("it is there");
        place.write("deploy", bytes);
        let deploy = Checkpoint::open(place.path("deploy")).expect("a checkpoint");
        for (end, expected) in [("weight", weights), ("bias", biases)] {
            let tensor = deploy
                .get(&format!("stage0.0.rbr_reparam.{end}"))
                .expect("a tensor");
            let mut found = vec![0; tensor.byte_len() as usize];
            deploy.read_at(tensor, 0, &mut found).expect("its bytes");
            assert!(found == expected, "{end} as {float}");
        }
    }
}

/// Every kind of term, each in blocks of several slabs.
const RECIPE: &str = r#"
  { "at": "{p}.up.weight", "fuse": { "{p}.up": { "sum": [
      { "seq": [{ "conv": "{p}.up", "transposed": true }, { "bn": "{p}.up_bn" }] },
      { "seq": [{ "conv": "{p}.up_small", "bias": "optional", "transposed": true }, { "scale": 0.5 }] } ] } } },
  { "at": "{p}.inner.weight", "fuse": { "{p}.composed": { "sum": [
      { "seq": [{ "conv": "{p}.inner", "groups": 1 }, { "bn": "{p}.bn1" }, { "conv": "{p}.outer" }, { "bn": "{p}.bn2" }] },
      { "conv": "{p}.beside", "bias": "optional" } ] } } },
  { "at": "{p}.grouped.weight", "fuse": { "{p}.wide": { "sum": [
      { "seq": [{ "conv": "{p}.grouped", "bias": "optional", "groups": 4 }, { "mean": [3, 3] }, { "bn": "{p}.bn3" }] },
      { "conv": "{p}.atrous", "bias": "optional", "groups": 4, "dilation": [2, 2] },
      "identity" ] } } }"#;

fn every_kind(random: &mut Random) -> File {
    let mut file = File::default();
    for (name, shape) in [
        ("m.up.weight", &[160, 80, 4, 4][..]),
        ("m.up_small.weight", &[160, 80, 2, 2]),
        ("m.inner.weight", &[96, 96]),
        ("m.outer.weight", &[160, 96, 3, 3]),
        ("m.beside.weight", &[160, 96, 3, 3]),
        ("m.grouped.weight", &[256, 64, 3, 3]),
        ("m.atrous.weight", &[256, 64, 3, 3]),
        ("head.weight", &[300, 500]),
    ] {
        tensor(&mut file, name, shape, random);
    }
    for (name, channels) in [("up_bn", 80), ("bn1", 96), ("bn2", 160), ("bn3", 256)] {
        norm(&mut file, &format!("m.{name}"), channels, random);
    }
    // Many small copies side by side, some of them empty.
    for i in 0..500 {
        tensor(&mut file, &format!("small.{i}"), &[i % 7, 3], random);
    }
    file
}

/// What is stored as `[in, out, taps]` as `[out, in, taps]` with the taps turned.
fn as_plain(stored: &[f64], g: &Geometry) -> Vec<f64> {
    assert_eq!(g.groups(), 1);
    let mut plain = Vec::new();
    for o in 0..g.out() {
        for i in 0..g.inputs() {
            let taps = &stored[(i * g.out() + o) * g.taps()..][..g.taps()];
            plain.extend(taps.iter().rev());
        }
    }
    plain
}

#[test]
fn neither_slabs_nor_workers_show_in_the_file() {
    let made = every_kind(&mut Random(2));
    let place = Place::new();
    made.write(&place.path("train"));
    let file = Checkpoint::open(place.path("train")).expect("a checkpoint");
    let plan = plan(&file, &recipe_of(RECIPE), None);
    assert_eq!(plan.blocks().len(), 3);
    let one = fused(&place, &file, &plan, 1);
    for threads in [2, 8] {
        assert!(
            fused(&place, &file, &plan, threads) == one,
            "{threads} workers"
        );
    }
    let deploy = Checkpoint::open(place.path("deploy-1")).expect("a checkpoint");
    let mut reader = Reader::new(&deploy, 1 << 16);
    for fused in plan.blocks().iter().flat_map(|block| block.fused()) {
        let whole = fold(fused.expr(), &mut Reader::new(&file, 1 << 16)).expect("a fold");
        let g = *fused.geometry();
        let [weight, bias] = ["weight", "bias"].map(|end| {
            let name = format!("{}.{end}", fused.module());
            deploy.get(&name).expect("a tensor").clone()
        });
        assert!(
            weight.byte_len() > 2 << 18,
            "{weight} has more than two slabs"
        );
        let mut kernel = reader.vector(&weight, 0, weight.len()).expect("numbers");
        if g.transposed() {
            kernel = as_plain(&kernel, &g);
        }
        let rounded =
            |values: &[f64]| -> Vec<f64> { values.iter().map(|x| f64::from(*x as f32)).collect() };
        assert!(kernel == rounded(whole.kernel()), "{weight}");
        let bias = reader.vector(&bias, 0, g.out()).expect("numbers");
        assert_eq!(bias, rounded(whole.bias()), "{}", fused.module());
    }
    let written = File::read(&place.path("deploy-1"));
    let copied = made
        .tensors
        .iter()
        .filter(|(name, _)| !name.starts_with("m."));
    for (name, tensor) in copied {
        assert_eq!(written.tensors.get(name), Some(tensor), "`{name}`");
    }
}
