//! Weights that a file keeps in parts: computed, then folded like any weight, and said; copied in parts where nothing is folded.

use repfuse::tensor::Checkpoint;

use crate::support::forge::{File, Held};
use crate::support::tiny::Tiny;

const WEIGHT: &str = "stage1.1.rbr_dense.conv.weight";
const LINEAR: &str = "linear.weight";

/// Takes a weight out and puts its parts in; returns what they make.
fn split(file: &mut File, weight: &str, [first, second]: [&str; 2], normed: bool) -> Held {
    let whole = file.tensors.remove(weight).expect("a weight");
    let (rows, values) = (whole.shape[0], whole.values());
    let row = values.len() / rows;
    let [lead, made]: [Vec<f32>; 2] = match normed {
        true => {
            let g: Vec<f32> = (0..rows).map(|o| 0.5 + o as f32).collect();
            let of_row = |(values, g): (&[f32], &f32)| {
                let square = |x: &f32| f64::from(*x) * f64::from(*x);
                let length = values.iter().map(square).sum::<f64>().sqrt();
                let scale = f64::from(*g) / length;
                values
                    .iter()
                    .map(|x| (f64::from(*x) * scale) as f32)
                    .collect::<Vec<_>>()
            };
            let made = values.chunks(row).zip(&g).flat_map(of_row).collect();
            [g, made]
        }
        false => {
            let mask: Vec<f32> = (0..values.len())
                .map(|i| (i % 3 > 0) as u8 as f32)
                .collect();
            let made = values.iter().zip(&mask).map(|(x, m)| x * m).collect();
            [mask, made]
        }
    };
    let mut lengths = vec![1; whole.shape.len()];
    lengths[0] = rows;
    let shape = if normed { &lengths } else { &whole.shape };
    let lead = Held::f32(shape, &lead);
    let made = Held::f32(&whole.shape, &made);
    let module = weight.strip_suffix("weight").expect("the name of a weight");
    file.tensors.insert(format!("{module}{first}"), lead);
    file.tensors.insert(format!("{module}{second}"), whole);
    made
}

#[test]
fn they_are_computed_and_folded() {
    let cases = [
        (["weight_g", "weight_v"], true, "weight norm"),
        (
            [
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            ],
            true,
            "weight norm",
        ),
        (["weight_mask", "weight_orig"], false, "a pruning mask"),
        (
            [
                "parametrizations.weight.0.mask",
                "parametrizations.weight.original",
            ],
            false,
            "a pruning mask",
        ),
    ];
    for (parts, normed, from) in cases {
        let mut tiny = Tiny::network();
        let made = split(&mut tiny.file, WEIGHT, parts, normed);
        tiny.write();
        let said = tiny.prints(&[
            "fuse",
            "train.safetensors",
            "out.safetensors",
            "--force",
            "--verify",
        ]);
        assert!(
            said.contains(&format!("computed    1 weight from {from}\n")),
            "{said}"
        );
        // The same numbers as where the weight stands in the file.
        tiny.file
            .tensors
            .retain(|name, _| !name.starts_with("stage1.1.rbr_dense.conv."));
        tiny.file.tensors.insert(WEIGHT.to_owned(), made);
        tiny.write();
        let said = tiny.prints(&["fuse", "train.safetensors", "plain.safetensors", "--force"]);
        assert!(!said.contains("computed"), "{said}");
        let [out, plain] =
            ["out.safetensors", "plain.safetensors"].map(|name| File::read(&tiny.path(name)));
        assert_eq!(out.tensors, plain.tensors, "{parts:?}");
    }
}

#[test]
fn what_is_not_folded_is_copied_in_parts() {
    let mut tiny = Tiny::network();
    let made = split(&mut tiny.file, LINEAR, ["weight_g", "weight_v"], true);
    tiny.write();
    tiny.prints(&["fuse", "train.safetensors", "out.safetensors", "--verify"]);
    let out = File::read(&tiny.path("out.safetensors"));
    for part in ["linear.weight_g", "linear.weight_v"] {
        assert_eq!(out.tensors[part], tiny.file.tensors[part]);
    }
    assert!(!out.tensors.contains_key(LINEAR));
    let said = tiny.run(&["verify", "train.safetensors", "out.safetensors"]);
    assert_eq!(said.status, 0, "{}", said.stdout);
    // A reader of the file sees the weight, in any stretch.
    let file = Checkpoint::open(tiny.path("out.safetensors")).expect("a checkpoint");
    let weight = file.get(LINEAR).expect("the weight");
    for (at, len) in [(0, made.bytes.len()), (5, 60), (31, 2), (128, 32)] {
        let mut bytes = vec![0; len];
        file.read_at(weight, at as u64, &mut bytes).expect("bytes");
        assert_eq!(bytes, made.bytes[at..at + len]);
    }
    // Left out of a deploy form, both parts are missing.
    let mut without = out.clone();
    without.tensors.remove("linear.weight_g");
    without.write(&tiny.path("without.safetensors"));
    let said = tiny.run(&["verify", "train.safetensors", "without.safetensors"]);
    assert_eq!(said.status, 1);
    assert!(
        said.stdout.contains("`linear.weight_g` is missing"),
        "{}",
        said.stdout
    );
}

#[test]
fn parts_that_are_not_put_together_are_refused() {
    let mut tiny = Tiny::network();
    split(&mut tiny.file, WEIGHT, ["weight_g", "weight_v"], true);
    // The norm over another axis.
    tiny.file.at("stage1.1.rbr_dense.conv.weight_g").shape = vec![1, 4, 1, 1];
    tiny.write();
    let refused = tiny.run(&["fuse", "train.safetensors", "out.safetensors"]);
    let expected = "repfuse: `stage1.1.rbr_dense.conv` has a weight in parts that are not put together here: \
                    `stage1.1.rbr_dense.conv.weight_g` is there; remove the weight norm, pruning or parametrization first, as \
                    `remove_weight_norm`, `prune.remove` or `parametrize.remove_parametrizations` does; `--skip \
                    'stage1.1.rbr_dense.conv'` leaves it as it is\n";
    assert_eq!((refused.status, refused.stderr.as_str()), (2, expected));
    let args = [
        "fuse",
        "train.safetensors",
        "out.safetensors",
        "--skip",
        "stage1.1",
    ];
    assert_eq!(tiny.run(&args).status, 0);
}
