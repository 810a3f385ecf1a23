"""The summary of a plan that `eigenmerge plan` prints."""

from __future__ import annotations

import json
from typing import Any

from eigenmerge.core.planning.summary import summarize_plan, tensor_rows

SWUDI = "merge_method: swudi\nbase_model: base\nmodels: [a, b]\nembeddings: base\n"


def test_totals_are_sums_of_the_rows(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    models = [model(name, llama_tensors()) for name in ("base", "a", "b")]
    plan = plan_of(SWUDI + "keep_sums: true", *models, shard_bytes=1000)
    summary, rows = summarize_plan(plan), tensor_rows(plan)
    assert json.loads(json.dumps([summary, rows])) == [summary, rows]
    assert len(summary["shards"]) == summary["num_shards"] > 1
    for key in ("bytes_read", "spectrum_bytes", "sums_bytes", "flops"):
        assert sum(row[key] for row in rows) == sum(row[key] for row in summary["shards"]) == summary[key] > 0
    assert sum(row["num_tensors"] for row in summary["shards"]) == len(rows) == summary["num_tensors"]
    assert summary["peak_bytes"] == summary["largest_tensor"]["peak_bytes"] == max(row["peak_bytes"] for row in rows)
    assert {row["file"] for row in summary["shards"]} == {file["name"] for file in summary["files"]}


def test_treatments_are_counted_most_frequent_first(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    plan = plan_of(SWUDI, *(model(name, llama_tensors()) for name in ("base", "a", "b")))
    treatments = summarize_plan(plan)["treatments"]
    assert treatments[0] == {"action": "merge", "method": "swudi", "reason": "2-D weight", "num_tensors": 14}
    assert {"action": "copy", "method": None, "reason": "embedding: base kept", "num_tensors": 1} in treatments
    assert sum(row["num_tensors"] for row in treatments) == plan.num_tensors


def test_a_stack_counts_its_matrices(model: Any, plan_of: Any) -> None:
    names = {"layers.0.mlp.experts.down_proj": (3, 4, 5), "n.weight": (4,)}
    rows = tensor_rows(plan_of(SWUDI, *(model(name, names) for name in ("base", "a", "b"))))
    assert {row["name"]: row["num_matrices"] for row in rows} == {"layers.0.mlp.experts.down_proj": 3, "n.weight": 0}
