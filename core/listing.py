"""Listings of input models: names, shapes and locations of tensors. `storage` makes them, the planner reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The state of a stored file when it was listed. What is read later must come from a file in the same state.

    size : bytes
    etag : of a remote file; "" where the storage has none, and for files that cannot change (a commit of the Hub)
    stat : of a local file: (inode, time of the last write, time of the last change of content or inode), ns
    machine : where `stat` was observed
    digest : of the content, to compare a file that another machine has under this path; "" if none was computed
    """

    size: int
    etag: str = ""
    stat: tuple[int, int, int] | None = None
    machine: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Location of one tensor: bytes [start, stop) of the object at `uri`, or a view on other stored tensors.

    `core/views.py` makes views and reads their pieces; it also cuts stored tensors.

    uri : absolute, in the form of fsspec; of a view: that of its first piece, for messages
    start, stop : of a view: 0 and the bytes that reading it takes, scales included
    dtype : safetensors name: F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 ... BOOL
    scale : of a float8 weight: the tensor that multiplies it (weight_scale or weight_scale_inv)
    view : how the tensor is made of stored ones; None for a stored tensor
    file : the state of the file when it was listed; None is not checked
    """

    uri: str
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]
    scale: TensorSource | None = None
    view: View | None = None
    file: FileVersion | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that are read of the tensor, without its scale."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Tensors joined along a dimension. They have equal sizes in all other dimensions."""

    pieces: tuple[TensorSource, ...]
    dim: int


@dataclass(frozen=True, slots=True)
class Selection:
    """The entries start, start + step, ..., before stop, along one dimension of a tensor."""

    source: TensorSource
    dim: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Transposition:
    """A tensor with its last two dimensions exchanged."""

    source: TensorSource


@dataclass(frozen=True, slots=True)
class Reshaping:
    """The numbers of a tensor, in the same order, in another shape."""

    source: TensorSource


class Region(Protocol):
    """Part of a tensor: of matrix `index` of a stack, or of a 2-D tensor, some rows (axis 0) or columns (axis 1).

    These are start, start + step, ..., before stop.
    """

    @property
    def index(self) -> int | None: ...
    @property
    def axis(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def step(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LoraSource:
    """The factors of one adapted weight: delta = scaling * up @ down, transposed when fan_in_fan_out.

    is_embedding : PEFT stores the factors as those of an embedding
    is_shared : the factors are a slice of those of all experts of a mixture (`target_parameters`)
    """

    up: TensorSource  # lora_B, (M, R)
    down: TensorSource  # lora_A, (R, K)
    scaling: float
    fan_in_fan_out: bool = False
    is_embedding: bool = False
    is_shared: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, as stored."""
        rows, columns = self.up.shape[0], self.down.shape[1]
        return (columns, rows) if self.fan_in_fan_out else (rows, columns)

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """All stored factors."""
        return self.up, self.down

    def rank_in(self, region: Region | None) -> int:
        """Return an upper bound on the rank of the delta in a part of the weight; None: the whole."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class LoraPart:
    """Factors that change a part of a stack; the delta has the shape of this part, as stored."""

    lora: LoraSource
    index: int
    start: int
    stop: int
    axis: int = 0
    step: int = 1


@dataclass(frozen=True, slots=True)
class StackedLora:
    """The factors of the matrices of a stack (E, M, K), each with a delta of its own. What no part changes is zero.

    An adapter on single experts of a mixture has this form where the base stores the experts stacked; so has one whose
    factors contain a slice for every expert (`target_parameters` of PEFT).
    """

    parts: tuple[LoraPart, ...]
    shape: tuple[int, ...]  # of the stack, as stored

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """All stored factors."""
        return tuple(source for part in self.parts for source in part.lora.sources)

    def parts_in(self, region: Region | None) -> tuple[LoraPart, ...]:
        """Return the parts that change some entry of a region; None: all."""
        return self.parts if region is None else tuple(part for part in self.parts if _overlap(part, region))

    def rank_in(self, region: Region | None) -> int:
        """Return an upper bound on the rank of the delta in one matrix of the stack or a part of it."""
        return sum(part.lora.rank_in(None) for part in self.parts_in(region))


def _overlap(one: Region, other: Region) -> bool:
    """Return whether two parts of a stack have entries in common."""
    if one.index != other.index:
        return False
    if one.axis != other.axis:
        return True
    if one.stop <= other.start or other.stop <= one.start:
        return False
    return one.step != other.step or (one.start - other.start) % one.step == 0


@dataclass(frozen=True, slots=True)
class Adaptation:
    """A matrix with the delta of an adapter added, in float32, or in float64 if the matrix is so."""

    source: TensorSource
    lora: LoraSource


View = Concatenation | Selection | Transposition | Reshaping | Adaptation


@dataclass(frozen=True, slots=True)
class AdapterListing:
    """A PEFT or MLX adapter.

    config : adapter_config.json
    tensors : factors by stored name (base_model.model.<module>.lora_A.weight)
    equal_names : as in `ModelListing`
    unused_files : names of other weight files beside the adapter, which are not part of it
    """

    uri: str
    config: Mapping[str, object]
    tensors: Mapping[str, TensorSource]
    fingerprint: str
    num_bytes: int
    equal_names: Mapping[str, str] = field(default_factory=dict[str, str])
    unused_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelListing:
    """One input model.

    name : as in the recipe ("path@revision+adapter")
    kind : "full"; "adapter" (a bare PEFT directory); "full+adapter"
    tensors : location by stored name; empty for a bare adapter
    config : config.json, or None
    side_files : URI by name of small files beside the weights (tokenizer.json, tokenizer_config.json, vocab.txt,
        merges.txt, *.model, generation_config.json, chat_template.jinja, preprocessor_config.json, ...); of a model
        whose files are copied also those that its files name: 1_Pooling/config.json, modeling_x.py
    tokenizer_code : names of the side files that hold code of the tokenizer alone
    notes : what the plan says about its side files
    equal_names : name of the first tensor with the same bytes, for other tensors with one row for each token
    fingerprint : identifies the weights (`core/storage/checkpoints/fingerprint.py`)
    """

    name: str
    uri: str
    kind: Literal["full", "adapter", "full+adapter"]
    tensors: Mapping[str, TensorSource]
    config: Mapping[str, object] | None
    side_files: Mapping[str, str]
    fingerprint: str
    num_bytes: int
    adapter: AdapterListing | None = None
    tokenizer_code: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    equal_names: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def folders(self) -> tuple[str, ...]:
        """Addresses of the model and of its adapter."""
        return (self.uri,) if self.adapter is None else (self.uri, self.adapter.uri)

    def file_uris(self) -> set[str]:
        """Return the addresses of the files that hold weights, scales and factors, and of the side files."""
        tensors = [*self.tensors.values(), *(self.adapter.tensors.values() if self.adapter is not None else ())]
        return {uri for source in tensors for uri in _file_uris(source)} | set(self.side_files.values())


def _file_uris(source: TensorSource) -> set[str]:
    found = {source.uri}
    pieces = [source.scale] if source.scale is not None else []
    match source.view:
        case Concatenation():
            pieces += source.view.pieces
        case Selection() | Transposition() | Reshaping():
            pieces.append(source.view.source)
        case Adaptation():
            pieces += [source.view.source, *source.view.lora.sources]
        case None:
            pass
    return found.union(*map(_file_uris, pieces))
