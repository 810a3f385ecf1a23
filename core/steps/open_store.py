"""The store of a run, opened the same way by every worker, after one look at what its server can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..planning.plan import Plan, RunSettings
from ..storage.store import Store


def open_store(store_uri: str, storage_options: Mapping[str, Any] | None, settings: RunSettings) -> Store:
    """The store as `probe_store` found it."""
    return Store(store_uri, storage_options, conditional_writes=settings.conditional_writes)


def probe_store(plan: Plan, store_uri: str, storage_options: Mapping[str, Any] | None) -> Plan:
    """The plan with settings that suit the store; three small requests, before anything is computed.

    A local disk creates files exclusively, which needs no proof.

    Raises
    ------
    StoreError : the store cannot be written
    """
    store = Store(store_uri, storage_options)
    if store.is_local or store.probe_conditional_writes():
        return plan
    return replace(plan, settings=replace(plan.settings, conditional_writes=False))


def store_warnings(settings: RunSettings) -> tuple[str, ...]:
    """What the user should know of the store; facts of this run, not of the result."""
    if settings.conditional_writes:
        return ()
    return (
        "the store's server ignores If-None-Match: two runs at the same time may both compute a shard (with the same"
        " result); use one run at a time, or a server with conditional writes",
    )
