//! Weights rounded to eight bits, against PyTorch's own observers.

use std::fs;

use crate::support::fixtures::fixtures;
use repfuse::plan::{self, Options};
use repfuse::recipe;
use repfuse::summary::int8::int8;
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
        for fused in plan.blocks.iter().flat_map(|block| &block.fused) {
            let Some(expected) = convs[&fused.module].as_array() else {
                continue;
            };
            let of = int8(&train, fused, Deployed::File(&deploy)).unwrap();
            let found = [of.fused.per_tensor, of.fused.per_channel];
            for (found, expected) in found.iter().zip(expected) {
                let off = found.unwrap() - expected.as_f64().unwrap();
                // The observers round in f32.
                assert!(off.abs() < 0.01, "{file}: {}: {off}", fused.module);
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}
