"""A plan, or one shard of it, as JSON and back, exactly.

Places of tensors and parameter mappings repeat by the ten thousand; each distinct address and mapping stands once in a
table. A shard's JSON is complete by itself: a worker gets that and nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, fields
from typing import Any

from ..listing import LoraSource, TensorSource
from .plan import (
    AdapterFactors,
    ExpertTensor,
    LayerShard,
    MatrixView,
    ModelSummary,
    OutputFile,
    Plan,
    Rows,
    RunSettings,
    SideFile,
    TensorPlan,
)

PLAN_FORMAT = 1  # bump when a plan written before can no longer be read

_SCALARS = (
    "name",
    "out_dtype",
    "action",
    "reason",
    "method",
    "method_package",
    "spectrum_key",
    "calibration_key",
    "alignment_key",
    "sums_key",
    "bytes_read",
    "flops",
    "peak_bytes",
    "spectrum_bytes",
    "sums_bytes",
)


class _Table:
    """Values by number, each once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[object, int] = {}
        self._by_id: dict[int, int] = {}

    def add(self, value: Any, key: object) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.values)
            self.values.append(value)
        return number

    def add_mapping(self, value: Mapping[str, object]) -> int:
        # The planner shares one mapping among the tensors that have the same outcome. `values` keeps it alive.
        number = self._by_id.get(id(value))
        if number is None:
            number = self.add(value, json.dumps(dict(value), sort_keys=True))
            if self.values[number] is value:
                self._by_id[id(value)] = number
        return number


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Plain data; `json.dumps` takes it. `plan_from_json` gives an equal plan."""
    uris, mappings = _Table(), _Table()
    shards = [_shard_out(shard, uris, mappings) for shard in plan.shards]
    return {
        "format": PLAN_FORMAT,
        "run_key": plan.run_key,
        "recipe": dict(plan.recipe),
        "settings": asdict(plan.settings),
        "base": asdict(plan.base) if plan.base is not None else None,
        "experts": [asdict(expert) for expert in plan.experts],
        "uris": uris.values,
        "mappings": [dict(value) for value in mappings.values],
        "shards": shards,
        "files": [asdict(file) for file in plan.files],
        "side_files": [_side_out(side) for side in plan.side_files],
        "warnings": list(plan.warnings),
    }


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """The plan that `plan_to_json` wrote.

    Raises
    ------
    ValueError : another format; KeyError, TypeError where it is no plan
    """
    _check_format(data)
    return Plan(
        run_key=data["run_key"],
        recipe=data["recipe"],
        settings=RunSettings(**data["settings"]),
        base=ModelSummary(**data["base"]) if data["base"] is not None else None,
        experts=tuple(ModelSummary(**expert) for expert in data["experts"]),
        shards=tuple(_shard_in(shard, data["uris"], data["mappings"]) for shard in data["shards"]),
        files=tuple(OutputFile(file["name"], tuple(file["shards"]), file["num_bytes"]) for file in data["files"]),
        side_files=tuple(_side_in(side) for side in data["side_files"]),
        warnings=tuple(data["warnings"]),
    )


def shard_to_json(shard: LayerShard) -> dict[str, Any]:
    """One shard by itself."""
    uris, mappings = _Table(), _Table()
    content = _shard_out(shard, uris, mappings)
    return {
        "format": PLAN_FORMAT,
        "uris": uris.values,
        "mappings": [dict(value) for value in mappings.values],
        "shard": content,
    }


def shard_from_json(data: Mapping[str, Any]) -> LayerShard:
    """The shard that `shard_to_json` wrote; errors as `plan_from_json`."""
    _check_format(data)
    return _shard_in(data["shard"], data["uris"], data["mappings"])


def _check_format(data: Mapping[str, Any]) -> None:
    if data.get("format") != PLAN_FORMAT:
        raise ValueError(f"plan format is {data.get('format')!r}, this version reads {PLAN_FORMAT}")


def _shard_out(shard: LayerShard, uris: _Table, mappings: _Table) -> dict[str, Any]:
    return {
        **{field.name: getattr(shard, field.name) for field in fields(shard) if field.name != "tensors"},
        "tensors": [_tensor_out(tensor, uris, mappings) for tensor in shard.tensors],
    }


def _shard_in(data: Mapping[str, Any], uris: list[str], mappings: list[Mapping[str, object]]) -> LayerShard:
    rest = {key: value for key, value in data.items() if key != "tensors"}
    return LayerShard(tensors=tuple(_tensor_in(tensor, uris, mappings) for tensor in data["tensors"]), **rest)


def _tensor_out(tensor: TensorPlan, uris: _Table, mappings: _Table) -> dict[str, Any]:
    return {
        **{name: getattr(tensor, name) for name in _SCALARS},
        "shape": list(tensor.shape),
        "base": _source_out(tensor.base, uris),
        "experts": [_expert_out(expert, uris, mappings) for expert in tensor.experts],
        "parameters": mappings.add_mapping(tensor.parameters),
        "calibration": mappings.add_mapping(tensor.calibration),
        "matrix_shape": list(tensor.matrix_shape) if tensor.matrix_shape is not None else None,
        "views": [list(astuple(view)) for view in tensor.views],
        "base_rows": tensor.base_rows,
        "adapter": asdict(tensor.adapter) if tensor.adapter is not None else None,
        "members": list(tensor.members),
    }


def _tensor_in(data: Mapping[str, Any], uris: list[str], mappings: list[Mapping[str, object]]) -> TensorPlan:
    return TensorPlan(
        **{name: data[name] for name in _SCALARS},
        shape=tuple(data["shape"]),
        base=_source_in(data["base"], uris),
        experts=tuple(_expert_in(expert, uris, mappings) for expert in data["experts"]),
        parameters=mappings[data["parameters"]],
        calibration=mappings[data["calibration"]],
        matrix_shape=tuple(data["matrix_shape"]) if data["matrix_shape"] is not None else None,
        views=tuple(MatrixView(*view) for view in data["views"]),
        base_rows=_rows_in(data["base_rows"]),
        adapter=AdapterFactors(**data["adapter"]) if data["adapter"] is not None else None,
        members=tuple(data["members"]),
    )


def _source_out(source: TensorSource | None, uris: _Table) -> list[Any] | None:
    if source is None:
        return None
    row: list[Any] = [uris.add(source.uri, source.uri), source.start, source.stop, source.dtype, list(source.shape)]
    if source.scale is not None or source.scale_inverted:
        row += [_source_out(source.scale, uris), source.scale_inverted]
    return row


def _source_in(row: list[Any] | None, uris: list[str]) -> TensorSource | None:
    if row is None:
        return None
    uri, start, stop, dtype, shape, *scaling = row
    scale, inverted = (_source_in(scaling[0], uris), scaling[1]) if scaling else (None, False)
    return TensorSource(uris[uri], start, stop, dtype, tuple(shape), scale, inverted)


def _expert_out(expert: ExpertTensor, uris: _Table, mappings: _Table) -> list[Any]:
    lora = expert.lora
    factors = None
    if lora is not None:
        factors = [_source_out(lora.up, uris), _source_out(lora.down, uris), lora.scaling, lora.fan_in_fan_out]
    full = _source_out(expert.full, uris)
    return [expert.expert, full, factors, mappings.add_mapping(expert.parameters), expert.is_base, expert.rows]


def _expert_in(row: list[Any], uris: list[str], mappings: list[Mapping[str, object]]) -> ExpertTensor:
    number, full, factors, parameters, is_base, rows = row
    lora = None
    if factors is not None:
        up, down = _source_in(factors[0], uris), _source_in(factors[1], uris)
        assert up is not None and down is not None
        lora = LoraSource(up, down, factors[2], factors[3])
    return ExpertTensor(number, _source_in(full, uris), lora, mappings[parameters], is_base, _rows_in(rows))


def _rows_in(rows: list[list[int]] | None) -> Rows | None:
    return None if rows is None else tuple((start, origin, length) for start, origin, length in rows)


def _side_out(side: SideFile) -> dict[str, Any]:
    content = base64.b64encode(side.content).decode() if side.content is not None else None
    return {"name": side.name, "source_uri": side.source_uri, "content": content}


def _side_in(data: Mapping[str, Any]) -> SideFile:
    content = base64.b64decode(data["content"], validate=True) if data["content"] is not None else None
    return SideFile(data["name"], data["source_uri"], content)
