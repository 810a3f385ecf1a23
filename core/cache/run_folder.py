"""Names of the objects in the folder of one run."""

from __future__ import annotations

from ..formats.object_names import check_key
from ..formats.store_folders import RUNS

RUN_NAME = "run.json"
OBJECTS_NAME = "objects.json"
TABLE_NAME = "spectra.arrow"


def run_object_key(run_key: str, name: str) -> str:
    """Return the key of one of these objects; StoreError where `run_key` is not a safe name."""
    return check_key(f"{RUNS}{run_key}/{name}")
