//! Blocks that do not fit stop themselves and nothing else; weights in parts and quantizers are refused by name.

use std::collections::BTreeSet;

use safetensors::Dtype;

use crate::support::file::{Place, Ran, recipe};
use crate::support::fixtures::cases;
use crate::support::forge::{File, Held};
use crate::support::tiny::Tiny;

/// What a test does to a file.
type Change<'a> = &'a dyn Fn(&mut File);

/// A network of which something is changed.
fn changed(change: impl Fn(&mut File)) -> Tiny {
    let mut tiny = Tiny::network();
    change(&mut tiny.file);
    tiny.write();
    tiny
}

/// Nothing fits of the block, `--skip` leaves it as it is, and the rest is folded.
#[test]
fn a_block_that_does_not_fit_is_skipped() {
    let without = |names: &'static [&'static str]| {
        move |file: &mut File| {
            names
                .iter()
                .for_each(|name| drop(file.tensors.remove(*name)))
        }
    };
    let integer = |file: &mut File| {
        let weight = file.at("stage1.1.rbr_dense.conv.weight");
        let shape = weight.shape.clone();
        weight.bytes = vec![1; shape.iter().product()];
        weight.dtype = Dtype::I8;
    };
    let eight_bits = |file: &mut File| {
        let weight = file.at("stage1.1.rbr_1x1.conv.weight");
        let shape = weight.shape.clone();
        weight.bytes = vec![0x38; shape.iter().product()];
        weight.dtype = Dtype::F8_E4M3;
    };
    let deep = |file: &mut File| {
        let weight = file.at("stage1.1.rbr_1x1.conv.weight");
        weight.shape = vec![4, 4, 1, 1, 1, 1];
    };
    let cases: [(Change<'_>, &str); 5] = [
        (
            &without(&[
                "stage1.1.rbr_dense.bn.running_mean",
                "stage1.1.rbr_dense.bn.running_var",
            ]),
            "the norm `stage1.1.rbr_dense.bn` keeps no running statistics (GroupNorm, InstanceNorm or track_running_stats=False): it \
             cannot be folded",
        ),
        (
            &without(&["stage1.1.rbr_dense.bn.bias"]),
            "`stage1.1.rbr_dense.bn` has 3 of the 4 batch-norm tensors; `bias` is missing",
        ),
        (
            &integer,
            "`stage1.1.rbr_dense.conv.weight` has dtype I8, which no arithmetic is defined for; expected F64, F32, F16 or BF16",
        ),
        (
            &eight_bits,
            "`stage1.1.rbr_1x1.conv.weight` has dtype F8_E4M3, which no arithmetic is defined for; expected F64, F32, F16 or BF16",
        ),
        (
            &deep,
            "shapes do not fit: `stage1.1.rbr_1x1.conv.weight` has shape [4, 4, 1, 1, 1, 1]; expected a conv weight with 2 to 5 \
             dimensions and no zero",
        ),
    ];
    for (change, why) in cases {
        let tiny = changed(change);
        let refused = tiny.fuse(&[]);
        let why = why
            .strip_prefix("shapes")
            .map_or(format!(" {why}"), |rest| format!(" shapes{rest}"));
        assert_eq!(refused.status, 2, "{why}");
        assert!(
            refused.stderr.contains("block `stage1.1`:"),
            "{}",
            refused.stderr
        );
        let offered = "; `--skip 'stage1.1'` leaves the block as it is\n";
        assert!(refused.stderr.ends_with(offered), "{}", refused.stderr);
        assert!(
            refused.stderr.contains(why.trim_end()),
            "{}\n{why}",
            refused.stderr
        );
        for args in [
            vec!["--skip", "stage1.1"],
            vec!["--only", "stage[02]*", "--only", "stage1.[02]"],
        ] {
            let ran = tiny.fuse(&args);
            assert_eq!(ran.status, 0, "{}", ran.stderr);
            assert!(ran.stdout.starts_with("fused 4 blocks"), "{}", ran.stdout);
            let out = File::read(&tiny.path("out.safetensors"));
            assert!(out.tensors.contains_key("stage1.1.rbr_1x1.conv.weight"));
            assert!(out.tensors.contains_key("stage1.0.rbr_reparam.weight"));
        }
    }
    // As it should be, nothing is left.
    let ran = Tiny::network().fuse(&[]);
    assert!(ran.stdout.starts_with("fused 5 blocks"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("left  "), "{}", ran.stdout);
}

#[test]
fn what_is_left_is_counted() {
    let ran = Tiny::network().fuse(&["--skip", "stage1.1"]);
    let words = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let left = "left 10 of 13 norms folded; as they were: stage1.1.rbr_1x1.bn (skipped), stage1.1.rbr_dense.bn (skipped), \
                stage1.1.rbr_identity (skipped)";
    assert!(words.contains(left), "{}", ran.stdout);
    let json = Tiny::network().fuse(&["--skip", "stage1.1", "--json"]);
    assert!(json.stdout.contains("\"norms\": 13"), "{}", json.stdout);
    assert!(
        json.stdout.contains("\"stage1.1.rbr_identity\""),
        "{}",
        json.stdout
    );
}

#[test]
fn a_selection_that_names_nothing_is_a_mistake() {
    let tiny = Tiny::network();
    for args in [
        &["--skip", "stage9"][..],
        &["--only", "stage1*", "--only", "stage9"],
    ] {
        let ran = tiny.fuse(args);
        let said =
            "repfuse: no block is named like `stage9`; `repfuse inspect` shows their names\n";
        assert_eq!((ran.status, ran.stderr.as_str()), (2, said), "{args:?}");
    }
    let ran = tiny.fuse(&["--drop", "head.*"]);
    let said = "repfuse: no tensor is named like `head.*`, which is to be dropped\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (2, said));
    let ran = tiny.fuse(&["--beside", "gate"]);
    let said =
        "no tensor and no module is named like `gate`, which is to stand beside the blocks\n";
    assert!(ran.stderr.ends_with(said), "{}", ran.stderr);
    assert_eq!(tiny.fuse(&["--skip", "stage2*"]).status, 0);
    // A branch that is fused does not stand beside its block.
    for glob in ["stage1.0.rbr_1x1", "stage1.0.rbr_*"] {
        let ran = tiny.fuse(&["--beside", glob]);
        let said = format!(
            "repfuse: `{glob}` names nothing but tensors that blocks fold, and what is fused does not stand beside them\n"
        );
        assert_eq!((ran.status, ran.stderr), (2, said));
    }
    let beside = |file: &mut File| put(file, "stage1.0.gate.weight", &[4]);
    let ran = changed(beside).fuse(&["--beside", "stage1.0.gate"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}

/// What is left of a block: the error names the block, and the flag that it offers leaves it as it is.
#[test]
fn a_half_block_is_skipped_by_its_path() {
    let tiny = changed(|file| drop(file.tensors.remove("stage1.1.rbr_1x1.conv.weight")));
    let [whole, half] = [Tiny::network(), tiny].map(|tiny| {
        let said = tiny.fuse(&[]);
        (tiny, said)
    });
    assert_eq!(whole.1.status, 0);
    let said = &half.1.stderr;
    assert_eq!(half.1.status, 2, "{said}");
    let offered = "; `--skip 'stage1.1'` leaves the block as it is\n";
    assert!(said.ends_with(offered), "{said}");
    for glob in ["stage1.1", "stage1.1*", "*.1"] {
        let ran = half.0.fuse(&["--skip", glob]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stdout.starts_with("fused 4 blocks"), "{}", ran.stdout);
        let out = File::read(&half.0.path("out.safetensors"));
        assert!(out.tensors.contains_key("stage1.1.rbr_dense.conv.weight"));
    }
}

/// One tensor less in a block of any fixture: what the error offers, followed to the letter, folds the other blocks.
#[test]
fn the_remedy_for_a_half_block_holds() {
    let place = Place::new();
    let (mut tried, mut offered) = (0, 0);
    let number = |stdout: &str| {
        let words = stdout.split_whitespace().nth(1);
        words.and_then(|n| n.parse::<usize>().ok())
    };
    for (c, case) in cases().iter().enumerate() {
        let file = File::read(&case.train);
        let run = |file: &File, flags: &[String]| {
            file.write(&place.path("in.safetensors"));
            let fuse = ["fuse", "in.safetensors", "out.safetensors", "--force"];
            let mut args: Vec<String> = fuse.map(str::to_owned).to_vec();
            if !case.detect {
                args.extend(["--recipe".to_owned(), case.recipe.clone()]);
            }
            args.extend_from_slice(flags);
            Ran::from(place.command(&args).output().expect("the command"))
        };
        let whole = number(&run(&file, &[]).stdout).expect("a number of blocks");
        let mut kinds = BTreeSet::new();
        let kind =
            |name: &&String| -> String { name.chars().filter(|c| !c.is_numeric()).collect() };
        let names: Vec<&String> = file
            .tensors
            .keys()
            .filter(|name| kinds.insert(kind(name)))
            .collect();
        for name in names.iter().skip(c % STRIDE).step_by(STRIDE) {
            let mut less = file.clone();
            less.tensors.remove(*name);
            let ran = run(&less, &[]);
            tried += 1;
            let is_half = ["that is not whole", "which no such block has"];
            if !is_half.iter().any(|said| ran.stderr.contains(said)) {
                continue;
            }
            let mut flags = Vec::new();
            for piece in ran.stderr.split("--skip '").skip(1) {
                let path = piece.split('\'').next().expect("a path");
                flags.extend(["--skip".to_owned(), path.to_owned()]);
            }
            if whole == 1 {
                // Nothing else is there to be folded.
                continue;
            }
            let followed = run(&less, &flags);
            let said = format!(
                "{} without {name}: {}\n{flags:?}: {}",
                case.name, ran.stderr, followed.stderr
            );
            assert!(!flags.is_empty() && followed.code() == Some(0), "{said}");
            let folded = number(&followed.stdout).expect("a number of blocks");
            // What is left may be detected as a file of another family.
            let is_same = ran.stderr.contains(&format!("of recipe `{}`", case.recipe));
            assert!(
                folded + 1 >= whole || !is_same,
                "{folded} of {whole}: {said}"
            );
            offered += 1;
        }
    }
    assert!(tried > 300 && offered > 50, "{offered} of {tried}");
}

/// Every so many kinds of names are taken out.
const STRIDE: usize = 5;

fn put(file: &mut File, name: &str, shape: &[usize]) {
    let values = vec![0.5; shape.iter().product()];
    file.tensors
        .insert(name.to_owned(), Held::f32(shape, &values));
}

#[test]
fn weights_in_parts_are_refused_by_name() {
    let lora = |file: &mut File| {
        let weight = file
            .tensors
            .remove("stage1.1.rbr_dense.conv.weight")
            .unwrap();
        file.tensors.insert(
            "stage1.1.rbr_dense.conv.base_layer.weight".to_owned(),
            weight,
        );
        put(
            file,
            "stage1.1.rbr_dense.conv.lora_A.default.weight",
            &[2, 4, 3, 3],
        );
        put(
            file,
            "stage1.1.rbr_dense.conv.lora_B.default.weight",
            &[4, 2, 1, 1],
        );
    };
    let spectral = |file: &mut File| {
        let weight = file
            .tensors
            .remove("stage1.1.rbr_dense.conv.weight")
            .unwrap();
        file.tensors
            .insert("stage1.1.rbr_dense.conv.weight_orig".to_owned(), weight);
        put(file, "stage1.1.rbr_dense.conv.weight_u", &[4]);
        put(file, "stage1.1.rbr_dense.conv.weight_v", &[36]);
    };
    let parametrized = |file: &mut File| {
        let weight = file
            .tensors
            .remove("stage1.1.rbr_dense.conv.weight")
            .unwrap();
        let at = "stage1.1.rbr_dense.conv.parametrizations.weight";
        file.tensors.insert(format!("{at}.original"), weight);
        put(file, &format!("{at}.0._u"), &[4]);
        put(file, &format!("{at}.0._v"), &[36]);
    };
    let remove = "has a weight under spectral norm: `stage1.1.rbr_dense.conv.weight_orig` is there; remove it first, as \
                  `torch.nn.utils.remove_spectral_norm` or `parametrize.remove_parametrizations` does";
    let cases: [(Change<'_>, String); 3] = [
        (
            &lora,
            "is stored as a base weight and LoRA parts: `stage1.1.rbr_dense.conv.base_layer.weight` is there; merge them first, as \
             `merge_and_unload()` of peft does"
                .to_owned(),
        ),
        (&spectral, remove.to_owned()),
        (&parametrized, remove.replace("weight_orig", "parametrizations.weight.original")),
    ];
    for (change, why) in cases {
        let tiny = changed(change);
        let refused = tiny.fuse(&[]);
        let expected = format!(
            "repfuse: `stage1.1.rbr_dense.conv` {why}; `--skip 'stage1.1.rbr_dense.conv'` leaves it as it is\n"
        );
        assert_eq!((refused.status, refused.stderr), (2, expected));
        // The module that the message names, and the block around it: either leaves the whole block.
        for skip in ["stage1.1.rbr_dense.conv", "stage1.1"] {
            let ran = tiny.fuse(&["--skip", skip]);
            assert_eq!(ran.status, 0, "{}", ran.stderr);
            assert!(
                ran.stdout
                    .contains("10 of 13 norms folded; as they were: stage1.1."),
                "{skip}: {}",
                ran.stdout
            );
            assert!(!ran.stderr.contains("no recipe covers"), "{}", ran.stderr);
        }
    }
}

/// The weight itself is there, and no part of a block all the same.
#[test]
fn the_block_around_skipped_parts_is_left() {
    for parts in [
        &["conv.lora_A", "conv.lora_B"][..],
        &["bn.parametrizations.weight.0.a"],
    ] {
        let tiny = changed(|file| {
            for part in parts {
                put(file, &format!("stage1.1.rbr_dense.{part}"), &[4]);
            }
        });
        let (module, _) = parts[0].split_once('.').unwrap();
        let module = format!("stage1.1.rbr_dense.{module}");
        let refused = tiny.fuse(&[]);
        assert!(
            refused
                .stderr
                .contains(&format!("`--skip '{module}'` leaves it")),
            "{}",
            refused.stderr
        );
        let ran = tiny.fuse(&["--skip", &module]);
        assert!(ran.stdout.contains("left 1 block as they are"), "{ran:?}");
        let out = File::read(&tiny.path("out.safetensors"));
        assert!(out.tensors.contains_key("stage1.1.rbr_dense.conv.weight"));
        assert!(!out.tensors.contains_key("stage1.1.rbr_reparam.weight"));
    }
}

/// What stands inside a module of a block has nothing missing: it is one tensor too many.
#[test]
fn a_tensor_inside_of_a_module_is_one_too_many() {
    let name = "stage1.1.rbr_dense.bn.eps";
    let tiny = changed(|file| put(file, name, &[1]));
    let refused = tiny.fuse(&[]);
    let said = format!("block `stage1.1`: `{name}` stands among its tensors");
    assert!(refused.stderr.contains(&said), "{}", refused.stderr);
    let ran = tiny.fuse(&["--beside", name]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}

#[test]
fn the_state_of_quantizers_is_refused_or_dropped() {
    for (name, end) in [
        (
            "stage1.1.rbr_dense.conv._weight_quantizer._amax",
            "_weight_quantizer",
        ),
        (
            "stage1.1.rbr_dense.conv.weight_fake_quant.fake_quant_enabled",
            "weight_fake_quant",
        ),
        (
            "stage1.1.rbr_dense.conv.activation_post_process.min_val",
            "activation_post_process",
        ),
        ("linear._input_quantizer._amax", "_input_quantizer"),
    ] {
        let tiny = changed(|file| put(file, name, &[1]));
        let refused = tiny.fuse(&[]);
        let module = name
            .split("._")
            .next()
            .unwrap()
            .split(".weight_fake")
            .next()
            .unwrap();
        let module = module.split(".activation").next().unwrap();
        let expected = format!(
            "repfuse: `{module}` has the state of a quantizer, which fits the weights before folding and not those after: `{name}` is \
             there; remove the quantizers, or drop their state, and quantize the folded network; `--drop '*.{end}'` leaves it out\n"
        );
        assert_eq!((refused.status, refused.stderr), (2, expected));
        let glob = format!("*.{end}");
        let ran = tiny.fuse(&["--drop", &glob, "--bn-eps", "1e-5"]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        let out = File::read(&tiny.path("out.safetensors"));
        assert!(!out.tensors.contains_key(name), "{name}");
        assert_eq!(out.tensors.len(), 12);
    }
}

/// A block of other shapes than the recipe asks for is not just left.
#[test]
fn a_block_of_other_shapes_is_told() {
    let place = Place::new();
    let own = recipe(
        r#"{"at": "{p}.one.weight", "where": {"{p}.two.weight": ["_", "_", 1, 1]},
            "fuse": {"{p}.out": {"sum": [{"conv": "{p}.one", "bias": "optional"}, {"conv": "{p}.two", "bias": "optional"}]}}}"#,
    );
    // (The recipe of other tests lets anything stand beside its blocks.)
    place.write("own.json", own.replace(r#""beside": ["{p}"], "#, ""));
    let file = |taps: usize| {
        let mut file = File::default();
        for block in ["a", "b"] {
            put(&mut file, &format!("{block}.one.weight"), &[4, 4, 3, 3]);
            put(&mut file, &format!("{block}.two.weight"), &[4, 4, 1, 1]);
        }
        put(&mut file, "b.two.weight", &[4, 4, taps, taps]);
        file
    };
    file(1).write(&place.path("right.safetensors"));
    file(3).write(&place.path("wrong.safetensors"));
    let ran = place.run("fuse right.safetensors out.safetensors --recipe own.json");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    let ran = place.run("fuse wrong.safetensors out.safetensors --recipe own.json --force");
    let said = "`b.one.weight` has the name of a part of a block of recipe `own`, `b`, and `b.two.weight` has shape [4, 4, 3, 3], which no such \
                block has";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

/// A kernel over one more axis is no branch of a conv, even if it has a single tap along it.
#[test]
fn branches_have_as_many_axes() {
    let tiny = changed(|file| put(file, "stage1.1.rbr_1x1.conv.weight", &[4, 4, 1, 1, 1]));
    let ran = tiny.fuse(&[]);
    let said = "`stage1.1.rbr_dense.conv.weight` and `stage1.1.rbr_1x1.conv.weight` have different numbers of dimensions; the convs of a \
                block have the same";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

/// An optional branch that one block of a row has lost, or has alone, is told.
#[test]
fn a_block_unlike_those_beside_it_is_told() {
    let row = |change: &dyn Fn(&mut File)| {
        let mut tiny = Tiny::empty();
        for i in 0..5 {
            tiny.block(&format!("stage1.{i}"), [4, 4]);
        }
        change(&mut tiny.file);
        tiny.write();
        tiny.fuse(&[]).stderr
    };
    let identity = |file: &mut File, block: &str| {
        let lost = |name: &str| name.starts_with(block) && name.contains(".rbr_identity.");
        file.tensors.retain(|name, _| !lost(name));
    };
    let told = "block `stage1.2` has no `stage1.2.rbr_identity.bias`, and the 4 blocks of its shape beside it have one";
    let said = row(&|file| identity(file, "stage1.2"));
    assert!(said.contains(told), "{said}");
    let said = row(&|file| {
        ["stage1.0", "stage1.1", "stage1.3", "stage1.4"]
            .map(|b| identity(file, b))
            .into_iter()
            .collect()
    });
    let told = "block `stage1.2` has `stage1.2.rbr_identity.bias`, and the 4 blocks of its shape beside it have none such";
    assert!(said.contains(told), "{said}");
    // The first of a stage has a stride, and no identity.
    let first = row(&|file| identity(file, "stage1.0"));
    for right in [row(&|_| ()), row(&|file| identity(file, "stage1.")), first] {
        assert!(!right.contains("beside it"), "{right}");
    }
}

/// A file of which other blocks are fused than `verify` takes: what to pass is said.
#[test]
fn a_file_that_was_fused_in_part_is_told() {
    let tiny = Tiny::network();
    let verify = |more: &[&str]| {
        tiny.run(&[&["verify", "train.safetensors", "out.safetensors"], more].concat())
    };
    tiny.fuse(&["--only", "stage1.0"]);
    let told = "repfuse: other blocks of the file are fused; `--only 'stage1.0'` verifies it\n";
    let ran = verify(&[]);
    assert!(ran.status == 1 && ran.stderr.ends_with(told), "{ran:?}");
    assert_eq!(verify(&["--only", "stage1.0"]).status, 0);
    tiny.fuse(&["--skip", "stage1.0"]);
    assert!(verify(&[]).stderr.ends_with(&told.replace("only", "skip")));
    tiny.fuse(&[]);
    let told =
        "repfuse: other blocks of the file are fused; leaving out --only and --skip verifies it\n";
    let ran = verify(&["--only", "stage1.0"]);
    assert!(ran.status == 1 && ran.stderr.ends_with(told), "{ran:?}");
    assert!(!ran.stdout.contains("different networks"), "{}", ran.stdout);
}
