"""A plan survives JSON, and holds no secret."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from eigenmerge.core.planning.plan_json import plan_from_json, plan_to_json, shard_from_json, shard_to_json
from eigenmerge.core.planning.summary import shard_rows, summarize_plan, tensor_rows

AT = "base_model.model.model.layers.0.self_attn.q_proj"
TEXT = """
merge_method: swudi
base_model: base
models: [{model: a, parameters: {weight: [0, 1]}}, lora]
parameters: {alignment_rho: 0.5}
calibration: {svc: {alpha: 0.25}}
keep_sums: true
store: s3://place/of/store
storage_options: {key: AKIAPLANTED, secret: planted-secret}
conv: matrix
qkv: split
rules: [{match: lm_head.weight, action: keep_base}]
"""


@pytest.fixture
def plan(model: Any, adapter: Any, llama_tensors: Any, plan_of: Any) -> Any:
    names = llama_tensors() | {
        "experts.0.mlp.experts.w1": (3, 4, 5),
        "attn.qkv.weight": (24, 8),
        "conv.weight": (4, 3, 2, 2),
        "ids": (3,),
    }
    dtypes = {"ids": "I64", "model.norm.weight": "F8_E4M3"}
    lora = adapter("lora", {f"{AT}.lora_A.weight": (2, 8), f"{AT}.lora_B.weight": (8, 2)})
    return plan_of(TEXT, model("base", names, dtype=dtypes, config={"x": 1}), model("a", names, dtype=dtypes), lora)


def test_there_and_back(plan: Any) -> None:
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_every_shard_by_itself(plan: Any) -> None:
    for shard in plan.shards:
        assert shard_from_json(json.loads(json.dumps(shard_to_json(shard)))) == shard
        assert pickle.loads(pickle.dumps(shard)) == shard  # noqa: S301 - how a runner sends it to a worker


def test_no_secret_and_no_store(plan: Any) -> None:
    for text in (json.dumps(plan_to_json(plan)), repr(plan), json.dumps(summarize_plan(plan))):
        assert "planted" not in text.lower()
        assert "place/of/store" not in text


def test_another_format_is_refused(plan: Any) -> None:
    with pytest.raises(ValueError, match="plan format is 0"):
        plan_from_json({**plan_to_json(plan), "format": 0})


def test_the_summary_adds_up(plan: Any) -> None:
    summary = summarize_plan(plan)
    json.dumps(summary)
    rows = shard_rows(plan)
    assert sum(row["bytes_written"] for row in rows) < summary["bytes_written"]
    assert sum(row["bytes_read"] for row in rows) == summary["bytes_read"]
    assert sum(row["flops"] for row in rows) == pytest.approx(summary["flops"])
    assert max(row["peak_bytes"] for row in rows) == summary["peak_bytes"] == summary["largest_tensor"]["peak_bytes"]
    assert sum(row["num_tensors"] for row in summary["treatments"]) == summary["num_tensors"] == plan.num_tensors
    assert len(tensor_rows(plan)) == plan.num_tensors
    stack = next(row for row in tensor_rows(plan) if row["name"].endswith("experts.w1"))
    assert stack["num_matrices"] == 3
