"""Tolerances of numerical tests, computed from the data of the test.

Two correct computations of one result differ by rounding. How far depends on the processor (which BLAS kernels add in
which order), but it is bounded by

    relative error <= 32 sqrt(n) eps * condition number

n is the length of the longest sum and eps the machine epsilon of the dtype. Rounding errors of a sum of n terms grow
as sqrt(n) times a small constant with a probability that is one for practical purposes. 32 covers this constant and
the decompositions (LAPACK's own tests accept a backward error of 30 n eps). The condition number is the relative change
of the result per relative change of the input. Where it is small, the defaults of `torch.testing.assert_close` (1e-7
in float64) and `pytest.approx` (1e-6) are far above this bound and are used as they are.

References
----------
N. J. Higham and T. Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41 (2019)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.svd import cover_space, singular_directions
from eigenmerge.core.numerics.svd.compact_svd import POLAR_CUT, polar_decomposition, polar_rows
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

Vectors = Sequence[torch.Tensor | LowRank]

# Relative size of the perturbations that measure a condition number: far above float64's rounding, and its square
# is below it, so that what is linearly dependent stays so for a cut at rounding level.
_STEP = 1e-9


def rounding_bound(size: int, condition: float = 1.0, dtype: torch.dtype = torch.float64) -> float:
    """Return the relative error that rounding explains: 32 sqrt(size) eps condition."""
    return 32.0 * size**0.5 * torch.finfo(dtype).eps * max(condition, 1.0)


def gap_condition(values: torch.Tensor) -> float:
    """Return the condition number of single singular vectors or eigenvectors: largest value / smallest gap (Wedin)."""
    ordered = values.double().sort(descending=True).values
    return (ordered[0] / (ordered[:-1] - ordered[1:]).min()).item()


def squared_condition(vectors: torch.Tensor, cut: float = 0.0) -> float:
    """Return (sigma_1 / sigma_r)^2: the condition of a computation that forms the Gram matrix and inverts it.

    sigma_r is the smallest singular value above `cut` times the largest.
    """
    values = torch.linalg.svdvals(vectors.double())
    return ((values[0] / values[values > cut * values[0]][-1]) ** 2).item()


def merge_tolerance(name: str, vectors: Vectors, *, dtype: torch.dtype = torch.float64, **parameters: Any) -> float:
    """Return the relative error that rounding explains in a spectral method's merge of these task vectors.

    To the condition of the problem itself is added what the algorithm loses where it forms Gram matrices:

    * TSV-M, Iso-CTS, DC-Merge: (sigma_1 / sigma_r)^2 of the vectors that are made orthonormal, always in float64;
    * WUDI family: lambda_1 times the largest f(lambda) / lambda, as eigenvalues of C have an error of eps lambda_1;
    * ACE: the condition number of the sum of covariances with their ridge, which it inverts.

    Methods on singular vectors add float32 products in float64, so their error in float32 does not grow with the size.
    """
    method = get_method(name)
    assert isinstance(method, SpectralMethod)
    chosen = method.Parameters(**parameters)
    exact = [v.to("cpu", torch.float64) for v in vectors]
    size = max(exact[0].shape)

    def merge(experts: Vectors) -> torch.Tensor:
        spectrum = method.decompose(InMemoryTaskVectors(experts), chosen)
        return apply_factors(spectrum, method.factors(spectrum, chosen))

    with _recorded_polar_rows() as orthonormalized:
        spectrum = method.decompose(InMemoryTaskVectors(exact), chosen)
    weights = method.factors(spectrum, chosen).weights
    own = measured_condition(merge, exact)
    polar = sum(squared_condition(rows, POLAR_CUT) for rows in orthonormalized if rows.numel())
    if "target" in weights:
        gain = (spectrum.values[:1] * weights["target"].abs().max()).sum().item() if spectrum.num_directions else 0.0
        return _meaningful(rounding_bound(size, own + gain, dtype))
    inverted = max(polar, _ridged_condition(exact, parameters.get("epsilon", 0.01)) if name == "ace" else 0.0)
    in_dtype = rounding_bound(size if dtype == torch.float64 else 1, own, dtype)
    return _meaningful(in_dtype + rounding_bound(size, inverted))


def measured_condition(compute: Callable[[Vectors], torch.Tensor], vectors: Vectors) -> float:
    """Return how far the result moves per relative change of the task vectors, the larger of two random changes."""
    expected = compute(vectors)
    scale = expected.norm().item() or 1.0
    return max((compute(_perturbed(vectors, seed)) - expected).norm().item() / (_STEP * scale) for seed in (1, 2))


def _meaningful(tolerance: float) -> float:
    assert tolerance < 0.05, f"the data is too ill-conditioned for a test: any result is within {tolerance:.2g}"
    return tolerance


def _perturbed(vectors: Vectors, seed: int) -> list[torch.Tensor | LowRank]:
    """Return the vectors with relative changes of norm `_STEP`; factors keep their rank and shared row spaces."""
    generator = torch.Generator().manual_seed(seed)

    def changed(matrix: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
        return matrix + _STEP * (matrix.norm() / noise.norm().clamp(min=1e-300)) * noise

    columns = vectors[0].shape[1]
    turn = torch.randn((columns, columns), generator=generator, dtype=torch.float64) / columns**0.5
    return [
        LowRank(changed(v.left), v.right + _STEP * v.right @ turn) if isinstance(v, LowRank) else changed(v)
        for v in vectors
    ]


def _ridged_condition(vectors: Vectors, epsilon: float) -> float:
    """Return the condition number of sum_i (X_i^T X_i + epsilon I), X_i being v_i minus its mean row."""
    dense = [v.dense() if isinstance(v, LowRank) else v for v in vectors]
    centered = torch.cat([v - v.mean(dim=0) for v in dense])
    values = torch.linalg.svdvals(centered).square()
    smallest = values[-1].item() if len(values) == centered.shape[1] else 0.0
    ridge = epsilon * len(dense)
    return (values[0].item() + ridge) / (smallest + ridge)


@contextmanager
def _recorded_polar_rows() -> Iterator[list[torch.Tensor]]:
    """Run the block with the inputs of every `polar_rows` and `polar_decomposition` recorded."""
    seen: list[torch.Tensor] = []

    def record(vectors: torch.Tensor) -> torch.Tensor:
        seen.append(vectors)
        return polar_rows(vectors)

    def record_both(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(vectors)
        return polar_decomposition(vectors)

    with (
        patch.object(singular_directions, "polar_rows", record),
        patch.object(cover_space, "polar_decomposition", record_both),
    ):
        yield seen


def random_experts(count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a base, (40, 56), and task vectors a tenth of its size, to compare devices."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn((40, 56), generator=generator, dtype=torch.float64)
    return base, [torch.randn((40, 56), generator=generator, dtype=torch.float64) / 10 for _ in range(count)]


def random_factors() -> list[LowRank]:
    """Return three task vectors of rank 4, (40, 56), as factors, to compare devices."""
    generator = torch.Generator().manual_seed(6)
    return [
        LowRank(
            torch.randn((40, 4), generator=generator, dtype=torch.float64) / 10,
            torch.randn((4, 56), generator=generator, dtype=torch.float64),
        )
        for _ in range(3)
    ]
