"""Factors applied to a spectrum: by hand, and as a matrix and two factors for every built-in spectral method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import Factors, apply_factors, low_rank_form
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

SPECTRAL = [method for method in built_in_methods().values() if isinstance(method, SpectralMethod)]


def two_blocks() -> Spectrum:
    right = torch.eye(3, 4)
    left = {"target": torch.arange(6.0).reshape(3, 2), "sum": torch.ones(3, 2)}
    return Spectrum("interference", (2, 4), 2, torch.tensor([3.0, 2.0, 1.0]), right, left)


def test_blocks_are_added_direction_by_direction() -> None:
    factors = Factors({"target": torch.tensor([2.0, 0.0, 1.0]), "sum": torch.tensor([0.0, 10.0, 1.0])}, 3)
    expected = torch.tensor([[0.0, 10.0, 5.0, 0.0], [2.0, 10.0, 6.0, 0.0]])
    assert torch.equal(apply_factors(two_blocks(), factors), expected)


def test_directions_with_no_factor_are_left_out() -> None:
    factors = Factors({"target": torch.tensor([2.0, 0.0, 0.0]), "sum": torch.tensor([0.0, 0.0, -1.0])}, 2)
    left, right = low_rank_form(two_blocks(), factors)
    assert torch.equal(left, torch.tensor([[0.0, -1.0], [2.0, -1.0]]))
    assert torch.equal(right, torch.eye(3, 4)[[0, 2]])
    none = Factors({"target": torch.zeros(3)}, 0)
    assert low_rank_form(two_blocks(), none)[0].shape == (2, 0)
    assert torch.equal(apply_factors(two_blocks(), none), torch.zeros(2, 4))


def test_first_directions_leave_the_rest_of_the_spectrum_in_no_memory() -> None:
    spectrum = two_blocks()
    factors = Factors({"target": torch.tensor([2.0, 1.0, 0.0]), "sum": torch.tensor([0.0, 3.0, 0.0])}, 2)
    left, right = low_rank_form(spectrum, factors)
    assert torch.equal(left, torch.tensor([[0.0, 5.0], [2.0, 6.0]])) and torch.equal(right, torch.eye(2, 4))
    assert right.untyped_storage().nbytes() == right.nbytes
    assert torch.equal(spectrum.left["target"], torch.arange(6.0).reshape(3, 2))  # read, not written


def test_float64_factors_keep_the_spectrum_s_dtype() -> None:
    assert apply_factors(two_blocks(), Factors({"sum": torch.ones(3, dtype=torch.float64)}, 3)).dtype == torch.float32


@pytest.mark.parametrize("method", SPECTRAL, ids=lambda method: method.name)
def test_low_rank_form_is_the_delta(method: SpectralMethod[Any, Any]) -> None:
    generator = torch.Generator().manual_seed(7)
    vectors = InMemoryTaskVectors(torch.randn((3, 8, 10), generator=generator, dtype=torch.float64).unbind())
    parameters = method.Parameters()
    spectrum = method.decompose(vectors, parameters)
    factors = method.factors(spectrum, parameters)
    assert 0 < factors.rank <= spectrum.num_directions
    left, right = low_rank_form(spectrum, factors)
    torch.testing.assert_close(left @ right, apply_factors(spectrum, factors))
