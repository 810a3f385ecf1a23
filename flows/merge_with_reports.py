"""Run a prepared merge as a Prefect flow, and finish it without Prefect where Prefect's server does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from ..core.cache.result import MergeResult
from ..core.choices import RunnerName
from ..core.errors import EigenmergeError
from ..core.steps.merge_run import run_in_threads
from ..core.steps.open_run import PreparedRun
from .merge import merge
from .run_context import RUN_CONTEXT, Outcome, RunContext
from .server_health import short_patience


def merge_with_reports(
    prepared: PreparedRun, context: RunContext, parameters: Mapping[str, Any], runner: RunnerName
) -> MergeResult:
    """Run the flow "merge". A run that can be finished is finished, whatever happens to the Prefect server.

    Parameters
    ----------
    context : of the run; `prepared` and `outcome` are set here
    parameters : of the flow, which Prefect records
    runner : where the shards are computed, by the parameters or else the recipe

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    context = replace(context, prepared=prepared, outcome=Outcome())
    token = RUN_CONTEXT.set(context)
    try:
        with short_patience():
            result = cast(MergeResult, merge(**parameters))
    except EigenmergeError:
        raise
    except Exception as error:
        if context.outcome.error is not None:
            raise context.outcome.error from None
        context.server.failed(error)
        if context.outcome.result is None:  # the flow never began
            result = run_in_threads(
                prepared, runner=runner, stop=context.stop, listeners=context.listeners, early=context.early
            )
        else:
            result = context.outcome.result
    finally:
        RUN_CONTEXT.reset(token)
    return _warn(result, context)


def _warn(result: MergeResult, context: RunContext) -> MergeResult:
    """Return the result with a warning if a report was not sent."""
    failure = context.server.failure
    if not failure:
        return result
    warning = (
        "Prefect's server did not answer, so its page of this run is incomplete; the result does not depend on it"
        f" ({failure[:200]})"
    )
    return replace(result, warnings=(*result.warnings, warning))
