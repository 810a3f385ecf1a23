"""What the process that starts a flow adds to it: listeners and the stop signal, which are no parameters of a flow.

Prefect records the parameters of a flow run, so they must be plain data. The command line sets a RunContext around the
call; a run that a Prefect worker starts has the default.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..core.cache.result import MergeResult
from ..core.coordination.stop import StopSignal
from ..core.steps.head_start import HeadStart
from ..core.steps.listener import Listener
from ..core.steps.open_run import PreparedRun
from .server_health import ServerHealth


def _nothing() -> None:
    return None


@dataclass(slots=True)
class Outcome:
    """How the body of a flow ended, whatever Prefect makes of it afterwards. Both are None while it has not ended."""

    result: MergeResult | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class RunContext:
    """Listeners and the stop signal of one run.

    prepared : the run, where the caller has already planned it
    early : shards of `prepared` that are computed already
    outcome : set by the flow
    server : whether the Prefect server answers
    on_prefect_page : write artifacts to the Prefect server; off for an embedded server, which no one opens
    on_begin : called at the beginning of the flow, in its thread. By then Prefect has replaced the caller's handler of
        SIGTERM by its own, which ends the run at any point; the caller may restore the handler here
    """

    listeners: tuple[Listener, ...] = ()
    stop: StopSignal = field(default_factory=StopSignal)
    prepared: PreparedRun | None = None
    early: HeadStart | None = None
    outcome: Outcome = field(default_factory=Outcome)
    server: ServerHealth = field(default_factory=ServerHealth)
    on_prefect_page: bool = True
    on_begin: Callable[[], None] = _nothing


RUN_CONTEXT: ContextVar[RunContext | None] = ContextVar("eigenmerge_run_context", default=None)


def current_context() -> RunContext:
    """Return the context that the caller set, or the default."""
    return RUN_CONTEXT.get() or RunContext()
