"""The plan: list base and experts from their headers, then decide everything that can be decided without weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ..config import Recipe
from ..planning.listing import ModelListing
from ..planning.plan import Plan
from ..planning.planner import plan_merge, run_settings
from ..storage.checkpoint import list_model

_PARALLEL_LISTINGS = 16


def make_plan(
    recipe: Recipe,
    *,
    max_memory: int | None = None,
    allow_nonfinite: bool = False,
    device: str = "cpu",
    allow_tf32: bool = False,
) -> Plan:
    """Read the headers of every model of a recipe, and plan; reads no weights and imports no torch.

    Raises
    ------
    RecipeError, CheckpointError, ShapeError, BudgetError : what is wrong, in one line
    StoreError : a place that stays unreachable
    """
    references = list(dict.fromkeys([*([recipe.base_model] if recipe.base_model else []), *recipe.expert_references]))

    def list_one(reference: str) -> ModelListing:
        return list_model(reference, recipe.storage_options)

    with ThreadPoolExecutor(min(_PARALLEL_LISTINGS, len(references)), thread_name_prefix="list") as pool:
        listings = dict(zip(references, pool.map(list_one, references), strict=True))
    return plan_merge(
        recipe,
        listings[recipe.base_model] if recipe.base_model else None,
        [listings[reference] for reference in recipe.expert_references],
        run_settings(recipe, device=device, allow_tf32=allow_tf32, allow_nonfinite=allow_nonfinite),
        max_memory=max_memory,
    )
