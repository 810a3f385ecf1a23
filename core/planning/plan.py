"""The plan: everything that is decided before a weight is read. Pure data, JSON-able, the same on every machine.

A worker gets one `LayerShard` (plus the store's URI and `RunSettings`) and needs nothing else: no recipe, no listing,
no database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..listing import LoraSource, TensorSource

# Runs of rows (first row in the output, first row as stored, number of rows), where vocabularies differ. A row that no
# run covers is the base's; one that the base's runs do not cover either is the mean of the experts whose runs cover it.
Rows = tuple[tuple[int, int, int], ...]

Action = Literal[
    "merge",  # run `method` on the experts
    "mean",  # base + scale * weighted mean delta (1-D tensors, convolutions, embeddings under a spectral method)
    "copy",  # bytes of `base` as they are (keep-base rules, integer buffers), cast only if the dtype differs
]


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """What one expert contributes to one output tensor.

    full : the expert's own stored tensor, or None when the expert is an adapter on the base (its delta is `lora` alone,
        or zero when `lora` is None too: the adapter does not touch this weight).
    lora : adapter factors to add on top.
    rows : where the rows of `full` belong, when its vocabulary is not the output's; None: all in place.
    """

    expert: int  # index into Plan.experts
    full: TensorSource | None
    lora: LoraSource | None = None
    parameters: Mapping[str, object] = field(
        default_factory=dict
    )  # per-expert, resolved for this tensor (weight, density)
    is_base: bool = False
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class MatrixView:
    """One matrix inside a stored tensor: q of a fused QKV weight, one expert of a mixture.

    The tensor is first reshaped to `TensorPlan.matrix_shape`, if that is set, then cut: rows (axis 0) or columns
    (axis 1) [start, stop).
    """

    label: str  # "q", "expert 3"
    start: int
    stop: int
    spectrum_key: str
    axis: int = 0
    calibration_key: str | None = None  # as TensorPlan's
    sums_key: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterFactors:
    """What a tensor becomes in an adapter: merged delta = up @ down, or its transpose where `transposed`.

    full : the name under which the whole tensor is stored instead (modules_to_save), with `down` and `up` None
    """

    rank: int
    down: str | None  # lora_A, (rank, K); transposed: (rank, M)
    up: str | None  # lora_B, (M, rank); transposed: (K, rank)
    full: str | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor: what happens to it and from what.

    A spectral method decomposes the tensor as it is (`spectrum_key` set), reshaped to `matrix_shape` (a convolution as
    (out, in * kernel), `spectrum_key` set), or each of `views` by itself (`spectrum_key` None, one key in each view).
    """

    name: str
    shape: tuple[int, ...]
    out_dtype: str  # safetensors name
    action: Action
    reason: str  # one phrase for the plan and the manifest: "2-D weight", "rule 'lm_head.*'", "1-D: mean delta"
    base: TensorSource | None
    experts: tuple[ExpertTensor, ...] = ()
    method: str | None = None
    method_package: str | None = None  # "name version" of the package that defines `method`; None: built-in
    parameters: Mapping[str, object] = field(default_factory=dict)  # global, resolved for this tensor
    calibration: Mapping[str, object] = field(default_factory=dict)  # {"svc": {"alpha": ...}} or empty
    spectrum_key: str | None = None  # spectral methods only
    bytes_read: int = 0
    flops: float = 0.0
    peak_bytes: int = 0  # projected, weights and work space of this tensor alone
    spectrum_bytes: int = 0
    sums_bytes: int = 0
    matrix_shape: tuple[int, int] | None = None  # None: the tensor's own shape
    views: tuple[MatrixView, ...] = ()
    calibration_key: str | None = None  # spectrum of the merged delta with the experts' responses, which SVC filters
    alignment_key: str | None = None  # table of the largest eigenvalues of all layers that are aligned with this one
    sums_key: str | None = None  # sums over experts; its folder holds the sums of other sets of the same experts
    adapter: AdapterFactors | None = None  # the output is an adapter; `out_dtype` is that of what is stored
    members: tuple[str, ...] = ()  # with `sums_key`: what identifies each expert and its weight, as `experts`
    base_rows: Rows | None = None  # where the base's rows belong, when its vocabulary is not the output's


@dataclass(frozen=True, slots=True)
class LayerShard:
    """The unit of fan-out, retry, caching and resume: a run of output tensors that lie together in one output file."""

    index: int
    tensors: tuple[TensorPlan, ...]  # in the order of their bytes in the part and in the output file
    part_key: str  # object key in the store, content-addressed: parts/<hash>.safetensors
    bytes_read: int
    bytes_written: int
    flops: float
    peak_bytes: int

    @property
    def name(self) -> str:
        first, last = self.tensors[0].name, self.tensors[-1].name
        return first if first == last else f"{first} .. {last}"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of the merged checkpoint: the data sections of these shards' parts, in order, behind one header."""

    name: str  # model-00001-of-00004.safetensors | model.safetensors
    shards: tuple[int, ...]
    num_bytes: int  # header included


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One input model as the plan saw it."""

    name: str  # as written in the recipe
    uri: str  # where it was found (directory or file)
    fingerprint: str
    num_tensors: int
    num_bytes: int
    kind: Literal["full", "adapter", "full+adapter"]


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file that goes into the output: config.json, tokenizer files. Copied from `source_uri`, or given."""

    name: str
    source_uri: str | None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a worker must know beside the shard; part of the keys only where it changes numbers."""

    arithmetic: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    allow_tf32: bool = False
    spectra: Literal["full", "values", "none"] = "full"
    spectra_dtype: Literal["float32", "float64", "arithmetic"] = "arithmetic"
    allow_nonfinite: bool = False
    keep_sums: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A finalised, validated plan."""

    run_key: str  # hash of everything that decides the output's bytes
    recipe: Mapping[str, object]  # canonical, without secrets
    settings: RunSettings
    base: ModelSummary | None
    experts: tuple[ModelSummary, ...]
    shards: tuple[LayerShard, ...]
    files: tuple[OutputFile, ...]
    side_files: tuple[SideFile, ...]
    warnings: tuple[str, ...] = ()

    @property
    def num_tensors(self) -> int:
        return sum(len(shard.tensors) for shard in self.shards)

    @property
    def bytes_read(self) -> int:
        return sum(shard.bytes_read for shard in self.shards)

    @property
    def bytes_written(self) -> int:
        return sum(file.num_bytes for file in self.files)

    @property
    def flops(self) -> float:
        return sum(shard.flops for shard in self.shards)

    @property
    def peak_bytes(self) -> int:
        """Of one worker: the largest shard's projection."""
        return max((shard.peak_bytes for shard in self.shards), default=0)

    @property
    def spectrum_bytes(self) -> int:
        return sum(tensor.spectrum_bytes for shard in self.shards for tensor in shard.tensors)

    @property
    def sums_bytes(self) -> int:
        return sum(tensor.sums_bytes for shard in self.shards for tensor in shard.tensors)


def spectrum_keys(tensor: TensorPlan) -> list[str]:
    """The keys of all decompositions of one tensor, in the order of its views."""
    own = [tensor.spectrum_key] if tensor.spectrum_key is not None else []
    return own + [view.spectrum_key for view in tensor.views]
