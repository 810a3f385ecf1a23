"""Keys of claims: what a claim is about can be read from its key.

claims/<hash of the part>.json                       merging one shard
claims/<hash of the part>.safetensors-spectra.json   decomposing the aligned matrices of one shard
claims/run-<run key>-<process>.json                  one process of one run
"""

from __future__ import annotations

from dataclasses import dataclass

from ..formats.store_folders import CLAIMS, PARTS

_RUN = "run-"
_PART_SUFFIX = ".safetensors"
_SPECTRA_SUFFIX = "-spectra"
_PROCESS_DIGITS = 12


@dataclass(frozen=True, slots=True)
class ClaimSubject:
    """What a claim protects: a run or the part of a shard; the other one is None."""

    run_key: str | None = None
    part_key: str | None = None


def claim_key(part_key: str) -> str:
    """Return the key of the claim on a shard that is merged into `part_key`."""
    return f"{CLAIMS}{part_key.rsplit('/', 1)[-1].removesuffix(_PART_SUFFIX)}.json"


def spectra_claim_key(part_key: str) -> str:
    """Return the key of the claim on the decompositions of a shard's aligned matrices, before it is merged."""
    return claim_key(f"{part_key}{_SPECTRA_SUFFIX}")


def run_claim_key(run_key: str, owner_id: str) -> str:
    """Return the key of one process's claim on a run."""
    return f"{CLAIMS}{_RUN}{run_key}-{owner_id[:_PROCESS_DIGITS]}.json"


def parse_claim_key(key: str) -> ClaimSubject:
    """Return the run or the part that a claim is about."""
    name = key.rpartition("/")[2].removesuffix(".json")
    if name.startswith(_RUN):
        return ClaimSubject(run_key=name.removeprefix(_RUN).rpartition("-")[0])
    stem = name.removesuffix(_SPECTRA_SUFFIX).removesuffix(_PART_SUFFIX)
    return ClaimSubject(part_key=f"{PARTS}{stem}{_PART_SUFFIX}")
