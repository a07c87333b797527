//! Whole pickled modules: what a file says of the modules of a block, besides the names of their tensors.

use crate::support::file::{Place, Ran};
use crate::support::pickles::{Module, Value, conv, counted, dict, module, norm, save};

pub const CONV: &str = "torch.nn.modules.conv.Conv2d";
pub const NORM: &str = "torch.nn.modules.batchnorm.BatchNorm2d";
pub const SEQUENTIAL: &str = "torch.nn.modules.container.Sequential";
pub const RELU: &str = "torch.nn.modules.activation.ReLU";
pub const IDENTITY: &str = "torch.nn.modules.linear.Identity";

pub type Parts = Vec<(&'static str, Value)>;

pub fn plain(class: &str) -> Value {
    module(class, Vec::new())
}

pub fn kernel() -> Value {
    conv(CONV, [2, 2, 3, 3])
}

pub fn batch() -> Value {
    norm(NORM, 2, Vec::new())
}

pub fn pair() -> Parts {
    vec![("conv", kernel()), ("bn", batch())]
}

/// A block of RepVGG whose branch has these parts, and which has these of its own behind.
pub fn block(class: &str, dense: Parts, own: Parts) -> Value {
    let point = vec![("conv", conv(CONV, [2, 2, 1, 1])), ("bn", batch())];
    let mut parts = vec![
        ("rbr_dense", module(class, dense)),
        ("rbr_1x1", module(SEQUENTIAL, point)),
    ];
    parts.extend(own);
    module(
        "__main__.Net",
        vec![("stage0", module("__main__.Block", parts))],
    )
}

pub fn fused(root: &Value, more: &str) -> Ran {
    let place = Place::new();
    save(&place.path("net.pt"), root);
    place.run(&format!(
        "fuse net.pt out.safetensors --verify --quiet {more}"
    ))
}

#[track_caller]
pub fn passes(root: &Value) {
    let ran = fused(root, "");
    assert_eq!(ran.all(), (Some(0), "", ""));
}

/// The block is refused with this sentence, and folded where the recipe is the user's choice.
#[track_caller]
pub fn refused(root: &Value, said: &str) {
    let ran = fused(root, "");
    let expected = format!(
        "repfuse: taken for a file of recipe `repvgg`: block `stage0`: the file says that {said}; `--skip 'stage0'` leaves the block as it is, `--recipe repvgg` folds it all the same\n"
    );
    assert_eq!((ran.code(), ran.stderr), (Some(2), expected));
    assert_eq!(fused(root, "--recipe repvgg").code(), Some(0));
}

#[test]
fn what_does_nothing_or_acts_behind_the_block_is_no_part_of_it() {
    passes(&block(SEQUENTIAL, pair(), vec![("act", plain(RELU))]));
    let idle = vec![
        ("conv", kernel()),
        ("drop", plain("torch.nn.modules.dropout.Dropout")),
        ("path", plain("models.layers.DropPath")),
        ("bn", batch()),
        ("act", plain(IDENTITY)),
    ];
    passes(&block(SEQUENTIAL, idle, Vec::new()));
    // A class of the user's own may call its parts in any order.
    let turned = vec![("bn", batch()), ("conv", kernel())];
    passes(&block("__main__.ConvNorm", turned, Vec::new()));
}

#[test]
fn what_acts_inside_of_a_branch_is_refused() {
    let with = |class: &str, at: usize, part: &'static str, of: &str| {
        let mut parts = pair();
        parts.insert(at, (part, plain(of)));
        block(class, parts, Vec::new())
    };
    refused(
        &with(SEQUENTIAL, 1, "relu", RELU),
        "`stage0.rbr_dense.relu` is a `torch.nn.modules.activation.ReLU`, and it stands between `stage0.rbr_dense.conv` and `stage0.rbr_dense.bn`, where the recipe has nothing",
    );
    for class in [SEQUENTIAL, "__main__.ConvNorm"] {
        refused(
            &with(class, 2, "clip", "torch.nn.modules.activation.Hardtanh"),
            "`stage0.rbr_dense.clip` is a `torch.nn.modules.activation.Hardtanh` inside of `stage0.rbr_dense`, where the recipe has nothing",
        );
    }
}

#[test]
fn a_sequence_has_the_order_of_the_recipe() {
    let turned = vec![("bn", batch()), ("conv", kernel())];
    refused(
        &block(SEQUENTIAL, turned, Vec::new()),
        "`stage0.rbr_dense` is a `torch.nn.modules.container.Sequential`, in which `stage0.rbr_dense.bn` comes before `stage0.rbr_dense.conv`; in the recipe it is the other way round",
    );
}

#[test]
fn convs_and_norms_of_other_classes_are_refused() {
    let of = |conv: Value, norm: Value| {
        block(SEQUENTIAL, vec![("conv", conv), ("bn", norm)], Vec::new())
    };
    for class in [
        "timm.layers.std_conv.StdConv2d",
        "timm.layers.conv2d_same.Conv2dSame",
        "__main__.Conv2d",
    ] {
        refused(
            &of(conv(class, [2, 2, 3, 3]), batch()),
            &format!(
                "`stage0.rbr_dense.conv` is a `{class}`, and the recipe takes it for a plain conv"
            ),
        );
    }
    refused(
        &of(kernel(), norm("__main__.BatchNorm2d", 2, Vec::new())),
        "`stage0.rbr_dense.bn` is a `__main__.BatchNorm2d`, and the recipe takes it for a plain batch norm",
    );
    for class in [
        "torch.nn.modules.batchnorm.SyncBatchNorm",
        "torchvision.ops.misc.FrozenBatchNorm2d",
        "torch.nn.modules.instancenorm.InstanceNorm2d",
    ] {
        passes(&of(kernel(), norm(class, 2, Vec::new())));
    }
    // timm's norm has its activation inside.
    let acts = |act: &str| {
        let parts = vec![("drop", plain(IDENTITY)), ("act", plain(act))];
        of(
            kernel(),
            norm("timm.layers.norm_act.BatchNormAct2d", 2, parts),
        )
    };
    passes(&acts(IDENTITY));
    refused(
        &acts(RELU),
        "`stage0.rbr_dense.bn.act` is a `torch.nn.modules.activation.ReLU` inside of `stage0.rbr_dense.bn`, where the recipe has nothing",
    );
}

#[test]
fn a_module_where_a_branch_may_be_missing_is_refused() {
    let with = |identity: Value| block(SEQUENTIAL, pair(), vec![("rbr_identity", identity)]);
    passes(&with(Value::None));
    passes(&with(batch()));
    refused(
        &with(plain(IDENTITY)),
        "`stage0.rbr_identity` is a `torch.nn.modules.linear.Identity`: a bare identity, which the recipe does not have",
    );
    let pool = || plain("torch.nn.modules.pooling.MaxPool2d");
    refused(
        &with(pool()),
        "`stage0.rbr_identity` is a `torch.nn.modules.pooling.MaxPool2d`, where the recipe has a branch with parameters or none",
    );
    refused(
        &with(module(SEQUENTIAL, vec![("0", pool())])),
        "`stage0.rbr_identity` is a `torch.nn.modules.container.Sequential`, where the recipe has a branch with parameters or none",
    );
}

/// A block, and a head with this weight.
fn with_head(weight: Value) -> Value {
    let mut root = block(SEQUENTIAL, pair(), Vec::new());
    if let Value::Module(net) = &mut root {
        let linear = Module {
            class: "__main__.Head".to_owned(),
            parameters: vec![("weight".to_owned(), weight)],
            ..Module::default()
        };
        net.modules.push(("head".to_owned(), Value::Module(linear)));
    }
    root
}

/// A head that cannot be read is nobody's business until it is to be copied.
#[test]
fn a_quantized_head_is_dropped_or_refused() {
    let shape = Value::Tuple(vec![Value::Int(3), Value::Int(2)]);
    let head = Value::Call(
        "torch._utils",
        "_rebuild_qtensor",
        vec![Value::None, Value::Int(0), shape],
    );
    let root = with_head(head);
    let ran = fused(&root, "");
    assert_eq!(
        (ran.code(), ran.stderr.as_str()),
        (
            Some(2),
            "repfuse: `head.weight` would be copied, and is what PyTorch's `torch._utils._rebuild_qtensor` makes: a tensor without plain numbers (qtensor); save `tensor.dequantize()` in its place; `--drop 'head.weight'` leaves it out\n"
        )
    );
    for more in ["--drop head", "--only-under stage0"] {
        assert_eq!(fused(&root, more).all(), (Some(0), "", ""), "{more}");
    }
}

/// An array among the tensors is, too; one that stands beside the state dict is none of its tensors.
#[test]
fn an_array_among_the_tensors_is_dropped_or_refused() {
    let array = || Value::Call("numpy._core.multiarray", "_reconstruct", Vec::new());
    let ran = fused(&with_head(array()), "");
    assert_eq!(
        ran.stderr,
        "repfuse: `head.weight` would be copied, and is a NumPy array, which is not read; save `torch.from_numpy(array)` in its place; `--drop 'head.weight'` leaves it out\n"
    );
    let ran = fused(&with_head(array()), "--drop head");
    assert_eq!(ran.all(), (Some(0), "", ""));
    let beside = dict([
        ("model", block(SEQUENTIAL, pair(), Vec::new())),
        ("map", array()),
    ]);
    assert_eq!(fused(&beside, "").all(), (Some(0), "", ""));
}

#[test]
fn what_is_no_state_dict_is_told_with_the_way_on() {
    let array = Value::Call("numpy._core.multiarray", "_reconstruct", Vec::new());
    let stored = Value::Call(
        "torch._utils",
        "_rebuild_tensor_v2",
        vec![
            Value::Call("torch.storage", "_load_from_bytes", Vec::new()),
            Value::Int(0),
            Value::Tuple(vec![Value::Int(1)]),
            Value::Tuple(vec![Value::Int(1)]),
        ],
    );
    let unknown = match counted(&[2]) {
        Value::Tensor(mut tensor) => {
            tensor.metadata = vec![("zero".to_owned(), Value::Bool(true))];
            Value::Tensor(tensor)
        }
        other => other,
    };
    for (root, said) in [
        (
            dict([("a", array)]),
            "`a` is a NumPy array, which is not read; save `torch.from_numpy(array)` in its place",
        ),
        (
            dict([("a", stored)]),
            "`a` is stored as Python's `pickle` does it, and its numbers are not read; load the file in Python and write its state dict with `torch.save`",
        ),
        (
            dict([("a", unknown)]),
            "`a` has the metadata `zero`, which is not read; save `tensor.clone()` in its place",
        ),
        (
            plain("__torch__.Net"),
            "it has no tensor, where a `__torch__.Net` is; TorchScript that was frozen or optimized keeps its weights in its code, which is not read; save the state dict of the model that it was made of",
        ),
    ] {
        let expected = format!("repfuse: `net.pt` cannot be read as a PyTorch file: {said}\n");
        assert_eq!(fused(&root, "").stderr, expected);
    }
}

/// What stands beside a state dict is said, and `--key ''` reads it.
#[test]
fn weights_beside_the_state_dict_are_said() {
    let place = Place::new();
    let net = block(SEQUENTIAL, pair(), Vec::new());
    save(
        &place.path("net.pt"),
        &dict([("model", net), ("head", counted(&[3]))]),
    );
    let ran = place.run("fuse net.pt out.safetensors");
    assert_eq!(ran.code(), Some(0));
    let said = "repfuse: reading the state dict under `model`; the tensors beside it, under `head`, are left out, and --key '' reads the whole file\n";
    assert!(ran.stderr.starts_with(said), "{}", ran.stderr);
    let whole = place.run("fuse net.pt whole.safetensors --key= --quiet");
    assert_eq!(whole.all(), (Some(0), "", ""));
    let file = crate::support::forge::File::read(&place.path("whole.safetensors"));
    assert!(file.tensors.contains_key("head"));
    assert!(file.tensors.contains_key("model.stage0.rbr_reparam.weight"));
}
