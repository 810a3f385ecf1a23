"""Stopping a run cleanly: a shard in hand is finished or dropped whole, never half-written."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from ..errors import InterruptedRunError


@dataclass(slots=True)
class StopSignal:
    """Set by a signal handler or by the run's time limit; looked at between two tensors.

    deadline : seconds on `time.monotonic`'s clock, or None
    """

    deadline: float | None = None
    reason: str = ""
    _event: threading.Event = field(default_factory=threading.Event, repr=False)

    def stop(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._event.set()

    @property
    def is_set(self) -> bool:
        if not self._event.is_set() and self.deadline is not None and time.monotonic() > self.deadline:
            self.stop("its time limit")
        return self._event.is_set()

    def check(self) -> None:
        """Raises InterruptedRunError once the run is to stop."""
        if self.is_set:
            raise self.error()

    def error(self) -> InterruptedRunError:
        """What a stopped run ends with."""
        return InterruptedRunError(
            f"stopped by {self.reason}; finished shards are kept: run the same command again to resume"
        )

    def __reduce__(self) -> tuple[type[StopSignal], tuple[None]]:
        # A worker in another process has its own signal: its scheduler cancels it.
        return (StopSignal, (None,))
