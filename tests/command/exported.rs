//! Fused convs beside their branches, as the command says it.

use crate::support::file::{Place, Ran, recipe};
use crate::support::fixtures::fixtures;
use crate::support::forge::File;
use serde_json::Value;

const CONVS: [&str; 2] = [
    "encoder.fpn_blocks.0.bottlenecks.0.conv",
    "encoder.pan_blocks.1.bottlenecks.0.conv",
];

/// A directory with a training file that has its fused convs, edited.
fn prepared(edit: impl FnOnce(&mut File)) -> Place {
    let place = Place::new();
    let mut file = File::read(&fixtures().join("rtdetr/rtdetr-both.train.safetensors"));
    file.write(&place.path("whole.safetensors"));
    edit(&mut file);
    file.write(&place.path("in.safetensors"));
    place
}

fn off(file: &mut File, conv: &str) {
    file.at(&format!("{conv}.weight"))
        .edit(|w| w[0] = 2.0 * w[0] + 1.0);
}

fn refused(ran: &Ran, parts: &[&str]) {
    assert_eq!((ran.code(), &*ran.stdout), (Some(2), ""));
    for part in parts {
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
}

#[test]
fn a_conv_that_contradicts_its_branches_is_refused() {
    let place = prepared(|file| off(file, CONVS[0]));
    let said = [
        "repfuse: block `encoder.fpn_blocks.0`: the file has the conv `encoder.fpn_blocks.0.bottlenecks.0.conv` beside the branches that it was computed from, and it is not what they give: `encoder.fpn_blocks.0.bottlenecks.0.conv.weight[0,0,0,0]` is ",
        "; --drop `encoder.fpn_blocks.0.bottlenecks.0.conv` folds the branches all the same, --skip `encoder.fpn_blocks.0` leaves the block as it is\n",
    ];
    for args in [
        "fuse in.safetensors out.safetensors",
        "fuse in.safetensors out.safetensors --verify --prefix model",
        "verify in.safetensors",
        "verify in.safetensors whole.safetensors",
        "report in.safetensors -o page.html",
    ] {
        refused(&place.run(args), &said);
    }
    assert_eq!(place.names(), ["in.safetensors", "whole.safetensors"]);
    // No number is read.
    let ran = place.run("fuse in.safetensors out.safetensors --dry-run --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
}

#[test]
fn what_is_advised_helps() {
    let place = prepared(|file| off(file, CONVS[0]));
    let ran = place.run(&format!(
        "fuse in.safetensors dropped.safetensors --drop {} --verify --quiet",
        CONVS[0]
    ));
    assert_eq!(ran.all(), (Some(0), "", ""));
    let ran = place.run("fuse whole.safetensors fused.safetensors --quiet");
    assert_eq!(ran.all(), (Some(0), "", ""));
    let read = |name: &str| File::read(&place.path(name)).tensors;
    assert_eq!(read("dropped.safetensors"), read("fused.safetensors"));
    let ran = place.run(
        "fuse in.safetensors skipped.safetensors --skip encoder.fpn_blocks.0 --verify --quiet",
    );
    assert_eq!(ran.all(), (Some(0), "", ""));
    let weight = format!("{}.weight", CONVS[0]);
    let (skipped, before) = (read("skipped.safetensors"), read("in.safetensors"));
    assert_eq!(skipped[&weight], before[&weight]);
    assert!(skipped.contains_key("encoder.fpn_blocks.0.bottlenecks.0.conv1.conv.weight"));
}

#[test]
fn each_way_to_differ_is_said() {
    let bias = format!("{}.bias", CONVS[0]);
    let weight = format!("{}.weight", CONVS[0]);
    let fuse = |edit: &dyn Fn(&mut File)| {
        prepared(edit).run("fuse in.safetensors out.safetensors --quiet")
    };
    refused(
        &fuse(&|file| CONVS.iter().for_each(|conv| off(file, conv))),
        &["; so it is with another conv; --drop "],
    );
    refused(
        &fuse(&|file| drop(file.tensors.remove(&bias))),
        &[&format!("it is not what they give: `{bias}` is missing; ")],
    );
    refused(
        &fuse(&|file| file.at(&weight).shape.swap(0, 3)),
        &["has shape [3, 2, 3, 2]; expected [2, 2, 3, 3]"],
    );
    // Rounding is no difference.
    let ran = fuse(&|file| file.at(&weight).edit(|w| w[0] *= 1.0 + 1e-7));
    assert_eq!(ran.all(), (Some(0), "", ""));
}

#[test]
fn many_convs_are_counted() {
    let place = Place::new();
    let (mut file, mut random) = (File::default(), crate::support::Random(3));
    for block in ["a", "b", "c"] {
        for conv in ["one", "two", "out"] {
            for (end, shape) in [("weight", &[2, 2, 1, 1][..]), ("bias", &[2])] {
                let name = format!("{block}.{conv}.{end}");
                crate::support::file::tensor(&mut file, &name, shape, &mut random);
            }
        }
    }
    file.write(&place.path("in.safetensors"));
    let block = |more: &str| {
        recipe(&format!(
            r#"{{"at": "{{p}}.one.weight", "fuse": {{"{{p}}.out": {{"sum": [{{"conv": "{{p}}.one"}}, {{"conv": "{{p}}.two"}}]}}}}, {more}}}"#
        ))
    };
    place.write(
        "own.json",
        block(r#""drop": ["{p}.out"], "exported": true"#),
    );
    let fuse = "fuse in.safetensors out.safetensors --recipe own.json --quiet --force";
    refused(&place.run(fuse), &["; so it is with 2 other convs; "]);
    place.write("own.json", block(r#""drop": ["{p}.out"]"#));
    assert_eq!(place.run(fuse).all(), (Some(0), "", ""));
    place.write("own.json", block(r#""exported": true"#));
    let said = "`{p}.out` is not in `drop`; what the file has of a fused conv is left out where that is written";
    refused(&place.run(fuse), &[said]);
}

#[test]
fn training_tensors_that_are_left_are_counted() {
    let place = prepared(|_| ());
    let ran = place.run("verify whole.safetensors in.safetensors");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let said = ", 24 training tensors are still in the file";
    assert!(ran.stdout.contains(said), "{}", ran.stdout);
    let ran = place.run("verify whole.safetensors in.safetensors --json");
    let json: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(
        (&json["accepted"], &json["unfused"]),
        (&true.into(), &24.into())
    );
    // One that is none of the training form's is another matter, and so is one that is another.
    let place = prepared(|file| {
        let name = "encoder.fpn_blocks.0.bottlenecks.0.conv1.conv.weight";
        let held = file.at(name).clone();
        file.tensors.insert("more".to_owned(), held);
        file.at(name).edit(|w| w[0] = 2.0);
    });
    let ran = place.run("verify whole.safetensors in.safetensors");
    assert_eq!(ran.code(), Some(1));
    for part in [
        "conv1.conv.weight[0,0,0,0]` is 2, expected ",
        "`more` is left over",
    ] {
        assert!(ran.stdout.contains(part), "{}", ran.stdout);
    }
}
