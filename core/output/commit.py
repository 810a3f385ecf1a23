"""The commit of a checkpoint: the index, written after everything else. A single-file checkpoint has none."""

from __future__ import annotations

import json

from ..formats.file_names import INDEX_NAME
from ..planning.plan import Plan
from ..storage.store import Store
from .file_hashes import file_entries


def build_index(plan: Plan) -> bytes | None:
    """Return the index that names the file of every tensor; None where the checkpoint is one file."""
    if len(plan.files) == 1:
        return None
    weight_map = {entry.name: file.name for file in plan.files for entry in file_entries(plan, file)}
    total = sum(shard.bytes_written for shard in plan.shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def write_index(target: Store, plan: Plan) -> None:
    """Write the index; nothing where the checkpoint is one file.

    Readers load a checkpoint of several files through its index, so they cannot load one that is incomplete. Removing
    the marker of an incomplete checkpoint follows (`coordination.claims.Claim.release`).
    """
    index = build_index(plan)
    if index is not None:
        target.write(INDEX_NAME, index)
