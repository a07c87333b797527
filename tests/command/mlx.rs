//! Files of MLX: convs with the channels last come out as the transposition of what the ordinary file gives.

use std::collections::BTreeMap;

use crate::support::fixtures::{Case, cases};
use crate::support::forge::{File, Held};
use crate::support::tiny::Tiny;

/// A tensor with its second dimension last, as MLX has the weights of convs.
fn last(held: &Held) -> Held {
    let [out, inputs] = [held.shape[0], held.shape[1]];
    let taps: usize = held.shape[2..].iter().product();
    let size = held.bytes.len() / (out * inputs * taps).max(1);
    let mut bytes = Vec::with_capacity(held.bytes.len());
    for o in 0..out {
        for tap in 0..taps {
            for i in 0..inputs {
                let at = ((o * inputs + i) * taps + tap) * size;
                bytes.extend_from_slice(&held.bytes[at..at + size]);
            }
        }
    }
    let mut shape = held.shape.clone();
    let inputs = shape.remove(1);
    shape.push(inputs);
    Held {
        dtype: held.dtype,
        shape,
        bytes,
    }
}

fn as_mlx(file: &File) -> File {
    let turned = |(name, held): (&String, &Held)| {
        let is_conv = match held.shape.len() {
            3 => name.ends_with(".weight"),
            4 | 5 => true,
            _ => false,
        };
        (
            name.clone(),
            if is_conv { last(held) } else { held.clone() },
        )
    };
    File {
        tensors: file.tensors.iter().map(turned).collect(),
        metadata: BTreeMap::from([("format".to_owned(), "mlx".to_owned())]),
    }
}

/// Fuses a file, by name where a fixture is not detected.
fn fused(tiny: &Tiny, file: &File, case: &Case) -> Result<File, String> {
    file.write(&tiny.path("in.safetensors"));
    let mut args = vec![
        "fuse",
        "in.safetensors",
        "out.safetensors",
        "--force",
        "--verify",
    ];
    if !case.detect {
        args.extend(["--recipe", &case.recipe]);
    }
    let ran = tiny.run(&args);
    match ran.status {
        0 => Ok(File::read(&tiny.path("out.safetensors"))),
        _ => Err(ran.stderr),
    }
}

#[test]
fn files_of_mlx_fold_as_the_others_bit_for_bit() {
    let tiny = Tiny::empty();
    let (mut same, mut refused, mut ranks) = (0, 0, [0; 6]);
    let mut seen = std::collections::BTreeSet::new();
    for case in cases() {
        // One fixture of each recipe.
        if !seen.insert(case.recipe.clone()) {
            continue;
        }
        let file = File::read(&case.train);
        let plain = fused(&tiny, &file, &case).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        match fused(&tiny, &as_mlx(&file), &case) {
            Ok(mlx) => {
                assert_eq!(mlx.metadata["format"], "mlx");
                assert!(mlx.tensors == as_mlx(&plain).tensors, "{}", case.name);
                same += 1;
                plain
                    .tensors
                    .values()
                    .for_each(|held| ranks[held.shape.len().min(5)] += 1);
            }
            Err(why) => {
                assert!(
                    why.contains("` is a transposed conv, which is not read from a file of `format: mlx`; store the file as PyTorch does"),
                    "{}: {why}",
                    case.name
                );
                refused += 1;
            }
        }
    }
    assert!(same > 70 && refused < 6, "{same} {refused}");
    assert!(ranks[2..5].iter().all(|n| *n > 0), "{ranks:?}");
}

#[test]
fn shapes_and_places_of_mlx_are_those_of_the_file() {
    let mut tiny = Tiny::network();
    tiny.file = as_mlx(&tiny.file);
    tiny.write();
    let args = ["fuse", "train.safetensors", "out.safetensors", "--force"];
    let table = tiny.run(&[&args[..], &["--dry-run"]].concat()).stdout;
    assert!(
        table.contains("4×3×3×3") || table.contains("4x3x3x3"),
        "{table}"
    );
    assert!(table.contains("8×3×3×4"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&tiny.run(&[&args[..], &["--json"]].concat()).stdout).expect("JSON");
    let shape = &json["blocks"][4]["outputs"][0]["weight_shape"];
    assert_eq!(shape, &serde_json::json!([8, 3, 3, 4]));
    // The place of a number, in the training form and in the deploy form.
    let mut broken = File::read(&tiny.path("out.safetensors"));
    let at = |[o, y, x, i]: [usize; 4]| ((o * 3 + y) * 3 + x) * 4 + i;
    broken
        .at("stage2.0.rbr_reparam.weight")
        .edit(|v| v[at([5, 2, 0, 1])] += 0.5);
    broken.write(&tiny.path("out.safetensors"));
    let ran = tiny.run(&["verify", "train.safetensors", "out.safetensors"]);
    let expected = "`stage2.0.rbr_reparam.weight[5,2,0,1]` is ";
    assert!(ran.status == 1 && ran.stdout.contains(expected), "{ran:?}");
    tiny.file
        .at("stage2.0.rbr_dense.conv.weight")
        .edit(|v| v[at([5, 2, 0, 1])] = f32::NAN);
    tiny.write();
    let ran = tiny.run(&args);
    let expected = "`stage2.0.rbr_dense.conv.weight` is NaN at [5, 2, 0, 1]";
    assert!(ran.status == 2 && ran.stderr.contains(expected), "{ran:?}");
}

#[test]
fn files_of_mlx_are_written_as_such_only() {
    let mut tiny = Tiny::network();
    tiny.file = as_mlx(&tiny.file);
    tiny.write();
    let ran = tiny.run(&["fuse", "train.safetensors", "out.pt"]);
    let expected = "`out.pt` would be a file of PyTorch, whose convs are [out, in, kh, kw]; the input has `format: mlx`, and so \
                    [out, kh, kw, in]: write a `.safetensors`";
    assert!(ran.status == 2 && ran.stderr.contains(expected), "{ran:?}");
    // Halves, and shards.
    for more in [&["--dtype-all", "f16"][..], &["--shard-size", "2KB"]] {
        let out = match more[0] {
            "--shard-size" => "out.safetensors.index.json",
            _ => "out.safetensors",
        };
        let ran = tiny.run(&[&["fuse", "train.safetensors", out, "--verify"], more].concat());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let ran = tiny.run(&["verify", "train.safetensors", out]);
        assert_eq!(ran.status, 0, "{}", ran.stdout);
    }
}
