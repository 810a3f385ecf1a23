"""ExpertStream: deltas and whole tensors of dense and LoRA experts, views, vocabularies, and checks of the values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import NonFiniteError
from eigenmerge.core.listing import TensorSource
from eigenmerge.core.merging.expert_stream import ExpertStream
from eigenmerge.core.numerics.task_vectors import LowRank
from eigenmerge.core.planning.plan import ExpertTensor, MatrixView, TensorPlan
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader

from .examples import NAME, Weight, plan, random, write_lora, write_tensor, write_tensors


def stream_of(tensor: TensorPlan, view: MatrixView | None = None, dtype: torch.dtype = torch.float32) -> ExpertStream:
    return ExpertStream(tensor, TensorReader(), dtype, torch.device("cpu"), view=view)


def dense(task_vector: torch.Tensor | LowRank) -> torch.Tensor:
    return task_vector.dense() if isinstance(task_vector, LowRank) else task_vector


def assert_all_equal(found: Any, expected: list[torch.Tensor]) -> None:
    found = list(found)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_only_iteration_applies_the_weights(tmp_path: Path) -> None:
    weight = Weight.random(tmp_path, 4, 6)
    stream = stream_of(weight.plan(weights=(0.5, 1.0, -2.0)))
    assert_all_equal(stream.experts(), weight.experts)
    assert_all_equal(stream.task_vectors(), weight.deltas)
    assert_all_equal(stream, [0.5 * weight.deltas[0], weight.deltas[1], -2.0 * weight.deltas[2]])
    assert_all_equal(stream, list(stream))  # a second pass yields the same
    assert (stream.name, stream.num_experts, stream.shape) == (NAME, 3, (4, 6))


def test_without_a_base_the_experts_are_the_deltas(tmp_path: Path) -> None:
    weight = Weight(tmp_path, None, [random(1, 4, 6), random(2, 4, 6)])
    stream = stream_of(weight.plan())
    assert stream.base is None
    assert_all_equal(stream, weight.experts)


def test_a_plan_without_experts_yields_nothing(tmp_path: Path) -> None:
    stream = stream_of(plan((), (4, 6), write_tensor(tmp_path / "base.safetensors", random(1, 4, 6))))
    assert stream.num_experts == 0 and list(stream) == [] and list(stream.experts()) == []
    assert stream.reader.bytes_read == 0


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64])
def test_differences_are_computed_in_the_arithmetic_dtype(
    tmp_path: Path, stored: torch.dtype, arithmetic: torch.dtype
) -> None:
    base, expert = random(1, 4, 6).to(stored), random(2, 4, 6).to(stored)
    stream = stream_of(Weight(tmp_path, base, [expert]).plan(), dtype=arithmetic)
    (delta,) = stream.task_vectors()
    assert delta.dtype == arithmetic
    assert torch.equal(delta, expert.to(arithmetic) - base.to(arithmetic))


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_an_adapter_yields_factors_of_its_rank(tmp_path: Path, fan_in_fan_out: bool) -> None:
    up, down = (random(2, 6, 2), random(3, 2, 4)) if fan_in_fan_out else (random(2, 4, 2), random(3, 2, 6))
    lora = write_lora(tmp_path / "adapter.safetensors", up, down, 0.5, fan_in_fan_out)
    base = random(1, 4, 6)
    entry = ExpertTensor(0, None, lora, {"weight": 3.0})
    stream = stream_of(plan((entry,), (4, 6), write_tensor(tmp_path / "base.safetensors", base)))
    (factors,) = stream
    assert isinstance(factors, LowRank) and factors.rank == 2
    assert stream.all_low_rank and stream.max_ranks == [2]
    assert stream.reader.bytes_read == up.nbytes + down.nbytes, "the base is not needed"
    delta = 0.5 * (up @ down).T if fan_in_fan_out else 0.5 * up @ down
    torch.testing.assert_close(factors.dense(), 3.0 * delta)
    (expert,) = stream.experts()
    torch.testing.assert_close(expert, base + delta)
    (unweighted,) = stream.task_vectors()
    torch.testing.assert_close(unweighted, delta)


def test_an_adapter_on_a_full_expert_is_added_to_it(tmp_path: Path) -> None:
    base, full, up, down = random(1, 4, 6), random(2, 4, 6), random(3, 4, 2), random(4, 2, 6)
    lora = write_lora(tmp_path / "adapter.safetensors", up, down, 2.0)
    entry = ExpertTensor(0, write_tensor(tmp_path / "full.safetensors", full), lora)
    stream = stream_of(plan((entry,), (4, 6), write_tensor(tmp_path / "base.safetensors", base)))
    assert not stream.all_low_rank and stream.max_ranks == [4]
    (delta,) = stream
    assert isinstance(delta, torch.Tensor)
    torch.testing.assert_close(delta, full + 2.0 * up @ down - base)


def test_an_adapter_without_this_weight_has_rank_zero(tmp_path: Path) -> None:
    base = write_tensor(tmp_path / "base.safetensors", random(1, 4, 6))
    stream = stream_of(plan((ExpertTensor(0, None),), (4, 6), base))
    (delta,) = stream
    assert isinstance(delta, LowRank) and delta.rank == 0
    assert torch.equal(delta.dense(), torch.zeros(4, 6)) and stream.max_ranks == [0]


def test_an_adapter_leaves_a_vector_as_it_is(tmp_path: Path) -> None:
    base = random(1, 5)
    stream = stream_of(plan((ExpertTensor(0, None),), (5,), write_tensor(tmp_path / "base.safetensors", base)))
    assert_all_equal(stream.task_vectors(), [torch.zeros(5)])
    assert_all_equal(stream.experts(), [base])


def test_the_base_is_read_once_and_at_most_one_expert_ahead(tmp_path: Path) -> None:
    weight = Weight.random(tmp_path, 8, 8, num_experts=5)
    stream = stream_of(weight.plan())
    size = weight.experts[0].nbytes
    first = iter(stream)
    next(first)
    assert stream.reader.bytes_read <= 3 * size
    assert len(list(first)) == 4
    assert stream.reader.bytes_read == 6 * size
    list(stream)
    assert stream.reader.bytes_read == 11 * size


def test_a_view_of_rows_reads_only_its_bytes(tmp_path: Path) -> None:
    weight = Weight.random(tmp_path, 12, 8)
    stream = stream_of(weight.plan(), MatrixView("k", 4, 8, "spectra/k.arrow"))
    assert stream.shape == (4, 8) and stream.max_ranks == [4, 4, 4]
    assert_all_equal(stream, [delta[4:8] for delta in weight.deltas])
    assert stream.reader.bytes_read == 4 * 4 * 8 * 4


def test_a_view_of_columns(tmp_path: Path) -> None:
    weight = Weight.random(tmp_path, 8, 12)
    stream = stream_of(weight.plan(), MatrixView("v", 8, 12, "spectra/v.arrow", axis=1))
    assert stream.shape == (8, 4)
    assert_all_equal(stream, [delta[:, 8:12] for delta in weight.deltas])


def test_a_view_of_one_matrix_of_a_stack(tmp_path: Path) -> None:
    """A mixture of experts stored as (matrices, rows, columns)."""
    weight = Weight.random(tmp_path, 3, 4, 6)
    stream = stream_of(weight.plan(matrix_shape=(12, 6)), MatrixView("expert 1", 4, 8, "spectra/1.arrow"))
    assert_all_equal(stream, [delta[1] for delta in weight.deltas])


def test_a_convolution_as_a_matrix(tmp_path: Path) -> None:
    weight = Weight.random(tmp_path, 4, 3, 2, 2)
    stream = stream_of(weight.plan(matrix_shape=(4, 12)))
    assert stream.shape == (4, 12)
    assert_all_equal(stream, [delta.reshape(4, 12) for delta in weight.deltas])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_a_view_cuts_the_factors_of_an_adapter(tmp_path: Path, axis: int, fan_in_fan_out: bool) -> None:
    up, down = random(2, 6, 2), random(3, 2, 6)
    entry = ExpertTensor(0, None, write_lora(tmp_path / "adapter.safetensors", up, down, 0.5, fan_in_fan_out))
    base = write_tensor(tmp_path / "base.safetensors", random(1, 6, 6))
    (factors,) = stream_of(plan((entry,), (6, 6), base), MatrixView("k", 2, 4, "spectra/k.arrow", axis))
    delta = 0.5 * (up @ down).T if fan_in_fan_out else 0.5 * up @ down
    assert isinstance(factors, LowRank)
    torch.testing.assert_close(factors.dense(), delta.narrow(axis, 2, 2))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_view_of_scaled_float8(tmp_path: Path, axis: int) -> None:
    values = random(2, 6, 6).to(torch.float8_e4m3fn)
    scale = torch.rand(6, 1) + 0.5
    places = write_tensors(tmp_path / "expert.safetensors", {"w": values, "w_scale": scale})
    source = replace(places["w"], scale=places["w_scale"])
    tensor = plan((ExpertTensor(0, source),), (6, 6))
    (delta,) = stream_of(tensor, MatrixView("k", 2, 4, "spectra/k.arrow", axis))
    assert torch.equal(dense(delta), (values.float() * scale).narrow(axis, 2, 2))


def test_rows_that_an_expert_lacks_are_the_bases(tmp_path: Path) -> None:
    base, expert = random(1, 4, 3), random(2, 3, 3)
    entry = ExpertTensor(0, write_tensor(tmp_path / "e.safetensors", expert), rows=((0, 2, 1), (2, 0, 2)))
    stream = stream_of(plan((entry,), (4, 3), write_tensor(tmp_path / "b.safetensors", base)))
    (full,) = stream.experts()
    assert torch.equal(full, torch.stack([expert[2], base[1], expert[0], expert[1]]))
    (delta,) = stream.task_vectors()
    assert torch.equal(delta[1], torch.zeros(3))


def test_rows_that_the_base_lacks_are_the_mean_of_the_experts(tmp_path: Path) -> None:
    base = random(1, 2, 3)
    first, second = random(2, 3, 3), random(3, 3, 3)
    entries = [
        ExpertTensor(index, write_tensor(tmp_path / f"{index}.safetensors", tensor))
        for index, tensor in enumerate((first, second))
    ]
    source = write_tensor(tmp_path / "base.safetensors", base)
    stream = stream_of(plan(entries, (3, 3), source, base_rows=((0, 0, 2),)))
    assert stream.base is not None
    torch.testing.assert_close(stream.base, torch.cat([base, ((first[2] + second[2]) / 2).unsqueeze(0)]))


def test_without_a_base_missing_rows_are_the_mean_of_the_other_experts(tmp_path: Path) -> None:
    whole, other, short = random(1, 3, 2), random(2, 3, 2), random(3, 2, 2)
    entries = (
        ExpertTensor(0, write_tensor(tmp_path / "0.safetensors", whole)),
        ExpertTensor(1, write_tensor(tmp_path / "1.safetensors", other)),
        ExpertTensor(2, write_tensor(tmp_path / "2.safetensors", short), rows=((0, 0, 2),)),
    )
    *_, last = stream_of(plan(entries, (3, 2))).experts()
    torch.testing.assert_close(last, torch.cat([short, ((whole[2] + other[2]) / 2).unsqueeze(0)]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    weight = Weight.random(tmp_path / "fine", 4, 6, num_experts=2)
    broken = weight.experts[1].clone()
    broken[0, :2] = value
    weight.sources[1] = write_tensor(tmp_path / "broken.safetensors", broken)
    found = iter(stream_of(weight.plan()))
    assert torch.equal(dense(next(found)), weight.deltas[0])
    with pytest.raises(NonFiniteError, match=rf"broken\.safetensors: tensor '{NAME}' has 2 NaN or Inf among 24 values"):
        next(found)


def test_a_base_that_is_not_finite_is_reported_too(tmp_path: Path) -> None:
    weight = Weight(tmp_path, torch.full((2, 2), math.nan), [torch.ones(2, 2)])
    with pytest.raises(NonFiniteError, match=r"base\.safetensors"):
        list(stream_of(weight.plan()))


def test_finite_values_whose_sum_overflows_are_accepted(tmp_path: Path) -> None:
    largest = torch.full((2, 2), torch.finfo(torch.float32).max)
    stream = stream_of(Weight(tmp_path, None, [largest]).plan())
    assert_all_equal(stream.experts(), [largest])


def test_an_empty_tensor(tmp_path: Path) -> None:
    stream = stream_of(Weight(tmp_path, torch.zeros(0, 6), [torch.zeros(0, 6)]).plan())
    assert_all_equal(stream.task_vectors(), [torch.zeros(0, 6)])


def test_the_base_among_the_experts_is_recognized(tmp_path: Path) -> None:
    source = TensorSource(str(tmp_path / "x"), 0, 0, "F32", (0, 0))
    stream = stream_of(plan((ExpertTensor(0, source), ExpertTensor(-1, source, is_base=True)), (0, 0)))
    assert [stream.is_base(index) for index in range(2)] == [False, True]
