"""`eigenmerge_manifest.json`: what was merged from what, how, and the checksums to verify it by."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ..cache.reports import ShardReport, TensorReport
from ..planning.outputs.matrices import is_fused_qkv
from ..planning.plan import ModelSummary, Plan, TensorPlan
from ..planning.shards import output_entries

FORMAT_VERSION = 1


def build_manifest(plan: Plan, reports: Sequence[ShardReport], file_hashes: Mapping[str, str | None]) -> bytes:
    """The manifest as JSON. It holds no times and no places of the store: the same merge gives the same bytes.

    Parameters
    ----------
    reports : one per shard, in the order of the plan
    file_hashes : output file name to sha256; None where the store copied the file on its own side, and the checksums of
        its tensors are all there is
    """
    by_index = {report.index: report for report in reports}
    manifest = {
        "format": FORMAT_VERSION,
        "eigenmerge": version("eigenmerge"),
        "versions": {name: version(name) for name in ("torch", "safetensors", "pyarrow")}
        | {"python": platform.python_version()},
        "run_key": plan.run_key,
        "recipe": dict(plan.recipe),
        "arithmetic": plan.settings.arithmetic,
        "base": _model(plan.base) if plan.base else None,
        "experts": [_model(expert) for expert in plan.experts],
        "warnings": list(plan.warnings),
        "files": [
            {
                "name": file.name,
                "num_bytes": file.num_bytes,
                "sha256": file_hashes.get(file.name),
                "parts": [
                    {"sha256": by_index[index].sha256, "num_bytes": by_index[index].num_bytes} for index in file.shards
                ],
            }
            for file in plan.files
        ],
        "side_files": {
            name: digest for name, digest in sorted(file_hashes.items()) if name not in {f.name for f in plan.files}
        },
        "tensors": _tensors(plan, by_index),
    }
    return (json.dumps(manifest, indent=1, sort_keys=False) + "\n").encode()


def _model(model: ModelSummary) -> dict[str, Any]:
    return {"name": model.name, "kind": model.kind, "fingerprint": model.fingerprint, "num_tensors": model.num_tensors}


def _tensors(plan: Plan, reports: Mapping[int, ShardReport]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for shard in plan.shards:
        for planned, done in zip(shard.tensors, reports[shard.index].tensors, strict=True):
            row: dict[str, Any] = {
                "name": planned.name,
                "shape": list(planned.shape),
                "dtype": planned.out_dtype,
                "action": done.action,
                "reason": planned.reason,
                "sha256": done.sha256,
            }
            if planned.method is not None:
                row |= {"method": planned.method, "parameters": dict(planned.parameters)}
                row |= {"method_package": planned.method_package} if planned.method_package is not None else {}
                row |= {"weights": [expert.parameters.get("weight", 1.0) for expert in planned.experts]}
            if done.rank is not None:
                row |= {"rank": done.rank, "energy": done.energy, "spectrum": done.spectrum_key}
            row |= _matrices(planned) | _as_stored(planned, done)
            if done.notes:
                row["notes"] = list(done.notes)
            rows.append(row)
    return rows


def _matrices(planned: TensorPlan) -> dict[str, Any]:
    """As which matrices a spectral method saw the tensor, where that is not said by its shape."""
    if planned.spectrum_key is None and not planned.views:
        return {}
    facts: dict[str, Any] = {}
    if is_fused_qkv(planned.name):
        facts["qkv"] = "split" if planned.views else "stored"
    if planned.matrix_shape is not None:
        facts["matrix_shape"] = list(planned.matrix_shape)
    if planned.views:
        facts["num_matrices"] = len(planned.views)
    return facts


def _as_stored(planned: TensorPlan, done: TensorReport) -> dict[str, Any]:
    """Under which names an adapter holds it, and how exactly."""
    if planned.adapter is None:
        return {}
    facts: dict[str, Any] = {"stored_as": [entry.name for entry in output_entries(planned)]}
    if done.truncation_error is not None:
        facts |= {"stored_rank": planned.adapter.rank, "truncation_error": done.truncation_error}
    return facts
