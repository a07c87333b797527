//! Numbers are checked: what is defined for each kind of strange number, and said where there is nothing to be done.

use crate::support::file::{Place, Ran, checkpoint, recipe};
use crate::support::forge::{File, Held};
use safetensors::Dtype;
use serde_json::Value;

/// A directory with one block `stage0.0` of two channels, edited.
fn prepared(edit: impl FnOnce(&mut File)) -> Place {
    let place = Place::new();
    let mut file = checkpoint(1, 2);
    edit(&mut file);
    file.write(&place.path("in.safetensors"));
    place
}

fn fuse(place: &Place, more: &str) -> Ran {
    place.run(&format!(
        "fuse in.safetensors out.safetensors --verify --quiet {more}"
    ))
}

/// What was written, as `f64`.
fn written(place: &Place, name: &str) -> Vec<f64> {
    let mut file = File::read(&place.path("out.safetensors"));
    let held = file.at(name).clone();
    let number = |bytes: &[u8]| match held.dtype {
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().expect("8 bytes")),
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().expect("4 bytes")).into(),
        Dtype::F16 => half::f16::from_le_bytes(bytes.try_into().expect("2 bytes")).into(),
        Dtype::BF16 => half::bf16::from_le_bytes(bytes.try_into().expect("2 bytes")).into(),
        other => panic!("{other:?}"),
    };
    held.bytes
        .chunks(held.dtype.bitsize() / 8)
        .map(number)
        .collect()
}

const DENSE: &str = "stage0.0.rbr_dense";

fn fine(place: &Place, more: &str) {
    let ran = fuse(place, more);
    assert_eq!(ran.all(), (Some(0), "", ""));
}

fn refused(place: &Place, more: &str, expected: &str) {
    let ran = fuse(place, more);
    assert_eq!(ran.all(), (Some(2), "", &*format!("repfuse: {expected}\n")));
    assert_eq!(place.names(), ["in.safetensors"]);
}

#[test]
fn a_branch_must_be_finite() {
    fine(&prepared(|_| ()), "");
    for (value, shown) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        for (tensor, at, index) in [
            ("conv.weight", 22, "[1, 0, 1, 1]"),
            ("bn.weight", 1, "[1]"),
            ("bn.bias", 0, "[0]"),
            ("bn.running_mean", 1, "[1]"),
        ] {
            let name = format!("{DENSE}.{tensor}");
            let place = prepared(|file| file.at(&name).edit(|x| x[at] = value));
            refused(
                &place,
                "",
                &format!("`{name}` is {shown} at {index}; expected a finite number"),
            );
        }
    }
    // Nothing hides one: not a scale of zero, and not another infinity.
    let place = prepared(|file| {
        file.at(&format!("{DENSE}.bn.weight")).edit(|x| x[0] = 0.0);
        file.at(&format!("{DENSE}.conv.weight"))
            .edit(|x| x[3] = f32::NAN);
    });
    refused(
        &place,
        "",
        &format!("`{DENSE}.conv.weight` is NaN at [0, 0, 1, 0]; expected a finite number"),
    );
}

/// In an inner conv, whose every number goes into every row.
#[test]
fn an_inner_conv_must_be_finite_too() {
    let place = Place::new();
    let attempt = |value: f32| {
        let mut file = File::default();
        file.tensors.insert(
            "a.first.weight".to_owned(),
            Held::f32(&[2, 2, 1, 1], &[1.0, 2.0, value, 4.0]),
        );
        file.tensors.insert(
            "a.then.weight".to_owned(),
            Held::f32(&[1, 2, 1, 1], &[1.0, 2.0]),
        );
        file.write(&place.path("in.safetensors"));
        place.write(
            "own.json",
            recipe(r#"{"at": "{p}.first.weight", "fuse": {"{p}.out": {"seq": [{"conv": "{p}.first", "bias": "optional", "groups": 1}, {"conv": "{p}.then", "bias": "optional"}]}}}"#),
        );
        fuse(&place, "--recipe own.json")
    };
    let expected = "repfuse: `a.first.weight` is NaN at [1, 0, 0, 0]; expected a finite number\n";
    assert_eq!(attempt(f32::NAN).all(), (Some(2), "", expected));
    assert_eq!(attempt(3.0).all(), (Some(0), "", ""));
    assert_eq!(written(&place, "a.out.weight"), [7.0, 10.0]);
}

#[test]
fn a_variance_is_finite_and_not_negative() {
    let name = format!("{DENSE}.bn.running_var");
    let with = |value: f32| prepared(|file| file.at(&name).edit(|var| var[1] = value));
    for (value, shown) in [
        (-1e-3, "-0.0010000000474974513"),
        (-f32::from_bits(1), "-1.401298464324817e-45"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let expected =
            format!("`{name}` is {shown} at [1]; a variance must be finite and not negative");
        refused(&with(value), "", &expected);
        // Also where nothing is written.
        let ran = with(value).run("verify in.safetensors");
        assert_eq!(ran.all(), (Some(2), "", &*format!("repfuse: {expected}\n")));
    }
    // Zero of either sign, the smallest subnormal and the largest number are variances.
    for value in [0.0, -0.0, f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX] {
        fine(&with(value), "");
    }
    // With a variance of zero, eps alone is under the root.
    let place = prepared(|file| {
        file.at(&name).edit(|var| var.fill(0.0));
        file.at(&format!("{DENSE}.bn.weight")).edit(|w| w.fill(1.0));
        file.at(&format!("{DENSE}.conv.weight"))
            .edit(|w| w.fill(1.0));
        file.at("stage0.0.rbr_1x1.conv.weight")
            .edit(|w| w.fill(0.0));
    });
    fine(&place, "--bn-eps 1e-4");
    let weight = written(&place, "stage0.0.rbr_reparam.weight");
    assert_eq!(weight, [f64::from((1.0 / 1e-4f64.sqrt()) as f32); 36]);
}

#[test]
fn a_scale_of_zero_leaves_the_shift() {
    let place = prepared(|file| {
        for branch in ["rbr_dense", "rbr_1x1"] {
            let bn = format!("stage0.0.{branch}.bn");
            file.at(&format!("{bn}.weight")).edit(|w| w[0] = 0.0);
            file.at(&format!("{bn}.bias")).edit(|b| b[0] = 0.25);
        }
    });
    fine(&place, "");
    let weight = written(&place, "stage0.0.rbr_reparam.weight");
    assert!(weight[..18].iter().all(|w| *w == 0.0) && weight[18..].iter().all(|w| *w != 0.0));
    assert_eq!(written(&place, "stage0.0.rbr_reparam.bias")[0], 0.5);
}

/// A sum of plain convs, of which each number is chosen.
fn sum(values: &[f64], dtype: Dtype) -> Place {
    let place = Place::new();
    let mut file = File::default();
    for (i, value) in values.iter().enumerate() {
        let bytes = match dtype {
            Dtype::F64 => value.to_le_bytes().to_vec(),
            Dtype::F32 => (*value as f32).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f64(*value).to_le_bytes().to_vec(),
            _ => half::bf16::from_f64(*value).to_le_bytes().to_vec(),
        };
        let held = Held {
            dtype,
            shape: vec![1, 1, 1, 1],
            bytes,
        };
        file.tensors.insert(format!("a.c.{i}.weight"), held);
    }
    file.write(&place.path("in.safetensors"));
    place.write("own.json", recipe(r#"{"at": "{p}.c.0.weight", "fuse": {"{p}.out": {"sum": [{"each": {"conv": "{p}.c.{i}", "bias": "optional"}}]}}}"#));
    place
}

#[test]
fn what_does_not_fit_its_type_is_refused() {
    let at = |value: &str| {
        format!("repfuse: the fused `a.out.weight` is {value} at [0, 0, 0, 0], beyond the largest ")
    };
    // (1) The type of the file; (2) the numbers; (3) the type that is asked for; (4) the error.
    for (dtype, values, stored, expected) in [
        (
            Dtype::F16,
            [65504.0, 16.0],
            "keep",
            Some("6.5520e4|f16, 6.5504e4; store it with --dtype f32 or bf16"),
        ),
        (
            Dtype::F32,
            [65504.0, 16.0],
            "f16",
            Some("6.5520e4|f16, 6.5504e4; store it with --dtype f32 or bf16"),
        ),
        (Dtype::F32, [65504.0, 15.996], "f16", None),
        (
            Dtype::BF16,
            [3.38e38, 3.38e38],
            "keep",
            Some("6.7525e38|bf16, 3.3895e38"),
        ),
        (
            Dtype::F32,
            [3.0e38, 0.4e38],
            "bf16",
            Some("3.4000e38|bf16, 3.3895e38; store it with --dtype f32"),
        ),
        (Dtype::F32, [3.0e38, 0.3e38], "bf16", None),
        (
            Dtype::F32,
            [3.0e38, 3.0e38],
            "keep",
            Some("6.0000e38|f32, 3.4028e38"),
        ),
        (Dtype::F64, [3.0e38, 3.0e38], "keep", None),
        (
            Dtype::F64,
            [-3.0e38, -3.0e38],
            "f32",
            Some("-6.0000e38|f32, 3.4028e38"),
        ),
    ] {
        let place = sum(&values, dtype);
        let ran = fuse(&place, &format!("--recipe own.json --dtype {stored}"));
        let expected = expected.map_or_else(String::new, |text| {
            let (value, rest) = text.split_once('|').expect("two parts");
            format!("{}{rest}\n", at(value))
        });
        assert_eq!(ran.stderr, expected);
        assert_eq!(ran.code(), Some(if expected.is_empty() { 0 } else { 2 }));
    }
    // Beyond the numbers that everything is computed in, nothing is larger.
    let ran = fuse(&sum(&[1.7e308, 1.7e308], Dtype::F64), "--recipe own.json");
    let expected = "repfuse: the fused `a.out.weight` at [0, 0, 0, 0] is beyond the largest f64, although every tensor it comes \
                    from is finite\n";
    assert_eq!(ran.all(), (Some(2), "", expected));
    // A bias is named as one.
    let place = prepared(|file| file.at(&format!("{DENSE}.bn.bias")).edit(|b| b[1] = 1e6));
    let ran = fuse(&place, "--dtype f16");
    let begin = "repfuse: the fused `stage0.0.rbr_reparam.bias` is 1.0000e6 at [1], beyond the largest f16, 6.5504e4; store it with --dtype f32 or bf16\n";
    assert_eq!(ran.all(), (Some(2), "", begin));
}

#[test]
fn what_vanishes_is_counted_and_said() {
    // The smallest number of f16 is 2^-24; half of it is a tie, which goes to the even zero.
    let tiny = |values: [f32; 4]| {
        let place = Place::new();
        let mut file = File::default();
        file.tensors
            .insert("a.c.0.weight".to_owned(), Held::f32(&[1, 1, 2, 2], &values));
        file.write(&place.path("in.safetensors"));
        place.write(
            "own.json",
            recipe(r#"{"at": "{p}.c.0.weight", "fuse": {"{p}.out": {"conv": "{p}.c.0", "bias": "optional"}}}"#),
        );
        place
    };
    let half = 2f32.powi(-25);
    let place = tiny([half, -half / 3.0, half * 1.001, 0.0]);
    let line = "fuse in.safetensors out.safetensors --recipe own.json --verify --force";
    let ran = place.run(&format!("{line} --dtype f16"));
    assert_eq!(
        (ran.code(), &*ran.stderr),
        (
            Some(0),
            "repfuse: warning: 2 of 5 fused numbers are not zero, but too small for f16, and became zero\n"
        )
    );
    assert_eq!(
        written(&place, "a.out.weight"),
        [0.0, 0.0, 2f64.powi(-24), 0.0]
    );
    let counted = |more: &str| {
        let ran = place.run(&format!("{line} --json {more}"));
        let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        (json["became_zero"].clone(), ran.stderr)
    };
    assert_eq!(counted("--dtype f16 --quiet"), (2.into(), String::new()));
    assert_eq!(counted("--dtype bf16"), (0.into(), String::new()));
    assert_eq!(counted(""), (0.into(), String::new()));
    assert_eq!(counted("--dry-run").0, Value::Null);
    // The sign is kept, as rounding does.
    let bits: Vec<u16> = {
        fine(&place, "--recipe own.json --dtype f16 --force");
        let held = File::read(&place.path("out.safetensors"))
            .at("a.out.weight")
            .clone();
        held.bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
            .collect()
    };
    assert_eq!(bits, [0, 0x8000, 1, 0]);
}

/// A fold is a sum that begins with +0, so −0 becomes +0; what is copied keeps every bit, that of a NaN, too.
#[test]
fn negative_zero_and_copies() {
    let place = sum(&[-0.0], Dtype::F32);
    fine(&place, "--recipe own.json");
    assert_eq!(written(&place, "a.out.weight")[0].to_bits(), 0);

    let payload: Vec<u8> = [0x7fa0_1234u32, 0xffc0_0001, 0x8000_0000, 0x7f80_0000]
        .iter()
        .flat_map(|bits| bits.to_le_bytes())
        .collect();
    let place = prepared(|file| file.at("head.weight").bytes[..16].copy_from_slice(&payload));
    fine(&place, "");
    let mut out = File::read(&place.path("out.safetensors"));
    assert_eq!(out.at("head.weight").bytes[..16], payload);
}

/// Terms that cancel are added in f64: exactly, as long as they differ by less than 2^53, and else to that precision of the terms.
#[test]
fn what_cancels() {
    let big = 2f64.powi(30);
    for (values, expected) in [
        (vec![1.0, -1.0 + 2f64.powi(-24)], 2f64.powi(-24)),
        // In f32, the one would be lost beside the large terms.
        (vec![big, 1.0, -big], 1.0),
        (vec![big, 2f64.powi(-22), -big], 2f64.powi(-22)),
        (vec![0.1f32.into(), (-0.1f32).into()], 0.0),
    ] {
        let place = sum(&values, Dtype::F32);
        fine(&place, "--recipe own.json");
        assert_eq!(written(&place, "a.out.weight"), [expected], "{values:?}");
    }
    // Here f64 loses it, too: what is off is below 2^-52 of the terms, and the verdict knows that much of its own arithmetic.
    let huge = 2f64.powi(60);
    let place = sum(&[huge, 1.0, -huge], Dtype::F32);
    fine(&place, "--recipe own.json");
    assert!((written(&place, "a.out.weight")[0] - 1.0).abs() <= huge * f64::EPSILON);
    // But not more: another number there is rejected.
    let mut out = File::read(&place.path("out.safetensors"));
    out.at("a.out.weight").edit(|w| w[0] = 4096.0);
    out.write(&place.path("out.safetensors"));
    let ran = place.run("verify in.safetensors out.safetensors --recipe own.json --quiet");
    assert_eq!(ran.code(), Some(1));
}

/// Subnormal numbers are numbers.
#[test]
fn subnormal_numbers_are_exact() {
    let place = sum(
        &[f32::from_bits(3).into(), f32::from_bits(5).into()],
        Dtype::F32,
    );
    fine(&place, "--recipe own.json");
    assert_eq!(
        written(&place, "a.out.weight"),
        [f64::from(f32::from_bits(8))]
    );
}

/// A deploy form that is not finite is never equivalent.
#[test]
fn nan_is_a_failure_and_no_skipped_comparison() {
    let place = prepared(|_| ());
    fine(&place, "");
    assert_eq!(
        place.run("verify in.safetensors out.safetensors -q").code(),
        Some(0)
    );
    for value in [f32::NAN, f32::INFINITY] {
        for (name, at) in [
            ("stage0.0.rbr_reparam.weight", 7),
            ("stage0.0.rbr_reparam.bias", 1),
        ] {
            let mut out = File::read(&place.path("out.safetensors"));
            out.at(name).edit(|x| x[at] = value);
            out.write(&place.path("nan.safetensors"));
            let ran = place.run("verify in.safetensors nan.safetensors --quiet");
            assert_eq!(ran.all(), (Some(1), "", ""), "{value} in {name}");
        }
    }
}

#[test]
fn an_eps_is_a_small_positive_number() {
    let place = prepared(|_| ());
    for (eps, fine) in [
        ("1e-5", true),
        ("1e-300", true),
        ("0", false),
        ("-1e-5", false),
        ("nan", false),
        ("inf", false),
        ("1", false),
    ] {
        let ran = place.run(&format!(
            "fuse in.safetensors out.safetensors --force --quiet --bn-eps={eps}"
        ));
        let expected = format!(
            "error: invalid value '{eps}' for '--bn-eps <E>': expected a small positive number such as 1e-5\n\n\
             For more information, try '--help'.\n"
        );
        let expected = if fine {
            (Some(0), "", "")
        } else {
            (Some(2), "", &*expected)
        };
        assert_eq!(ran.all(), expected);
    }
}
