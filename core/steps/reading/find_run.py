"""Find a run of a store by the beginning of its key, and the checkpoint that it wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.inventory import take_inventory
from ...errors import CheckpointError, RecipeError
from ...output.read_manifest import Manifest, read_manifest
from ...storage.reachable import check_reachable
from ...storage.store import Store

_RUN_KEY = re.compile(r"[0-9a-f]{4,64}")


def is_run_key(name: str) -> bool:
    """Return whether a name is the beginning of a run's key, and not a path."""
    return _RUN_KEY.fullmatch(name) is not None and not Path(name).exists()


def destination_of_run(start: str, store: Store, storage_options: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return where a run wrote its result, and its whole key.

    Parameters
    ----------
    start : of the key
    storage_options : of the place of the result

    Raises
    ------
    RecipeError : no run of the store, or several
    CheckpointError : the record of the run has no destination
    StoreError : the server of the destination does not answer
    """
    found = [run for run in take_inventory(store).runs if run.key.startswith(start)]
    if len(found) != 1:
        problem = "no run" if not found else f"{len(found)} runs"
        raise RecipeError(
            f"{start!r}: the store {store.display('')} has {problem} with this beginning of the key, and there is no"
            " such model; `eigenmerge cache ls` lists the runs"
        )
    destination = found[0].facts.get("destination")
    if not isinstance(destination, str):
        raise CheckpointError(f"run {found[0].key[:12]}: its record in {store.display('')} has no destination")
    check_reachable([destination], storage_options)
    return destination, found[0].key


def read_merge(name: str, store: Store, storage_options: Mapping[str, Any] | None) -> tuple[Manifest, str]:
    """Return the manifest of a checkpoint, or of the result of a run, and its address.

    Parameters
    ----------
    name : address of a checkpoint, or the key of a run, or its beginning

    Raises
    ------
    CheckpointError : no finished merge of Eigenmerge, or the result of the run is no longer where it was written
    StoreError : the server of its place does not answer
    """
    if not is_run_key(name):
        return read_manifest(Store(name, storage_options)), name
    place, key = destination_of_run(name, store, storage_options)
    manifest = read_manifest(Store(place, storage_options))
    if manifest.run_key != key:
        raise CheckpointError(f"run {key[:12]}: its result was written to {place}, which has another merge now")
    return manifest, place
