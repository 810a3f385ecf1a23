"""The whole merge without Prefect: plan, align, merge the shards, assemble; for one recipe, or for several in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from ..cache.reports import ShardReport
from ..cache.result import MergeResult, complete_result, merge_result
from ..cache.runs import recorded_run
from ..cache.spectra.table import write_spectra_table
from ..choices import RunnerName
from ..coordination.stop import StopSignal
from ..coordination.threads import one_thread
from ..errors import RecipeError
from ..output.destination import Destination
from ..output.file_hashes import FileHashes
from ..recipe.recipe import Recipe
from ..run import Run
from ..storage.assembly.part_check import DamagedPartError
from .align_layers import align_layers
from .assemble import assemble
from .head_start import HeadStart
from .listener import Listener, notify
from .map_in_threads import map_in_threads
from .merge_shard import merge_shard
from .open_run import PreparedRun, prepare_run, store_warnings
from .remake_parts import remake_parts
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
    report: bool = True,
    stop: StopSignal | None = None,
    listeners: Sequence[Listener] = (),
    map_shards: MapShards = map_in_turn,
) -> MergeResult:
    """Merge the experts that a recipe names into one checkpoint.

    Parameters
    ----------
    destination : directory or URI of the merged checkpoint; must be empty unless `overwrite`. If it has the complete
        result of this recipe already, nothing is done.
    store : directory or URI that keeps spectra and parts; None takes the recipe's, or the default
    device : "cpu", "cuda", "cuda:1"
    max_memory : bytes that all workers together may use; None takes the recipe's
    workers : shards to compute at the same time; None takes the recipe's, or chooses by cores and memory
    allow_nonfinite : keep the base's tensor where an expert holds NaN or Inf
    report : write a page on the merge into the checkpoint
    stop : ends the run cleanly once it is set
    map_shards : how shards are computed; the default computes one after the other in this thread

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    prepared = prepare_run(
        recipe,
        destination,
        store=store,
        device=device,
        max_memory=max_memory,
        workers=workers,
        overwrite=overwrite,
        allow_nonfinite=allow_nonfinite,
        report=report,
    )
    return run_prepared(prepared, stop=stop, listeners=listeners, map_shards=map_shards)


def run_prepared(
    prepared: PreparedRun,
    *,
    stop: StopSignal | None = None,
    listeners: Sequence[Listener] = (),
    map_shards: MapShards = map_in_turn,
) -> MergeResult:
    """Compute what `prepare_run` has prepared, or nothing where the destination has it. As `merge_run`."""
    if prepared.destination.is_complete:
        place, seconds = prepared.destination.uri, time.monotonic() - prepared.started
        result = complete_result(prepared.run.plan, place, seconds=seconds)
        notify(listeners, Listener.finished, result)
        return result
    notify(listeners, Listener.planned, prepared.run, prepared.workers)
    return run_plan(
        prepared.run,
        prepared.destination,
        workers=prepared.workers,
        stop=stop,
        listeners=listeners,
        map_shards=map_shards,
        started=prepared.started,
    )


def run_in_threads(
    prepared: PreparedRun,
    *,
    runner: RunnerName = "threads",
    stop: StopSignal | None = None,
    listeners: Sequence[Listener] = (),
    early: HeadStart | None = None,
) -> MergeResult:
    """Compute a prepared run in `prepared.workers` threads of this process.

    Parameters
    ----------
    runner : that the recipe or the user chose
    early : shards that are computed already

    Raises
    ------
    RecipeError : the runner is a cluster
    EigenmergeError : as `merge_run`
    """
    if runner != "threads":
        raise RecipeError(
            f"runner {runner!r} works through a Prefect server; set PREFECT_API_URL to one that answers, or choose"
            " runner 'threads'"
        )
    map_shards = map_in_threads if early is None else early.map_shards
    return run_prepared(prepared, stop=stop, listeners=listeners, map_shards=map_shards)


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
            try:
                assembled = assemble(run, reports, destination, stop=stop, file_hashes=hashes)
            except DamagedPartError:
                remade = remake_parts(run, reports, map_shards, workers=workers, stop=stop)
                if remade == reports:  # the parts are right, and the copy was not
                    raise
                reports = remade
                assembled = assemble(run, reports, destination, stop=stop)
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
