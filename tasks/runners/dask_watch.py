"""Notice that a Dask cluster computes nothing any more: it has no workers, or its scheduler does not answer."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from distributed import Client

from ...core.errors import WorkerError

#: Workers that a cluster starts in place of dead ones have this time, as has a scheduler that is busy.
PATIENCE_SECONDS = 45.0
_ASK_EVERY_SECONDS = 3.0
_LONGEST_PAUSE_SECONDS = 10.0  # between two checks; a longer pause of this process is no silence of the cluster


class DaskWatch:
    """Asks a running scheduler for the number of its workers, without waiting for the answer.

    Dask itself notices a scheduler whose process or machine has ended. It waits without a limit for workers, and for a
    scheduler that is stopped or too busy.
    """

    def __init__(self, client: Client, address: str, patience: float = PATIENCE_SECONDS) -> None:
        self._client, self._address, self._patience = client, address, patience
        self._question: Future[Any] | None = None
        self._asked = self._checked = self._last_answer = self._last_worker = time.monotonic()

    def check(self) -> None:
        """Raise if there has been no answer, or no worker, for `patience` seconds. Call it every second or more often.

        Raises
        ------
        WorkerError : names the scheduler, and what to do
        """
        now = time.monotonic()
        if now - self._checked > _LONGEST_PAUSE_SECONDS:  # this process was stopped or busy, and asked nothing
            self._last_answer += now - self._checked
            self._last_worker += now - self._checked
        self._checked = now
        if self._question is not None and self._question.done():
            if not self._question.cancelled() and self._question.exception() is None:
                self._last_answer = now
                if self._question.result()["n_workers"]:
                    self._last_worker = now
            self._question = None
        if self._question is None and now - self._asked >= _ASK_EVERY_SECONDS:
            self._asked = now
            client: Any = self._client
            question = client.scheduler.identity(n_workers=0)
            self._question = asyncio.run_coroutine_threadsafe(question, client.loop.asyncio_loop)
        if now - self._last_answer > self._patience:
            self._fail("has not answered", "start it again")
        if now - self._last_worker > self._patience:
            self._fail("has had no workers", "start workers (`dask worker`)")

    def _fail(self, what: str, advice: str) -> None:
        if self._question is not None:
            self._question.cancel()
        raise WorkerError(
            f"the Dask scheduler at {self._address} {what} for {self._patience:.0f} s; finished shards are kept:"
            f" {advice} and run the same command again to resume"
        )
