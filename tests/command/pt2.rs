//! Programs of torch.export: read as graphs, fused, and written so that PyTorch loads them.

pub(super) mod archives;
mod interpreter;
mod messages;

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::support::command::repfuse;
use crate::support::graphs::counted;
use archives::{archive, changed, entries};
use interpreter::{Map, run, stored};
use repfuse::graph::pt2::{Edit, Pt2, edit, fuse, verify};
use repfuse::plan::Options;
use repfuse::tensor::Checkpoint;
use serde_json::json;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/pt2/{name}"))
}

fn open(name: &str) -> Pt2 {
    Pt2::open(fixture(&format!("{name}.pt2"))).unwrap_or_else(|e| panic!("{name}: {e:?}"))
}

fn planned(pt2: &Pt2) -> Edit {
    edit(pt2, &Options::default(), false)
        .unwrap_or_else(|e| panic!("{}: {e}", pt2.path().display()))
}

/// Writes the fused program to a file.
fn write(pt2: &Pt2, edit: &Edit, to: &Path, threads: usize) {
    let options = repfuse::fuse::Options {
        shard_size: None,
        replace: true,
        threads: Some(threads),
    };
    let written = fuse(pt2, edit, to, &options, &|_| ControlFlow::Continue(()));
    written.unwrap().finish().unwrap();
}

/// Convs, linear layers and norms of a graph.
fn counts(pt2: &Pt2) -> [usize; 3] {
    let [convs, linear, norms, _] = counted(pt2.graph());
    [convs, linear, norms]
}

/// What PyTorch recorded: what went in, and what came out.
fn sample(name: &str) -> (Map, Vec<Map>) {
    let file = Checkpoint::open(fixture(&format!("{name}.sample.safetensors"))).unwrap();
    let outputs = ["output", "output.1"]
        .into_iter()
        .filter_map(|output| file.get(output));
    let outputs = outputs.map(|tensor| stored(&file, tensor)).collect();
    (stored(&file, file.get("input").unwrap()), outputs)
}

fn largest_difference(a: &[Map], b: &[Map]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = a
        .iter()
        .flat_map(|a| &a.data)
        .fold(0.0f64, |most, x| most.max(x.abs()));
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.shape, b.shape);
        a.data.iter().zip(&b.data)
    });
    pairs.fold(0.0f64, |most, (a, b)| most.max((a - b).abs())) / largest
}

/// Every program: its convs, linear layers and norms as exported, and what is left of them.
const PROGRAMS: [(&str, [usize; 3], [usize; 3]); 46] = [
    ("repvgg", [4, 0, 5], [2, 0, 0]),
    ("mobileone", [6, 0, 7], [3, 0, 0]),
    ("fastvit", [6, 0, 8], [3, 0, 0]),
    ("repvit", [4, 0, 4], [3, 0, 0]),
    ("levit", [0, 4, 4], [0, 4, 0]),
    ("yolov10", [5, 0, 6], [3, 0, 0]),
    ("dbb", [10, 0, 8], [2, 0, 0]),
    ("gated", [9, 0, 2], [5, 0, 0]),
    ("residual", [2, 0, 3], [1, 0, 0]),
    ("scaled", [1, 0, 0], [1, 0, 0]),
    ("concat", [3, 0, 0], [1, 0, 0]),
    ("read-twice", [2, 0, 1], [2, 0, 1]),
    ("misaligned", [4, 0, 0], [4, 0, 0]),
    ("shared", [3, 0, 3], [3, 0, 0]),
    ("conv1d", [1, 0, 1], [1, 0, 0]),
    ("conv3d", [1, 0, 1], [1, 0, 0]),
    ("transposed", [1, 0, 1], [1, 0, 0]),
    ("causal", [2, 0, 1], [1, 0, 0]),
    ("summed", [6, 0, 5], [5, 0, 0]),
    ("linear", [0, 1, 1], [0, 1, 0]),
    ("half", [1, 0, 1], [1, 0, 0]),
    ("bfloat16", [1, 0, 1], [1, 0, 0]),
    ("any-batch", [5, 0, 4], [1, 0, 0]),
    ("channels-last", [5, 0, 4], [1, 0, 0]),
    ("edge", [3, 0, 0], [1, 0, 0]),
    ("border-dbb", [3, 0, 1], [1, 0, 0]),
    ("border-dbb-decomposed", [3, 0, 1], [1, 0, 0]),
    ("border-any-batch", [3, 0, 1], [1, 0, 0]),
    ("border-ecbsr", [3, 0, 0], [1, 0, 0]),
    ("border-ecbsr-decomposed", [3, 0, 0], [1, 0, 0]),
    ("weight-norm", [1, 0, 1], [1, 0, 0]),
    ("weight-norm-apart", [2, 0, 1], [2, 0, 0]),
    ("turned", [0, 1, 1], [0, 1, 0]),
    ("mixed", [2, 0, 1], [2, 0, 0]),
    ("mixed-decomposed", [2, 0, 1], [2, 0, 0]),
    ("pooled", [1, 1, 2], [1, 1, 0]),
    ("pooled-decomposed", [1, 1, 2], [1, 1, 0]),
    ("einsum", [1, 0, 1], [1, 0, 0]),
    ("einsum-decomposed", [1, 0, 1], [1, 0, 0]),
    ("worked", [1, 0, 1], [1, 0, 0]),
    ("pointed", [1, 0, 1], [1, 0, 0]),
    ("pointed-decomposed", [1, 0, 1], [1, 0, 0]),
    ("attention", [0, 3, 2], [1, 2, 0]),
    ("attention-in-place", [0, 3, 2], [1, 2, 1]),
    ("tokens-decomposed", [0, 2, 0], [0, 1, 0]),
    ("conv-decomposed", [1, 0, 1], [1, 0, 0]),
];

#[test]
fn what_is_folded_and_what_comes_out() {
    let directory = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, before, after) in PROGRAMS {
        let pt2 = open(name);
        let (input, expected) = sample(name);
        let allowed = if ["half", "bfloat16"].contains(&name) {
            2e-2
        } else {
            1e-5
        };
        // Values that are changed in place and read again are told apart by no name; attention and gates are not run here.
        let runs = ![
            "read-twice",
            "levit",
            "gated",
            "attention",
            "attention-in-place",
        ]
        .contains(&name);
        // What is filled is no number of the graph: of these the outcome is run.
        let runs_before = runs && !name.starts_with("border-");
        if runs_before && largest_difference(&expected, &run(&pt2, &input)) > allowed {
            wrong.push(format!(
                "{name}: the program read is not the one that PyTorch ran"
            ));
        }
        let found = counts(&pt2);
        let edit = planned(&pt2);
        let to = directory.path().join(format!("{name}.pt2"));
        write(&pt2, &edit, &to, 2);
        let out = Pt2::open(&to).unwrap();
        let verdict = verify(&pt2, &edit, Some(&out), &Default::default()).unwrap();
        if !verdict.accepted() {
            wrong.push(format!(
                "{name}: {:?} {:?}",
                verdict.failures, verdict.blocks
            ));
        }
        if runs && largest_difference(&expected, &run(&out, &input)) > allowed {
            wrong.push(format!("{name}: the fused program gives something else"));
        }
        if (found, counts(&out)) != (before, after) {
            wrong.push(format!(
                "{name}: {found:?} became {:?}; expected {before:?} and {after:?}",
                counts(&out)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_understood_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let [from, to] = ["in.pt2", "out.pt2"].map(|name| directory.path().join(name));
    changed(&fixture("repvgg.pt2"), &from, |name, text| match name {
        "models/model.json" => Some(
            text.replacen(
                '{',
                r#"{"a_new_key": {"of": [1e-400, "\u00e9", 12345678901234567890]}, "#,
                1,
            )
            .replacen(r#""metadata": {"#, r#""metadata": {"seen":   true, "#, 1),
        ),
        "archive_version" => Some("7".to_owned()),
        _ => None,
    });
    let pt2 = Pt2::open(&from).unwrap();
    write(&pt2, &planned(&pt2), &to, 1);
    let (before, after) = (entries(&from), entries(&to));
    for (name, bytes) in &before {
        let kept = after.iter().find(|(other, _)| other == name);
        if !name.contains("/weights/") && !name.ends_with("model.json") {
            assert_eq!(kept.map(|(_, kept)| kept), Some(bytes), "{name}");
        }
    }
    let program = after
        .iter()
        .find(|(name, _)| name.ends_with("models/model.json"))
        .unwrap();
    let program = String::from_utf8(program.1.clone()).unwrap();
    assert!(program.contains(r#""a_new_key": {"of": [1e-400, "\u00e9", 12345678901234567890]}"#));
    // The first node is gone with its metadata; its neighbours are as they were.
    assert!(!program.contains("batch_norm"));
    // An independent reader finds every sum right.
    assert_eq!(archive(&after).len(), archive(&entries(&to)).len());
    let counter = |(name, _): &&(String, Vec<u8>)| name.contains("weights/weight_");
    assert_eq!(
        after.iter().filter(counter).count(),
        4,
        "two convs with a bias each"
    );
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let directory = tempfile::tempdir().unwrap();
    let pt2 = open("mobileone");
    let written = [1, 2, 7].map(|threads| {
        let to = directory.path().join(format!("{threads}.pt2"));
        write(&pt2, &planned(&pt2), &to, threads);
        fs::read(to).unwrap()
    });
    assert!(written.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn fusing_again_finds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("out.pt2");
    let pt2 = open("dbb");
    write(&pt2, &planned(&pt2), &to, 1);
    let again = planned(&Pt2::open(&to).unwrap());
    assert!(again.plan.blocks().is_empty());
}

#[test]
fn a_built_in_recipe_gives_its_names_and_agrees() {
    for (name, recipe, modules) in [
        (
            "repvgg",
            "timm-repvgg",
            &["0.reparam_conv", "1.reparam_conv"][..],
        ),
        (
            "mobileone",
            "timm-mobileone",
            &["0.reparam_conv", "1.reparam_conv", "2.reparam_conv"][..],
        ),
    ] {
        let pt2 = open(name);
        let edit = planned(&pt2);
        assert_eq!(edit.agreement.recipe.as_deref(), Some(recipe), "{name}");
        assert_eq!(edit.agreement.differences, Vec::<String>::new(), "{name}");
        let found: BTreeSet<&str> = edit
            .plan
            .blocks()
            .iter()
            .map(|block| block.fused()[0].module())
            .collect();
        assert_eq!(found, modules.iter().copied().collect(), "{name}");
    }
}

#[test]
fn another_eps_is_told_and_the_graph_is_believed() {
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("in.pt2");
    changed(&fixture("repvgg.pt2"), &from, |name, text| {
        (name == "models/model.json")
            .then(|| text.replacen(r#""as_float": 1e-05"#, r#""as_float": 0.001"#, 1))
    });
    let pt2 = Pt2::open(&from).unwrap();
    let edit = planned(&pt2);
    let told = &edit.agreement.differences[..];
    assert!(
        matches!(told, [one] if one.contains("recipe timm-repvgg says eps 1e-5, the graph 1e-3")),
        "{told:?}"
    );
    let to = directory.path().join("out.pt2");
    write(&pt2, &edit, &to, 1);
    assert!(
        verify(
            &pt2,
            &edit,
            Some(&Pt2::open(&to).unwrap()),
            &Default::default()
        )
        .unwrap()
        .accepted()
    );
}

#[test]
fn what_the_deploy_form_does_not_compute_gets_none_of_its_names() {
    let edit = planned(&open("residual"));
    let told = &edit.agreement.differences[..];
    assert!(
        matches!(told, [one] if one.contains("recipe timm-repvgg says ") && one.contains(", the graph ")),
        "{told:?}"
    );
    assert_eq!(
        edit.plan.blocks()[0].fused()[0].module(),
        "block.reparam_conv.fused"
    );
    assert_eq!(edit.agreement.load, None);
}

#[test]
fn what_a_recipe_folds_and_the_graph_does_not_is_told() {
    let options = Options {
        skip: vec!["0".to_owned()],
        ..Options::default()
    };
    let edit = edit(&open("repvgg"), &options, false).unwrap();
    let expected = "recipe timm-repvgg also folds to `0.reparam_conv`, of which the graph folds more, less or nothing";
    assert_eq!(edit.agreement.differences, [expected]);
}

/// Whether a file is accepted, and what is wrong with it.
fn verdict(pt2: &Pt2, edit: &Edit, path: &Path) -> (bool, Vec<String>) {
    let made = Pt2::open(path).unwrap();
    let verdict = verify(pt2, edit, Some(&made), &Default::default()).unwrap();
    (verdict.accepted(), verdict.failures_in_words())
}

/// The weight is square, so that another operator may read it as well, and computes something else.
#[test]
fn a_matrix_that_is_read_otherwise_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let [to, other] = ["out.pt2", "other.pt2"].map(|name| directory.path().join(name));
    let pt2 = open("root");
    let edit = planned(&pt2);
    write(&pt2, &edit, &to, 1);
    let why = |path: &Path| verdict(&pt2, &edit, path).1;
    assert!(why(&to).is_empty());
    let argument = |name: &str, value: &str| json!({"name": name, "arg": {"as_tensor": {"name": value}}, "kind": 1});
    let across = json!([argument("self", "x"), argument("mat2", "p_weight")]);
    let equation = json!({"name": "equation", "arg": {"as_string": "bi,io->bo"}, "kind": 1});
    let tensors = json!({"name": "tensors", "arg": {"as_tensors": [{"name": "x"}, {"name": "p_weight"}]}, "kind": 1});
    for (target, inputs) in [("mm", across), ("einsum", json!([equation, tensors]))] {
        changed(&to, &other, |name, text| {
            (name == "models/model.json").then(|| {
                let mut program: serde_json::Value = serde_json::from_str(text).unwrap();
                let node = &mut program["graph_module"]["graph"]["nodes"][0];
                node["target"] = format!("torch.ops.aten.{target}.default").into();
                node["inputs"] = inputs.clone();
                program.to_string()
            })
        });
        let found = why(&other);
        let expected = "`mul` is not computed by the conv of block `weight`";
        assert!(found.contains(&expected.to_owned()), "{target}: {found:?}");
    }
}

#[test]
fn every_change_of_the_fused_program_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let [to, other] = ["out.pt2", "other.pt2"].map(|name| directory.path().join(name));
    let pt2 = open("repvgg");
    let edit = planned(&pt2);
    write(&pt2, &edit, &to, 1);
    let accepted = |path: &Path| verdict(&pt2, &edit, path);
    assert_eq!(accepted(&to), (true, Vec::new()));
    let replaced = |what: &'static str, with: &'static str| {
        changed(&to, &other, |name, text| {
            (name == "models/model.json").then(|| {
                assert!(text.contains(what), "{what}");
                text.replacen(what, with, 1)
            })
        });
        accepted(&other)
    };
    let stride = r#"{"name":"stride","arg":{"as_ints":[2,2]},"kind":1}"#;
    let (good, why) = replaced(
        stride,
        r#"{"name":"stride","arg":{"as_ints":[1,1]},"kind":1}"#,
    );
    assert!(
        !good
            && why
                .iter()
                .any(|why| why.contains("is not computed by the conv of block")),
        "{why:?}"
    );
    let (good, why) = replaced(
        "torch.ops.aten.relu_.default",
        "torch.ops.aten.silu_.default",
    );
    assert!(
        !good && why.iter().any(|why| why.contains("node")),
        "{why:?}"
    );
    let (good, why) = replaced(r#""guards_code": []"#, r#""guards_code": ["x"]"#);
    assert!(
        !good && why.iter().any(|why| why.contains("around its nodes")),
        "{why:?}"
    );
    let mut all = entries(&to);
    let weight = all
        .iter_mut()
        .rfind(|(name, _)| name.contains("weights/weight_"))
        .unwrap();
    weight.1[3] ^= 1;
    fs::write(&other, archive(&all)).unwrap();
    assert!(!accepted(&other).0);
    let mut all = entries(&to);
    let inputs = all
        .iter_mut()
        .find(|(name, _)| name.contains("sample_inputs"))
        .unwrap();
    inputs.1[100] ^= 1;
    fs::write(&other, archive(&all)).unwrap();
    assert!(accepted(&other).1[0].contains("`data/sample_inputs/model.pt` in the archive differs"));
}

/// Runs the command; gives its exit status and what it said.
fn command(arguments: &[&str]) -> (i32, String) {
    let done = repfuse().args(arguments).output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap(),
        String::from_utf8(said).unwrap(),
    )
}

#[test]
fn the_command_takes_a_program_for_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let from = fixture("repvgg.pt2").to_str().unwrap().to_owned();
    let (code, said) = command(&["fuse", &from, &path("out.pt2"), "--verify"]);
    assert!(
        code == 0 && said.contains("graph; timm-repvgg knows 2 of the blocks and agrees"),
        "{said}"
    );
    let (code, said) = command(&["fuse", &from, &path("json.pt2"), "--json"]);
    let agreement: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        agreement["agreement"],
        serde_json::json!({"recipe": "timm-repvgg", "blocks": 2, "differences": []})
    );
    let (code, said) = command(&["verify", &from, &path("out.pt2")]);
    assert!(code == 0 && said.contains("equivalent: 2 convs"), "{said}");
    let (code, said) = command(&["inspect", &from]);
    assert!(
        code == 0 && said.contains("graph: 2 blocks to fuse"),
        "{said}"
    );
    let (code, said) = command(&["inspect", "--json", &from]);
    assert!(code == 0 && said.contains("0.reparam_conv"), "{said}");
    let (code, said) = command(&["fuse", &path("out.pt2"), &path("again.pt2")]);
    assert!(code == 0 && said.contains("nothing to fuse"), "{said}");
    // The deploy state dict, and the same from the weights alone by the graph.
    let (code, said) = command(&["fuse", &from, &path("deploy.safetensors")]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = command(&["verify", &from, &path("deploy.safetensors")]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = command(&["fuse", &from, &path("half.pt2"), "--dtype", "f16"]);
    assert!(
        code == 2 && said.contains("would be stored as F16 among values of F32"),
        "{said}"
    );
    let (code, said) = command(&["fuse", &from, &path("half.safetensors"), "--dtype", "f16"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = command(&["fuse", &from, &path("one.pt2"), "--only", "1*"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(counts(&Pt2::open(path("one.pt2")).unwrap()), [3, 0, 2]);
}

/// The weights of a program as a checkpoint.
pub(super) fn weights_of(name: &str, to: &Path) {
    let pt2 = open(name);
    let tensors: Vec<_> = (pt2.state())
        .map(|name| {
            let tensor = pt2.constants().get(name).unwrap();
            let mut bytes = vec![0; tensor.byte_len() as usize];
            pt2.constants().read_at(tensor, 0, &mut bytes).unwrap();
            (name.to_owned(), tensor.clone(), bytes)
        })
        .collect();
    let views: Vec<_> = (tensors.iter())
        .map(|(name, tensor, bytes)| {
            let repfuse::tensor::Dtype::Known(dtype) = tensor.dtype() else {
                panic!()
            };
            let view = safetensors::tensor::TensorView::new(*dtype, tensor.shape().to_vec(), bytes);
            (name.clone(), view.unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, to).unwrap();
}

/// Fuses and verifies a checkpoint by a graph: what comes out is what the graph itself gives.
fn by_graph(name: &str, directory: &Path) {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let graph = fixture(&format!("{name}.pt2"));
    let graph = graph.to_str().unwrap().to_owned();
    weights_of(name, Path::new(&path("train.safetensors")));
    let (code, said) = command(&[
        "fuse",
        &path("train.safetensors"),
        &path("a.safetensors"),
        "--graph",
        &graph,
        "--verify",
    ]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = command(&["fuse", &graph, &path("b.safetensors")]);
    assert_eq!(code, 0, "{said}");
    let tensors = |name: &str| {
        let bytes = fs::read(path(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.data().to_vec()))
            .collect();
        all.sort();
        all
    };
    assert_eq!(tensors("a.safetensors"), tensors("b.safetensors"));
    let (code, said) = command(&[
        "verify",
        &path("train.safetensors"),
        &path("b.safetensors"),
        "--graph",
        &graph,
    ]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn structure_from_a_graph_and_numbers_from_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // Of the one, two convs share the numbers of a norm.
    let mixed = directory.path().join("mixed");
    fs::create_dir(&mixed).unwrap();
    by_graph("mixed", &mixed);
    by_graph("dbb", directory.path());
    // A graph of another model.
    let other = fixture("repvgg.pt2").to_str().unwrap().to_owned();
    let (code, said) = command(&[
        "fuse",
        &path("train.safetensors"),
        &path("c.safetensors"),
        "--graph",
        &other,
    ]);
    assert!(
        code == 2 && said.contains("is not in the graph; the graph must be of the same model"),
        "{said}"
    );
}

#[test]
fn a_norm_behind_a_permutation_says_why_it_stays() {
    // What the program gives keeps its name, and what stands behind an operator is not written there.
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("given.pt2");
    let given = r#""outputs": [{"as_tensor": {"name": "batch_norm"}}], "nodes""#;
    changed(&fixture("turned.pt2"), &to, |name, text| {
        let relu = r#""outputs": [{"as_tensor": {"name": "relu"}}], "nodes""#;
        let spec = |name: &str| {
            format!(r#""user_output": {{"arg": {{"as_tensor": {{"name": "{name}"}}}}}}"#)
        };
        (name == "models/model.json").then(|| {
            text.replace(relu, given)
                .replace(&spec("relu"), &spec("batch_norm"))
        })
    });
    let pt2 = Pt2::open(&to).unwrap();
    let left = planned(&pt2).left;
    let why =
        "its axes are in another order than where the conv or linear layer before it is computed";
    let all: Vec<&str> = left.iter().map(|left| &*left.why).collect();
    assert_eq!(all, [why]);
}

/// The graph has the parts of a weight under weight norm; a file of weights is read as having the weight that they make.
#[test]
fn a_weight_in_parts_that_no_block_has_is_found_in_the_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let graph = fixture("weight-norm-apart.pt2");
    let graph = graph.to_str().unwrap();
    weights_of("weight-norm-apart", Path::new(&path("train.safetensors")));
    let by_graph = ["--graph", graph, "--verify"];
    let (train, out) = (path("train.safetensors"), path("out.safetensors"));
    let (code, said) = command(&[&["fuse", &train, &out], &by_graph[..]].concat());
    assert_eq!(code, 0, "{said}");
    let bytes = fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let parts = ["original0", "original1"].map(|end| format!("2.parametrizations.weight.{end}"));
    for part in &parts {
        assert!(file.tensor(part).is_ok(), "{part} of {:?}", file.names());
    }
    // A weight that is computed in a block has the numbers of the export.
    let graph = fixture("weight-norm.pt2");
    let graph = graph.to_str().unwrap();
    weights_of("weight-norm", Path::new(&train));
    let (code, said) = command(&["fuse", &train, &path("b.safetensors"), "--graph", graph]);
    assert!(
        code == 2 && said.contains(
                ", and was read with its own numbers; export the model with the numbers of the checkpoint, and fuse that"
            ),
        "{said}"
    );
}

#[test]
fn a_recipe_is_learned_from_a_graph() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // No recipe knows the last three.
    for name in [
        "repvgg",
        "mobileone",
        "fastvit",
        "repvit",
        "distilled",
        "yolov10",
        "dbb",
        "gated",
        "weight-norm-apart",
    ] {
        let graph = fixture(&format!("{name}.pt2")).to_str().unwrap().to_owned();
        let [recipe, train] = [
            path(&format!("{name}.json")),
            path(&format!("{name}.safetensors")),
        ];
        let (code, said) = command(&["recipes", "learn", &graph, "-o", &recipe]);
        assert_eq!(
            code,
            0,
            "{name}: {said}\n{}",
            fs::read_to_string(&recipe).unwrap_or_default()
        );
        weights_of(name, Path::new(&train));
        let [by_recipe, by_graph] = [path("by_recipe.safetensors"), path("by_graph.safetensors")];
        let (code, said) = command(&["fuse", &train, &by_recipe, "--recipe", &recipe, "--force"]);
        assert_eq!(code, 0, "{name}: {said}");
        let (code, said) = command(&["fuse", &graph, &by_graph, "--force"]);
        assert_eq!(code, 0, "{name}: {said}");
        let tensors = |name: &str| {
            let bytes = fs::read(name).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<_> = file
                .tensors()
                .into_iter()
                .map(|(name, view)| (name, view.data().to_vec()))
                .collect();
            all.sort();
            all
        };
        assert_eq!(tensors(&by_recipe), tensors(&by_graph), "{name}");
        let text = fs::read_to_string(&recipe).unwrap();
        assert_eq!(text.contains("beside"), name == "gated", "{name}: {text}");
        let again = command(&["recipes", "learn", &graph, "-o", &recipe]);
        assert!(again.0 == 2 && again.1.contains("exists"), "{}", again.1);
    }
}

/// What a program that is changed like this is refused for.
fn refused(name: &str, change: impl Fn(&str, &str) -> Option<String>) -> String {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    changed(&fixture(&format!("{name}.pt2")), &to, change);
    chain(&Pt2::open(&to).expect_err("it is refused"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[test]
fn norms_in_training_mode_are_refused_with_the_remedy() {
    let error = Pt2::open(fixture("training.pt2")).unwrap_err().to_string();
    assert!(
        error.contains("was exported in training mode: the norm `0.1`"),
        "{error}"
    );
    assert!(
        error.contains("call `model.eval()` before `torch.export.export`"),
        "{error}"
    );
}

#[test]
fn hostile_programs_are_refused_by_name() {
    let program = |what: &'static str, with: &'static str| {
        refused("repvgg", move |name, text| {
            (name == "models/model.json").then(|| {
                assert!(text.contains(what), "{what}");
                text.replacen(what, with, 1)
            })
        })
    };
    let weights = |what: &'static str, with: &'static str| {
        refused("repvgg", move |name, text| {
            (name == "data/weights/model_weights_config.json").then(|| {
                assert!(text.contains(what), "{what}");
                text.replacen(what, with, 1)
            })
        })
    };
    for (error, expected) in [
        (
            program(r#""major": 8"#, r#""major": 9"#),
            "has schema version 9.",
        ),
        (
            program(r#""schema_version""#, r#""scheme""#),
            "missing field `schema_version`",
        ),
        (
            program(
                r#"{"as_tensor": {"name": "input"}}, "kind": 1}"#,
                r#"{"as_tensor": {"name": "y"}}, "kind": 1}"#,
            ),
            "reads `y`, which is not there",
        ),
        (
            refused("repvgg", |name, text| {
                (name == "models/model.json")
                    .then(|| text.replace(r#"{"name": "batch_norm"}"#, r#"{"name": "conv2d"}"#))
            }),
            "two values are named `conv2d`",
        ),
        (
            program(
                r#""outputs": [{"as_tensor": {"name": "conv2d"}}]"#,
                r#""outputs": [{"as_tensor": {"name": "p_0_conv_1x1_conv_weight"}}]"#,
            ),
            "node `conv2d` computes `p_0_conv_1x1_conv_weight`, which is an input or a weight",
        ),
        (
            program(
                r#""sizes": [{"as_int": 4}, {"as_int": 3}"#,
                r#""sizes": [{"as_int": 5}, {"as_int": 3}"#,
            ),
            "the weights say F32",
        ),
        (
            program(r#""nodes": ["#, r#""nodes": [7, "#),
            "its graph is not valid",
        ),
        (
            weights(r#""path_name": "weight_0""#, r#""path_name": "weight_900""#),
            "which is missing",
        ),
        (
            weights(
                r#""path_name": "weight_0""#,
                r#""path_name": "../../models/model.json""#,
            ),
            "which is missing",
        ),
        (
            weights(
                r#""sizes": [{"as_int": 4}, {"as_int": 3}"#,
                r#""sizes": [{"as_int": 4000000}, {"as_int": 3}"#,
            ),
            "lies outside of its storage",
        ),
        (
            weights(
                r#""storage_offset": {"as_int": 0}"#,
                r#""storage_offset": {"as_int": 18446744073709551615}"#,
            ),
            "lies outside of its storage",
        ),
        (
            weights(r#""config": {"#, r#""config": {"x": 1, "x": 2, "#),
            "the key `x` is there twice",
        ),
    ] {
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
    let big = refused("repvgg", |name, _| {
        (name == "byteorder").then(|| "big".to_owned())
    });
    assert!(
        big.contains("its byte order is `big`; expected little"),
        "{big}"
    );
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    let all = entries(&fixture("repvgg.pt2"));
    let refused = |bytes: &[u8]| {
        fs::write(&to, bytes).unwrap();
        chain(&Pt2::open(&to).expect_err("it is refused"))
    };
    let without = |end: &str| {
        let left: Vec<_> = all
            .iter()
            .filter(|(name, _)| !name.ends_with(end))
            .cloned()
            .collect();
        archive(&left)
    };
    let with = |name: &str| {
        let mut more = all.clone();
        more.push((name.to_owned(), b"{}".to_vec()));
        archive(&more)
    };
    let long = {
        let mut long = all.clone();
        let weight = long
            .iter_mut()
            .find(|(name, _)| name.contains("data/weights/weight_"));
        weight.unwrap().1.push(0);
        archive(&long)
    };
    let whole = archive(&all);
    for (bytes, expected) in [
        (
            long,
            " bytes, which are no whole number of its elements of 4",
        ),
        (without("models/model.json"), "it has no `models/*.json`"),
        (without("weights_config.json"), "is missing in it"),
        (without("constants_config.json"), "is missing in it"),
        (with("repvgg/models/other.json"), "it holds 2 models"),
        (
            with("elsewhere/x"),
            "`elsewhere/x` in it is outside of `repvgg/`",
        ),
        (
            whole[..whole.len() - 30].to_vec(),
            "no directory at its end",
        ),
    ] {
        let error = refused(&bytes);
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
    // The compression method in the directory, and where an entry lies.
    // (An entry of its own is an archive too: the directory is where the last record says.)
    let end = whole[whole.len() - 22..].last_chunk::<6>().unwrap();
    let directory_at = u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize;
    assert_eq!(whole[directory_at..][..4], *b"PK\x01\x02");
    let mut compressed = whole.clone();
    compressed[directory_at + 10] = 8;
    assert!(refused(&compressed).contains("is compressed"));
    let mut outside = whole.clone();
    outside[directory_at + 42..directory_at + 46].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    assert!(
        refused(&outside).contains("is broken"),
        "{}",
        refused(&outside)
    );
    let mut long = whole.clone();
    for at in [20, 24] {
        long[directory_at + at..directory_at + at + 4]
            .copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    }
    assert!(refused(&long).contains("ends behind the file"));
    // Older layouts are named.
    let old = vec![(
        "m/serialized_exported_program.json".to_owned(),
        b"{}".to_vec(),
    )];
    assert!(refused(&archive(&old)).contains("PyTorch 2.7 and earlier"));
}

#[test]
fn no_cut_or_turned_bit_makes_it_panic() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("in.pt2");
    let whole = fs::read(fixture("linear.pt2")).unwrap();
    let mut random = crate::support::Random(7);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        match random.below(3) {
            0 => bytes.truncate(random.below(whole.len())),
            n => {
                for _ in 0..n * 4 {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        fs::write(&to, &bytes).unwrap();
        if let Ok(pt2) = Pt2::open(&to) {
            let _ = edit(&pt2, &Options::default(), false);
        }
    }
}
