"""Checks of the properties that every merge method must have, for the tests of built-in methods and of packages."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import NonFiniteError
from .lazy_torch import torch
from .linear_algebra import frobenius
from .method import AnyMethod, SpectralMethod, SpectralParameters
from .registry import get_method
from .task_vectors import InMemoryTaskVectors, LowRank
from .tensor_level import merge_task_vectors

_ROWS, _COLUMNS, _RANK = 12, 16, 2
# Of results computed in float64: rounding times the condition of these random matrices, with a wide margin.
_TOLERANCE = 1e-6


def check_method(name: str, num_experts: int = 3, **parameters: Any) -> None:
    """Check an installed method on small random task vectors.

    Parameters
    ----------
    name : a method's name or alias
    num_experts : number of experts to merge; reduced to the most that the method takes
    **parameters : of the method, as for `merge_task_vectors`

    Raises
    ------
    AssertionError : names the property that does not hold
    RecipeError : unknown method, or wrong parameters
    """
    method = get_method(name)
    count = min(num_experts, method.other_experts or method.max_experts or num_experts)
    generator = torch.Generator().manual_seed(0)
    experts = [torch.randn((_ROWS, _COLUMNS), generator=generator, dtype=torch.float64) / 10 for _ in range(count)]
    base = torch.randn((_ROWS, _COLUMNS), generator=generator, dtype=torch.float64)
    _check_result(method, experts, base, parameters)
    _check_repeatable(method, experts, base, parameters)
    if not method.order_matters and count > 1 and not any(isinstance(value, list) for value in parameters.values()):
        _check_order(method, experts, base, parameters)
    zeros = [torch.zeros_like(vector) for vector in experts]
    merged = merge_task_vectors(zeros, method.name, base=base, **parameters)
    assert merged.abs().max() <= _TOLERANCE, f"{method.name}: zero task vectors give {merged.abs().max():.3g}, not 0"
    if isinstance(method, SpectralMethod):
        _check_low_rank(method, count, generator, parameters)
        _check_factors(method, experts, parameters)


def _check_result(
    method: AnyMethod, experts: list[torch.Tensor], base: torch.Tensor, parameters: dict[str, Any]
) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        given = [vector.to(dtype) for vector in experts]
        try:
            merged = merge_task_vectors(given, method.name, base=base.to(dtype), **parameters)
        except NonFiniteError:
            raise AssertionError(f"{method.name}: the result has NaN or Inf in {dtype}") from None
        assert merged.shape == base.shape, f"{method.name}: the result has shape {tuple(merged.shape)}"
        assert merged.dtype == dtype, f"{method.name}: the result is {merged.dtype} for {dtype}"


def _check_repeatable(
    method: AnyMethod, experts: list[torch.Tensor], base: torch.Tensor, parameters: dict[str, Any]
) -> None:
    copies = [tensor.clone() for tensor in (*experts, base)]
    first = merge_task_vectors(experts, method.name, base=base, **parameters)
    unchanged = all(torch.equal(tensor, copy) for tensor, copy in zip((*experts, base), copies, strict=True))
    assert unchanged, f"{method.name}: it changes its inputs"
    second = merge_task_vectors(experts, method.name, base=base, **parameters)
    assert torch.equal(first, second), f"{method.name}: a second run gives other values"


def _check_order(
    method: AnyMethod, experts: list[torch.Tensor], base: torch.Tensor, parameters: dict[str, Any]
) -> None:
    one = merge_task_vectors(experts, method.name, base=base, **parameters)
    other = merge_task_vectors(experts[::-1], method.name, base=base, **parameters)
    assert _distance(one, other) < _TOLERANCE, f"{method.name}: the order of the experts matters; set order_matters"


def _check_low_rank(
    method: SpectralMethod[Any, Any], count: int, generator: torch.Generator, parameters: dict[str, Any]
) -> None:
    factors = [
        LowRank(
            torch.randn((_ROWS, _RANK), generator=generator, dtype=torch.float64) / 10,
            torch.randn((_RANK, _COLUMNS), generator=generator, dtype=torch.float64),
        )
        for _ in range(count)
    ]
    merged = merge_task_vectors(factors, method.name, **parameters)
    dense = merge_task_vectors([vector.dense() for vector in factors], method.name, **parameters)
    assert _distance(merged, dense) < _TOLERANCE, f"{method.name}: LoRA factors and their dense products differ"


def _check_factors(method: SpectralMethod[Any, Any], experts: list[torch.Tensor], given: dict[str, Any]) -> None:
    own = {name: value for name, value in given.items() if name in method.Parameters.model_fields}
    parameters = method.Parameters(**own)
    assert isinstance(parameters, SpectralParameters), f"{method.name}: Parameters is no SpectralParameters"
    scaled = parameters.model_copy(update={"scale": 0.25 * parameters.scale})
    assert method.decomposition(parameters) == method.decomposition(scaled), (
        f"{method.name}: `scale` is part of the decomposition, so another scale repeats it"
    )
    spectrum = method.decompose(InMemoryTaskVectors(experts), parameters)
    factors, quarter = method.factors(spectrum, parameters), method.factors(spectrum, scaled)
    for block, weight in factors.weights.items():
        assert _distance(0.25 * weight, quarter.weights[block]) < _TOLERANCE, f"{method.name}: `scale` is no factor"
    no_vectors = dataclasses.replace(
        spectrum,
        right=torch.full_like(spectrum.right, torch.nan),
        left={block: torch.full_like(vectors, torch.nan) for block, vectors in spectrum.left.items()},
    )
    without = method.factors(no_vectors, parameters)
    for block, weight in factors.weights.items():
        assert torch.equal(weight, without.weights[block]), f"{method.name}: `factors` reads the vectors"


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the larger of the two in the Frobenius norm."""
    largest = max(frobenius(one), frobenius(other))
    return frobenius(one - other) / largest if largest > 0 else 0.0
