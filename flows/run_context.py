"""How the process that starts a flow watches it: callbacks and the stop signal, which are no parameters of a flow run.

A flow's parameters are recorded by Prefect and must be plain data. The command line sets a RunContext around the call;
a run that was started by a worker has the silent default.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..core.cache.reports import ShardReport
from ..core.cache.result import MergeResult
from ..core.coordination.stop import StopSignal
from ..core.planning.plan import Plan


class Listener:
    """Hears what a run does. Override what is of interest; calls may come from worker threads."""

    def planned(self, plan: Plan, workers: int) -> None:
        """The plan is made and fits; nothing is read yet."""

    def tensor_done(self, name: str, bytes_read: int) -> None:
        """One output tensor is in its part (runner "threads" only)."""

    def shard_done(self, report: ShardReport) -> None:
        """One shard's part is in the store, made now or found."""

    def assembling(self, plan: Plan) -> None:
        """All parts are there."""

    def finished(self, result: MergeResult) -> None:
        """The checkpoint is committed."""

    def close(self) -> None:
        """The run is over, well or badly."""


class Several(Listener):
    """Tells each of several listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def planned(self, plan: Plan, workers: int) -> None:
        for listener in self._listeners:
            listener.planned(plan, workers)

    def tensor_done(self, name: str, bytes_read: int) -> None:
        for listener in self._listeners:
            listener.tensor_done(name, bytes_read)

    def shard_done(self, report: ShardReport) -> None:
        for listener in self._listeners:
            listener.shard_done(report)

    def assembling(self, plan: Plan) -> None:
        for listener in self._listeners:
            listener.assembling(plan)

    def finished(self, result: MergeResult) -> None:
        for listener in self._listeners:
            listener.finished(result)

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


@dataclass(slots=True)
class RunContext:
    """
    on_prefect_page : write artifacts; not worth it on an embedded server, which nobody looks at
    begun : called when the flow begins, in its thread. Prefect has then put its own handler of SIGTERM, which ends the
        run wherever it stands, in place of the caller's, who may put it back
    """

    listener: Listener = field(default_factory=Listener)
    stop: StopSignal = field(default_factory=StopSignal)
    on_prefect_page: bool = True
    begun: Callable[[], None] | None = None


RUN_CONTEXT: ContextVar[RunContext | None] = ContextVar("eigenmerge_run_context", default=None)


def current_run() -> RunContext:
    """The context of the caller, or a silent one."""
    return RUN_CONTEXT.get() or RunContext()
