"""What a shard says of itself when it is done: JSON-able, stored beside the part, read again when a run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import TypeAdapter

Origin = Literal["computed", "reused", "none"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One merged tensor.

    rank : directions the method kept (K), None where the method has no spectrum
    energy : share of the eigenvalue sum in those directions, 0 to 1
    spectrum : where the decomposition came from
    sha256 : of the tensor's bytes in the output; of lora_A's and then lora_B's where it is stored as factors
    truncation_error : share of the merged delta's norm that the adapter's rank leaves out; None outside of adapters
    """

    name: str
    action: str
    method: str | None
    seconds: float
    sha256: str
    rank: int | None = None
    energy: float | None = None
    spectrum: Origin = "none"
    spectrum_key: str | None = None
    notes: tuple[str, ...] = ()
    truncation_error: float | None = None


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One finished shard. `reused` tells whether this run found the part (True) or made it (False)."""

    index: int
    part_key: str
    num_bytes: int  # of the whole part object
    header_bytes: int  # the data section starts here
    sha256: str  # of the whole part object
    etag: str  # as the store gave it after the write; "" where it has none
    seconds: float
    bytes_read: int
    tensors: tuple[TensorReport, ...]
    reused: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)
    kept_bytes_read: int = 0  # of kept sums, which the store gave instead of experts

    @property
    def decompositions_computed(self) -> int:
        """By this run: a part that was found decomposed nothing."""
        return 0 if self.reused else sum(tensor.spectrum == "computed" for tensor in self.tensors)

    @property
    def decompositions_reused(self) -> int:
        """Spectra found in the store, or not even needed because the whole part was there."""
        if self.reused:
            return sum(tensor.spectrum != "none" for tensor in self.tensors)
        return sum(tensor.spectrum == "reused" for tensor in self.tensors)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, object]) -> ShardReport:
        """Raises ValueError where `data` is not such a record; callers treat that as corrupt."""
        report = _RECORDS.validate_python(dict(data))
        if not 0 <= report.header_bytes <= report.num_bytes:
            raise ValueError(f"header_bytes is {report.header_bytes} of {report.num_bytes}")
        return report


_RECORDS = TypeAdapter(ShardReport)


@dataclass(frozen=True, slots=True)
class DecomposeReport:
    """What one shard's first visit found.

    largest_values : spectrum key to the largest eigenvalue, 0 where all experts are zero
    num_computed : tensors that were decomposed now; the others' spectra were in the store
    """

    index: int
    largest_values: Mapping[str, float]
    num_computed: int
    bytes_read: int
    notes: tuple[str, ...] = ()
