"""The merge, in order: plan, one task per layer shard, assemble."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from prefect import flow

from ..core.cache.layout import DEFAULT_STORE
from ..core.cache.result import MergeResult
from ..core.cache.runs import recorded_run
from ..core.cache.spectra.table import write_spectra_table
from ..core.output.destination import prepare_destination
from ..core.output.file_hashes import FileHashes
from ..core.recipe.recipe import Recipe
from ..core.steps.assemble import assemble
from ..core.steps.make_plan import make_plan
from ..core.steps.open_store import probe_store
from ..core.steps.read_recipe import read_recipe
from ..tasks.runners.runner import RunnerName
from .fan_out import Pool, align_layers, choose_workers, merge_shards
from .prefect_report import PrefectReport
from .run_context import Several, current_run


@flow(name="merge", flow_run_name="merge into {destination}", validate_parameters=False, persist_result=False)
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
    time_limit: float | None = None,
) -> MergeResult:
    """Merge the experts that a recipe names into one checkpoint.

    Parameters
    ----------
    recipe : a Recipe, the path or URI of a recipe file, or its text
    destination : directory or URI of the merged checkpoint; must be empty unless `overwrite`
    store : directory or URI where spectra and finished parts are kept; a run with the same store resumes
    device : "cpu", "cuda", "cuda:1"
    max_memory : bytes that all workers of this machine together may use
    workers : shards computed at once; None picks by cores (or GPUs) and by `max_memory`
    runner, runner_address : "threads" (default), "dask" or "ray", and the address of a running cluster
    time_limit : seconds after which the run stops cleanly, to be resumed

    Raises
    ------
    EigenmergeError : for everything that a user can cure
    """
    run = current_run()
    if run.begun is not None:
        run.begun()
    started = time.monotonic()
    if time_limit is not None:
        run.stop.deadline = started + time_limit
    recipe = read_recipe(recipe)
    store_uri = store or recipe.store or DEFAULT_STORE
    options = recipe.storage_options
    max_memory = max_memory or recipe.max_memory
    if run.on_prefect_page:
        run = replace(run, listener=Several(run.listener, PrefectReport(store_uri, options)))

    plan = make_plan(recipe, max_memory=max_memory, allow_nonfinite=allow_nonfinite, device=device)
    target = prepare_destination(plan, str(destination), options, overwrite=overwrite)
    plan = probe_store(plan, store_uri, options)
    slots = choose_workers(plan, workers or recipe.runner.workers, max_memory, device)
    run.listener.planned(plan, slots)

    with recorded_run(plan, target.store.root_uri, store_uri, options) as record:
        pool = Pool(slots, runner or recipe.runner.kind, runner_address or recipe.runner.address, run)
        decomposed = align_layers(plan, store_uri, options, pool)
        with FileHashes(plan, store_uri, options) as hashes:
            reports = merge_shards(plan, store_uri, options, pool, done=hashes.part_done)
            run.listener.assembling(plan)
            write_spectra_table(plan, store_uri, options)
            result = assemble(
                plan,
                reports,
                target,
                store_uri,
                options,
                started=started,
                decomposed=decomposed,
                stop=run.stop,
                file_hashes=hashes,
            )
        record.finish(result)
    run.listener.finished(result)
    return result
