"""Make the plan: list base and experts from their headers, then decide everything that needs no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from ..errors import CheckpointError, CorruptObjectError, StoreError
from ..listing import ModelListing
from ..planning.inputs.chat_templates import template_files
from ..planning.inputs.names.token_matrices import tensors_to_compare, tie_flag
from ..planning.outputs.side_files import side_contents_needed
from ..planning.outputs.vocabulary.fit_vocabulary import tokenizer_files_needed
from ..planning.plan import Plan, RunSettings, SideFile
from ..planning.planner import plan_merge, run_settings
from ..recipe.recipe import Recipe
from ..storage.checkpoints.equal_tensors import find_equal_tensors
from ..storage.checkpoints.file_version import observe_small_file
from ..storage.checkpoints.linked_files import check_linked_files
from ..storage.checkpoints.list_model import ModelLister, add_adapter
from ..storage.checkpoints.model_files import complete_side_files
from ..storage.reachable import check_reachable
from ..storage.store import locate_object

_PARALLEL_READS = 16
_LONGEST_SIDE_FILE_BYTES = 256 * 2**20  # the largest tokenizer.json have 35 MB


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What the plans of a recipe need of its models: recipes that differ only in parameters have the same.

    base : listing of `base_model`; None if the recipe has none
    experts : listings of `Recipe.expert_references`, in that order
    models : every model whose files are read
    reference : the base, or the first expert
    contents : content by URI of the small files that a plan depends on
    planned_contents : URIs of small files of models that do not exist yet
    """

    base: ModelListing | None
    experts: tuple[ModelListing, ...]
    tokenizer: ModelListing | None
    slice_bases: Mapping[str, ModelListing]
    models: tuple[ModelListing, ...]
    reference: ModelListing
    contents: Mapping[str, bytes]
    planned_contents: frozenset[str] = frozenset()


def make_plan(
    recipe: Recipe,
    *,
    max_memory: int | None = None,
    allow_nonfinite: bool = False,
    device: str = "cpu",
    allow_tf32: bool = False,
    planned: Mapping[str, ModelListing] | None = None,
    planned_contents: Mapping[str, bytes] | None = None,
) -> Plan:
    """Return the plan of a recipe. Reads headers, tokenizer files, and what fingerprints need: all weights of models of
    at most 1 GiB (64 MiB on remote storage), samples of larger ones.

    Does not import torch.

    Parameters
    ----------
    max_memory : bytes that all workers together may use; the plan is refused if one shard needs more
    allow_nonfinite : keep the base's tensor where an expert holds NaN or Inf
    allow_tf32 : let matrix products on a GPU use TF32
    planned : listings of models that do not exist yet, by reference
    planned_contents : content by URI of their small files

    Raises
    ------
    RecipeError, CheckpointError, ShapeError, BudgetError : one line that says what is wrong and what to do
    StoreError : a model cannot be read
    """
    inputs = list_inputs(recipe, planned=planned, planned_contents=planned_contents)
    settings = run_settings(recipe, device=device, allow_tf32=allow_tf32, allow_nonfinite=allow_nonfinite)
    return plan_inputs(inputs, recipe, settings, max_memory=max_memory)


def _all_results(listed: Sequence[Future[ModelListing]]) -> list[ModelListing]:
    """Return all listings; of several models that cannot be read, the error names all."""
    found: list[ModelListing] = []
    errors: list[CheckpointError | StoreError] = []
    for future in listed:
        try:
            found.append(future.result())
        except (CheckpointError, StoreError) as error:
            errors.append(error)
    if len(errors) > 1:
        kind = StoreError if isinstance(errors[0], StoreError) else CheckpointError
        raise kind(f"{len(errors)} models cannot be read: {'; '.join(map(str, errors))}") from None
    if errors:
        raise errors[0]
    return found


def list_inputs(
    recipe: Recipe,
    *,
    planned: Mapping[str, ModelListing] | None = None,
    planned_contents: Mapping[str, bytes] | None = None,
) -> PlanInputs:
    """Return what the plan of a recipe needs of its models: the reading half of `make_plan`. Errors as there."""
    source = recipe.vocabulary_source
    tokenizer_model = source if source not in (None, "base", "union") else None
    used = [*recipe.base_references, *recipe.expert_references, tokenizer_model]
    references = list(dict.fromkeys(reference for reference in used if reference is not None))
    remote = (reference for reference in references if "://" in reference and reference not in (planned or {}))
    check_reachable(remote, recipe.storage_options)

    stored = ModelLister(recipe.storage_options, fingerprint=recipe.fingerprint)
    compared = ModelLister(
        recipe.storage_options, fingerprint=recipe.fingerprint, complete=partial(_compare_tied, recipe=recipe)
    )

    def list_reference(reference: str) -> ModelListing:
        model, plus, adapter = reference.partition("+")
        found = (planned or {}).get(reference) or (planned or {}).get(model)
        if found is not None and (found.name == reference or not plus):
            return found
        if found is not None:
            return add_adapter(found, stored.list_reference(adapter), reference)
        return compared.list_reference(reference)

    def complete(listing: ModelListing) -> ModelListing:
        is_planned = any(listing.uri == other.uri for other in (planned or {}).values())
        return listing if is_planned else complete_side_files(listing, recipe.storage_options)

    def read_object(uri: str) -> bytes:
        if planned_contents and uri in planned_contents:
            return planned_contents[uri]
        store, key = locate_object(uri, recipe.storage_options)
        try:
            return store.read(key, _LONGEST_SIDE_FILE_BYTES)
        except CorruptObjectError as error:
            raise CheckpointError(str(error)) from None

    with ThreadPoolExecutor(min(_PARALLEL_READS, len(references)), thread_name_prefix="list") as pool:
        found = _all_results([pool.submit(list_reference, reference) for reference in references])
        listings = dict(zip(references, found, strict=True))
        base = listings[recipe.base_model] if recipe.base_model else None
        experts = [listings[reference] for reference in recipe.expert_references]
        tokenizer = listings[tokenizer_model] if tokenizer_model is not None else None
        reference = complete(base if base is not None else experts[0])
        base, experts = (reference, experts) if base is not None else (None, [reference, *experts[1:]])
        tokenizer = complete(tokenizer) if tokenizer is not None else None
        small = tokenizer_files_needed(recipe, base, experts, tokenizer)
        small += [*side_contents_needed(recipe, reference, tokenizer)]
        small += template_files(recipe.chat_template, listings.values())
        small = list(dict.fromkeys(small))
        models = [reference, *(listing for listing in (tokenizer, *listings.values()) if listing is not None)]
        # The files of a planned model are those of its own sources, which its plan has checked.
        planned_uris = {listing.uri for listing in (planned or {}).values()}
        models = [listing for listing in models if listing.uri not in planned_uris]
        check_linked_files(models, small, reference)
        contents = dict(zip(small, pool.map(read_object, small), strict=True))
    return PlanInputs(
        base=base,
        experts=tuple(experts),
        tokenizer=tokenizer,
        slice_bases={name: listings[name] for name in recipe.base_references if name != recipe.base_model},
        models=tuple(models),
        reference=reference,
        contents=contents,
        planned_contents=frozenset(planned_contents or ()),
    )


def plan_inputs(inputs: PlanInputs, recipe: Recipe, settings: RunSettings, *, max_memory: int | None = None) -> Plan:
    """Return the plan of a recipe: the deciding half of `make_plan`, which reads no weights. Errors as there.

    Parameters
    ----------
    inputs : of this recipe, or of one that differs from it only in parameters
    settings : from `run_settings`
    """
    plan = plan_merge(
        recipe,
        inputs.base,
        inputs.experts,
        settings,
        max_memory=max_memory,
        tokenizer=inputs.tokenizer,
        side_file_contents=inputs.contents,
        slice_bases=inputs.slice_bases,
    )
    copied = [side.source_uri for side in plan.side_files if side.source_uri is not None]
    check_linked_files(inputs.models, copied, inputs.reference)

    def with_version(side: SideFile) -> SideFile:
        if side.source_uri is None or side.source_uri in inputs.planned_contents:
            return side
        return replace(side, version=observe_small_file(side.source_uri, recipe.storage_options))

    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="side") as pool:
        return replace(plan, side_files=tuple(pool.map(with_version, plan.side_files)))


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
