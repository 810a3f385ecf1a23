"""Every spectral method of the registry, later ones included: `scale` counts once, and factors read no vector."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.numerics.spectral_merge import merged_delta, merged_low_rank
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

SPECTRAL = [method for method in built_in_methods().values() if isinstance(method, SpectralMethod)]


def vectors() -> InMemoryTaskVectors:
    generator = torch.Generator().manual_seed(7)
    return InMemoryTaskVectors(torch.randn((3, 8, 10), generator=generator, dtype=torch.float64).unbind())


@pytest.mark.parametrize("method", SPECTRAL, ids=lambda method: method.name)
def test_scale_counts_once(method: SpectralMethod[Any, Any]) -> None:
    plain = method.Parameters()
    spectrum = method.decompose(vectors(), plain)
    merged, rank = merged_delta(method, spectrum, plain)
    assert rank > 0
    scaled, _ = merged_delta(method, spectrum, plain.model_copy(update={"scale": 0.3}))
    torch.testing.assert_close(scaled, 0.3 * merged)
    # scale is no part of the decomposition, or changing it would repeat one
    assert method.decomposition(plain) == method.decomposition(plain.model_copy(update={"scale": 0.3}))


@pytest.mark.parametrize("method", SPECTRAL, ids=lambda method: method.name)
def test_low_rank_form_is_the_delta(method: SpectralMethod[Any, Any]) -> None:
    parameters = method.Parameters()
    spectrum = method.decompose(vectors(), parameters)
    left, right = merged_low_rank(method, spectrum, parameters)
    torch.testing.assert_close(left @ right, merged_delta(method, spectrum, parameters)[0])


@pytest.mark.parametrize("method", SPECTRAL, ids=lambda method: method.name)
def test_factors_read_no_vector(method: SpectralMethod[Any, Any]) -> None:
    parameters = method.Parameters()
    spectrum = method.decompose(vectors(), parameters)
    directions = spectrum.num_directions
    bare = dataclasses.replace(spectrum, right=torch.full_like(spectrum.right, torch.nan), left={})
    found, expected = method.factors(bare, parameters), method.factors(spectrum, parameters)
    assert found.rank == expected.rank <= directions
    for name, weight in expected.weights.items():
        assert torch.equal(found.weights[name], weight)
