"""Reports of finished shards. A ShardReport is stored beside the part as JSON and read again when a run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import TypeAdapter

from ..numerics.interference.expert_probes import Measures

# Where a spectrum came from; "none" for a tensor without one.
Origin = Literal["computed", "reused", "none"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One merged tensor.

    seconds : wall time
    sha256 : of the tensor's bytes in the output; of lora_A's and then lora_B's where it is stored as factors
    rank : number of directions that the method kept (K); None where the method has no spectrum
    energy : share of the eigenvalue sum in those directions, 0 to 1
    spectrum : origin of the decomposition
    outputs_rank, outputs_energy, outputs_spectrum_key : the same of the decomposition over the outputs, where a tensor
        is decomposed over both sides
    truncation_error : of an adapter, the share of the merged delta that its rank leaves out (Frobenius norm); None for
        full checkpoints
    error : difference of what is stored from what was merged, relative to it (Frobenius norm): of an adapter's factors,
        by rank and rounding, from the merged delta; of a float8 weight, by rounding; None where a result is only cast
    storage_noise : level below which singular values are rounding of the experts' storage, relative to the largest;
        None where no expert's storage rounds, or the method has no spectrum
    measures : of the experts, estimated; None where they are not measured
    svc_change : of the merged delta by SVC, relative (Frobenius norm); None without SVC
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
    error: float | None = None
    outputs_rank: int | None = None
    outputs_energy: float | None = None
    outputs_spectrum_key: str | None = None
    storage_noise: float | None = None
    measures: Measures | None = None
    svc_change: float | None = None


@dataclass(frozen=True, slots=True)
class ShardReport:
    """One finished shard.

    num_bytes, sha256 : of the whole part object
    header_bytes : offset of its data section
    etag : the store's, after the part was written; "" where the store has none
    seconds : wall time of making the part
    bytes_read : of base and experts
    reused : whether this run found the part (True) or made it (False)
    kept_bytes_read : of kept sums that were read instead of experts
    crc32 : of the data section, as it was computed: a check that costs little; None in records of earlier versions
    """

    index: int
    part_key: str
    num_bytes: int
    header_bytes: int
    sha256: str
    etag: str
    seconds: float
    bytes_read: int
    tensors: tuple[TensorReport, ...]
    reused: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)
    kept_bytes_read: int = 0
    crc32: int | None = None

    @property
    def decompositions_computed(self) -> int:
        """Number of spectra that this run computed; none where it found the part."""
        return 0 if self.reused else sum(tensor.spectrum == "computed" for tensor in self.tensors)

    @property
    def decompositions_reused(self) -> int:
        """Number of spectra that this run did not compute: found in the store, or not needed because the part was."""
        if self.reused:
            return sum(tensor.spectrum != "none" for tensor in self.tensors)
        return sum(tensor.spectrum == "reused" for tensor in self.tensors)

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON content."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, object]) -> ShardReport:
        """Return the report of which `data` is the JSON content.

        Raises
        ------
        ValueError : `data` is no such report; callers treat it as a damaged record
        """
        report = _SHARD_REPORTS.validate_python(dict(data))
        if not 0 <= report.header_bytes <= report.num_bytes:
            raise ValueError(f"header_bytes is {report.header_bytes}, expected at most num_bytes, {report.num_bytes}")
        return report


_SHARD_REPORTS = TypeAdapter(ShardReport)


@dataclass(frozen=True, slots=True)
class DecomposeReport:
    """Decompositions of one shard's aligned tensors, before any layer is filtered.

    largest_values : largest eigenvalue by spectrum key, 0 where all experts are zero
    num_computed : number of tensors that were decomposed; the spectra of the others were in the store
    bytes_read : of base and experts
    """

    index: int
    largest_values: Mapping[str, float]
    num_computed: int
    bytes_read: int
    notes: tuple[str, ...] = ()
