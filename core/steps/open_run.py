"""Prepare and open a run: plan, probe destination and store. Finds every error that can be found without weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..cache.store_marker import mark_store
from ..coordination.worker_count import choose_worker_count
from ..formats.store_folders import DEFAULT_STORE
from ..output.card_metadata import Results
from ..output.destination import Destination, prepare_destination
from ..planning.plan import Plan
from ..recipe.recipe import Recipe
from ..run import Run
from ..storage.reachable import check_reachable
from ..storage.store import Store
from .make_plan import make_plan


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run whose plan is valid and whose destination and store can be written; no weight has been read.

    workers : shards to compute at the same time
    started : `time.monotonic()` at the beginning of the run
    """

    run: Run
    destination: Destination
    workers: int
    started: float = field(default_factory=time.monotonic)


def prepare_run(
    recipe: Recipe,
    destination: str,
    *,
    store: str | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    report: bool = True,
    results: Results | None = None,
    plan: Plan | None = None,
) -> PreparedRun:
    """Plan a merge and check the places that it writes to. Parameters and errors as `merge_run`.

    `plan` is the plan of this recipe with these options, where it is made already. `results` of the merged model, where
    they are known, are for its card.

    Does not import torch for device "cpu", nor Prefect: a command that fails here has not waited for either.
    """
    started = time.monotonic()
    options = recipe.storage_options
    max_memory = max_memory or recipe.max_memory
    place = store or recipe.store or DEFAULT_STORE
    check_reachable([destination, place], options)
    plan = plan or make_plan(recipe, max_memory=max_memory, allow_nonfinite=allow_nonfinite, device=device)
    run_store = Store(place, options)
    target = prepare_destination(
        plan,
        destination,
        Store(destination, options),
        overwrite=overwrite,
        run_store=run_store,
        report=report,
        results=results,
    )
    run = Run(plan, run_store, options) if target.is_complete else open_run(plan, run_store, options)
    count = choose_worker_count(plan, recipe.runner.workers if workers is None else workers, max_memory, device)
    return PreparedRun(run, target, count, started)


def open_run(plan: Plan, store: Store, storage_options: Mapping[str, Any] | None) -> Run:
    """Return the run of a plan on a store, which gets its marker. Up to five small requests where the store is remote.

    Parameters
    ----------
    storage_options : for fsspec, to read the models

    Raises
    ------
    StoreError : the store cannot be written
    """
    store = store.with_probed_writes()
    mark_store(store)
    return Run(plan, store, storage_options)


def store_warnings(run: Run) -> tuple[str, ...]:
    """Return what the user should know about the store of this run; it does not affect the result."""
    if run.store.conditional_writes:
        return ()
    return (
        "the store's server ignores If-None-Match: two runs at the same time may both compute a shard (with the same"
        " result); use one run at a time, or a server with conditional writes",
    )
