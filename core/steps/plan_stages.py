"""Plan the merges of a recipe of several documents, from headers alone, before any of them has a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..errors import EigenmergeError, RecipeError
from ..listing import ModelListing
from ..output.destination import is_finished
from ..planning.plan import Plan
from ..planning.planned_model import planned_listing
from ..recipe.stages import Stage
from ..storage.addresses import absolute_uri
from ..storage.store import Store
from .make_plan import make_plan


def plan_stages(
    stages: Sequence[Stage],
    *,
    max_memory: int | None = None,
    allow_nonfinite: bool = False,
    device: str = "cpu",
    models: Mapping[str, ModelListing] | None = None,
) -> Iterator[tuple[Stage, Plan]]:
    """Yield each stage with its plan. A result that does not exist yet is planned from the plan of its stage.

    Parameters
    ----------
    stages : in the order of `make_stages`
    max_memory, allow_nonfinite, device : as for `make_plan`
    models : listings by reference, of models that are planned without being read

    Raises
    ------
    EigenmergeError : as `make_plan`; the message begins with the stage
    """
    listings: dict[str, ModelListing] = dict(models or {})
    contents: dict[str, bytes] = {}
    for stage in stages:
        try:
            plan = make_plan(
                stage.recipe,
                max_memory=max_memory or stage.recipe.max_memory,
                allow_nonfinite=allow_nonfinite,
                device=device,
                planned=listings,
                planned_contents=contents,
            )
        except EigenmergeError as error:
            raise type(error)(f"{stage.label}: {error}") if len(stages) > 1 else error from None
        yield stage, plan
        if any(stage.destination in later.uses for later in stages):
            if stage.recipe.output.format == "adapter":
                raise RecipeError(f"{stage.label}: output: adapter: other documents use its result; write a checkpoint")
            uri = absolute_uri(stage.destination)
            listings[stage.destination], written = planned_listing(plan, stage.destination, uri)
            contents |= written


def unfinished_stages(
    stages: Sequence[Stage], *, max_memory: int | None = None, allow_nonfinite: bool = False, device: str = "cpu"
) -> Iterator[Stage]:
    """Yield the stages that are still to be merged, each after the caller has merged the one before; the last always.

    All are planned first, so that every error of a plan comes before the first weight is read.

    Raises
    ------
    EigenmergeError : as `plan_stages`
    """
    if len(stages) > 1:
        for _ in plan_stages(stages, max_memory=max_memory, allow_nonfinite=allow_nonfinite, device=device):
            pass
    for stage in stages[:-1]:
        budget = max_memory or stage.recipe.max_memory
        plan = make_plan(stage.recipe, max_memory=budget, allow_nonfinite=allow_nonfinite, device=device)
        if not is_finished(Store(stage.destination, stage.recipe.storage_options), plan):
            yield stage
    yield stages[-1]
