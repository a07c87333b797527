//! The parts of the work by themselves: numbers to and from bytes, rows of a fold, the second reading, the conv engine.
//!
//! `cargo bench --bench kernels -- [NAME]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array4;
use repfuse::algebra::extent::POINT;
use repfuse::algebra::fold::{Folded, Scratch};
use repfuse::algebra::forward::{Input, Reading, Spikes, forward};
use repfuse::algebra::shape::resolve;
use repfuse::algebra::{Bn, Conv, Expr, Resolved};
use repfuse::conv2d::{Conv2dGeometry, conv2d};
use repfuse::tensor::Float;
use support::{Array, InMemory, Random};

type Tree = Expr<Array>;

fn conv(random: &mut Random, shape: [usize; 4], groups: usize) -> Tree {
    Expr::Conv(Conv {
        weight: random.array("weight", &shape, -1.0, 1.0),
        bias: None,
        dilation: POINT,
        groups: Some(groups),
        transposed: false,
        flipped: false,
        shared: false,
    })
}

fn norm(random: &mut Random, channels: usize) -> Tree {
    let mut vector = |label, low, high| random.array(label, &[channels], low, high);
    Expr::Bn(Bn {
        mean: vector("mean", -1.0, 1.0),
        var: vector("var", 0.5, 2.0),
        affine: Some([vector("weight", 0.5, 1.5), vector("bias", -1.0, 1.0)]),
        eps: 1e-5,
    })
}

/// Blocks as they are trained: 3×3 + 1×1 + identity; a large depthwise kernel with a small one; a 3×3 behind a 1×1.
fn blocks() -> [(&'static str, Resolved<Array>); 3] {
    let random = &mut Random(3);
    let branch = |random: &mut Random, shape: [usize; 4], groups: usize| {
        Expr::Seq(vec![conv(random, shape, groups), norm(random, shape[0])])
    };
    let repvgg = Expr::Sum(vec![
        branch(random, [256, 256, 3, 3], 1),
        branch(random, [256, 256, 1, 1], 1),
        norm(random, 256),
    ]);
    let depthwise = Expr::Sum(vec![
        branch(random, [1024, 1, 31, 31], 1024),
        branch(random, [1024, 1, 5, 5], 1024),
    ]);
    let inner = Expr::Seq(vec![
        branch(random, [256, 256, 1, 1], 1),
        branch(random, [256, 256, 3, 3], 1),
    ]);
    [
        ("repvgg 256", repvgg),
        ("depthwise 31×31", depthwise),
        ("1×1 then 3×3", inner),
    ]
    .map(|(name, tree)| (name, resolve(tree).expect("shapes that fit")))
}

/// Each element type, read and stored; the elements are those of one slab of f32.
fn numbers(c: &mut Criterion) {
    let mut values = vec![0.0; 1 << 16];
    let mut random = Random(5);
    values.fill_with(|| random.between(-1.0, 1.0));
    for float in [Float::F32, Float::F16, Float::Bf16, Float::F64] {
        let mut bytes = vec![0; values.len() * float.size()];
        let mut group = c.benchmark_group("numbers");
        group.throughput(Throughput::Elements(values.len() as u64));
        group.bench_function(BenchmarkId::new("encode", float), |b| {
            b.iter(|| black_box(float.encode(black_box(&values), &mut bytes)));
        });
        let mut decoded = values.clone();
        group.bench_function(BenchmarkId::new("decode", float), |b| {
            b.iter(|| float.decode(black_box(&bytes), black_box(&mut decoded)));
        });
    }
}

/// Every row of a block; what comes before the last conv is folded once per block, and counted in.
fn fold(c: &mut Criterion) {
    for (name, block) in blocks() {
        let geometry = *block.geometry();
        let mut row = vec![0.0; geometry.row_len()];
        let mut scratch = Scratch::default();
        let mut group = c.benchmark_group("fold");
        group.throughput(Throughput::Elements((geometry.out() * row.len()) as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let Ok(folded) = Folded::compile(&block, &mut InMemory);
                for o in 0..geometry.out() {
                    let Ok(_bias) = folded.row(o, &mut InMemory, &mut scratch, &mut row);
                    black_box(&row);
                }
            });
        });
    }
}

/// The impulses that `verify` sends through a block, one on each of 64 channels of every group.
fn impulses(c: &mut Criterion) {
    for (name, block) in blocks() {
        let geometry = *block.geometry();
        let per_group = geometry.in_per_group();
        let input = Input::Spikes(Spikes {
            per_group,
            channels: 0..per_group.min(64),
            amplitude: 1.0,
        });
        c.bench_function(&format!("impulses/{name}"), |b| {
            b.iter(|| {
                forward(
                    block.root(),
                    &input,
                    0..geometry.out(),
                    geometry.extent(),
                    Reading::Value,
                    &mut InMemory,
                )
            });
        });
    }
}

/// One image; `[channels, size, out, kernel, groups]`.
fn engine(c: &mut Criterion) {
    for [channels, size, out, k, groups] in [
        [256, 28, 256, 3, 1],
        [640, 14, 640, 1, 1],
        [256, 28, 256, 3, 32],
        [256, 14, 256, 31, 256],
    ] {
        let x = Array4::from_elem((1, channels, size, size), 0.5f32);
        let weight = Array4::from_elem((out, channels / groups, k, k), 0.25f32);
        let geometry = Conv2dGeometry {
            padding: (k / 2).into(),
            groups,
            ..Conv2dGeometry::default()
        };
        let mut group = c.benchmark_group("conv2d");
        // Multiply-adds.
        group.throughput(Throughput::Elements((weight.len() * size * size) as u64));
        let name = format!(
            "{channels}×{size}×{size}, {out}×{}×{k}×{k}",
            channels / groups
        );
        group.bench_function(name, |b| {
            b.iter(|| conv2d(x.view(), weight.view(), None, &geometry));
        });
    }
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(20).without_plots();
    targets = numbers, fold, impulses, engine
}
criterion_main!(kernels);
