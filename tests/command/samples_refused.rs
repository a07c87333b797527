//! Samples that do not fit: what is said of each, and beside it the sample that fits.

use serde_json::Value;

use super::samples::{Net, double_the_point, fixture, json_of, recorded};
use crate::support::Random;
use crate::support::file::{Place, norm, ones, recipe, tensor};
use crate::support::forge::{File, Held};

fn error(json: &Value) -> &str {
    let error = json["error"].as_str();
    error.unwrap_or_else(|| panic!("{json:#}"))
}

fn says(place: &Place, flags: &str, expected: &str) {
    let json = json_of(place, flags);
    let said = error(&json);
    assert!(said.contains(expected), "{expected}: {said}");
}

fn fits(place: &Place, flags: &str) {
    let json = json_of(place, &format!("{flags} --dry-run"));
    assert_eq!(json["sample"]["accepted"], true, "{json:#}");
}

/// Writes the sample with one map changed.
fn changed(place: &Place, sample: &File, name: &str, change: impl FnOnce(&mut Held)) {
    let mut sample = sample.clone();
    change(sample.at(name));
    sample.write(&place.path("sample.safetensors"));
}

#[test]
fn one_part_more_or_less_explains_the_difference() {
    let (place, sample) = recorded(&Net::default());
    fits(&place, "");
    let input = sample.tensors["stage1.0.input"].values();
    changed(&place, &sample, "stage1.0.output", |output| {
        output.edit(|values| {
            values
                .iter_mut()
                .zip(&input)
                .for_each(|(y, x)| *y += 0.5 * x);
        });
    });
    says(&place, "", "a bare identity times a factor explains it");
    let mut random = Random(3);
    changed(&place, &sample, "stage1.0.output", |output| {
        output.edit(|values| {
            values
                .iter_mut()
                .for_each(|y| *y *= 1.0 + random.between(-2e-4, 2e-4) as f32);
        });
    });
    let expected = "it is no more than TF32 arithmetic makes; record on the CPU, or with `torch.backends.cudnn.allow_tf32 = False`";
    says(&place, "", expected);
    // A branch that the network did not have.
    sample.write(&place.path("sample.safetensors"));
    fits(&place, "");
    let mut train = File::read(&place.path("train.safetensors"));
    norm(&mut train, "stage1.0.rbr_identity", 6, &mut Random(4));
    train.write(&place.path("train.safetensors"));
    says(&place, "", "it has no branch bn");
}

#[test]
fn other_norms_and_other_factors_explain_it() {
    let (place, _) = recorded(&Net {
        eps: 0.03,
        ..Net::default()
    });
    let expected = "another factor and constant for each channel explain it: the norms have another eps, or ran in training mode, without \
        `model.eval()`";
    says(&place, "", expected);
    fits(&place, "--bn-eps 0.03");
    let (place, _) = recorded(&Net::default());
    fits(&place, "");
    double_the_point(&place);
    let expected = "0.5000 times the branch bn(1×1) explains it: a factor such as `alpha`";
    says(&place, "", expected);
}

/// The reason for which the one record of a map that is not compared is left out.
fn left_out(place: &Place, expected: &str) {
    let json = json_of(place, "--force");
    assert_eq!(json["sample"]["ignored"][0]["reason"], expected, "{json:#}");
}

#[test]
fn maps_that_are_not_those_of_the_block_are_left_out() {
    let (place, sample) = recorded(&Net::default());
    let json = json_of(&place, "");
    assert_eq!(json["sample"]["ignored"], serde_json::json!([]));
    let zeros = |shape: &[usize]| Held::f32(shape, &vec![0.0; shape.iter().product()]);
    for (end, shape, expected) in [
        (
            "output",
            &[1, 6, 6, 8][..],
            "no usual stride and padding make maps of 6×8 of maps of 9×8 with a kernel of 3×3",
        ),
        (
            "output",
            &[432],
            "its maps have the shapes [1, 6, 9, 8] and [432]; expected [maps, channels, height, width]",
        ),
        (
            "output",
            &[2, 7, 9, 8],
            "the block makes 1 × 6 maps of its input; 2 × 7 were recorded",
        ),
    ] {
        changed(&place, &sample, &format!("stage0.0.{end}"), |held| {
            *held = zeros(shape);
        });
        left_out(&place, expected);
    }
    changed(&place, &sample, "stage0.0.input", |held| {
        *held = zeros(&[1, 5, 9, 8]);
    });
    let json = json_of(&place, "--force");
    let reason = json["sample"]["ignored"][0]["reason"].as_str();
    let reason = reason.unwrap_or_else(|| panic!("{json:#}"));
    let expected = "the block does not take its maps: ";
    assert!(reason.starts_with(expected), "{reason}");
    // A module that is no block.
    let mut other = sample.clone();
    for end in ["head.input", "head.output"] {
        other.tensors.insert(end.to_owned(), zeros(&[1, 6]));
    }
    other.write(&place.path("sample.safetensors"));
    left_out(&place, "it is no block");
}

#[test]
fn a_block_that_a_relu_hides_is_not_compared() {
    let (place, sample) = recorded(&Net {
        activation: |x| x.max(0.0),
        ..Net::default()
    });
    let json = json_of(&place, "");
    assert_eq!(json["sample"]["ignored"], serde_json::json!([]));
    let mut train = File::read(&place.path("train.safetensors"));
    train
        .at("stage0.0.rbr_dense.bn.bias")
        .edit(|values| values.fill(-1e3));
    train.write(&place.path("train.safetensors"));
    changed(&place, &sample, "stage0.0.output", |held| {
        held.edit(|values| values.fill(0.0));
    });
    left_out(
        &place,
        "too little of its output is in sight: the maps are too small, or all zero",
    );
}

#[test]
fn a_module_of_several_blocks_is_compared_with_each() {
    let (place, sample) = recorded(&Net::default());
    let mut below = File::default();
    for (name, held) in File::read(&place.path("train.safetensors")).tensors {
        below.tensors.insert(format!("body.{name}"), held);
    }
    below.write(&place.path("train.safetensors"));
    let as_body = |change: fn(&mut [f32])| {
        let mut maps = File::default();
        for end in ["input", "output"] {
            let held = sample.tensors[&format!("stage0.0.{end}")].clone();
            maps.tensors.insert(format!("body.{end}"), held);
        }
        maps.at("body.output").edit(change);
        maps.write(&place.path("sample.safetensors"));
    };
    as_body(|_| {});
    fits(&place, "");
    as_body(|values| values.reverse());
    let expected = "no recorded block can be compared: `body`: it becomes 2 convs, none of which alone computes what was recorded; the blocks of \
        recipe `repvgg` are `body.stage0.0`, `body.stage1.0`";
    says(&place, "", expected);
}

/// A conv `a.c` and its norm, fused by a recipe that says more of the conv, and a sample of maps of ones.
fn own(more: &str, weight: &[usize], maps: [&[usize]; 2]) -> Place {
    let place = Place::new();
    let (mut train, mut random) = (File::default(), Random(2));
    tensor(&mut train, "a.c.weight", weight, &mut random);
    norm(&mut train, "a.n", 1, &mut random);
    train.write(&place.path("train.safetensors"));
    let [input, output] = maps;
    ones(&[("a.d.input", input), ("a.d.output", output)]).write(&place.path("sample.safetensors"));
    let block = format!(
        r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.d": {{"seq": [{{"conv": "{{p}}.c"{more}}}, {{"bn": "{{p}}.n"}}]}}}}}}"#
    );
    place.write("own.json", recipe(&block));
    place
}

#[test]
fn blocks_that_are_not_run_on_maps_say_so() {
    let shape: &[usize] = &[1, 1, 4, 4];
    // A conv that is run is compared.
    let place = own("", &[1, 1, 3, 3], [shape, shape]);
    says(&place, "--recipe own.json", "a.d: output [0, 0, ");
    let place = own(r#", "transposed": true"#, &[1, 1, 3, 3], [shape, shape]);
    let expected = "`a.d`: it is a transposed conv, which is not run on maps";
    says(&place, "--recipe own.json", expected);
    // 4400 · 31² · 2049² multiply-adds are more than 10¹³.
    let maps: [&[usize]; 2] = [&[1, 4400, 1, 1], &[1, 1, 2049, 2049]];
    let place = own("", &[1, 4400, 31, 31], maps);
    let expected = "`a.d`: its maps are too large; record a smaller image";
    says(&place, "--recipe own.json", expected);
}

#[test]
fn a_map_of_too_many_numbers_is_not_read() {
    let (place, _) = recorded(&Net::default());
    for (numbers, expected) in [
        (
            (1u64 << 26) + 1,
            "`sample.safetensors` is no sample: `x.output` has 67108865 numbers; at most 67108864 are read, so record a smaller image",
        ),
        (
            1 << 26,
            "`sample.safetensors` is no sample: `x.input` is missing",
        ),
    ] {
        let header = format!(
            r#"{{"x.output": {{"dtype": "F16", "shape": [{numbers}], "data_offsets": [0, {}]}}}}"#,
            2 * numbers
        );
        place.write(
            "sample.safetensors",
            crate::support::file::bytes(&header, &[]),
        );
        // The numbers are a hole in the file.
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(place.path("sample.safetensors"));
        let length = 8 + header.len() as u64 + 2 * numbers;
        file.and_then(|file| file.set_len(length))
            .expect("a file with a hole");
        let ran = place.run("fuse train.safetensors out.safetensors --sample sample.safetensors");
        assert_eq!(ran.code(), Some(2));
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
}

#[test]
fn a_sample_of_what_two_recipes_share_decides_nothing() {
    let place = Place::new();
    let name = "yolov6-qarepvggv2/yolov6n-qav2";
    let whole = File::read(std::path::Path::new(&fixture(name, "sample")));
    let run = |sample: &File| {
        sample.write(&place.path("sample.safetensors"));
        let train = fixture(name, "train");
        place.run(&format!(
            "fuse {train} out.safetensors --dry-run --sample sample.safetensors"
        ))
    };
    assert_eq!(run(&whole).code(), Some(0));
    // Where the width changes, neither has an identity or a pooling.
    let mut part = whole.clone();
    part.tensors.retain(|name, _| {
        let (module, _) = name.rsplit_once('.').expect("an end");
        let width = |end: &str| whole.tensors[&format!("{module}.{end}")].shape[1];
        width("input") != width("output")
    });
    let ran = run(&part);
    let expected = "the sample fits the recipes `yolov6-qarepvgg`, `yolov6-qarepvggv2` alike; record a block in which they differ, as `";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
}
