"""The manifest: its fields for each kind of tensor and file, and that equal merges give equal bytes."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from eigenmerge.core.cache.reports import ShardReport
from eigenmerge.core.output.manifest import ManifestWriter
from eigenmerge.core.planning.plan import AdapterFactors, Plan, RunSettings, TensorPlan

from .examples import RUN_KEY, adapter, buffer, fused, make_checkpoint, norm, report, sha256, small_plan, weight


def manifest_of(
    plan: Plan, reports: Sequence[ShardReport] | None = None, hashes: dict[str, str | None] | None = None
) -> dict[str, Any]:
    return json.loads(ManifestWriter(plan, reports or make_checkpoint(plan).reports).encode(hashes or {}))


def row_of(tensor: TensorPlan, **keys: Any) -> dict[str, Any]:
    """The row of the only tensor of a checkpoint; `keys` are fields of its report."""
    plan = small_plan([[tensor]])
    (shard,) = make_checkpoint(plan).reports
    (row,) = manifest_of(plan, [replace(shard, tensors=(report(tensor, **keys),))])["tensors"]
    return row


def test_the_facts_of_the_run() -> None:
    plan = small_plan(settings=RunSettings(arithmetic="float64"), warnings=("first", "second"))
    found = manifest_of(plan)
    assert (found["format"], found["run_key"], found["arithmetic"]) == (1, RUN_KEY, "float64")
    assert found["eigenmerge"] == version("eigenmerge")
    assert found["versions"]["torch"] == version("torch") and found["versions"]["python"] == platform.python_version()
    assert found["recipe"] == dict(plan.recipe) and found["warnings"] == ["first", "second"]
    assert found["base"] == {
        "name": "org/base",
        "kind": "full",
        "fingerprint": "fingerprint of org/base",
        "num_tensors": 4,
    }
    assert [expert["name"] for expert in found["experts"]] == ["org/a", "org/b"]


def test_addresses_of_the_models_are_not_in_it() -> None:
    plan = small_plan()
    assert b"/models/" not in ManifestWriter(plan, make_checkpoint(plan).reports).encode({})


def test_without_a_base() -> None:
    assert manifest_of(small_plan(base=False))["base"] is None


def test_files_with_their_parts_and_side_files() -> None:
    plan = small_plan()
    checkpoint = make_checkpoint(plan)
    first, second = (file.name for file in plan.files)
    hashes: dict[str, str | None] = {"tokenizer.json": "1" * 64, first: sha256(checkpoint.files[first]), "a.txt": "2"}
    found = manifest_of(plan, checkpoint.reports, hashes)
    assert [file["name"] for file in found["files"]] == [first, second]
    assert found["files"][0]["sha256"] == sha256(checkpoint.files[first])
    assert found["files"][1]["sha256"] is None, "a store copied it on its own side"
    assert [file["num_bytes"] for file in found["files"]] == [len(data) for data in checkpoint.files.values()]
    parts = [part for file in found["files"] for part in file["parts"]]
    assert parts == [{"sha256": sha256(part), "num_bytes": len(part)} for part in checkpoint.parts]
    assert list(found["side_files"].items()) == [("a.txt", "2"), ("tokenizer.json", "1" * 64)]


def test_tensors_are_in_the_order_of_the_files() -> None:
    assert [row["name"] for row in manifest_of(small_plan())["tensors"]] == ["a.weight", "a.bias", "b.weight", "z"]


def test_a_tensor_that_a_spectral_method_merged() -> None:
    row = row_of(weight("w", weights=(0.5, 2.0), parameters={"exp_time": 3.0}))
    assert row == {
        "name": "w",
        "shape": [4, 3],
        "dtype": "F32",
        "action": "merge",
        "reason": "2-D weight",
        "sha256": sha256(b""),
        "method": "swudi",
        "parameters": {"exp_time": 3.0},
        "weights": [0.5, 2.0],
        "expert_order": 0,
        "rank": 2,
        "energy": 0.75,
        "spectrum": "spectra/w.arrow",
        "orientation": "out_in",
    }


def test_orders_of_experts_are_listed_once() -> None:
    plan = small_plan([[weight("a"), weight("b", weights=(0.5, 2.0, 1.0))], [weight("c"), norm("n")]])
    found = manifest_of(plan, make_checkpoint(plan).reports)
    rows = {row["name"]: row for row in found["tensors"]}
    orders = {name: found["expert_orders"][row["expert_order"]] for name, row in rows.items() if "expert_order" in row}
    planned = {t.name: [e.expert for e in t.experts] for shard in plan.shards for t in shard.tensors if t.experts}
    assert orders == planned and len(found["expert_orders"]) == len({tuple(order) for order in planned.values()})


def test_a_tensor_without_a_method() -> None:
    for tensor in (norm("n"), buffer("b")):
        row = row_of(tensor)
        assert row["action"] == tensor.action
        assert row.keys() == {"name", "shape", "dtype", "action", "reason", "sha256"}


def test_the_action_is_what_was_done_not_what_was_planned() -> None:
    row = row_of(weight("w"), action="copy", rank=None, notes=("kept the base: NaN",))
    assert (row["action"], row["notes"]) == ("copy", ["kept the base: NaN"]) and "rank" not in row


def test_a_method_of_an_installed_package_is_named_with_its_version() -> None:
    assert row_of(weight("w", method_package="mine 1.0"))["method_package"] == "mine 1.0"
    assert "method_package" not in row_of(weight("w"))


def test_matrices_inside_a_tensor() -> None:
    qkv = "h.0.attn.c_attn.weight"
    split, stored = row_of(fused(qkv)), row_of(weight(qkv))
    assert (split["qkv"], split["num_matrices"], stored["qkv"]) == ("split", 3, "stored")
    assert "num_matrices" not in stored
    stack = row_of(fused("experts.up_proj", 2))
    assert stack["num_matrices"] == 2 and "qkv" not in stack
    assert row_of(weight("conv.weight", matrix_shape=(2, 6)))["matrix_shape"] == [2, 6]
    assert "qkv" not in row_of(norm("attn.qkv.bias")), "no spectral method has merged it"


def test_an_adapter_has_its_stored_names_and_its_error() -> None:
    row = row_of(adapter("w"))
    assert row["stored_as"] == ["base_model.model.w.lora_A.weight", "base_model.model.w.lora_B.weight"]
    assert (row["stored_rank"], row["truncation_error"]) == (2, 0.25)
    whole = replace(norm("w"), adapter=AdapterFactors(0, None, None, full="base_model.w"))
    row = row_of(whole, truncation_error=None)
    assert row["stored_as"] == ["base_model.w"] and "stored_rank" not in row


def test_equal_merges_give_equal_bytes() -> None:
    """Neither times nor whether a part was found matter, nor the order in which the parts were finished."""
    plan = small_plan()
    reports = make_checkpoint(plan).reports
    hashes: dict[str, str | None] = {"b.json": "1", "a.json": "2"}
    slower = [replace(one, seconds=9.0, reused=True, bytes_read=7, notes=("damaged",)) for one in reversed(reports)]
    slower = [replace(one, tensors=tuple(replace(tensor, seconds=8.0) for tensor in one.tensors)) for one in slower]
    first = ManifestWriter(plan, reports).encode(hashes)
    assert ManifestWriter(plan, slower).encode(dict(reversed(hashes.items()))) == first
    assert first.endswith(b"}\n") and json.dumps(json.loads(first), indent=1).encode() + b"\n" == first
