"""`eigenmerge merge`: run a recipe, watch it, stop it cleanly."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from ...core.formats.file_names import MANIFEST_NAME, MODEL_CARD_NAME
from .options import (
    AllowNonfiniteOption,
    DeviceOption,
    JsonOption,
    MaxMemoryOption,
    RecipeArgument,
    StoreOption,
    WorkersOption,
    check_addresses,
    parse_size,
    show_bytes,
    show_seconds,
)

if TYPE_CHECKING:
    from ...core.cache.result import MergeResult
    from ...core.coordination.stop import StopSignal


def merge(
    recipe: RecipeArgument,
    destination: Annotated[str, typer.Argument(metavar="OUT", help="Directory or URI of the merged checkpoint.")],
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    max_memory: MaxMemoryOption = None,
    workers: WorkersOption = None,
    runner: Annotated[str | None, typer.Option("--runner", help="threads (default), dask or ray.")] = None,
    runner_address: Annotated[
        str | None, typer.Option("--runner-address", metavar="URL", help="Scheduler of a running Dask or Ray cluster.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that stands in OUT.")] = False,
    allow_nonfinite: AllowNonfiniteOption = False,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", min=0, metavar="SECONDS", help="Stop cleanly after this time, to be resumed."),
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Prefect's own log as well.")] = False,
) -> None:
    """Merge the experts of RECIPE into OUT. The same command again resumes where a killed run stopped."""
    import os

    from ...core.coordination.stop import StopSignal
    from ...core.errors import RecipeError
    from ...core.steps.read_recipe import read_recipe

    stop = StopSignal()
    stop_on_signals(stop)  # before the seconds that Prefect takes to start
    if runner not in (None, "threads", "dask", "ray"):
        raise RecipeError(f"--runner {runner!r} is unknown; choose threads, dask or ray")
    if verbose:
        os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"
    check_addresses(OUT=destination, store=store)
    loaded = read_recipe(recipe)
    budget = parse_size(max_memory)

    stop.check()

    from ..embedded_server import EmbeddedServer, prefect_api
    from ..prefect_settings import quiet_prefect

    quiet_prefect()
    # It starts while the plan is made; a server that the user configured is used instead.
    server = None if os.environ.get("PREFECT_API_URL") else EmbeddedServer()
    try:
        from prefect.exceptions import TerminationSignal

        from ...flows import merge as merge_flow
        from ...flows.run_context import RUN_CONTEXT, RunContext
        from .progress import make_listener

        listener = make_listener(quiet=quiet or as_json, terminal=sys.stderr.isatty())
        context = RunContext((listener,), stop, on_prefect_page=server is None, on_begin=partial(stop_on_signals, stop))
        token = RUN_CONTEXT.set(context)
        try:
            stop.check()
            with prefect_api(server):
                result = merge_flow(
                    loaded,
                    destination,
                    store=store,
                    device=device,
                    max_memory=budget,
                    workers=workers,
                    runner=runner,
                    runner_address=runner_address,
                    overwrite=overwrite,
                    allow_nonfinite=allow_nonfinite,
                    time_limit=time_limit,
                )
        except TerminationSignal:  # Prefect's own, before the flow had begun
            stop.stop("SIGTERM")
            raise stop.error() from None
        finally:
            RUN_CONTEXT.reset(token)
            listener.close()
    finally:
        if server is not None:
            server.close()
    if as_json:
        print(json.dumps(result.to_dict()))
    elif not quiet:
        print(summary(result))


def summary(result: MergeResult) -> str:
    """The lines a finished run ends with."""
    lines = [f"warning: {warning}" for warning in result.warnings]
    lines += [
        f"Merged {result.num_experts} experts, {result.num_tensors} tensors, with {result.method}"
        f" in {show_seconds(result.seconds)}: {result.destination} ({show_bytes(result.bytes_written)})",
        f"  shards: {result.shards_done} computed, {result.shards_reused} found in the store;"
        f" decompositions: {result.decompositions_computed} computed, {result.decompositions_reused} reused",
        f"  read {show_bytes(result.bytes_read)}"
        + (f" and {show_bytes(result.kept_bytes_read)} of kept sums" if result.kept_bytes_read else "")
        + f"; report: {result.destination.rstrip('/')}/{MODEL_CARD_NAME},"
        f" {result.destination.rstrip('/')}/{MANIFEST_NAME}",
    ]
    if result.truncation_error is not None:
        lines.insert(-1, f"  adapter: {_exactness(result)}")
    return "\n".join(lines)


def _exactness(result: MergeResult) -> str:
    from ...core.cache.result import EXACT_BELOW

    if result.truncation_error is None or result.truncation_error < EXACT_BELOW:
        return "its rank holds the merged deltas exactly"
    return f"its rank leaves out at most {result.truncation_error:.2%} of a merged delta, in {result.truncated_tensor}"


def stop_on_signals(stop: StopSignal) -> None:
    """First Ctrl-C or SIGTERM: finish the tensors in hand and stop. The second ends the process at once."""

    def handler(number: int, _: FrameType | None) -> None:
        stop.stop(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        print("eigenmerge: stopping; what is finished is kept (again to stop at once)", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if stop.is_set else handler)
