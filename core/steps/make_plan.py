"""Make the plan: list base and experts from their headers, then decide everything that needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..listing import ModelListing
from ..planning.inputs.token_matrices import tensors_to_compare, tie_flag
from ..planning.outputs.side_files import side_contents_needed
from ..planning.outputs.vocabulary import tokenizer_files_needed
from ..planning.plan import Plan, SideFile
from ..planning.planner import plan_merge, run_settings
from ..recipe.recipe import Recipe
from ..storage.checkpoints.equal_tensors import find_equal_tensors
from ..storage.checkpoints.file_version import observe_small_file
from ..storage.checkpoints.list_model import list_model
from ..storage.checkpoints.model_files import complete_side_files
from ..storage.reachable import check_reachable
from ..storage.store import locate_object

_PARALLEL_READS = 16


def make_plan(
    recipe: Recipe,
    *,
    max_memory: int | None = None,
    allow_nonfinite: bool = False,
    device: str = "cpu",
    allow_tf32: bool = False,
) -> Plan:
    """Return the plan of a recipe. Reads headers, tokenizer files, and what fingerprints need: all weights of models of
    at most 1 GiB (64 MiB on remote storage), samples of larger ones.

    Does not import torch.

    Parameters
    ----------
    max_memory : bytes that all workers together may use; the plan is refused if one shard needs more
    allow_nonfinite : keep the base's tensor where an expert holds NaN or Inf
    allow_tf32 : let matrix products on a GPU use TF32

    Raises
    ------
    RecipeError, CheckpointError, ShapeError, BudgetError : one line that says what is wrong and what to do
    StoreError : a model cannot be read
    """
    source = recipe.vocabulary_source
    tokenizer_model = source if source not in (None, "base", "union") else None
    used = [recipe.base_model, *recipe.expert_references, tokenizer_model]
    references = list(dict.fromkeys(reference for reference in used if reference is not None))
    check_reachable((reference for reference in references if "://" in reference), recipe.storage_options)

    def list_reference(reference: str) -> ModelListing:
        return _compare_tied(list_model(reference, recipe.storage_options, fingerprint=recipe.fingerprint), recipe)

    def read_object(uri: str) -> bytes:
        store, key = locate_object(uri, recipe.storage_options)
        return store.read(key)

    with ThreadPoolExecutor(min(_PARALLEL_READS, len(references)), thread_name_prefix="list") as pool:
        listings = dict(zip(references, pool.map(list_reference, references), strict=True))
        base = listings[recipe.base_model] if recipe.base_model else None
        experts = [listings[reference] for reference in recipe.expert_references]
        tokenizer = listings[tokenizer_model] if tokenizer_model is not None else None
        reference = complete_side_files(base if base is not None else experts[0], recipe.storage_options)
        base, experts = (reference, experts) if base is not None else (None, [reference, *experts[1:]])
        tokenizer = complete_side_files(tokenizer, recipe.storage_options) if tokenizer is not None else None
        small = tokenizer_files_needed(recipe, base, experts, tokenizer)
        small = list(dict.fromkeys([*small, *side_contents_needed(recipe, reference, tokenizer)]))
        contents = dict(zip(small, pool.map(read_object, small), strict=True))
        plan = plan_merge(
            recipe,
            base,
            experts,
            run_settings(recipe, device=device, allow_tf32=allow_tf32, allow_nonfinite=allow_nonfinite),
            max_memory=max_memory,
            tokenizer=tokenizer,
            side_file_contents=contents,
        )
        side_files = pool.map(lambda side: _with_version(side, recipe.storage_options), plan.side_files)
        return replace(plan, side_files=tuple(side_files))


def _with_version(side: SideFile, storage_options: Mapping[str, object] | None) -> SideFile:
    if side.source_uri is None:
        return side
    return replace(side, version=observe_small_file(side.source_uri, storage_options))


def _compare_tied(listing: ModelListing, recipe: Recipe) -> ModelListing:
    """Return a listing that says which token matrices are one tied weight, stored more than once.

    Reads samples of them, and all bytes where the samples are equal and config.json does not say that they are tied.
    """
    groups, flag = tensors_to_compare(listing.tensors, listing.config), tie_flag(listing.config)
    equal = find_equal_tensors(listing.tensors, groups, recipe.storage_options, samples_only=flag is True)
    adapter = listing.adapter
    if adapter is not None:
        groups = tensors_to_compare(adapter.tensors, None)
        same = find_equal_tensors(adapter.tensors, groups, recipe.storage_options)
        adapter = replace(adapter, equal_names=same)
    return replace(listing, equal_names=equal, adapter=adapter)
