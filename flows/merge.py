"""The flow "merge": read the recipe, and merge with one Prefect task per layer shard."""

from __future__ import annotations

import time
from pathlib import Path

from ..core.cache.result import MergeResult
from ..core.choices import RunnerName
from ..core.recipe.recipe import Recipe
from ..core.steps.merge_run import run_prepared
from ..core.steps.open_run import prepare_run
from ..core.steps.plan_stages import unfinished_stages
from ..core.steps.read_recipe import read_stages
from .fan_out import PrefectMap
from .prefect_report import PrefectReport
from .recorded_flow import recorded_flow
from .run_context import current_context


@recorded_flow(name="merge", flow_run_name="merge into {destination}", validate_parameters=False)
def merge(
    recipe: Recipe | str | Path,
    destination: str | Path,
    store: str | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    workers: int | None = None,
    runner: RunnerName | None = None,
    runner_address: str | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    report: bool = True,
    results: dict[str, dict[str, float]] | None = None,
    time_limit: float | None = None,
) -> MergeResult:
    """Merge the experts that a recipe names into one checkpoint.

    Parameters
    ----------
    recipe : a Recipe, the path or URI of a recipe file, or its text
    destination : directory or URI of the merged checkpoint; must be empty unless `overwrite`
    store : directory or URI that keeps spectra and finished parts; a run with the same store resumes
    device : "cpu", "cuda", "cuda:1"
    max_memory : bytes that all workers of this machine together may use
    workers : shards to compute at the same time; None chooses by cores (or GPUs) and by `max_memory`
    runner, runner_address : "threads" (default), "dask" or "ray", and the address of a running cluster
    allow_nonfinite : keep the base's tensor where an expert holds NaN or Inf
    report : write a page on the merge into the checkpoint
    results : of the merged model, for its card: data set to metric to value
    time_limit : seconds after which the run stops cleanly, to be resumed

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    context = current_context()
    context.on_begin()
    if time_limit is not None and context.stop.deadline is None:
        context.stop.deadline = time.monotonic() + time_limit
    try:
        stages = read_stages(recipe, str(destination))
        for stage in unfinished_stages(stages, max_memory=max_memory, allow_nonfinite=allow_nonfinite, device=device):
            prepared = context.prepared or prepare_run(
                stage.recipe,
                stage.destination,
                store=store,
                device=device,
                max_memory=max_memory,
                workers=workers,
                overwrite=overwrite,
                allow_nonfinite=allow_nonfinite,
                report=report,
                results=results if stage.destination == str(destination) else None,
            )
            chosen = stage.recipe.runner
            on_page = (PrefectReport(context.server),) if context.on_prefect_page else ()
            context.outcome.result = run_prepared(
                prepared,
                stop=context.stop,
                listeners=(*context.listeners, *on_page),
                map_shards=PrefectMap(
                    runner or chosen.kind,
                    runner_address or chosen.address,
                    server=context.server,
                    early=context.early,
                ),
            )
    except BaseException as error:
        context.outcome.error = error
        raise
    assert context.outcome.result is not None, "a recipe has at least one stage"
    return context.outcome.result
