//! Modules that compute something else than their classes do: hooks, methods of an instance's own, an eps that stands in code,
//! and convs that are built otherwise than the recipe's.

use super::modules::{
    CONV, NORM, SEQUENTIAL, batch, block, fused, kernel, pair, passes, plain, refused,
};
use super::modules::{IDENTITY, RELU};
use crate::support::file::Place;
use crate::support::pickles::{Value, conv, dict, module, norm, save, with, without};

/// A dict with one hook, as a module keeps them.
fn hooks(hook: Value) -> Value {
    dict([("7", hook)])
}

fn own_hook() -> Value {
    hooks(Value::Global("__main__", "double"))
}

fn dense(conv: Value, norm: Value) -> Value {
    block(SEQUENTIAL, vec![("conv", conv), ("bn", norm)], Vec::new())
}

#[test]
fn hooks_of_a_part_of_a_block_are_refused() {
    refused(
        &dense(kernel(), with(batch(), "_forward_hooks", own_hook())),
        "`stage0.rbr_dense.bn` has a forward hook, `__main__.double`, which a folded conv would lose",
    );
    refused(
        &dense(with(kernel(), "_forward_pre_hooks", own_hook()), batch()),
        "`stage0.rbr_dense.conv` has a forward pre-hook, `__main__.double`, which a folded conv would lose",
    );
    let method = Value::Call(
        "builtins",
        "getattr",
        vec![plain(RELU), Value::Text("scaled")],
    );
    let branch = module(SEQUENTIAL, vec![("conv", kernel()), ("bn", batch())]);
    let branch = with(branch, "_forward_hooks", hooks(method));
    let of_block = |block: Value| module("__main__.Net", vec![("stage0", block)]);
    let parts = |dense: Value| {
        let point = vec![("conv", conv(CONV, [2, 2, 1, 1])), ("bn", batch())];
        vec![("rbr_dense", dense), ("rbr_1x1", module(SEQUENTIAL, point))]
    };
    refused(
        &of_block(module("__main__.Block", parts(branch))),
        "`stage0.rbr_dense` has a forward hook, `scaled`, which a folded conv would lose",
    );
    let whole = module("__main__.Block", parts(module(SEQUENTIAL, pair())));
    refused(
        &of_block(with(whole, "_forward_hooks", hooks(Value::Int(1)))),
        "`stage0` has a forward hook, which a folded conv would lose",
    );
}

#[test]
fn a_method_of_an_instance_is_refused() {
    for name in ["forward", "_call_impl"] {
        refused(
            &dense(
                with(kernel(), name, Value::Global("__main__", "twice")),
                batch(),
            ),
            &format!(
                "`stage0.rbr_dense.conv` has a method `{name}` of its own, which a folded conv would lose"
            ),
        );
        passes(&dense(with(kernel(), name, Value::None), batch()));
    }
    // What does nothing by its class may do something now.
    let changed = with(plain(IDENTITY), "_forward_hooks", own_hook());
    let parts = vec![("conv", kernel()), ("drop", changed), ("bn", batch())];
    refused(
        &block(SEQUENTIAL, parts, Vec::new()),
        "`stage0.rbr_dense.drop` is a `torch.nn.modules.linear.Identity`, and it stands between `stage0.rbr_dense.conv` and `stage0.rbr_dense.bn`, where the recipe has nothing",
    );
}

#[test]
fn hooks_that_change_nothing_of_a_block_pass() {
    for name in [
        "_backward_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    ] {
        passes(&dense(with(kernel(), name, own_hook()), batch()));
    }
    passes(&dense(with(kernel(), "_forward_hooks", dict([])), batch()));
    // Behind the block, and around it.
    let act = with(plain(RELU), "_forward_hooks", own_hook());
    passes(&block(SEQUENTIAL, pair(), vec![("act", act)]));
    passes(&with(
        dense(kernel(), batch()),
        "_forward_hooks",
        own_hook(),
    ));
    // PyTorch's own compute a weight of parts, which are read by their names.
    let of_parts = Value::Call("torch.nn.utils.weight_norm", "WeightNorm", Vec::new());
    passes(&dense(
        with(kernel(), "_forward_pre_hooks", hooks(of_parts)),
        batch(),
    ));
}

/// The norm of DETR: its eps is a number in its `forward`.
#[test]
fn a_norm_that_says_no_eps_asks_for_one() {
    const FROZEN: &str = "__main__.FrozenBatchNorm2d";
    let frozen = || norm(FROZEN, 2, Vec::new());
    let silent = || dense(kernel(), without(frozen(), "eps"));
    let expected = format!(
        "repfuse: taken for a file of recipe `repvgg`: block `stage0`: the file says that the norm `stage0.rbr_dense.bn` is a `{FROZEN}`, and no eps of it, which its code has; `--bn-eps EPS` gives it, `--skip 'stage0'` leaves the block as it is\n"
    );
    let ran = fused(&silent(), "");
    assert_eq!((ran.code(), ran.stderr), (Some(2), expected));
    assert_eq!(fused(&silent(), "--recipe repvgg").code(), Some(2));
    assert_eq!(fused(&silent(), "--bn-eps 1e-5").all(), (Some(0), "", ""));
    passes(&dense(kernel(), frozen()));
    // In code, as TorchScript has it, is another thing to say.
    let place = Place::new();
    save(&place.path("net.pt"), &silent());
    let ran = place.run("fuse net.pt out.safetensors --bn-eps 1e-5");
    assert!(!ran.stderr.contains("TorchScript"), "{}", ran.stderr);
}

/// Fuses a block whose larger conv has these attributes besides, and returns what it warns of.
fn warned(name: &str, value: Value) -> String {
    let place = Place::new();
    let root = dense(with(kernel(), name, value), norm(NORM, 2, Vec::new()));
    save(&place.path("net.pt"), &root);
    let ran = place.run("fuse net.pt out.safetensors --verify");
    assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
    ran.stderr
}

#[test]
fn what_the_fused_conv_is_built_with_is_said() {
    let warning = |argument: &str| {
        format!(
            "repfuse: warning: the fused conv `stage0.rbr_reparam` is to be built with `{argument}`, as the file says of what is folded; tensors do not tell it\n"
        )
    };
    for mode in ["reflect", "circular"] {
        let said = warned("padding_mode", Value::Text(mode));
        assert_eq!(said, warning(&format!("padding_mode='{mode}'")));
    }
    assert_eq!(warned("padding_mode", Value::Text("zeros")), "");
    let pair = |n| Value::Tuple(vec![Value::Int(n), Value::Int(n)]);
    let place = Place::new();
    let wide = with(with(kernel(), "dilation", pair(2)), "padding", pair(2));
    save(&place.path("net.pt"), &dense(wide, batch()));
    let ran = place.run("fuse net.pt out.safetensors --verify");
    assert_eq!(
        (ran.code(), ran.stderr),
        (Some(0), warning("dilation=(2, 2)"))
    );
    assert_eq!(warned("dilation", pair(1)), "");
}

#[test]
fn several_fused_convs_are_counted() {
    let place = Place::new();
    let one = || {
        let net = dense(
            with(kernel(), "padding_mode", Value::Text("reflect")),
            batch(),
        );
        match net {
            Value::Module(net) => net.modules[0].1.clone(),
            other => other,
        }
    };
    let root = module("__main__.Net", vec![("stage0", one()), ("stage1", one())]);
    save(&place.path("net.pt"), &root);
    let ran = place.run("fuse net.pt out.safetensors");
    let said = "repfuse: warning: 2 fused convs, `stage0.rbr_reparam` and others, are to be built with `padding_mode='reflect'`, as the file says of what is folded; tensors do not tell it\n";
    assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), said));
}
