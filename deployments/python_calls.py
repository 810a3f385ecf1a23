"""The commands `plan`, `verify` and `push` as Python functions: `eigenmerge.plan` and others."""

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
    from ..core.steps.hub.push_checkpoint import Pushed
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
    load: bool = True,
    generate: int = 0,
    perplexity: bool | None = None,
    run_model_code: bool = False,
) -> Verification:
    """Check the files of a merged checkpoint against its manifest, recompute a sample of its tensors, and load it.

    A checkpoint that Eigenmerge did not write has no manifest, and is only loaded.

    Parameters
    ----------
    checkpoint : directory or URI
    sample : number of tensors to compute again from base and experts; 0 recomputes none
    store : directory or URI of a store whose spectra are used; None decomposes the sample again
    storage_options : for fsspec, to read the checkpoint, the store and the models
    device : where matrices are decomposed and models are loaded
    load : look for NaN and Inf; load keys, tokenizer and chat template with transformers where it is installed
    generate : number of tokens to generate
    perplexity : compare the perplexity of a short text with that of base and experts; None does so for small models
        that are on this machine
    run_model_code : execute the Python files of a model that brings its own architecture: only of models you trust

    Returns
    -------
    Verification
        `problems` is empty where the checkpoint is right; `gaps` lists what could not be checked; `loading` has what
        was measured.

    Raises
    ------
    CheckpointError : the manifest is damaged; it is missing, and there is no other checkpoint
    StoreError : the checkpoint cannot be read
    """
    from ..core.steps.loading.load_check import LoadOptions
    from ..core.steps.verification.verify_checkpoint import verify_checkpoint

    return verify_checkpoint(
        Store(str(checkpoint), storage_options),
        sample=sample,
        spectra=Store(str(store), storage_options) if store is not None else None,
        storage_options=storage_options,
        device=device,
        load=LoadOptions(generate, perplexity, run_model_code, device) if load else None,
    )


def push(
    checkpoint: str | Path,
    repository: str,
    *,
    public: bool = False,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Pushed:
    """Push a finished merge to the Hugging Face Hub, in one commit. The same call continues a push that was stopped.

    Parameters
    ----------
    checkpoint : directory or URI
    repository : owner/name; created if needed. It must be empty or hold a merge of Eigenmerge
    public : a new repository is public, and an existing one must be; otherwise private
    overwrite : also replace files of an earlier merge that were edited on the Hub
    storage_options : for fsspec, to read the checkpoint; `{"hf": {"token": ...}}` replaces the token of `hf auth login`
        or HF_TOKEN

    Raises
    ------
    RecipeError : the name is none of the Hub
    DestinationError : no access; files that Eigenmerge did not write
    CheckpointError : not a finished merge, or its files have changed since
    StoreError : the Hub does not answer, or the checkpoint cannot be read
    """
    from ..core.steps.hub.push_checkpoint import push_checkpoint

    place = Store(str(checkpoint), storage_options)
    return push_checkpoint(place, repository, storage_options, public=public, overwrite=overwrite)
