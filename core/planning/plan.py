"""The plan of a merge: every decision that is made before weights are read. It is the same on every machine.

A worker needs one `LayerShard`, the `RunSettings` and the store, and neither the recipe nor a listing of the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..listing import FileVersion, LoraSource, StackedLora, TensorSource

# Runs of rows (first row in the output, first stored row, number of rows), where vocabularies differ. An output row
# that no run of an expert covers is the base's; a row that the base lacks too is the mean of the experts that have it.
Rows = tuple[tuple[int, int, int], ...]

Action = Literal[
    "merge",  # run `method` on the experts
    "mean",  # base + scale * weighted mean delta (1-D tensors, convolutions, embeddings under a spectral method)
    "copy",  # the bytes of `base` (keep_base rules, integer buffers), cast only if the dtype differs
]


Float8Form = Literal[
    "block",  # one scale for each 128 x 128 block, <weight>_scale_inv
    "channel",  # one scale for each row, <weight>_scale
]


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """One expert's data for one output tensor.

    expert : index into Plan.experts
    full : the expert's stored tensor; None when the expert is an adapter on the base, whose delta is `lora`, or zero
        where `lora` is None too
    lora : adapter factors to add
    parameters : the expert's parameters for this tensor (weight, density)
    rows : where rows of `full` go, when its vocabulary differs from the output's; None: all rows keep their place
    rounded : `full` is stored in a dtype that cannot hold the base's values: an entry that equals the base rounded to
        that dtype did not change, so its task vector is zero there
    noise : what is done with the rounding of `full`'s dtype, which is noise of known size in the task vector; None:
        nothing, or `full` is as precise as float32
    """

    expert: int
    full: TensorSource | None
    lora: LoraSource | StackedLora | None = None
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    is_base: bool = False
    rows: Rows | None = None
    rounded: bool = False
    noise: Literal["cut", "shrink"] | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """One matrix inside a tensor: q of a fused QKV weight, the gate projection of one expert of a mixture.

    From matrix `index` of a stack, or from the tensor in its 2-D form, the rows (axis 0) or columns (axis 1) start,
    start + step, ..., before stop.
    """

    label: str  # "q", "expert 3", "expert 3 gate"
    start: int
    stop: int
    axis: int = 0
    index: int | None = None
    step: int = 1


@dataclass(frozen=True, slots=True)
class OutputsKeys:
    """Keys of the second decomposition of a matrix that is decomposed over both sides: the one over its outputs."""

    spectrum_key: str
    sums_key: str | None = None
    whole_key: str | None = None  # as in TensorPlan


@dataclass(frozen=True, slots=True)
class MatrixView:
    """A `Cut` whose matrix is decomposed, with its keys. A tensor is first reshaped to `TensorPlan.matrix_shape`."""

    label: str
    start: int
    stop: int
    spectrum_key: str
    axis: int = 0
    calibration_key: str | None = None  # as in TensorPlan
    sums_key: str | None = None
    index: int | None = None
    step: int = 1
    over_outputs: bool = False  # as in TensorPlan
    outputs: OutputsKeys | None = None
    whole_key: str | None = None


@dataclass(frozen=True, slots=True)
class Decomposition:
    """One decomposition of a matrix, over its inputs or over its outputs, with its keys."""

    spectrum_key: str
    sums_key: str | None
    alignment_key: str | None
    over_outputs: bool
    whole_key: str | None


@dataclass(frozen=True, slots=True)
class AdapterFactors:
    """The stored tensors of one weight in an adapter: merged delta = up @ down, or its transpose.

    down : name of lora_A, (rank, K); transposed: (rank, M)
    up : name of lora_B, (M, rank); transposed: (K, rank)
    full : name of the whole tensor, stored instead of factors (modules_to_save); `down` and `up` are None
    """

    rank: int
    down: str | None
    up: str | None
    full: str | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor: action, inputs, parameters, keys and projected costs.

    A spectral method decomposes the tensor in its own shape or reshaped to `matrix_shape` (a convolution as
    (out, in * kernel)); `spectrum_key` is set. Or it decomposes each of `views`; then each view has a key and
    `spectrum_key` is None.
    """

    name: str
    shape: tuple[int, ...]
    out_dtype: str  # safetensors name
    action: Action
    reason: str  # for the plan and the manifest: "2-D weight", "rule 'lm_head.*'", "1-D: mean delta"
    base: TensorSource | None
    experts: tuple[ExpertTensor, ...] = ()
    method: str | None = None
    method_package: str | None = None  # "name version" of the package that defines `method`; None: built-in
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])  # global ones, for this tensor
    calibration: Mapping[str, object] = field(default_factory=dict[str, object])  # {"svc": {"alpha": ...}} or empty
    spectrum_key: str | None = None  # spectral methods only
    whole_key: str | None = None  # of the whole spectrum, where `spectrum_key` has vectors of its top directions only
    bytes_read: int = 0
    flops: float = 0.0
    peak_bytes: int = 0  # projected memory for this tensor: weights and work space
    spectrum_bytes: int = 0
    sums_bytes: int = 0
    matrix_shape: tuple[int, int] | None = None  # None: the tensor's own shape
    views: tuple[MatrixView, ...] = ()
    calibration_key: str | None = None  # decomposition of the merged delta, for SVC
    alignment_key: str | None = None  # table of the largest eigenvalues of all aligned layers
    sums_key: str | None = None  # sums over experts; sums of other sets of experts are in the same folder
    adapter: AdapterFactors | None = None  # set if the output is an adapter; `out_dtype` is the dtype of the factors
    members: tuple[str, ...] = ()  # with `sums_key`: identifies each expert and its weight, in the order of `experts`
    base_rows: Rows | None = None  # where the base's rows go, when its vocabulary differs from the output's
    token_rows: tuple[tuple[int, TensorSource | None], ...] = ()  # rows for models that lack them; None: zeros
    padding_start: int | None = None  # rows from here on are the mean of the rows before, in each model
    float8: Float8Form | None = None  # stored as float8 with this scale; `out_dtype` is F8_E4M3
    arithmetic: Literal["float64"] | None = None  # where it differs from the run's: an input is stored in float64
    # Matrices are stored (in, out). They are transposed before they are decomposed, and the result is transposed back.
    in_out: bool = False
    over_outputs: bool = False  # `spectrum_key` and `sums_key` are those of the transposed matrix
    outputs: OutputsKeys | None = None  # decomposed over both sides: `spectrum_key` over the inputs, these over outputs
    outputs_alignment_key: str | None = None  # as `alignment_key`, for decompositions over outputs
    in_blocks: bool = False  # merged block by block (cost/block_projection.py); the bytes are the same
    tied_to: str | None = None  # name of the output tensor with the same values; random masks are drawn by that name

    @property
    def stores_factors(self) -> bool:
        """Whether the output is two factors, lora_A and lora_B, and not a matrix."""
        return self.adapter is not None and self.adapter.full is None


@dataclass(frozen=True, slots=True)
class LayerShard:
    """The unit of parallel work, retry, caching and resume: consecutive tensors of one output file."""

    index: int
    tensors: tuple[TensorPlan, ...]  # in the order of the part and of the output file
    part_key: str  # object key in the store, content-addressed: parts/<hash>.safetensors
    bytes_read: int
    bytes_written: int
    flops: float
    peak_bytes: int

    @property
    def name(self) -> str:
        """The names of the first and the last tensor."""
        first, last = self.tensors[0].name, self.tensors[-1].name
        return first if first == last else f"{first} .. {last}"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file of the merged checkpoint: a header, then the data of these shards' parts in order."""

    name: str  # model-00001-of-00004.safetensors | model.safetensors
    shards: tuple[int, ...]
    num_bytes: int  # header included


@dataclass(frozen=True, slots=True)
class Arrival:
    """How much of an expert has a place in the output.

    num_tensors : tensors that have a place; of an adapter: weights that it changes
    share : of the expert's parameters, 0 to 1
    left_out : stored names without a place, the first 100
    num_left_out : number of all names without a place
    """

    num_tensors: int
    share: float
    left_out: tuple[str, ...] = ()
    num_left_out: int = 0


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One input model, as it was when the plan was made.

    arrival : None for the base
    """

    name: str  # as written in the recipe
    uri: str  # directory or file
    fingerprint: str
    num_tensors: int
    num_bytes: int
    kind: Literal["full", "adapter", "full+adapter"]
    arrival: Arrival | None = None


@dataclass(frozen=True, slots=True)
class SideFile:
    """A small file of the output (config.json, tokenizer files): copied from `source_uri`, or with given content.

    version : the state of the file at `source_uri` when the plan was made; None is not checked
    """

    name: str
    source_uri: str | None
    content: bytes | None = None
    version: FileVersion | None = None


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Settings that a worker needs besides the shard. Only settings that change numbers are part of keys."""

    arithmetic: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    allow_tf32: bool = False
    spectra: Literal["full", "top", "values", "none"] = "full"
    spectra_dtype: Literal["float32", "float64", "arithmetic"] = "arithmetic"
    allow_nonfinite: bool = False
    keep_sums: bool = False
    seed: int = 0

    @property
    def rounded_vectors(self) -> str | None:
        """The dtype to which the vectors of spectra are rounded before they are filtered; None where none is lost."""
        narrower = self.spectra_dtype == "float32" and self.arithmetic == "float64"
        return self.spectra_dtype if narrower else None

    @property
    def uses_tf32(self) -> bool:
        """Whether products of matrices are computed in TF32: only float32 ones on a CUDA device can be."""
        return self.allow_tf32 and self.arithmetic == "float32" and self.device.startswith("cuda")


@dataclass(frozen=True, slots=True)
class Plan:
    """A complete, validated plan.

    run_key : hash of everything that determines the output's bytes
    recipe : `Recipe.canonical()`, without credentials
    input_folders, input_uris : addresses of everything that may be read: the models, their adapters and the tokenizer's
        model; and the files of these. Not part of any key.
    """

    run_key: str
    recipe: Mapping[str, object]
    settings: RunSettings
    base: ModelSummary | None
    experts: tuple[ModelSummary, ...]
    shards: tuple[LayerShard, ...]
    files: tuple[OutputFile, ...]
    side_files: tuple[SideFile, ...]
    warnings: tuple[str, ...] = ()
    input_folders: tuple[str, ...] = ()
    input_uris: tuple[str, ...] = ()

    def __repr__(self) -> str:
        base = "" if self.base is None else f" on {self.base.name}"
        return (
            f"Plan({self.recipe.get('merge_method')}, {len(self.experts)} experts{base}, {self.num_tensors} tensors in"
            f" {len(self.shards)} shards; reads {self.bytes_read:,} bytes, writes {self.bytes_written:,};"
            f" run {self.run_key[:12]})"
        )

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
        """Projected memory of one worker: that of the largest shard."""
        return max((shard.peak_bytes for shard in self.shards), default=0)

    @property
    def spectrum_bytes(self) -> int:
        return sum(tensor.spectrum_bytes for shard in self.shards for tensor in shard.tensors)

    @property
    def sums_bytes(self) -> int:
        return sum(tensor.sums_bytes for shard in self.shards for tensor in shard.tensors)


def spectrum_keys(tensor: TensorPlan) -> list[str]:
    """Return the keys of all decompositions of one tensor, in the order of its views."""
    return [one.spectrum_key for view in tensor.views or (None,) for one in decompositions(tensor, view)]


def decompositions(tensor: TensorPlan, view: MatrixView | None) -> list[Decomposition]:
    """Return the decompositions of one matrix of a tensor, that over its inputs first; none without a spectrum.

    Parameters
    ----------
    view : one of the tensor's views; None where the tensor is one matrix
    """
    matrix = tensor if view is None else view
    if matrix.spectrum_key is None:
        return []

    def one(keys: TensorPlan | MatrixView | OutputsKeys, over_outputs: bool) -> Decomposition:
        aligned = tensor.outputs_alignment_key if over_outputs else tensor.alignment_key
        assert keys.spectrum_key is not None, "checked above"
        return Decomposition(keys.spectrum_key, keys.sums_key, aligned, over_outputs, keys.whole_key)

    found = [one(matrix, matrix.over_outputs)]
    if matrix.outputs is not None:
        found.append(one(matrix.outputs, over_outputs=True))
    return found


def top_keys(tensor: TensorPlan) -> list[str]:
    """Return the keys of the spectra of one tensor that are kept without the vectors of their last directions."""
    found = [one for view in (None, *tensor.views) for one in decompositions(tensor, view)]
    return [one.spectrum_key for one in found if one.whole_key is not None]


def part_label(view: MatrixView | None, over_outputs: bool) -> str | None:
    """Return what of a tensor a decomposition is of: "q", "outputs", "q, outputs"; None for the inputs of the whole."""
    parts = ([view.label] if view is not None else []) + (["outputs"] if over_outputs else [])
    return ", ".join(parts) or None


def matrix_shape_of(shape: tuple[int, ...], cut: Cut | MatrixView | None, in_out: bool = False) -> tuple[int, int]:
    """Return the shape (out, in) of a matrix of a tensor.

    Parameters
    ----------
    shape : of the tensor in its 2-D form, or of a stack of matrices
    cut : the part of it; None for the whole
    in_out : the matrix is stored (in, out)
    """
    rows, columns = shape[-2:]
    if cut is not None:
        length = len(range(cut.start, cut.stop, cut.step))
        rows, columns = (length, columns) if cut.axis == 0 else (rows, length)
    return (columns, rows) if in_out else (rows, columns)
