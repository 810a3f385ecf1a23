"""Results: sums over shards, of which only those that this run made count as its work."""

from __future__ import annotations

from dataclasses import replace

from eigenmerge.core.cache.reports import DecomposeReport, ShardReport
from eigenmerge.core.cache.result import count_shards, merge_result, worst_truncation

from .examples import matrix, norm, plan, shard, tensor_report

MADE = ShardReport(
    0,
    "parts/0.safetensors",
    100,
    40,
    "00",
    "",
    1.0,
    30,
    (tensor_report("w", "computed"), tensor_report("n")),
    notes=("damaged; made again",),
    kept_bytes_read=7,
)
FOUND = replace(MADE, index=1, reused=True, tensors=(tensor_report("v", "computed"),))


def test_only_what_this_run_made_is_read_and_computed() -> None:
    assert count_shards([MADE, FOUND]) == {
        "shards_done": 1,
        "shards_reused": 1,
        "decompositions_computed": 1,
        "decompositions_reused": 1,
        "bytes_read": 30,
        "kept_bytes_read": 7,
    }
    assert set(count_shards([]).values()) == {0}


def test_decompositions_before_the_merge_count_once() -> None:
    """The merge finds the spectra that the same run computed for the alignment."""
    merged = replace(MADE, tensors=(tensor_report("w", "reused"), tensor_report("u", "reused")))
    before = DecomposeReport(0, {"spectra/w.arrow": 1.0, "spectra/u.arrow": 1.0}, num_computed=1, bytes_read=50)
    counts = count_shards([merged], [before])
    assert (counts["decompositions_computed"], counts["decompositions_reused"]) == (1, 1)
    assert counts["bytes_read"] == 80


def test_the_worst_truncation_of_an_adapter() -> None:
    adapter = replace(MADE, tensors=(tensor_report("a", truncation_error=0.0), tensor_report("b")))
    other = replace(MADE, tensors=(tensor_report("c", truncation_error=1e-3),))
    worst = worst_truncation([adapter, other])
    assert worst is not None and worst.name == "c"
    exact = worst_truncation([adapter])
    assert exact is not None and exact.name == "a"
    assert worst_truncation([MADE]) is None


def test_the_result_of_a_run() -> None:
    noted = replace(tensor_report("w"), notes=("flat spectrum",))
    shards = (shard(0, matrix("w"), norm("n")), shard(1, matrix("v")))
    merged = replace(plan(*shards), warnings=("of the plan",))
    result = merge_result(
        merged,
        [replace(MADE, tensors=(noted,)), replace(FOUND, notes=("of an earlier run",))],
        destination="out",
        bytes_through_reduce=5,
        seconds=2.0,
        warnings=("of the store",),
    )
    assert (result.num_tensors, result.num_experts, result.method) == (3, 1, "swudi")
    assert (result.shards_done, result.shards_reused, result.truncation_error) == (1, 1, None)
    assert result.warnings == ("of the plan", "of the store", "damaged; made again", "w: flat spectrum")
    assert result.to_dict()["files"] == ("model.safetensors",)
