"""The commands `plan` and `verify` as Python functions: `eigenmerge.plan` and `eigenmerge.verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.planning.plan import Plan
from ..core.recipe.recipe import Recipe
from ..core.steps.make_plan import make_plan
from ..core.steps.read_recipe import read_recipe
from ..core.storage.store import Store
from .python_arguments import errors_name_arguments, number_of_bytes

if TYPE_CHECKING:  # it imports torch, which `plan` does not need
    from ..core.steps.verification.verify_checkpoint import Verification


@errors_name_arguments
def plan(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    device: str = "cpu",
    max_memory: int | str | None = None,
    allow_nonfinite: bool = False,
) -> Plan:
    """Return what a merge would read, compute and write. Reads headers, and what identifies the models
    (`core/storage/checkpoints/fingerprint.py`).

    Parameters
    ----------
    recipe : a Recipe, a mapping, the path or URI of a recipe file, or its text
    device : "cpu", "cuda", "cuda:1"
    max_memory : bytes that all workers together may use, as a number or as "16GB"; None takes the recipe's
    allow_nonfinite : keep the base's tensor where an expert holds NaN or Inf

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    read = read_recipe(recipe)
    budget = number_of_bytes("max_memory", max_memory) or read.max_memory
    return make_plan(read, max_memory=budget, allow_nonfinite=allow_nonfinite, device=device)


@errors_name_arguments
def verify(
    checkpoint: str | Path,
    *,
    sample: int = 3,
    store: str | Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Verification:
    """Check the files of a merged checkpoint against its manifest, and recompute a sample of its tensors.

    Parameters
    ----------
    checkpoint : directory or URI
    sample : number of tensors to compute again from base and experts; 0 recomputes none
    store : directory or URI of a store whose spectra are used; None decomposes the sample again
    storage_options : for fsspec, to read the checkpoint, the store and the models

    Returns
    -------
    Verification
        `problems` is empty where the checkpoint is right; `gaps` lists what could not be checked.

    Raises
    ------
    CheckpointError : the manifest is missing or damaged
    StoreError : the checkpoint cannot be read
    """
    from ..core.steps.verification.verify_checkpoint import verify_checkpoint

    return verify_checkpoint(
        Store(str(checkpoint), storage_options),
        sample=sample,
        spectra=Store(str(store), storage_options) if store is not None else None,
        storage_options=storage_options,
        device=device,
    )
