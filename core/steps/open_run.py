"""Open a run: check that its store can be written, and whether the store's server creates objects exclusively."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..planning.plan import Plan
from ..run import Run
from ..storage.store import Store


def open_run(plan: Plan, store: Store, storage_options: Mapping[str, Any] | None) -> Run:
    """Return the run of a plan on a store. Three small requests where the store is remote, none on a local disk.

    Parameters
    ----------
    storage_options : for fsspec, to read the models

    Raises
    ------
    StoreError : the store cannot be written
    """
    return Run(plan, store.with_probed_writes(), storage_options)


def store_warnings(run: Run) -> tuple[str, ...]:
    """Return what the user should know about the store of this run; it does not affect the result."""
    if run.store.conditional_writes:
        return ()
    return (
        "the store's server ignores If-None-Match: two runs at the same time may both compute a shard (with the same"
        " result); use one run at a time, or a server with conditional writes",
    )
