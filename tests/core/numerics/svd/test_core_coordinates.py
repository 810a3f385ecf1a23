"""Core coordinates determine the experts exactly, in bases that are as small as the experts allow."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.svd.core_coordinates import core_task_vectors, stacked_basis
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

from ..conditioning import rounding_bound


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(count: int, rows: int, columns: int, rank: int) -> list[LowRank]:
    return [LowRank(normal(rows, rank, seed=2 * i), normal(rank, columns, seed=2 * i + 1)) for i in range(count)]


@pytest.mark.parametrize("is_lora", [False, True])
def test_cores_contain_the_experts_exactly(is_lora: bool) -> None:
    vectors = lora(3, 30, 40, 2) if is_lora else [normal(12, 16, seed=i) for i in range(3)]
    cores = core_task_vectors(InMemoryTaskVectors(vectors))
    for core, vector in zip(cores, vectors, strict=True):
        dense = vector.dense() if isinstance(vector, LowRank) else vector
        assert (cores.left.T @ core @ cores.right - dense).norm() < rounding_bound(40) * dense.norm()
    assert cores.shape == ((6, 6) if is_lora else (12, 16))
    for basis in (cores.left, cores.right):
        identity = torch.eye(basis.shape[0], dtype=torch.float64)
        torch.testing.assert_close(basis @ basis.T, identity, rtol=0, atol=rounding_bound(40))


def test_shared_factors_make_a_smaller_core() -> None:
    one, other = lora(2, 50, 60, 3)
    shared = [one, LowRank(other.left, one.right)]
    assert core_task_vectors(InMemoryTaskVectors(shared)).shape == (6, 3)


def test_dense_experts_of_low_rank_have_small_bases() -> None:
    vectors = [vector.dense() for vector in lora(2, 20, 24, 3)]
    cores = core_task_vectors(InMemoryTaskVectors(vectors))
    assert cores.shape == (6, 6)
    assert list(cores.max_ranks) == [6, 6]
    assert not cores.all_low_rank
    assert cores.num_experts == 2


@pytest.mark.parametrize("by_rows", [False, True])
def test_bases_are_singular_vectors_of_the_stack_in_descending_order(by_rows: bool) -> None:
    vectors = [normal(6, 9, seed=i) for i in range(2)]
    basis, dtype = stacked_basis(InMemoryTaskVectors([v.float() for v in vectors]), by_rows=by_rows)
    assert dtype == torch.float32
    assert basis.dtype == torch.float64
    stack = torch.cat(vectors) if by_rows else torch.cat(vectors, dim=1).T
    energies = (stack @ basis.T).square().sum(dim=0)
    assert (energies[:-1] >= energies[1:]).all()
    torch.testing.assert_close(energies.sqrt(), torch.linalg.svdvals(stack), rtol=1e-6, atol=0)  # experts in float32


@pytest.mark.parametrize("merge_cores", ["sum", "tsv_m", "cart"])
def test_factors_of_very_different_sizes_keep_every_expert(merge_cores: str) -> None:
    """v = (t B) (A / t) is one expert for every t, also where its B is a million times as large as the others'."""
    generator = torch.Generator().manual_seed(0)
    factors = [(torch.randn(24, 3, generator=generator), torch.randn(3, 32, generator=generator)) for _ in range(4)]
    expected = merge_task_vectors([LowRank(*pair) for pair in factors], "core_space", merge=merge_cores)
    sizes = (1.0, 1e6, 1e-6, 1.0)
    unbalanced = [LowRank(up * size, down / size) for (up, down), size in zip(factors, sizes, strict=True)]
    found = merge_task_vectors(unbalanced, "core_space", merge=merge_cores)
    assert (found - expected).norm() < 1e-5 * expected.norm()
