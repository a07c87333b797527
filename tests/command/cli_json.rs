//! What `--json` prints, against the schemas that `repfuse schema` prints.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::tiny::{Ran, Tiny};
use serde_json::{Value, json};

/// The schema of a command's output, with every object closed: what is printed and not described is an error here,
/// while a user's validator lets later versions add fields.
fn schema(tiny: &Tiny, of: &str) -> Value {
    let mut schema: Value =
        serde_json::from_str(&tiny.prints(&["schema", of])).expect("a schema is JSON");
    close(&mut schema);
    schema
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.contains_key("properties") {
                map.insert("unevaluatedProperties".to_owned(), Value::Bool(false));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

/// Parses a document and holds it to its schema.
fn document(tiny: &Tiny, of: &str, ran: &Ran) -> Value {
    let document: Value = serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", ran.stdout, ran.stderr));
    let schema = schema(tiny, of);
    let validator = jsonschema::validator_for(&schema).expect("a valid schema");
    let errors: Vec<String> = validator
        .iter_errors(&document)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert_eq!(errors, Vec::<String>::new(), "{document:#}");
    document
}

#[test]
fn the_schema_of_recipes_is_printed() {
    let printed = Tiny::network().prints(&["schema", "recipe"]);
    assert_eq!(printed, repfuse::recipe::SCHEMA);
}

#[test]
fn every_command_prints_what_its_schema_describes() {
    let tiny = Tiny::network();
    let cases: &[(&str, &[&str])] = &[
        ("inspect", &["inspect", "train.safetensors", "--json"]),
        (
            "inspect",
            &[
                "inspect",
                "train.safetensors",
                "--json",
                "--input-size",
                "32",
                "--kernels",
                "stage1.*",
            ],
        ),
        (
            "fuse",
            &[
                "fuse",
                "train.safetensors",
                "dry.safetensors",
                "--dry-run",
                "--json",
            ],
        ),
        (
            "fuse",
            &[
                "fuse",
                "train.safetensors",
                "deploy.safetensors",
                "--verify",
                "--json",
            ],
        ),
        (
            "fuse",
            &[
                "fuse",
                "train.safetensors",
                "some.safetensors",
                "--skip",
                "stage0",
                "--bn-eps",
                "1e-3",
                "--json",
            ],
        ),
        ("inspect", &["inspect", "deploy.safetensors", "--json"]),
        ("verify", &["verify", "train.safetensors", "--json"]),
        (
            "verify",
            &[
                "verify",
                "train.safetensors",
                "deploy.safetensors",
                "--json",
            ],
        ),
        (
            "verify",
            &[
                "verify",
                "train.safetensors",
                "--end-to-end",
                "--size",
                "32",
                "--json",
            ],
        ),
        ("report", &["report", "train.safetensors", "--json"]),
        (
            "report",
            &[
                "report",
                "train.safetensors",
                "deploy.safetensors",
                "--json",
                "-o",
                "page.html",
            ],
        ),
        ("recipes", &["recipes", "--json"]),
        ("recipes-check", &["recipes", "check", "repvgg", "--json"]),
        (
            "recipes-check",
            &["recipes", "check", "repvgg", "train.safetensors", "--json"],
        ),
    ];
    for (of, args) in cases {
        let ran = tiny.run(args);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{args:?}");
        let document = document(&tiny, of, &ran);
        assert_eq!(document["schema"], format!("repfuse.{of}/1"));
    }
    assert!(tiny.path("page.html").exists());
}

/// A network that is not equivalent is an answer, printed in full, with exit status 1.
#[test]
fn a_no_is_a_whole_document() {
    let tiny = Tiny::network();
    tiny.prints(&["fuse", "train.safetensors", "deploy.safetensors", "--quiet"]);
    let mut deployed = crate::support::forge::File::read(&tiny.path("deploy.safetensors"));
    deployed
        .at("stage1.1.rbr_reparam.weight")
        .edit(|w| w[0] += 1.0);
    deployed
        .at("stage1.2.rbr_reparam.bias")
        .edit(|b| b[0] = f32::NAN);
    deployed.tensors.remove("stage2.0.rbr_reparam.bias");
    deployed.write(&tiny.path("wrong.safetensors"));
    for command in ["verify", "report"] {
        let ran = tiny.run(&[command, "train.safetensors", "wrong.safetensors", "--json"]);
        assert_eq!(ran.status, 1, "{}", ran.stderr);
        let document = document(&tiny, command, &ran);
        let verified = if command == "verify" {
            &document
        } else {
            &document["verified"]
        };
        assert_eq!(verified["accepted"], false);
        assert_eq!(verified["worst_ratio"], Value::Null);
        assert_eq!(
            verified["failures"],
            json!(["`stage2.0.rbr_reparam.bias` is missing"])
        );
    }
}

#[test]
fn what_could_not_be_done_is_said_in_json_too() {
    let tiny = Tiny::network();
    tiny.prints(&["fuse", "train.safetensors", "deploy.safetensors", "--quiet"]);
    let cases: &[(&[&str], u8, &str)] = &[
        (
            &["inspect", "absent.safetensors", "--json"],
            2,
            "cannot open `absent.safetensors`: No such file or directory (os error 2)",
        ),
        (
            &["fuse", "train.safetensors", "deploy.safetensors", "--json"],
            2,
            "`deploy.safetensors` exists; choose another name or pass --force to replace it",
        ),
        (
            &["verify", "train.safetensors", "--recipe", "repvg", "--json"],
            2,
            "there is no recipe `repvg`; did you mean `repvgg`? `repfuse recipes` lists them, and a path ending in `.json` names your own",
        ),
        (
            &[
                "report",
                "train.safetensors",
                "--only",
                "stage9.*",
                "--json",
            ],
            1,
            "none of the 5 blocks is selected; --only and --skip select them, and `repfuse inspect` shows their names",
        ),
        (
            &[
                "inspect",
                "train.safetensors",
                "--kernels",
                "stage1.O",
                "--json",
            ],
            2,
            "there is no block `stage1.O`; did you mean `stage1.0`?",
        ),
        (
            &["recipes", "check", "absent.json", "--json"],
            2,
            "cannot read the recipe `absent.json`: No such file or directory (os error 2)",
        ),
    ];
    for (args, status, message) in cases {
        let ran = tiny.run(args);
        assert_eq!(ran.status, i32::from(*status), "{args:?}");
        assert_eq!(ran.stderr, format!("repfuse: {message}\n"));
        let document = document(&tiny, "error", &ran);
        assert_eq!(document["schema"], "repfuse.error/1");
        assert_eq!(document["error"], *message);
        assert_eq!(document["exit_status"], *status);
    }
}

/// The numbers that a script is most likely to read.
#[test]
fn parameters_and_multiply_adds_are_the_ones_people_count() {
    let tiny = Tiny::network();
    let ran = tiny.run(&["report", "train.safetensors", "--json", "--input-size", "8"]);
    let report = document(&tiny, "report", &ran);
    // Per block: 3×3 and 1×1 weights and two numbers per channel and batch norm; the classifier has 5·8 + 5.
    let before = (3 * 4 * 10 + 16) + 3 * (4 * 4 * 10 + 24) + (4 * 8 * 10 + 32) + 45;
    let after = (3 * 4 * 9 + 4) + 3 * (4 * 4 * 9 + 4) + (4 * 8 * 9 + 8) + 45;
    assert_eq!(
        report["parameters"],
        json!({"before": before, "after": after})
    );
    // Images of 8×8: the stem gives 4×4, the identity blocks keep it, the last one gives 2×2.
    let macs = |taps: usize| 16 * 12 * taps + 3 * 16 * 16 * taps + 4 * 32 * taps;
    assert_eq!(
        report["macs"],
        json!({"input_size": 8, "total": {"before": macs(10), "after": macs(9)}})
    );
    let block = &report["blocks"][1];
    assert_eq!(block["name"], "stage1.0");
    assert_eq!(block["parameters"], json!({"before": 184, "after": 148}));
    assert_eq!(
        block["convs"][0]["macs_per_pixel"],
        json!({"before": 160, "after": 144})
    );
}

/// The classes of the Python package have the fields that the schemas have, and no others.
#[test]
fn python_types_are_those_of_the_schemas() {
    let page = include_str!("../../python/repfuse/_documents.py");
    let mut classes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut class = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("class ") {
            class = rest.strip_suffix("(TypedDict):").expect("a typed dict");
        } else if let Some((field, _)) = line.strip_prefix("    ").and_then(|l| l.split_once(": "))
            && field
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
        {
            classes.entry(class).or_default().insert(field);
        }
    }
    let tiny = Tiny::empty();
    for (command, document, parts) in [
        (
            "fuse",
            "FuseSummary",
            &[
                ("Record", "Record"),
                ("Evidence", "Evidence"),
                ("Document", "Family"),
                ("Warned", "Warned"),
                ("Agreed", "Agreement"),
                ("BlockSummary", "FusedBlock"),
                ("OutputSummary", "FusedConv"),
            ][..],
        ),
        (
            "verify",
            "Verdict",
            &[
                ("Block", "BlockVerdict"),
                ("MapFinding", "MapFinding"),
                ("EndToEnd", "EndToEnd"),
                ("Finding", "Graphs"),
                ("Array", "Array"),
                ("Difference", "Difference"),
            ],
        ),
        (
            "inspect",
            "Inspection",
            &[
                ("BlockDocument", "InspectedBlock"),
                ("OutputDocument", "InspectedConv"),
                ("LeftDocument", "Left"),
            ],
        ),
    ] {
        let schema: Value =
            serde_json::from_str(&tiny.prints(&["schema", command])).expect("a schema is JSON");
        let whole = std::iter::once((&schema, document));
        let parts = parts
            .iter()
            .map(|(name, class)| (&schema["$defs"][name], *class));
        for (part, class) in whole.chain(parts) {
            let fields = part["properties"].as_object().expect("an object").keys();
            let fields: BTreeSet<&str> = fields.map(String::as_str).collect();
            assert_eq!(classes[class], fields, "{class} of `{command}`");
        }
    }
}
