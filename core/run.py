"""What every step of one run needs: the plan, the store, and access to the models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from .planning.plan import LayerShard, Plan, RunSettings
from .storage.store import Store


@dataclass(frozen=True, slots=True)
class Run:
    """One merge: what is computed, where results are kept, and how the models are read.

    store : keeps spectra, parts and records
    storage_options : for fsspec, to read the models; flat or one mapping per protocol
    """

    plan: Plan
    store: Store
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    def jobs(self, shards: Iterable[LayerShard] | None = None) -> list[ShardJob]:
        """Return one job per shard, in the order given; of all shards of the plan by default."""
        chosen = self.plan.shards if shards is None else shards
        return [ShardJob(shard, self.plan.settings, self.store, self.storage_options) for shard in chosen]


@final
class ShardJob:
    """One shard with everything that a worker needs for it. Picklable.

    Not a dataclass: Prefect visits every field of dataclasses that are parameters of a task, and a shard may hold
    hundreds of tensors.
    """

    __slots__ = ("settings", "shard", "storage_options", "store")

    def __init__(
        self, shard: LayerShard, settings: RunSettings, store: Store, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.shard = shard
        self.settings = settings
        self.store = store
        self.storage_options = storage_options

    def __repr__(self) -> str:
        return f"ShardJob({self.label!r}, {self.store!r})"

    @property
    def label(self) -> str:
        """The shard's number and the names of its first and last tensor."""
        return f"{self.shard.index:05d} {self.shard.name}"
