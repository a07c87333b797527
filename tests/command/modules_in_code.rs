//! The eps of TorchScript's norms, which stands in the code of the archive.

use crate::support::file::{Place, Ran};
use crate::support::pickles::{Value, archive_beside, counted, object};

/// A block of RepVGG as TorchScript keeps it.
fn root() -> Value {
    let norm = || {
        let vector = || counted(&[2]);
        object(
            "__torch__.torch.nn.modules.batchnorm.BatchNorm2d",
            [
                ("weight", vector()),
                ("bias", vector()),
                ("running_mean", vector()),
                ("running_var", vector()),
            ],
        )
    };
    let branch = |size: u8| {
        let weight = [("weight", counted(&[2, 2, size, size]))];
        let conv = object("__torch__.torch.nn.modules.conv.Conv2d", weight);
        object(
            "__torch__.torch.nn.modules.container.Sequential",
            [("conv", conv), ("bn", norm())],
        )
    };
    let block = object(
        "__torch__.Block",
        [("rbr_dense", branch(3)), ("rbr_1x1", branch(1))],
    );
    object("__torch__.Net", [("stage0", block)])
}

fn fuse(code: &[(&str, &str)], more: &str) -> Ran {
    let place = Place::new();
    let archive = archive_beside(&root(), code);
    std::fs::write(place.path("net.pt"), archive).expect("a writable directory");
    place.run(&format!("fuse net.pt out.safetensors --verify {more}"))
}

const CODE: &str = "code/__torch__/torch/nn/modules/batchnorm.py";
const WARNING: &str = "repfuse: warning: the eps of this file's norms stands in its code, as TorchScript keeps it, and is not read; recipe `repvgg` has 1e-5, and 1e-3 would change a scale by up to ";

#[test]
fn an_eps_in_code_is_read() {
    let constant = "class BatchNorm2d(Module):\n  eps : Final[float] = 0.002\n";
    let argument = "class BatchNorm2d(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    _0 = torch.batch_norm(x, weight, bias, running_mean, running_var, False, 0.10000000000000001, 0.002, True)\n    return _0\n";
    for text in [constant, argument] {
        let ran = fuse(&[(CODE, text)], "");
        assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("2e-3 from the file"), "{}", ran.stdout);
        let ran = fuse(&[(CODE, text)], "--bn-eps 1e-3");
        let said = "the file says that the norm `stage0.rbr_dense.bn` has eps 2e-3, and 1e-3 was asked for; leave that out";
        assert!(
            ran.code() == Some(2) && ran.stderr.contains(said),
            "{}",
            ran.stderr
        );
    }
}

/// What does not say one number for certain is warned about, as if there were no code.
#[test]
fn an_eps_that_is_not_read_is_warned_about() {
    let other = "class BatchNorm2d(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    return torch.add(x, 0.002)\n";
    let codes: [&[(&str, &str)]; 3] = [&[], &[(CODE, other)], &[("code/__torch__.py", other)]];
    for code in codes {
        let ran = fuse(code, "");
        assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
        assert!(ran.stderr.contains(WARNING), "{}", ran.stderr);
        let ran = fuse(code, "--bn-eps 1e-3");
        assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), ""));
    }
}

/// PyTorch compresses its code. Scripting writes an eps as a constant, tracing as an argument.
#[test]
fn the_code_that_pytorch_writes_is_read() {
    for name in ["scripted", "traced"] {
        let fixture = format!("{}/fixtures/pickles/{name}.pt", env!("CARGO_MANIFEST_DIR"));
        let place = Place::new();
        let ran = place.run(&format!(
            "fuse {fixture} out.safetensors --drop stage0.scratch --verify"
        ));
        assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(ran.stdout.contains("1e-3 from the file"), "{}", ran.stdout);
    }
}
