"""Recording what goes into the blocks of a running network and what comes out."""

import ctypes
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

from ._command import Error, run

if TYPE_CHECKING:
    import torch

_TYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def record(
    model: "torch.nn.Module",
    inputs: Sequence[Any],
    path: Union[str, "os.PathLike[str]"],
    *,
    blocks: Optional[Iterable[str]] = None,
    recipe: Optional[str] = None,
) -> List[str]:
    """Runs the model and writes what went into its blocks and what came out: the file that ``--sample`` takes.

    The file is safetensors, with ``<block>.input`` and ``<block>.output`` for each of `blocks`, which are paths of
    modules. By default they are the blocks that ``repfuse inspect`` finds in the state dict, or, where it knows none,
    every module that holds convs and is no class of ``torch.nn``. Of a module that runs several times the first run is kept.

    Gives the names of the blocks that were recorded.

    Raises:
        Error: no block was, or one that was asked for is not there or did not run.
    """
    import torch

    modules = dict(model.named_modules())
    wanted = list(blocks) if blocks is not None else _blocks(model, recipe)
    missing = [name for name in wanted if name not in modules]
    if missing and blocks is not None:
        raise Error(f"the model has no module `{missing[0]}`")
    kept: Dict[str, "torch.Tensor"] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, arguments: Any, output: Any) -> None:
            first = arguments[0] if arguments else None
            if isinstance(first, torch.Tensor) and isinstance(output, torch.Tensor) and f"{name}.input" not in kept:
                kept[f"{name}.input"] = before.pop(name, first)
                kept[f"{name}.output"] = output.detach().clone()

        return hook

    before: Dict[str, "torch.Tensor"] = {}

    def enter(name: str) -> Any:
        def hook(_: Any, arguments: Any) -> None:
            # A block may change its input in place.
            if f"{name}.input" not in kept and arguments and isinstance(arguments[0], torch.Tensor):
                before[name] = arguments[0].detach().clone()

        return hook

    handles = []
    for name in wanted:
        if name in modules:
            handles.append(modules[name].register_forward_pre_hook(enter(name)))
            handles.append(modules[name].register_forward_hook(keep(name)))
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    recorded = [name for name in wanted if f"{name}.input" in kept]
    silent = [name for name in wanted if name not in recorded]
    if silent and blocks is not None:
        raise Error(f"`{silent[0]}` did not run, or takes or gives something else than one tensor")
    if not recorded:
        raise Error("no block was found; name them: `blocks=[…]`, paths of modules such as `stages.0.1`")
    save(kept, path)
    return recorded


def _blocks(model: "torch.nn.Module", recipe: Optional[str]) -> List[str]:
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        file = Path(folder) / "model.safetensors"
        save({name: x for name, x in model.state_dict().items() if str(getattr(x, "dtype", "")) in _TYPES}, file)
        try:
            found = [block["name"] for block in run("inspect", [file], {"recipe": recipe})["blocks"]]
        except Error:
            if recipe is not None:
                raise
            found = []
    if found:
        return found

    def holds_convs(module: "torch.nn.Module") -> bool:
        return any(type(part).__name__.startswith("Conv") for part in module.modules())

    modules = [(name, module) for name, module in model.named_modules() if name and holds_convs(module)]
    return [name for name, module in modules if not type(module).__module__.startswith("torch.nn.")]


def save(tensors: Mapping[str, "torch.Tensor"], path: Union[str, "os.PathLike[str]"]) -> None:
    """Writes a safetensors file, a tensor at a time; the safetensors package is not needed for it."""
    header: Dict[str, Any] = {}
    plain = {}
    at = 0
    for name, tensor in tensors.items():
        dtype = _TYPES.get(str(tensor.dtype))
        if dtype is None:
            raise Error(f"`{name}` is {tensor.dtype}, which is not written")
        plain[name] = tensor
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in plain.values():
            bytes_ = tensor.detach().cpu().contiguous()
            file.write(ctypes.string_at(bytes_.data_ptr(), bytes_.numel() * bytes_.element_size()))
