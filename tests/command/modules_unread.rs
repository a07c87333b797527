//! Modules that are pickled in ways of their own: what `torch.compile` makes is read as the module inside, and no tensor of
//! another one is lost without a word.

use super::modules::{
    IDENTITY, NORM, RELU, SEQUENTIAL, batch, block, fused, kernel, pair, passes, plain, refused,
};
use crate::support::file::{Place, recipe as own_recipe};
use crate::support::forge::File;
use crate::support::pickles::{Value, counted, dict, module, norm, object, save, with};
use repfuse::plan::{Options, plan};
use repfuse::recipe::parse;
use repfuse::tensor::Checkpoint;

/// What `torch.compile` makes of a module, as it is pickled.
fn compiled(inner: Value) -> Value {
    const PACKAGE: &str = "torch._dynamo.eval_frame";
    let context = Value::Call(PACKAGE, "OptimizeContext", Vec::new());
    Value::Call(PACKAGE, "OptimizedModule", vec![inner, context])
}

/// A module with a `__reduce__` of its own.
fn own(inner: Value) -> Value {
    Value::Call("__main__", "Own", vec![inner])
}

fn net() -> Value {
    block(SEQUENTIAL, pair(), Vec::new())
}

fn names(root: &Value, more: &str) -> Vec<String> {
    let place = Place::new();
    save(&place.path("net.pt"), root);
    let ran = place.run(&format!(
        "fuse net.pt out.safetensors --verify --quiet {more}"
    ));
    assert_eq!(ran.all(), (Some(0), "", ""));
    let file = File::read(&place.path("out.safetensors"));
    file.tensors.into_keys().collect()
}

#[track_caller]
fn unread(root: &Value, said: &str) {
    let expected = format!("repfuse: {said}\n");
    let ran = fused(root, "");
    assert_eq!((ran.code(), ran.stderr), (Some(2), expected));
}

const KEEPS: &str = ", which keeps its tensors in a way of its own, and they are not read; save a state dict: `torch.save(model.state_dict(), PATH)`";

#[test]
fn a_compiled_module_is_read_as_the_one_inside() {
    let folded = [
        "_orig_mod.stage0.rbr_reparam.bias",
        "_orig_mod.stage0.rbr_reparam.weight",
    ];
    assert_eq!(names(&compiled(net()), ""), folded);
    let wrapped = dict([("model", compiled(net())), ("epoch", Value::Int(3))]);
    assert_eq!(names(&wrapped, ""), folded);
    let parallel = module(
        "torch.nn.parallel.data_parallel.DataParallel",
        vec![("module", compiled(net()))],
    );
    assert_eq!(names(&parallel, ""), folded);
}

#[test]
fn a_part_may_be_compiled() {
    let parts = vec![("backbone", compiled(net())), ("head", net())];
    let found = names(&module("__main__.Net", parts), "");
    assert_eq!(
        found,
        [
            "backbone._orig_mod.stage0.rbr_reparam.bias",
            "backbone._orig_mod.stage0.rbr_reparam.weight",
            "head.stage0.rbr_reparam.bias",
            "head.stage0.rbr_reparam.weight",
        ]
    );
    let branch = |inner: Value| {
        let parts = vec![
            ("conv", compiled(kernel())),
            ("act", compiled(inner)),
            ("bn", batch()),
        ];
        block(SEQUENTIAL, parts, Vec::new())
    };
    passes(&branch(plain(IDENTITY)));
    refused(
        &branch(plain(RELU)),
        "`stage0.rbr_dense.act` is a `torch._dynamo.eval_frame.OptimizedModule`, and it stands between `stage0.rbr_dense.conv` and `stage0.rbr_dense.bn`, where the recipe has nothing",
    );
}

#[test]
fn a_module_that_keeps_its_tensors_otherwise_is_refused() {
    let with_part = |part: Value| module("__main__.Net", vec![("a", part), ("b", net())]);
    unread(
        &with_part(own(net())),
        &format!("`a` would be copied, and is a `__main__.Own`{KEEPS}; `--drop 'a'` leaves it out"),
    );
    let state = dict([("weight", counted(&[3]))]);
    unread(
        &with_part(object(
            "__main__.Keeper",
            [("sd", state), ("n", Value::Int(3))],
        )),
        &format!(
            "`a` would be copied, and is a `__main__.Keeper`{KEEPS}; `--drop 'a'` leaves it out"
        ),
    );
    for more in ["--drop a", "--only-under b"] {
        assert_eq!(
            fused(&with_part(own(net())), more).all(),
            (Some(0), "", ""),
            "{more}"
        );
    }
    // Without tensors there is nothing to lose.
    passes(&with_part(own(Value::Int(3))));
}

#[test]
fn the_values_of_a_dict_keep_nothing_back_either() {
    let of = |value: Value| dict([("weights", net()), ("more", value)]);
    unread(
        &of(own(net())),
        &format!(
            "`more` would be copied, and is a `__main__.Own`{KEEPS}; `--drop 'more'` leaves it out"
        ),
    );
    unread(
        &of(Value::List(vec![counted(&[2])])),
        &format!("`more` would be copied, and is a list{KEEPS}; `--drop 'more'` leaves it out"),
    );
    passes(&of(Value::List(vec![Value::Float(0.5)])));
    // An optimizer's tensors are no network's.
    let groups = Value::List(vec![dict([("params", Value::List(vec![counted(&[2])]))])]);
    passes(&of(object(
        "torch.optim.sgd.SGD",
        [("param_groups", groups)],
    )));
}

#[test]
fn a_file_of_nothing_else_says_what_it_is() {
    unread(
        &own(net()),
        &format!("`net.pt` cannot be read as a PyTorch file: it is a `__main__.Own`{KEEPS}"),
    );
    unread(
        &dict([("model", own(net()))]),
        &format!("`net.pt` cannot be read as a PyTorch file: `model` is a `__main__.Own`{KEEPS}"),
    );
}

/// One that is not read stands beside the one that is, or would be taken for nothing.
#[test]
fn what_stands_beside_is_said() {
    let place = Place::new();
    save(
        &place.path("net.pt"),
        &dict([("model", own(net())), ("ema", net())]),
    );
    let ran = place.run("fuse net.pt out.safetensors");
    let said = "repfuse: reading the state dict under `ema`; the tensors beside it, under `model`, are left out, and --key '' reads the whole file\n";
    assert!(ran.stderr.starts_with(said), "{}", ran.stderr);
    let inner = dict([("module", net()), ("loss", counted(&[3]))]);
    save(&place.path("net.pt"), &dict([("ema", inner)]));
    let ran = place.run("fuse net.pt out.safetensors --force");
    let said = "repfuse: reading the state dict under `ema.module`; the tensors beside it, under `ema.loss`, are left out, and --key '' reads the whole file\n";
    assert!(ran.stderr.starts_with(said), "{}", ran.stderr);
    let parts = vec![("module", net()), ("loss", own(net()))];
    unread(
        &module("__main__.Trainer", parts),
        &format!(
            "`loss` would be copied, and is a `__main__.Own`{KEEPS}; `--drop 'loss'` leaves it out"
        ),
    );
}

/// A `state_dict()` has no plain attributes, whatever they hold.
#[test]
fn attributes_are_no_state() {
    passes(&with(net(), "anchors", counted(&[3, 2])));
    passes(&with(net(), "strides", Value::List(vec![counted(&[3])])));
    passes(&with(net(), "criterion", own(counted(&[3]))));
}

#[test]
fn a_part_of_a_block_may_not_be_pickled_otherwise() {
    let acts = vec![
        ("conv", kernel()),
        ("act", own(Value::Int(1))),
        ("bn", batch()),
    ];
    refused(
        &block(SEQUENTIAL, acts, Vec::new()),
        "`stage0.rbr_dense.act` is a `__main__.Own`, and it stands between `stage0.rbr_dense.conv` and `stage0.rbr_dense.bn`, where the recipe has nothing",
    );
    let norm = || norm(NORM, 2, Vec::new());
    let held = vec![
        ("conv", kernel()),
        ("bn", norm()),
        ("act", own(counted(&[2]))),
    ];
    let ran = fused(&block(SEQUENTIAL, held, Vec::new()), "");
    assert_eq!(ran.code(), Some(2), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("`stage0.rbr_dense.act`"),
        "{}",
        ran.stderr
    );
}

/// Where a wrapper stands around a block, the class of what is inside of it is the block's.
#[test]
fn classes_inside_of_a_wrapper_are_evidence() {
    let recipe = own_recipe(
        r#"{"at": "{p}.bn.weight", "where": {"{p}.conv.weight": ["_", "_", "_", "_"]}, "classes": {"{p}": ["a.Known"]},
            "fuse": {"{p}.conv": {"seq": [{"conv": "{p}.conv", "bias": false}, {"bn": "{p}.bn"}]}}}"#,
    );
    let recipe = parse(&recipe, "own").expect("a recipe");
    let place = Place::new();
    let blocks = |class: &str| {
        let parts = vec![
            ("x", compiled(module("a.Known", pair()))),
            ("y", compiled(module(class, pair()))),
        ];
        let root = compiled(module("__main__.Net", parts));
        save(&place.path("net.pt"), &root);
        let file = Checkpoint::open(place.path("net.pt")).expect("a checkpoint");
        let plan = plan(file.tensors(), &recipe, &Options::default()).expect("a plan");
        let left = plan.left().iter().map(|left| left.why.clone());
        (
            plan.blocks().len(),
            left.collect::<Vec<String>>(),
            plan.outputs().len(),
        )
    };
    assert_eq!(blocks("a.Known"), (2, Vec::new(), 4));
    let why = "its class a.Strange is none that the recipe knows".to_owned();
    assert_eq!(blocks("a.Strange"), (1, vec![why], 7));
}
