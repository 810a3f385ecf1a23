"""The plan: list base and experts from their headers, then decide everything that can be decided without weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ..listing import ModelListing
from ..planning.outputs.vocabulary import tokenizer_files_needed
from ..planning.plan import Plan
from ..planning.planner import plan_merge, run_settings
from ..recipe.recipe import Recipe
from ..storage.checkpoints.list_model import list_model
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
    """Read the headers of every model of a recipe (and tokenizers, where vocabularies may differ), and plan.

    No weights are read and torch is not imported.

    Raises
    ------
    RecipeError, CheckpointError, ShapeError, BudgetError : what is wrong, in one line
    StoreError : a place that stays unreachable
    """
    source = recipe.vocabulary_source
    tokenizer_model = source if source not in (None, "base", "union") else None
    named = [recipe.base_model, *recipe.expert_references, tokenizer_model]
    references = list(dict.fromkeys(reference for reference in named if reference is not None))

    def list_one(reference: str) -> ModelListing:
        return list_model(reference, recipe.storage_options, fingerprint=recipe.fingerprint)

    def read_one(uri: str) -> bytes:
        store, key = locate_object(uri, recipe.storage_options)
        return store.read(key)

    with ThreadPoolExecutor(min(_PARALLEL_READS, len(references)), thread_name_prefix="list") as pool:
        listings = dict(zip(references, pool.map(list_one, references), strict=True))
        base = listings[recipe.base_model] if recipe.base_model else None
        experts = [listings[reference] for reference in recipe.expert_references]
        tokenizer = listings[tokenizer_model] if tokenizer_model is not None else None
        small = tokenizer_files_needed(recipe, base, experts, tokenizer)
        contents = dict(zip(small, pool.map(read_one, small), strict=True))
    return plan_merge(
        recipe,
        base,
        experts,
        run_settings(recipe, device=device, allow_tf32=allow_tf32, allow_nonfinite=allow_nonfinite),
        max_memory=max_memory,
        tokenizer=tokenizer,
        side_file_contents=contents,
    )
