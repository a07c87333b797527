//! What is said of programs that are nearly what is understood: refused, or kept with a reason.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::archives::{archive, changed, entries};
use super::{chain, command, fixture, planned, refused, write};
use repfuse::graph::Op;
use repfuse::graph::pt2::{Pt2, verify};

/// A copy of a program whose graph is changed.
fn with_graph(name: &str, to: &Path, change: &dyn Fn(&mut Value)) {
    changed(&fixture(&format!("{name}.pt2")), to, |entry, text| {
        (entry == "models/model.json").then(|| {
            let mut program: Value = serde_json::from_str(text).unwrap();
            change(&mut program);
            program.to_string()
        })
    });
}

fn graph(program: &mut Value) -> &mut Value {
    &mut program["graph_module"]["graph"]
}

fn node<'a>(program: &'a mut Value, name: &str) -> &'a mut Value {
    let nodes = graph(program)["nodes"].as_array_mut().unwrap();
    nodes.iter_mut().find(|node| node["name"] == name).unwrap()
}

/// Gives an argument of a call another value, or adds it.
fn set(program: &mut Value, name: &str, argument: &str, value: Value) {
    let inputs = node(program, name)["inputs"].as_array_mut().unwrap();
    match inputs.iter_mut().find(|input| input["name"] == argument) {
        Some(input) => input["arg"] = value,
        None => inputs.push(json!({"name": argument, "arg": value, "kind": 1})),
    }
}

fn meta<'a>(program: &'a mut Value, value: &str) -> &'a mut Value {
    &mut graph(program)["tensor_values"][value]
}

fn tensor(name: &str) -> Value {
    json!({"as_tensor": {"name": name}})
}

type Change = fn(&mut Value);

/// A program, a change, and what is said of the node that is changed.
const KEPT: &[(&str, Change, &str)] = &[
    (
        "repvgg",
        |p| drop(meta(p, "input")["sizes"].as_array_mut().unwrap().remove(0)),
        "its input has no batch axis",
    ),
    (
        "repvgg",
        |p| node(p, "conv2d")["target"] = "torch.ops.aten.conv1d.default".into(),
        "its weight `0.conv_1x1.conv.weight` has the shape [4, 3, 1, 1]",
    ),
    (
        "repvgg",
        |p| set(p, "conv2d", "stride", json!({"as_ints": [0, 1]})),
        "its stride is 0",
    ),
    (
        "repvgg",
        |p| set(p, "batch_norm", "running_mean", json!({"as_none": true})),
        "it keeps no running statistics (track_running_stats=False)",
    ),
    (
        "repvgg",
        |p| set(p, "batch_norm", "bias", json!({"as_none": true})),
        "it has one of weight and bias",
    ),
    (
        "repvgg",
        |p| set(p, "batch_norm", "bias", tensor("p_0_conv_1x1_conv_weight")),
        "its vectors have different lengths",
    ),
    (
        "repvgg",
        |p| {
            set(p, "add", "alpha", json!({"as_int": 2}));
            set(p, "add", "other", tensor("p_0_conv_1x1_bn_weight"));
        },
        "it multiplies a constant by `alpha`",
    ),
    (
        "repvgg",
        |p| meta(p, "batch_norm")["sizes"][3] = json!({"as_int": 1}),
        "its inputs have different shapes",
    ),
    (
        "repvgg",
        |p| {
            set(p, "add", "other", tensor("p_0_conv_1x1_conv_weight"));
            meta(p, "batch_norm")["sizes"] = json!([{"as_int": 4}]);
        },
        "the constant `0.conv_1x1.conv.weight` has more dimensions than what it meets",
    ),
    (
        "repvgg",
        |p| set(p, "add", "other", tensor("p_0_conv_1x1_conv_weight")),
        "the constant `0.conv_1x1.conv.weight` is F32 [4, 3, 1, 1], which is not broadcast to its other input",
    ),
    (
        "repvgg",
        |p| meta(p, "add")["dtype"] = 6.into(),
        "the type of `batch_norm` is not kept",
    ),
    (
        "repvgg",
        |p| set(p, "conv2d", "weight", tensor("input")),
        "its weight `input` is computed when the network runs",
    ),
    (
        "repvgg",
        |p| {
            set(
                p,
                "conv2d",
                "weight",
                tensor("b_0_conv_1x1_bn_num_batches_tracked"),
            );
        },
        "its weight `0.conv_1x1.bn.num_batches_tracked` is I64",
    ),
    (
        "repvgg",
        |p| set(p, "relu_", "self", tensor("p_0_conv_1x1_conv_weight")),
        "`p_0_conv_1x1_conv_weight` is changed when the network runs",
    ),
    (
        "repvgg",
        |p| {
            let statistics =
                json!([{"as_tensor": {"name": "batch_norm"}}, {"as_tensor": {"name": "mean"}}]);
            node(p, "batch_norm")["outputs"] = statistics;
            set(p, "relu_", "self", tensor("mean"));
        },
        "its statistics are read",
    ),
    (
        "read-twice",
        |_| {},
        "what it reads or computes is changed in place and read again",
    ),
    (
        "dbb",
        |p| set(p, "avg_pool2d", "divisor_override", json!({"as_int": 5})),
        "its divisor is not that of its window everywhere",
    ),
    (
        "dbb",
        |p| {
            set(p, "avg_pool2d", "stride", json!({"as_ints": [2, 2]}));
            set(p, "avg_pool2d", "ceil_mode", json!({"as_bool": true}));
        },
        "its last windows go over the border (ceil_mode)",
    ),
    (
        "dbb",
        |p| set(p, "pad", "mode", json!({"as_string": "reflect"})),
        "it pads with other things than zeros",
    ),
    (
        "dbb",
        |p| set(p, "pad", "value", json!({"as_float": 0.5})),
        "it pads with a number that is not zero",
    ),
    (
        "dbb",
        |p| set(p, "pad", "pad", json!({"as_ints": [1, 1, 1, -1]})),
        "it cuts, or pads what is no spatial axis",
    ),
    (
        "linear",
        |p| set(p, "dropout", "train", json!({"as_bool": true})),
        "it drops numbers (training mode)",
    ),
    (
        "linear",
        |p| {
            node(p, "relu")["target"] = "torch.ops.aten.clone.default".into();
            meta(p, "relu")["dtype"] = 6.into();
        },
        "it changes the type",
    ),
    (
        "linear",
        |p| {
            node(p, "relu")["target"] = "torch.ops.aten.clone.default".into();
            meta(p, "relu")["strides"] = json!([{"as_int": 1}, {"as_int": 3}]);
        },
        "it changes how its numbers lie in memory",
    ),
    (
        "concat",
        |p| {
            drop(
                meta(p, "conv2d_1")["sizes"]
                    .as_array_mut()
                    .unwrap()
                    .remove(0),
            )
        },
        "its inputs have different ranks",
    ),
    (
        "concat",
        |p| {
            let parts = json!({"as_tensors": [{"name": "conv2d"}, {"name": "p_narrow_weight"}]});
            set(p, "cat", "tensors", parts);
        },
        "one of its inputs is a constant",
    ),
    (
        "misaligned",
        |p| {
            meta(p, "conv2d_1")["sizes"][2] = json!({"as_expr": {"expr_str": "s0"}});
            set(p, "slice_1", "end", json!({"as_int": 5}));
        },
        "the length of what it cuts is not known before it runs",
    ),
    (
        "misaligned",
        |p| set(p, "slice_1", "step", json!({"as_int": 2})),
        "it takes every second element, or fewer",
    ),
    (
        "misaligned",
        |p| node(p, "slice_1")["target"] = "torch.ops.aten.split_with_sizes.default".into(),
        "its parts are not the whole",
    ),
    (
        "tokens-decomposed",
        |p| set(p, "addmm", "beta", json!({"as_int": 0})),
        "it multiplies by 0",
    ),
    (
        "tokens-decomposed",
        |p| set(p, "addmm", "self", tensor("p_b_weight")),
        "its bias is not one number for each output",
    ),
    (
        "tokens-decomposed",
        |p| set(p, "mm", "mat2", tensor("p_a_bias")),
        "its matrix has another number of axes",
    ),
    (
        // A matrix of another shape, turned and read as it was.
        "tokens-decomposed",
        |p| {
            node(p, "permute_1")["target"] = "torch.ops.aten.view.default".into();
            for value in ["permute_1", "p_b_weight"] {
                assert_eq!(meta(p, value)["sizes"][0], json!({"as_int": 6}));
            }
            meta(p, "permute_1")["sizes"] = json!([{"as_int": 4}, {"as_int": 9}]);
        },
        "its matrix `b.weight` is a view of another tensor",
    ),
];

#[test]
fn what_is_nearly_understood_stays_and_the_reason_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    let mut wrong = Vec::new();
    for (name, change, expected) in KEPT {
        with_graph(name, &to, change);
        let pt2 = match Pt2::open(&to) {
            Ok(pt2) => pt2,
            Err(e) => {
                wrong.push(format!("{expected}: {}", chain(&e)));
                continue;
            }
        };
        let reasons: Vec<&str> = pt2
            .graph()
            .nodes()
            .iter()
            .filter_map(|node| match &node.op {
                Op::Opaque(Some(why)) => Some(why.as_str()),
                _ => None,
            })
            .collect();
        if !reasons.iter().any(|why| why == expected) {
            wrong.push(format!("{expected}: {reasons:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn graphs_that_contradict_themselves_are_refused() {
    let cases: &[(Change, &str)] = &[
        (
            |p| graph(p)["outputs"][0] = tensor("nothing"),
            "its graph is not valid: it gives `nothing`, which nothing computes",
        ),
        (
            |p| {
                let specs = &mut p["graph_module"]["signature"]["input_specs"];
                let specs = specs.as_array_mut().unwrap();
                specs.truncate(1);
            },
            "its signature describes 1",
        ),
        (
            |p| {
                let specs = &mut p["graph_module"]["signature"]["input_specs"];
                let specs = specs.as_array_mut().unwrap();
                let twice = specs.clone();
                specs.extend(twice);
            },
            "its graph is not valid: it has 30 inputs, and its signature describes 60",
        ),
        (
            |p| {
                let specs = &mut p["graph_module"]["signature"]["input_specs"];
                specs[1]["parameter"]["arg"]["name"] = specs[0]["parameter"]["arg"]["name"].clone();
                specs[1]["parameter"]["parameter_name"] =
                    specs[0]["parameter"]["parameter_name"].clone();
            },
            "two inputs of its signature are `p_0_conv_kxk_conv_weight`",
        ),
        (
            |p| {
                let specs = &mut p["graph_module"]["signature"]["input_specs"];
                specs[0]["parameter"]["arg"]["name"] = "p_elsewhere".into();
                let values = graph(p)["tensor_values"].as_object_mut().unwrap();
                let own = values["p_0_conv_kxk_conv_weight"].clone();
                values.insert("p_elsewhere".to_owned(), own);
            },
            "its signature describes `p_elsewhere`, which is no input of it",
        ),
        (
            |p| {
                let specs = &mut p["graph_module"]["signature"]["input_specs"];
                specs[0]["parameter"]["parameter_name"] = "elsewhere".into();
            },
            "`p_0_conv_kxk_conv_weight` stands for `elsewhere`, which is not among the weights",
        ),
        (
            |p| {
                let specs = &mut p["graph_module"]["signature"]["input_specs"];
                specs[0] = json!({"paramever": specs[0]["parameter"]});
            },
            "its signature has an input of the kind `paramever`, which is not known",
        ),
        (
            |p| {
                let values = graph(p)["tensor_values"].as_object_mut().unwrap();
                values.remove("p_0_conv_kxk_conv_weight");
            },
            "it says nothing of the shape of `p_0_conv_kxk_conv_weight`",
        ),
        (
            |p| meta(p, "p_0_conv_kxk_conv_weight")["sizes"][0] = json!({"as_int": 5}),
            "it says that `0.conv_kxk.conv.weight` is F32 [5, 3, 3, 3]; the weights say F32 [4, 3, 3, 3]",
        ),
        (
            |p| {
                set(
                    p,
                    "conv2d",
                    "stride",
                    json!({"as_ints": [1, 1], "as_none": true}),
                )
            },
            "found an object with 2 keys; expected one, which tells what it is",
        ),
    ];
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    for (change, expected) in cases {
        with_graph("repvgg", &to, change);
        let error = chain(&Pt2::open(&to).expect_err(expected));
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
    let twice = refused("repvgg", |name, text| {
        (name == "models/model.json")
            .then(|| text.replace(r#"{"name": "batch_norm"}"#, r#"{"name": "conv2d"}"#))
    });
    assert!(
        twice.contains("the graph of `") && twice.contains("` contradicts itself: "),
        "{twice}"
    );
    // A value of which nothing is said ends no region; the parts before it are folded.
    with_graph("repvgg", &to, &|p| {
        let values = graph(p)["tensor_values"].as_object_mut().unwrap();
        values.remove("add");
    });
    assert_eq!(planned(&Pt2::open(&to).unwrap()).plan.blocks().len(), 3);
}

/// What is said of a weight whose description is changed.
fn of_weight(change: impl Fn(&mut Value)) -> Result<(Pt2, PathBuf), String> {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.keep().join("in.pt2");
    changed(&fixture("repvgg.pt2"), &to, |entry, text| {
        (entry == "data/weights/model_weights_config.json").then(|| {
            let mut config: Value = serde_json::from_str(text).unwrap();
            change(&mut config["config"]["0.conv_kxk.conv.weight"]);
            config.to_string()
        })
    });
    let opened = Pt2::open(&to).map_err(|e| chain(&e));
    opened.map(|pt2| (pt2, to))
}

#[test]
fn weights_that_cannot_be_read_are_kept_or_refused() {
    let kept: &[(Change, &str)] = &[
        (
            |w| w["use_pickle"] = true.into(),
            "is stored as a pickle, as tensor subclasses are; export plain tensors",
        ),
        (|w| w["tensor_meta"] = Value::Null, "has no description"),
        (|w| w["tensor_meta"]["layout"] = 1.into(), "is sparse"),
        (
            |w| w["tensor_meta"]["dtype"] = 99.into(),
            "has an element type that is not read",
        ),
        (
            |w| {
                w["tensor_meta"]["strides"][0] = json!({"as_int": 0});
                w["tensor_meta"]["sizes"][0] = json!({"as_int": 400});
            },
            "repeats what is stored, as `expand` does",
        ),
    ];
    for (change, expected) in kept {
        let (pt2, path) = of_weight(change).unwrap();
        let why = pt2.has_plain_weights().unwrap_err().to_string();
        let whole =
            format!("`0.conv_kxk.conv.weight` {expected}, so its weights alone cannot be written");
        assert!(why.ends_with(&whole), "{why}");
        // Nothing is folded from it, and the block beside it is.
        let edit = planned(&pt2);
        assert_eq!(edit.plan.blocks().len(), 2, "{expected}");
        let reasons: Vec<&str> = edit.left.iter().map(|left| &*left.why).collect();
        assert!(
            reasons.iter().any(|why| why.contains(expected)),
            "{reasons:?}"
        );
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
    let refused: &[(Change, &str)] = &[
        (
            |w| w["tensor_meta"]["sizes"][0] = json!({"as_expr": {"expr_str": "s0"}}),
            "the shape of `0.conv_kxk.conv.weight` is not known before it runs",
        ),
        (
            |w| w["tensor_meta"]["storage_offset"] = json!({"as_expr": {"expr_str": "s0"}}),
            "`0.conv_kxk.conv.weight` has no storage offset",
        ),
        (
            |w| w["path_name"] = "weight_900".into(),
            "`0.conv_kxk.conv.weight` lies in `data/weights/weight_900`, which is missing",
        ),
        (
            |w| w["path_name"] = 7.into(),
            "the configuration in `data/weights/` is not valid: ",
        ),
    ];
    for (change, expected) in refused {
        let error = of_weight(change).unwrap_err();
        assert!(
            error.contains("` cannot be read as an exported program: ") && error.contains(expected),
            "{error}\nexpected: {expected}"
        );
    }
}

#[test]
fn archives_of_other_kinds_are_told_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    let all = entries(&fixture("repvgg.pt2"));
    let refused = |entries: &[(String, Vec<u8>)]| {
        fs::write(&to, archive(entries)).unwrap();
        chain(&Pt2::open(&to).expect_err("it is refused"))
    };
    let one = |name: &str| vec![(name.to_owned(), b"{}".to_vec())];
    let without = |end: &str| -> Vec<_> {
        let kept = all.iter().filter(|(name, _)| !name.ends_with(end));
        kept.cloned().collect()
    };
    let and = |mut entries: Vec<(String, Vec<u8>)>, name: &str| {
        entries.extend(one(name));
        entries
    };
    let mut not_text = all.clone();
    let model = not_text
        .iter_mut()
        .find(|(name, _)| name.ends_with("model.json"));
    model.unwrap().1[40] = 0xff;
    for (entries, expected) in [
        (
            one("m/serialized_exported_program.json"),
            "it is laid out as PyTorch 2.7 and earlier do; load it and save it again with PyTorch 2.9 or later",
        ),
        (
            one("m/data/aotinductor/model/x.so"),
            "it is compiled (AOTInductor); fuse the program that it was compiled from",
        ),
        (
            and(all.clone(), "repvgg/models/other.json"),
            "it holds 2 models; save each in a file of its own",
        ),
        (
            and(
                without("weights_config.json"),
                "repvgg/data/weights/model.pt",
            ),
            "its weights are pickled; load it and save it again with PyTorch 2.9 or later",
        ),
        (
            without("constants_config.json"),
            "`data/constants/model_constants_config.json` is missing in it",
        ),
        (not_text, "`models/model.json` in it is not UTF-8"),
    ] {
        let error = refused(&entries);
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
    // A text of 256 MiB of which nothing is stored: the directory is moved behind a hole.
    let bytes = archive(&all);
    let end = bytes.len() - 22;
    let number = |at: usize| u32::from_le_bytes(bytes[at..][..4].try_into().unwrap()) as usize;
    let directory_at = number(end + 16);
    let mut moved = bytes[directory_at..].to_vec();
    let name = b"models/model.json";
    let at = moved
        .windows(name.len())
        .position(|part| part == name)
        .unwrap();
    let entry = moved[..at]
        .windows(4)
        .rposition(|part| part == b"PK\x01\x02")
        .unwrap();
    for length in [20, 24] {
        moved[entry + length..][..4].copy_from_slice(&((1u32 << 28) + 1).to_le_bytes());
    }
    let behind = bytes.len() as u64 + (1 << 28) + 64;
    let end = end - directory_at;
    moved[end + 16..][..4].copy_from_slice(&(behind as u32).to_le_bytes());
    use std::io::{Seek, Write};
    let mut file = fs::File::create(&to).unwrap();
    file.write_all(&bytes[..directory_at]).unwrap();
    file.seek(std::io::SeekFrom::Start(behind)).unwrap();
    file.write_all(&moved).unwrap();
    drop(file);
    let error = chain(&Pt2::open(&to).expect_err("it is too long"));
    assert!(
        error.contains("`models/model.json` in it has more than 268435456 bytes"),
        "{error}"
    );
}

#[test]
fn a_version_that_is_not_understood_is_named() {
    let error = refused("repvgg", |name, text| {
        (name == "models/model.json").then(|| text.replacen(r#""major": 8"#, r#""major": 9"#, 1))
    });
    let expected =
        "version 8 is understood, which torch.export.save of PyTorch 2.9 and later writes";
    assert!(
        error.contains(expected) && error.contains(" has schema version 9."),
        "{error}"
    );
    let training = Pt2::open(fixture("training.pt2")).unwrap_err().to_string();
    let expected = " was exported in training mode: the norm `0.1` takes its statistics from its input; call `model.eval()` before `torch.export.export`";
    assert!(training.ends_with(expected), "{training}");
}

#[test]
fn every_difference_is_told_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let [made, other] = ["made.pt2", "other.pt2"].map(|name| directory.path().join(name));
    let pt2 = super::open("repvgg");
    let plan = planned(&pt2);
    write(&pt2, &plan, &made, 1);
    let failures = || {
        let out = Pt2::open(&other).unwrap();
        verify(&pt2, &plan, Some(&out), &Default::default())
            .unwrap()
            .failures_in_words()
    };
    let cases: &[(Change, &str)] = &[
        (
            |p| p["guards_code"] = json!(["x"]),
            "the program differs from the original around its nodes",
        ),
        (
            |p| node(p, "relu_")["target"] = "torch.ops.aten.silu_.default".into(),
            "node `relu_` of the graph is not what it should be",
        ),
        (
            |p| {
                let nodes = graph(p)["nodes"].as_array_mut().unwrap();
                let mut more = nodes.last().unwrap().clone();
                more["outputs"][0]["as_tensor"]["name"] = "more".into();
                nodes.push(more);
            },
            "the graph has 5 nodes; expected 4",
        ),
        (
            |p| {
                // Another input of the user's, which nothing reads.
                let specs = &mut p["graph_module"]["signature"]["input_specs"];
                let specs = specs.as_array_mut().unwrap();
                let mut spec = specs.last().unwrap().clone();
                let name = &spec["user_input"]["arg"]["as_tensor"]["name"];
                let name = name.as_str().unwrap().to_owned();
                spec["user_input"]["arg"]["as_tensor"]["name"] = "more".into();
                specs.push(spec);
                let like = meta(p, &name).clone();
                graph(p)["tensor_values"]["more"] = like;
                let inputs = graph(p)["inputs"].as_array_mut().unwrap();
                inputs.push(tensor("more"));
            },
            "the graph has 6 input specifications; expected 5",
        ),
        (
            |p| meta(p, "relu_")["requires_grad"] = true.into(),
            "what is said of value `relu_` differs",
        ),
        (
            |p| {
                graph(p)["tensor_values"]
                    .as_object_mut()
                    .unwrap()
                    .remove("relu_");
            },
            "nothing is said of value `relu_`",
        ),
        (
            |p| {
                let meta = meta(p, "relu_").clone();
                graph(p)["tensor_values"]["more"] = meta;
            },
            "value `more` is left over",
        ),
        (
            |p| set(p, "add", "stride", json!({"as_ints": [1, 1]})),
            "`add` is not computed by the conv of block `0`",
        ),
    ];
    for (change, expected) in cases {
        changed(&made, &other, |entry, text| {
            (entry == "models/model.json").then(|| {
                let mut program: Value = serde_json::from_str(text).unwrap();
                change(&mut program);
                program.to_string()
            })
        });
        let failures = failures();
        assert!(
            failures.iter().any(|why| why == expected),
            "{failures:?}\n{expected}"
        );
    }
    let mut all = entries(&made);
    let inputs = all
        .iter_mut()
        .find(|(name, _)| name.contains("sample_inputs"));
    inputs.unwrap().1[100] ^= 1;
    fs::write(&other, archive(&all)).unwrap();
    assert_eq!(
        failures(),
        ["`data/sample_inputs/model.pt` in the archive differs from that of the original"]
    );
    let mut all = entries(&made);
    all.retain(|(name, _)| !name.contains("sample_inputs"));
    all.push(("made/extra/more".to_owned(), vec![1]));
    let root = all[0].0.split_once('/').unwrap().0.to_owned();
    all.last_mut().unwrap().0 = format!("{root}/extra/more");
    fs::write(&other, archive(&all)).unwrap();
    assert_eq!(
        failures(),
        [
            "`data/sample_inputs/model.pt` is missing in the archive",
            "`extra/more` in the archive is left over"
        ]
    );
    // A weight that was copied.
    let pt2 = super::open("concat");
    let plan = planned(&pt2);
    write(&pt2, &plan, &made, 1);
    let mut all = entries(&made);
    let weight = all
        .iter_mut()
        .find(|(name, _)| name.contains("weights/weight_"));
    weight.unwrap().1[3] ^= 1;
    fs::write(&other, archive(&all)).unwrap();
    let out = Pt2::open(&other).unwrap();
    let failures = verify(&pt2, &plan, Some(&out), &Default::default())
        .unwrap()
        .failures_in_words();
    if plan.plan.blocks().is_empty() {
        assert_eq!(
            failures,
            ["`wide.weight` differs from that of the original"]
        );
    }
}

#[test]
fn a_graph_is_compared_with_its_own_kind_and_its_own_weights() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let from = fixture("repvgg.pt2").to_str().unwrap().to_owned();
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx/repvgg.onnx");
    let (code, said) = command(&["verify", &from, onnx.to_str().unwrap()]);
    let expected = " is a graph of another format than what it is compared with";
    assert!(code == 2 && said.contains(expected), "{said}");
    let (code, said) = command(&["fuse", &from, &path("half.pt2"), "--dtype", "f16"]);
    let expected = " would be stored as F16 among values of F32; export the model in F16 instead";
    assert!(code == 2 && said.contains(expected), "{said}");
    super::weights_of("dbb", Path::new(&path("dbb.safetensors")));
    super::weights_of("mobileone", Path::new(&path("mobileone.safetensors")));
    let by = |train: &str, graph: &str| {
        let graph = fixture(&format!("{graph}.pt2"))
            .to_str()
            .unwrap()
            .to_owned();
        command(&[
            "fuse",
            &path(train),
            &path("out.safetensors"),
            "--graph",
            &graph,
        ])
    };
    let (code, said) = by("dbb.safetensors", "repvgg");
    let expected = " is not in the graph; the graph must be of the same model";
    assert!(code == 2 && said.contains(expected), "{said}");
    let (code, said) = by("dbb.safetensors", "any-batch");
    assert!(
        code == 2 && said.contains("the graph must be of the same model"),
        "{said}"
    );
    // A checkpoint that lacks a tensor, and one of another width.
    let pt2 = super::open("linear");
    let cut = |without: &str, widen: bool| {
        let mut views = Vec::new();
        let names: Vec<String> = pt2.state().map(str::to_owned).collect();
        let mut data = Vec::new();
        for name in &names {
            let tensor = pt2.constants().get(name).unwrap();
            let mut bytes = vec![0; tensor.byte_len() as usize];
            pt2.constants().read_at(tensor, 0, &mut bytes).unwrap();
            let mut shape = tensor.shape().to_vec();
            if widen && name == without {
                shape[0] *= 2;
                bytes.extend(bytes.clone());
            }
            data.push((name.clone(), tensor.dtype().clone(), shape, bytes));
        }
        for (name, dtype, shape, bytes) in &data {
            let repfuse::tensor::Dtype::Known(dtype) = dtype else {
                panic!()
            };
            if widen || name != without {
                let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
                views.push((name.clone(), view.unwrap()));
            }
        }
        safetensors::serialize_to_file(views, None, Path::new(&path("cut.safetensors"))).unwrap();
    };
    cut("0.weight", false);
    let (code, said) = by("cut.safetensors", "linear");
    let expected = "`0.weight` of the graph is not in `";
    assert!(code == 2 && said.contains(expected), "{said}");
    cut("0.weight", true);
    let (code, said) = by("cut.safetensors", "linear");
    let expected = "and [5, 6] in the graph; the graph must be of the same model";
    assert!(code == 2 && said.contains(expected), "{said}");
}

/// A program without in-place operators changes its buffers and parameters by giving their new numbers, which PyTorch writes back.
#[test]
fn what_a_program_writes_back_is_no_constant() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    let open = |kind: &str, key: &str, name: &str| {
        let spec = json!({kind: {"arg": {"name": "relu"}, key: name}});
        with_graph("repvgg", &to, &|program| {
            let specs = &mut program["graph_module"]["signature"]["output_specs"];
            specs.as_array_mut().unwrap().insert(0, spec.clone());
        });
        Pt2::open(&to)
    };
    for (kind, key, name) in [
        (
            "buffer_mutation",
            "buffer_name",
            "0.conv_1x1.bn.running_var",
        ),
        (
            "parameter_mutation",
            "parameter_name",
            "0.conv_1x1.conv.weight",
        ),
    ] {
        let program = open(kind, key, name).unwrap();
        let edit = planned(&program);
        let consumed = edit.plan.blocks().iter().flat_map(|block| block.consumed());
        let mut names = consumed.map(|tensor| tensor.name());
        assert!(!names.any(|consumed| consumed == name), "{name}");
        let nodes = program.graph().nodes().iter();
        let reasons = nodes.filter_map(|node| match &node.op {
            Op::Opaque(Some(why)) => Some(why.clone()),
            _ => None,
        });
        let reasons: Vec<String> = reasons.collect();
        let changed = |why: &String| why.ends_with("is changed when the network runs");
        assert!(reasons.iter().any(changed), "{name}: {reasons:?}");
    }
    let unknown = chain(&open("gradient_to_parameter", "parameter_name", "x").unwrap_err());
    let expected =
        "its signature has an output of the kind `gradient_to_parameter`, which is not known";
    assert!(unknown.contains(expected), "{unknown}");
}

/// As `x.to(torch.float32)` leaves a check of what it reads, and `x.type_as(y)` asks for the type that it has.
#[test]
fn what_only_asks_for_a_type_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    let called = |name: &str, target: &str, inputs: Value, outputs: Value| json!({"name": name, "target": target, "inputs": inputs, "outputs": outputs, "metadata": {}});
    let argument = |name: &str, of: &str| json!({"name": name, "arg": tensor(of), "kind": 1});
    let inserted = |p: &mut Value, dtype: u64| {
        let mut meta = meta(p, "batch_norm").clone();
        meta["dtype"] = dtype.into();
        graph(p)["tensor_values"]["typed"] = meta;
        set(p, "add", "self", tensor("typed"));
        let nodes = graph(p)["nodes"].as_array_mut().unwrap();
        let behind = nodes
            .iter()
            .position(|n| n["name"] == "batch_norm")
            .unwrap()
            + 1;
        let check = called(
            "check",
            "torch.ops.aten._assert_tensor_metadata.default",
            json!([argument("a", "batch_norm")]),
            json!([]),
        );
        let typed = called(
            "typed",
            "torch.ops.aten.type_as.default",
            json!([argument("self", "batch_norm"), argument("other", "input")]),
            json!([tensor("typed")]),
        );
        nodes.splice(behind..behind, [check, typed]);
    };
    let blocks = |path: &Path| planned(&Pt2::open(path).unwrap()).plan.blocks().len();
    let before = blocks(&fixture("repvgg.pt2"));
    with_graph("repvgg", &to, &|p| inserted(p, 7));
    let program = Pt2::open(&to).unwrap();
    let edit = planned(&program);
    assert_eq!(edit.plan.blocks().len(), before);
    let fused = directory.path().join("out.pt2");
    write(&program, &edit, &fused, 1);
    let text = entries(&fused);
    let (_, model) = text
        .iter()
        .find(|(name, _)| name.ends_with("models/model.json"))
        .unwrap();
    let model = String::from_utf8_lossy(model);
    assert!(!model.contains("_assert_tensor_metadata") && !model.contains("type_as"));
    let verdict = verify(
        &program,
        &edit,
        Some(&Pt2::open(&fused).unwrap()),
        &Default::default(),
    );
    assert!(verdict.unwrap().accepted());
    // Another type is another operator.
    with_graph("repvgg", &to, &|p| inserted(p, 8));
    let program = Pt2::open(&to).unwrap();
    let other = |node: &repfuse::graph::Node| matches!(&node.op, Op::Opaque(Some(why)) if why == "it changes the type");
    assert!(program.graph().nodes().iter().any(other));
}
