"""Verify a merged checkpoint: its files against its manifest, and a sample of its tensors against their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, StoreError
from ...output.read_manifest import Manifest, read_manifest
from ...output.verify_files import FileCheck, TensorPlaces, read_stored, verify_files
from ...storage.store import Store
from .recompute import NotReachableError, Recomputed, choose_sample, plan_again, recompute


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    recomputed : comparisons of the sample; empty if no sample was requested or none could be computed
    not_recomputed : why the sample could not be computed; "" otherwise
    num_tensors : of the whole checkpoint
    """

    destination: str
    run_key: str
    files: tuple[FileCheck, ...]
    recomputed: tuple[Recomputed, ...]
    not_recomputed: str
    num_tensors: int

    @property
    def problems(self) -> list[str]:
        """One line per problem; empty where the checkpoint agrees with its manifest and its sources."""
        found = [f"{file.name}: {problem}" for file in self.files for problem in file.problems]
        return found + [
            f"{tensor.name}: differs from its recomputation by {tensor.difference:.2g} of its largest value"
            + (f" ({tensor.reason})" if tensor.reason else "")
            for tensor in self.recomputed
            if tensor.outcome == "differs"
        ]

    @property
    def gaps(self) -> list[str]:
        """One line per requested check that could not be done."""
        whole = [f"nothing was recomputed: {self.not_recomputed}"] if self.not_recomputed else []
        return whole + [
            f"{tensor.name}: was not recomputed: {tensor.reason}"
            for tensor in self.recomputed
            if tensor.outcome == "not recomputed"
        ]


def verify_checkpoint(
    checkpoint: Store,
    *,
    sample: int = 3,
    spectra: Store | None = None,
    storage_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Verification:
    """Check every file of a merged checkpoint, and recompute `sample` of its tensors.

    Cost: one read of the checkpoint; the headers of base and experts and, of the sample, their weights.

    Parameters
    ----------
    sample : number of tensors; 0 recomputes none
    checkpoint : the place of the checkpoint
    spectra : a store whose spectra are used, and which gets those that it lacks; None decomposes the sample again
    storage_options : for fsspec, to read base and experts

    Raises
    ------
    CheckpointError : the manifest is missing or damaged
    StoreError : the checkpoint cannot be read
    """
    manifest = read_manifest(checkpoint)
    files, places = verify_files(checkpoint, manifest)
    recomputed: list[Recomputed] = []
    reason = ""
    if sample > 0:
        try:
            recomputed = _recompute_sample(checkpoint, manifest, places, sample, storage_options, spectra, device)
        except NotReachableError as error:
            reason = str(error)
    return Verification(
        checkpoint.display(""), manifest.run_key, tuple(files), tuple(recomputed), reason, len(manifest.tensors)
    )


def _recompute_sample(
    store: Store,
    manifest: Manifest,
    places: TensorPlaces,
    count: int,
    storage_options: Mapping[str, Any] | None,
    spectra: Store | None,
    device: str,
) -> list[Recomputed]:
    plan = plan_again(manifest, storage_options, device)
    found = []
    for tensor, row in choose_sample(plan, manifest, count):
        try:
            stored = read_stored(store, places, row)
        except (KeyError, StoreError, CheckpointError):
            found.append(Recomputed(tensor.name, "not recomputed", reason="its file is damaged"))
            continue
        found.append(recompute(tensor, stored, plan, storage_options, spectra))
    return found
