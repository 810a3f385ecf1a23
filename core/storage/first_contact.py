"""Ask a server in a thread, tell what is being waited for, and give up after seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import StoreError
from ..escaping import printable

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 20.0

_SECONDS_TO_NOTICE = 2.0

Result = TypeVar("Result")


class FirstContact(Generic[Result]):
    """A request in a thread of its own: a server that accepts a connection and is silent must not hold the caller.

    Parameters
    ----------
    server : what is asked, for messages
    request : called once; raises an EigenmergeError if it fails
    """

    def __init__(self, server: str, request: Callable[[], Result]) -> None:
        self._server = server
        self._request = request
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._ask, name="reach", daemon=True)
        self._thread.start()

    def finish(self, longest_seconds: float | None = None) -> Result:
        """Wait for the answer and return it; after two seconds the log says what is being waited for.

        Raises
        ------
        StoreError : no answer within `longest_seconds`, by default LONGEST_WAIT_SECONDS
        """
        longest = LONGEST_WAIT_SECONDS if longest_seconds is None else longest_seconds
        self._thread.join(_SECONDS_TO_NOTICE)
        if self._thread.is_alive():
            logger.warning("waiting for an answer from %s", printable(self._server))
            self._thread.join(longest - _SECONDS_TO_NOTICE)
        if self._thread.is_alive():
            raise StoreError(f"{self._server}: no answer within {longest:.0f} s; check the address and the network")
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _ask(self) -> None:
        try:
            self._results.append(self._request())
        except BaseException as error:
            self._error = error
