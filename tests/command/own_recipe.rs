//! A block that nobody here has seen: everything that the recipe language can say, and what it says about mistakes.

use std::path::PathBuf;
use std::process::Output;

use crate::support::Random;
use crate::support::command::repfuse;
use crate::support::forge::{File, Held};
use tempfile::TempDir;

struct Bench {
    directory: TempDir,
    random: Random,
    file: File,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            directory: tempfile::tempdir().expect("a directory"),
            random: Random(11),
            file: File::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.between(name, shape, -1.0, 1.0);
    }

    fn between(&mut self, name: &str, shape: &[usize], low: f64, high: f64) {
        let held = Held::random(&mut self.random, shape, low, high);
        self.file.tensors.insert(name.to_owned(), held);
    }

    fn norm(&mut self, module: &str, channels: usize) {
        for end in ["weight", "bias", "running_mean"] {
            self.tensor(&format!("{module}.{end}"), &[channels]);
        }
        self.between(&format!("{module}.running_var"), &[channels], 0.01, 2.0);
    }

    fn run(&self, recipe: &str, command: &str, more: &[&str]) -> Output {
        self.file.write(&self.path("in.safetensors"));
        std::fs::write(self.path("own.json"), recipe).expect("a file");
        let _ = std::fs::remove_file(self.path("out.safetensors"));
        let mut run = repfuse();
        run.current_dir(self.directory.path())
            .args([command, "in.safetensors", "out.safetensors"]);
        run.args(["--recipe", "own.json"])
            .args(more)
            .output()
            .expect("the command runs")
    }

    /// Fuses and verifies; returns what was written.
    fn fuse(&self, recipe: &str) -> File {
        let output = self.run(recipe, "fuse", &["--verify"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        File::read(&self.path("out.safetensors"))
    }

    /// What `verify` says of the one conv of a deploy form, after [`fuse`](Bench::fuse).
    fn verdict(&self, deploy: &File) -> serde_json::Value {
        deploy.write(&self.path("altered.safetensors"));
        let output = repfuse()
            .current_dir(self.directory.path())
            .args(["verify", "in.safetensors", "altered.safetensors"])
            .args(["--recipe", "own.json", "--json"])
            .output()
            .expect("the command runs");
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        found["blocks"][0].clone()
    }

    fn refused(&self, recipe: &str) -> String {
        let output = self.run(recipe, "fuse", &[]);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(!self.path("out.safetensors").exists());
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

fn recipe(blocks: &str) -> String {
    format!(
        r#"{{"name": "own", "about": "a test", "eps": 1e-5, "beside": ["{{p}}"], "blocks": [{blocks}]}}"#
    )
}

fn shapes(file: &File) -> Vec<(String, Vec<usize>)> {
    file.tensors
        .iter()
        .map(|(name, held)| (name.clone(), held.shape.clone()))
        .collect()
}

/// A 2×2 kernel at dilation 2 covers the corners of a 3×3, and adds to one with a centre.
#[test]
fn an_even_dilated_kernel_covers_the_corners() {
    let mut bench = Bench::new();
    bench.tensor("a.full.weight", &[4, 4, 3, 3]);
    bench.tensor("a.corners.weight", &[4, 4, 2, 2]);
    let fused = bench.fuse(&recipe(
        r#"{"at": "{p}.full.weight", "fuse": {"{p}.conv": {"sum": [
            {"conv": "{p}.full", "bias": "optional"}, {"conv": "{p}.corners", "bias": "optional", "dilation": 2}, "identity"]}}}"#,
    ));
    let full = bench.file.tensors["a.full.weight"].values();
    let corners = bench.file.tensors["a.corners.weight"].values();
    let got = fused.tensors["a.conv.weight"].values();
    for (i, got) in got.iter().enumerate() {
        let (pair, y, x) = (i / 9, i % 9 / 3, i % 3);
        let corner = if y != 1 && x != 1 {
            corners[pair * 4 + y / 2 * 2 + x / 2]
        } else {
            0.0
        };
        let tap = if y == 1 && x == 1 && pair / 4 == pair % 4 {
            1.0
        } else {
            0.0
        };
        let want = (f64::from(full[i]) + f64::from(corner) + tap) as f32;
        assert_eq!(*got, want, "tap {y},{x} of pair {pair}");
    }
}

/// A kernel stored as `[out, kh, kw]` is depthwise, and one that is flipped is applied with its last tap first.
#[test]
fn axes_and_flipped_kernels() {
    let mut bench = Bench::new();
    bench.tensor("a.full", &[4, 3, 3, 3]);
    bench.tensor("a.point", &[4, 3]);
    bench.tensor("a.prior", &[4, 3, 2]);
    let fused = bench.fuse(&recipe(
        r#"{"at": "{p}.full", "bias": false, "fuse": {"{p}.conv": {"sum": [
            {"conv": {"weight": "{p}.full"}, "flipped": true},
            {"seq": [{"conv": {"weight": "{p}.point"}},
                {"conv": {"weight": "{p}.prior"}, "axes": "ohw", "dilation": [1, 2], "flipped": true}]}]}}}"#,
    ));
    assert_eq!(
        shapes(&fused),
        [("a.conv.weight".to_owned(), vec![4, 3, 3, 3])]
    );
    let [full, point, prior] =
        ["a.full", "a.point", "a.prior"].map(|name| bench.file.tensors[name].values());
    for (i, got) in fused.tensors["a.conv.weight"].values().iter().enumerate() {
        let (pair, y, x) = (i / 9, i % 9 / 3, i % 3);
        // Dilated, the two columns of the prior are the outer ones; turned by 180°, each is the other's.
        let column = [Some(1), None, Some(0)][x];
        let before = column.map_or(0.0, |x| {
            f64::from(point[pair]) * f64::from(prior[pair / 3 * 6 + (2 - y) * 2 + x])
        });
        let want = f64::from(full[pair * 9 + 8 - i % 9]) + before;
        assert_eq!(*got, want as f32, "tap {y},{x} of pair {pair}");
    }
}

/// One kernel for all channels, as a blur or an average is stored, behind a conv and on the input.
#[test]
fn a_kernel_that_all_channels_share() {
    let mut bench = Bench::new();
    bench.tensor("a.point.weight", &[4, 3]);
    bench.tensor("a.full.weight", &[4, 3, 3, 3]);
    bench.tensor("a.blur", &[3, 3]);
    let own = |first: &str| {
        recipe(&format!(
            r#"{{"at": "{{p}}.full.weight", "bias": false, "fuse": {{"{{p}}.conv": {{"sum": [
                {{"conv": "{{p}}.full", "bias": "optional"}}, {{"seq": [{first}]}}]}}}}}}"#
        ))
    };
    let blur = r#"{"conv": {"weight": "{p}.blur"}, "axes": "hw"}"#;
    let point = r#"{"conv": "{p}.point", "bias": "optional"}"#;
    let behind = bench.fuse(&own(&format!("{point}, {blur}")));
    let before = bench.fuse(&own(&format!("{blur}, {point}")));
    let [full, point, blur] =
        ["a.full.weight", "a.point.weight", "a.blur"].map(|name| bench.file.tensors[name].values());
    let got = behind.tensors["a.conv.weight"].values();
    for (i, got) in got.iter().enumerate() {
        let product = f64::from(point[i / 9]) * f64::from(blur[i % 9]);
        assert_eq!(*got, (f64::from(full[i]) + product) as f32, "{i}");
    }
    assert_eq!(got, before.tensors["a.conv.weight"].values());
    // Beside a dense conv it is narrower, and behind it a norm tells its width.
    bench.tensor("a.square.weight", &[4, 4, 3, 3]);
    let beside = recipe(
        r#"{"at": "{p}.square.weight", "bias": false, "fuse": {"{p}.conv": {"sum": [
            {"conv": "{p}.square", "bias": "optional"}, {"conv": {"weight": "{p}.blur"}, "axes": "hw"}]}}}"#,
    );
    let beside = bench.fuse(&beside);
    let square = bench.file.tensors["a.square.weight"].values();
    for (i, got) in beside.tensors["a.conv.weight"].values().iter().enumerate() {
        let own = if i / 9 / 4 == i / 9 % 4 {
            blur[i % 9]
        } else {
            0.0
        };
        assert_eq!(*got, (f64::from(square[i]) + f64::from(own)) as f32, "{i}");
    }
    bench.norm("a.n", 5);
    let normed = recipe(
        r#"{"at": "{p}.blur", "fuse": {"{p}.conv": {"seq": [
            {"sum": [{"conv": {"weight": "{p}.blur"}, "axes": "hw"}, "identity"]}, {"bn": "{p}.n"}]}}}"#,
    );
    let normed = bench.fuse(&normed);
    assert_eq!(normed.tensors["a.conv.weight"].shape, [5, 1, 3, 3]);
    // Alone it does not say how many channels there are.
    let alone = recipe(
        r#"{"at": "{p}.blur", "fuse": {"{p}.conv": {"conv": {"weight": "{p}.blur"}, "axes": "hw"}}}"#,
    );
    assert!(
        bench
            .refused(&alone)
            .contains("nothing in the block says how many groups it has"),
    );
}

/// A list may be that of any tensor in an `each`; a branch that was lost is not passed over.
#[test]
fn a_gap_in_a_list_is_refused_wherever_the_list_stands() {
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 4, 3, 3]);
    bench.tensor("a.s.0", &[4]);
    bench.tensor("a.s.2", &[4]);
    let own = recipe(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.d": {"each": {"seq": [{"conv": "{p}.c", "bias": "optional"}, {"scale": "{p}.s.{i}"}]}}}}"#,
    );
    let said = "`a.s.1` is missing, but later branches are there";
    assert!(
        bench.refused(&own).contains(said),
        "{}",
        bench.refused(&own)
    );
    bench.tensor("a.s.1", &[4]);
    bench.fuse(&own);
}

/// Blocks go by their path, whatever else their names capture.
#[test]
fn blocks_are_called_by_their_path() {
    let mut bench = Bench::new();
    for name in ["net.0.q", "net.1.k"] {
        bench.tensor(&format!("{name}.c.weight"), &[4, 4]);
    }
    let own = recipe(
        r#"{"at": "{prefix}.{part:q|k}.c.weight", "fuse": {"{prefix}.{part:q|k}.d": {"conv": "{prefix}.{part:q|k}.c", "bias": "optional"}}}"#,
    );
    bench.fuse(&own);
    let one = bench.run(&own, "fuse", &["--only", "net.1", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&one.stdout).expect("JSON");
    assert_eq!(found["blocks"][0]["name"], "net.1", "{found}");
    assert_eq!(found["blocks_skipped"], serde_json::json!(["net.0"]));
}

/// A Linear layer behind an average pooling becomes a conv with a height and a width.
#[test]
fn an_average_pooling_adds_the_axes_it_needs() {
    let mut bench = Bench::new();
    bench.tensor("a.fc.weight", &[4, 3]);
    bench.tensor("b.wide.weight", &[4, 3, 3]);
    let fused = bench.fuse(&recipe(
        r#"{"at": "{p}.fc.weight", "bias": false, "fuse": {"{p}.conv": {"seq": [{"mean": 3}, {"conv": "{p}.fc", "bias": "optional"}]}}},
           {"at": "{p}.wide.weight", "bias": false, "fuse": {"{p}.row": {"seq": [{"conv": "{p}.wide", "bias": "optional"}, {"mean": [1, 2]}]},
            "{p}.conv": {"seq": [{"conv": "{p}.wide", "bias": "optional"}, {"mean": 2}]}}}"#,
    ));
    assert_eq!(
        shapes(&fused),
        [
            ("a.conv.weight".to_owned(), vec![4, 3, 3, 3]),
            ("b.conv.weight".to_owned(), vec![4, 3, 2, 4]),
            ("b.row.weight".to_owned(), vec![4, 3, 4])
        ]
    );
    let fc = bench.file.tensors["a.fc.weight"].values();
    for (i, got) in fused.tensors["a.conv.weight"].values().iter().enumerate() {
        assert_eq!(*got, (f64::from(fc[i / 9]) * (1.0 / 9.0)) as f32, "{i}");
    }
}

/// What takes the place of a weight is stored as that was, whatever is folded into it; a new module is stored as the widest.
#[test]
fn what_takes_the_place_of_a_weight_keeps_its_axes() {
    let block = |output: &str| {
        recipe(&format!(
            r#"{{
            "at": "{{p}}.linear.weight",
            "fuse": {{ "{{p}}.{output}": {{ "seq": [
                {{ "sum": ["identity", {{ "conv": "{{p}}.adapter", "bias": "optional" }}] }}, {{ "conv": "{{p}}.linear", "bias": "optional" }} ] }} }}
        }}"#
        ))
    };
    let mut bench = Bench::new();
    bench.tensor("a.linear.weight", &[6, 4]);
    bench.tensor("a.linear.bias", &[6]);
    bench.tensor("a.adapter.weight", &[4, 4, 1]);
    bench.tensor("a.adapter.bias", &[4]);
    let in_place = bench.fuse(&block("linear"));
    let elsewhere = bench.fuse(&block("fused"));
    assert_eq!(in_place.tensors["a.linear.weight"].shape, [6, 4]);
    assert_eq!(elsewhere.tensors["a.fused.weight"].shape, [6, 4]);
    // An axis that the adapter fills is not dropped.
    bench.tensor("a.adapter.weight", &[4, 4, 3]);
    let wider = bench.fuse(&block("linear"));
    assert_eq!(wider.tensors["a.linear.weight"].shape, [6, 4, 3]);
}

/// A norm before q, k and v folds into all three, and its own tensors are written nowhere.
#[test]
fn several_outputs_share_a_norm() {
    let mut bench = Bench::new();
    bench.norm("a.norm", 6);
    for name in ["q", "k", "v"] {
        bench.tensor(&format!("a.{name}.weight"), &[4, 6]);
    }
    bench.tensor("a.v.bias", &[4]);
    let output = |name: &str| {
        format!(
            r#""{{p}}.{name}": {{"seq": [{{"bn": "{{p}}.norm"}}, {{"conv": "{{p}}.{name}", "bias": "optional"}}]}}"#
        )
    };
    let fused = bench.fuse(&recipe(&format!(
        r#"{{"at": "{{p}}.norm.weight", "fuse": {{{}, {}, {}}}}}"#,
        output("q"),
        output("k"),
        output("v")
    )));
    let names: Vec<String> = fused.tensors.keys().cloned().collect();
    assert_eq!(
        names,
        [
            "a.k.bias",
            "a.k.weight",
            "a.q.bias",
            "a.q.weight",
            "a.v.bias",
            "a.v.weight"
        ]
    );
    assert!(
        fused
            .tensors
            .values()
            .all(|t| t.shape == [4] || t.shape == [4, 6]),
        "a Linear stays one"
    );
}

/// 1×1 expand + I, 3×3 + I, 1×1 reduce: identities around the convs inside a sequence.
#[test]
fn identities_inside_a_sequence() {
    let mut bench = Bench::new();
    bench.tensor("a.expand.weight", &[4, 4, 1, 1]);
    bench.tensor("a.middle.weight", &[4, 4, 3, 3]);
    bench.tensor("a.reduce.weight", &[2, 4, 1, 1]);
    bench.norm("a.bn", 4);
    let fused = bench.fuse(&recipe(
        r#"{"at": "{p}.expand.weight", "fuse": {"{p}.conv": {"seq": [
            {"sum": [{"conv": "{p}.expand", "bias": "optional"}, "identity"]},
            {"bn": "{p}.bn"},
            {"sum": [{"conv": "{p}.middle", "bias": "optional"}, "identity"]},
            {"conv": "{p}.reduce", "bias": "optional"}]}}}"#,
    ));
    assert_eq!(
        shapes(&fused),
        [
            ("a.conv.bias".to_owned(), vec![2]),
            ("a.conv.weight".to_owned(), vec![2, 4, 3, 3])
        ]
    );
}

/// Branches of a list, an optional one, scales by tensors and numbers, pooling, non-square kernels, declared groups.
#[test]
fn everything_at_once() {
    let mut bench = Bench::new();
    for i in 0..3 {
        bench.tensor(&format!("net.0.branches.{i}.weight"), &[4, 2, 3, 3]);
        bench.norm(&format!("net.0.norms.{i}"), 4);
    }
    bench.tensor("net.0.tall.weight", &[4, 2, 3, 1]);
    bench.tensor("net.0.alpha", &[1]);
    bench.tensor("net.0.gamma", &[4, 1, 1]);
    bench.tensor("net.0.shift", &[4]);
    bench.norm("net.0.after", 4);
    bench.tensor("net.0.aux.head.weight", &[3, 4]);
    bench.tensor("net.1.weight", &[3, 4]);
    let fused = bench.fuse(
        r#"{"name": "own", "about": "a test", "eps": 1e-3, "drop": ["{p}.aux"],
        "blocks": [{
            "at": "{p}.branches.0.weight",
            "where": {"{p}.branches.0.weight": ["o", "_", "odd", "odd"], "{p}.alpha": [1], "{p}.beta": null},
            "fuse": {"{p}.conv": {"seq": [
                {"sum": [
                    {"each": {"seq": [{"conv": "{p}.branches.{i}", "groups": 2}, {"bn": "{p}.norms.{i}", "eps": 1e-6}]}},
                    {"seq": [{"conv": "{p}.tall", "bias": "optional"}, {"scale": "{p}.alpha"}]},
                    {"seq": [{"mean": 3}, {"scale": -0.5}]},
                    {"optional": {"conv": "{p}.wide", "bias": "optional"}},
                    {"optional": "identity"}]},
                {"scale": "{p}.gamma"},
                {"shift": "{p}.shift"}]}},
            "rename": {"{p}.after": "{p}.post_norm"}
        }]}"#,
    );
    let names: Vec<&str> = fused.tensors.keys().map(String::as_str).collect();
    let post = ["bias", "running_mean", "running_var", "weight"]
        .map(|end| format!("net.0.post_norm.{end}"));
    let mut expected = vec!["net.0.conv.bias", "net.0.conv.weight", "net.1.weight"];
    expected.extend(post.iter().map(String::as_str));
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(fused.tensors["net.0.conv.weight"].shape, [4, 2, 3, 3]);
}

/// Of an optional branch with any tensor there, all must be; of a list, none may be lost.
#[test]
fn malformed_is_never_absent() {
    let own = recipe(
        r#"{"at": "{p}.main.weight", "fuse": {"{p}.conv": {"sum": [
            {"conv": "{p}.main", "bias": "optional"},
            {"optional": {"seq": [{"conv": "{p}.side"}, {"bn": "{p}.side_bn"}]}},
            {"each": {"conv": "{p}.list.{i}", "bias": "optional"}}]}}}"#,
    );
    let mut bench = Bench::new();
    bench.tensor("a.main.weight", &[4, 4, 3, 3]);
    bench.fuse(&own);
    bench.norm("a.side_bn", 4);
    assert_eq!(
        bench.refused(&own),
        "repfuse: block `a`: `a.side.weight` is missing\n"
    );
    bench.tensor("a.side.weight", &[4, 4, 1, 1]);
    bench.fuse(&own);
    bench.tensor("a.list.0.weight", &[4, 4, 1, 1]);
    bench.tensor("a.list.2.weight", &[4, 4, 1, 1]);
    assert_eq!(
        bench.refused(&own),
        "repfuse: block `a`: `a.list.1.weight` is missing, but later branches are there\n"
    );
    bench.tensor("a.list.1.weight", &[4, 4, 1, 1]);
    bench.fuse(&own);
}

/// A bias that the recipe asks for must be there.
#[test]
fn a_bias_can_be_required() {
    let own = recipe(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.conv": {"sum": [{"conv": "{p}.c", "bias": true}, "identity"]}}}"#,
    );
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 4, 3, 3]);
    assert_eq!(
        bench.refused(&own),
        "repfuse: block `a`: `a.c.bias` is missing\n"
    );
    bench.tensor("a.c.bias", &[4]);
    bench.fuse(&own);
}

/// A tensor among those of a block that the recipe does not name is no copy: it may change what the block computes.
#[test]
fn a_block_is_a_closed_world() {
    let closed = |beside: &str| {
        format!(
            r#"{{"name": "own", "about": "a test", "eps": 1e-5, "blocks": [{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.d": {{"sum": [
                {{"seq": [{{"conv": "{{p}}.c"}}, {{"bn": "{{p}}.n"}}]}}, {{"conv": "{{p}}.e", "bias": false}}]}}}}{beside}}}]}}"#
        )
    };
    let mut bench = Bench::new();
    bench.tensor("net.0.c.weight", &[4, 4, 3, 3]);
    bench.norm("net.0.n", 4);
    bench.tensor("net.0.e.weight", &[4, 4, 1, 1]);
    bench.tensor("net.head.alpha", &[4]);
    bench.fuse(&closed(""));
    let known = r#", "beside": ["{p}.{s:act|attn}", "{p}.c.{n:scale}"]"#;
    let refused = |bench: &Bench, name: &str| {
        let said = bench.refused(&closed(""));
        let expected = format!(
            "block `net.0`: `{name}` stands among its tensors, and recipe `own` does not say what it does there"
        );
        assert!(said.contains(&expected), "{said}");
    };
    for (name, by_glob) in [
        ("net.0.alpha", "net.*.alpha"),
        ("net.0.act.weight", "net.0.act"),
        ("net.0.c.scale", "net.0.c.scale"),
    ] {
        bench.tensor(name, &[4]);
        refused(&bench, name);
        let output = bench.run(&closed(""), "fuse", &["--beside", by_glob, "--verify"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let copied = File::read(&bench.path("out.safetensors"));
        assert!(copied.tensors.contains_key(name));
        bench.file.tensors.remove(name);
    }
    bench.tensor("net.0.act.weight", &[4]);
    bench.tensor("net.0.c.scale", &[4]);
    // What the recipe names needs no flag; inside a conv only the whole name counts.
    bench.fuse(&closed(known));
    bench.tensor("net.0.c.amax.deep", &[1]);
    let inside = bench.run(&closed(known), "fuse", &["--beside", "net.0.c.*"]);
    assert_eq!(inside.status.code(), Some(2));
    bench.file.tensors.remove("net.0.c.amax.deep");
    // A bias where the recipe says that there is none, and one that is gone.
    bench.tensor("net.0.c.bias", &[4]);
    let said = bench.refused(&closed(known));
    let expected = "`net.0.c.bias` is there, and the recipe says that this conv has none; `\"bias\": true` beside it says that it has one";
    assert!(said.contains(expected), "{said}");
}

/// Where a tensor is optional, the blocks of one rule agree.
#[test]
fn the_odd_block_is_named() {
    let own = recipe(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.d": {"seq": [{"conv": "{p}.c", "bias": "optional"}, {"optional": {"scale": "{p}.alpha"}}]}}}"#,
    );
    let mut bench = Bench::new();
    for i in 0..2 {
        bench.tensor(&format!("net.{i}.c.weight"), &[4, 4, 3, 3]);
    }
    bench.fuse(&own);
    bench.tensor("net.0.alpha", &[4]);
    assert_eq!(
        bench.refused(&own),
        "repfuse: block `net.1`: `net.1.alpha` is missing, and `net.0.alpha` is there; `--skip 'net.1'` leaves the block as it is\n"
    );
    bench.tensor("net.1.alpha", &[4]);
    bench.fuse(&own);
    bench.tensor("net.2.c.weight", &[4, 4, 3, 3]);
    bench.tensor("net.2.alpha", &[4]);
    bench.tensor("net.1.c.bias", &[4]);
    assert_eq!(
        bench.refused(&own),
        "repfuse: block `net.1`: `net.1.c.bias` is there, and the 2 other blocks of its kind have none; `--skip 'net.1'` leaves the block as it is\n"
    );
    bench.tensor("net.2.c.bias", &[4]);
    assert_eq!(
        bench.refused(&own),
        "repfuse: block `net.0`: `net.0.c.bias` is missing, and the 2 other blocks of its kind have one; `--skip 'net.0'` leaves the block as it is\n"
    );
}

/// Of a block that is not whole, the plainest rule says what is missing.
#[test]
fn what_is_left_of_a_block_is_no_other_tensor() {
    let own = r#"{"name": "own", "about": "a test", "eps": 1e-5, "blocks": [{"at": "{p}.{s:conv1|conv2}.weight",
        "where": {"{p}.bn.weight": ["_"]}, "fuse": {"{p}.{s}": {"seq": [{"conv": "{p}.{s}"}, {"bn": "{p}.bn"}]}}}]}"#;
    let mut bench = Bench::new();
    for block in ["net.0", "net.1"] {
        bench.tensor(&format!("{block}.conv1.weight"), &[4, 4, 3, 3]);
        bench.norm(&format!("{block}.bn"), 4);
    }
    bench.fuse(own);
    bench.file.tensors.remove("net.1.conv1.weight");
    let said = bench.refused(own);
    assert!(
        said.contains(
            "`net.1.bn.bias` belongs to a block of recipe `own` that is not whole, `net.1`: `net.1.…` is missing; `--skip 'net.1'` leaves the block as it is"
        ),
        "{said}"
    );
    // A norm without statistics is of another kind.
    bench.file.tensors.remove("net.1.bn.running_mean");
    bench.file.tensors.remove("net.1.bn.running_var");
    bench.fuse(own);
}

/// Depthwise, then pointwise: nothing says whether the first has one input channel or four.
#[test]
fn an_ambiguous_sequence_is_refused_until_the_groups_are_declared() {
    let mut bench = Bench::new();
    bench.tensor("a.dw.weight", &[4, 1, 3, 3]);
    bench.tensor("a.pw.weight", &[2, 4, 1, 1]);
    let own = |options: &str| {
        recipe(&format!(
            r#"{{"at": "{{p}}.dw.weight", "fuse": {{"{{p}}.conv": {{"seq": [{{"conv": "{{p}}.dw", "bias": "optional"{options}}}, {{"conv": "{{p}}.pw", "bias": "optional"}}]}}}}}}"#
        ))
    };
    assert_eq!(
        bench.refused(&own("")),
        "repfuse: block `a`: shapes do not fit: `a.dw.weight` has shape [4, 1, 3, 3], and nothing in the block says how \
         many groups it has; declare it with `\"groups\"` in the recipe\n"
    );
    let fused = bench.fuse(&own(r#", "groups": "depthwise""#));
    assert_eq!(fused.tensors["a.conv.weight"].shape, [2, 4, 3, 3]);
    let fused = bench.fuse(&own(r#", "groups": 1"#));
    assert_eq!(fused.tensors["a.conv.weight"].shape, [2, 1, 3, 3]);
}

/// An identity beside a conv that does not keep its width is an error, not a guess at groups.
#[test]
fn an_identity_needs_equal_widths() {
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 2, 3, 3]);
    let own = |identity: &str| {
        recipe(&format!(
            r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.conv": {{"sum": [{{"conv": "{{p}}.c", "bias": "optional"}}, {identity}]}}}}}}"#
        ))
    };
    assert_eq!(
        bench.refused(&own(r#""identity""#)),
        "repfuse: block `a`: shapes do not fit: `a.c.weight` has shape [4, 2, 3, 3]: an identity needs as many output \
         as input channels, and this conv gives 4 from 2\n"
    );
    let fused = bench.fuse(&own(r#"{"optional": "identity"}"#));
    assert_eq!(
        fused.tensors["a.conv.weight"].values(),
        bench.file.tensors["a.c.weight"].values()
    );
}

/// Every mistake is reported with the path to it and the remedy.
#[test]
fn mistakes_are_placed() {
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 4, 3, 3]);
    let table = [
        (
            "{",
            "recipe `own.json`: not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            r#"[]"#,
            "recipe `own.json`: found an array; expected an object with `name`, `about`, `cite` and `blocks`",
        ),
        (
            r#"{"name": "own"}"#,
            "recipe `own.json`: the key `about` is missing",
        ),
        (
            r#"{"nam": "own"}"#,
            "recipe `own.json`: unknown key `nam`; did you mean `name`?",
        ),
        (
            r#"{"name": "Own", "about": "", "blocks": [{"at": "x", "fuse": {"y": "identity"}}]}"#,
            "recipe `own.json`, at `name`: `Own` is not a recipe name; expected lowercase letters, digits, `-` and `.`",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": []}"#,
            "recipe `own.json`, at `blocks`: a recipe needs at least one block",
        ),
        (
            r#"{"name": "own", "about": "", "eps": 5, "blocks": [{"at": "x", "fuse": {"y": "identity"}}]}"#,
            "recipe `own.json`, at `eps`: an eps of 5 makes no sense; expected a small positive number such as 1e-5",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"bn": "{p}.bn"}}}]}"#,
            "recipe `own.json`: the key `eps` is missing; no file stores the eps of a batch norm, so the recipe must \
             (1e-5 is PyTorch's default)",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"conv": "{p}.{i}", "bias": "optional"}}}]}"#,
            "recipe `own.json`, at `blocks[0].fuse.{p}.d`: `{i}` is not bound; use a capture of `at`, or `each` for one \
             term per value",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"sum": [{"each": {"conv": "{p}.c", "bias": "optional"}}]}}}]}"#,
            "recipe `own.json`, at `blocks[0].fuse.{p}.d`: `each` has no capture of its own to run over; use `optional`, \
             or a capture that `at` does not bind",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"sum": [{"conv": "{p}.c", "bias": "optional"}, {"cnov": 1}]}}}]}"#,
            "recipe `own.json`, at `blocks[0].fuse.{p}.d.sum[1]`: unknown key `cnov`; did you mean `conv`?",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"conv": "{p}.c", "bias": "optional", "dilation": [1]}}}]}"#,
            "recipe `own.json`, at `blocks[0].fuse.{p}.d.dilation`: found an array; expected [height, width] or [depth, height, width]",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"conv": "{p}.c", "bias": "optional", "dilation": 0}}}]}"#,
            "recipe `own.json`, at `blocks[0].fuse.{p}.d.dilation`: found a number; expected a whole number from 1 to 65536",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "a{p}", "fuse": {"d": {"conv": "c", "bias": "optional"}}}]}"#,
            "recipe `own.json`, at `blocks[0].at`: `{p}` captures a dotted path, which can only be at the start of a pattern",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"conv": "{p}.c", "bias": "optional", "scale": "{p}.b"}}}]}"#,
            "recipe `own.json`, at `blocks[0].fuse.{p}.d`: found 2 of `conv`, `bn`, `scale`, `shift`, `mean`, `seq`, `sum`, \
             `optional`, `each` in one expression; expected exactly one, or `conv` and `bn`",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "fuse": {"{p}.d": {"sum": []}}}]}"#,
            "recipe `own.json`, at `blocks[0].fuse.{p}.d.sum`: an empty `sum`; expected at least one expression",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": [], "fuse": {"d": "identity"}}]}"#,
            "recipe `own.json`, at `blocks[0].at`: `at` is empty; a block needs a tensor to start at and an output",
        ),
        (
            r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "where": {"{p}.c.weight": ["xx"]}, "fuse": {"{p}.d": {"conv": "{p}.c", "bias": "optional"}}}]}"#,
            "recipe `own.json`, at `blocks[0].where.{p}.c.weight[0]`: found a string; expected a number, a letter, \"odd\" or \"_\"",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(
            bench.refused(text),
            format!("repfuse: {expected}\n"),
            "{text}"
        );
    }
    // The positive twin: what the table's last entry meant to say.
    bench.fuse(
        r#"{"name": "own", "about": "", "blocks": [{"at": "{p}.c.weight", "where": {"{p}.c.weight": ["x", "_", 3, 3]}, "fuse": {"{p}.d": {"conv": "{p}.c", "bias": "optional"}}}]}"#,
    );
}

/// `recipes check` says what a recipe matches, and prints any built-in one as a start.
#[test]
fn recipes_check_shows_what_matches() {
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 4, 3, 3]);
    let own = recipe(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.d": {"sum": [{"conv": "{p}.c", "bias": "optional"}, "identity"]}}}"#,
    );
    bench.fuse(&own);
    let directory = bench.directory.path().to_owned();
    let check = |more: &[&str]| {
        let mut run = repfuse();
        let output = run
            .current_dir(&directory)
            .args(["recipes", "check"])
            .args(more)
            .output();
        let output = output.expect("the command runs");
        (
            output.status.code(),
            String::from_utf8(output.stdout).expect("UTF-8")
                + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (code, text) = check(&["own.json"]);
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "`own` is a valid recipe for 1 kind of block\n")
    );
    let (code, text) = check(&["own.json", "in.safetensors"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("a  →  a.d  4×4×3×3  3×3 + x\n"), "{text}");
    // What it leaves alone is where a slip of the pen shows.
    assert!(
        text.contains("  copied      nothing\n") && !text.contains("idle"),
        "{text}"
    );
    bench.tensor("a.norm.weight", &[4]);
    bench.tensor("aux.weight", &[4]);
    let slip = own.replace(
        r#""blocks""#,
        r#""drop": ["aux", "{p}.head"], "rename": {"{p}.nrom": "{p}.post"}, "blocks""#,
    );
    bench.run(&slip, "fuse", &[]);
    let (_, text) = check(&["own.json", "in.safetensors"]);
    for line in [
        "  copied      1 tensor: `a.norm.weight`\n",
        "  dropped     1 tensor: `aux.weight`\n",
        "  idle        `drop` names `{p}.head`, which the file has not\n",
        "  idle        `rename` names `{p}.nrom`, which the file has not\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    bench.fuse(&own);
    let (code, text) = check(&["own.json", "out.safetensors"]);
    assert_eq!(code, Some(1));
    assert_eq!(text, "repfuse: no block of recipe `own` is in this file\n");
}

/// The recipe of `docs/recipes.md`: its branches have the numbers of their dilations, which begin where they like.
#[test]
fn the_recipe_of_the_page_does_what_it_says() {
    let page = include_str!("../../docs/recipes.md");
    let begin = page.find("{\n  \"name\": \"my-net\"").expect("the recipe");
    let text = &page[begin..];
    let text = &text[..text.find("\n```").expect("its end")];
    let mut bench = Bench::new();
    bench.tensor("stem.0.main.conv.weight", &[4, 4, 3, 3]);
    bench.norm("stem.0.main.bn", 4);
    for dilation in [2, 3] {
        bench.tensor(&format!("stem.0.dil.{dilation}.weight"), &[4, 4, 3, 3]);
        bench.norm(&format!("stem.0.dil_bn.{dilation}"), 4);
    }
    bench.tensor("stem.0.point.weight", &[4, 4, 1, 1]);
    bench.tensor("stem.0.alpha", &[4]);
    bench.norm("stem.0.norm", 4);
    bench.tensor("aux_head.weight", &[10, 4]);
    let fused = shapes(&bench.fuse(text));
    let names: Vec<&str> = fused.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "stem.0.fused.bias",
            "stem.0.fused.weight",
            "stem.0.post_norm.bias",
            "stem.0.post_norm.running_mean",
            "stem.0.post_norm.running_var",
            "stem.0.post_norm.weight",
        ]
    );
    assert_eq!(fused[1].1, [4, 4, 7, 7]);
    // A branch that has lost its norm is still an error.
    bench.file.tensors.remove("stem.0.dil_bn.3.running_var");
    let error = bench.refused(text);
    assert!(error.contains("`running_var` is missing"), "{error}");
}

/// The examples of the page in their short forms say what their long forms say.
#[test]
fn short_forms_say_what_long_ones_do() {
    let page = include_str!("../../docs/recipes.md").replace('\\', "");
    let parsed = |block: &str| repfuse::recipe::parse(&recipe(block), "own.json").expect(block);
    for (short, long) in [
        (
            r#"{"at": "{p}.{s:q|k}", "fuse": {".": {"conv": ".c", "bn": ".bn"}}}"#,
            r#"{"at": ["{p}.{s:q|k}.c.weight", "{p}.{s:q|k}.bn.running_mean"], "fuse": {"{p}.{s}": {"seq": [{"conv": "{p}.{s}.c"}, {"bn": "{p}.{s}.bn"}]}}}"#,
        ),
        (
            r#"{"at": "{p}.stage{i}.conv", "fuse": {"{p}.stages.{i-1}": {"conv": "{p}.stage{i}.conv"}}}"#,
            r#"{"at": "{p}.stage{i}.conv.weight", "fuse": {"{p}.stages.{i-1}": {"conv": "{p}.stage{i}.conv"}}}"#,
        ),
    ] {
        assert!(page.contains(short), "{short}");
        assert_eq!(parsed(short), parsed(long));
    }
    let of = |expression: &str| {
        parsed(&format!(
            r#"{{"at": "{{p}}.a.weight", "fuse": {{"{{p}}.d": {expression}}}}}"#
        ))
    };
    for (short, long) in [
        (
            r#"[{"conv": "{p}.a", "groups": 2, "bn": "{p}.b", "eps": 0.1}, {"scale": 2}]"#,
            r#"{"seq": [{"conv": "{p}.a", "groups": 2}, {"bn": "{p}.b", "eps": 0.1}, {"scale": 2}]}"#,
        ),
        (
            r#"{"conv": "{p}.a", "bias": true, "bn": "{p}.b"}"#,
            r#"{"seq": [{"conv": "{p}.a", "bias": true}, {"bn": "{p}.b"}]}"#,
        ),
        // A pair behind a conv is no norm of that conv.
        (
            r#"[{"conv": "{p}.a"}, {"conv": "{p}.c", "bn": "{p}.b"}]"#,
            r#"{"seq": [{"conv": "{p}.a", "bias": true}, {"conv": "{p}.c"}, {"bn": "{p}.b"}]}"#,
        ),
    ] {
        assert_eq!(of(short), of(long), "{short}");
    }
}

/// What counts on from a capture is written, and cannot be below 0.
#[test]
fn names_that_are_written_can_count() {
    let own = recipe(
        r#"{"at": "{p}.stage{i}.conv", "fuse": {"{p}.stages.{i-1}": {"conv": ".", "bias": "optional"}}, "rename": {"{p}.stage{i}.act": "{p}.acts.{i+9}"}}"#,
    );
    let mut bench = Bench::new();
    for i in [1, 2, 10] {
        bench.tensor(&format!("net.stage{i}.conv.weight"), &[4, 4, 1, 1]);
        bench.tensor(&format!("net.stage{i}.act.alpha"), &[4]);
    }
    let names: Vec<String> = shapes(&bench.fuse(&own))
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !name.ends_with(".bias"))
        .collect();
    assert_eq!(
        names,
        [
            "net.acts.10.alpha",
            "net.acts.11.alpha",
            "net.acts.19.alpha",
            "net.stages.0.weight",
            "net.stages.1.weight",
            "net.stages.9.weight",
        ]
    );
    bench.tensor("net.stage0.conv.weight", &[4, 4, 1, 1]);
    let said = bench.refused(&own);
    assert!(
        said.contains("`{p}.stages.{i-1}` has no name here: a number in it is below 0"),
        "{said}"
    );
}

/// Places are told as the file stores the tensor.
#[test]
fn places_are_those_of_the_file() {
    let mut bench = Bench::new();
    bench.tensor("a.point.weight", &[8, 2]);
    bench.tensor("a.prior", &[8, 3, 3]);
    let own = recipe(
        r#"{"at": "{p}.prior", "fuse": {"{p}.d": {"seq": [{"conv": "{p}.point", "bias": "optional", "groups": 1}, {"conv": {"weight": "{p}.prior"}, "axes": "ohw"}]}}}"#,
    );
    bench.fuse(&own);
    bench.file.at("a.prior").edit(|w| w[9 + 3 * 2] = f32::NAN);
    let said = bench.refused(&own);
    assert!(said.contains("[1, 2, 0]"), "{said}");
}

/// What is said of a file before it is written is what is then in it, with a bias or without.
#[test]
fn plans_tell_what_will_be_written() {
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 3, 3, 3]);
    bench.tensor("a.d.weight", &[4, 3, 1, 1]);
    let json = |output: Output| -> serde_json::Value {
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    for (bias, numbers) in [("", 112), (r#""bias": false, "#, 108)] {
        let own = recipe(&format!(
            r#"{{"at": "{{p}}.c.weight", {bias}"fuse": {{"{{p}}.out": {{"sum": [{{"conv": "{{p}}.c", "bias": "optional"}}, {{"conv": "{{p}}.d", "bias": "optional"}}]}}}}}}"#
        ));
        let planned = json(bench.run(&own, "fuse", &["--dry-run", "--json"]));
        let written = json(bench.run(&own, "fuse", &["--json"]));
        let size = std::fs::metadata(bench.path("out.safetensors"))
            .expect("a file")
            .len();
        assert_eq!(planned["bytes_after"], size);
        assert_eq!(written["bytes_after"], size);
        assert_eq!(planned["parameters_after"], numbers);
        let inspected = repfuse()
            .current_dir(bench.directory.path())
            .args([
                "inspect",
                "in.safetensors",
                "--recipe",
                "own.json",
                "--json",
            ])
            .output()
            .expect("the command runs");
        let block = &json(inspected)["blocks"][0];
        assert_eq!(block["parameters"]["after"], numbers, "{block}");
    }
}

/// A wrong weight of a transposed conv, grouped and not square, is named where the file has it.
#[test]
fn a_wrong_weight_of_a_transposed_conv_is_named() {
    let mut bench = Bench::new();
    bench.tensor("a.up.weight", &[4, 3, 3, 2]);
    bench.norm("a.n", 6);
    let own = recipe(
        r#"{"at": "{p}.up.weight", "fuse": {"{p}.up": {"seq": [{"conv": "{p}.up", "transposed": true, "groups": 2}, {"bn": "{p}.n"}]}}}"#,
    );
    let fused = bench.fuse(&own);
    let find = |edit: &dyn Fn(&mut [f32])| -> serde_json::Value {
        let mut wrong = fused.clone();
        wrong.at("a.up.weight").edit(edit);
        bench.verdict(&wrong)["index"].clone()
    };
    // `[3, 1, 0, 1]` of `[4, 3, 3, 2]`.
    let at = (3 * 3 + 1) * 6 + 1;
    assert_eq!(find(&|w| w[at] += 0.5), serde_json::json!([3, 1, 0, 1]));
    assert_eq!(find(&|w| w[at] = f32::NAN), serde_json::json!([3, 1, 0, 1]));
}

/// A type that cannot be folded is refused whatever type the result is to have, and before anything is said to be fused.
#[test]
fn no_type_of_the_result_makes_up_for_that_of_the_weight() {
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 3, 3, 3]);
    let weight = bench.file.at("a.c.weight");
    weight.dtype = safetensors::Dtype::I8;
    weight.bytes.truncate(4 * 3 * 9);
    let own = recipe(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}}"#,
    );
    for more in [&[][..], &["--dtype", "f32"]] {
        let output = bench.run(&own, "fuse", &[more, &["--dry-run"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(said.contains("`a.c.weight` has dtype I8"), "{said}");
    }
}

/// What is not a number is not shown as no difference.
#[test]
fn a_deploy_form_with_nan_has_no_difference_to_show() {
    let mut bench = Bench::new();
    bench.tensor("a.c.weight", &[4, 3, 3, 3]);
    let own = recipe(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}}"#,
    );
    let mut fused = bench.fuse(&own);
    assert!(bench.verdict(&fused)["absolute"].is_number());
    fused.at("a.out.weight").edit(|w| w[7] = f32::NAN);
    let block = bench.verdict(&fused);
    let mut training = bench.file.clone();
    training.at("a.c.weight").edit(|w| w[7] = f32::INFINITY);
    training.write(&bench.path("in.safetensors"));
    let output = repfuse()
        .current_dir(bench.directory.path())
        .args(["verify", "in.safetensors", "out.safetensors"])
        .args(["--recipe", "own.json"])
        .output()
        .expect("the command runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("`a.c.weight`") && said.contains("[0, 0, 2, 1]"),
        "{said}"
    );
    for key in ["ratio", "absolute", "relative"] {
        assert!(block[key].is_null(), "{block}");
    }
    assert_eq!(block["index"], serde_json::json!([0, 0, 2, 1]));
}
