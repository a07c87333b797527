"""What the command prints with `--json`. `repfuse schema COMMAND` gives each as JSON Schema, with what every field means.

Within a version of a schema, fields are added and never removed or given another meaning.
"""

from typing import Any, Dict, List, Optional, TypedDict


class FusedConv(TypedDict):
    """A conv that a block becomes; its tensors are `<module>.weight` and `<module>.bias`."""

    module: str
    dtype: str
    weight_shape: List[int]
    groups: Optional[int]
    expression: str


class FusedBlock(TypedDict):
    """One block, and the tensors that went into it."""

    name: str
    assumes_identity: bool
    outputs: List[FusedConv]
    consumed: List[str]


class FuseSummary(TypedDict):
    """What `repfuse fuse --json` prints."""

    schema: str
    input: str
    output: str
    dry_run: bool
    recipe: str
    bn_eps: Optional[float]
    bn_eps_source: str
    bn_eps_note: Optional[str]
    bn_eps_weight: Optional[float]
    bn_eps_other: Optional[float]
    blocks_fused: int
    blocks_skipped: List[str]
    tensors_before: int
    tensors_after: int
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    seconds: float
    verified: Optional[bool]
    became_zero: Optional[int]
    load: str
    blocks: List[FusedBlock]
    dropped: List[str]


class BlockVerdict(TypedDict):
    """The verdict on one fused conv."""

    name: str
    module: str
    expression: str
    accepted: bool
    dtype: Optional[str]
    trained_dtype: Optional[str]
    ratio: Optional[float]
    absolute: Optional[float]
    relative: Optional[float]
    snr_db: Optional[float]
    tensor: Optional[str]
    index: Optional[List[int]]
    impulses: int
    input_channels_per_group: int
    failure: Optional[str]


class Verdict(TypedDict):
    """What `repfuse verify --json` prints."""

    schema: str
    input: str
    output: Optional[str]
    accepted: bool
    recipe: str
    bn_eps: Optional[float]
    bn_eps_source: str
    bn_eps_weight: Optional[float]
    allowance: str
    tolerance: float
    worst_ratio: Optional[float]
    copied: int
    failures: List[str]
    blocks: List[BlockVerdict]
    seconds: float


class InspectedBlock(TypedDict):
    """One block."""

    name: str
    assumes_identity: bool
    parameters: Dict[str, int]
    outputs: List[Dict[str, Any]]


class Inspection(TypedDict):
    """What `repfuse inspect --json` prints."""

    schema: str
    file: str
    form: str
    recipe: Optional[str]
    bn_eps: Optional[float]
    trouble: Optional[str]
    blocks: List[InspectedBlock]
    convs: List[Dict[str, Any]]
    tensors: int
    parameters: int
    macs: Optional[Dict[str, Any]]
    bytes: int
    elements: Dict[str, int]
    metadata: Dict[str, str]
