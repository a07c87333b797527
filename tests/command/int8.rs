//! `inspect --int8`: what is left of weights that are rounded to eight bits.

use crate::support::tiny::Tiny;

/// One large output channel takes the digits of the other; a step for each channel gives them back.
#[test]
fn a_channel_that_loses_is_named() {
    let mut tiny = Tiny::empty();
    let small = [
        0.01, 0.007, 0.003, 0.009, 0.001, 0.002, 0.004, 0.006, 0.0055,
    ];
    let mut kernel = [small, small].concat();
    kernel.extend((0..18_u8).map(|i| 1000.0 + 100.0 * f32::from(i)));
    tiny.put("b.conv_2d.weight", &[2, 2, 3, 3], &kernel);
    tiny.put("b.conv_2d.bias", &[2], &[0.5, 0.5]);
    tiny.put(
        "b.conv_2d_pointwise.weight",
        &[2, 2, 1, 1],
        &[0.001, 0.1, 1.0, 2.0],
    );
    tiny.put("b.conv_2d_pointwise.bias", &[2], &[0.25, 0.25]);
    tiny.write();
    let shown = tiny.prints(&[
        "inspect",
        "train.safetensors",
        "--int8",
        "--recipe",
        "repconv",
    ]);
    assert!(
        shown.contains("1 of 1 conv loses more than 20 dB in an output channel"),
        "{shown}"
    );
    assert!(
        shown.contains("from weights alone: activations are in no file"),
        "{shown}"
    );
    let json = tiny.prints(&[
        "inspect",
        "train.safetensors",
        "--int8",
        "--recipe",
        "repconv",
        "--json",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let int8 = &json["blocks"][0]["outputs"][0]["int8"];
    assert!(
        int8["fused"]["worst_loss"].as_f64().unwrap() > 20.0,
        "{int8}"
    );
    // In all, the large channel drowns what the small one loses.
    assert!(
        int8["fused"]["per_tensor"].as_f64().unwrap() > 35.0,
        "{int8}"
    );
    assert_eq!(int8["branch"]["label"], "3×3+b");
}

#[test]
fn a_network_that_survives_is_said_to() {
    let tiny = Tiny::network();
    let shown = tiny.prints(&["inspect", "train.safetensors", "--int8"]);
    assert!(
        shown.contains("none of 5 convs loses more than 20 dB"),
        "{shown}"
    );
    assert_eq!(
        shown.lines().take_while(|line| !line.is_empty()).count(),
        6,
        "{shown}"
    );
    let json = tiny.prints(&["inspect", "train.safetensors", "--json"]);
    assert!(!json.contains("int8"), "{json}");
}
