"""Check that the servers of remote stores answer, before a run relies on the patient retries of `Store`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from ..errors import StoreError
from ..formats.redaction import redact
from .addresses import absolute_uri, is_local, protocol_of, select_options
from .first_contact import FirstContact
from .retries import RetryPolicy, call_with_retries, http_status, is_transient
from .store import Store

#: A server that does not answer these attempts has a wrong address, or no network leads to it.
FIRST_CONTACT = RetryPolicy(attempts=3, first_wait_seconds=0.2, longest_wait_seconds=1.0, total_seconds=8.0)

_PROBED_KEY = "eigenmerge-reachable"


def check_reachable(uris: Iterable[str], storage_options: Mapping[str, object] | None = None) -> None:
    """Send one request to each server that the addresses name. Any answer will do, also a refusal.

    Later requests are repeated for up to two minutes, because a run should survive an outage. At the beginning an
    address without a server is more probable than an outage. A server that takes longer than two seconds is named on
    the log of `first_contact`, for commands to show what they wait for.

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
