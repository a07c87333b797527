//! Folded in f64 and rounded once, whatever the stored types: bit for bit against the formula written out.

use std::path::Path;

use crate::support::Random;
use crate::support::command::repfuse;
use crate::support::forge::{File, Held};
use half::{bf16, f16};
use safetensors::tensor::Dtype;

const RECIPE: &str = r#"{"name": "own", "about": "a test", "eps": 1e-5, "blocks": [{
    "at": "{p}.conv.weight",
    "fuse": {"{p}.fused": {"sum": [
        {"seq": [{"conv": "{p}.conv"}, {"bn": "{p}.bn"}]},
        {"seq": [{"conv": "{p}.point"}, {"bn": "{p}.point_bn"}]},
        {"bn": "{p}.identity"}]}}}]}"#;

const CHANNELS: usize = 24;

fn size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// Nearest even, from f64 at once: through a wider type with an odd last bit, as the format's values are few.
fn store(dtype: Dtype, x: f64) -> Vec<u8> {
    match dtype {
        Dtype::F64 => x.to_le_bytes().to_vec(),
        Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
        Dtype::F16 => nearest(x, |b| f16::from_bits(b).to_f64())
            .to_le_bytes()
            .to_vec(),
        _ => nearest(x, |b| bf16::from_bits(b).to_f64())
            .to_le_bytes()
            .to_vec(),
    }
}

/// The 16-bit pattern whose value is nearest, by bisection over the patterns of its sign.
fn nearest(x: f64, value: impl Fn(u16) -> f64) -> u16 {
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let (mut low, mut high) = (0u16, 0x7bff);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if value(middle) <= x.abs() {
            low = middle
        } else {
            high = middle
        }
    }
    let (below, above) = (x.abs() - value(low), value(high) - x.abs());
    let up = above < below || (above == below && low % 2 == 1);
    sign | if up { high } else { low }
}

fn load(held: &Held) -> Vec<f64> {
    let one = |b: &[u8]| match held.dtype {
        Dtype::F64 => f64::from_le_bytes(b.try_into().expect("8 bytes")),
        Dtype::F32 => f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))),
        Dtype::F16 => f16::from_le_bytes(b.try_into().expect("2 bytes")).to_f64(),
        _ => bf16::from_le_bytes(b.try_into().expect("2 bytes")).to_f64(),
    };
    held.bytes.chunks_exact(size(held.dtype)).map(one).collect()
}

/// A block with weights of one type and norms of another.
fn block(weights: Dtype, norms: Dtype) -> File {
    let mut random = Random(17);
    let mut file = File::default();
    let mut add = |name: &str, dtype: Dtype, shape: &[usize], low: f64, high: f64| {
        let count: usize = shape.iter().product();
        let bytes = (0..count)
            .flat_map(|_| store(dtype, random.between(low, high)))
            .collect();
        file.tensors.insert(
            format!("b.{name}"),
            Held {
                dtype,
                shape: shape.to_vec(),
                bytes,
            },
        );
    };
    add(
        "conv.weight",
        weights,
        &[CHANNELS, CHANNELS, 3, 3],
        -1.0,
        1.0,
    );
    add(
        "point.weight",
        weights,
        &[CHANNELS, CHANNELS, 1, 1],
        -1.0,
        1.0,
    );
    for norm in ["bn", "point_bn", "identity"] {
        add(&format!("{norm}.weight"), norms, &[CHANNELS], 0.5, 1.5);
        add(&format!("{norm}.bias"), norms, &[CHANNELS], -1.0, 1.0);
        add(
            &format!("{norm}.running_mean"),
            norms,
            &[CHANNELS],
            -1.0,
            1.0,
        );
        add(
            &format!("{norm}.running_var"),
            norms,
            &[CHANNELS],
            0.01,
            2.0,
        );
    }
    file
}

fn fuse(file: &File, directory: &Path, dtype: &str) -> File {
    file.write(&directory.join("in.safetensors"));
    std::fs::write(directory.join("own.json"), RECIPE).expect("a file");
    let output = repfuse()
        .current_dir(directory)
        .args([
            "fuse",
            "in.safetensors",
            "out.safetensors",
            "--recipe",
            "own.json",
            "--verify",
            "--force",
            "--dtype",
            dtype,
        ])
        .output()
        .expect("the command runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    File::read(&directory.join("out.safetensors"))
}

/// The fused kernel and bias in f64, by the textbook.
fn expected(file: &File) -> (Vec<f64>, Vec<f64>) {
    let get = |name: &str| load(&file.tensors[&format!("b.{name}")]);
    let norm = |name: &str| {
        let [weight, bias, mean, var] = ["weight", "bias", "running_mean", "running_var"]
            .map(|end| get(&format!("{name}.{end}")));
        let scale: Vec<f64> = (0..CHANNELS)
            .map(|o| weight[o] / (var[o] + 1e-5).sqrt())
            .collect();
        let shift: Vec<f64> = (0..CHANNELS)
            .map(|o| bias[o] - mean[o] * scale[o])
            .collect();
        (scale, shift)
    };
    let [(s3, b3), (s1, b1), (si, bi)] = ["bn", "point_bn", "identity"].map(norm);
    let (conv, point) = (get("conv.weight"), get("point.weight"));
    let kernel = (0..CHANNELS * CHANNELS * 9).map(|i| {
        let (pair, tap) = (i / 9, i % 9);
        let (o, input) = (pair / CHANNELS, pair % CHANNELS);
        let mut w = conv[i] * s3[o];
        if tap == 4 {
            w += point[pair] * s1[o];
            if o == input {
                w += si[o];
            }
        }
        w
    });
    (
        kernel.collect(),
        (0..CHANNELS).map(|o| b3[o] + b1[o] + bi[o]).collect(),
    )
}

#[test]
fn every_weight_is_the_exact_fold_rounded_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let types = [
        ("f64", Dtype::F64),
        ("f32", Dtype::F32),
        ("f16", Dtype::F16),
        ("bf16", Dtype::BF16),
    ];
    for (_, weights) in types {
        for (_, norms) in types {
            let file = block(weights, norms);
            let (kernel, bias) = expected(&file);
            // PlannedConv tensors keep the type of the weights, or take the one that is asked for.
            let asked = types
                .iter()
                .filter(|(_, dtype)| *dtype != Dtype::F64)
                .copied();
            for (flag, stored) in [("keep", weights)].into_iter().chain(asked) {
                let fused = fuse(&file, directory.path(), flag);
                for (name, exact) in [("b.fused.weight", &kernel), ("b.fused.bias", &bias)] {
                    let held = &fused.tensors[name];
                    assert_eq!(
                        held.dtype, stored,
                        "{name}, {weights:?} with {norms:?} norms, --dtype {flag}"
                    );
                    let want: Vec<u8> = exact.iter().flat_map(|x| store(stored, *x)).collect();
                    let off = held
                        .bytes
                        .chunks(size(stored))
                        .zip(want.chunks(size(stored)))
                        .filter(|(a, b)| a != b)
                        .count();
                    assert!(
                        off == 0,
                        "{off} of {} in {name}, {weights:?} with {norms:?} norms, --dtype {flag}",
                        exact.len()
                    );
                }
            }
        }
    }
}
