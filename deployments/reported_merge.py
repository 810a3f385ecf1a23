"""Run a prepared merge: with the user's Prefect server, else with an embedded one, else without Prefect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.choices import RunnerName
from ..core.coordination.paused_collector import paused_collector
from ..core.coordination.stop import StopSignal
from ..core.errors import EigenmergeError, one_line
from ..core.steps.listener import Listener
from ..core.steps.open_run import PreparedRun
from .embedded_server import EmbeddedServer, check_listens, configured_api, prefect_api, start_embedded_server
from .prefect_settings import keep_terminal_clean, quiet_prefect

if TYPE_CHECKING:
    from ..core.cache.result import MergeResult
    from ..core.steps.head_start import HeadStart

_PATIENCE_SECONDS = 10.0

ResultT = TypeVar("ResultT")


def _nothing() -> None:
    return None


def reported_merge(
    prepared: PreparedRun,
    parameters: Mapping[str, Any],
    *,
    runner: RunnerName,
    listeners: Sequence[Listener] = (),
    stop: StopSignal | None = None,
    on_begin: Callable[[], None] = _nothing,
    use_prefect: bool = True,
    server: EmbeddedServer | None = None,
    quiet: bool = True,
    own_process: bool = False,
) -> MergeResult:
    """Compute a run that is planned, and report it to a Prefect server if there is one.

    A server that the user has configured must answer. An embedded server is a convenience: where it cannot start, for
    example without a writable home, the run is computed without Prefect and its result has a warning. While it starts,
    shards are computed already; their tasks return the results.

    Parameters
    ----------
    parameters : of the flow "merge"
    runner : where the shards are computed, by the parameters or else the recipe
    on_begin : called at the beginning of the flow (`flows.run_context.RunContext`)
    server : an embedded server to use, which is not closed; None starts one where none is configured
    quiet : keep Prefect's log from the terminal, and its telemetry off
    own_process : this process does nothing else (`paused_collector`, freeze)

    Raises
    ------
    DeployError : the server that the user configured does not answer
    EigenmergeError : for every error that a user can correct
    """
    stop = stop or StopSignal()

    with contextlib.ExitStack() as stack:
        early: HeadStart | None = None

        def without_prefect() -> MergeResult:
            with paused_collector(freeze=own_process):
                from ..core.steps.merge_run import run_in_threads

            return run_in_threads(prepared, runner=runner, stop=stop, listeners=listeners, early=early)

        def import_flow() -> Callable[[bool], MergeResult]:
            nonlocal early
            merge = _import_flow()
            if runner == "threads" and (server is not None or not configured_api()):
                from ..core.steps.head_start import head_start

                early = stack.enter_context(head_start(prepared, stop))  # an embedded server is not up yet
            return lambda on_page: merge(prepared, parameters, runner, listeners, stop, on_begin, on_page, early)

        result, warning = with_prefect_server(
            import_flow,
            without_prefect,
            use_prefect=use_prefect,
            server=server,
            quiet=quiet,
            own_process=own_process,
        )
    return replace(result, warnings=(*result.warnings, warning)) if warning else result


def with_prefect_server(
    import_flow: Callable[[], Callable[[bool], ResultT]],
    without_prefect: Callable[[], ResultT],
    *,
    use_prefect: bool = True,
    server: EmbeddedServer | None = None,
    quiet: bool = True,
    own_process: bool = False,
) -> tuple[ResultT, str]:
    """Run a flow that reports to a Prefect server, else its work without Prefect.

    Parameters
    ----------
    import_flow : returns what runs the flow; it is called with whether the user configured the server, and so sees its
        pages
    without_prefect : does the same work
    use_prefect, server, quiet, own_process : as for `reported_merge`

    Returns
    -------
    the result, and a warning where Prefect could not be started; "" otherwise

    Raises
    ------
    DeployError : the server that the user configured does not answer
    EigenmergeError : for every error that a user can correct
    """
    unavailable = ""
    if use_prefect:
        with contextlib.ExitStack() as stack:
            if quiet:
                quiet_prefect()
            try:
                api_url = "" if server is not None else configured_api()
                if api_url:
                    check_listens(api_url)
                elif server is None:
                    server = stack.enter_context(start_embedded_server())
                with paused_collector(freeze=own_process):
                    if quiet:
                        keep_terminal_clean()
                    run = import_flow()
                stack.enter_context(prefect_api(server))
            except EigenmergeError:
                raise
            except Exception as error:  # Prefect cannot be imported, or its server cannot start
                unavailable = one_line(error) or type(error).__name__
            else:
                return run(bool(api_url)), ""
    result = without_prefect()
    if not unavailable:
        return result, ""
    return result, f"computed without Prefect, which could not be started ({unavailable[:300]}); --no-prefect skips it"


def _import_flow() -> Callable[..., MergeResult]:
    from prefect.exceptions import TerminationSignal

    from ..flows.merge_with_reports import merge_with_reports
    from ..flows.run_context import RunContext
    from ..flows.server_health import end_senders

    def run(  # the parameters of `reported_merge`
        prepared: PreparedRun,
        parameters: Mapping[str, Any],
        runner: RunnerName,
        listeners: Sequence[Listener],
        stop: StopSignal,
        on_begin: Callable[[], None],
        on_prefect_page: bool,
        early: HeadStart | None,
    ) -> MergeResult:
        context = RunContext(tuple(listeners), stop, early=early, on_prefect_page=on_prefect_page, on_begin=on_begin)
        try:
            stop.check()
            return merge_with_reports(prepared, context, parameters, runner)
        except TerminationSignal:  # SIGTERM before the flow began, while the handler of Prefect was set
            stop.stop("SIGTERM")
            raise stop.error() from None
        finally:
            # An embedded server ends now, and nobody reads its events.
            end_senders(_PATIENCE_SECONDS if on_prefect_page and not context.server.failure else 0)

    return run
