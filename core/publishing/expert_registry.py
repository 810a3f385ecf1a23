"""The registry of experts: a prefix in a store with one folder per expert. What lies there is what is registered.

No index has to be kept in step with it: a folder appears, changes or goes, and the next scan sees its fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..storage.checkpoints.list_model import list_model
from ..storage.store import Store

_PARALLEL_EXPERTS = 8
# "@" and "+" mean revision and adapter in a model reference; a name of other signs would not survive every store.
_EXPERT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class RegisteredExpert:
    """One expert. `fingerprint` identifies its weights: header, size and etag of each file."""

    name: str
    uri: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class RegistryScan:
    """What a registry holds. `skipped` folders are no complete expert (yet); name to the reason."""

    uri: str
    experts: tuple[RegisteredExpert, ...]  # by name
    skipped: Mapping[str, str]

    @property
    def fingerprints(self) -> dict[str, str]:
        return {expert.name: expert.fingerprint for expert in self.experts}


def scan_registry(registry: Store, storage_options: Mapping[str, Any] | None = None) -> RegistryScan:
    """List the experts below `registry`, without reading weights.

    An expert whose upload is not finished (no weights yet, an index without its files, a file that is too short) is
    skipped with the reason, not an error: the next scan takes it.

    storage_options : for fsspec, to list the experts

    Cost: one list of the registry; one list and one ranged read per weight file of each expert.

    Raises
    ------
    StoreError : the registry cannot be listed
    """
    folders = _folders(registry)
    skipped = {
        name: "its name may hold letters, digits, '.', '_' and '-' only; rename the folder"
        for name in folders
        if not _EXPERT_NAME.fullmatch(name)
    }
    names = [name for name in folders if name not in skipped]

    def read(name: str) -> RegisteredExpert | str:
        place = registry.uri(name)
        try:
            return RegisteredExpert(name, place, list_model(place, storage_options).fingerprint)
        except CheckpointError as error:
            return str(error)

    with ThreadPoolExecutor(_PARALLEL_EXPERTS, thread_name_prefix="registry") as pool:
        found = dict(zip(names, pool.map(read, names), strict=True))
    skipped |= {name: outcome for name, outcome in found.items() if isinstance(outcome, str)}
    experts = tuple(outcome for outcome in found.values() if isinstance(outcome, RegisteredExpert))
    return RegistryScan(registry.root_uri, experts, dict(sorted(skipped.items())))


def _folders(store: Store) -> list[str]:
    names = {info.key.partition("/")[0] for info in store.list("") if "/" in info.key}
    return sorted(name for name in names if not name.startswith((".", "_")))
