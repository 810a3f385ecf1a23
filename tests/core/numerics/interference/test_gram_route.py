"""The gram route keeps what D and S need: null directions are left out, unresolved ones are marked."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.interference.gram_route import expert_energies, spectrum_of_operator
from eigenmerge.core.numerics.interference.operator import InterferenceOperator, accumulate
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

from ..conditioning import rounding_bound


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_eigenvalues_of_a_diagonal_operator() -> None:
    # experts with disjoint columns: C is diagonal, lambda_k = (entry / norm)^2
    vectors = [torch.diag(torch.tensor(entries)).double() for entries in ([3.0, 4.0, 0.0], [0.0, 0.0, 2.0])]
    spectrum = spectrum_of_operator(accumulate(InMemoryTaskVectors(vectors)))
    assert spectrum.values.tolist() == pytest.approx([1.0, 0.64, 0.36])
    assert spectrum.right.abs().round(decimals=12).tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert spectrum.statistics["sum_energy"].tolist() == pytest.approx([4.0, 16.0, 9.0])
    assert spectrum.statistics["target_energy"].tolist() == pytest.approx([4.0, (4 * 0.64) ** 2, (3 * 0.36) ** 2])


def test_null_directions_are_left_out() -> None:
    vectors = [normal(8, 2, seed=i) @ normal(2, 10, seed=9) for i in range(3)]  # one row space of dimension 2
    spectrum = spectrum_of_operator(accumulate(InMemoryTaskVectors(vectors)))
    assert spectrum.num_directions == spectrum.info["num_resolved"] == 2
    assert spectrum.values.sum().item() == pytest.approx(3)  # the trace: number of experts


def test_a_direction_below_the_cut_that_holds_part_of_the_sum_is_kept_as_unresolved() -> None:
    # sigma^2 = 1e-18 is below float64's rounding in C, sigma = 1e-9 is not in S
    vector = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    operator = accumulate(InMemoryTaskVectors([vector, vector]))
    spectrum = spectrum_of_operator(operator)
    assert (spectrum.statistics["resolved"] > 0).tolist() == [True, False]
    rebuilt = spectrum.left["sum"].T @ spectrum.right
    assert (rebuilt - operator.S).norm() < rounding_bound(2) * operator.S.norm()


def test_one_expert_is_its_own_solution() -> None:
    operator = accumulate(InMemoryTaskVectors([normal(5, 7), torch.zeros(5, 7, dtype=torch.float64)]))
    spectrum = spectrum_of_operator(operator)
    # exact: the target is computed from the sum and the eigenvalues
    assert torch.equal(spectrum.left["target"], spectrum.left["sum"] * spectrum.values.unsqueeze(1))
    without = spectrum_of_operator(operator, one_expert_is_solution=False)
    torch.testing.assert_close(without.left["target"].T @ without.right, operator.D)


def test_energies_of_zero_dense_and_low_rank_experts_add_up_to_the_eigenvalues() -> None:
    vectors = [normal(6, 8, seed=1), LowRank(normal(6, 2, seed=2), normal(2, 8, seed=3)), torch.zeros(6, 8).double()]
    experts = InMemoryTaskVectors(vectors)
    spectrum = spectrum_of_operator(accumulate(experts))
    energies = expert_energies(spectrum, experts)
    assert energies.shape == (spectrum.num_directions, 3)
    assert not energies[:, 2].any()
    torch.testing.assert_close(energies.sum(dim=1), spectrum.values)


def test_no_experts_give_no_directions() -> None:
    operator = InterferenceOperator.empty((3, 4), torch.float32, "cpu").plus(torch.zeros(3, 4))
    spectrum = spectrum_of_operator(operator)
    assert (spectrum.num_directions, spectrum.shape, spectrum.num_experts) == (0, (3, 4), 1)
    assert spectrum.info["route"] == "none"
