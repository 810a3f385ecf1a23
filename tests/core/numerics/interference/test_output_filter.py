"""The output filter: identity for long times, zero for time 0, and the same for factors as for their product."""

from __future__ import annotations

import torch

from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.interference.output_filter import filter_outputs
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank


def lora(count: int = 3, rows: int = 8, columns: int = 12) -> list[LowRank]:
    generator = torch.Generator().manual_seed(4)
    return [
        LowRank(
            torch.randn((rows, 2), generator=generator, dtype=torch.float64),
            torch.randn((2, columns), generator=generator, dtype=torch.float64),
        )
        for _ in range(count)
    ]


def test_long_times_pass_everything_and_time_zero_nothing() -> None:
    experts = InMemoryTaskVectors(lora())
    spectrum = decompose_interference(experts)
    passed = filter_outputs(spectrum, experts, 1e9)
    for name, block in spectrum.left.items():
        torch.testing.assert_close(passed.left[name], block)  # the columns of every v_i are in the range of E
        assert not filter_outputs(spectrum, experts, 0.0).left[name].any()
    assert torch.equal(passed.right, spectrum.right) and torch.equal(passed.values, spectrum.values)


def test_factors_are_filtered_as_their_product() -> None:
    factors = InMemoryTaskVectors(lora())
    dense = InMemoryTaskVectors([vector.dense() for vector in lora()])
    spectrum = decompose_interference(factors)
    one, other = (filter_outputs(spectrum, experts, 3.0) for experts in (factors, dense))
    for name in spectrum.left:
        torch.testing.assert_close(one.left[name], other.left[name])


def test_orthogonal_outputs_are_scaled_by_the_filter() -> None:
    # one expert with singular values 3 and 4: E = diag(9, 16) / 25
    vector = torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))
    experts = InMemoryTaskVectors([vector])
    spectrum = decompose_interference(experts, route="gram")
    filtered = filter_outputs(spectrum, experts, 2.0)
    factors = 1 - torch.exp(-2.0 * torch.tensor([9.0, 16.0], dtype=torch.float64) / 25)
    torch.testing.assert_close(filtered.left["sum"], spectrum.left["sum"] * factors)


def test_a_single_row_is_not_filtered() -> None:
    experts = InMemoryTaskVectors([torch.ones(1, 4, dtype=torch.float64)])
    spectrum = decompose_interference(experts)
    assert filter_outputs(spectrum, experts, 1.0) is spectrum
