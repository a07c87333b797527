//! Weights rounded to eight bits, against PyTorch's own observers.

use std::fs;

use crate::support::fixtures::fixtures;
use repfuse::plan::{self, Options};
use repfuse::recipe;
use repfuse::summary::int8::{Int8, Noise, int8, sentence};
use repfuse::tensor::Checkpoint;
use repfuse::verify::Deployed;

/// `fixtures/generate_int8.py` asked MinMaxObserver and PerChannelMinMaxObserver.
#[test]
fn rounding_is_that_of_the_observers() {
    let text = fs::read_to_string(fixtures().join("int8.json")).unwrap();
    let files: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for (file, convs) in files.as_object().unwrap() {
        let open = |form: &str| {
            Checkpoint::open(fixtures().join(format!("{file}.{form}.safetensors"))).unwrap()
        };
        let (train, deploy) = (open("train"), open("deploy"));
        let near = recipe::builtin_near(train.tensors()).unwrap();
        let found = recipe::detect_builtin(train.tensors(), &near).unwrap();
        let plan = plan::plan_families(train.tensors(), &found, &Options::default()).unwrap();
        for fused in plan.blocks().iter().flat_map(|block| block.fused()) {
            let Some(expected) = convs[&fused.module()].as_array() else {
                continue;
            };
            let of = int8(&train, fused, Deployed::File(&deploy)).unwrap();
            let found = [of.fused.per_tensor, of.fused.per_channel];
            for (found, expected) in found.iter().zip(expected) {
                let off = found.unwrap() - expected.as_f64().unwrap();
                // The observers round in f32.
                assert!(off.abs() < 0.01, "{file}: {}: {off}", fused.module());
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

#[test]
fn one_sentence_counts_what_loses_much() {
    let conv = |worst_loss| Int8 {
        fused: Noise {
            per_tensor: Some(40.0),
            per_channel: Some(40.0),
            worst_loss,
        },
        branch: None,
    };
    let said = |losses: &[f64]| {
        let convs: Vec<Int8> = losses.iter().copied().map(conv).collect();
        sentence(convs.iter())
    };
    // The test of messages looks for `{MUCH} dB`.
    const MUCH: f64 = 20.0;
    assert_eq!(
        said(&[1.0, 20.0]),
        format!("none of 2 convs loses more than {MUCH} dB in an output channel per tensor")
    );
    assert_eq!(
        said(&[21.0, 1.0]),
        format!(
            "1 of 2 convs loses more than {MUCH} dB in an output channel per tensor; quantize weights per channel"
        )
    );
    assert_eq!(
        said(&[21.0, 1.0, 30.0]),
        format!(
            "2 of 3 convs lose more than {MUCH} dB in an output channel per tensor; quantize weights per channel"
        )
    );
}
