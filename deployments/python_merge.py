"""`eigenmerge.merge`: the merge as a Python function, reported to a Prefect server where there is one."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..core.cache.result import MergeResult
from ..core.choices import RunnerName
from ..core.coordination.stop import StopSignal
from ..core.formats.store_folders import DEFAULT_STORE
from ..core.recipe.recipe import Recipe
from ..core.steps.listener import Listener
from ..core.steps.open_run import prepare_run
from ..core.steps.read_recipe import read_recipe
from .embedded_server import EmbeddedServer, configured_api
from .python_arguments import errors_name_arguments, number_of_bytes
from .python_result import with_places
from .reported_merge import reported_merge

if TYPE_CHECKING:
    from .python_result import Merge

_lock = threading.Lock()
_server: EmbeddedServer | None = None


@errors_name_arguments
def merge(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    destination: str | Path,
    store: str | Path | None = None,
    device: str = "cpu",
    max_memory: int | str | None = None,
    workers: int | None = None,
    runner: RunnerName | None = None,
    runner_address: str | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    report: bool = True,
    time_limit: float | None = None,
    *,
    use_prefect: bool = True,
    progress: bool | None = None,
    results: Mapping[str, Mapping[str, float]] | None = None,
) -> Merge:
    """Merge the experts that a recipe names into one checkpoint.

    The run is planned before Prefect is imported. It is reported to the Prefect server of PREFECT_API_URL, or to one
    that this process starts at the first call and ends at its exit. Inside a flow of yours it is a subflow.

    Parameters
    ----------
    recipe : a Recipe, a mapping, the path or URI of a recipe file, or its text
    destination : directory or URI of the merged checkpoint; must be empty unless `overwrite`
    store : directory or URI that keeps spectra and finished parts; a run with the same store resumes
    device : "cpu", "cuda", "cuda:1"
    max_memory : bytes that all workers of this machine together may use, as a number or as "16GB"
    workers : shards to compute at the same time; None chooses by cores (or GPUs) and by `max_memory`
    runner, runner_address : "threads" (default), "dask" or "ray", and the address of a running cluster
    allow_nonfinite : keep the base's tensor where an expert holds NaN or Inf
    report : write a page on the merge into the checkpoint, eigenmerge_report.html
    time_limit : seconds after which the run stops cleanly, to be resumed
    use_prefect : False computes in threads of this process, with the same result
    progress : show a bar; None shows one in a notebook only
    results : of the merged model, where they are known before it is written, for its card: data set to metric to value

    Returns
    -------
    Merge
        What the run counted, `manifest`, `ranks()`, `spectra()` and `report()`

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    stop = StopSignal(deadline=None if time_limit is None else time.monotonic() + time_limit)
    read = read_recipe(recipe)
    max_memory = number_of_bytes("max_memory", max_memory)
    place = str(store) if store is not None else read.store or DEFAULT_STORE
    parameters: dict[str, Any] = {
        "recipe": read,
        "destination": str(destination),
        "store": None if store is None else str(store),
        "device": device,
        "max_memory": max_memory,
        "workers": workers,
        "runner": runner,
        "runner_address": runner_address,
        "overwrite": overwrite,
        "allow_nonfinite": allow_nonfinite,
        "report": report,
        "results": None if results is None else {name: dict(values) for name, values in results.items()},
        "time_limit": time_limit,
    }
    if use_prefect and _inside_a_flow():
        from ..flows import merge as flow

        return with_places(cast("MergeResult", flow(**parameters)), place, read.storage_options)
    prepared = prepare_run(
        read,
        str(destination),
        store=parameters["store"],
        device=device,
        max_memory=max_memory,
        workers=workers,
        overwrite=overwrite,
        allow_nonfinite=allow_nonfinite,
        report=report,
        results=results,
    )
    with _shown_progress(progress) as listeners:
        result = reported_merge(
            prepared,
            parameters,
            runner=runner or read.runner.kind,
            listeners=listeners,
            stop=stop,
            use_prefect=use_prefect,
            quiet="prefect" not in sys.modules,  # a process that uses Prefect itself keeps its settings
            server=_shared_server() if use_prefect and not configured_api() else None,
        )
    return with_places(result, place, read.storage_options)


@contextlib.contextmanager
def _shown_progress(progress: bool | None) -> Generator[tuple[Listener, ...]]:
    """Yield the listeners that show a bar while the block runs: none, unless it is asked for or in a notebook."""
    if progress is False:
        yield ()
        return
    from .cli.progress import BarListener, notebook_listener

    listener = BarListener() if progress else notebook_listener()
    if listener is None:
        yield ()
        return
    try:
        yield (listener,)
    finally:
        listener.close()


def _inside_a_flow() -> bool:
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def _shared_server() -> EmbeddedServer | None:
    """Return the server of this process, started at the first call: later merges do not wait for one.

    None where it cannot be started, which `reported_merge` then reports.
    """
    global _server  # noqa: PLW0603
    with _lock, contextlib.suppress(OSError):
        if _server is None or not _server.is_running:
            _server = EmbeddedServer()
            atexit.register(_server.close)
        return _server
    return None
