"""Verify a checkpoint: files against the manifest, a sample of tensors against their sources, and how it loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, StoreError
from ...formats.file_names import MANIFEST_NAME
from ...output.read_manifest import Manifest, read_manifest
from ...output.verify_files import FileCheck, TensorPlaces, read_stored, verify_files
from ...storage.store import Store
from ..loading.check_loading import check_loading
from ..loading.load_check import LoadCheck, LoadOptions
from .recompute import NotReachableError, Recomputed, choose_sample, plan_again, recompute

_LOADING = "looking for NaN and loading with Transformers"


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    files : one check per file, and at the end the check of the whole; empty without a manifest
    recomputed : comparisons of the sample; empty if no sample was requested or none could be computed
    not_recomputed : why the sample could not be computed; "" otherwise
    num_tensors : of the whole checkpoint; 0 where it has no manifest
    loading : how it loads; empty if that was not requested
    """

    destination: str
    run_key: str
    files: tuple[FileCheck, ...]
    recomputed: tuple[Recomputed, ...]
    not_recomputed: str
    num_tensors: int
    loading: tuple[LoadCheck, ...] = ()

    def __repr__(self) -> str:
        verdict = "; ".join(self.problems) or "ok"
        return (
            f"Verification({self.destination}: {verdict}; {max(0, len(self.files) - 1)} files,"
            f" {self.num_tensors} tensors, {len(self.recomputed)} recomputed)"
        )

    @property
    def problems(self) -> list[str]:
        """One line per problem; empty where the checkpoint agrees with its manifest and its sources, and loads."""
        found = [f"{file.name}: {problem}" for file in self.files for problem in file.problems]
        found += [problem for check in self.loading for problem in check.problems]
        return found + [
            f"{tensor.name}: differs from its recomputation by {tensor.difference:.2g} of its largest value"
            + (f" ({tensor.reason})" if tensor.reason else "")
            for tensor in self.recomputed
            if tensor.outcome == "differs"
        ]

    @property
    def gaps(self) -> list[str]:
        """One line per check that could not be done."""
        found = [f"nothing was recomputed: {self.not_recomputed}"] if self.not_recomputed else []
        found += [f"{check.name}: {check.detail}" for check in self.loading if check.outcome == "not checked"]
        return found + [
            f"{tensor.name}: was not recomputed: {tensor.reason}"
            for tensor in self.recomputed
            if tensor.outcome == "not recomputed"
        ]


def _ignore(step: str) -> None:
    return None


def verify_checkpoint(
    checkpoint: Store,
    *,
    sample: int = 3,
    spectra: Store | None = None,
    storage_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    load: LoadOptions | None = None,
    on_step: Callable[[str], None] = _ignore,
) -> Verification:
    """Check every file of a merged checkpoint, recompute `sample` of its tensors, and load it.

    A checkpoint without a manifest is only loaded: there is nothing to compare it with.

    Cost: two reads of the checkpoint, three with `load`; the headers of base and experts and, of the sample, their
    weights.

    Parameters
    ----------
    sample : number of tensors; 0 recomputes none
    checkpoint : the place of the checkpoint
    spectra : a store whose spectra are used, and which gets those that it lacks; None decomposes the sample again
    storage_options : for fsspec, to read base and experts
    load : how it is loaded; None does not load it, and then a manifest is required
    on_step : is called before each of the steps with its name, for the display

    Raises
    ------
    CheckpointError : the manifest is damaged; it is missing, and there is no other checkpoint
    StoreError : the checkpoint cannot be read
    """
    if load is not None and not checkpoint.exists(MANIFEST_NAME):
        on_step(_LOADING)
        return _load_only(checkpoint, storage_options, load)
    manifest = read_manifest(checkpoint)
    on_step("checking the files against the manifest")
    files, places = verify_files(checkpoint, manifest)
    recomputed: list[Recomputed] = []
    reason = ""
    if sample > 0:
        on_step(f"recomputing {sample} of {len(manifest.tensors)} tensors")
        try:
            recomputed = _recompute_sample(checkpoint, manifest, places, sample, storage_options, spectra, device)
        except NotReachableError as error:
            reason = str(error)
    if load is not None:
        on_step(_LOADING)
    return Verification(
        checkpoint.display(""),
        manifest.run_key,
        tuple(files),
        tuple(recomputed),
        reason,
        len(manifest.tensors),
        () if load is None else _load(checkpoint, manifest, storage_options, load),
    )


def _load(
    checkpoint: Store, manifest: Manifest, options: Mapping[str, Any] | None, load: LoadOptions
) -> tuple[LoadCheck, ...]:
    base = None if manifest.base is None else manifest.base.name
    experts = [expert.name for expert in manifest.experts]
    try:
        return check_loading(checkpoint.root_uri, options, load, base=base, experts=experts)
    except (CheckpointError, StoreError) as error:  # the check of the files has reported it
        return (LoadCheck("loading", "not checked", str(error), requested=True),)


def _load_only(checkpoint: Store, options: Mapping[str, Any] | None, load: LoadOptions) -> Verification:
    try:
        checks = check_loading(checkpoint.root_uri, options, load)
    except CheckpointError as error:
        raise CheckpointError(
            f"{checkpoint.display('')}: has no {MANIFEST_NAME}, and is no other checkpoint: {error}"
        ) from None
    return Verification(checkpoint.display(""), "", (), (), "", 0, checks)


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
