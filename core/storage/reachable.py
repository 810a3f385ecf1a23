"""Check that the servers of remote stores answer, before a run relies on the patient retries of `Store`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, cast

from ..errors import StoreError
from ..escaping import printable
from ..formats.redaction import redact
from .addresses import absolute_uri, is_local, protocol_of, select_options
from .retries import Result, RetryPolicy, call_with_retries, http_status, is_transient
from .store import Store

logger = logging.getLogger(__name__)

#: A server that does not answer these attempts has a wrong address, or no network leads to it.
FIRST_CONTACT = RetryPolicy(attempts=3, first_wait_seconds=0.2, longest_wait_seconds=1.0, total_seconds=8.0)
LONGEST_WAIT_SECONDS = 20.0

_PROBED_KEY = "eigenmerge-reachable"
_SECONDS_TO_NOTICE = 2.0


def check_reachable(uris: Iterable[str], storage_options: Mapping[str, object] | None = None) -> None:
    """Send one request to each server that the addresses name. Any answer will do, also a refusal.

    Later requests are repeated for up to two minutes, because a run should survive an outage. At the beginning an
    address without a server is more probable than an outage. A server that takes longer than two seconds is named on
    the log of this module, for commands to show what they wait for.

    Cost: one small request per bucket, all at the same time; none for local paths and models on the Hub.

    Raises
    ------
    StoreError : no answer; names the address
    """
    stores: dict[str, Store] = {}
    for uri in uris:
        if is_local(uri) or protocol_of(uri) in {"memory", "hf"}:
            continue
        address = absolute_uri(uri)
        root = f"{protocol_of(address)}://{address.partition('://')[2].partition('/')[0]}"
        stores.setdefault(root, Store(root, storage_options, retry=FIRST_CONTACT))
    contacts = [_contact(store, storage_options) for store in stores.values()]
    for contact in contacts:
        contact.finish()


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


def _contact(store: Store, storage_options: Mapping[str, object] | None) -> FirstContact[None]:
    options = select_options(store.root_uri, storage_options)
    endpoint = options.get("endpoint_url") or _mapping(options.get("client_kwargs")).get("endpoint_url")
    server = store.display("") + (f" at {redact(str(endpoint))}" if endpoint else "")

    def request() -> None:
        try:
            store.backend.info(_PROBED_KEY)
        except Exception as error:
            if isinstance(error, StoreError) or (is_transient(error) and http_status(error) is None):
                raise
            # Otherwise the server answered: a refusal of this request says nothing about those that the run needs.

    return FirstContact(server, lambda: call_with_retries(request, FIRST_CONTACT, f"connecting to {server}", ()))


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}
