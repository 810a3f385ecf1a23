"""Stop signal of a run: it ends between two tensors, and a part is written whole or not at all."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from ..errors import InterruptedRunError


@dataclass(slots=True)
class StopSignal:
    """Request to stop, set by a signal handler or by the run's time limit, and checked between two tensors.

    deadline : on the clock of `time.monotonic`, in seconds, or None
    reason : of the first `stop`, for the error message
    parent : stops this signal too
    """

    deadline: float | None = None
    reason: str = ""
    parent: StopSignal | None = field(default=None, repr=False)
    _event: threading.Event = field(default_factory=threading.Event, repr=False)

    def stop(self, reason: str) -> None:
        """Request the run to stop; `reason` completes "stopped by ..."."""
        self.reason = self.reason or reason
        self._event.set()

    @property
    def is_set(self) -> bool:
        if not self._event.is_set() and self.deadline is not None and time.monotonic() > self.deadline:
            self.stop("its time limit")
        if not self._event.is_set() and self.parent is not None and self.parent.is_set:
            self.stop(self.parent.reason)
        return self._event.is_set()

    def child(self) -> StopSignal:
        """Return a signal that this one stops, and that does not stop this one: for a part of a run that may fail."""
        return StopSignal(parent=self)

    def check(self) -> None:
        """Raise InterruptedRunError if the run has to stop."""
        if self.is_set:
            raise self.error()

    def error(self) -> InterruptedRunError:
        """Return the error that a stopped run raises."""
        return InterruptedRunError(
            f"stopped by {self.reason}; finished shards are kept: run the same command again to resume"
        )

    def __reduce__(self) -> tuple[type[StopSignal], tuple[None]]:
        # The scheduler cancels a task in another process, which therefore gets a signal of its own.
        return (StopSignal, (None,))
