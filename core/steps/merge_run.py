"""The whole merge without Prefect: plan, align, merge the shards, assemble. How shards are mapped is an argument."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from ..cache.reports import ShardReport
from ..cache.result import MergeResult, merge_result
from ..cache.runs import recorded_run
from ..cache.spectra.table import write_spectra_table
from ..coordination.stop import StopSignal
from ..coordination.threads import one_thread
from ..coordination.worker_count import choose_worker_count
from ..formats.store_folders import DEFAULT_STORE
from ..output.destination import Destination, prepare_destination
from ..output.file_hashes import FileHashes
from ..recipe.recipe import Recipe
from ..run import Run
from ..storage.store import Store
from .align_layers import align_layers
from .assemble import assemble
from .listener import Listener, notify
from .make_plan import make_plan
from .merge_shard import merge_shard
from .open_run import open_run, store_warnings
from .shard_steps import MapShards, map_in_turn


def merge_run(
    recipe: Recipe,
    destination: str,
    *,
    store: str | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    stop: StopSignal | None = None,
    listeners: Sequence[Listener] = (),
    map_shards: MapShards = map_in_turn,
) -> MergeResult:
    """Merge the experts that a recipe names into one checkpoint.

    Parameters
    ----------
    destination : directory or URI of the merged checkpoint; must be empty unless `overwrite`
    store : directory or URI that keeps spectra and parts; None takes the recipe's, or the default
    device : "cpu", "cuda", "cuda:1"
    max_memory : bytes that all workers together may use; None takes the recipe's
    workers : shards to compute at the same time; None takes the recipe's, or chooses by cores and memory
    allow_nonfinite : keep the base's tensor where an expert holds NaN or Inf
    stop : ends the run cleanly once it is set
    map_shards : how shards are computed; the default computes one after the other in this thread

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    started = time.monotonic()
    stop = stop or StopSignal()
    options = recipe.storage_options
    max_memory = max_memory or recipe.max_memory

    plan = make_plan(recipe, max_memory=max_memory, allow_nonfinite=allow_nonfinite, device=device)
    target = prepare_destination(plan, destination, Store(destination, options), overwrite=overwrite)
    run = open_run(plan, Store(store or recipe.store or DEFAULT_STORE, options), options)
    count = choose_worker_count(plan, workers or recipe.runner.workers, max_memory, device)
    notify(listeners, Listener.planned, run, count)
    return run_plan(run, target, workers=count, stop=stop, listeners=listeners, map_shards=map_shards, started=started)


def run_plan(
    run: Run,
    destination: Destination,
    *,
    workers: int = 1,
    stop: StopSignal | None = None,
    listeners: Sequence[Listener] = (),
    map_shards: MapShards = map_in_turn,
    started: float | None = None,
) -> MergeResult:
    """Align, merge the shards, and assemble: the part of `merge_run` that follows the plan. Errors as `merge_run`.

    Parameters
    ----------
    destination : from `prepare_destination`
    started : `time.monotonic()` at the beginning of the run; now by default
    """
    started = time.monotonic() if started is None else started
    stop = stop or StopSignal()
    with recorded_run(run, destination.store.root_uri) as record, one_thread():
        decomposed = align_layers(run, map_shards, workers=workers, stop=stop)
        with FileHashes(run) as hashes:

            def on_report(report: ShardReport) -> None:
                hashes.add_part(report)
                notify(listeners, Listener.shard_done, report)

            on_tensor = partial(notify, listeners, Listener.tensor_done)
            reports = map_shards(
                merge_shard, run.jobs(), workers=workers, stop=stop, on_report=on_report, on_tensor=on_tensor
            )
            notify(listeners, Listener.assembling, run)
            write_spectra_table(run)
            assembled = assemble(run, reports, destination, stop=stop, file_hashes=hashes)
        result = merge_result(
            run.plan,
            reports,
            decomposed,
            destination=destination.uri,
            bytes_through_reduce=assembled.bytes_through,
            seconds=time.monotonic() - started,
            warnings=store_warnings(run) + assembled.warnings,
        )
        record.finish(result)
    notify(listeners, Listener.finished, result)
    return result
