"""Fold re-parameterizable blocks (RepVGG, MobileOne, RepConv and kin) into plain convs, and prove that nothing changed.

    import repfuse

    fast = repfuse.fuse(model, (x,))                      # a torch.nn.Module in, one out
    repfuse.fuse("train.safetensors", "deploy.safetensors")
    repfuse.verify("train.safetensors", "deploy.safetensors")["accepted"]
    repfuse.inspect("train.safetensors")["blocks"]
    repfuse.record(model, (x,), "sample.safetensors")     # for `--sample`

Files are read and written by the command `repfuse`, which this package contains; `python -m repfuse` is the command.
PyTorch is imported only where a module is given.
"""

from ._command import Error
from ._documents import Agreement, FuseSummary, Inspection, Verdict
from ._files import fuse, inspect, verify
from ._record import record

__all__ = ["Agreement", "Error", "FuseSummary", "Inspection", "Verdict", "fuse", "inspect", "record", "verify"]
