"""Probes of experts: exact where the algebra is, unbiased elsewhere, and equal for dense experts and factors."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.numerics.interference.expert_probes import (
    Measures,
    Probes,
    RecordedTaskVectors,
    Recorder,
    add_measures,
    energy_within,
    measure,
    measured_faster_as_matrix,
    num_probes,
    rounded,
)
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank


def factors(seed: int, rank: int = 6, shape: tuple[int, int] = (40, 56)) -> LowRank:
    made = torch.Generator().manual_seed(seed)
    left = torch.randn(shape[0], rank, generator=made, dtype=torch.float64)
    return LowRank(left, torch.randn(rank, shape[1], generator=made, dtype=torch.float64))


def probes_of(*vectors: torch.Tensor | LowRank) -> Probes:
    recorded = RecordedTaskVectors(InMemoryTaskVectors(vectors))
    assert len(list(recorded)) == len(vectors) and recorded.probes is not None
    return recorded.probes


def loss(theta: torch.Tensor, expert: torch.Tensor) -> float:
    return float(((theta - expert) @ expert.T).square().sum() / expert.square().sum())


def test_one_expert_that_is_the_result_has_no_interference() -> None:
    """theta = v: the residual is the rounding of z to bfloat16, at most 2^-9 of each entry, and the cosine is 1."""
    expert = factors(1).dense()
    found = measure(probes_of(expert), expert)
    square = float(expert.square().sum())
    assert found.after[0] <= 2**-18 * found.before[0]
    assert found.squares[0] == pytest.approx(square) and found.delta == pytest.approx(square)
    assert found.along[0] == pytest.approx(square, rel=2**-17)


def test_estimates_are_near_the_exact_values() -> None:
    """One probe of a matrix of effective rank r has a relative variance of 2 / r, P = 16 of them 2 / (16 r).

    r is at least 3 for six random directions: a standard deviation of 0.2. The bound is four of them, and that of the
    mean over 40 values is four of its own, 0.13.
    """
    ratios: list[float] = []
    for seed in range(20):
        one, other = factors(2 * seed).dense(), factors(2 * seed + 1).dense()
        theta = 0.5 * (one + other)
        found = measure(probes_of(one, other), theta)
        ratios += [found.after[0] / loss(theta, one), found.before[1] / loss(torch.zeros_like(one), other)]
    assert all(0.2 < ratio < 1.8 for ratio in ratios)
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.13)


def test_factors_and_a_base_change_nothing_but_rounding() -> None:
    one, other = factors(3), factors(4)
    base = torch.randn(40, 56, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    dense = measure(probes_of(one.dense(), other.dense()), one.dense() + other.dense())
    stacked = LowRank(torch.cat([one.left, other.left], 1), torch.cat([one.right, other.right]))
    assert_equal(measure(probes_of(one, other), stacked), dense)
    recorder = Recorder((40, 56), 2)
    assert recorder.probes() is None
    recorder.add(base + one.dense(), base)
    recorder.add(base + other.dense(), base)
    probes = recorder.probes()
    assert probes is not None
    assert_equal(measure(probes, base + one.dense() + other.dense(), base), dense)


def test_factors_of_many_directions_are_measured_multiplied_out() -> None:
    """Four experts have 64 probes: (M + K) R (R + 64) = M K 64 at R = 18.2 for 40 x 56."""
    chosen = [measured_faster_as_matrix(factors(6, rank), 4) for rank in (1, 18, 19, 40)]
    assert chosen == [False, False, True, True]


def assert_equal(found: Measures, expected: Measures) -> None:
    """Another order of sums may round an entry of a probe to the next bfloat16, 2^-8 away: one of a hundred or more."""
    for name in ("squares", "before", "after", "along", "inner"):
        scale = max(map(abs, (*expected.squares, *getattr(expected, name))))
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-3 * scale)
    assert found.delta == pytest.approx(expected.delta)


def test_equal_and_orthogonal_experts() -> None:
    """Experts in different columns have y_i with disjoint entries: the estimate of <v_i, v_j> is 0 exactly."""
    one, other = torch.zeros(8, 6), torch.zeros(8, 6)
    one[:, :3], other[:, 3:] = torch.randn(8, 3), torch.randn(8, 3)
    found = measure(probes_of(one, one, other), one)
    assert found.inner[0] == pytest.approx(found.squares[0], rel=1e-6)
    assert found.inner[1:] == (0.0, 0.0) and found.along[2] == 0.0


def test_an_expert_of_zeros_has_no_share() -> None:
    one, zero = torch.randn(8, 6), torch.zeros(8, 6)
    found = measure(probes_of(one, zero), one)
    assert (found.squares[1], found.before[1], found.after[1], found.along[1]) == (0.0, 0.0, 0.0, 0.0)


def test_energy_in_directions() -> None:
    expert = factors(6)
    probes = probes_of(expert, torch.zeros(40, 56, dtype=torch.float64))
    everything = torch.eye(56, dtype=torch.float64)
    square = float(expert.dense().square().sum())
    assert energy_within(probes, everything) == pytest.approx((square, 0.0))
    assert energy_within(probes, everything[:0]) == (0.0, 0.0)


def test_a_pass_that_ends_early_records_nothing() -> None:
    recorded = RecordedTaskVectors(InMemoryTaskVectors([torch.ones(2, 3), torch.ones(2, 3)]))
    next(iter(recorded))
    assert recorded.probes is None
    list(recorded)
    assert recorded.probes is not None


def test_matrices_add_up_and_digits_are_bounded() -> None:
    found = measure(probes_of(factors(7), factors(8)), factors(7))
    twice = add_measures([found, found])
    assert twice.before == pytest.approx([2 * value for value in found.before])
    short = rounded(found)
    assert short is not None
    assert all(len(f"{value:.15g}".replace(".", "").strip("0-")) <= 4 for value in short.squares)


def test_what_overflows_is_not_measured() -> None:
    """z has products of two entries: 1e20 is finite as a weight, and its square is not in float32."""
    huge = 1e20 * torch.ones(4, 3)
    assert rounded(measure(probes_of(huge), huge)) is None and rounded(None) is None


def test_probes_of_another_matrix_are_refused() -> None:
    tensors = probes_of(torch.ones(4, 3)).to_tensors()
    assert Probes.from_tensors(tensors, (4, 3), 1).norms.tolist() == [pytest.approx(12**0.5)]
    with pytest.raises(CorruptObjectError, match="expected"):
        Probes.from_tensors(tensors, (3, 4), 1)


def test_the_number_of_probes_is_bounded() -> None:
    assert [num_probes(count) for count in (1, 16, 32, 128, 129)] == [16, 8, 4, 1, 0]
