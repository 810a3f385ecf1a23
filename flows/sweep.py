"""The flow "sweep": decompose once with one Prefect task per layer shard, then one task per candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.coordination.stop import StopSignal
from ..core.recipe.recipe import Recipe
from ..core.sweep.listener import SweepListener
from ..core.sweep.prepare_sweep import PreparedSweep
from ..core.sweep.run_sweep import SweepOutcome, run_sweep
from .candidates import PrefectCandidates
from .fan_out import PrefectMap
from .recorded_flow import recorded_flow
from .server_health import ServerHealth, short_patience


def _nothing() -> None:
    return None


@dataclass(slots=True)
class SweepContext:
    """What the process that starts a sweep adds to it: functions and listeners are no parameters of a flow.

    on_begin : as in `run_context.RunContext`
    outcome, error : how the body of the flow ended, whatever Prefect makes of it afterwards
    """

    prepared: PreparedSweep
    fresh: bool = False
    scratch: str | None = None
    listeners: tuple[SweepListener, ...] = ()
    stop: StopSignal = field(default_factory=StopSignal)
    on_begin: Callable[[], None] = _nothing
    server: ServerHealth = field(default_factory=ServerHealth)
    outcome: SweepOutcome | None = None
    error: BaseException | None = None


_CONTEXT: ContextVar[SweepContext | None] = ContextVar("eigenmerge_sweep_context", default=None)


@recorded_flow(name="sweep", flow_run_name="sweep {method}", validate_parameters=False)
def sweep(recipe: Recipe | str | Path, method: str, grid: Mapping[str, Any], evaluator: str) -> None:
    """Score the candidates of a prepared sweep. `sweep_with_reports` starts it: the parameters are what Prefect shows.

    Parameters
    ----------
    evaluator : name of what scores the candidates
    """
    context = _CONTEXT.get()
    assert context is not None, "a sweep is started by sweep_with_reports"
    context.on_begin()
    chosen = context.prepared.recipe.runner
    try:
        context.outcome = run_sweep(
            context.prepared,
            fresh=context.fresh,
            scratch=context.scratch,
            stop=context.stop,
            listeners=context.listeners,
            map_shards=PrefectMap(chosen.kind, chosen.address, server=context.server),
            map_candidates=PrefectCandidates(context.server),
        )
    except BaseException as error:
        context.error = error
        raise


def sweep_with_reports(context: SweepContext) -> SweepOutcome:
    """Run the flow "sweep". A sweep that can be finished is finished, whatever happens to the Prefect server.

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    prepared = context.prepared
    token = _CONTEXT.set(context)
    try:
        with short_patience():
            sweep(
                recipe=prepared.recipe,
                method=prepared.recipe.merge_method,
                grid={axis.name: [str(value) for value in axis.ends] for axis in prepared.axes},
                evaluator=prepared.evaluator.name if prepared.evaluator is not None else "without data",
            )
    except Exception as error:
        if context.error is not None:
            raise context.error from None
        if context.outcome is None:  # the flow never began
            context.server.failed(error)
    finally:
        _CONTEXT.reset(token)
    if context.outcome is not None:
        return context.outcome
    return run_sweep(
        prepared, fresh=context.fresh, scratch=context.scratch, stop=context.stop, listeners=context.listeners
    )
