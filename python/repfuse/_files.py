"""`fuse`, `verify` and `inspect`: on files by the command, and `fuse` on a module of PyTorch."""

import os
from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, Union, cast, overload

from ._command import run
from ._documents import FuseSummary, Inspection, Verdict

if TYPE_CHECKING:
    import torch

PathLike = Union[str, "os.PathLike[str]"]


@overload
def fuse(
    src: PathLike,
    dst: PathLike,
    *,
    recipe: Optional[PathLike] = None,
    graph: Optional[PathLike] = None,
    bn_eps: Optional[float] = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    dtype: str = "keep",
    verify: bool = False,
    key: Optional[str] = None,
    dry_run: bool = False,
    force: bool = False,
    threads: Optional[int] = None,
    **options: Any,
) -> FuseSummary: ...


@overload
def fuse(
    src: "torch.nn.Module",
    dst: Sequence[Any],
    *,
    kwargs: Optional[Dict[str, Any]] = None,
    dynamic_shapes: Any = None,
    tolerance: Optional[float] = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    **options: Any,
) -> "torch.nn.Module": ...


def fuse(src: Any, dst: Any, **options: Any) -> Any:
    """Folds every block into one conv.

    ``fuse(src, dst, **options)`` reads a file and writes another, as ``repfuse fuse SRC DST`` does; options are the
    command's, with underscores (``verify=True``, ``only=["stage1.*"]``). Gives the summary of ``--json``.

    ``fuse(model, example_inputs, *, kwargs=None, dynamic_shapes=None, tolerance=None, **options)`` exports a module with
    ``torch.export``, folds and verifies its graph, loads the result, and runs both on the example: a module that computes
    the same with one conv for each block. The model must be in evaluation mode. The outputs may differ by `tolerance` of
    the largest one: 1e-4 by default, and 2e-2 for half types.

    Raises:
        Error: it could not be folded, or what was made is not the same.
    """
    if isinstance(src, (str, os.PathLike)):
        return run("fuse", [src, dst], options)
    from ._module import fuse_module

    return fuse_module(src, dst, **options)


def verify(
    src: PathLike,
    dst: Optional[PathLike] = None,
    *,
    recipe: Optional[PathLike] = None,
    bn_eps: Optional[float] = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    tolerance: Optional[float] = None,
    probes: Optional[int] = None,
    seed: Optional[int] = None,
    exhaustive: bool = False,
    key: Optional[str] = None,
    **options: Any,
) -> Verdict:
    """Compares the training form with a deploy form, or with what ``fuse`` would write: ``verify(...)["accepted"]``.

    Raises:
        Error: they could not be compared.
    """
    named = dict(recipe=recipe, bn_eps=bn_eps, only=only, skip=skip, tolerance=tolerance, probes=probes, seed=seed)
    named.update(exhaustive=exhaustive, key=key, **options)
    files = [src] if dst is None else [src, dst]
    return cast(Verdict, run("verify", files, named, answers=1))


def inspect(
    file: PathLike,
    *,
    recipe: Optional[PathLike] = None,
    input_size: Optional[int] = None,
    key: Optional[str] = None,
    **options: Any,
) -> Inspection:
    """Shows the blocks of a file, its other convs, and what it holds.

    Raises:
        Error: it cannot be read.
    """
    named = dict(recipe=recipe, input_size=input_size, key=key, **options)
    return cast(Inspection, run("inspect", [file], named))
