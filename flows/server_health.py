"""Whether the Prefect server of a run answers: after a failed report nothing is sent for a while."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar

from prefect.events.worker import EventsWorker
from prefect.exceptions import CancelledRun
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

P = ParamSpec("P")
T = TypeVar("T")

RETRY_AFTER_SECONDS = 30.0
_REQUEST_SECONDS = 10.0

# Prefect itself and what it uses to reach its server. Storage errors of these libraries are always a StoreError.
_MODULES = frozenset({"prefect", "httpx", "httpcore", "websockets", "anyio"})

# Prefect repeats a request for a minute. That is too long for each of many reports, which a merge does not need.
ONE_ATTEMPT: dict[Any, Any] = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: _REQUEST_SECONDS}


class ServerHealth:
    """Sends reports to the Prefect server of a run, one attempt each; none for a while after one has failed.

    failure : why the last report that failed was not sent; "" if all were sent
    """

    def __init__(self, retry_after: float = RETRY_AFTER_SECONDS) -> None:
        self._retry_after = retry_after
        self._silent_until = 0.0
        self._lock = threading.Lock()
        self.failure = ""

    @property
    def answers(self) -> bool:
        """Whether the next report is sent."""
        return time.monotonic() >= self._silent_until

    def report(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call `action`, which sends a request to the server, and return its result; None if it was not sent."""
        if not self.answers:
            return None
        try:
            with temporary_settings(ONE_ATTEMPT):
                return action(*args, **kwargs)
        except Exception as error:  # whatever it is, the merge does not depend on it
            self.failed(error)
            return None

    def failed(self, error: BaseException) -> None:
        """Record that the server did not answer."""
        with self._lock:
            self.failure = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
            self._silent_until = time.monotonic() + self._retry_after

    def try_again(self) -> None:
        """Send the next report in any case."""
        self._silent_until = 0.0


@contextlib.contextmanager
def short_patience() -> Generator[None]:
    """Let Prefect repeat its own requests for seconds, not for a minute each; a number that the user set is kept."""
    with temporary_settings(set_defaults={PREFECT_CLIENT_MAX_RETRIES: 1}):
        yield


def end_senders(patience_seconds: float) -> None:
    """Let Prefect's background senders of events and log lines finish for a while, then cancel what is left.

    At its end a process waits for these senders without a limit, and they try for minutes to reach a server that has
    ended. Prefect has no public call for this; where its internals change, that wait comes back and nothing else.
    """
    for kind in (EventsWorker, APILogWorker):
        with contextlib.suppress(Exception):
            senders = [(sender._loop, sender._task) for sender in list(kind._instances.values())]
            if patience_seconds > 0:
                kind.drain_all(timeout=patience_seconds)
            for loop, task in senders:
                if loop is not None and task is not None and not task.done():
                    loop.call_soon_threadsafe(task.cancel)


def is_failure_of_prefect(error: BaseException) -> bool:
    """Return whether an error comes from Prefect or from its connection to the server, and not from a merge.

    Errors of a merge are EigenmergeError, or defects with the types of Python and torch. A canceled run is no failure.
    """
    if isinstance(error, CancelledRun):
        return False
    return any(base.__module__.partition(".")[0] in _MODULES for base in type(error).__mro__)
