"""Build `eigenmerge_manifest.json`: the inputs, the recipe, the treatment of each tensor, and all checksums."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, final

from ..cache.reports import ShardReport, TensorReport
from ..planning.outputs.matrices import is_fused_qkv
from ..planning.plan import ModelSummary, Plan, TensorPlan, decompositions
from ..planning.shards import output_entries
from ..planning.summary import arrival_row
from .measured import measured_row, overlap_of_experts

FORMAT_VERSION = 1


@final
class ManifestWriter:
    """The manifest of one merge. It has no times and no store addresses, so the same merge gives the same bytes.

    The rows of the tensors, nearly all of it, are made and written as JSON once, however often the rest is.

    Parameters
    ----------
    reports : one per shard, in the order of the plan
    """

    def __init__(self, plan: Plan, reports: Sequence[ShardReport]) -> None:
        self._plan = plan
        self._by_index = {report.index: report for report in reports}
        orders: dict[tuple[int, ...], int] = {}
        self._tensors = _tensors(plan, self._by_index, orders)
        self._head = _head(plan, self._by_index, orders)

    def content(self, file_hashes: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the content, as JSON data.

        Parameters
        ----------
        file_hashes : output file name to sha256; None for a file that the store copied on its own side, which only has
            the checksums of its tensors
        """
        return self._without_tensors(file_hashes) | {"tensors": self._tensors}

    def encode(self, file_hashes: Mapping[str, str | None]) -> bytes:
        """Return the content as the bytes of the file."""
        start, empty, end = json.dumps(self._without_tensors(file_hashes) | {"tensors": []}, indent=1).rpartition("[]")
        assert empty and '"' not in end, "the tensors come last"
        return f"{start}{self._tensors_text}{end}\n".encode()

    @cached_property
    def _tensors_text(self) -> str:
        # A string in JSON has no line breaks, so these are those of the indentation, of one level less.
        return json.dumps(self._tensors, indent=1).replace("\n", "\n ")

    def _without_tensors(self, file_hashes: Mapping[str, str | None]) -> dict[str, Any]:
        files = self._plan.files
        names = {file.name for file in files}
        return self._head | {
            "files": [
                {
                    "name": file.name,
                    "num_bytes": file.num_bytes,
                    "sha256": file_hashes.get(file.name),
                    "parts": [
                        {"sha256": self._by_index[index].sha256, "num_bytes": self._by_index[index].num_bytes}
                        for index in file.shards
                    ],
                }
                for file in files
            ],
            "side_files": {name: digest for name, digest in sorted(file_hashes.items()) if name not in names},
        }


def _head(plan: Plan, by_index: Mapping[int, ShardReport], orders: Iterable[tuple[int, ...]]) -> dict[str, Any]:
    """Return what precedes files and tensors."""
    return {
        "format": FORMAT_VERSION,
        "eigenmerge": version("eigenmerge"),
        "versions": {name: version(name) for name in ("torch", "safetensors", "pyarrow")}
        | {"python": platform.python_version()},
        "run_key": plan.run_key,
        "recipe": dict(plan.recipe),
        "arithmetic": plan.settings.arithmetic,
        "base": _model(plan.base) if plan.base else None,
        "experts": [_model(expert) for expert in plan.experts],
        "expert_orders": [list(order) for order in orders],
        "expert_overlap": overlap_of_experts(plan, by_index),
        "warnings": list(plan.warnings),
    }


def _model(model: ModelSummary) -> dict[str, Any]:
    facts = {"name": model.name, "kind": model.kind, "fingerprint": model.fingerprint}
    return facts | {"num_tensors": model.num_tensors} | arrival_row(model)


def _tensors(
    plan: Plan, reports: Mapping[int, ShardReport], orders: dict[tuple[int, ...], int]
) -> list[dict[str, Any]]:
    """Return one row per tensor, and add to `orders` the orders in which experts were added.

    Most tensors share one order, which is therefore listed once.
    """
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
            if planned.arithmetic is not None:
                row["arithmetic"] = planned.arithmetic
            if planned.method is not None:
                row |= {"method": planned.method, "parameters": dict(planned.parameters)}
                row |= {"method_package": planned.method_package} if planned.method_package is not None else {}
            if planned.experts:
                order = tuple(expert.expert for expert in planned.experts)
                row |= {"weights": [expert.parameters.get("weight", 1.0) for expert in planned.experts]}
                row |= {"expert_order": orders.setdefault(order, len(orders))}
            if done.rank is not None:
                row |= {"rank": done.rank, "energy": done.energy, "spectrum": done.spectrum_key}
            if done.outputs_rank is not None:
                row |= {"outputs_rank": done.outputs_rank, "outputs_energy": done.outputs_energy}
                row |= {"outputs_spectrum": done.outputs_spectrum_key}
            if done.storage_noise is not None:
                row["storage_noise"] = done.storage_noise
            if done.svc_change is not None:
                row["svc_change"] = done.svc_change
            if done.measures is not None:
                row["measures"] = measured_row(done.measures)
            row |= _matrices(planned) | _adapter_facts(planned, done) | _float8_facts(planned, done)
            if done.notes:
                row["notes"] = list(done.notes)
            rows.append(row)
    return rows


def _matrices(planned: TensorPlan) -> dict[str, Any]:
    """Return how a spectral method divided the tensor into matrices, where its shape does not show it."""
    if planned.spectrum_key is None and not planned.views:
        return {}
    facts: dict[str, Any] = {"orientation": "in_out" if planned.in_out else "out_in"}
    if is_fused_qkv(planned.name):
        facts["qkv"] = "split" if planned.views else "stored"
    over_outputs = {one.over_outputs for view in planned.views or (None,) for one in decompositions(planned, view)}
    if True in over_outputs:
        facts["decomposed_over"] = ["inputs", "outputs"] if False in over_outputs else ["outputs"]
    if planned.matrix_shape is not None:
        facts["matrix_shape"] = list(planned.matrix_shape)
    if planned.views:
        facts["num_matrices"] = len(planned.views)
    return facts


def _adapter_facts(planned: TensorPlan, done: TensorReport) -> dict[str, Any]:
    """Return the names under which an adapter stores the tensor, and the error of its rank."""
    if planned.adapter is None:
        return {}
    facts: dict[str, Any] = {"stored_as": [entry.name for entry in output_entries(planned)]}
    if done.truncation_error is not None:
        facts |= {"stored_rank": planned.adapter.rank, "truncation_error": done.truncation_error}
        facts |= {"error": done.error} if done.error is not None else {}
    return facts


def _float8_facts(planned: TensorPlan, done: TensorReport) -> dict[str, Any]:
    """Return the names of a float8 weight and its scale, and the error of storing it so."""
    if planned.float8 is None:
        return {}
    return {"stored_as": [entry.name for entry in output_entries(planned)], "error": done.error}
