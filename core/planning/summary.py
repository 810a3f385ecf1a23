"""Summary of a plan for `eigenmerge plan`: what is read, computed, written and kept, as data for tables and JSON."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from .plan import ModelSummary, Plan, TensorPlan, spectrum_keys


def summarize_plan(plan: Plan) -> dict[str, Any]:
    """Return totals, models, treatments, shards and files as JSON data, sizes in bytes."""
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors]
    return {
        "run_key": plan.run_key,
        "method": plan.recipe.get("merge_method"),
        "base": _model_row(plan.base) if plan.base is not None else None,
        "experts": [_model_row(expert) for expert in plan.experts],
        "num_experts": len(plan.experts),
        "num_tensors": len(tensors),
        "num_shards": len(plan.shards),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "spectrum_bytes": plan.spectrum_bytes,
        "sums_bytes": plan.sums_bytes,
        "flops": plan.flops,
        "peak_bytes": plan.peak_bytes,
        "largest_tensor": largest_tensor(plan),
        "treatments": treatments(tensors),
        "kinds": kind_rows(tensors),
        "shards": shard_rows(plan),
        "files": [
            {"name": file.name, "num_bytes": file.num_bytes, "num_shards": len(file.shards)} for file in plan.files
        ],
        "side_files": [side.name for side in plan.side_files],
        "warnings": list(plan.warnings),
    }


def largest_tensor(plan: Plan) -> dict[str, Any] | None:
    """Return the tensor with the largest projected memory."""
    tensors = (tensor for shard in plan.shards for tensor in shard.tensors)
    tensor = max(tensors, key=lambda tensor: tensor.peak_bytes, default=None)
    return {"name": tensor.name, "shape": list(tensor.shape), "peak_bytes": tensor.peak_bytes} if tensor else None


def treatments(tensors: list[TensorPlan]) -> list[dict[str, Any]]:
    """Return the number of tensors per action, method and reason, the most frequent first."""
    counts = Counter((tensor.action, tensor.method, tensor.reason) for tensor in tensors)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return [
        {"action": action, "method": method, "reason": reason, "num_tensors": count}
        for (action, method, reason), count in ordered
    ]


_NUMBER_IN_NAME = re.compile(r"(?<![^.])\d+(?![^.])")


def name_pattern(name: str) -> str:
    """Return a name with every number between dots as a star: "model.layers.*.mlp.up_proj.weight"."""
    return _NUMBER_IN_NAME.sub("*", name)


def kind_rows(tensors: list[TensorPlan]) -> list[dict[str, Any]]:
    """Return one row for the tensors of equal name pattern, shape and treatment, in the order of the plan.

    `peak_bytes` is that of the largest of them, the other numbers are sums.
    """
    rows: dict[object, dict[str, Any]] = {}
    for tensor in tensors:
        name = name_pattern(tensor.name)
        key = (name, tensor.shape, tensor.action, tensor.method, tensor.reason)
        row = rows.setdefault(
            key,
            {
                "name": name,
                "shape": list(tensor.shape),
                "action": tensor.action,
                "method": tensor.method,
                "reason": tensor.reason,
                "num_tensors": 0,
                "bytes_read": 0,
                "flops": 0.0,
                "peak_bytes": 0,
            },
        )
        row["num_tensors"] += 1
        row["bytes_read"] += tensor.bytes_read
        row["flops"] += tensor.flops
        row["peak_bytes"] = max(row["peak_bytes"], tensor.peak_bytes)
    return list(rows.values())


def shard_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return one row per shard."""
    file_of = {index: file.name for file in plan.files for index in file.shards}
    return [
        {
            "index": shard.index,
            "name": shard.name,
            "file": file_of[shard.index],
            "num_tensors": len(shard.tensors),
            "bytes_read": shard.bytes_read,
            "bytes_written": shard.bytes_written,
            "spectrum_bytes": sum(tensor.spectrum_bytes for tensor in shard.tensors),
            "sums_bytes": sum(tensor.sums_bytes for tensor in shard.tensors),
            "flops": shard.flops,
            "peak_bytes": shard.peak_bytes,
        }
        for shard in plan.shards
    ]


def tensor_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return one row per output tensor."""
    return [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.out_dtype,
            "action": tensor.action,
            "method": tensor.method,
            "reason": tensor.reason,
            "num_experts": len(tensor.experts),
            "num_matrices": len(tensor.views) or int(tensor.spectrum_key is not None),
            "num_decompositions": len(spectrum_keys(tensor)),
            "bytes_read": tensor.bytes_read,
            "spectrum_bytes": tensor.spectrum_bytes,
            "sums_bytes": tensor.sums_bytes,
            "flops": tensor.flops,
            "peak_bytes": tensor.peak_bytes,
        }
        for shard in plan.shards
        for tensor in shard.tensors
    ]


def arrival_row(model: ModelSummary) -> dict[str, Any]:
    """Return how much of an expert has a place in the output, as JSON data; empty for the base."""
    if model.arrival is None:
        return {}
    arrival = model.arrival
    return {
        "tensors_placed": arrival.num_tensors,
        "share_placed": round(arrival.share, 6),
        "num_left_out": arrival.num_left_out,
        "left_out": list(arrival.left_out),
    }


def _model_row(model: ModelSummary) -> dict[str, Any]:
    return arrival_row(model) | {
        "name": model.name,
        "uri": model.uri,
        "kind": model.kind,
        "num_tensors": model.num_tensors,
        "num_bytes": model.num_bytes,
        "fingerprint": model.fingerprint,
    }
