"""Registry of experts: a prefix in a store with one folder for each expert.

There is no index: a scan lists the folders and fingerprints their weights, so an expert that is added, changed or
removed is found by the next scan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ..errors import EigenmergeError, one_line
from ..storage.checkpoints.list_model import list_model
from ..storage.store import Store

_PARALLEL_EXPERTS = 8
# In a model reference "@" precedes a revision and "+" an adapter; other characters are not valid in every store.
_EXPERT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class RegisteredExpert:
    """One expert. `fingerprint` identifies its weights."""

    name: str
    uri: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class RegistryScan:
    """Content of a registry.

    experts : sorted by name
    skipped : name of each folder that is not a complete expert, to the reason
    """

    uri: str
    experts: tuple[RegisteredExpert, ...]
    skipped: Mapping[str, str]

    def without(self, names: Collection[str]) -> RegistryScan:
        """Return the scan without these experts."""
        kept = tuple(expert for expert in self.experts if expert.name not in names)
        return replace(self, experts=kept)

    def owner_of(self, uri: str) -> str | None:
        """Return the name of the expert to which a file belongs."""
        return next((one.name for one in self.experts if uri.startswith(one.uri.rstrip("/") + "/")), None)

    @property
    def fingerprints(self) -> dict[str, str]:
        return {expert.name: expert.fingerprint for expert in self.experts}


def scan_registry(registry: Store, storage_options: Mapping[str, Any] | None = None) -> RegistryScan:
    """List the experts of a registry from their headers and fingerprints.

    An incomplete expert (no weights yet, an index without its files, a file that is too short) is skipped, because its
    upload may be in progress; the next scan includes it when it is complete.

    Cost: one listing of the registry; for each expert that of `list_model`: a few requests per weight file.

    Parameters
    ----------
    registry : store whose folders are the experts
    storage_options : for fsspec, to list the experts

    Raises
    ------
    StoreError : the registry cannot be listed
    """
    folders = list_folders(registry)
    skipped = {
        name: "its name may contain letters, digits, '.', '_' and '-' only; rename the folder"
        for name in folders
        if not _EXPERT_NAME.fullmatch(name)
    }
    names = [name for name in folders if name not in skipped]

    def list_expert(name: str) -> RegisteredExpert | str:
        uri = registry.uri(name)
        try:
            return RegisteredExpert(name, uri, list_model(uri, storage_options).fingerprint)
        except EigenmergeError as error:
            return str(error)
        except Exception as error:  # one expert must not end the run, whatever its files hold
            return f"cannot be listed ({type(error).__name__}: {one_line(error)[:200]})"

    with ThreadPoolExecutor(_PARALLEL_EXPERTS, thread_name_prefix="registry") as pool:
        listed = dict(zip(names, pool.map(list_expert, names), strict=True))
    skipped |= {name: reason for name, reason in listed.items() if isinstance(reason, str)}
    experts = tuple(expert for expert in listed.values() if isinstance(expert, RegisteredExpert))
    return RegistryScan(registry.root_uri, experts, dict(sorted(skipped.items())))


def list_folders(store: Store) -> list[str]:
    """Return the names of the folders of a registry, sorted, without hidden ones (".x", "_x")."""
    names = {info.key.partition("/")[0] for info in store.list("") if "/" in info.key}
    return sorted(name for name in names if not name.startswith((".", "_")))
