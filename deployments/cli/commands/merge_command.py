"""`eigenmerge merge`: run the merge flow with a progress bar, stop it on signals, and print a summary."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import asdict
from functools import cache, partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from ....core.errors import RecipeError
from ....core.formats.file_names import MODEL_CARD_NAME, REPORT_NAME
from ..options import (
    AllowMixedOption,
    AllowNonfiniteOption,
    DeviceOption,
    JsonOption,
    MaxMemoryOption,
    NoPrefectOption,
    QuietOption,
    RecipeArgument,
    RunnerOption,
    StoreOption,
    WorkersOption,
    check_addresses,
    parse_size,
    show_bytes,
    show_count,
    show_seconds,
)
from ..status import process_start, set_status
from ..terminal import show, show_error, show_json
from .push_command import PublicOption, push_and_show

if TYPE_CHECKING:
    from ....core.cache.result import MergeResult
    from ....core.coordination.stop import StopSignal
    from ....core.recipe.stages import Stage


def merge(
    recipe: RecipeArgument,
    destination: Annotated[
        str, typer.Argument(metavar="OUT", help="Directory or URI of the merged checkpoint.", show_default=False)
    ],
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    max_memory: MaxMemoryOption = None,
    workers: WorkersOption = None,
    runner: RunnerOption = None,
    runner_address: Annotated[
        str | None,
        typer.Option(
            "--runner-address",
            metavar="URL",
            help="Dask scheduler or Ray head of a running cluster. Default: start a local cluster.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an existing checkpoint in OUT and, with --push, files edited on the Hub."
        ),
    ] = False,
    allow_nonfinite: AllowNonfiniteOption = False,
    allow_mixed: AllowMixedOption = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help=f"Do not write {REPORT_NAME}, the page on the merge.")
    ] = False,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", min=0, metavar="SECONDS", help="Stop after this time; the same command resumes."),
    ] = None,
    no_prefect: NoPrefectOption = False,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="OWNER/NAME",
            help="Push the result to this repository of the Hugging Face Hub; access is checked first.",
        ),
    ] = None,
    public: PublicOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the log of Prefect as well.")] = False,
) -> None:
    """Merge the experts of RECIPE into OUT. If the run is stopped, the same command resumes it.

    A recipe of several documents is merged document by document; intermediate results are in OUT.stages.
    """
    set_status("reading the recipe and the headers of the models")
    import os

    from ....core.coordination.paused_collector import paused_collector

    with paused_collector():
        from ....core.coordination.stop import StopSignal
        from ....core.recipe.stages import allow_mixed_architectures
        from ....core.steps.open_run import prepare_run
        from ....core.steps.plan_stages import unfinished_stages
        from ....core.steps.read_recipe import read_stages

    stop = StopSignal()
    stop_on_signals(stop)  # importing and starting Prefect takes seconds
    if time_limit is not None:
        stop.deadline = time.monotonic() + time_limit
    if verbose:
        os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"
    check_addresses(OUT=destination, store=store)
    budget = parse_size(max_memory)
    if public and push is None:
        raise RecipeError("--public says how --push creates a repository; pass --push OWNER/NAME too")

    @cache
    def check_push() -> None:
        """Check access to the Hub once, after the first plan and before anything is computed."""
        if push is not None:
            from ....core.steps.hub.push_checkpoint import prepare_push

            prepare_push(push, options, public=public, overwrite=overwrite)

    def merge_stage(stage: Stage) -> MergeResult:
        # Before Prefect is imported and its server awaited: errors come first.
        prepared = prepare_run(
            stage.recipe,
            stage.destination,
            store=store,
            device=device,
            max_memory=budget,
            workers=workers,
            overwrite=overwrite,
            allow_nonfinite=allow_nonfinite,
            report=not no_report,
        )
        stop.check()
        check_push()
        set_status("importing torch" if no_prefect else "starting Prefect")

        from ...reported_merge import reported_merge
        from ..progress import make_listener

        parameters = {
            "recipe": stage.recipe,
            "destination": stage.destination,
            "store": store,
            "device": device,
            "max_memory": budget,
            "workers": workers,
            "runner": runner,
            "runner_address": runner_address,
            "overwrite": overwrite,
            "allow_nonfinite": allow_nonfinite,
            "report": not no_report,
            "time_limit": time_limit,
        }
        listener = make_listener(quiet=quiet or as_json, terminal=sys.stderr.isatty())
        try:
            return reported_merge(
                prepared,
                parameters,
                runner=runner or stage.recipe.runner.kind,
                listeners=(listener,),
                stop=stop,
                on_begin=partial(stop_on_signals, stop),
                use_prefect=not no_prefect,
                own_process=True,
            )
        finally:
            listener.close()

    stages = read_stages(recipe, destination)
    stages = allow_mixed_architectures(stages) if allow_mixed else stages
    options = stages[-1].recipe.storage_options
    pending = unfinished_stages(stages, max_memory=budget, allow_nonfinite=allow_nonfinite, device=device)
    result = [merge_stage(stage) for stage in pending][-1]
    seconds = total_seconds()
    if not as_json and not quiet:
        show(*summary(result, seconds, MODEL_CARD_NAME if no_report else REPORT_NAME))
    pushed = None
    if push is not None:
        pushed = push_and_show(destination, push, options, public=public, overwrite=overwrite, quiet=quiet or as_json)
    if as_json:
        found = result.to_dict() | {"total_seconds": seconds}
        show_json(found | ({} if pushed is None else {"push": asdict(pushed)}), indent=None)


def total_seconds() -> float:
    """Return the seconds since the start of this process, which a user waits for: start, plan, Prefect and merge."""
    return time.monotonic() - process_start()


def summary(result: MergeResult, seconds: float, page: str = REPORT_NAME) -> list[str]:
    """Return the lines to print after a run.

    Parameters
    ----------
    seconds : that the command took until now
    page : name of the file that describes the merge
    """
    lines = [f"warning: {warning}" for warning in result.warnings]
    if result.already_complete:
        return [*lines, f"Already complete: {result.destination} has the result of this recipe"]
    lines += [
        f"Merged {show_count(result.num_experts, 'expert')}, {show_count(result.num_tensors, 'tensor')}, with"
        f" {result.method} in {show_seconds(seconds)}",
        f"  output: {result.destination} ({show_bytes(result.bytes_written)}; report in {page})",
        f"  shards: {result.shards_done} computed, {result.shards_reused} reused; decompositions:"
        f" {result.decompositions_computed} computed, {result.decompositions_reused} reused",
        f"  read: {show_bytes(result.bytes_read)}"
        + (f" and {show_bytes(result.kept_bytes_read)} of kept sums" if result.kept_bytes_read else ""),
    ]
    if result.truncation_error is not None:
        lines.append(f"  adapter: {_describe_truncation(result)}")
    return lines


def _describe_truncation(result: MergeResult) -> str:
    from ....core.cache.result import EXACT_BELOW

    text = "its rank represents the merged deltas exactly"
    if result.truncation_error is not None and result.truncation_error >= EXACT_BELOW:
        share = f"{result.truncation_error:.2%} of the merged delta of {result.truncated_tensor}"
        text = f"largest error of its rank: {share}"
    if result.error is not None and result.error >= EXACT_BELOW:
        text += f"; with the rounding of its factors {result.error:.2%} of {result.error_tensor}"
    return text


def stop_on_signals(stop: StopSignal) -> None:
    """Stop the run after the tensors in progress on the first Ctrl-C or SIGTERM; the second ends the process."""

    def handler(number: int, _: FrameType | None) -> None:
        stop.stop(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        show_error("stopping; finished shards are kept (interrupt again to stop at once)")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if stop.is_set else handler)
