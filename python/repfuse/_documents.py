"""What the command prints with `--json`. `repfuse schema COMMAND` gives each as JSON Schema, with what every field means.

Within a version of a schema, fields are added and never removed or given another meaning.
"""

from typing import Dict, List, Optional, TypedDict


class Instead(TypedDict):
    """A recipe and an eps."""

    recipe: str
    bn_eps: Optional[float]


class Record(TypedDict):
    """A recorded block."""

    name: str
    module: str
    accepted: bool
    dtype: str
    activation: str
    stride: List[int]
    padding: List[List[int]]
    compared: int
    recorded: int
    ratio: Optional[float]
    absolute: Optional[float]
    index: List[int]
    after: Optional[str]
    why: Optional[str]


class Ignored(TypedDict):
    """A recorded module that was not compared."""

    name: str
    reason: str


class Evidence(TypedDict):
    """What `--sample` said."""

    file: str
    accepted: bool
    recipe_decided: bool
    bn_eps_decided: bool
    bn_eps_also: List[float]
    instead: Optional[Instead]
    worst_ratio: Optional[float]
    records: List[Record]
    ignored: List[Ignored]


class Agreement(TypedDict):
    """A built-in recipe beside a graph."""

    recipe: str
    blocks: int
    differences: List[str]


class Family(TypedDict):
    """A recipe, its eps, and its part of the file."""

    recipe: str
    at: List[str]
    host: Optional[str]
    blocks: int
    bn_eps: Optional[float]
    bn_eps_source: str
    bn_eps_weight: Optional[float]
    bn_eps_other: Optional[float]


class Warned(TypedDict):
    """What rests on names alone."""

    sentence: str
    tensors: List[str]


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
    shards: List[str]
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
    sample: Optional[Evidence]
    became_zero: Optional[int]
    agreement: Optional[Agreement]
    families: List[Family]
    warnings: List[Warned]
    load: str
    blocks: List[FusedBlock]
    dropped: List[str]
    norms: int
    norms_left: List[str]
    wrappers_removed: List[str]


class BlockVerdict(TypedDict):
    """The verdict on one fused conv. Numbers that are infinite or not numbers are null, and `state` says why."""

    name: str
    module: str
    expression: str
    accepted: bool
    state: str
    dtype: Optional[str]
    trained_dtype: Optional[str]
    ratio: Optional[float]
    absolute: Optional[float]
    relative: Optional[float]
    tensor: Optional[str]
    index: Optional[List[int]]
    found: Optional[float]
    expected: Optional[float]
    impulses: int
    input_channels_per_group: int
    failure: Optional[str]


class MapFinding(TypedDict):
    """A fused conv and its branches on whole feature maps."""

    module: str
    shape: List[int]
    accepted: bool
    ratio: Optional[float]
    absolute: Optional[float]
    at: List[int]


class EndToEnd(TypedDict):
    """Whole networks on the same images."""

    images: int
    bytes_at_once: int
    precision: str
    top1_agreement: float
    largest_logit_difference: float
    largest_logit: float
    bidirectional_kl: float
    dropout: float
    dropout_kl: float


class Array(TypedDict):
    """An array that went into a graph."""

    name: str
    shape: List[int]


class Difference(TypedDict):
    """An output of two graphs."""

    name: str
    shape: List[int]
    largest: Optional[float]
    largest_difference: Optional[float]


class Graphs(TypedDict):
    """Two whole graphs, run on the same inputs."""

    runtime: str
    not_run: Optional[str]
    inputs: List[Array]
    outputs: List[Difference]
    top1_agreement: Optional[float]
    bidirectional_kl: Optional[float]
    milliseconds_before: Optional[float]
    milliseconds_after: Optional[float]


class Verdict(TypedDict):
    """What `repfuse verify --json` prints."""

    schema: str
    input: str
    output: Optional[str]
    accepted: bool
    summary: str
    recipe: str
    bn_eps: Optional[float]
    bn_eps_source: str
    bn_eps_weight: Optional[float]
    allowance: str
    tolerance: float
    worst_ratio: Optional[float]
    copied: int
    rounded: int
    unfused: int
    names: Optional[str]
    failures: List[str]
    blocks: List[BlockVerdict]
    maps: List[MapFinding]
    end_to_end: Optional[EndToEnd]
    graphs: Optional[Graphs]
    sample: Optional[Evidence]
    families: List[Family]
    warnings: List[Warned]
    seconds: float


class Change(TypedDict):
    """A number before and after fusing."""

    before: int
    after: int


class Branch(TypedDict):
    """A conv of a branch."""

    weight: str
    shape: List[int]
    groups: int
    dilation: List[int]


class Kernel(TypedDict):
    """A kernel seen from above."""

    label: str
    extent: List[int]
    taps: List[float]


class Noise(TypedDict):
    """What rounding to eight bits leaves of one kernel."""

    per_tensor: Optional[float]
    per_channel: Optional[float]
    worst_loss: float


class NoisyBranch(TypedDict):
    """A branch, as it adds to the fused kernel."""

    label: str
    noise: Noise


class Int8(TypedDict):
    """A fused conv and its largest branch, rounded to eight bits."""

    fused: Noise
    branch: Optional[NoisyBranch]


class InspectedConv(TypedDict):
    """A conv that a block becomes."""

    module: str
    weight_shape: List[int]
    dtype: str
    groups: Optional[int]
    expression: str
    macs_per_pixel: Change
    convs: List[Branch]
    kernels: Optional[List[Kernel]]
    int8: Optional[Int8]


class InspectedBlock(TypedDict):
    """One block."""

    name: str
    assumes_identity: bool
    parameters: Change
    outputs: List[InspectedConv]


# A conv outside blocks. (`class` is a word of Python.)
OtherConv = TypedDict("OtherConv", {"weight": str, "shape": List[int], "class": Optional[str]})


class Macs(TypedDict):
    """Multiply-adds of the fused convs of the whole network."""

    input_size: int
    total: Optional[Change]


class Left(TypedDict):
    """A node that stays."""

    node: str
    why: str


class Inspection(TypedDict):
    """What `repfuse inspect --json` prints."""

    schema: str
    file: str
    form: str
    recipe: Optional[str]
    bn_eps: Optional[float]
    trouble: Optional[str]
    blocks: List[InspectedBlock]
    convs: List[OtherConv]
    tensors: int
    parameters: int
    macs: Optional[Macs]
    bytes: int
    elements: Dict[str, int]
    metadata: Dict[str, str]
    left: List[Left]
