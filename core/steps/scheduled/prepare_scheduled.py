"""Prepare the merge of a scheduled run: what the flow and the command `nightly` hand to the merge."""

from __future__ import annotations

from typing import Any

from ...choices import RunnerName
from ...planning.plan import Plan
from ...recipe.recipe import Recipe
from ..open_run import PreparedRun, prepare_run


def prepare_scheduled(
    recipe: Recipe,
    destination: str,
    plan: Plan,
    *,
    store: str | None,
    device: str,
    max_memory: int | None,
    workers: int | None,
    runner: RunnerName | None,
    runner_address: str | None,
) -> tuple[PreparedRun, dict[str, Any], RunnerName]:
    """Return the prepared run, the parameters of the flow `merge`, and the runner by them or else the recipe.

    The folder is overwritten: it is named after its inputs, so a killed run can only have left the same merge.

    Raises
    ------
    EigenmergeError : as `prepare_run`
    """
    places: dict[str, Any] = {"store": store, "device": device, "max_memory": max_memory, "workers": workers}
    prepared = prepare_run(recipe, destination, overwrite=True, plan=plan, **places)
    chosen = {"runner": runner, "runner_address": runner_address, "overwrite": True}
    parameters = {"recipe": recipe, "destination": destination, **chosen, **places}
    return prepared, parameters, runner or recipe.runner.kind
