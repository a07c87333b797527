"""A module of PyTorch, folded by way of torch.export."""

import tempfile
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from ._command import Error, run

if TYPE_CHECKING:
    import torch


def fuse_module(
    model: "torch.nn.Module",
    example_inputs: Sequence[Any],
    *,
    kwargs: Optional[Dict[str, Any]] = None,
    dynamic_shapes: Any = None,
    tolerance: Optional[float] = None,
    **options: Any,
) -> "torch.nn.Module":
    """See `repfuse.fuse`."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"expected a path or a torch.nn.Module; found {type(model).__name__}")
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    training = _in_training(model)
    if training is not None:
        raise Error(f"`{training or 'the model'}` is in training mode, whose norms take their statistics from the input; call `model.eval()` first")
    arguments, named = tuple(example_inputs), dict(kwargs or {})
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder, torch.no_grad():
        src, dst = Path(folder) / "train.pt2", Path(folder) / "deploy.pt2"
        program = torch.export.export(model, arguments, named, dynamic_shapes=dynamic_shapes)
        torch.export.save(program, str(src))
        run("fuse", [src, dst], {"verify": True, **options})
        fused = torch.export.load(str(dst)).module()
        # A model may change its input in place.
        compare(_copied(model, arguments, named), _copied(fused, arguments, named), tolerance)
    return _for_inference(fused)


def _in_training(module: "torch.nn.Module", name: str = "") -> Optional[str]:
    """The name of the first part that is in training mode.

    The mode of an exported program is fixed in its graph, whatever `training` says: the command reads it there.
    """
    import torch

    if isinstance(module, torch.fx.GraphModule):
        return None
    if module.training:
        return name
    parts = (_in_training(part, f"{name}.{key}".lstrip(".")) for key, part in module.named_children())
    return next((part for part in parts if part is not None), None)


def _for_inference(fused: "torch.nn.Module") -> "torch.nn.Module":
    """Lets `eval()` of the module, and of what it becomes a part of, do nothing. PyTorch raises an error there."""

    def train(module: "torch.nn.Module", mode: bool = True) -> "torch.nn.Module":
        if mode:
            raise NotImplementedError("a fused module has no training form: train the model that it was made of, and fuse it again")
        return module

    for module in fused.modules():
        module.training = False
    setattr(fused, "train", types.MethodType(train, fused))
    setattr(fused, "eval", types.MethodType(lambda module: module.train(False), fused))
    return fused


def _copied(model: "torch.nn.Module", arguments: Any, named: Any) -> Any:
    import torch
    from torch.utils import _pytree

    def copy(x: Any) -> Any:
        return x.clone() if isinstance(x, torch.Tensor) else x

    arguments, named = _pytree.tree_map(copy, (arguments, named))
    return model(*arguments, **named)


def compare(trained: Any, fused: Any, tolerance: Optional[float]) -> None:
    """Compares what two modules gave.

    Raises:
        Error: they differ by more than is allowed.
    """
    import torch
    from torch.utils import _pytree

    def tensors(outputs: Any) -> List["torch.Tensor"]:
        return [x for x in _pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor)]

    pairs = list(zip(tensors(trained), tensors(fused)))
    if len(tensors(trained)) != len(tensors(fused)):
        raise Error(f"the fused module gives {len(tensors(fused))} tensors; the model gives {len(tensors(trained))}")
    for i, (x, y) in enumerate(pairs):
        half = x.dtype in (torch.float16, torch.bfloat16)
        allowed = tolerance if tolerance is not None else 2e-2 if half else 1e-4
        if x.shape != y.shape or x.dtype != y.dtype:
            raise Error(f"output {i} is {y.dtype} {list(y.shape)}; the model gives {x.dtype} {list(x.shape)}")
        if not (x.is_floating_point() or x.is_complex()):
            # Indices turn where two numbers are nearly equal.
            continue
        if x.numel() == 0:
            continue
        x, y = x.detach().double().cpu(), y.detach().double().cpu()
        # Where both are infinite alike or no number, they agree.
        same = (x == y) | (x.isnan() & y.isnan())
        worst = float((x - y).abs().masked_fill(same, 0).max())
        largest = float(x.abs().masked_fill(~x.isfinite(), 0).max())
        if not worst <= allowed * largest and worst != 0:
            raise Error(f"output {i} differs by {worst:.1e}, which is {worst / largest if largest else float('inf'):.1e} of the largest; {allowed:.0e} is allowed")
