"""The simulated schedule: hand-computed cases, bounds that hold for every list schedule, and the named limit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from eigenmerge.core.listing import LoraSource, TensorSource
from eigenmerge.core.planning.cost.machines import MACHINES, MachineModel
from eigenmerge.core.planning.cost.simulate import schedule_order, shard_cost, simulate, split_work
from eigenmerge.core.planning.plan import (
    ExpertTensor,
    LayerShard,
    MatrixView,
    OutputFile,
    Plan,
    RunSettings,
    TensorPlan,
)

# one elementwise operation, one byte read or written: one second
UNIT = MachineModel(
    name="unit",
    matmul_flops=1,
    eigh_flops=1,
    svd_flops=1,
    elementwise_flops=1,
    read_bandwidth=1,
    write_bandwidth=1,
    memory_bytes=100,
    price_per_hour=3600,
    shard_overhead_seconds=0,
    source="chosen so that seconds can be counted by hand",
)


def make_shard(
    index: int, flops: float, bytes_read: int = 0, bytes_written: int = 0, peak_bytes: int = 0
) -> LayerShard:
    tensor = TensorPlan(
        name=f"layer.{index}",
        shape=(4,),
        out_dtype="F32",
        action="mean",
        reason="1-D: mean delta",
        base=None,
        flops=flops,
    )
    return LayerShard(index, (tensor,), f"parts/{index}", bytes_read, bytes_written, flops, peak_bytes)


def make_plan(shards: list[LayerShard]) -> Plan:
    written = sum(shard.bytes_written for shard in shards)
    file = OutputFile("model.safetensors", tuple(shard.index for shard in shards), written)
    return Plan("run", {}, RunSettings(), None, (), tuple(shards), (file,), ())


def make_matrix(shape: tuple[int, int], experts: int, rank: int | None, method: str, flops: float) -> TensorPlan:
    rows, columns = shape

    def source(*dims: int) -> TensorSource:
        return TensorSource("memory://x", 0, 0, "BF16", dims)

    def expert(index: int) -> ExpertTensor:
        if rank is None:
            return ExpertTensor(index, source(rows, columns))
        return ExpertTensor(index, None, LoraSource(source(rows, rank), source(rank, columns), 1.0))

    return TensorPlan(
        name="w",
        shape=shape,
        out_dtype="BF16",
        action="merge",
        reason="2-D weight",
        base=source(rows, columns),
        experts=tuple(expert(i) for i in range(experts)),
        method=method,
        spectrum_key="spectra/0",
        flops=flops,
    )


def test_largest_first_by_hand() -> None:
    """Seconds 3 3 2 2 2 on two workers: largest first ends at 7 (3 2 2 | 3 2), the optimum is 6."""
    plan = make_plan([make_shard(i, flops) for i, flops in enumerate([2, 3, 2, 3, 2])])
    assert schedule_order(plan.shards) == [1, 3, 0, 2, 4]
    result = simulate(plan, UNIT, 2)
    assert result.seconds == 7
    assert result.busy_seconds == 12
    assert result.efficiency == pytest.approx(12 / 14)
    assert result.cost == pytest.approx(14)
    assert result.critical_shard == "layer.4"
    assert result.limit == "compute"
    assert result.bounds["compute"] == 6


def test_largest_first_beats_plan_order() -> None:
    """A long shard at the end of the plan would run alone."""
    plan = make_plan([make_shard(i, flops) for i, flops in enumerate([1, 1, 1, 1, 4])])
    assert simulate(plan, UNIT, 2, order=range(5)).seconds == 6
    assert simulate(plan, UNIT, 2).seconds == 4


def test_experts_are_read_while_others_are_accumulated() -> None:
    shard = make_shard(0, flops=5, bytes_read=7, bytes_written=3)
    machine = UNIT.model_copy(update={"shard_overhead_seconds": 2.0})
    assert shard_cost(shard, machine).seconds == 2 + 7 + 3
    assert shard_cost(shard, machine.model_copy(update={"overlapped": False})).seconds == 2 + 5 + 7 + 3


def test_copies_to_a_gpu_take_time_of_the_worker() -> None:
    tensor = replace(make_matrix((64, 128), experts=8, rank=None, method="swudi", flops=0.0), bytes_read=1000)
    shard = LayerShard(0, (tensor,), "parts/0", 1000, 0, 0.0, 0)
    machine = UNIT.model_copy(update={"device_bandwidth": 2.0})
    written = 64 * 128 * 2
    assert shard_cost(shard, UNIT).copies == 0
    cost = shard_cost(shard, machine)
    assert (cost.copies, cost.seconds) == ((1000 + written) / 2, 1000 + written / 2)  # experts: while others are read
    bounds = simulate(make_plan([shard]), machine.model_copy(update={"read_bandwidth": 1e6}), 1).bounds
    assert bounds["GPU copies"] == cost.copies


def test_a_decomposition_waits_for_all_experts() -> None:
    tensor = make_matrix((64, 128), experts=8, rank=None, method="swudi", flops=1e9)
    shard = LayerShard(0, (tensor,), "parts/0", 5 * 10**9, 0, tensor.flops, 0)
    cost = shard_cost(shard, UNIT)
    assert cost.decompose == 10 * 128**3
    assert cost.seconds == 5e9 + 10 * 128**3


def test_the_limit_is_named() -> None:
    even = make_plan([make_shard(i, flops=8, bytes_read=4) for i in range(16)])
    assert simulate(even, UNIT, 4).limit == "compute"
    assert simulate(even, UNIT, 16).limit == "compute"
    one_large = make_plan([make_shard(i, flops=8 if i else 99) for i in range(16)])
    result = simulate(one_large, UNIT, 4)
    assert (result.limit, result.largest_shard, result.seconds) == ("largest shard", "layer.0", 99)
    shared = UNIT.model_copy(update={"store_bandwidth": 1.0})
    assert simulate(even, shared, 16).limit == "read bandwidth"
    copied = UNIT.model_copy(update={"copy_bandwidth": 0.001})
    assert simulate(make_plan([make_shard(0, 1, bytes_written=1)]), copied, 1).limit == "assembling"
    slow_start = UNIT.model_copy(update={"shard_overhead_seconds": 50.0})
    assert simulate(even, slow_start, 2).limit == "shard overhead"


def test_a_shared_store_limits_scaling() -> None:
    """16 shards of 4 bytes through one byte a second: 64 s, however many read at once."""
    plan = make_plan([make_shard(i, flops=1, bytes_read=4) for i in range(16)])
    shared = UNIT.model_copy(update={"store_bandwidth": 1.0})
    assert [simulate(plan, shared, workers).seconds for workers in (1, 4, 16)] == [64, 64, 64]


@settings(deadline=None, max_examples=100)
@given(
    seconds=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    num_workers=st.integers(1, 70),
)
def test_bounds_of_every_list_schedule(seconds: list[int], num_workers: int) -> None:
    plan = make_plan([make_shard(i, flops) for i, flops in enumerate(seconds)])
    result = simulate(plan, UNIT, num_workers)
    assert result.seconds >= max(result.bounds.values()) - 1e-9
    # Graham: nobody is idle before the critical shard starts
    assert result.seconds <= sum(seconds) / num_workers + (1 - 1 / num_workers) * max(seconds) + 1e-9
    assert 0 <= result.efficiency <= 1 + 1e-12
    assert sorted(schedule_order(plan.shards)) == list(range(len(seconds)))


def test_shards_that_do_not_fit_are_named() -> None:
    plan = make_plan([make_shard(0, 1, peak_bytes=100), make_shard(1, 1, peak_bytes=101)])
    assert simulate(plan, UNIT, 1).too_large == (("layer.1", 101),)


def test_the_split_sums_to_the_flops_and_uses_the_smaller_space() -> None:
    full = split_work(make_matrix((64, 128), experts=8, rank=None, method="swudi", flops=1e9))
    assert (full.eigh_rows, full.eigh, full.svd) == (128, 10 * 128**3, 0)
    assert full.eigh + full.matmul == 1e9
    few_rows = split_work(make_matrix((16, 512), experts=2, rank=None, method="swudi", flops=1e9))
    assert (few_rows.eigh, few_rows.svd) == (0, 25 * 32**3)
    lora = split_work(make_matrix((64, 128), experts=4, rank=2, method="swudi_a", flops=1e6))
    assert (lora.eigh, lora.svd) == (0, 25 * 8**3)
    svd = split_work(make_matrix((64, 128), experts=8, rank=None, method="iso_c", flops=1e9))
    assert (svd.eigh, svd.svd) == (0, 25 * 64**3)


def test_the_split_of_several_matrices_in_one_tensor() -> None:
    stack = make_matrix((6 * 64, 128), experts=8, rank=None, method="swudi", flops=1e9)
    views = tuple(MatrixView(f"expert {i}", 64 * i, 64 * (i + 1), f"spectra/{i}") for i in range(6))
    work = split_work(replace(stack, spectrum_key=None, views=views))
    assert (work.eigh_rows, work.eigh) == (6 * 128, 6 * 10 * 128**3)
    kernel = replace(stack, shape=(64, 32, 2, 2), matrix_shape=(64, 128))
    assert split_work(kernel).eigh_rows == 128


def test_operations_of_direct_methods_beyond_elementwise_work_are_products() -> None:
    ties = replace(make_matrix((64, 128), experts=8, rank=None, method="ties", flops=1e6), spectrum_key=None)
    assert split_work(ties).elementwise == 1e6
    iterated = replace(ties, flops=1e12)
    assert split_work(iterated).elementwise == 64 * 64 * 128 * 9
    assert split_work(iterated).matmul == 1e12 - 64 * 64 * 128 * 9


def test_an_empty_plan_takes_no_time() -> None:
    result = simulate(make_plan([]), UNIT, 4)
    assert (result.seconds, result.efficiency, result.critical_shard) == (0, 1, "")


def test_results_are_json() -> None:
    plan = make_plan([make_shard(0, 1, peak_bytes=101)])
    text = json.dumps(simulate(plan, MACHINES["h100-80gb"], 8).as_dict())
    assert json.loads(text)["num_workers"] == 8


def test_a_machine_file_is_checked() -> None:
    text = UNIT.model_dump_json()
    assert MachineModel.model_validate_json(text) == UNIT
    with pytest.raises(ValidationError, match="eigh_flop"):
        MachineModel.model_validate_json(text.replace("eigh_flops", "eigh_flop"))
    assert all(field.description for field in MachineModel.model_fields.values())
