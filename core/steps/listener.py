"""Notification of the progress of a run, for progress bars and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec

from ..cache.reports import ShardReport
from ..cache.result import MergeResult
from ..run import Run

P = ParamSpec("P")


class Listener:
    """Receives the events of a run. Override the methods of interest; workers call them from several threads."""

    def planned(self, run: Run, workers: int) -> None:
        """React to a plan that is valid and fits the budget; no weight has been read."""

    def tensor_done(self, name: str, bytes_read: int) -> None:
        """React to a merged output tensor (runner "threads" only)."""

    def shard_done(self, report: ShardReport) -> None:
        """React to a shard whose part is in the store: computed by this run, or found."""

    def assembling(self, run: Run) -> None:
        """React to the end of all shards; the checkpoint is assembled next."""

    def finished(self, result: MergeResult) -> None:
        """React to the committed checkpoint."""

    def close(self) -> None:
        """React to the end of the run, with or without success."""


def notify(
    listeners: Iterable[Listener], event: Callable[Concatenate[Listener, P], None], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Call the method `event` of every listener, such as `notify(listeners, Listener.shard_done, report)`."""
    for listener in listeners:
        getattr(listener, event.__name__)(*args, **kwargs)
