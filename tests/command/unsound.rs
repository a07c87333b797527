//! Deploy forms that are wrong in ways that a bound could excuse, each beside the right one.

use crate::support::Random;
use crate::support::file::{Place, Ran, recipe};
use crate::support::forge::{File, Held};

struct Bench {
    place: Place,
    random: Random,
    file: File,
}

impl Bench {
    fn new(own: &str) -> Bench {
        let place = Place::new();
        place.write("own.json", recipe(own));
        Bench {
            place,
            random: Random(9),
            file: File::default(),
        }
    }

    fn tensor(&mut self, name: &str, shape: &[usize], from: f64, to: f64) {
        let held = Held::random(&mut self.random, shape, from, to);
        self.file.tensors.insert(name.to_owned(), held);
    }

    /// What `fuse` writes, as if another program had written it where `foreign` says so.
    fn fused(&self, foreign: bool) -> File {
        self.file.write(&self.place.path("in.safetensors"));
        let ran = self
            .place
            .run("fuse in.safetensors out.safetensors --recipe own.json --force --quiet");
        assert_eq!(ran.all(), (Some(0), "", ""));
        let mut file = File::read(&self.place.path("out.safetensors"));
        if foreign {
            file.metadata.clear();
        }
        file
    }

    fn verify(&self, deploy: &str) -> Ran {
        self.place
            .run(&format!("verify in.safetensors {deploy} --recipe own.json"))
    }

    fn accepts(&self, file: &File) -> bool {
        file.write(&self.place.path("altered.safetensors"));
        let ran = self.verify("altered.safetensors");
        assert_eq!(ran.stderr, "");
        ran.code() == Some(0)
    }
}

/// A weight is as wrong when it is tiny, and a bias beside it no excuse.
#[test]
fn tiny_weights_beside_a_bias() {
    let own =
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}}"#;
    for size in [1e-10, 1e-22, 1e-36] {
        for foreign in [false, true] {
            let mut bench = Bench::new(own);
            bench.tensor("a.c.weight", &[4, 4, 3, 3], 1.0, 2.0);
            bench.tensor("a.c.bias", &[4], 0.4, 0.5);
            bench.file.at("a.c.weight").edit(|w| w[40] *= size);
            let right = bench.fused(foreign);
            assert!(bench.accepts(&right));
            for factor in [1.0 + 1.2e-5, -1.0, 0.0] {
                let mut wrong = right.clone();
                wrong.at("a.out.weight").edit(|w| w[40] *= factor);
                assert!(!bench.accepts(&wrong), "{size:e} times {factor}");
            }
        }
    }
}

/// Terms beyond the largest f64 make a bound of infinity, which explains nothing.
#[test]
fn a_bound_beyond_all_numbers() {
    let scales = [
        r#", {"scale": 1e38}"#.repeat(5),
        r#", {"scale": 1e-37}"#.repeat(5),
    ]
    .concat();
    let own = format!(
        r#"{{"at": "{{p}}.c.weight", "fuse": {{"{{p}}.out": {{"seq": [{{"conv": "{{p}}.c", "bias": "optional"}}{scales}]}}}}}}"#
    );
    let mut bench = Bench::new(&own);
    bench.tensor("a.c.weight", &[4, 4, 3, 3], -1e-5, 1e-5);
    let right = bench.fused(true);
    let mut wrong = right.clone();
    wrong
        .at("a.out.weight")
        .edit(|w| w.iter_mut().for_each(|w| *w *= -7.0));
    assert!(!bench.accepts(&wrong));
}

/// However many inputs a norm in front of a conv has, each weight is folded by itself; and behind a narrow inner conv, few
/// products are added up.
#[test]
fn many_inputs_behind_a_norm() {
    let mut bench = Bench::new(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"seq": [{"bn": "{p}.n"}, {"conv": "{p}.c", "bias": "optional"}]}}},
           {"at": "{p}.first.weight", "fuse": {"{p}.out": {"seq": [{"conv": "{p}.first", "bias": "optional", "groups": 1}, {"conv": "{p}.second", "bias": "optional"}]}}}"#,
    );
    bench.tensor("a.c.weight", &[3, 2048], 0.5, 1.0);
    for end in ["weight", "bias", "running_mean", "running_var"] {
        bench.tensor(&format!("a.n.{end}"), &[2048], 0.5, 1.0);
    }
    bench.tensor("b.first.weight", &[64, 8, 1, 1], 0.5, 1.0);
    bench.tensor("b.second.weight", &[8, 64, 3, 3], 0.5, 1.0);
    let right = bench.fused(true);
    assert!(bench.accepts(&right));
    for (name, place) in [("a.out.weight", 777), ("b.out.weight", 77)] {
        let mut wrong = right.clone();
        wrong.at(name).edit(|w| w[place] *= 1.0 + 1.2e-5);
        assert!(!bench.accepts(&wrong), "{name}");
    }
}

/// The verdict says in which types the convs are stored, for what rounding allows depends on them.
#[test]
fn the_types_are_said_where_they_differ() {
    let mut bench = Bench::new(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}}"#,
    );
    bench.tensor("a.c.weight", &[4, 4, 3, 3], -1.0, 1.0);
    bench.fused(false);
    assert!(!bench.verify("out.safetensors").stdout.contains("types"));
    let halves = "fuse in.safetensors half.safetensors --recipe own.json --dtype bf16 --quiet";
    assert_eq!(bench.place.run(halves).all(), (Some(0), "", ""));
    let ran = bench.verify("half.safetensors");
    assert!(
        ran.stdout
            .contains("\n  types       convs are bf16, trained as f32\n"),
        "{}",
        ran.stdout
    );
}

/// A training form in the place of a deploy form is said to be one.
#[test]
fn a_training_form_is_no_deploy_form() {
    let mut bench = Bench::new(
        r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"conv": "{p}.c", "bias": "optional"}}}"#,
    );
    bench.tensor("a.c.weight", &[4, 4, 3, 3], -1.0, 1.0);
    bench.fused(false);
    assert_eq!(bench.verify("out.safetensors").stderr, "");
    let ran = bench.verify("in.safetensors");
    let said = "NOT equivalent: `in.safetensors` is in training form, too; `fuse` makes a deploy form of it\n";
    assert_eq!((ran.code(), &*ran.stderr), (Some(1), ""));
    assert!(ran.stdout.starts_with(said), "{}", ran.stdout);
}

/// A gate that is all but closed keeps the digits of what it lets through.
#[test]
fn closed_gates() {
    for gate in [-20.0, -40.0, -80.0, 80.0] {
        let mut bench = Bench::new(
            r#"{"at": "{p}.c.weight", "fuse": {"{p}.out": {"seq": [{"conv": "{p}.c", "bias": "optional"}, {"scale": {"tensor": "{p}.g", "sigmoid": true}}]}}}"#,
        );
        bench.tensor("a.c.weight", &[4, 4, 3, 3], 0.5, 1.0);
        bench.tensor("a.g", &[4], gate, gate + 0.1);
        let right = bench.fused(false);
        assert!(bench.accepts(&right), "{gate}");
        for factor in [0.0, 1.0 + 1.2e-5] {
            let mut wrong = right.clone();
            wrong.at("a.out.weight").edit(|w| w[9] *= factor);
            assert!(!bench.accepts(&wrong), "{gate} times {factor}");
        }
    }
}
